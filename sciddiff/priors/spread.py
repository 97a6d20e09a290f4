"""How far the clean state lies from ``D``: a factor on a simple denoising covariance, measured.

Networks learn the mean ``D = E[z0 | z]`` and not ``Cov[z0 | z]``. What stands for it is

    Cov(sigma) = factor(sigma) Cov_0(sigma),    factor(sigma) = E|z0 - D|^2 / tr Cov_0(sigma)

with ``Cov_0`` that of the fitted Gaussian, or of variance one without it: positive, as correlated as ``Cov_0``, and
of the right mean size where the factor was measured on states that the network has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import torch

from sciddiff.covariance import Covariance, multiple
from sciddiff.errors import InputError

if TYPE_CHECKING:
    from sciddiff.priors.base import Prior

__all__ = ["Spread", "guess", "learned", "unit"]


@final
@dataclass(frozen=True)
class Spread:
    """The factor at some noise levels; between them it is a power of sigma, beyond them constant.

    Args:
        levels: increasing noise levels.
        factors: positive, one for each.

    Raises:
        InputError: on another order or sign, or other lengths.

    Example:
        >>> round(Spread((0.1, 10.0), (0.25, 1.0)).factor(1.0), 12)
        0.5
    """

    levels: Sequence[float]
    factors: Sequence[float]

    def __post_init__(self) -> None:
        levels, factors = (np.asarray(v, dtype=np.float64) for v in (self.levels, self.factors))
        rises = levels.ndim == 1 and levels.size > 0 and levels[0] > 0 and bool((np.diff(levels) > 0).all())
        if not rises or not np.isfinite(levels).all():
            raise InputError(
                "levels",
                expected="increasing positive noise levels",
                got=self.levels,
                fix="make it by training.calibrate",
            )
        if factors.shape != levels.shape or not bool(((factors > 0) & np.isfinite(factors)).all()):
            raise InputError(
                "factors",
                expected=f"{levels.size} positive numbers",
                got=self.factors,
                fix="make it by training.calibrate",
            )
        object.__setattr__(self, "levels", tuple(levels.tolist()))
        object.__setattr__(self, "factors", tuple(factors.tolist()))

    def factor(self, sigma: float) -> float:
        """The factor at a level."""
        return float(np.exp(np.interp(np.log(sigma), np.log(self.levels), np.log(self.factors))))


def unit(reference: Covariance, sigma: float) -> Covariance:
    """``Cov[z0 | z]`` of ``N(0, C/c)``, with ``c`` the mean variance of ``C``: of variance one per value."""
    variance = 1.0 / float(reference.variance().mean())
    return multiple(reference, sigma**2 * variance / (variance + sigma**2))


def guess(prior: Prior, sigma: float) -> Covariance:
    """``Cov_0``, what is known of a prior's denoising covariance without measuring."""
    fitted = prior.gaussian_covariance(sigma)
    return unit(prior.reference, sigma) if fitted is None else fitted


def learned(prior: Prior, sigma: float) -> Covariance | None:
    """``factor Cov_0`` at one level; None for a prior that is not calibrated."""
    return None if prior.spread is None else _Times(prior.spread.factor(sigma), guess(prior, sigma))


@final
class _Times(Covariance):
    """A number times a covariance of any kind, which `covariance.multiple` would first make a matrix of."""

    def __init__(self, factor: float, inner: Covariance) -> None:
        self.factor, self.root, self.inner = factor, math.sqrt(factor), inner
        self.shape, self.white_shape, self.rank = inner.shape, inner.white_shape, inner.rank
        self.logdet = inner.logdet + inner.rank * math.log(factor)

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        return self.root * self.inner.sqrt(z)

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        return self.root * self.inner.sqrt_adjoint(x)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.inner.apply(x)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.solve(x) / self.factor

    def variance(self) -> torch.Tensor:
        return self.factor * self.inner.variance()
