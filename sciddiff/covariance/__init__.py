"""Covariances on the states of a space, known by their actions and never formed as d-by-d matrices.

Every covariance is ``Sigma = F F^T``; ``sqrt(z) = F z`` colours white noise, ``solve`` is the
pseudo-inverse on the range and ``logdet`` the log pseudo-determinant. Most are diagonal in a cheap
orthonormal basis ``B``: ``Sigma = B diag(lambda) B^T`` (`Eigen`); others have a sparse precision
(`Precision`) or are Markov in time (`OrnsteinUhlenbeck`).

The exact Gaussian denoiser needs a prior covariance ``Sigma`` and the reference noise ``C`` at once:
`joint` finds ``T`` with ``C = T T^T`` and ``Sigma = T diag(lambda) T^T``, so that at noise level sigma
everything is a function of ``lambda``.
"""

from __future__ import annotations

from sciddiff.covariance.base import Covariance
from sciddiff.covariance.bases import Axes, Basis, Full, Standard, Symmetric
from sciddiff.covariance.kinds import Eigen, Precision
from sciddiff.covariance.makers import (
    centred,
    dense,
    diagonal,
    frequencies,
    graph,
    kernel,
    precision,
    spectral,
    symmetric,
    white,
)
from sciddiff.covariance.markov import OrnsteinUhlenbeck, ornstein_uhlenbeck
from sciddiff.covariance.pairs import Joint, joint
from sciddiff.covariance.units import multiple, scaled

__all__ = [
    "Axes",
    "Basis",
    "Covariance",
    "Eigen",
    "Full",
    "Joint",
    "OrnsteinUhlenbeck",
    "Precision",
    "Standard",
    "Symmetric",
    "centred",
    "dense",
    "diagonal",
    "frequencies",
    "graph",
    "joint",
    "kernel",
    "multiple",
    "ornstein_uhlenbeck",
    "precision",
    "scaled",
    "spectral",
    "symmetric",
    "white",
]
