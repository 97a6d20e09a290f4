"""Stochastic solvers: each step removes more noise than it has to, and adds fresh noise ``N(0, C)`` instead.

Between levels ``s > t`` with ``r = (t/s)^2`` the law of the state at t given the state at s is, for the exact ``D``
and small steps, ``N(D + r (x - D), t^2 (1 - r) C)``. Their draws have the right law, at order 1 in the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch

from sciddiff.errors import InputError
from sciddiff.solvers.base import Denoiser, Noiser, Solver, Step
from sciddiff.solvers.ode import Heun

__all__ = ["Ancestral", "PredictorCorrector"]


@final
@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """DDIM(eta), first order, one denoiser call a step (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    ``x' = D + (sigma_down/s)(x - D) + sigma_up n`` with ``sigma_up = eta t sqrt(1 - (t/s)^2)`` and
    ``sigma_down^2 = t^2 - sigma_up^2``. For eta = 1 it is the posterior step of DDPM (Ho et al. 2020, arXiv
    2006.11239, eq. 6 and 7), for eta = 0 it is `Euler`.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.
        eta: how much of the noise is renewed, from 0 to 1.

    Raises:
        InputError: on eta outside [0, 1].

    Example:
        >>> Ancestral(eta=0.5).eta
        0.5
    """

    order: ClassVar[int] = 1
    reference: ClassVar[str] = (
        "@inproceedings{ho2020denoising, title={Denoising Diffusion Probabilistic Models}, "
        "author={Ho, Jonathan and Jain, Ajay and Abbeel, Pieter}, booktitle={NeurIPS}, year={2020}}"
    )
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError("eta", expected="a number from 0 to 1", got=repr(self.eta), fix="1 is ancestral")

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; one noise a step, none for eta = 0 and on the last step."""

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            up = self.eta * t * math.sqrt(1 - (t / s) ** 2)
            # t^2 - up^2, written so that it does not cancel at eta = 1
            down = t * math.sqrt((1 - self.eta**2) + (self.eta * t / s) ** 2)
            x = torch.lerp(denoise(x, s), x, down / s)
            return x.add_(noise(), alpha=up) if up > 0 else x

        return step


@final
@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    """A predictor's step, then Langevin steps at the new level (Song et al. 2021, arXiv 2011.13456, alg. 2 and 3).

    The Langevin diffusion is preconditioned with ``C``, which cancels the score's ``C^+``: over a time theta,
    in units of ``sigma^2``, ``dx = (D - x) dtheta + sigma sqrt(2) C^1/2 dW``. One correction solves it with ``D``
    held fixed: ``x' = D + a (x - D) + sigma sqrt(1 - a^2) n``, ``a = exp(-theta)``; stable at any theta. ``theta = tau
    log(s/t)`` shrinks with the steps; with one theta at every step, as in the paper, the law of the draws
    would keep a bias at any number of steps. First order; one denoiser call a correction, beside the predictor's.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.
        predictor: the solver whose step comes first; its own steps and schedule are not used.
        corrections: Langevin steps after each step of the predictor, none after the last one, to 0.
        tau: Langevin time of one correction for every factor e by which sigma falls, in units of sigma squared.

    Raises:
        InputError: on a predictor that is not a Solver, fewer than one correction or a tau that is not positive.

    Example:
        >>> PredictorCorrector(corrections=2, tau=0.25).corrections
        2
    """

    order: ClassVar[int] = 1
    reference: ClassVar[str] = (
        "@inproceedings{song2021score, title={Score-Based Generative Modeling through Stochastic Differential Equations}, "
        "author={Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano "
        "and Poole, Ben}, booktitle={ICLR}, year={2021}}"
    )
    predictor: Solver = field(default_factory=Heun)
    corrections: int = 1
    tau: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, Solver):
            raise InputError(
                "predictor",
                expected="a Solver",
                got=repr(self.predictor),
                fix="pass an instance such as Heun()",
            )
        if (
            isinstance(self.corrections, bool)
            or not isinstance(self.corrections, int)
            or self.corrections < 1
        ):
            raise InputError(
                "corrections",
                expected="an int of at least 1",
                got=repr(self.corrections),
                fix="1 is a good start",
            )
        if not 0 < self.tau < math.inf:
            raise InputError(
                "tau", expected="a positive number", got=repr(self.tau), fix="0.5 is a good start"
            )

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; one noise a correction, beside the predictor's."""
        predict = self.predictor.stepper(denoise, noise)

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            x = predict(x, s, t)
            if t == 0:
                return x
            theta = self.tau * math.log(s / t)
            keep, fresh = math.exp(-theta), t * math.sqrt(-math.expm1(-2 * theta))
            for _ in range(self.corrections):
                x = torch.lerp(denoise(x, t), x, keep).add_(noise(), alpha=fresh)
            return x

        return step
