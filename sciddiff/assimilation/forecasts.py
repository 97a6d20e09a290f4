"""One prior over a window of time fills the gaps of a series and looks ahead, as far as is asked.

The window's states are ``x``, the values seen are ``y = x + e``, and what is not seen, gap or future, is simply not
observed: ``p(x | y) ~ p(x) prod_i p(y_i | x_i)`` over what is. Where that does not fit into one window, windows follow one
another and each draw goes on with its own path: the next window is drawn given the ``context`` last values of that path,
exactly known, and given what was observed behind them,

    p(x | y) ~ p(w_1 | y) prod_j p(new values of w_j | the path's last values, y in w_j).

Under a prior that is Markov of an order up to ``context`` a forecast so has the law of the future given the values of
one window, the last of the history: what is older is not used, and it tells nothing more where as many values in a row
as the order are known exactly. Noisy values of a slow process do not let the past go so soon: a window has to be a few
times as long as the errors take to average out. A path that was begun knows nothing of what lies behind its window,
so that the values of a long noisy series are drawn given too little of what follows. `impute` then sweeps over its draws
and redraws the middle of each window given the path on both its sides (Gibbs sampling by blocks): that leaves the exact
law of such a prior as it is and tends to it, the slower the longer the series' memory is beside the window. For long noisy
series under a network see `sciddiff.priors.WindowPrior` too, which draws all of a path at once.

The law of a prior belongs to the positions of its window, so times may move only where it moves with them. A prior with
a `season` has its mean on any calendar month. One whose mean varies along the window without a season keeps its phase: it
needs ``period=``, and its windows then begin a multiple of that many steps from the prior's own first time. A mean that
does not vary is taken for a law that is the same everywhere; where that is wrong, pass ``period=`` too. A prior that can
be laid on any times, as a `GaussianProcess` by its ``at(times)``, is laid on those of the series, regular or not.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.assimilation.drivers import check_drivers, read_drivers
from sciddiff.assimilation.paths import AnyTimes, Known, Path
from sciddiff.assimilation.series import Observed, read_series, read_times, shown_time, with_leads
from sciddiff.assimilation.steps import Labels, Steps, find_step, following, read_horizon
from sciddiff.assimilation.windows import Window, own_window, phase, plan_again, plan_ahead, plan_along
from sciddiff.errors import InputError
from sciddiff.noise import Gaussian, Noise
from sciddiff.posterior import check_count
from sciddiff.random import check_seed
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods import Method
    from sciddiff.priors import Prior

__all__ = ["AnyTimes", "forecast", "impute"]

# sds of errors, in units of the prior's, up to which what follows a value's window tells next to nothing about it
_PRECISE = 0.3
_SWEEPS = 4


def forecast(
    prior: Prior | AnyTimes,
    history: Any,
    *,
    horizon: Any,
    samples: int = 100,
    seed: int,
    obs_std: Any = None,
    noise: Noise | None = None,
    method: Method | None = None,
    covariates: Any = None,
    period: int | None = None,
    context: int | None = None,
) -> xr.Dataset:
    """Draw what follows a series, given its past.

    The first window ends at the last value of the history, or begins with the first where the history is shorter than
    it; windows that follow go on from its draws, see the module. So a draw at one lead is the same whatever the horizon,
    and a history that ends with NaN only has later leads. NaN and absent times in the history are gaps.

    Under a network the default method takes the covariance of the Gaussian that was fitted with it. One without (no
    ``prior.gaussian``) has `MMPS` take "unit", which knows nothing of how times hang together: draws can be far off in
    mean and spread though the diagnosis is "ok". Train with a Gaussian, the default of `train`; without it
    ``method=MMPS(covariance="guarded")`` is better, yet not exact.

    Args:
        prior: over a window, with a dim "time" of dates, numbers or unlabelled steps; or one with ``at(times)``.
        history: pandas Series or DataFrame, or xarray with a dim "time"; in order, its times as they are.
        horizon: how many steps to look ahead, or the future times themselves, in order.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.
        obs_std: standard deviation of the errors of the history: a number, one for each variable as a mapping, or one
            for each value, labelled or in the layout of the history. None: 1 % of the prior's own, or ``noise``.
        noise: another law of those errors, the same for all values; instead of ``obs_std``.
        method: the posterior sampler; None takes the default, see above for networks without a Gaussian.
        covariates: known drivers, over the history and the future: some of the prior's variables, which the history
            then leaves out. They are taken for exact.
        period: steps after which the law of the window repeats, such as 7 for daily data with a weekly rhythm; see
            the module. 1: it is the same wherever the window begins.
        context: steps of the path that every window after the first holds at least; None: half of it.

    Returns:
        `xarray.Dataset` with dims ``("sample", "time", ...)``, in the prior's units, on the future times; ``lead``
        counts the steps from ``init_time``, the last time of the history, or is the time since it on irregular times.

    Raises:
        InputError: on a horizon of no step or in the past, covariates with a hole, and as `impute`.

    Example:
        >>> import pandas as pd, sciddiff as sd
        >>> months = pd.date_range("2001-01", periods=24, freq="MS")
        >>> memory = sd.covariance.kernel(lambda h: np.exp(-h / 90), months)
        >>> prior = sd.GaussianPrior(sd.Space({"time": months}, {"t": "K"}), memory, mean=np.full(24, 280.0))
        >>> past = pd.Series([281.0, np.nan, 282.0], pd.to_datetime(["2020-01-01", "2020-02-01", "2020-03-01"]))
        >>> forecast(prior, past, horizon=36, samples=5, seed=0)["t"].shape
        (5, 36)
    """
    times = read_times(history, "history")
    future = None if isinstance(horizon, (int, np.integer)) else read_horizon(horizon, times)
    if isinstance(prior, AnyTimes) and future is None:
        future = following(times, check_count("horizon", horizon))
    every = times if future is None else np.concatenate([times, future])
    law, prior, axis = _laid(prior, every, times[-1], "history")
    length = prior.space.sizes["time"]
    now = int(axis.count(times[-1:], "history")[0])
    wanted = (
        np.arange(now + 1, now + 1 + check_count("horizon", horizon))
        if future is None
        else axis.count(future, "horizon")
    )
    last = int(wanted[-1])
    if isinstance(axis, Labels) and law is None and last >= length:
        raise InputError(
            "horizon",
            expected=f"at most {length - 1 - now} steps, to the end of the prior's irregular times",
            got=horizon,
            fix="use a prior that can be laid on other times, such as a GaussianProcess",
        )
    check_count("samples", samples), check_seed(seed)
    noise, obs_std = _one_noise(noise, obs_std)
    series = read_series(
        history, prior.space, "history", without=check_drivers(covariates, prior), errors=obs_std
    )
    _warn_of_steps(times, "history", axis)
    plan = own_window(prior, axis, period, last) if isinstance(axis, Steps) else []
    if isinstance(axis, Labels) and law is None:
        plan = [Window(0, 0, length)]
    if not plan:
        aligned = phase(prior, axis, period) if isinstance(axis, Steps) else (0, 1)
        within = isinstance(axis, Labels) or getattr(prior, "covariates", None) is not None
        plan = plan_ahead(length, _span(series, axis, length), last, aligned, context, within=within)
    series = series.since(axis.times(min(plan[0].start, now), now)[0])
    known = _known(series, prior, axis, plan, noise, covariates, last)
    path = Path(prior, axis, plan, known, law)
    drawn, attrs = path.draw(samples, seed, method)
    out = path.labelled(drawn, wanted)
    lead = wanted - now if isinstance(axis, Steps) else out["time"].values - times[-1]
    return with_leads(out, lead, times[-1]).assign_attrs(attrs)


def impute(
    prior: Prior | AnyTimes,
    series: Any,
    *,
    samples: int = 100,
    seed: int,
    obs_std: Any = None,
    noise: Noise | None = None,
    method: Method | None = None,
    covariates: Any = None,
    period: int | None = None,
    context: int | None = None,
    sweeps: int | None = None,
) -> xr.Dataset:
    """Draw a series where it is missing, given what was seen before and behind it.

    A series that is longer than the window is drawn by windows that overlap, from the first to the last. Each is
    given the draw's own path up to where it begins to be new, and all that was seen behind that; of its new values those
    are kept that have ``context`` times with observations behind them in the window, or as many as there are. A gap must
    therefore fit into a window with at least one observation behind it. Noisy values are then drawn anew by ``sweeps``.
    Under a network that has no Gaussian the default method can be far off, see `forecast`.

    Args:
        prior: as in `forecast`.
        series: as in `forecast`; NaN and absent times are gaps. For a prior with ``at(times)``, rows of NaN are
            where to draw.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.
        obs_std: as in `forecast`.
        noise: as in `forecast`.
        method: the posterior sampler; None takes the default.
        covariates: as in `forecast`, over the series.
        period: as in `forecast`.
        context: times with observations that a value has behind it in its window, and steps of the path before it; None:
            a quarter of the window, or half of it before sweeps.
        sweeps: how often a series longer than the window is drawn anew, window by window, given both its sides: each is
            some four windows for every window's length. None: 4 where an error's sd is over 0.3 of the prior's, or errors
            are a ``noise`` that is not Gaussian; else none.

    Returns:
        `xarray.Dataset` with dims ``("sample", "time", ...)`` from the first to the last time of the series. Values
        that were seen are drawn as well, within their errors.

    Raises:
        InputError: on times that are unsorted, repeated or off the prior's steps, other units or variables, infinite
            or no values, errors that are not positive, or a gap that no window can hold.

    Example:
        >>> import pandas as pd, sciddiff as sd
        >>> prior = sd.priors.GaussianProcess(lambda h: np.exp(-h / 30), {"level": "m"}, mean=10.0)
        >>> dates = pd.to_datetime(["2001-01-03", "2001-01-20", "2001-03-01"])
        >>> filled = impute(prior, pd.Series([10.2, np.nan, 9.7], dates), obs_std=0.1, samples=4, seed=0)
        >>> filled["level"].dims, filled["level"].attrs["units"]
        (('sample', 'time'), 'm')
    """
    times = read_times(series, "series")
    law, prior, axis = _laid(prior, times, times[0], "series")
    length = prior.space.sizes["time"]
    numbers = axis.count(times, "series")
    first, last = int(numbers[0]), int(numbers[-1])
    check_count("samples", samples), check_seed(seed)
    noise, obs_std = _one_noise(noise, obs_std)
    seen = read_series(
        series, prior.space, "series", without=check_drivers(covariates, prior), errors=obs_std
    )
    _warn_of_steps(times, "series", axis)
    plan = [Window(0, 0, length)]
    where = np.zeros(last + 1, dtype=bool)
    where[numbers] = seen.seen()
    own = own_window(prior, axis, period, last) if isinstance(axis, Steps) else []
    if own:
        plan = own
    elif isinstance(axis, Steps) or last >= length:
        aligned = phase(prior, axis, period) if isinstance(axis, Steps) else (0, 1)
        sweeps = _sweeps(sweeps, seen, noise, prior)
        if sweeps and context is None and length // 2 <= length - aligned[1]:
            context = max(1, length // 2)
        plan = plan_along(length, where, axis, aligned, context)
        plan += plan_again(length, last + 1, aligned, sweeps)
    known = _known(seen, prior, axis, plan, noise, covariates, last)
    path = Path(prior, axis, plan, known, law)
    drawn, attrs = path.draw(samples, seed, method)
    return path.labelled(drawn, np.arange(first, last + 1)).assign_attrs(attrs)


def _laid(
    prior: Any, times: np.ndarray, origin: Any, argument: str
) -> tuple[AnyTimes | None, Prior, Steps | Labels]:
    """The law on any times if it is one, the prior of a window, and the axis of its steps through ``origin``."""
    if isinstance(prior, AnyTimes):
        most = min(len(times), int(getattr(prior, "window", len(times))))
        return prior, prior.at(times[:most]), Labels(times)
    space = getattr(prior, "space", None)
    if not isinstance(space, Space) or not space.homogeneous or "time" not in space.dims:
        raise InputError(
            "prior",
            expected="a prior over a window of dates or steps, such as on Space({'time': dates})",
            got=space if isinstance(space, Space) else type(prior).__name__,
            fix="use prior.given for other spaces",
        )
    labels = space.coords.get("time")
    dated = labels is not None and labels.dtype.kind == "M"
    if dated != (np.asarray(origin).dtype.kind == "M"):
        raise InputError(
            argument,
            expected="dates as times, as the prior has" if dated else "numbers as times, as the prior has",
            got="numbers" if dated else "dates",
            fix="give the series its DatetimeIndex" if dated else "give the prior's space its dates",
        )
    if labels is None:
        return None, prior, Steps(origin, 1.0)
    step = find_step(labels)
    return None, prior, Labels(labels) if step is None else Steps(origin, step)


def _one_noise(noise: Noise | None, obs_std: Any) -> tuple[Noise | None, Any]:
    """The law of the errors, or their sds where it is Gaussian."""
    if noise is None:
        return None, obs_std
    if obs_std is not None:
        raise InputError("noise", expected="either noise or obs_std", got="both", fix="leave one of them out")
    if not isinstance(noise, Noise):
        raise InputError(
            "noise",
            expected="a Noise",
            got=type(noise).__name__,
            fix="pass an instance, for example noise.StudentT(4, 0.1), or a number as obs_std",
        )
    if not isinstance(noise, Gaussian):
        return noise, None
    if noise.sd is None or noise.sd.ndim:
        raise InputError(
            "noise",
            expected="one sd for all values",
            got=repr(noise),
            fix="pass one for each value as obs_std",
        )
    return None, float(noise.sd)


def _sweeps(sweeps: int | None, series: Observed, noise: Noise | None, prior: Prior) -> int:
    """As many as asked for; else some where errors are large beside the prior's sd, or of another law."""
    if sweeps is not None:
        if isinstance(sweeps, bool) or not isinstance(sweeps, (int, np.integer)) or sweeps < 0:
            raise InputError(
                "sweeps",
                expected="an int of at least 0",
                got=repr(sweeps),
                fix="leave it out to take the default",
            )
        return int(sweeps)
    if noise is not None:
        return _SWEEPS
    if series.sd is None:
        return 0
    scale = prior.normalisation.scale.double().cpu().amin()
    seen = ~series.values.isnan()
    return _SWEEPS if bool((series.sd[seen] > _PRECISE * scale).any()) else 0


