"""Solvers integrate a denoiser from noise to data; every guided denoiser works with every solver.

The probability-flow ODE is ``dx/dsigma = (x - D(x, sigma))/sigma``: the reference covariance cancels, and it
enters only through the fresh noise of the stochastic solvers. Between two levels ``s > t`` the state splits
into ``D`` and the noise ``x - D``, and nearly every solver is ``x' = D' + a (x - D') + b n`` with its own ``D', a, b``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.solvers.schedules import Karras, Schedule

__all__ = ["Denoiser", "Noiser", "Progress", "Solver", "Step", "checked"]

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
Noiser = Callable[[], torch.Tensor]
Progress = Callable[[Iterable[int]], Iterable[int]]
Step = Callable[[torch.Tensor, float, float], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to go down a grid of noise levels; immutable, and without a state between two runs.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.

    Attributes:
        order: the error falls as ``steps^-order``: that of every path for a deterministic solver, that of
            the law of the draws for a stochastic one.
        reference: the paper, as BibTeX.
    """

    order: ClassVar[int]
    reference: ClassVar[str] = ""
    steps: int = 32
    schedule: Schedule = field(default_factory=Karras)

    @abstractmethod
    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """The function ``(x, s, t) -> x'`` of one run, from level ``s`` to ``t < s``; what it remembers is its own.

        Args:
            denoise: ``(x, sigma) -> D`` on all rows at once; every evaluation goes through it.
            noise: a fresh draw of reference noise ``N(0, C)`` for every row, at each call.
        """

    def integrate(
        self, denoise: Denoiser, x: torch.Tensor, sigmas: Sequence[float], noise: Noiser, progress: Progress
    ) -> torch.Tensor:
        """Carry ``x`` at ``sigmas[0]`` to ``sigmas[-1]``, which is 0 for draws of the data.

        Args:
            denoise: ``(x, sigma) -> D``.
            x: ``(batch, *shape)``.
            sigmas: falling levels; the last may be 0.
            noise: a fresh draw of reference noise ``N(0, C)`` for every row, at each call.
            progress: wraps the iterable of steps.

        Raises:
            InputError: unless the levels are finite and fall.
            DivergenceError: if a row becomes non-finite, with the step and sigma.
        """
        check_levels(sigmas)
        step = self.stepper(denoise, noise)
        for i in progress(range(len(sigmas) - 1)):
            x = checked(step(x, sigmas[i], sigmas[i + 1]), i, sigmas[i])
        return x

    def with_steps(self, steps: int | None) -> Solver:
        """The same solver with another number of steps."""
        return self if steps is None else replace(self, steps=steps)


def checked(x: torch.Tensor, step: int, sigma: float) -> torch.Tensor:
    """Return ``x``, or raise `DivergenceError` naming the step if it is not finite."""
    # a finite sum has finite terms: one reduction in place of four passes
    if not math.isfinite(float(x.sum())) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x.flatten(1)).all(1)).sum())
        raise DivergenceError(
            f"{bad} of {len(x)} draws are not finite after step {step} at sigma = {sigma:.4g}. "
            "Try more steps, a larger noise sd, float64, or another denoising covariance."
        )
    return x


def check_levels(sigmas: Sequence[float]) -> None:
    """Raise `InputError` unless there are two levels or more, finite, falling and not negative."""
    falling = all(s > t for s, t in pairwise(sigmas))
    if len(sigmas) < 2 or not falling or not (math.isfinite(sigmas[0]) and sigmas[-1] >= 0):
        raise InputError(
            "sigmas",
            expected="two or more finite levels that fall, the last at least 0",
            got=f"{len(sigmas)} levels, {list(sigmas[:3])} ... {list(sigmas[-2:])}",
            fix="take them from a schedule: schedule.sigmas(steps, prior.sigma_min, prior.sigma_max)",
        )
