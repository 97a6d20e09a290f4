"""The law ``p(y | A(x))``: one object makes observations and judges them.

Tensors are ``(batch, *codomain.shape)``; a scale is per real value, in the units of ``y``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance import Covariance, diagonal, white
from sciddiff.errors import InputError
from sciddiff.random import Streams

__all__ = ["Gaussian", "Noise"]


class Noise(ABC):
    """A family of laws of an observation, given its noise-free value ``mean``."""

    gaussian: bool = False

    @abstractmethod
    def check(self, y: torch.Tensor) -> None:
        """Refuse an observation that the law cannot produce; ``y`` is ``(batch, *codomain.shape)``, NaN = missing.

        Raises:
            InputError: on a wrong shape of the noise's own arrays, or values outside the support.
        """

    @abstractmethod
    def draw(self, mean: torch.Tensor, streams: Streams) -> torch.Tensor:
        """Observations of ``mean``, one stream per row."""

    @abstractmethod
    def log_prob(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``log p(y | mean)``, one number per row, differentiable in ``mean``; values where ``mask`` is False do not count."""

    def score(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Gradient of `log_prob` in ``mean``, of its shape."""
        with torch.inference_mode(False), torch.enable_grad():
            mean = mean.detach().requires_grad_()
            (out,) = torch.autograd.grad(self.log_prob(y, mean, mask).sum(), mean)
        return out

    def sample(self, mean: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Observations of a batch ``(batch, *shape)``; row i depends on (seed, i) alone."""
        return self.draw(mean, Streams(seed, range(len(mean)), purpose="observation"))


@final
class Gaussian(Noise):
    """``y = A(x) + N(0, R)``.

    Args:
        sd: standard deviation of each real value: a number, or an array of the codomain's shape.
        covariance: a full covariance ``R`` instead.

    Raises:
        InputError: if both or none are given, or a standard deviation is not positive and finite.

    Example:
        >>> noise = Gaussian(0.5)
        >>> noise.log_prob(torch.zeros(1, 2), torch.zeros(1, 2)).item() - 2 * math.log(2 / math.sqrt(2 * math.pi)) < 1e-6
        True
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
        self._covariance = covariance
        self.sd: torch.Tensor | None = None
        if covariance is not None:
            if covariance.rank != math.prod(covariance.shape):
                raise InputError(
                    "covariance",
                    expected="a covariance of full rank",
                    got=f"rank {covariance.rank} of {math.prod(covariance.shape)}",
                    fix="add a small variance to every value",
                )
            return
        try:
            self.sd = torch.as_tensor(np.asarray(sd, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(
                "sd",
                expected="a number or an array of numbers",
                got=repr(sd),
                fix="pass for example Gaussian(0.1)",
            ) from error
        if not torch.isfinite(self.sd).all() or (self.sd <= 0).any():
            advice = (
                "noise-free data: use a small sd, such as 1e-5 of the data's rms, and float64"
                if bool((self.sd == 0).any())
                else "pass a positive standard deviation (not a variance)"
            )
            raise InputError("sd", expected="positive finite standard deviations", got=repr(sd), fix=advice)

    def covariance(self, shape: tuple[int, ...]) -> Covariance:
        """``R`` on observations of this shape."""
        if self._covariance is not None:
            return self._covariance
        assert self.sd is not None  # the constructor takes one of the two
        return white(shape, float(self.sd) ** 2) if self.sd.ndim == 0 else diagonal(self.sd**2)

    def check(self, y: torch.Tensor) -> None:
        """Refuse arrays of another shape than the observation's."""
        shape = (
            tuple(self._covariance.shape)
            if self._covariance is not None
            else tuple(self.sd.shape)
            if self.sd is not None
            else ()
        )
        if shape and shape != tuple(y.shape[1:]):
            raise InputError(
                "noise",
                expected=f"a scalar sd, or one value per observation, shape {tuple(y.shape[1:])}",
                got=f"shape {shape}",
                fix="nothing is broadcast; give the noise the observation's shape",
            )

    def draw(self, mean: torch.Tensor, streams: Streams) -> torch.Tensor:
        """``mean + R^1/2 z``."""
        covariance = self.covariance(tuple(mean.shape[1:]))
        return mean + covariance.sqrt(
            streams.normal(covariance.white_shape, dtype=mean.dtype, device=mean.device)
        )

    def log_prob(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``log N(y; mean, R)``; missing values are integrated out."""
        residual, dims = y - mean, tuple(range(1, mean.ndim))
        if self._covariance is not None:
            return self._full(residual, mask)
        assert self.sd is not None
        sd = self.sd.to(mean)
        terms = -0.5 * (residual / sd) ** 2 - sd.log() - 0.5 * math.log(2 * math.pi)
        return (terms if mask is None else torch.where(mask, terms, 0.0)).sum(dims)

    def _full(self, residual: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert self._covariance is not None
        n = math.prod(self._covariance.shape)
        flat = residual.reshape(len(residual), n)
        if mask is None:
            energy = (flat * self._covariance.solve(residual).reshape(flat.shape)).sum(-1)
            return -0.5 * (energy + self._covariance.logdet + n * math.log(2 * math.pi))
        # missing values: marginal of the observed ones, as a unit variance on the missing diagonal
        eye = torch.eye(n, dtype=residual.dtype, device=residual.device)
        full = self._covariance.apply(eye.reshape(n, *self._covariance.shape)).reshape(n, n)
        seen = mask.reshape(-1, n).to(residual)
        chol = torch.linalg.cholesky(seen[:, :, None] * full * seen[:, None, :] + torch.diag_embed(1 - seen))
        flat = torch.where(seen.bool(), flat, 0.0)
        energy = (flat * torch.cholesky_solve(flat[..., None], chol)[..., 0]).sum(-1)
        logdet = 2 * torch.diagonal(chol, dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (energy + logdet + seen.sum(-1) * math.log(2 * math.pi))

    def __repr__(self) -> str:
        if self.sd is None:
            return (
                f"Gaussian(covariance on {self._covariance.shape})"
                if self._covariance is not None
                else "Gaussian()"
            )
        return (
            f"Gaussian({float(self.sd):g})"
            if self.sd.ndim == 0
            else f"Gaussian(sd of shape {tuple(self.sd.shape)})"
        )
