"""Errors with outliers: tails that fall like ``exp(-|e|)`` (Laplace) or like ``|e|^-(df + 1)`` (Student's t)."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.noise.base import Pointwise, positive, shown

__all__ = ["Laplace", "StudentT"]


@final
class Laplace(Pointwise):
    """``y = A(x) + e`` with ``p(e) = exp(-|e|/scale)/(2 scale)``; its standard deviation is ``sqrt(2) scale``.

    Args:
        scale: mean absolute error of each real value: a number, or an array of the codomain's shape.

    Raises:
        InputError: if a scale is not positive and finite.

    Example:
        >>> Laplace(0.5).log_prob(torch.zeros(1, 3), torch.ones(1, 3))
        tensor([-6.])
    """

    def __init__(self, scale: Any) -> None:
        self.scale = positive("scale", scale, "a positive scale, such as Laplace(0.1)")

    def row(self, mean: np.ndarray, scale: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``mean + scale e``."""
        return mean + scale * generator.laplace(size=mean.shape)

    def terms(self, y: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``-|y - mean|/scale - log(2 scale)``."""
        return -(y - mean).abs() / scale - (2 * scale).log()

    def variance(self, mean: torch.Tensor) -> torch.Tensor:
        """``2 scale^2``."""
        return (2 * self.fitted(mean) ** 2).expand_as(mean)


@final
class StudentT(Pointwise):
    """``y = A(x) + scale t``, with ``t`` of Student's law of ``df`` degrees of freedom.

    Args:
        df: a positive number; 1 is Cauchy's law, many are Gaussian. At 2 or fewer the variance is infinite.
        scale: of each real value: a number, or an array of the codomain's shape.

    Raises:
        InputError: if df or a scale is not positive and finite.

    Example:
        >>> StudentT(4, 0.1)
        StudentT(df=4, scale=0.1)
    """

    def __init__(self, df: float, scale: Any) -> None:
        from scipy.special import betaln

        value = positive("df", df, "degrees of freedom, such as StudentT(4, 0.1)")
        if value.ndim:
            raise InputError(
                "df",
                expected="one number",
                got=f"shape {tuple(value.shape)}",
                fix="use one df for all values",
            )
        self.df = float(value)
        self.scale = positive("scale", scale, "a positive scale, such as StudentT(4, 0.1)")
        # log of Gamma((df + 1)/2) / (Gamma(df/2) sqrt(pi df)), without cancellation at large df
        self._constant = -float(betaln(self.df / 2, 0.5)) - 0.5 * math.log(self.df)

    def row(self, mean: np.ndarray, scale: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``mean + scale t``."""
        return mean + scale * generator.standard_t(self.df, mean.shape)

    def terms(self, y: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``-(df + 1)/2 log(1 + t^2/df)`` and constants, with ``t = (y - mean)/scale``."""
        t = (y - mean) / scale
        return self._constant - scale.log() - 0.5 * (self.df + 1) * torch.log1p(t**2 / self.df)

    def variance(self, mean: torch.Tensor) -> torch.Tensor:
        """``scale^2 df/(df - 2)``, infinite for df of 2 or less."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return (factor * self.fitted(mean) ** 2).expand_as(mean)

    def __repr__(self) -> str:
        return f"StudentT(df={self.df:g}, {shown('scale', self.scale)})"
