"""A prior of series in units of their own past, in the units of one series.

Where a prior is trained on windows ``z = (x - m)/s``, with m and s the mean and standard deviation of what stands at the
window's start, the context, it knows no units. For a series whose context is ``c`` its law is that of ``m(c) + s(c) z``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.assimilation.baselines import one_variable
from sciddiff.assimilation.series import read_series, read_times
from sciddiff.assimilation.steps import following
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation
from sciddiff.spaces import Space

if TYPE_CHECKING:
    from sciddiff.priors import Prior

__all__ = ["scaled_to"]


def scaled_to(prior: Prior, context: Any) -> Prior:
    """The prior of windows in units of their context, in the units of a series and on its dates.

    Args:
        prior: of one variable over unlabelled steps "time", trained on windows less the mean and over the standard
            deviation of as many first values as ``context`` has.
        context: the series' last values: one variable, as in `forecast`, on regular times; NaN are gaps.

    Returns:
        The prior over the times of the context and those that follow, to be used with `forecast`.

    Raises:
        InputError: on a prior of another form, or a context that is longer than its window or does not vary.

    Example:
        >>> import pandas as pd, sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"time": 9}, ["z"]), sd.covariance.white((9,)))
        >>> past = pd.Series([280.0, 284.0, 282.0], pd.date_range("2001-01", periods=3, freq="MS"), name="t")
        >>> sd.forecast(scaled_to(prior, past), past, horizon=6, samples=5, seed=0)["t"].shape
        (5, 6)
    """
    if len(prior.space.variables) != 1 or tuple(prior.space.sizes) != ("time",):
        raise InputError(
            "prior", expected="one variable over a dim 'time'", got=prior.space, fix="train on such windows"
        )
    times, length = read_times(context, "context"), prior.space.sizes["time"]
    name, units = one_variable(context, "context")
    read = read_series(context, Space({"time": len(times)}, {name: None}), "context")
    values = read.values.numpy()
    mean, spread = float(np.nanmean(values)), float(np.nanstd(values))
    if not (len(times) < length and spread > 0):
        raise InputError(
            "context",
            expected=f"fewer than {length} values, not all of them the same",
            got=f"{len(times)} with standard deviation {spread:.3g}",
            fix="pass as many of the last values as the prior was trained to take for its context",
        )
    labels = np.concatenate([times, following(times, length - len(times))])
    moved = prior.relabel(Space({"time": labels}, {name: units}))
    law = prior.normalisation
    moved.normalisation = Normalisation(torch.as_tensor(mean) + spread * law.mean, spread * law.scale)
    return moved
