"""Priors made of others: independent slices are exact, and products are what their solvers make of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors.composed import AlternatingPrior, ProductPrior, SlicesPrior, SlicewiseCovariance
from sciddiff.random import Streams
from sciddiff.testing import check_prior

KARRAS = sd.solvers.Karras()
VOLUME = sd.Space({"z": 3, "x": 4})


def kernel(n: int, length: float) -> np.ndarray:
    h = np.arange(float(n))
    return np.exp(-np.abs(h[:, None] - h) / length)


KX, KZ = kernel(4, 2.0), kernel(3, 0.7)


def rows(**settings: object) -> sd.GaussianPrior:
    return sd.GaussianPrior(sd.Space({"x": 4}), sd.covariance.dense(KX), **settings)


def columns() -> sd.GaussianPrior:
    return sd.GaussianPrior(sd.Space({"z": 3}, "u"), sd.covariance.dense(KZ))


def perpendicular() -> tuple[SlicesPrior, SlicesPrior]:
    return SlicesPrior(rows(), VOLUME, "z"), SlicesPrior(columns(), VOLUME, "x")


def modes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Common eigenvectors ``(12, 12)`` of the two, and the variances of either."""
    (lx, ux), (lz, uz) = np.linalg.eigh(KX), np.linalg.eigh(KZ)
    return np.kron(uz, ux), np.kron(np.ones(3), lx), np.kron(lz, np.ones(4))


