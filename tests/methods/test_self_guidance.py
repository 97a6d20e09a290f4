"""TSDiff's self-guidance: the published rule, and the form whose draws are exchangeable."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.methods import SelfGuidance, TSDiff
from sciddiff.methods.base import Run
from sciddiff.methods.self_guidance import _spread, _width
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams
from sciddiff.solvers import Karras
from sciddiff.testing import check_method

# guidance is biased: what is proved here is what it computes, and where its bias goes to zero
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

SPACE, DATA = sd.Space({"i": 3}), sd.Space({"j": 2}, "y")
PRIOR = GaussianMixturePrior(SPACE, [0.4, 0.6], [[-1.0, 0.0, 1.0], [1.5, 1.0, -1.0]], [0.3, 0.8])
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]], dtype=torch.float64)
BEND = sd.operators.from_torch(lambda x: torch.tanh(x @ MATRIX.T.to(x)) + x[:, :2] ** 2, SPACE, DATA)
BIASED = dict.fromkeys(("mean", "covariance"), "biased by construction")


def published(posterior, energy, scale, steps, draw, n, spread):
    """TSDiff's algorithm for one draw in the variance-preserving coordinate ``x = sqrt(alpha_bar) z``, data over their spread."""
    prior, seen, q = posterior.prior, posterior.observations[0], (draw + 1) / (n + 1)
    noise = Streams(0, [draw], purpose="posterior")
    sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
    bar = [1 / (1 + s**2) for s in sigmas]
    x = math.sqrt(bar[0]) * sigmas[0] * prior.noise(noise)
    x = x + math.sqrt(bar[0]) * prior.denoise(x / math.sqrt(bar[0]), sigmas[0])
    for i in range(steps):
        x0 = prior.denoise(x / math.sqrt(bar[i]), sigmas[i])
        alpha = bar[i] / bar[i + 1]
        beta = (1 - bar[i + 1]) / (1 - bar[i]) * (1 - alpha)
        x = math.sqrt(alpha) * (1 - bar[i + 1]) * x + math.sqrt(bar[i + 1]) * (1 - alpha) * x0
        x = x / (1 - bar[i])
        if i + 1 == steps:
            break
        x = x + math.sqrt(beta) * prior.noise(noise)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = prior.denoise(x / math.sqrt(bar[i + 1]), sigmas[i + 1])
            e = (seen.y - seen.operator.apply(prior.normalisation.physical(x0))) / spread
            loss = e**2 if energy == "mse" else torch.maximum(q * e, (q - 1) * e)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        x = x.detach() - scale * beta * gradient
    return prior.normalisation.physical(x.detach())


def of_white(operator, n=None):
    """The spread of data at white normalised states: of ``MATRIX`` in closed form, of others by n states."""
    scale = PRIOR.normalisation.scale.double()
    if n is None:
        return ((MATRIX * scale) ** 2).sum(1).sqrt()
    white = np.random.default_rng(0).standard_normal((n, 3))
    return operator.apply(PRIOR.normalisation.physical(torch.as_tensor(white))).std(0)


@pytest.mark.parametrize("energy", ["mse", "quantile"])
@pytest.mark.parametrize("bent", [False, True])
def test_tsdiff_is_the_published_algorithm_on_data_over_their_spread(energy, bent):
    operator = BEND if bent else sd.operators.Matrix(SPACE, DATA, MATRIX)
    posterior = PRIOR.given([0.5, 1.5], operator, sd.noise.Gaussian(0.3))
    method = TSDiff(energy, scale=1.5)
    run = Run(posterior, method, 3, seed=0, solver=None, steps=None, chunk=None, progress=False)
    spread = _spread(run, posterior.observations[0])
    if bent:
        # 64 states that are nearly normal know an sd to 1/sqrt(128), and squares have heavier tails
        assert ((spread / of_white(BEND, 20_000)).log().abs() < 4.5 / math.sqrt(48)).all()
    else:
        torch.testing.assert_close(spread, of_white(operator))
    draws = posterior.sample(3, method=method, steps=30, seed=0)["x"].values
    for i in range(3):
        exact = published(posterior, energy, 1.5, 30, i, 3, spread)
        np.testing.assert_allclose(draws[i : i + 1], exact, rtol=1e-8, atol=1e-8)


def test_data_whose_spread_is_unknown_are_refused_and_constant_ones_do_not_pull():
    holes = sd.operators.from_torch(lambda x: x[:, :2].log(), SPACE, DATA)
    with pytest.raises(InputError, match="not finite"):
        PRIOR.given([0.5, 1.5], holes, sd.noise.Gaussian(0.3)).sample(2, method=TSDiff(), seed=0)
    dead = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    one = PRIOR.given([0.5], sd.operators.Matrix(SPACE, sd.Space({"j": 1}), dead[:1]), sd.noise.Gaussian(0.3))
    two = PRIOR.given([0.5, 9.0], sd.operators.Matrix(SPACE, DATA, dead), sd.noise.Gaussian(0.3))
    a, b = (p.sample(2, method=TSDiff(), steps=20, seed=0)["x"] for p in (one, two))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def one_datum(y=1.0, n=4000):
    """A correlated Gaussian prior of three values, the first seen with sd 0.5: the posterior mean, and its variances."""
    root = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.2, -0.4, 0.9]])
    cov = root @ root.T
    prior = sd.GaussianPrior(SPACE, sd.covariance.dense(cov))
    posterior = prior.given([y], sd.operators.Points.at_indices(SPACE, [[0]]), sd.noise.Gaussian(0.5))
    gain = cov[:, 0] / (cov[0, 0] + 0.25)
    return posterior, gain * y, np.diag(cov - np.outer(gain, cov[0]))


