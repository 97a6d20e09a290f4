"""What a method of data assimilation is, and what one call of `Assimilation.sample` hands to it.

Ensembles are physical states ``(cases, members, *space.shape)``, all cases and members in one tensor. One stream of
noise belongs to a case, so that a case depends on (seed, case) alone.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.random import Streams

if TYPE_CHECKING:
    from sciddiff.assimilation.models import Assimilation

__all__ = ["AssimilationMethod", "Ensemble", "Filter", "Work"]


@dataclass(frozen=True)
class AssimilationMethod(ABC):
    """A filter or a smoother: a frozen dataclass of its settings.

    Attributes:
        law: "filtering" where the draws at a time are given the data up to it, and are of that time alone;
            "smoothing" where they are whole trajectories given all the data.
        reference: the paper, as BibTeX.
    """

    law: ClassVar[str] = "filtering"
    reference: ClassVar[str] = ""

    @abstractmethod
    def draw(self, work: Work) -> torch.Tensor:
        """Draws ``(n, cases, times, *space.shape)`` in physical units."""

    def misfit(self, assimilation: Assimilation) -> str | None:
        """Why the method does not fit, None if it does."""
        return None

    def references(self) -> list[str]:
        """Its papers, as BibTeX."""
        return [self.reference] if self.reference else []

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The members of one time, ``(cases, members, *shape)``, and their log weights ``(cases, members)``; None: all alike."""

    x: torch.Tensor
    log_weights: torch.Tensor | None = None

    def mean(self) -> torch.Tensor:
        """The mean of each case, ``(cases, *shape)``."""
        return self.x.mean(1) if self.log_weights is None else (self._weights() * self.x).sum(1)

    def variance(self) -> torch.Tensor:
        """The unbiased variance of each value, ``(cases, *shape)``."""
        if self.log_weights is None:
            return self.x.var(1)
        weights = self._weights()
        square = (weights * (self.x - self.mean()[:, None]) ** 2).sum(1)
        # where one member holds all the weight the numerator is rounding too
        return square / (1 - weights.square().sum(1)).clamp_min(1e-6)

    def ess(self) -> torch.Tensor:
        """How many members of equal weight it is worth, ``(cases,)``."""
        if self.log_weights is None:
            return torch.full((len(self.x),), float(self.x.shape[1]), dtype=torch.float64)
        return torch.exp(-torch.logsumexp(2 * self.log_weights, 1))

    def _weights(self) -> torch.Tensor:
        assert self.log_weights is not None
        weights = self.log_weights.exp().to(self.x)
        return weights.reshape(*weights.shape, *(1,) * (self.x.ndim - 2))


@dataclass(frozen=True)
class Filter(AssimilationMethod):
    """A method that goes forward in time once, with an ensemble: `Assimilation.moments` runs it without keeping members."""

    @abstractmethod
    def analyses(self, work: Work) -> Iterator[tuple[Ensemble, Ensemble]]:
        """Forecast and analysis of every time in turn; alike where nothing is observed."""


