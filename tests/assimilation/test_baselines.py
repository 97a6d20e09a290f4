"""Baselines draw what their models say, in the same form as forecasts of a prior."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import sciddiff as sd
from sciddiff.assimilation import climatology, local_level, persistence, sarimax, seasonal_naive
from sciddiff.errors import InputError, MissingDependencyError

N = 3000


def assert_law(draws, mean, covariance):
    n, count = draws.shape
    limit = norm.isf(1e-5 / count**2)
    z = (draws.mean(0) - mean) / np.sqrt(np.diag(covariance) / n)
    assert np.abs(z).max() < limit
    spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
    assert (np.abs(np.cov(draws.T) - covariance) / spread).max() < limit


@pytest.fixture(scope="module")
def series():
    """A year's rhythm and an AR(1), monthly, with two gaps."""
    rng = np.random.default_rng(0)
    dates = pd.date_range("1990-01", periods=180, freq="MS")
    x = np.zeros(180)
    for t in range(1, 180):
        x[t] = 0.7 * x[t - 1] + rng.standard_normal()
    out = pd.Series(20 + 3 * np.sin(dates.month / 2) + x, dates, name="t")
    out.attrs["units"] = "degC"
    out.iloc[[40, 41]] = np.nan
    return out


@pytest.fixture(scope="module")
def nile():
    from statsmodels.datasets import nile

    flow = nile.load_pandas().data["volume"]
    flow.index = pd.RangeIndex(1871, 1971)
    flow = flow.rename("flow").astype(float)
    return flow


def test_sarimax_draws_are_the_normal_forecasts_of_statsmodels(series):
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    settings = {"order": (1, 0, 0), "seasonal_order": (0, 1, 1, 12)}
    ahead = sarimax(series, horizon=15, **settings, samples=N, seed=0)
    fit = SARIMAX(series.to_numpy(), **settings).fit(disp=0, maxiter=500)
    expected = fit.get_forecast(15)
    assert abs(ahead.attrs["log_likelihood"] - fit.llf) < 1e-6
    z = (ahead["t"].mean("sample").values - expected.predicted_mean) / expected.se_mean * np.sqrt(N)
    assert np.abs(z).max() < 4.5
    assert np.abs(ahead["t"].std("sample").values / expected.se_mean - 1).max() < 4.5 / np.sqrt(2 * N)


def test_sarimax_paths_have_the_covariances_of_their_autoregression(series):
    ahead = sarimax(series - series.mean(), horizon=4, samples=N, seed=0)
    phi, variance = (float(p.split("=")[1]) for p in ahead.attrs["parameters"].split(", "))
    k = np.arange(1, 5)
    later, sooner = np.maximum.outer(k, k), np.minimum.outer(k, k)
    covariance = variance * phi ** (later - sooner) * (1 - phi ** (2 * sooner)) / (1 - phi**2)
    assert_law(ahead["t"].values, (series - series.mean()).iloc[-1] * phi**k, covariance)


def test_the_local_level_of_the_nile_has_its_published_likelihood_and_exact_draws(nile):
    gone = nile.copy()
    assert abs(local_level(nile, samples=2, seed=0).attrs["log_likelihood"] + 632.54) < 0.005
    gone.loc[1891:1910] = np.nan
    draws = local_level(gone, samples=N, seed=0)
    noise, step = (float(p.split("=")[1]) for p in draws.attrs["parameters"].split(", "))
    # a random walk from a start of which nothing is known
    walk = 1e7 + step * np.minimum.outer(np.arange(100), np.arange(100))
    known = np.flatnonzero(gone.notna())
    gain = walk[:, known] @ np.linalg.inv(walk[np.ix_(known, known)] + noise * np.eye(len(known)))
    mean, covariance = gain @ gone.to_numpy()[known], walk - gain @ walk[known]
    some = np.r_[5:25:2, 30, 31]
    assert_law(draws["level"].values[:, some], mean[some], covariance[np.ix_(some, some)])
    missing = np.r_[20:40:3]
    again = covariance[np.ix_(missing, missing)] + noise * np.eye(len(missing))
    assert_law(draws["flow"].values[:, missing], mean[missing], again)
    assert (draws["flow"].values[:, known] == gone.to_numpy()[known]).all()


def test_persistence_adds_what_the_same_rule_was_off_by(series):
    ahead = persistence(series, horizon=3, samples=400, seed=0)["t"]
    steps = ahead.values - series.iloc[-1]
    y = series.to_numpy()
    # the last value seen may be some months old in a gap
    seen = series.ffill().to_numpy()
    pasts = {tuple(np.round(y[s + 1 : s + 4] - seen[s], 9)) for s in range(177)}
    assert {tuple(np.round(row, 9)) for row in steps} <= pasts
    assert np.isfinite(steps).all() and len(np.unique(steps[:, 0])) > 100


@pytest.mark.parametrize("gone", range(12))
def test_climatology_and_the_seasonal_rule_keep_the_phase(series, gone):
    rhythm = pd.Series(np.sin(series.index.month / 2.0), series.index, name="t").iloc[: 180 - gone]
    rhythm.iloc[[70, 100, -2]] = np.nan
    for made in (climatology, seasonal_naive):
        ahead = made(rhythm, horizon=24, period=12, samples=20, seed=0)["t"]
        truth = np.sin(ahead["time"].dt.month.values / 2.0)
        np.testing.assert_allclose(ahead, np.tile(truth, (20, 1)), atol=1e-12)


def test_a_gap_just_before_the_horizon_is_bridged_by_the_last_value_seen(series):
    holed = series.copy()
    holed.iloc[-3:] = np.nan
    a = persistence(holed, horizon=1, samples=4, seed=0)["t"]
    y = holed.to_numpy()
    errors = {round(v, 9) for v in (y[4:] - y[:-4])}
    assert {round(v, 9) for v in (a.values[:, 0] - y[-4])} <= errors


