"""What one state is: variables, dims, coords and units, and the way from tensors to xarray and back.

A state of a space is a real tensor of ``space.shape``; a batch is ``(batch, *space.shape)``. One real
variable on dims of sizes ``(a, b)`` has shape ``(a, b)``; several variables on the same dims are stacked
in front, ``(components, a, b)``, where a complex one is two components, its real and imaginary parts;
variables on different dims (nodes and edges of a graph) are flattened one behind the other, ``(size,)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.html import card

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Space", "Variable", "check_space"]


@dataclass(frozen=True)
class Variable:
    """One named quantity of a space: its dims, units and whether it is complex."""

    dims: tuple[str, ...]
    units: str | None = None
    complex: bool = False
    attrs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.dims, str) or len(set(self.dims)) != len(tuple(self.dims)):
            raise InputError(
                "dims",
                expected="a tuple of distinct dim names",
                got=repr(self.dims),
                fix="write Variable(('x',)) with the comma",
            )
        if self.units is not None and not isinstance(self.units, str):
            raise InputError(
                "units", expected="a string or None", got=repr(self.units), fix="write for example 'K'"
            )
        object.__setattr__(self, "dims", tuple(self.dims))


class Space:
    """A labelled state space.

    Args:
        coords: dim name -> its size, or its 1-D labels (numbers, dates or strings), in order.
        variables: a name, names, or name -> units or `Variable`. Default: one variable ``"x"``, or ``"u"``
            where a dim is called x.
        edges: integer array ``(2, edges)`` of node numbers, for a state on a fixed graph.

        along: further coordinates, name -> (dim, values), such as the positions of sensors; values may repeat.

    Raises:
        InputError: on labels that are not 1-D, repeated or not finite, on unknown dims of a variable, on
            edges between nodes that are not there, on the dim "sample", which counts draws.

    Example:
        >>> space = Space({"lat": [10.0, 20.0], "lon": 3}, {"t": "K", "q": "g/kg"})
        >>> space.shape, space.dims, space.size
        ((2, 2, 3), ('lat', 'lon'), 12)
        >>> Space({"detector": 64}).shape
        (64,)
    """

    def __init__(
        self,
        coords: Mapping[str, Any],
        variables: str | Sequence[str] | Mapping[str, str | Variable | None] | None = None,
        *,
        edges: Any = None,
        along: Mapping[str, tuple[str, Any]] | None = None,
    ) -> None:
        if not isinstance(coords, Mapping) or not all(isinstance(d, str) and d != "sample" for d in coords):
            raise InputError(
                "coords",
                expected="a mapping of dim names to sizes or labels, none of them called 'sample'",
                got=list(coords) if isinstance(coords, Mapping) else type(coords).__name__,
                fix="write for example Space({'time': 12}); 'sample' is the dim of draws",
            )
        self.sizes: dict[str, int] = {}
        self.coords: dict[str, np.ndarray] = {}
        for dim, labels in coords.items():
            if isinstance(labels, (int, np.integer)) and not isinstance(labels, bool):
                if labels < 1:
                    raise InputError(
                        "coords",
                        expected=f"a size of at least 1 for dim {dim!r}",
                        got=labels,
                        fix="drop the dim or give it a size",
                    )
                self.sizes[dim] = int(labels)
            else:
                self.coords[dim] = _labels(dim, labels)
                self.sizes[dim] = len(self.coords[dim])
        self.dims: tuple[str, ...] = tuple(self.sizes)
        self.variables: dict[str, Variable] = _variables(variables, self.dims)
        self.edges: np.ndarray | None = None if edges is None else _edges(edges, self.sizes)
        self.along: dict[str, tuple[str, np.ndarray]] = {
            name: _beside(self, name, dim, values) for name, (dim, values) in (along or {}).items()
        }

    @property
    def components(self) -> tuple[tuple[str, str], ...]:
        """The real channels: (variable, ``"real"`` or ``"imag"``), in the order they are stored."""
        return tuple(
            (name, part)
            for name, v in self.variables.items()
            for part in (("real", "imag") if v.complex else ("real",))
        )

    @property
    def homogeneous(self) -> bool:
        """Whether every variable lives on all dims, and there are any: states are stacked, and not flattened."""
        return bool(self.dims) and all(v.dims == self.dims for v in self.variables.values())

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the dims, or ``(size,)`` where the variables live on different dims."""
        return tuple(self.sizes.values()) if self.homogeneous else (self.size,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        if not self.homogeneous:
            return (self.size,)
        channels = len(self.components)
        return self.grid if channels == 1 else (channels, *self.grid)

    @property
    def size(self) -> int:
        """Number of real values of one state."""
        return sum(self._size(name) for name, _ in self.components)

    def _size(self, name: str) -> int:
        return int(np.prod([self.sizes[d] for d in self.variables[name].dims], dtype=int))

    # -- tensors in ------------------------------------------------------------------------------

    def tensor(
        self,
        data: Any,
        *,
        argument: str = "data",
        batch_dim: str | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        missing: bool = False,
    ) -> torch.Tensor:
        """Read anything array-like as a tensor of ``shape``, or ``(batch, *shape)`` with ``batch_dim``.

        xarray and pandas objects are matched by the names of dims and variables, and their coords and
        units have to agree; arrays and tensors are taken as they lie, complex ones for complex variables.

        Args:
            data: xarray, pandas, numpy or torch object, or nested lists of numbers.
            argument: the caller's name for it, for the error message.
            batch_dim: name of the leading dim of many states; None for one state.
            dtype: real dtype of the result.
            device: device of the result.
            missing: whether NaN is allowed.

        Raises:
            InputError: on a wrong shape, dim, coordinate or unit, on NaN or infinity, on complex numbers
                for a real variable.
        """
        lead = () if batch_dim is None else (batch_dim,)
        values = (
            self._labelled(data, argument, lead) if _is_labelled(data) else self._array(data, argument, lead)
        )
        bad = np.isinf(values) if missing else ~np.isfinite(values)
        if bad.any():
            advice = (
                "drop or fill those values"
                if missing
                else "fill them, or pass missing='mask' where a mask is allowed"
            )
            raise InputError(
                argument,
                expected="finite numbers",
                got=f"{int(bad.sum())} NaN or infinite of {values.size} values",
                fix=advice,
            )
        out = torch.tensor(np.ascontiguousarray(values), dtype=dtype, device=device)
        if bool(out.isinf().any()):
            raise InputError(
                argument,
                expected=f"numbers within the range of {str(dtype).removeprefix('torch.')}",
                got=f"a largest size of {np.nanmax(np.abs(values)):.3g}",
                fix="use a prior in float64, or other units",
            )
        return out

    def _array(self, data: Any, argument: str, lead: tuple[str, ...]) -> np.ndarray:
        try:
            if isinstance(data, torch.Tensor):
                # numpy has no bfloat16
                data = (data.float() if data.dtype == torch.bfloat16 else data).numpy(force=True)
            values = data if isinstance(data, np.ma.MaskedArray) else np.asarray(data)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                argument,
                expected="an array of numbers",
                got=type(data).__name__,
                fix="pass numpy, torch, pandas or xarray data",
            ) from error
        if isinstance(values, np.ma.MaskedArray):
            raise InputError(
                argument,
                expected="an array without a mask",
                got="a numpy masked array",
                fix="use data.filled(numpy.nan) and missing='mask'",
            )
        if values.dtype.kind not in "biufc":
            raise InputError(
                argument,
                expected="an array of numbers",
                got=f"dtype {values.dtype}",
                fix="convert it to numbers first",
            )
        if values.dtype.kind == "c":
            values = self._split_complex(values, argument, len(lead))
        expected = self.shape
        if values.ndim != len(lead) + len(expected) or values.shape[len(lead) :] != expected:
            want = (*lead, *expected)
            raise InputError(
                argument,
                expected=f"shape {_show(want)} of {self!r}",
                got=f"shape {values.shape}",
                fix="nothing is broadcast; reshape the data, or pass labelled xarray data"
                + (", or name batch_dim" if values.ndim == len(expected) + 1 and not lead else ""),
            )
        return values

    def _split_complex(self, values: np.ndarray, argument: str, lead: int) -> np.ndarray:
        if not self.homogeneous or not all(v.complex for v in self.variables.values()):
            raise InputError(
                argument,
                expected="real numbers",
                got=f"dtype {values.dtype}",
                fix="declare the variable complex: Variable(dims, complex=True)",
            )
        if len(self.variables) == 1:
            return np.stack(_real_parts(values), axis=lead)
        parts = np.stack(_real_parts(values), axis=lead + 1)
        return parts.reshape(*values.shape[:lead], -1, *values.shape[lead + 1 :])

    def _labelled(self, data: Any, argument: str, lead: tuple[str, ...]) -> np.ndarray:
        dataset = _as_dataset(data, self, argument)
        absent = [name for name in self.variables if name not in dataset]
        extra = [str(name) for name in dataset.data_vars if name not in self.variables]
        if absent or extra:
            raise InputError(
                argument,
                expected=f"variables {list(self.variables)}",
                got=f"variables {[str(v) for v in dataset.data_vars]}",
                fix="rename or select the variables",
            )
        parts = []
        for name, variable in self.variables.items():
            array = dataset[name]
            self._check_labels(array, name, variable, argument, lead)
            values = array.transpose(*lead, *variable.dims).values
            if values.dtype.kind not in "biufc" or (values.dtype.kind == "c" and not variable.complex):
                raise InputError(
                    argument,
                    expected=f"{'complex' if variable.complex else 'real'} numbers in {name!r}",
                    got=f"dtype {values.dtype}",
                    fix="convert the variable, or declare it complex in the space",
                )
            parts += _real_parts(values) if variable.complex else [values]
        n = len(lead)
        if not self.homogeneous:
            return np.concatenate([p.reshape(*p.shape[:n], -1) for p in parts], axis=n)
        return parts[0] if len(parts) == 1 else np.stack(parts, axis=n)

    def _check_labels(
        self, array: xr.DataArray, name: str, variable: Variable, argument: str, lead: tuple[str, ...]
    ) -> None:
        want = {*lead, *variable.dims}
        if set(array.dims) != want:
            raise InputError(
                argument,
                expected=f"dims {sorted(want)} for {name!r}",
                got=f"dims {[str(d) for d in array.dims]}",
                fix="rename, select or add dims; batches of states need batch_dim",
            )
        for dim in variable.dims:
            if array.sizes[dim] != self.sizes[dim]:
                raise InputError(
                    argument,
                    expected=f"{self.sizes[dim]} values along {dim!r}",
                    got=array.sizes[dim],
                    fix="reindex the data to the coords of the space",
                )
            if (
                dim in self.coords
                and dim in array.coords
                and not _same_labels(self.coords[dim], np.asarray(array[dim].values))
            ):
                raise InputError(
                    argument,
                    expected=f"coords of {dim!r} equal to the space's ({_brief(self.coords[dim])})",
                    got=_brief(np.asarray(array[dim].values)),
                    fix="reindex or interpolate the data to the space, or build the space from the data's coords",
                )
        for other, (dim, values) in self.along.items():
            if other in array.coords and not _same_labels(values, np.asarray(array[other].values)):
                raise InputError(
                    argument,
                    expected=f"{other!r} along {dim!r} as in the space ({_brief(values)})",
                    got=f"other or reordered values ({_brief(np.atleast_1d(array[other].values))})",
                    fix="put the data in the order of the space, whose `along` holds it",
                )
        units = array.attrs.get("units")
        if units is not None and variable.units is not None and units != variable.units:
            raise InputError(
                argument,
                expected=f"units {variable.units!r} for {name!r}",
                got=f"units {units!r}",
                fix="convert the data, or correct its attrs['units']",
            )

    # -- xarray out ------------------------------------------------------------------------------

    def dataset(
        self, values: torch.Tensor, dims: Sequence[str] = (), coords: Mapping[str, Any] | None = None
    ) -> xr.Dataset:
        """Label a tensor ``(*leading, *shape)`` as an `xarray.Dataset`, ``dims`` naming the leading dims.

        Raises:
            InputError: on a wrong shape, or leading dims that the space has itself.

        Example:
            >>> Space({"x": [0.0, 1.0]}, {"t": "K"}).dataset(torch.zeros(3, 2), ["sample"])["t"].dims
            ('sample', 'x')
        """
        import xarray as xr

        values, lead = torch.as_tensor(values), tuple(torch.as_tensor(values).shape[: len(dims)])
        if tuple(values.shape) != (*lead, *self.shape) or len(lead) != len(dims):
            raise InputError(
                "values",
                expected=f"shape {_show((*dims, *self.shape))} of {self!r}",
                got=f"shape {tuple(values.shape)}",
                fix="reshape the values, or name their leading dims",
            )
        if set(dims) & {*self.dims, *self.variables} or len(set(dims)) != len(dims):
            raise InputError(
                "dims",
                expected=f"leading dims unlike those of {self!r}",
                got=list(dims),
                fix="choose another name",
            )
        # numpy has no bfloat16
        values = values.float() if values.dtype == torch.bfloat16 else values
        array = values.detach().cpu().reshape(*lead, self.size).numpy()
        data, start = {}, 0
        for name, v in self.variables.items():
            shape, size = (*lead, *(self.sizes[d] for d in v.dims)), self._size(name)
            part = array[..., start : start + size].reshape(shape)
            if v.complex:
                part = part + 1j * array[..., start + size : start + 2 * size].reshape(shape)
            start += size * (2 if v.complex else 1)
            attrs = {**v.attrs, **({"units": v.units} if v.units is not None else {})}
            data[name] = ((*dims, *v.dims), part, attrs)
        return xr.Dataset(data, coords={**self.coords, **self.along, **(coords or {})})

    # -- comparison, storage, repr ---------------------------------------------------------------

    def difference(self, other: Space) -> str | None:
        """The first way in which ``other`` differs, in words; None if it is the same space."""
        if self.sizes != other.sizes or self.dims != other.dims:
            return f"dims {other.sizes} instead of {self.sizes}"
        for dim in self.coords.keys() & other.coords.keys():
            if not _same_labels(self.coords[dim], other.coords[dim]):
                return f"coords of {dim!r}: {_brief(other.coords[dim])} instead of {_brief(self.coords[dim])}"
        if list(self.variables) != list(other.variables):
            return f"variables {list(other.variables)} instead of {list(self.variables)}"
        for name, a in self.variables.items():
            b = other.variables[name]
            if (a.dims, a.complex) != (b.dims, b.complex):
                return f"variable {name!r} is {b} instead of {a}"
            if a.units is not None and b.units is not None and a.units != b.units:
                return f"units {b.units!r} of {name!r} instead of {a.units!r}"
        for name in self.along.keys() & other.along.keys():
            if not _same_labels(self.along[name][1], other.along[name][1]):
                return f"other {name!r} along {self.along[name][0]!r}"
        if self.edges is not None and other.edges is not None and not np.array_equal(self.edges, other.edges):
            return f"another {other.edges.shape[1]} edges instead of these {self.edges.shape[1]}"
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.difference(other) is None

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON values, in lists where order counts; `from_dict` brings it back."""
        return {
            "coords": [[dim, n, _stored(self.coords.get(dim))] for dim, n in self.sizes.items()],
            "variables": [
                [n, {"dims": list(v.dims), "units": v.units, "complex": v.complex, "attrs": dict(v.attrs)}]
                for n, v in self.variables.items()
            ],
            "edges": None if self.edges is None else self.edges.tolist(),
            "along": [[name, dim, _stored(values)] for name, (dim, values) in self.along.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """Rebuild a space from `to_dict`."""
        coords = {
            dim: n if c is None else np.array(c["values"], dtype=c["dtype"]) for dim, n, c in data["coords"]
        }
        variables = {
            n: Variable(tuple(v["dims"]), v["units"], v["complex"], v["attrs"]) for n, v in data["variables"]
        }
        along = {
            name: (dim, np.array(c["values"], dtype=c["dtype"])) for name, dim, c in data.get("along", [])
        }
        return cls(coords, variables, edges=data["edges"], along=along)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{d}: {n}" for d, n in self.sizes.items())
        names = ", ".join(n + (f" [{v.units}]" if v.units else "") for n, v in self.variables.items())
        return f"Space({names} on ({sizes}))"

    def _repr_html_(self) -> str:
        rows = {
            n: f"({', '.join(v.dims)}){f' in {v.units}' if v.units else ''}{', complex' if v.complex else ''}"
            for n, v in self.variables.items()
        }
        for dim, n in self.sizes.items():
            rows[dim] = _brief(self.coords[dim]) if dim in self.coords else f"{n} without labels"
        if self.edges is not None:
            rows["edges of the graph"] = str(self.edges.shape[1])
        return card("Space", {**rows, "shape of a state": _show(self.shape)})


def _beside(space: Space, name: str, dim: str, values: Any) -> tuple[str, np.ndarray]:
    array = np.array(values)
    if dim not in space.sizes or array.shape != (space.sizes[dim],) or array.dtype.kind not in "biufMmU":
        raise InputError(
            "along",
            expected=f"(dim, values) with one number, date or string per label, for {name!r}",
            got=f"dim {dim!r} and {array.dtype} of shape {array.shape}",
            fix="give as many values as the dim has labels",
        )
    if name in space.dims or name in space.variables:
        raise InputError(
            "along", expected="names unlike those of dims and variables", got=repr(name), fix="rename it"
        )
    return dim, array


def _stored(labels: np.ndarray | None) -> dict[str, Any] | None:
    """Labels as JSON values: dates and names as text, numbers as they are, durations as numbers of their unit."""
    if labels is None:
        return None
    kind = labels.dtype.kind
    plain = labels.astype(str) if kind in "MU" else labels.astype(np.int64) if kind == "m" else labels
    return {"dtype": str(labels.dtype), "values": plain.tolist()}


def _labels(dim: str, labels: Any) -> np.ndarray:
    check_zone(labels, "coords")
    values = np.array(labels)  # a copy: what the caller does to the array later is not ours
    if values.ndim != 1 or values.size == 0:
        raise InputError(
            "coords",
            expected=f"a size or 1-D labels for dim {dim!r}",
            got=repr(labels) if values.ndim == 0 else f"shape {values.shape}",
            fix="pass an int or a 1-D array",
        )
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values):
        values = values.astype(str)
    if values.dtype.kind == "O" and all(isinstance(v, date) for v in values):
        values = values.astype("datetime64[us]")
    if values.dtype.kind not in "iufMmU":
        raise InputError(
            "coords",
            expected=f"numbers, dates or strings for dim {dim!r}",
            got=f"{type(values[0]).__name__} of dtype {values.dtype}",
            fix="convert the labels first, such as periods with to_timestamp()",
        )
    if values.dtype.kind != "U" and not np.isfinite(values).all():
        raise InputError(
            "coords",
            expected=f"finite labels for dim {dim!r}",
            got="NaN, infinite or NaT labels",
            fix="drop those entries",
        )
    if len(np.unique(values)) != len(values):
        raise InputError(
            "coords",
            expected=f"distinct labels for dim {dim!r}",
            got="repeated labels",
            fix="drop or average the duplicates",
        )
    return values


def _variables(variables: Any, dims: tuple[str, ...]) -> dict[str, Variable]:
    if variables is None:
        # xarray keeps a dim's name for its labels
        variables = ["u" if "x" in dims else "x"]
    if isinstance(variables, str):
        variables = [variables]
    names = list(variables) if isinstance(variables, (Mapping, Sequence)) else [variables]
    if not all(isinstance(n, str) and n != "sample" for n in names) or len(set(names)) != len(names):
        raise InputError(
            "variables",
            expected="distinct names, none of them 'sample', or a mapping of names to units or Variable",
            got=names,
            fix="write for example {'t': 'K'}",
        )
    items = variables.items() if isinstance(variables, Mapping) else ((name, None) for name in names)
    out = {n: v if isinstance(v, Variable) else Variable(dims, v) for n, v in items}
    for name, v in out.items():
        if not set(v.dims) <= set(dims) or name in dims:
            raise InputError(
                "variables",
                expected=f"variables named unlike the dims, on dims {dims}",
                got=f"{name!r} on {v.dims}",
                fix="name every dim in coords and rename the variable",
            )
    if not out:
        raise InputError("variables", expected="at least one variable", got="none", fix="name one")
    return out


def _edges(edges: Any, sizes: Mapping[str, int]) -> np.ndarray:
    values = np.asarray(edges)
    if (
        values.ndim != 2
        or values.shape[0] != 2
        or values.dtype.kind not in "iu"
        or (values.size and values.min() < 0)
    ):
        raise InputError(
            "edges",
            expected="an integer array (2, edges) of node numbers",
            got=f"{values.dtype} {values.shape}",
            fix="pass the two end nodes of every edge, counted from 0",
        )
    if values.size and values.max() >= max(sizes.values(), default=0):
        raise InputError(
            "edges",
            expected=f"node numbers below the size of a dim of {dict(sizes)}",
            got=int(values.max()),
            fix="count the nodes from 0, and give the node dim its full size",
        )
    return values


def check_zone(times: Any, argument: str) -> None:
    """Raise `InputError` on dates with a time zone, which numpy would take for UTC."""
    dtype = getattr(times, "dtype", None)
    zone = getattr(dtype, "tz", None)
    if zone is None and (isinstance(times, (list, tuple)) or getattr(dtype, "kind", "") == "O"):
        zone = next((z for t in times if (z := getattr(t, "tzinfo", None)) is not None), None)
    if zone is not None:
        raise InputError(
            argument,
            expected="dates without a time zone",
            got=f"dates of time zone {zone}",
            fix="convert them: dates.tz_convert('UTC').tz_localize(None)",
        )


def check_space(space: object, argument: str = "space") -> Space:
    """Return ``space``, or raise `InputError` if it is none."""
    if not isinstance(space, Space):
        raise InputError(
            argument, expected="a Space", got=repr(space), fix="name its dims: Space({'x': 64, 'y': 64})"
        )
    return space


def _real_parts(values: np.ndarray) -> list[np.ndarray]:
    """Real and imaginary part; what is missing is missing in both, whichever of them holds the NaN."""
    gap = np.isnan(values)
    return [np.where(gap, np.nan, part) for part in (values.real, values.imag)]


def _is_labelled(data: Any) -> bool:
    # pandas' series and frames have an `iloc`; its indices and arrays are plain arrays here
    return (hasattr(data, "dims") and hasattr(data, "coords")) or hasattr(data, "iloc")


def _as_dataset(data: Any, space: Space, argument: str) -> xr.Dataset:
    import pandas as pd
    import xarray as xr

    if isinstance(data, (pd.Series, pd.DataFrame)):
        check_zone(data.index, argument)
    if isinstance(data, pd.Series):
        data = xr.DataArray(data.values, dims=space.dims[:1], coords={space.dims[0]: data.index.values})
    elif isinstance(data, pd.DataFrame):
        if len(space.dims) == 1:
            data = xr.Dataset(
                {str(c): (space.dims, data[c].values) for c in data},
                coords={space.dims[0]: data.index.values},
            )
        else:
            data = xr.DataArray(
                data.values, dims=space.dims[:2], coords=[data.index.values, data.columns.values]
            )
    if isinstance(data, xr.DataArray):
        if len(space.variables) != 1:
            raise InputError(
                argument,
                expected=f"an xarray.Dataset with variables {list(space.variables)}",
                got="a DataArray",
                fix="pass a Dataset",
            )
        # labels beside those of the dims are nobody's here, and may bear the variable's name
        extra = [name for name in data.coords if name not in data.dims]
        data = data.drop_vars(extra).to_dataset(name=next(iter(space.variables)))
    if not isinstance(data, xr.Dataset):
        raise InputError(
            argument,
            expected="xarray, pandas, numpy or torch data",
            got=type(data).__name__,
            fix="convert it to one of them",
        )
    return data


def _same_labels(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "fiu" and b.dtype.kind in "fiu":
        # labels computed twice differ by rounding; a millionth of the span is far below any spacing
        return bool(
            np.allclose(
                a, b, rtol=0, atol=1e-6 * max(float(np.ptp(a.astype(float))), 1e-300) if len(a) > 1 else 1e-9
            )
        )
    return bool(np.array_equal(a, b))


def _brief(labels: np.ndarray) -> str:
    return f"{len(labels)} labels from {labels[0]} to {labels[-1]}"


def _show(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
