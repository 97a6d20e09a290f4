"""Arguments as shapes and float64 tensors, checked, and the little algebra that all covariances share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError

__all__ = ["DENSE_LIMIT", "as_float64", "as_shape", "flattened", "reciprocal"]

DENSE_LIMIT = 8192


def as_shape(shape: Any) -> tuple[int, ...]:
    """The shape of a state as a tuple of sizes of at least 1."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in sizes):
        raise InputError(
            "shape", expected="a tuple of sizes of at least 1", got=repr(shape), fix="pass space.shape"
        )
    return tuple(int(n) for n in sizes)


def as_float64(values: Any, argument: str) -> torch.Tensor:
    """Finite real numbers as a float64 tensor on the CPU."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or isinstance(values, np.ma.MaskedArray):
        raise InputError(
            argument,
            expected="real numbers",
            got=f"{type(values).__name__} of dtype {array.dtype}",
            fix="pass an array or a tensor of real numbers, without a mask",
        )
    if not np.isfinite(array).all():
        raise InputError(argument, expected="finite numbers", got="NaN or infinity", fix="remove them")
    return torch.tensor(array, dtype=torch.float64)


def flattened(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """States ``(..., *shape)`` as vectors ``(..., size)``."""
    return x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))


def reciprocal(values: torch.Tensor) -> torch.Tensor:
    """``1/values``, 0 where they are not positive."""
    return torch.where(values > 0, 1.0 / torch.where(values > 0, values, 1.0), 0.0)
