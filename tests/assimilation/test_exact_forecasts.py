"""Forecasts and filled gaps under exact priors are the closed-form Gaussian conditionals, cross-covariances and all."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
import xarray as xr
from scipy.stats import chi2, norm

import sciddiff as sd
from sciddiff.priors import GaussianProcess
from sciddiff.priors.base import Normalisation
from sciddiff.priors.covariates import Covariates

N = 700
PHI = np.array([1.2, -0.5])


def autocovariance(lags, phi=PHI):
    """Of a stationary AR(2) with innovations of sd 1."""
    companion = np.array([phi, [1.0, 0.0]])
    first = scipy.linalg.solve_discrete_lyapunov(companion, np.diag([1.0, 0.0]))[0]
    out = list(first)
    while len(out) < lags:
        out.append(phi @ out[:-3:-1])
    return np.array(out[:lags])


def matern(h):
    return 1.7 * (1 + h / 6) * np.exp(-h / 6)


def kernel_matrix(dates):
    days = (dates - dates[0]) / pd.Timedelta("1D")
    return matern(np.abs(np.subtract.outer(days, days)))


def conditional(prior_mean, k, known, y, variances):
    """Mean and covariance of all values, given noisy ones at ``known``."""
    gain = k[:, known] @ np.linalg.inv(k[np.ix_(known, known)] + np.diag(variances))
    return prior_mean + gain @ (y - prior_mean[known]), k - gain @ k[known]


def assert_law(draws, mean, covariance):
    """Means, variances and covariances of draws ``(n, values)`` agree with a Gaussian's, by their z-scores."""
    n, count = draws.shape
    limit = norm.isf(1e-5 / count**2)
    z = (draws.mean(0) - mean) / np.sqrt(np.diag(covariance) / n)
    assert np.abs(z).max() < limit
    sample = np.cov(draws.T)
    spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
    assert (np.abs(sample - covariance) / spread).max() < limit


@pytest.fixture
def markov():
    """An AR(2) in windows of 9 months."""
    space = sd.Space({"time": pd.date_range("2000-01", periods=9, freq="MS").values}, {"t": "degC"})
    matrix = scipy.linalg.toeplitz(autocovariance(9))
    return sd.GaussianPrior(space, sd.covariance.dense(matrix), mean=np.full(9, 20.0))


@pytest.fixture
def series():
    """Thirty months of that AR(2), with gaps."""
    dates = pd.date_range("2010-03", periods=30, freq="MS")
    root = np.linalg.cholesky(scipy.linalg.toeplitz(autocovariance(30)))
    values = pd.Series(20 + root @ np.random.default_rng(3).standard_normal(30), dates, name="t")
    return values.where(~np.isin(np.arange(30), [4, 5, 11, 12, 13, 14, 22, 27]))


@pytest.mark.parametrize("horizon", [4, 9, 26])
def test_a_forecast_beyond_the_window_is_exact_for_a_markov_prior(markov, series, horizon):
    seen = series.iloc[-8:]  # the window holds more than its last two, which are all that counts
    ahead = sd.forecast(markov, seen, horizon=horizon, obs_std=1e-4, samples=N, seed=0)["t"]
    total = 8 + horizon
    known = np.flatnonzero(seen.notna())
    k = scipy.linalg.toeplitz(autocovariance(total))
    y = seen.dropna().to_numpy()
    mean, covariance = conditional(np.full(total, 20.0), k, known, y, np.full(len(known), 1e-8))
    assert_law(ahead.values, mean[8:], covariance[8:, 8:])


def test_a_gap_in_a_long_series_is_drawn_given_both_its_sides(markov, series):
    filled = sd.impute(markov, series, obs_std=0.02, context=4, samples=N, seed=0)
    known = np.flatnonzero(series.notna())
    k = scipy.linalg.toeplitz(autocovariance(30))
    mean, covariance = conditional(
        np.full(30, 20.0), k, known, series.dropna().to_numpy(), np.full(len(known), 0.02**2)
    )
    assert filled.attrs["windows"] > 4
    assert_law(filled["t"].values, mean, covariance)


