from __future__ import annotations

import numpy as np
import pytest
import scoringrules as sr
import xarray as xr
from scipy import stats

from sciddiff.diagnostics import (
    chi_square,
    coverage,
    crps,
    crps_normal,
    energy_score,
    pooled_ranks,
    rank_histogram,
    relative_error,
    rmse,
    spread,
    spread_skill,
    summary,
)
from sciddiff.errors import InputError

SCORES = [crps, energy_score, coverage, rank_histogram, pooled_ranks, rmse, relative_error, spread_skill]
Z = 4.0  # two-sided chance 6e-5 a test


def field(values: np.ndarray, *dims: str, name: str = "u") -> xr.DataArray:
    coords = {d: np.linspace(0.0, 1.0, n) for d, n in zip(dims, values.shape, strict=True) if d != "sample"}
    return xr.DataArray(values, dims=dims, coords=coords, name=name, attrs={"units": "K"})


def gaussian(draws: int, points: int, *, sd: float = 1.0, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Draws of sd ``sd`` and a truth of sd 1, around means that differ from point to point."""
    rng = np.random.default_rng(seed)
    mean = 3.0 * rng.normal(size=points)
    x = mean + sd * rng.normal(size=(draws, points))
    return field(x, "sample", "x"), field(mean + rng.normal(size=points), "x")


def z_score(values: np.ndarray, expected: float) -> float:
    return float((values.mean() - expected) / (values.std(ddof=1) / np.sqrt(values.size)))


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 10, 51])
def test_crps_equals_scoringrules_fair_estimator(m):
    draws, truth = gaussian(m, 40)
    expected = sr.crps_ensemble(truth.values, draws.values, m_axis=0, estimator="fair", backend="numpy")
    np.testing.assert_allclose(crps(draws, truth).values, expected, rtol=1e-10, atol=1e-14)


def test_crps_keeps_its_digits_far_from_zero():
    draws, truth = gaussian(20, 30)
    far = crps(1e-6 * draws + 1e3, 1e-6 * truth + 1e3)
    # 1e3 holds 1e-6 with a relative error of 1e-7
    np.testing.assert_allclose(far.values, 1e-6 * crps(draws, truth).values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [2, 5])
def test_fair_crps_is_unbiased_for_the_crps_of_the_law(m):
    rng = np.random.default_rng(1)
    truth = np.full(40_000, 0.7)
    x = field(rng.normal(size=(m, truth.size)), "sample", "x")
    exact = float(crps_normal(0.0, 1.0, 0.7))
    scores = crps(x, field(truth, "x")).values
    assert abs(z_score(scores, exact)) < Z
    # the M^2 estimator misses by E|X - X'| / (2 M): the test would see it
    assert z_score(scores + 1 / (np.sqrt(np.pi) * m), exact) > 2 * Z


def test_crps_normal_equals_the_integral_of_its_definition():
    mean, sd, y = 0.3, 1.7, 2.5
    grid = np.linspace(-25, 25, 200_001)
    square = (stats.norm.cdf(grid, mean, sd) - (grid >= y)) ** 2
    assert float(crps_normal(mean, sd, y)) == pytest.approx(np.trapezoid(square, grid), abs=2e-4)


def test_crps_normal_equals_scoringrules_and_its_limit_at_sd_zero():
    rng = np.random.default_rng(2)
    mean, sd, y = rng.normal(size=50), rng.gamma(2.0, size=50), rng.normal(size=50)
    expected = sr.crps_normal(y, mean, sd, backend="numpy")
    np.testing.assert_allclose(crps_normal(mean, sd, y), expected, rtol=1e-9)
    np.testing.assert_allclose(crps_normal(mean, 0.0, y), np.abs(y - mean))


def test_crps_normal_keeps_labels_and_refuses_others():
    _, truth = gaussian(2, 5)
    out = crps_normal(truth, 0.5 * xr.ones_like(truth), truth)
    xr.testing.assert_allclose(out, xr.full_like(truth, 0.5 * 0.23369497725510913))
    with pytest.raises(InputError, match="coordinate 'x'"):
        crps_normal(truth, 1.0, truth.assign_coords(x=truth.x + 1))
    with pytest.raises(InputError, match="`sd`"):
        crps_normal(truth, -1.0, truth)


def test_energy_score_equals_scoringrules_and_the_crps_in_one_dimension():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(7, 4, 3)), rng.normal(size=(4, 3))
    nrg = sr.es_ensemble(y.reshape(1, 12), x.reshape(1, 7, 12), estimator="nrg", backend="numpy")[0]
    # its estimator divides the pairs by 2 M^2, the fair one by 2 M (M - 1)
    first = np.linalg.norm((x - y).reshape(7, 12), axis=1).mean()
    fair = first - (first - nrg) * 7 / 6
    draws, truth = field(x, "sample", "x", "y"), field(y, "x", "y")
    assert float(energy_score(draws, truth)) == pytest.approx(fair, rel=1e-12)
    point = {"x": [1], "y": [2]}
    one = energy_score(draws.isel(point), truth.isel(point))
    assert float(one) == pytest.approx(float(crps(draws, truth)[1, 2]), rel=1e-12)


def test_energy_score_takes_the_norm_over_the_named_dims_only():
    rng = np.random.default_rng(4)
    draws = field(rng.normal(size=(6, 3, 4, 2)), "sample", "case", "x", "y")
    truth = field(rng.normal(size=(3, 4, 2)), "case", "x", "y")
    by_case = energy_score(draws, truth)
    assert by_case.dims == ("case",)
    for i in range(3):
        one = energy_score(draws.isel(case=i), truth.isel(case=i))
        assert float(by_case[i]) == pytest.approx(float(one), rel=1e-12)
    by_point = energy_score(draws, truth, dims="y")
    assert by_point.dims == ("case", "x")
    one = energy_score(draws[:, 1, 2], truth[1, 2])
    assert float(by_point[1, 2]) == pytest.approx(float(one), rel=1e-12)


def test_fair_energy_score_is_unbiased_for_the_energy_score_of_the_law():
    d, trials = 3, 20_000
    rng = np.random.default_rng(5)
    x = field(rng.normal(size=(2, trials, d)), "sample", "case", "x")
    scores = energy_score(x, field(np.zeros((trials, d)), "case", "x")).values
    # E|X| for d = 3 is sqrt(8/pi), and X - X' is sqrt(2) times such a vector
    assert abs(z_score(scores, np.sqrt(8 / np.pi) * (1 - np.sqrt(2) / 2))) < Z


def test_rmse_relative_error_spread_and_ratio_equal_their_definitions():
    draws, truth = gaussian(8, 60)
    error = draws.values.mean(0) - truth.values
    variance = draws.values.var(0, ddof=1).mean()
    assert float(rmse(draws, truth)) == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)
    assert float(spread(draws)) == pytest.approx(np.sqrt(variance), rel=1e-12)
    relative = np.linalg.norm(error) / np.linalg.norm(truth.values)
    assert float(relative_error(draws, truth)) == pytest.approx(relative, rel=1e-12)
    ratio = np.sqrt(9 / 8 * variance / (error**2).mean())
    assert float(spread_skill(draws, truth)) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("m", [2, 5, 30])
def test_spread_over_skill_is_one_for_exact_draws_of_any_number(m):
    draws, truth = gaussian(m, 100_000, seed=m)
    # relative variance of the two mean squares: 2/N for the error, 2/((M - 1) N) for the spread
    se = 0.5 * np.sqrt((2 + 2 / (m - 1)) / 100_000)
    assert abs(float(spread_skill(draws, truth)) - 1) < Z * se


def test_chi_square_of_exact_posterior_draws_is_one():
    rng = np.random.default_rng(6)
    n, sd = 40_000, 0.5
    truth = rng.normal(size=n)
    y = truth + sd * rng.normal(size=n)
    gain = 1 / (1 + sd**2)
    draws = gain * y + sd * np.sqrt(gain) * rng.normal(size=(3, n))
    chi = chi_square(field(draws, "sample", "x"), field(y, "x"), sd)
    assert chi.dims == ("sample",)
    assert np.all(np.abs(chi - 1) < Z * np.sqrt(2 / n))
    # a sd is not a variance: the figure would be 4 times smaller
    per_point = xr.full_like(field(y, "x"), sd)
    xr.testing.assert_allclose(chi, chi_square(field(draws, "sample", "x"), field(y, "x"), per_point))


# -- calibration -------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 3, 7, 10, 19, 64])
def test_coverage_expects_its_level_exactly_for_any_number_of_draws(m):
    # every rank once: the mean over them is the expectation under exchangeability
    draws = np.tile(np.arange(m, dtype=float)[:, None], m + 1)
    truth = np.arange(m + 1) - 0.5
    levels = [0.01, 0.1, 0.5, 0.68, 0.9, 0.95, 0.999]
    shares = coverage(field(draws, "sample", "x"), field(truth, "x"), levels)
    np.testing.assert_allclose(shares, levels, rtol=1e-12)


def test_coverage_at_an_attainable_level_counts_an_interval_of_order_statistics():
    draws, truth = gaussian(19, 500)
    low, high = np.sort(draws.values, axis=0)[[0, 18]]
    inside = (low < truth.values) & (truth.values < high)
    assert float(coverage(draws, truth, [0.9])[0]) == pytest.approx(inside.mean(), rel=1e-12)


@pytest.mark.parametrize("m", [4, 9, 50])
def test_coverage_of_exact_gaussian_draws_is_within_binomial_bounds(m):
    n, levels = 20_000, (0.5, 0.9)
    shares = coverage(*gaussian(m, n, seed=m), levels).values
    for level, share in zip(levels, shares, strict=True):
        low, high = stats.binom.ppf([3e-5, 1 - 3e-5], n, level) / n
        assert low <= share <= high


@pytest.mark.parametrize(("sd", "sign"), [(2.0, 1), (0.5, -1)])
def test_a_spread_wrong_by_a_factor_of_two_is_detected(sd, sign):
    n = 2_000
    draws, truth = gaussian(40, n, sd=sd)
    for level, share in zip((0.5, 0.9), coverage(draws, truth).values, strict=True):
        assert sign * (share - level) / np.sqrt(level * (1 - level) / n) > 2 * Z
    # sd^2 (1 + 1/M) over 1 + sd^2/M
    expected = np.sqrt(sd**2 * (1 + 1 / 40) / (1 + sd**2 / 40))
    assert float(spread_skill(draws, truth)) == pytest.approx(expected, rel=0.1)
    counts = rank_histogram(draws, truth).values
    edges, centre = counts[[0, -1]].mean(), counts[18:23].mean()
    assert sign * (centre - edges) > 2 * Z * np.sqrt(n / 41)
    # E|X - Y| - E|X - X'| / 2 for normals: 0.564 at sd 1, 0.610 at 0.5, 0.656 at 2
    expected = np.sqrt(2 / np.pi) * (np.sqrt(1 + sd**2) - sd / np.sqrt(2))
    scores = crps(draws, truth).values
    assert abs(z_score(scores, expected)) < Z < z_score(scores, 1 / np.sqrt(np.pi))


def test_the_rank_histogram_of_exact_draws_is_flat():
    counts = rank_histogram(*gaussian(9, 20_000)).values
    assert counts.shape == (10,) and counts.sum() == 20_000
    assert stats.chisquare(counts).pvalue > 6e-5


def test_the_rank_is_the_number_of_draws_below_the_truth():
    draws = field(np.tile([[1.0], [2.0], [3.0]], 4), "sample", "x")
    counts = rank_histogram(draws, field(np.array([0.0, 9.0, 9.0, 2.5]), "x"))
    np.testing.assert_array_equal(counts.values, [1, 0, 1, 2])
    np.testing.assert_array_equal(counts["rank"].values, [0, 1, 2, 3])


def test_ties_are_broken_uniformly_and_reproducibly():
    n = 20_000
    draws, truth = field(np.zeros((4, n)), "sample", "x"), field(np.zeros(n), "x")
    counts = rank_histogram(draws, truth, seed=3)
    assert stats.chisquare(counts.values).pvalue > 6e-5
    xr.testing.assert_identical(counts, rank_histogram(draws, truth, seed=3))
    assert not counts.equals(rank_histogram(draws, truth, seed=4))
    # no seed enters coverage: it averages over the ranks left open
    np.testing.assert_allclose(coverage(draws, truth), [0.5, 0.9], rtol=1e-12)


def test_pooled_ranks_hold_the_rank_of_the_truth_and_of_every_draw():
    draws, truth = gaussian(6, 50)
    ranks = pooled_ranks(draws, truth)
    assert ranks.dims == ("sample", "x") and ranks.sizes["sample"] == 7
    counts = np.bincount(ranks.values[-1].astype(int), minlength=7)
    np.testing.assert_array_equal(counts, rank_histogram(draws, truth).values)
    others = xr.concat([draws[1:], truth.expand_dims("sample")], "sample")
    counts = np.bincount(ranks.values[0].astype(int), minlength=7)
    np.testing.assert_array_equal(counts, rank_histogram(others, draws[0]).values)


# -- the table ---------------------------------------------------------------------------------


def test_the_summary_holds_each_score_averaged_over_cases():
    rng = np.random.default_rng(7)
    draws = xr.Dataset(
        {
            "u": field(rng.normal(size=(20, 3, 5)), "sample", "case", "x"),
            "v": field(rng.normal(size=(20, 3)), "sample", "case", name="v"),
        }
    )
    truth = draws.isel(sample=0, drop=True) + 1.0
    table = summary(draws, truth=truth)
    assert list(table.columns) == ["u", "v"]
    assert table.loc["draws", "u"] == 20 and table.loc["points", "u"] == 15
    for row, function in (("rmse", rmse), ("spread_skill", spread_skill)):
        assert table.loc[row, "u"] == pytest.approx(float(function(draws, truth)["u"]))
    for row, function in (("crps", crps), ("energy_score", energy_score), ("relative_error", relative_error)):
        assert table.loc[row, "u"] == pytest.approx(float(function(draws, truth)["u"].mean()))
    assert table.loc["coverage_90", "v"] == pytest.approx(float(coverage(draws, truth)["v"][1]))
    assert table.loc["sd", "u"] == pytest.approx(float(draws.u.std("sample", ddof=1).mean()))
    assert table.loc["spread", "u"] == pytest.approx(float(spread(draws)["u"]))


def test_the_summary_without_a_truth_holds_what_the_draws_tell():
    table = summary(gaussian(5, 10)[0])
    assert list(table.index) == ["draws", "points", "mean", "sd", "spread"]
    assert table.attrs["units"] == {"u": "K"}


# -- labels and missing values -----------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_a_dataset_are_those_of_its_variables_with_labels_kept(score):
    draws, truth = gaussian(5, 12)
    draws = draws.assign_coords(chain=("sample", np.arange(5)), height=2.0)
    both = xr.Dataset({"u": draws, "w": 2 * draws}).rename(sample="member")
    out = score(both, xr.Dataset({"u": truth, "w": 2 * truth}), sample_dim="member")
    alone = score(draws, truth)
    assert isinstance(out, xr.Dataset) and isinstance(alone, xr.DataArray)
    assert alone.name == "u" and "units" in alone.attrs and "u" in alone.attrs["long_name"]
    assert alone.coords["height"] == 2.0 and "chain" not in alone.coords
    if "x" in alone.dims:
        xr.testing.assert_equal(alone.x.variable, truth.x.variable)
    xr.testing.assert_equal(out["u"].rename(member="sample") if "member" in out.dims else out["u"], alone)


@pytest.mark.parametrize("score", SCORES)
def test_other_labels_are_refused_and_never_joined(score):
    draws, truth = gaussian(5, 12)
    bad = {
        "other coordinates": truth.assign_coords(x=truth.x + 0.5),
        "a part": truth[:-1],
        "another order": truth[::-1],
        "another dim": truth.rename(x="y"),
        "more dims": truth.expand_dims(t=2),
        "fewer dims": truth[0],
        "other units": truth.assign_attrs(units="degC"),
        "a Dataset": truth.to_dataset(),
        "an array": truth.values,
        "draws": draws,
    }
    for truth_like in bad.values():
        with pytest.raises(InputError, match="`truth`"):
            score(draws, truth_like)
    with pytest.raises(InputError, match="'sample'"):
        score(draws.rename(sample="member"), truth)
    with pytest.raises(InputError, match="variables"):
        score(draws.to_dataset(), truth.rename("v").to_dataset())


def test_a_conflicting_scalar_coordinate_is_refused():
    draws, truth = gaussian(5, 12)
    with pytest.raises(InputError, match="'time'"):
        rmse(draws.assign_coords(time=2000), truth.assign_coords(time=2001))


def test_the_order_of_dims_is_free():
    rng = np.random.default_rng(8)
    draws = field(rng.normal(size=(4, 3, 5)), "sample", "x", "y")
    truth = field(rng.normal(size=(3, 5)), "x", "y")
    for score in SCORES:
        turned = score(draws.transpose("y", "sample", "x"), truth.T)
        xr.testing.assert_allclose(turned.transpose(*score(draws, truth).dims), score(draws, truth))


@pytest.mark.parametrize("score", SCORES)
def test_nan_is_refused_or_its_points_are_left_out(score):
    draws, truth = gaussian(5, 12)
    kept = slice(2, None)
    holes, gappy = draws.copy(deep=True), truth.copy(deep=True)
    holes[3, 0], gappy[1] = np.nan, np.nan
    for x, y in ((holes, truth), (draws, gappy)):
        with pytest.raises(InputError, match="NaN"):
            score(x, y)
    out, expected = score(holes, gappy, nan="omit"), score(draws[:, kept], truth[kept])
    if "x" in out.dims:
        assert np.isnan(out.isel(x=[0, 1])).all()
        out = out.isel(x=kept)
    xr.testing.assert_allclose(out, expected)


@pytest.mark.parametrize("score", SCORES)
def test_infinite_values_and_draws_with_no_usable_point_are_always_refused(score):
    draws, truth = gaussian(5, 12)
    wild, failed = draws.copy(deep=True), draws.copy(deep=True)
    wild[0, 0], failed[2] = np.inf, np.nan
    with pytest.raises(InputError, match="finite"):
        score(wild, truth, nan="omit")
    with pytest.raises(InputError, match="failed"):
        score(failed, truth, nan="omit")
    with pytest.raises(InputError, match="`nan`"):
        score(draws, truth, nan="skip")


@pytest.mark.parametrize("score", [crps, energy_score, spread_skill])
def test_one_draw_is_refused_where_two_are_needed(score):
    draws, truth = gaussian(1, 5)
    with pytest.raises(InputError, match="at least 2 draws"):
        score(draws, truth)


def test_complex_draws_bad_levels_and_unknown_dims_are_refused():
    draws, truth = gaussian(5, 12)
    with pytest.raises(InputError, match="imaginary"):
        rmse(draws + 0j, truth + 0j)
    with pytest.raises(InputError, match="levels"):
        coverage(draws, truth, [90])
    with pytest.raises(InputError, match="dims"):
        rmse(draws, truth, dims="z")
    with pytest.raises(InputError, match="dims"):
        rmse(draws, truth, dims=["sample"])


def test_single_precision_draws_are_scored_in_double():
    draws, truth = gaussian(5, 12)
    out = crps(draws.astype("f4"), truth.astype("f4"))
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, crps(draws, truth), atol=2e-6)
