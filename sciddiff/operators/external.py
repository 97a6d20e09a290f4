"""Linear maps that autograd cannot see through: sparse solvers, compiled codes, other libraries.

``A`` and ``A^T`` are two plain functions of detached tensors; the derivative of ``x -> A x`` in direction
``v`` is ``A v`` and its VJP is ``A^T``, whose own VJP is ``A`` again. That is all that autograd needs, to any
order, in forward mode and under `torch.func.vmap`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from sciddiff.operators.base import LinearOperator

__all__ = ["External"]

Map = Callable[[torch.Tensor], torch.Tensor]


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
        return _call(x, self.forward, self.transposed)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """``A^T y``."""
        return _call(y, self.transposed, self.forward)


def _call(x: torch.Tensor, forward: Map, transposed: Map) -> torch.Tensor:
    out: torch.Tensor = _Linear.apply(x, forward, transposed)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """``forward(x)`` with VJP ``transposed``, whose VJP is ``forward``."""

    @staticmethod
    def forward(x: torch.Tensor, forward: Map, transposed: Map) -> torch.Tensor:
        return forward(x.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.maps = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        forward, transposed = ctx.maps
        return _call(grads[0], transposed, forward), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        forward, transposed = ctx.maps
        return _call(tangents[0], forward, transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, forward: Map, transposed: Map
    ) -> tuple[torch.Tensor, int]:
        assert in_dims[0] is not None  # vmap is entered only with a mapped argument, and x is the only tensor
        x = x.movedim(in_dims[0], 0)
        out = _call(x.flatten(0, 1), forward, transposed)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
