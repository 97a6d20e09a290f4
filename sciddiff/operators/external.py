"""Linear maps that autograd cannot see through: sparse solvers, compiled codes, other libraries.

``A`` and ``A^T`` are two plain functions of detached tensors, which `linear_map` makes known to autograd.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from sciddiff.linalg import linear_map
from sciddiff.operators.base import LinearOperator

__all__ = ["External"]


class External(LinearOperator):
    """A linear operator given by `forward` and `transposed`, which need not be differentiable.

    Subclasses set ``domain`` and ``codomain`` and write the two maps; both take ``(batch, *shape)`` with any
    batch, also an empty one, and return the dtype and device of what came.

    Example:
        >>> from sciddiff.spaces import Space
        >>> class Twice(External):
        ...     domain = codomain = Space({"t": 2})
        ...     def forward(self, x): return 2 * x
        ...     def transposed(self, y): return 2 * y
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> torch.autograd.grad(Twice().apply(x).sum(), x)[0].tolist()
        [[2.0, 2.0]]
    """

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``A x``; ``x`` is ``(batch, *domain.shape)`` and carries no graph."""

    @abstractmethod
    def transposed(self, y: torch.Tensor) -> torch.Tensor:
        """``A^T y``; ``y`` is ``(batch, *codomain.shape)`` and carries no graph."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``A x``."""
        return linear_map(x, self.forward, self.transposed)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """``A^T y``."""
        return linear_map(y, self.transposed, self.forward)