def _warn_of_steps(times: np.ndarray, argument: str, axis: Steps | Labels) -> None:
    """Warn of series that come at every second step of the prior or less often."""
    try:
        between = np.diff(axis.count(times, argument))
    except InputError:
        return  # what lies before the window need not fit
    if isinstance(axis, Steps) and len(between) > 2 and (common := int(np.gcd.reduce(between))) > 1:
        warnings.warn(
            f"`{argument}` has values at every {common}th step of the prior ({axis}) at most. If its own steps are longer "
            "than the prior's, use a prior with those; if they are gaps, give the times between as NaN.",
            UserWarning,
            stacklevel=3,
        )


def _span(series: Observed, axis: Steps | Labels, length: int) -> tuple[int, int]:
    """The last step with a value, and the first with one in a window that ends there."""
    seen = series.times[series.seen()]
    end = int(axis.count(seen[-1:], series.argument)[0])
    low = end - length + 1 if isinstance(axis, Steps) else max(0, end - length + 1)
    recent = seen[seen >= axis.times(low, low)[0]]
    return int(axis.count(recent[:1], series.argument)[0]), end


def _known(
    series: Observed,
    prior: Prior,
    axis: Steps | Labels,
    plan: list[Window],
    noise: Noise | None,
    covariates: Any,
    last: int,
) -> Known:
    """What is known, with its steps."""
    numbers = axis.count(series.times, series.argument)
    if not series.seen().any():
        raise InputError(
            series.argument,
            expected=f"a value from {shown_time(series.times[0])} on, where the window begins",
            got="NaN only",
            fix="pass a longer or fuller series",
        )
    reach = plan[0].start, max(w.start for w in plan) + prior.space.sizes["time"] - 1
    drivers = read_drivers(covariates, prior, axis, int(numbers[0]), last, reach)
    return Known(series, numbers, noise, drivers)
