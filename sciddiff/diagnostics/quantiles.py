"""Scores of single quantiles, and where the truth lies in the law: the weighted quantile loss and the PIT.

The loss of a quantile of level q is ``2 (q - 1{y < x}) (y - x)``, least in expectation where x is the law's own, and
its mean over all levels between 0 and 1 is the CRPS. Forecasting papers print a few levels' mean, divided by the mean of
``|y|``, some of them as "CRPS": it is another number, and has its own name here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sciddiff.diagnostics.labels import (
    Array,
    Dims,
    Labelled,
    Nan,
    check_dims,
    described,
    over,
    paired,
    pointwise,
    rebuilt,
)
from sciddiff.diagnostics.ranks import check_levels
from sciddiff.random import Streams, check_seed

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["pit", "weighted_quantile_loss"]


def weighted_quantile_loss(
    draws: Labelled,
    truth: Labelled,
    dims: Dims = None,
    *,
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """Mean weighted quantile loss (wQL): ``mean_q sum 2 (q - 1{y < x_q}) (y - x_q) / sum |y|``, sums over ``dims``.

    What GluonTS calls ``mean_wQuantileLoss`` and papers on forecasts print as wQL, or as CRPS. It is not the
    `crps`: it has no units, hangs on where zero is (temperatures in kelvin score 100 times better than in
    degrees), and draws' quantiles make it depend on their number.

    Quantiles are interpolated between draws as `numpy.quantile` does, and as CSDI does; GluonTS takes the nearest draw.

    Args:
        draws: Dataset or DataArray with ``sample_dim``, at least 2 draws.
        truth: the same without ``sample_dim``.
        dims: dims of both sums; None takes all but ``sample_dim``.
        levels: the levels q, in (0, 1); the default is GluonTS's. CSDI takes 0.05, 0.1, .. 0.95.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit" (both sums run over the points left), see `sciddiff.diagnostics.scores`.

    Returns:
        The loss over the dims that are left, a pure number; 0 is perfect, and infinite or NaN where all truth is 0.

    Raises:
        InputError: labels that differ, an unknown dim or level, NaN under ``nan="raise"``, infinite values, fewer
            than 2 draws.

    Source: Park, Maddix, Aubet, Kan, Gasthaus and Wang (2022), "Learning quantile functions without quantile
    crossing for distribution-free time series forecasting", section 4.1; GluonTS's evaluation; Tashiro et al. (2021),
    "CSDI", appendix, for the 19 levels.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[1.0], [3.0]], dims=("sample", "x"))
        >>> float(weighted_quantile_loss(draws, xr.DataArray([4.0], dims="x"), levels=[0.5]))  # |4 - 2| / 4
        0.5
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2)
    check_dims(draws, dims, sample_dim)
    check_levels(levels)
    q = np.asarray(levels, dtype=np.float64)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        loss = pointwise(lambda a, b: _quantile_loss(a, b, q), x, y, sample_dim)
        gone = over(y, dims)
        # by the mean of both over the same points, which leaves the ratio of the sums
        with np.errstate(divide="ignore", invalid="ignore"):
            out = loss.mean(gone) / abs(y.where(loss.notnull())).mean(gone)
        return described(out, x, "mean weighted quantile loss", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def _quantile_loss(x: Array, y: Array, q: Array) -> Array:
    """Mean over levels of twice the pinball loss of ``(..., M)`` draws against ``(...)``; NaN where a draw is."""
    quantiles = np.quantile(x, q, axis=-1)
    error = y - quantiles
    level = q.reshape(-1, *(1,) * y.ndim)
    loss: Array = (2 * np.maximum(level * error, (level - 1) * error)).mean(axis=0)
    return loss


def pit(
    draws: Labelled, truth: Labelled, *, seed: int = 0, sample_dim: str = "sample", nan: Nan = "raise"
) -> Labelled:
    """Where the truth lies among the draws, from 0 to 1: ``(rank + u) / (M + 1)`` with u uniform on [0, 1).

    The probability integral transform of the draws' law, randomised within the step that M draws leave open:
    exactly uniform for exact draws, whatever M and the law. A histogram of it with M + 1 bars is the rank
    histogram; here the number of bars is free, and ensembles of different sizes can be put together. The plain
    share of draws below the truth would pile up at 0 and 1.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        seed: int in [0, 2**64); of u, and of ties between truth and draws.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit" (NaN at the points left out), see `sciddiff.diagnostics.scores`.

    Returns:
        The value at every point, a pure number in [0, 1).

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values.

    Source: Dawid (1984), "Statistical theory: the prequential approach"; randomised as in Czado, Gneiting and Held
    (2009), "Predictive model assessment for count data", equation 2.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[1.0], [2.0], [3.0]], dims=("sample", "x"))
        >>> bool(0.5 <= pit(draws, xr.DataArray([2.5], dims="x")).item() < 0.75)
        True
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    check_seed(seed)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        generator = Streams(seed, [0], purpose=f"pit {x.name}").numpy()[0]

        def rank(a: Array, b: Array) -> Array:
            below, equal = ((a < b[..., None]).sum(axis=-1), (a == b[..., None]).sum(axis=-1))
            share = (below + generator.random(b.shape) * (equal + 1)) / (a.shape[-1] + 1)
            return np.where(np.isnan(b), np.nan, share)

        return described(pointwise(rank, x, y, sample_dim), x, "probability integral transform", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])
