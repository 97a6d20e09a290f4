"""One prior over a window of a series fills its gaps and looks ahead: what is not seen is masked.

The window's states are ``x``, the values seen are ``y = x + e`` and everything else, gaps and future alike, is NaN.

The law of a prior belongs to the positions of its window, so dates may move only where it moves with them. A prior with
a `season` has its mean on any calendar month. One whose mean varies along the window without a season keeps its phase: it
needs ``period=``, and the window then begins a multiple of that many steps from the prior's own first date. A mean that
does not vary is taken for a law that is the same everywhere; where that is wrong, pass ``period=`` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.noise import Gaussian
from sciddiff.operators import Identity
from sciddiff.posterior import check_count

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sciddiff.methods import Method
    from sciddiff.noise import Noise
    from sciddiff.priors import Prior

__all__ = ["forecast", "impute"]

_DEFAULT_NOISE = 0.01


def forecast(
    prior: Prior,
    history: Any,
    *,
    horizon: int,
    samples: int = 100,
    seed: int,
    noise: Noise | None = None,
    method: Method | None = None,
    period: int | None = None,
) -> xr.Dataset:
    """Draw the next ``horizon`` values of a series, given its past.

    The window of the prior is laid so that it ends at the horizon; as much history as the window holds is used,
    and a shorter one is met by masking what came before it. NaN and absent dates in the history are gaps.

    Args:
        prior: over a window of regular dates, on one dim "time".
        history: pandas Series or DataFrame with a DatetimeIndex, or xarray with a dim "time"; sorted.
        horizon: steps to look ahead; less than the window.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.
        noise: the measurement noise of the history; None: an sd of 1 % of the prior's own.
        method: the posterior sampler; None takes the default.
        period: steps after which the law of the window repeats, such as 7 for daily data with a weekly rhythm; see
            the module. 1: it is the same wherever the window begins.

    Returns:
        `xarray.Dataset` with dims ``("sample", "time")``, in the prior's units, on the future dates; ``lead`` counts
        the steps from ``init_time``, the last date of the history.

    Raises:
        InputError: on a horizon outside the window, a window out of phase with the prior, and as `impute`.
    """
    window = _window_length(prior)
    if check_count("horizon", horizon) >= window:
        raise InputError(
            "horizon",
            expected=f"fewer steps than the prior's window of {window}",
            got=horizon,
            fix=f"look at most {window - 1} steps ahead, or train a prior on longer windows",
        )
    past = _series(prior, history, "history")
    dates = _dates(past.index[-1], prior, before=window - horizon - 1, after=horizon)
    late = _out_of_phase(prior, dates[0], period)
    if late:
        longer = horizon - late + (period or 1)
        reach = (
            f"horizon={longer}, of which the first {horizon} steps are those, or " if longer < window else ""
        )
        raise InputError(
            "history",
            expected=f"a window that begins a multiple of period={period} steps from {_first(prior):%Y-%m-%d %H:%M}",
            got=f"one that begins on {dates[0]:%Y-%m-%d %H:%M}, {late} too late",
            fix=f"pass {reach}drop the last {late} value{'s' * (late > 1)} of the history",
        )
    draws = _condition(prior, past, dates, samples, seed, noise, method)
    ahead = draws.isel(time=slice(window - horizon, None))
    return ahead.assign_coords(lead=("time", np.arange(1, horizon + 1)), init_time=past.index[-1])


def impute(
    prior: Prior,
    series: Any,
    *,
    samples: int = 100,
    seed: int,
    noise: Noise | None = None,
    method: Method | None = None,
    period: int | None = None,
) -> xr.Dataset:
    """Draw what is missing in a series that is at most as long as the prior's window.

    Args:
        prior: over a window of regular dates, on one dim "time".
        series: as in `forecast`; NaN and absent dates are gaps.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.
        noise: the measurement noise; None: an sd of 1 % of the prior's own.
        method: the posterior sampler; None takes the default.
        period: steps after which the law of the window repeats, such as 7 for daily data with a weekly rhythm; see
            the module. 1: it is the same wherever the window begins.

    Returns:
        `xarray.Dataset` with dims ``("sample", "time")`` from the first to the last date of the series. Values that
        were seen are drawn as well, within their noise.

    Raises:
        InputError: on unsorted, repeated or off-grid dates, other units or variables, a series without any
            value, one longer than the window, or one whose window is out of phase with the prior.
    """
    seen, window = _series(prior, series, "series"), _window_length(prior)
    dates = _dates(seen.index[0], prior, before=0, after=window - 1)
    if seen.index[-1] > dates[-1]:
        raise InputError(
            "series",
            expected=f"at most {window} steps, the prior's window",
            got=f"{seen.index[0]:%Y-%m-%d} to {seen.index[-1]:%Y-%m-%d}",
            fix="pass the part around the gap",
        )
    late = _out_of_phase(prior, dates[0], period)
    if late:
        step = _frequency(prior)
        before, after = dates[0] - late * step, dates[0] + ((period or 1) - late) * step
        raise InputError(
            "series",
            expected=f"a start a multiple of period={period} steps from {_first(prior):%Y-%m-%d %H:%M}",
            got=f"{dates[0]:%Y-%m-%d %H:%M}",
            fix=f"begin on {before:%Y-%m-%d %H:%M}, with NaN before the first value, or on {after:%Y-%m-%d %H:%M}",
        )
    draws = _condition(prior, seen, dates, samples, seed, noise, method)
    return draws.sel(time=slice(None, seen.index[-1]))


def _condition(
    prior: Prior,
    seen: pd.DataFrame,
    dates: pd.DatetimeIndex,
    samples: int,
    seed: int,
    noise: Noise | None,
    method: Method | None,
) -> xr.Dataset:
    from sciddiff.spaces import Space

    space = Space({"time": dates.values}, prior.space.variables)
    at = prior.relabel(space, _seasonal_mean(prior, dates))
    stray = seen.index[(seen.index >= dates[0]) & (seen.index <= dates[-1])].difference(dates)
    if len(stray):
        raise InputError(
            "history",
            expected=f"dates on the prior's grid, such as {dates[0]:%Y-%m-%d}",
            got=f"{stray[0]:%Y-%m-%d %H:%M}",
            fix="resample the series to the prior's dates",
        )
    y = seen.reindex(dates)
    if not bool(y.notna().to_numpy().any()):
        raise InputError(
            "history", expected="a value in the window", got="NaN only", fix="pass a longer or fuller series"
        )
    check_count("samples", samples)
    scale = torch.broadcast_to(at.normalisation.scale.double().cpu(), space.shape)
    noise = Gaussian(_DEFAULT_NOISE * scale.numpy()) if noise is None else noise
    return at.given(y, Identity(space), noise, missing="mask").sample(samples, method, seed=seed)


def _window_length(prior: Prior) -> int:
    space = prior.space
    labels = space.coords.get("time")
    if space.dims != ("time",) or labels is None or labels.dtype.kind != "M":
        raise InputError(
            "prior",
            expected="a prior over a window of dates, Space({'time': dates})",
            got=space,
            fix="use prior.given for other spaces",
        )
    return len(labels)


def _frequency(prior: Prior) -> Any:
    """The step of the prior's dates, as a pandas offset."""
    import pandas as pd

    step = pd.DatetimeIndex(prior.space.coords["time"], freq="infer").freq
    if step is None:
        raise InputError(
            "prior", expected="a window of regular dates", got="irregular ones", fix="use prior.given instead"
        )
    return step


