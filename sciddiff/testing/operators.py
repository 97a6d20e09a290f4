"""What an operator promises: the right shapes, an adjoint that is the transpose, derivatives that are the slopes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator, Operator
from sciddiff.random import check_seed
from sciddiff.testing.base import (
    BrokenError,
    Check,
    Report,
    SkippedError,
    at_most,
    leaves_alone,
    normals,
    relative,
    run,
)

__all__ = ["check_operator"]

_ROWS = 3


def check_operator(
    operator: Operator,
    *,
    states: Any = None,
    seed: int = 0,
    rtol: float = 1e-10,
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Check an operator against its contract, in float64.

    Args:
        operator: yours.
        states: at least 3 typical states ``(n, *domain.shape)``, or labelled along "sample", in physical units: for
            operators that take only some values, such as positive ones. Default: standard normal ones.
        seed: of the random states and directions.
        rtol: tolerance of adjoint, linearity and batch invariance; 1e-4 suits codes in single precision.
        expected_failures: name of a check -> why it fails.

    Returns:
        A report of "shape", "empty batch", "dtype", "labels", "batch invariance", "input untouched",
        "global state", "linearity", "adjoint", "autograd", "vjp", "jvp". What does not apply is skipped.

    Raises:
        CheckError: naming the checks that failed, with figures; for an adjoint that is off by a constant, the factor.
        InputError: on states that do not fit.

    Example:
        >>> from sciddiff import Space, operators
        >>> print(check_operator(operators.Identity(Space({"x": 4})))["adjoint"].detail)
        relative error 0
    """
    if not isinstance(operator, Operator):
        raise InputError(
            "operator",
            expected="an Operator",
            got=type(operator).__name__,
            fix="wrap it with operators.from_torch",
        )
    trial = _Trial(operator, _states(operator, states, check_seed(seed)), seed, rtol)
    return run(operator, trial.checks(), expected_failures)


def _states(operator: Operator, states: Any, seed: int) -> torch.Tensor:
    if states is None:
        return normals(seed, (_ROWS, *operator.domain.shape), torch.float64, "states")
    values = operator.domain.tensor(states, argument="states", batch_dim="sample")
    if len(values) < _ROWS:
        raise InputError("states", expected=f"at least {_ROWS} states", got=len(values), fix="pass more")
    return values[:_ROWS]


