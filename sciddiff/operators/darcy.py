"""Flow through a medium: the pressure as a function of the permeability, ``-div(kappa grad u) + c u = f``.

The solution is that of `elliptic`; here ``kappa`` is the state, so that the map is not linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import Operator
from sciddiff.operators.basic import Matrix
from sciddiff.operators.grids import spacing, stacked
from sciddiff.operators.stencils import coefficient, factorise, sides_of, solution_space, stencil
from sciddiff.spaces import Space

__all__ = ["Darcy"]


@final
class Darcy(Operator):
    """The solution ``u`` of ``-div(kappa grad u) + reaction u = source``, as a function of ``kappa``.

    The gradient is the adjoint one: with ``K(kappa) u = b`` and ``K lambda = v`` it is
    ``-M^T (D u * D lambda)``, one more solve with the same factors per VJP, and differentiable again. Every
    state is factorised on the CPU in float64, about 0.1 s at 128 x 128.

    Args:
        domain: the space of ``kappa``, one real variable; see `elliptic` for its coords.
        codomain: the space of ``u``; default: one variable ``"u"``.
        source: a number, or values on the grid.
        reaction: a number, or values on the grid.
        boundary: as in `elliptic`.

    Raises:
        InputError: as `elliptic`, and, when applied, on values of ``kappa`` that are not positive.

    Example:
        >>> flow = Darcy(Space({"t": np.linspace(0, 1, 5)}, "permeability"), source=2.0)
        >>> flow.apply(torch.full((1, 5), 2.0)).round(decimals=6).tolist()      # u = x (1 - x) / 2
        [[0.0, 0.09375, 0.125, 0.09375, 0.0]]
    """

    def __init__(
        self,
        domain: Space,
        codomain: Space | None = None,
        *,
        source: Any = 1.0,
        reaction: Any = 0.0,
        boundary: str | Sequence[str] = "dirichlet",
    ) -> None:
        stacked(domain, "domain", (1, 2, 3))
        if len(domain.components) != 1:
            raise InputError(
                "domain", expected="one real variable, the diffusion", got=domain, fix="select it first"
            )
        steps = spacing(domain, domain.dims, labelled=True)
        difference, mean, volume, self.free = stencil(domain.grid, steps, sides_of(domain, boundary))
        c, f = (
            np.broadcast_to(coefficient(domain, v, n), domain.grid).reshape(-1)
            for v, n in ((reaction, "reaction"), (source, "source"))
        )
        self.domain, self.codomain = domain, solution_space(domain, codomain)
        self.right = torch.from_numpy((volume * f)[self.free])
        self._mass, self._parts = (volume * c)[self.free], (difference, mean)
        points, faces = Space({"point": volume.size}), Space({"face": mean.shape[0]})
        self.mean = Matrix(points, faces, mean)
        self.difference = Matrix(Space({"point": len(self.free)}), faces, difference)
        self.factors(np.ones((1, volume.size)))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Solve for every row."""
        kappa = x.reshape(x.shape[0], math.prod(self.domain.grid)).double()
        if not bool((kappa > 0).all()):
            raise InputError(
                "x",
                expected="a positive diffusion",
                got=f"values down to {float(kappa.min()):.3g}",
                fix="put the prior on its logarithm, and use Darcy(...) @ from_torch(torch.exp, s, s)",
            )
        right = self.right.to(x.device).expand(x.shape[0], -1)
        free: torch.Tensor = _Solve.apply(kappa, right, self, None)  # type: ignore[no-untyped-call]
        out = kappa.new_zeros(kappa.shape).index_copy(1, torch.from_numpy(self.free).to(x.device), free)
        return out.to(x.dtype).reshape(x.shape[0], *self.codomain.shape)

    def factors(self, kappa: np.ndarray) -> list[Any]:
        """The sparse LU of every row."""
        import scipy.sparse as sp

        difference, mean = self._parts
        return [
            factorise(difference.T @ sp.diags(mean @ row) @ difference + sp.diags(self._mass))
            for row in kappa
        ]


class _Solve(torch.autograd.Function):
    """``u = K(kappa)^-1 b`` row by row; ``K`` is symmetric, and so the adjoint is another one of these."""

    @staticmethod
    def forward(ctx: Any, kappa: torch.Tensor, b: torch.Tensor, problem: Darcy, factors: Any) -> torch.Tensor:
        factors = problem.factors(kappa.cpu().numpy()) if factors is None else factors
        rows = [lu.solve(row) for lu, row in zip(factors, b.double().cpu().numpy(), strict=True)]
        u = torch.from_numpy(np.stack(rows)).to(b) if rows else torch.zeros_like(b)
        ctx.save_for_backward(kappa, u)
        ctx.problem, ctx.factors = problem, factors
        return u

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        kappa, u = ctx.saved_tensors
        difference, mean = ctx.problem.difference, ctx.problem.mean
        v: torch.Tensor = _Solve.apply(kappa, grads[0], ctx.problem, ctx.factors)  # type: ignore[no-untyped-call]
        return -mean.adjoint(difference.apply(u) * difference.apply(v)), v, None, None
