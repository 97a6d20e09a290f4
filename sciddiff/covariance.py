"""Covariances on the states of a space, known by their actions and never formed as d-by-d matrices.

Every covariance is ``Sigma = F F^T``; ``sqrt(z) = F z`` colours white noise, ``solve`` is the
pseudo-inverse on the range and ``logdet`` the log pseudo-determinant. Most are diagonal in a cheap
orthonormal basis ``B``: ``Sigma = B diag(lambda) B^T`` (`Eigen`); a sparse precision matrix is the other kind.

The exact Gaussian denoiser needs a prior covariance ``Sigma`` and the reference noise ``C`` at once:
`joint` finds ``T`` with ``C = T T^T`` and ``Sigma = T diag(lambda) T^T``, so that at noise level sigma
everything is a function of ``lambda``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.linalg import linear_map
from sciddiff.spaces import Space

__all__ = [
    "Axes",
    "Basis",
    "Covariance",
    "Eigen",
    "Full",
    "Joint",
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
    "precision",
    "scaled",
    "spectral",
    "symmetric",
    "white",
]

_DENSE_LIMIT = 8192
_FACTORS = 128
_Columns = Callable[[np.ndarray], np.ndarray]


class Covariance(ABC):
    """A covariance on tensors ``(..., *shape)``; the leading dims are a batch.

    Attributes:
        shape: shape of one state.
        white_shape: shape of the white noise that `sqrt` takes.
        rank: dimension of the range.
        logdet: log of the product of the non-zero eigenvalues.
    """

    shape: tuple[int, ...]
    white_shape: tuple[int, ...]
    rank: int
    logdet: float

    @abstractmethod
    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        """Colour white noise: ``F z`` for ``z`` of ``(..., *white_shape)``."""

    @abstractmethod
    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``F^T x``, ``(..., *white_shape)``."""

    @abstractmethod
    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """``Sigma^+ x``, the pseudo-inverse."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``Sigma x``."""
        return self.sqrt(self.sqrt_adjoint(x))

    def variance(self) -> torch.Tensor:
        """The diagonal of ``Sigma``, of shape ``shape``; by blocks of unit vectors where no formula is known."""
        n, out = math.prod(self.shape), []
        for start in range(0, n, 256):
            unit = torch.zeros(min(256, n - start), n, dtype=torch.float64)
            unit[torch.arange(len(unit)), start + torch.arange(len(unit))] = 1.0
            out.append((self.sqrt_adjoint(unit.reshape(-1, *self.shape)) ** 2).flatten(1).sum(1))
        return torch.cat(out).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape {tuple(self.shape)}, rank {self.rank})"


class Basis(ABC):
    """An orthonormal set of states: `analysis` gives coefficients ``B^T x``, `synthesis` is ``B c``."""

    shape: tuple[int, ...]
    coefficients: tuple[int, ...]

    @abstractmethod
    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """``B^T x``, ``(..., *coefficients)``."""

    @abstractmethod
    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """``B c``, ``(..., *shape)``."""

    @abstractmethod
    def same(self, other: Basis) -> bool:
        """Whether the coefficients of both mean the same."""

    def square(self, values: torch.Tensor) -> torch.Tensor | None:
        """``sum_k B_ik^2 values_k``, the diagonal of ``B diag(values) B^T``; None where it is not cheap."""
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.shape == other.shape and self.same(other)

    __hash__ = None  # type: ignore[assignment]


