"""Filtering and fixed-lag smoothing of long series by a prior over short windows, without a model.

The state at time k is drawn given the data of one window of L times around it,

    p(x_k | y_{k+lag-L+1}, ..., y_{k+lag})

by the posterior of the window's trajectory. What lies before the window is forgotten, so that the state has to be known
from L times of data; in return no error is carried on, and all times are independent problems, solved as one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import Operator
from sciddiff.operators.series import AtTimes, as_states, as_trajectory, positions, trajectory_space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods import Method
    from sciddiff.noise import Noise
    from sciddiff.priors import Prior
    from sciddiff.solvers import Solver
    from sciddiff.spaces import Space

__all__ = ["fixed_lag_smoother"]


def fixed_lag_smoother(
    prior: Prior,
    y: Any,
    operator: Operator,
    noise: Noise,
    n: int,
    *,
    lag: int = 0,
    times: Any = None,
    method: Method | None = None,
    solver: Solver | None = None,
    steps: int | None = None,
    batch_dim: str | None = None,
    seed: int,
    chunk: int | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Draw the state at every time of a long series, given the data of a window around it.

    With ``lag=0``, the default, the window ends at the time itself: a filter. Draws at different times are independent
    given their data: they are marginals, and a row of them is no trajectory.

    Args:
        prior: over windows, with a dim "time" of length L in front of those of a state, whose law is the same wherever
            the window begins.
        y: the observations, on ``operator.codomain`` with a dim "time" in front, at the steps of the prior: labelled
            data, in order and with every step there, or an array of the shape of
            ``trajectory_space(operator.codomain, times)``. NaN was not observed, nor what lies beyond the ends. Steps are
            compared with the prior's where its window has labels of the same kind, numbers or dates.
        operator: from one state to one observation without noise, the same at all times.
        noise: the law of an observation given that; standard deviations have to broadcast on windows of them.
        n: number of draws.
        lag: how many later times are seen, from 0 to L - 1. The last ``lag`` times of the series see fewer.
        times: at which times to draw, each once: labels of ``y``, or positions where it has none; None: all.
        method: how, as in `Posterior.sample`; None takes its default.
        solver: as in `Posterior.sample`.
        steps: as in `Posterior.sample`.
        batch_dim: the name of the leading dim of many series at once.
        seed: draw i at the j-th of the times (of all series, one behind the other) depends on (seed, i, j) alone.
        chunk: as in `Posterior.sample`. Whole windows are kept until they are all drawn.
        progress: as in `Posterior.sample`.

    Returns:
        `xarray.Dataset` with dims ``("sample", "time", ...)``, or ``("sample", batch_dim, "time", ...)``, physical units;
        attrs as `Posterior.sample` gives them, and "law" and "lag".

    Raises:
        InputError: on a prior without a dim "time", or with a season; on observations, times or a lag that do not fit; on
            labels of times that do not increase by equal steps, those of the prior (months, too, are equal steps).

    Example:
        >>> import sciddiff as sd
        >>> gap = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
        >>> prior = sd.GaussianPrior(sd.Space({"time": 6}), sd.covariance.dense(0.9**gap))
        >>> one = sd.Space({}, "x")
        >>> seen = np.sin(np.arange(50) / 5)
        >>> draws = fixed_lag_smoother(prior, seen, sd.operators.Identity(one), sd.noise.Gaussian(0.1), 8, seed=0)
        >>> draws["x"].dims, draws.attrs["law"]
        (('sample', 'time'), 'filtering')
    """
    window = _window(prior, operator)
    if isinstance(lag, bool) or not isinstance(lag, (int, np.integer)) or not 0 <= lag < window.length:
        raise InputError(
            "lag",
            expected=f"an int from 0 to {window.length - 1}, within the window",
            got=repr(lag),
            fix="0 is a filter, and half the window the middle",
        )
    values, labels, series = window.read(y, batch_dim)
    at = positions(trajectory_space(operator.domain, values.shape[1] if labels is None else labels), times)
    index = at[:, None] + np.arange(lag - window.length + 1, lag + 1)
    inside = torch.from_numpy((index >= 0) & (index < values.shape[1]))
    windows = values[:, np.clip(index, 0, values.shape[1] - 1)]
    windows[:, ~inside] = torch.nan
    posterior = window.prior.given(
        as_trajectory(windows.flatten(0, 1), operator.codomain),
        window.operator,
        noise,
        missing="mask",
        batch_dim="analysis",
    )
    draws = posterior.sample(n, method, solver=solver, steps=steps, seed=seed, chunk=chunk, progress=progress)
    x = window.prior.space.tensor(
        draws.stack(row=("sample", "analysis")).transpose("row", ...), batch_dim="row", dtype=prior.dtype
    )
    states = as_states(x, operator.domain)[:, window.length - 1 - lag]
    rows = as_trajectory(states.reshape(-1, len(at), *operator.domain.shape), operator.domain)
    space = trajectory_space(operator.domain, len(at) if labels is None else labels[at])
    lead = ["sample"] if batch_dim is None else ["sample", batch_dim]
    sizes = (n,) if batch_dim is None else (n, len(values))
    coords = {} if batch_dim is None or series is None else {batch_dim: series}
    out = space.dataset(rows.reshape(*sizes, *space.shape), lead, coords or None)
    out.attrs.update(draws.attrs)
    out.attrs.update({"law": "smoothing at a fixed lag" if lag else "filtering", "lag": int(lag)})
    return out


