"""A covariance in other units: ``S^-1 Sigma S^-1`` for a diagonal ``S``, in its own basis where it can be."""

from __future__ import annotations

import math

import torch

from sciddiff.covariance.arrays import flattened
from sciddiff.covariance.base import Covariance
from sciddiff.covariance.bases import Axes, Full, Standard
from sciddiff.covariance.kinds import Eigen, Precision
from sciddiff.covariance.makers import dense
from sciddiff.covariance.markov import OrnsteinUhlenbeck
from sciddiff.errors import InputError

__all__ = ["multiple", "scaled"]


def multiple(covariance: Covariance, factor: float) -> Covariance:
    """``factor`` times a covariance.

    Example:
        >>> from sciddiff.covariance import white
        >>> multiple(white((2,)), 3.0).variance().tolist()
        [3.0, 3.0]
    """
    if isinstance(covariance, Precision):
        return Precision(covariance.shape, covariance.matrix / factor)
    return scaled(covariance, torch.tensor(factor**-0.5, dtype=torch.float64))


def scaled(covariance: Covariance, scale: torch.Tensor) -> Covariance:
    """``S^-1 Sigma S^-1`` for a diagonal ``S``, broadcastable to the covariance's shape: a change of units.

    The basis is kept where ``S`` is constant along the axes that it mixes.
    """
    try:
        scale = torch.broadcast_to(scale.double().cpu(), covariance.shape)
    except RuntimeError as error:
        raise InputError(
            "scale",
            expected=f"a shape broadcastable to {covariance.shape}",
            got=tuple(scale.shape),
            fix="give one unit for all values, or one each",
        ) from error
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise InputError(
            "scale",
            expected="positive finite units",
            got=f"values from {float(scale.min()):g} to {float(scale.max()):g}",
            fix="leave out values that do not vary",
        )
    if isinstance(covariance, Precision):
        import scipy.sparse as sp

        units = sp.diags(scale.reshape(-1).numpy())
        return Precision(covariance.shape, units @ covariance.matrix @ units)
    if isinstance(covariance, OrnsteinUhlenbeck) and bool((scale == scale[..., :1]).all()):
        return OrnsteinUhlenbeck(covariance.steps, covariance.level / scale[..., :1] ** 2, covariance.shape)
    if isinstance(covariance, Eigen):
        basis = covariance.basis
        mixed = (
            ()
            if isinstance(basis, Standard)
            else tuple(i for i, m in enumerate(basis.matrices) if m is not None)
            if isinstance(basis, Axes)
            else tuple(range(scale.ndim))
        )
        first = scale
        for axis in mixed:
            first = first.narrow(axis, 0, 1)
        if bool((scale == first).all()):
            values = scale if not isinstance(basis, Full) else scale.reshape(-1)
            return Eigen(basis, covariance.eigenvalues / values**2)
        if covariance.matrix is not None:
            units = scale.reshape(-1)
            return dense(covariance.matrix / units[:, None] / units, covariance.shape)
    n = math.prod(covariance.shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *covariance.shape)
    return dense(flattened(covariance.apply(eye / scale) / scale, covariance.shape), covariance.shape)
