"""What a network is trained for: denoising score matching at every noise level.

With ``z = z0 + sigma n``, ``n ~ N(0, C)``, the loss of one state is

    |D(z, sigma) - z0|^2 / (size c_out(sigma)^2)

whose expectation is least for ``D = E[z0 | z]`` (Vincent 2011, "A connection between score matching and
denoising autoencoders", for the score; Karras et al. 2022, arXiv 2206.00364, eq. 2 and 8). Divided by
``c_out``, it is 1 at every level for a network that returns 0 on Gaussian data: what is below 1 was learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciddiff.errors import InputError
from sciddiff.priors.neural import Preconditioning
from sciddiff.random import Streams

__all__ = ["Levels", "losses"]


@final
@dataclass(frozen=True)
class Levels:
    """The law of the noise levels of training: log-uniform or, with mean and sd of log sigma, log-normal.

    Args:
        low: lowest level.
        high: highest level.
        normal: (mean, sd) of log sigma, truncated to the range; None for log-uniform.

    Example:
        >>> Levels(0.01, 100.0).quantile(np.array([0.0, 0.5, 1.0]))
        tensor([1.0000e-02, 1.0000e+00, 1.0000e+02], dtype=torch.float64)
    """

    low: float
    high: float
    normal: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.normal is None:
            return
        mean, sd = self.normal
        if not (sd > 0 and math.isfinite(mean) and math.isfinite(sd)):
            raise InputError(
                "sigmas", expected="a mean and a positive sd", got=self.normal, fix="(-1.2, 1.2)"
            )
        low, high = self._ends()
        if not high - low > 1e-3:
            raise InputError(
                "sigmas",
                expected=f"a law of log sigma with mass from {math.log(self.low):.3g} to {math.log(self.high):.3g}",
                got=self.normal,
                fix="choose the mean inside that range",
            )

    def quantile(self, u: np.ndarray) -> Tensor:
        """Levels below which the law has mass ``u``; float64."""
        if self.normal is None:
            # between the logarithms; the ends themselves must come out exactly
            return torch.from_numpy(np.asarray(self.low ** (1 - u) * self.high**u))
        low, high = self._ends()
        mean, sd = self.normal
        inside = torch.special.ndtri(torch.from_numpy(low + (high - low) * np.asarray(u)))
        levels: Tensor = (mean + sd * inside).exp().clamp(self.low, self.high)  # against rounding only
        return levels

    def draw(self, count: int, generator: np.random.Generator) -> Tensor:
        """``count`` levels, one from each of as many equal parts of the law, in random order."""
        u = (generator.permutation(count) + generator.random(count)) / count
        return self.quantile(u)

    def edges(self, bands: int) -> np.ndarray:
        """Ends of bands of equal width in log sigma, ``(bands + 1,)``."""
        return np.geomspace(self.low, self.high, bands + 1)

    def _ends(self) -> tuple[float, float]:
        assert self.normal is not None
        mean, sd = self.normal
        ends = (torch.tensor([self.low, self.high], dtype=torch.float64).log() - mean) / sd
        low, high = torch.special.ndtr(ends).tolist()
        return low, high


def losses(
    preconditioning: Preconditioning,
    network: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    sigma: Tensor,
    streams: Streams,
) -> Tensor:
    """Weighted loss of each state ``(batch,)``.

    Args:
        preconditioning: makes the denoiser of the network.
        network: the network.
        z0: normalised states ``(batch, *shape)``.
        sigma: float64 levels ``(batch,)``.
        streams: one stream, for the noise of the whole batch.
    """
    reference = preconditioning.reference
    white = streams.normal((len(z0), *reference.white_shape), dtype=z0.dtype, device=z0.device)[0]
    column = sigma.to(z0).reshape(-1, *(1,) * (z0.ndim - 1))
    error = preconditioning.denoise(network, z0 + column * reference.sqrt(white), sigma) - z0
    weight = preconditioning.c_out(sigma) ** -2 / preconditioning.space.size
    return error.square().flatten(1).sum(1) * weight.to(z0)
