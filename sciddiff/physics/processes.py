"""Stationary Gaussian processes in time, exact at any times: Ornstein-Uhlenbeck, Matern, and ARMA in discrete time.

Each is the first entry of a linear state ``s`` that is Markov,

    s(t + h) = A(h) s(t) + N(0, P - A(h) P A(h)^T),    s ~ N(0, P) at every time,

from which follow its kernel ``k(h) = (A(|h|) P)_00``, draws in O(L) at any times, and what a Kalman filter needs. The
kernel makes a prior of it: ``GaussianPrior(space, process.covariance(times))``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance import Covariance
from sciddiff.covariance import kernel as covariance_of_kernel
from sciddiff.errors import InputError
from sciddiff.physics.systems import check_positive
from sciddiff.random import Streams

__all__ = ["ARMA", "Matern", "OrnsteinUhlenbeck", "Process"]


class Process(ABC):
    """A stationary Gaussian process with mean zero, as the first entry of a Markov state of ``order`` entries."""

    @abstractmethod
    def kernel(self, lag: np.ndarray) -> np.ndarray:
        """``Cov(x(t), x(t + lag))``, of the shape of ``lag``, whose sign does not count."""

    @abstractmethod
    def stationary(self) -> np.ndarray:
        """``P``, the covariance ``(order, order)`` of the Markov state."""

    @abstractmethod
    def propagator(self, lag: float) -> np.ndarray:
        """``A(lag)``, ``(order, order)``, for ``lag >= 0``."""

    def transition(self, lag: float) -> tuple[np.ndarray, np.ndarray]:
        """``A(lag)`` and the covariance ``Q(lag) = P - A P A^T`` of what is new, for a Kalman filter.

        Example:
            >>> a, q = OrnsteinUhlenbeck(rate=1.0, sd=2.0).transition(math.log(2.0))
            >>> a.tolist(), q.tolist()
            ([[0.5]], [[3.0]])
        """
        a, p = self.propagator(lag), self.stationary()
        return a, p - a @ p @ a.T

    def covariance(self, times: Any) -> Covariance:
        """The covariance at ``times`` (numbers, or dates, which count days), for a `GaussianPrior`.

        Raises:
            InputError: on times that are not 1-D and finite, or over 8192 of them.
        """
        return covariance_of_kernel(self.kernel, _times(times, increasing=False))

    def simulate(
        self, times: int | Any, streams: Streams, *, dtype: torch.dtype = torch.float64
    ) -> torch.Tensor:
        """Exact draws at ``times``, one row per stream.

        Args:
            times: increasing numbers, or dates, which count days; an int n stands for 0, 1, ..., n - 1.
            streams: one per draw.
            dtype: of the result.

        Returns:
            ``(draws, times)``.

        Raises:
            InputError: on times that do not increase.

        Example:
            >>> streams = Streams(0, range(3), purpose="example")
            >>> OrnsteinUhlenbeck(rate=0.5).simulate([0.0, 0.1, 5.0], streams).shape
            torch.Size([3, 3])
        """
        t = _times(times, increasing=True)
        lags = _grouped(t)
        p = self.stationary()
        z = streams.normal((len(t), len(p)), dtype=torch.float64)
        steps = {lag: self._step(lag) for lag in np.unique(lags).tolist()}
        state = z[:, 0] @ _root(p).T
        out = [state[:, 0]]
        for k, lag in enumerate(lags.tolist(), 1):
            a, root = steps[lag]
            state = state @ a.T + z[:, k] @ root.T
            out.append(state[:, 0])
        return torch.stack(out, 1).to(dtype)

    def _step(self, lag: float) -> tuple[torch.Tensor, torch.Tensor]:
        a, q = self.transition(lag)
        return torch.from_numpy(a), _root(q)


@final
@dataclass(frozen=True)
class OrnsteinUhlenbeck(Process):
    """``dx = -rate x dt + sd sqrt(2 rate) dW``, whose kernel is ``sd^2 exp(-rate |h|)``.

    Args:
        rate: of the return to the mean, in 1 over the units of time.
        sd: stationary standard deviation, in the units of x.

    Example:
        >>> OrnsteinUhlenbeck(rate=2.0, sd=3.0).kernel(np.array([0.0, 0.5])).round(4).tolist()
        [9.0, 3.3109]
    """

    rate: float
    sd: float = 1.0

    def __post_init__(self) -> None:
        check_positive(rate=self.rate, sd=self.sd)

    def kernel(self, lag: np.ndarray) -> np.ndarray:
        """``sd^2 exp(-rate |lag|)``."""
        return np.asarray(self.sd**2 * np.exp(-self.rate * np.abs(lag)))

    def stationary(self) -> np.ndarray:
        """``sd^2``, ``(1, 1)``."""
        return np.array([[self.sd**2]])

    def propagator(self, lag: float) -> np.ndarray:
        """``exp(-rate lag)``, ``(1, 1)``."""
        return np.array([[math.exp(-self.rate * lag)]])


@final
@dataclass(frozen=True)
class Matern(Process):
    """The Matern process of smoothness 1/2, 3/2 or 5/2; it has ``nu - 1/2`` derivatives.

    Rasmussen and Williams 2006, "Gaussian processes for machine learning", equations 4.16 and 4.17, for the kernels;
    Hartikainen and Särkkä 2010, "Kalman filtering and smoothing solutions to temporal Gaussian process regression
    models", section 3.1, for the Markov state, which holds x and its derivatives.

    Args:
        nu: 0.5, 1.5 or 2.5.
        length: length scale, in the units of time.
        sd: standard deviation, in the units of x.

    Example:
        >>> Matern(nu=1.5, length=2.0).kernel(np.array([0.0, 2.0])).round(4).tolist()
        [1.0, 0.4834]
    """

    nu: float
    length: float
    sd: float = 1.0

    def __post_init__(self) -> None:
        check_positive(length=self.length, sd=self.sd)
        if self.nu not in (0.5, 1.5, 2.5):
            raise InputError(
                "nu",
                expected="0.5, 1.5 or 2.5",
                got=repr(self.nu),
                fix="take the nearest; others are not Markov in a few derivatives",
            )

    @property
    def rate(self) -> float:
        """``sqrt(2 nu) / length``, the rate at which the kernel decays."""
        return math.sqrt(2 * self.nu) / self.length

    def kernel(self, lag: np.ndarray) -> np.ndarray:
        """``sd^2`` times a polynomial in ``rate |lag|`` times ``exp(-rate |lag|)``."""
        r = self.rate * np.abs(lag)
        shape = {0.5: 1.0, 1.5: 1.0 + r, 2.5: 1.0 + r + r**2 / 3}[self.nu]
        return np.asarray(self.sd**2 * shape * np.exp(-r))

    def stationary(self) -> np.ndarray:
        """Covariance of x and its derivatives: of ``x^(i)`` and ``x^(j)``, ``(-1)^i k^(i+j)(0)``."""
        s, v = self.rate, self.sd**2
        if self.nu == 0.5:
            return np.array([[v]])
        if self.nu == 1.5:
            return np.diag([v, v * s**2])
        slope = v * s**2 / 3
        return np.array([[v, 0.0, -slope], [0.0, slope, 0.0], [-slope, 0.0, v * s**4]])

    def propagator(self, lag: float) -> np.ndarray:
        """``exp(F lag)`` of ``(d/dt + rate)^order x = white noise``, a polynomial times ``exp(-rate lag)``."""
        order = round(self.nu + 0.5)
        drift = np.diag(np.ones(order - 1), 1)
        drift[-1] = [-math.comb(order, i) * self.rate ** (order - i) for i in range(order)]
        # F + rate I is nilpotent, so its exponential ends after `order` terms
        shifted = (drift + self.rate * np.eye(order)) * lag
        terms = [np.linalg.matrix_power(shifted, i) / math.factorial(i) for i in range(order)]
        return np.asarray(math.exp(-self.rate * lag) * sum(terms))


@final
@dataclass(frozen=True)
class ARMA(Process):
    """``x_t = sum_i ar_i x_{t-i} + e_t + sum_j ma_j e_{t-j}``, ``e_t ~ N(0, sd^2)``, at whole times.

    Args:
        ar: coefficients of the past values; the process has to be stationary.
        ma: coefficients of the past innovations.
        sd: standard deviation of the innovations.

    Raises:
        InputError: if it is not stationary; in its methods, on lags that are not whole.

    Example:
        >>> ARMA(ar=(0.5,)).kernel(np.array([0, 1, 2])).round(4).tolist()
        [1.3333, 0.6667, 0.3333]
    """

    ar: tuple[float, ...] = ()
    ma: tuple[float, ...] = ()
    sd: float = 1.0

    def __post_init__(self) -> None:
        check_positive(sd=self.sd)
        for name, row in (("ar", self.ar), ("ma", self.ma)):
            if not isinstance(row, Sequence) or not all(
                isinstance(v, (int, float)) and math.isfinite(v) for v in row
            ):
                raise InputError(
                    name, expected="a tuple of finite numbers", got=repr(row), fix="write ar=(0.5,)"
                )
        radius = max(np.abs(np.linalg.eigvals(self._companion())), default=0.0)
        if radius >= 1:
            raise InputError(
                "ar",
                expected="a stationary process: all roots of 1 - ar_1 z - ar_2 z^2 - ... outside the unit circle",
                got=f"{self.ar}, with a root at distance {1 / radius:.4g}",
                fix="take differences of the series first, or other coefficients",
            )

    def kernel(self, lag: np.ndarray) -> np.ndarray:
        """``(A^lag P)_00``, from the powers of the companion matrix."""
        whole = np.abs(_whole(lag))
        column, values = self.stationary()[:, 0], np.empty(int(whole.max(initial=0)) + 1)
        for i in range(len(values)):
            values[i] = column[0]
            column = self._companion() @ column
        return np.asarray(values[whole])

    def stationary(self) -> np.ndarray:
        """The solution of ``P = A P A^T + sd^2 R R^T`` with ``R = (1, ma)``."""
        return _lyapunov(self.ar, self.ma, self.sd).copy()

    def propagator(self, lag: float) -> np.ndarray:
        """The companion matrix to the power of ``lag``."""
        return np.asarray(np.linalg.matrix_power(self._companion(), int(_whole(np.array(lag)))))

    def _companion(self) -> np.ndarray:
        return _companion(self.ar, self.ma)


def _companion(ar: tuple[float, ...], ma: tuple[float, ...]) -> np.ndarray:
    """The transition of Harvey's state (1989, "Forecasting, structural time series models and the Kalman filter", 3.3)."""
    order = max(len(ar), len(ma) + 1)
    matrix = np.diag(np.ones(order - 1), 1)
    matrix[: len(ar), 0] = ar
    return matrix