def test_the_corrected_squares_are_exact_for_one_datum_and_a_gaussian_prior():
    posterior, mean, variance = one_datum()
    n = 2000
    x = posterior.sample(n, method=SelfGuidance("mse", "gaussian", steps=400), seed=0)["x"].values
    assert (np.abs(x.mean(0) - mean) / np.sqrt(variance / n) < 4.5).all()
    assert (np.abs(x.var(0) / variance - 1) < 4.5 * np.sqrt(2 / n)).all()


def test_the_corrected_pinball_is_unbiased_for_a_datum_at_the_mean():
    """Levels q and 1 - q mirror one another."""
    posterior, mean, _ = one_datum(y=0.0)
    n = 1000
    x = posterior.sample(n, method=SelfGuidance("quantile", "gaussian", steps=60), seed=0)["x"].values
    assert (np.abs(x.mean(0) - mean) / np.sqrt(x.var(0) / n) < 4.5).all()


@pytest.mark.parametrize("energy", ["mse", "quantile"])
@pytest.mark.parametrize("sigma", [0.2, 3.0])
def test_the_pull_is_the_gradient_of_the_energy_of_residuals_in_their_own_spread(energy, sigma):
    posterior, _, _ = one_datum()
    prior, noise = posterior.prior, 0.5
    posterior = prior.given([1.0, -2.0], sd.operators.Matrix(SPACE, DATA, MATRIX), sd.noise.Gaussian(noise))
    cov = prior.covariance(sigma).apply(torch.eye(3, dtype=torch.float64))
    scale = prior.normalisation.scale
    b = MATRIX * scale
    s = (noise**2 + torch.diagonal(b @ cov @ b.T)).sqrt()
    q = torch.tensor([0.1, 0.7], dtype=torch.float64)
    d = torch.tensor([[0.3, -0.2, 0.5], [1.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    u = (torch.tensor([1.0, -2.0], dtype=torch.float64) - prior.normalisation.physical(d) @ MATRIX.T) / s
    bent = torch.maximum(q[:, None] * u, (q[:, None] - 1) * u) / _width(q)[:, None]
    (expected,) = torch.autograd.grad(-(u**2 / 2 if energy == "mse" else bent).sum(), d)
    method = SelfGuidance(energy, "gaussian")
    run = Run(posterior, method, 2, seed=0, solver=None, steps=None, chunk=None, progress=False)
    found = method.pull(run)(d.detach(), sigma, torch.zeros(2, dtype=torch.long), q)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("q", [0.05, 0.3, 0.5, 0.95])
def test_every_level_has_the_second_moment_of_the_noise(q):
    b = float(_width(torch.tensor(q, dtype=torch.float64)))
    u = np.linspace(-60, 60, 1_200_001)
    law = np.exp(-np.maximum(q * u, (q - 1) * u) / b)
    assert (law * u**2).sum() / law.sum() == pytest.approx(1.0, rel=1e-4)


def test_published_draws_come_in_the_order_of_their_levels_and_corrected_ones_do_not():
    posterior, _, _ = one_datum()
    rank = np.arange(400)
    fan = posterior.sample(400, method=TSDiff(scale=8.0), seed=0)["x"].values[:, 0]
    fair = posterior.sample(400, method=SelfGuidance(), seed=0)["x"].values[:, 0]
    assert np.corrcoef(rank, fan)[0, 1] > 0.5
    # the sd of a correlation of 400 independent pairs is 1/20
    assert abs(np.corrcoef(rank, fair)[0, 1]) < 4.5 / 20
    # a part of the fan is not a smaller fan
    part = posterior.sample(200, method=TSDiff(scale=8.0), seed=0)["x"].values[:, 0]
    assert abs(part.mean() - fan[:200].mean()) > 4.5 * fan.std() / np.sqrt(200)


@pytest.mark.parametrize("energy", ["mse", "quantile"])
def test_corrected_draws_depend_on_seed_and_draw_alone_and_miss_the_moments_alone(energy):
    check_method(SelfGuidance(energy), steps=24, draws=300, expected_failures=BIASED)


@pytest.mark.parametrize("energy", ["mse", "quantile"])
def test_published_draws_interact_by_their_levels_and_are_the_same_in_all_units(energy):
    report = check_method(TSDiff(energy, scale=1.0), steps=24, draws=100, expected_failures=BIASED)
    assert report.named("skipped") == ["prefix"]


def test_what_is_not_seen_does_not_pull():
    posterior, _, _ = one_datum()
    prior = posterior.prior
    points = sd.operators.Points.at_indices(SPACE, [[0], [2]])
    gap = prior.given([1.0, np.nan], points, sd.noise.Gaussian(0.5), missing="mask")
    for method in (SelfGuidance(), SelfGuidance("mse"), TSDiff()):
        a, b = (p.sample(4, method=method, steps=20, seed=0)["x"] for p in (posterior, gap))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_settings_out_of_range_and_priors_without_a_gaussian_are_refused():
    for bad in (lambda: TSDiff("squares"), lambda: TSDiff(scale=0.0), lambda: SelfGuidance(steps=0)):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(InputError, match="covariance"):
        SelfGuidance(covariance="exact")
    counts = PRIOR.given([1, 2], BEND, sd.noise.Poisson(2.0))
    assert "mean other than" in (TSDiff().misfit(counts) or "")
