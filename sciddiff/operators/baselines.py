"""What one does without a prior: regularised least squares, which a diffusion prior has to beat.

``x = argmin |A x - y|^2 + weight |P x|^2`` solves ``(A^T A + weight P^T P) x = A^T y``.
"""

from __future__ import annotations

import math

import torch

from sciddiff.errors import ConvergenceError, InputError
from sciddiff.linalg import cg
from sciddiff.operators.base import LinearOperator

__all__ = ["tikhonov"]


def tikhonov(
    operator: LinearOperator,
    y: torch.Tensor,
    weight: float,
    *,
    penalty: str = "size",
    tolerance: float = 1e-8,
    max_iterations: int = 2000,
) -> torch.Tensor:
    """Regularised least squares by conjugate gradients (Hestenes and Stiefel 1952), row by row.

    With white noise of standard deviation ``s`` and a white Gaussian prior of ``t``, ``weight = (s/t)^2``
    gives the posterior mean.

    Args:
        operator: a linear operator.
        y: observations ``(batch, *operator.codomain.shape)``.
        weight: positive, in squared units of ``y`` over squared units of ``P x``.
        penalty: "size" (``P = 1``) or "gradient" (differences between neighbours on the grid).
        tolerance: residual of the normal equations relative to ``A^T y``.
        max_iterations: most steps to take.

    Returns:
        States ``(batch, *operator.domain.shape)``.

    Raises:
        InputError: on a non-linear operator, a weight that is not positive, a wrong shape.
        ConvergenceError: if the tolerance is not reached.

    Example:
        >>> from sciddiff.operators.basic import Identity
        >>> from sciddiff.spaces import Space
        >>> tikhonov(Identity(Space({"t": 2})), torch.tensor([[2.0, 4.0]]), 1.0).tolist()
        [[1.0, 2.0]]
    """
    _check(operator, y, weight, penalty)
    shape, grid = operator.domain.shape, len(operator.domain.grid)

    def normal(v: torch.Tensor) -> torch.Tensor:
        x = v.reshape(-1, *shape)
        rough = x if penalty == "size" else _roughness(x, grid)
        return (operator.adjoint(operator.apply(x)) + weight * rough).reshape(v.shape)

    right = operator.adjoint(y).reshape(len(y), operator.domain.size)
    found = cg(normal, right, rtol=tolerance, max_iterations=max_iterations)
    if bool((found.residual > tolerance).any()):
        raise ConvergenceError(
            f"tikhonov stopped after {found.iterations} steps at a relative residual of "
            f"{float(found.residual.max()):.2g}, above {tolerance:g}; raise max_iterations, weight or "
            "tolerance, or use float64"
        )
    return found.x.reshape(-1, *shape)


def _roughness(x: torch.Tensor, grid: int) -> torch.Tensor:
    """``P^T P x`` of the differences between neighbours."""
    out = torch.zeros_like(x)
    for axis in range(-grid, 0):
        d = x.diff(dim=axis)
        edge = torch.zeros_like(x.narrow(axis, 0, 1))
        out = out - torch.cat([edge, d, edge], axis).diff(dim=axis)
    return out


def _check(operator: object, y: torch.Tensor, weight: float, penalty: str) -> None:
    if not isinstance(operator, LinearOperator):
        raise InputError("operator", expected="a linear operator", got=operator, fix="linearise it first")
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(
            "weight", expected="a positive number", got=weight, fix="pass for example (sd / 1.0)**2"
        )
    if penalty not in ("size", "gradient") or (penalty == "gradient" and not operator.domain.homogeneous):
        raise InputError(
            "penalty", expected="'size', or on a grid 'gradient'", got=repr(penalty), fix="choose one of them"
        )
    if y.ndim != 1 + len(operator.codomain.shape) or tuple(y.shape[1:]) != operator.codomain.shape:
        raise InputError(
            "y",
            expected=f"a batch of shape (batch, *{operator.codomain.shape})",
            got=tuple(y.shape),
            fix="add a leading batch dim, y[None]",
        )
