"""Paths ``x_t = alpha(t) x0 + sigma(t) n`` that networks are trained on elsewhere, and what they predict.

Divided by alpha, every such path is the library's one coordinate: ``z = x_t / alpha(t)`` is ``x0`` under noise
of level ``s(t) = sigma(t) / alpha(t)``, the noise-to-signal ratio. A path is therefore a change of
variable, ``t(s)``, and a prediction is a linear change of what the network returns:

    D(z, s) = a(t) z + b(t) F(alpha(t) z, t)        (`coefficients`)

Time runs from data, ``t = 0``, to noise, ``t = 1``. Everything here is computed in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciddiff.errors import InputError

__all__ = ["PREDICTIONS", "VE", "VP", "Cosine", "Flow", "Path", "SubVP", "coefficients", "path"]

PREDICTIONS = ("noise", "x0", "velocity", "score", "v")


@dataclass(frozen=True)
class Path(ABC):
    """A path from data to noise: two functions of time on [0, 1], whose ratio ``s`` rises.

    Times and levels are float64 tensors of any shape. One of your own needs `alpha`, `sigma` and their
    derivatives; `inverse` is found by bisection unless it is overridden.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """How much of the data is left."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """How much noise there is."""

    @abstractmethod
    def alpha_prime(self, t: Tensor) -> Tensor:
        """``d alpha / dt``."""

    @abstractmethod
    def sigma_prime(self, t: Tensor) -> Tensor:
        """``d sigma / dt``."""

    def ratio(self, t: Tensor) -> Tensor:
        """The noise level ``s(t) = sigma / alpha``."""
        return self.sigma(t) / self.alpha(t)

    def inverse(self, s: Tensor) -> Tensor:
        """``t(s)`` for levels inside the path's range, by bisection to the last bit but few."""
        low, high = torch.zeros_like(s), torch.ones_like(s)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.ratio(middle) < s
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def time(self, s: Tensor) -> Tensor:
        """``t(s)``: when the noise-to-signal ratio is ``s``.

        Raises:
            InputError: if the path never has this level.
        """
        s = s.double()
        low, high = self.levels
        # half a millionth lets the two ends through, whose level may be rounded on the way
        if not bool(((s >= low * (1 - 5e-7)) & (s <= high * (1 + 5e-7))).all()):
            raise InputError(
                "sigma",
                expected=f"noise levels from {low:.4g} to {high:.4g}, those of {self}",
                got=f"{float(s.min()):.4g} to {float(s.max()):.4g}",
                fix="choose sigma_min and sigma_max inside them",
            )
        return self.inverse(s)

    @property
    def levels(self) -> tuple[float, float]:
        """The noise levels at times 0 and 1; the latter may be infinite."""
        low, high = self.ratio(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return low, high


@final
@dataclass(frozen=True)
class VP(Path):
    """Variance preserving with linear beta (Song et al. 2021, arXiv 2011.13456, eq. 33; DDPM's limit).

    With ``B(t) = beta_min t + (beta_max - beta_min) t^2 / 2``: ``alpha = exp(-B/2)``, ``alpha^2 + sigma^2 = 1``.

    Example:
        >>> VP().time(torch.tensor([1.0])).item()
        0.258...
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _rising("beta_min", self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        """``exp(-B/2)``."""
        return torch.exp(-0.5 * _integral(self, t))

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - exp(-B))``."""
        return torch.sqrt(-torch.expm1(-_integral(self, t)))

    def alpha_prime(self, t: Tensor) -> Tensor:
        """``-beta alpha / 2``."""
        return -0.5 * _beta(self, t) * self.alpha(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        """``beta alpha^2 / (2 sigma)``."""
        return 0.5 * _beta(self, t) * self.alpha(t) ** 2 / self.sigma(t)

    def ratio(self, t: Tensor) -> Tensor:
        """``sqrt(exp(B) - 1)``."""
        return torch.sqrt(torch.expm1(_integral(self, t)))

    def inverse(self, s: Tensor) -> Tensor:
        """The root of ``B(t) = log(1 + s^2)``."""
        return _root(self, torch.log1p(s**2))


@final
@dataclass(frozen=True)
class SubVP(Path):
    """Sub-VP (Song et al. 2021, eq. 35): VP's alpha, with ``sigma = 1 - exp(-B)``, so ``s = 2 sinh(B/2)``.

    Example:
        >>> bool(SubVP().sigma(torch.tensor(0.5)) < VP().sigma(torch.tensor(0.5)))
        True
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _rising("beta_min", self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        """``exp(-B/2)``."""
        return torch.exp(-0.5 * _integral(self, t))

    def sigma(self, t: Tensor) -> Tensor:
        """``1 - exp(-B)``."""
        return -torch.expm1(-_integral(self, t))

    def alpha_prime(self, t: Tensor) -> Tensor:
        """``-beta alpha / 2``."""
        return -0.5 * _beta(self, t) * self.alpha(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        """``beta exp(-B)``."""
        return _beta(self, t) * torch.exp(-_integral(self, t))

    def ratio(self, t: Tensor) -> Tensor:
        """``2 sinh(B/2)``."""
        return 2 * torch.sinh(0.5 * _integral(self, t))

    def inverse(self, s: Tensor) -> Tensor:
        """The root of ``B(t) = 2 asinh(s/2)``."""
        return _root(self, 2 * torch.asinh(s / 2))


@final
@dataclass(frozen=True)
class VE(Path):
    """Variance exploding (Song et al. 2021, eq. 31): ``alpha = 1``, ``sigma`` rises geometrically.

    A network that takes sigma itself, as EDM's do, is told so by ``time=VE(...).sigma``.

    Example:
        >>> VE(0.01, 100.0).sigma(torch.tensor(0.5)).item()
        1.0
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _rising("sigma_min", self.sigma_min, self.sigma_max, strictly=True)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """``sigma_min (sigma_max / sigma_min)^t``."""
        return self.sigma_min * torch.exp(t * self.span)

    def alpha_prime(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        """``sigma log(sigma_max / sigma_min)``."""
        return self.sigma(t) * self.span

    def inverse(self, s: Tensor) -> Tensor:
        """``log(s / sigma_min) / log(sigma_max / sigma_min)``."""
        return torch.log(s / self.sigma_min) / self.span

    @property
    def span(self) -> float:
        """``log(sigma_max / sigma_min)``."""
        return math.log(self.sigma_max / self.sigma_min)


@final
@dataclass(frozen=True)
class Cosine(Path):
    """Cosine path (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17), variance preserving.

    ``alpha = cos f / cos f0`` with ``f = (t + offset)/(1 + offset) pi/2`` and ``f0 = f(0)``;
    ``offset=0`` gives ``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``.

    Example:
        >>> round(Cosine(offset=0.0).time(torch.tensor(1.0)).item(), 12)
        0.5
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.offset < 1:
            raise InputError("offset", expected="a number in [0, 1)", got=self.offset, fix="0.008 is usual")

    def alpha(self, t: Tensor) -> Tensor:
        """``cos f / cos f0``."""
        return torch.cos(self.angle(t)) / math.cos(self.start)

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - alpha^2)``, as ``sqrt(sin(f - f0) sin(f + f0)) / cos f0``."""
        f = self.angle(t)
        # time 0 may come out of `inverse` as -1e-17
        square = torch.sin(f - self.start) * torch.sin(f + self.start)
        return torch.sqrt(square.clamp(min=0.0)) / math.cos(self.start)

    def alpha_prime(self, t: Tensor) -> Tensor:
        """``-f' sin f / cos f0``."""
        return -self.speed * torch.sin(self.angle(t)) / math.cos(self.start)

    def sigma_prime(self, t: Tensor) -> Tensor:
        """``-alpha alpha' / sigma``."""
        return -self.alpha(t) * self.alpha_prime(t) / self.sigma(t)

    def inverse(self, s: Tensor) -> Tensor:
        """From ``tan f = sqrt(s^2 + sin^2 f0) / cos f0``."""
        f = torch.atan2(
            torch.sqrt(s**2 + math.sin(self.start) ** 2), torch.full_like(s, math.cos(self.start))
        )
        return (f - self.start) / self.speed

    def angle(self, t: Tensor) -> Tensor:
        """``f``."""
        return self.start + self.speed * t

    @property
    def start(self) -> float:
        """``f0``."""
        return self.offset * self.speed

    @property
    def speed(self) -> float:
        """``f'``."""
        return 0.5 * math.pi / (1 + self.offset)


@final
@dataclass(frozen=True)
class Flow(Path):
    """The straight path of rectified flow and flow matching: ``x_t = (1 - t) x0 + t n``, velocity ``n - x0``.

    (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747, with the time reversed.) For a
    network whose time runs the other way, ``t = 1`` at the data, pass ``time=lambda t: 1 - t`` and change its sign.

    Example:
        >>> Flow().time(torch.tensor(3.0)).item()
        0.75
    """

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t

    def alpha_prime(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def inverse(self, s: Tensor) -> Tensor:
        """``s / (1 + s)``."""
        return s / (1 + s)


def path(name: str | Path) -> Path:
    """The path called "vp", "subvp", "ve", "cosine" or "flow" with its usual constants; a `Path` as it is.

    Raises:
        InputError: no path has this name.

    Example:
        >>> path("vp")
        VP(beta_min=0.1, beta_max=20.0)
    """
    if isinstance(name, Path):
        return name
    known: dict[str, type[Path]] = {"vp": VP, "subvp": SubVP, "ve": VE, "cosine": Cosine, "flow": Flow}
    if name not in known:
        raise InputError(
            "path",
            expected=f"one of {', '.join(map(repr, known))}, or a Path",
            got=repr(name),
            fix="give the path that the network was trained on, e.g. paths.VP(beta_min=0.1, beta_max=20.0)",
        )
    return known[name]()


def coefficients(path: Path, predicts: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """``a`` and ``b`` of ``D = a z + b F``; a score is first multiplied by ``C``.

    With ``x_t = alpha x0 + sigma n``, the network's ``F`` is an estimate of: "noise" ``n``; "x0" ``x0``;
    "velocity" ``alpha' x0 + sigma' n`` (for `Flow`, ``n - x0``); "score" the gradient of ``log p_t(x_t)``,
    ``-C^+ n / sigma``; "v" ``alpha n - sigma x0`` (Salimans and Ho 2022, arXiv 2202.00512, appendix D).

    Args:
        path: the path.
        predicts: one of the five names.
        t: times, float64.

    Raises:
        InputError: on another name.

    Example:
        >>> coefficients(Flow(), "velocity", torch.tensor(0.25))
        (tensor(0.7500), tensor(-0.2500))
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    if predicts == "noise":
        return torch.ones_like(t), -path.ratio(t)
    if predicts == "x0":
        return torch.zeros_like(t), torch.ones_like(t)
    if predicts == "score":
        return torch.ones_like(t), sigma**2 / alpha
    if predicts == "velocity":
        wronskian = alpha * path.sigma_prime(t) - path.alpha_prime(t) * sigma
        return alpha * path.sigma_prime(t) / wronskian, -sigma / wronskian
    if predicts == "v":
        square = alpha**2 + sigma**2
        return alpha**2 / square, -sigma / square
    raise InputError(
        "predicts",
        expected=f"one of {', '.join(map(repr, PREDICTIONS))}",
        got=repr(predicts),
        fix="say what the network was trained to return",
    )


def _beta(path: VP | SubVP, t: Tensor) -> Tensor:
    return path.beta_min + (path.beta_max - path.beta_min) * t


def _integral(path: VP | SubVP, t: Tensor) -> Tensor:
    return path.beta_min * t + 0.5 * (path.beta_max - path.beta_min) * t**2


def _root(path: VP | SubVP, B: Tensor) -> Tensor:
    """The time at which the integral of beta is ``B``, without cancellation."""
    return 2 * B / (path.beta_min + torch.sqrt(path.beta_min**2 + 2 * (path.beta_max - path.beta_min) * B))


def _rising(argument: str, low: float, high: float, *, strictly: bool = False) -> None:
    if not 0 < low <= high < math.inf or (strictly and low == high):
        raise InputError(
            argument,
            expected="positive numbers, the smaller one first",
            got=f"{low} and {high}",
            fix="give the constants of the training run",
        )
