"""Deterministic solvers of fixed steps: ``dx/dsigma = (x - D)/sigma`` by Euler, Heun and DPM-Solver++(2M).

One step of each, from level s to t, keeps the noise ``x - D`` and shrinks it by ``t/s``; they differ in which ``D``
they take. On the last step, to 0, all of them return ``D``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sciddiff.solvers.base import Denoiser, Noiser, Solver, Step

__all__ = ["DPMSolver", "Euler", "Heun"]


@final
@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """First order, one denoiser call a step: ``x' = D + (t/s)(x - D)``.

    In this coordinate it is DDIM with eta = 0 (Song et al. 2021, arXiv 2010.02502, eq. 12).

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.

    Example:
        >>> x = Euler(steps=8).stepper(lambda x, s: torch.zeros_like(x), lambda: None)(torch.ones(1, 2), 2.0, 1.0)
        >>> x.tolist()
        [[0.5, 0.5]]
    """

    order: ClassVar[int] = 1
    reference: ClassVar[str] = (
        "@inproceedings{song2021denoising, title={Denoising Diffusion Implicit Models}, "
        "author={Song, Jiaming and Meng, Chenlin and Ermon, Stefano}, booktitle={ICLR}, year={2021}}"
    )

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; no noise is used."""

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            return torch.lerp(denoise(x, s), x, t / s)

        return step


@final
@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Second order, two denoiser calls a step and one on the last (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    ``x' = x + (t - s)(d + d')/2`` with ``d = (x - D)/s`` and ``d'`` the same at the end of the Euler step.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.

    Example:
        >>> Heun(steps=16).steps
        16
    """

    order: ClassVar[int] = 2
    reference: ClassVar[str] = (
        "@inproceedings{karras2022elucidating, title={Elucidating the Design Space of Diffusion-Based Generative Models}, "
        "author={Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli}, booktitle={NeurIPS}, year={2022}}"
    )

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; no noise is used."""

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            ahead = torch.lerp(denoise(x, s), x, t / s)
            if t == 0:
                return ahead
            # (t - s) d is ahead - x, and (t - s) d' is (1 - s/t)(ahead - D')
            slope = ahead - denoise(ahead, t)
            return torch.lerp(x, ahead, 0.5).add_(slope, alpha=0.5 * (1 - s / t))

        return step


@final
@dataclass(frozen=True, kw_only=True)
class DPMSolver(Solver):
    """DPM-Solver++(2M), second order, one denoiser call a step (Lu et al. 2022, arXiv 2211.01095, alg. 2).

    In the half log-SNR ``-log sigma``, ``x' = (t/s) x + (1 - t/s) D'`` with ``D'`` extrapolated from the
    last two calls; the last step, to 0, returns ``D``.

    Args:
        steps: number of noise levels above 0.
        schedule: how they are spaced.

    Example:
        >>> DPMSolver(steps=16).with_steps(64).steps
        64
    """

    order: ClassVar[int] = 2
    reference: ClassVar[str] = (
        "@article{lu2022dpmsolverpp, title={{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models}, "
        "author={Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun}, "
        "journal={arXiv preprint arXiv:2211.01095}, year={2022}}"
    )

    def stepper(self, denoise: Denoiser, noise: Noiser) -> Step:
        """See `Solver.stepper`; no noise is used."""
        previous: torch.Tensor | None = None
        span = 0.0

        def step(x: torch.Tensor, s: float, t: float) -> torch.Tensor:
            nonlocal previous, span
            d = denoise(x, s)
            if t == 0:
                return d
            h = math.log(s / t)
            ahead = d if previous is None else torch.lerp(previous, d, 1 + h / (2 * span))
            previous, span = d, h
            return torch.lerp(ahead, x, t / s)

        return step