@final
class Standard(Basis):
    """The values themselves."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = self.coefficients = tuple(shape)

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """``x``."""
        return x

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """``c``."""
        return c

    def square(self, values: torch.Tensor) -> torch.Tensor:
        """``values``."""
        return values

    def same(self, other: Basis) -> bool:
        """Whether ``other`` is standard too."""
        return isinstance(other, Standard)


@final
class Axes(Basis):
    """A product basis: one orthonormal matrix ``(n, n)`` for each of the last axes, None for identity."""

    def __init__(self, shape: Sequence[int], matrices: Sequence[torch.Tensor | None]) -> None:
        self.shape = self.coefficients = tuple(shape)
        self.matrices = (None,) * (len(self.shape) - len(matrices)) + tuple(matrices)

    def _multiply(self, x: torch.Tensor, transpose: bool) -> torch.Tensor:
        n = len(self.shape)
        for axis, matrix in enumerate(self.matrices):
            if matrix is not None:
                # the last axis is one matrix product without a copy; the others are batched ones
                m = matrix.to(x) if transpose else matrix.to(x).T
                x = x @ m if axis == n - 1 else (x.movedim(axis - n, -1) @ m).movedim(-1, axis - n)
        return x

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the transposed matrices."""
        return self._multiply(x, True)

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """Multiply by the matrices."""
        return self._multiply(c, False)

    def square(self, values: torch.Tensor) -> torch.Tensor:
        """Multiply by the squared matrices."""
        return Axes(self.shape, [None if m is None else m**2 for m in self.matrices]).synthesis(values)

    def same(self, other: Basis) -> bool:
        """Whether ``other`` has the same matrices."""
        return isinstance(other, Axes) and all(
            (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))
            for a, b in zip(self.matrices, other.matrices, strict=True)
        )


@final
class Full(Basis):
    """The columns of a dense orthonormal matrix ``(size, size)``."""

    def __init__(self, shape: Sequence[int], columns: torch.Tensor) -> None:
        self.shape, self.columns = tuple(shape), columns
        self.coefficients = (columns.shape[1],)

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """``columns^T x``."""
        return _flat(x, self.shape) @ self.columns.to(x)

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """``columns c``."""
        return (c @ self.columns.to(c).T).reshape(*c.shape[:-1], *self.shape)

    def square(self, values: torch.Tensor) -> torch.Tensor:
        """``columns^2 values``."""
        return (self.columns**2 @ values).reshape(self.shape)

    def same(self, other: Basis) -> bool:
        """Whether ``other`` has the same columns."""
        return isinstance(other, Full) and torch.equal(self.columns, other.columns)


