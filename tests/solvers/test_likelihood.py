"""Log densities against scipy's, in closed form and along the probability flow; and inversion."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import sparse, stats

import sciddiff as sd
from sciddiff import covariance as cov
from sciddiff.errors import ConvergenceError, DivergenceError, InputError
from sciddiff.networks import MLP
from sciddiff.priors import NeuralPrior, Normalisation, Prior
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.solvers import generate, invert
from sciddiff.solvers.likelihood import flow_log_density

ROWS = 6
FALSE_ALARM = 1e-4  # of each test, at fixed seeds


def matrix(covariance: cov.Covariance) -> np.ndarray:
    n = math.prod(covariance.shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *covariance.shape)
    return covariance.apply(eye).reshape(n, n).numpy()


def positive(seed: int, n: int, rank: int | None = None) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((n, rank or n))
    return a @ a.T / n + (0.05 * np.eye(n) if rank is None else 0.0)


def grid(*sizes: int) -> sd.Space:
    return sd.Space({f"d{i}": n for i, n in enumerate(sizes)})


def markov() -> cov.Precision:
    laplacian = sparse.diags([-np.ones(7), 2.5 * np.ones(8), -np.ones(7)], [-1, 0, 1])
    return cov.precision(laplacian)


def oblique() -> sd.GaussianPrior:
    """Two variables in different units, in a subspace of three dimensions that mixes them."""
    space = sd.Space({"i": 3}, {"a": "m", "b": "s"})
    basis = np.random.default_rng(7).standard_normal((6, 3)) * np.repeat([[1.0], [30.0]], 3, axis=0)
    law = cov.dense(basis @ basis.T, (2, 3))
    scale = sd.GaussianPrior(space, law).normalisation.scale.broadcast_to(2, 3).reshape(6, 1).numpy()
    reference = cov.dense(basis / scale @ positive(3, 3) @ (basis / scale).T, (2, 3))
    return sd.GaussianPrior(space, law, reference=reference)


def units() -> sd.GaussianPrior:
    """Three variables in different units, on different dims."""
    variables = {
        "a": sd.Variable(("i",), "K"),
        "b": sd.Variable(("i", "j"), "Pa"),
        "c": sd.Variable(("j",), "m"),
    }
    space = sd.Space({"i": 3, "j": 2}, variables)
    return sd.GaussianPrior(space, cov.dense(units_matrix()), np.arange(11.0))


def units_matrix() -> np.ndarray:
    scale = np.repeat([1.0, 1e5, 0.01], [3, 6, 2])
    return positive(8, 11) * scale[:, None] * scale


def node_space() -> sd.Space:
    return sd.Space({"node": 6}, edges=[[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])


PRIORS: dict[str, Callable[[], sd.GaussianPrior]] = {
    "white": lambda: sd.GaussianPrior(grid(4), cov.white((4,), variance=9.0)),
    "diagonal": lambda: sd.GaussianPrior(grid(4), cov.diagonal([0.1, 1.0, 4.0, 25.0]), np.arange(4.0)),
    "diagonal with zeros": lambda: sd.GaussianPrior(grid(4), cov.diagonal([0.0, 1.0, 4.0, 0.0])),
    "dense": lambda: sd.GaussianPrior(grid(8), cov.dense(positive(0, 8)), np.arange(8.0)),
    "dense of rank 3": lambda: sd.GaussianPrior(grid(8), cov.dense(positive(0, 8, 3)), np.arange(8.0)),
    "dense, noise dense": lambda: sd.GaussianPrior(
        grid(8), cov.dense(positive(0, 8)), reference=cov.dense(positive(1, 8))
    ),
    "rank 3, noise dense": lambda: sd.GaussianPrior(
        grid(8), cov.dense(positive(0, 8, 3)), reference=cov.dense(positive(1, 8))
    ),
    "white, noise smooth": lambda: sd.GaussianPrior(
        grid(5), cov.white((5,)), reference=cov.spectral((5,), [1.0, 0.5, 0.3, 0.2, 0.1], "neumann")
    ),
    "smooth, noise rough": lambda: sd.GaussianPrior(
        grid(4, 3),
        cov.spectral((4, 3), np.arange(12.0, 0.0, -1.0).reshape(4, 3), "periodic"),
        reference=cov.spectral((4, 3), np.linspace(0.5, 2.0, 12).reshape(4, 3), "periodic"),
    ),
    "smooth without a mean": lambda: sd.GaussianPrior(
        grid(6),
        cov.spectral((6,), [0.0, 3.0, 2.0, 1.0, 0.5, 0.2], "dirichlet"),
        reference=cov.spectral((6,), [0.0, 1.0, 1.0, 1.0, 1.0, 1.0], "dirichlet"),
    ),
    "centred particles": lambda: sd.GaussianPrior(
        grid(4, 2), cov.centred((4, 2), axis=0), reference=cov.centred((4, 2), axis=0)
    ),
    "symmetric matrices": lambda: sd.GaussianPrior(
        grid(3, 3), cov.symmetric((3, 3)), reference=cov.symmetric((3, 3))
    ),
    "graph": lambda: sd.GaussianPrior(node_space(), cov.graph(node_space(), lambda v: 1 / (v + 0.3))),
    "Markov field": lambda: sd.GaussianPrior(grid(8), markov(), np.arange(8.0)),
    "Markov field, noise of variance 3": lambda: sd.GaussianPrior(
        grid(8), markov(), reference=cov.white((8,), variance=3.0)
    ),
    "units": units,
    "units in a subspace": oblique,
}


def exact(prior: sd.GaussianPrior, x: xr.Dataset, sigma: float) -> np.ndarray:
    """scipy's density of ``N(m, Sigma + sigma^2 S C S)`` with respect to Lebesgue measure on its range."""
    space = prior.space
    mean = space.tensor(prior.normalisation.mean.broadcast_to(space.shape)).flatten().numpy()
    scale = prior.normalisation.scale.broadcast_to(space.shape).flatten().numpy()
    # an eigenbasis in physical units would lose the variables in small units: here is the matrix that was given
    given = units_matrix() if len(scale) == 11 else matrix(prior.physical_covariance)
    law = given + sigma**2 * matrix(prior.reference) * scale[:, None] * scale
    # in units of the scale, so that scipy's cut-off of small eigenvalues does not depend on the units
    values = space.tensor(x, batch_dim="sample").flatten(1).numpy()
    support = law / scale[:, None] / scale
    density = stats.multivariate_normal((mean / scale), support, allow_singular=True).logpdf(values / scale)
    eigenvalues, vectors = np.linalg.eigh(support)
    columns = vectors[:, eigenvalues > 1e-9 * eigenvalues[-1]] * scale[:, None]
    return density - np.log(np.linalg.svd(columns, compute_uv=False)).sum()


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_closed_form_of_a_gaussian_is_scipys(name: str, sigma: float):
    prior = PRIORS[name]()
    x = prior.sample(ROWS, seed=0)
    found = prior.log_prob(x, sigma=sigma)
    assert found.log_prob.dims == ("sample",) and found.attrs["sigma"] == sigma
    np.testing.assert_allclose(found.log_prob, exact(prior, x, sigma), rtol=1e-9, atol=1e-7)
    assert (found.standard_error == 0).all()


