"""What a dynamical system is, and a run of it: ``x_{k+1} = step(x_k)``, or ``step(x_k) + N(0, noise_sd^2)``.

A system knows its tendency, one step of length ``dt``, and the spaces of its states and of its trajectories.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.physics.integrators import rk4
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = ["System", "check_count", "check_numbers", "check_positive", "simulate"]

_NOISE_AT_ONCE = 2**22
"""Normals drawn in one piece: the rows' streams are asked a few hundred times instead of at every step."""


class System(ABC):
    """An autonomous system ``dx/dt = f(x)`` with a step of fixed length.

    A subclass is a frozen dataclass with a field ``dt``, a `space` and a `tendency`; its step is one of `rk4`
    unless it says otherwise. States are ``(..., *space.shape)``, in any dtype; everything is differentiable.
    """

    dt: float

    @property
    @abstractmethod
    def space(self) -> Space:
        """The space of one state."""

    @abstractmethod
    def tendency(self, x: torch.Tensor) -> torch.Tensor:
        """``f(x)``, of the shape of ``x``."""

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The state ``dt`` later.

        Raises:
            InputError: on states of another shape, or of no floating dtype.
        """
        self.check(x)
        return rk4(self.tendency, x, self.dt)

    def trajectories(self, times: int | Sequence[Any] | np.ndarray) -> Space:
        """The space of trajectories: the state's, with a dim "time" in front.

        Args:
            times: the number of states, or their times, which then label the dim.

        Example:
            >>> from sciddiff.physics import Lorenz63
            >>> Lorenz63().trajectories(5).shape
            (3, 5)
        """
        one = self.space
        coords: dict[str, Any] = {"time": times}
        coords |= {dim: one.coords.get(dim, size) for dim, size in one.sizes.items()}
        return Space(coords, {name: v.units for name, v in one.variables.items()})

    def as_trajectories(self, x: torch.Tensor) -> torch.Tensor:
        """States in time ``(..., time, *space.shape)`` as states of `trajectories`, whose variables come first.

        Example:
            >>> from sciddiff.physics import Lorenz63
            >>> Lorenz63().as_trajectories(torch.zeros(7, 5, 3)).shape
            torch.Size([7, 3, 5])
        """
        self.check(x)
        if len(self.space.variables) == 1:
            return x if self.space.dims else x.squeeze(-1)
        return x.movedim(-len(self.space.shape), -len(self.space.shape) - 1)

    def check(self, x: torch.Tensor, argument: str = "x") -> None:
        """Raise `InputError` unless ``x`` holds states ``(..., *space.shape)`` of a floating dtype."""
        shape = self.space.shape
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.shape[-len(shape) :] != shape:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise InputError(
                argument,
                expected=f"a tensor of a floating dtype and shape (..., {', '.join(map(str, shape))})",
                got=got,
                fix="put the state on the last axes",
            )


def simulate(
    system: System,
    x0: torch.Tensor,
    steps: int,
    *,
    every: int = 1,
    noise_sd: float | torch.Tensor | None = None,
    streams: Streams | None = None,
) -> torch.Tensor:
    """Run a system from many states at once.

    With noise, ``x_{k+1} = step(x_k) + noise_sd * z_k`` with ``z_k ~ N(0, I)`` after every step. A noise of sd
    ``b sqrt(dt)`` is the Euler-Maruyama noise of ``dx = f dt + b dW``; SDA's noisy Lorenz-63 (Rozet and Louppe
    2023, "Score-based data assimilation") is ``Lorenz63(dt=0.025)`` with ``noise_sd=0.025**0.5``.

    Args:
        system: the system.
        x0: first states ``(batch, *state)``.
        steps: number of steps of ``system.dt``.
        every: keep the first state and every this many steps later; it has to divide ``steps``.
        noise_sd: standard deviation of the noise of a step, a number or broadcastable to a state.
        streams: one stream per row of ``x0``; needed with noise. Row i depends on its own stream alone.

    Returns:
        ``(batch, steps // every + 1, *state)``, with the first state in front. Differentiable in ``x0``.

    Raises:
        InputError: on states that do not fit, on noise without streams, or a number of rows unlike them.
        DivergenceError: if a state is no longer finite.

    Example:
        >>> from sciddiff.physics import Lorenz63
        >>> simulate(Lorenz63(dt=0.01), torch.ones(4, 3), 100, every=25).shape
        torch.Size([4, 5, 3])
    """
    sd = _check_run(system, x0, steps, every, noise_sd, streams)
    kept, x = [x0], x0
    chunk = max(1, _NOISE_AT_ONCE // max(x0.numel(), 1))
    noise = torch.empty(0)
    for k in range(steps):
        x = system.step(x)
        if sd is not None and streams is not None:
            if k % chunk == 0:
                shape = (min(chunk, steps - k), *system.space.shape)
                noise = streams.normal(shape, dtype=x0.dtype, device=x0.device)
            x = x + sd * noise[:, k % chunk]
        if (k + 1) % every == 0:
            kept.append(x)
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise DivergenceError(
            f"{bad} of {len(x)} runs of {system} are no longer finite after {steps} steps: "
            "use a shorter dt, less noise, or first states nearer to the attractor"
        )
    return torch.stack(kept, 1)


def check_positive(**values: Any) -> None:
    """Raise `InputError` for any of the named values that is not a positive finite number."""
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float, np.number))
            or not 0 < value < math.inf
        ):
            raise InputError(
                name,
                expected="a positive finite number",
                got=repr(value),
                fix="give it in the units of the system",
            )


def check_numbers(**values: Any) -> None:
    """Raise `InputError` for any of the named values that is not a finite number."""
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float, np.number))
            or not math.isfinite(value)
        ):
            raise InputError(name, expected="a finite number", got=repr(value), fix="give one number")


def check_count(least: int, **values: Any) -> None:
    """Raise `InputError` for any of the named values that is not an integer of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(
                name, expected=f"an int of at least {least}", got=repr(value), fix="count in whole numbers"
            )


def _check_run(
    system: System, x0: torch.Tensor, steps: int, every: int, noise_sd: Any, streams: Streams | None
) -> torch.Tensor | None:
    """The noise's sd as a tensor, or None without noise."""
    system.check(x0, "x0")
    check_count(0, steps=steps)
    check_count(1, every=every)
    if x0.ndim != len(system.space.shape) + 1 or not bool(x0.isfinite().all()):
        raise InputError(
            "x0",
            expected="finite states, (batch, *state)",
            got=f"shape {tuple(x0.shape)}" + ("" if bool(x0.isfinite().all()) else " with NaN or infinity"),
            fix="give one row per run",
        )
    if steps % every:
        raise InputError(
            "every", expected=f"a divisor of {steps} steps", got=every, fix="run some more steps"
        )
    if noise_sd is None:
        return None
    sd = torch.as_tensor(noise_sd, dtype=x0.dtype, device=x0.device)
    state = system.space.shape
    fits = sd.ndim <= len(state) and all(
        n in (1, m) for n, m in zip(sd.shape[::-1], state[::-1], strict=False)
    )
    if not fits or not bool((sd.isfinite() & (sd >= 0)).all()):
        raise InputError(
            "noise_sd",
            expected=f"finite numbers of at least 0, one or broadcastable to {state}",
            got=repr(noise_sd),
            fix="give the standard deviation of the noise of one step",
        )
    if streams is None or len(streams) != len(x0):
        raise InputError(
            "streams",
            expected=f"one stream for each of {len(x0)} runs",
            got="none" if streams is None else len(streams),
            fix="pass streams=Streams(seed, range(batch), purpose='simulation')",
        )
    return sd
