"""Trajectories of Lorenz-63 and the events in them: the data of the prior, and direct simulation to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import sciddiff as sd
from sciddiff.physics import Lorenz63, simulate
from sciddiff.random import Streams

STEP, EVERY = 0.02, 5
BURN_IN, LENGTH, STAY = 30, 71, 61
HIGH = 18.5


def space() -> sd.Space:
    """7 time units at a spacing of 0.1."""
    return Lorenz63(dt=STEP).trajectories([round(0.1 * i, 1) for i in range(LENGTH)])


def trajectories(n: int, *, seed: int, first: int = 0) -> torch.Tensor:
    """Trajectories after a burn-in of 3 time units, ``(n, 3, 71)``; row i depends on (seed, first + i) alone."""
    streams = Streams(seed, range(first, first + n), purpose="starts")
    x0 = 10 * streams.normal((3,), dtype=torch.float32) + torch.tensor([0.0, 0.0, 25.0])
    system = Lorenz63(dt=STEP)
    x = simulate(system, x0, EVERY * (BURN_IN + LENGTH - 1), every=EVERY)[:, BURN_IN:]
    return system.as_trajectories(x)


def stays(x: torch.Tensor) -> torch.Tensor:
    """How far x stays above 0 for 6 time units, ``(rows,)``: positive where the right lobe is not left."""
    return x[:, 0, :STAY].amin(1)


def peak(x: torch.Tensor) -> torch.Tensor:
    """How far the largest x lies above the level, ``(rows,)``."""
    return x[:, 0].amax(1) - HIGH


EVENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"stay": stays, "peak": peak}


def counted(n: int, *, seed: int, chunk: int = 50_000) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Shares of n direct simulations that have each event, and the first 2000 of those that do."""
    hits = dict.fromkeys(EVENTS, 0)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in EVENTS}
    for first in range(0, n, chunk):
        x = trajectories(min(chunk, n - first), seed=seed, first=first)
        for name, event in EVENTS.items():
            met = event(x) > 0
            hits[name] += int(met.sum())
            kept[name].append(x[met][:2000].numpy())
    return {k: v / n for k, v in hits.items()}, {k: np.concatenate(v)[:2000] for k, v in kept.items()}
