"""Counts: ``log p(y | mean) = y log(rate) - rate - log y!`` with ``rate = exposure * mean``."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.noise.base import Pointwise, positive

__all__ = ["Poisson"]

# the largest rate that numpy draws from lies a little below 2**63
_LARGEST = 9e18


@final
class Poisson(Pointwise):
    """Counts, ``y ~ Poisson(exposure * A(x))``: the operator gives a rate, in counts per unit of exposure.

    No count has a negative rate: `draw` refuses one, `log_prob` is minus infinity there with NaN for a
    gradient, and `score` raises. Where the prior allows negative rates, let the operator end in ``exp`` or
    ``softplus``, or take Gaussian noise with sd sqrt(count) and EnsembleKalman. At a rate of zero a count of zero is certain.

    Args:
        exposure: time, dose or efficiency: a positive number, or an array of the codomain's shape.

    Raises:
        InputError: if an exposure is not positive and finite.

    Example:
        >>> Poisson(exposure=1e3).sample(torch.zeros(1, 2), seed=0)
        tensor([[0., 0.]])
    """

    name = "exposure"

    def __init__(self, exposure: Any = 1.0) -> None:
        self.exposure = self.scale = positive(
            "exposure", exposure, "a positive exposure, such as Poisson(1e3)"
        )

    def check(self, y: torch.Tensor) -> None:
        """Refuse observations that are not counts: whole numbers of at least 0."""
        super().check(y)
        bad = ~(((y >= 0) & (y == y.round())) | y.isnan())
        if bool(bad.any()):
            raise InputError(
                "y",
                expected="counts, whole numbers of at least 0, for Poisson noise",
                got=f"{int(bad.sum())} other values, such as {float(y[bad][0]):g}",
                fix="pass the raw counts, and what they were divided by as Poisson(exposure=...)",
            )

    def row(self, mean: np.ndarray, scale: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``Poisson(exposure mean)``.

        Raises:
            InputError: on rates that are negative, not finite, or too large to draw from.
        """
        rate = mean * scale
        bad = ~((rate >= 0) & (rate < _LARGEST))
        if bad.any():
            raise InputError(
                "mean",
                expected=f"rates of at least 0, with exposure * rate below {_LARGEST:g}",
                got=f"{int(bad.sum())} other values, such as {float(mean[bad][0]):g}",
                fix="let the operator end in a positive function, such as exp or softplus",
            )
        return np.asarray(generator.poisson(rate), dtype=np.float64)

    def terms(self, y: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``y log(rate) - rate - log y!``."""
        rate = scale * mean
        # at a count of 0 and a rate of 0 the value is 0 and the gradient -exposure; a negative rate times
        # False is 0, whose log is minus infinity with the gradient 0/0: it is neither taken nor followed
        certain = (y == 0) & (rate >= 0)
        log = (torch.where(certain, 1.0, rate) * (rate >= 0)).log()
        return torch.where(y > 0, y, 1.0) * log - rate - torch.lgamma(y + 1)

    def score(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``y/mean - exposure``.

        Raises:
            DivergenceError: at negative rates, where there is none.
        """
        bad = mean < 0 if mask is None else (mean < 0) & mask
        if bool(bad.any()):
            raise DivergenceError(
                f"Poisson: {int(bad.sum())} of {mean.numel()} rates are negative, down to {float(mean[bad].min()):.3g}, "
                "and have no likelihood. Let the operator end in a positive function, such as exp or softplus, "
                "or use Gaussian noise with sd sqrt(count) and EnsembleKalman."
            )
        return super().score(y, mean, mask)

    def expectation(self, mean: torch.Tensor) -> torch.Tensor:
        """``exposure mean``."""
        return self.fitted(mean) * mean

    def variance(self, mean: torch.Tensor) -> torch.Tensor:
        """``exposure mean``."""
        return self.expectation(mean)