class _Window:
    """The prior on windows without labels, and the operator at all their times."""

    def __init__(self, prior: Prior, operator: Operator, space: Space) -> None:
        self.prior, self.labels = prior.relabel(space), prior.space.coords.get("time")
        self.length = space.sizes["time"]
        self.operator, self.codomain = AtTimes(operator, space), operator.codomain

    def read(
        self, y: Any, batch_dim: str | None
    ) -> tuple[torch.Tensor, np.ndarray | None, np.ndarray | None]:
        """Observations ``(series, times, *codomain.shape)``, NaN where missing, and the labels of times and series."""
        labels = {str(k): np.asarray(v.values) for k, v in getattr(y, "coords", {}).items()}
        times = labels.get("time", _index(y) if batch_dim is None else None)
        if times is not None:
            _check_steps(times, self.labels)
        codomain = self.codomain
        length = _length(y, codomain, 0 if batch_dim is None else 1) if times is None else len(times)
        values = trajectory_space(codomain, length if times is None else times).tensor(
            y,
            argument="y",
            batch_dim=batch_dim,
            dtype=self.prior.dtype,
            device=self.prior.device,
            missing=True,
        )
        states = as_states(values if batch_dim else values[None], codomain)
        return states, times, None if batch_dim is None else labels.get(batch_dim)


def _window(prior: Prior, operator: Operator) -> _Window:
    """The prior and the operator on windows without labels, after checks."""
    length = getattr(getattr(prior, "space", None), "sizes", {}).get("time", 0)
    if not length:
        raise InputError(
            "prior",
            expected="a prior over windows, with a dim 'time'",
            got=getattr(prior, "space", type(prior).__name__),
            fix="train one on windows of Space({'time': L, ...})",
        )
    if prior.season is not None:
        raise InputError(
            "prior",
            expected="a law that is the same wherever the window begins",
            got="a prior with a season",
            fix="use forecast or impute, which keep its dates",
        )
    if not isinstance(operator, Operator):
        raise InputError(
            "operator",
            expected="an Operator on one state",
            got=type(operator).__name__,
            fix="wrap a function with operators.from_torch",
        )
    timed = "time" in operator.domain.dims
    space = operator.domain if timed else trajectory_space(operator.domain, length)
    if timed or space.shape != prior.space.shape or set(space.variables) != set(prior.space.variables):
        raise InputError(
            "operator",
            expected=f"an operator on one state of the prior's {prior.space}",
            got=f"one on {operator.domain}",
            fix="leave out the dim 'time': the operator is applied at every time",
        )
    return _Window(prior, operator, space)