def test_values_of_a_noisy_series_are_drawn_given_what_follows_them_in_the_window():
    space = sd.Space({"time": np.arange(24)}, {"t": "degC"})
    prior = sd.GaussianPrior(space, sd.covariance.dense(scipy.linalg.toeplitz(autocovariance(24))))
    k = scipy.linalg.toeplitz(autocovariance(60))
    rng = np.random.default_rng(6)
    y = np.linalg.cholesky(k + 4 * np.eye(60)) @ rng.standard_normal(60)
    drawn = sd.impute(prior, pd.Series(y), obs_std=2.0, context=10, samples=N, seed=0, sweeps=0)
    mean, covariance = conditional(np.zeros(60), k, np.arange(60), y, np.full(60, 4.0))
    assert drawn.attrs["windows"] > 3
    assert_law(drawn["t"].values, mean, covariance)


def slow(steps):
    """An AR(1) with coefficient .98 and variance 1: a memory of 50 steps."""
    return 0.98 ** np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))


@pytest.fixture
def long_memory():
    """That AR(1) in windows of 16."""
    return sd.GaussianPrior(sd.Space({"time": np.arange(16)}, {"t": "degC"}), sd.covariance.dense(slow(16)))


def noisy(steps, error):
    rng = np.random.default_rng(6)
    return np.linalg.cholesky(slow(steps) + error**2 * np.eye(steps)) @ rng.standard_normal(steps)


@pytest.mark.parametrize("error", [1.0, 2.0])
def test_a_forecast_of_a_noisy_slow_series_uses_a_whole_window_of_it_at_every_horizon(long_memory, error):
    y = noisy(40, error)
    short, long = (
        sd.forecast(long_memory, pd.Series(y), horizon=h, obs_std=error, samples=N, seed=0)["t"]
        for h in (11, 30)
    )
    mean, covariance = conditional(np.zeros(46), slow(46), np.arange(16), y[-16:], np.full(16, error**2))
    assert_law(long.values, mean[16:], covariance[16:, 16:])
    np.testing.assert_array_equal(short, long[:, :11])


def test_a_gap_at_the_end_of_the_history_is_later_leads_at_every_horizon(long_memory):
    y = pd.Series(noisy(40, 0.1))
    whole = sd.forecast(long_memory, y[:36], horizon=24, obs_std=0.1, samples=20, seed=0)["t"]
    ended = y.where(np.arange(40) < 36)
    for horizon in (11, 12, 13, 20):
        ahead = sd.forecast(long_memory, ended, horizon=horizon, obs_std=0.1, samples=20, seed=0)["t"]
        np.testing.assert_array_equal(ahead, whole[:, 4 : 4 + horizon])
    # longer than a window
    later = y.reindex(np.arange(60))
    far = sd.forecast(long_memory, later, horizon=2, obs_std=0.1, samples=20, seed=0)
    assert far["t"].shape == (20, 2) and far["time"].values[0] == 60


def test_sweeps_give_noisy_values_what_lies_behind_their_window(long_memory):
    y, n = noisy(40, 1.0), 400
    mean, covariance = conditional(np.zeros(40), slow(40), np.arange(40), y, np.ones(40))
    deviation = np.sqrt(np.diag(covariance))

    def off(**options):
        drawn = sd.impute(long_memory, pd.Series(y), obs_std=1.0, samples=n, seed=0, **options)["t"]
        return float((((drawn.mean("sample").values - mean) / deviation) ** 2).mean()), drawn.values

    # n times the mean square has mean 1; under these errors the 40 values have a memory of some 5 steps, and count for 4
    limit = chi2.isf(1e-3, 4) / 4 / n
    swept, draws = off(sweeps=2)
    assert swept < limit < off(sweeps=0)[0]
    assert np.abs(draws.std(0) / deviation - 1).max() < 4.5 / np.sqrt(2 * n)
    # values half a window apart
    apart = np.array([np.cov(draws[:, i], draws[:, i + 8])[0, 1] - covariance[i, i + 8] for i in range(32)])
    spread = deviation[:32] * deviation[8:] / np.sqrt(n)
    assert np.abs(apart / spread).max() < 4.5


def test_precise_values_take_no_sweeps(long_memory):
    precise = sd.impute(long_memory, pd.Series(noisy(30, 0.1)), obs_std=0.1, samples=3, seed=0)
    none = sd.impute(long_memory, pd.Series(noisy(30, 0.1)), obs_std=0.1, samples=3, seed=0, sweeps=0)
    np.testing.assert_array_equal(precise["t"], none["t"])
    for sweeps in (-1, 1.5, True):
        with pytest.raises(sd.errors.InputError, match="sweeps"):
            sd.impute(long_memory, pd.Series(np.zeros(30)), samples=2, seed=0, sweeps=sweeps)