def _dates(origin: pd.Timestamp, prior: Prior, *, before: int, after: int) -> pd.DatetimeIndex:
    """Dates of the prior's grid, from ``before`` steps before the origin to ``after`` behind it."""
    import pandas as pd

    frequency = _frequency(prior)
    past = pd.date_range(end=origin, periods=before + 1, freq=frequency)
    ahead = pd.date_range(start=origin, periods=after + 1, freq=frequency)
    if past[-1] != origin or ahead[0] != origin:
        raise InputError(
            "history",
            expected=f"dates on the prior's grid (frequency {frequency})",
            got=f"{origin}",
            fix="resample the series to the prior's dates",
        )
    return pd.DatetimeIndex(past.union(ahead))


def _first(prior: Prior) -> pd.Timestamp:
    import pandas as pd

    return pd.Timestamp(prior.space.coords["time"][0])


def _out_of_phase(prior: Prior, start: pd.Timestamp, period: int | None) -> int:
    """Steps by which a window that begins at ``start`` is behind a whole number of periods of the prior."""
    import pandas as pd

    if period is not None:
        period = check_count("period", period)
    if prior.season is not None or (period is None and not _rhythmic(prior)):
        return 0
    first, step = _first(prior), _frequency(prior)
    if period is None and start != first:
        raise InputError(
            "period",
            expected="the steps after which the prior's law repeats, since its mean varies along the window",
            got=None,
            fix="pass period=, such as 7 for daily data with a weekly rhythm, 12 for monthly data, or 1 where the law is "
            "the same wherever the window begins; or train on departures from the calendar months' means, with season=",
        )
    if period is None or period == 1:
        return 0
    between = pd.date_range(min(first, start), max(first, start), freq=step)
    if between[0] != min(first, start) or between[-1] != max(first, start):
        raise InputError(
            "period",
            expected=f"dates that are whole steps ({step.freqstr}) from {first}, the prior's first",
            got=f"{start}",
            fix="resample the series to the prior's dates",
        )
    steps = len(between) - 1
    return (steps if start >= first else -steps) % period


