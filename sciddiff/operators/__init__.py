"""Forward operators: how a state becomes an observation."""

from __future__ import annotations

from sciddiff.operators.base import LinearOperator, Operator, compose
from sciddiff.operators.external import External
from sciddiff.operators.pde import elliptic, helmholtz, poisson
from sciddiff.operators.sampling import Gather, Mask, Points, Select, restrict

__all__ = [
    "External",
    "Gather",
    "LinearOperator",
    "Mask",
    "Operator",
    "Points",
    "Select",
    "compose",
    "elliptic",
    "helmholtz",
    "poisson",
    "restrict",
]