@final
class Symmetric(Basis):
    """Square matrices on the last two axes, split into their symmetric and antisymmetric parts."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = self.coefficients = tuple(shape)

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """Upper triangle: ``(x_ij + x_ji)/sqrt 2``; lower: their differences; diagonal: as it is."""
        xt = x.mT
        plus, minus = (x + xt) / math.sqrt(2), (x - xt) / math.sqrt(2)
        return plus.triu(1) + minus.tril(-1) + torch.diag_embed(torch.diagonal(x, dim1=-2, dim2=-1))

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """The inverse, which is the transpose."""
        up, low = c.triu(1), c.tril(-1)
        return (up + up.mT + low - low.mT) / math.sqrt(2) + torch.diag_embed(
            torch.diagonal(c, dim1=-2, dim2=-1)
        )

    def same(self, other: Basis) -> bool:
        """Whether ``other`` is of this kind."""
        return isinstance(other, Symmetric)


@final
class Eigen(Covariance):
    """``Sigma = B diag(eigenvalues) B^T``.

    Args:
        basis: the orthonormal basis ``B``.
        eigenvalues: non-negative, of the shape of the basis' coefficients; zeros are outside the range.
        matrix: ``Sigma`` itself, ``(size, size)``, where its variances are of very different size: the
            eigenvectors keep too few digits of the small ones to change the units by.

    Raises:
        InputError: on negative or non-finite eigenvalues or a wrong shape.
    """

    def __init__(self, basis: Basis, eigenvalues: torch.Tensor, matrix: torch.Tensor | None = None) -> None:
        if tuple(eigenvalues.shape) != basis.coefficients:
            raise InputError(
                "eigenvalues",
                expected=f"shape {basis.coefficients}",
                got=tuple(eigenvalues.shape),
                fix="give one eigenvalue per coefficient of the basis",
            )
        if not torch.isfinite(eigenvalues).all() or (eigenvalues < 0).any():
            raise InputError(
                "eigenvalues",
                expected="finite and non-negative numbers",
                got=f"values from {eigenvalues.min()} to {eigenvalues.max()}",
                fix="a covariance has no negative eigenvalue; check the matrix or the spectrum",
            )
        self.basis, self.eigenvalues, self.matrix = basis, eigenvalues, matrix
        self.shape, self.white_shape = basis.shape, basis.coefficients
        positive = eigenvalues[eigenvalues > 0].double()
        self.rank, self.logdet = positive.numel(), float(positive.log().sum())

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        """Give ``B lambda^1/2 z``."""
        return self.basis.synthesis(self.eigenvalues.to(z).sqrt() * z)

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``sqrt(lambda) B^T x``."""
        return self.eigenvalues.to(x).sqrt() * self.basis.analysis(x)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``B lambda B^T x``."""
        return self.basis.synthesis(self.eigenvalues.to(x) * self.basis.analysis(x))

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """``B lambda^+ B^T x``."""
        return self.basis.synthesis(_reciprocal(self.eigenvalues).to(x) * self.basis.analysis(x))

    def variance(self) -> torch.Tensor:
        """The diagonal of ``Sigma``."""
        if self.matrix is not None:
            return self.matrix.diagonal().reshape(self.shape)
        square = self.basis.square(self.eigenvalues)
        return super().variance() if square is None else square


@final
class Precision(Covariance):
    """The inverse of a sparse symmetric positive definite matrix ``Q`` (a Gaussian Markov field).

    ``Q = P^T L D L^T P`` by sparse LU in symmetric mode, so ``F = P^T L^-T D^-1/2``; on the CPU.

    Args:
        shape: shape of one state.
        matrix: scipy sparse ``(size, size)``, symmetric positive definite.
    """

    def __init__(self, shape: Sequence[int], matrix: Any) -> None:
        import scipy.sparse as sp

        self.shape = self.white_shape = _shape(shape)
        try:
            self.matrix = sp.csc_matrix(matrix).astype(np.float64, casting="same_kind")
        except (TypeError, ValueError) as error:
            raise InputError(
                "matrix",
                expected="a sparse matrix of real numbers",
                got=type(matrix).__name__,
                fix="pass a scipy sparse matrix",
            ) from error
        self.rank = self.matrix.shape[0]
        if self.matrix.shape != (math.prod(self.shape),) * 2:
            raise InputError(
                "matrix",
                expected=f"a square sparse matrix of {math.prod(self.shape)} rows",
                got=self.matrix.shape,
                fix="one row per value of the state",
            )
        if not np.isfinite(self.matrix.data).all():
            raise InputError("matrix", expected="finite numbers", got="NaN or infinity", fix="remove them")
        if abs(self.matrix - self.matrix.T).max() > 1e-10 * abs(self.matrix).max():
            raise InputError(
                "matrix",
                expected="a symmetric precision matrix",
                got="an asymmetric one",
                fix="pass (Q + Q.T) / 2",
            )
        self._lu = _symmetric_lu(self.matrix)
        self._pivots = self._lu.U.diagonal()
        if not (self._pivots > 0).all():
            raise InputError(
                "matrix",
                expected="a positive definite precision matrix",
                got=f"a pivot of {self._pivots.min():.3g}",
                fix="add a small multiple of the identity",
            )
        self.logdet = -float(np.log(self._pivots).sum())
        self._upper = sp.csr_matrix(self._lu.L.T)
        self._lower = sp.csr_matrix(self._lu.L)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """``Q x``."""
        return self._rows(x, self.matrix.__matmul__, self.matrix.__matmul__)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``Q^-1 x``."""
        return self._rows(x, self._lu.solve, self._lu.solve)

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        """``P^T L^-T D^-1/2 z``."""
        return self._rows(z, self._colour, self._whiten)

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``D^-1/2 L^-1 P x``."""
        return self._rows(x, self._whiten, self._colour)

    def _colour(self, columns: np.ndarray) -> np.ndarray:
        from scipy.sparse.linalg import spsolve_triangular

        scaled = self._pivots[:, None] ** -0.5 * columns
        return np.asarray(spsolve_triangular(self._upper, scaled, lower=False)[self._lu.perm_c])

    def _whiten(self, columns: np.ndarray) -> np.ndarray:
        from scipy.sparse.linalg import spsolve_triangular

        ordered = columns[np.argsort(self._lu.perm_c)]
        return np.asarray(
            self._pivots[:, None] ** -0.5 * spsolve_triangular(self._lower, ordered, lower=True)
        )

    def _rows(self, x: torch.Tensor, forward: _Columns, transposed: _Columns) -> torch.Tensor:
        flat = _flat(x, self.shape).reshape(-1, self.rank)
        return linear_map(flat, _by_columns(forward), _by_columns(transposed)).reshape(x.shape)


def _by_columns(function: _Columns) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of numpy columns as one of the rows of a tensor, in float64 on the CPU."""

    def apply(rows: torch.Tensor) -> torch.Tensor:
        if not len(rows):
            return rows.clone()
        return torch.tensor(function(rows.T.double().cpu().numpy()).T).to(rows)

    return apply


