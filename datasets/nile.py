"""Yearly flow of the Nile at Aswan, 1871 to 1970: the standard series of the local level model.

In 10^8 cubic metres, from the table that statsmodels carries (Cobb 1978, "The problem of the Nile: conditional solution
to a changepoint problem"; Durbin and Koopman 2012, "Time series analysis by state space methods", section 2.2.5).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sciddiff.bench.cache import cached
from sciddiff.bench.tables import check_table, statsmodels_table
from sciddiff.draws import load as read
from sciddiff.draws import save

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["load", "make"]

SHA256 = "712fd2764c35c689005ac4f4f7ee70ace178ac6b3ba223e15ea5762e283a3df7"


def make(path: str | Path) -> None:
    """Write statsmodels' table as netCDF: ``volume`` on ``time``, 100 years, each dated by its first day.

    Args:
        path: the file.

    Raises:
        MissingDependencyError: without statsmodels.
        InputError: if statsmodels carries another table than the one that all figures here are of.
    """
    import pandas as pd
    import xarray as xr

    values = _table()
    time = pd.date_range("1871-01-01", periods=values.size, freq="YS", unit="ns")
    volume = xr.DataArray(
        values,
        coords={"time": ("time", time.values, {"long_name": "first day of the year"})},
        dims="time",
        attrs={"long_name": "yearly flow of the Nile at Aswan", "units": "1e8 m3"},
    )
    attrs = {
        "title": "Nile flow, 1871-1970",
        "source": "Cobb (1978), by way of statsmodels.datasets.nile; public domain",
    }
    save(volume.to_dataset(name="volume").assign_attrs(attrs), path)


def load(cache: str | Path | None = None) -> xr.Dataset:
    """The series, from the cache; made there first if it is missing.

    Args:
        cache: folder of the file; default `sciddiff.bench.cache.cache_dir`.

    Returns:
        ``volume`` ``(time: 100)`` in 10^8 cubic metres.

    Raises:
        MissingDependencyError: if it has to be made, without statsmodels.
        InputError: if the file in the cache does not hold the values that were written.
    """
    path = cached("nile.nc", make, cache)
    data = read(path)
    fix = "remove the file; it will be made anew"
    check_table("nile", data["volume"].values, SHA256, got=str(path), fix=fix)
    return data


def _table() -> np.ndarray:
    """Flows ``(100,)``, in the order of the years."""
    values = statsmodels_table("nile").sort_values("year")["volume"].to_numpy(dtype=np.float64)
    return check_table("nile", values, SHA256)