def _rhythmic(prior: Prior) -> bool:
    """Whether the prior's mean varies along the window, beyond 1e-6 of its scale."""
    units, shape = prior.normalisation, prior.space.shape
    mean = torch.broadcast_to(units.mean.double().cpu(), shape)
    scale = torch.broadcast_to(units.scale.double().cpu(), shape)
    return bool((mean.amax(-1) - mean.amin(-1) > 1e-6 * scale.amin(-1)).any())


def _series(prior: Prior, data: Any, argument: str) -> pd.DataFrame:
    """The series as a frame with the prior's variables as columns, units checked."""
    import pandas as pd
    import xarray as xr

    names = list(prior.space.variables)
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=names[0] if len(names) == 1 else data.name)
    if isinstance(data, xr.Dataset):
        for name, variable in prior.space.variables.items():
            units = data[name].attrs.get("units") if name in data else None
            if units is not None and variable.units is not None and units != variable.units:
                raise InputError(
                    argument,
                    expected=f"units {variable.units!r} for {name!r}",
                    got=f"units {units!r}",
                    fix="convert the data, or correct its attrs['units']",
                )
        data = data.to_dataframe()[[n for n in data.data_vars]]
    if isinstance(data, pd.Series):
        data = data.to_frame(names[0])
    if not isinstance(data, pd.DataFrame) or not isinstance(data.index, pd.DatetimeIndex):
        raise InputError(
            argument,
            expected="pandas data with a DatetimeIndex, or xarray data with a dim 'time'",
            got=type(data).__name__,
            fix="give the series its dates",
        )
    if [str(c) for c in data.columns] != names:
        raise InputError(
            argument,
            expected=f"variables {names}",
            got=[str(c) for c in data.columns],
            fix="rename or select",
        )
    if data.index.tz is not None or not data.index.is_monotonic_increasing or not data.index.is_unique:
        raise InputError(
            argument,
            expected="sorted dates without repeats or time zone",
            got="others",
            fix="use sort_index(), tz_localize(None), and drop or average repeated dates",
        )
    if len(data) == 0 or not bool(data.notna().to_numpy().any()):
        raise InputError(
            argument, expected="a series with values", got="no value", fix="pass a fuller series"
        )
    return data


def _seasonal_mean(prior: Prior, dates: pd.DatetimeIndex) -> torch.Tensor | None:
    """The prior's mean on other dates: its mean of each calendar month; None where it has no season."""
    if prior.season is None:
        return None
    mean = prior.season[torch.as_tensor(dates.month.to_numpy() - 1)]
    return mean.movedim(0, -1) if mean.ndim > 1 else mean
