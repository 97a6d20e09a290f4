"""Sources and solutions of Poisson's equation, as in Huang et al. 2024 (DiffusionPDE, arXiv 2406.17763, sec. 4).

``a ~ N(0, tau^(2 alpha - 2) (-Lap + tau^2)^-alpha)`` with Neumann modes, alpha = 2, tau = 3 and no mean, on
``n x n`` points; ``Lap u = a`` with ``u = 0`` on the outermost points (five-point scheme). Simulated here from
those formulas, with our own seed: these are not the published test fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import torch

from sciddiff.bench.cache import cached
from sciddiff.draws import load as read
from sciddiff.draws import save
from sciddiff.operators import poisson
from sciddiff.spaces import Space, Variable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["load", "make", "source_space", "spectrum"]

# to be raised whenever `make` gives other numbers, so that no old file is taken for a new one
RECIPE = 1


def source_space(n: int = 128) -> Space:
    """The source ``a`` on the unit square."""
    c = np.linspace(0.0, 1.0, n)
    return Space({"y": c, "x": c}, {"a": Variable(("y", "x"), attrs={"long_name": "source"})})


def spectrum(n: int = 128, *, alpha: float = 2.0, tau: float = 3.0) -> np.ndarray:
    """Variances ``(n, n)`` of the orthonormal DCT-II coefficients of ``a``; that of the mean is 0."""
    k2 = np.arange(n)[:, None] ** 2 + np.arange(n)[None, :] ** 2
    sd = n * tau ** (alpha - 1) * (np.pi**2 * k2 + tau**2) ** (-alpha / 2)
    sd[0, 0] = 0.0
    return np.asarray(sd**2)


def make(path: Path, *, n: int = 128, fields: int = 20, seed: int = 0) -> None:
    """Simulate ``fields`` pairs ``(a, u)`` and write them as netCDF."""
    space = source_space(n)
    generator = np.random.Generator(np.random.Philox(key=seed))
    z = generator.standard_normal((fields, n, n))
    a = scipy.fft.idctn(np.sqrt(spectrum(n)) * z, axes=(1, 2), norm="ortho")
    solve = poisson(space)
    data = space.dataset(torch.from_numpy(a), ["field"])
    data = data.merge(solve.codomain.dataset(solve.apply(torch.from_numpy(a)), ["field"]))
    data.attrs.update({"title": "Poisson sources and solutions", "seed": seed})
    save(data, path)


def load(*, n: int = 128, fields: int = 20, seed: int = 0, cache: str | Path | None = None) -> xr.Dataset:
    """The pairs, labelled, from the cache; made there first if they are missing."""
    name = f"poisson_grf_v{RECIPE}_{n}_{fields}_{seed}.nc"
    return read(cached(name, lambda path: make(path, n=n, fields=fields, seed=seed), cache))
