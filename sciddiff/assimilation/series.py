"""Series in and out: pandas and xarray data as values on a time axis, and draws as a wide frame.

A series is read as ``y(t)``, NaN where nothing was observed, for the variables of a space at its times. It needs no
frequency: a date that is absent is the same gap as a row of NaN. What cannot be read for sure is refused before any
compute, with the first date at which it goes wrong: nothing is sorted, filled, averaged, shifted or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.priors.composed import axis_of
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = [
    "Observed",
    "at_times",
    "quantile_frame",
    "read_errors",
    "read_series",
    "read_times",
    "shown_time",
    "with_leads",
]


def quantile_frame(draws: xr.Dataset, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> pd.DataFrame:
    """Quantiles of draws as a wide frame, the form that users of pandas expect.

    Args:
        draws: a result of `forecast` or `impute`, dims ``("sample", "time")``; further dims become further columns.
        levels: of the quantiles, in [0, 1].

    Returns:
        One row per time and one column for every pair of variable and level: ``frame["sst"][0.95]``.

    Raises:
        InputError: on draws without these dims, or levels outside [0, 1].

    Example:
        >>> import xarray as xr
        >>> draws = xr.Dataset({"t": (("sample", "time"), [[0.0, 1.0], [2.0, 3.0]])}, {"time": [10, 20]})
        >>> quantile_frame(draws, [0.5])["t"][0.5].to_dict()
        {10: 1.0, 20: 2.0}
    """
    import pandas as pd

    if not {"sample", "time"} <= set(getattr(draws, "dims", ())):
        raise InputError(
            "draws",
            expected="a Dataset with dims 'sample' and 'time'",
            got=list(getattr(draws, "dims", ())) or type(draws).__name__,
            fix="pass the result of forecast or impute",
        )
    given = np.asarray(levels).reshape(-1)
    chosen = given.astype(float) if given.dtype.kind in "iuf" else np.empty(0)
    good = chosen.size > 0 and bool(((chosen >= 0) & (chosen <= 1)).all())
    if not good or len(np.unique(chosen)) < len(chosen):
        raise InputError(
            "levels", expected="different levels from 0 to 1", got=levels, fix="0.95 is the 95th percentile"
        )
    found = draws.quantile(chosen, "sample")
    columns: dict[tuple[Any, ...], np.ndarray] = {}
    further: tuple[Any, ...] = ()
    for name, array in found.data_vars.items():
        further = tuple(d for d in array.dims if d not in ("quantile", "time"))
        stacked = array.transpose("quantile", *further, "time")
        places = [found.indexes[d] if d in found.indexes else range(found.sizes[d]) for d in further]
        for key in np.ndindex(*stacked.shape[:-1]):
            where = [place[i] for place, i in zip(places, key[1:], strict=True)]
            columns[(name, *where, float(chosen[key[0]]))] = stacked.values[key]
    names = ["variable", *map(str, further), "quantile"]
    header = pd.MultiIndex.from_tuples(list(columns), names=names)
    rows = found.indexes["time"] if "time" in found.indexes else None
    return pd.DataFrame(np.stack(list(columns.values()), 1), index=rows, columns=header)


@final
@dataclass(frozen=True, eq=False)
class Observed:
    """A series on a time axis.

    Attributes:
        times: dates or numbers, increasing, ``(times,)``.
        values: in the layout of a state, NaN where not observed; ``axis`` is that of time.
        sd: standard deviations of the errors, of the shape of ``values``; None where none were given.
        axis: of time in ``values``.
        attrs: variable -> its attributes (units, standard_name, ...).
        argument: what the caller called the series, for messages.
    """

    times: np.ndarray
    values: torch.Tensor
    sd: torch.Tensor | None
    axis: int
    attrs: Mapping[str, Mapping[str, Any]]
    argument: str

    def seen(self) -> np.ndarray:
        """Whether anything was observed at each time, ``(times,)``."""
        known = ~self.values.isnan().movedim(self.axis, 0)
        return np.asarray(known.reshape(len(self.times), -1).any(1).numpy())

    def since(self, time: Any) -> Observed:
        """The series from a time on, its last value at least."""
        first = min(int(np.searchsorted(self.times, time)), len(self.times) - 1)
        values, sd = (
            None if v is None else v.narrow(self.axis, first, len(self.times) - first)
            for v in (self.values, self.sd)
        )
        assert values is not None  # only the sds may be missing
        return Observed(self.times[first:], values, sd, self.axis, self.attrs, self.argument)


def at_times(space: Space, times: Any) -> Space:
    """The space with other times: their labels, or their number."""
    coords = {d: times if d == "time" else space.coords.get(d, n) for d, n in space.sizes.items()}
    along = {n: (d, v) for n, (d, v) in space.along.items() if d != "time"}
    return Space(coords, space.variables, edges=space.edges, along=along)


def read_times(data: Any, argument: str) -> np.ndarray:
    """The times of pandas data with dates or numbers as index, or of xarray data with a dim "time".

    Raises:
        InputError: on data without times, time zones, or times that are unsorted, repeated or missing.
    """
    import pandas as pd
    import xarray as xr

    if isinstance(data, (pd.Series, pd.DataFrame)):
        index = data.index
    elif isinstance(data, (xr.DataArray, xr.Dataset)) and "time" in data.dims:
        index = data.indexes.get("time", pd.RangeIndex(data.sizes["time"]))
    else:
        dims = f" with dims {[str(d) for d in data.dims]}" if hasattr(data, "dims") else ""
        raise InputError(
            argument,
            expected="pandas data with a DatetimeIndex, or xarray data with a dim 'time'",
            got=type(data).__name__ + dims,
            fix="give the series its times",
        )
    if isinstance(index, pd.DatetimeIndex) and index.tz is not None:
        raise InputError(
            argument,
            expected="dates without a time zone",
            got=f"dates in {index.tz}",
            fix='use tz_convert("UTC").tz_localize(None)',
        )
    times = np.asarray(index.to_numpy())
    if times.ndim != 1 or times.dtype.kind not in "iufM":
        raise InputError(
            argument,
            expected="dates or numbers as times",
            got=f"an index of {type(index[0]).__name__ if len(index) else index.dtype}",
            fix="convert it with pandas.to_datetime, or to_timestamp() where it holds periods",
        )
    if len(times) == 0:
        raise InputError(argument, expected="a series with values", got="no row", fix="pass a fuller series")
    return _in_order(times, argument)


def read_series(
    data: Any, space: Space, argument: str, *, without: Sequence[str] = (), errors: Any = None
) -> Observed:
    """Read a series as values of the variables of a space.

    Args:
        data: pandas or xarray; a Series stands for the one variable. Units are read from ``attrs``.
        space: the variables and the dims beside time; its times do not count.
        argument: the caller's name of it.
        without: variables that the data do not hold.
        errors: standard deviations of the values' errors, see `read_errors`; None for none.

    Raises:
        InputError: on other variables, dims or units, values that are not numbers, infinite or all missing.
    """
    times = read_times(data, argument)
    dataset = _dataset(data, space, argument, [n for n in space.variables if n not in without])
    sized = at_times(space, len(times))
    values = torch.full((*sized.shape,), torch.nan, dtype=torch.float64)
    kept = Space(
        {d: sized.coords.get(d, n) for d, n in sized.sizes.items()},
        {n: v for n, v in sized.variables.items() if n not in without},
    )
    _check_values(dataset, times, argument)
    part = kept.tensor(dataset.drop_vars("time", errors="ignore"), argument=argument, missing=True)
    rows = [i for i, (n, _) in enumerate(sized.components) if n not in without]
    values = part if len(rows) == len(sized.components) else _placed(values, part, rows)
    attrs = {str(n): dict(dataset[n].attrs) for n in dataset.data_vars}
    out = Observed(times, values, None, axis_of(space, "time"), attrs, argument)
    if not out.seen().any():
        raise InputError(argument, expected="a value", got="NaN only", fix="pass a longer or fuller series")
    if errors is None:
        return out
    sd = read_errors(errors, data, space, out, without=without)
    return Observed(out.times, out.values, sd, out.axis, out.attrs, argument)


def read_errors(
    errors: Any, data: Any, space: Space, seen: Observed, *, without: Sequence[str] = ()
) -> torch.Tensor:
    """Standard deviations of the values' errors, of the shape of ``seen.values``.

    Args:
        errors: one number; one for each variable as a mapping; or one for each value, as an array of the shape of
            the data, or labelled as they are. Where a value is missing it does not count.
        data: the series as the caller gave it.
        space: as in `read_series`.
        seen: the series as it was read.
        without: variables that the data do not hold.

    Raises:
        InputError: on another shape or other labels, or where the error of a value that was observed is missing
            or not positive.
    """
    import pandas as pd
    import xarray as xr

    labelled = isinstance(errors, (pd.Series, pd.DataFrame, xr.DataArray, xr.Dataset))
    known = ~seen.values.isnan()
    if labelled:
        if not np.array_equal(read_times(errors, "obs_std"), seen.times):
            raise InputError(
                "obs_std",
                expected=f"the times of {seen.argument!r}, {len(seen.times)} from {shown_time(seen.times[0])}",
                got=f"{len(errors['time']) if hasattr(errors, 'dims') else len(errors)} others",
                fix="reindex it to the series",
            )
        sd = _one_each(errors, space, without)
    elif isinstance(errors, Mapping):
        sd = _per_variable(errors, space, seen.values, without)
    elif np.ndim(errors) == 0:
        sd = torch.full_like(seen.values, _number(errors))
    else:
        sd = _like(errors, data, space, without)
    bad = known & ~(sd.isfinite() & (sd > 0))
    if bool(bad.any()):
        rows = bad.movedim(seen.axis, 0).reshape(len(seen.times), -1)
        first = int(rows.any(1).nonzero()[0])
        value = float(sd.movedim(seen.axis, 0).reshape(rows.shape)[first][rows[first]][0])
        raise InputError(
            "obs_std",
            expected="a positive number wherever a value was observed",
            got=f"{value:g} at {shown_time(seen.times[first])}",
            fix="give its error there, or make the value NaN if it was not observed",
        )
    return sd


def with_leads(draws: xr.Dataset, lead: np.ndarray, init_time: Any) -> xr.Dataset:
    """Forecasts with the coordinates ``lead``, in steps or as time differences, and ``init_time``."""
    steps = lead.dtype.kind == "i"
    about = {
        "standard_name": "forecast_period",
        "long_name": f"{'steps' if steps else 'time'} since init_time",
    }
    init = ((), init_time, {"standard_name": "forecast_reference_time"})
    return draws.assign_coords(lead=("time", lead, about), init_time=init)


def shown_time(time: Any) -> str:
    """A date without what is zero of it, or a number."""
    import pandas as pd

    if not isinstance(time, (np.datetime64, pd.Timestamp)):
        return f"{time:g}"
    stamp = pd.Timestamp(time)
    return f"{stamp:%Y-%m-%d}" if stamp == stamp.normalize() else str(stamp)


def _in_order(times: np.ndarray, argument: str) -> np.ndarray:
    if (np.isnat(times) if times.dtype.kind == "M" else ~np.isfinite(times)).any():
        raise InputError(
            argument, expected="a time for every row", got="a missing time", fix="drop those rows"
        )
    late = np.flatnonzero(times[1:] <= times[:-1])
    if len(late) == 0:
        return times
    before, after = times[late[0]], times[late[0] + 1]
    if before == after or len(np.unique(times)) < len(times):
        twice = before if before == after else next(t for t in times if (times == t).sum() > 1)
        raise InputError(
            argument,
            expected="every time once",
            got=f"{shown_time(twice)} more than once",
            fix="drop or average what is repeated, such as with groupby(level=0).mean()",
        )
    raise InputError(
        argument,
        expected="times in order",
        got=f"{shown_time(after)} after {shown_time(before)}",
        fix='use sort_index(), or sortby("time")',
    )


def _dataset(data: Any, space: Space, argument: str, names: list[str]) -> xr.Dataset:
    """The data as a Dataset of the variables, each on "time" and the space's other dims, with units checked."""
    import pandas as pd
    import xarray as xr

    others = [d for d in space.dims if d != "time"]
    if isinstance(data, pd.Series):
        data = data.to_frame(names[0] if len(names) == 1 else data.name)
    if isinstance(data, pd.DataFrame):
        if not data.columns.is_unique:
            raise InputError(
                argument,
                expected=f"variables {names}",
                got=[str(c) for c in data.columns],
                fix="rename or drop what is there twice",
            )
        attrs = dict(data.attrs)
        if len(others) == 1 and len(names) == 1 and list(data.columns) != names:
            array = xr.DataArray(
                _numbers(data, argument), dims=("time", others[0]), coords={others[0]: data.columns.values}
            )
            data = array.to_dataset(name=names[0])
        else:
            values = {str(c): ("time", _numbers(data[[c]], argument)[:, 0]) for c in data.columns}
            data = xr.Dataset(values)
        _units_of_frame(data, attrs)
    elif isinstance(data, xr.DataArray):
        extra = [n for n in data.coords if n not in data.dims]
        data = data.drop_vars(extra).to_dataset(name=names[0] if len(names) == 1 else data.name)
    if [n for n in data.data_vars if n not in names] or [n for n in names if n not in data]:
        raise InputError(
            argument,
            expected=f"variables {names}",
            got=[str(n) for n in data.data_vars],
            fix="rename or select the columns",
        )
    chosen: xr.Dataset = data[names].reset_coords(drop=True)
    for name in names:
        _check_variable(chosen[name], name, space, argument)
    return chosen


