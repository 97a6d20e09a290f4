"""Where a dim stands on an axis: numbers, dates, time differences and words as places, ticks and cells."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.errors import InputError
from sciddiff.plot.labels import label_of, named

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axis import XAxis, YAxis

    from sciddiff.diagnostics.labels import Array

__all__ = ["Axis", "as_numbers", "axis_of", "dress"]


@dataclass(frozen=True)
class Axis:
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


def axis_of(x: xr.DataArray, dim: Hashable) -> Axis:
    """The places of ``dim``: its coords, which have to be sorted, or a count where it has none."""
    if dim not in x.coords:
        return Axis(np.arange(x.sizes[dim], dtype=np.float64), str(dim), counts=True)
    coord = x.coords[dim]
    if coord.dtype.kind in "USO" and all(isinstance(v, str) for v in coord.values):
        return Axis(np.arange(coord.size, dtype=np.float64), label_of(coord), names=tuple(coord.values))
    numbers, unit = as_numbers(coord.values, dim)
    step = np.diff(numbers)
    if not (np.all(step > 0) or np.all(step < 0)):
        raise InputError("draws", expected=f"sorted coords {dim!r}", got="others", fix=f".sortby({dim!r})")
    label = label_of(coord) if unit is None else named(coord.attrs.get("long_name", dim), unit)
    return Axis(numbers, label, unit, dates=coord.dtype.kind == "M")


def as_numbers(values: Array, dim: Hashable, unit: str | None = None) -> tuple[Array, str | None]:
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


def dress(artist: XAxis | YAxis, axis: Axis, *, labelled: bool = True) -> None:
    """Ticks and label of one axis."""
    if axis.dates:
        locator = _dates().AutoDateLocator(minticks=3, maxticks=7)
        artist.set_major_locator(locator)
        artist.set_major_formatter(_dates().ConciseDateFormatter(locator))
    elif axis.names:
        artist.set_ticks(axis.values, labels=axis.names)
    if labelled:
        artist.set_label_text(axis.label)


def _dates() -> Any:
    from matplotlib import dates

    return dates
