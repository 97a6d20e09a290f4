"""One prior over a window of time fills the gaps of a series and looks ahead, as far as is asked.

The window's states are ``x``, the values seen are ``y = x + e``, and what is not seen, gap or future, is simply not
observed: ``p(x | y) ~ p(x) prod_i p(y_i | x_i)`` over what is. Where a series is longer than the window, windows
follow one another and each draw goes on with its own path: the next window is drawn given the ``context`` last values of
that path, exactly known, and given what was observed behind them,

    p(x | y) ~ p(w_1 | y) prod_j p(new values of w_j | the path's last values, y in w_j).

That is exact for a prior that is Markov of an order up to ``context``; for others the memory ends there.

The law of a prior belongs to the positions of its window, so times may move only where it moves with them. A prior with
a `season` has its mean on any calendar month. One whose mean varies along the window without a season keeps its phase: it
needs ``period=``, and its windows then begin a multiple of that many steps from the prior's own first time. A mean that
does not vary is taken for a law that is the same everywhere; where that is wrong, pass ``period=`` too. A prior that can
be laid on any times, as a `GaussianProcess` by its ``at(times)``, is laid on those of the series, regular or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

import numpy as np
import torch

from sciddiff.assimilation.series import Observed, read_series, read_times, shown_time
from sciddiff.assimilation.steps import Labels, Steps, find_step
from sciddiff.errors import InputError
from sciddiff.noise import Gaussian, Noise
from sciddiff.operators import Gather
from sciddiff.posterior import check_count
from sciddiff.priors.composed import axis_of
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods import Method
    from sciddiff.posterior import Posterior
    from sciddiff.priors import Prior

__all__ = ["AnyTimes", "forecast", "impute"]

_DEFAULT_NOISE = 0.01
# sds, in units of the scale, of values that are known exactly: a draw's own past, and covariates
_EXACT = {torch.float64: 1e-5}
_EXACT_ELSE = 1e-3
_CASES = "path of the draw"


@runtime_checkable
class AnyTimes(Protocol):
    """A law of series that has a prior on any times."""

    def at(self, times: Any) -> Prior:
        """The prior on these times."""


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

    The window is laid so that it ends at the horizon and holds as much of the history as it can; a shorter history is
    met by leaving unobserved what came before it. Where that would leave less than ``context`` of it, windows follow
    one another, see the module. NaN and absent times in the history are gaps.

    Args:
        prior: over a window, with a dim "time" of dates, numbers or unlabelled steps; or one with ``at(times)``.
        history: pandas Series or DataFrame, or xarray with a dim "time"; in order, its times as they are.
        horizon: how many steps to look ahead, or the future times themselves, in order.
        samples: number of draws.
        seed: draw i depends on (seed, i) alone.
        obs_std: standard deviation of the errors of the history: a number, one for each variable as a mapping, or one
            for each value, labelled or in the layout of the history. None: 1 % of the prior's own, or ``noise``.
        noise: another law of those errors, the same for all values; instead of ``obs_std``.
        method: the posterior sampler; None takes the default.
        covariates: known drivers, over the history and the future: some of the prior's variables, which the history
            then leaves out. They are taken for exact.
        period: steps after which the law of the window repeats, such as 7 for daily data with a weekly rhythm; see
            the module. 1: it is the same wherever the window begins.
        context: past steps that every window holds at least; None: a quarter of the window where one is enough, else
            half of it.

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
    future = None if isinstance(horizon, (int, np.integer)) else _future(horizon, times)
    if isinstance(prior, AnyTimes):
        if future is None:
            future = _following(times, check_count("horizon", horizon))
        prior = prior.at(np.concatenate([times, future]))
    length, axis = _axis(prior, times[-1], "history")
    now = int(axis.count(times[-1:], "history")[0])
    wanted = (
        np.arange(now + 1, now + 1 + check_count("horizon", horizon))
        if future is None
        else axis.count(future, "horizon")
    )
    last = int(wanted[-1])
    if isinstance(axis, Labels) and last >= length:
        raise InputError(
            "horizon",
            expected=f"at most {length - 1 - now} steps, to the end of the prior's irregular times",
            got=horizon,
            fix="use a prior that can be laid on other times, such as a GaussianProcess",
        )
    plan = [_Window(0, 0, length)]
    if isinstance(axis, Steps):
        plan = _own_window(prior, axis, period, last) or _ahead(
            length, last, _phase(prior, axis, period), context
        )
    check_count("samples", samples), check_seed(seed)
    noise, obs_std = _one_noise(noise, obs_std)
    series = read_series(
        history, prior.space, "history", without=_check_drivers(covariates, prior), errors=obs_std
    )
    _warn_of_steps(times, "history", axis)
    series = series.since(axis.times(plan[0].start, now)[0])
    known = _known(series, prior, axis, plan, noise, covariates, last)
    path = _Path(prior, axis, plan, known)
    drawn, attrs = path.draw(samples, seed, method)
    out = path.labelled(drawn, wanted)
    regular = isinstance(axis, Steps)
    lead = wanted - now if regular else out["time"].values - times[-1]
    about = {
        "standard_name": "forecast_period",
        "long_name": f"{'steps' if regular else 'time'} since init_time",
    }
    init = ((), times[-1], {"standard_name": "forecast_reference_time"})
    return out.assign_coords(lead=("time", lead, about), init_time=init).assign_attrs(attrs)


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
) -> xr.Dataset:
    """Draw a series where it is missing, given what was seen before and behind it.

    A series that is longer than the window is drawn by windows that overlap, from the first to the last. Each is
    given the draw's own path up to where it begins to be new, and all that was seen behind that; of its new values those
    are kept that have ``context`` times with observations behind them in the window, or as many as there are. A gap must
    therefore fit into a window with at least one observation behind it.

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
            a quarter of the window.

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
    if isinstance(prior, AnyTimes):
        prior = prior.at(times)
    length, axis = _axis(prior, times[0], "series")
    numbers = axis.count(times, "series")
    first, last = int(numbers[0]), int(numbers[-1])
    check_count("samples", samples), check_seed(seed)
    noise, obs_std = _one_noise(noise, obs_std)
    seen = read_series(
        series, prior.space, "series", without=_check_drivers(covariates, prior), errors=obs_std
    )
    _warn_of_steps(times, "series", axis)
    plan = [_Window(0, 0, length)]
    if isinstance(axis, Steps):
        where = np.zeros(last + 1, dtype=bool)
        where[numbers] = seen.seen()
        plan = _own_window(prior, axis, period, last) or _along(
            length, where, axis, _phase(prior, axis, period), context
        )
    known = _known(seen, prior, axis, plan, noise, covariates, last)
    path = _Path(prior, axis, plan, known)
    drawn, attrs = path.draw(samples, seed, method)
    return path.labelled(drawn, np.arange(first, last + 1)).assign_attrs(attrs)


