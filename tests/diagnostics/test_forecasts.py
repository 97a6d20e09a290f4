import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciddiff.diagnostics import (
    analysis_scores,
    coverage,
    crps,
    energy_score,
    rmse,
    spread,
    spread_skill,
    verify,
)
from sciddiff.errors import InputError

Z = 4.0


def forecasts(members=20, origins=200, leads=4, sites=3, sd=1.0, seed=0):
    """Draws whose spread grows with the lead, and a truth that is one more of them for sd 1."""
    rng = np.random.default_rng(seed)
    grow = np.sqrt(np.arange(1, leads + 1))[:, None]
    x = grow * rng.standard_normal((members + 1, origins, leads, sites))
    x[1:] *= sd
    coords = {"lead": np.arange(1, leads + 1)}
    draws = xr.DataArray(
        x[1:], dims=("sample", "origin", "lead", "site"), coords=coords, name="u", attrs={"units": "K"}
    )
    return draws, draws.isel(sample=0, drop=True).copy(data=x[0])


# -- forecasts by lead ---------------------------------------------------------------------------


def test_every_row_of_the_table_is_the_score_of_that_lead():
    draws, truth = forecasts()
    table = verify(draws, truth)
    for lead in (1, 4):
        x, y = draws.sel(lead=lead), truth.sel(lead=lead)
        row = table.loc[("u", lead)]
        want = {
            "points": y.size,
            "rmse": rmse(x, y),
            "spread": spread(x),
            "spread_skill": spread_skill(x, y),
            "crps": crps(x, y).mean(),
            "energy_score": energy_score(x, y, "site").mean(),
            "coverage_50": coverage(x, y).values[0],
            "coverage_90": coverage(x, y).values[1],
        }
        assert list(row.index) == list(want)
        np.testing.assert_allclose(row.to_numpy(), [float(v) for v in want.values()], rtol=1e-10)
    assert table.attrs["units"] == {"u": "K"}


@pytest.mark.parametrize("sd", [1.0, 0.7, 1.4])
def test_spread_over_skill_is_the_factor_by_which_the_spread_is_off_for_few_members_too(sd):
    draws, truth = forecasts(members=5, origins=4000, sd=sd)
    ratio = verify(draws, truth)["spread_skill"].to_numpy()
    # mean of 5 draws: error variance 1 + sd^2/5, against (6/5) sd^2
    expected = sd * np.sqrt(1.2 / (1 + sd**2 / 5))
    assert np.abs(ratio / expected - 1).max() < Z / np.sqrt(2 * 12000)


def test_leads_beyond_the_record_have_no_points_and_no_scores():
    draws, truth = forecasts()
    truth = truth.where(truth["lead"] < 4)
    truth[:5, 2] = np.nan
    with pytest.raises(InputError, match="NaN"):
        verify(draws, truth)
    table = verify(draws, truth, nan="omit").loc["u"]
    assert table["points"].tolist() == [600, 600, 585, 0]
    assert table.loc[4].drop("points").isna().all()
    kept = verify(draws.isel(lead=[2], origin=slice(5, None)), truth.isel(lead=[2], origin=slice(5, None)))
    np.testing.assert_allclose(table.loc[3].to_numpy(), kept.loc[("u", 3)].to_numpy())


def test_a_lead_may_be_a_coordinate_along_time_and_draws_may_be_members():
    draws, truth = forecasts(origins=1)
    draws, truth = (v.isel(origin=0, drop=True) for v in (draws, truth))
    dates = pd.date_range("2020-01-01", periods=4)
    dated = [
        v.rename(lead="time").assign_coords(time=dates, lead=("time", [1, 2, 3, 4])) for v in (draws, truth)
    ]
    table = verify(dated[0].rename(sample="member"), dated[1], sample_dim="member")
    pd.testing.assert_frame_equal(table, verify(draws, truth))


def test_several_variables_have_tables_of_their_own():
    draws, truth = forecasts()
    both = [xr.Dataset({"u": v, "w": 2 * v}) for v in (draws, truth)]
    table = verify(*both)
    np.testing.assert_allclose(table.loc["w", "rmse"], 2 * table.loc["u", "rmse"])


