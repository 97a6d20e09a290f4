"""Where the truth ranks among the draws: coverage, rank histograms, and what chance makes of them.

Exact draws and the truth are exchangeable: given y nothing tells the truth from one draw more. So its rank
among M draws is uniform on 0..M, whatever the law, and that is all these functions rest on. Labels, NaN
and dims are treated as in `sciddiff.diagnostics.scores`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sciddiff.diagnostics.labels import (
    Array,
    Dims,
    Labelled,
    Nan,
    bare,
    check_dims,
    described,
    grouped,
    over,
    paired,
    pointwise,
    rebuilt,
)
from sciddiff.errors import InputError
from sciddiff.random import Streams, check_seed

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["check_levels", "coverage", "membership", "pooled_ranks", "rank_histogram"]


def coverage(
    draws: Labelled,
    truth: Labelled,
    levels: Sequence[float] = (0.5, 0.9),
    dims: Dims = None,
    *,
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """Share of points whose truth lies in the draws' central interval, with expectation ``level`` exactly.

    The interval between the j-th lowest and the j-th highest of M draws holds an exchangeable truth with
    probability ``1 - 2 j / (M + 1)``, and no other levels are to be had: with M = 10, 0.818 and 1 are
    the neighbours of 0.9. So a level between two of them counts as the weighted average of the two
    intervals next to it, with the weights that make the expectation equal to the level. It is a
    randomised interval averaged over its coin, so no seed enters. Ties between truth and draws are
    averaged over the ranks that they leave open, as exchangeability asks.

    For exact draws the expectation is the level for every M. The widest interval, from the lowest to
    the highest draw, has level ``(M - 1) / (M + 1)``: above it the whole line takes part and even draws
    far too narrow score above 0, so read 90 % with at least 19 draws and 99 % with at least 199.
    Plain quantiles of the draws would give too little: for exact normal draws 0.76 at M = 10 and 0.87 at
    M = 50, where 0.9 is meant.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        levels: levels of the central intervals, in (0, 1).
        dims: dims to average over; None takes all but ``sample_dim``.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit", see the module.

    Returns:
        The share, with a leading dim ``level``, over the dims that are left.

    Raises:
        InputError: labels that differ, an unknown dim or level, NaN under ``nan="raise"``, infinite values.

    Source: exchangeable ranks as in Hamill (2001), "Interpretation of rank histograms for verifying
    ensemble forecasts", section 2; the averaging over the coin is ours.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = xr.DataArray(np.tile([[1.0], [2.0], [3.0]], 4), dims=("sample", "x"))
        >>> truth = xr.DataArray([0.0, 1.5, 2.5, 9.0], dims="x")  # each rank among 3 draws once
        >>> coverage(draws, truth, levels=(0.5, 0.9)).values
        array([0.5, 0.9])
    """
    import xarray as xr

    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    check_levels(levels)
    check_dims(draws, dims, sample_dim)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        m = x.sizes[sample_dim]
        below = pointwise(_below, x, y, sample_dim)
        equal = pointwise(_equal, x, y, sample_dim)
        shares = [_covered(below, equal, m, p).mean(over(y, dims)) for p in levels]
        out = xr.concat(shares, dim=xr.DataArray(list(levels), dims="level", name="level"))
        return described(out, x, "coverage of central intervals", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def check_levels(levels: Sequence[float]) -> None:
    """Raise unless there are levels, all between 0 and 1."""
    if not len(levels) or not all(0 < p < 1 for p in levels):
        raise InputError("levels", expected="numbers between 0 and 1", got=repr(levels), fix="(0.5, 0.9)")


def _below(x: Array, y: Array) -> Array:
    """Number of draws ``(..., M)`` below the truth ``(...)``, NaN where it is NaN."""
    return np.where(np.isnan(y), np.nan, (x < y[..., None]).sum(axis=-1))


def _equal(x: Array, y: Array) -> Array:
    """Number of draws equal to the truth, NaN where it is NaN."""
    return np.where(np.isnan(y), np.nan, (x == y[..., None]).sum(axis=-1))


def _covered(below: xr.DataArray, equal: xr.DataArray, m: int, level: float) -> xr.DataArray:
    """Weight of every truth in the interval, averaged over the ranks that ties leave open."""
    total = np.concatenate([[0.0], np.cumsum(membership(m, level))])
    seen = ~np.isnan(below.values)
    low, ties = (np.where(seen, v.values, 0).astype(np.int64) for v in (below, equal))
    share = (total[low + ties + 1] - total[low]) / (ties + 1)
    return below.copy(data=np.where(seen, share, np.nan))


def membership(m: int, level: float) -> Array:
    """Weight in [0, 1] of each rank 0..m in the central interval of a level; they sum to level (m + 1).

    Rank r lies in the central set of n ranks if ``|2 r - m| < n``, and sets of n = m + 1, m - 1, ... exist.
    Between two of them the outer pair of ranks counts in part.

    Example:
        >>> membership(3, 0.75)
        array([0.5, 1. , 1. , 0.5])
    """
    depth = np.abs(2 * np.arange(m + 1) - m)
    outer, inner = depth + 1, np.maximum(depth - 1, 0)
    weight: Array = np.clip((level * (m + 1) - inner) / (outer - inner), 0.0, 1.0)
    return weight


def rank_histogram(
    draws: Labelled,
    truth: Labelled,
    dims: Dims = None,
    *,
    seed: int = 0,
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """How often the truth has rank 0, 1, .. M among the draws: flat for exact draws.

    A hump means too much spread, a bowl too little, a slope a bias. Points of one field are correlated,
    so a single field's histogram is rough even for exact draws: see `pooled_ranks`.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        dims: dims to count over; None takes all but ``sample_dim``.
        seed: int in [0, 2**64); breaks ties between truth and draws at random.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit", see the module.

    Returns:
        Counts (int), with a trailing dim ``rank`` of size M + 1, the number of draws below the truth.

    Raises:
        InputError: labels that differ, an unknown dim, NaN under ``nan="raise"``, infinite values.

    Source: Hamill (2001), "Interpretation of rank histograms for verifying ensemble forecasts".

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[1.0, 1.0], [2.0, 2.0]], dims=("sample", "x"))
        >>> rank_histogram(draws, xr.DataArray([0.0, 1.5], dims="x")).values
        array([1, 1, 0])
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    check_dims(draws, dims, sample_dim)
    check_seed(seed)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        m = x.sizes[sample_dim]
        gone: list[Hashable] = over(y, dims)
        left = [d for d in y.dims if d not in gone]
        rank = pointwise(lambda a, b: _random_rank(a, b, _ties(seed, x.name)), x, y, sample_dim)
        rows = [row[~np.isnan(row)].astype(np.int64) for row in grouped(rank, left, gone)]
        counts = [np.bincount(row, minlength=m + 1) for row in rows]
        slot = bare(x, [sample_dim, *gone]).transpose(*left)
        out = slot.expand_dims(rank=np.arange(m + 1), axis=-1)
        out = out.copy(data=np.array(counts).reshape(out.shape))
        return described(out, x, "rank of the truth among the draws", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def _ties(seed: int, name: object) -> np.random.Generator:
    """The generator that breaks one variable's ties."""
    return Streams(seed, [0], purpose=f"rank ties {name}").numpy()[0]


def _random_rank(x: Array, y: Array, generator: np.random.Generator) -> Array:
    rank: Array = _below(x, y) + np.floor(generator.random(y.shape) * (_equal(x, y) + 1))
    return rank


def pooled_ranks(
    draws: Labelled,
    truth: Labelled,
    *,
    seed: int = 0,
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """Rank of every member of the pool of draws and truth among all others, point by point.

    If the draws are exact, truth and draws are exchangeable *as whole fields*. So whatever is computed
    from the truth's ranks (a histogram, a coverage curve) can be set against the same thing from each
    draw's ranks: that shows how far it strays by chance, correlations between points included, where a
    binomial band would take every point for a trial of its own.

    Args:
        draws: Dataset or DataArray with ``sample_dim``, M draws.
        truth: the same without ``sample_dim``.
        seed: int in [0, 2**64); breaks ties at random.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit" (NaN at the points left out), see the module.

    Returns:
        Ranks 0..M, leading dim ``sample_dim`` of size M + 1 without a coordinate, of the draws in their order,
        and then the truth.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values.

    Source: a permutation test (Hoeffding, 1952) whose permutations swap the truth with one draw.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[1.0], [3.0]], dims=("sample", "x"))
        >>> pooled_ranks(draws, xr.DataArray([2.0], dims="x")).values.ravel()
        array([0., 2., 1.])
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    check_seed(seed)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        slot = bare(x, [sample_dim])
        pool = np.concatenate([x.transpose(sample_dim, ...).values, y.transpose(*slot.dims).values[None]])
        order = np.lexsort((_ties(seed, x.name).random(pool.shape), pool), axis=0)
        rank = np.empty(pool.shape)
        np.put_along_axis(rank, order, _column(np.arange(len(pool)), pool.ndim), axis=0)
        out = slot.expand_dims({sample_dim: len(pool)}, axis=0).drop_vars(sample_dim, errors="ignore")
        out = out.copy(data=np.where(np.isnan(pool), np.nan, rank))
        return described(out, x, "rank in the pool of draws and truth", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def _column(values: Array, ndim: int) -> Array:
    """The values along the first of ``ndim`` axes."""
    return values.reshape(-1, *[1] * (ndim - 1))
