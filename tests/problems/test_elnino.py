import numpy as np
import pandas as pd
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset, definition, module

elnino = definition("elnino")
SAMPLES = 60


@pytest.fixture(scope="module")
def sst():
    return dataset("elnino").load()["sst"]


@pytest.fixture(scope="module")
def priors(sst):
    season = elnino.anomalies(sst)[1]
    return {
        "gaussian": elnino.in_degrees(elnino.gaussian(sst), season),
        "network": sd.load_prior(elnino.HERE / "prior"),
    }


@pytest.fixture(scope="module")
def scored(sst, priors):
    draws = {name: elnino.forecasts(p, sst, samples=SAMPLES) for name, p in priors.items()}
    return draws, {name: elnino.verify(d, sst) for name, d in draws.items()}


def test_draws_of_the_gaussian_prior_are_its_closed_form_forecasts(sst, priors, scored):
    prior = elnino.of_anomalies(priors["gaussian"])
    k = prior.law.apply(torch.eye(24, dtype=torch.float64)).numpy()
    k = k * float(prior.normalisation.scale) ** 2
    h = elnino.WINDOW - elnino.HORIZON
    gain = k[h:, :h] @ np.linalg.inv(k[:h, :h] + elnino.NOISE_SD**2 * np.eye(h))
    spread = np.sqrt(np.diag(k[h:, h:] - gain @ k[:h, h:]))
    draws = scored[0]["gaussian"]
    n = draws.sizes["sample"] * draws.sizes["origin"]
    ratio = draws.var("sample", ddof=1).mean("origin").values / spread**2
    assert np.abs(ratio - 1).max() < 4.5 * np.sqrt(2 / n)
    a, season = elnino.anomalies(sst)
    index = sst.indexes["time"].get_indexer(pd.DatetimeIndex(draws["origin"].values))
    exact = a[index[:, None] + np.arange(-h, 0)] @ gain.T + season[draws["valid_time"].dt.month.values - 1]
    z = (draws.mean("sample").values - exact) / spread * np.sqrt(draws.sizes["sample"])
    assert abs((z**2).mean() - 1) < 4.5 * np.sqrt(2 * 12 / z.size)


@pytest.mark.parametrize("name", ["gaussian", "network"])
def test_forecasts_are_as_good_as_an_ar3_and_no_worse_than_climatology(sst, scored, name):
    reference = elnino.baselines.verify(elnino.baselines.autoregression(sst), sst)
    for lead in (1, 3, 6):
        ratio, _ = elnino.compared(scored[1][name], reference, lead)
        assert ratio < 1.03
    assert float(scored[1][name]["crps"].sel(lead=12).mean()) < 1.03 * 0.636


@pytest.mark.parametrize("name", ["gaussian", "network"])
def test_coverage_is_within_two_standard_errors_of_the_fitted_gaussians_closed_form(scored, name):
    covered = scored[1][name]["covered"]
    error = elnino.baselines.block_means(covered).std("draw")
    for lead, exact in ((1, 0.88), (3, 0.82), (6, 0.89), (12, 0.90)):
        assert abs(float(covered.sel(lead=lead).mean()) - exact) < 2 * float(error.sel(lead=lead))


def test_the_coverage_of_draws_is_right_in_expectation_however_few_they_are(sst, scored):
    frame, rng = scored[0]["gaussian"], np.random.default_rng(0)
    times = frame["valid_time"].values
    truth = sst.reindex(time=times.ravel()).values.reshape(times.shape)
    held = []
    for _ in range(4):
        # the truth is one more draw of a normal law of each origin and lead; plain quantiles of 60 hold 0.87 of it
        draws = truth + rng.standard_normal((SAMPLES, *times.shape)) - rng.standard_normal(times.shape)
        held.append(elnino.verify(frame.copy(data=draws), sst)["covered"].mean())
    assert abs(np.mean(held) - 0.9) < 4.5 * np.sqrt(0.09 / (4 * np.isfinite(truth).sum()))


def test_the_shipped_prior_forecasts_dated_temperatures(sst, priors):
    history = sst.sel(time=slice("2008-06", "2009-12")).to_series()
    history.iloc[4] = np.nan
    ahead = sd.forecast(priors["network"], history, horizon=12, samples=50, seed=0)
    assert ahead["sst"].attrs["units"] == "degC" and ahead["lead"].values.tolist() == list(range(1, 13))
    assert pd.Timestamp(ahead["time"].values[0]) == pd.Timestamp("2010-01-01")
    seen = sst.sel(time=ahead["time"])
    assert float(abs(ahead["sst"].mean("sample") - seen).max()) < 3


