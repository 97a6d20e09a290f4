"""Orthonormal bases ``B``, ``B^T B = I``, in which covariances are diagonal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch

from sciddiff.covariance.arrays import flattened

__all__ = ["Axes", "Basis", "Full", "Standard", "Symmetric"]


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
        self._cast = columns

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        """``columns^T x``."""
        return flattened(x, self.shape) @ self._like(x)

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        """``columns c``."""
        return (c @ self._like(c).T).reshape(*c.shape[:-1], *self.shape)

    def _like(self, x: torch.Tensor) -> torch.Tensor:
        """The columns in the dtype and on the device of ``x``; the last cast is kept, as it can cost more than a product."""
        cast = self._cast
        if cast.dtype != x.dtype or cast.device != x.device:
            cast = self._cast = self.columns.to(x)
        return cast

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
