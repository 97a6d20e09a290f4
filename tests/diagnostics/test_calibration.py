from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import sciddiff as sd
from sciddiff.diagnostics import coverage, rank_histogram
from sciddiff.diagnostics.calibration import (
    c2st,
    coverage_test,
    hits_p_value,
    log_likelihood,
    sbc,
    tarp,
    uniformity_band,
    uniformity_p_value,
)
from sciddiff.errors import InputError, MissingDependencyError
from sciddiff.plot import rank_ecdf
from sciddiff.plot.style import BLUE, VERMILION

TESTS = [sbc, tarp, coverage_test]


def cases(draws: int, n: int, *shape: int, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Exact draws: independent standard normals around a mean of every case's own."""
    rng = np.random.default_rng(seed)
    x = 2.0 * rng.normal(size=(n, *shape)) + rng.normal(size=(draws + 1, n, *shape))
    dims = ("case", "x", "t")[: 1 + len(shape)]
    coords = {"case": np.arange(n) + 10}
    return (
        xr.DataArray(x[1:], dims=("sample", *dims), coords=coords, name="u"),
        xr.DataArray(x[0], dims=dims, coords=coords, name="u"),
    )


# -- the p-value of uniform ranks ---------------------------------------------------------------


@pytest.mark.parametrize(("n", "draws"), [(1, 4), (3, 3), (5, 2), (4, 5)])
def test_uniformity_p_value_is_the_chance_of_being_as_small_over_all_outcomes(n, draws):
    p = Counter(uniformity_p_value(np.array(r), draws) for r in itertools.product(range(draws + 1), repeat=n))
    total, so_far = (draws + 1) ** n, 0
    for value in sorted(p):
        so_far += p[value]
        assert value == pytest.approx(so_far / total, rel=1e-6)


@pytest.mark.parametrize(("n", "draws"), [(80, 19), (300, 99), (100, 400)])
def test_uniformity_p_value_is_uniform_for_uniform_ranks(n, draws):
    rng = np.random.default_rng(0)
    p = np.array([uniformity_p_value(rng.integers(0, draws + 1, n), draws) for _ in range(400)])
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_uniformity_p_value_is_tiny_and_positive_where_rounding_leaves_nothing():
    assert 0.0 < uniformity_p_value(np.zeros(60, dtype=int), 99) < 1e-15


def test_uniformity_p_value_does_not_know_up_from_down():
    r = np.random.default_rng(1).integers(0, 16, 70)
    assert uniformity_p_value(r, 19) == pytest.approx(uniformity_p_value(19 - r, 19), rel=1e-8)


@pytest.mark.parametrize(("n", "draws"), [(40, 9), (200, 99)])
def test_ranks_leave_the_band_exactly_where_their_p_value_is_below_its_level(n, draws):
    rng = np.random.default_rng(0)
    z, low, high = uniformity_band(n, draws, 0.8)
    for _ in range(100):
        ranks = rng.integers(0, draws + 1, n)
        count = (ranks[:, None] < np.rint(z * (draws + 1))).sum(0)
        inside = bool(((low <= count) & (count <= high)).all())
        assert inside == (uniformity_p_value(ranks, draws) > 0.2)


def test_the_curve_of_sbc_is_the_share_of_ranks_below_and_red_where_it_leaves_the_band():
    from matplotlib.colors import same_color
    from matplotlib.figure import Figure

    draws, truth = cases(19, 200, 1)
    ax = rank_ecdf(sbc(0.4 * draws, 0.4 * truth), ax=Figure().subplots())
    curve = ax.lines[1]
    z = np.arange(1, 20) / 20
    below = [((draws < truth).sum("sample").values[:, 0] < i).mean() for i in range(1, 20)]
    np.testing.assert_allclose(curve.get_xdata(), z)
    np.testing.assert_allclose(curve.get_ydata(), below - z, atol=1e-12)
    assert same_color(curve.get_color(), BLUE)
    shifted = rank_ecdf(tarp(draws, truth, references=truth * 0 - 1e3), ax=Figure().subplots())
    assert same_color(shifted.lines[1].get_color(), BLUE)
    wide = rank_ecdf(sbc(truth + 3 * (draws - truth), truth + 1), ax=Figure().subplots())
    assert same_color(wide.lines[1].get_color(), VERMILION)
    with pytest.raises(InputError, match="result"):
        rank_ecdf(draws)
    with pytest.raises(InputError, match="level"):
        rank_ecdf(sbc(draws, truth), level=1.0)


@pytest.mark.parametrize("ranks", [[-1, 2], [0, 20], [0.5], [[1, 2]], []])
def test_ranks_that_are_none_are_refused(ranks):
    with pytest.raises(InputError, match="ranks"):
        uniformity_p_value(np.array(ranks), 19)


# -- sbc ----------------------------------------------------------------------------------------


def test_sbc_ranks_are_the_numbers_of_draws_below_the_truth():
    draws, truth = cases(9, 20, 2)
    out = sbc(draws, truth, projections=0, products=0)
    for name, x in (("u[0]", 0), ("u[1]", 1)):
        below = (draws.isel(x=x) < truth.isel(x=x)).sum("sample")
        np.testing.assert_array_equal(out["rank"].sel(quantity=name), below)


def test_sbc_ranks_a_quantity_of_the_caller_and_products_by_their_definitions():
    draws, truth = cases(9, 20, 2)
    out = sbc(draws, truth, quantities={"range": lambda u: u.max("x") - u.min("x")})
    spans = [u.max("x") - u.min("x") for u in (draws, truth)]
    np.testing.assert_array_equal(
        out["rank"].sel(quantity="range"), (spans[0] < spans[1]).sum("sample").values
    )
    pool = xr.concat([draws, truth], "sample")
    product = (pool - pool.mean("sample")).prod("x")
    below = (product[:-1] < product[-1]).sum("sample")
    np.testing.assert_array_equal(out["rank"].sel(quantity="u[0] * u[1]"), below)


def test_sbc_labels_its_quantities_and_keeps_the_cases():
    draws, truth = cases(9, 20, 3, 2)
    out = sbc(draws, truth, projections=4, products=5, quantities={"sum": lambda u: u.sum(("x", "t"))})
    assert Counter(out["kind"].values) == {"marginal": 6, "projection": 4, "product": 5, "sum": 1}
    assert "u[2,1]" in out["quantity"]
    np.testing.assert_array_equal(out["case"], np.arange(20) + 10)
    assert out.attrs["draws"] == 9
    assert out.attrs["cases"] == 20
    assert float(out.p_value) == pytest.approx(min(1.0, 16 * float(out.p_quantity.min())))


def test_sbc_takes_the_marginals_of_a_large_field_that_it_is_asked_for():
    draws, truth = cases(5, 10, 400)
    kinds = Counter(sbc(draws, truth, marginals=7, projections=2, products=3)["kind"].values)
    assert kinds == {"marginal": 7, "projection": 2, "product": 3}


@pytest.mark.parametrize("name", ["projection", "product"])
def test_units_do_not_matter(name):
    draws, truth = cases(19, 60, 2)
    x = xr.Dataset({"u": draws.isel(x=0), "w": draws.isel(x=1)})
    y = xr.Dataset({"u": truth.isel(x=0), "w": truth.isel(x=1)})
    one = sbc(x, y)
    other = sbc(x.assign(w=1e6 * x.w), y.assign(w=1e6 * y.w))
    keep = one["kind"] == name
    np.testing.assert_array_equal(one["rank"][keep], other["rank"][keep])


def test_equal_draws_and_truth_have_random_ranks():
    draws, truth = cases(9, 2000, 1)
    ranks = sbc(0 * draws, 0 * truth)["rank"].values.ravel()
    assert stats.chisquare(np.bincount(ranks, minlength=10)).pvalue > 1e-4


@pytest.mark.parametrize("test", TESTS)
def test_the_order_of_draws_and_dims_does_not_matter(test):
    draws, truth = cases(9, 30, 3, 2)
    one = test(draws, truth)
    other = test(draws[::-1].transpose("t", "case", "x", "sample"), truth.transpose("x", "case", "t"))
    xr.testing.assert_equal(one, other)


@pytest.mark.parametrize("test", TESTS)
def test_a_seed_decides_all_of_it(test):
    draws, truth = cases(9, 30, 200)
    xr.testing.assert_identical(test(draws, truth, seed=3), test(draws, truth, seed=3))
    assert not test(draws, truth, seed=3).equals(test(draws, truth, seed=4))


@pytest.mark.parametrize("test", TESTS)
def test_padding_is_left_out_where_asked_and_refused_elsewhere(test):
    draws, truth = cases(9, 30, 3)
    padded = truth.copy()
    padded[4, 1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        test(draws, padded)
    left, alone = test(draws, padded, nan="omit"), test(draws.isel(x=[0, 2]), truth.isel(x=[0, 2]))
    # a coordinate's name is that of its place in the whole field
    xr.testing.assert_equal(
        left.drop_vars("quantity", errors="ignore"), alone.drop_vars("quantity", errors="ignore")
    )


def test_given_references_may_be_padded_with_the_truth():
    draws, truth = cases(9, 30, 3)
    padded = truth.copy()
    padded[:, 1] = np.nan
    references = xr.ones_like(padded).where(padded.notnull())
    left = tarp(draws, padded, references=references, nan="omit")
    alone = tarp(draws.isel(x=[0, 2]), truth.isel(x=[0, 2]), references=references.isel(x=[0, 2]))
    np.testing.assert_array_equal(left["rank"], alone["rank"])


@pytest.mark.parametrize("test", TESTS)
def test_a_single_case_is_refused_with_advice(test):
    draws, truth = cases(9, 1, 3)
    with pytest.raises(InputError, match="batch_dim"):
        test(draws, truth)
    with pytest.raises(InputError, match="batch_dim"):
        test(draws.isel(case=0), truth.isel(case=0))


@pytest.mark.parametrize("test", TESTS)
def test_other_labels_are_refused(test):
    draws, truth = cases(9, 20, 3)
    with pytest.raises(InputError, match="case"):
        test(draws, truth.assign_coords(case=np.arange(20)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"marginals": -1}, "marginals"),
        ({"projections": 1.5}, "projections"),
        ({"marginals": 0, "projections": 0, "products": 0}, "something to rank"),
        ({"quantities": {"mean": lambda u: u.mean()}}, "mean"),
        ({"quantities": {"values": lambda u: u.values}}, "values"),
        ({"quantities": {"log": lambda u: u.isel(x=0) / 0.0}}, "finite"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_of_sbc_are_refused(settings, words):
    draws, truth = cases(9, 20, 3)
    with pytest.raises(InputError, match=words), np.errstate(divide="ignore"):
        sbc(draws, truth, **settings)


def test_the_log_likelihood_of_labelled_draws_is_that_of_their_case():
    space = sd.Space({"x": 2})
    prior = sd.GaussianPrior(space, sd.covariance.white((2,)))
    operator = sd.operators.Points.at_indices(space, [[0]])
    y = np.array([[1.0], [-2.0], [0.5]])
    posterior = prior.given(y, operator, sd.noise.Gaussian(0.5), batch_dim="case")
    draws = posterior.sample(4, seed=0)
    value = log_likelihood(posterior)(draws)
    expected = stats.norm.logpdf(y[None, :, 0], draws["u"].values[..., 0], 0.5)
    assert value.dims == ("sample", "case")
    np.testing.assert_allclose(value.values, expected, rtol=1e-10)
    np.testing.assert_allclose(log_likelihood(posterior)(draws.isel(sample=2)), expected[2], rtol=1e-10)


def test_the_log_likelihood_of_one_case_is_refused():
    space = sd.Space({"x": 2})
    operator = sd.operators.Points.at_indices(space, [[0]])
    posterior = sd.GaussianPrior(space, sd.covariance.white((2,))).given(
        [1.0], operator, sd.noise.Gaussian(1.0)
    )
    with pytest.raises(InputError, match="batch_dim"):
        log_likelihood(posterior)


# -- tarp ---------------------------------------------------------------------------------------


def test_tarp_seen_from_far_away_ranks_the_coordinate():
    draws, truth = cases(9, 40, 1)
    out = tarp(draws, truth, references=xr.full_like(truth, 1e4))
    above = (draws > truth).sum("sample").values[:, 0]
    np.testing.assert_array_equal(out["rank"], above)


def test_tarp_measures_references_in_the_units_of_the_draws():
    draws, truth = cases(19, 40, 2)
    ref = truth.copy(data=np.random.default_rng(3).normal(size=truth.shape))
    stretch = xr.DataArray([1.0, 50.0], dims="x")
    one = tarp(draws, truth, references=ref)
    other = tarp(draws * stretch + 7.0, truth * stretch + 7.0, references=ref * stretch + 7.0)
    np.testing.assert_array_equal(one["rank"], other["rank"])


def test_the_expected_coverage_of_tarp_is_the_share_of_ranks_below():
    draws, truth = cases(9, 50, 2)
    out = tarp(draws, truth)
    assert out["coverage"].values[0] == 0.0
    assert out["coverage"].values[-1] == 1.0
    for j, level in enumerate(out["level"].values):
        assert level == pytest.approx(j / 10)
        assert float(out["coverage"][j]) == pytest.approx(float((out["rank"] < j).mean()))


def test_references_labelled_otherwise_are_refused():
    draws, truth = cases(9, 20, 3)
    with pytest.raises(InputError, match="references"):
        tarp(draws, truth, references=truth.isel(x=[0, 1]))


# -- coverage -----------------------------------------------------------------------------------


def test_tossed_coverage_is_the_averaged_one_within_its_coin():
    draws, truth = cases(10, 4000, 1)
    tossed = coverage_test(draws, truth, levels=(0.5, 0.9))["share"].values[:, 0]
    averaged = coverage(draws, truth, levels=(0.5, 0.9)).values
    # the coin of one case has at most variance 1/4
    assert np.abs(tossed - averaged).max() < 4 * 0.5 / np.sqrt(4000)


def test_coverage_p_values_are_binomial():
    draws, truth = cases(19, 100, 1)
    out = coverage_test(draws, truth, levels=(0.5,))
    hits = round(100 * float(out["share"][0, 0]))
    p = 2 * min(stats.binom.cdf(hits, 100, 0.5), stats.binom.sf(hits - 1, 100, 0.5))
    assert float(out["p_quantity"][0, 0]) == pytest.approx(min(1.0, p))
    assert float(out.p_value) == pytest.approx(min(1.0, p))


def test_levels_outside_the_unit_interval_are_refused():
    draws, truth = cases(9, 20, 1)
    with pytest.raises(InputError, match="levels"):
        coverage_test(draws, truth, levels=(90,))


def test_ranks_agree_with_the_rank_histogram():
    draws, truth = cases(9, 200, 1)
    counts = np.bincount(sbc(draws, truth)["rank"].values[0], minlength=10)
    np.testing.assert_array_equal(counts, rank_histogram(draws, truth).values)


# -- c2st ---------------------------------------------------------------------------------------


def sets(n: int, d: int, shift: float, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n, d))
    return xr.DataArray(a + shift, dims=("sample", "x")), xr.DataArray(b, dims=("sample", "x"))


def test_c2st_finds_the_bayes_accuracy_of_two_normals():
    out = c2st(*sets(400, 1, 2.0))
    bayes = stats.norm.cdf(1.0)
    # a classifier cannot beat it but by chance; a smooth one on a line loses little to it
    sd_of_mean = np.sqrt(bayes * (1 - bayes) / 800)
    assert bayes - 0.03 - 4 * sd_of_mean < float(out.accuracy) < bayes + 4 * sd_of_mean
    assert float(out.p_value) < 1e-6
    assert float(out.accuracy) == pytest.approx(float(out.accuracy_fold.mean()))


def test_c2st_of_one_law_is_a_coin():
    out = c2st(*sets(200, 2, 0.0))
    assert abs(float(out.accuracy) - 0.5) < 0.12
    assert float(out.p_value) > 1e-3


def test_the_p_value_of_hits_holds_its_level_for_labels_that_mean_nothing():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 200)
    p = np.array([hits_p_value(rng.permutation(label), rng.random(400) < 0.3) for _ in range(2000)])
    for level in (0.05, 0.5):
        # the law is discrete, with steps of at most 1 / (sd sqrt(2 pi)) where the sd is 4.6
        step = 1 / (4.6 * np.sqrt(2 * np.pi))
        alarms = (p <= level).sum()
        assert stats.binom.sf(alarms - 1, 2000, level) > 1e-4
        assert stats.binom.cdf(alarms, 2000, max(0.0, level - step)) > 1e-4


def test_c2st_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(MissingDependencyError, match="scikit-learn"):
        c2st(*sets(40, 1, 0.0))


def test_c2st_refuses_sets_that_do_not_compare():
    a, b = sets(40, 2, 0.0)
    with pytest.raises(InputError, match="reference"):
        c2st(a, b.isel(sample=slice(30)))
    with pytest.raises(InputError, match="finite"):
        c2st(a.where(a < 1.0), b)
    with pytest.raises(InputError, match="folds"):
        c2st(a, b, folds=1)
