"""Covariances from what a user has: variances, a matrix, a kernel, a spectrum, a graph or a symmetry.

Each finds the eigenvalues ``lambda`` and the basis ``B`` of ``Sigma = B diag(lambda) B^T``; `precision` alone
keeps the inverse, because it is sparse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sciddiff.covariance.arrays import DENSE_LIMIT, as_float64, as_shape
from sciddiff.covariance.bases import Axes, Full, Standard, Symmetric
from sciddiff.covariance.kinds import Eigen, Precision
from sciddiff.errors import InputError
from sciddiff.spaces import Space

__all__ = [
    "centred",
    "dense",
    "diagonal",
    "frequencies",
    "graph",
    "kernel",
    "precision",
    "spectral",
    "symmetric",
    "white",
]


def white(shape: Sequence[int], variance: float = 1.0) -> Eigen:
    """``variance`` times the identity.

    Example:
        >>> white((2, 3)).rank
        6
    """
    if (
        isinstance(variance, bool)
        or not isinstance(variance, (int, float, np.number))
        or not 0 <= variance < math.inf
    ):
        raise InputError(
            "variance",
            expected="a finite number of at least 0",
            got=repr(variance),
            fix="give one variance, or an array of them to diagonal()",
        )
    shape = as_shape(shape)
    return Eigen(Standard(shape), torch.full(shape, float(variance), dtype=torch.float64))


def diagonal(variances: Any) -> Eigen:
    """Independent values with these variances; a 0/1 array is the projector onto a mask.

    Example:
        >>> diagonal([1.0, 0.0, 2.0]).rank
        2
    """
    values = as_float64(variances, "variances")
    if values.ndim == 0 or values.numel() == 0 or bool((values < 0).any()):
        raise InputError(
            "variances",
            expected="an array of variances of at least 0, of the shape of a state",
            got=f"shape {tuple(values.shape)}, smallest {float(values.min()) if values.numel() else math.nan:.3g}",
            fix="use white(shape, variance) for one number; a negative variance is an error upstream",
        )
    return Eigen(Standard(tuple(values.shape)), values)


def dense(matrix: Any, shape: Sequence[int] | None = None, *, tolerance: float = 1e-12) -> Eigen:
    """A full covariance matrix ``(size, size)``, possibly rank-deficient.

    Directions below ``tolerance`` of the variance count as zero: there are as many of them as eigenvalues below
    ``tolerance`` times the largest of the correlations, so that a value in small units is not taken for a constant.

    Raises:
        InputError: if it is not square, symmetric and positive semi-definite, or has over 8192 rows.
    """
    values = as_float64(matrix, "matrix")
    n = values.shape[0] if values.ndim == 2 else 0
    shape = (n,) if shape is None else as_shape(shape)
    if values.ndim != 2 or n == 0 or values.shape != (n, n) or n != math.prod(shape):
        raise InputError(
            "matrix",
            expected=f"a square matrix of {math.prod(shape) or 'some'} rows",
            got=f"shape {tuple(values.shape)}",
            fix="one row and column per value of the state",
        )
    if n > DENSE_LIMIT:
        raise InputError(
            "matrix",
            expected=f"at most {DENSE_LIMIT} rows",
            got=n,
            fix="use spectral() or precision(), which form no matrix",
        )
    if (values - values.T).abs().max() > 1e-8 * values.abs().max():
        raise InputError(
            "matrix", expected="a symmetric matrix", got="an asymmetric one", fix="pass (S + S.T) / 2"
        )
    values = (values + values.T) / 2
    eigenvalues, vectors = torch.linalg.eigh(values)
    top = float(eigenvalues[-1])
    if float(eigenvalues[0]) < -1e-8 * max(top, 0.0) or top < 0:
        raise InputError(
            "matrix",
            expected="a positive semi-definite matrix",
            got=f"a smallest eigenvalue of {float(eigenvalues[0]):.3g}",
            fix="check the covariance, or add a small multiple of the identity",
        )
    variance = values.diagonal()
    uneven = bool((variance < 1e-4 * variance.max()).any())
    if uneven and (found := _uneven(values, tolerance)) is not None:
        return Eigen(Full(shape, found[1]), found[0], values)
    kept = torch.where(eigenvalues > tolerance * top, eigenvalues, 0.0)
    return Eigen(Full(shape, vectors), kept, values if uneven else None)


def _uneven(matrix: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Eigenvalues and eigenvectors where variances are of very different size; the rank is that of the correlations.

    By the singular values of ``S R``, ``S`` the standard deviations and ``R`` a root of the correlations, whose large rows
    come first: rounding is then of the size of each row. None where the correlations are those of rounding.
    """
    scale = matrix.diagonal().clamp_min(0).sqrt()
    units = torch.where(scale > 0, scale, 1.0)
    values, basis = torch.linalg.eigh(matrix / units[:, None] / units)
    if float(values[0]) < -1e-8 * float(values[-1]):
        return None
    values = torch.where(values > tolerance * values[-1], values, 0.0)
    order = units.argsort(descending=True)
    left, singular, _ = torch.linalg.svd((units[:, None] * basis * values.sqrt())[order])
    vectors = torch.empty_like(left)
    vectors[order] = left
    singular[int((values > 0).sum()) :] = 0.0
    return singular.square(), vectors


