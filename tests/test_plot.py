from __future__ import annotations

import copy

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats

from sciddiff import diagnostics, plot
from sciddiff.errors import InputError

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def agg():
    """Draw off screen, and leave no figure behind."""
    backend = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


def axes(n: int = 1):
    """Axes of a figure that pyplot does not know."""
    return Figure(figsize=(2.0 * n, 2.0)).subplots(1, n)


def picture(draws: int = 6, seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=(draws, 4, 5))
    coords = {"y": ("y", np.arange(4.0), {"units": "m"}), "x": ("x", np.arange(5.0) * 2, {"units": "m"})}
    return xr.DataArray(values, dims=("sample", "y", "x"), coords=coords, name="u", attrs={"units": "K"})


def series(draws: int = 30, seed: int = 1) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=(draws, 24)).cumsum(axis=1)
    time = pd.date_range("2001-01-01", periods=24, freq="MS").to_numpy()
    return xr.DataArray(values, dims=("sample", "time"), coords={"time": time}, name="flow")


def exact(draws: int = 19, points: int = 400, seed: int = 2) -> tuple[xr.DataArray, xr.DataArray]:
    values = np.random.default_rng(seed).normal(size=(draws + 1, points))
    return xr.DataArray(values[1:], dims=("sample", "x")), xr.DataArray(values[0], dims="x")


def mesh(ax) -> np.ndarray:
    return np.asarray(ax.collections[0].get_array())


