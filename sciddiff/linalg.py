"""Krylov solves for batches of symmetric systems, one per row, and linear maps that autograd cannot see through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

__all__ = ["Solution", "cg", "linear_map"]

Product = Callable[[torch.Tensor], torch.Tensor]


@final
@dataclass(frozen=True)
class Solution:
    """What `cg` found, per row: ``x``, the relative residual, and whether curvature turned negative.

    Attributes:
        x: ``(rows, m)``.
        residual: ``|b - M x| / |b|`` in the norm of the preconditioner, ``(rows,)``; recomputed from ``x`` at
            the end, and not only updated on the way, except where ``guard`` was on.
        negative: rows that met ``p^T M p <= 0``.
        iterations: most iterations that a row took.
    """

    x: torch.Tensor
    residual: torch.Tensor
    negative: torch.Tensor
    iterations: int


def cg(
    apply: Product,
    b: torch.Tensor,
    *,
    rtol: float,
    max_iterations: int,
    guard: bool = False,
    precondition: Product | None = None,
) -> Solution:
    """Solve ``M x = b`` by conjugate gradients (Hestenes and Stiefel 1952) for every row of ``b (rows, m)``.

    A row stops at its own tolerance, so that its answer does not depend on the rows beside it. Rounding
    parts the residual that the recursion carries from the true one; where that has happened a row starts
    again from what it has, as long as this at least halves its residual.

    Args:
        apply: ``M`` on ``(rows, m)``, symmetric for every row.
        b: right-hand sides.
        rtol: tolerance of ``|b - M x| / |b|``, with ``|r|^2 = r^T P r``.
        max_iterations: most products with ``M`` on the way, per row.
        guard: stop a row where ``p^T M p <= 0``, keeping what it has (Steihaug 1983).
        precondition: ``P``, symmetric positive definite on the rows; None for the identity.

    Example:
        >>> cg(lambda v: 2 * v, torch.ones(1, 3), rtol=1e-6, max_iterations=5).x
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    x, r = torch.zeros_like(b), b
    used = torch.zeros(len(b), dtype=torch.long, device=b.device)
    negative = torch.zeros(len(b), dtype=torch.bool, device=b.device)
    done = torch.zeros_like(negative)
    z = r if precondition is None else precondition(r)
    p, rho = z, (r * z).sum(1)
    scale, before = rho.clamp(min=torch.finfo(b.dtype).tiny), rho
    while True:
        while bool((active := (rho > rtol**2 * scale) & ~done & ~negative & (used < max_iterations)).any()):
            q = apply(p)
            curvature = (p * q).sum(1)
            if guard:
                negative = negative | (active & (curvature <= 0))
                active = active & ~negative
            used = used + active
            alpha = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)[:, None]
            x, r = x + alpha * p, torch.where(active[:, None], r - alpha * q, r)
            z = r if precondition is None else precondition(r)
            fresh = (r * z).sum(1)
            beta = torch.where(active, fresh / torch.where(active, rho, 1.0), 0.0)[:, None]
            p, rho = torch.where(active[:, None], z + beta * p, p), torch.where(active, fresh, rho)
        if guard or not bool(used.any()):
            break
        r = b - apply(x)
        z = r if precondition is None else precondition(r)
        p, rho = z, (r * z).sum(1)
        done = done | (rho <= rtol**2 * scale) | ~(rho < 0.25 * before) | (used >= max_iterations)
        if bool(done.all()):
            break
        before = rho
    return Solution(x, (rho / scale).sqrt(), negative, int(used.max()) if len(used) else 0)


def linear_map(x: torch.Tensor, forward: Product, transposed: Product) -> torch.Tensor:
    """``A x`` by two plain functions of detached tensors, ``A`` and ``A^T``, that autograd need not see through.

    The derivative of ``x -> A x`` in direction ``v`` is ``A v`` and its VJP is ``A^T``, whose own VJP is ``A``
    again. That is all that autograd needs, to any order, in forward mode and under `torch.func.vmap`.

    Args:
        x: a batch ``(rows, ...)``.
        forward: ``A`` on any batch, also an empty one.
        transposed: ``A^T``.

    Example:
        >>> x = torch.ones(1, 3, requires_grad=True)
        >>> torch.autograd.grad(linear_map(x, lambda v: v.cumsum(1), lambda v: v.flip(1).cumsum(1).flip(1)).sum(), x)[0]
        tensor([[3., 2., 1.]])
    """
    out: torch.Tensor = _Linear.apply(x, forward, transposed)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """``forward(x)`` with VJP ``transposed``, whose VJP is ``forward``."""

    @staticmethod
    def forward(x: torch.Tensor, forward: Product, transposed: Product) -> torch.Tensor:
        return forward(x.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.maps = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        forward, transposed = ctx.maps
        return linear_map(grads[0], transposed, forward), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        forward, transposed = ctx.maps
        return linear_map(tangents[0], forward, transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, forward: Product, transposed: Product
    ) -> tuple[torch.Tensor, int]:
        assert in_dims[0] is not None  # vmap is entered only with a mapped argument, and x is the only tensor
        x = x.movedim(in_dims[0], 0)
        out = linear_map(x.flatten(0, 1), forward, transposed)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
