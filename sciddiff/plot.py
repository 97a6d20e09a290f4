"""Pictures of labelled draws: fields, fans, and calibration against a truth.

Each function draws into the axes it is given, or into one new figure, and returns those axes; nothing is
shown, saved or set globally. Fonts and sizes are the user's own (rcParams); colours are safe for
colour-blind readers (viridis and cividis; Okabe and Ito, 2008, "Color universal design").

The band in the calibration plots says how far exact draws would stray by chance. If draws and truth are
exchangeable, each draw could have been the truth, so the band is what the figure does with each draw in
the truth's place: ``band="exchange"``, the default. It knows that neighbouring points of a field err
together. ``band="binomial"`` takes every point for an independent trial; it is right for many independent
cases and far too narrow for the points of one smooth field.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from sciddiff.diagnostics import ranks
from sciddiff.diagnostics.labels import check_draws, check_labels
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.cm import ScalarMappable

    AnyLabelled: TypeAlias = "xr.Dataset | xr.DataArray"
    History: TypeAlias = "xr.Dataset | pd.DataFrame | Mapping[str, Sequence[float]] | Sequence[float]"

__all__ = ["coverage", "fan", "fields", "loss", "rank_histogram"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Band: TypeAlias = Literal["exchange", "binomial"] | None

# Okabe and Ito's palette, without its yellow and black
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY = "0.85"


def fields(
    draws: AnyLabelled,
    truth: AnyLabelled | None = None,
    observation: AnyLabelled | None = None,
    *,
    variable: Hashable | None = None,
    count: int = 3,
    sample_dim: str = "sample",
    cmap: str = "viridis",
    sd_cmap: str = "cividis",
    axes: Any = None,
) -> Array:
    """Panels of a two-dimensional field: truth, observation, mean, standard deviation, first draws.

    All panels of the field share one colour scale, that of truth, mean and draws (an observation beyond
    it shows in the scale's pointed ends); the standard deviation has its own, from 0. Missing values are
    grey. Dims are drawn along their coords, the first upwards; a dim without coords counts pixels, and
    then the first row is on top.

    Args:
        draws: Dataset or DataArray, ``sample_dim`` and two more dims; select a case first.
        truth: the same without ``sample_dim``.
        observation: a field on the same two dims, on any grid; or point sensors, one dim with the coords of
            both field dims along it; or anything else in two dims. Where it is another quantity (its
            name or units differ), it gets a colour scale of its own.
        variable: which variable of a Dataset; may be left out if there is one.
        count: how many draws to show, at most.
        sample_dim: the dim of the draws.
        cmap: colour map of the field.
        sd_cmap: colour map of the standard deviation.
        axes: array of Axes, one a panel; None makes a figure. Scales stand to the right of panels, so that
            a figure of yours needs ``layout="constrained"``.

    Returns:
        Array of the panels' Axes, in the order above.

    Raises:
        InputError: not two dims beside ``sample_dim``, labels that differ, unsorted coords, too few axes.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> draws = xr.DataArray(np.random.default_rng(0).normal(size=(8, 4, 5)), dims=("sample", "y", "x"))
        >>> axes = fields(draws, count=2)
        >>> [ax.get_title() for ax in axes]
        ['mean', 'sd', 'draw 0', 'draw 1']
        >>> plt.close(axes[0].figure)
    """
    x, y = _chosen(draws, truth, variable, sample_dim, ndim=2)
    panels = _panels(x, y, observation, count, sample_dim)
    drawn = _grid_of_axes(panels) if axes is None else _given_axes(panels, axes)
    shared = _range([p.values for p in panels if p.scale == "field"])
    limits = {"field": shared, "beside": shared, "sd": (0.0, None), "own": (None, None)}
    images = []
    for panel, ax in zip(panels, drawn, strict=True):
        colours = sd_cmap if panel.scale == "sd" else cmap
        images.append(_image(ax, panel, panels[-1].values, limits[panel.scale], colours))
        ax.set_title(panel.title, fontsize="medium")
    short = sum(p.row for p in panels) < sum(1 - p.row for p in panels)
    _colourbars(panels, drawn, images, shared, room=axes is None and short)
    return drawn


@dataclass(frozen=True, eq=False)
class _Panel:
    """What one panel of `fields` shows.

    Panels of scale "field" set and share one scale; those "beside" take it as it is.
    """

    title: str
    values: xr.DataArray
    scale: Literal["field", "beside", "sd", "own"]
    label: str
    row: int = 0
    sensors: bool = False


def _panels(
    x: xr.DataArray, truth: xr.DataArray | None, observation: AnyLabelled | None, count: int, sample_dim: str
) -> list[_Panel]:
    name = _label(x)
    dims = [d for d in x.dims if d != sample_dim]
    out = [] if truth is None else [_Panel("truth", truth.transpose(*dims), "field", name)]
    if observation is not None:
        out.append(_observed(observation, x, dims))
    # A point that is NaN in some draw is shown as missing, not as the mean of the others.
    out.append(_Panel("mean", x.mean(sample_dim, skipna=False, keep_attrs=True), "field", name))
    if x.sizes[sample_dim] > 1:
        sd = x.std(sample_dim, ddof=1, skipna=False, keep_attrs=True)
        out.append(_Panel("sd", sd, "sd", _named("sd", x.attrs.get("units"))))
    for i in range(min(count, x.sizes[sample_dim])):
        title = f"draw {x[sample_dim].values[i]}"
        out.append(_Panel(title, x.isel({sample_dim: i}).transpose(*dims), "field", name, row=1))
    return out


def _observed(observation: AnyLabelled, x: xr.DataArray, dims: list[Hashable]) -> _Panel:
    y = _one_variable("observation", observation, x.name)
    _range([y], "observation")
    units = [v.attrs.get("units") for v in (x, y)]
    same = y.name in (None, x.name) and (None in units or units[0] == units[1])
    scale: Literal["beside", "own"] = "beside" if same else "own"
    if y.ndim == 1 and all(d in y.coords and y.coords[d].dims == y.dims for d in dims):
        return _Panel("observation", y, scale, _label(y), sensors=True)
    if y.ndim != 2:
        raise InputError(
            "observation",
            expected=f"two dims, or point sensors: one dim with the coords {dims} along it",
            got=f"dims {y.dims} with coords {list(y.coords)}",
            fix=f"give the sensors their positions: .assign_coords({dims[0]}=({y.dims[:1]}, ...), ...)",
        )
    if set(y.dims) == set(dims):
        return _Panel("observation", y.transpose(*dims), scale, _label(y))
    return _Panel("observation", y, "own", _label(y))


def _given_axes(panels: list[_Panel], axes: Any) -> Array:
    given = np.asarray(axes, dtype=object).ravel()
    if len(given) < len(panels):
        titles = [p.title for p in panels]
        raise InputError(
            "axes", expected=f"{len(panels)} axes, for {titles}", got=len(given), fix="make more"
        )
    return given[: len(panels)]


def _grid_of_axes(panels: list[_Panel]) -> Array:
    """One new figure: draws in the lower row, everything else above; ticks are labelled at the rim only."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    field = panels[-1].values
    rows = [[p for p in panels if p.row == r] for r in (0, 1)]
    columns, last = max(len(row) for row in rows), int(bool(rows[1]))
    alone = {p.title: not p.sensors and p.values.dims != field.dims for p in panels}
    ratio = min(max(_height_over_width(field) or 0.8, 0.4), 2.0)
    extra = 0.5 * any(alone.values())
    size = (1.75 * columns + 0.8 + extra, (last + 1) * (1.5 * ratio + 0.3) + 0.45 + extra * last)
    figure = plt.figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08))
    grid = figure.add_gridspec(last + 1, columns)
    drawn = []
    for panel in panels:
        column = rows[panel.row].index(panel)
        ax = figure.add_subplot(grid[panel.row, column])
        free = alone[panel.title]
        ax.tick_params(labelleft=free or column == 0, labelbottom=free or panel.row == last)
        drawn.append(ax)
    return np.array(drawn, dtype=object)


