"""Known drivers of a series: variables of the prior that are given, or what a network was trained to be told.

A driver is taken for exact and never filled: where it is needed and not known, its date is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from sciddiff.assimilation.series import read_series, shown_time
from sciddiff.assimilation.steps import Labels, Steps
from sciddiff.errors import InputError
from sciddiff.priors import Prior

__all__ = ["Drivers", "check_drivers", "read_drivers"]


@final
@dataclass(frozen=True, eq=False)
class Drivers:
    """Covariates on an axis of steps.

    Attributes:
        values: ``(k, *grid)`` for a prior that is told them, else in the layout of the prior's states.
        numbers: steps of the values.
        told: whether the prior is told them; else they are some of its variables.
        names: of those variables.
    """

    values: torch.Tensor
    numbers: np.ndarray
    told: bool
    names: tuple[str, ...]


def read_drivers(
    data: Any, prior: Prior, axis: Steps | Labels, first: int, last: int, reach: tuple[int, int]
) -> Drivers | None:
    """Covariates, complete where they are needed: from ``first`` to ``last``, or over the ``reach`` of the windows.

    Raises:
        InputError: on other names than the prior's, units that differ, or a hole.
    """
    told = getattr(prior, "covariates", None)
    if data is None and told is None:
        return None
    data = data.to_frame() if hasattr(data, "iloc") and data.ndim == 1 else data
    own = list(prior.space.variables) if told is None else list(told.units)
    names = tuple(own) if told is not None else check_drivers(data, prior)
    space = prior.space if told is None else told.space(prior.space)
    read = read_series(data, space, "covariates", without=[n for n in own if n not in names])
    numbers = axis.count(read.times, "covariates")
    rows = [i for i, (n, _) in enumerate(space.components) if n in names]
    values = read.values if len(space.components) > 1 else read.values[None]
    dim = values.ndim - len(space.grid) + space.dims.index("time")
    full = ~values[rows].isnan().movedim(dim, 0).reshape(len(numbers), -1).any(1)
    first, last = (first, last) if told is None else reach
    absent = np.setdiff1d(np.arange(first, last + 1), numbers[full.numpy()])
    if len(absent):
        from_, to, hole = (shown_time(axis.times(int(k), int(k))[0]) for k in (first, last, absent[0]))
        raise InputError(
            "covariates",
            expected=f"values from {from_} to {to}",
            got=f"none at {hole}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
            fix="fill the driver from what is known of it: nothing is filled here",
        )
    return Drivers(
        values if told is not None else read.values,
        numbers,
        told is not None,
        () if told is not None else names,
    )


def check_drivers(covariates: Any, prior: Prior) -> tuple[str, ...]:
    """Check the names of the covariates; those that are variables of the prior come back."""
    import pandas as pd
    import xarray as xr

    told = getattr(prior, "covariates", None)
    own = list(prior.space.variables if told is None else told.units)
    if covariates is None and told is None:
        return ()
    names: tuple[str, ...] = ()
    if isinstance(covariates, (pd.Series, xr.DataArray)):
        names = () if covariates.name is None else (str(covariates.name),)
    elif isinstance(covariates, (pd.DataFrame, xr.Dataset)):
        frame = isinstance(covariates, pd.DataFrame)
        names = tuple(str(n) for n in (covariates.columns if frame else covariates.data_vars))
    if not names or set(names) - set(own) or (len(names) < len(own)) == (told is not None):
        whole = "all drivers of the prior" if told is not None else "some of the prior's variables, not all"
        raise InputError(
            "covariates",
            expected=f"pandas or xarray data named as {whole}: {own}",
            got=list(names) or type(covariates).__name__,
            fix="rename or select the columns; a prior knows only the drivers that it was made with",
        )
    return names if told is None else ()