def edges(area) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of a filled area, at its distinct places."""
    x, y = area.get_paths()[0].vertices.T
    places = np.unique(x)
    return np.array([y[x == p].min() for p in places]), np.array([y[x == p].max() for p in places])


# -- fields ------------------------------------------------------------------------------------


def test_the_panels_hold_truth_observation_mean_sd_and_draws():
    draws = picture()
    truth, observed = picture(1, 5)[0], picture(1, 6)[0]
    panels = plot.fields(draws, truth, observed, count=2)
    titles = ["truth", "observation", "mean", "sd", "draw 0", "draw 1"]
    assert [ax.get_title() for ax in panels] == titles
    expected = [truth, observed, draws.mean("sample"), draws.std("sample", ddof=1), draws[0], draws[1]]
    for ax, values in zip(panels, expected, strict=True):
        np.testing.assert_allclose(mesh(ax), values, rtol=1e-12)


def test_panels_of_the_field_share_a_scale_and_the_sd_has_its_own_from_zero():
    draws, truth = picture(), 3 * picture(1, 5)[0]
    panels = dict(zip(["truth", "mean", "sd", "draw"], plot.fields(draws, truth, count=1), strict=True))
    shown = np.concatenate([truth.values.ravel(), draws[0].values.ravel()])
    for name in ("truth", "mean", "draw"):
        assert panels[name].collections[0].get_clim() == (shown.min(), shown.max())
    sd = draws.std("sample", ddof=1)
    assert panels["sd"].collections[0].get_clim() == pytest.approx((0.0, float(sd.max())))
    labels = [child.get_ylabel() for ax in panels.values() for child in ax.child_axes]
    assert labels == ["sd [K]", "u [K]"]


def test_point_sensors_stand_at_their_places_in_the_colours_of_the_field():
    draws = picture()
    position = {"y": ("sensor", [0.5, 3.0, 1.0]), "x": ("sensor", [8.0, 1.0, 4.0])}
    observed = xr.DataArray([0.1, np.nan, -0.3], dims="sensor", coords=position, name="u")
    seen, mean = plot.fields(draws, observation=observed, count=0)[:2]
    dots = seen.collections[0]
    np.testing.assert_allclose(dots.get_offsets(), [[8.0, 0.5], [4.0, 1.0]])
    np.testing.assert_allclose(dots.get_array(), [0.1, -0.3])
    assert dots.get_clim() == mean.collections[0].get_clim()
    assert seen.get_xlim() == mean.get_xlim() and seen.get_ylim() == mean.get_ylim()


def test_an_observation_of_another_quantity_has_a_scale_of_its_own():
    draws = picture()
    sinogram = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("angle", "detector"), name="counts")
    other_units = picture(1, 6)[0].assign_attrs(units="m/s")
    for observed in (sinogram, other_units):
        seen = plot.fields(draws, observation=observed, count=0)[0]
        assert seen.collections[0].get_clim() == (float(observed.min()), float(observed.max()))
        assert len(seen.child_axes) == 1


def test_coords_are_the_axes_and_a_dim_without_coords_counts_from_the_top():
    mean = plot.fields(picture(), count=0)[0]
    assert mean.get_xlim() == (-1.0, 9.0) and mean.get_ylim() == (-0.5, 3.5)
    assert (mean.get_xlabel(), mean.get_ylabel()) == ("x [m]", "y [m]")
    pixels = plot.fields(picture().drop_vars(["x", "y"]), count=0)[0]
    assert pixels.get_ylim() == (3.5, -0.5)


def test_dims_may_be_dates_words_or_unevenly_spaced():
    draws = picture().assign_coords(x=pd.date_range("2001-01-31", periods=5).to_numpy(), y=list("abcd"))
    mean = plot.fields(draws, count=0)[0]
    assert [t.get_text() for t in mean.get_yticklabels()] == list("abcd")
    assert any("Feb" in t.get_text() for t in mean.get_xticklabels())
    uneven = plot.fields(picture().assign_coords(x=[0.0, 1.0, 3.0, 7.0, 15.0]), count=0)[0]
    corners = uneven.collections[0].get_coordinates()[0, :, 0]
    np.testing.assert_allclose(corners, [-0.5, 0.5, 2.0, 5.0, 11.0, 19.0])


def test_the_order_of_dims_does_not_turn_the_picture():
    draws, truth = picture(), picture(1, 5)[0]
    turned = plot.fields(draws.transpose("y", "sample", "x"), truth.T, count=1)
    for one, other in zip(turned, plot.fields(draws, truth, count=1), strict=True):
        np.testing.assert_array_equal(mesh(one), mesh(other))


def test_a_point_that_is_missing_in_one_draw_is_shown_as_missing():
    draws = picture()
    draws[3, 1, 2] = np.nan
    mean, sd = plot.fields(draws, count=0)
    assert np.ma.getmaskarray(mean.collections[0].get_array()).sum() == 1
    assert np.ma.getmaskarray(sd.collections[0].get_array())[1, 2]


def test_fields_go_into_the_axes_they_are_given():
    given = axes(5)
    panels = plot.fields(picture().to_dataset(), count=2, axes=given)
    assert all(one is other for one, other in zip(panels, given[:4], strict=True))
    with pytest.raises(InputError, match="axes"):
        plot.fields(picture(), count=5, axes=given)


def test_fields_refuse_what_they_cannot_draw():
    draws = picture()
    with pytest.raises(InputError, match="case"):
        plot.fields(draws.expand_dims(case=2, axis=1))
    with pytest.raises(InputError, match="coordinate 'x'"):
        plot.fields(draws, draws[0].assign_coords(x=draws.x + 1))
    with pytest.raises(InputError, match="sortby"):
        plot.fields(draws.isel(x=[0, 2, 1, 3, 4]))
    with pytest.raises(InputError, match="positions"):
        plot.fields(draws, observation=xr.DataArray([1.0, 2.0], dims="sensor"))
    with pytest.raises(InputError, match="'v'"):
        plot.fields(xr.Dataset({"u": draws, "v": draws}))
    with pytest.raises(InputError, match="finite"):
        plot.fields(draws.where(draws.x > 0, np.inf))
    with pytest.raises(InputError, match="'sample'"):
        plot.fields(draws.rename(sample="member"))


# -- fan ---------------------------------------------------------------------------------------


def test_the_fan_is_numpys_quantiles_with_truth_and_observation():
    draws = series()
    truth, observed = draws[0], draws[1, ::5].copy()
    observed[1] = np.nan
    ax = plot.fan(draws, truth=truth, observation=observed, levels=(0.5, 0.9))
    median, true, seen = ax.lines
    np.testing.assert_allclose(median.get_ydata(), np.quantile(draws, 0.5, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(true.get_ydata(), truth)
    np.testing.assert_array_equal(seen.get_ydata(), observed)
    np.testing.assert_allclose(seen.get_xdata(), matplotlib.dates.date2num(observed.time))
    for area, level in zip(ax.collections, (0.9, 0.5), strict=True):
        low, high = edges(area)
        np.testing.assert_allclose(low, np.quantile(draws, 0.5 - level / 2, axis=0), rtol=1e-12)
        np.testing.assert_allclose(high, np.quantile(draws, 0.5 + level / 2, axis=0), rtol=1e-12)


def test_dates_make_a_date_axis():
    ax = plot.fan(series())
    ax.figure.canvas.draw()
    assert "2002" in {t.get_text() for t in ax.get_xticklabels()}


def test_time_differences_are_drawn_in_one_unit_that_the_label_names():
    lead = np.arange(24).astype("timedelta64[h]").astype("timedelta64[ns]")
    draws = series().rename(time="lead").assign_coords(lead=lead)
    ax = plot.fan(draws, observation=draws[0, :2])
    assert ax.get_xlabel() == "lead [hours]"
    np.testing.assert_allclose(ax.lines[0].get_xdata(), np.arange(24))
    np.testing.assert_allclose(ax.lines[1].get_xdata(), [0, 1])


def test_pandas_observations_before_the_draws_stay_in_view():
    draws = series()
    past = pd.Series([1.0, 2.0], index=pd.to_datetime(["2000-06-01", "2000-07-01"]), name="level")
    for observed in (past, past.to_frame("flow")):
        ax = plot.fan(draws, observation=observed)
        assert ax.get_xlim()[0] == matplotlib.dates.date2num(past.index[0])
        np.testing.assert_array_equal(ax.lines[1].get_ydata(), past)


def test_nan_leaves_a_gap_in_the_fan():
    draws = series()
    draws[4, 10] = np.nan
    assert np.isnan(plot.fan(draws).lines[0].get_ydata()).tolist().index(True) == 10


def test_the_fan_refuses_other_dims_places_and_levels():
    with pytest.raises(InputError, match="1 dim "):
        plot.fan(picture())
    with pytest.raises(InputError, match="levels"):
        plot.fan(series(), levels=[50])
    with pytest.raises(InputError, match="`observation`"):
        plot.fan(series(), observation=xr.DataArray([1.0], dims="time", coords={"time": [3.0]}))
    with pytest.raises(InputError, match="coordinate 'time'"):
        plot.fan(series(), truth=series()[0].assign_coords(time=series().time + np.timedelta64(1, "D")))
    calendar = xr.date_range("2001-01-01", periods=24, calendar="standard").to_period("D")
    with pytest.raises(InputError, match="to_timestamp"):
        plot.fan(series().assign_coords(time=np.array(calendar, dtype=object)))


# -- calibration -------------------------------------------------------------------------------


def test_the_bars_are_the_rank_histogram_relative_to_a_flat_one():
    draws, truth = exact()
    counts = diagnostics.rank_histogram(draws, truth).values
    ax = plot.rank_histogram(draws, truth)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], counts / 20)
    ax = plot.rank_histogram(draws, truth, bins=5)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, counts.reshape(5, 4).sum(axis=1) / 80)


def test_the_binomial_band_is_that_of_independent_points():
    draws, truth = exact()
    low, high = edges(plot.rank_histogram(draws, truth, band="binomial").collections[0])
    expected = stats.binom.ppf([0.05, 0.95], 400, 1 / 20) / 20
    np.testing.assert_allclose([low[1:-1].min(), high[1:-1].max()], expected)
    band = plot.coverage(draws, truth, band="binomial").collections[0]
    middle = [edge[10] for edge in edges(band)]
    np.testing.assert_allclose(middle, stats.binom.ppf([0.05, 0.95], 400, 0.5) / 400)


def test_the_coverage_curve_is_the_coverage():
    draws, truth = exact()
    ax = plot.coverage(draws, truth, levels=(0.9, 0.5))
    curve = ax.lines[1]
    np.testing.assert_allclose(curve.get_xdata(), [0.5, 0.9])
    np.testing.assert_allclose(curve.get_ydata(), diagnostics.coverage(draws, truth).values)


def constant(seed: int, draws: int = 39, points: int = 50) -> tuple[xr.DataArray, xr.DataArray]:
    """Exact draws of a field that has one value all over: a single trial, not ``points`` of them."""
    level = np.random.default_rng(seed).normal(size=(draws + 1, 1))
    values = level + 1e-9 * np.random.default_rng(seed + 1000).normal(size=(draws + 1, points))
    return xr.DataArray(values[1:], dims=("sample", "x")), xr.DataArray(values[0], dims="x")


def inside(band: str, seed: int) -> bool:
    """Whether the coverage at one half lies in the band."""
    ax = plot.coverage(*constant(seed), levels=[0.5], band=band, ax=axes())
    low, high = edges(ax.collections[0])
    return bool(low[1] <= ax.lines[1].get_ydata()[0] <= high[1])


def test_the_exchange_band_knows_that_the_points_of_a_field_err_together():
    trials = range(40)
    exchange = sum(inside("exchange", s) for s in trials)
    binomial = sum(inside("binomial", s) for s in trials)
    assert exchange >= stats.binom.ppf(1e-4, 40, 0.9)
    # each trial covers all points or none
    assert binomial == 0


def test_too_narrow_draws_leave_both_bands():
    draws, truth = exact(39, 2000)
    for band in ("exchange", "binomial"):
        ax = plot.coverage(0.5 * draws, truth, band=band)
        low, _ = edges(ax.collections[0])
        assert np.all(ax.lines[1].get_ydata()[3:] < low[1:-1][3:])
        bars = plot.rank_histogram(0.5 * draws, truth, band=band)
        _, high = edges(bars.collections[0])
        assert bars.patches[0].get_height() > high[0]


def test_calibration_plots_refuse_bad_settings_and_labels():
    draws, truth = exact()
    for function in (plot.coverage, plot.rank_histogram):
        with pytest.raises(InputError, match="band"):
            function(draws, truth, band="normal")
        with pytest.raises(InputError, match="levels"):
            function(draws, truth, level=90)
        with pytest.raises(InputError, match="`truth`"):
            function(draws, truth[:-1])
        with pytest.raises(InputError, match="NaN"):
            function(draws.where(draws < 2), truth)
        assert function(draws.where(draws < 2), truth, nan="omit").lines
    with pytest.raises(InputError, match="bins"):
        plot.rank_histogram(draws, truth, bins=21)


# -- loss --------------------------------------------------------------------------------------


def test_loss_draws_the_curves_of_any_history():
    steps, values = [10, 20, 30], [3.0, 2.0, 1.0]
    table = pd.DataFrame({"training": values}, index=pd.Index(steps, name="step"))
    for history in ({"step": steps, "training": values}, table, xr.Dataset.from_dataframe(table)):
        ax = plot.loss(history)
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.transpose([steps, values]))
        assert ax.get_yscale() == "log"
    ax = plot.loss([3.0, np.nan, -1.0])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 3], [3, -1]])
    assert ax.get_yscale() == "linear"


def test_loss_draws_training_and_validation_unless_told_otherwise():
    history = {"step": [1, 2], "training": [3.0, 2.0], "rate": [1e-3, 1e-4], "validation": [3.5, 2.5]}

    def drawn(**kwargs):
        return [line.get_label() for line in plot.loss(history, **kwargs).lines]

    assert drawn() == ["training", "validation"]
    assert drawn(columns=["rate", "training"]) == ["rate", "training"]
    assert len(plot.loss({"a": [1.0], "b": [2.0]}).lines) == 2
    for columns in (["rat"], []):
        with pytest.raises(InputError, match="columns"):
            plot.loss(history, columns=columns)


def test_a_long_history_is_drawn_in_pale_under_its_running_median():
    values = np.random.default_rng(0).normal(size=1000) + 10
    values[500] = 1e6
    pale, median = plot.loss(values).lines
    np.testing.assert_array_equal(pale.get_ydata(), values)
    assert median.get_ydata()[500] == np.median(values[490:511])


def test_loss_refuses_curves_of_unequal_length():
    for history in ({"a": [1.0], "b": [1.0, 2.0]}, {"step": [1, 2], "a": [1.0]}, {}, []):
        with pytest.raises(InputError, match="history"):
            plot.loss(history)


# -- manners -----------------------------------------------------------------------------------

CALLS = {
    "fan": lambda ax: plot.fan(series(), truth=series()[0], observation=series()[1, ::3], ax=ax),
    "rank_histogram": lambda ax: plot.rank_histogram(*exact(), ax=ax),
    "coverage": lambda ax: plot.coverage(*exact(), ax=ax),
    "loss": lambda ax: plot.loss([3.0, 2.0, 1.0], ax=ax),
    "fields": lambda ax: plot.fields(
        picture(), count=0, axes=None if ax is None else ax.figure.subplots(1, 2)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_plot_into_given_axes_returns_them_and_changes_nothing_global(name):
    ax = axes()
    before, size = copy.deepcopy(dict(matplotlib.rcParams)), ax.figure.get_size_inches().tolist()
    out = CALLS[name](ax)
    assert name == "fields" or out is ax
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    assert ax.figure.get_size_inches().tolist() == size


@pytest.mark.parametrize("name", CALLS)
def test_a_plot_without_axes_makes_one_figure_that_can_be_drawn(name):
    out = CALLS[name](None)
    assert len(plt.get_fignums()) == 1
    np.atleast_1d(out)[0].figure.canvas.draw()


def test_nothing_of_the_callers_is_changed():
    draws, truth = picture(), picture(1, 5)[0]
    kept = draws.copy(deep=True), truth.copy(deep=True)
    plot.fields(draws, truth)
    xr.testing.assert_identical(draws, kept[0])
    xr.testing.assert_identical(truth, kept[1])
