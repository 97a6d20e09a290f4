"""What a forecast or a filled gap has to beat, in the same form: the same arguments, the same labelled draws.

`climatology`, `persistence` and `seasonal_naive` are ensembles of the past itself: what followed, or how far the rule was
off, from a random time of the history on, whole paths at a time. `sarimax` and `local_level` are fitted by maximum
likelihood through statsmodels and drawn by their state space; the uncertainty of their parameters is not in the draws.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.assimilation.series import Observed, read_series, read_times, shown_time, with_leads
from sciddiff.assimilation.steps import Steps, find_step, read_horizon
from sciddiff.errors import ConvergenceError, InputError, MissingDependencyError
from sciddiff.posterior import check_count
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["climatology", "local_level", "persistence", "sarimax", "seasonal_naive"]


def climatology(history: Any, *, horizon: Any, period: int, samples: int = 100, seed: int) -> xr.Dataset:
    """What followed in the past from the same phase of the cycle on.

    Args:
        history: one variable, as in `forecast`, on regular times; NaN and absent times are gaps.
        horizon: steps to look ahead, or the future times.
        period: steps of a cycle, such as 12 for monthly data.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.

    Returns:
        `xarray.Dataset` as that of `forecast`.

    Raises:
        InputError: on a history with fewer than two whole pasts of that length, and as `forecast`.

    Example:
        >>> import pandas as pd
        >>> past = pd.Series(np.tile([1.0, 2.0, 3.0, 4.0], 5), pd.date_range("2001-01", periods=20, freq="QS"), name="t")
        >>> climatology(past, horizon=3, period=4, samples=5, seed=0)["t"].values[0].tolist()
        [1.0, 2.0, 3.0]
    """
    past = _Past(history, horizon)
    period = check_count("period", period)
    starts = np.arange(past.count % period, past.count - past.last + 1, period)
    pasts = past.y[starts[:, None] + np.arange(past.last)] if len(starts) else past.y[:0, None]
    return past.ensemble(np.zeros(past.last), pasts, samples, seed, f"climatology(period={period})")


def persistence(history: Any, *, horizon: Any, samples: int = 100, seed: int) -> xr.Dataset:
    """The last value seen, with the errors that this rule made from the times of the history on.

    After a gap the errors are those of a value as old. Arguments, result and errors are those of `climatology`.

    Example:
        >>> import pandas as pd
        >>> past = pd.Series(np.arange(20.0), pd.date_range("2001-01", periods=20, freq="D"), name="t")
        >>> persistence(past, horizon=2, samples=5, seed=0)["t"].values[0].tolist()
        [20.0, 21.0]
    """
    return seasonal_naive(history, horizon=horizon, period=1, samples=samples, seed=seed)


def seasonal_naive(history: Any, *, horizon: Any, period: int, samples: int = 100, seed: int) -> xr.Dataset:
    """The last value seen in the same phase of the cycle, with the errors of this rule in the history.

    After a gap the errors are those of a value as old. Arguments, result and errors are those of `climatology`.

    Example:
        >>> import pandas as pd
        >>> past = pd.Series(np.tile([1.0, 2.0, 3.0, 4.0], 5), pd.date_range("2001-01", periods=20, freq="QS"), name="t")
        >>> seasonal_naive(past, horizon=3, period=4, samples=5, seed=0)["t"].values[0].tolist()
        [1.0, 2.0, 3.0]
    """
    past = _Past(history, horizon)
    period = check_count("period", period)
    now, ahead = past.count - 1, np.arange(1, past.last + 1)
    latest = _latest(past.y, period)[(now + ahead) % period]
    if (latest < 0).any():
        raise InputError(
            "history",
            expected=f"a value in each of the {period} phases of the cycle",
            got=f"none for step {int((latest < 0).argmax()) + 1} of the horizon",
            fix="pass a longer or fuller history",
        )
    # a value as old as the one that the forecast has to take
    back = latest - now
    origins = np.arange(-back.min(), past.count - past.last)[:, None]
    errors = past.y[origins + ahead] - past.y[origins + back] if len(origins) else past.y[:0, None]
    name = "persistence()" if period == 1 else f"seasonal_naive(period={period})"
    return past.ensemble(past.y[latest], errors, samples, seed, name)


def sarimax(
    history: Any,
    *,
    horizon: Any,
    order: tuple[int, int, int] = (1, 0, 0),
    seasonal_order: tuple[int, int, int, int] = (0, 0, 0, 0),
    constant: bool = False,
    samples: int = 100,
    seed: int,
) -> xr.Dataset:
    """A seasonal ARIMA, fitted by maximum likelihood, through `statsmodels.tsa.statespace.sarimax.SARIMAX`.

    Args:
        history: as in `climatology`.
        horizon: as in `climatology`.
        order: (p, d, q).
        seasonal_order: (P, D, Q, s).
        constant: whether the (differenced) series has a mean of its own.
        samples: number of draws, paths of the fitted model from the filtered state on.
        seed: draw i depends on (seed, i) alone.

    Returns:
        `xarray.Dataset` as that of `forecast`; its attrs hold ``log_likelihood`` and the parameters.

    Raises:
        InputError: as `climatology`, and on orders that statsmodels refuses.
        ConvergenceError: if the likelihood was not maximised.
        MissingDependencyError: without statsmodels.

    Example:
        >>> import pandas as pd
        >>> past = pd.Series(np.sin(np.arange(60.0)), pd.date_range("2001-01-01", periods=60), name="t")
        >>> sarimax(past, horizon=3, order=(2, 0, 0), samples=5, seed=0)["t"].shape
        (5, 3)
    """
    past = _Past(history, horizon)
    try:
        from statsmodels.tsa.statespace.sarimax import SARIMAX
    except ImportError as error:
        raise MissingDependencyError("statsmodels", "data", "the SARIMAX baseline") from error
    check_count("samples", samples), check_seed(seed)
    name = f"sarimax(order={tuple(order)}, seasonal_order={tuple(seasonal_order)})"
    fit = _fitted(
        lambda: SARIMAX(past.y, order=order, seasonal_order=seasonal_order, trend="c" if constant else "n"),
        name,
    )
    paths = _simulated(fit.filter_results, past.last, samples, seed)
    return past.labelled(paths, seed, name).assign_attrs(_fit_attrs(fit))


def local_level(series: Any, *, samples: int = 100, seed: int, **components: Any) -> xr.Dataset:
    """Draws of the smoothed level of a structural time series, and of what is missing in it.

    ``y_t = mu_t + e_t``, ``mu_{t+1} = mu_t + n_t`` with both variances by maximum likelihood, drawn by the simulation
    smoother of statsmodels (Durbin and Koopman 2002, "A simple and efficient simulation smoother for state space time
    series analysis").

    Args:
        series: one variable, as in `impute`, on regular times; NaN and absent times are gaps.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.
        components: more of `statsmodels.tsa.statespace.structural.UnobservedComponents`, such as
            ``level="local linear trend"`` or ``seasonal=12``; ``exog`` has a row for each step, gaps included, and the level
            is without it.

    Returns:
        `xarray.Dataset` with dims ``("sample", "time")``: the series under its own name, where it was seen as it was seen
        and elsewhere drawn with its error, and ``level``. Its attrs hold ``log_likelihood`` and the parameters.

    Raises:
        InputError: as `impute`, on more than one variable, or one that is called "level".
        ConvergenceError: if the likelihood was not maximised.
        MissingDependencyError: without statsmodels.

    Example:
        >>> import pandas as pd
        >>> walk = np.cumsum(np.sin(np.arange(40.0) ** 2)) + np.cos(3 * np.arange(40.0) ** 2)
        >>> river = pd.Series(walk, pd.RangeIndex(1871, 1911), name="flow")
        >>> local_level(river.where(river.index != 1900), samples=3, seed=0)["level"].shape
        (3, 40)
    """
    past = _Past(series, None, "series")
    if past.name == "level":
        raise InputError(
            "series", expected="a name other than 'level'", got="'level'", fix="rename the series"
        )
    try:
        from statsmodels.tsa.statespace.structural import UnobservedComponents
    except ImportError as error:
        raise MissingDependencyError("statsmodels", "data", "the local level model") from error
    check_count("samples", samples), check_seed(seed)
    given = {"level": "local level", **components}
    name = f"local_level({', '.join(f'{k}={v!r}' for k, v in components.items())})"
    fit = _fitted(lambda: UnobservedComponents(past.y, **given), name)
    states, observed = _smoothed(fit, samples, seed)
    values = np.where(np.isnan(past.y), observed, past.y)
    space = Space({"time": past.axis.times(0, past.count - 1)}, {past.name: past.units, "level": past.units})
    both = torch.from_numpy(np.stack([values, states[:, 0]], 1))
    out = space.dataset(both, ["sample"])
    out[past.name].attrs = {**past.attrs, **out[past.name].attrs}
    return out.assign_attrs({"method": name, "seed": seed, **_fit_attrs(fit)})


class _Past:
    """One variable on regular times: ``y`` from its first time on, NaN where it was not seen."""

    def __init__(self, data: Any, horizon: Any, argument: str = "history") -> None:
        times = read_times(data, argument)
        self.name, self.units = one_variable(data, argument)
        read: Observed = read_series(data, Space({"time": len(times)}, {self.name: None}), argument)
        self.attrs = dict(read.attrs[self.name])
        self.axis = Steps(times[0], _step(times, argument))
        numbers = self.axis.count(times, argument)
        self.count, self.end = int(numbers[-1]) + 1, times[-1]
        self.y = np.full(self.count, np.nan)
        self.y[numbers] = read.values.numpy()
        whole = isinstance(horizon, (int, np.integer))
        if horizon is None:
            return
        self.wanted = (
            np.arange(1, check_count("horizon", horizon) + 1)
            if whole
            else self.axis.count(read_horizon(horizon, times), "horizon") - self.count + 1
        )
        self.last = int(self.wanted[-1])

    def ensemble(
        self, centre: np.ndarray, paths: np.ndarray, samples: int, seed: int, name: str
    ) -> xr.Dataset:
        """Draws from whole paths ``(paths, steps)`` about a centre."""
        paths = paths[np.isfinite(paths).all(1)]
        if len(paths) < 2:
            raise InputError(
                "history",
                expected=f"at least two stretches of {self.last} steps without a gap, from which to learn",
                got=len(paths),
                fix="pass a longer history, or a shorter horizon",
            )
        check_count("samples", samples)
        chance = Streams(seed, range(samples), purpose=name).uniform((1,), dtype=torch.float64)[:, 0].numpy()
        return self.labelled(centre + paths[(chance * len(paths)).astype(int)], seed, name)

    def labelled(self, paths: np.ndarray, seed: int, name: str) -> xr.Dataset:
        """Paths ``(samples, steps)`` after the history as a forecast."""
        labels = self.axis.times(self.count, self.count + self.last - 1)[self.wanted - 1]
        space = Space({"time": labels}, {self.name: self.units})
        out = space.dataset(torch.from_numpy(paths[:, self.wanted - 1]), ["sample"])
        out[self.name].attrs = {**self.attrs, **out[self.name].attrs}
        out["time"].attrs["standard_name"] = "time"
        return with_leads(out, self.wanted, self.end).assign_attrs({"method": name, "seed": seed})


def one_variable(data: Any, argument: str) -> tuple[str, str | None]:
    """The one variable of the data, and its units where they are known."""
    import pandas as pd
    import xarray as xr

    names = [getattr(data, "name", None)]
    if isinstance(data, (pd.DataFrame, xr.Dataset)):
        names = list(data.columns if isinstance(data, pd.DataFrame) else data.data_vars)
    if len(names) != 1:
        raise InputError(
            argument, expected="one variable", got=names, fix="select one column; fit each by itself"
        )
    name = "x" if names[0] is None else str(names[0])
    attrs = data[names[0]].attrs if isinstance(data, xr.Dataset) else data.attrs
    units = attrs.get("units")
    return name, units if isinstance(units, str) else None


def _step(times: np.ndarray, argument: str) -> Any:
    """The step of times some of which may be absent: that of three in a row on whose steps all lie."""
    for i in range(max(1, len(times) - 2)):
        step = find_step(times[i : i + 3])
        if step is None:
            continue
        try:
            Steps(times[i], step).count(times, argument)
        except InputError:
            continue
        return step
    raise InputError(
        argument,
        expected="regular times, some of which may be absent",
        got=f"irregular ones from {shown_time(times[0])} to {shown_time(times[-1])}",
        fix="resample the series, or use a GaussianProcess with forecast or impute",
    )


def _latest(y: np.ndarray, period: int) -> np.ndarray:
    """The step of the last value seen in each phase, ``(period,)``; -1 where there is none."""
    out = np.full(period, -1)
    seen = np.flatnonzero(~np.isnan(y))
    np.maximum.at(out, seen % period, seen)
    return out


def _fitted(make: Any, name: str) -> Any:
    """A fitted model of statsmodels."""
    with warnings.catch_warnings():
        # statsmodels tells of its own first guesses, which it then replaces
        warnings.simplefilter("ignore")
        try:
            model = make()
        except (TypeError, ValueError) as error:
            raise InputError(
                "order" if name.startswith("sarimax") else "components",
                expected="a model that statsmodels can make of the series",
                got=f"{name}: {error}",
                fix="see its documentation",
            ) from error
        fit = model.fit(disp=0, maxiter=500)
    if not fit.mle_retvals["converged"]:
        raise ConvergenceError(f"{name}: the likelihood was not maximised")
    return fit


def _fit_attrs(fit: Any) -> dict[str, Any]:
    names = [str(name) for name in fit.model.param_names]
    return {
        "log_likelihood": float(fit.llf),
        "parameters": ", ".join(f"{n}={v:.6g}" for n, v in zip(names, fit.params, strict=True)),
    }


def _simulated(state: Any, steps: int, samples: int, seed: int) -> np.ndarray:
    """Paths ``(samples, steps)`` of a SARIMAX, whose states are seen without error, from the end of its data on."""
    parts = ("design", "obs_intercept", "transition", "state_intercept", "selection", "state_cov")
    Z, d, T, c, R, Q = (getattr(state, name)[..., -1] for name in parts)
    streams = Streams(seed, range(samples), purpose="paths of a state space model")
    first, shocks = (
        streams.normal(shape, dtype=torch.float64).numpy() for shape in ((len(T),), (steps, len(Q)))
    )
    x = state.predicted_state[:, -1] + first @ _root(state.predicted_state_cov[..., -1]).T
    moves = shocks @ (R @ _root(Q)).T
    out = np.empty((samples, steps))
    for k in range(steps):
        out[:, k] = x @ Z[0] + d[0]
        x = x @ T.T + c + moves[:, k]
    return out


def _smoothed(fit: Any, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the states ``(samples, states, times)`` and of observations ``(samples, times)``, given the data."""
    model = fit.model.ssm
    smoother, count = fit.model.simulation_smoother(), fit.model.nobs
    streams = Streams(seed, range(samples), purpose="simulation smoother")
    sizes = ((count, 1), (count, model.k_posdef), (model.k_states,), (count,))
    draws = [streams.normal(size, dtype=torch.float64).numpy() for size in sizes]
    states = np.empty((samples, model.k_states, count))
    for i, (errors, shocks, first, _) in enumerate(zip(*draws, strict=True)):
        smoother.simulate(
            measurement_disturbance_variates=errors,
            state_disturbance_variates=shocks,
            initial_state_variates=first,
        )
        states[i] = smoother.simulated_state
    # regressors stand in the intercept, or in a design that changes in time
    design = np.broadcast_to(model["design"][0].reshape(model.k_states, -1), (model.k_states, count))
    mean = np.einsum("it,ait->at", design, states) + model["obs_intercept"].reshape(-1)
    return states, mean + draws[3] * np.sqrt(model["obs_cov"][0, 0])


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(values.clip(0)))