def _check_variable(array: xr.DataArray, name: str, space: Space, argument: str) -> None:
    want = {*space.variables[name].dims}
    if set(array.dims) != want:
        raise InputError(
            argument,
            expected=f"dims {sorted(want)} for {name!r}",
            got=[str(d) for d in array.dims],
            fix="rename, select or add dims",
        )
    if array.dtype.kind not in "iuf":
        raise InputError(
            argument,
            expected=f"real numbers in {name!r}",
            got=f"dtype {array.dtype}",
            fix="convert them first, such as with pandas.to_numeric",
        )
    given, own = array.attrs.get("units"), space.variables[name].units
    if given is not None and own is not None and given != own:
        raise InputError(
            argument,
            expected=f"units {own!r} for {name!r}",
            got=f"units {given!r}",
            fix="convert the data, or correct its attrs['units']",
        )


def _units_of_frame(data: xr.Dataset, attrs: Mapping[Any, Any]) -> None:
    """Note the units that a pandas object names in its attrs: one for all, or one for each column."""
    units = attrs.get("units")
    for name in data.data_vars:
        found = units.get(name) if isinstance(units, Mapping) else units
        if found is not None:
            data[name].attrs["units"] = found


def _numbers(frame: pd.DataFrame, argument: str) -> np.ndarray:
    """Columns as float64, NaN for what pandas calls missing."""
    for column in frame.columns:
        kind = getattr(frame[column].dtype, "kind", "O")
        if kind not in "iuf":
            raise InputError(
                argument,
                expected=f"real numbers in {column!r}",
                got=f"dtype {frame[column].dtype}",
                fix="convert them first, such as with pandas.to_numeric",
            )
    return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))


