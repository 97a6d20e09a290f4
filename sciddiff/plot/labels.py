"""Which variable is drawn, and what it is called: labels and values are checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.diagnostics.labels import check_draws, check_labels
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.diagnostics.labels import AnyLabelled

__all__ = ["chosen", "label_of", "named", "one_variable", "value_range"]


def chosen(
    draws: AnyLabelled,
    truth: AnyLabelled | None,
    variable: Hashable | None,
    sample_dim: str,
    ndim: int | None = None,
) -> tuple[xr.DataArray, Any]:
    """The chosen variable of draws and truth, labels checked; ``ndim`` dims beside ``sample_dim``."""
    check_draws(draws, sample_dim)
    x = one_variable("draws", draws, variable)
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
    value_range([x])
    if truth is None:
        return x, None
    y = one_variable("truth", truth, x.name)
    check_labels(x, y, sample_dim=sample_dim)
    value_range([y], "truth")
    return x, y


def one_variable(argument: str, side: Any, variable: Hashable | None) -> xr.DataArray:
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


def value_range(arrays: Sequence[xr.DataArray], argument: str = "draws") -> tuple[float, float]:
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


def label_of(x: xr.DataArray) -> str:
    """Name and units of a variable or coordinate, as an axis says them."""
    return named(x.attrs.get("long_name", x.name), x.attrs.get("units"))


def named(name: object, units: str | None) -> str:
    """A name with its units in brackets."""
    degrees = {"degrees_east": "°E", "degrees_north": "°N", "degrees": "°", "degC": "°C"}
    words = [] if name is None else [str(name)]
    return " ".join(words if units in (None, "", "1") else [*words, f"[{degrees.get(units, units)}]"])
