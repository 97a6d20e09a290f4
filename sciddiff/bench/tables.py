"""Tables that an ordinary dependency carries, and whether they are still the ones that all figures here are of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.bench.cache import checksum
from sciddiff.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_table", "statsmodels_table"]


def statsmodels_table(name: str) -> pd.DataFrame:
    """The table ``statsmodels.datasets.NAME``.

    Raises:
        MissingDependencyError: without statsmodels.

    Example:
        >>> statsmodels_table("nile").shape
        (100, 2)
    """
    try:
        module: Any = getattr(import_module("statsmodels.datasets"), name)
    except ImportError as error:
        raise MissingDependencyError("statsmodels", "data", f"the series {name!r}") from error
    table: pd.DataFrame = module.load_pandas().data
    return table


def check_table(
    name: str,
    values: np.ndarray,
    sha256: str,
    *,
    got: str = "another one",
    fix: str = "install statsmodels 0.14 or 0.15",
) -> np.ndarray:
    """The values, if their `checksum` is the one given; missing ones count as -1.

    Raises:
        InputError: if it is another.

    Example:
        >>> values = np.arange(3.0)
        >>> check_table("three", values, checksum(values)) is values
        True
    """
    if checksum(np.nan_to_num(values, nan=-1.0)) != sha256:
        raise InputError(name, expected=f"the table with SHA-256 {sha256[:8]}...", got=got, fix=fix)
    return values
