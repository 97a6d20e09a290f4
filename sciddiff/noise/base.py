"""What a noise is, and what noises that are independent from value to value have in common.

``log p(y | mean)`` is summed over what was observed. What was not, False in a mask, is integrated out,
whatever stands there: NaN neither enters the sum nor its gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.random import Streams

__all__ = ["Noise", "Pointwise", "check_range", "check_shape", "masked", "positive", "shown", "total"]


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

    def expectation(self, mean: torch.Tensor) -> torch.Tensor:
        """``E[y | mean]``, of the shape of ``mean``."""
        return mean

    def variance(self, mean: torch.Tensor) -> torch.Tensor | None:
        """``Var[y | mean]`` of every value, of the shape of ``mean``; None where it is not known."""
        return None

    def score(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Gradient of `log_prob` in ``mean``, of its shape."""
        with torch.inference_mode(False), torch.enable_grad():
            # tensors made in inference mode cannot enter a graph; their copies can
            y = y.clone() if y.is_inference() else y
            mean = (mean.clone() if mean.is_inference() else mean.detach()).requires_grad_()
            (out,) = torch.autograd.grad(self.log_prob(y, mean, mask).sum(), mean)
        return out

    def sample(self, mean: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Observations of a batch ``(batch, *shape)``; row i depends on (seed, i) alone."""
        return self.draw(mean, Streams(seed, range(len(mean)), purpose="observation"))


class Pointwise(Noise):
    """Noise that is independent from value to value, with one scale for all or one each.

    Attributes:
        name: the caller's name of the scale.
        scale: float64, 0-d or of the codomain's shape.
    """

    name: str = "scale"
    scale: torch.Tensor

    @abstractmethod
    def terms(self, y: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``log p(y_i | mean_i)``, value by value."""

    @abstractmethod
    def row(self, mean: np.ndarray, scale: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One observation of one noise-free value, in float64."""

    def check(self, y: torch.Tensor) -> None:
        """Refuse scales of another shape than the observation's, or out of the range of its dtype."""
        check_shape(self.name, tuple(self.scale.shape), tuple(y.shape[1:]))
        check_range(self.name, self.scale, y.dtype)

    def draw(self, mean: torch.Tensor, streams: Streams) -> torch.Tensor:
        """Row by row in float64, rounded to the dtype of ``mean``."""
        scale, out = self.fitted(mean).cpu().double().numpy(), torch.empty_like(mean)
        for values, row, generator in zip(out, mean, streams.numpy(), strict=True):
            values.copy_(torch.as_tensor(self.row(row.detach().cpu().double().numpy(), scale, generator)))
        return out

    def log_prob(self, y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Sum of the terms of what was observed."""
        y, mean = masked(y, mean, mask)
        return total(self.terms(y, mean, self.fitted(mean)), mask)

    def fitted(self, mean: torch.Tensor) -> torch.Tensor:
        """The scale in the dtype and on the device of ``mean``, which it has to fit."""
        check_shape(self.name, tuple(self.scale.shape), tuple(mean.shape[1:]))
        return self.scale.to(mean)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.name, self.scale)})"


def masked(
    y: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair with 1 in place of what is missing, so that nothing there reaches a gradient.

    Raises:
        InputError: if the shapes differ, but for a batch of one.
    """
    for name, other in (("y", y), ("mask", mask)):
        if other is not None and (
            other.shape[1:] != mean.shape[1:]
            or (len(other) != len(mean) and 1 not in (len(other), len(mean)))
        ):
            raise InputError(
                name,
                expected=f"the shape of mean, {tuple(mean.shape)}",
                got=tuple(other.shape),
                fix="nothing is broadcast but a batch of one",
            )
    return (y, mean) if mask is None else (torch.where(mask, y, 1.0), torch.where(mask, mean, 1.0))


def total(terms: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Sum of the terms where the mask is True, one number per row."""
    return (terms if mask is None else torch.where(mask, terms, 0.0)).flatten(1).sum(1)


def positive(argument: str, value: Any, fix: str) -> torch.Tensor:
    """A number or an array, positive and finite, as float64.

    Raises:
        InputError: on anything else, labelled data too: only the codomain can tell how those lie.
    """
    plain = isinstance(value, (int, float, np.generic, np.ndarray, torch.Tensor, list, tuple))
    try:
        values = (
            np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value) if plain else None
        )
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.dtype.kind not in "iuf" or isinstance(value, np.ma.MaskedArray):
        raise InputError(
            argument,
            expected="a real number or a plain array of them",
            got=type(value).__name__ + ("" if values is None else f" of dtype {values.dtype}"),
            fix=f"pass {fix}; read labelled data with operator.codomain.tensor(...)",
        )
    if values.size == 0 or not np.isfinite(values).all() or (values <= 0).any():
        got = "nothing" if values.size == 0 else f"values from {values.min():g} to {values.max():g}"
        raise InputError(argument, expected="positive finite numbers", got=got, fix=f"pass {fix}")
    return torch.as_tensor(values.astype(np.float64))


def check_shape(argument: str, shape: tuple[int, ...], event: tuple[int, ...]) -> None:
    """Refuse an array that is neither a number nor of the shape of the observation."""
    if shape not in ((), event):
        raise InputError(
            argument,
            expected=f"one number, or one per value of the observation, shape {event}",
            got=f"shape {shape}",
            fix="nothing is broadcast; give the noise the observation's shape",
        )


def check_range(argument: str, scale: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse scales whose squares vanish or overflow in a dtype."""
    square = scale.to(dtype) ** 2
    if not bool(((square > 0) & square.isfinite()).all()):
        raise InputError(
            argument,
            expected=f"a scale whose square is representable in {str(dtype).removeprefix('torch.')}",
            got=f"values from {float(scale.min()):.3g} to {float(scale.max()):.3g}",
            fix="use a prior in float64, or other units of y",
        )


def shown(name: str, scale: torch.Tensor) -> str:
    """A scale in a repr: a number, or the shape of an array."""
    return f"{name} of shape {tuple(scale.shape)}" if scale.ndim else f"{name}={float(scale):g}"
