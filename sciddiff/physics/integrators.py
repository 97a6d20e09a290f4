"""Steps of ordinary differential equations ``dx/dt = f(x)`` in torch: batched, differentiable, in any dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["rk4"]


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
