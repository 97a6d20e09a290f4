"""Steady fields and their sources: ``f -> u`` with ``-div(kappa grad u) + c u = f`` on a grid.

Second-order finite differences on the points of the grid, which include those of the boundary; `stencils`
says how they are built. ``u = (K + V c)^-1 V f`` is linear in ``f``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator
from sciddiff.operators.external import External
from sciddiff.operators.grids import spacing, stacked
from sciddiff.operators.stencils import (
    axis_parts,
    coefficient,
    factorise,
    sides_of,
    singular,
    solution_space,
    stencil,
)
from sciddiff.spaces import Space

__all__ = ["elliptic", "helmholtz", "poisson"]

_LARGEST_MODES = 1024
_AT_ONCE = 4
"""Right-hand sides in one sparse solve; more of them fall out of the cache and take three times as long."""


def elliptic(
    domain: Space,
    codomain: Space | None = None,
    *,
    diffusion: Any = 1.0,
    reaction: Any = 0.0,
    boundary: str | Sequence[str] = "dirichlet",
) -> LinearOperator:
    """The solution ``u`` of ``-div(diffusion grad u) + reaction u = f``, a linear function of ``f``.

    Constant coefficients are solved by fast diagonalisation (Lynch, Rice and Thomas 1964, "Direct solution
    of partial difference equations by tensor product methods"): two small matrix products per axis, on any
    device, in the dtype of the input. Varying ones are solved in float64 on the CPU with one sparse LU
    factorisation, made here once. Every variable of the domain is solved for alike.

    Args:
        domain: the space of ``f``: 1 to 3 dims with evenly spaced coords, whose units are those of length.
        codomain: the space of ``u``, on the same dims. Default: one variable ``"u"``, or the domain's names.
        diffusion: a number, or values on the grid, all of one sign. Negative ones flip the sign of the
            equation: ``diffusion=-1`` is ``Lap u + reaction u = f``.
        reaction: a number, or values on the grid.
        boundary: "dirichlet" (``u = 0`` on the outermost points), "neumann" (no flux; the outermost points
            are on the boundary) or "periodic" (the last point is one step before the first); one for all
            dims or one each.

    Raises:
        InputError: on uneven or missing coords, coefficients of mixed sign or another shape, or an equation
            without a unique solution (no Dirichlet side and no reaction, or a resonance).

    Example:
        >>> space = Space({"x": np.linspace(0, 1, 5)}, "f")
        >>> elliptic(space).apply(torch.full((1, 5), 2.0)).round(decimals=6).tolist()      # u = x (1 - x)
        [[0.0, 0.1875, 0.25, 0.1875, 0.0]]
    """
    stacked(domain, "domain", (1, 2, 3))
    steps = spacing(domain, domain.dims, labelled=True)
    sides = sides_of(domain, boundary)
    kappa, c = coefficient(domain, diffusion, "diffusion"), coefficient(domain, reaction, "reaction")
    if not ((kappa > 0).all() or (kappa < 0).all()):
        raise InputError(
            "diffusion",
            expected="values that are all positive or all negative",
            got=f"{kappa.min():g} to {kappa.max():g}",
            fix="use a diffusion that nowhere vanishes",
        )
    codomain = solution_space(domain, codomain)
    if kappa.ndim == 0 and c.ndim == 0 and max(domain.grid) <= _LARGEST_MODES:
        return _Modes(domain, codomain, steps, sides, float(kappa), float(c))
    return _Factorised(domain, codomain, steps, sides, kappa, c)


def poisson(domain: Space, codomain: Space | None = None) -> LinearOperator:
    """The solution ``u`` of ``Lap u = a`` with ``u = 0`` on the outermost points of the grid.

    On ``n`` points ``linspace(0, 1, n)`` per dim, ``h = 1/(n - 1)``, it is the five-point scheme that made
    the data of Huang et al. 2024, "DiffusionPDE: generative PDE-solving under partial observation", where
    ``a`` on the outermost points does not count either.

    Args:
        domain: the space of ``a``; see `elliptic`.
        codomain: the space of ``u``.

    Raises:
        InputError: as `elliptic`.

    Example:
        >>> space = Space({"y": np.linspace(0, 1, 8), "x": np.linspace(0, 1, 8)}, "a")
        >>> bool((poisson(space).apply(torch.ones(1, 8, 8)) <= 0).all())
        True
    """
    return elliptic(domain, codomain, diffusion=-1.0)


def helmholtz(domain: Space, wavenumber: float, codomain: Space | None = None) -> LinearOperator:
    """The solution ``u`` of ``Lap u + wavenumber^2 u = a`` with ``u = 0`` on the outermost points.

    Args:
        domain: the space of ``a``; see `elliptic`.
        wavenumber: radians per unit of the coords.
        codomain: the space of ``u``.

    Raises:
        InputError: as `elliptic`, and at a resonance.

    Example:
        >>> space = Space({"y": np.linspace(0, 1, 8), "x": np.linspace(0, 1, 8)}, "a")
        >>> helmholtz(space, 1.0).codomain
        Space(u on (y: 8, x: 8))
    """
    return elliptic(domain, codomain, diffusion=-1.0, reaction=float(wavenumber) ** 2)


@final
class _Modes(LinearOperator):
    """Constant coefficients: ``u = M (1/(kappa lambda + c)) N f``, a pair ``M, N`` of matrices an axis."""

    def __init__(
        self,
        domain: Space,
        codomain: Space,
        steps: Sequence[float],
        sides: Sequence[str],
        kappa: float,
        c: float,
    ) -> None:
        self.domain, self.codomain = domain, codomain
        values, self.synthesis, self.analysis = [], [], []
        for n, h, side in zip(domain.grid, steps, sides, strict=True):
            difference, volume, free = axis_parts(n, side)
            root = np.sqrt(volume[free])
            half = difference.toarray()[:, free] / h / root
            eigenvalues, q = np.linalg.eigh(half.T @ half)
            embed = np.eye(n)[:, free]
            values.append(eigenvalues)
            self.synthesis.append(torch.from_numpy(embed @ (q / root[:, None])))
            self.analysis.append(torch.from_numpy((q.T * root) @ embed.T))
        total = kappa * reduce(np.add.outer, values) + c
        if np.abs(total).min() <= 1e-12 * np.abs(total).max():
            raise singular()
        self.inverse = torch.from_numpy(1.0 / total)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Expand in the modes, divide, sum up."""
        return _along_axes(_along_axes(x, self.analysis) * self.inverse.to(x), self.synthesis)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The transposed matrices in reverse order."""
        modes = _along_axes(y, [m.T for m in self.synthesis]) * self.inverse.to(y)
        return _along_axes(modes, [m.T for m in self.analysis])


def _along_axes(x: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    n = len(matrices)
    for axis, matrix in enumerate(matrices):
        m = matrix.to(x)
        # all but the last axis: a batched product from the left, which needs no copy of the field
        x = x @ m.T if axis == n - 1 else (m @ x.flatten(axis - n + 1)).unflatten(-1, x.shape[axis - n + 1 :])
    return x


@final
class _Factorised(External):
    """Varying coefficients: one sparse LU of ``K + V c`` on the free points, solved for all rows at once."""

    def __init__(
        self,
        domain: Space,
        codomain: Space,
        steps: Sequence[float],
        sides: Sequence[str],
        kappa: np.ndarray,
        c: np.ndarray,
    ) -> None:
        import scipy.sparse as sp

        self.domain, self.codomain = domain, codomain
        difference, mean, volume, self.free = stencil(domain.grid, steps, sides)
        self.volume = volume[self.free]
        faces = mean @ np.broadcast_to(kappa, domain.grid).reshape(-1)
        mass = self.volume * np.broadcast_to(c, domain.grid).reshape(-1)[self.free]
        self._lu = factorise(difference.T @ sp.diags(faces) @ difference + sp.diags(mass))

    def _solve(self, x: torch.Tensor, trans: str, shape: tuple[int, ...]) -> torch.Tensor:
        points = int(np.prod(self.domain.grid))
        rows = x.double().cpu().numpy().reshape(-1, points)
        out = np.zeros(rows.shape)
        right = rows[:, self.free] * (self.volume if trans == "N" else 1.0)
        for i in range(0, len(rows), _AT_ONCE):
            some = np.asfortranarray(right[i : i + _AT_ONCE].T)
            out[i : i + _AT_ONCE, self.free] = self._lu.solve(some, trans=trans).T
        if trans == "T":
            out[:, self.free] *= self.volume
        return torch.from_numpy(out).to(x).reshape(x.shape[0], *shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``u = (K + V c)^-1 V f``."""
        return self._solve(x, "N", self.codomain.shape)

    def transposed(self, y: torch.Tensor) -> torch.Tensor:
        """``V (K + V c)^-T u``."""
        return self._solve(y, "T", self.domain.shape)
