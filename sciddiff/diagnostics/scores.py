"""Scores of labelled draws against the truth, each right in expectation for a finite number of draws.

What makes draws honest is that the truth cannot be told from one of them: it and the M draws are
exchangeable, so its rank among them is uniform on 0..M. Every score here has a known value then, for
any M: coverage equals its level, ranks are flat, ``sqrt((M + 1) / M) * spread / rmse`` tends to 1, and
the fair CRPS and energy score are unbiased for those of the law behind the draws,

    ``S(P, y) = E|X - y| - 1/2 E|X - X'|,   X, X' ~ P independent``.

Shared by all functions:

- ``draws`` is an xarray Dataset or DataArray with a dim ``sample_dim`` ("sample"; others say "member" or
  "realization"), ``truth`` the same without that dim. What comes back is of the same kind, with coords,
  names and units kept.
- Labels must agree: variables, dims, sizes, units and every coordinate that both sides carry. A mismatch
  raises `InputError`; nothing is broadcast and nothing is joined. The order of dims is free.
- ``nan="raise"`` (default) refuses NaN; ``nan="omit"`` leaves out the points where the truth or any draw
  is NaN (padding, land, missing data). Infinite values are always refused. A draw that is NaN
  everywhere has failed and would leave nothing: drop it first, and say so.
- Scores are computed and returned in float64. Points count equally; for area weights take a pointwise
  score: ``crps(draws, truth).weighted(area).mean()``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from sciddiff.diagnostics.labels import (
    AnyLabelled,
    Array,
    Dims,
    Labelled,
    Nan,
    bare,
    check_dims,
    check_same,
    described,
    grouped,
    over,
    paired,
    pointwise,
    rebuilt,
    usable,
    variables,
)
from sciddiff.diagnostics.ranks import check_levels, coverage, pooled_ranks, rank_histogram
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = [
    "chi_square",
    "coverage",
    "crps",
    "crps_normal",
    "energy_score",
    "pooled_ranks",
    "rank_histogram",
    "relative_error",
    "rmse",
    "spread",
    "spread_skill",
    "summary",
]

Numbers: TypeAlias = "float | Array | AnyLabelled"


def summary(
    draws: AnyLabelled,
    truth: AnyLabelled | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    sample_dim: str = "sample",
    case_dim: str = "case",
    nan: Nan = "raise",
) -> pd.DataFrame:
    """Table of scores, one column a variable, over all points and cases.

    Rows without a truth: ``draws`` (M), ``points``, ``mean`` and ``sd`` (averages over points of the
    draws' mean and standard deviation) and ``spread``. With a truth also ``rmse``, ``relative_error``,
    ``crps``, ``energy_score``, ``spread_skill`` and one ``coverage_..`` row a level. Each is the function
    of that name at its default dims; crps, energy score and relative error are averaged over cases.
    Nothing is divided by a scale: rows other than counts, ``relative_error``, ``spread_skill`` and
    coverage are in the variable's units, held in ``table.attrs["units"]``.

    Args:
        draws: Dataset or DataArray with ``sample_dim``, at least 2 draws.
        truth: the same without ``sample_dim``.
        levels: levels of the central intervals, in (0, 1).
        sample_dim: the dim of the draws.
        case_dim: the dim of the observations that were conditioned on, where there is one.
        nan: "raise" or "omit", see the module.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, fewer than 2 draws.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> draws = xr.DataArray(rng.normal(size=(50, 400)), dims=("sample", "x"), name="u")
        >>> table = summary(draws, truth=xr.DataArray(rng.normal(size=400), dims="x", name="u"))
        >>> bool(0.8 < table.loc["coverage_90", "u"] < 1.0)
        True
    """
    import pandas as pd

    check_levels(levels)
    columns: dict[str, dict[str, float]] = {}
    units: dict[str, str] = {}
    if truth is None:
        sides: list[Any] = [(x, None) for x in usable(draws, sample_dim=sample_dim, nan=nan, minimum=2)]
    else:
        sides = list(paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2))
    for (name, _), (x, y) in zip(variables(draws), sides, strict=True):
        points = float(x.notnull().all(sample_dim).sum())
        column = {"draws": float(x.sizes[sample_dim]), "points": points, "mean": float(x.mean())}
        column["sd"] = float(x.std(sample_dim, ddof=1).mean())
        column["spread"] = float(spread(x, sample_dim=sample_dim, nan="omit"))
        columns[str(name)] = column if y is None else column | _against(x, y, levels, sample_dim, case_dim)
        units[str(name)] = str(x.attrs.get("units", ""))
    table = pd.DataFrame(columns)
    table.index.name, table.attrs = "score", {"units": units}
    return table


def _against(
    x: xr.DataArray, y: xr.DataArray, levels: Sequence[float], sample_dim: str, case_dim: str
) -> dict[str, float]:
    """The rows that need a truth."""
    shared: dict[str, Any] = {"sample_dim": sample_dim, "nan": "omit"}
    within = [d for d in y.dims if d != case_dim]
    rows = {
        "rmse": float(rmse(x, y, **shared)),
        "relative_error": float(relative_error(x, y, within, **shared).mean()),
        "crps": float(crps(x, y, **shared).mean()),
        "energy_score": float(energy_score(x, y, within, **shared).mean()),
        "spread_skill": float(spread_skill(x, y, **shared)),
    }
    shares = coverage(x, y, levels, **shared).values
    return rows | {f"coverage_{100 * p:g}": float(c) for p, c in zip(levels, shares, strict=True)}


def crps(draws: Labelled, truth: Labelled, *, sample_dim: str = "sample", nan: Nan = "raise") -> Labelled:
    """Fair continuous ranked probability score at every point; its mean over points is the usual figure.

    ``mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1))``, from sorted draws in O(M log M). "Fair": its
    expectation over draws is the CRPS of the law they come from, whatever M; the estimator with M^2 in
    place of M (M - 1) punishes small ensembles. Being unbiased, it can be negative at a point.

    Args:
        draws: Dataset or DataArray with ``sample_dim``, at least 2 draws.
        truth: the same without ``sample_dim``.
        sample_dim: the dim of the draws.
        nan: "raise" or "omit" (NaN at the points left out), see the module.

    Returns:
        The score at every point, in the variable's units; 0 is perfect.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, fewer than 2 draws.

    Source: Ferro (2014), "Fair scores for ensemble forecasts", section 2; Zamo and Naveau (2018),
    "Estimation of the CRPS with limited information", equation eCRPS(PWM) for the sorted form.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[0.0], [1.0]], dims=("sample", "x"))
        >>> crps(draws, xr.DataArray([2.0], dims="x")).values
        array([1.])
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        return described(pointwise(_fair_crps, x, y, sample_dim), x, "fair CRPS")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def _fair_crps(x: Array, y: Array) -> Array:
    """Fair CRPS of ``(..., M)`` draws against ``(...)``."""
    m = x.shape[-1]
    # Around the truth, so that a large common offset does not cancel away the digits.
    error = np.sort(x - y[..., None], axis=-1)
    weight = (2.0 * np.arange(1, m + 1) - m - 1) / (m * (m - 1))
    score: Array = np.abs(error).mean(axis=-1) - error @ weight
    return score


