"""Handwritten digits, 8 x 8: the test set of the "Optical Recognition of Handwritten Digits" data.

1797 digits of 13 people (Alpaydin and Kaynak 1998, UCI Machine Learning Repository), each 8 x 8 counts from
0 to 16 of inked cells of a 32 x 32 bitmap; from the table that scikit-learn carries (CC BY 4.0). Here they
are ink densities from 0 to 1 on a square of side 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sciddiff.bench.cache import cached, checksum
from sciddiff.draws import load as read
from sciddiff.draws import save
from sciddiff.errors import InputError, MissingDependencyError
from sciddiff.spaces import Space, Variable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TEST", "TRAIN", "VALIDATION", "load", "make", "space"]

SHA256 = "0258c0e3de00826fb31c0ca93acd9370afd99ae74d9e25a8dbc8a10790552c6c"
# in the order of the table, which goes writer by writer as far as the order of the digits tells: blocks begin
# at 1287, 1415, 1545 and 1667, so that TEST shares none with the other two parts
TRAIN, VALIDATION, TEST = slice(0, 1297), slice(1297, 1497), slice(1545, 1797)


def space() -> Space:
    """One digit: ink density on 8 x 8 cells; the first row is the top one."""
    c = (np.arange(8) + 0.5) / 8
    return Space(
        {"y": c[::-1].copy(), "x": c}, {"ink": Variable(("y", "x"), "1", attrs={"long_name": "ink density"})}
    )


def make(path: str | Path) -> None:
    """Write scikit-learn's table as netCDF: ``ink`` on ``(image, y, x)`` and the written ``digit``.

    Args:
        path: the file.

    Raises:
        MissingDependencyError: without scikit-learn.
        InputError: if scikit-learn carries another table than the one that all figures here are of.
    """
    import torch

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "data", "the digits dataset") from error
    table = load_digits()
    if checksum(table.images, table.target.astype(np.int64)) != SHA256:
        raise InputError(
            "digits", expected="the table of 1797 digits", got="another one", fix="use scikit-learn >= 1.5"
        )
    data = space().dataset(torch.from_numpy(table.images / 16.0), ["image"])
    data = data.assign_coords(digit=("image", table.target.astype(np.int64)))
    save(data.assign_attrs(title="Optical Recognition of Handwritten Digits", source="UCI, CC BY 4.0"), path)


def load(cache: str | Path | None = None) -> xr.Dataset:
    """The digits, labelled, from the cache; made there first if they are missing."""
    return read(cached("digits.nc", make, cache))
