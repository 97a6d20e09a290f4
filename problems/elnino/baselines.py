"""What a forecast of El Niño has to beat: climatology, persistence, an AR(3) and a seasonal ARIMA.

Every baseline is fitted once, on the months up to ``train_end``, and gives a normal law for each origin and lead.
An origin is the first month that is not seen; lead 1 is the origin itself, one month after ``init_time``. With ``c`` the mean of each calendar
month over the training years and ``a_t = sst_t - c_t`` the anomaly, all but the last one forecast ``a``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from sciddiff.diagnostics import crps_normal
from sciddiff.errors import ConvergenceError, InputError, MissingDependencyError
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "BASELINES",
    "autoregression",
    "autoregression_paths",
    "block_means",
    "climatology",
    "normals",
    "persistence",
    "sarimax",
    "verify",
]

TRAIN_END = "1994-12"
ORIGINS = ("1995-01", "2010-12")
HORIZON = 12
# z of a central 90 % interval of a normal law
_Z90 = 1.6448536269514722

Series = np.ndarray


def climatology(
    sst: xr.DataArray,
    *,
    train_end: str = TRAIN_END,
    origins: tuple[str, str] = ORIGINS,
    horizon: int = HORIZON,
) -> xr.Dataset:
    """Mean and standard deviation of the calendar month over the training years, whatever was seen.

    Args:
        sst: monthly series ``(time,)`` in degC, without gaps.
        train_end: last month of the training years, as in "1994-12".
        origins: first and last origin; an origin is the first month that is not seen.
        horizon: number of leads.

    Returns:
        ``mean`` and ``sd`` ``(origin, lead)`` in the units of ``sst``, with coordinates ``init_time`` and ``valid_time``.

    Raises:
        InputError: on another series, or origins outside the record or the training years' future.
    """
    months, train, steps = _split(sst, train_end, origins)
    mean, sd = _normals(sst, months, train)
    target = (steps[:, None] + np.arange(horizon) + months[0]) % 12
    return _labelled(sst, steps, mean[target], sd[target])


def persistence(
    sst: xr.DataArray,
    *,
    train_end: str = TRAIN_END,
    origins: tuple[str, str] = ORIGINS,
    horizon: int = HORIZON,
) -> xr.Dataset:
    """The last anomaly, kept; the sd of each lead is the rms error of that rule in the training years.

    Arguments, result and errors are those of `climatology`.
    """

    def forecast(a: Series, train: int, steps: Series) -> tuple[Series, Series]:
        x = a[:train]
        sd = np.array([np.sqrt(np.mean((x[k:] - x[:-k]) ** 2)) for k in range(1, horizon + 1)])
        return np.repeat(a[steps - 1, None], horizon, 1), np.tile(sd, (len(steps), 1))

    return _of_anomalies(sst, forecast, train_end, origins)


def autoregression(
    sst: xr.DataArray,
    *,
    order: int = 3,
    train_end: str = TRAIN_END,
    origins: tuple[str, str] = ORIGINS,
    horizon: int = HORIZON,
) -> xr.Dataset:
    """``a_t = sum_i phi_i a_(t-i) + e_t`` by least squares, and its exact normal forecasts.

    The variance at lead l is ``var(e) sum_(j<l) psi_j^2`` with ``psi`` the impulse response (Box and Jenkins,
    "Time series analysis", section 5.1). Other arguments, result and errors are those of `climatology`.
    """

    def forecast(a: Series, train: int, steps: Series) -> tuple[Series, Series]:
        phi, variance = _coefficients(a[:train], order)
        path = a[steps[:, None] + np.arange(-order, 0)]
        for _ in range(horizon):
            path = np.column_stack([path, path[:, -order:] @ phi[::-1]])
        sd = np.sqrt(variance * np.cumsum(_impulse(phi, horizon) ** 2))
        return path[:, order:], np.tile(sd, (len(steps), 1))

    return _of_anomalies(sst, forecast, train_end, origins)


def autoregression_paths(
    sst: xr.DataArray,
    *,
    samples: int,
    seed: int,
    order: int = 3,
    train_end: str = TRAIN_END,
    origins: tuple[str, str] = ORIGINS,
    horizon: int = HORIZON,
) -> xr.DataArray:
    """Draws of whole years under that autoregression, ("sample", "origin", "lead"), in the units of ``sst``.

    Their errors at lead l are ``sum_(j<=l) psi_(l-j) e_j``, as far as they are from the forecast's mean.
    """
    frame = autoregression(sst, order=order, train_end=train_end, origins=origins, horizon=horizon)
    months, train, steps = _split(sst, train_end, origins)
    a = sst.values - _normals(sst, months, train)[0][months]
    phi, variance = _coefficients(a[:train], order)
    psi = _impulse(phi, horizon)
    lag = np.subtract.outer(np.arange(horizon), np.arange(horizon))
    spread = np.where(lag >= 0, psi[lag.clip(0)], 0.0)
    streams = Streams(seed, range(samples), purpose="autoregression")
    shocks = streams.normal((len(steps), horizon), dtype=torch.float64).numpy() * np.sqrt(variance)
    values = frame["mean"].values + shocks @ spread.T
    return frame["mean"].expand_dims(sample=samples).copy(data=values).rename("sst")


def sarimax(
    sst: xr.DataArray,
    *,
    order: tuple[int, int, int] = (2, 0, 2),
    seasonal_order: tuple[int, int, int, int] = (0, 1, 1, 12),
    train_end: str = TRAIN_END,
    origins: tuple[str, str] = ORIGINS,
    horizon: int = HORIZON,
) -> xr.Dataset:
    """A seasonal ARIMA of the temperatures by maximum likelihood; its filter then runs on to every origin.

    The default has the lowest CRPS of 1985-1994, fitted on 1950-1984, among the (p, 0, q)(0, 1, 1, 12) with p from 1 to
    3 and q from 0 to 2. Other arguments, result and errors are those of `climatology`.

    Raises:
        ConvergenceError: if the likelihood was not maximised.
        MissingDependencyError: without statsmodels.
    """
    try:
        from statsmodels.tsa.statespace.sarimax import SARIMAX
    except ImportError as error:
        raise MissingDependencyError("statsmodels", "data", "the SARIMAX baseline") from error

    _, train, steps = _split(sst, train_end, origins)
    y = np.asarray(sst.values, dtype=np.float64)
    with warnings.catch_warnings():
        # statsmodels tells of its own first guesses, which it then replaces
        warnings.simplefilter("ignore")
        fit = SARIMAX(y[:train], order=order, seasonal_order=seasonal_order).fit(disp=0, maxiter=300)
        if not fit.mle_retvals["converged"]:
            raise ConvergenceError(f"SARIMAX{order}{seasonal_order}: the likelihood was not maximised")
        state = SARIMAX(y, order=order, seasonal_order=seasonal_order).filter(fit.params).filter_results
    Z, T, R, Q, H = (
        getattr(state, name)[..., 0] for name in ("design", "transition", "selection", "state_cov", "obs_cov")
    )
    mean, sd = np.empty((2, len(steps), horizon))
    for i, step in enumerate(steps):
        x, P = state.predicted_state[:, step], state.predicted_state_cov[..., step]
        for lead in range(horizon):
            mean[i, lead], sd[i, lead] = (Z @ x).item(), np.sqrt((Z @ P @ Z.T + H).item())
            x, P = T @ x, T @ P @ T.T + R @ Q @ R.T
    return _labelled(sst, steps, mean, sd)


BASELINES: Mapping[str, Callable[..., xr.Dataset]] = {
    "climatology": climatology,
    "persistence": persistence,
    "AR(3)": autoregression,
    "SARIMAX": sarimax,
}


def verify(forecast: xr.Dataset, sst: xr.DataArray) -> xr.Dataset:
    """Score normal forecasts month by month.

    Args:
        forecast: ``mean`` and ``sd`` ``(origin, lead)``, with coordinate ``valid_time``.
        sst: what happened ``(time,)``.

    Returns:
        ``crps``, ``squared_error`` and ``covered`` (1 where the central 90 % interval holds the truth)
        ``(origin, lead)``; NaN for months beyond the record.
    """
    truth = sst.reindex(time=forecast["valid_time"].values.ravel()).values.reshape(forecast["mean"].shape)
    mean, sd = forecast["mean"], forecast["sd"]
    error = mean.copy(data=truth - mean.values)
    known = error.notnull()
    return (
        mean.copy(data=crps_normal(mean.values, sd.values, np.where(known, truth, mean)))
        .where(known)
        .to_dataset(name="crps")
        .assign(squared_error=error**2, covered=(abs(error) <= _Z90 * sd).astype(float).where(known))
    )


def block_means(scores: xr.DataArray, *, block: int = 24, draws: int = 2000, seed: int = 0) -> xr.DataArray:
    """Means over the origins of a circular block bootstrap, for errors and intervals of scores in time.

    Scores of the same origins are resampled alike at one seed, so that ratios of them are paired. (Politis and
    Romano 1992, "A circular block-resampling procedure for stationary data".)

    Args:
        scores: ``(origin, lead)``; NaN is left out of the means.
        block: origins in a block.
        draws: resamples.
        seed: int in [0, 2**64).

    Returns:
        Means ``(draw, lead)``.
    """
    import xarray as xr

    n = scores.sizes["origin"]
    generator = Streams(seed, [0], purpose="block bootstrap").numpy()[0]
    starts = generator.integers(0, n, (draws, -(-n // block)))
    chosen = ((starts[..., None] + np.arange(block)) % n).reshape(draws, -1)[:, :n]
    values = scores.transpose("origin", "lead").values
    means = np.stack([np.nanmean(values[rows], axis=0) for rows in chosen])
    return xr.DataArray(means, {"lead": scores["lead"]}, ("draw", "lead"))


def normals(sst: xr.DataArray, train_end: str = TRAIN_END) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``(12,)`` of each calendar month, January first, over the training years."""
    months, train, _ = _split(sst, train_end, None)
    return _normals(sst, months, train)


