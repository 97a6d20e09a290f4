"""The Ornstein-Uhlenbeck process on arbitrary times, by recursions in time and never as a matrix.

With gaps ``d_i``, ``a_i = exp(-d_i/length)`` and ``q_i = 1 - a_i^2``, the process is

    x_0 = s z_0,        x_i = a_i x_(i-1) + s sqrt(q_i) z_i

(Uhlenbeck and Ornstein 1930, "On the theory of the Brownian motion"), so its covariance is ``F F^T`` where ``F^-1``
is bidiagonal, its precision is tridiagonal and its determinant a product (Rasmussen and Williams 2006,
section B.2). `recursion` takes the recursion in log2(n) steps of all times at once: every factor lies in
[0, 1], so that nothing overflows and no gap is too small or too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance.arrays import as_float64, as_shape
from sciddiff.covariance.base import Covariance
from sciddiff.errors import InputError

__all__ = ["OrnsteinUhlenbeck", "gaps", "ornstein_uhlenbeck", "recursion", "solve_tridiagonal"]


def ornstein_uhlenbeck(
    times: Any, length: float, *, variance: Any = 1.0, shape: Sequence[int] | None = None
) -> OrnsteinUhlenbeck:
    """A stationary process with covariance ``variance exp(-|s - t|/length)`` at any sorted times.

    Time and memory grow with the number of times n as n log n and n, also beside white noise or another such process on
    the same times (see `joint`).

    Args:
        times: increasing numbers, or dates, which count days.
        length: the time over which it forgets, in units of the times.
        variance: at each time; one number, or one for each of the axes before time, such as variables.
        shape: of a state, whose last axis is time; axes before it hold independent copies. Default one series.

    Raises:
        InputError: on times that are not increasing and finite, or a length or variance that is not positive.

    Example:
        >>> process = ornstein_uhlenbeck([0.0, 0.5, 4.0], 2.0)
        >>> process.apply(torch.eye(3))[0]
        tensor([1.0000, 0.7788, 0.1353])
    """
    steps = gaps(times)
    if (
        isinstance(length, bool)
        or not isinstance(length, (int, float, np.number))
        or not 0 < length < math.inf
    ):
        raise InputError("length", expected="a positive number", got=repr(length), fix="use the times' units")
    made = (len(steps) + 1,) if shape is None else as_shape(shape)
    if made[-1] != len(steps) + 1:
        raise InputError(
            "shape", expected=f"{len(steps) + 1} times on the last axis", got=made, fix="pass space.shape"
        )
    values = as_float64(variance, "variance")
    if not bool((values > 0).all()) or values.ndim > len(made) - 1:
        raise InputError(
            "variance", expected="positive numbers, one or one a copy", got=variance, fix="leave it out for 1"
        )
    values = torch.broadcast_to(values, made[:-1])[..., None].clone()
    return OrnsteinUhlenbeck(torch.from_numpy(steps) / float(length), values, made)


@final
class OrnsteinUhlenbeck(Covariance):
    """See `ornstein_uhlenbeck`.

    Args:
        steps: gaps between the times in units of the length, ``(n - 1,)``, float64; or ``(rows, ..., n - 1)`` where each
            row of a batch has times of its own.
        variance: of each copy, ``(..., 1)``, float64.
        shape: of a state, ``(..., n)``.
    """

    def __init__(self, steps: torch.Tensor, variance: torch.Tensor, shape: Sequence[int]) -> None:
        self.steps, self.level = steps, variance
        self.shape = self.white_shape = tuple(shape)
        self.rank = math.prod(self.shape)
        start = torch.zeros_like(steps[..., :1]) if steps.shape[-1] else steps.new_zeros(1)
        self.factor = torch.cat([start, torch.exp(-steps)], -1)
        # 1 - a^2 without the loss of digits of small gaps
        fresh = variance * torch.cat([start + 1, -torch.expm1(-2 * steps)], -1)
        self.scale, self.logdet = fresh.sqrt(), float(fresh.log().sum())

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        """``F z``, the recursion."""
        return recursion(self.factor.to(z), self.scale.to(z) * z)

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``F^T x``, the recursion backwards in time."""
        # from the end of time backwards, x_i takes in what lies one gap behind it
        factor = torch.cat([self.factor[..., :1], self.factor[..., 1:].flip(-1)], -1)
        return self.scale.to(x) * recursion(factor.to(x), x.flip(-1)).flip(-1)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """``Q x`` with the tridiagonal precision ``Q = F^-T F^-1``."""
        a = self.factor.to(x)
        news = torch.cat([x[..., :1], x[..., 1:] - a[..., 1:] * x[..., :-1]], -1) / self.scale.to(x) ** 2
        return news - torch.cat([a[..., 1:] * news[..., 1:], torch.zeros_like(news[..., :1])], -1)

    def variance(self) -> torch.Tensor:
        """The same at all times."""
        return self.level.expand(self.shape).clone()

    @property
    def bands(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The precision ``Q``: its diagonal ``(..., n)`` and what is beside it ``(..., n - 1)``; float64."""
        weight = self.scale**-2
        beyond = torch.cat(
            [self.factor[..., 1:] ** 2 * weight[..., 1:], torch.zeros_like(weight[..., :1])], -1
        )
        return weight + beyond, -self.factor[..., 1:] * weight[..., 1:]


def gaps(times: Any, argument: str = "times") -> np.ndarray:
    """Differences of increasing numbers or dates ``(n,)``, dates in days; float64 ``(n - 1,)``.

    Raises:
        InputError: unless they are finite and increase.
    """
    t = np.asarray(times)
    ok = t.ndim == 1 and t.size > 0 and t.dtype.kind in "iufM" and bool(np.isfinite(t).all())
    if ok:
        # differences first: dates are integers, and large numbers keep their small gaps
        d = np.diff(t)
        steps = d / np.timedelta64(1, "D") if t.dtype.kind == "M" else d.astype(np.float64)
    if not ok or not bool((steps > 0).all()):
        raise InputError(
            argument,
            expected="increasing finite numbers or dates",
            got=f"{t.dtype} of shape {t.shape}" if not ok else "times that stand still or go back",
            fix="sort the times, and drop or average those that repeat",
        )
    return np.asarray(steps, dtype=np.float64)


def recursion(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``h_i = factor_i h_(i-1) + x_i`` along the last axis, in log2(n) steps (Hillis and Steele 1986).

    Args:
        factor: ``(..., n)`` in [0, 1], which broadcasts on x; the first one is not used.
        x: ``(..., n)``.

    Example:
        >>> recursion(torch.tensor([0.0, 0.5, 0.5]), torch.ones(3))
        tensor([1.0000, 1.5000, 1.7500])
    """
    n, shift = x.shape[-1], 1
    while shift < n:
        x = torch.cat([x[..., :shift], x[..., shift:] + factor[..., shift:] * x[..., :-shift]], -1)
        # products over twice as many steps; those that reach beyond the start are never asked for again
        ahead = factor[..., shift:] * factor[..., :-shift]
        factor = torch.cat([factor[..., :shift], ahead], -1)
        shift *= 2
    return x


def solve_tridiagonal(diagonal: torch.Tensor, beside: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Solve a symmetric tridiagonal system that is diagonally dominant, by cyclic reduction in log2(n) steps.

    Hockney 1965, "A fast direct solution of Poisson's equation", in its parallel form: at each step every row
    eliminates its neighbours, and is left with those twice as far.

    Args:
        diagonal: ``(..., n)``.
        beside: ``(..., n - 1)``, the entries beside the diagonal.
        x: right-hand sides ``(..., n)``.

    Example:
        >>> solve_tridiagonal(torch.tensor([2.0, 2.0]), torch.tensor([1.0]), torch.tensor([3.0, 3.0]))
        tensor([1., 1.])
    """
    zero = torch.zeros_like(diagonal[..., :1])
    low, high = torch.cat([zero, beside], -1), torch.cat([beside, zero], -1)
    n, shift = x.shape[-1], 1
    while shift < n:
        up, down = low / _moved(diagonal, shift, 1.0), high / _moved(diagonal, -shift, 1.0)
        diagonal = diagonal - up * _moved(high, shift) - down * _moved(low, -shift)
        x = x - up * _moved(x, shift) - down * _moved(x, -shift)
        low, high = -up * _moved(low, shift), -down * _moved(high, -shift)
        shift *= 2
    return x / diagonal


def _moved(x: torch.Tensor, shift: int, fill: float = 0.0) -> torch.Tensor:
    """Entry i is that of place i - shift, ``fill`` beyond the ends."""
    edge = torch.full_like(x[..., : abs(shift)], fill)
    return torch.cat([edge, x[..., :-shift]], -1) if shift > 0 else torch.cat([x[..., -shift:], edge], -1)
