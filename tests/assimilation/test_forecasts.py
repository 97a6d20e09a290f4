import numpy as np
import pandas as pd
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError

DATES = pd.date_range("2000-01", periods=16, freq="MS")
KERNEL = np.exp(-np.abs(np.subtract.outer(np.arange(16.0), np.arange(16.0))) / 5)
SEASON = torch.linspace(-3, 8, 12, dtype=torch.float64)


@pytest.fixture
def prior():
    space = sd.Space({"time": DATES.values}, {"sst": "degC"})
    made = sd.GaussianPrior(space, sd.covariance.dense(KERNEL))
    made.season = SEASON
    return made


@pytest.fixture
def history():
    dates = pd.date_range("2003-05", periods=30, freq="MS")
    values = np.random.default_rng(0).standard_normal(30) + SEASON.numpy()[dates.month - 1]
    return pd.Series(values, dates, name="sst")


def exact(history, horizon, sd_noise):
    """Kriging of the anomalies of the last 16 - horizon months."""
    seen = history.iloc[-(16 - horizon) :]
    known = seen.notna().to_numpy()
    h = 16 - horizon
    k = KERNEL[:h, :h][np.ix_(known, known)] + sd_noise**2 * np.eye(known.sum())
    gain = KERNEL[h:, :h][:, known] @ np.linalg.inv(k)
    anomalies = (seen - SEASON.numpy()[seen.index.month - 1]).to_numpy()[known]
    ahead = pd.date_range(seen.index[-1], periods=horizon + 1, freq="MS")[1:]
    covariance = KERNEL[h:, h:] - gain @ KERNEL[:h, h:][known]
    return gain @ anomalies + SEASON.numpy()[ahead.month - 1], np.sqrt(np.diag(covariance))


def test_a_forecast_is_the_kriging_forecast_with_its_season(prior, history):
    history.iloc[-3] = np.nan
    n = 3000
    draws = sd.forecast(prior, history, horizon=6, samples=n, seed=0)["sst"]
    mean, deviation = exact(history, 6, 0.01 * float(prior.normalisation.scale))
    z = (draws.mean("sample").values - mean) / deviation * np.sqrt(n)
    assert np.abs(z).max() < 4.5
    assert np.abs(draws.std("sample").values / deviation - 1).max() < 4.5 / np.sqrt(2 * n)


def test_forecasts_carry_their_dates_leads_and_origin(prior, history):
    draws = sd.forecast(prior, history, horizon=3, samples=2, seed=0)
    assert draws["time"].values.astype("datetime64[M]").astype(str).tolist() == [
        "2005-11",
        "2005-12",
        "2006-01",
    ]
    assert draws["lead"].values.tolist() == [1, 2, 3]
    assert pd.Timestamp(draws["init_time"].values) == history.index[-1]
    assert draws["sst"].attrs["units"] == "degC"


def test_an_absent_date_is_the_same_gap_as_nan(prior, history):
    holed = history.copy()
    holed.iloc[-4] = np.nan
    a = sd.forecast(prior, holed, horizon=2, samples=3, seed=1)["sst"]
    b = sd.forecast(prior, holed.drop(holed.index[-4]), horizon=2, samples=3, seed=1)["sst"]
    np.testing.assert_array_equal(a, b)


def test_pandas_and_xarray_give_the_same_forecast(prior, history):
    series = sd.forecast(prior, history, horizon=2, samples=3, seed=1)["sst"]
    frame = sd.forecast(prior, history.to_frame(), horizon=2, samples=3, seed=1)["sst"]
    array = sd.forecast(prior, history.rename_axis("time").to_xarray(), horizon=2, samples=3, seed=1)["sst"]
    np.testing.assert_array_equal(series, frame)
    np.testing.assert_array_equal(series, array)


def test_imputed_values_keep_what_was_seen(prior, history):
    series = history.iloc[:12].copy()
    series.iloc[4:7] = np.nan
    draws = sd.impute(prior, series, samples=200, seed=0)["sst"]
    assert draws.sizes == {"sample": 200, "time": 12}
    seen = series.notna().to_numpy()
    assert np.abs(draws.values[:, seen] - series.to_numpy()[seen]).max() < 0.06
    assert draws.std("sample").values[~seen].min() > 0.2


def broken(history, how):
    series = history.iloc[:12].copy()
    match how:
        case "unsorted":
            return series.iloc[::-1]
        case "repeated":
            return pd.concat([series, series.iloc[-1:]])
        case "off the grid":
            return series.set_axis(series.index + pd.Timedelta(days=3))
        case "no value":
            return series * np.nan
        case "infinite":
            series.iloc[3] = np.inf
            return series
        case "no dates":
            return series.reset_index(drop=True)
        case "time zone":
            return series.tz_localize("UTC")
        case "other units":
            array = series.rename_axis("time").to_xarray()
            return array.assign_attrs(units="K")
        case "other name":
            return series.to_frame("salinity")


@pytest.mark.parametrize(
    "how",
    [
        "unsorted",
        "repeated",
        "off the grid",
        "no value",
        "infinite",
        "no dates",
        "time zone",
        "other units",
        "other name",
    ],
)
def test_a_broken_series_is_refused(prior, history, how):
    with pytest.raises(InputError, match=r"expected .+, got .+\. To fix it: .+"):
        sd.forecast(prior, broken(history, how), horizon=2, samples=2, seed=0)
    with pytest.raises(InputError):
        sd.impute(prior, broken(history, how), samples=2, seed=0)


