"""Guided denoisers with a covariance in the solve, one evaluation at a time, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.methods.base import Run
from sciddiff.methods.linearised import TMPD, LocalGaussian
from sciddiff.methods.mmps import MMPS
from sciddiff.methods.pigdm import PiGDM, around
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.priors.spread import Spread
from sciddiff.random import Streams

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

D, SPACE, DATA = 4, sd.Space({"i": 4}), sd.Space({"j": 3}, "y")
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((D, D)) / 2
REFERENCES = {"white": None, "dense": sd.covariance.dense(ROOT @ ROOT.T + 0.5 * np.eye(D))}
MATRIX = torch.from_numpy(RNG.standard_normal((3, D)))
LINEAR = sd.operators.Matrix(SPACE, DATA, MATRIX)
OFFSET = torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
AFFINE = sd.operators.from_torch(lambda x: x @ MATRIX.T.to(x) + OFFSET.to(x), SPACE, DATA)
RATE = sd.operators.from_torch(lambda x: (0.3 * x @ MATRIX.T.to(x)).exp() + 0.1 * x[:, :3] ** 2, SPACE, DATA)
R = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
NOISE = sd.noise.Gaussian(covariance=sd.covariance.dense(R))
Y = np.array([[1.0, -2.0, 0.5], [1.0, np.nan, 0.5]])
SIGMAS = [0.2, 1.5]


def mixture(reference="white") -> GaussianMixturePrior:
    means = 2 * np.random.default_rng(1).standard_normal((3, D))
    return GaussianMixturePrior(
        SPACE, [0.2, 0.5, 0.3], means, [0.3, 1.0, 0.6], reference=REFERENCES[reference]
    )


def gaussian(covariance, reference="white") -> sd.GaussianPrior:
    return sd.GaussianPrior(SPACE, covariance, [1.0, 0.0, -1.0, 2.0], reference=REFERENCES[reference])


def given(prior, operator=LINEAR, noise=NOISE, y=Y) -> sd.Posterior:
    return prior.given(y, operator, noise, missing="mask", batch_dim="case")


def guided(posterior, method, z, sigma, cases) -> torch.Tensor:
    run = Run(posterior, method, len(z), seed=0, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        return method.guide(run)(z, sigma, cases)


def states(prior, sigma, n=4) -> tuple[torch.Tensor, torch.Tensor]:
    streams = Streams(0, range(n), purpose="test")
    return prior.noise(streams) + sigma * prior.noise(streams), torch.arange(n) % 2


def by_hand(posterior, z, sigma, cases, outer, inner) -> torch.Tensor:
    """``D + outer H^T (R + H inner H^T)^-1 (y - h(D))`` on the rows that were seen; covariances from ``(J, C)``."""
    prior, seen = posterior.prior, posterior.observations[0]
    c = prior.reference.apply(torch.eye(D, dtype=torch.float64))
    noise, out = seen.noise, []

    def expected(d):
        return noise.expectation(seen.operator.apply(prior.normalisation.physical(d[None])))[0]

    for row, case in zip(z, cases, strict=True):
        d = prior.denoise(row[None], sigma)[0]
        j = torch.autograd.functional.jacobian(lambda v: prior.denoise(v[None], sigma)[0], row)
        h = torch.autograd.functional.jacobian(expected, d)
        mean = seen.operator.apply(prior.normalisation.physical(d[None]))
        r = R if noise.gaussian else torch.diag(noise.variance(mean)[0])
        keep = torch.ones(3, dtype=torch.bool) if seen.mask is None else seen.mask[case]
        h, r, miss = h[keep], r[keep][:, keep], (seen.y[case] - expected(d))[keep]
        out.append(d + outer(j, c) @ h.T @ torch.linalg.solve(r + h @ inner(j, c) @ h.T, miss))
    return torch.stack(out)


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("choice", ["unit", "gaussian"])
def test_pigdm_has_its_covariance_in_the_solve_and_the_vjp_outside(reference, sigma, choice):
    prior = mixture(reference)
    z, cases = states(prior, sigma)
    c = prior.reference.apply(torch.eye(D, dtype=torch.float64))
    variance = D / float(torch.trace(c))
    inner = c * sigma**2 * variance / (variance + sigma**2)
    if choice == "gaussian":
        inner = prior.gaussian_covariance(sigma).apply(torch.eye(D, dtype=torch.float64))
    expected = by_hand(given(prior), z, sigma, cases, lambda j, c: sigma**2 * c @ j.T, lambda j, c: inner)
    close(guided(given(prior), PiGDM(choice), z, sigma, cases), expected)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", SIGMAS)
def test_tmpd_has_the_row_sums_in_the_solve_and_the_vjp_outside(reference, sigma):
    prior = mixture(reference)
    z, cases = states(prior, sigma)

    def outer(j, c):
        return sigma**2 * c @ j.T

    expected = by_hand(
        given(prior), z, sigma, cases, outer, lambda j, c: torch.diag(outer(j, c).sum(1).clamp(min=0))
    )
    close(guided(given(prior), TMPD(rtol=1e-12), z, sigma, cases), expected)


def test_the_published_covariance_of_pigdm_is_exact_for_a_white_prior_of_any_variance():
    prior = gaussian(sd.covariance.white((D,), 9.0))
    z, cases = states(prior, 0.8)
    close(*(guided(given(prior), method, z, 0.8, cases) for method in (PiGDM(), MMPS())))


@pytest.mark.parametrize("reference", list(REFERENCES))
def test_the_corrected_covariance_of_pigdm_is_exact_for_every_gaussian_prior(reference):
    prior = gaussian(sd.covariance.dense(ROOT @ ROOT.T + 0.1 * np.eye(D)), reference)
    z, cases = states(prior, 0.8)
    close(*(guided(given(prior), method, z, 0.8, cases) for method in (PiGDM("gaussian"), MMPS())))


def test_tmpd_is_exact_where_the_covariance_is_diagonal_and_not_elsewhere():
    straight, tilted = gaussian(sd.covariance.diagonal([1.0, 4.0, 0.5, 2.0])), gaussian(REFERENCES["dense"])
    for prior in (straight, tilted):
        z, cases = states(prior, 0.8)
        found, exact = (guided(given(prior), method, z, 0.8, cases) for method in (TMPD(rtol=1e-12), MMPS()))
        assert (float((found - exact).abs().max()) < 1e-8) == (prior is straight)


def test_negative_row_sums_count_as_nothing_and_are_recorded():
    prior = gaussian(sd.covariance.dense(np.eye(D) - 0.9 * np.outer([1, 1, 0, 0], [1, 1, 0, 0]) / 1.9))
    draws = given(prior).sample(2, method=TMPD(), steps=8, seed=0)
    assert draws.attrs["negative_row_sums"] == 0
    steep = np.diag([1.0, 4.0, 1.0, 1.0])
    steep[0, 1] = steep[1, 0] = -1.8
    draws = given(gaussian(sd.covariance.dense(steep))).sample(2, method=TMPD(), steps=8, seed=0)
    assert 0.05 < draws.attrs["negative_row_sums"] <= 0.25


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("choice", ["exact", "guarded", "gaussian", "unit"])
def test_a_local_gaussian_is_mmps_where_the_operator_is_linear_and_the_noise_gaussian(
    reference, sigma, choice
):
    prior = mixture(reference)
    z, cases = states(prior, sigma)
    found, exact = (
        guided(given(prior), kind(choice, rtol=1e-13), z, sigma, cases) for kind in (LocalGaussian, MMPS)
    )
    close(found, exact)
    # the same through automatic differentiation, with an offset that the data have too
    bent = given(prior, AFFINE, y=Y + OFFSET.numpy())
    close(guided(bent, LocalGaussian(choice, rtol=1e-13), z, sigma, cases), exact)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(
    "noise", [NOISE, sd.noise.Poisson(5.0), sd.noise.Laplace(0.3), sd.noise.StudentT(4, 0.2)], ids=repr
)
@pytest.mark.parametrize(
    "method", [LocalGaussian(rtol=1e-12), TMPD(rtol=1e-12)], ids=lambda m: type(m).__name__
)
def test_a_bent_operator_is_linearised_at_the_denoised_state(reference, sigma, noise, method):
    prior = mixture(reference)
    posterior = given(prior, RATE, noise, [[3.0, 1.0, 7.0], [2.0, np.nan, 4.0]])
    z, cases = states(prior, sigma)

    def outer(j, c):
        return sigma**2 * c @ j.T

    def inner(j, c):
        return (
            outer(j, c) if isinstance(method, LocalGaussian) else torch.diag(outer(j, c).sum(1).clamp(min=0))
        )

    close(guided(posterior, method, z, sigma, cases), by_hand(posterior, z, sigma, cases, outer, inner), 1e-7)


@pytest.mark.parametrize(
    "method", [LocalGaussian(rtol=1e-12), TMPD(rtol=1e-12), PiGDM(), PiGDM("gaussian")], ids=repr
)
def test_several_observations_count_as_one_of_all_their_values(method):
    prior, noise = mixture("dense"), sd.noise.Gaussian([0.3, 0.5, 0.2])
    whole = prior.given(Y[0], LINEAR, noise)
    parts = sd.Posterior(prior, ())
    for rows in ([0, 1], [2]):
        piece = sd.operators.Matrix(SPACE, sd.Space({"j": len(rows)}, "y"), MATRIX[rows])
        parts = parts.given(Y[0][rows], piece, sd.noise.Gaussian(noise.sd[rows]))
    z, cases = states(prior, 0.7)
    close(*(guided(p, method, z, 0.7, 0 * cases) for p in (whole, parts)))


@pytest.mark.parametrize("method", [LocalGaussian(), TMPD(), PiGDM()], ids=lambda m: type(m).__name__)
def test_a_row_does_not_depend_on_the_rows_beside_it(method):
    prior = mixture("dense")
    posterior = given(prior)
    z, cases = states(prior, 0.9, 6)
    together = guided(posterior, method, z, 0.9, cases)
    for i in range(6):
        close(guided(posterior, method, z[i : i + 1], 0.9, cases[i : i + 1]), together[i : i + 1], 1e-11)


@pytest.mark.parametrize("method", [LocalGaussian(), TMPD(), PiGDM()], ids=lambda m: type(m).__name__)
def test_vjps_and_operator_calls_are_counted_in_rows(method):
    prior = mixture()
    run = Run(given(prior), method, 4, seed=0, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        guide = method.guide(run)
        z, cases = states(prior, 0.9)
        before = run.cost.operator_calls
        guide(z, 0.9, cases)
    assert run.cost.forwards == 4
    assert run.cost.vjps >= 4 and run.cost.vjps % 4 == 0
    if isinstance(method, TMPD):
        assert run.cost.vjps == 8
    if isinstance(method, PiGDM):
        assert run.cost.vjps == 4 and before > 0
    else:
        assert run.cost.operator_calls - before >= 12


def test_a_rate_that_is_negative_raises_with_the_noise_level():
    posterior = gaussian(sd.covariance.white((D,))).given([1.0, 2.0, 0.0], LINEAR, sd.noise.Poisson(1.0))
    with pytest.raises(DivergenceError, match=r"sigma .*Poisson"):
        posterior.sample(8, method=LocalGaussian(), seed=0)


def test_what_has_no_variance_no_gradient_or_no_fitted_gaussian_is_refused():
    prior = gaussian(sd.covariance.white((D,)))
    wild = prior.given(Y[0], LINEAR, sd.noise.StudentT(2, 0.1))
    opaque = prior.given(Y[0], sd.operators.black_box(lambda x: x[:3], SPACE, DATA), sd.noise.Gaussian(0.1))
    for method in (LocalGaussian(), TMPD()):
        with pytest.raises(MethodError, match="no finite variance"):
            wild.sample(2, method=method, seed=0)
        with pytest.raises(MethodError, match="black box"):
            opaque.sample(2, method=method, seed=0)
    unfitted = mixture()
    unfitted.gaussian_covariance = lambda sigma: None
    for method in (LocalGaussian("gaussian"), PiGDM("gaussian")):
        with pytest.raises(MethodError, match="no fitted Gaussian"):
            given(unfitted).sample(2, method=method, seed=0)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: PiGDM("scalar"),
        lambda: PiGDM(rtol=0.0),
        lambda: TMPD(max_iterations=0),
        lambda: LocalGaussian("scalar"),
        lambda: LocalGaussian(rtol=2.0),
        lambda: LocalGaussian(rtol="a"),
        lambda: LocalGaussian(max_iterations=1.5),
        lambda: TMPD(max_iterations=True),
        lambda: PiGDM(max_iterations=1.5),
        lambda: around(mixture(), "exact"),
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        bad()


def test_a_local_gaussian_takes_the_measured_spread_and_refuses_a_prior_without_one():
    prior = mixture()
    with pytest.raises(MethodError, match="no measured spread"):
        given(prior).sample(2, method=LocalGaussian("learned"), seed=0)
    prior.spread = Spread((1.0,), (2.0,))
    z, cases = states(prior, 0.7)
    found, unit, exact = (
        guided(given(prior), method, z, 0.7, cases)
        for method in (LocalGaussian("learned", rtol=1e-12), LocalGaussian("unit"), MMPS("learned"))
    )
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    assert float((found - unit).abs().max()) > 1e-2


def test_an_equation_counts_as_an_observation_of_zeros():
    """A linear residual beside data: the exact posterior by dense algebra is met by the law of the draws."""
    slope = torch.tensor([[-1.0, 1.0, 0.0, 0.0], [0.0, -1.0, 1.0, 0.0]], dtype=torch.float64)
    prior = gaussian(sd.covariance.dense(ROOT @ ROOT.T + 0.1 * np.eye(D)), "dense")
    seen = prior.given(Y[0], LINEAR, NOISE)
    posterior = seen.satisfying(lambda x: x.diff(dim=1)[:, :2], sd=[0.3, 0.5])
    z, _ = states(prior, 0.7)
    method, none = LocalGaussian(rtol=1e-13), torch.zeros(4, dtype=torch.long)
    whole = sd.operators.Matrix(SPACE, sd.Space({"j": 5}, "y"), torch.cat([MATRIX, slope]))
    r = torch.block_diag(R, torch.diag(torch.tensor([0.09, 0.25], dtype=torch.float64)))
    y = np.concatenate([Y[0], np.zeros(2)])
    exact = prior.given(y, whole, sd.noise.Gaussian(covariance=sd.covariance.dense(r)))
    close(guided(posterior, method, z, 0.7, none), guided(exact, MMPS(), z, 0.7, none))


def test_an_equation_holds_for_every_case_and_in_any_shape():
    prior = gaussian(sd.covariance.white((D,)))
    many = given(prior)
    posterior = many.satisfying(lambda x: x[:, 0] - x[:, 1] ** 2, sd=0.01)
    assert posterior.cases == 2 and posterior.observations[1].operator.codomain.size == 1
    x = posterior.sample(4, method=LocalGaussian(), steps=64, seed=0)["x"].values
    assert np.abs(x[..., 0] - x[..., 1] ** 2).max() < 0.1


def test_an_equation_that_is_no_torch_function_of_rows_is_refused():
    for bad in (0.0, lambda x: x.sum(), lambda x: x.numpy()):
        with pytest.raises(InputError, match="residual"):
            given(gaussian(sd.covariance.white((D,)))).satisfying(bad, sd=0.1)


def test_stochastic_steps_are_taken_unasked_only_where_the_observation_is_bent():
    prior, count = gaussian(sd.covariance.white((D,))), [3.0, 1.0, 7.0]
    straight = prior.given(Y[0], LINEAR, NOISE).given([1.0, 0.0, 1.0], LINEAR, sd.noise.Exceeds(0.0, sd=0.1))
    bent = prior.given(count, RATE, sd.noise.Poisson(5.0))
    wanted = [
        (straight, {}, "DPMSolver(steps=32"),
        (bent, {}, "Ancestral(steps=256"),
        (bent, {"steps": 5}, "Ancestral(steps=5"),
        (bent, {"solver": sd.solvers.Heun(steps=4)}, "Heun(steps=4"),
    ]
    for posterior, options, solver in wanted:
        draws = posterior.sample(1, method=LocalGaussian(), seed=0, **options)
        assert draws.attrs["solver"].startswith(solver)
