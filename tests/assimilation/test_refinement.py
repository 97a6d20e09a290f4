"""Refinement in closed form, on a Gaussian prior and a Gaussian base forecast: every iteration is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import sciddiff as sd
from sciddiff.assimilation.refinement import Descent, Langevin, refine
from sciddiff.errors import DivergenceError, InputError

L, H, N = 5, 3, 4000
TIMES = np.arange(L)
LAW = np.exp(-np.abs(TIMES[:, None] - TIMES) / 3.0)
# a reference noise of its own, so that norms in the wrong metric show
COLOUR = np.diag([0.5, 1.0, 2.0, 1.0, 0.7]) + 0.2
SPACE = sd.Space({"time": TIMES}, {"u": "m"})
PRIORS = {
    "white": sd.GaussianPrior(SPACE, sd.covariance.dense(LAW)),
    "coloured": sd.GaussianPrior(SPACE, sd.covariance.dense(LAW), reference=sd.covariance.dense(COLOUR)),
}
PAST = xr.DataArray([0.3, -0.2], {"time": TIMES[: L - H]}, "time")
CENTRE, SPREAD = np.array([2.0, 1.0, -1.0]), 0.7


def base(n=N, seed=0):
    """A base ensemble of independent normal values around a centre."""
    values = CENTRE + SPREAD * np.random.default_rng(seed).standard_normal((n, H))
    return xr.DataArray(
        values,
        {"time": TIMES[L - H :], "sample": np.arange(n)},
        ("sample", "time"),
        name="u",
        attrs={"units": "m"},
    )


def exact(prior, method, weight=None):
    """Mean and covariance of the window after all iterations: moments of a linear recursion, by dense algebra."""
    eye = torch.eye(L, dtype=torch.float64)
    c = prior.reference.apply(eye).numpy()
    law, s = prior.law.apply(eye).numpy(), method.sigma
    shrink = np.linalg.solve((law + s**2 * c).T, law.T).T
    off, inverse = shrink - np.eye(L), np.linalg.inv(c)
    # dE/dz = 2 off^T C^-1 (off z + sigma K n)/sigma^2 + 2 w (z - f)
    curve = 2 * off.T @ inverse @ off / s**2 + 2 * method.weight * np.eye(L)
    shake = 2 * off.T @ inverse @ shrink / s
    noise = method.rate**2 * shake @ c @ shake.T
    if isinstance(method, Langevin):
        noise = noise + 2 * method.rate * method.noise**2 * np.eye(L)
    step = np.eye(L) - method.rate * curve
    mean = np.concatenate([PAST.values, CENTRE])
    start = np.diag([0.0] * (L - H) + [SPREAD**2] * H)
    centre, pull, own = mean.copy(), np.eye(L), np.zeros((L, L))
    for _ in range(method.iterations):
        centre = step @ centre + 2 * method.rate * method.weight * mean
        pull = step @ pull + 2 * method.rate * method.weight * np.eye(L)
        own = step @ own @ step.T + noise
    return centre[-H:], (pull @ start @ pull.T + own)[-H:, -H:]


@pytest.mark.parametrize("kind", list(PRIORS))
@pytest.mark.parametrize(
    "method", [Langevin(), Langevin(noise=1.0, weight=0.3, sigma=0.8), Descent()], ids=repr
)
def test_mean_and_covariance_are_those_of_the_linear_recursion(kind, method):
    prior = PRIORS[kind]
    mean, covariance = exact(prior, method)
    found = refine(prior, base(), PAST, method=method, seed=1).values
    assert (np.abs(found.mean(0) - mean) / np.sqrt(np.diag(covariance) / N) < 4.5).all()
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2)
    assert (np.abs(np.cov(found.T) - covariance) / spread * np.sqrt(N) < 4.5).all()


def test_long_runs_of_temperature_one_have_the_law_of_the_energy():
    """``exp(-E)`` is normal with the curvature for precision, and wider than Bayes' product of prior and forecast."""
    method = Langevin(noise=1.0, rate=0.03, iterations=250)
    prior = PRIORS["white"]
    fixed = base(1).isel(sample=[0] * 2000)
    found = refine(prior, fixed.assign_coords(sample=np.arange(2000)), PAST, method=method, seed=0).values
    eye = np.eye(L)
    off = np.linalg.solve(LAW + method.sigma**2 * eye, LAW) - eye
    curve = 2 * off.T @ off / method.sigma**2 + 2 * eye
    energy = np.linalg.inv(curve)
    bayes = np.linalg.inv(np.linalg.inv(LAW) + 2 * eye)
    # the steps, and the noise of the energy itself, add some percent
    ratio = found.var(0) / np.diag(energy)[-H:]
    assert (np.abs(ratio - 1) < 0.05 + 4.5 * np.sqrt(2 / 2000)).all()
    assert (np.diag(energy)[-H:] > 1.1 * np.diag(bayes)[-H:]).all()


