"""Forward operators ``A: Space -> Space`` in physical units, and what they can give beyond ``A(x)``.

Tensors are ``(batch, *domain.shape)`` in and ``(batch, *codomain.shape)`` out, at any dtype. A linear
operator has an adjoint with ``<A x, y> = <x, A^T y>`` in plain sums over values; where none is written
it is taken by automatic differentiation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, final

import torch

from sciddiff.errors import InputError
from sciddiff.html import card
from sciddiff.random import check_seed
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.noise import Noise

__all__ = ["LinearOperator", "Operator", "compose"]


class Operator(ABC):
    """A map between spaces.

    Attributes:
        domain: the space of states.
        codomain: the space of observations.
        linear: whether ``A(a x + b y) = a A(x) + b A(y)``.
        differentiable: whether autograd sees through `apply`.
    """

    domain: Space
    codomain: Space
    linear: bool = False
    differentiable: bool = True

    @abstractmethod
    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``A(x)`` for a batch ``(batch, *domain.shape)``."""

    def __call__(self, x: Any) -> Any:
        """``A(x)``: a batch of tensors to a tensor; one labelled state to an `xarray.Dataset`.

        Raises:
            InputError: if ``x`` does not fit the domain.
        """
        if isinstance(x, torch.Tensor):
            if x.ndim != 1 + len(self.domain.shape) or tuple(x.shape[1:]) != self.domain.shape:
                raise InputError(
                    "x",
                    expected=f"a batch of shape (batch, {', '.join(map(str, self.domain.shape))})",
                    got=tuple(x.shape),
                    fix="add a leading batch dim, x[None]",
                )
            return self.apply(x)
        lead = next((str(d) for d in getattr(x, "dims", ()) if d == "sample"), None)
        values = self.domain.tensor(x, argument="x", batch_dim=lead)
        out = self.apply(values if lead else values[None])
        return self.codomain.dataset(out if lead else out[0], (lead,) if lead else ())

    def observe(self, x: Any, noise: Noise, *, seed: int) -> xr.Dataset:
        """Make a labelled observation: ``A(x)`` of one labelled state, with noise drawn from ``seed``.

        Two instruments that observe one state take two seeds: with one, their errors would be the same.

        Raises:
            InputError: if ``x`` does not fit the domain, or the noise the codomain.
        """
        from sciddiff.noise import Noise

        state = self.domain.tensor(x, argument="x")[None]
        check_seed(seed)
        if not isinstance(noise, Noise):
            raise InputError(
                "noise", expected="a Noise", got=repr(noise), fix="pass for example noise.Gaussian(0.1)"
            )
        noise.check(torch.zeros((1, *self.codomain.shape), dtype=state.dtype))
        mean = self.apply(state)
        return self.codomain.dataset(noise.sample(mean, seed=seed)[0])

    def vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``J(x)^T v`` row by row, by automatic differentiation; differentiable in ``v``.

        Raises:
            InputError: if the operator is not differentiable.
        """
        if not self.differentiable:
            raise InputError(
                "operator",
                expected="a differentiable operator",
                got=self,
                fix="use a derivative-free method, or wrap a torch function with from_torch",
            )
        graph = torch.is_grad_enabled() and v.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            # tensors made in inference mode cannot enter a graph; their copies can
            x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            v = v.clone() if v.is_inference() else v
            (out,) = torch.autograd.grad(self.apply(x), x, v, create_graph=graph)
        return out

    def __matmul__(self, inner: Operator) -> Operator:
        """``(A @ B)(x) = A(B(x))``."""
        return compose(self, inner)

    @property
    def name(self) -> str:
        """What it is, in a word: its class, or the parts of a chain."""
        return type(self).__name__.lstrip("_")

    def __repr__(self) -> str:
        return f"{self.name}({self.domain} -> {self.codomain})"

    def _repr_html_(self) -> str:
        kind = "linear" if self.linear else "not linear"
        return card(
            self.name,
            {
                "domain": self.domain,
                "codomain": self.codomain,
                "kind": f"{kind}, {'differentiable' if self.differentiable else 'without derivatives'}",
            },
        )


class LinearOperator(Operator):
    """A linear map; `adjoint` defaults to the VJP of `apply`."""

    linear = True

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """``A^T y`` for a batch ``(batch, *codomain.shape)``."""
        x = torch.zeros((y.shape[0], *self.domain.shape), dtype=y.dtype, device=y.device)
        return Operator.vjp(self, x, y)

    def vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``A^T v``, whatever ``x``."""
        return self.adjoint(v)


@final
class _Chain(Operator):
    """``outer(inner(x))`` where one of them is not linear."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        self.outer, self.inner = outer, inner
        self.domain, self.codomain = inner.domain, outer.codomain
        self.differentiable = outer.differentiable and inner.differentiable

    @property
    def name(self) -> str:
        """``outer @ inner``."""
        return f"{self.outer.name} @ {self.inner.name}"

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``outer(inner(x))``."""
        return self.outer.apply(self.inner.apply(x))


@final
class _LinearChain(LinearOperator):
    """``outer(inner(x))``, both linear."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner
        self.domain, self.codomain = inner.domain, outer.codomain
        self.differentiable = outer.differentiable and inner.differentiable

    @property
    def name(self) -> str:
        """``outer @ inner``."""
        return f"{self.outer.name} @ {self.inner.name}"

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``outer(inner(x))``."""
        return self.outer.apply(self.inner.apply(x))

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """``inner^T outer^T y``."""
        return self.inner.adjoint(self.outer.adjoint(y))


def compose(outer: Operator, inner: Operator) -> Operator:
    """``outer @ inner``, linear where both are.

    Raises:
        InputError: if the inner operator does not end where the outer one begins.
    """
    difference = outer.domain.difference(inner.codomain)
    if difference is not None:
        raise InputError(
            "inner",
            expected=f"an operator into {outer.domain}",
            got=difference,
            fix="make the codomain of the inner operator the domain of the outer one",
        )
    if isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator):
        return _LinearChain(outer, inner)
    return _Chain(outer, inner)
