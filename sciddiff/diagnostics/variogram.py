"""The variogram score: do the draws have the right differences between places, whatever their level.

``VS(P, y) = sum_ij w_ij (|y_i - y_j|^p - E|X_i - X_j|^p)^2``: a proper score that looks at pairs of values, where
the CRPS looks at one and the energy score, which sees all, sees their correlation weakly.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
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
    rebuilt,
)
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["variogram_score"]

# the most differences that are held at once
_BLOCK = 2**22


def variogram_score(
    draws: Labelled,
    truth: Labelled,
    dims: Dims = None,
    *,
    p: float = 0.5,
    weights: Array | None = None,
    fair: bool = True,
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """Variogram score of order p over ``dims``: the squared misses of ``|y_i - y_j|^p``, summed over pairs.

    Blind to a shift of all values and to the sign of their differences, so that it stands beside the CRPS or
    the energy score and never alone. Cost ``O(M d^2)``. Variables of a Dataset are scored one by one.

    Args:
        draws: Dataset or DataArray with ``sample_dim``, at least 2 draws.
        truth: the same without ``sample_dim``.
        dims: dims whose points are paired; None takes all but ``sample_dim`` and "case".
        p: the order, positive; 0.5 is the authors' choice, larger ones hang on the tails.
        weights: ``w (d, d)``, at least 0, in the order of the points as ``dims`` lie in the draws; None for ones.
            The authors give pairs that are far apart less, as the inverse of their distance.
        fair: True takes off the variance that the mean over M draws has, so that the expectation over draws is
            the score of their law, for any M; it can be negative. False is the plain score of the
            empirical law, as in other packages, which punishes small ensembles.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit" (the sum runs over the pairs left), see `sciddiff.diagnostics.scores`.

    Returns:
        The score over the dims that are left, in the variable's units to the power of 2p; 0 is perfect. Each pair
        counts twice, as in the source.

    Raises:
        InputError: labels that differ, an unknown dim, an order or weights out of range, NaN under
            ``nan="raise"``, infinite values, fewer than 2 draws.

    Source: Scheuerer and Hamill (2015), "Variogram-based proper scoring rules for probabilistic forecasts of
    multivariate quantities", equation 12; the correction is ours, that of Ferro (2014) for the CRPS.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[0.0, 1.0], [3.0, 4.0]], dims=("sample", "x"))
        >>> float(variogram_score(draws, xr.DataArray([0.0, 4.0], dims="x")))  # 2 (sqrt(4) - sqrt(1))^2
        2.0
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2)
    check_dims(draws, dims, sample_dim)
    if isinstance(p, bool) or not isinstance(p, (int, float, np.number)) or not 0 < p < math.inf:
        raise InputError("p", expected="a positive order", got=repr(p), fix="0.5 is the usual one")

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        paired_dims: list[Hashable] = over(y, dims, keep="case")
        left = [d for d in y.dims if d not in paired_dims]
        size = math.prod(y.sizes[d] for d in paired_dims)
        w = np.ones((size, size)) if weights is None else _checked(weights, size)
        # over the draws' order of dims, which is that of the weights
        inside = [d for d in x.dims if d in paired_dims]
        rows = zip(grouped(x, left, [sample_dim], inside), grouped(y, left, inside), strict=True)
        scores = [_variogram(draw_rows, truth_row, float(p), w, fair) for draw_rows, truth_row in rows]
        slot = bare(x, [sample_dim, *paired_dims]).transpose(*left)
        out = slot.copy(data=np.array(scores).reshape(slot.shape))
        units = x.attrs.get("units")
        if units is not None and 2 * p != 1:
            units = f"({units})^{2 * p:g}"
        return described(out, x, f"{'fair' if fair else 'plain'} variogram score of order {p:g}", units)

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def _checked(weights: Array, size: int) -> Array:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (size, size) or not np.isfinite(w).all() or bool((w < 0).any()):
        raise InputError(
            "weights",
            expected=f"finite numbers of at least 0, ({size}, {size})",
            got=f"shape {w.shape}" if w.shape != (size, size) else "negative, NaN or infinite ones",
            fix="one weight for each pair of points, in the order of the draws' dims",
        )
    return w


def _variogram(x: Array, y: Array, p: float, w: Array, fair: bool) -> float:
    """Score of ``(M, d)`` draws against ``(d,)``; coordinates that are NaN in y are left out."""
    seen = ~np.isnan(y)
    if not seen.any():
        return math.nan
    x, y, w = x[:, seen], y[seen], w[np.ix_(seen, seen)]
    m, d = x.shape
    step, total = max(1, _BLOCK // (m * d)), 0.0
    for start in range(0, d, step):
        block = slice(start, start + step)
        power = np.abs(x[:, block, None] - x[:, None, :]) ** p
        square = (np.abs(y[block, None] - y) ** p - power.mean(axis=0)) ** 2
        if fair:
            square = square - power.var(axis=0, ddof=1) / m
        total += float((w[block] * square).sum())
    return total
