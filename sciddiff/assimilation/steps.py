"""Regular time axes, counted: step k of an axis lies k steps behind its origin, whatever a step is.

A step is a number of months, as calendars have them, a fixed time, a business day, or a plain number, and is read from
the times of a prior's window. So the law of a window can be laid anywhere on a series without asking for a frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from sciddiff.assimilation.series import shown_time
from sciddiff.errors import InputError

__all__ = ["Labels", "Steps", "find_step", "following", "read_horizon"]

# of a step, by which times may be off, for numbers that were rounded
_ROUNDING = 1e-3


def find_step(times: np.ndarray) -> Any:
    """What is between the times: a pandas offset, a `numpy.timedelta64` or a number; None if they are irregular.

    Example:
        >>> find_step(np.array(["2001-01-01", "2001-02-01", "2001-03-01"], "datetime64[D]"))
        <MonthBegin>
        >>> find_step(np.array([0.0, 0.5, 1.0])), find_step(np.array([0.0, 0.5, 2.0]))
        (0.5, None)
    """
    import pandas as pd

    if len(times) < 2:
        return None
    gaps = np.diff(times)
    if times.dtype.kind != "M":
        step = float(times[-1] - times[0]) / (len(times) - 1)
        return step if bool((np.abs(gaps - step) <= _ROUNDING * abs(step)).all()) else None
    dates = pd.DatetimeIndex(times)
    months = np.diff(dates.year * 12 + dates.month)
    if months[0] > 0 and (months == months[0]).all() and len(set(dates - dates.normalize())) == 1:
        if (dates.day == 1).all():
            return pd.offsets.MonthBegin(int(months[0]))
        if dates.is_month_end.all():
            return pd.offsets.MonthEnd(int(months[0]))
        if (dates.day == dates[0].day).all():
            return pd.DateOffset(months=int(months[0]))
    if (gaps == gaps[0]).all():
        return gaps[0]
    return pd.DatetimeIndex(dates, freq="infer").freq if len(dates) > 2 else None


@final
@dataclass(frozen=True)
class Steps:
    """The axis that has ``origin`` as its step 0.

    Attributes:
        origin: a date or a number.
        step: as `find_step` gives it.

    Example:
        >>> import pandas as pd
        >>> months = Steps(np.datetime64("2001-01-01"), pd.offsets.MonthBegin())
        >>> months.times(-1, 1).astype("datetime64[M]").astype(str).tolist()
        ['2000-12', '2001-01', '2001-02']
    """

    origin: Any
    step: Any

    def times(self, first: int, last: int) -> np.ndarray:
        """Times of the steps from ``first`` to ``last``, both included."""
        import pandas as pd

        if isinstance(self.step, (float, np.timedelta64)):
            numbers = np.arange(first, last + 1)
            whole = isinstance(self.origin, (int, np.integer)) and float(self.step).is_integer()
            return np.asarray(self.origin + numbers * (int(self.step) if whole else self.step))
        low, high = min(first, 0), max(last, 0)
        before = pd.date_range(end=pd.Timestamp(self.origin), periods=1 - low, freq=self.step)
        ahead = pd.date_range(start=pd.Timestamp(self.origin), periods=1 + high, freq=self.step)
        if before[-1] != self.origin or ahead[0] != self.origin:
            raise InputError(
                "time",
                expected=f"times on the prior's steps of {self}",
                got=shown_time(self.origin),
                fix="resample the series to the prior's steps",
            )
        every = before[:-1].append(ahead)
        return np.asarray(every.values[first - low : last - low + 1])

    def count(self, times: np.ndarray, argument: str) -> np.ndarray:
        """The number of each time, ``(times,)`` ints.

        Raises:
            InputError: on a time between two steps.
        """
        import pandas as pd

        if len(times) == 0:
            return np.zeros(0, dtype=np.int64)
        if isinstance(self.step, (float, np.timedelta64)):
            exact = np.asarray((times - self.origin) / self.step, dtype=np.float64)
            numbers = np.rint(exact).astype(np.int64)
            off = np.abs(exact - numbers) > (_ROUNDING if isinstance(self.step, float) else 1e-9)
        else:
            low, high = min(times[0], self.origin), max(times[-1], self.origin)
            try:
                self.times(0, 0)
                before = pd.date_range(low, self.origin, freq=self.step)
                ahead = pd.date_range(self.origin, high, freq=self.step)
                numbers = before[:-1].append(ahead).get_indexer(pd.DatetimeIndex(times))
                off, numbers = numbers < 0, numbers - (len(before) - 1)
            except InputError:
                off, numbers = np.ones(len(times), dtype=bool), np.zeros(len(times), dtype=np.int64)
        if off.any():
            apart = f", with {_apart(times)} between its times" if len(times) > 1 else ""
            raise InputError(
                argument,
                expected=f"times on the prior's steps of {self} from {shown_time(self.origin)}",
                got=f"{shown_time(times[off.argmax()])}{apart}",
                fix="resample the series to the prior's steps",
            )
        return np.asarray(numbers)

    def __str__(self) -> str:
        import pandas as pd

        if isinstance(self.step, float):
            return f"{self.step:g}"
        if isinstance(self.step, np.timedelta64):
            return str(pd.Timedelta(self.step)).removesuffix(" 00:00:00")
        if type(self.step) is pd.DateOffset:
            return _plural(self.step.kwds["months"], "month")
        if isinstance(self.step, (pd.offsets.MonthBegin, pd.offsets.MonthEnd)):
            first = isinstance(self.step, pd.offsets.MonthBegin)
            return f"{_plural(self.step.n, 'month')} on its {'first' if first else 'last'} day"
        return str(self.step.freqstr)


@final
@dataclass(frozen=True, eq=False)
class Labels:
    """Times that are not regular, counted from the first; there are no others.

    Attributes:
        every: the times, increasing.
    """

    every: np.ndarray

    def times(self, first: int, last: int) -> np.ndarray:
        """Times number ``first`` to ``last``, both included."""
        return self.every[first : last + 1]

    def count(self, times: np.ndarray, argument: str) -> np.ndarray:
        """The number of each time, ``(times,)`` ints.

        Raises:
            InputError: on a time that is not among them.
        """
        numbers = np.searchsorted(self.every, times).clip(0, len(self.every) - 1)
        off = self.every[numbers] != times
        if off.any():
            raise InputError(
                argument,
                expected=f"times of the prior, which are irregular, {shown_time(self.every[0])} to "
                f"{shown_time(self.every[-1])}",
                got=shown_time(times[off.argmax()]),
                fix="use a prior that can be laid on other times, such as a GaussianProcess",
            )
        return np.asarray(numbers)


def read_horizon(horizon: Any, times: np.ndarray) -> np.ndarray:
    """Future times, dates or numbers as ``times`` are, that were asked for.

    Raises:
        InputError: unless they are in order and after the last of ``times``.
    """
    if getattr(horizon, "tz", None) is not None:
        raise InputError(
            "horizon",
            expected="dates without a time zone",
            got=f"dates in {horizon.tz}",
            fix='use tz_convert("UTC").tz_localize(None)',
        )
    try:
        future = np.atleast_1d(
            np.asarray(horizon, dtype="datetime64[ns]" if times.dtype.kind == "M" else float)
        )
        good = np.ndim(horizon) == 1 and future.size > 0 and bool(np.isfinite(future).all())
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


def following(times: np.ndarray, horizon: int) -> np.ndarray:
    """The next steps of regular times.

    Raises:
        InputError: if the times are not regular.
    """
    step = find_step(times)
    if step is None:
        raise InputError(
            "horizon",
            expected="the future times, since those of the history are not regular",
            got=horizon,
            fix="pass the dates to forecast, such as horizon=pandas.date_range(...)",
        )
    return Steps(times[-1], step).times(1, horizon)


def _plural(n: int, what: str) -> str:
    return f"1 {what}" if n == 1 else f"{n} {what}s"


def _apart(times: np.ndarray) -> str:
    import pandas as pd

    least = np.diff(times).min()
    return (
        str(pd.Timedelta(least)).removesuffix(" 00:00:00")
        if isinstance(least, np.timedelta64)
        else f"{least:g}"
    )
