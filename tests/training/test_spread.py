"""Claims about the measured size of a denoising covariance: what it is, and what MMPS makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.covariance import Covariance, centred, dense, multiple
from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods import MMPS
from sciddiff.networks import MLP
from sciddiff.operators import Points
from sciddiff.priors import GaussianMixturePrior, GaussianPrior, NeuralPrior, Prior, load_prior
from sciddiff.priors.spread import Spread, guess, learned
from sciddiff.random import Streams
from sciddiff.spaces import Space
from sciddiff.training.spread import calibrate, measure

FLOAT = torch.float64
SPACE = Space({"i": 4})


def normal(seed: int, *shape: int) -> torch.Tensor:
    return Streams(seed, [0], purpose="test").normal(shape, dtype=FLOAT)[0]


def matrix(n: int, seed: int) -> torch.Tensor:
    a = normal(seed, n, n)
    return a @ a.T / n + 0.2 * torch.eye(n, dtype=FLOAT)


def gaussian(seed: int = 1, **settings: object) -> GaussianPrior:
    return GaussianPrior(SPACE, dense(matrix(4, seed)), normal(3, 4), **settings)


def untrained(fitted: GaussianPrior, dtype: torch.dtype = FLOAT) -> NeuralPrior:
    """A network that returns 0, so that the denoiser is the fitted Gaussian's, exactly."""
    return NeuralPrior(
        MLP(features=8, width=8, depth=1).to(dtype), SPACE, gaussian=fitted, sigma_max=fitted.sigma_max
    )


def states(prior: Prior, n: int, seed: int = 0) -> np.ndarray:
    drawn = prior.draw(Streams(seed, range(n), purpose="truth"))
    assert drawn is not None
    return prior.normalisation.physical(drawn).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT])
@pytest.mark.parametrize("noise", ["white", "dense", "projector"])
def test_the_factor_is_one_where_the_fitted_gaussian_is_the_law(noise: str, dtype: torch.dtype):
    p = torch.eye(4, dtype=FLOAT) - 0.25
    if noise == "projector":
        fitted = GaussianPrior(SPACE, dense(p @ matrix(4, 1) @ p), reference=centred((4,)), dtype=dtype)
    else:
        reference = dense(matrix(4, 2)) if noise == "dense" else None
        fitted = gaussian(reference=reference, dtype=dtype)
    n, repeats = 600, 1
    found = measure(untrained(fitted, dtype), states(fitted, n), levels=5, repeats=repeats, seed=0)
    for sigma, factor in zip(found.levels, found.factors, strict=True):
        cov = fitted.covariance(sigma)
        dense_cov = cov.apply(torch.eye(4, dtype=FLOAT))
        # |e|^2 is a sum of squares of normals: its variance is twice the trace of Cov^2
        error = np.sqrt(2 * float((dense_cov @ dense_cov).trace()) / n) / float(dense_cov.trace())
        assert abs(factor - 1) < 5 * error


def test_the_factor_of_another_law_is_the_mean_trace_of_its_denoising_covariance():
    """With the exact denoiser of a mixture, ``E|z0 - D|^2 = E tr sigma^2 J C``, which the Jacobian knows."""
    mixture = GaussianMixturePrior(
        SPACE, [0.4, 0.6], np.array([[-2.0, 0, 1, 0], [2.0, 1, 0, 0]]), [dense(0.2 * matrix(4, 5))] * 2
    )
    n = 800
    x = states(mixture, n)
    found = measure(mixture, x, levels=3, repeats=1, seed=0)
    z0 = mixture.normalisation.normal(torch.from_numpy(x))
    for k, sigma in enumerate(found.levels[:2]):
        noise = mixture.noise(Streams(7, range(n), [k] * n, purpose="another"))
        z = z0 + sigma * noise
        jacobian = torch.func.vmap(torch.func.jacrev(lambda v, s=sigma: mixture.denoise(v[None], s)[0]))(z)
        traces = sigma**2 * torch.einsum(
            "bij,ji->b", jacobian, mixture.reference.apply(torch.eye(4).double())
        )
        squares = (z0 - mixture.denoise(z, sigma)).square().sum(1)
        error = float((squares.var() / n + traces.var() / n).sqrt())
        base = float(guess(mixture, sigma).variance().sum())
        assert abs(found.factors[k] * base - float(traces.mean())) < 5 * error


def test_a_gaussian_fitted_too_wide_is_put_right():
    """The law's covariance is a quarter of the fitted one, so that at low signal the factor is a quarter."""
    wide = gaussian()
    narrow = GaussianPrior(SPACE, multiple(wide.physical_covariance, 0.25), wide.normalisation.mean)
    n = 1000
    found = measure(untrained(wide), states(narrow, n), levels=5, repeats=1, seed=0)
    assert abs(found.factors[-1] - 0.25) < 5 * 0.25 * np.sqrt(2 / n)
    assert abs(found.factors[0] - 1) < 5 * np.sqrt(2 / (4 * n))