class Work:
    """One call of `Assimilation.sample`: the model, the data, the seed, the cost so far and what was noted.

    Attributes:
        notes: what the method records of its work, as plain values; they join the attrs of the result.
        warnings: what it found wrong, one line each; they join the diagnosis.
    """

    def __init__(self, assimilation: Assimilation, method: AssimilationMethod, n: int, seed: int) -> None:
        self.assimilation, self.method, self.n, self.seed = assimilation, method, n, seed
        self.model, self.posterior = assimilation.model, assimilation.posterior
        self.cases, self.times = assimilation.cases, self.model.length
        self.model_steps = self.operator_calls = 0
        self.notes: dict[str, Any] = {}
        self.warnings: list[str] = []

    def streams(self, purpose: str, time: int = 0, cases: Sequence[int] | None = None) -> Streams:
        """One stream for each case, at a time of its own: ``normal((members, ...))`` is ``(cases, members, ...)``."""
        cases = range(self.cases) if cases is None else cases
        return Streams(self.seed, [time] * len(cases), cases, purpose=purpose)

    def initial(self, members: int) -> torch.Tensor:
        """Draws of the initial law, ``(cases, members, *shape)``; member j of case c depends on (seed, c, j)."""
        rows = [(case, member) for case in range(self.cases) for member in range(members)]
        streams = Streams(self.seed, [m for _, m in rows], [c for c, _ in rows], purpose="initial")
        return self.model.start(streams).reshape(self.cases, members, *self.model.space.shape)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """One step of the model without its noise, for ``(cases, members, *shape)``."""
        self.model_steps += x.shape[0] * x.shape[1]
        return self.model.advance(x.flatten(0, 1)).reshape(x.shape)

    def forecast(self, x: torch.Tensor, streams: Streams) -> torch.Tensor:
        """One step of the model with its noise."""
        x, covariance = self.step(x), self.model.covariance
        if covariance is None:
            return x
        shape = (x.shape[1], *covariance.white_shape)
        return x + covariance.sqrt(streams.normal(shape, dtype=x.dtype, device=x.device))

    def members(self, asked: int | None) -> int:
        """How many members an ensemble has: as many as draws, or as its method asks for if those are more."""
        if max(self.n, asked or 0) < 2:
            raise InputError(
                "members",
                expected="at least 2, whose spread is the error of the forecast",
                got="1 draw of a method without a number of members",
                fix=f"write {type(self.method).__name__}(members=40, ...) and draw one of them",
            )
        return max(self.n, asked or 0)

    def observed(self, time: int) -> bool:
        """Whether any case has a value at this time."""
        return bool(self.assimilation.seen[:, time].any())

    def seen(self, time: int) -> torch.Tensor:
        """Which cases have a value at this time, ``(cases,)``; the others are to stay as they were forecast."""
        return torch.from_numpy(self.assimilation.seen[:, time]).to(self.model.initial.device)

    def update(self, x: torch.Tensor, new: torch.Tensor, time: int) -> torch.Tensor:
        """``new`` in the cases that have a value at this time and ``x`` in the others, ``(cases, ...)``."""
        return torch.where(self.seen(time).reshape(-1, *(1,) * (x.ndim - 1)), new, x)

    def alike(self) -> list[list[int]]:
        """The cases, in groups that have values at the same times."""
        groups: dict[bytes, list[int]] = {}
        for case, row in enumerate(self.assimilation.seen):
            groups.setdefault(row.tobytes(), []).append(case)
        return list(groups.values())

    def which(self, time: int, members: int) -> torch.Tensor:
        """For every row of ``(cases, members)``, flattened, which of the posterior's cases it is judged by."""
        cases = torch.arange(self.cases, device=self.model.initial.device) * self.times + time
        return cases.repeat_interleave(members)

    def log_likelihood(self, x: torch.Tensor, time: int) -> torch.Tensor:
        """``log p(y_k | x)`` of ``(cases, members, *shape)``, as ``(cases, members)``."""
        self.operator_calls += x.shape[0] * x.shape[1]
        rows = self.posterior.log_likelihood(x.flatten(0, 1), self.which(time, x.shape[1]))
        return rows.reshape(x.shape[:2])

    def check(self, x: torch.Tensor, time: int) -> torch.Tensor:
        """The ensemble, or `DivergenceError` where it is no longer finite."""
        if not bool(x.isfinite().all()):
            bad = int((~x.isfinite()).flatten(1).any(1).sum())
            raise DivergenceError(
                f"{self.method!r}: the ensembles of {bad} of {self.cases} cases are not finite at time {time} of "
                f"{self.times}. Take more members, more inflation or localisation, or a shorter step of the model."
            )
        return x

    def attrs(self) -> dict[str, Any]:
        """What the result records of the call, as plain values; the cost is per draw."""
        total = self.n * self.cases
        return {
            "method": repr(self.method),
            "settings": json.dumps(self.method.settings(), sort_keys=True),
            "references": "\n\n".join(dict.fromkeys(self.method.references())),
            "law": self.method.law,
            "model": repr(self.model),
            "seed": self.seed,
            "cases": self.cases,
            "model_steps": self.model_steps / total,
            "operator_calls": self.operator_calls / total,
            "sciddiff": version("sciddiff"),
            "torch": str(torch.__version__),
            **self.notes,
        }
