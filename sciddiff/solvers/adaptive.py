"""The probability-flow ODE to a tolerance, for every draw on its own.

In ``u = log sigma`` and ``w = x/sqrt(1 + sigma^2)``, ``dw/du = (E - D)/sqrt(1 + sigma^2)`` where ``E = x/(1 + sigma^2)``
is the denoiser of a unit Gaussian: the slope vanishes at both ends, and only what tells the prior from a
unit Gaussian has to be followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch

from sciddiff.errors import ConvergenceError, InputError
from sciddiff.solvers.base import Denoiser, Noiser, Solver, Step, checked
from sciddiff.solvers.schedules import Exponential, Schedule

__all__ = ["Adaptive"]

Slope = Callable[[float, torch.Tensor], torch.Tensor]

# Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae", table 2: RK5(4)7M
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@final
@dataclass(frozen=True, kw_only=True)
class Adaptive(Solver):
    """Dormand-Prince 5(4), fifth order; every step that misses the tolerance is halved, for the draws that miss it.

    Step sizes shared by a batch, as in general ODE packages, would make a draw depend on the draws beside it.
    Here a draw is halved by its own error alone, and the others ride along unchanged: the result of a draw
    is the same whatever the batch. Six denoiser calls a step and halving.

    Args:
        steps: number of noise levels above 0, the coarsest steps.
        schedule: how they are spaced.
        rtol: relative tolerance of a step, on the root mean square over the values of a draw.
        atol: absolute tolerance of a step, in normalised units.
        halvings: most times that a step is halved.

    Raises:
        InputError: unless the tolerances are positive and ``halvings >= 0``.
        ConvergenceError: in a run, if a draw misses the tolerance after all halvings.

    Example:
        >>> Adaptive(rtol=1e-6).rtol
        1e-06
    """

    order: ClassVar[int] = 5
    reference: ClassVar[str] = (
        "@article{dormand1980family, title={A family of embedded {R}unge-{K}utta formulae}, "
        "author={Dormand, John R. and Prince, Peter J.}, journal={Journal of Computational and Applied Mathematics}, "
        "volume={6}, number={1}, pages={19--26}, year={1980}}"
    )
    steps: int = 8
    schedule: Schedule = field(default_factory=Exponential)
    rtol: float = 1e-5
    atol: float = 1e-5
    halvings: int = 12

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol)
        if isinstance(self.halvings, bool) or not isinstance(self.halvings, int) or self.halvings < 0:
            raise InputError(
                "halvings", expected="an int of at least 0", got=repr(self.halvings), fix="12 is a good start"
            )

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; no noise is used."""

        def slope(u: float, w: torch.Tensor) -> torch.Tensor:
            sigma = math.exp(u)
            return unit_slope(denoise(w * math.hypot(1.0, sigma), sigma), w, sigma)

        # the slope at the end of one step is that at the start of the next, unless x was changed in between
        last: tuple[torch.Tensor, torch.Tensor] | None = None

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            nonlocal last
            if t == 0:
                return denoise(x, s)
            w, a, b = x / math.hypot(1.0, s), math.log(s), math.log(t)
            k = last[1] if last is not None and last[0] is x else slope(a, w)
            every = torch.ones(len(x), dtype=torch.bool, device=x.device)
            w, k = self._advance(slope, a, b, w, k, every, self.halvings)
            x = w * math.hypot(1.0, t)
            last = (x, k)
            return x

        return step

    def _advance(
        self,
        slope: Slope,
        a: float,
        b: float,
        w: torch.Tensor,
        k: torch.Tensor,
        rows: torch.Tensor,
        left: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``w`` and its slope at b, from those at a; within tolerance on the named rows."""
        end, k_end, error = dormand_prince(slope, a, b, w, k)
        scale = torch.maximum(w.abs(), end.abs()).mul_(self.rtol).add_(self.atol)
        # written with `not <=`, so that a draw that is not finite is halved too
        late = rows & ~((error / scale).flatten(1).square().mean(1) <= 1)
        if not bool(late.any()):
            return end, k_end
        if left == 0:
            checked(end[late], 0, math.exp(a))
            raise ConvergenceError(
                f"Adaptive: {int(late.sum())} of {len(w)} draws miss rtol = {self.rtol:g}, atol = {self.atol:g} at "
                f"sigma = {math.exp(a):.4g} after {self.halvings} halvings. Loosen the tolerances, use float64, or a "
                "solver of fixed steps."
            )
        middle = 0.5 * (a + b)
        half, k_half = self._advance(slope, a, middle, w, k, late, left - 1)
        fine, k_fine = self._advance(slope, middle, b, half, k_half, late, left - 1)
        pick = late.reshape(-1, *(1,) * (w.ndim - 1))
        return torch.where(pick, fine, end), torch.where(pick, k_fine, k_end)


def dormand_prince(
    slope: Slope, a: float, b: float, w: torch.Tensor, k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step from a to b: the state, its slope there and the estimate of the error, each of w's shape."""
    h, slopes, end = b - a, [k], w
    for node, row in zip(_NODES, _STAGES, strict=True):
        end = _combine(w, h, row, slopes)
        slopes.append(slope(b if node == 1.0 else a + node * h, end))
    return end, slopes[-1], _combine(torch.zeros_like(w), h, _ERROR, slopes)


def _combine(w: torch.Tensor, h: float, weights: Sequence[float], slopes: list[torch.Tensor]) -> torch.Tensor:
    """``w + h sum_i weights_i slopes_i``."""
    out = torch.add(w, slopes[0], alpha=h * weights[0])
    for weight, k in zip(weights[1:], slopes[1:], strict=True):
        if weight != 0:
            out.add_(k, alpha=h * weight)
    return out


def unit_slope(d: torch.Tensor, w: torch.Tensor, sigma: float) -> torch.Tensor:
    """``dw/dlog sigma`` from ``D``: ``w/(1 + sigma^2) - D/sqrt(1 + sigma^2)``."""
    c = math.hypot(1.0, sigma)
    return torch.mul(w, c**-2).sub_(d, alpha=1 / c)


def check_tolerances(rtol: float, atol: float) -> None:
    """Raise `InputError` unless ``0 < rtol`` and ``0 < atol``."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < math.inf:
            raise InputError(name, expected="a positive number", got=repr(value), fix="1e-5 is a good start")
