"""Solvers integrate a denoiser from noise to data; every guided denoiser works with every solver.

The probability-flow ODE is ``dx/dsigma = (x - D(x, sigma))/sigma``: the reference covariance cancels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.solvers.schedules import Karras, Schedule

__all__ = ["DPMSolver", "Denoiser", "Noiser", "Solver", "checked"]

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
Noiser = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to go down a grid of noise levels.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.
    """

    steps: int = 32
    schedule: Schedule = field(default_factory=Karras)

    @abstractmethod
    def integrate(
        self, denoise: Denoiser, x: torch.Tensor, sigmas: Sequence[float], noise: Noiser, progress: Progress
    ) -> torch.Tensor:
        """Carry ``x`` at ``sigmas[0]`` to ``sigmas[-1] = 0``.

        Args:
            denoise: ``(x, sigma) -> D``.
            x: ``(batch, *shape)``.
            sigmas: falling levels, the last one 0.
            noise: a fresh draw of reference noise ``N(0, C)`` for every row, at each call.
            progress: wraps the iterable of steps.
        """

    def with_steps(self, steps: int | None) -> Solver:
        """The same solver with another number of steps."""
        return self if steps is None else replace(self, steps=steps)


Progress = Callable[[Iterable[int]], Iterable[int]]


def checked(x: torch.Tensor, step: int, sigma: float) -> torch.Tensor:
    """Return ``x``, or raise `DivergenceError` naming the step if it is not finite."""
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x.flatten(1)).all(1)).sum())
        raise DivergenceError(
            f"{bad} of {len(x)} draws are not finite after step {step} at sigma = {sigma:.4g}. Try more steps, a larger noise sd, float64, or another denoising covariance."
        )
    return x


@final
@dataclass(frozen=True, kw_only=True)
class DPMSolver(Solver):
    """DPM-Solver++(2M), second order, one denoiser call a step (Lu et al. 2022, arXiv 2211.01095, alg. 2).

    In the half log-SNR ``-log sigma``, ``x' = (t/s) x + (1 - t/s) D'`` with ``D'`` extrapolated from the
    last two calls; the last step, to 0, returns ``D``.
    """

    def integrate(
        self, denoise: Denoiser, x: torch.Tensor, sigmas: Sequence[float], noise: Noiser, progress: Progress
    ) -> torch.Tensor:
        """See `Solver.integrate`; no noise is used."""
        import math

        previous: torch.Tensor | None = None
        span = 0.0
        for i in progress(range(len(sigmas) - 1)):
            s, t = sigmas[i], sigmas[i + 1]
            d = denoise(x, s)
            if t == 0:
                return checked(d, i, s)
            h = math.log(s / t)
            ahead = d if previous is None else d + (d - previous) * (h / (2 * span))
            x = checked(torch.lerp(ahead, x, t / s), i, s)
            previous, span = d, h
        raise InputError("sigmas", expected="levels that end in 0", got=sigmas[-1], fix="append 0.0")
