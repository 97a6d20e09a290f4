"""Runs of the Kuramoto-Sivashinsky equation on a ring of length 44, and windows of them to train on, simulated here.

64 sites, steps of 0.25, a state kept every unit of time. Differences grow by a factor e in about 12.6 units (measured,
see the page of `ks_forecast`). Every run begins at its own random state and has forgotten it before it is kept.
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
from sciddiff.physics import KuramotoSivashinsky, simulate
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["EVERY", "INTERVAL", "SYSTEM", "Windows", "load", "make", "runs", "states"]

# to be raised whenever `make` gives other numbers, so that no old file is taken for a new one
RECIPE = 1
SYSTEM = KuramotoSivashinsky(sites=64, length=44.0, dt=0.25)
EVERY = 4
INTERVAL = EVERY * SYSTEM.dt
# 200 units of time
SPIN_UP = 800


def states(count: int, *, seed: int, purpose: str = "kuramoto states") -> torch.Tensor:
    """Independent states on the attractor, with mean zero, ``(count, 64)``, float64."""
    streams = Streams(seed, range(count), purpose=purpose)
    begun = 0.5 * streams.normal(SYSTEM.space.shape, dtype=torch.float64)
    begun = begun - begun.mean(-1, keepdim=True)
    return simulate(SYSTEM, begun, SPIN_UP, every=SPIN_UP)[:, -1]


def runs(count: int, steps: int, *, seed: int, purpose: str = "kuramoto states") -> torch.Tensor:
    """Independent runs on the attractor, a state every unit of time, ``(count, steps, 64)``, float64."""
    return simulate(SYSTEM, states(count, seed=seed, purpose=purpose), EVERY * (steps - 1), every=EVERY)


def make(path: Path, *, count: int = 256, steps: int = 400, seed: int = 0) -> None:
    """Simulate the runs and write them as netCDF, in single precision."""
    times = torch.arange(steps, dtype=torch.float64) * INTERVAL
    data = SYSTEM.trajectories(times.numpy()).dataset(runs(count, steps, seed=seed).float(), ["run"])
    data.attrs.update({"title": "Kuramoto-Sivashinsky on a ring of length 44", "seed": seed})
    save(data, path)


def load(*, count: int = 256, steps: int = 400, seed: int = 0, cache: str | Path | None = None) -> xr.Dataset:
    """The runs, labelled, from the cache; made there first if they are missing."""
    name = f"kuramoto_v{RECIPE}_{count}_{steps}_{seed}.nc"
    return read(cached(name, lambda path: make(path, count=count, steps=steps, seed=seed), cache))


@dataclass(frozen=True, eq=False)
class Windows:
    """Endless batches of windows from random places of the runs, turned and mirrored at random.

    The law of the field is the same at every time and every site, and that of ``-u(-x)`` is that of ``u(x)``.

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
        count, steps, sites = self.runs.shape
        generator = Streams(self.seed, [0], purpose="kuramoto windows").numpy()[0]
        along, around = torch.arange(self.length)[:, None], torch.arange(sites)
        while True:
            run, start, turn, sign = (
                torch.from_numpy(generator.integers(n, size=(self.batch, 1, 1)))
                for n in (count, steps - self.length + 1, sites, 2)
            )
            sign = 1 - 2 * sign
            yield sign * self.runs[run, start + along, (sign * around + turn) % sites]
