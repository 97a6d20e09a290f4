"""Observing some of the values: sensors, masks, sub-grids.

Each is a sparse gather from the flattened state, ``y_j = sum_c w_jc x[i_jc]``, with one term where a value is
read as it is and ``2^k`` where it is interpolated linearly in ``k`` dims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator, Operator, compose
from sciddiff.operators.grids import blocks, labels, named, numbers, positions
from sciddiff.spaces import Space, Variable

__all__ = ["Gather", "Mask", "Points", "Select", "restrict"]


class Gather(LinearOperator):
    """``y_j = sum_c weight_jc x[index_jc]`` on flattened states.

    Args:
        domain: the space of states.
        codomain: the space of observations.
        index: ints ``(codomain.size, terms)`` into the flattened state.
        weight: numbers of the same shape; None for ones.

    Raises:
        InputError: on a wrong shape or an index outside the state.

    Example:
        >>> last_first = Gather(Space({"t": 3}), Space({"sensor": 2}), [[2], [0]])
        >>> last_first.apply(torch.tensor([[5.0, 6.0, 7.0]])).tolist()
        [[7.0, 5.0]]
    """

    def __init__(self, domain: Space, codomain: Space, index: Any, weight: Any = None) -> None:
        self.domain, self.codomain = domain, codomain
        i = np.asarray(index)
        if i.ndim != 2 or len(i) != codomain.size or i.dtype.kind not in "iu" or i.shape[1] < 1:
            raise InputError(
                "index",
                expected=f"ints of shape ({codomain.size}, terms)",
                got=f"{i.dtype} {i.shape}",
                fix="give every value of the codomain its indices into the flattened state",
            )
        if i.min() < 0 or i.max() >= domain.size:
            raise InputError(
                "index",
                expected=f"indices from 0 to {domain.size - 1}",
                got=f"{i.min()} to {i.max()}",
                fix="count the values of a flattened state from 0",
            )
        self.index = torch.from_numpy(np.ascontiguousarray(i, dtype=np.int64))
        self.weight = None if weight is None else torch.from_numpy(np.array(weight, dtype=np.float64))
        if self.weight is not None and self.weight.shape != self.index.shape:
            raise InputError(
                "weight",
                expected=f"shape {tuple(self.index.shape)}",
                got=tuple(self.weight.shape),
                fix="give one weight per index",
            )

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Read and, where there are several terms, average."""
        flat = x.reshape(x.shape[0], self.domain.size)
        terms = flat.index_select(1, self.index.to(x.device).reshape(-1)).reshape(
            x.shape[0], *self.index.shape
        )
        if self.weight is not None:
            terms = terms * self.weight.to(x)
        return terms.sum(-1).reshape(x.shape[0], *self.codomain.shape)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Add every value back to where it came from."""
        terms = y.reshape(y.shape[0], self.codomain.size, 1).expand(-1, -1, self.index.shape[1])
        if self.weight is not None:
            terms = terms * self.weight.to(y)
        flat = y.new_zeros((y.shape[0], self.domain.size))
        flat = flat.index_add(1, self.index.to(y.device).reshape(-1), terms.flatten(1))
        return flat.reshape(y.shape[0], *self.domain.shape)


class Points(Gather):
    """Read every variable at sensors.

    The codomain replaces the sampled dims by one dim of sensors behind the dims that are kept, with the
    variables' units. ``locations`` holds where they are, dim -> positions, for plots.

    Args:
        domain: the space of states.
        locations: coordinates ``(sensors, dims)``, or ``(sensors,)`` labels on a 1-D space; or a mapping
            dim -> ``(sensors,)`` labels; the other dims are kept. A dim without labels counts 0, 1, ...
        variables: name or names of the variables to read; None for all.
        interpolate: "exact" takes only points on the grid (up to rounding); "linear" interpolates.
        dim: name of the sensors' dim.

    Raises:
        InputError: on a point outside the grid, or off it with ``interpolate="exact"``, or unknown names.

    Example:
        >>> space = Space({"lat": [0.0, 1.0], "lon": [0.0, 1.0, 2.0]}, {"t": "K"})
        >>> sensors = Points(space, [[1.0, 2.0], [0.0, 0.5]], interpolate="linear")
        >>> sensors.apply(torch.arange(6.0).reshape(1, 2, 3)).tolist()
        [[5.0, 0.5]]
        >>> sensors.locations["lon"].tolist(), sensors.codomain
        ([2.0, 0.5], Space(t [K] on (sensor: 2)))
    """

    def __init__(
        self,
        domain: Space,
        locations: Any,
        *,
        variables: str | Sequence[str] | None = None,
        interpolate: str = "exact",
        dim: str = "sensor",
    ) -> None:
        if interpolate not in ("exact", "linear"):
            raise InputError(
                "interpolate", expected="'exact' or 'linear'", got=repr(interpolate), fix="choose one of them"
            )
        names = _names(domain, variables)
        columns = _columns(domain, locations, names, "locations")
        find = _between if interpolate == "linear" else _on_grid
        terms = {d: find(domain, d, values) for d, values in columns.items()}
        self._build(domain, names, terms, dim, columns)

    def _build(
        self,
        domain: Space,
        names: list[str],
        terms: Mapping[str, _Terms],
        dim: str,
        locations: dict[str, np.ndarray],
    ) -> None:
        self.locations = locations
        index, weight = _corners(domain, terms)
        kept = [d for d in domain.dims if d not in terms]
        if dim in kept:
            raise InputError(
                "dim", expected=f"a name unlike the kept dims {kept}", got=repr(dim), fix="pass another dim="
            )
        variables, parts = {}, []
        for name, block in _chosen(domain, names):
            v = domain.variables[name]
            rest = tuple(d for d in v.dims if d not in terms)
            order = [v.dims.index(d) for d in (*rest, *terms)]
            flat = block.transpose(order).reshape(-1, math.prod(domain.sizes[d] for d in terms))
            parts.append(flat[:, index].reshape(-1, index.shape[1]))
            variables[name] = Variable((*rest, dim), v.units, v.complex, v.attrs)
        coords = {d: labels(domain)[d] for d in _used(kept, variables)}
        along = {d: (dim, at) for d, at in locations.items() if d != dim and d not in variables}
        codomain = Space({**coords, dim: len(index)}, variables, along=along)
        weights = None if index.shape[1] == 1 else np.tile(weight, (codomain.size // len(index), 1))
        super().__init__(domain, codomain, np.concatenate(parts), weights)

    @classmethod
    def at_indices(
        cls, domain: Space, indices: Any, *, variables: str | Sequence[str] | None = None, dim: str = "sensor"
    ) -> Points:
        """Sensors at grid indices ``(sensors, dims)``, ``(sensors,)`` in 1-D, or dim -> ``(sensors,)``.

        Raises:
            InputError: on indices that are no ints, or outside the grid.

        Example:
            >>> Points.at_indices(Space({"node": 4}), [3, 0]).apply(torch.arange(4.0)[None]).tolist()
            [[3.0, 0.0]]
        """
        names = _names(domain, variables)
        columns = _columns(domain, indices, names, "indices")
        terms = {d: _at(domain, d, i) for d, i in columns.items()}
        self = cls.__new__(cls)
        self._build(domain, names, terms, dim, {d: named(domain, d)[i] for d, i in columns.items()})
        return self


class Select(Gather):
    """Keep some labels of some dims, and some variables; the dims stay.

    Args:
        domain: the space of states.
        keep: dim -> labels to keep, in their order; dims that are not named are kept whole.
        variables: name or names of the variables to keep; None for all.

    Raises:
        InputError: on labels that are not in the space, repeated labels, unknown dims or names.

    Example:
        >>> space = Space({"time": [1990, 1991, 1992]}, {"t": "K", "q": "g/kg"})
        >>> some = Select(space, {"time": [1992, 1990]}, variables="q")
        >>> some.apply(torch.arange(6.0).reshape(1, 2, 3)).tolist()
        [[5.0, 3.0]]
    """

    def __init__(
        self,
        domain: Space,
        keep: Mapping[str, Any] | None = None,
        *,
        variables: str | Sequence[str] | None = None,
    ) -> None:
        keep = {} if keep is None else keep
        _known_dims(domain, keep, "keep")
        indices = {d: _on_grid(domain, d, _vector(values, "keep"))[0][:, 0] for d, values in keep.items()}
        self._build(domain, indices, _names(domain, variables))

    def _build(self, domain: Space, indices: Mapping[str, np.ndarray], names: list[str]) -> None:
        for d, i in indices.items():
            if len(i) == 0 or len(np.unique(i)) != len(i):
                raise InputError(
                    "keep",
                    expected=f"one or more different labels of {d!r}",
                    got=f"{len(i)} labels, repeated or none",
                    fix="list every label once; Points takes repeats",
                )
        coords = labels(domain)
        for d, i in indices.items():
            coords[d] = domain.coords[d][i] if d in domain.coords else len(i)
        parts = []
        for name, block in _chosen(domain, names):
            for axis, d in enumerate(domain.variables[name].dims):
                block = block.take(indices[d], axis) if d in indices else block
            parts.append(block.reshape(-1, 1))
        variables = {n: domain.variables[n] for n in names}
        used = _used(domain.dims, variables)
        super().__init__(domain, Space({d: coords[d] for d in used}, variables), np.concatenate(parts))

    @classmethod
    def at_indices(
        cls, domain: Space, keep: Mapping[str, Any], *, variables: str | Sequence[str] | None = None
    ) -> Select:
        """Keep positions, counted from 0, instead of labels.

        Example:
            >>> Select.at_indices(Space({"t": [0.1, 0.2, 0.3]}), {"t": [2]}).codomain.coords["t"].tolist()
            [0.3]
        """
        _known_dims(domain, keep, "keep")
        indices = {d: _at(domain, d, _vector(i, "keep"))[0][:, 0] for d, i in keep.items()}
        self = cls.__new__(cls)
        self._build(domain, indices, _names(domain, variables))
        return self


class Mask(Gather):
    """The values where a mask is True, as a vector.

    Args:
        domain: the space of states.
        mask: booleans on the grid, for every variable alike; or a mapping variable -> booleans on its dims,
            whose other variables are not observed; or xarray booleans, matched by their dims.
        dim: name of the codomain's dim; with a mapping every variable has its own, ``variable_dim``.

    Raises:
        InputError: if the mask is not boolean, has another shape, or is False everywhere.

    Example:
        >>> seen = Mask(Space({"t": [0.0, 0.5, 1.0]}), [True, False, True])
        >>> seen.apply(torch.tensor([[5.0, 6.0, 7.0]])).tolist(), seen.locations["t"].tolist()
        ([[5.0, 7.0]], [0.0, 1.0])
    """

    def __init__(self, domain: Space, mask: Any, *, dim: str = "point") -> None:
        per_variable = isinstance(mask, Mapping) or hasattr(mask, "data_vars")
        given = {str(n): mask[n] for n in mask} if per_variable else dict.fromkeys(domain.variables, mask)
        _names(domain, list(given))
        masks = {n: _booleans(domain, n, m) for n, m in given.items()}
        if not any(m.any() for m in masks.values()):
            raise InputError(
                "mask", expected="at least one True", got="none", fix="True marks what is observed"
            )
        masks = {n: m for n, m in masks.items() if m.any()}
        dims = {n: f"{n}_{dim}" if per_variable else dim for n in masks}
        old = {n: v for n, v in domain.variables.items() if n in masks}
        variables = {n: Variable((dims[n],), v.units, v.complex, v.attrs) for n, v in old.items()}
        sizes = {dims[n]: int(masks[n].sum()) for n in variables}
        parts = [block[masks[n]][:, None] for n, block in blocks(domain) if n in masks]
        self.mask = masks
        self.locations: dict[str, np.ndarray] = {}
        if not per_variable:
            where = np.nonzero(next(iter(masks.values())))
            shared = next(iter(domain.variables.values())).dims
            self.locations = {d: named(domain, d)[i] for d, i in zip(shared, where, strict=True)}
        along = {d: (dim, at) for d, at in self.locations.items() if d != dim and d not in variables}
        super().__init__(domain, Space(sizes, variables, along=along), np.concatenate(parts))


def restrict(operator: Operator, keep: Any) -> Operator:
    """Only some of the observations of ``operator``.

    Args:
        operator: any operator.
        keep: dim -> indices along it, counted from 0; indices alone where the codomain has one dim; or
            booleans on the codomain's grid, which give a vector.

    Returns:
        The composed operator, linear if ``operator`` is.

    Raises:
        InputError: on indices outside the codomain, or a mask of another shape.

    Example:
        >>> sensors = Points.at_indices(Space({"t": 5}), [4, 3, 0])
        >>> restrict(sensors, [2, 0]).apply(torch.arange(5.0)[None]).tolist()
        [[0.0, 4.0]]
    """
    space = operator.codomain
    if isinstance(keep, Mapping):
        return compose(Select.at_indices(space, keep), operator)
    values = np.asarray(keep)
    if values.dtype.kind == "b":
        return compose(Mask(space, keep), operator)
    if len(space.dims) != 1:
        raise InputError(
            "keep",
            expected=f"a mapping of dims {space.dims} to indices, or booleans",
            got=f"shape {values.shape}",
            fix="name the dim, for example {'" + space.dims[0] + "': [0, 2]}",
        )
    return compose(Select.at_indices(space, {space.dims[0]: values}), operator)


# -- helpers --------------------------------------------------------------------------------------

_Terms = tuple[np.ndarray, np.ndarray]
"""Indices and weights ``(sensors, terms)`` along one dim."""


def _names(domain: Space, variables: str | Sequence[str] | None) -> list[str]:
    if variables is None:
        return list(domain.variables)
    names = [variables] if isinstance(variables, str) else list(variables)
    if not names or not set(names) <= set(domain.variables) or len(set(names)) != len(names):
        raise InputError(
            "variables", expected=f"names among {list(domain.variables)}", got=names, fix="check the names"
        )
    return [n for n in domain.variables if n in names]


def _chosen(domain: Space, names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    return [(n, b) for n, b in blocks(domain) if n in names]


def _used(dims: Sequence[str], variables: Mapping[str, Variable]) -> list[str]:
    return [d for d in dims if any(d in v.dims for v in variables.values())]


def _known_dims(domain: Space, given: Mapping[str, Any], argument: str) -> None:
    unknown = [d for d in given if d not in domain.sizes]
    if unknown:
        raise InputError(argument, expected=f"dims among {domain.dims}", got=unknown, fix="check the names")


def _vector(values: Any, argument: str) -> np.ndarray:
    out = np.asarray(values)
    if out.ndim != 1:
        raise InputError(
            argument,
            expected="1-D labels or indices of every dim",
            got=f"shape {out.shape}",
            fix="pass a list",
        )
    return out


def _columns(domain: Space, locations: Any, names: Sequence[str], argument: str) -> dict[str, np.ndarray]:
    """Sensors' labels dim by dim, from any of the accepted forms."""
    if isinstance(locations, Mapping):
        _known_dims(domain, locations, argument)
        columns = {d: _vector(locations[d], argument) for d in domain.dims if d in locations}
    else:
        dims = domain.variables[names[0]].dims
        table = np.asarray(locations)
        if table.ndim == 1 and len(dims) == 1:
            table = table[:, None]
        if table.ndim != 2 or table.shape[1] != len(dims):
            raise InputError(
                argument,
                expected=f"an array (sensors, {len(dims)}), one column per dim of {dims}",
                got=f"shape {table.shape}",
                fix="pass one row per sensor, or a mapping of dims to labels",
            )
        columns = {d: table[:, k] for k, d in enumerate(dims)}
    if len({len(c) for c in columns.values()}) != 1 or not len(next(iter(columns.values()))):
        raise InputError(
            argument,
            expected="at least one sensor, and as many labels in every dim",
            got={d: len(c) for d, c in columns.items()},
            fix="give every sensor one label per dim",
        )
    for name in names:
        if not set(columns) <= set(domain.variables[name].dims):
            raise InputError(
                argument,
                expected=f"dims of {name!r}, {domain.variables[name].dims}",
                got=list(columns),
                fix="choose the variables that live on these dims, with variables=",
            )
    return columns


