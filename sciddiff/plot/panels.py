"""A field in two dims as panels: truth, observation, mean, standard deviation, draws, on common scales."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sciddiff.errors import InputError
from sciddiff.plot.labels import chosen, label_of, named, one_variable, value_range
from sciddiff.plot.places import as_numbers, axis_of, dress
from sciddiff.plot.style import GREY

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from sciddiff.diagnostics.labels import AnyLabelled, Array

__all__ = ["fields"]


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
    x, y = chosen(draws, truth, variable, sample_dim, ndim=2)
    panels = _panels(x, y, observation, count, sample_dim)
    drawn = _grid_of_axes(panels) if axes is None else _given_axes(panels, axes)
    shared = value_range([p.values for p in panels if p.scale == "field"])
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
    name = label_of(x)
    dims = [d for d in x.dims if d != sample_dim]
    out = [] if truth is None else [_Panel("truth", truth.transpose(*dims), "field", name)]
    if observation is not None:
        out.append(_observed(observation, x, dims))
    # A point that is NaN in some draw is shown as missing, not as the mean of the others.
    out.append(_Panel("mean", x.mean(sample_dim, skipna=False, keep_attrs=True), "field", name))
    if x.sizes[sample_dim] > 1:
        sd = x.std(sample_dim, ddof=1, skipna=False, keep_attrs=True)
        out.append(_Panel("sd", sd, "sd", named("sd", x.attrs.get("units"))))
    for i in range(min(count, x.sizes[sample_dim])):
        title = f"draw {x[sample_dim].values[i]}"
        out.append(_Panel(title, x.isel({sample_dim: i}).transpose(*dims), "field", name, row=1))
    return out


def _observed(observation: AnyLabelled, x: xr.DataArray, dims: list[Hashable]) -> _Panel:
    y = one_variable("observation", observation, x.name)
    value_range([y], "observation")
    units = [v.attrs.get("units") for v in (x, y)]
    same = y.name in (None, x.name) and (None in units or units[0] == units[1])
    scale: Literal["beside", "own"] = "beside" if same else "own"
    if y.ndim == 1 and all(d in y.coords and y.coords[d].dims == y.dims for d in dims):
        return _Panel("observation", y, scale, label_of(y), sensors=True)
    if y.ndim != 2:
        raise InputError(
            "observation",
            expected=f"two dims, or point sensors: one dim with the coords {dims} along it",
            got=f"dims {y.dims} with coords {list(y.coords)}",
            fix=f"give the sensors their positions: .assign_coords({dims[0]}=({y.dims[:1]}, ...), ...)",
        )
    if set(y.dims) == set(dims):
        return _Panel("observation", y.transpose(*dims), scale, label_of(y))
    return _Panel("observation", y, "own", label_of(y))


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
    x, y = axis_of(framed, across), axis_of(framed, down)
    shared: dict[str, Any] = {"cmap": colours, "vmin": limits[0], "vmax": limits[1]}
    if panel.sensors:
        known = panel.values.dropna(panel.values.dims[0])
        positions = [as_numbers(known[d].values, d)[0] for d in (across, down)]
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
        dress(artist, x if which == "x" else y, labelled=artist.get_tick_params().get(side, True))
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
        bar.locator = MaxNLocator(nbins=3 if (_height_over_width(panels[-1].values) or 1.0) < 0.6 else 5)
        bar.outline.set_linewidth(0.5)


def _height_over_width(x: xr.DataArray) -> float | None:
    """Ratio of the two dims' lengths if they are of one kind and a picture can keep it, else None."""
    down, across = (axis_of(x, d) for d in x.dims)
    units = [x.coords[d].attrs.get("units") if d in x.coords else "cells" for d in x.dims]
    if units[0] != units[1] or down.dates or across.dates or down.names or across.names:
        return None
    ratio = float(abs(np.ptp(down.edges) / np.ptp(across.edges)))
    return ratio if 0.25 <= ratio <= 4 else None