@lru_cache(maxsize=64)
def _lyapunov(ar: tuple[float, ...], ma: tuple[float, ...], sd: float) -> np.ndarray:
    from scipy.linalg import solve_discrete_lyapunov

    matrix = _companion(ar, ma)
    news = np.zeros(len(matrix))
    news[: len(ma) + 1] = [1.0, *ma]
    return np.asarray(solve_discrete_lyapunov(matrix, sd**2 * np.outer(news, news)))


def _whole(lag: np.ndarray) -> np.ndarray:
    whole = np.rint(lag)
    if np.abs(lag - whole).max(initial=0.0) > 1e-9:
        raise InputError(
            "times",
            expected="whole numbers of steps apart",
            got=f"a lag of {np.ravel(lag)[np.argmax(np.abs(lag - whole))]:g}",
            fix="count time in steps of the process",
        )
    return np.asarray(whole.astype(int))


def _times(times: Any, *, increasing: bool) -> np.ndarray:
    """1-D float64 times; dates become days since the first."""
    if isinstance(times, (int, np.integer)) and not isinstance(times, bool) and times > 0:
        return np.arange(float(times))
    t = np.asarray(times)
    if t.ndim != 1 or t.size == 0 or t.dtype.kind not in "iufM" or not np.isfinite(t).all():
        raise InputError(
            "times",
            expected="a number of steps, or 1-D times, finite numbers or dates",
            got=f"shape {t.shape} of dtype {t.dtype}",
            fix="pass one time per value",
        )
    t = (t - t[0]) / np.timedelta64(1, "D") if t.dtype.kind == "M" else t.astype(np.float64)
    if increasing and (np.diff(t) <= 0).any():
        raise InputError(
            "times", expected="increasing times", got="others", fix="sort them and drop duplicates"
        )
    return np.asarray(t)


def _grouped(times: np.ndarray) -> np.ndarray:
    """Steps between times; those that agree but for rounding of the times are one, and share one transition."""
    steps = np.diff(times)
    if len(steps) == 0:
        return steps
    order = np.argsort(steps)
    rounding = 4 * np.finfo(times.dtype).eps * max(np.abs(times).max(), steps.max())
    # a group begins where a step is above the least of the one before, by more than rounding
    ordered, first = steps[order], [0]
    while first[-1] < len(ordered):
        first.append(int(np.searchsorted(ordered, ordered[first[-1]] + rounding, side="right")))
    sizes = np.diff(first)
    means = np.add.reduceat(ordered, first[:-1]) / sizes
    out = np.empty_like(steps)
    out[order] = np.repeat(means, sizes)
    return out


def _root(matrix: np.ndarray) -> torch.Tensor:
    """A root ``R R^T`` of a positive semi-definite matrix.

    Over a short lag, what is new in a smooth process is smaller than the rounding of ``P - A P A^T``; those
    eigenvalues may come out negative, by at most 1e-15 of the variance, and count as zero.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return torch.from_numpy(vectors * np.sqrt(values.clip(min=0.0)))