def _coefficients(x: Series, order: int) -> tuple[Series, float]:
    """``phi`` by least squares, and the variance of the errors."""
    lagged = np.lib.stride_tricks.sliding_window_view(x, order + 1)[:, ::-1]
    phi = np.linalg.lstsq(lagged[:, 1:], lagged[:, 0], rcond=None)[0]
    return phi, float(np.mean((lagged[:, 0] - lagged[:, 1:] @ phi) ** 2))


def _impulse(phi: Series, horizon: int) -> Series:
    """The impulse response ``psi``, ``(horizon,)``."""
    order = len(phi)
    out = np.eye(1, order, order - 1)[0]
    for _ in range(horizon):
        out = np.append(out, out[-order:] @ phi[::-1])
    return out[order - 1 : -1]


def _normals(sst: xr.DataArray, months: Series, train: int) -> tuple[Series, Series]:
    years = [sst.values[:train][months[:train] == month] for month in range(12)]
    return np.array([y.mean() for y in years]), np.array([y.std() for y in years])


def _of_anomalies(
    sst: xr.DataArray,
    forecast: Callable[[Series, int, Series], tuple[Series, Series]],
    train_end: str,
    origins: tuple[str, str],
) -> xr.Dataset:
    months, train, steps = _split(sst, train_end, origins)
    season = _normals(sst, months, train)[0]
    mean, sd = forecast(sst.values - season[months], train, steps)
    target = (steps[:, None] + np.arange(mean.shape[1]) + months[0]) % 12
    return _labelled(sst, steps, mean + season[target], sd)