def states(prior: sd.Prior, n: int = 5) -> torch.Tensor:
    return Streams(0, range(n), purpose="states").normal(prior.space.shape, dtype=prior.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slices_keep_the_contract_of_a_prior(dtype):
    report = check_prior(SlicesPrior(rows().to(dtype=dtype), VOLUME, "z"), draws=200)
    assert not report.named("skipped") or report.named("skipped") == ["score"]


@pytest.mark.parametrize("dim", ["z", "x"])
def test_slices_of_a_gaussian_are_the_gaussian_of_independent_slices(dim):
    inner, matrix = (rows(), np.kron(np.eye(3), KX)) if dim == "z" else (columns(), np.kron(KZ, np.eye(4)))
    slices = SlicesPrior(inner, VOLUME, dim)
    known = sd.GaussianPrior(VOLUME, sd.covariance.dense(matrix, (3, 4)))
    z = states(slices)
    sigmas = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(slices.denoise(z, sigmas), known.denoise(z, sigmas))
    torch.testing.assert_close(slices.denoise(z, 0.5), known.denoise(z, 0.5))
    for name in ("apply", "solve"):
        action = getattr(slices.covariance(0.7), name)(z)
        torch.testing.assert_close(action, getattr(known.covariance(0.7), name)(z))
    torch.testing.assert_close(slices.covariance(0.7).variance(), known.covariance(0.7).variance())
    assert slices.covariance(0.7).logdet == pytest.approx(known.covariance(0.7).logdet)


def test_the_square_root_of_slices_is_a_root():
    cov = SlicewiseCovariance(rows().covariance(0.7), 3, 0)
    white = torch.eye(12, dtype=torch.float64).reshape(12, *cov.white_shape)
    root = cov.sqrt(white).flatten(1)
    torch.testing.assert_close(root.T @ root, cov.apply(white.reshape(12, 3, 4)).flatten(1))
    x, w = states(SlicesPrior(rows(), VOLUME, "z"), 2)[:, None], white[:2, None]
    torch.testing.assert_close((cov.sqrt(w) * x).sum(), (w * cov.sqrt_adjoint(x)).sum())


def test_a_posterior_of_slices_is_exact():
    prior = SlicesPrior(rows(), VOLUME, "z")
    points = sd.operators.Points.at_indices(VOLUME, [[0, 0], [1, 2]])
    posterior = prior.given([1.0, -1.0], points, sd.noise.Gaussian(0.3))
    known = sd.GaussianPrior(VOLUME, sd.covariance.dense(np.kron(np.eye(3), KX), (3, 4)))
    same = known.given([1.0, -1.0], points, sd.noise.Gaussian(0.3))
    n, picked = 400, [0, 6]
    draws = posterior.sample(n, seed=0)["u"].values.reshape(n, -1)
    sigma = np.kron(np.eye(3), KX)
    gain = sigma[:, picked] @ np.linalg.inv(sigma[np.ix_(picked, picked)] + 0.09 * np.eye(2))
    mean, cov = gain @ [1.0, -1.0], sigma - gain @ sigma[picked]
    assert np.abs((draws.mean(0) - mean) / np.sqrt(np.diag(cov) / n)).max() < 5
    ratio = draws.var(0, ddof=1) / np.diag(cov)
    assert np.abs((ratio - 1) / np.sqrt(2 / (n - 1))).max() < 5
    assert same.prior.sigma_max == pytest.approx(prior.sigma_max)


def test_slices_of_several_variables_and_labels():
    space = sd.Space({"x": [0.0, 1.0, 2.0]}, {"a": "K", "b": "m"})
    inner = sd.GaussianPrior(space, sd.covariance.diagonal(np.arange(1.0, 7.0).reshape(2, 3)))
    volume = sd.Space({"x": [0.0, 1.0, 2.0], "t": 4}, {"a": "K", "b": "m"})
    prior = SlicesPrior(inner, volume, "t")
    z = states(prior)
    d = prior.denoise(z, 0.5)
    for t in range(4):
        torch.testing.assert_close(d[..., t], inner.denoise(z[..., t], 0.5))
    assert prior.sample(2, seed=0)["a"].dims == ("sample", "x", "t")


def test_the_score_of_a_product_is_the_sum_and_its_limit_the_product_density():
    parts = perpendicular()
    product = ProductPrior(parts, [0.25, 0.75])
    z = states(product)
    for sigma in (0.1, 1.0, 10.0):
        summed = sum(w * p.score(z, sigma) for w, p in zip((0.25, 0.75), parts, strict=True))
        torch.testing.assert_close(product.score(z, sigma), summed)
    vectors, a, b = modes()
    precision = vectors @ np.diag(0.25 / a + 0.75 / b) @ vectors.T
    expected = -z.flatten(1).numpy() @ precision
    np.testing.assert_allclose(product.score(z, 1e-4).flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_the_noisy_marginals_of_a_product_are_too_wide_and_never_too_narrow():
    product = ProductPrior(perpendicular())
    vectors, a, b = modes()
    directions = torch.from_numpy(vectors.T.copy()).reshape(12, 3, 4)
    true = 2 * a * b / (a + b)
    for sigma in (0.1, 1.0, 5.0):
        # the variance whose score this would be
        width = -1 / (product.score(directions, sigma) * directions).flatten(1).sum(1).numpy()
        np.testing.assert_allclose(width, 2 / (1 / (a + sigma**2) + 1 / (b + sigma**2)), rtol=1e-6)
        excess = sigma**2 * (a - b) ** 2 / ((a + b) * (a + b + 2 * sigma**2))
        np.testing.assert_allclose(width - true - sigma**2, excess, rtol=1e-6, atol=1e-9)


def law(prior: sd.Prior, solver: sd.solvers.Solver, noises: int) -> np.ndarray:
    """Exact covariance of a solver's draws on a linear denoiser: every noise it takes, one unit vector at a time."""
    size = prior.space.size
    sigmas = solver.schedule.sigmas(solver.steps, prior.sigma_min, prior.sigma_max)
    unit = torch.zeros(1 + noises, size, 1 + noises, size, dtype=torch.float64)
    place, axis = torch.arange(1 + noises)[:, None], torch.arange(size)
    unit[place, axis, place, axis] = 1.0
    unit = unit.reshape(-1, 1 + noises, *prior.space.shape)
    taken = iter(range(1, 1 + noises))
    x = solver.integrate(
        prior.denoise, sigmas[0] * unit[:, 0], sigmas, lambda: unit[:, next(taken)], lambda steps: steps
    )
    flat = x.flatten(1).numpy()
    return flat.T @ flat


def test_a_product_s_draws_along_the_flow_have_the_geometric_mean_of_the_variances():
    vectors, a, b = modes()
    found = np.diag(vectors.T @ law(ProductPrior(perpendicular()), sd.solvers.Heun(steps=200), 0) @ vectors)
    # the start counts each variance over sigma_max^2 once more: 1/400 of it at most, and less in the root
    np.testing.assert_allclose(found, np.sqrt(a * b), rtol=0.01)
    far = np.abs(np.log(a / b)) > 1
    assert (np.abs(found / (2 * a * b / (a + b)) - 1) > 0.05)[far].all()


def test_a_product_s_draws_by_stochastic_steps_lie_between():
    vectors, a, b = modes()
    found = law(ProductPrior(perpendicular()), sd.solvers.Ancestral(steps=100), 100)
    finer = law(ProductPrior(perpendicular()), sd.solvers.Ancestral(steps=200), 200)
    # first order: what is left after the step size is taken out
    limit = np.diag(vectors.T @ (2 * finer - found) @ vectors)
    same = np.isclose(a, b)
    expected = np.where(same, a, a * b * np.log(a / b) / np.where(same, 1.0, a - b))
    np.testing.assert_allclose(limit, expected, rtol=0.02)


def test_priors_take_turns_as_published():
    first, second = perpendicular()
    prior = AlternatingPrior(first, second, KARRAS, every=3, steps=9)
    z = states(prior)
    for i, sigma in enumerate(prior.levels):
        torch.testing.assert_close(
            prior.denoise(z, sigma), (second if i % 3 == 2 else first).denoise(z, sigma)
        )
    sigmas = torch.tensor(prior.levels[1:6], dtype=torch.float64)
    single = torch.cat([prior.denoise(z[i : i + 1], float(s)) for i, s in enumerate(sigmas)])
    torch.testing.assert_close(prior.denoise(z, sigmas), single)


def test_turns_by_chance_have_the_right_share_and_belong_to_the_seed():
    def turns(seed: int) -> tuple[bool, ...]:
        return AlternatingPrior(*perpendicular(), KARRAS, every=2.7, steps=2000, seed=seed).turns

    share = 1 / 2.7
    assert abs(np.mean(turns(0)) - share) < 5 * np.sqrt(share * (1 - share) / 2000)
    assert turns(0) == turns(0) != turns(1)


def test_fine_turns_draw_what_the_weighted_product_draws():
    vectors, a, b = modes()
    prior = AlternatingPrior(*perpendicular(), KARRAS, every=4, steps=800)
    found = np.diag(vectors.T @ law(prior, sd.solvers.Euler(steps=800), 0) @ vectors)
    np.testing.assert_allclose(found, a**0.75 * b**0.25, rtol=0.03)


@pytest.mark.parametrize(
    "make", [lambda: ProductPrior(perpendicular()), lambda: AlternatingPrior(*perpendicular(), KARRAS)]
)
def test_composed_priors_keep_the_contract(make: Callable[[], sd.Prior]):
    check_prior(make(), draws=100)
    check_prior(make().to(dtype=torch.float32), draws=100)


def test_draws_of_a_composed_posterior_are_the_same_in_chunks():
    prior = ProductPrior(perpendicular())
    points = sd.operators.Points.at_indices(VOLUME, [[0, 0], [1, 2]])
    posterior = prior.given([1.0, -1.0], points, sd.noise.Gaussian(0.3))
    whole = posterior.sample(5, seed=0, steps=8)["u"]
    np.testing.assert_allclose(posterior.sample(5, seed=0, steps=8, chunk=2)["u"], whole, atol=1e-10)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: SlicesPrior(rows(mean=np.ones(4)), VOLUME, "z"), "another mean"),
        (
            lambda: SlicesPrior(
                sd.GaussianPrior(sd.Space({"x": 4}), sd.covariance.dense(4 * KX)), VOLUME, "z"
            ),
            "another scale",
        ),
        (
            lambda: SlicesPrior(rows(reference=sd.covariance.white((4,), 2.0)), VOLUME, "z"),
            "another reference noise",
        ),
        (lambda: SlicesPrior(rows(), sd.Space({"z": 5, "x": 4}), "z"), "dims"),
    ],
)
def test_priors_in_other_units_or_noise_are_refused(other, words):
    for compose in (lambda a, b: ProductPrior([a, b]), lambda a, b: AlternatingPrior(a, b, KARRAS)):
        with pytest.raises(InputError, match=words):
            compose(perpendicular()[0], other())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: SlicesPrior(rows(), VOLUME, "y"), "dim"),
        (lambda: SlicesPrior(rows(), VOLUME, "x"), "space"),
        (lambda: SlicesPrior(rows(), sd.Space({"z": 3, "x": 5}), "z"), "space"),
        (lambda: SlicesPrior(rows(), sd.Space({"z": 3, "x": 4}, "other"), "z"), "space"),
        (lambda: ProductPrior([rows()]), "priors"),
        (lambda: ProductPrior(perpendicular(), [1.0, 1.0]), "weights"),
        (lambda: ProductPrior(perpendicular(), [1.5, -0.5]), "weights"),
        (lambda: AlternatingPrior(*perpendicular(), KARRAS, every=1), "every"),
        (lambda: AlternatingPrior(*perpendicular(), KARRAS, steps=1), "steps"),
    ],
)
def test_what_cannot_be_composed_is_refused(make, argument):
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