@final
@dataclass(frozen=True)
class _Window:
    """A window from step ``start``; its steps from ``known`` up to ``kept`` are new to the path and kept."""

    start: int
    known: int
    kept: int


@final
@dataclass(frozen=True, eq=False)
class _Known:
    """What is known: the series and the covariates, on an axis of steps."""

    series: Observed
    numbers: np.ndarray
    noise: Noise | None
    drivers: _Drivers | None


@final
@dataclass(frozen=True, eq=False)
class _Path:
    """Draws of a path along an axis of steps, window by window."""

    prior: Prior
    axis: Steps | Labels
    windows: list[_Window]
    known: _Known

    @property
    def start(self) -> int:
        """The first step of the path."""
        return self.windows[0].start

    @property
    def length(self) -> int:
        """Steps of a window."""
        return self.prior.space.sizes["time"]

    @property
    def dim(self) -> int:
        """The axis of time in a state."""
        return axis_of(self.prior.space, "time")

    def draw(self, samples: int, seed: int, method: Method | None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Paths ``(samples, *shape)`` from the first window's start to the last one's end, and what is recorded."""
        series, drivers = self.known.series, self.known.drivers
        y = self._laid(series.values, self.known.numbers, self.dim)
        sd = torch.full_like(y, torch.nan)
        if series.sd is not None:
            sd = self._laid(series.sd, self.known.numbers, self.dim)
        exact = torch.full_like(y, torch.nan)
        if drivers is not None and not drivers.told:
            exact = self._laid(drivers.values, drivers.numbers, self.dim)
        path, records = y.new_full((samples, *y.shape), torch.nan), []
        for i, window in enumerate(self.windows):
            at, offset = self._at(window.start), window.start - self.start
            parts = [v.narrow(self.dim, offset, self.length) for v in (y, sd, exact)]
            past = path.narrow(1 + self.dim, offset, self.length)
            new, width = window.known - window.start, window.kept - window.known
            posterior = self._posterior(at, parts, past, new)
            if new:
                draws = posterior.sample(1, method, seed=_seed_of(seed, i)).isel(sample=0)
            else:
                draws = posterior.sample(samples, method, seed=seed)
            x = at.space.tensor(draws, batch_dim=_CASES if new else "sample")
            past.narrow(1 + self.dim, new, width).copy_(x.narrow(1 + self.dim, new, width))
            records.append(draws.attrs)
        return path, _record(records)

    def labelled(self, path: torch.Tensor, numbers: np.ndarray) -> xr.Dataset:
        """The path at some steps as a Dataset of the variables that are no covariates."""
        labels = self.axis.times(int(numbers[0]), int(numbers[-1]))[numbers - numbers[0]]
        index = torch.from_numpy(numbers - self.start)
        out = _moved(self.prior.space, labels).dataset(path.index_select(1 + self.dim, index), ["sample"])
        out = out.drop_vars(list(self.known.drivers.names) if self.known.drivers else [])
        for name, attrs in self.known.series.attrs.items():
            out[name].attrs = {**attrs, **out[name].attrs}
        out["time"].attrs["standard_name"] = "time"
        return out

    def _at(self, start: int) -> Prior:
        """The prior on the times of the window that begins at a step."""
        labels, drivers = self.axis.times(start, start + self.length - 1), self.known.drivers
        at: Any = self.prior.relabel(_moved(self.prior.space, labels), _seasonal_mean(self.prior, labels))
        if drivers is not None and drivers.told:
            rows = np.searchsorted(drivers.numbers, np.arange(start, start + self.length))
            dim = drivers.values.ndim - len(at.space.grid) + at.space.dims.index("time")
            at = at.driven(drivers.values.index_select(dim, torch.from_numpy(rows)))
        return at  # type: ignore[no-any-return]

    def _laid(self, values: torch.Tensor, numbers: np.ndarray, dim: int) -> torch.Tensor:
        """Values at their steps of the path; NaN elsewhere."""
        total = max(w.start for w in self.windows) + self.length - self.start
        inside = np.flatnonzero((numbers >= self.start) & (numbers < self.start + total))
        out = values.new_full([total if i == dim else n for i, n in enumerate(values.shape)], torch.nan)
        index = torch.from_numpy(numbers[inside] - self.start)
        return out.index_copy(dim, index, values.index_select(dim, torch.from_numpy(inside)))

    def _posterior(self, at: Prior, known: Sequence[torch.Tensor], past: torch.Tensor, new: int) -> Posterior:
        """The prior given the path before step ``new``, the covariates, and what was observed from there on."""
        y, sd, exact = (v.flatten() for v in known)
        steps = torch.arange(self.length).reshape([-1 if i == self.dim else 1 for i in range(past.ndim - 1)])
        before = (steps < new).expand(at.space.shape).flatten()
        sure, seen = before | ~exact.isnan(), ~before & ~y.isnan() & exact.isnan()
        values = torch.where(exact.isnan(), past.flatten(1), exact) if new else exact[None]
        scale = torch.broadcast_to(at.normalisation.scale.double().cpu(), at.space.shape).flatten()
        tiny, sd = (
            _EXACT.get(at.dtype, _EXACT_ELSE) * scale,
            torch.where(sd.isnan(), _DEFAULT_NOISE * scale, sd),
        )

        def given(posterior: Any, chosen: torch.Tensor, x: torch.Tensor, law: Noise) -> Any:
            index = chosen.nonzero().numpy()
            operator = Gather(at.space, Space({"entry": len(index)}, "observed"), index)
            return posterior.given(
                x[:, chosen] if new else x[0, chosen], operator, law, batch_dim=_CASES if new else None
            )

        out: Any = at
        if self.known.noise is None:
            # independent Gaussian errors are one observation, which methods solve at once
            every = torch.where(sure, values, y)
            out = given(out, sure | seen, every, Gaussian(torch.where(sure, tiny, sd)[sure | seen].numpy()))
        else:
            if bool(sure.any()):
                out = given(out, sure, values, Gaussian(tiny[sure].numpy()))
            if bool(seen.any()):
                out = given(out, seen, y.expand(len(values), -1), self.known.noise)
        return out  # type: ignore[no-any-return]


def _ahead(length: int, last: int, phase: tuple[int, int], context: int | None) -> list[_Window]:
    """Windows that reach from the past, step 0 being its last, to step ``last``."""
    offset, period = phase
    enough = max(1, length // 4) if context is None else _context(context, length, period)
    start = last - length + 1
    start += (offset - start) % period
    if 1 - start >= enough:
        return [_Window(start, start, start + length)]
    kept = max(1, length // 2) if context is None else enough
    stride = (length - kept) // period * period
    if stride < 1:
        raise InputError(
            "context",
            expected=f"at most {length - period} steps, a window of {length} less a period of {period}",
            got=kept,
            fix="take fewer, or a shorter period",
        )
    start = 1 - kept - (1 - kept - offset) % period
    windows = [_Window(start, start, start + length)]
    # the last one ends where it has to, and holds more of the path
    final = last - length + 1
    final += (offset - final) % period
    while windows[-1].kept <= last:
        start = min(start + stride, final)
        windows.append(_Window(start, windows[-1].kept, start + length))
    return windows


def _along(
    length: int, seen: np.ndarray, axis: Steps, phase: tuple[int, int], context: int | None
) -> list[_Window]:
    """Windows over a series that begins at step 0, each cut where observations follow in the same window."""
    offset, period = phase

    def aligned(step: int) -> int:
        return step - (step - offset) % period

    def behind(known: int, start: int) -> np.ndarray:
        """Steps with observations that the window has behind what is known."""
        low = max(known + 1, 0)
        return low + np.flatnonzero(seen[low : start + length])

    many = max(1, length // 4) if context is None else _context(context, length, period)
    windows, total = list[_Window](), len(seen)
    known = first = aligned(0)
    starts = [first]
    while starts[0] + length < total:
        # the first start with enough observations behind the path, else the end, else the one with the most
        enough = [s for s in starts if len(behind(known, s)) >= many or s + length >= total]
        start = enough[0] if enough else max(starts, key=lambda s: len(behind(known, s)))
        found = behind(known, start)
        if start + length >= total:
            starts = [start]
            break
        if len(found) == 0:
            lost = axis.times(max(known + 1, 0), start + length - 1)
            raise InputError(
                "series",
                expected=f"gaps that fit into the prior's window of {length} steps with a value behind them",
                got=f"no value from {shown_time(lost[0])} to {shown_time(lost[-1])}",
                fix="use a prior on longer windows, or impute the parts on either side by themselves",
            )
        cut = int(found[-min(many, len(found))])
        windows.append(_Window(start, known, cut))
        known = cut
        # from the most of the path to one step of it
        starts = sorted({max(first, aligned(s)) for s in range(known - many, known)})
    # the last one ends where the series does, if that holds more of the path
    final = total - length
    final = max(first, min(starts[0], final + (offset - final) % period))
    return [*windows, _Window(final, known, total)]


def _context(context: int, length: int, period: int) -> int:
    if check_count("context", context) > length - period:
        raise InputError(
            "context",
            expected=f"at most {length - period} steps of the window's {length}",
            got=context,
            fix="leave it out to take the default",
        )
    return int(context)


def _axis(prior: Any, origin: Any, argument: str) -> tuple[int, Steps | Labels]:
    """Length of the prior's window, and the axis of its steps through ``origin``."""
    space = getattr(prior, "space", None)
    if not isinstance(space, Space) or not space.homogeneous or "time" not in space.dims:
        raise InputError(
            "prior",
            expected="a prior over a window of dates or steps, such as on Space({'time': dates})",
            got=space if isinstance(space, Space) else type(prior).__name__,
            fix="use prior.given for other spaces",
        )
    labels = space.coords.get("time")
    length = space.sizes["time"]
    dated = labels is not None and labels.dtype.kind == "M"
    if dated != (np.asarray(origin).dtype.kind == "M"):
        raise InputError(
            argument,
            expected="dates as times, as the prior has" if dated else "numbers as times, as the prior has",
            got="numbers" if dated else "dates",
            fix="give the series its DatetimeIndex" if dated else "give the prior's space its dates",
        )
    if labels is None:
        return length, Steps(origin, 1.0)
    step = find_step(labels)
    return length, Labels(labels) if step is None else Steps(origin, step)


def _future(horizon: Any, times: np.ndarray) -> np.ndarray:
    """Future times that were asked for."""
    try:
        future = np.atleast_1d(
            np.asarray(horizon, dtype="datetime64[ns]" if times.dtype.kind == "M" else float)
        )
        good = np.ndim(horizon) == 1 and not isinstance(horizon, str) and future.size > 0
    except (TypeError, ValueError):
        good, future = False, times
    if isinstance(horizon, bool) or not good:
        raise InputError(
            "horizon",
            expected="an int of at least 1, or the future times in order",
            got=repr(horizon),
            fix="pass for example horizon=12",
        )
    if not (future[1:] > future[:-1]).all() or future[0] <= times[-1]:
        late = future[0] <= times[-1]
        raise InputError(
            "horizon",
            expected=f"times in order, each once, after {shown_time(times[-1])}, the last of the history",
            got=shown_time(future[0]) if late else "unsorted or repeated ones",
            fix="fill what lies before the end of the history with impute" if late else "sort them",
        )
    return future


def _following(times: np.ndarray, horizon: int) -> np.ndarray:
    """The next steps of regular times."""
    step = find_step(times)
    if step is None:
        raise InputError(
            "horizon",
            expected="the future times, since those of the history are not regular",
            got=horizon,
            fix="pass the dates to forecast, such as horizon=pandas.date_range(...)",
        )
    return Steps(times[-1], step).times(1, horizon)


def _own_window(prior: Prior, axis: Steps, period: int | None, last: int) -> list[_Window]:
    """The prior's own window, the only one where its mean varies and no period is known; none elsewhere.

    Raises:
        InputError: if the series, from step 0 to ``last``, does not lie in it.
    """
    labels = prior.space.coords.get("time")
    if period is not None or prior.season is not None or labels is None or not _rhythmic(prior):
        return []
    try:
        start = int(axis.count(labels[:1], "period")[0])
    except InputError:
        start = 1
    if not start <= 0 <= last < start + len(labels):
        raise InputError(
            "period",
            expected="the steps after which the prior's law repeats, since its mean varies along the window",
            got=None,
            fix="pass period=, such as 7 for daily data with a weekly rhythm, 12 for monthly data, or 1 where the law is "
            "the same wherever the window begins; or train on departures from the calendar months' means, with season=",
        )
    return [_Window(start, start, start + len(labels))]


def _phase(prior: Prior, axis: Steps, period: int | None) -> tuple[int, int]:
    """A step at which a window may begin, and the steps after which it may begin again."""
    period = 1 if period is None else check_count("period", period)
    labels = prior.space.coords.get("time")
    if prior.season is not None or period == 1 or labels is None:
        return 0, 1
    return int(axis.count(labels[:1], "period")[0]), period


def _rhythmic(prior: Prior) -> bool:
    """Whether the prior's mean varies along the window, beyond 1e-6 of its scale."""
    units, shape, axis = prior.normalisation, prior.space.shape, axis_of(prior.space, "time")
    mean = torch.broadcast_to(units.mean.double().cpu(), shape)
    scale = torch.broadcast_to(units.scale.double().cpu(), shape)
    return bool((mean.amax(axis) - mean.amin(axis) > 1e-6 * scale.amin(axis)).any())


def _seasonal_mean(prior: Prior, labels: np.ndarray) -> torch.Tensor | None:
    """The prior's mean on other dates: its mean of each calendar month; None where it has no season."""
    if prior.season is None:
        return None
    month = labels.astype("datetime64[M]").astype(np.int64) % 12
    mean = prior.season[torch.from_numpy(month)]
    return mean.movedim(0, axis_of(prior.space, "time"))


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
            fix="pass an instance, for example noise.StudentT(0.1, 4), or a number as obs_std",
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


def _check_drivers(covariates: Any, prior: Prior) -> tuple[str, ...]:
    """Check the names of the covariates; those that are variables of the prior come back."""
    import pandas as pd
    import xarray as xr

    told = getattr(prior, "covariates", None)
    own = list(prior.space.variables if told is None else told.units)
    if covariates is None and told is None:
        return ()
    names: tuple[str, ...] = ()
    if isinstance(covariates, (pd.Series, xr.DataArray)):
        names = () if covariates.name is None else (str(covariates.name),)
    elif isinstance(covariates, (pd.DataFrame, xr.Dataset)):
        frame = isinstance(covariates, pd.DataFrame)
        names = tuple(str(n) for n in (covariates.columns if frame else covariates.data_vars))
    if not names or set(names) - set(own) or (len(names) < len(own)) == (told is not None):
        whole = "all drivers of the prior" if told is not None else "some of the prior's variables, not all"
        raise InputError(
            "covariates",
            expected=f"pandas or xarray data named as {whole}: {own}",
            got=list(names) or type(covariates).__name__,
            fix="rename or select the columns; a prior knows only the drivers that it was made with",
        )
    return names if told is None else ()


def _known(
    series: Observed,
    prior: Prior,
    axis: Steps | Labels,
    plan: list[_Window],
    noise: Noise | None,
    covariates: Any,
    last: int,
) -> _Known:
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
    drivers = _drivers(covariates, prior, axis, int(numbers[0]), last, reach)
    return _Known(series, numbers, noise, drivers)


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


@final
@dataclass(frozen=True, eq=False)
class _Drivers:
    """Covariates on an axis of steps.

    Attributes:
        values: ``(k, *grid)`` for a prior that is told them, else in the layout of the prior's states.
        numbers: steps of the values.
        told: whether the prior is told them; else they are some of its variables.
        names: of those variables.
    """

    values: torch.Tensor
    numbers: np.ndarray
    told: bool
    names: tuple[str, ...]


def _drivers(
    data: Any, prior: Prior, axis: Steps | Labels, first: int, last: int, reach: tuple[int, int]
) -> _Drivers | None:
    """Covariates, complete where they are needed: from ``first`` to ``last``, or over the ``reach`` of the windows.

    Raises:
        InputError: on other names than the prior's, units that differ, or a hole.
    """
    told = getattr(prior, "covariates", None)
    if data is None and told is None:
        return None
    data = data.to_frame() if hasattr(data, "iloc") and data.ndim == 1 else data
    own = list(prior.space.variables) if told is None else list(told.units)
    names = tuple(own) if told is not None else _check_drivers(data, prior)
    space = prior.space if told is None else told.space(prior.space)
    read = read_series(data, space, "covariates", without=[n for n in own if n not in names])
    numbers = axis.count(read.times, "covariates")
    rows = [i for i, (n, _) in enumerate(space.components) if n in names]
    values = read.values if len(space.components) > 1 else read.values[None]
    dim = values.ndim - len(space.grid) + space.dims.index("time")
    full = ~values[rows].isnan().movedim(dim, 0).reshape(len(numbers), -1).any(1)
    first, last = (first, last) if told is None else reach
    absent = np.setdiff1d(np.arange(first, last + 1), numbers[full.numpy()])
    if len(absent):
        from_, to, hole = (shown_time(axis.times(int(k), int(k))[0]) for k in (first, last, absent[0]))
        raise InputError(
            "covariates",
            expected=f"values from {from_} to {to}",
            got=f"none at {hole}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""),
            fix="fill the driver from what is known of it: nothing is filled here",
        )
    return _Drivers(
        values if told is not None else read.values,
        numbers,
        told is not None,
        () if told is not None else names,
    )


def _moved(space: Space, labels: np.ndarray) -> Space:
    """The space on other times."""
    coords = {d: labels if d == "time" else space.coords.get(d, n) for d, n in space.sizes.items()}
    along = {n: (d, v) for n, (d, v) in space.along.items() if d != "time"}
    return Space(coords, space.variables, edges=space.edges, along=along)


def _seed_of(seed: int, window: int) -> int:
    """A seed for each window, so that no two share their noise; the first has the caller's."""
    if window == 0:
        return seed
    return int(Streams(seed, [window], purpose="window").numpy()[0].integers(2**63))


def _record(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first window's run recorded, with the costs of all and whatever looked wrong in one."""
    out = dict(records[0])
    if len(records) > 1:
        for name in ("forwards", "vjps", "operator_calls", "seconds"):
            out[name] = sum(float(r[name]) for r in records)
        lines = dict.fromkeys(str(r["diagnosis"]) for r in records if r["diagnosis"] != "ok")
        out |= {"windows": len(records), "diagnosis": "; ".join(lines) or "ok"}
    return out