# -- makers ---------------------------------------------------------------------------------------


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
    shape = _shape(shape)
    return Eigen(Standard(shape), torch.full(shape, float(variance), dtype=torch.float64))


def diagonal(variances: Any) -> Eigen:
    """Independent values with these variances; a 0/1 array is the projector onto a mask.

    Example:
        >>> diagonal([1.0, 0.0, 2.0]).rank
        2
    """
    values = _float64(variances, "variances")
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

    Eigenvalues below ``tolerance`` times the largest count as zero.

    Raises:
        InputError: if it is not square, symmetric and positive semi-definite, or has over 8192 rows.
    """
    values = _float64(matrix, "matrix")
    n = values.shape[0] if values.ndim == 2 else 0
    shape = (n,) if shape is None else _shape(shape)
    if values.ndim != 2 or n == 0 or values.shape != (n, n) or n != math.prod(shape):
        raise InputError(
            "matrix",
            expected=f"a square matrix of {math.prod(shape) or 'some'} rows",
            got=f"shape {tuple(values.shape)}",
            fix="one row and column per value of the state",
        )
    if n > _DENSE_LIMIT:
        raise InputError(
            "matrix",
            expected=f"at most {_DENSE_LIMIT} rows",
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
    kept = torch.where(eigenvalues > tolerance * top, eigenvalues, 0.0)
    return Eigen(Full(shape, vectors), kept, values if uneven else None)


def kernel(function: Callable[[np.ndarray], np.ndarray], points: Any) -> Eigen:
    """A process at 1-D points, from its stationary kernel ``k(|s - t|)``; points may be irregular.

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
    shape = _shape(shape)
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
    values = _float64(eigenvalues, "eigenvalues")
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
    values = _float64(function(eigenvalues.clip(min=0.0)), "function")
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
    shape = _shape(shape)
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
    shape = _shape(shape)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise InputError(
            "shape", expected="square matrices on the last two axes", got=shape, fix="give (..., n, n)"
        )
    return Eigen(Symmetric(shape), torch.ones(shape, dtype=torch.float64).triu())


def multiple(covariance: Covariance, factor: float) -> Covariance:
    """``factor`` times a covariance.

    Example:
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
    return dense(_flat(covariance.apply(eye / scale) / scale, covariance.shape), covariance.shape)


# -- two covariances at once ------------------------------------------------------------------------


class Joint(ABC):
    """``Sigma`` and ``C`` at once: the Gaussian ``N(0, Sigma)`` seen through noise ``N(0, sigma^2 C)``.

    Attributes:
        largest: largest generalised eigenvalue of ``(Sigma, C)``, in units of sigma squared.
    """

    largest: float

    @abstractmethod
    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``Sigma (Sigma + variance C)^+ x``, the denoiser of centred states; variance broadcasts on x."""

    @abstractmethod
    def covariance(self, sigma: float) -> Covariance:
        """``Cov[x0 | x] = sigma^2 Sigma (Sigma + sigma^2 C)^+ C``."""

    @abstractmethod
    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """``log N(x; 0, Sigma + sigma^2 C)`` on its range, one number per row."""


