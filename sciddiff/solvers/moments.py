"""A stochastic solver that knows how far ``x0`` may be from ``D``: exact for Gaussians in any number of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

import torch

from sciddiff.errors import InputError
from sciddiff.solvers.base import Denoiser, Noiser, Solver, Step

__all__ = ["Moments", "Spreading"]


@runtime_checkable
class Spreading(Protocol):
    """A denoiser that can draw from its covariance too."""

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """``E[x0 | x]``."""

    def spread(self, sigma: float) -> torch.Tensor:
        """A draw of ``N(0, Cov[x0 | x])`` for every row, at one noise level."""


@final
@dataclass(frozen=True, kw_only=True)
class Moments(Solver):
    """Ancestral steps with the first two moments of ``x0`` given ``x``.

    From level s to t, with ``r = (t/s)^2``: ``x' = D + r (x - D) + t sqrt(1 - r) n + (1 - r) e`` with ``n ~ N(0, C)`` and
    ``e ~ N(0, Cov[x0 | x])``; the ancestral step of Ho et al. 2020 (arXiv 2006.11239, eq. 6) averaged over
    the Gaussian with the moments of ``p(x0 | x)``. Exact in any number of steps where ``p(x0 | x)`` is Gaussian,
    whereas a plain ancestral step takes ``x0 = D`` and loses that spread. For denoisers that do not depend
    on ``x`` through their covariance: Gaussian priors, and MMPS with ``covariance="gaussian"``.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"point": 2})
        >>> prior = sd.GaussianPrior(space, sd.covariance.white((2,)))
        >>> prior.sample(3, seed=0, solver=Moments(steps=2))["x"].shape
        (3, 2)
    """

    order: ClassVar[int] = 1
    steps: int = 16

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; ``denoise`` has to be `Spreading`."""
        if not isinstance(denoise, Spreading):
            raise InputError(
                "solver",
                expected="a solver for a denoiser whose covariance cannot be drawn from",
                got="Moments",
                fix="use DPMSolver() or Ancestral(); Moments takes Gaussian priors, or MMPS(covariance='gaussian')",
            )

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            r = (t / s) ** 2
            x = torch.lerp(denoise(x, s), x, r).add_(denoise.spread(s), alpha=1 - r)
            return x.add_(noise(), alpha=t * math.sqrt(1 - r)) if t > 0 else x

        return step
