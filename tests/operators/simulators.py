"""Simulators that fail in every way a simulator can, importable by worker processes."""

from __future__ import annotations

import ctypes
import os
import resource
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


def segfaults_above_one(x: np.ndarray) -> np.ndarray:
    """Reads where there is no memory, for one member."""
    if x[0] > 1:
        ctypes.string_at(0)
    return cumulative(x)


def segfaults_late_above_one(x: np.ndarray) -> np.ndarray:
    """The same after a while: Dask's nanny gives a worker up that dies while it starts."""
    if x[0] > 1:
        time.sleep(4)
        ctypes.string_at(0)
    return cumulative(x)


def hungry_above_one(x: np.ndarray) -> np.ndarray:
    """Asks for more memory than its process may have, for one member."""
    if x[0] > 1:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, limits[1]))
        try:
            np.ones(2**28)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    return cumulative(x)