def test_draw_i_moves_alone_and_the_quantile_form_sorts():
    prior, many = PRIORS["white"], base(6)
    whole = refine(prior, many, PAST, seed=3)
    np.testing.assert_allclose(refine(prior, many[:4], PAST, seed=3), whole[:4], rtol=1e-12)
    assert not np.array_equal(refine(prior, many, PAST, seed=4), whole)
    fan = refine(prior, many, PAST, method=Descent("quantile", rate=1e-9), seed=0)
    np.testing.assert_allclose(fan, np.sort(many, 0), atol=1e-6)
    assert whole.dims == many.dims and whole.attrs == {"units": "m"} and whole.name == "u"


def test_the_pinball_pulls_the_outer_draws_outwards():
    """From one base value for all draws the level k/(n + 1) moves draw k up as far as its level is above a half."""
    prior = sd.GaussianPrior(SPACE, sd.covariance.dense(1e6 * np.eye(L)))
    flat = xr.DataArray(np.zeros((3, H)), {"time": TIMES[L - H :]}, ("sample", "time"))
    method = Descent("quantile", sigma=1e-3, rate=0.1, iterations=1)
    out = refine(prior, flat, xr.zeros_like(PAST), method=method, seed=0).values / 1e3
    # e = 0, where torch.maximum splits the slope: dE/dz = -(q + q - 1)/2
    np.testing.assert_allclose(out, 0.1 * np.array([[-0.25], [0.0], [0.25]]) * np.ones(H), atol=1e-3)


def test_a_season_takes_the_months_of_the_window():
    import pandas as pd

    months = pd.date_range("2001-11", periods=L, freq="MS").values
    prior = sd.GaussianPrior(sd.Space({"time": L}, {"u": "m"}), sd.covariance.dense(LAW))
    prior.season = 10.0 * torch.arange(12, dtype=torch.float64)
    normal = 10.0 * (pd.DatetimeIndex(months).month.to_numpy() - 1)
    past = xr.DataArray(normal[: L - H], {"time": months[: L - H]}, "time")
    ahead = xr.DataArray(normal[None, L - H :], {"time": months[L - H :]}, ("sample", "time"))
    still = refine(prior, ahead, past, method=Descent(), seed=0)
    # at the mean of its months nothing pulls but the noise of the energy
    assert float(abs(still - ahead).max()) < 1.0


def test_what_cannot_be_refined_is_refused():
    prior, ahead = PRIORS["white"], base(4)
    for forecast, past, word in (
        (ahead.rename(sample="member"), PAST, "dims"),
        (ahead.where(ahead > 1e9), PAST, "finite"),
        (ahead, PAST[:1], "at least 2"),
        (ahead, PAST.assign_coords(time=[3, 4]), "in order"),
    ):
        with pytest.raises(InputError, match=word):
            refine(prior, forecast, past, seed=0)
    for bad in (lambda: Langevin("huber"), lambda: Descent(rate=0.0), lambda: Langevin(noise=-1.0)):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(InputError, match="instance"):
        refine(prior, ahead, PAST, method=Langevin, seed=0)
    with pytest.raises(DivergenceError, match="smaller rate"):
        refine(prior, ahead, PAST, method=Descent(rate=1e200), seed=0)
