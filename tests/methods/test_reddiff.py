"""REDDiff: "map" finds the mode of the posterior, "published" descends the loss of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.methods import reddiff
from sciddiff.methods.base import Run
from sciddiff.methods.reddiff import REDDiff
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.testing import check_method
from sciddiff.testing.exact import gaussian

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

POINT = {"mean": "a point is off by the smoothing of the prior", "covariance": "zero variance by design"}


@pytest.mark.parametrize(
    ("kind", "steps"), [("vector", 600), ("series", 600), ("grid", 2000), ("graph", 600)]
)
def test_map_finds_the_mode_of_a_linear_gaussian_posterior(kind, steps):
    problem = gaussian(kind, 0)
    draws = problem.posterior.sample(2, REDDiff(sigma=0.02), steps=steps, seed=0)
    x = problem.posterior.prior.space.tensor(draws, batch_dim="sample").flatten(1).numpy()
    off = (x - problem.mean) / np.sqrt(np.diag(problem.covariance))
    # the prior is smoothed by 4e-4 of its variance
    assert np.abs(off).max() < 0.02


def test_map_finds_the_mode_under_counts():
    space, target = sd.Space({"i": 3}), sd.Space({"pixel": 3}, "rate")
    prior = sd.GaussianPrior(space, sd.covariance.white((3,), 0.5), [1.0, 0.0, 2.0])
    counts = np.array([7.0, 0.0, 3.0])
    rate = sd.operators.from_torch(torch.exp, space, target)
    posterior = prior.given(counts, rate, sd.noise.Poisson(2.0))
    draws = posterior.sample(2, REDDiff(sigma=0.02, steps=500), seed=0)["x"].values

    def loss(x):
        return (((x - [1.0, 0.0, 2.0]) ** 2) / (2 * 0.5) - counts * x + 2 * np.exp(x)).sum()

    mode = optimize.minimize(loss, np.zeros(3), tol=1e-10).x
    np.testing.assert_allclose(draws, np.tile(mode, (2, 1)), atol=2e-3)


def test_draws_of_map_find_every_mode_and_have_no_spread_inside_it():
    space = sd.Space({"i": 2})
    prior = GaussianMixturePrior(space, [0.5, 0.5], [[-4.0, 0.0], [4.0, 0.0]], 1.0)
    posterior = prior.given([0.5], sd.operators.Points.at_indices(space, [1]), sd.noise.Gaussian(0.5))
    x = posterior.sample(40, REDDiff(sigma=0.02, steps=500), seed=0)["x"].values
    left = x[:, 0] < 0
    assert 0 < left.sum() < 40
    for side, at in ((left, -4.0), (~left, 4.0)):
        np.testing.assert_allclose(x[side], np.tile([at, 0.4], (side.sum(), 1)), atol=5e-3)


def test_published_descends_the_sum_of_squares_and_the_pull_to_the_denoised_state():
    space = sd.Space({"i": 4})
    reference = sd.covariance.diagonal([0.5, 1.0, 2.0, 4.0])
    prior = sd.GaussianPrior(space, sd.covariance.white((4,)), reference=reference)
    matrix = np.random.default_rng(0).standard_normal((3, 4))
    operator = sd.operators.Matrix(space, sd.Space({"j": 3}, "y"), matrix)
    # the sd of the noise must not matter
    posterior = prior.given([1.0, -2.0, 0.5], operator, sd.noise.Gaussian([1.0, 10.0, 100.0]))
    method = REDDiff(form="published", weight=0.3, data_weight=5.0)
    run = Run(posterior, method, 2, seed=0, solver=None, steps=None, chunk=None, progress=False)
    mu = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 4))).requires_grad_()
    away = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 4)))
    found = reddiff._published(method, run)(mu, away, 1.0, torch.zeros(2, dtype=torch.long))
    gain = reddiff._gain(run)
    misfit = (torch.tensor([1.0, -2.0, 0.5]).double() - mu @ torch.from_numpy(matrix).T).square().sum() / 2
    (expected,) = torch.autograd.grad(5.0 * misfit / gain + 0.3 * (away * mu).sum(), mu)
    torch.testing.assert_close(found, expected)
    # mean square of A F n over that of F n, from 64 draws
    exact = np.mean((matrix**2 * [0.5, 1, 2, 4]).sum(1)) / np.mean([0.5, 1, 2, 4])
    assert gain == pytest.approx(exact, rel=0.5)


def test_published_has_the_levels_of_the_papers_path():
    sigma = REDDiff(form="published")._levels(gaussian("vector", 0).posterior.prior, 50)
    time = sd.priors.paths.VP().time(torch.tensor(sigma))
    assert len(sigma) == 50 and sigma[0] > sigma[-1]
    torch.testing.assert_close(time.diff(), time.diff().mean().expand(49))


@pytest.mark.parametrize("form", ["map", "published"])
def test_reddiff_passes_the_conformance_check_but_for_the_moments_of_a_point(form):
    check_method(REDDiff(form=form), draws=200, steps=60, expected_failures=POINT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_prior(dtype):
    problem = gaussian("series", 0).posterior
    prior = problem.prior.to(dtype=dtype)
    o = problem.observations[0]
    z = prior.given(o.y[0], o.operator, o.noise).sample(2, REDDiff(steps=5), seed=0)
    assert str(z[next(iter(z.data_vars))].dtype) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "bad",
    [
        {"form": "MAP"},
        {"rate": 0.0},
        {"rate": "a"},
        {"weight": True},
        {"sigma": -1.0},
        {"steps": 1},
        {"steps": 2.5},
        {"steps": "a"},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        REDDiff(**bad)


def test_published_refuses_noise_whose_mean_is_not_that_of_the_operator():
    problem = gaussian("series", 0).posterior
    o = problem.observations[0]
    for noise in (sd.noise.Exceeds(0.5, sd=0.1), sd.noise.Poisson(2.0)):
        given = problem.prior.given(torch.ones_like(o.y[0]), o.operator, noise)
        assert "mean other than" in REDDiff("published").misfit(given)
        assert REDDiff("map").misfit(given) is None
    for noise in (o.noise, sd.noise.Poisson(1.0), sd.noise.Laplace(0.1)):
        given = problem.prior.given(torch.ones_like(o.y[0]), o.operator, noise)
        assert REDDiff("published").misfit(given) is None