def _at(domain: Space, dim: str, indices: np.ndarray) -> _Terms:
    n = domain.sizes[dim]
    if indices.dtype.kind == "b" and len(indices) == n:
        indices = np.flatnonzero(indices)
    if indices.dtype.kind not in "iu" or (len(indices) and (indices.min() < 0 or indices.max() >= n)):
        raise InputError(
            "indices",
            expected=f"ints from 0 to {n - 1} along {dim!r}",
            got=f"{np.array2string(indices, threshold=6)} of dtype {indices.dtype}",
            fix="count grid points from 0; coordinates go to Points(domain, locations)",
        )
    return indices.astype(np.int64)[:, None], np.ones((len(indices), 1))


def _on_grid(domain: Space, dim: str, values: np.ndarray) -> _Terms:
    """The grid points that the values name."""
    known = domain.coords.get(dim)
    if known is not None and known.dtype.kind not in "iufM":
        order = {label: i for i, label in enumerate(known.tolist())}
        missing = [v for v in values.tolist() if v not in order]
        if missing:
            raise _off(dim, missing[0], domain)
        return np.array([order[v] for v in values.tolist()])[:, None], np.ones((len(values), 1))
    grid, x = positions(domain, dim), _numeric(domain, dim, values)
    order_ = np.argsort(grid)
    nearest = _nearest(grid[order_], x)
    off = np.abs(grid[order_][nearest] - x) > 1e-6 * max(float(np.ptp(grid)), 1e-9)
    if off.any():
        raise _off(dim, values[off][0], domain)
    return order_[nearest][:, None], np.ones((len(values), 1))


