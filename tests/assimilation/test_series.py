"""What goes in and comes out: bad series are refused by name, and results are labelled data."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciddiff as sd
from sciddiff.assimilation import quantile_frame
from sciddiff.assimilation.series import read_series
from sciddiff.assimilation.steps import Labels, Steps, find_step
from sciddiff.errors import InputError
from sciddiff.priors import GaussianProcess

REFUSED = r"expected .+, got .+\. To fix it: .+"
DATES = pd.date_range("2000-01", periods=12, freq="MS")
KERNEL = np.exp(-np.abs(np.subtract.outer(np.arange(12.0), np.arange(12.0))) / 5)
SPACE = sd.Space({"time": DATES.values}, {"t": "degC"})
PRIOR = sd.GaussianPrior(SPACE, sd.covariance.dense(KERNEL))
BOTH = sd.Space({"time": DATES.values}, {"t": "degC", "u": "m/s"})
PAIR = sd.GaussianPrior(BOTH, sd.covariance.dense(np.kron([[1, 0.5], [0.5, 1]], KERNEL), (2, 12)))
PROCESS = GaussianProcess(lambda h: np.exp(-h / 150), {"t": "degC"})


def months(n=8, start="2005-03"):
    dates = pd.date_range(start, periods=n, freq="MS")
    return pd.Series(np.random.default_rng(0).standard_normal(n), dates, name="t")


def changed(at, value):
    series = months()
    series.iloc[at] = value
    return series


def labelled(**attrs):
    return months().rename_axis("time").to_xarray().assign_attrs(**attrs)


BROKEN = {
    "an unsorted date": (lambda: months().iloc[[0, 2, 1, 3]], "2005-04-01 after 2005-05-01"),
    "a series backwards": (lambda: months().iloc[::-1], "after"),
    "a duplicated time": (lambda: pd.concat([months(), months().iloc[-1:]]), "2005-10-01 more than once"),
    "a duplicated time out of order": (
        lambda: pd.concat([months(), months().iloc[:1]]),
        "2005-03-01 more than once",
    ),
    "infinity": (lambda: changed(3, np.inf), "infinite value of 't' at 2005-06-01"),
    "only NaN": (lambda: months() * np.nan, "NaN only"),
    "no row": (lambda: months().iloc[:0], "no row"),
    "a time zone": (lambda: months().tz_localize("Europe/Berlin"), "Europe/Berlin"),
    "numbers for dates": (lambda: months().reset_index(drop=True), "numbers"),
    "strings for dates": (lambda: months().set_axis(months().index.astype(str)), "an index of str"),
    "periods": (lambda: months().to_period("M"), "Period"),
    "a missing date": (lambda: months().set_axis([*months().index[:-1], pd.NaT]), "a missing time"),
    "another column": (lambda: months().to_frame("salinity"), "salinity"),
    "one column too many": (lambda: months().to_frame("t").assign(u=1.0), "'u'"),
    "a column twice": (lambda: pd.concat([months().to_frame("t")] * 2, axis=1), "['t', 't']"),
    "dates within dates": (
        lambda: months().set_axis(pd.MultiIndex.from_product([["a"], months().index])),
        "an index of tuple",
    ),
    "a list of columns": (lambda: {"t": [1.0, 2.0]}, "dict"),
    "complex values": (lambda: months() + 1j, "dtype complex128"),
    "strings for values": (lambda: months().astype(str), "dtype str"),
    "truth values": (lambda: months() > 0, "dtype bool"),
    "a unit mismatch in xarray": (lambda: labelled(units="K"), "units 'K'"),
    "a unit mismatch in a dataset": (lambda: labelled(units="K").to_dataset(name="t"), "units 'K'"),
    "a date off the steps": (
        lambda: months().set_axis(months().index + pd.Timedelta("3D")),
        "1 month on its first day",
    ),
    "one date off the steps": (
        lambda: months().rename({months().index[4]: pd.Timestamp("2005-07-02")}),
        "2005-07-02",
    ),
    "steps finer than the prior's": (lambda: months().resample("D").ffill(), "with 1 days between"),
    "another dim": (lambda: labelled().expand_dims(site=2), "site"),
    "no dim time": (lambda: labelled().rename(time="date"), "date"),
    "a plain array": (lambda: months().to_numpy(), "ndarray"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_series_is_refused_by_forecast_and_impute(case):
    make, got = BROKEN[case]
    for act in (
        lambda: sd.forecast(PRIOR, make(), horizon=2, seed=0),
        lambda: sd.impute(PRIOR, make(), seed=0),
    ):
        with pytest.raises(InputError, match=REFUSED) as refused:
            act()
        assert got in str(refused.value)


def test_a_unit_mismatch_of_a_pandas_column_is_refused_too():
    frame = months().to_frame("t")
    frame.attrs["units"] = {"t": "K"}
    with pytest.raises(InputError, match="units 'K'"):
        sd.forecast(PRIOR, frame, horizon=2, seed=0)


def test_one_nan_widens_a_forecast_and_spoils_nothing():
    whole = sd.forecast(PRIOR, months(), horizon=3, samples=400, seed=0)["t"]
    holed = sd.forecast(PRIOR, changed(-1, np.nan), horizon=3, samples=400, seed=0)["t"]
    assert bool(np.isfinite(holed).all())
    assert float(holed.std("sample")[0]) > 1.2 * float(whole.std("sample")[0])


BAD_ERRORS = {
    "zero": (0.0, "0 at 2005-03-01"),
    "negative": (-0.1, "-0.1"),
    "infinite": (np.inf, "inf"),
    "nan": (np.nan, "nan"),
    "a string": ("0.1", "got str"),
    "truth": (True, "bool"),
    "NaN where a value was seen": (months().where(months().index != "2005-06-01").abs(), "nan at 2005-06-01"),
    "negative at one date": (pd.Series([0.1] * 7 + [-1.0], months().index), "-1 at 2005-10-01"),
    "another length": (np.full(7, 0.1), "(7,)"),
    "other dates": (months(start="2005-04").abs(), "others"),
    "another variable": ({"u": 0.1}, "'u'"),
}


@pytest.mark.parametrize("case", BAD_ERRORS)
def test_errors_that_are_no_standard_deviations_are_refused(case):
    errors, got = BAD_ERRORS[case]
    with pytest.raises(InputError, match=REFUSED) as refused:
        sd.forecast(PRIOR, months(), horizon=2, obs_std=errors, seed=0)
    assert refused.value.argument == "obs_std" and got in str(refused.value)


def test_errors_may_come_as_numbers_mappings_arrays_frames_and_labelled_arrays():
    frame = pd.DataFrame({"t": months(), "u": months() + 1})
    frame.iloc[2, 1] = np.nan
    errors = pd.DataFrame({"t": 0.2, "u": 0.3}, frame.index)
    errors.iloc[2, 1] = np.nan  # nothing was seen there
    ways = [
        {"t": 0.2, "u": 0.3},
        errors,
        errors.to_numpy(),
        errors.rename_axis("time").to_xarray(),
    ]
    found = [sd.forecast(PAIR, frame, horizon=2, obs_std=e, samples=3, seed=0)["u"].values for e in ways]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    one = sd.forecast(PRIOR, months(), horizon=2, obs_std=0.2, samples=3, seed=0)["t"]
    for same in (
        {"noise": sd.noise.Gaussian(0.2)},
        {"obs_std": 0.2 + 0 * months()},
        {"obs_std": np.full(8, 0.2)},
    ):
        np.testing.assert_array_equal(
            sd.forecast(PRIOR, months(), horizon=2, samples=3, seed=0, **same)["t"], one
        )


def test_another_law_of_the_errors_is_heeded():
    wild = changed(-1, 5.0)
    normal = sd.forecast(PRIOR, wild, horizon=1, noise=sd.noise.Gaussian(0.1), samples=200, seed=0)["t"]
    tails, method = sd.noise.StudentT(3, 0.1), sd.methods.DAPS()
    heavy = sd.forecast(PRIOR, wild, horizon=1, noise=tails, method=method, samples=100, seed=0)["t"]
    # heavy tails take a wild value for an error
    assert float(heavy.mean()) < 0.5 * float(normal.mean())
    with pytest.raises(InputError, match="either noise or obs_std"):
        sd.forecast(PRIOR, wild, horizon=1, noise=sd.noise.Gaussian(0.1), obs_std=0.1, seed=0)
    with pytest.raises(InputError, match="each value as obs_std"):
        sd.forecast(PRIOR, wild, horizon=1, noise=sd.noise.Gaussian(np.full(8, 0.1)), seed=0)


HOLED = pd.DataFrame({"u": months(12)})
HOLED.iloc[9] = np.nan
BAD_COVARIATES = {
    "a hole": (HOLED, "none at 2005-12-01"),
    "an absent date": (HOLED.drop(HOLED.index[[3, 9]]), "none at 2005-06-01 and 1 more"),
    "no future": (pd.DataFrame({"u": months(8)}), "none at 2005-11-01 and 2 more"),
    "another name": (pd.DataFrame({"wind": months(12)}), "wind"),
    "every variable": (pd.DataFrame({"u": months(12), "t": 1.0}), "'t'"),
    "no name": (months(12).rename(None), "Series"),
    "an array": (np.zeros(12), "ndarray"),
    "other units": (
        months(12).rename_axis("time").to_xarray().rename("u").assign_attrs(units="km/h"),
        "km/h",
    ),
    "infinity": (HOLED.fillna(np.inf), "infinite value of 'u' at 2005-12-01"),
}


@pytest.mark.parametrize("case", BAD_COVARIATES)
def test_a_covariate_that_is_not_known_is_refused_with_its_date(case):
    covariates, got = BAD_COVARIATES[case]
    with pytest.raises(InputError, match=REFUSED) as refused:
        sd.forecast(PAIR, months(), horizon=3, covariates=covariates, seed=0)
    assert refused.value.argument == "covariates" and got in str(refused.value)


def test_a_covariate_of_a_prior_without_it_is_refused():
    with pytest.raises(InputError, match="covariates"):
        sd.forecast(PRIOR, months(), horizon=3, covariates=pd.DataFrame({"u": months(12)}), seed=0)


def test_a_gap_between_history_and_horizon_is_drawn_and_left_out():
    later = sd.forecast(PRIOR, months(), horizon=["2006-01-01", "2006-03-01"], samples=6, seed=0)
    every = sd.forecast(PRIOR, months(), horizon=5, samples=6, seed=0)
    assert later["lead"].values.tolist() == [3, 5]
    np.testing.assert_array_equal(later["t"], every["t"][:, [2, 4]])


def test_a_history_with_steps_of_a_year_on_a_monthly_prior_warns():
    with pytest.warns(UserWarning, match="every 12th step of the prior"):
        sd.forecast(PRIOR, months(73).iloc[::12], horizon=2, context=1, samples=2, seed=0)


def test_a_gap_longer_than_any_window_is_refused_with_its_dates():
    series = months(40)
    series.iloc[15:33] = np.nan
    with pytest.raises(InputError, match="no value from 2006-06-01 to 2007-0"):
        sd.impute(PRIOR, series, seed=0)
    series.iloc[24] = 0.0
    assert sd.impute(PRIOR, series, samples=3, seed=0).sizes == {"sample": 3, "time": 40}


def test_a_result_keeps_units_names_and_forecast_coordinates():
    history = labelled(units="degC", standard_name="sea_water_temperature", long_name="off the pier")
    ahead = sd.forecast(PRIOR, history, horizon=4, samples=30, seed=0)
    assert (
        ahead["t"].attrs["standard_name"] == "sea_water_temperature" and ahead["t"].attrs["units"] == "degC"
    )
    assert ahead["lead"].attrs["standard_name"] == "forecast_period"
    assert ahead["init_time"].attrs["standard_name"] == "forecast_reference_time"
    assert pd.Timestamp(ahead["init_time"].values) == pd.Timestamp("2005-10-01")
    assert ahead["time"].values[0] == np.datetime64("2005-11-01")
    assert ahead.attrs["seed"] == 0 and "MMPS" in ahead.attrs["method"]
    bare = sd.GaussianPrior(sd.Space({"time": DATES.values}, "t"), sd.covariance.dense(KERNEL))
    assert sd.forecast(bare, history, horizon=1, samples=3, seed=0)["t"].attrs["units"] == "degC"


def test_quantiles_go_to_pandas_long_and_wide():
    frame = pd.DataFrame({"t": months(), "u": months()})
    ahead = sd.forecast(PAIR, frame, horizon=4, samples=40, seed=0)
    long = ahead.quantile([0.05, 0.5, 0.95], "sample").to_dataframe()
    assert len(long) == 12 and {"t", "u", "lead"} <= set(long.columns)
    wide = quantile_frame(ahead)
    assert wide.shape == (4, 6) and wide.index.equals(pd.DatetimeIndex(ahead["time"].values))
    np.testing.assert_allclose(wide["u"][0.95], ahead["u"].quantile(0.95, "sample"))
    assert len(ahead.to_dataframe()) == 160
    with pytest.raises(InputError, match="levels"):
        quantile_frame(ahead, [5, 95])
    with pytest.raises(InputError, match="sample"):
        quantile_frame(ahead.mean("sample"))


@pytest.mark.parametrize("horizon", [3, 20])
def test_a_forecast_survives_the_way_to_disk(tmp_path, horizon):
    ahead = sd.forecast(PRIOR, months(), horizon=horizon, samples=4, seed=0)
    irregular = sd.forecast(PROCESS, months(), horizon=["2005-12-24"], samples=4, seed=0)
    for draws in (ahead, irregular):
        back = sd.load(sd.save(draws, tmp_path / "draws.nc"))
        xr.testing.assert_equal(back, draws)


def test_times_may_be_numbers_or_counted_steps():
    space = sd.Space({"time": np.arange(12) * 0.25}, "x")
    prior = sd.GaussianPrior(space, sd.covariance.dense(KERNEL))
    past = pd.Series(np.linspace(0, 1, 5), 7 + 0.25 * np.arange(5))
    ahead = sd.forecast(prior, past, horizon=2, samples=3, seed=0)
    assert ahead["time"].values.tolist() == [8.25, 8.5] and float(ahead["init_time"]) == 8.0
    plain = sd.GaussianPrior(sd.Space({"time": 12}, "x"), sd.covariance.dense(KERNEL))
    steps = sd.forecast(plain, pd.Series(past.values), horizon=20, samples=3, seed=0)
    assert steps["time"].values.tolist() == list(range(5, 25)) and steps["time"].dtype.kind == "i"
    array = sd.forecast(plain, xr.DataArray(past.values, dims="time"), horizon=20, samples=3, seed=0)
    np.testing.assert_array_equal(array["x"], steps["x"])
    with pytest.raises(InputError, match=r"8\.1"):
        sd.forecast(prior, past, horizon=[8.1], seed=0)


@pytest.mark.parametrize("horizon", [3, 20])
def test_draws_keep_the_dtype_of_the_prior(horizon):
    single = PRIOR.to(dtype=torch.float32)
    assert sd.forecast(single, months(), horizon=horizon, samples=3, seed=0)["t"].dtype == np.float32
    assert sd.forecast(PRIOR, months(), horizon=horizon, samples=3, seed=0)["t"].dtype == np.float64


def test_a_process_needs_no_steps_and_no_window():
    times = pd.to_datetime(["2001-01-03 04:00", "2001-01-20 00:00", "2001-05-05 00:00"])
    series = pd.Series([1.0, np.nan, -0.5], times)
    ahead = sd.forecast(
        PROCESS, series, horizon=pd.to_datetime(["2001-05-06", "2003-01-01"]), samples=4, seed=0
    )
    assert ahead["lead"].values.astype("timedelta64[D]").astype(int).tolist() == [1, 606]
    with pytest.raises(InputError, match="the future times"):
        sd.forecast(PROCESS, series, horizon=3, seed=0)
    assert sd.forecast(PROCESS, months(), horizon=30, samples=2, seed=0).sizes["time"] == 30


def test_a_prior_on_irregular_times_stays_where_it_is():
    times = np.array([0.0, 1.0, 1.5, 4.0, 4.5])
    prior = sd.GaussianPrior(
        sd.Space({"time": times}, "x"), sd.covariance.kernel(lambda h: np.exp(-h), times)
    )
    ahead = sd.forecast(prior, pd.Series([0.3, 0.1], [0.0, 1.5]), horizon=2, samples=3, seed=0)
    assert ahead["time"].values.tolist() == [4.0, 4.5]
    filled = sd.impute(prior, pd.Series([0.3, 0.1], [0.0, 4.0]), samples=3, seed=0)
    assert filled["time"].values.tolist() == [0.0, 1.0, 1.5, 4.0]
    with pytest.raises(InputError, match="irregular"):
        sd.forecast(prior, pd.Series([0.3], [0.2]), horizon=1, seed=0)
    with pytest.raises(InputError, match="at most 2 steps"):
        sd.forecast(prior, pd.Series([0.3], [1.5]), horizon=3, seed=0)


@pytest.mark.parametrize("step", ["MS", "ME", "QS", "YS", "YE", "D", "h", "B", "W", "2D", "15min"])
def test_steps_of_calendars_are_found_and_counted(step):
    dates = pd.date_range("2001-03-01", periods=9, freq=step).values
    steps = Steps(dates[4], find_step(dates))
    assert steps.count(dates, "times").tolist() == list(range(-4, 5))
    np.testing.assert_array_equal(steps.times(-4, 4), dates)
    np.testing.assert_array_equal(steps.times(2, 4), dates[6:])
    assert find_step(np.delete(dates, 5)) is None
    assert Labels(dates).count(dates[3:5], "times").tolist() == [3, 4]


def test_a_series_is_read_in_the_order_of_the_variables_with_nullable_numbers():
    frame = pd.DataFrame({"u": [1.0, 2.0], "t": pd.array([3, None], "Int64")}, DATES[:2])
    read = read_series(frame, BOTH, "series")
    np.testing.assert_array_equal(read.values, [[3, np.nan], [1, 2]])
    text = io.StringIO("time,t\n2005-03-01,1.5\n2005-04-01,\n2005-05-01,2.5\n")
    series = pd.read_csv(text, index_col="time", parse_dates=True)
    assert sd.forecast(PRIOR, series, horizon=1, samples=2, seed=0).sizes["time"] == 1


def test_a_frame_of_sites_is_one_variable_on_two_dims():
    space = sd.Space({"time": DATES.values, "site": ["pier", "buoy"]}, {"t": "degC"})
    prior = sd.GaussianPrior(space, sd.covariance.dense(np.kron(KERNEL, [[1, 0.5], [0.5, 1]]), (12, 2)))
    frame = pd.DataFrame({"pier": months(), "buoy": months() + 1})
    frame.iloc[3, 0] = np.nan
    ahead = sd.forecast(prior, frame, horizon=2, obs_std=np.full((8, 2), 0.1), samples=3, seed=0)["t"]
    array = xr.DataArray(frame.to_numpy(), {"time": frame.index, "site": ["pier", "buoy"]})
    same = sd.forecast(prior, array, horizon=2, obs_std=0.1, samples=3, seed=0)["t"]
    np.testing.assert_array_equal(ahead, same)
    assert quantile_frame(ahead.to_dataset()).columns.names == ["variable", "site", "quantile"]
    with pytest.raises(InputError, match="site"):
        sd.forecast(prior, frame[["buoy", "pier"]], horizon=2, seed=0)


@pytest.mark.parametrize("levels", ["a", [0.5, 0.5], [1.5], []])
def test_levels_that_are_no_levels_are_refused(levels):
    draws = xr.Dataset({"t": (("sample", "time"), np.zeros((3, 2)))})
    with pytest.raises(InputError, match="levels"):
        quantile_frame(draws, levels)
