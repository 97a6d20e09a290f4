"""Verification over time: scores of forecasts by lead, and the time means that data assimilation quotes.

Both take the root of a mean over space; they differ in what is averaged after it. `verify` takes one root over all
forecasts of a lead. `analysis_scores` follows the twin experiments of data assimilation: a root at every time, then
the mean over times, ``rmse.a = mean_t sqrt(mean_i (mean_m x - truth)_ti^2)``, which is less by the variation of the
error in time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.diagnostics.labels import AnyLabelled, Array, Nan, paired, variables
from sciddiff.diagnostics.ranks import check_levels
from sciddiff.diagnostics.scores import coverage, crps, energy_score, rmse, spread, spread_skill
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["analysis_scores", "verify"]


def verify(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    lead: str = "lead",
    cases: Sequence[str] = ("case", "init_time", "origin"),
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> pd.DataFrame:
    """Table of forecast scores, one row a variable and lead.

    Columns: ``points`` (how many values were scored), ``rmse`` of the draws' mean, ``spread``, ``spread_skill`` (with the
    factor ``sqrt((M + 1) / M)``; 1 for exact draws), ``crps`` and ``energy_score`` (both fair; the norm runs over all dims
    but leads and cases), and one ``coverage_..`` a level. Each is the function of that name over everything but the
    lead. Units are those of the variables, in ``table.attrs["units"]``.

    Args:
        draws: Dataset or DataArray with ``sample_dim`` and leads, at least 2 draws.
        truth: what happened, the same without ``sample_dim``.
        levels: levels of the central intervals, in (0, 1).
        lead: the dim of leads, or a coordinate along another dim, as a forecast's own along "time".
        cases: dims, of those that there are, whose entries are forecasts of their own.
        sample_dim: the dim of the draws; "member" and "realization" are common names too.
        nan: "raise"; or "omit", which leaves out the points where truth or a draw is NaN, such as those beyond the
            record. A lead of which nothing is left has 0 points and NaN scores.

    Raises:
        InputError: no such dim or coordinate, labels that differ, an unknown level, NaN under ``nan="raise"``, infinite
            values, fewer than 2 draws.

    Source: Fortin et al. (2014), "Why should ensemble spread match the RMSE of the ensemble mean?"; Ferro (2014), "Fair
    scores for ensemble forecasts"; the other functions' own.

    Example:
        >>> import numpy as np, xarray as xr
        >>> x = np.random.default_rng(0).normal(size=(31, 400, 2)) * [1.0, 2.0]
        >>> draws = xr.DataArray(x[1:], dims=("sample", "origin", "lead"), coords={"lead": [1, 2]}, name="u")
        >>> table = verify(draws, draws[0].copy(data=x[0]))
        >>> table.loc["u", "spread"].round(1).tolist()
        [1.0, 2.0]
    """
    import pandas as pd

    check_levels(levels)
    x, y = _by_lead(draws, lead, sample_dim), _by_lead(truth, lead, None)
    sides = paired(x, y, sample_dim=sample_dim, nan=nan, minimum=2)
    tables = {}
    for (name, _), (a, b) in zip(variables(x), sides, strict=True):
        columns = _scores(a, b, levels, lead, cases, sample_dim)
        index = pd.Index(np.asarray(a[lead].values), name=lead)
        tables[str(name)] = pd.DataFrame(columns, index=index)
    table = pd.concat(tables, names=["variable"])
    table.attrs = {"units": {str(name): str(v.attrs.get("units", "")) for name, v in variables(x)}}
    return table


def _by_lead(side: AnyLabelled, lead: str, sample_dim: str | None) -> Any:
    """The side with leads as a dim."""
    import xarray as xr

    found = isinstance(side, (xr.Dataset, xr.DataArray))
    if found and lead in side.dims:
        return side
    if not found or lead not in side.coords or side[lead].ndim != 1 or side[lead].dims[0] == sample_dim:
        raise InputError(
            "draws" if sample_dim is not None else "truth",
            expected=f"a dim {lead!r}, or a coordinate of that name along a dim",
            got=f"dims {list(side.dims)} and coords {list(side.coords)}" if found else type(side).__name__,
            fix="name it with lead=, or put it on: x.assign_coords(lead=('time', steps))",
        )
    (dim,) = side[lead].dims
    return side.swap_dims({dim: lead}).drop_vars(str(dim), errors="ignore")


def _scores(
    x: xr.DataArray,
    y: xr.DataArray,
    levels: Sequence[float],
    lead: str,
    cases: Sequence[str],
    sample_dim: str,
) -> dict[str, Array]:
    """The columns of one variable, over its leads; NaN are points left out."""
    shared: dict[str, Any] = {"sample_dim": sample_dim, "nan": "omit"}
    rest = [d for d in y.dims if d != lead]
    inside = [d for d in rest if d not in cases]
    points = y.notnull().sum(rest)
    # of a single value the norm is the modulus
    energy = energy_score(x, y, inside, **shared) if inside else crps(x, y, **shared)
    covered = coverage(x, y, levels, rest, **shared)
    columns = {
        "points": points,
        "rmse": rmse(x, y, rest, **shared),
        "spread": spread(x, rest, **shared),
        "spread_skill": spread_skill(x, y, rest, **shared),
        "crps": crps(x, y, **shared).mean(rest),
        "energy_score": energy.mean([d for d in energy.dims if d != lead]),
    }
    shares = {f"coverage_{100 * p:g}": covered.isel(level=i, drop=True) for i, p in enumerate(levels)}
    return {name: np.asarray(v.values) for name, v in {**columns, **shares}.items()}


def analysis_scores(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    burn_in: int = 0,
    dim: str = "time",
    sample_dim: str = "sample",
    nan: Nan = "raise",
) -> pd.DataFrame:
    """Time means of error and spread as twin experiments quote them, with their standard errors.

    Rows: ``rmse_a``, the mean over times of the root mean square over space of the error of the draws' mean; ``rmv_a``,
    the mean over times of the root mean variance over space (divided by M - 1), the spread; ``rmse_a_sigma`` and
    ``rmv_a_sigma``, their standard errors, in which consecutive times are not taken for independent; and ``times``, how
    many were averaged. One column a variable and, where there are several and all have the same units, a column
    ``"all"`` whose root is over the values of all of them, the state of the twin experiments.

    The names are DAPPER's ``rmse.a`` and ``rmv.a`` (a: of the analysis). Without divergence ``rmv_a`` is near ``rmse_a``. A
    filter that diverges in one run in ten can have the best median: state both.

    Args:
        draws: ensembles over time, Dataset or DataArray with ``sample_dim`` and ``dim``, at least 2 draws.
        truth: the same without ``sample_dim``.
        burn_in: times at the beginning that are left out.
        dim: the dim of time.
        sample_dim: the dim of the draws.
        nan: "raise"; or "omit", which leaves out points with NaN, and times of which nothing is left.

    Raises:
        InputError: no such dim, a burn-in that leaves fewer than 2 times, labels that differ, NaN under ``nan="raise"``,
            infinite values, fewer than 2 draws.

    Source: Raanes and others, DAPPER, "Data assimilation with Python: a package for experimental research"; the
    standard error is that of a mean with correlated terms, ``g_0/N (1 + 2 sum_k (1 - k/N) r_k)``, with the estimated
    correlations r up to the first that is not positive (Geyer 1992, "Practical Markov chain Monte Carlo").

    Example:
        >>> import numpy as np, xarray as xr
        >>> x = np.random.default_rng(0).normal(size=(21, 500, 40))
        >>> draws = xr.DataArray(x[1:], dims=("sample", "time", "site"), name="u")
        >>> table = analysis_scores(draws, xr.DataArray(x[0], dims=("time", "site"), name="u"), burn_in=100)
        >>> table.loc[["rmv_a", "times"], "u"].round(2).tolist()
        [1.0, 400.0]
    """
    import pandas as pd

    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan, minimum=2)
    square: dict[str, xr.DataArray] = {}
    variance: dict[str, xr.DataArray] = {}
    for (name, _), (x, y) in zip(variables(draws), pairs, strict=True):
        _check_times(x, dim, burn_in)
        late = {dim: slice(burn_in, None)}
        x, y = x.isel(late), y.isel(late)
        square[str(name)] = (x.mean(sample_dim, skipna=False) - y) ** 2
        variance[str(name)] = x.var(sample_dim, ddof=1, skipna=False)
    table = {name: _time_means(square[name], variance[name], dim) for name in square}
    units = {str(name): str(v.attrs.get("units", "")) for name, v in variables(draws)}
    if len(table) > 1 and len(set(units.values())) == 1:
        table["all"] = _time_means(_stacked(square, dim), _stacked(variance, dim), dim)
        units["all"] = next(iter(units.values()))
    out = pd.DataFrame(table)
    out.index.name, out.attrs = "score", {"units": units}
    return out


def _check_times(x: xr.DataArray, dim: str, burn_in: int) -> None:
    if dim not in x.dims:
        raise InputError(
            "dim", expected=f"a dim out of {list(x.dims)}", got=repr(dim), fix="name the dim of time"
        )
    n = x.sizes[dim]
    if isinstance(burn_in, bool) or not isinstance(burn_in, (int, np.integer)) or not 0 <= burn_in <= n - 2:
        raise InputError(
            "burn_in",
            expected=f"a number of times from 0 to {n - 2}, of {n}",
            got=repr(burn_in),
            fix="leave at least two times to average over",
        )


def _stacked(parts: dict[str, xr.DataArray], dim: str) -> xr.DataArray:
    """Values of all variables side by side at every time, ``(time, value)``."""
    import xarray as xr

    flat = [v.transpose(dim, ...).values.reshape(v.sizes[dim], -1) for v in parts.values()]
    return xr.DataArray(np.concatenate(flat, axis=1), dims=(dim, "value"))


def _time_means(square: xr.DataArray, variance: xr.DataArray, dim: str) -> dict[str, float]:
    """The rows of one column."""
    space: list[Hashable] = [d for d in square.dims if d != dim]
    error, width = (np.sqrt(v.mean(space).values) for v in (square, variance))
    error, width = error[~np.isnan(error)], width[~np.isnan(error)]
    return {
        "rmse_a": float(error.mean()) if error.size else float("nan"),
        "rmse_a_sigma": _standard_error(error),
        "rmv_a": float(width.mean()) if width.size else float("nan"),
        "rmv_a_sigma": _standard_error(width),
        "times": float(error.size),
    }


def _standard_error(series: Array) -> float:
    """Standard error of the mean of a stationary series ``(n,)``."""
    n = series.size
    if n < 2:
        return float("nan")
    off = series - series.mean()
    size = 2 ** int(np.ceil(np.log2(2 * n)))
    power = np.abs(np.fft.rfft(off, size)) ** 2
    # divided by the number of terms, so that far lags are not more than noise
    covariance = np.fft.irfft(power, size)[:n] / (n - np.arange(n))
    # rounding leaves a constant series a correlation with itself
    if covariance[0] <= (1e-12 * np.abs(series).max()) ** 2:
        return 0.0
    r = covariance / covariance[0]
    end = int(np.argmax(r <= 0)) if bool((r <= 0).any()) else n
    k = np.arange(1, end)
    inflation = 1 + 2 * float(((1 - k / n) * r[1:end]).sum())
    # g_0 about an estimated mean is too small by the variance of that mean
    variance = covariance[0] * inflation / n
    return float(np.sqrt(variance / max(1 - inflation / n, 1 / n)))