def _image(
    ax: Axes,
    panel: _Panel,
    field: xr.DataArray,
    limits: tuple[float | None, float | None],
    cmap: str,
) -> ScalarMappable:
    """One panel, framed as ``field`` is if it is point sensors."""
    import matplotlib

    colours = matplotlib.colormaps[cmap].with_extremes(bad=GREY)
    framed = field if panel.sensors else panel.values
    down, across = framed.dims
    x, y = _axis(framed, across), _axis(framed, down)
    shared: dict[str, Any] = {"cmap": colours, "vmin": limits[0], "vmax": limits[1]}
    if panel.sensors:
        known = panel.values.dropna(panel.values.dims[0])
        positions = [_numbers(known[d].values, d)[0] for d in (across, down)]
        size = float(np.clip(3000 / max(known.size, 1), 3, 30))
        image: ScalarMappable = ax.scatter(
            positions[0], positions[1], c=known.values, s=size, linewidths=0.3, edgecolors="0.3", **shared
        )
        ax.set_xlim(x.edges[0], x.edges[-1])
        ax.set_ylim(y.edges[0], y.edges[-1])
    else:
        # Rasterised: a vector file of a picture neither grows large nor shows seams between cells.
        image = ax.pcolormesh(x.edges, y.edges, panel.values.values, rasterized=True, **shared)
    if _height_over_width(framed) is not None:
        ax.set_aspect("equal")
    if y.counts:
        ax.set_ylim(y.edges[-1], y.edges[0])
    for which, side in (("x", "labelbottom"), ("y", "labelleft")):
        artist = getattr(ax, f"{which}axis")
        _dress(artist, x if which == "x" else y, labelled=artist.get_tick_params().get(side, True))
    return image


