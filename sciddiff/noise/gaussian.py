"""Gaussian errors: ``log p(y | mean) = -(y - mean)^T R^-1 (y - mean)/2 - log det(2 pi R)/2``."""

from __future__ import annotations

import math
from typing import Any, final

import torch

from sciddiff.covariance import Covariance, diagonal, white
from sciddiff.errors import InputError
from sciddiff.noise.base import Noise, check_range, check_shape, masked, positive, shown, total
from sciddiff.random import Streams

__all__ = ["Gaussian"]


@final
class Gaussian(Noise):
    """``y = A(x) + N(0, R)``.

    Args:
        sd: standard deviation of each real value: a number, or an array of the codomain's shape.
        covariance: a full covariance ``R`` instead.

    Attributes:
        sd: the standard deviations as float64; None where a covariance was given.

    Raises:
        InputError: if both or none are given, or a standard deviation is not positive and finite.

    Example:
        >>> round(Gaussian(0.5).log_prob(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 3)
        -0.452
    """

    gaussian = True

    def __init__(self, sd: Any = None, *, covariance: Covariance | None = None) -> None:
        if (sd is None) == (covariance is None):
            raise InputError(
                "sd",
                expected="either sd or covariance",
                got="both or none",
                fix="pass Gaussian(0.1) or Gaussian(covariance=R)",
            )
        self.sd: torch.Tensor | None = None
        self._covariance = covariance
        if covariance is None:
            self.sd = positive(
                "sd",
                sd,
                "a standard deviation (not a variance), such as Gaussian(0.1); noise-free data take a small "
                "one, such as 1e-5 of the rms of y, and a prior in float64; a matrix R goes in as "
                "Gaussian(covariance=covariance.dense(R))",
            )
        elif not isinstance(covariance, Covariance):
            raise InputError(
                "covariance",
                expected="a Covariance",
                got=type(covariance).__name__,
                fix="wrap a matrix as covariance.dense(matrix, operator.codomain.shape)",
            )
        elif covariance.rank != math.prod(covariance.shape):
            raise InputError(
                "covariance",
                expected="a covariance of full rank",
                got=f"rank {covariance.rank} of {math.prod(covariance.shape)}",
                fix="add a small variance to every value",
            )

    def covariance(self, shape: tuple[int, ...]) -> Covariance:
        """``R`` on observations of this shape.

        Raises:
            InputError: if the noise has another shape.
        """
        self._check_shape(shape)
        if self.sd is None:
            assert self._covariance is not None  # the constructor takes one of the two
            return self._covariance
        return diagonal(self.sd**2) if self.sd.ndim else white(shape, float(self.sd) ** 2)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if self.sd is not None:
            check_shape("sd", tuple(self.sd.shape), shape)
        elif self._covariance is not None:
            check_shape("covariance", tuple(self._covariance.shape), shape)

    def check(self, y: torch.Tensor) -> None:
        """Refuse arrays of another shape than the observation's, or out of the range of its dtype."""
        self._check_shape(tuple(y.shape[1:]))
        if self.sd is not None:
            check_range("sd", self.sd, y.dtype)

    def draw(self, mean: torch.Tensor, streams: Streams) -> torch.Tensor:
        """``mean + R^1/2 z``."""
        covariance = self.covariance(tuple(mean.shape[1:]))
        z = streams.normal(covariance.white_shape, dtype=mean.dtype, device=mean.device)
        return mean + covariance.sqrt(z)

    def log_prob(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``log N(y; mean, R)``; missing values are integrated out."""
        y, mean = masked(y, mean, mask)
        self._check_shape(tuple(mean.shape[1:]))
        if self.sd is None:
            return self._full(y - mean, mask)
        sd = self.sd.to(mean)
        return total(-0.5 * ((y - mean) / sd) ** 2 - sd.log() - 0.5 * math.log(2 * math.pi), mask)

    def variance(self, mean: torch.Tensor) -> torch.Tensor:
        """The diagonal of ``R``."""
        return self.covariance(tuple(mean.shape[1:])).variance().to(mean).expand_as(mean)

    def _full(self, residual: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        covariance = self._covariance
        assert covariance is not None
        if mask is None:
            energy = (residual * covariance.solve(residual)).flatten(1).sum(1)
            return -0.5 * (energy + covariance.logdet + covariance.rank * math.log(2 * math.pi))
        n, out = covariance.rank, residual.new_zeros(len(residual))
        eye = torch.eye(n, dtype=residual.dtype, device=residual.device)
        matrix = covariance.apply(eye.reshape(n, *covariance.shape)).reshape(n, n)
        # rows with the same gaps share one factor
        patterns, which = torch.unique(mask.expand_as(residual).reshape(-1, n), dim=0, return_inverse=True)
        for i, seen in enumerate(patterns):
            rows = torch.nonzero(which == i)[:, 0]
            factor = torch.linalg.cholesky(matrix[seen][:, seen])
            white = torch.linalg.solve_triangular(
                factor, residual.reshape(-1, n)[rows][:, seen].T, upper=False
            )
            logdet = 2 * torch.diagonal(factor).log().sum()
            density = -0.5 * (white.square().sum(0) + logdet + int(seen.sum()) * math.log(2 * math.pi))
            out = out.index_put((rows,), density)
        return out

    def __repr__(self) -> str:
        if self.sd is None:
            return f"Gaussian(covariance on {self._covariance and tuple(self._covariance.shape)})"
        return f"Gaussian({shown('sd', self.sd).removeprefix('sd=')})"