def _length(y: Any, codomain: Space, lead: int) -> int:
    """The number of times of observations without labels."""
    sizes = getattr(y, "sizes", None)
    if sizes is not None and "time" in sizes:
        return int(sizes["time"])
    return max(int(np.prod(np.shape(y)[lead:], dtype=int)) // codomain.size, 1)


def _index(y: Any) -> np.ndarray | None:
    """The labels of the times of a pandas object; None of what is counted from 0."""
    index = getattr(y, "index", None)
    if index is None or callable(index) or type(index).__name__ in ("RangeIndex", "MultiIndex"):
        return None
    return np.asarray(index)


def _check_steps(times: np.ndarray, window: np.ndarray | None) -> None:
    """Labels of times increase by equal steps, those of the labels of a window."""
    if times.dtype.kind not in "iufM":
        raise InputError(
            "y",
            expected="numbers or dates as labels of 'time'",
            got=f"labels of dtype {times.dtype}",
            fix="convert them, or leave the labels out",
        )
    if len(times) < 2:
        return
    steps = np.diff(times)
    backwards = np.flatnonzero(steps <= np.zeros(1, steps.dtype))
    if len(backwards):
        raise InputError(
            "y",
            expected="times that increase",
            got=f"{times[backwards[0] + 1]} after {times[backwards[0]]}",
            fix="sort the data by time, and average what was observed at one time",
        )
    if not _even(times):
        widest, shortest = times[np.argmax(steps) + np.arange(2)], times[np.argmin(steps) + np.arange(2)]
        raise InputError(
            "y",
            expected="times at equal steps, those of the prior",
            got=f"{widest[0]} to {widest[1]} beside {shortest[0]} to {shortest[1]}",
            fix="reindex the data to every step, NaN where nothing was observed",
        )
    dates = times.dtype.kind == "M"
    if (
        window is None
        or len(window) < 2
        or window.dtype.kind not in "iufM"
        or (window.dtype.kind == "M") != dates
    ):
        return
    if not _even(window) or not _same_step(times, window):
        raise InputError(
            "y",
            expected=f"steps of the prior's windows, {window[1] - window[0]}",
            got=f"steps of {steps[0]}",
            fix="reindex the data to the prior's steps, NaN where nothing was observed, or take a prior of these",
        )


def _even(times: np.ndarray) -> bool:
    """Whether steps are equal but for the rounding of the labels, or calendar months or years."""
    if times.dtype.kind == "M":
        return bool(_calendar(times))
    steps = np.diff(times)
    return bool((np.abs(steps - steps.mean()) <= _rounding(times, steps)).all())


def _same_step(times: np.ndarray, window: np.ndarray) -> bool:
    """Whether two rows of labels, each with equal steps, have the same."""
    if times.dtype.kind == "M":
        return not _calendar(times).isdisjoint(_calendar(window))
    ours, theirs = np.diff(times), np.diff(window)
    return bool(abs(ours.mean() - theirs.mean()) <= _rounding(times, ours) + _rounding(window, theirs))


def _calendar(times: np.ndarray) -> set[np.timedelta64]:
    """The equal steps of dates: a length of time, a number of months, both (July, August, September) or none."""
    months = times.astype("datetime64[M]")
    spans = [times]
    # the same day and hour of every month, or the same before its end
    if len(np.unique(times - months)) == 1 or len(np.unique(months + 1 - times)) == 1:
        spans.append(months)
    steps = [np.unique(np.diff(span)) for span in spans]
    return {step[0] for step in steps if len(step) == 1}


def _rounding(times: np.ndarray, steps: np.ndarray) -> float:
    """How far steps of numbers may be from each other: rounding of the labels, in single precision at least."""
    eps = np.finfo(times.dtype).eps if times.dtype.kind == "f" else 0.0
    return float(4 * eps * np.abs(times).max() + 1e-6 * np.abs(steps).max())