def _colourbars(
    panels: list[_Panel], axes: Array, images: list[ScalarMappable], limits: tuple[float, float], room: bool
) -> None:
    """Scales beside the last panel of the field, the standard deviation and an observation of its own."""
    from matplotlib.ticker import MaxNLocator

    last = max(i for i, p in enumerate(panels) if p.scale == "field")
    for i, panel in enumerate(panels):
        if i != last and panel.scale not in ("sd", "own"):
            continue
        beyond = [p.values.values for p in panels if p.scale == "beside"] if i == last else []
        under = any(np.nanmin(v) < limits[0] for v in beyond)
        above = any(np.nanmax(v) > limits[1] for v in beyond)
        ax = axes[i]
        scale = ax.inset_axes((1.05, 0.0, 0.06, 1.0))
        # Beside a short row there is room anyway; space made for it would tear the columns apart.
        scale.set_in_layout(panel.row == 0 or not room)
        extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[under, above]
        bar = ax.figure.colorbar(images[i], cax=scale, label=panel.label, extend=extend)
        bar.locator = MaxNLocator(nbins=3 if (_height_over_width(panels[0].values) or 1.0) < 0.6 else 5)
        bar.outline.set_linewidth(0.5)


def fan(
    draws: AnyLabelled,
    *,
    truth: AnyLabelled | None = None,
    observation: AnyLabelled | pd.Series | pd.DataFrame | None = None,
    variable: Hashable | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    sample_dim: str = "sample",
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Median and central intervals of the draws along one dim, usually time.

    The edges are the draws' quantiles as `numpy.quantile` has them, point by point. Dates make a date axis;
    a time difference is drawn in days, hours or seconds; NaN leaves a gap.

    Args:
        draws: Dataset or DataArray, ``sample_dim`` and one more dim.
        truth: the same without ``sample_dim``; a black line.
        observation: values along the same dim at any of its places, drawn as points; a DataArray, Dataset,
            pandas Series (its index is the dim) or a DataFrame with the variable as a column.
        variable: which variable of a Dataset; may be left out if there is one.
        levels: levels of the central intervals, in (0, 1).
        sample_dim: the dim of the draws.
        color: colour of the median and, made lighter, of the intervals.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: not one dim beside ``sample_dim``, labels that differ, unsorted coords, bad levels.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> draws = xr.DataArray(np.random.default_rng(0).normal(size=(50, 9)), dims=("sample", "time"))
        >>> ax = fan(draws)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['median', '50 %', '90 %']
        >>> plt.close(ax.figure)
    """
    from matplotlib.patches import Patch

    x, y = _chosen(draws, truth, variable, sample_dim, ndim=1)
    ranks.check_levels(levels)
    (dim,) = (d for d in x.dims if d != sample_dim)
    points = None if observation is None else _along(observation, x, dim)
    ax = _own_axes((5.0, 2.6)) if ax is None else ax
    place = _axis(x, dim)
    ends = place.values.min(), place.values.max()
    values = x.transpose(sample_dim, dim).values
    middle = np.quantile(values, 0.5, axis=0)
    (median,) = ax.plot(place.values, middle, color=color, lw=1.3, zorder=3, label="median")
    handles: list[Artist] = [median]
    # Widest first: where they overlap the colours add up, and the inner interval is the darker one.
    for depth, level in enumerate(sorted(levels, reverse=True), start=1):
        low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        ax.fill_between(place.values, low, high, color=color, alpha=0.22, lw=0, zorder=1)
        shade: dict[str, Any] = {"alpha": 1 - (1 - 0.22) ** depth, "lw": 0, "label": f"{100 * level:g} %"}
        handles.insert(1, Patch(color=color, **shade))
    if y is not None:
        handles += ax.plot(place.values, y.values, color="black", lw=1.0, zorder=2.5, label="truth")
    if points is not None:
        where = _numbers(points[dim].values, dim, place.unit)[0] if dim in points.coords else place.values
        ends = min(ends[0], where.min()), max(ends[1], where.max())
        style: dict[str, Any] = {
            "ls": "none",
            "marker": "o",
            "ms": 3.5,
            "mfc": VERMILION,
            "mec": "white",
            "mew": 0.4,
        }
        handles += ax.plot(where, points.values, zorder=4, label="observation", **style)
    _dress(ax.xaxis, place)
    ax.set_xlim(ends)
    ax.set_ylabel(_label(x))
    _legend(ax, handles)
    return ax


def _along(observation: Any, x: xr.DataArray, dim: Hashable) -> xr.DataArray:
    """The observation as values along ``dim``, not necessarily at all of its places."""
    import pandas as pd
    import xarray as xr

    if isinstance(observation, pd.DataFrame) and x.name in observation.columns:
        observation = observation[x.name]
    if isinstance(observation, pd.Series):
        index = observation.index
        observation = xr.DataArray(observation.to_numpy(), dims=(dim,), coords={dim: index}, name=x.name)
    y = _one_variable("observation", observation, x.name)
    _range([y], "observation")
    placed = y.ndim == 1 and dim in y.coords and dim in x.coords
    placed = placed and y[dim].dims == y.dims and y[dim].dtype.kind == x[dim].dtype.kind
    if not placed and (dim in x.coords or dict(y.sizes) != {dim: x.sizes[dim]}):
        raise InputError(
            "observation",
            expected=f"values along one dim, with a coord {dim!r} like that of the draws",
            got=f"dims {y.dims} with coords { {c: str(v.dtype) for c, v in y.coords.items()} }",
            fix="give every value its place",
        )
    return y


def rank_histogram(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    variable: Hashable | None = None,
    bins: int | None = None,
    band: Band = "exchange",
    level: float = 0.9,
    nan: Literal["raise", "omit"] = "raise",
    seed: int = 0,
    sample_dim: str = "sample",
    ax: Axes | None = None,
) -> Axes:
    """Histogram of the truth's rank among the draws, relative to a flat one, with the band of chance.

    A bowl means too little spread, a hump too much, a slope a bias.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        variable: which variable of a Dataset; may be left out if there is one.
        bins: how many bars; neighbouring ranks are put together. None takes at most 20.
        band: "exchange", "binomial" or None, see the module.
        level: level of the band, bar by bar.
        nan: "raise", or "omit" to leave out points with NaN.
        seed: int in [0, 2**64); breaks ties at random.
        sample_dim: the dim of the draws.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, bad settings.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> x = np.random.default_rng(0).normal(size=(20, 300))
        >>> draws, truth = xr.DataArray(x[1:], dims=("sample", "x")), xr.DataArray(x[0], dims="x")
        >>> ax = rank_histogram(draws, truth)
        >>> ax.get_xlabel()
        'rank of the truth among 19 draws'
        >>> plt.close(ax.figure)
    """
    counts = _member_counts(draws, truth, variable, sample_dim, nan, seed, band, level)
    m, n = counts.shape[1] - 1, counts[-1].sum()
    bins = min(m + 1, 20) if bins is None else bins
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or not 1 <= bins <= m + 1:
        raise InputError(
            "bins", expected=f"an int from 1 to {m + 1}, the number of ranks", got=bins, fix="None"
        )
    edges = np.linspace(0, m + 1, bins + 1).round().astype(int)
    widths = np.diff(edges)
    flat = n * widths / (m + 1)
    heights = np.add.reduceat(counts, edges[:-1], axis=1) / flat
    ax = _own_axes((3.4, 2.6)) if ax is None else ax
    ax.bar(edges[:-1] - 0.5, heights[-1], widths, align="edge", color=SKY, edgecolor="white", lw=0.5)
    ax.axhline(1.0, color="black", lw=0.8)
    if band is not None:
        low, high = _band(heights[:-1], band, level, n, widths / (m + 1))
        scale = 1.0 if band == "exchange" else n / flat
        low, high = (np.append(v * scale, (v * scale)[-1]) for v in (low, high))
        label = f"exact draws, {100 * level:g} %"
        style: dict[str, Any] = {"step": "post", "color": "0.35", "alpha": 0.3, "lw": 0, "label": label}
        _legend(ax, [ax.fill_between(edges - 0.5, low, high, zorder=2, **style)])
    ax.set_xlim(-0.5, m + 0.5)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(f"rank of the truth among {m} draws")
    ax.set_ylabel("frequency, 1 = flat")
    return ax


def coverage(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    variable: Hashable | None = None,
    levels: Sequence[float] | None = None,
    band: Band = "exchange",
    level: float = 0.9,
    nan: Literal["raise", "omit"] = "raise",
    seed: int = 0,
    sample_dim: str = "sample",
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Share of the truth inside the draws' central intervals against their level, with the band of chance.

    Below the diagonal the draws are too narrow, above it too wide. The share is that of
    `sciddiff.diagnostics.coverage`, whose expectation is the level for any number of draws.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        variable: which variable of a Dataset; may be left out if there is one.
        levels: levels of the intervals, in (0, 1); None takes 0.05, 0.1, .. 0.95.
        band: "exchange", "binomial" or None, see the module.
        level: level of the band, interval by interval.
        nan: "raise", or "omit" to leave out points with NaN.
        seed: int in [0, 2**64); breaks ties at random, in the band.
        sample_dim: the dim of the draws.
        color: colour of the curve.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, bad settings.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> x = np.random.default_rng(0).normal(size=(20, 300))
        >>> draws, truth = xr.DataArray(x[1:], dims=("sample", "x")), xr.DataArray(x[0], dims="x")
        >>> ax = coverage(draws, truth)
        >>> ax.get_ylabel()
        'coverage'
        >>> plt.close(ax.figure)
    """
    nominal = np.linspace(0.05, 0.95, 19) if levels is None else np.sort(np.asarray(levels, dtype=np.float64))
    x, y = _chosen(draws, truth, variable, sample_dim)
    shares = ranks.coverage(x, y, nominal.tolist(), sample_dim=sample_dim, nan=nan).values
    counts = _member_counts(draws, truth, variable, sample_dim, nan, seed, band, level)
    m, n = counts.shape[1] - 1, counts[-1].sum()
    ax = _own_axes((3.0, 3.0)) if ax is None else ax
    ax.plot([0, 1], [0, 1], color="black", lw=0.8, zorder=1)
    handles: list[Artist] = []
    if band is not None:
        weights = np.stack([ranks.membership(m, p) for p in nominal], axis=1)
        low, high = _band(counts[:-1] @ weights / n, band, level, n, nominal)
        where, low, high = (np.concatenate([[0.0], v, [1.0]]) for v in (nominal, low, high))
        label = f"exact draws, {100 * level:g} %"
        handles.append(
            ax.fill_between(where, low, high, color="0.35", alpha=0.2, lw=0, zorder=0, label=label)
        )
    handles += ax.plot(nominal, shares, color=color, lw=1.3, marker="o", ms=3, zorder=2, label="draws")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="level of the interval", ylabel="coverage")
    _legend(ax, handles[::-1])
    return ax