@final
class _Spectrum(Joint):
    """``C = T T^T``, ``Sigma = T diag(eigenvalues) T^T``, ``T = frame C^1/2`` in a common basis."""

    def __init__(
        self, basis: Basis, frame: torch.Tensor | None, eigenvalues: torch.Tensor, noise: Covariance
    ) -> None:
        # frame holds sqrt of the eigenvalues of C where the basis is C's own, None where T is in `basis`
        self.basis, self.frame, self.eigenvalues, self.noise = basis, frame, eigenvalues, noise
        self.largest = float(eigenvalues.max())

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        c = self.basis.analysis(x)
        return c if self.frame is None else c * _reciprocal(self.frame).to(x)

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        return self.basis.synthesis(c if self.frame is None else c * self.frame.to(c))

    def adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``T^T x``."""
        if isinstance(self.basis, _Oblique):
            return self.basis.adjoint(x)
        c = self.basis.analysis(x)
        return c if self.frame is None else c * self.frame.to(x)

    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``T lambda/(lambda + variance) T^+ x``."""
        lam = self.eigenvalues.to(x)
        c = self.analysis(x)
        v = variance.reshape(*variance.shape, *(1,) * lam.ndim) if variance.ndim else variance
        return self.synthesis(c * _ratio(lam, v))

    def covariance(self, sigma: float) -> Covariance:
        """``sigma^2 T lambda/(lambda + sigma^2) T^T``."""
        return _Scaled(self, sigma**2 * _ratio(self.eigenvalues, torch.tensor(sigma**2, dtype=torch.float64)))

    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Over the coefficients, minus half the log determinant of ``C``."""
        total = (self.eigenvalues + sigma**2).to(x)
        used = total > 0 if self.frame is None else (total > 0) & (self.frame.to(x) > 0)
        c = self.analysis(x)
        terms = torch.where(used, c**2 * _reciprocal(total) + total.clamp(min=1e-300).log(), 0.0)
        dims = tuple(range(-self.eigenvalues.ndim, 0))
        on = int(used.sum())
        base = self.noise.logdet if sigma > 0 or on == self.noise.rank else self._logdet_on(used)
        return -0.5 * (terms.sum(dims) + base + on * math.log(2 * math.pi))

    def _logdet_on(self, used: torch.Tensor) -> float:
        """Log pseudo-determinant of ``T diag(used) T^T``."""
        if not isinstance(self.basis, _Oblique):
            return 0.0 if self.frame is None else float(2 * self.frame[used].log().sum())
        return float(torch.linalg.svdvals(self.basis.columns[:, used]).log().sum() * 2)


@final
class _Oblique(Basis):
    """Columns ``T`` that are not orthonormal, with their left inverse."""

    def __init__(self, shape: Sequence[int], columns: torch.Tensor, inverse: torch.Tensor) -> None:
        self.shape, self.columns, self.inverse = tuple(shape), columns, inverse
        self.coefficients = (columns.shape[1],)

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        return _flat(x, self.shape) @ self.inverse.to(x).T

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        return (c @ self.columns.to(c).T).reshape(*c.shape[:-1], *self.shape)

    def adjoint(self, x: torch.Tensor) -> torch.Tensor:
        return _flat(x, self.shape) @ self.columns.to(x)

    def same(self, other: Basis) -> bool:
        return self is other


@final
class _Scaled(Covariance):
    """``T diag(weights) T^T`` of a joint spectrum."""

    def __init__(self, spectrum: _Spectrum, weights: torch.Tensor) -> None:
        self.spectrum, self.weights = spectrum, weights
        self.shape, self.white_shape = spectrum.basis.shape, tuple(weights.shape)
        used = weights > 0 if spectrum.frame is None else (weights > 0) & (spectrum.frame > 0)
        self.rank = int(used.sum())
        whole = self.rank == spectrum.noise.rank
        self.logdet = float(weights[used].log().sum()) + (
            spectrum.noise.logdet if whole else spectrum._logdet_on(used)
        )

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        return self.spectrum.synthesis(self.weights.to(z).sqrt() * z)

    def variance(self) -> torch.Tensor:
        basis = self.spectrum.basis
        weights = self.weights if self.spectrum.frame is None else self.weights * self.spectrum.frame**2
        if isinstance(basis, _Oblique):
            return (basis.columns**2 @ weights).reshape(self.shape)
        square = basis.square(weights)
        return super().variance() if square is None else square

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights.to(x).sqrt() * self.spectrum.adjoint(x)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        # the pseudo-inverse of F F^T; T's columns are orthogonal unless the basis is oblique
        if isinstance(self.spectrum.basis, _Oblique):
            half = self.spectrum.basis.columns * self.weights.sqrt()
            inverse: torch.Tensor = torch.linalg.pinv(half)
            return (_flat(x, self.shape) @ (inverse.T @ inverse).to(x)).reshape(x.shape)
        scale = self.weights if self.spectrum.frame is None else self.weights * self.spectrum.frame**2
        return self.spectrum.basis.synthesis(_reciprocal(scale).to(x) * self.spectrum.basis.analysis(x))


@final
class _Markov(Joint):
    """``Sigma = Q^-1`` sparse and ``C = variance I``: one sparse factorisation per noise level."""

    def __init__(self, prior: Precision, variance: float) -> None:
        from scipy.sparse.linalg import eigsh

        self.prior, self.variance = prior, variance
        start = np.random.Generator(np.random.Philox(0)).standard_normal(prior.rank)
        lowest = (
            eigsh(prior.matrix, k=1, sigma=0, v0=start, return_eigenvectors=False)[0]
            if prior.rank > 2
            else np.linalg.eigvalsh(prior.matrix.toarray())[0]
        )
        self.largest = float(1.0 / lowest / variance)
        self._cache: dict[float, Precision] = {}

    def _with_noise(self, variance: float) -> Precision:
        """``Cov[x0|x] = (Q + 1/(variance c) I)^-1``."""
        import scipy.sparse as sp

        if variance not in self._cache:
            # solvers that choose their own levels would fill the memory with factors
            if len(self._cache) >= _FACTORS:
                self._cache.pop(next(iter(self._cache)))
            eye = sp.identity(self.prior.rank, format="csc")
            self._cache[variance] = Precision(
                self.prior.shape, self.prior.matrix + eye / (variance * self.variance)
            )
        return self._cache[variance]

    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``(Q + I/v)^-1 x / v``."""
        levels = variance.reshape(-1).expand(x.shape[0]) if variance.ndim else variance.reshape(1)
        if variance.ndim == 0 or bool((levels == levels[0]).all()):
            v = float(levels[0])
            return x if v == 0 else self._with_noise(v).apply(x) / (v * self.variance)
        return torch.stack([self.shrink(row, v) for row, v in zip(x, levels, strict=True)])

    def covariance(self, sigma: float) -> Covariance:
        """``(Q + I/(sigma^2 c))^-1``."""
        return self._with_noise(sigma**2)

    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """By the matrix determinant lemma and Woodbury's identity."""
        n, flat = self.prior.rank, _flat(x, self.prior.shape)
        if sigma == 0:
            energy, logdet = (flat * _flat(self.prior.solve(x), self.prior.shape)).sum(-1), self.prior.logdet
        else:
            v = sigma**2 * self.variance
            post = self._with_noise(sigma**2)
            residual = x - post.apply(x) / v
            energy = (flat * _flat(residual, self.prior.shape)).sum(-1) / v
            logdet = n * math.log(v) + self.prior.logdet - post.logdet
        return -0.5 * (energy + logdet + n * math.log(2 * math.pi))