def test_irregular_times_errors_of_each_value_and_correlated_variables_are_exact():
    rng = np.random.default_rng(1)
    dates = pd.Timestamp("2001-01-01") + pd.to_timedelta(np.sort(rng.uniform(0, 60, 25)), unit="D")
    between = np.array([[1.0, -0.6], [-0.6, 2.0]])
    process = GaussianProcess(matern, {"t": "degC", "q": "g/kg"}, mean=[15.0, 8.0], between=between)
    root = np.linalg.cholesky(np.kron(between, kernel_matrix(dates)))
    states = (root @ rng.standard_normal(50)).reshape(2, 25).T
    frame = pd.DataFrame(states + np.array([15.0, 8.0]), dates, ["t", "q"])
    frame = frame.where(rng.random((25, 2)) > 0.3)
    frame.iloc[7] = np.nan
    errors = pd.DataFrame(rng.uniform(0.05, 0.5, (25, 2)), dates, ["t", "q"]).where(frame.notna())
    future = dates[-1] + pd.to_timedelta([0.3, 1.7, 2.0, 9.5], unit="D")
    ahead = sd.forecast(process, frame, horizon=future, obs_std=errors, samples=N, seed=0)
    every = dates.append(future)
    k = np.kron(between, kernel_matrix(every))
    centre = np.repeat([15.0, 8.0], 29)
    y = np.full((2, 29), np.nan)
    y[:, :25] = frame.T
    sds = np.full((2, 29), np.nan)
    sds[:, :25] = errors.T
    known = np.flatnonzero(~np.isnan(y.ravel()))
    mean, covariance = conditional(centre, k, known, y.ravel()[known], sds.ravel()[known] ** 2)
    last = np.r_[25:29, 54:58]
    draws = np.concatenate([ahead["t"].values, ahead["q"].values], 1)
    assert_law(draws, mean[last], covariance[np.ix_(last, last)])
    assert (ahead["lead"].values == (future - dates[-1]).values).all()
    filled = sd.impute(process, frame, obs_std=errors, samples=N, seed=1)
    past = np.r_[:25, 29:54]
    draws = np.concatenate([filled["t"].values, filled["q"].values], 1)
    assert_law(draws, mean[past], covariance[np.ix_(past, past)])


def joint(length):
    """A load that follows a driver: both AR(2), correlated .8."""
    return np.kron(np.array([[1.0, 0.8], [0.8, 1.0]]), scipy.linalg.toeplitz(autocovariance(length)))


@pytest.mark.parametrize("horizon", [3, 14])
def test_a_variable_that_is_known_ahead_drives_the_others_exactly(horizon):
    space = sd.Space({"time": np.arange(9)}, {"load": "MW", "wind": "m/s"})
    prior = sd.GaussianPrior(space, sd.covariance.dense(joint(9), (2, 9)))
    total = 8 + horizon
    rng = np.random.default_rng(2)
    both = (np.linalg.cholesky(joint(total)) @ rng.standard_normal(2 * total)).reshape(2, total)
    load = pd.Series(both[0, :8], np.arange(40, 48))
    wind = pd.Series(both[1], np.arange(40, 40 + total), name="wind")
    ahead = sd.forecast(prior, load, covariates=wind, horizon=horizon, obs_std=1e-4, samples=N, seed=0)
    assert list(ahead.data_vars) == ["load"]
    known = np.r_[:8, total : 2 * total]
    mean, covariance = conditional(
        np.zeros(2 * total),
        joint(total),
        known,
        both.ravel()[known],
        np.r_[np.full(8, 1e-8), np.zeros(total)],
    )
    assert_law(ahead["load"].values, mean[8:total], covariance[8:total, 8:total])


class Told(sd.GaussianPrior):
    """A prior whose mean is three times a driver, once it has been told."""

    covariates = Covariates({"wind": "m/s"}, Normalisation(torch.tensor(0.0), torch.tensor(1.0)))

    def driven(self, u):
        other = self.relabel(self.space, self.normalisation.mean + 3 * u[0])
        other.covariates = None
        return other