def test_the_learned_covariance_is_the_factor_times_the_guess():
    prior = calibrate(untrained(gaussian()), states(gaussian(2), 50), levels=3, seed=0)
    assert prior.spread is not None and prior.gaussian is not None
    for sigma in (prior.sigma_min, 0.3, prior.sigma_max):
        cov = learned(prior, sigma)
        assert cov is not None
        factor, eye = prior.spread.factor(sigma), torch.eye(4, dtype=FLOAT)
        theirs = factor * prior.gaussian.covariance(sigma).apply(eye)
        torch.testing.assert_close(cov.apply(eye), theirs)
        torch.testing.assert_close(cov.sqrt(cov.sqrt_adjoint(eye)), theirs)
        torch.testing.assert_close(cov.solve(theirs), eye)
        torch.testing.assert_close(cov.variance(), theirs.diagonal())
        assert cov.logdet == pytest.approx(float(theirs.logdet()))


def ve_level(t: torch.Tensor) -> torch.Tensor:
    return 0.01 * 5000.0**t


def posterior_of(prior: Prior) -> sd.Posterior:
    return prior.given([1.0, -1.0], Points.at_indices(SPACE, [[0], [3]]), sd.noise.Gaussian(0.3))


def test_mmps_with_a_factor_of_one_draws_what_it_draws_with_the_gaussian():
    prior = untrained(gaussian())
    told = untrained(gaussian())
    told.spread = Spread((1.0,), (1.0,))
    a = posterior_of(prior).sample(4, method=MMPS("gaussian"), seed=0, steps=4)["x"]
    b = posterior_of(told).sample(4, method=MMPS("learned"), seed=0, steps=4)["x"]
    assert np.abs(a.values - b.values).max() < 1e-10
    told.spread = Spread((1.0,), (2.0,))
    c = posterior_of(told).sample(4, method=MMPS("learned"), seed=0, steps=4)["x"]
    assert np.abs(a.values - c.values).max() > 0.05


def test_without_a_gaussian_the_factor_is_of_unit_variance():
    """Data of variance 4 and a network that knows their denoiser, whose time is the level."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 4 / (4 + t.reshape(-1, 1, 1) ** 2)

    prior = Prior.from_network(net, SPACE, predicts="x0", path="ve", time=ve_level, sigma_max=50.0)
    n = 1000
    found = calibrate(prior, 2 * normal(0, n, 4).numpy(), levels=5, repeats=1, seed=0).spread
    assert found is not None
    for s, factor in zip(found.levels, found.factors, strict=True):
        assert factor == pytest.approx(4 * (1 + s**2) / (4 + s**2), rel=5 * np.sqrt(2 / (4 * n)))


def test_the_factor_survives_saving_relabelling_and_moves(tmp_path):
    prior = calibrate(untrained(gaussian()), states(gaussian(2), 20), levels=3, seed=0)
    prior.save(tmp_path / "p")
    for other in (
        load_prior(tmp_path / "p"),
        prior.to(dtype=torch.float32),
        prior.relabel(Space({"i": [4, 5, 6, 7]})),
    ):
        assert other.spread == prior.spread


def test_the_same_seed_measures_the_same_and_leaves_the_prior_alone():
    prior, x = untrained(gaussian()), states(gaussian(2), 20)
    one, two, other = (calibrate(prior, x, levels=3, seed=s).spread for s in (0, 0, 1))
    assert one == two != other and prior.spread is None


BAD = {
    "prior": lambda: calibrate(gaussian(), np.zeros((5, 4)), seed=0),
    "data": lambda: calibrate(untrained(gaussian()), np.zeros((1, 4)), seed=0),
    "levels": lambda: calibrate(untrained(gaussian()), np.zeros((5, 4)), levels=0, seed=0),
    "repeats": lambda: calibrate(untrained(gaussian()), np.zeros((5, 4)), repeats=0, seed=0),
    "levels of Spread": lambda: Spread((2.0, 1.0), (1.0, 1.0)),
    "factors": lambda: Spread((1.0, 2.0), (1.0, 0.0)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name: str):
    with pytest.raises(InputError) as caught:
        BAD[name]()
    assert caught.value.argument == name.split()[0]


def test_mmps_says_that_a_prior_was_not_calibrated():
    assert MMPS("learned").misfit(posterior_of(untrained(gaussian()))) is not None


def test_a_network_that_answers_nan_diverges():
    prior = untrained(gaussian())
    for parameter in prior.network.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    with pytest.raises(DivergenceError):
        calibrate(prior, np.zeros((5, 4)), seed=0)


def test_learned_covariances_are_covariances():
    prior = untrained(gaussian())
    assert learned(prior, 1.0) is None
    prior.spread = Spread((1.0,), (2.0,))
    assert isinstance(learned(prior, 1.0), Covariance)
