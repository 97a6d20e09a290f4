"""Steps of ordinary differential equations in torch: batched, differentiable, in any dtype.

`rk4` is for ``dx/dt = f(x)``; `ETDRK4` for stiff ``dv/dt = l v + N(v)`` whose linear part is diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError

__all__ = ["ETDRK4", "rk4"]

_CONTOUR = 64


def rk4(tendency: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dt: float) -> torch.Tensor:
    """One step of length ``dt`` of the classical Runge-Kutta scheme of fourth order.

    Args:
        tendency: ``f`` of ``dx/dt = f(x)``, of the shape of ``x``.
        x: states, of any shape.
        dt: length of the step, in the units of time of ``f``.

    Example:
        >>> x = rk4(lambda x: -x, torch.ones(2, dtype=torch.float64), 0.1)
        >>> [round(float(v), 6) for v in x]                # exp(-0.1) = 0.904837
        [0.904837, 0.904837]
    """
    k1 = tendency(x)
    k2 = tendency(x + dt / 2 * k1)
    k3 = tendency(x + dt / 2 * k2)
    k4 = tendency(x + dt * k3)
    return x + dt / 6 * (k1 + 2 * (k2 + k3) + k4)


@final
class ETDRK4:
    """Exponential time differencing of fourth order, ``dv/dt = l v + N(v)`` with a diagonal ``l``.

    Cox and Matthews 2002, "Exponential time differencing for stiff systems", equations 26 to 29. Their
    coefficients are quotients whose digits cancel for small ``l dt``; as in Kassam and Trefethen 2005,
    "Fourth-order time-stepping for stiff PDEs", section 2, each is the mean of itself over a circle of radius 1
    about ``l dt``, on 64 points and in complex128, and exact to rounding everywhere. Exact where ``N = 0``, and `rk4` where
    ``l = 0``.

    Args:
        linear: ``l``, real or complex, one number per value of a state.
        dt: length of a step.

    Raises:
        InputError: on values of ``linear`` that are not finite, or a dt that is not positive.

    Example:
        >>> step = ETDRK4([-1.0, -1000.0], dt=0.1)
        >>> v = step(torch.ones(2, dtype=torch.float64), lambda v: torch.zeros_like(v))
        >>> [round(float(x), 6) for x in v]
        [0.904837, 0.0]
    """

    def __init__(self, linear: Any, dt: float) -> None:
        values = np.asarray(linear)
        if values.dtype.kind not in "biufc" or not np.isfinite(values).all():
            raise InputError("linear", expected="finite numbers", got=values.dtype, fix="check the spectrum")
        if not isinstance(dt, (int, float)) or not 0 < dt < math.inf:
            raise InputError("dt", expected="a positive number", got=repr(dt), fix="give a length of time")
        self.dt = float(dt)
        z = values * self.dt
        # exp beyond float64's range would make NaN of 0 * inf in the coefficients
        if (z.real > 500).any():
            raise InputError(
                "dt", expected="growth of at most exp(500) in a step", got=dt, fix="take a shorter step"
            )
        circle = z[..., None] + np.exp(2j * np.pi * (np.arange(_CONTOUR) + 0.5) / _CONTOUR)
        e = np.exp(circle)
        quotients = (
            (np.exp(circle / 2) - 1) / circle,
            (-4 - circle + e * (4 - 3 * circle + circle**2)) / circle**3,
            2 * (2 + circle + e * (circle - 2)) / circle**3,
            (-4 - 3 * circle - circle**2 + e * (4 - circle)) / circle**3,
        )
        means = [self.dt * q.mean(-1) for q in quotients]
        table = np.stack([np.exp(z), np.exp(z / 2), *means])
        self._table = torch.from_numpy(table if np.iscomplexobj(values) else table.real.copy())

    def __call__(self, v: torch.Tensor, nonlinear: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The state ``dt`` later; ``nonlinear`` is ``N``, of the shape of ``v``."""
        dtype = v.dtype if self._table.is_complex() or not v.is_complex() else v.real.dtype
        whole, half, q, f1, f2, f3 = self._table.to(v.device, dtype)
        n = nonlinear(v)
        a = half * v + q * n
        na = nonlinear(a)
        nb = nonlinear(half * v + q * na)
        nc = nonlinear(half * a + q * (2 * nb - n))
        later: torch.Tensor = whole * v + f1 * n + f2 * (na + nb) + f3 * nc
        return later