def _between(domain: Space, dim: str, values: np.ndarray) -> _Terms:
    """The two neighbours of every value and their weights."""
    grid, x = positions(domain, dim), _numeric(domain, dim, values)
    order = np.argsort(grid)
    ascending = grid[order]
    slack = 1e-6 * max(float(np.ptp(grid)), 1e-9)
    outside = (x < ascending[0] - slack) | (x > ascending[-1] + slack)
    if outside.any():
        raise InputError(
            "locations",
            expected=f"points inside the grid, from {named(domain, dim)[order[0]]} to "
            f"{named(domain, dim)[order[-1]]} along {dim!r}",
            got=f"{int(outside.sum())} outside, such as {values[outside][0]}",
            fix="drop them, or widen the space",
        )
    if len(grid) == 1:
        return np.zeros((len(x), 1), dtype=np.int64), np.ones((len(x), 1))
    left = np.clip(np.searchsorted(ascending, x, side="right") - 1, 0, len(grid) - 2)
    share = np.clip((x - ascending[left]) / (ascending[left + 1] - ascending[left]), 0.0, 1.0)
    return order[np.stack([left, left + 1], 1)], np.stack([1 - share, share], 1)


def _numeric(domain: Space, dim: str, values: np.ndarray) -> np.ndarray:
    reference = named(domain, dim)
    try:
        if reference.dtype.kind == "M" and values.dtype.kind in "iufc":
            raise TypeError
        x = numbers(values, reference, dim)
    except (TypeError, ValueError) as error:
        raise InputError(
            "locations",
            expected=f"labels of {dim!r} like {reference[0]}",
            got=f"dtype {values.dtype}",
            fix="pass labels of the dim's own kind; Points.at_indices takes indices",
        ) from error
    if not np.isfinite(x).all():
        raise InputError(
            "locations", expected="finite coordinates", got="NaN or infinity", fix="drop those sensors"
        )
    return x


