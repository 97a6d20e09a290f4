"""The two systems of Lorenz on which filters and smoothers are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from sciddiff.physics.systems import System, check_count, check_numbers, check_positive
from sciddiff.spaces import Space

__all__ = ["Lorenz63", "Lorenz96"]


@final
@dataclass(frozen=True)
class Lorenz63(System):
    """``dx = sigma (y - x), dy = x (rho - z) - y, dz = x y - beta z`` (Lorenz 1963, "Deterministic nonperiodic flow").

    Args:
        sigma: Prandtl number.
        rho: Rayleigh number over its critical value.
        beta: aspect of the rolls.
        dt: length of a step, in units of the model's time.

    Example:
        >>> Lorenz63().tendency(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).tolist()
        [10.0, 23.0, -6.0]
    """

    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8.0 / 3.0
    dt: float = 0.01

    def __post_init__(self) -> None:
        check_positive(dt=self.dt)
        check_numbers(sigma=self.sigma, rho=self.rho, beta=self.beta)

    @property
    def space(self) -> Space:
        """Three numbers, x, y and z."""
        return Space({}, ["x", "y", "z"])

    def tendency(self, x: torch.Tensor) -> torch.Tensor:
        """``f(x)``, ``(..., 3)``."""
        a, b, c = x.unbind(-1)
        return torch.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c], -1)


@final
@dataclass(frozen=True)
class Lorenz96(System):
    """``dx_i = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + forcing`` on a ring (Lorenz 1996, "Predictability: a problem partly solved").

    One unit of time is about five days of weather; 40 sites with a forcing of 8 are chaotic.

    Args:
        sites: number of sites on the ring, at least 4.
        forcing: the constant forcing.
        dt: length of a step, in units of the model's time.

    Example:
        >>> Lorenz96(sites=5).tendency(torch.full((5,), 8.0)).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    sites: int = 40
    forcing: float = 8.0
    dt: float = 0.05

    def __post_init__(self) -> None:
        check_positive(dt=self.dt)
        check_count(4, sites=self.sites)
        check_numbers(forcing=self.forcing)

    @property
    def space(self) -> Space:
        """One number per site of the ring."""
        return Space({"site": self.sites})

    def tendency(self, x: torch.Tensor) -> torch.Tensor:
        """``f(x)``, ``(..., sites)``."""
        return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + self.forcing
