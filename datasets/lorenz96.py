"""Runs of Lorenz-96 (40 sites, forcing 8, steps of 0.05) and windows of them to train on, simulated here.

The settings are those of Sakov and Oke 2008, "A deterministic formulation of the ensemble Kalman filter", on which
filters are compared. Every run begins at its own random state and has forgotten it before it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sciddiff.bench.cache import cached
from sciddiff.draws import load as read
from sciddiff.draws import save
from sciddiff.physics import Lorenz96, simulate
from sciddiff.random import Streams
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SYSTEM", "Windows", "load", "make", "space", "states", "trajectories"]

# to be raised whenever `make` gives other numbers, so that no old file is taken for a new one
RECIPE = 1
SYSTEM = Lorenz96(sites=40, forcing=8.0, dt=0.05)
# 20 units of time; differences grow a thousandfold in about 4
SPIN_UP = 400


def space(times: int) -> Space:
    """Windows of so many consecutive states."""
    return Space({"time": times, "site": SYSTEM.sites}, "x")


def states(runs: int, *, seed: int, purpose: str = "lorenz96 states") -> torch.Tensor:
    """Independent states on the attractor, ``(runs, 40)``, float64."""
    streams = Streams(seed, range(runs), purpose=purpose)
    begun = SYSTEM.forcing + streams.normal(SYSTEM.space.shape, dtype=torch.float64)
    return simulate(SYSTEM, begun, SPIN_UP, every=SPIN_UP)[:, -1]


def trajectories(runs: int, steps: int, *, seed: int, purpose: str = "lorenz96 states") -> torch.Tensor:
    """Independent runs on the attractor, ``(runs, steps, 40)``, float64."""
    return simulate(SYSTEM, states(runs, seed=seed, purpose=purpose), steps - 1)


def make(path: Path, *, runs: int = 256, steps: int = 500, seed: int = 0) -> None:
    """Simulate the runs and write them as netCDF, in single precision."""
    x = trajectories(runs, steps, seed=seed).float()
    data = space(steps).dataset(x, ["run"])
    data.attrs.update({"title": "Lorenz-96, 40 sites, forcing 8, steps of 0.05", "seed": seed})
    save(data, path)


def load(*, runs: int = 256, steps: int = 500, seed: int = 0, cache: str | Path | None = None) -> xr.Dataset:
    """The runs, labelled, from the cache; made there first if they are missing."""
    name = f"lorenz96_v{RECIPE}_{runs}_{steps}_{seed}.nc"
    return read(cached(name, lambda path: make(path, runs=runs, steps=steps, seed=seed), cache))


@dataclass(frozen=True, eq=False)
class Windows:
    """Endless batches of windows from random places of the runs, turned by a random number of sites.

    The law of Lorenz-96 is the same at every time and at every site, so all of them are draws of one law.

    Args:
        runs: ``(runs, steps, sites)``.
        length: states of a window.
        batch: windows of a batch.
        seed: of the places; every iteration begins anew with the same.
    """

    runs: torch.Tensor
    length: int
    batch: int
    seed: int

    def __iter__(self) -> Iterator[torch.Tensor]:
        runs, steps, sites = self.runs.shape
        generator = Streams(self.seed, [0], purpose="lorenz96 windows").numpy()[0]
        along, around = torch.arange(self.length)[:, None], torch.arange(sites)
        while True:
            run, start, turn = (
                torch.from_numpy(generator.integers(n, size=(self.batch, 1, 1)))
                for n in (runs, steps - self.length + 1, sites)
            )
            yield self.runs[run, start + along, (around + turn) % sites]
