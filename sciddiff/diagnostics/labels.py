"""Do draws and truth carry the same labels and usable values: refused before a score is computed.

xarray by itself would join what overlaps and broadcast what is missing, and the score of that is a number
about something else. So variables, dims, sizes, units and every coordinate that both sides carry must
agree. A coordinate on one side alone contradicts nothing; the order of dims and a DataArray's name are free.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from sciddiff.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "bare",
    "check_dims",
    "check_draws",
    "check_labels",
    "check_same",
    "described",
    "grouped",
    "over",
    "paired",
    "pointwise",
    "rebuilt",
    "usable",
    "variables",
]

Labelled = TypeVar("Labelled", "xr.Dataset", "xr.DataArray")
AnyLabelled: TypeAlias = "xr.Dataset | xr.DataArray"
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Dims: TypeAlias = "str | Sequence[Hashable] | None"
Nan: TypeAlias = Literal["raise", "omit"]


def check_labels(draws: AnyLabelled, truth: AnyLabelled, *, sample_dim: str = "sample") -> None:
    """Raise `InputError` unless ``truth`` is labelled as ``draws`` are, without ``sample_dim``.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[1.0, 2.0]], dims=("sample", "x"), coords={"x": [0, 1]})
        >>> check_labels(draws, draws[0].drop_vars("x"))
    """
    check_draws(draws, sample_dim)
    check_same(draws, truth, "`draws`", without=sample_dim)


def paired(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    sample_dim: str,
    nan: Nan,
    minimum: int = 1,
    names: tuple[str, str] = ("draws", "truth"),
) -> list[tuple[xr.DataArray, xr.DataArray]]:
    """Draws and truth of every variable in float64, checked, NaN at the points that are left out."""
    check_draws(draws, sample_dim, minimum=minimum, argument=names[0])
    check_same(draws, truth, f"`{names[0]}`", argument=names[1], without=sample_dim)
    known = dict(variables(truth))
    pairs = []
    for name, x in variables(draws):
        # Two DataArrays may have different names.
        y = known[name] if name in known else next(iter(known.values()))
        x, y = _numbers(names[0], x, nan), _numbers(names[1], y, nan)
        if nan == "omit":
            seen = x.notnull().all(sample_dim) & y.notnull()
            _check_any(names[0], seen, name)
            x, y = x.where(seen), y.where(seen)
        pairs.append((x, y))
    return pairs


def usable(draws: AnyLabelled, *, sample_dim: str, nan: Nan, minimum: int = 1) -> list[xr.DataArray]:
    """Draws of every variable in float64, checked, NaN at the points that are left out."""
    check_draws(draws, sample_dim, minimum=minimum)
    out = []
    for name, given in variables(draws):
        x = _numbers("draws", given, nan)
        if nan == "omit":
            seen = x.notnull().all(sample_dim)
            _check_any("draws", seen, name)
            x = x.where(seen)
        out.append(x)
    return out


def check_draws(draws: object, sample_dim: str, *, minimum: int = 1, argument: str = "draws") -> None:
    """Raise unless every variable has ``sample_dim``, with at least ``minimum`` draws."""
    import xarray as xr

    if not isinstance(draws, (xr.Dataset, xr.DataArray)):
        raise InputError(
            argument,
            expected=f"an xarray Dataset or DataArray with a dim {sample_dim!r}",
            got=type(draws).__name__,
            fix=f"label it: xr.DataArray(values, dims=({sample_dim!r}, ...))",
        )
    if not variables(draws):
        raise InputError(argument, expected="at least one variable", got="none", fix="pass the draws")
    for name, x in variables(draws):
        if sample_dim not in x.dims:
            raise InputError(
                argument,
                expected=f"a dim {sample_dim!r} in variable {name!r}",
                got=f"dims {x.dims}",
                fix="name the dim of the draws with sample_dim=, and drop variables that are no draws",
            )
        if x.sizes[sample_dim] < minimum or x.size == 0:
            raise InputError(
                argument,
                expected=f"at least {minimum} draws of at least one point",
                got=f"sizes {dict(x.sizes)}",
                fix="sample more",
            )


def check_same(
    one: AnyLabelled,
    other: object,
    whose: str,
    *,
    argument: str = "truth",
    without: Hashable | None = None,
) -> None:
    """Raise unless both are of one kind with the same variables, dims, sizes, units and coordinates."""
    import xarray as xr

    kind = xr.Dataset if isinstance(one, xr.Dataset) else xr.DataArray
    if not isinstance(other, kind):
        raise InputError(
            argument,
            expected=f"a {kind.__name__}, as {whose}",
            got=type(other).__name__,
            fix="pass one variable of the Dataset, or label both alike",
        )
    if isinstance(one, xr.DataArray) and isinstance(other, xr.DataArray):
        return _check_same_array(one, other, whose, argument, without)
    mine, theirs = dict(variables(one)), dict(variables(other))
    if set(mine) != set(theirs):
        raise InputError(
            argument,
            expected=f"the variables of {whose}, {list(mine)}",
            got=str(list(theirs)),
            fix="choose the variables to compare: draws[names], truth[names]",
        )
    for name, x in mine.items():
        _check_same_array(x, theirs[name], whose, argument, without)


def _check_same_array(
    x: xr.DataArray, y: xr.DataArray, whose: str, argument: str, without: Hashable | None
) -> None:
    sizes = {d: n for d, n in x.sizes.items() if d != without}
    if sizes != dict(y.sizes):
        raise InputError(
            argument,
            expected=f"dims {sizes}, as in {whose}",
            got=str(dict(y.sizes)),
            fix="select the same points on both sides; nothing is broadcast",
        )
    for name, coord in x.coords.items():
        if name not in y.coords or without in coord.dims:
            continue
        mine, yours = coord.variable, y.coords[name].variable
        if set(mine.dims) != set(yours.dims) or not mine.equals(yours.transpose(*mine.dims)):
            raise InputError(
                argument,
                expected=f"the coordinate {name!r} of {whose}",
                got="other values",
                fix="select the same points on both sides; where the coordinate does not matter, "
                f".drop_vars({name!r})",
            )
    units = [v.attrs.get("units") for v in (x, y)]
    if None not in units and units[0] != units[1]:
        raise InputError(
            argument,
            expected=f"units {units[0]!r}, as in {whose}",
            got=repr(units[1]),
            fix="convert one of them, or write the same unit alike",
        )


def _numbers(argument: str, x: xr.DataArray, nan: Nan) -> xr.DataArray:
    """The values in float64, checked."""
    if nan not in ("raise", "omit"):
        raise InputError("nan", expected="'raise' or 'omit'", got=repr(nan), fix="pass nan='omit'")
    if x.dtype.kind not in "biuf":
        complex_fix = "score the real and the imaginary part as two variables"
        raise InputError(
            argument,
            expected="real numbers",
            got=f"dtype {x.dtype} in variable {x.name!r}",
            fix=complex_fix if x.dtype.kind == "c" else "drop that variable",
        )
    if bool(np.isinf(x.values).any()):
        raise InputError(
            argument,
            expected="finite values",
            got=f"infinite values in variable {x.name!r}",
            fix="look for what diverged; infinite values are never left out",
        )
    if nan == "raise" and bool(x.isnull().any()):
        raise InputError(
            argument,
            expected="values without NaN",
            got=f"{int(x.isnull().sum())} NaN in variable {x.name!r}",
            fix="pass nan='omit' to leave those points out",
        )
    return x.astype(np.float64)


def _check_any(argument: str, seen: xr.DataArray, name: Hashable) -> None:
    if not bool(seen.any()):
        raise InputError(
            argument,
            expected="at least one point where the truth and all draws are numbers",
            got=f"none in variable {name!r}",
            fix="drop the draws that failed, and say how many they were",
        )


def check_dims(draws: AnyLabelled, dims: Dims, sample_dim: str) -> None:
    """Raise unless all of ``dims`` are dims of the draws other than ``sample_dim``."""
    free = [d for d in draws.dims if d != sample_dim]
    unknown = [d for d in _listed(dims) if d not in free]
    if unknown:
        raise InputError("dims", expected=f"dims out of {free}", got=str(unknown), fix="dims=None takes all")


def _listed(dims: Dims) -> list[Hashable]:
    if dims is None:
        return []
    return [dims] if isinstance(dims, str) else list(dims)


def over(y: xr.DataArray, dims: Dims, *, keep: Hashable | None = None) -> list[Hashable]:
    """The dims of y that a reduction over ``dims`` takes; None takes all but ``keep``."""
    if dims is None:
        return [d for d in y.dims if d != keep]
    return [d for d in y.dims if d in _listed(dims)]


def variables(side: AnyLabelled) -> list[tuple[Hashable, xr.DataArray]]:
    """Name and values of every variable; a DataArray without a name is called "draws"."""
    import xarray as xr

    if isinstance(side, xr.Dataset):
        return list(side.data_vars.items())
    return [("draws" if side.name is None else side.name, side)]


def rebuilt(draws: Labelled, results: Sequence[xr.DataArray]) -> Labelled:
    """The results, one a variable of ``draws``, as a Dataset if ``draws`` is one."""
    import xarray as xr

    if isinstance(draws, xr.DataArray):
        return results[0].rename(draws.name)
    return xr.Dataset({name: out for (name, _), out in zip(variables(draws), results, strict=True)})


def bare(x: xr.DataArray, gone: Sequence[Hashable]) -> xr.DataArray:
    """One slice of x without the dims that go, nor any coordinate on them."""
    coords = [c for c, v in x.coords.items() if any(d in gone for d in v.dims)]
    return x.drop_vars(coords).isel({d: 0 for d in gone})


def pointwise(
    function: Callable[[Array, Array], Array], x: xr.DataArray, y: xr.DataArray, sample_dim: str
) -> xr.DataArray:
    """``function((..., M), (...)) -> (...)`` with labels kept."""
    slot = bare(x, [sample_dim])
    values = function(x.transpose(..., sample_dim).values, y.transpose(*slot.dims).values)
    return slot.copy(data=values)


def grouped(x: xr.DataArray, *groups: Sequence[Hashable]) -> Array:
    """Values with the dims of each group flattened into one axis."""
    shape = [int(np.prod([x.sizes[d] for d in group], dtype=np.int64)) for group in groups]
    values: Array = x.transpose(*(d for group in groups for d in group)).values
    return values.reshape(shape)


def described(out: xr.DataArray, x: xr.DataArray, what: str, units: str | None = None) -> xr.DataArray:
    """The result with attrs of its own: what it is, of what, and its units (those of x if not given)."""
    subject = x.attrs.get("long_name", x.name)
    attrs = {"long_name": what if subject is None else f"{what} of {subject}"}
    units = units if units is not None else x.attrs.get("units")
    out.attrs = attrs if units is None else attrs | {"units": units}
    return out
