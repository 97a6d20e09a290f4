"""The finite differences under the elliptic operators.

With ``D`` the differences between neighbours over their distance, ``M`` the means from points to the faces
between them, and ``V`` the share of a point's cell inside the domain, ``-div(kappa grad u)`` is ``V^-1 K u``
with ``K = D^T diag(M kappa) D`` on the free points. A Dirichlet boundary holds ``u = 0`` on the outermost
points; at a Neumann boundary cells are halved; a periodic axis has one more face.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.grids import labels
from sciddiff.spaces import Space, Variable

__all__ = ["axis_parts", "coefficient", "factorise", "sides_of", "singular", "solution_space", "stencil"]


def axis_parts(n: int, side: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Sparse differences ``(faces, n)``, shares of a cell and free points along one axis."""
    import scipy.sparse as sp

    volume, free = np.ones(n), np.arange(n)
    if side == "periodic":
        return sp.diags([-1.0, 1.0, 1.0], [0, 1, 1 - n], shape=(n, n)).tocsr(), volume, free
    difference = sp.diags([-1.0, 1.0], [0, 1], shape=(n - 1, n)).tocsr()
    if side == "neumann":
        volume[[0, -1]] = 0.5
        return difference, volume, free
    return difference, volume, free[1:-1]


def stencil(
    grid: Sequence[int], steps: Sequence[float], sides: Sequence[str]
) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """``D`` on the free points, ``M`` and ``V`` on all points, and which points are free."""
    import scipy.sparse as sp

    parts = [axis_parts(n, side) for n, side in zip(grid, sides, strict=True)]
    volume = reduce(np.multiply.outer, [v for _, v, _ in parts]).reshape(-1)
    free = np.ravel_multi_index(np.ix_(*[f for _, _, f in parts]), tuple(grid)).reshape(-1)
    differences, means = [], []
    for axis, ((difference, _, _), h) in enumerate(zip(parts, steps, strict=True)):
        before, after = (sp.identity(math.prod(sizes)) for sizes in (grid[:axis], grid[axis + 1 :]))
        d = sp.kron(sp.kron(before, difference), after).tocsr()
        # kappa on a face is the mean of its two ends; the other axes' shares of a cell are the same on both
        shares = [v if a != axis else np.ones(len(v)) for a, (_, v, _) in enumerate(parts)]
        differences.append(d[:, free] / h)
        means.append(abs(d) @ sp.diags(reduce(np.multiply.outer, shares).reshape(-1) / 2))
    return sp.vstack(differences).tocsr(), sp.vstack(means).tocsr(), volume, free


def factorise(matrix: Any) -> Any:
    """Sparse LU of a symmetric matrix, refused where it is singular."""
    from scipy.sparse.linalg import splu

    try:
        lu = splu(matrix.tocsc(), "MMD_AT_PLUS_A", diag_pivot_thresh=0.01, options={"SymmetricMode": True})
    except RuntimeError as error:
        raise singular() from error
    _check_condition(matrix, lu)
    return lu


def _check_condition(matrix: Any, lu: Any) -> None:
    """Refuse a matrix that inverse iteration finds singular to rounding."""
    size = matrix.shape[0]
    v = np.random.Generator(np.random.Philox(0)).standard_normal(size)
    for _ in range(3):
        v = lu.solve(v / np.linalg.norm(v))
        if not np.linalg.norm(v) * abs(matrix).max() < 1e13:
            raise singular()


def singular() -> InputError:
    """The error of an equation without a unique solution."""
    return InputError(
        "reaction",
        expected="an equation with a unique solution",
        got="a singular one",
        fix="without a Dirichlet side add a positive reaction; at a resonance change the wavenumber",
    )


def sides_of(domain: Space, boundary: str | Sequence[str]) -> tuple[str, ...]:
    """The boundary condition of every dim."""
    sides = (boundary,) * len(domain.dims) if isinstance(boundary, str) else tuple(boundary)
    if len(sides) != len(domain.dims) or not set(sides) <= {"dirichlet", "neumann", "periodic"}:
        raise InputError(
            "boundary",
            expected=f"'dirichlet', 'neumann' or 'periodic', one or one for each of {domain.dims}",
            got=boundary,
            fix="choose one of the three",
        )
    if any(n < 3 for n in domain.grid):
        raise InputError(
            "domain", expected="at least 3 points along every dim", got=domain.sizes, fix="refine the grid"
        )
    return sides


def coefficient(domain: Space, values: Any, argument: str) -> np.ndarray:
    """A number, or values on the grid, in float64."""
    raw = (
        values.transpose(*domain.dims).values
        if hasattr(values, "transpose") and hasattr(values, "dims")
        else values
    )
    out = np.asarray(raw.detach().cpu() if isinstance(raw, torch.Tensor) else raw, dtype=np.float64)
    if out.shape not in ((), domain.grid) or not np.isfinite(out).all():
        raise InputError(
            argument,
            expected=f"a finite number, or finite values of shape {domain.grid}",
            got=f"shape {out.shape}",
            fix="give one value per grid point",
        )
    return out


def solution_space(domain: Space, codomain: Space | None) -> Space:
    """The codomain that was given, if it fits, or ``"u"`` on the same dims."""
    if codomain is None:
        names = ["u"] if len(domain.variables) == 1 else list(domain.variables)
        new = [Variable(domain.dims, complex=v.complex) for v in domain.variables.values()]
        return Space(labels(domain), dict(zip(names, new, strict=True)))
    if codomain.sizes != domain.sizes or codomain.shape != domain.shape:
        raise InputError(
            "codomain",
            expected=f"a space on {domain.sizes} with {len(domain.components)} component(s)",
            got=codomain,
            fix="put the solution on the dims of the source",
        )
    return codomain