class _Trial:
    """An operator, some states ``x``, a direction ``v`` of their size and an observation ``u``."""

    def __init__(self, operator: Operator, x: torch.Tensor, seed: int, rtol: float) -> None:
        self.operator, self.x, self.rtol, self.seed = operator, x, rtol, seed
        self.size = float(x.std()) or 1.0
        self.v = self.size * normals(seed, tuple(x.shape), x.dtype, "directions")
        self.u = normals(seed, (len(x), *operator.codomain.shape), x.dtype, "observations")

    def checks(self) -> dict[str, Check]:
        return {
            "shape": self.shape,
            "empty batch": self.empty,
            "dtype": self.dtype,
            "labels": self.labels,
            "batch invariance": self.batch,
            "input untouched": self.untouched,
            "global state": lambda: leaves_alone(lambda: self.operator.apply(self.x)),
            "linearity": self.linearity,
            "adjoint": self.adjoint,
            "autograd": self.autograd,
            "vjp": self.vjp,
            "jvp": self.jvp,
        }

    def linear(self) -> LinearOperator:
        if not self.operator.linear:
            raise SkippedError("not linear")
        if not isinstance(self.operator, LinearOperator):
            raise BrokenError(f"{type(self.operator).__name__} says linear = True, but is no LinearOperator")
        return self.operator

    def smooth(self) -> None:
        if not self.operator.differentiable:
            raise SkippedError("not differentiable")

    def shape(self) -> str:
        want = (len(self.x), *self.operator.codomain.shape)
        got = tuple(self.operator.apply(self.x).shape)
        if got != want:
            raise BrokenError(f"a batch {tuple(self.x.shape)} gave {got} in place of {want}")
        if isinstance(self.operator, LinearOperator):
            back = tuple(self.operator.adjoint(self.u).shape)
            if back != tuple(self.x.shape):
                raise BrokenError(f"the adjoint gave {back} in place of {tuple(self.x.shape)}")
        return f"{tuple(self.x.shape)} to {got}"

    def empty(self) -> str:
        got = tuple(self.operator.apply(self.x[:0]).shape)
        if got != (0, *self.operator.codomain.shape):
            raise BrokenError(f"a batch of none gave {got}")
        return str(got)

    def dtype(self) -> str:
        for dtype in (torch.float32, torch.float64):
            out = self.operator.apply(self.x.to(dtype))
            if out.dtype != dtype:
                raise BrokenError(f"{dtype} in, {out.dtype} out")
            if (
                isinstance(self.operator, LinearOperator)
                and self.operator.adjoint(self.u.to(dtype)).dtype != dtype
            ):
                raise BrokenError(f"the adjoint does not keep {dtype}")
        return "float32 and float64 stay what they are"

    def labels(self) -> str:
        out = self.operator(self.operator.domain.dataset(self.x[0]))
        return at_most(
            "relative error",
            relative(self.operator.codomain.tensor(out), self.operator.apply(self.x[:1])[0]),
            self.rtol,
        )

    def batch(self) -> str:
        error = relative(
            self.operator.apply(self.x), torch.cat([self.operator.apply(r[None]) for r in self.x])
        )
        if isinstance(self.operator, LinearOperator):
            rows = torch.cat([self.operator.adjoint(r[None]) for r in self.u])
            error = max(error, relative(self.operator.adjoint(self.u), rows))
        return at_most("rows alone and together differ by", error, self.rtol)

    def untouched(self) -> str:
        x = self.x.clone()
        self.operator.apply(x)
        if not torch.equal(x, self.x):
            raise BrokenError("`apply` writes into its input")
        if isinstance(self.operator, LinearOperator):
            u = self.u.clone()
            self.operator.adjoint(u)
            if not torch.equal(u, self.u):
                raise BrokenError("`adjoint` writes into its input")
        return "untouched"

    def linearity(self) -> str:
        a = self.linear()
        return at_most(
            "relative error",
            relative(a.apply(2 * self.x - 3 * self.v), 2 * a.apply(self.x) - 3 * a.apply(self.v)),
            self.rtol,
        )

    def adjoint(self) -> str:
        a = self.linear()
        x = normals(self.seed, (16, *a.domain.shape), self.x.dtype, "dot x")
        y = normals(self.seed, (16, *a.codomain.shape), self.x.dtype, "dot y")
        ax, aty = a.apply(x), a.adjoint(y)
        left, right = (ax * y).flatten(1).sum(1), (x * aty).flatten(1).sum(1)
        size = (ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).clamp(min=1e-300)
        return at_most(
            "relative error", float(((left - right) / size).abs().max()), self.rtol, _factor(left, right)
        )

    def autograd(self) -> str:
        self.smooth()
        x = self.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.operator.apply(x), x, self.u)
        vjp = self.operator.vjp(self.x, self.u)
        return at_most("autograd and `vjp` differ by", relative(slope, vjp), self.rtol)

    def difference(self) -> torch.Tensor:
        """``J v`` by Richardson's extrapolation of central differences, exact for polynomials of degree 4."""

        def central(h: float) -> torch.Tensor:
            return (self.operator.apply(self.x + h * self.v) - self.operator.apply(self.x - h * self.v)) / (
                2 * h
            )

        # a linear map has no error of truncation, and the longest step the least of rounding
        h = 0.5 if self.operator.linear else 1e-3
        return (4 * central(h / 2) - central(h)) / 3

    def vjp(self) -> str:
        self.smooth()
        jv, jtu = self.difference(), self.operator.vjp(self.x, self.u)
        left, right = (jv * self.u).flatten(1).sum(1), (jtu * self.v).flatten(1).sum(1)
        size = (jv.flatten(1).norm(dim=1) * self.u.flatten(1).norm(dim=1)).clamp(min=1e-300)
        error = float(((left - right) / size).abs().max())
        return at_most(
            "finite differences differ by", error, max(1e-6, self.rtol), _factor(left, right, "vjp")
        )

    def jvp(self) -> str:
        self.smooth()
        u = self.u.clone().requires_grad_()
        with torch.enable_grad():
            jtu = self.operator.vjp(self.x, u)
        (jv,) = torch.autograd.grad(jtu, u, self.v)
        seen = self.difference()
        return at_most("finite differences differ by", relative(jv, seen), max(1e-6, self.rtol))


def _factor(left: torch.Tensor, right: torch.Tensor, name: str = "adjoint") -> str:
    """A hint where ``<x, A^T y>`` is a constant times ``<A x, y>``."""
    energy = float((left * left).sum())
    ratio = float((left * right).sum()) / energy if energy else 0.0
    if not energy or float((right - ratio * left).norm()) > 1e-3 * float(right.norm()):
        return f"your {name} does not belong to `apply`"
    if ratio < 0:
        return f"your {name} has the wrong sign, and looks {-ratio:.2f}x as large"
    return f"your {name} looks {max(ratio, 1 / ratio):.2f}x too {'large' if ratio > 1 else 'small'}"
