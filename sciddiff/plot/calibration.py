"""Is the spread of the draws right: rank histogram and coverage against a truth, with the band of chance.

If draws and truth are exchangeable, each member j of the pool of M draws and the truth has the same law of
rank counts. So the band ``"exchange"`` spans the figure's quantiles over the M draws in the truth's place;
``"binomial"`` spans those of ``k/n``, ``k ~ Binomial(n, share)``, as if the n points were independent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from sciddiff.diagnostics import ranks
from sciddiff.errors import InputError
from sciddiff.plot.labels import chosen
from sciddiff.plot.style import BLUE, SKY, legend, own_axes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from sciddiff.diagnostics.labels import AnyLabelled, Array

__all__ = ["coverage", "rank_histogram"]

Band: TypeAlias = Literal["exchange", "binomial"] | None


def rank_histogram(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    variable: Hashable | None = None,
    bins: int | None = None,
    band: Band = "exchange",
    level: float = 0.9,
    nan: Literal["raise", "omit"] = "raise",
    seed: int = 0,
    sample_dim: str = "sample",
    ax: Axes | None = None,
) -> Axes:
    """Histogram of the truth's rank among the draws, relative to a flat one, with the band of chance.

    A bowl means too little spread, a hump too much, a slope a bias.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        variable: which variable of a Dataset; may be left out if there is one.
        bins: how many bars; neighbouring ranks are put together. None takes at most 20.
        band: "exchange", "binomial" or None, see the module.
        level: level of the band, bar by bar.
        nan: "raise", or "omit" to leave out points with NaN.
        seed: int in [0, 2**64); breaks ties at random.
        sample_dim: the dim of the draws.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, bad settings.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> x = np.random.default_rng(0).normal(size=(20, 300))
        >>> draws, truth = xr.DataArray(x[1:], dims=("sample", "x")), xr.DataArray(x[0], dims="x")
        >>> ax = rank_histogram(draws, truth)
        >>> ax.get_xlabel()
        'rank of the truth among 19 draws'
        >>> plt.close(ax.figure)
    """
    counts, m, n = _member_counts(draws, truth, variable, sample_dim, nan, seed, band, level)
    bins = min(m + 1, 20) if bins is None else bins
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or not 1 <= bins <= m + 1:
        raise InputError(
            "bins", expected=f"an int from 1 to {m + 1}, the number of ranks", got=bins, fix="None"
        )
    edges = np.linspace(0, m + 1, bins + 1).round().astype(int)
    widths = np.diff(edges)
    flat = widths / (m + 1)
    shares = np.add.reduceat(counts, edges[:-1], axis=1) / n
    ax = own_axes((3.4, 2.6)) if ax is None else ax
    ax.bar(edges[:-1] - 0.5, shares[-1] / flat, widths, align="edge", color=SKY, edgecolor="white", lw=0.5)
    ax.axhline(1.0, color="black", lw=0.8)
    if band is not None:
        low, high = (np.append(v, v[-1]) for v in _band(shares[:-1], band, level, n, flat) / flat)
        legend(ax, [_shade(ax, edges - 0.5, low, high, level, step="post", alpha=0.3, zorder=2)])
    ax.set_xlim(-0.5, m + 0.5)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(f"rank of the truth among {m} draws")
    ax.set_ylabel("frequency, 1 = flat")
    return ax


def coverage(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    variable: Hashable | None = None,
    levels: Sequence[float] | None = None,
    band: Band = "exchange",
    level: float = 0.9,
    nan: Literal["raise", "omit"] = "raise",
    seed: int = 0,
    sample_dim: str = "sample",
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Share of the truth inside the draws' central intervals against their level, with the band of chance.

    Below the diagonal the draws are too narrow, above it too wide. The share is that of
    `sciddiff.diagnostics.coverage`, whose expectation is the level for any number of draws.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        variable: which variable of a Dataset; may be left out if there is one.
        levels: levels of the intervals, in (0, 1); None takes 0.05, 0.1, .. 0.95.
        band: "exchange", "binomial" or None, see the module.
        level: level of the band, interval by interval.
        nan: "raise", or "omit" to leave out points with NaN.
        seed: int in [0, 2**64); breaks ties at random, in the band.
        sample_dim: the dim of the draws.
        color: colour of the curve.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, bad settings.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> x = np.random.default_rng(0).normal(size=(20, 300))
        >>> draws, truth = xr.DataArray(x[1:], dims=("sample", "x")), xr.DataArray(x[0], dims="x")
        >>> ax = coverage(draws, truth)
        >>> ax.get_ylabel()
        'coverage'
        >>> plt.close(ax.figure)
    """
    nominal = np.linspace(0.05, 0.95, 19) if levels is None else np.sort(np.asarray(levels, dtype=np.float64))
    x, y = chosen(draws, truth, variable, sample_dim)
    shares = ranks.coverage(x, y, nominal.tolist(), sample_dim=sample_dim, nan=nan).values
    counts, m, n = _member_counts(draws, truth, variable, sample_dim, nan, seed, band, level)
    ax = own_axes((3.0, 3.0)) if ax is None else ax
    ax.plot([0, 1], [0, 1], color="black", lw=0.8, zorder=1)
    handles: list[Artist] = []
    if band is not None:
        weights = np.stack([ranks.membership(m, p) for p in nominal], axis=1)
        chance = _band(counts[:-1] @ weights / n, band, level, n, nominal)
        where, low, high = (np.concatenate([[0.0], v, [1.0]]) for v in (nominal, *chance))
        handles.append(_shade(ax, where, low, high, level, alpha=0.2, zorder=0))
    handles += ax.plot(nominal, shares, color=color, lw=1.3, marker="o", ms=3, zorder=2, label="draws")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="level of the interval", ylabel="coverage")
    legend(ax, handles[::-1])
    return ax


def _member_counts(
    draws: AnyLabelled,
    truth: AnyLabelled,
    variable: Hashable | None,
    sample_dim: str,
    nan: Literal["raise", "omit"],
    seed: int,
    band: Band,
    level: float,
) -> tuple[Array, int, int]:
    """Counts ``(M + 1, M + 1)`` of ranks by member of the pool, the truth last; M; the number of points."""
    if band not in ("exchange", "binomial", None):
        raise InputError(
            "band", expected="'exchange', 'binomial' or None", got=repr(band), fix="leave it out"
        )
    ranks.check_levels([level])
    x, y = chosen(draws, truth, variable, sample_dim)
    pool = ranks.pooled_ranks(x, y, seed=seed, sample_dim=sample_dim, nan=nan)
    rows = pool.values.reshape(pool.sizes[sample_dim], -1)
    rows = rows[:, ~np.isnan(rows[-1])].astype(np.int64)
    counts = np.stack([np.bincount(row, minlength=len(rows)) for row in rows])
    return counts, len(rows) - 1, rows.shape[1]


def _band(members: Array, band: Band, level: float, n: int, share: Array) -> Array:
    """Lower and upper edge ``(2, k)``: quantiles over the draws, or of the share of n independent trials."""
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    if band == "exchange":
        return np.asarray(np.quantile(members, tails, axis=0))
    from scipy import stats

    return np.asarray(stats.binom.ppf(tails[:, None], n, share) / n)


def _shade(ax: Axes, where: Array, low: Array, high: Array, level: float, **style: Any) -> Artist:
    """The band of chance, named for the legend."""
    label = f"exact draws, {100 * level:g} %"
    return ax.fill_between(where, low, high, color="0.35", lw=0, label=label, **style)
