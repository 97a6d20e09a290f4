"""Dynamical systems and stochastic processes in torch: batched, differentiable, in any dtype."""

from sciddiff.physics.integrators import rk4
from sciddiff.physics.lorenz import Lorenz63, Lorenz96
from sciddiff.physics.systems import System, simulate

__all__ = [
    "Lorenz63",
    "Lorenz96",
    "System",
    "rk4",
    "simulate",
]