def _nearest(ascending: np.ndarray, x: np.ndarray) -> np.ndarray:
    right = np.clip(np.searchsorted(ascending, x), 1, max(len(ascending) - 1, 1))
    if len(ascending) == 1:
        return np.zeros(len(x), dtype=np.int64)
    return np.where(x - ascending[right - 1] <= ascending[right] - x, right - 1, right)


def _off(dim: str, value: Any, domain: Space) -> InputError:
    grid = named(domain, dim)
    return InputError(
        "locations",
        expected=f"labels of {dim!r}, which run from {grid[0]} to {grid[-1]}",
        got=f"{value}",
        fix="use interpolate='linear' inside a numeric grid, or the labels of the grid",
    )


def _corners(domain: Space, terms: Mapping[str, _Terms]) -> _Terms:
    """Flat indices into the sampled dims and weights, over all combinations of the dims' terms."""
    sensors = len(next(iter(terms.values()))[0])
    index, weight = np.zeros((sensors, 1), dtype=np.int64), np.ones((sensors, 1))
    for dim, (i, w) in terms.items():
        index = (index[:, :, None] * domain.sizes[dim] + i[:, None, :]).reshape(sensors, -1)
        weight = (weight[:, :, None] * w[:, None, :]).reshape(sensors, -1)
    return index, weight


def _booleans(domain: Space, name: str, mask: Any) -> np.ndarray:
    dims = domain.variables[name].dims
    if hasattr(mask, "dims") and hasattr(mask, "transpose"):
        if set(mask.dims) != set(dims):
            raise InputError(
                "mask", expected=f"dims {dims} for {name!r}", got=f"dims {mask.dims}", fix="rename the dims"
            )
        mask = mask.transpose(*dims).values
    values = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    shape = tuple(domain.sizes[d] for d in dims)
    if values.dtype.kind != "b" or values.shape != shape:
        raise InputError(
            "mask",
            expected=f"booleans of shape {shape} for {name!r}",
            got=f"{values.dtype} of shape {values.shape}",
            fix="pass mask.astype(bool) on the variable's dims; True marks what is observed",
        )
    return values
