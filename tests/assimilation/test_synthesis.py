"""The Linear Predictive Score tells a right law from a wrong one, and scores the right one as the truth itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation.synthesis import linear_predictive_score, synthesise
from sciddiff.errors import InputError

L, H = 12, 4


def law(memory=6.0, size=1.0):
    """A stationary Gaussian series with a memory."""
    times = np.arange(float(L))
    kernel = sd.covariance.kernel(lambda h: size * np.exp(-np.abs(h) / memory), times)
    return sd.GaussianPrior(sd.Space({"time": times}), kernel)


def windows(prior, n, seed):
    return synthesise(prior, n, seed=seed)["x"]


def by_cholesky(n, seed):
    """Windows of the law of `law`, without a prior."""
    times = np.arange(L)
    root = np.linalg.cholesky(np.exp(-np.abs(times[:, None] - times) / 6.0))
    return np.random.default_rng(seed).standard_normal((n, L)) @ root.T


def test_windows_of_the_exact_prior_score_as_real_ones_do_in_expectation():
    """Pairs of training sets, of the prior and simulated without it, scored on one real set: the mean difference is zero."""
    real, n = by_cholesky(4000, 1), 40
    made = [linear_predictive_score(windows(law(), 600, s), real, horizon=H) for s in range(n)]
    true = [linear_predictive_score(by_cholesky(600, 100 + s), real, horizon=H) for s in range(n)]
    for name in ("crps", "mae"):
        difference = np.array([getattr(a, name) - getattr(b, name) for a, b in zip(made, true, strict=True)])
        error = difference.std(ddof=1) / np.sqrt(n)
        assert abs(difference.mean()) < 3.5 * error
        # so sharp that a law which is off by one percent of the score would show
        assert error < 0.002 * getattr(true[0], name)


def test_windows_of_the_exact_prior_have_its_second_moments():
    """Covariances, which the score sees only by the forecast that they make, against those of the closed form."""
    n, cov = 4000, np.exp(-np.abs(np.arange(L)[:, None] - np.arange(L)) / 6.0)
    x = windows(law(), n, 5).values
    assert (np.abs(x.mean(0)) < 4.5 / np.sqrt(n)).all()
    assert (np.abs(x.T @ x / n - cov) < 4.5 * np.sqrt((1 + cov**2) / n)).all()


def test_the_score_of_the_exact_law_is_that_of_the_best_forecast():
    """Conditional means and sds of a Gaussian in closed form; the regression on 20000 windows comes within 1 %."""
    prior = law()
    cov = prior.physical_covariance.apply(torch.eye(L, dtype=torch.float64)).numpy()
    gain = np.linalg.solve(cov[:-H, :-H], cov[:-H, -H:]).T
    sd_ahead = np.sqrt(np.diag(cov[-H:, -H:] - gain @ cov[:-H, -H:]))
    # the CRPS of N(m, s^2) at its own draws is s/sqrt(pi), and the mean absolute error s sqrt(2/pi)
    found = linear_predictive_score(windows(prior, 20_000, 2), windows(prior, 20_000, 3), horizon=H)
    assert found.crps == pytest.approx(sd_ahead.mean() / np.sqrt(np.pi), rel=0.02)
    assert found.mae == pytest.approx(sd_ahead.mean() * np.sqrt(2 / np.pi), rel=0.02)


@pytest.mark.parametrize(
    "wrong", [law(memory=0.5), law(memory=60.0), law(size=4.0)], ids=["short", "long", "wide"]
)
def test_a_wrong_law_scores_worse(wrong):
    real = windows(law(), 4000, 1)
    right = linear_predictive_score(windows(law(), 2000, 2), real, horizon=H).crps
    assert linear_predictive_score(windows(wrong, 2000, 2), real, horizon=H).crps > 1.01 * right


def test_other_units_change_the_score_by_their_factor_alone():
    train, real = windows(law(), 500, 0), windows(law(), 500, 1)
    a = linear_predictive_score(train, real, horizon=H, ridge=0.1)
    b = linear_predictive_score(100 * train + 5, 100 * real + 5, horizon=H, ridge=0.1)
    assert b.crps == pytest.approx(100 * a.crps) and b.mae == pytest.approx(100 * a.mae)


def test_what_cannot_be_scored_is_refused():
    good = np.random.default_rng(0).standard_normal((50, L))
    with pytest.raises(InputError, match="NaN"):
        linear_predictive_score(good, np.where(good > 2, np.nan, good), horizon=H)
    with pytest.raises(InputError, match="cut them alike"):
        linear_predictive_score(good[:, 1:], good, horizon=H)
    with pytest.raises(InputError, match="context"):
        linear_predictive_score(good, good, horizon=L)
    with pytest.raises(InputError, match="draw more"):
        linear_predictive_score(good[:8], good, horizon=H)
    still, twice = np.full_like(good, 0.1), np.concatenate([good[:, :1], good], 1)
    ended = np.concatenate([good[:, :-1], still[:, :1]], 1)
    begun = np.concatenate([still[:, :1], good[:, 1:]], 1)
    for bad, ridge, word in (
        (still, 1e-3, "constant"),
        (still, 0.0, "constant"),
        (ended, 1e-3, "constant"),
        (twice, 0.0, "singular"),
    ):
        with pytest.raises(InputError, match=word):
            linear_predictive_score(bad, bad, horizon=H, ridge=ridge)
    for fair, ridge in ((twice, 1e-3), (begun, 1e-3)):
        assert np.isfinite(linear_predictive_score(fair, fair, horizon=H, ridge=ridge).crps)
    with pytest.raises(InputError, match="ridge"):
        linear_predictive_score(good, good, horizon=H, ridge=-1.0)