def crps_normal(mean: Numbers, sd: Numbers, truth: Numbers) -> Numbers:
    """CRPS of a normal law, in closed form: ``sd (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi))``.

    Args:
        mean: mean of the law; a number, an array or a DataArray.
        sd: its standard deviation, not negative; at 0 the score is ``|truth - mean|``.
        truth: what happened, with ``z = (truth - mean) / sd``.

    Returns:
        The score in the units of ``truth``; of the kind that numpy or xarray make of the three.

    Raises:
        InputError: a negative or NaN sd, or DataArrays with other labels.

    Source: Gneiting, Raftery, Westveld and Goldman (2005), "Calibrated probabilistic forecasting using
    ensemble model output statistics and minimum CRPS estimation", equation 5.

    Example:
        >>> round(float(crps_normal(0.0, 1.0, 0.0)), 6)
        0.233695
    """
    import xarray as xr

    labelled = [v for v in (mean, sd, truth) if isinstance(v, xr.DataArray | xr.Dataset)]
    for other in labelled[1:]:
        check_same(labelled[0], other, "the first labelled argument")
    if not _everywhere(sd, lambda s: s >= 0):
        raise InputError("sd", expected="standard deviations", got="negative or NaN ones", fix="look at sd")

    def closed(m: Array, s: Array, y: Array) -> Array:
        m, s, y = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (m, s, y)))
        z = np.divide(y - m, s, out=np.zeros(y.shape), where=s > 0)
        cdf = torch.special.ndtr(torch.from_numpy(z)).numpy()
        pdf = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        score = s * (z * (2 * cdf - 1) + 2 * pdf - 1 / np.sqrt(np.pi))
        out: Array = np.where(s > 0, score, np.abs(y - m))
        return out

    if not labelled:
        return closed(*(np.asarray(v) for v in (mean, sd, truth)))
    scored: AnyLabelled = xr.apply_ufunc(closed, mean, sd, truth, join="exact")
    return scored


def _everywhere(numbers: Numbers, holds: Callable[[Array], Array]) -> bool:
    """Whether a condition holds for every number."""
    import xarray as xr

    arrays = [x for _, x in variables(numbers)] if isinstance(numbers, xr.Dataset) else [numbers]
    return all(bool(np.all(holds(np.asarray(x)))) for x in arrays)


