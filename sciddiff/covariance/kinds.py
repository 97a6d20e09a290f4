"""The two kinds of covariance: ``B diag(lambda) B^T`` in a basis ``B``, and ``Q^-1`` of a sparse ``Q``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance.arrays import as_shape, flattened, reciprocal
from sciddiff.covariance.banded import inverse_diagonal
from sciddiff.covariance.base import Covariance
from sciddiff.covariance.bases import Basis
from sciddiff.errors import InputError
from sciddiff.linalg import linear_map

__all__ = ["Eigen", "Precision"]

_Columns = Callable[[np.ndarray], np.ndarray]


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
        return self.basis.synthesis(reciprocal(self.eigenvalues).to(x) * self.basis.analysis(x))

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

        self.shape = self.white_shape = as_shape(shape)
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

    def variance(self) -> torch.Tensor:
        """The diagonal of ``Q^-1``; in time linear in the size where ``Q`` is banded, in some order of its rows."""
        found = inverse_diagonal(self.matrix)
        return super().variance() if found is None else torch.from_numpy(found).reshape(self.shape)

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
        flat = flattened(x, self.shape).reshape(-1, self.rank)
        return linear_map(flat, _by_columns(forward), _by_columns(transposed)).reshape(x.shape)


def _by_columns(function: _Columns) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of numpy columns as one of the rows of a tensor, in float64 on the CPU."""

    def apply(rows: torch.Tensor) -> torch.Tensor:
        if not len(rows):
            return rows.clone()
        return torch.tensor(function(rows.T.double().cpu().numpy()).T).to(rows)

    return apply


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