def _split(sst: xr.DataArray, train_end: str, origins: tuple[str, str] | None) -> tuple[Series, int, Series]:
    """Calendar month of every step (0 is January), number of training steps, step of every origin."""
    stamps = sst["time"].values.astype("datetime64[M]").astype(int)
    if sst.dims != ("time",) or np.any(np.diff(stamps) != 1) or not np.isfinite(sst.values).all():
        raise InputError(
            "sst", expected="a monthly series (time,) without gaps", got=sst.dims, fix="fill the gaps first"
        )
    train = int(np.datetime64(train_end, "M").astype(int) - stamps[0]) + 1
    if not 36 <= train <= len(stamps):
        raise InputError(
            "train_end",
            expected="a month of the record, 3 years or more from its start",
            got=train_end,
            fix="see sst.time",
        )
    if origins is None:
        return stamps % 12, train, np.arange(0)
    first, last = (int(np.datetime64(origin, "M").astype(int) - stamps[0]) for origin in origins)
    if not train <= first <= last < len(stamps):
        raise InputError(
            "origins",
            expected=f"months after {train_end}, up to the record's last",
            got=origins,
            fix="see sst.time",
        )
    return stamps % 12, train, np.arange(first, last + 1)


def _labelled(sst: xr.DataArray, steps: Series, mean: Series, sd: Series) -> xr.Dataset:
    import xarray as xr

    leads = np.arange(mean.shape[1])
    start = sst["time"].values[0].astype("datetime64[M]")
    valid = (start + (steps[:, None] + leads)).astype(sst["time"].dtype)
    last = (start + (steps - 1)).astype(sst["time"].dtype)
    attrs = {"units": sst.attrs.get("units", "degC")}
    return xr.Dataset(
        {"mean": (("origin", "lead"), mean, attrs), "sd": (("origin", "lead"), sd, attrs)},
        coords={
            "origin": ("origin", valid[:, 0], {"long_name": "first month that is not seen"}),
            "lead": ("lead", leads + 1, {"units": "months", "long_name": "1 at the origin"}),
            "init_time": ("origin", last, {"long_name": "last month that is seen"}),
            "valid_time": (("origin", "lead"), valid),
        },
    )