def energy_score(
    draws: Labelled,
    truth: Labelled,
    dims: Dims = None,
    *,
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """Fair energy score, the CRPS with the Euclidean norm over ``dims`` in place of the modulus.

    ``mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1))``. Unlike the CRPS it sees correlations between
    points, though weakly. Variables of a Dataset are scored one by one, since a norm over several
    would mix their units. Cost O(M^2 d).

    Args:
        draws: Dataset or DataArray with ``sample_dim``, at least 2 draws.
        truth: the same without ``sample_dim``.
        dims: dims of the norm; None takes all but ``sample_dim`` and "case".
        sample_dim: the dim of the draws.
        nan: "raise" or "omit" (the norm runs over the points left), see the module.

    Returns:
        The score over the dims that are left, in the variable's units; 0 is perfect.

    Raises:
        InputError: labels that differ, an unknown dim, NaN under ``nan="raise"``, infinite values, fewer
            than 2 draws.

    Source: Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation",
    equation 22; the fair form is Ferro (2014), as for the CRPS.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[3.0, 4.0], [3.0, 4.0]], dims=("sample", "x"))
        >>> float(energy_score(draws, xr.DataArray([0.0, 0.0], dims="x")))
        5.0
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2)
    check_dims(draws, dims, sample_dim)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        norm: list[Hashable] = over(y, dims, keep="case")
        left = [d for d in y.dims if d not in norm]
        rows = zip(grouped(x, left, [sample_dim], norm), grouped(y, left, norm), strict=True)
        scores = [_fair_energy(draw_rows, truth_row) for draw_rows, truth_row in rows]
        slot = bare(x, [sample_dim, *norm]).transpose(*left)
        out = slot.copy(data=np.array(scores).reshape(slot.shape))
        return described(out, x, "fair energy score")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def _fair_energy(x: Array, y: Array) -> float:
    """Fair energy score of ``(M, d)`` draws against ``(d,)``; coordinates that are NaN in y are left out."""
    seen = ~np.isnan(y)
    if not seen.any():
        return float("nan")
    error = torch.from_numpy(np.ascontiguousarray((x - y)[:, seen]))
    return float(torch.linalg.vector_norm(error, dim=1).mean() - torch.nn.functional.pdist(error).mean() / 2)


def rmse(
    draws: Labelled, truth: Labelled, dims: Dims = None, *, sample_dim: str = "sample", nan: Nan = "raise"
) -> Labelled:
    """Root mean square error of the draws' mean, over ``dims`` (None takes all but ``sample_dim``).

    Returns:
        The error over the dims that are left, in the variable's units.

    Raises:
        InputError: labels that differ, an unknown dim, NaN under ``nan="raise"``, infinite values.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[1.0, 1.0], [3.0, 3.0]], dims=("sample", "x"))
        >>> round(float(rmse(draws, xr.DataArray([2.0, 4.0], dims="x"))), 6)
        1.414214
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    check_dims(draws, dims, sample_dim)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        square = (x.mean(sample_dim, skipna=False) - y) ** 2
        return described(square.mean(over(y, dims)) ** 0.5, x, "RMSE of the mean")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def relative_error(
    draws: Labelled, truth: Labelled, dims: Dims = None, *, sample_dim: str = "sample", nan: Nan = "raise"
) -> Labelled:
    """Relative L2 error of the draws' mean, ``|mean - truth| / |truth|`` with Euclidean norms over ``dims``.

    Args:
        draws: Dataset or DataArray with ``sample_dim``.
        truth: the same without ``sample_dim``.
        dims: dims of the norms; None takes all but ``sample_dim`` and "case".
        sample_dim: the dim of the draws.
        nan: "raise" or "omit", see the module.

    Returns:
        The ratio over the dims that are left; infinite where the truth is zero all over.

    Raises:
        InputError: labels that differ, an unknown dim, NaN under ``nan="raise"``, infinite values.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[3.0, 0.0]], dims=("sample", "x"))
        >>> float(relative_error(draws, xr.DataArray([3.0, 4.0], dims="x")))
        0.8
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    check_dims(draws, dims, sample_dim)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        norm = over(y, dims, keep="case")
        error = ((x.mean(sample_dim, skipna=False) - y) ** 2).sum(norm, min_count=1)
        with np.errstate(divide="ignore"):
            ratio = (error / (y**2).sum(norm, min_count=1)) ** 0.5
        return described(ratio, x, "relative error of the mean", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def spread(draws: Labelled, dims: Dims = None, *, sample_dim: str = "sample", nan: Nan = "raise") -> Labelled:
    """Root mean variance of the draws (divided by M - 1), over ``dims`` (None: all but ``sample_dim``).

    Variances are averaged before the root, so that `spread` and `rmse` are of one kind.

    Returns:
        The spread over the dims that are left, in the variable's units.

    Raises:
        InputError: an unknown dim, NaN under ``nan="raise"``, infinite values, fewer than 2 draws.

    Source: Fortin, Abaza, Anctil and Turcotte (2014), "Why should ensemble spread match the RMSE of the
    ensemble mean?".

    Example:
        >>> import xarray as xr
        >>> round(float(spread(xr.DataArray([[0.0, 0.0], [2.0, 2.0]], dims=("sample", "x")))), 6)
        1.414214
    """
    fields = usable(draws, sample_dim=sample_dim, nan=nan, minimum=2)
    check_dims(draws, dims, sample_dim)

    def one(x: xr.DataArray) -> xr.DataArray:
        variance = x.var(sample_dim, ddof=1, skipna=False)
        return described(variance.mean(over(variance, dims)) ** 0.5, x, "spread")

    return rebuilt(draws, [one(x) for x in fields])


def spread_skill(
    draws: Labelled, truth: Labelled, dims: Dims = None, *, sample_dim: str = "sample", nan: Nan = "raise"
) -> Labelled:
    """``sqrt((M + 1) / M) * spread / rmse`` over ``dims`` (None takes all but ``sample_dim``).

    1 for exact draws in the limit of many points, below 1 for draws that are too narrow. The factor is
    there because the mean of M draws errs by the truth's variance plus 1/M of theirs.

    Returns:
        The ratio over the dims that are left; infinite where the mean has no error.

    Raises:
        InputError: labels that differ, an unknown dim, NaN under ``nan="raise"``, infinite values, fewer
            than 2 draws.

    Source: Fortin et al. (2014), as for `spread`.

    Example:
        >>> import xarray as xr
        >>> draws = xr.DataArray([[0.0], [2.0]], dims=("sample", "x"))  # spread sqrt(2), mean 1
        >>> round(float(spread_skill(draws, xr.DataArray([3.0], dims="x"))) ** 2, 12)
        0.75
    """
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2)
    check_dims(draws, dims, sample_dim)

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        m = x.sizes[sample_dim]
        gone = over(y, dims)
        square = ((x.mean(sample_dim, skipna=False) - y) ** 2).mean(gone)
        variance = x.var(sample_dim, ddof=1, skipna=False).mean(gone)
        with np.errstate(divide="ignore"):
            ratio = ((m + 1) / m * variance / square) ** 0.5
        return described(ratio, x, "spread over skill", units="1")

    return rebuilt(draws, [one(x, y) for x, y in pairs])


def chi_square(
    predicted: Labelled,
    observation: Labelled,
    noise_sd: float | Labelled,
    dims: Dims = None,
    *,
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> Labelled:
    """Mean square of the residual in units of the noise, ``mean ((y - A(x)) / sd)^2``, draw by draw.

    With exact posterior draws its expectation is 1: draw and truth are exchangeable given y, so
    ``y - A(draw)`` has the law of the noise. Below 1 the draws fit the noise, above 1 they miss the data.

    Args:
        predicted: ``A(x)`` of every draw, without noise, with ``sample_dim``.
        observation: y, the same without ``sample_dim``; missing data are NaN, with ``nan="omit"``.
        noise_sd: sd of the Gaussian noise, positive, in the units of y; a number, or labelled as y.
        dims: dims to average over; None takes all but ``sample_dim`` and "case".
        sample_dim: the dim of the draws.
        nan: "raise" or "omit", see the module.

    Returns:
        The figure of every draw, over ``sample_dim`` and the dims that are left.

    Raises:
        InputError: labels that differ, an unknown dim, NaN under ``nan="raise"``, infinite values, an sd
            that is not positive.

    Example:
        >>> import xarray as xr
        >>> predicted = xr.DataArray([[0.0, 0.0], [1.0, 1.0]], dims=("sample", "sensor"))
        >>> chi_square(predicted, xr.DataArray([1.0, 1.0], dims="sensor"), 0.5).values
        array([4., 0.])
    """
    import xarray as xr

    pairs = paired(predicted, observation, sample_dim=sample_dim, nan=nan, names=("predicted", "observation"))
    check_dims(predicted, dims, sample_dim)
    if isinstance(noise_sd, (xr.DataArray, xr.Dataset)):
        check_same(observation, noise_sd, "`observation`", argument="noise_sd")
    if not _everywhere(noise_sd, lambda s: s > 0):
        raise InputError(
            "noise_sd", expected="a positive sd", got="zero, negative or NaN", fix="leave exact data out"
        )

    def one(x: xr.DataArray, y: xr.DataArray) -> xr.DataArray:
        sd = noise_sd[y.name] if isinstance(noise_sd, xr.Dataset) else noise_sd
        square = ((y - x) / sd) ** 2
        out = square.mean(over(y, dims, keep="case")).transpose(sample_dim, ...)
        return described(out, x, "chi-square per datum", units="1")

    return rebuilt(predicted, [one(x, y) for x, y in pairs])