def test_without_leads_the_table_is_refused():
    draws, truth = forecasts()
    with pytest.raises(InputError, match="lead"):
        verify(draws.rename(lead="step"), truth.rename(lead="step"))
    assert len(verify(draws.rename(lead="step"), truth.rename(lead="step"), lead="step")) == 4


# -- analyses over time --------------------------------------------------------------------------


def test_the_root_is_taken_at_every_time_and_the_mean_over_times_after_the_burn_in():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((8, 50, 5)) * np.linspace(1, 3, 50)[:, None]
    draws = xr.DataArray(x[1:], dims=("sample", "time", "site"), name="u")
    table = analysis_scores(draws, xr.DataArray(x[0], dims=("time", "site"), name="u"), burn_in=20)["u"]
    error = np.sqrt(((x[1:].mean(0) - x[0]) ** 2).mean(1))[20:]
    width = np.sqrt(x[1:].var(0, ddof=1).mean(1))[20:]
    np.testing.assert_allclose(table[["rmse_a", "rmv_a"]], [error.mean(), width.mean()], rtol=1e-12)
    assert table["times"] == 30


def test_variables_of_the_same_units_are_one_state_in_the_column_all():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 50, 3)) * [1.0, 2.0, 3.0]
    stacked = xr.DataArray(x, dims=("sample", "time", "v"), name="state")
    apart = xr.Dataset({n: stacked.isel(v=i, drop=True) for i, n in enumerate("abc")})
    one, many = (analysis_scores(v.isel(sample=slice(1, 8)), v.isel(sample=0)) for v in (stacked, apart))
    np.testing.assert_allclose(one["state"], many["all"], rtol=1e-10)
    apart["a"].attrs["units"] = "K"
    assert "all" not in analysis_scores(apart.isel(sample=slice(1, 8)), apart.isel(sample=0))


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_standard_error_is_that_of_means_of_correlated_times(rho):
    rng, n, runs = np.random.default_rng(3), 2000, 60
    e = rng.standard_normal((runs, n)) * np.sqrt(1 - rho**2)
    for t in range(1, n):
        e[:, t] += rho * e[:, t - 1]
    # errors 5 + e of one value, so that the root at each time is the error itself
    found = []
    for run in e:
        draws = xr.DataArray(np.stack([5 + run - 1, 5 + run + 1]), dims=("sample", "time"), name="u")
        found.append(analysis_scores(draws, xr.zeros_like(draws[0]))["u"])
    table = pd.DataFrame(found)
    exact = np.sqrt((1 + rho) / (1 - rho) / n)
    # by theory the mean's spread over runs is known to 1/sqrt(2 runs); the estimate of each run is rough, its mean is not
    assert abs(table["rmse_a"].std() / exact - 1) < Z / np.sqrt(2 * runs)
    assert abs(np.sqrt((table["rmse_a_sigma"] ** 2).mean()) / exact - 1) < 0.2
    assert (table["rmv_a_sigma"] == 0).all()


def test_unseen_times_drop_out_of_the_mean():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((8, 30, 4))
    draws = xr.DataArray(x[1:], dims=("sample", "time", "site"), name="u")
    truth = xr.DataArray(x[0], dims=("time", "site"), name="u")
    holed = truth.copy()
    holed[10:15], holed[20, 0] = np.nan, np.nan
    table = analysis_scores(draws, holed, nan="omit")["u"]
    assert table["times"] == 25
    kept = [t for t in range(30) if not 10 <= t < 15]
    error = [np.sqrt(np.nanmean((x[1:, t].mean(0) - holed.values[t]) ** 2)) for t in kept]
    assert np.isclose(table["rmse_a"], np.mean(error))
    with pytest.raises(InputError, match="NaN"):
        analysis_scores(draws, holed)


@pytest.mark.parametrize("settings", [{"burn_in": 29}, {"burn_in": -1}, {"dim": "t"}, {"burn_in": 1.5}])
def test_a_burn_in_that_leaves_nothing_and_an_unknown_time_are_refused(settings):
    draws = xr.DataArray(np.zeros((3, 30)), dims=("sample", "time"), name="u")
    with pytest.raises(InputError):
        analysis_scores(draws, draws[0], **settings)