def test_a_gap_is_filled_between_its_ends(sst, priors):
    series = sst.sel(time=slice("2004-01", "2005-12")).to_series()
    holed = series.copy()
    holed.iloc[9:15] = np.nan
    filled = sd.impute(priors["gaussian"], holed, samples=100, seed=0)["sst"]
    kept = np.setdiff1d(np.arange(24), np.arange(9, 15))
    assert np.abs(filled.mean("sample").values[kept] - series.values[kept]).max() < 0.05
    assert np.abs(filled.mean("sample").values - series.values).max() < 2
    assert filled.std("sample").values[9:15].min() > 0.2


def test_the_mix_and_the_order_of_sarimax_are_the_best_of_their_grids_on_the_years_they_were_chosen_on(sst):
    choose = module(elnino.HERE, "choose")
    mixes = choose.mixes(sst)
    assert min(mixes, key=mixes.get) == elnino.MIX
    orders = choose.orders(sst)
    assert min(orders, key=orders.get) == (2, 0, 2)


def test_nothing_after_1994_is_looked_at_when_choosing(sst):
    choose = module(elnino.HERE, "choose")
    later = sst.where(sst["time"] <= np.datetime64("1994-12"), 99.0)
    assert choose.mixes(later) == choose.mixes(sst)


tasks = module(elnino.HERE, "tasks")


def test_three_warm_months_in_a_row_are_an_event_and_two_are_not():
    x = np.array([[0, 1, 1, 0.9, 2], [0, 1, 1.2, 3, 0], [0.0, 0, 1, 1, 1], [0, 1, 1, np.nan, 0]])
    np.testing.assert_array_equal(tasks.in_a_row(x), [0, 1, 1, np.nan])


def test_paths_of_the_autoregression_have_its_normal_forecasts_and_go_on_from_step_to_step(sst):
    origins, n = ("2000-01", "2000-02"), 4000
    normal = elnino.baselines.autoregression(sst, origins=origins)
    paths = elnino.baselines.autoregression_paths(sst, samples=n, seed=0, origins=origins)
    z = (paths.mean("sample") - normal["mean"]) / normal["sd"] * np.sqrt(n)
    assert float(abs(z).max()) < 4.5
    assert float(abs(paths.std("sample") / normal["sd"] - 1).max()) < 4.5 / np.sqrt(2 * n)
    # the error of lead 2 is psi_1 times that of lead 1 and a shock of the same variance
    e = paths.values - normal["mean"].values
    slope = (e[:, 0, 0] * e[:, 0, 1]).mean() / (e[:, 0, 0] ** 2).mean()
    psi = np.sqrt(float((normal["sd"][0, 1] / normal["sd"][0, 0]) ** 2) - 1)
    assert abs(slope - psi) < 4.5 / np.sqrt(n)


def test_the_score_of_an_event_is_the_squared_error_of_its_probability(sst, scored):
    draws = {"sure": scored[0]["gaussian"] * 0 + 40.0, "never": scored[0]["gaussian"] * 0}
    scores, rows = tasks.event_table(draws, sst)
    often = 1 - float(scores["sure"].mean())
    assert abs(float(scores["never"].mean()) - often) < 1e-12 and 0.3 < often < 0.6
    assert [row["method"] for row in rows] == ["frequency of 1950-1994", "sure", "never"]


def test_months_that_are_missed_cost_what_they_tell(sst, priors):
    holed = elnino.missing_months(priors["gaussian"], sst, samples=30)
    at = {name: float(s.sel(lead=1).mean()) for name, s in holed.items()}
    full, random, third, late = at.values()
    assert full < random < late and abs(third / full - 1) < 0.1


def test_the_first_of_two_years_is_the_year_that_one_window_forecasts(sst, priors, scored):
    far = tasks.two_years(priors["gaussian"], sst, samples=40, every=17)
    assert far.sizes == {"sample": 40, "origin": 12, "lead": 24}
    near = scored[0]["gaussian"].sel(origin=far["origin"])
    first = far.sel(lead=slice(1, 12))
    gap = (first.mean("sample") - near.mean("sample")) / np.sqrt(
        first.var("sample", ddof=1) / 40 + near.var("sample", ddof=1) / near.sizes["sample"]
    )
    # of 144 values, those of an origin go together
    assert float(abs(gap).max()) < 4.5 and abs(float((gap**2).mean()) - 1) < 4.5 * np.sqrt(2 / 12)
    scores, rows = tasks.far_table({"prior": far}, sst)
    assert [row["method"] for row in rows] == ["climatology", "AR(3)", "prior"]
    # origins 170 and 187 of 192 reach beyond the record
    assert int(scores["prior"].notnull().sum("origin").sel(lead=24)) == 10
