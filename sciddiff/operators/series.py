"""Trajectories: states of one space along a dim "time", and operators on one state applied at some of their times.

A trajectory of states ``x_1, ..., x_L`` is one state of `trajectory_space`, whose variables keep their names and get
the dim in front; ``y_k = A(x_k)`` at the times that are observed.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator, Operator
from sciddiff.spaces import Space, Variable

__all__ = ["AtTimes", "as_states", "as_trajectory", "positions", "trajectory_space"]


def AtTimes(operator: Operator, trajectories: Space, times: Any = None) -> Operator:  # noqa: N802
    """An operator on one state, applied at some times of a trajectory.

    Args:
        operator: from the space of one state.
        trajectories: `trajectory_space` of that space, or any space equal to it.
        times: labels of the times that are observed, or positions where the dim has no labels; None for all.

    Returns:
        A `LinearOperator` where the given one is linear, an `Operator` otherwise, from ``trajectories`` to the
        trajectories of ``operator.codomain`` at those times.

    Raises:
        InputError: if the trajectories are not those of the operator's states, or on times that are not there.

    Example:
        >>> from sciddiff.operators import Identity
        >>> state = Space({"site": 3})
        >>> seen = AtTimes(Identity(state), trajectory_space(state, [0.0, 0.1, 0.2]), [0.2])
        >>> seen.apply(torch.arange(9.0).reshape(1, 3, 3)).tolist()
        [[[6.0, 7.0, 8.0]]]
    """
    _check(operator, trajectories)
    index = positions(trajectories, times)
    return (
        _LinearAtTimes(operator, trajectories, index)
        if isinstance(operator, LinearOperator)
        else _AtTimes(operator, trajectories, index)
    )


def trajectory_space(space: Space, times: Any) -> Space:
    """The space of trajectories: that of one state, with a dim "time" in front of every variable.

    Args:
        space: of one state.
        times: how many, or their labels.

    Raises:
        InputError: if the space has a dim or a variable called "time" itself.

    Example:
        >>> trajectory_space(Space({}, ["x", "y"]), 5)
        Space(x, y on (time: 5))
    """
    if "time" in {*space.dims, *space.variables, *space.along}:
        raise InputError(
            "space",
            expected="a space of one state, without a name 'time'",
            got=space,
            fix="'time' is the dim of trajectories; rename it",
        )
    coords = {"time": times, **{d: space.coords.get(d, n) for d, n in space.sizes.items()}}
    variables = {
        n: Variable(("time", *v.dims), v.units, v.complex, v.attrs) for n, v in space.variables.items()
    }
    return Space(coords, variables, edges=space.edges, along=space.along)


def as_trajectory(states: torch.Tensor, space: Space) -> torch.Tensor:
    """States in time ``(rows, times, *space.shape)`` as states of `trajectory_space`; `as_states` undoes it.

    Example:
        >>> as_trajectory(torch.zeros(7, 5, 2), Space({}, ["x", "y"])).shape
        torch.Size([7, 2, 5])
    """
    rows, times = states.shape[:2]
    parts = states.reshape(rows, times, space.size).split(_sizes(space), 2)
    flat = torch.cat([part.flatten(1) for part in parts], 1)
    return flat.reshape(rows, *trajectory_space(space, times).shape)


def as_states(trajectory: torch.Tensor, space: Space) -> torch.Tensor:
    """States of `trajectory_space` as states in time ``(rows, times, *space.shape)``.

    Example:
        >>> as_states(torch.zeros(7, 2, 5), Space({}, ["x", "y"])).shape
        torch.Size([7, 5, 2])
    """
    rows = len(trajectory)
    flat = trajectory.flatten(1)
    times = flat.shape[1] // space.size
    parts = zip(flat.split([times * n for n in _sizes(space)], 1), _sizes(space), strict=True)
    states = torch.cat([part.reshape(rows, times, n) for part, n in parts], 2)
    return states.reshape(rows, times, *space.shape)


def positions(trajectories: Space, times: Any) -> np.ndarray:
    """Where times are along the dim "time" of trajectories.

    Args:
        trajectories: a space with a dim "time".
        times: its labels, or positions where it has none, each once; None for all.

    Raises:
        InputError: on times that are not there, or there twice.

    Example:
        >>> positions(Space({"time": [0.0, 0.1, 0.2]}), [0.2, 0.0]).tolist()
        [2, 0]
    """
    labels, length = trajectories.coords.get("time"), trajectories.sizes["time"]
    if times is None:
        return np.arange(length)
    wanted = np.atleast_1d(np.asarray(times))
    if labels is None:
        good = wanted.dtype.kind in "iu" and len(wanted) and 0 <= wanted.min() <= wanted.max() < length
        if not good or len(np.unique(wanted)) != len(wanted):
            raise InputError(
                "times",
                expected=f"different positions from 0 to {length - 1}",
                got=repr(times),
                fix="count the times from 0, each once",
            )
        return wanted.astype(np.int64)
    from sciddiff.operators.sampling import Select

    chosen = Select(Space({"time": labels}), {"time": wanted})
    return chosen.index[:, 0].numpy()


class _AtTimes(Operator):
    """``y_k = A(x_k)`` at some times."""

    def __init__(self, operator: Operator, trajectories: Space, index: np.ndarray) -> None:
        labels = trajectories.coords.get("time")
        self.operator, self.domain, self.index = operator, trajectories, torch.from_numpy(index)
        self.codomain = trajectory_space(operator.codomain, len(index) if labels is None else labels[index])
        self.differentiable = operator.differentiable

    @property
    def name(self) -> str:
        """The operator's, and at how many times."""
        return f"{self.operator.name} at {len(self.index)} times"

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``A`` of every state that is observed."""
        states = as_states(x, self.operator.domain)[:, self.index.to(x.device)]
        return as_trajectory(self._rows(self.operator.apply, states), self.operator.codomain)

    def vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``J(x_k)^T v_k``, 0 at other times."""
        space, codomain = self.operator.domain, self.operator.codomain
        states, seen = as_states(x, space), as_states(v, codomain)
        pulled = self.operator.vjp(states[:, self.index.to(x.device)].flatten(0, 1), seen.flatten(0, 1))
        return self._spread(pulled.reshape(len(x), len(self.index), *space.shape))

    def _rows(self, function: Any, states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = function(states.flatten(0, 1))
        return out.reshape(*states.shape[:2], *out.shape[1:])

    def _spread(self, states: torch.Tensor) -> torch.Tensor:
        """A trajectory that is 0 but at the observed times."""
        shape = (len(states), self.domain.sizes["time"], *states.shape[2:])
        out = states.new_zeros(shape).index_add(1, self.index.to(states.device), states)
        return as_trajectory(out, self.operator.domain)


@final
class _LinearAtTimes(_AtTimes, LinearOperator):
    """The same of a linear operator."""

    operator: LinearOperator
    linear = True

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """``A^T y_k`` at the observed times, 0 elsewhere."""
        return self._spread(self._rows(self.operator.adjoint, as_states(y, self.operator.codomain)))

    def vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``A^T v_k``, whatever ``x``."""
        return self.adjoint(v)


def _sizes(space: Space) -> list[int]:
    """How many values of a state belong to each of its components."""
    return [space._size(name) for name, _ in space.components]


def _check(operator: Operator, trajectories: Space) -> None:
    """An operator on one state of the trajectories."""
    if not isinstance(operator, Operator):
        raise InputError(
            "operator",
            expected="an Operator on one state",
            got=type(operator).__name__,
            fix="wrap a function with operators.from_torch",
        )
    labels = trajectories.coords.get("time")
    length = trajectories.sizes.get("time", 0)
    difference = (
        "no dim 'time'"
        if not length
        else trajectory_space(operator.domain, length if labels is None else labels).difference(trajectories)
    )
    if difference is not None:
        raise InputError(
            "trajectories",
            expected=f"the trajectories of {operator.domain}",
            got=difference,
            fix="make them with operators.trajectory_space(operator.domain, times)",
        )