def joint(prior: Covariance, noise: Covariance) -> Joint:
    """See ``prior`` and the reference noise in common coordinates.

    Cheap when they share a basis or one of them is a multiple of the identity; a dense eigenproblem
    (at most 8192 values) otherwise.

    Raises:
        InputError: if the prior has mass outside the range of the noise, or a dense problem is too large.
    """
    if prior.shape != noise.shape:
        raise InputError(
            "reference",
            expected=f"a covariance on shape {prior.shape}",
            got=noise.shape,
            fix="prior and reference noise live on the same space",
        )
    level = _level(noise)
    if isinstance(prior, Precision):
        if level is None:
            raise InputError(
                "reference",
                expected="white noise beside a sparse precision",
                got=type(noise).__name__,
                fix="use graph(), or a white reference",
            )
        return _Markov(prior, level)
    if isinstance(prior, Eigen) and isinstance(noise, Eigen):
        if level is not None:
            frame = torch.full_like(prior.eigenvalues, math.sqrt(level))
            return _Spectrum(prior.basis, frame, prior.eigenvalues / level, noise)
        if prior.basis == noise.basis or (_level(prior) is not None and not isinstance(noise.basis, Full)):
            values = (
                prior.eigenvalues
                if prior.basis == noise.basis
                else torch.full_like(noise.eigenvalues, _level(prior) or 0.0)
            )
            if bool(((noise.eigenvalues == 0) & (values > 0)).any()):
                raise _outside()
            return _Spectrum(
                noise.basis, noise.eigenvalues.sqrt(), values * _reciprocal(noise.eigenvalues), noise
            )
    return _dense_joint(prior, noise)