@pytest.mark.parametrize("name", PRIORS)
def test_the_flow_gives_a_gaussians_log_density_to_1e_minus_4(name: str):
    prior = PRIORS[name]()
    x = prior.sample(ROWS, seed=0)
    z = prior.normalisation.normal(prior.space.tensor(x, batch_dim="sample"))
    # by default the density of the smoothed law; at a level near 0 the prior's own, where it has one on the range of C
    levels = [prior.sigma_min] if prior.law.rank < prior.reference.rank else [prior.sigma_min, 1e-5]
    for sigma in levels:
        found, error, _ = flow_log_density(prior, z, sigma=sigma)
        want = prior.log_density(z, sigma if sigma == prior.sigma_min else 0.0)
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-4)
        assert (error == 0).all()


@pytest.mark.parametrize("name", ["dense", "dense, noise dense", "symmetric matrices", "units in a subspace"])
def test_random_probes_are_unbiased_and_their_standard_error_is_right(name: str):
    prior = PRIORS[name]()
    x = prior.sample(200, seed=0)
    found = prior.log_prob(x, probes=8, sigma=0.01, rtol=1e-5, atol=1e-5)
    z = (found.log_prob - prior.log_prob(x, sigma=0.01).log_prob) / found.standard_error
    # a mean of 8 over its standard error is nearly Student-t with 7 degrees of freedom
    assert stats.kstest(z, stats.t(7).cdf).pvalue > FALSE_ALARM
    assert found.attrs["probes"] == 8 and found.attrs["vjps"] > found.attrs["forwards"] / 2 > 8


def test_many_dimensions_are_probed_by_default():
    prior = sd.GaussianPrior(grid(300), cov.kernel(lambda h: np.exp(-h / 20), np.arange(300.0)))
    z = prior.normalisation.normal(torch.from_numpy(prior.sample(3, seed=0)["x"].values))
    found, error, notes = flow_log_density(prior, z, sigma=prior.sigma_min, rtol=1e-4, atol=1e-4)
    assert notes["probes"] == 16 and (error > 0).all()
    # Student-t with 15 degrees of freedom, three rows
    bound = stats.t(15).isf(FALSE_ALARM / 6)
    assert (((found - prior.log_density(z, prior.sigma_min)) / error).abs() < bound).all()


