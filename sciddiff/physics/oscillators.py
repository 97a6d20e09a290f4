"""Small systems with events: excitable units that burst together, and a pendulum on a pendulum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from sciddiff.errors import InputError
from sciddiff.physics.systems import System, check_numbers, check_positive
from sciddiff.spaces import Space

__all__ = ["DoublePendulum", "FitzHughNagumo"]


@final
@dataclass(frozen=True)
class FitzHughNagumo(System):
    """Coupled excitable units, ``dv_i = v_i (a - v_i)(v_i - 1) - w_i + k sum_j (v_j - v_i), dw_i = b_i v_i - c w_i``.

    The defaults are two units that differ a little and now and then fire together: rare, large events (Ansmann,
    Karnatak, Lehnertz and Feudel 2013, "Extreme events in excitable systems and mechanisms of their generation").
    One unit, ``b=(0.0065,)``, is the plain system of FitzHugh and Nagumo.

    Args:
        a: threshold.
        b: recovery rate of each unit; as many as there are units.
        c: decay rate of the recovery.
        coupling: ``k``.
        dt: length of a step; with 2 or more, the default units no longer burst.

    Example:
        >>> FitzHughNagumo().space
        Space(v, w on (unit: 2))
        >>> FitzHughNagumo().step(torch.zeros(5, 2, 2)).shape
        torch.Size([5, 2, 2])
    """

    a: float = -0.025794
    b: tuple[float, ...] = (0.0065, 0.0135)
    c: float = 0.02
    coupling: float = 0.128
    dt: float = 0.5

    def __post_init__(self) -> None:
        check_positive(dt=self.dt)
        check_numbers(a=self.a, c=self.c, coupling=self.coupling)
        _check_row("b", self.b, None)

    @property
    def space(self) -> Space:
        """Voltage ``v`` and recovery ``w`` of every unit."""
        return Space({"unit": len(self.b)}, ["v", "w"])

    def tendency(self, x: torch.Tensor) -> torch.Tensor:
        """``f(x)``, ``(..., 2, units)``."""
        v, w = x.unbind(-2)
        b = torch.tensor(self.b, dtype=x.dtype, device=x.device)
        pull = self.coupling * (v.sum(-1, keepdim=True) - len(self.b) * v)
        return torch.stack([v * (self.a - v) * (v - 1) - w + pull, b * v - self.c * w], -2)


@final
@dataclass(frozen=True)
class DoublePendulum(System):
    """Two point masses on massless rods, one hung from the other; angles from the vertical, without friction.

    The equations of Lagrange of the `energy`'s two parts, solved for the accelerations. Angles are not wrapped.

    Args:
        masses: of the two bobs [kg].
        lengths: of the two rods [m].
        gravity: [m/s^2].
        dt: length of a step [s].

    Example:
        >>> DoublePendulum().tendency(torch.zeros(4)).abs().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    masses: tuple[float, float] = (1.0, 1.0)
    lengths: tuple[float, float] = (1.0, 1.0)
    gravity: float = 9.81
    dt: float = 0.01

    def __post_init__(self) -> None:
        check_positive(dt=self.dt)
        check_numbers(gravity=self.gravity)
        for name, values in (("masses", self.masses), ("lengths", self.lengths)):
            _check_row(name, values, 2)
            check_positive(**{f"{name}[{i}]": v for i, v in enumerate(values)})

    @property
    def space(self) -> Space:
        """Both angles and both angular velocities."""
        return Space({}, {"theta1": "rad", "theta2": "rad", "omega1": "rad/s", "omega2": "rad/s"})

    def tendency(self, x: torch.Tensor) -> torch.Tensor:
        """``f(x)``, ``(..., 4)``."""
        (m1, m2), (l1, l2), g = self.masses, self.lengths, self.gravity
        t1, t2, o1, o2 = x.unbind(-1)
        # the equations are  [[M l1, m2 l2 cos], [l1 cos, l2]] (a1, a2) = (f1, f2)  with  M = m1 + m2
        total, sin, cos = m1 + m2, (t1 - t2).sin(), (t1 - t2).cos()
        f1 = -m2 * l2 * o2.square() * sin - total * g * t1.sin()
        f2 = l1 * o1.square() * sin - g * t2.sin()
        free = total - m2 * cos.square()
        a1 = (f1 - m2 * cos * f2) / (l1 * free)
        a2 = (total * f2 - cos * f1) / (l2 * free)
        return torch.stack([o1, o2, a1, a2], -1)

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """Kinetic and potential energy [J], ``(...)``; conserved. Zero is the height of the pivot."""
        (m1, m2), (l1, l2), g = self.masses, self.lengths, self.gravity
        t1, t2, o1, o2 = x.unbind(-1)
        first = (l1 * o1).square()
        second = first + (l2 * o2).square() + 2 * l1 * l2 * o1 * o2 * (t1 - t2).cos()
        height = -(m1 + m2) * l1 * t1.cos() - m2 * l2 * t2.cos()
        return 0.5 * (m1 * first + m2 * second) + g * height


def _check_row(name: str, values: Any, count: int | None) -> None:
    """Raise `InputError` unless ``values`` is a tuple of finite numbers, of which there are ``count``."""
    row = list(values) if isinstance(values, Sequence) else []
    if (
        not row
        or (count is not None and len(row) != count)
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in row)
    ):
        raise InputError(
            name,
            expected=f"a tuple of {count or 'some'} finite numbers",
            got=repr(values),
            fix="write a tuple, with a comma behind a single number",
        )
