from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams

D, K = 4, 3
SPACE = sd.Space({"site": D})
WEIGHTS = [0.2, 0.5, 0.3]
RNG = np.random.default_rng(0)
MEANS = 2.0 * RNG.standard_normal((K, D)) + 5.0
ROOTS = RNG.standard_normal((K, D, D))
DENSE = ROOTS @ ROOTS.transpose(0, 2, 1) / D + 0.2 * np.eye(D)
PROJECTOR = np.eye(D) - 1.0 / D

FAMILIES = {
    "one number": 0.7,
    "a number each": np.array([0.5, 1.0, 0.5]),
    "variances": np.array([[0.3, 1, 2, 0.5], [1, 1, 0.2, 0.4], [2, 0.5, 0.3, 0.8]]),
    "matrices": DENSE,
    "one Covariance": sd.covariance.dense(DENSE[0]),
    "Covariances": [
        sd.covariance.dense(DENSE[0]),
        sd.covariance.white((D,), 0.4),
        sd.covariance.dense(DENSE[1]),
    ],
}
REFERENCES = {
    "white": None,
    "diagonal": sd.covariance.diagonal([0.5, 1.0, 2.0, 1.5]),
    "dense": sd.covariance.dense(DENSE[2]),
}


def matrices(family) -> np.ndarray:
    """Every component's covariance, written out."""
    if isinstance(family, list):
        return np.stack([matrices(c)[0] for c in family])
    if isinstance(family, sd.covariance.Covariance):
        return np.stack([family.apply(torch.eye(D, dtype=torch.float64)).numpy()] * K)
    values = np.asarray(family, dtype=float)
    if values.ndim < 2:
        return np.stack([v * np.eye(D) for v in np.broadcast_to(values, K)])
    return np.stack([np.diag(v) for v in values]) if values.shape == (K, D) else values


def projected() -> GaussianMixturePrior:
    """Components without a mean along the dim, all but the level that they share."""
    means = MEANS @ PROJECTOR + 1.0
    covariances = [sd.covariance.dense(PROJECTOR @ c @ PROJECTOR) for c in DENSE]
    return GaussianMixturePrior(SPACE, WEIGHTS, means, covariances, reference=sd.covariance.centred((D,)))


PRIORS = {
    **{f"{f}, C {r}": (f, r) for f in FAMILIES for r in ("white", "dense")},
    "matrices, C diagonal": ("matrices", "diagonal"),
    "in the range of a projector": None,
}


@pytest.fixture(params=list(PRIORS), ids=str)
def prior(request) -> GaussianMixturePrior:
    if PRIORS[request.param] is None:
        return projected()
    family, reference = PRIORS[request.param]
    return GaussianMixturePrior(SPACE, WEIGHTS, MEANS, FAMILIES[family], reference=REFERENCES[reference])


def states(prior, sigma, n=5) -> torch.Tensor:
    """Noisy states of the prior."""
    streams = Streams(0, range(n), purpose="test")
    return prior.draw(streams) + sigma * prior.noise(streams)


def jacobian(prior, z, sigma) -> torch.Tensor:
    """``J``, ``(rows, D, D)``."""
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda v: prior.denoise(v[None], sigma)[0], row) for row in z]
    )


def reference_matrix(prior) -> torch.Tensor:
    return prior.reference.apply(torch.eye(D, dtype=torch.float64))