def kernel(function: Callable[[np.ndarray], np.ndarray], points: Any) -> Eigen:
    """A process at 1-D points, from its stationary kernel ``k(|s - t|)``; points may be irregular, dates count days.

    Example:
        >>> kernel(lambda h: np.exp(-h), [0.0, 0.5, 2.0]).shape
        (3,)
    """
    t = np.asarray(points)
    if t.ndim != 1 or t.size == 0 or t.dtype.kind not in "iufM" or not np.isfinite(t).all():
        raise InputError(
            "points",
            expected="1-D points, finite numbers or dates",
            got=f"shape {t.shape} of dtype {t.dtype}",
            fix="pass one coordinate per value",
        )
    t = (t - t[0]) / np.timedelta64(1, "D") if t.dtype.kind == "M" else t.astype(np.float64)
    return dense(function(np.abs(t[:, None] - t[None, :])))


def spectral(
    shape: Sequence[int], eigenvalues: Any, boundary: str | Sequence[str], *, axes: int | None = None
) -> Eigen:
    """A covariance that is diagonal in the modes of a regular grid.

    Args:
        shape: shape of one state; the grid is its last axes.
        eigenvalues: one per mode, broadcastable to ``shape`` (a leading axis: one spectrum a component).
            Along a "periodic" axis of n points mode k is the constant, then cosine and sine of
            frequency 1, 2, ... (see `frequencies`); "neumann" modes are the DCT-II's, "dirichlet" the DST-I's.
        boundary: "periodic", "neumann" or "dirichlet", one for all grid axes or one each.
        axes: number of grid axes; default: as many as ``boundary`` names, else all.

    Example:
        >>> spectral((4,), [0.0, 1.0, 1.0, 1.0], "neumann").rank      # zero mean
        3
    """
    shape = as_shape(shape)
    if isinstance(boundary, str):
        boundary = [boundary] * (len(shape) if axes is None else axes)
    if not 0 < len(boundary) <= len(shape) or axes not in (None, len(boundary)):
        raise InputError(
            "boundary",
            expected=f"one boundary, or one for each of {axes or 'the last'} axes of shape {shape}",
            got=f"{len(boundary)} of them, and axes={axes}",
            fix="give as many as the grid has axes",
        )
    matrices = [_modes(n, b) for n, b in zip(shape[len(shape) - len(boundary) :], boundary, strict=True)]
    values = as_float64(eigenvalues, "eigenvalues")
    try:
        values = torch.broadcast_to(values, shape).contiguous()
    except RuntimeError as error:
        raise InputError(
            "eigenvalues",
            expected=f"a shape broadcastable to {shape}",
            got=tuple(values.shape),
            fix="one eigenvalue per mode",
        ) from error
    return Eigen(Axes(shape, matrices), values)


