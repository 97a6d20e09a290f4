"""Forward operators: how a state becomes an observation."""

from __future__ import annotations

from sciddiff.operators.adapters import from_deepinv, from_matvec, from_pylops, from_scipy, from_torch
from sciddiff.operators.base import LinearOperator, Operator, compose
from sciddiff.operators.baselines import tikhonov
from sciddiff.operators.basic import Identity, Matrix, embedding, stack
from sciddiff.operators.blackbox import BlackBox, Failure, black_box
from sciddiff.operators.blind import BlindConvolution, views
from sciddiff.operators.darcy import Darcy
from sciddiff.operators.external import External
from sciddiff.operators.fourier import Fourier
from sciddiff.operators.imaging import Convolution, Downsample
from sciddiff.operators.pde import elliptic, helmholtz, poisson
from sciddiff.operators.rates import log_rates
from sciddiff.operators.sampling import Gather, Mask, Points, Select, restrict
from sciddiff.operators.series import AtTimes, trajectory_space
from sciddiff.operators.tomography import Radon, fbp

__all__ = [
    "AtTimes",
    "BlackBox",
    "BlindConvolution",
    "Convolution",
    "Darcy",
    "Downsample",
    "External",
    "Failure",
    "Fourier",
    "Gather",
    "Identity",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Operator",
    "Points",
    "Radon",
    "Select",
    "black_box",
    "compose",
    "elliptic",
    "embedding",
    "fbp",
    "from_deepinv",
    "from_matvec",
    "from_pylops",
    "from_scipy",
    "from_torch",
    "helmholtz",
    "log_rates",
    "poisson",
    "restrict",
    "stack",
    "tikhonov",
    "trajectory_space",
    "views",
]
