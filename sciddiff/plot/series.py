"""Draws along one dim as a fan: the median within the central intervals, with truth and observation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.diagnostics import ranks
from sciddiff.errors import InputError
from sciddiff.plot.labels import chosen, label_of, one_variable, value_range
from sciddiff.plot.places import as_numbers, axis_of, dress
from sciddiff.plot.style import BLUE, VERMILION, legend, own_axes

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from sciddiff.diagnostics.labels import AnyLabelled

__all__ = ["fan"]


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

    x, y = chosen(draws, truth, variable, sample_dim, ndim=1)
    ranks.check_levels(levels)
    (dim,) = (d for d in x.dims if d != sample_dim)
    points = None if observation is None else _along(observation, x, dim)
    ax = own_axes((5.0, 2.6)) if ax is None else ax
    place = axis_of(x, dim)
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
        where = as_numbers(points[dim].values, dim, place.unit)[0] if dim in points.coords else place.values
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
    dress(ax.xaxis, place)
    ax.set_xlim(ends)
    ax.set_ylabel(label_of(x))
    legend(ax, handles)
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
    y = one_variable("observation", observation, x.name)
    value_range([y], "observation")
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