@pytest.mark.parametrize(
    "horizon",
    [
        0,
        -1,
        2.5,
        True,
        None,
        [None],
        None,
        "2006-01",
        [],
        [None],
        ["2005-10-01"],
        ["2006-02-01", "2006-01-01"],
        ["2006-01-17"],
    ],
)
def test_a_horizon_of_nothing_in_the_past_or_between_steps_is_refused(prior, history, horizon):
    with pytest.raises(InputError, match=r"horizon.*expected .+, got .+\. To fix it: .+"):
        sd.forecast(prior, history, horizon=horizon, seed=0)


def test_priors_without_dates_are_refused(history):
    prior = sd.GaussianPrior(sd.Space({"i": 4}), sd.covariance.white((4,)))
    with pytest.raises(InputError, match="window of dates"):
        sd.forecast(prior, history, horizon=1, seed=0)
    steps = sd.GaussianPrior(sd.Space({"time": 4}), sd.covariance.white((4,)))
    with pytest.raises(InputError, match="numbers as times"):
        sd.forecast(steps, history, horizon=1, seed=0)


DAYS = pd.date_range("2023-01-02", periods=28, freq="D")
WEEK = np.where(DAYS.day_of_week < 5, 55.0, 50.0)


@pytest.fixture
def weekly():
    """Days of a load with a weekly rhythm and no memory, in windows that begin on a Monday."""
    space = sd.Space({"time": DAYS.values}, {"load": "MW"})
    return sd.GaussianPrior(space, sd.covariance.white((28,)), mean=WEEK)


def load(last, days):
    dates = pd.date_range(end=last, periods=days, freq="D")
    return pd.Series(np.where(dates.day_of_week < 5, 55.0, 50.0), dates)


def test_a_rhythm_without_a_period_is_refused_on_other_dates_than_its_own(weekly):
    with pytest.raises(InputError, match=r"period=.*season="):
        sd.forecast(weekly, load("2024-11-03", 40), horizon=7, samples=2, seed=0)
    with pytest.raises(InputError, match=r"period=.*season="):
        sd.impute(weekly, load("2024-11-03", 20), samples=2, seed=0)
    ahead = sd.forecast(weekly, load(DAYS[20], 21), horizon=7, samples=2, seed=0)
    assert pd.Timestamp(ahead["time"].values[0]) == DAYS[21]


@pytest.mark.parametrize("off", range(-3, 4))
@pytest.mark.parametrize("horizon", [7, 50])
def test_with_a_period_forecasts_from_any_weekday_know_the_weekdays(weekly, off, horizon):
    # 2024-11-03 and 2022-10-30 are Sundays, after and before the prior's own dates
    for sunday in ("2024-11-03", "2022-10-30"):
        past = load(pd.Timestamp(sunday) + pd.Timedelta(days=off), 40)
        ahead = sd.forecast(weekly, past, horizon=horizon, period=7, samples=100, seed=0)["load"]
        truth = np.where(ahead["time"].dt.dayofweek.values < 5, 55.0, 50.0)
        # white days of sd 1: the mean of 100 draws within 4.5 standard errors, where a wrong weekday is off by 5
        assert ahead.sizes["time"] == horizon
        assert np.abs(ahead.mean("sample").values - truth).max() < 4.5 / np.sqrt(100)


@pytest.mark.parametrize("days", [20, 27, 28, 29, 90])
def test_with_a_period_gaps_in_series_from_any_weekday_know_the_weekdays(weekly, days):
    for end in ("2024-11-10", "2024-11-12", "2024-11-15"):
        series = load(end, days)
        series.iloc[8:15] = np.nan
        filled = sd.impute(weekly, series, period=7, samples=100, seed=0)["load"]
        truth = np.where(filled["time"].dt.dayofweek.values < 5, 55.0, 50.0)
        assert filled.sizes["time"] == days
        assert np.abs(filled.mean("sample").values - truth).max() < 4.5 / np.sqrt(100)


def test_a_period_that_leaves_no_window_is_refused(weekly):
    with pytest.raises(InputError, match="period"):
        sd.forecast(weekly, load("2024-11-03", 40), horizon=40, period=28, samples=2, seed=0)
    with pytest.raises(InputError, match="context"):
        sd.impute(weekly, load("2024-11-03", 40), period=7, context=22, samples=2, seed=0)


def test_a_period_of_one_lays_the_window_anywhere_and_a_constant_mean_needs_none(weekly):
    past = load("2024-11-05", 40)
    sd.forecast(weekly, past, horizon=7, period=1, samples=2, seed=0)
    flat = weekly.relabel(weekly.space, torch.full((28,), 53.0, dtype=torch.float64))
    sd.forecast(flat, past, horizon=7, samples=2, seed=0)
    with pytest.raises(InputError, match="period"):
        sd.forecast(flat, past, horizon=7, period=0, samples=2, seed=0)


def test_months_of_a_year_are_counted_as_steps():
    dates = pd.date_range("2000-01", periods=24, freq="MS")
    space = sd.Space({"time": dates.values}, {"sst": "degC"})
    prior = sd.GaussianPrior(space, sd.covariance.white((24,)), mean=dates.month.to_numpy(dtype=float))
    past = pd.Series(1.0, pd.date_range("1990-01", "2009-12", freq="MS"))
    ahead = sd.forecast(prior, past, horizon=12, period=12, samples=400, seed=0)["sst"]
    assert np.abs(ahead.mean("sample").values - np.arange(1, 13)).max() < 4.5 / np.sqrt(400)
    later = sd.forecast(prior, past[:"2009-01"], horizon=12, period=12, samples=400, seed=0)["sst"]
    assert np.abs(later.mean("sample").values - np.r_[2:13, 1]).max() < 4.5 / np.sqrt(400)
