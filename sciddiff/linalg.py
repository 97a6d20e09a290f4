"""Krylov solves and square roots for batches of symmetric systems, one per row, and linear maps without autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

__all__ = ["Root", "Solution", "cg", "lanczos_root", "linear_map"]

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
    again from what it has, as long as this at least halves its residual. Unless ``guard`` is on or no row has
    anything to do, the last product is the one with the answer.

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


@final
@dataclass(frozen=True)
class Root:
    """What `lanczos_root` found, per row.

    Attributes:
        x: ``(rows, m)``.
        change: what the last product changed ``x`` by, relative to its length or that of ``sqrt(least) b``, ``(rows,)``.
        lowest, largest: the extreme Ritz values, ``(rows,)``; below 0 where the system is not positive.
        iterations: most products that a row took.
    """

    x: torch.Tensor
    change: torch.Tensor
    lowest: torch.Tensor
    largest: torch.Tensor
    iterations: int


def lanczos_root(
    apply: Product,
    b: torch.Tensor,
    *,
    rtol: float,
    max_iterations: int,
    metric: Product | None = None,
    least: float = 0.0,
) -> Root:
    """Give ``(M W)^1/2 b`` for every row of ``b (rows, m)``, by Lanczos with full reorthogonalisation.

    ``M W`` is self-adjoint in the inner product ``<a, b> = a^T W b``. With ``b ~ N(0, W^-1)`` the result is a draw of
    ``N(0, M)``: ``M W = F S F^-1`` with ``W^-1 = F F^T`` and a symmetric ``S``, so that ``b = F n`` gives ``F S^1/2 n``.
    In the Krylov space of ``b``, ``M W`` is a tridiagonal ``T`` and the answer ``|b| V T^1/2 e_1`` (Druskin and
    Knizhnerman 1989; Chow and Saad 2014, "Preconditioned Krylov subspace methods for sampling multivariate
    Gaussian distributions", eq. 3.2). A row stops where a product changes its answer by less than ``rtol`` of
    its length, so that the answer does not depend on the rows beside it.

    Args:
        apply: ``M`` on ``(rows, m)``, symmetric for every row.
        b: what the root is applied to; in the range of ``W`` where that is a pseudo-inverse.
        rtol: tolerance of the last change. The spectrum is met from its large end: what is left is in the
            directions of small variance.
        max_iterations: most products with ``M``, per row.
        metric: ``W``, symmetric and positive on the rows; None for the identity.
        least: an eigenvalue that is small: answers shorter than its root times ``|b|`` are held to that length, so that
            no product is spent on the rounding of a matrix of zeros.

    Example:
        >>> lanczos_root(lambda v: 4 * v, torch.ones(1, 3), rtol=1e-6, max_iterations=5).x
        tensor([[2.0000, 2.0000, 2.0000]])
    """
    length, v, dual = _unit(b, b if metric is None else metric(b))
    active, tiny = length > 0, 100 * torch.finfo(b.dtype).eps
    x, share = torch.zeros_like(b), b.new_zeros(len(b), 0)
    change, lowest, largest = (torch.zeros_like(length) for _ in range(3))
    basis: list[torch.Tensor] = []
    diagonal: list[torch.Tensor] = []
    beside: list[torch.Tensor] = []
    while len(basis) < max_iterations and bool(active.any()):
        basis.append(v)
        w = apply(dual)
        diagonal.append((w * dual).sum(1))
        found, low, high = _tridiagonal_root(diagonal, beside)
        every = torch.stack(basis, 1)
        for _ in range(2):  # once leaves too much where the products hardly leave the space
            w = w - (every.mT @ (every @ (w if metric is None else metric(w))[:, :, None]))[:, :, 0]
        norm, v, dual = _unit(w, w if metric is None else metric(w))
        beside.append(norm)
        gap = (found - torch.nn.functional.pad(share, (0, 1))).norm(dim=1)
        gap = gap / found.norm(dim=1).clamp(min=max(least**0.5, torch.finfo(b.dtype).tiny))
        # a space that the products do not leave holds the answer
        closed = (norm <= tiny * torch.maximum(high, -low)) | (len(basis) == b.shape[1])
        gap = torch.where(closed, 0.0, gap)
        share = found
        change, lowest, largest = (
            torch.where(active, new, old) for new, old in ((gap, change), (low, lowest), (high, largest))
        )
        x = torch.where(active[:, None], length[:, None] * (found[:, None] @ every)[:, 0], x)
        active = active & (change > rtol)
    return Root(x, change, lowest, largest, len(basis))


def _unit(v: torch.Tensor, dual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The length of every row in the metric, and the rows and their duals at unit length; zeros as they are."""
    length = (v * dual).sum(1).clamp(min=0).sqrt()
    by = torch.where(length > 0, length, 1.0)[:, None]
    return length, v / by, dual / by


def _tridiagonal_root(
    diagonal: list[torch.Tensor], beside: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``T^1/2 e_1`` for every row, ``(rows, k)``, with eigenvalues below 0 as 0, and the extreme eigenvalues."""
    t = torch.diag_embed(torch.stack(diagonal, 1))
    if beside:
        off = torch.stack(beside, 1)
        t = t + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    lam, q = torch.linalg.eigh(t.double())
    root = (q * (lam.clamp(min=0).sqrt() * q[:, 0])[:, None]).sum(2)
    return root.to(t), lam[:, 0].to(t), lam[:, -1].to(t)


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