@pytest.mark.parametrize("sigma", [0.05, 0.6, 4.0])
def test_the_denoiser_is_tweedies_formula_on_the_log_density(prior, sigma):
    z, c, h = states(prior, sigma), reference_matrix(prior), 1e-5
    # central differences along C, which stay in its range
    steps = h * c
    gradient = torch.stack(
        [(prior.log_density(z + s, sigma) - prior.log_density(z - s, sigma)) / (2 * h) for s in steps], 1
    )
    torch.testing.assert_close(prior.denoise(z, sigma), z + sigma**2 * gradient, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prior.score(z, sigma) @ c, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_denoiser_density_and_covariance_equal_bayes_rule_written_out(family, sigma):
    prior = GaussianMixturePrior(SPACE, WEIGHTS, MEANS, FAMILIES[family], reference=REFERENCES["dense"])
    z, c = states(prior, sigma), reference_matrix(prior).numpy()
    unit, centre = float(prior.normalisation.scale), prior.normalisation.mean.numpy()
    means, covariances = (MEANS - centre) / unit, matrices(FAMILIES[family]) / unit**2
    for i, row in enumerate(z.numpy()):
        total = covariances + sigma**2 * c
        p = np.array(
            [
                w * stats.multivariate_normal(m, s).pdf(row)
                for w, m, s in zip(WEIGHTS, means, total, strict=True)
            ]
        )
        gains = covariances @ np.linalg.inv(total)
        parts = means + (gains @ (row - means)[..., None])[..., 0]
        share = p / p.sum()
        mean = share @ parts
        within = np.einsum("k,kij->ij", share, covariances - gains @ covariances)
        between = np.einsum("k,ki,kj->ij", share, parts - mean, parts - mean)
        np.testing.assert_allclose(prior.denoise(z, sigma)[i], mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(prior.log_density(z, sigma)[i], np.log(p.sum()), rtol=1e-9)
        np.testing.assert_allclose(prior.responsibilities(z, sigma)[i], share, atol=1e-9)
        covariance = sigma**2 * jacobian(prior, z[i : i + 1], sigma)[0].numpy() @ c
        np.testing.assert_allclose(covariance, within + between, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_j_c_is_symmetric_and_positive(prior, sigma):
    z = states(prior, sigma)
    jc = jacobian(prior, z, sigma) @ reference_matrix(prior)
    torch.testing.assert_close(jc, jc.mT, rtol=1e-8, atol=1e-9)
    assert torch.linalg.eigvalsh((jc + jc.mT) / 2).min() > -1e-9


def test_a_row_does_not_depend_on_the_batch_and_may_have_its_own_sigma(prior):
    z, sigma = states(prior, 1.0, 6), torch.tensor([0.1, 2.0, 0.5, 0.1, 7.0, 2.0]).double()
    together = prior.denoise(z, sigma)
    for i in range(6):
        alone = prior.denoise(z[i : i + 1], float(sigma[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_without_noise_a_state_is_its_own_denoised_state(prior):
    z = states(prior, 0.0)
    torch.testing.assert_close(prior.denoise(z, 0.0), z, rtol=1e-9, atol=1e-9)


def test_float32_denoises_as_float64_to_rounding(prior):
    single = prior.to(dtype=torch.float32)
    for sigma in (prior.sigma_min, 0.5, prior.sigma_max):
        z = states(prior, sigma).float()
        out = single.denoise(z, sigma)
        assert out.dtype == torch.float32
        error = (out.double() - prior.denoise(z.double(), sigma)).abs().max()
        assert error < 1e-4 * max(1.0, float(z.abs().max()))


def test_draws_have_the_mean_the_covariance_and_the_shares_of_the_mixture(prior):
    n = 4000
    z = prior.draw(Streams(1, range(n), purpose="test"))
    unit, centre = prior.normalisation.scale, prior.normalisation.mean
    means, cov = prior.means, prior._apply(torch.eye(D, dtype=torch.float64))
    assert unit > 0 and torch.isfinite(centre).all()
    # the normalised law is centred; four standard errors of D means and of D variances
    sd_ = torch.diagonal(cov).sqrt()
    assert (z.mean(0).abs() / sd_).max() < 4 * n**-0.5
    fourth = ((z / sd_) ** 4).mean(0)
    assert ((z.var(0) / sd_**2 - 1).abs() / ((fourth - 1) / n).sqrt()).max() < 4
    picked = torch.searchsorted(
        torch.tensor(WEIGHTS).double().cumsum(0),
        Streams(1, range(n), purpose="test").uniform((1,), dtype=torch.float64)[:, 0],
    )
    counts = torch.bincount(picked, minlength=K)
    assert stats.chisquare(counts.numpy(), n * np.array(WEIGHTS)).pvalue > 1e-4
    for k in range(K):
        own = z[picked == k]
        se = (
            torch.diagonal(
                prior.laws[[k in m.tolist() for m in prior.members].index(True)].apply(
                    torch.eye(D, dtype=torch.float64)
                )
            ).sqrt()
            * len(own) ** -0.5
        )
        assert ((own.mean(0) - means[k]).abs() / se).max() < 4.5


def test_draw_i_is_the_same_for_any_number_of_draws(prior):
    few, many = (prior.sample(n, seed=3) for n in (3, 9))
    assert float(abs(many.isel(sample=slice(3)) - few).to_array().max()) == 0


def test_the_physical_density_of_one_value_integrates_to_one():
    prior = GaussianMixturePrior(sd.Space({"t": 1}), [1.0, 3.0], [[-2.0], [7.0]], [0.5, 2.0])

    def density(x: float) -> float:
        z = prior.normalisation.normal(torch.tensor([[x]], dtype=torch.float64))
        return float((prior.log_density(z) - prior.normalisation.log_det((1,))).exp())

    assert integrate.quad(density, -20, 30, points=[-2, 7])[0] == pytest.approx(1.0, abs=1e-7)
    assert density(-2.0) == pytest.approx(
        0.25 * stats.norm(-2, 0.5**0.5).pdf(-2) + 0.75 * stats.norm(7, 2**0.5).pdf(-2), rel=1e-9
    )


def test_one_component_is_the_gaussian_prior():
    covariance = sd.covariance.dense(DENSE[0])
    mixture = GaussianMixturePrior(SPACE, [2.0], MEANS[:1], covariance, reference=REFERENCES["dense"])
    gaussian = sd.GaussianPrior(SPACE, covariance, MEANS[0], reference=REFERENCES["dense"])
    z = states(gaussian, 1.0)
    torch.testing.assert_close(mixture.denoise(z, 0.7), gaussian.denoise(z, 0.7))
    torch.testing.assert_close(mixture.log_density(z, 0.7), gaussian.log_density(z, 0.7))
    torch.testing.assert_close(
        mixture.gaussian_covariance(0.7).apply(z), gaussian.covariance(0.7).apply(z), rtol=1e-7, atol=1e-9
    )
    assert mixture.sigma_max == pytest.approx(gaussian.sigma_max, rel=1e-5)


def test_the_fitted_gaussian_has_the_moments_of_the_mixture(prior):
    sigma, c = 0.8, reference_matrix(prior).numpy()
    share = prior.weights.numpy()
    means = prior.means.numpy()
    covariances = np.stack(
        [
            next(law for m, law in zip(prior.members, prior.laws, strict=True) if k in m.tolist())
            .apply(torch.eye(D, dtype=torch.float64))
            .numpy()
            for k in range(K)
        ]
    )
    total = np.einsum("k,kij->ij", share, covariances) + np.einsum("k,ki,kj->ij", share, means, means)
    expected = sigma**2 * total @ np.linalg.pinv(total + sigma**2 * c) @ c
    fitted = prior.gaussian_covariance(sigma).apply(torch.eye(D, dtype=torch.float64))
    np.testing.assert_allclose(fitted, expected, rtol=1e-7, atol=1e-9)


def test_sigma_max_follows_the_largest_generalised_eigenvalue(prior):
    total = prior._apply(torch.eye(D, dtype=torch.float64)).numpy()
    c = reference_matrix(prior).numpy()
    lam, v = np.linalg.eigh(c)
    half = v[:, lam > 1e-10] / np.sqrt(lam[lam > 1e-10])
    top = np.linalg.eigvalsh(half.T @ total @ half)[-1]
    like = sd.GaussianPrior(SPACE, sd.covariance.white((D,), 1.0))  # its largest eigenvalue is 1
    assert prior.sigma_max == pytest.approx(like.sigma_max * np.sqrt(top), rel=1e-6)


def test_the_largest_eigenvalue_is_found_by_lanczos_in_many_dimensions():
    space = sd.Space({"i": 100})
    rng = np.random.default_rng(1)
    means = 3 * rng.standard_normal((5, 100))
    reference = sd.covariance.diagonal(rng.uniform(0.5, 2.0, 100))
    prior = GaussianMixturePrior(space, np.ones(5), means, 1.0, reference=reference)
    total = prior._apply(torch.eye(100, dtype=torch.float64)).numpy()
    top = linalg.eigh(total, np.diag(reference.eigenvalues.numpy()), eigvals_only=True)[-1]
    like = sd.GaussianPrior(space, sd.covariance.white((100,), 1.0))
    assert prior.sigma_max == pytest.approx(like.sigma_max * np.sqrt(top), rel=1e-4)


def test_a_mixture_on_a_labelled_grid_reads_xarray_means():
    import xarray as xr

    space = sd.Space({"lat": [10.0, 20.0], "lon": 3}, {"t": "K", "q": "g/kg"})
    means = xr.Dataset(
        {n: (("component", "lat", "lon"), RNG.standard_normal((2, 2, 3))) for n in ("t", "q")},
        {"lat": [10.0, 20.0]},
    )
    prior = GaussianMixturePrior(space, [1, 1], means, [1.0, 4.0])
    assert prior.sample(3, seed=0)["q"].dims == ("sample", "lat", "lon")
    assert prior.denoise(torch.zeros(2, 2, 2, 3).double(), 1.0).shape == (2, 2, 2, 3)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"weights": [0.5, 0.5, 0.0]}, "weights"),
        ({"weights": [0.5, 0.5]}, "means"),
        ({"means": MEANS[:, :3]}, "means"),
        ({"covariances": np.ones(2)}, "covariances"),
        ({"covariances": "wide"}, "covariances"),
        ({"covariances": [-1.0, 1.0, 1.0]}, "covariances"),
        ({"covariances": np.nan}, "covariances"),
        ({"covariances": sd.covariance.white((3,))}, "covariances"),
        ({"reference": sd.covariance.centred((D,))}, "reference"),
        ({"sigma_max": 1.0}, "sigma_max"),
    ],
)
def test_what_is_not_a_mixture_is_refused(change, argument):
    given = {"weights": WEIGHTS, "means": MEANS, "covariances": 1.0, **change}
    with pytest.raises(InputError, match=f"`{argument}`"):
        GaussianMixturePrior(
            SPACE, given.pop("weights"), given.pop("means"), given.pop("covariances"), **given
        )


def test_a_component_without_a_density_is_refused_at_sigma_zero_alone():
    prior = GaussianMixturePrior(SPACE, [1, 1], MEANS[:2], [[1.0, 1, 1, 0], [1, 1, 1, 1]])
    z = states(prior, 0.5)
    assert torch.isfinite(prior.log_density(z, 0.5)).all()
    with pytest.raises(InputError, match="positive noise level"):
        prior.log_density(z)