def mixture(sigma_max: float | None = None) -> GaussianMixturePrior:
    means = np.array([[-3.0, 0.0, 1.0], [4.0, 1.0, 0.0], [0.0, 5.0, -2.0]])
    return GaussianMixturePrior(
        grid(3),
        [0.2, 0.5, 0.3],
        means,
        [0.5, 1.0, 0.3],
        reference=cov.dense(positive(5, 3)),
        sigma_max=sigma_max,
    )


def test_a_mixtures_closed_form_is_the_density_in_physical_units():
    prior = mixture()
    x = prior.sample(ROWS, seed=0)["x"].values
    parts = [
        w * stats.multivariate_normal(m, v * np.eye(3)).pdf(x)
        for w, m, v in zip([0.2, 0.5, 0.3], [[-3, 0, 1], [4, 1, 0], [0, 5, -2]], [0.5, 1.0, 0.3], strict=True)
    ]
    np.testing.assert_allclose(prior.log_prob(x).log_prob, np.log(sum(parts)), atol=1e-9)


def test_on_a_mixture_the_flow_errs_by_the_third_order_in_the_inverse_of_sigma_max():
    z = mixture().normalisation.normal(torch.from_numpy(mixture().sample(8, seed=0)["x"].values))
    errors = []
    for factor in (1, 2, 4):
        prior = mixture(mixture().sigma_max / 4 * factor)
        found, _, _ = flow_log_density(prior, z, sigma=0.01, rtol=1e-7, atol=1e-7)
        errors.append(float((found - prior.log_density(z, 0.01)).square().mean().sqrt()))
    assert np.diff(np.log2(errors)) == pytest.approx(-3, abs=0.3)


class Uncertain(Prior):
    """A prior without a closed form: the mixture through its denoiser alone, in single precision."""

    def __init__(self) -> None:
        self.inner = mixture()
        for name in ("space", "normalisation", "reference", "sigma_min", "sigma_max", "device"):
            setattr(self, name, getattr(self.inner, name))
        self.dtype = torch.float32

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        assert z.dtype is torch.float32
        return self.inner.denoise(z, sigma)


def test_a_prior_without_a_closed_form_gets_the_smoothed_density_and_says_so():
    prior, x = Uncertain(), mixture().sample(ROWS, seed=0)
    found = prior.log_prob(x, rtol=1e-5, atol=1e-5)
    assert found.attrs["route"] == "probability flow" and found.attrs["sigma"] == prior.sigma_min
    want = mixture().log_prob(x, sigma=prior.sigma_min).log_prob
    # third order at the default sigma_max is below 1e-3, as the test above says; the tolerance adds some tens of 1e-5
    np.testing.assert_allclose(found.log_prob, want, rtol=0, atol=2e-3)


def test_the_density_of_a_network_with_random_weights_integrates_to_one():
    gaussian = sd.GaussianPrior(
        grid(2), cov.dense([[1.0, 0.6], [0.6, 1.0]]), [3.0, -1.0], dtype=torch.float32
    )
    network = MLP(features=4, width=16, depth=2)
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.from_numpy(0.1 * generator.standard_normal(weight.shape)))
    prior = NeuralPrior(network, gaussian.space, gaussian=gaussian)
    line = np.linspace(-7.0, 7.0, 41)
    x = np.stack(np.meshgrid(line + 3.0, line - 1.0), -1).reshape(-1, 2)
    cell = 0.35**2
    density = np.exp(prior.log_prob(x, rtol=1e-4, atol=1e-4).log_prob)
    other = np.exp(gaussian.log_prob(x).log_prob)
    assert float(abs(density - other).sum()) * cell > 0.05  # the network does something
    # the grid resolves it; what is left is the law at sigma_max, where such a network is no Gaussian's, and the tolerance
    assert float(density.sum()) * cell == pytest.approx(1.0, abs=0.01)


def test_coords_of_many_states_are_kept_and_one_state_has_no_dim():
    prior = mixture()
    x = prior.sample(3, seed=0).rename(sample="member").assign_coords(member=[10, 20, 30])
    many = prior.log_prob(x, batch_dim="member")
    assert many.log_prob.dims == ("member",) and many.member.values.tolist() == [10, 20, 30]
    one = prior.log_prob(x.isel(member=1, drop=True))
    assert one.log_prob.dims == () and float(one.log_prob) == pytest.approx(float(many.log_prob[1]))
    assert prior.log_prob(torch.from_numpy(x["x"].values)).log_prob.dims == ("sample",)