def test_after_a_gap_persistence_is_as_unsure_as_a_value_so_old():
    walks = np.random.default_rng(0).standard_normal((60, 200)).cumsum(1)
    walks[:, -6:] = np.nan
    days = pd.date_range("2001-01-01", periods=200)
    spread = np.array(
        [persistence(pd.Series(w, days), horizon=1, samples=100, seed=0)["x"].var().item() for w in walks]
    )
    # seven steps of a walk of variance 1; the variances of the walks differ by chance
    assert abs(spread.mean() - 7) < 4.5 * spread.std() / np.sqrt(60)


@pytest.mark.parametrize("in_the_state", [False, True])
def test_missing_values_follow_their_regressors(series, in_the_state):
    cause = np.random.default_rng(1).standard_normal(180)
    walk = np.random.default_rng(2).standard_normal(180).cumsum() / 10
    whole, gap = 10 * cause + walk, np.flatnonzero(series.isna())
    made = pd.Series(whole, series.index, name="t").where(series.notna())
    draws = local_level(made, samples=400, seed=0, exog=cause, mle_regression=not in_the_state)["t"][:, gap]
    z = (draws.mean("sample").values - whole[gap]) / draws.std("sample").values
    assert draws.std("sample").values.max() < 1 and np.abs(z).max() < 4.5


@pytest.mark.parametrize(
    "make",
    [
        lambda s, **k: climatology(s, period=12, **k),
        lambda s, **k: persistence(s, **k),
        lambda s, **k: seasonal_naive(s, period=12, **k),
        lambda s, **k: sarimax(s, order=(1, 0, 0), constant=True, **k),
    ],
    ids=["climatology", "persistence", "seasonal_naive", "sarimax"],
)
class TestForm:
    def test_baselines_are_labelled_as_forecasts_are(self, make, series):
        space = sd.Space({"time": series.index[:24].values}, {"t": "degC"})
        prior = sd.GaussianPrior(space, sd.covariance.white((24,)), mean=np.full(24, 20.0))
        theirs = make(series, horizon=5, samples=4, seed=0)
        ours = sd.forecast(prior, series, horizon=5, samples=4, seed=0)
        assert theirs.sizes == ours.sizes and theirs["t"].attrs == ours["t"].attrs
        assert set(theirs.coords) == set(ours.coords)
        for name in ours.coords:
            assert theirs[name].equals(ours[name]) and theirs[name].attrs == ours[name].attrs

    def test_gaps_dates_and_horizons_are_read_alike(self, make, series):
        a = make(series, horizon=4, samples=3, seed=0)
        b = make(series.drop(series.index[[40, 41]]), horizon=4, samples=3, seed=0)
        c = make(series.rename_axis("time").to_xarray(), horizon=a["time"].values[[1, 3]], samples=3, seed=0)
        np.testing.assert_array_equal(a["t"], b["t"])
        np.testing.assert_array_equal(a["t"][:, [1, 3]], c["t"])
        assert c["lead"].values.tolist() == [2, 4]

    def test_draw_i_depends_on_the_seed_and_i_alone(self, make, series):
        few, many = (make(series, horizon=4, samples=n, seed=3)["t"].values for n in (3, 30))
        np.testing.assert_allclose(few, many[:3], rtol=1e-12)

    @pytest.mark.parametrize(
        "broken",
        [
            lambda s: s.iloc[::-1],
            lambda s: pd.concat([s, s.iloc[-1:]]),
            lambda s: s * np.nan,
            lambda s: s.where(s.index != s.index[5], np.inf),
            lambda s: s.tz_localize("UTC"),
            lambda s: s.to_frame().assign(u=1.0),
            lambda s: s.iloc[[0, 1, 5, 11]].set_axis(
                pd.to_datetime(["2001-01-01", "2001-01-03", "2001-02-11", "2001-02-12"])
            ),
            lambda s: s.astype(str),
            lambda s: s.to_numpy(),
        ],
    )
    def test_bad_series_are_refused(self, make, series, broken):
        with pytest.raises(InputError, match=r"expected .+, got .+\. To fix it: .+"):
            make(broken(series), horizon=4, seed=0)

    @pytest.mark.parametrize("horizon", [0, -1, 1.5, ["2004-12-01"], "2006"])
    def test_bad_horizons_are_refused(self, make, series, horizon):
        with pytest.raises(InputError, match="horizon"):
            make(series, horizon=horizon, seed=0)


def test_a_history_too_short_for_two_pasts_is_refused(series):
    for make in (
        lambda: climatology(series.iloc[:20], horizon=12, period=12, seed=0),
        lambda: persistence(series.iloc[:5], horizon=4, seed=0),
        lambda: seasonal_naive(series.iloc[:8], horizon=1, period=12, seed=0),
    ):
        with pytest.raises(InputError, match="history"):
            make()


def test_without_statsmodels_the_error_names_the_extra(series, monkeypatch):
    for module in ("statsmodels.tsa.statespace.sarimax", "statsmodels.tsa.statespace.structural"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"sciddiff\[data\]"):
        sarimax(series, horizon=2, seed=0)
    with pytest.raises(MissingDependencyError, match=r"sciddiff\[data\]"):
        local_level(series, seed=0)


def test_settings_that_make_no_model_are_refused(series):
    with pytest.raises(InputError, match="order"):
        sarimax(series, horizon=2, order=(-1, 0, 0), seed=0)
    with pytest.raises(InputError, match="components"):
        local_level(series, samples=2, seed=0, level="no such level")
    with pytest.raises(InputError, match="'level'"):
        local_level(series.rename("level"), samples=2, seed=0)
