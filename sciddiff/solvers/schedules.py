"""How the noise level falls: grids ``sigma_0 = sigma_max > ... > sigma_{n-1} = sigma_min > sigma_n = 0``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np

from sciddiff.errors import InputError

__all__ = ["Exponential", "Karras", "Schedule"]


class Schedule(ABC):
    """A family of grids of noise levels."""

    @abstractmethod
    def levels(self, u: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
        """Noise levels at ``u`` in [0, 1]: ``sigma_max`` at 0 and ``sigma_min`` at 1, falling."""

    def sigmas(self, steps: int, sigma_min: float, sigma_max: float) -> list[float]:
        """The grid of ``steps`` levels and a final 0, ``steps + 1`` numbers.

        Raises:
            InputError: on fewer than 2 steps.
        """
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 2:
            raise InputError(
                "steps",
                expected="an int of at least 2",
                got=repr(steps),
                fix="more steps are more exact; 32 is a good start",
            )
        return [*self.levels(np.linspace(0.0, 1.0, int(steps)), sigma_min, sigma_max).tolist(), 0.0]


@final
@dataclass(frozen=True)
class Karras(Schedule):
    """``sigma^(1/rho)`` falls linearly (Karras et al. 2022, eq. 5).

    Example:
        >>> [round(s, 3) for s in Karras().sigmas(3, 0.01, 10.0)]
        [10.0, 0.931, 0.01, 0.0]
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