def frequencies(n: int, boundary: str) -> np.ndarray:
    """Half-periods per domain of the n modes of `spectral`, so that ``-Laplacian = (pi k / length)^2``.

    Example:
        >>> frequencies(5, "periodic").tolist(), frequencies(3, "dirichlet").tolist()
        ([0.0, 2.0, 2.0, 4.0, 4.0], [1.0, 2.0, 3.0])
    """
    if boundary == "periodic":
        return 2.0 * ((np.arange(n) + 1) // 2)
    return np.arange(n, dtype=np.float64) + (1.0 if boundary == "dirichlet" else 0.0)


def graph(space: Space, function: Callable[[np.ndarray], np.ndarray], *, dim: str = "node") -> Eigen:
    """A covariance ``f(L)`` of the combinatorial Laplacian ``L`` of the space's graph.

    Args:
        space: a space with `edges`, whose states are ``(nodes,)`` or ``(components, nodes)``.
        function: maps the Laplacian's eigenvalues to variances, e.g. ``lambda l: (l + 1) ** -2``.
        dim: the node dim.
    """
    if space.edges is None or dim not in space.sizes or space.shape[-1] != space.sizes[dim]:
        raise InputError(
            "space",
            expected=f"a space of node values with edges and a dim {dim!r}",
            got=space,
            fix="build it with Space({'node': n}, edges=...)",
        )
    n = space.sizes[dim]
    if space.edges.size and space.edges.max() >= n:
        raise InputError(
            "space",
            expected=f"edges between the {n} nodes of {dim!r}",
            got=f"node number {int(space.edges.max())}",
            fix="count the nodes from 0, or name the node dim",
        )
    laplacian = np.zeros((n, n))
    for i, j in space.edges.T:
        laplacian[[i, j], [i, j]] += 1.0
        laplacian[[i, j], [j, i]] -= 1.0
    eigenvalues, vectors = np.linalg.eigh(laplacian)
    values = as_float64(function(eigenvalues.clip(min=0.0)), "function")
    if tuple(values.shape) not in ((), (n,)):
        raise InputError(
            "function",
            expected=f"one variance for each of {n} eigenvalues",
            got=f"shape {tuple(values.shape)}",
            fix="let it act on an array value by value",
        )
    basis = Axes(space.shape, [torch.tensor(vectors)])
    return Eigen(basis, torch.broadcast_to(values, space.shape).contiguous())


def precision(matrix: Any, shape: Sequence[int] | None = None) -> Precision:
    """The inverse of a sparse positive definite precision matrix (scipy sparse)."""
    return Precision((matrix.shape[0],) if shape is None else shape, matrix)


def centred(shape: Sequence[int], axis: int = -1) -> Eigen:
    """The projector onto states whose mean along one axis is zero (particles without a centre of mass).

    Example:
        >>> centred((3, 4)).rank
        9
    """
    shape = as_shape(shape)
    if not -len(shape) <= axis < len(shape):
        raise InputError(
            "axis", expected=f"an axis of shape {shape}", got=axis, fix="count from 0, or from -1 backwards"
        )
    axis = axis % len(shape)
    matrices: list[torch.Tensor | None] = [None] * len(shape)
    matrices[axis] = _modes(shape[axis], "neumann")
    values = torch.ones(shape, dtype=torch.float64)
    values.select(axis, 0).zero_()
    return Eigen(Axes(shape, matrices), values)


def symmetric(shape: Sequence[int]) -> Eigen:
    """The projector onto symmetric matrices on the last two axes (adjacency matrices).

    Example:
        >>> symmetric((4, 4)).rank
        10
    """
    shape = as_shape(shape)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise InputError(
            "shape", expected="square matrices on the last two axes", got=shape, fix="give (..., n, n)"
        )
    return Eigen(Symmetric(shape), torch.ones(shape, dtype=torch.float64).triu())


def _modes(n: int, boundary: str) -> torch.Tensor:
    """Orthonormal modes as columns, by applying scipy's transforms to the identity."""
    from scipy import fft

    if boundary == "neumann":
        return torch.tensor(fft.idct(np.eye(n), axis=0, norm="ortho"))
    if boundary == "dirichlet":
        return torch.tensor(fft.idst(np.eye(n), type=1, axis=0, norm="ortho"))
    if boundary != "periodic":
        raise InputError(
            "boundary",
            expected="'periodic', 'neumann' or 'dirichlet'",
            got=repr(boundary),
            fix="choose one of the three",
        )
    k, t = (np.arange(n) + 1) // 2, np.arange(n)[:, None] * 2 * np.pi / n
    waves = np.where(np.arange(n) % 2 == 1, np.cos(k * t), np.sin(k * t))
    waves[:, 0] = 1.0
    return torch.tensor(waves / np.linalg.norm(waves, axis=0))