def _dense_joint(prior: Covariance, noise: Covariance) -> Joint:
    n = math.prod(prior.shape)
    if n > _DENSE_LIMIT:
        raise InputError(
            "reference",
            expected=f"a reference in the basis of the prior, or at most {_DENSE_LIMIT} values",
            got=f"{n} values in different bases",
            fix="use a white reference or the same spectral basis",
        )
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *prior.shape)
    sigma = _flat(prior.apply(eye), prior.shape)
    gamma, u = torch.linalg.eigh(_flat(noise.apply(eye), prior.shape))
    keep = gamma > 1e-12 * gamma[-1]
    half, inverse = u[:, keep] * gamma[keep].sqrt(), (u[:, keep] / gamma[keep].sqrt()).T
    inside = u[:, keep] @ (u[:, keep].T @ sigma)
    if (inside - sigma).abs().max() > 1e-8 * sigma.abs().max():
        raise _outside()
    lam, v = torch.linalg.eigh(inverse @ sigma @ inverse.T)
    lam = torch.where(lam > 1e-12 * lam[-1], lam, 0.0)
    return _Spectrum(_Oblique(prior.shape, half @ v, v.T @ inverse), None, lam, noise)


def _outside() -> InputError:
    return InputError(
        "reference",
        expected="a reference noise whose range holds the whole prior",
        got="a prior with mass outside it",
        fix="choose a reference noise that is positive wherever the prior is",
    )


def _level(covariance: Covariance) -> float | None:
    """The variance of a multiple of the identity, None for any other covariance."""
    if isinstance(covariance, Eigen) and covariance.rank == math.prod(covariance.shape):
        first = covariance.eigenvalues.reshape(-1)[0]
        if bool((covariance.eigenvalues == first).all()):
            return float(first)
    return None


def _symmetric_lu(matrix: Any) -> Any:
    from scipy.sparse.linalg import splu

    try:
        return splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
    except RuntimeError as error:
        raise InputError(
            "matrix",
            expected="a positive definite precision matrix",
            got="a singular one",
            fix="add a small multiple of the identity",
        ) from error


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


def _ratio(lam: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """``lam/(lam + variance)``, 0 where both vanish."""
    total = lam + variance
    return torch.where(total > 0, lam / torch.where(total > 0, total, 1.0), 0.0)


def _reciprocal(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0, 1.0 / torch.where(values > 0, values, 1.0), 0.0)


def _flat(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))


def _shape(shape: Any) -> tuple[int, ...]:
    """The shape of a state as a tuple of sizes of at least 1."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in sizes):
        raise InputError(
            "shape", expected="a tuple of sizes of at least 1", got=repr(shape), fix="pass space.shape"
        )
    return tuple(int(n) for n in sizes)


def _float64(values: Any, argument: str) -> torch.Tensor:
    """Finite real numbers as a float64 tensor on the CPU."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or isinstance(values, np.ma.MaskedArray):
        raise InputError(
            argument,
            expected="real numbers",
            got=f"{type(values).__name__} of dtype {array.dtype}",
            fix="pass an array or a tensor of real numbers, without a mask",
        )
    if not np.isfinite(array).all():
        raise InputError(argument, expected="finite numbers", got="NaN or infinity", fix="remove them")
    return torch.tensor(array, dtype=torch.float64)
