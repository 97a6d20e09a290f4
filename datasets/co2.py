"""Weekly carbon dioxide in the air at Mauna Loa, 1958 to 2001: a series with gaps of its own.

2284 weeks, of which 59 were not measured, in parts per million of dry air, from the table that statsmodels carries
(Keeling and Whorf 2004, "Atmospheric CO2 concentrations derived from flask air samples at sites in the SIO network").
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

# of the values, -1 where they are missing
SHA256 = "9d317e04e1b23d51a926c6c207ea2ffe18659f514e9bb086b2a988341e519e85"


def make(path: str | Path) -> None:
    """Write statsmodels' table as netCDF: ``co2`` on ``time``, 2284 Saturdays, NaN where nothing was measured.

    Args:
        path: the file.

    Raises:
        MissingDependencyError: without statsmodels.
        InputError: if statsmodels carries another table than the one that all figures here are of.
    """
    import pandas as pd
    import xarray as xr

    values = _table()
    time = pd.date_range("1958-03-29", periods=values.size, freq="7D", unit="ns")
    co2 = xr.DataArray(
        values,
        coords={"time": ("time", time.values, {"long_name": "last day of the week"})},
        dims="time",
        attrs={"long_name": "carbon dioxide in dry air at Mauna Loa", "units": "ppm"},
    )
    attrs = {
        "title": "Mauna Loa weekly carbon dioxide, 1958-2001",
        "source": "Keeling and Whorf (2004), by way of statsmodels.datasets.co2; public domain",
    }
    save(co2.to_dataset(name="co2").assign_attrs(attrs), path)


def load(cache: str | Path | None = None) -> xr.Dataset:
    """The series, from the cache; made there first if it is missing.

    Args:
        cache: folder of the file; default `sciddiff.bench.cache.cache_dir`.

    Returns:
        ``co2`` ``(time: 2284)`` in ppm, 59 of them NaN.

    Raises:
        MissingDependencyError: if it has to be made, without statsmodels.
        InputError: if the file in the cache does not hold the values that were written.
    """
    path = cached("co2.nc", make, cache)
    data = read(path)
    fix = "remove the file; it will be made anew"
    check_table("co2", data["co2"].values, SHA256, got=str(path), fix=fix)
    return data


def _table() -> np.ndarray:
    """Concentrations ``(2284,)``, week by week."""
    values = statsmodels_table("co2")["co2"].to_numpy(dtype=np.float64)
    return check_table("co2", values, SHA256)
