"""Simulators that fail in every way a simulator can, importable by worker processes."""

from __future__ import annotations

import os
import time

import numpy as np


def cumulative(x: np.ndarray) -> np.ndarray:
    """A simulator without flaws."""
    return np.cumsum(np.sin(x))[:2]


def raises_above_one(x: np.ndarray) -> np.ndarray:
    """Diverges for one member."""
    if x[0] > 1:
        raise ArithmeticError("the solver diverged")
    return cumulative(x)


def nan_above_one(x: np.ndarray) -> np.ndarray:
    """Quietly wrong for one member."""
    return cumulative(x) * (np.nan if x[0] > 1 else 1.0)


def short_above_one(x: np.ndarray) -> np.ndarray:
    """Stops early for one member."""
    return cumulative(x)[: 1 if x[0] > 1 else 2]


def dies_above_one(x: np.ndarray) -> np.ndarray:
    """Takes its process down, as a segmentation fault does."""
    if x[0] > 1:
        os._exit(11)
    return cumulative(x)


def hangs_above_one(x: np.ndarray) -> np.ndarray:
    """Never returns for one member."""
    if x[0] > 1:
        time.sleep(600)
    return cumulative(x)
