"""Draws of a path along an axis of steps, window by window: ``p(x | y) ~ prod_j p(new in w_j | path in w_j, y in w_j)``.

Every draw is a case of its own from the second window on, so that draw i depends on (seed, i) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

import numpy as np
import torch

from sciddiff.assimilation.drivers import Drivers
from sciddiff.assimilation.series import Observed, at_times
from sciddiff.assimilation.steps import Labels, Steps
from sciddiff.assimilation.windows import Window
from sciddiff.noise import Gaussian, Noise
from sciddiff.operators import Gather
from sciddiff.posterior import Posterior
from sciddiff.priors import Prior
from sciddiff.priors.composed import axis_of
from sciddiff.random import Streams
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods import Method

__all__ = ["AnyTimes", "Known", "Path", "seasonal_mean"]

_DEFAULT_NOISE = 0.01
# sds, in units of the scale, of values that are known exactly: a draw's own past, and covariates
_EXACT = {torch.float64: 1e-5}
_EXACT_ELSE = 1e-3
_CASES = "path of the draw"


@runtime_checkable
class AnyTimes(Protocol):
    """A law of series that has a prior on any times; at most ``window`` of them where it has such an attribute."""

    def at(self, times: Any) -> Prior:
        """The prior on these times."""


@final
@dataclass(frozen=True, eq=False)
class Known:
    """What is known: the series and the covariates, on an axis of steps."""

    series: Observed
    numbers: np.ndarray
    noise: Noise | None
    drivers: Drivers | None


@final
@dataclass(frozen=True, eq=False)
class Path:
    """Draws of a path along an axis of steps, window by window.

    Attributes:
        prior: over a window, wherever it lies; or, of a law on any times, that of the first.
        axis: the steps.
        windows: where they lie.
        known: what the draws are given.
        law: the law on any times that has a prior for each window; None for a prior that is moved.
    """

    prior: Prior
    axis: Steps | Labels
    windows: list[Window]
    known: Known
    law: AnyTimes | None = None

    @property
    def start(self) -> int:
        """The first step of the path."""
        return self.windows[0].start

    @property
    def length(self) -> int:
        """Steps of a window."""
        return self.prior.space.sizes["time"]

    @property
    def dim(self) -> int:
        """The axis of time in a state."""
        return axis_of(self.prior.space, "time")

    def draw(self, samples: int, seed: int, method: Method | None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Paths ``(samples, *shape)`` from the first window's start to the last one's end, and what is recorded."""
        series, drivers = self.known.series, self.known.drivers
        y = self._laid(series.values, self.known.numbers, self.dim)
        sd = torch.full_like(y, torch.nan)
        if series.sd is not None:
            sd = self._laid(series.sd, self.known.numbers, self.dim)
        exact = torch.full_like(y, torch.nan)
        if drivers is not None and not drivers.told:
            exact = self._laid(drivers.values, drivers.numbers, self.dim)
        path, records = y.new_full((samples, *y.shape), torch.nan), []
        for i, window in enumerate(self.windows):
            at, offset = self._at(window.start), window.start - self.start
            parts = [v.narrow(self.dim, offset, self.length) for v in (y, sd, exact)]
            past = path.narrow(1 + self.dim, offset, self.length)
            new, width = window.known - window.start, window.kept - window.known
            posterior = self._posterior(at, parts, past, window, cases=i > 0)
            if i:
                draws = posterior.sample(1, method, seed=_seed_of(seed, i)).isel(sample=0)
            else:
                draws = posterior.sample(samples, method, seed=seed)
            x = at.space.tensor(draws, batch_dim=_CASES if i else "sample")
            past.narrow(1 + self.dim, new, width).copy_(x.narrow(1 + self.dim, new, width))
            records.append(draws.attrs)
        return path, _record(records)

    def labelled(self, path: torch.Tensor, numbers: np.ndarray) -> xr.Dataset:
        """The path at some steps as a Dataset of the variables that are no covariates."""
        labels = self.axis.times(int(numbers[0]), int(numbers[-1]))[numbers - numbers[0]]
        index = torch.from_numpy(numbers - self.start)
        out = at_times(self.prior.space, labels).dataset(
            path.index_select(1 + self.dim, index).to(self.prior.dtype), ["sample"]
        )
        out = out.drop_vars(list(self.known.drivers.names) if self.known.drivers else [])
        for name, attrs in self.known.series.attrs.items():
            out[name].attrs = {**attrs, **out[name].attrs}
        out["time"].attrs["standard_name"] = "time"
        return out

    def _at(self, start: int) -> Prior:
        """The prior on the times of the window that begins at a step."""
        labels, drivers = self.axis.times(start, start + self.length - 1), self.known.drivers
        if self.law is not None:
            return self.law.at(labels)
        at: Any = self.prior.relabel(at_times(self.prior.space, labels), seasonal_mean(self.prior, labels))
        if drivers is not None and drivers.told:
            rows = np.searchsorted(drivers.numbers, np.arange(start, start + self.length))
            dim = drivers.values.ndim - len(at.space.grid) + at.space.dims.index("time")
            at = at.driven(drivers.values.index_select(dim, torch.from_numpy(rows)))
        return at  # type: ignore[no-any-return]

    def _laid(self, values: torch.Tensor, numbers: np.ndarray, dim: int) -> torch.Tensor:
        """Values at their steps of the path; NaN elsewhere."""
        total = max(w.start for w in self.windows) + self.length - self.start
        inside = np.flatnonzero((numbers >= self.start) & (numbers < self.start + total))
        out = values.new_full([total if i == dim else n for i, n in enumerate(values.shape)], torch.nan)
        index = torch.from_numpy(numbers[inside] - self.start)
        return out.index_copy(dim, index, values.index_select(dim, torch.from_numpy(inside)))

    def _posterior(
        self, at: Prior, known: Sequence[torch.Tensor], past: torch.Tensor, window: Window, *, cases: bool
    ) -> Posterior:
        """The prior given the path outside of the new steps, the covariates, and what was observed elsewhere."""
        y, sd, exact = (v.flatten() for v in known)
        steps = torch.arange(window.start, window.start + self.length)
        held = (steps < window.known) | (steps >= window.kept) & window.between
        held = held.reshape([-1 if i == self.dim else 1 for i in range(past.ndim - 1)])
        before = held.expand(at.space.shape).flatten()
        sure, seen = before | ~exact.isnan(), ~before & ~y.isnan() & exact.isnan()
        values = torch.where(exact.isnan(), past.flatten(1), exact) if cases else exact[None]
        scale = torch.broadcast_to(at.normalisation.scale.double().cpu(), at.space.shape).flatten()
        tiny, sd = (
            _EXACT.get(at.dtype, _EXACT_ELSE) * scale,
            torch.where(sd.isnan(), _DEFAULT_NOISE * scale, sd),
        )

        def given(posterior: Any, chosen: torch.Tensor, x: torch.Tensor, law: Noise) -> Any:
            index = chosen.nonzero().numpy()
            operator = Gather(at.space, Space({"entry": len(index)}, "observed"), index)
            return posterior.given(
                x[:, chosen] if cases else x[0, chosen],
                operator,
                law,
                batch_dim=_CASES if cases else None,
            )

        out: Any = at
        if self.known.noise is None:
            # independent Gaussian errors are one observation, which methods solve at once
            every = torch.where(sure, values, y)
            out = given(out, sure | seen, every, Gaussian(torch.where(sure, tiny, sd)[sure | seen].numpy()))
        else:
            if bool(sure.any()):
                out = given(out, sure, values, Gaussian(tiny[sure].numpy()))
            if bool(seen.any()):
                out = given(out, seen, y.expand(len(values), -1), self.known.noise)
        return out  # type: ignore[no-any-return]


def seasonal_mean(prior: Prior, labels: np.ndarray) -> torch.Tensor | None:
    """The prior's mean on other dates: its mean of each calendar month; None where it has no season."""
    if prior.season is None:
        return None
    month = labels.astype("datetime64[M]").astype(np.int64) % 12
    mean = prior.season[torch.from_numpy(month)]
    return mean.movedim(0, axis_of(prior.space, "time"))


def _seed_of(seed: int, window: int) -> int:
    """A seed for each window, so that no two share their noise; the first has the caller's."""
    if window == 0:
        return seed
    return int(Streams(seed, [window], purpose="window").numpy()[0].integers(2**63))


def _record(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first window's run recorded, with the costs of all and whatever looked wrong in one."""
    out = dict(records[0])
    if len(records) > 1:
        for name in ("forwards", "vjps", "operator_calls", "seconds"):
            out[name] = sum(float(r[name]) for r in records)
        lines = dict.fromkeys(str(r["diagnosis"]) for r in records if r["diagnosis"] != "ok")
        out |= {"windows": len(records), "diagnosis": "; ".join(lines) or "ok"}
    return out
