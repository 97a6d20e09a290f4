"""A Gaussian law of series on any times: ``x_v(t) ~ N(m_v(t), B_vw k(|t - s|))``, of which each set of times has a prior.

A window prior knows one regular axis; a process is laid on whatever times a series has, and is exact there. Several
variables share the kernel and are correlated by ``B``, the intrinsic coregionalisation of geostatistics (Goovaerts 1997,
"Geostatistics for natural resources evaluation", section 4.2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance import dense
from sciddiff.errors import InputError
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.spaces import Space

__all__ = ["GaussianProcess"]


@final
@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """A Gaussian process over time, for `forecast` and `impute` on irregular times.

    Args:
        kernel: ``k(h)`` of time differences, an array function; dates count days.
        variables: name or names, or name -> units, as in `Space`.
        mean: a number, one for each variable, or a function of the times ``(times,)`` (dates where they are dates)
            that returns ``(times,)``, or ``(variables, times)``.
        between: covariance ``B`` of several variables, ``(variables, variables)``; None: independent.
        dtype: of the states.

    Raises:
        InputError: on a ``between`` or mean of another shape.

    Example:
        >>> level = GaussianProcess(lambda h: 0.04 * np.exp(-h / 30), {"level": "m"}, mean=10.0)
        >>> level.at(np.array(["2001-01-01", "2001-01-20", "2001-03-05"], "datetime64[D]"))
        GaussianPrior(Space(level [m] on (time: 3)), sigma 0.002 to 25.5, float64)
    """

    kernel: Callable[[np.ndarray], np.ndarray]
    variables: str | Sequence[str] | Mapping[str, str | None] = "x"
    mean: Any = 0.0
    between: Any = None
    dtype: torch.dtype = field(default=torch.float64)

    def at(self, times: Any) -> GaussianPrior:
        """The prior on these times, dates or numbers, each once.

        Raises:
            InputError: on repeated times, or a kernel that is not positive semi-definite on them.
        """
        labels = np.asarray(times)
        space = Space({"time": labels}, self.variables)
        labels = space.coords["time"]
        days = labels
        if labels.dtype.kind == "M":
            days = (labels - labels[0]) / np.timedelta64(1, "D")
        k = np.asarray(self.kernel(np.abs(days[:, None] - days[None, :])))
        count = len(space.variables)
        between = np.eye(count) if self.between is None else np.asarray(self.between, dtype=float)
        if between.shape != (count, count):
            raise InputError(
                "between",
                expected=f"a covariance of {count} variables, shape ({count}, {count})",
                got=f"shape {between.shape}",
                fix="one row and one column for each of the variables",
            )
        return GaussianPrior(
            space, dense(np.kron(between, k), space.shape), self._mean(labels, space), dtype=self.dtype
        )

    def _mean(self, labels: np.ndarray, space: Space) -> np.ndarray:
        mean = np.asarray(self.mean(labels) if callable(self.mean) else self.mean, dtype=float)
        if not callable(self.mean) and mean.ndim == 1 and len(space.variables) > 1:
            mean = mean[:, None]
        try:
            return np.broadcast_to(mean, space.shape).copy()
        except ValueError as error:
            raise InputError(
                "mean",
                expected=f"a number, one for each variable, or a function of times that gives {space.shape}",
                got=f"shape {mean.shape}",
                fix="check the mean",
            ) from error