@pytest.mark.parametrize("horizon", [3, 14])
def test_a_prior_that_is_told_its_drivers_gets_those_of_each_window(horizon):
    space = sd.Space({"time": np.arange(9)}, {"load": "MW"})
    prior = Told(space, sd.covariance.dense(scipy.linalg.toeplitz(autocovariance(9))))
    total = 9 + horizon
    wind = xr.DataArray(
        np.sin(np.arange(total)), {"time": np.arange(total)}, name="wind", attrs={"units": "m/s"}
    )
    load = pd.Series(3 * np.sin(np.arange(9)) + 0.5, np.arange(9))
    ahead = sd.forecast(prior, load, covariates=wind, horizon=horizon, obs_std=1e-4, samples=N, seed=0)
    mean, covariance = conditional(
        3 * wind.values,
        scipy.linalg.toeplitz(autocovariance(total)),
        np.arange(9),
        load.to_numpy(),
        np.full(9, 1e-8),
    )
    assert_law(ahead["load"].values, mean[9:], covariance[9:, 9:])
    with pytest.raises(sd.errors.InputError, match=r"drivers of the prior.*'wind'"):
        sd.forecast(prior, load, horizon=horizon, samples=2, seed=0)
    with pytest.raises(sd.errors.InputError, match=f"none at {total - 2}"):
        holed = wind.drop_isel(time=total - 2)
        sd.forecast(prior, load, covariates=holed, horizon=horizon, samples=2, seed=0)


