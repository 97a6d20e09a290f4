"""Dynamical systems and stochastic processes in torch: batched, differentiable, in any dtype."""

from sciddiff.physics.integrators import ETDRK4, rk4
from sciddiff.physics.kuramoto import KuramotoSivashinsky
from sciddiff.physics.lorenz import Lorenz63, Lorenz96
from sciddiff.physics.oscillators import DoublePendulum, FitzHughNagumo
from sciddiff.physics.processes import ARMA, Matern, OrnsteinUhlenbeck, Process
from sciddiff.physics.systems import System, simulate

__all__ = [
    "ARMA",
    "ETDRK4",
    "DoublePendulum",
    "FitzHughNagumo",
    "KuramotoSivashinsky",
    "Lorenz63",
    "Lorenz96",
    "Matern",
    "OrnsteinUhlenbeck",
    "Process",
    "System",
    "rk4",
    "simulate",
]