def _check_values(dataset: xr.Dataset, times: np.ndarray, argument: str) -> None:
    for name, array in dataset.data_vars.items():
        infinite = np.isinf(array.transpose("time", ...).values).reshape(len(times), -1).any(1)
        if infinite.any():
            raise InputError(
                argument,
                expected="finite numbers, or NaN where nothing was observed",
                got=f"an infinite value of {str(name)!r} at {shown_time(times[infinite.argmax()])}",
                fix="make it NaN if it was not observed",
            )


def _placed(whole: torch.Tensor, part: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some components put among all of them."""
    out = whole.clone()
    out[rows] = part if part.ndim == out.ndim else part[None]
    return out


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InputError(
            "obs_std",
            expected="a number, one for each variable, or one for each value",
            got=type(value).__name__,
            fix="pass a standard deviation in the units of the series",
        )
    return float(value)


def _per_variable(
    errors: Mapping[Any, Any], space: Space, values: torch.Tensor, without: Sequence[str]
) -> torch.Tensor:
    names = [n for n in space.variables if n not in without]
    if set(errors) != set(names):
        raise InputError(
            "obs_std",
            expected=f"an error for each of {names}",
            got=list(errors),
            fix="name every variable, or pass one number for all",
        )
    sd = torch.full_like(values, torch.nan)
    for i, (name, _) in enumerate(space.components):
        if name in errors:
            sd[i if len(space.components) > 1 else ...] = _number(errors[name])
    return sd


def _one_each(errors: Any, space: Space, without: Sequence[str]) -> torch.Tensor:
    """One error for each value, labelled as the values are."""
    dataset = _dataset(errors, space, "obs_std", [n for n in space.variables if n not in without])
    dataset = dataset.where(np.isfinite(dataset)).assign_coords(time=read_times(errors, "obs_std"))
    return read_series(dataset, space, "obs_std", without=without).values


def _like(errors: Any, data: Any, space: Space, without: Sequence[str]) -> torch.Tensor:
    """An array in the layout of the caller's data."""
    import pandas as pd
    import xarray as xr

    values = np.asarray(errors)
    shape = None if isinstance(data, xr.Dataset) else tuple(data.shape)
    if values.dtype.kind not in "iuf" or values.shape != shape:
        raise InputError(
            "obs_std",
            expected="one number, a mapping, labelled data"
            + (f" or an array of shape {shape}" if shape else ""),
            got=f"{values.dtype} of shape {values.shape}",
            fix="give an error for each value, in the layout of the series",
        )
    like: Any = data.copy()
    if isinstance(data, xr.DataArray):
        like = data.copy(data=values.astype(float))
    elif isinstance(data, pd.Series):
        like = pd.Series(values.astype(float), data.index)
    else:
        like = pd.DataFrame(values.astype(float), data.index, data.columns)
    return _one_each(like, space, without)