@pytest.mark.parametrize("horizon", [4, 26])
def test_the_first_draws_do_not_depend_on_how_many_follow(markov, series, horizon):
    few = sd.forecast(markov, series, horizon=horizon, samples=3, seed=5)["t"]
    many = sd.forecast(markov, series, horizon=horizon, samples=40, seed=5)["t"]
    np.testing.assert_allclose(many[:3], few, rtol=0, atol=1e-9)
    filled = [sd.impute(markov, series, samples=n, seed=5)["t"] for n in (3, 40)]
    np.testing.assert_allclose(filled[1][:3], filled[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("horizon", [4, 26])
def test_kelvin_and_degrees_give_the_same_draws(markov, series, horizon):
    space = sd.Space({"time": markov.space.coords["time"]}, {"t": "K"})
    kelvin = markov.relabel(space, markov.normalisation.mean + 273.15)
    a = sd.forecast(markov, series, horizon=horizon, samples=20, seed=0)["t"]
    b = sd.forecast(kelvin, series + 273.15, horizon=horizon, samples=20, seed=0)["t"]
    np.testing.assert_allclose(b - 273.15, a, rtol=0, atol=1e-6)
    assert (a.attrs["units"], b.attrs["units"]) == ("degC", "K")


def test_windows_on_a_field_forecast_each_site_with_its_neighbours():
    """Two sites, further dims behind time, coords kept."""
    between = np.array([[1.0, 0.7], [0.7, 1.0]])
    k = np.kron(scipy.linalg.toeplitz(autocovariance(9)), between)
    space = sd.Space({"time": np.arange(9) * 0.5, "site": ["a", "b"]}, {"u": "m"})
    prior = sd.GaussianPrior(space, sd.covariance.dense(k, (9, 2)))
    past = xr.DataArray(
        np.random.default_rng(0).standard_normal((8, 2)),
        {"time": 3 + np.arange(8) * 0.5, "site": ["a", "b"]},
        ("time", "site"),
    )
    past[-1, 1] = np.nan
    ahead = sd.forecast(prior, past, horizon=11, obs_std=1e-4, samples=N, seed=0)["u"]
    assert ahead.dims == ("sample", "time", "site") and ahead["time"].values[0] == 7.0
    known = np.arange(15)
    whole = np.kron(scipy.linalg.toeplitz(autocovariance(19)), between)
    mean, covariance = conditional(np.zeros(38), whole, known, past.values.ravel()[:15], np.full(15, 1e-8))
    assert_law(ahead.values.reshape(N, -1), mean[16:], covariance[16:, 16:])


class Short:
    """An Ornstein-Uhlenbeck process, at most twelve times of it at once."""

    window = 12
    whole = GaussianProcess(lambda days: 1.5 * np.exp(-days / 7), {"t": "degC"}, mean=3.0)

    def at(self, times):
        assert len(times) <= self.window
        return self.whole.at(times)


def test_irregular_times_beyond_a_window_are_exact_for_a_markov_process():
    rng = np.random.default_rng(4)
    dates = pd.Timestamp("2001-01-01") + pd.to_timedelta(np.sort(rng.uniform(0, 90, 45)), unit="D")
    k = 1.5 * np.exp(-np.abs(np.subtract.outer(*[(dates - dates[0]) / pd.Timedelta("1D")] * 2)) / 7)
    series = pd.Series(3 + np.linalg.cholesky(k) @ rng.standard_normal(45), dates)
    holed = series.where(~np.isin(np.arange(45), [3, 4, 5, 6, 13, 20, 21, 22, 30, 43]))
    filled = sd.impute(Short(), holed, obs_std=0.02, samples=N, seed=0)
    known = np.flatnonzero(holed.notna())
    law = conditional(np.full(45, 3.0), k, known, holed.to_numpy()[known], np.full(len(known), 4e-4))
    assert filled.attrs["windows"] > 3
    assert_law(filled["t"].values, *law)
    for past in (3, 20):
        ahead = sd.forecast(
            Short(), series.iloc[:past], horizon=dates[past:], obs_std=1e-4, samples=N, seed=0
        )
        mean, covariance = conditional(
            np.full(45, 3.0), k, np.arange(past), series.to_numpy()[:past], np.full(past, 1e-8)
        )
        assert_law(ahead["t"].values, mean[past:], covariance[past:, past:])


@pytest.mark.slow
def test_a_network_that_was_trained_with_a_driver_follows_it_from_window_to_window():
    rng = np.random.default_rng(0)
    dates = pd.date_range("2000-01", periods=616, freq="MS")
    wind = np.sin(np.arange(616) / 3) + 0.3 * rng.standard_normal(616)
    x = np.zeros(616)
    for t in range(1, 616):
        x[t] = 0.6 * x[t - 1] + 0.5 * rng.standard_normal()
    load = x + 2 * wind
    windows = [np.lib.stride_tricks.sliding_window_view(v, 16)[:600] for v in (load, wind)]
    prior = sd.train(
        windows[0],
        sd.Space({"time": dates[:16]}, {"load": "MW"}),
        covariates=windows[1][:, None],
        covariate_names={"wind": "m/s"},
        network="mlp",
        settings={"width": 32, "depth": 1},
        steps=300,
        batch=64,
        seed=0,
    )
    past, known = pd.Series(load[:100], dates[:100]), pd.DataFrame({"wind": wind[:130]}, dates[:130])
    ahead = sd.forecast(
        prior, past, horizon=30, covariates=known, period=1, obs_std=0.01, samples=100, seed=0
    )["load"]
    # far from the history only the driver is known: the response is 2 and the rest is stationary
    far = slice(6, 30)
    response = np.polyfit(wind[100:130][far], ahead.mean("sample").values[far], 1)[0]
    assert abs(response - 2) < 0.2
    assert abs(float(ahead.std("sample")[far].mean()) / (0.5 / 0.8) - 1) < 0.15


def test_a_gap_is_filled_given_its_driver_in_every_window():
    space = sd.Space({"time": np.arange(9)}, {"load": "MW", "wind": "m/s"})
    prior = sd.GaussianPrior(space, sd.covariance.dense(joint(9), (2, 9)))
    both = (np.linalg.cholesky(joint(24)) @ np.random.default_rng(5).standard_normal(48)).reshape(2, 24)
    load = pd.Series(both[0]).where(~np.isin(np.arange(24), [3, 4, 10, 11, 12, 17]))
    wind = pd.DataFrame({"wind": both[1]})
    filled = sd.impute(prior, load, covariates=wind, context=4, obs_std=0.02, samples=N, seed=0)
    known = np.r_[np.flatnonzero(load.notna()), 24:48]
    errors = np.r_[np.full(18, 0.02**2), np.zeros(24)]
    mean, covariance = conditional(np.zeros(48), joint(24), known, both.ravel()[known], errors)
    assert filled.attrs["windows"] > 2 and list(filled.data_vars) == ["load"]
    assert_law(filled["load"].values, mean[:24], covariance[:24, :24])
