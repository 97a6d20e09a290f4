"""Monthly sea-surface temperature off Peru, 1950 to 2010: the series in which El Niño shows.

The mean over 0-10 S, 90-80 W ("Nino 1+2") of NOAA's reconstruction ERSST v3b (Smith, Reynolds, Peterson and
Lawrimore 2008, "Improvements to NOAA's historical merged land-ocean surface temperature analysis"),
from the table that statsmodels carries: 61 years by 12 months, in degrees Celsius, without gaps.
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

SHA256 = "d16127adc7d82befb493d6a5d9862cb14a4f40396bcbedb09f736481b0fe279d"


def make(path: str | Path) -> None:
    """Write statsmodels' table as netCDF: ``sst`` on ``time``, 732 months, each dated by its first day.

    Args:
        path: the file.

    Raises:
        MissingDependencyError: without statsmodels.
        InputError: if statsmodels carries another table than the one that all figures here are of.
    """
    import pandas as pd
    import xarray as xr

    values = _table()
    time = pd.date_range("1950-01-01", periods=values.size, freq="MS", unit="ns")
    sst = xr.DataArray(
        values,
        coords={"time": ("time", time.values, {"long_name": "first day of the month"})},
        dims="time",
        attrs={
            "long_name": "monthly mean sea-surface temperature, 0-10 S, 90-80 W",
            "standard_name": "sea_surface_temperature",
            "units": "degC",
        },
    )
    attrs = {
        "title": "Nino 1+2 sea-surface temperature, 1950-2010",
        "source": "NOAA ERSST v3b, by way of statsmodels.datasets.elnino; public domain",
    }
    save(sst.to_dataset(name="sst").assign_attrs(attrs), path)


def load(cache: str | Path | None = None) -> xr.Dataset:
    """The series, from the cache; made there first if it is missing.

    Args:
        cache: folder of the file; default `sciddiff.bench.cache.cache_dir`.

    Returns:
        ``sst`` ``(time: 732)`` in degC.

    Raises:
        MissingDependencyError: if it has to be made, without statsmodels.
        InputError: if the file in the cache does not hold the values that were written.
    """
    path = cached("elnino.nc", make, cache)
    data = read(path)
    fix = "remove the file; it will be made anew"
    check_table("elnino", data["sst"].values, SHA256, got=str(path), fix=fix)
    return data


def _table() -> np.ndarray:
    """Temperatures ``(732,)``: the table has a column of years, then one of each month."""
    table = statsmodels_table("elnino").sort_values("YEAR")
    values = table.drop(columns="YEAR").to_numpy(dtype=np.float64).ravel()
    return check_table("elnino", values, SHA256)