def _member_counts(
    draws: AnyLabelled,
    truth: AnyLabelled,
    variable: Hashable | None,
    sample_dim: str,
    nan: Literal["raise", "omit"],
    seed: int,
    band: Band,
    level: float,
) -> Array:
    """Counts ``(M + 1, M + 1)`` of every rank, by member of the pool: the draws, then the truth."""
    if band not in ("exchange", "binomial", None):
        raise InputError(
            "band", expected="'exchange', 'binomial' or None", got=repr(band), fix="leave it out"
        )
    ranks.check_levels([level])
    x, y = _chosen(draws, truth, variable, sample_dim)
    pool = ranks.pooled_ranks(x, y, seed=seed, sample_dim=sample_dim, nan=nan)
    rows = pool.values.reshape(pool.sizes[sample_dim], -1)
    rows = rows[:, ~np.isnan(rows[-1])].astype(np.int64)
    return np.stack([np.bincount(row, minlength=len(rows)) for row in rows])


def _band(members: Array, band: Band, level: float, n: int, share: Array) -> tuple[Array, Array]:
    """Lower and upper edge: quantiles over the draws, or of the share of n independent trials."""
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    if band == "exchange":
        low, high = np.quantile(members, tails, axis=0)
        return low, high
    from scipy import stats

    low, high = stats.binom.ppf(tails[:, None], n, share) / n
    return low, high


