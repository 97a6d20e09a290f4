"""How the noise level falls: grids ``sigma_0 = sigma_max > ... > sigma_{n-1} = sigma_min > sigma_n = 0``.

Every Gaussian path ``x_t = alpha_t x0 + sigma_t n`` is the path of this library after dividing by ``alpha_t``;
what is left of it is how its time is cut: uniformly in t, at ``s(t) = sigma_t / alpha_t``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.priors import paths

__all__ = ["VP", "AlongPath", "Cosine", "Exponential", "Flow", "Karras", "Schedule"]


class Schedule(ABC):
    """A family of grids of noise levels."""

    @abstractmethod
    def levels(self, u: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
        """Noise levels at ``u`` in [0, 1]: ``sigma_max`` at 0 and ``sigma_min`` at 1, falling."""

    def sigmas(self, steps: int, sigma_min: float, sigma_max: float) -> list[float]:
        """The grid of ``steps`` levels and a final 0, ``steps + 1`` numbers; both ends are exact.

        Raises:
            InputError: on fewer than 2 steps, or unless ``0 < sigma_min < sigma_max < inf``.
        """
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 2:
            raise InputError(
                "steps",
                expected="an int of at least 2",
                got=repr(steps),
                fix="more steps are more exact; 32 is a good start",
            )
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InputError(
                "sigma_min",
                expected="0 < sigma_min < sigma_max < inf",
                got=f"sigma_min = {sigma_min}, sigma_max = {sigma_max}",
                fix="take those of the prior",
            )
        inner = self.levels(np.linspace(0.0, 1.0, int(steps)), sigma_min, sigma_max)[1:-1]
        return [float(sigma_max), *inner.tolist(), float(sigma_min), 0.0]


@final
@dataclass(frozen=True)
class Karras(Schedule):
    """``sigma^(1/rho)`` falls linearly (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Example:
        >>> [round(s, 3) for s in Karras().sigmas(3, 0.01, 10.0)]
        [10.0, 0.718, 0.01, 0.0]
    """

    rho: float = 7.0

    def levels(self, u: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
        """``(sigma_max^(1/rho) (1 - u) + sigma_min^(1/rho) u)^rho``."""
        return np.asarray(
            (sigma_max ** (1 / self.rho) * (1 - u) + sigma_min ** (1 / self.rho) * u) ** self.rho
        )


@final
@dataclass(frozen=True)
class Exponential(Schedule):
    """``log sigma`` falls linearly.

    Example:
        >>> [round(s, 3) for s in Exponential().sigmas(3, 0.01, 10.0)]
        [10.0, 0.316, 0.01, 0.0]
    """

    def levels(self, u: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
        """``sigma_max^(1-u) sigma_min^u``."""
        return np.asarray(sigma_max ** (1 - u) * sigma_min**u)


class AlongPath(Schedule):
    """The grid that is uniform in the time t of a Gaussian path, from ``t(sigma_max)`` to ``t(sigma_min)``.

    A sigma_max above the path's level at t = 1 continues the same formula.
    """

    @property
    @abstractmethod
    def path(self) -> paths.Path:
        """The path, with the closed form of its time."""

    def levels(self, u: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
        """``s((1 - u) t(sigma_max) + u t(sigma_min))``."""
        first, last = self.path.inverse(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
        t = torch.lerp(first, last, torch.from_numpy(u))
        return np.asarray(self.path.ratio(t))


@final
@dataclass(frozen=True)
class VP(AlongPath):
    """Uniform in the time of the variance-preserving path (Song et al. 2021, arXiv 2011.13456, eq. 33).

    Raises:
        InputError: unless ``0 < beta_min <= beta_max``.

    Example:
        >>> [round(s, 3) for s in VP().sigmas(3, 0.01, 152.0)]
        [152.0, 3.42, 0.01, 0.0]
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        paths.VP(self.beta_min, self.beta_max)

    @property
    def path(self) -> paths.Path:
        """``s^2 = exp(beta_min t + (beta_max - beta_min) t^2/2) - 1``."""
        return paths.VP(self.beta_min, self.beta_max)


@final
@dataclass(frozen=True)
class Cosine(AlongPath):
    """Uniform in the time of the cosine path (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17).

    Raises:
        InputError: on an offset outside [0, 1).

    Example:
        >>> [round(s, 3) for s in Cosine(offset=0.0).sigmas(3, 0.01, 100.0)]
        [100.0, 1.0, 0.01, 0.0]
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        paths.Cosine(self.offset)

    @property
    def path(self) -> paths.Path:
        """``s = tan(pi t/2)`` at offset 0."""
        return paths.Cosine(self.offset)


@final
@dataclass(frozen=True)
class Flow(AlongPath):
    """Uniform in the time of the straight path of flow matching (Lipman et al. 2022, arXiv 2210.02747).

    Example:
        >>> [round(s, 3) for s in Flow().sigmas(3, 0.01, 100.0)]
        [100.0, 1.0, 0.01, 0.0]
    """

    @property
    def path(self) -> paths.Path:
        """``s = t/(1 - t)``."""
        return paths.Flow()