def test_the_density_outside_the_range_is_zero_and_such_states_have_no_inverse():
    prior = PRIORS["centred particles"]()
    x = prior.sample(2, seed=0)["x"].values
    x[1, :, 0] += 0.1
    found = prior.log_prob(x).log_prob.values
    assert np.isfinite(found[0]) and found[1] == -np.inf
    assert prior.log_prob(x, probes=2).log_prob.values[1] == -np.inf
    with pytest.raises(InputError, match="1 of 2 outside"):
        invert(prior, x)


@pytest.mark.parametrize("settings", [{"rtol": 0.0}, {"atol": math.nan}, {"probes": 1}, {"probes": 2.5}])
def test_settings_out_of_range_are_refused_by_log_prob(settings: dict):
    with pytest.raises(InputError, match=next(iter(settings))):
        Uncertain().log_prob(np.zeros(3), **settings)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, 1e9])
def test_a_noise_level_without_a_density_is_refused(sigma: float):
    with pytest.raises(InputError, match="sigma"):
        Uncertain().log_prob(np.zeros(3), sigma=sigma)


def test_a_denoiser_that_is_not_finite_is_reported_with_sigma():
    class Broken(Uncertain):
        def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
            return super().denoise(z, sigma) * (math.nan if float(sigma) > 1 else 1.0)

    with pytest.raises(DivergenceError, match="sigma = "):
        Broken().log_prob(np.zeros(3))


def test_tolerances_below_the_precision_of_the_prior_are_refused():
    with pytest.raises(InputError, match=r"torch\.float32"):
        Uncertain().log_prob(np.ones(3), atol=1e-8)


def test_a_flow_that_misses_its_tolerance_is_reported(monkeypatch: pytest.MonkeyPatch):
    class Rough(Uncertain):
        def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
            return torch.sin(1e6 * z)

    monkeypatch.setattr("sciddiff.solvers.flow._MOST_STEPS", 20)
    with pytest.raises(ConvergenceError, match="Loosen the tolerances"):
        Rough().log_prob(np.ones(3))


def test_probes_of_a_state_do_not_depend_on_the_states_beside_it():
    prior, x = mixture(), mixture().sample(4, seed=0)
    tight = {"probes": 4, "rtol": 1e-7, "atol": 1e-7, "seed": 3}
    many, few = prior.log_prob(x, **tight), prior.log_prob(x.isel(sample=slice(2)), **tight)
    np.testing.assert_allclose(few.log_prob, many.log_prob[:2], rtol=0, atol=1e-5)


# -- inversion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in PRIORS if "rank" not in n and "zeros" not in n])
def test_inversion_and_back_is_the_identity_to_tolerance(name: str):
    prior = PRIORS[name]()
    x = prior.sample(ROWS, seed=0)
    noise = invert(prior, x, rtol=1e-8, atol=1e-8)
    back = generate(prior, noise, rtol=1e-8, atol=1e-8)
    for variable in x:
        assert back[variable].dims == x[variable].dims and back[variable].attrs == x[variable].attrs
        assert "units" not in noise[variable].attrs
        scale = float(x[variable].std())
        np.testing.assert_allclose(back[variable], x[variable], rtol=0, atol=1e-5 * scale)


def test_a_mixture_comes_back_from_its_noise_too():
    prior, x = mixture(), mixture().sample(32, seed=0)
    back = generate(prior, invert(prior, x, rtol=1e-8, atol=1e-8), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(back["x"], x["x"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [mixture, PRIORS["dense, noise dense"], PRIORS["centred particles"]])
def test_draws_of_the_prior_invert_to_reference_noise(make: Callable[[], Prior]):
    prior = make()
    noise = prior.space.tensor(
        invert(prior, prior.sample(400, seed=0), rtol=1e-4, atol=1e-4), batch_dim="sample"
    )
    # C^1/2+ n is white on the range: its squared length is chi-square with as many degrees as C has dimensions
    energy = (noise * prior.reference.solve(noise)).flatten(1).sum(1).numpy()
    assert stats.kstest(energy, stats.chi2(prior.reference.rank).cdf).pvalue > FALSE_ALARM


def test_noise_generates_draws_of_the_prior():
    prior = mixture()
    assert isinstance(prior.normalisation, Normalisation)
    noise = prior.reference.sqrt(torch.from_numpy(np.random.default_rng(0).standard_normal((400, 3))))
    x = generate(prior, noise, rtol=1e-4, atol=1e-4)["x"].values[:, 0]

    def cdf(v: np.ndarray) -> np.ndarray:
        return sum(
            w * stats.norm.cdf(v, m, s**0.5)
            for w, m, s in [(0.2, -3.0, 0.5), (0.5, 4.0, 1.0), (0.3, 0.0, 0.3)]
        )

    assert stats.kstest(x, cdf).pvalue > FALSE_ALARM