def loss(history: History, *, ax: Axes | None = None) -> Axes:
    """Training curves: every value in pale, a running median in full colour where there are many.

    Args:
        history: one curve, or several by name: a sequence, a mapping of sequences, a DataFrame or a Dataset
            of one-dimensional variables. "step" or "epoch" (a key, a column, the index or a coord) is the
            horizontal axis; without it values are counted from 1.
        ax: where to draw; None makes a figure. The vertical axis is logarithmic if all values are positive.

    Returns:
        The Axes.

    Raises:
        InputError: no values, or curves that are not as long as their steps.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = loss({"step": [10, 20, 30], "training": [1.0, 0.5, 0.4], "validation": [1.1, 0.7, 0.6]})
        >>> ax.get_xlabel(), ax.get_yscale()
        ('step', 'log')
        >>> plt.close(ax.figure)
    """
    from matplotlib.ticker import MaxNLocator

    label, steps, curves = _curves(history)
    ax = _own_axes((4.0, 2.6)) if ax is None else ax
    for (name, values), color in zip(curves.items(), _cycle(len(curves)), strict=True):
        known = ~np.isnan(values)
        where, values = steps[known], values[known]
        many = len(values) > 200
        ax.plot(
            where,
            values,
            color=color,
            lw=0.6 if many else 1.3,
            alpha=0.3 if many else 1,
            label=None if many else name,
        )
        if many:
            ax.plot(where, _running_median(values, len(values) // 50), color=color, lw=1.3, label=name)
    low, high = min(np.nanmin(v) for v in curves.values()), max(np.nanmax(v) for v in curves.values())
    if low > 0:
        _log_scale(ax, few_decades=high < 100 * low)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(label)
    ax.set_ylabel("loss")
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _log_scale(ax: Axes, *, few_decades: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    if few_decades:
        # Powers of ten alone would leave one tick or none.
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _curves(history: Any) -> tuple[str, Array, dict[str, Array]]:
    """Name and values of the horizontal axis, and the curves by name."""
    import pandas as pd
    import xarray as xr

    if isinstance(history, xr.Dataset):
        history = history.to_dataframe()
    if isinstance(history, pd.DataFrame):
        index = {} if history.index.name is None else {str(history.index.name): history.index.to_numpy()}
        history = index | {str(c): history[c].to_numpy() for c in history.columns}
    if not isinstance(history, Mapping):
        history = {"loss": history}
    curves = {str(name): np.asarray(values, dtype=np.float64) for name, values in history.items()}
    label = next((name for name in ("step", "epoch") if name in curves), "step")
    steps = curves.pop(label, None)
    curves = {name: values for name, values in curves.items() if name not in ("step", "epoch")}
    sizes = {values.shape for values in curves.values()}
    if steps is None and len(sizes) == 1:
        steps = np.arange(1.0, 1 + next(iter(sizes))[0])
    if steps is None or not curves or sizes != {steps.shape} or steps.ndim != 1 or not steps.size:
        raise InputError(
            "history",
            expected="curves of one length, at least 1",
            got=f"shapes { {name: values.shape for name, values in curves.items()} }",
            fix="pass for example {'step': steps, 'training': values}",
        )
    return label, steps, curves


def _running_median(values: Array, width: int) -> Array:
    half = max(width // 2, 1)
    padded = np.pad(values, half, mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1))


def _cycle(n: int) -> list[str]:
    colours = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY]
    return [colours[i % len(colours)] for i in range(n)]


# -- labels and axes -----------------------------------------------------------------------------


def _chosen(
    draws: AnyLabelled,
    truth: AnyLabelled | None,
    variable: Hashable | None,
    sample_dim: str,
    ndim: int | None = None,
) -> tuple[xr.DataArray, Any]:
    """The chosen variable of draws and truth, labels checked; ``ndim`` dims beside ``sample_dim``."""
    check_draws(draws, sample_dim)
    x = _one_variable("draws", draws, variable)
    check_draws(x, sample_dim)
    rest = [d for d in x.dims if d != sample_dim]
    if ndim is not None and len(rest) != ndim:
        raise InputError(
            "draws",
            expected=f"{ndim} dim{'s' if ndim > 1 else ''} beside {sample_dim!r}",
            got=f"{rest}",
            fix="select or average first, for example draws.isel(case=0)",
        )
    if x.dtype.kind not in "biuf":
        raise InputError(
            "draws", expected="real numbers", got=str(x.dtype), fix="draw the real part: draws.real"
        )
    _range([x])
    if truth is None:
        return x, None
    y = _one_variable("truth", truth, x.name)
    check_labels(x, y, sample_dim=sample_dim)
    _range([y], "truth")
    return x, y


def _one_variable(argument: str, side: Any, variable: Hashable | None) -> xr.DataArray:
    """The named variable of a Dataset, or its only one."""
    import xarray as xr

    if isinstance(side, xr.DataArray):
        return side
    if not isinstance(side, xr.Dataset):
        raise InputError(argument, expected="an xarray object", got=type(side).__name__, fix="label it first")
    names = list(side.data_vars)
    if variable in names:
        return side[variable]
    if len(names) != 1 or (argument == "draws" and variable is not None):
        raise InputError(
            "variable" if argument == "draws" else argument,
            expected=f"one of {names}" if variable is None else f"a variable {variable!r}",
            got=repr(variable) if argument == "draws" else f"variables {names}",
            fix="name the variable to draw: variable=...",
        )
    return side[names[0]]


@dataclass(frozen=True)
class _Axis:
    """A dim as numbers on an axis.

    ``unit`` is that of time differences, ``names`` are the tick labels of a dim of words, and a dim that
    ``counts`` has no coords.
    """

    values: Array
    label: str
    unit: str | None = None
    dates: bool = False
    names: tuple[str, ...] = ()
    counts: bool = False

    @property
    def edges(self) -> Array:
        """Edges of the cells: midway between neighbours."""
        if self.values.size == 1:
            return np.array([self.values[0] - 0.5, self.values[0] + 0.5])
        middle = (self.values[1:] + self.values[:-1]) / 2
        return np.concatenate([[2 * self.values[0] - middle[0]], middle, [2 * self.values[-1] - middle[-1]]])


def _axis(x: xr.DataArray, dim: Hashable) -> _Axis:
    if dim not in x.coords:
        return _Axis(np.arange(x.sizes[dim], dtype=np.float64), str(dim), counts=True)
    coord = x.coords[dim]
    if coord.dtype.kind in "USO" and all(isinstance(v, str) for v in coord.values):
        return _Axis(np.arange(coord.size, dtype=np.float64), _label(coord), names=tuple(coord.values))
    numbers, unit = _numbers(coord.values, dim)
    step = np.diff(numbers)
    if not (np.all(step > 0) or np.all(step < 0)):
        raise InputError("draws", expected=f"sorted coords {dim!r}", got="others", fix=f".sortby({dim!r})")
    label = _label(coord) if unit is None else _named(coord.attrs.get("long_name", dim), unit)
    return _Axis(numbers, label, unit, dates=coord.dtype.kind == "M")


def _numbers(values: Array, dim: Hashable, unit: str | None = None) -> tuple[Array, str | None]:
    """Coordinates as floats; time differences in ``unit``, or in one that is chosen and returned."""
    if values.dtype.kind == "M":
        return np.asarray(_dates().date2num(values), dtype=np.float64), None
    if values.dtype.kind == "m":
        lengths = {"days": 86400.0, "hours": 3600.0, "s": 1.0}
        seconds = values / np.timedelta64(1, "s")
        if unit is None:
            unit = next((u for u, n in lengths.items() if np.abs(seconds).max() >= 2 * n), "s")
        return seconds / lengths[unit], unit
    if values.dtype.kind in "biuf":
        return values.astype(np.float64), None
    raise InputError(
        "draws",
        expected=f"numbers, dates or words as the coord {dim!r}",
        got=f"{type(values.flat[0]).__name__} objects",
        fix="convert it: .convert_calendar('standard') for calendars, .to_timestamp() for periods",
    )


def _dress(artist: XAxis | YAxis, axis: _Axis, *, labelled: bool = True) -> None:
    """Ticks and label of one axis."""
    if axis.dates:
        locator = _dates().AutoDateLocator(minticks=3, maxticks=7)
        artist.set_major_locator(locator)
        artist.set_major_formatter(_dates().ConciseDateFormatter(locator))
    elif axis.names:
        artist.set_ticks(axis.values, labels=axis.names)
    if labelled:
        artist.set_label_text(axis.label)


def _label(x: xr.DataArray) -> str:
    """Name and units of a variable or coordinate, as an axis says them."""
    return _named(x.attrs.get("long_name", x.name), x.attrs.get("units"))


def _named(name: object, units: str | None) -> str:
    degrees = {"degrees_east": "°E", "degrees_north": "°N", "degrees": "°", "degC": "°C"}
    words = [] if name is None else [str(name)]
    return " ".join(words if units in (None, "", "1") else [*words, f"[{degrees.get(units, units)}]"])


def _height_over_width(x: xr.DataArray) -> float | None:
    """Ratio of the two dims' lengths if they are of one kind and a picture can keep it, else None."""
    down, across = (_axis(x, d) for d in x.dims)
    units = [x.coords[d].attrs.get("units") if d in x.coords else "cells" for d in x.dims]
    if units[0] != units[1] or down.dates or across.dates or down.names or across.names:
        return None
    ratio = float(abs(np.ptp(down.edges) / np.ptp(across.edges)))
    return ratio if 0.25 <= ratio <= 4 else None


def _range(arrays: Sequence[xr.DataArray], argument: str = "draws") -> tuple[float, float]:
    """Least and greatest value, or `InputError` where there are infinite ones or none at all."""
    low, high = np.inf, -np.inf
    for x in arrays:
        known = x.values[~np.isnan(x.values)]
        if not known.size or not np.isfinite(known).all():
            raise InputError(
                argument,
                expected="finite values",
                got="infinite values, or nothing but NaN",
                fix="look for what diverged or went missing",
            )
        low, high = min(low, float(known.min())), max(high, float(known.max()))
    return low, high


def _own_axes(size: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _legend(ax: Axes, handles: list[Artist]) -> None:
    """One row above the axes, where it hides nothing."""
    space: dict[str, Any] = {"handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.2}
    space |= {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "ncols": len(handles)}
    ax.legend(handles=handles, loc="lower left", frameon=False, fontsize="small", **space)


def _dates() -> Any:
    from matplotlib import dates

    return dates
