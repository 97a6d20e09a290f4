"""What faults planted in the package got past all other tests: one claim for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.methods.base import Run
from sciddiff.methods.guidance import LGD
from sciddiff.methods.linearised import LocalGaussian
from sciddiff.methods.mmps import MMPS
from sciddiff.methods.pigdm import PiGDM
from sciddiff.methods.search import SCG
from sciddiff.methods.transitions import RePaint
from sciddiff.methods.tree import TreeSampling
from sciddiff.random import Streams
from sciddiff.solvers import Euler, Karras

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

D, SPACE, DATA = 4, sd.Space({"i": 4}), sd.Space({"j": 2}, "y")
RNG = np.random.default_rng(0)
MATRIX = torch.from_numpy(RNG.uniform(0.5, 1.5, size=(2, D)))
LINEAR = sd.operators.Matrix(SPACE, DATA, MATRIX)
ROOT = RNG.standard_normal((D, D))
REFERENCES = {"four times white": 4.0 * np.eye(D), "dense": ROOT @ ROOT.T + np.eye(D)}


def guided(posterior, method, sigma):
    """Noisy states and ``D_y`` there."""
    z = (1 + sigma) * posterior.prior.noise(Streams(0, range(4), purpose="planted"))
    run = Run(posterior, method, 4, seed=0, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        return z, method.guide(run)(z, sigma, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_the_unit_choice_of_mmps_is_exact_where_the_prior_is_the_reference_of_variance_one(reference, sigma):
    c = REFERENCES[reference]
    prior = sd.GaussianPrior(
        SPACE, sd.covariance.dense(9.0 * c / np.trace(c) * D), reference=sd.covariance.dense(c)
    )
    posterior = prior.given([1.0, -2.0], LINEAR, sd.noise.Gaussian(0.7))
    found, exact = (guided(posterior, MMPS(covariance=choice), sigma)[1] for choice in ("unit", "exact"))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


def test_an_exposure_enters_a_local_gaussian_once_where_the_operator_is_linear():
    exposure, sigma = 5.0, 0.4
    prior = sd.GaussianPrior(SPACE, sd.covariance.diagonal([0.2, 0.1, 0.3, 0.2]), [3.0, 2.0, 4.0, 3.0])
    y = torch.tensor([70.0, 50.0], dtype=torch.float64)
    z, found = guided(prior.given(y, LINEAR, sd.noise.Poisson(exposure)), LocalGaussian(rtol=1e-12), sigma)
    d = prior.denoise(z, sigma)
    rate = exposure * prior.normalisation.physical(d) @ MATRIX.T
    h = exposure * MATRIX * prior.normalisation.scale
    cov = prior.covariance(sigma).apply(torch.eye(D, dtype=torch.float64))
    system = torch.diag_embed(rate) + h @ cov @ h.T
    expected = d + torch.linalg.solve(system, y - rate) @ h @ cov
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_loss_guidance_tends_to_pigdm_as_one_over_the_root_of_its_draws():
    prior = sd.GaussianPrior(SPACE, sd.covariance.dense(ROOT @ ROOT.T / D + 0.5 * np.eye(D)))
    posterior = prior.given([2.0, -1.0], LINEAR, sd.noise.Gaussian(3.0))

    def draws(method):
        # the same noise at the start, and none after it
        return posterior.sample(64, method=method, solver=Euler(), steps=6, seed=0)["x"].values

    limit = draws(PiGDM("gaussian"))
    few, many = (np.sqrt(np.mean((draws(LGD(None, k, "gaussian")) - limit) ** 2)) for k in (200, 3200))
    # 1/4, with a standard error of 0.03 of an rms over 64 independent rows: a wrong limit would give 1
    assert many / few < 0.5


def test_draws_of_two_cases_with_the_same_data_share_no_noise():
    prior = sd.GaussianPrior(SPACE, sd.covariance.white((D,)))
    posterior = prior.given([[1.0, -2.0]] * 2, LINEAR, sd.noise.Gaussian(0.7), batch_dim="case")
    draws = posterior.sample(400, method=MMPS(), seed=0)["x"].values
    one, other = ((x - x.mean(0)) / x.std(0) for x in (draws[:, 0], draws[:, 1]))
    z = (one * other).mean(0) * np.sqrt(400)
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 2 / D)


def test_another_seed_gives_draws_that_share_no_noise():
    prior = sd.GaussianPrior(SPACE, sd.covariance.white((D,)))
    posterior = prior.given([1.0, -2.0], LINEAR, sd.noise.Gaussian(0.7))
    one, other = (posterior.sample(400, method=MMPS(), seed=seed)["x"].values for seed in (0, 1))
    z = ((one - one.mean(0)) * (other - other.mean(0)) / one.std(0) / other.std(0)).mean(0) * np.sqrt(400)
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 2 / D)


def test_every_case_is_conditioned_on_its_own_data():
    prior = sd.GaussianPrior(SPACE, sd.covariance.white((D,)))
    y = np.array([[1.0, -2.0], [-3.0, 4.0]])
    draws = prior.given(y, LINEAR, sd.noise.Gaussian(0.7), batch_dim="case").sample(
        400, method=MMPS(), seed=0
    )
    a = MATRIX.numpy()
    gain = a.T @ np.linalg.inv(a @ a.T + 0.49 * np.eye(2))
    sd_of_mean = np.sqrt(np.diag(np.eye(D) - gain @ a) / 400)
    z = (draws["x"].values.mean(0) - y @ gain.T) / sd_of_mean
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 2 / z.size)


def test_the_log_likelihood_of_several_observations_is_their_sum():
    prior = sd.GaussianPrior(SPACE, sd.covariance.white((D,)))
    x = torch.from_numpy(RNG.standard_normal((3, D)))
    posterior = prior.given([1.0, -2.0], LINEAR, sd.noise.Gaussian(0.7))
    posterior = posterior.given(np.ones(D), sd.operators.Identity(SPACE), sd.noise.Gaussian(2.0))
    expected = stats.norm.logpdf([1.0, -2.0], x @ MATRIX.T, 0.7).sum(1) + stats.norm.logpdf(1.0, x, 2.0).sum(
        1
    )
    np.testing.assert_allclose(posterior.log_likelihood(x), expected, rtol=1e-10)


class Watched(sd.GaussianPrior):
    """A prior that keeps the states and levels that its denoiser is called with."""

    def denoise(self, z, sigma):
        self.__dict__.setdefault("calls", []).append((sigma, z))
        return super().denoise(z, sigma)


def test_what_repaint_does_not_see_has_the_variance_of_its_steps_on_the_way_down_and_up():
    d, n, steps = 40, 50, 8
    space = sd.Space({"i": d})
    prior = Watched(space, sd.covariance.white((d,)))
    posterior = prior.given([0.5], sd.operators.Points.at_indices(space, [[0]]), sd.noise.Gaussian(0.1))
    posterior.sample(n, method=RePaint(steps=steps, jump=1, resamplings=3), seed=0)
    levels = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
    assert len(prior.calls) == 3 * steps
    variance, at = levels[0] ** 2, levels[0]
    for sigma, z in prior.calls:
        # up again by fresh noise
        variance, s = variance + max(0.0, sigma**2 - at**2), sigma
        chi2 = stats.chi2(n * (d - 1)).cdf(float(z[:, 1:].square().sum()) / variance)
        assert 1e-5 < chi2 < 1 - 1e-5, f"at sigma = {sigma:.3g}"
        # an ancestral step with D = z / (1 + s^2)
        at = levels[levels.index(s) + 1]
        r = (at / s) ** 2
        variance = ((1 - r) / (1 + s**2) + r) ** 2 * variance + at**2 * (1 - r)


@pytest.mark.parametrize(
    "method", [TreeSampling(2, steps=24), SCG(2, steps=24)], ids=lambda m: type(m).__name__
)
def test_a_search_draws_from_the_prior_where_the_data_say_nothing(method):
    prior = sd.GaussianPrior(
        SPACE, sd.covariance.white((D,)), reference=sd.covariance.dense(REFERENCES["dense"])
    )
    posterior = prior.given([0.0, 0.0], LINEAR, sd.noise.Gaussian(1e6))
    # in many steps, so that a step keeps a share of the noise and renews the rest
    x = posterior.sample(600, method, seed=0)["x"].values
    chi2 = stats.chi2(x.size).cdf((x**2).sum())
    assert 1e-5 < chi2 < 1 - 1e-5
