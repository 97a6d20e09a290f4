"""Series that a prior makes up, and how good they are to train a forecaster on.

The Linear Predictive Score of TSDiff (Kollovieh et al. 2023, arXiv 2307.11494, section 3.3) fits a ridge regression from context
to horizon, ``B = argmin |Y - X B|^2 + a |B|^2``, on windows that were made up, and scores it on real ones. The authors take
``a = 1`` on scaled windows, and the weighted quantile loss of the point forecast, which is its sum of
absolute errors over the sum of absolute values; the scores here are others, and not comparable with theirs. Windows of the same law
as the real ones give the score that as many real ones would; a law without their dependence in time gives a worse one.
It sees second moments alone: any law with the right means and covariances passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from sciddiff.diagnostics import crps_normal
from sciddiff.errors import InputError
from sciddiff.posterior import check_count
from sciddiff.solvers import Solver

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors.base import Prior

__all__ = ["PredictiveScore", "linear_predictive_score", "synthesise"]


@final
@dataclass(frozen=True)
class PredictiveScore:
    """Scores on real windows of a ridge regression trained on others; lower is better.

    Attributes:
        crps: mean CRPS of its normal predictive law, with the residual sd of each lead in training, in the data's units.
        mae: mean absolute error of its point forecast, which is the CRPS of a forecast without spread, in the data's units;
            the authors divide it by the mean absolute value of the data.
    """

    crps: float
    mae: float


def synthesise(
    prior: Prior, n: int, *, seed: int, solver: Solver | None = None, steps: int | None = None
) -> xr.Dataset:
    """Draw n windows of a prior: ``prior.sample`` under the name that the literature gives it.

    Raises:
        InputError: as `Prior.sample` does.

    Example:
        >>> import sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"time": 5}), sd.covariance.white((5,)))
        >>> synthesise(prior, 3, seed=0)["x"].dims
        ('sample', 'time')
    """
    return prior.sample(n, seed=seed, solver=solver, steps=steps)


def linear_predictive_score(
    synthetic: Any, real: Any, *, horizon: int, ridge: float = 1e-3
) -> PredictiveScore:
    """Train a ridge regression on windows that were made up, and score it on real ones.

    Args:
        synthetic: windows ``(n, ..., length)``, time last: a DataArray or an array; other dims are taken as further values
            of one time's state.
        real: windows of the same shape.
        horizon: how many of the last times are forecast from the others.
        ridge: ``a``, in units of n times the mean variance of the context, so that it means the same at any n and scale.

    Raises:
        InputError: on NaN, shapes that differ, a horizon that leaves no context, fewer windows than a context has values, or
            windows that do not determine the regression: constant ones, and without a ridge those of dependent context values.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> walk = lambda n: rng.standard_normal((n, 12)).cumsum(1)
        >>> same = linear_predictive_score(walk(500), walk(500), horizon=3)
        >>> other = linear_predictive_score(rng.standard_normal((500, 12)), walk(500), horizon=3)
        >>> same.crps < other.crps
        True
    """
    train, test = _windows("synthetic", synthetic), _windows("real", real)
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            "synthetic",
            expected=f"windows of shape {test.shape[1:]}",
            got=train.shape[1:],
            fix="cut them alike",
        )
    length = train.shape[-1]
    if check_count("horizon", horizon) >= length:
        raise InputError(
            "horizon",
            expected=f"less than the {length} times of a window",
            got=horizon,
            fix="leave a context",
        )
    if isinstance(ridge, bool) or not (isinstance(ridge, (int, float)) and 0 <= ridge < math.inf):
        raise InputError("ridge", expected="a number of at least 0", got=repr(ridge), fix="leave it out")
    (x, y), (u, v) = (_split(w, horizon) for w in (train, test))
    if len(x) <= x.shape[1] + 1:
        raise InputError(
            "synthetic",
            expected=f"more than the {x.shape[1] + 1} coefficients of a value",
            got=f"{len(x)} windows",
            fix="draw more",
        )
    if not np.ptp(x, 0).any() or not np.ptp(y, 0).all():
        raise InputError(
            "synthetic",
            expected="windows that differ in their context and in every value that is forecast",
            got="constant values",
            fix="leave those out",
        )
    centre, level = x.mean(0), y.mean(0)
    gram = (x - centre).T @ (x - centre)
    penalty = ridge * np.trace(gram) / len(gram)
    coefficients = _solved(gram + penalty * np.eye(len(gram)), (x - centre).T @ (y - level))
    residual = y - level - (x - centre) @ coefficients
    spread = np.sqrt((residual**2).sum(0) / (len(x) - x.shape[1] - 1))
    mean = level + (u - centre) @ coefficients
    return PredictiveScore(
        float(np.asarray(crps_normal(mean, spread, v)).mean()), float(np.abs(v - mean).mean())
    )


def _solved(gram: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The coefficients, where the context determines them."""
    size = np.sqrt(np.diag(gram))
    most = 1 / (len(gram) * np.finfo(gram.dtype).eps)
    if not (size > 0).all() or np.linalg.cond(gram / np.outer(size, size)) > most:
        raise InputError(
            "synthetic",
            expected="windows whose context varies in every direction, or a ridge",
            got=f"a covariance of {len(gram)} context values that is singular",
            fix="leave out constant values and copies of others, or give a ridge above 0",
        )
    return np.linalg.solve(gram, moments)


def _windows(name: str, values: Any) -> np.ndarray:
    array = np.asarray(getattr(values, "values", values), dtype=np.float64)
    if array.ndim < 2 or len(array) == 0 or not np.isfinite(array).all():
        raise InputError(
            name,
            expected="finite windows (n, ..., length)",
            got=f"shape {array.shape}" if np.isfinite(array).all() else "NaN or infinity",
            fix="put the windows first and time last, and leave out those with gaps",
        )
    return array


def _split(windows: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Context and horizon, each flattened to one row a window."""
    return (
        windows[..., :-horizon].reshape(len(windows), -1),
        windows[..., -horizon:].reshape(len(windows), -1),
    )
