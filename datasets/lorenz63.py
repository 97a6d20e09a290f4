"""Runs of the noisy Lorenz-63 system of Rozet and Louppe 2023, "Score-based data assimilation", section 4.1.

    x_{k+1} = step(x_k) + N(0, dt I)

with the classical parameters, RK4 steps of dt = 0.025 and noise of sd sqrt(dt) = 0.158 on every variable after each
step: 1024 runs of 1024 states after a burn-in of 1024 steps, split 80/10/10. Simulated here from that description,
with our own seed. In the paper, observations are of standardised states: `MEAN` and `SD` are what they stand in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch

from sciddiff.bench.cache import cached
from sciddiff.draws import load as read
from sciddiff.draws import save
from sciddiff.physics import Lorenz63, simulate
from sciddiff.random import Streams
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MEAN", "NOISE_SD", "SD", "SYSTEM", "Windows", "climate", "load", "make", "space"]

# to be raised whenever `make` gives other numbers, so that no old file is taken for a new one
RECIPE = 1
SYSTEM = Lorenz63(dt=0.025)
NOISE_SD = SYSTEM.dt**0.5
MEAN, SD = (0.0, 0.0, 25.0), (8.0, 9.0, 8.6)
SPLIT = {"training": slice(0, 819), "validation": slice(819, 921), "test": slice(921, 1024)}


def space(length: int = 65) -> Space:
    """Trajectories of so many states; variables x, y and z on "time"."""
    return SYSTEM.trajectories(np.arange(length) * SYSTEM.dt)


def climate(count: int, *, length: int = 1, burn_in: int = 1024, seed: int = 0) -> torch.Tensor:
    """Independent stretches ``(count, length, 3)`` of the statistical steady state, float64.

    Args:
        count: number of stretches.
        length: states of each.
        burn_in: steps from a normal state before the first that is kept.
        seed: of the first states and the noise.
    """
    streams = Streams(seed, range(count), purpose="noisy lorenz63")
    x = streams.normal((3,), dtype=torch.float64) * torch.tensor(SD) + torch.tensor(MEAN)
    x = simulate(SYSTEM, x, burn_in, every=burn_in, noise_sd=NOISE_SD, streams=streams)[:, -1]
    return simulate(SYSTEM, x, length - 1, noise_sd=NOISE_SD, streams=streams)


def make(path: Path, *, runs: int = 1024, length: int = 1024, seed: int = 0) -> None:
    """Simulate and write the runs as netCDF, x, y and z on ("run", "time"), in single precision."""
    x = climate(runs, length=length, seed=seed).movedim(2, 1)
    data = space(length).dataset(x, ["run"]).astype(np.float32)
    data.attrs.update({"title": "Noisy Lorenz-63", "seed": seed})
    save(data, path)


def load(
    part: str | None = None,
    *,
    runs: int = 1024,
    length: int = 1024,
    seed: int = 0,
    cache: str | Path | None = None,
) -> xr.Dataset:
    """The runs of a part ("training", "validation", "test", or all), from the cache; made there first if missing."""
    name = f"lorenz63_v{RECIPE}_{runs}_{length}_{seed}.nc"
    data = read(cached(name, lambda path: make(path, runs=runs, length=length, seed=seed), cache))
    return data if part is None else data.isel(run=SPLIT[part])


@final
@dataclass(frozen=True, eq=False)
class Windows:
    """Batches of windows of runs at random times, for training: ``(batch, 3, length)``, the same at every pass.

    The law is invariant under (x, y) -> (-x, -y), so half of the windows are turned so.

    Args:
        runs: a part of the data.
        length: states of a window.
        batch: windows of a batch.
        seed: of the choice.
    """

    runs: xr.Dataset
    length: int = 65
    batch: int = 64
    seed: int = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches without end."""
        x = torch.from_numpy(np.stack([self.runs[name].values for name in ("x", "y", "z")], 1))
        runs, states = self.runs.sizes["run"], self.runs.sizes["time"]
        generator = Streams(self.seed, [0], purpose="lorenz63 windows").numpy()[0]
        lags = torch.arange(self.length)
        turn = torch.tensor([-1.0, -1.0, 1.0])
        while True:
            run = torch.from_numpy(generator.integers(runs, size=self.batch))
            start = torch.from_numpy(generator.integers(states - self.length + 1, size=self.batch))
            turned = torch.from_numpy(generator.random(self.batch) < 0.5)
            w = x[run[:, None], :, start[:, None] + lags].movedim(2, 1)
            yield torch.where(turned[:, None, None], w * turn[:, None], w)
