"""Claims about the problem zero_shot: what is simulated, how windows are scaled, and that the shipped prior forecasts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import sciddiff as sd
from sciddiff.bench.catalog import definition
from sciddiff.errors import ConvergenceError

zero_shot = definition("zero_shot")
families, real = zero_shot.families, zero_shot.real


@pytest.fixture(scope="module")
def prior():
    return sd.load_prior(zero_shot.HERE / "prior")


@pytest.fixture(scope="module")
def windows():
    return families.simulate(300, seed=123)


def test_windows_are_in_units_of_their_first_sixty_values(windows):
    context = windows[:, :60]
    np.testing.assert_allclose(context.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(context.std(1), 1, atol=1e-9)
    assert np.abs(windows).max() < 8


def test_a_seed_fixes_the_series_and_another_one_changes_them(windows):
    np.testing.assert_array_equal(families.simulate(300, seed=123), windows)
    assert not np.allclose(families.simulate(300, seed=124), windows)


def test_an_autoregression_of_the_families_has_its_own_memory():
    rng = np.random.default_rng(0)
    x = families._recursion(np.full(4000, 0.8), rng.standard_normal((4000, 152)))
    found = np.mean(x[:, 1:] * x[:, :-1]) / np.mean(x**2)
    assert abs(found - 0.8) < 5 / np.sqrt(4000 * 72)
    assert abs(np.mean(x**2) * (1 - 0.64) - 1) < 0.03


def test_a_forecast_does_not_know_the_units_of_the_series(prior, windows):
    context = windows[:5, :60]
    plain = zero_shot.forecasts(prior, context, samples=4, progress=False)
    moved = zero_shot.forecasts(prior, 300.0 + 25.0 * context, samples=4, progress=False)
    # in float32 inside
    np.testing.assert_allclose((moved - 300.0) / 25.0, plain, atol=2e-3)


def test_on_series_of_its_own_families_the_prior_is_calibrated_and_beats_the_mean_of_the_context(
    prior, windows
):
    context, truth = windows[:100, :60], windows[:100, 60:]
    draws = zero_shot.forecasts(prior, context, samples=40, progress=False)
    score = zero_shot.scores(draws, truth, "1")
    # the leads of one series are one observation: 100 of them
    assert abs(score["coverage"] - 0.9) < 4 * np.sqrt(0.09 / 100)
    rng = np.random.default_rng(1)
    constant = zero_shot.scores(
        rng.choice(context, 40, axis=1).transpose(1, 0)[:, :, None].repeat(12, 2), truth, "1"
    )
    assert score["crps"] < 0.9 * constant["crps"]


def test_missing_values_in_the_context_are_met_by_masking(prior, windows):
    context = windows[:3, :60].copy()
    context[:, 20:30] = np.nan
    draws = zero_shot.forecasts(prior, context, samples=3, progress=False)
    assert draws.shape == (3, 3, 12) and np.isfinite(draws).all()


def test_a_longer_horizon_begins_with_the_shorter_one_and_goes_on(prior, windows):
    context = windows[:2, :60]
    short = zero_shot.forecasts(prior, context, 12, samples=3, progress=False)
    long = zero_shot.forecasts(prior, context, 30, samples=3, progress=False)
    assert long.shape == (3, 2, 30) and np.isfinite(long).all()
    np.testing.assert_array_equal(long[:, :, :12], short)


def test_origins_leave_room_on_either_side_and_are_in_the_second_half():
    for r in real.series():
        at = zero_shot.origins(r.values)
        assert len(at) == zero_shot.ORIGINS
        assert at[0] >= max(60, len(r.values) // 2) and at[-1] + 12 <= len(r.values)


def test_the_seasonal_naive_forecast_is_the_value_a_period_ago():
    values = pd.Series(np.tile(np.arange(12.0), 20), pd.date_range("2000-01", periods=240, freq="MS"))
    steady = real.Real("steady", "1", values, 12, (1, 0, 0))
    draws = real.seasonal_naive(steady, [120, 125], 24, 60, 7, seed=0)
    for k, o in enumerate((120, 125)):
        np.testing.assert_allclose(draws[:, k], np.tile(values.to_numpy()[o : o + 24], (7, 1)))
    line = real.Real("line", "1", pd.Series(np.arange(240.0), values.index), 1, (1, 0, 0))
    # steps of 1: the rule was off by as many as it looks ahead
    np.testing.assert_allclose(
        real.seasonal_naive(line, [200], 9, 60, 5, seed=0)[:, 0], np.tile(np.arange(200.0, 209), (5, 1))
    )


def test_the_rival_on_the_gdp_goes_on_with_a_straight_line():
    gdp = next(r for r in real.series() if r.name == "GDP")
    errors = np.random.default_rng(0).standard_normal(80) * 0.01
    line = pd.Series(0.5 * np.arange(80) + errors.cumsum(), gdp.values.index[:80])
    ahead = real.sarimax(replace(gdp, values=line), [80], 12, 400, seed=0)[:, 0]
    # a walk about the line, of which the slope is known to .01/sqrt(80)
    leads = np.arange(1, 13)
    limit = 4.5 * 0.01 * np.sqrt(leads + leads**2 / 80 + 2)
    assert (np.abs(ahead.mean(0) - line.iloc[-1] - 0.5 * leads) < limit).all()


def test_a_sarimax_that_is_not_fitted_is_refused(monkeypatch):
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    fit = SARIMAX.fit
    monkeypatch.setattr(SARIMAX, "fit", lambda self, **settings: fit(self, disp=0, maxiter=1))
    nile = next(r for r in real.series() if r.name == "Nile")
    with pytest.raises(ConvergenceError, match="Nile"):
        real.sarimax(nile, [60], 12, 3, seed=0)


def test_the_interval_of_a_ratio_is_that_of_its_origins():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((400, 12))
    near, far = (s * rng.standard_normal((20, 400, 12)) for s in (1.0, 3.0))
    ratio, low, high = zero_shot.ratio_interval(near, rng.standard_normal(near.shape), truth, 30.0)
    assert low < ratio < high and abs(ratio - 1) < 3 * (high - low) < 0.3
    ratio, low, high = zero_shot.ratio_interval(far, near, truth, 1.0)
    # E|s u - y| - s E|u - u'|/2 of normal values, over its value at s = 1
    assert low < ratio < high and abs(ratio - (np.sqrt(20) - 3)) < 3 * (high - low) < 0.5


def test_the_problem_is_in_the_units_of_the_series():
    problem = zero_shot.load()
    assert problem.space.sizes["time"] == 72
    draws = problem.posterior.sample(40, seed=0, steps=12)["value"]
    assert str(draws["time"].values[0])[:4] == "1900"
    seen = problem.y["value"].values[:60]
    scale = seen.std()
    # what is seen is drawn within its noise, 3 % of the scale; float32 and 12 steps leave the rest
    assert np.abs(draws.values[:, :60] - seen).max() < 6 * 0.03 * scale
    assert 0.3 * scale < draws.values[:, 60:].std(0).mean() < 2 * scale
