"""What operators ask of the grid of a space: labels, numeric positions, uniform spacing, blocks of values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sciddiff.errors import InputError
from sciddiff.spaces import Space

__all__ = ["blocks", "labels", "named", "numbers", "per_dim", "positions", "spacing", "stacked"]


def labels(space: Space) -> dict[str, np.ndarray | int]:
    """The first argument of `Space` that gives these dims again."""
    return {dim: space.coords.get(dim, n) for dim, n in space.sizes.items()}


def blocks(space: Space) -> Iterator[tuple[str, np.ndarray]]:
    """Name and flat indices, shaped by the variable's dims, of every component in its stored order."""
    start = 0
    for name, _ in space.components:
        shape = tuple(space.sizes[d] for d in space.variables[name].dims)
        size = int(np.prod(shape, dtype=int))
        yield name, np.arange(start, start + size).reshape(shape)
        start += size


def named(space: Space, dim: str) -> np.ndarray:
    """The labels along a dim, or 0, 1, ... where it has none."""
    return space.coords[dim] if dim in space.coords else np.arange(space.sizes[dim])


def positions(space: Space, dim: str) -> np.ndarray:
    """Float64 positions along a dim: its labels (dates in days since the first), or 0, 1, ... without labels.

    Raises:
        InputError: if the labels are words.
    """
    if dim not in space.coords:
        return np.arange(space.sizes[dim], dtype=np.float64)
    return numbers(space.coords[dim], space.coords[dim], dim)


def numbers(values: np.ndarray, reference: np.ndarray, dim: str) -> np.ndarray:
    """Labels as float64; dates become days since the first label of ``reference``."""
    if reference.dtype.kind == "M":
        return np.asarray((values.astype("M8[ns]") - reference[0].astype("M8[ns]")) / np.timedelta64(1, "D"))
    if reference.dtype.kind not in "iuf":
        raise InputError(
            dim,
            expected="a dim with numbers or dates as labels",
            got=f"labels of dtype {reference.dtype}",
            fix="use indices, or give the dim numeric coords",
        )
    return values.astype(np.float64)


def spacing(space: Space, dims: Sequence[str], *, labelled: bool) -> tuple[float, ...]:
    """Positive grid spacing along each dim, in the units of its coords.

    Args:
        space: the space.
        dims: the dims to look at.
        labelled: refuse dims without coords; else their spacing is 1.

    Raises:
        InputError: on a dim without coords, with one point, or with uneven spacing.
    """
    out = []
    for dim in dims:
        x = positions(space, dim)
        if (labelled and dim not in space.coords) or (len(x) < 2 and dim in space.coords):
            raise InputError(
                "domain",
                expected=f"coords of at least 2 points for dim {dim!r}, to tell the grid spacing",
                got=f"{len(x)} points, {'with' if dim in space.coords else 'no'} coords",
                fix=f"build the space with {dim}=numpy.linspace(start, stop, n)",
            )
        step = np.diff(x) if len(x) > 1 else np.ones(1)
        mean = float(step.mean())
        # labels kept in float32, as many files do, are even to a few millionths of their largest value only
        slack = 1e-4 * abs(mean) + 4e-7 * float(np.abs(x).max())
        if np.abs(step - mean).max() > slack:
            raise InputError(
                "domain",
                expected=f"evenly spaced coords along {dim!r}",
                got=f"steps from {step.min():.6g} to {step.max():.6g}",
                fix="interpolate to an even grid",
            )
        out.append(abs(mean))
    return tuple(out)


def stacked(space: Space, argument: str, ndim: Sequence[int] | None = None) -> None:
    """Refuse a space whose states are not ``(components, *grid)`` of one of these numbers of dims."""
    if not space.homogeneous:
        raise InputError(
            argument,
            expected="a space whose variables all live on all dims",
            got=space,
            fix="select the variables first, with Select(domain, variables=...)",
        )
    if ndim is not None and len(space.dims) not in ndim:
        raise InputError(
            argument,
            expected=f"a grid of {' or '.join(map(str, ndim))} dims",
            got=f"dims {space.dims}",
            fix="use a space with as many dims",
        )


def per_dim(values: object, space: Space, argument: str) -> tuple[int, ...]:
    """One integer per dim of a grid, from an int (for all dims) or a mapping dim -> int (1 elsewhere)."""
    given = values if isinstance(values, Mapping) else dict.fromkeys(space.dims, values)
    unknown = [d for d in given if d not in space.sizes]
    if unknown:
        raise InputError(argument, expected=f"dims among {space.dims}", got=unknown, fix="check the names")
    out = []
    for dim in space.dims:
        value = given.get(dim, 1)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(
                argument,
                expected="a positive int, or a mapping of dims to positive ints",
                got=repr(values),
                fix="pass for example 2 or {'x': 2}",
            )
        out.append(int(value))
    return tuple(out)
