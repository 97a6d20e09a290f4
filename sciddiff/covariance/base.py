"""What every covariance can do: ``Sigma = F F^T`` by its actions on states, never as a d-by-d matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

__all__ = ["Covariance"]


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
