"""Krylov solves for batches of symmetric systems, one per row, over all event dims at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

__all__ = ["Solution", "cg"]


@final
@dataclass(frozen=True)
class Solution:
    """What `cg` found, per row: ``x``, the relative residual, and whether curvature turned negative."""

    x: torch.Tensor
    residual: torch.Tensor
    negative: torch.Tensor
    iterations: int


def cg(
    apply: Callable[[torch.Tensor], torch.Tensor],
    b: torch.Tensor,
    *,
    rtol: float,
    max_iterations: int,
    guard: bool = False,
) -> Solution:
    """Solve ``M x = b`` by conjugate gradients (Hestenes and Stiefel 1952) for every row of ``b (rows, m)``.

    A row stops at its own tolerance, so that its answer does not depend on the rows beside it.

    Args:
        apply: ``M`` on ``(rows, m)``, symmetric for every row.
        b: right-hand sides.
        rtol: tolerance of ``|b - M x| / |b|``.
        max_iterations: most products with ``M``.
        guard: stop a row where ``p^T M p <= 0``, keeping what it has (Steihaug 1983).

    Example:
        >>> cg(lambda v: 2 * v, torch.ones(1, 3), rtol=1e-6, max_iterations=5).x
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    x, r, p = torch.zeros_like(b), b, b
    rs = (r * r).sum(1)
    scale = rs.clamp(min=torch.finfo(b.dtype).tiny)
    negative = torch.zeros(len(b), dtype=torch.bool, device=b.device)
    iterations = 0
    for _ in range(max_iterations):
        active = (rs > rtol**2 * scale) & ~negative
        if not bool(active.any()):
            break
        iterations += 1
        q = apply(p)
        curvature = (p * q).sum(1)
        if guard:
            negative = negative | (active & (curvature <= 0))
            active = active & ~negative
        alpha = torch.where(active, rs / torch.where(active, curvature, 1.0), 0.0)[:, None]
        x, r = x + alpha * p, r - alpha * q
        fresh = (r * r).sum(1)
        beta = torch.where(active, fresh / torch.where(active, rs, 1.0), 0.0)[:, None]
        p, rs = torch.where(active[:, None], r + beta * p, p), torch.where(active, fresh, rs)
    return Solution(x, (rs / scale).sqrt(), negative, iterations)
