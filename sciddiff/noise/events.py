"""Events: ``P(y = 1 | mean) = Phi((mean - threshold)/sd)``, of which it was seen whether they happened."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.noise.base import Pointwise, check_shape, positive, shown

__all__ = ["Exceeds"]


@final
class Exceeds(Pointwise):
    """Whether ``A(x) + N(0, sd^2)`` exceeded a threshold: ``y`` is 1 where it did, and 0 where it did not.

    To condition on an event ``A(x) > threshold``, such as a heat wave, take ``y = 1`` and an sd that is small
    beside the spread of ``A(x)``. Exact events would be sd = 0, whose log-likelihood has no gradient;
    `methods.LocalGaussian` needs none, and takes any sd.

    Args:
        threshold: in the units of ``A(x)``: a number, or an array of the codomain's shape.
        sd: how blurred the threshold is: a number, or an array of the codomain's shape.

    Raises:
        InputError: if a threshold is not finite, or an sd not positive and finite.

    Example:
        >>> Exceeds(2.0, sd=0.1).log_prob(torch.ones(1, 1), torch.full((1, 1), 2.0)).exp()
        tensor([0.5000])
    """

    name = "sd"

    def __init__(self, threshold: Any, sd: Any) -> None:
        self.threshold = _finite(threshold)
        self.sd = self.scale = positive("sd", sd, "a positive blur, such as Exceeds(2.0, sd=0.1)")

    def check(self, y: torch.Tensor) -> None:
        """Refuse observations other than 0, 1 and missing."""
        super().check(y)
        check_shape("threshold", tuple(self.threshold.shape), tuple(y.shape[1:]))
        bad = ~((y == 0) | (y == 1) | y.isnan())
        if bool(bad.any()):
            raise InputError(
                "y",
                expected="1 where the threshold was exceeded and 0 where not",
                got=f"{int(bad.sum())} other values, such as {float(y[bad][0]):g}",
                fix="the threshold itself goes into Exceeds(threshold, sd)",
            )

    def row(self, mean: np.ndarray, scale: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """1 where ``mean + scale e`` exceeds the threshold."""
        above = mean + scale * generator.standard_normal(mean.shape) > self.threshold.numpy()
        return np.asarray(above, dtype=np.float64)

    def terms(self, y: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``log Phi(+-(mean - threshold)/scale)``; nothing but 0 and 1 can be seen."""
        log = torch.special.log_ndtr(
            torch.where(y == 1, 1.0, -1.0) * (mean - self.threshold.to(mean)) / scale
        )
        return torch.where((y == 0) | (y == 1), log, -math.inf)

    def expectation(self, mean: torch.Tensor) -> torch.Tensor:
        """``Phi((mean - threshold)/sd)``, the probability of the event."""
        out: torch.Tensor = torch.special.ndtr((mean - self.threshold.to(mean)) / self.fitted(mean))
        return out

    def variance(self, mean: torch.Tensor) -> torch.Tensor:
        """``p (1 - p)``."""
        u = (mean - self.threshold.to(mean)) / self.fitted(mean)
        out: torch.Tensor = torch.special.ndtr(u) * torch.special.ndtr(-u)
        return out

    def site(
        self, y: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The Gaussian observation of ``a ~ N(mean, variance)`` that moves its moments as the event does.

        With ``s^2 = variance + sd^2``, ``u = +-(mean - threshold)/s``, ``l = phi(u)/Phi(u)`` and
        ``q = l (l + u)``, the gradient of ``log P(y)`` in the mean is ``+-l/s`` and its curvature ``-q/s^2``:
        those of a Gaussian datum ``mean +- s l/q`` of variance ``s^2/q - variance``.

        Returns:
            The datum less ``mean``, and its variance: infinite where the event is sure, and says nothing.
        """
        # a variance is negative by rounding only
        sign, m, v = 2 * y.double() - 1, mean.double(), variance.double().clamp(min=0)
        s = (v + self.fitted(m) ** 2).sqrt()
        u = sign * (m - self.threshold.to(m)) / s
        ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(-u / math.sqrt(2))
        q = ratio * (ratio + u)
        # 1 - q is positive, but for rounding; far below the threshold l + u cancels, and its series stands for it
        far = u.clamp(max=-1e3) ** -2
        spare = torch.where(u < -1e3, far - 6 * far**2, (1 - q).clamp(min=0))
        q = torch.where(u < -1e3, 1 - spare, q)
        noise = s**2 * spare / q + self.fitted(m) ** 2
        sure = (q < torch.finfo(mean.dtype).eps) & (u > 0)
        return (
            torch.where(sure, 0.0, sign * s * ratio / q).to(mean),
            torch.where(sure, math.inf, noise).to(mean),
        )

    def __repr__(self) -> str:
        return f"Exceeds({shown('threshold', self.threshold)}, {shown('sd', self.sd)})"


def _finite(threshold: Any) -> torch.Tensor:
    """A real number or an array, as float64."""
    try:
        values = torch.as_tensor(np.asarray(threshold, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise _unfit(type(threshold).__name__) from error
    if values.numel() == 0 or not bool(values.isfinite().all()):
        raise _unfit(f"{threshold!r}")
    return values


def _unfit(got: str) -> InputError:
    return InputError(
        "threshold",
        expected="a finite real number, or an array",
        got=got,
        fix="pass for example threshold=2.0",
    )
