"""DYffusion: a diffusion whose time is that of the dynamics (Rühling Cachay et al. 2023, arXiv 2306.01984).

Where a diffusion model adds noise, an interpolator leads from the last state of a window back to the first,
``x_i ~ I(x_0, x_h, i)``; and where one denoises, a forecaster jumps to the end from wherever the sampler is,
``F(x_i, i) = x_h``. Sampling alternates the two along the window (algorithm 2 there, after "cold diffusion"):

    x^ = F(x_i, i),    x_{i+1} = x_i + I(x_0, x^, i+1) - I(x_0, x^, i),    I(x_0, x^, 0) = x_0,  I(x_0, x^, h) = x^

What differs between draws are the dropout masks of the interpolator. The scheme keeps to the conditional means: with
``I`` and ``F`` exact means of a linear system, all x_i are. With exact laws in their place, ``sampling="naive"``, which
sets ``x_{i+1} = I(x_0, x^, i+1)``, draws every x_i from its law; cold sampling does not (its differences of two
independent draws add variance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from sciddiff.assimilation.emulators import (
    Rollout,
    check_jitter,
    identity_of,
    interval_of,
    make_surrogate,
    masks,
    plan_of,
    training_noise,
)
from sciddiff.assimilation.surrogates import Runs, Surrogate, fit
from sciddiff.errors import InputError
from sciddiff.posterior import check_count
from sciddiff.priors.base import Normalisation
from sciddiff.random import Streams
from sciddiff.spaces import Space
from sciddiff.training.run import Augment

__all__ = ["DYffusion", "NetworkForecaster", "NetworkInterpolator", "train_dyffusion"]

Interpolator = Callable[[Tensor, Tensor, int, Streams], Tensor]
Forecaster = Callable[[Tensor, int, Streams], Tensor]


@final
@dataclass(frozen=True, eq=False)
class DYffusion(Rollout):
    """Forecasts by an interpolator and a forecaster; made by `train_dyffusion`, or of any two functions.

    Args:
        interpolator: ``I(x_0, x_h, i, streams) -> x_i`` on normalised rows, for ``0 < i < horizon``; all its randomness
            from ``streams``, one per row.
        forecaster: ``F(x_i, i, streams) -> x_h``, for ``0 <= i < horizon``.
        horizon: ``h``, leads of a window, at least 2.
        space: one state.
        normalisation: of the states.
        interval: time between two leads.
        sampling: "cold", as published, or "naive"; see the module.
        refine: interpolate all states of a window but the last once more at its end, towards the last forecast ``x^``.
        dtype: of the states.

    Raises:
        InputError: on a horizon below 2 or another sampling.

    Example:
        >>> units = Normalisation(torch.tensor(0.0), torch.tensor(1.0))
        >>> line = DYffusion(
        ...     lambda x0, xh, i, streams: x0 + (xh - x0) * i / 4, lambda x, i, streams: x + (4 - i), 4,
        ...     Space({"x": 2}), units,
        ... )
        >>> line.forecast([0.0, 10.0], steps=6, samples=1, seed=0)["u"].isel(sample=0, x=1).values.tolist()
        [11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    """

    interpolator: Interpolator
    forecaster: Forecaster
    horizon: int
    space: Space
    normalisation: Normalisation
    interval: Any = 1
    sampling: Literal["cold", "naive"] = "cold"
    refine: bool = False
    dtype: torch.dtype = torch.float32
    history: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if check_count("horizon", self.horizon) < 2:
            raise InputError(
                "horizon",
                expected="at least 2",
                got=self.horizon,
                fix="between one lead nothing is interpolated",
            )
        if self.sampling not in ("cold", "naive"):
            raise InputError(
                "sampling", expected="'cold' or 'naive'", got=repr(self.sampling), fix="choose one"
            )

    @property
    def window(self) -> int:  # type: ignore[override]
        """The horizon."""
        return self.horizon

    @property
    def forwards(self) -> int:  # type: ignore[override]
        """Evaluations of both networks in a window: ``3 h - 2``, or ``2 h - 1`` of naive sampling; ``h - 1`` to refine."""
        h = self.horizon
        return (3 * h - 2 if self.sampling == "cold" else 2 * h - 1) + (h - 1 if self.refine else 0)

    def advance(self, x: Tensor, streams: Streams) -> Tensor:
        """One window."""
        h, z0 = self.horizon, self.normalisation.normal(x)
        z, last, path = z0, z0, []
        for i in range(h):
            last = self.forecaster(z, i, streams)
            ahead = self.interpolator(z0, last, i + 1, streams) if i + 1 < h else last
            if self.sampling == "cold" and i > 0:
                ahead = z + ahead - self.interpolator(z0, last, i, streams)
            z = ahead
            path.append(z)
        if self.refine:
            path = [self.interpolator(z0, last, i, streams) for i in range(1, h)] + [z]
        return self.normalisation.physical(torch.stack(path, 1))

    def __repr__(self) -> str:
        refined = ", refined" if self.refine else ""
        return f"DYffusion(horizon {self.horizon}, {self.sampling}{refined}, {self.interpolator!r}, {self.forecaster!r})"


@final
@dataclass(frozen=True, eq=False)
class NetworkInterpolator:
    """``I(x_0, x_h, i)``: the straight line from the one to the other, and what a network with dropout adds."""

    network: Surrogate
    horizon: int

    def __call__(self, z0: Tensor, last: Tensor, i: int, streams: Streams) -> Tensor:
        """``z_i``, with masks of its own for every row."""
        return self.between(
            z0, last, torch.full((len(z0),), i / self.horizon), masks(self.network, streams, z0)
        )

    def between(self, z0: Tensor, last: Tensor, place: Tensor, uniform: Tensor | None) -> Tensor:
        """``z_i`` at places ``i / h``, one for each row."""
        line = z0 + place.to(z0).reshape(-1, *(1,) * (z0.ndim - 1)) * (last - z0)
        return self.network([z0, last], place, line, uniform)

    def __repr__(self) -> str:
        return f"interpolator {type(self.network.network).__name__} with dropout {self.network.dropout:g}"


@final
@dataclass(frozen=True, eq=False)
class NetworkForecaster:
    """``F(x_i, i)``: the state itself, and what a network adds; without dropout."""

    network: Surrogate
    horizon: int

    def __call__(self, z: Tensor, i: int, streams: Streams) -> Tensor:
        """The last state of the window."""
        return self.jump(z, torch.full((len(z),), i / self.horizon))

    def jump(self, z: Tensor, place: Tensor) -> Tensor:
        """The last state, from places ``i / h``, one for each row."""
        return self.network([z], place, z)

    def __repr__(self) -> str:
        return f"forecaster {type(self.network.network).__name__}"


def train_dyffusion(
    data: Any,
    space: Space,
    *,
    horizon: int,
    network: str = "unet",
    settings: Mapping[str, Any] | None = None,
    dropout: float = 0.1,
    steps: int | tuple[int, int] = 5000,
    batch: int = 64,
    learning_rate: float = 1e-3,
    jitter: float = 0.0,
    sampling: Literal["cold", "naive"] = "cold",
    refine: bool = False,
    augment: Augment | None = None,
    batch_dim: str = "sample",
    seed: int,
    out: str | PathLike[str] | None = None,
    resume: bool = True,
) -> DYffusion:
    """Train the interpolator, and then with its help the forecaster, both in the mean of absolute errors.

    ::

        min |I(x_0, x_h, i) - x_i|,    i = 1, ..., h - 1
        min |F(I(x_0, x_h, i), i) - x_h| / 2 + |F(I(x_0, x^, i+1), i+1) - x_h| / 2,    x^ = F(I(x_0, x_h, i), i)

    I's dropout is on in both. The second term shows F what sampling will: states that its own forecasts led to;
    no gradient is taken through x^. It stands where ``i + 1 < h``; elsewhere the first counts alone.

    Args:
        data: trajectories along ``batch_dim``, in physical units, of more than ``horizon`` states.
        space: theirs, with a dim "time" in front.
        horizon: leads of a window.
        network: name of a backbone, see `networks.build`, for both.
        settings: of both networks, beside the sizes of the space.
        dropout: share of the interpolator's channels that are dropped, in training and in forecasts.
        steps: optimiser steps of each, or (of the interpolator, of the forecaster).
        batch: windows a step.
        learning_rate: of AdamW, falling to 0.
        jitter: sd, in normalised units, of white noise on the first states that are seen.
        sampling: see `DYffusion`.
        refine: see `DYffusion`.
        augment: see `Runs`.
        batch_dim: the dim of labelled data that counts trajectories.
        seed: fixes weights, windows, masks and noise.
        out: folder for checkpoints, from which a run that was stopped goes on.
        resume: do so.

    Raises:
        InputError: on data or settings that do not fit.
    """
    check_jitter(jitter)
    if check_count("horizon", horizon) < 2:
        raise InputError("horizon", expected="at least 2", got=horizon, fix="take more leads in a window")
    runs = Runs(
        data,
        space,
        length=horizon + 1,
        batch=batch,
        seed=seed,
        augment=augment,
        batch_dim=batch_dim,
        dtype=torch.float32,
    )
    between = make_surrogate(network, settings, runs.space, 2, dropout, seed)
    jump = make_surrogate(network, settings, runs.space, 1, 0.0, seed)
    of_each = (steps, steps) if isinstance(steps, int) else tuple(steps)
    if len(of_each) != 2:
        raise InputError(
            "steps", expected="a number, or one for each of two networks", got=steps, fix="pass (3000, 1000)"
        )
    history = {}

    def train(
        name: str, surrogate: Surrogate, steps: int, loss: Callable[[Surrogate, int], Tensor]
    ) -> Surrogate:
        plan = plan_of(steps, batch, learning_rate, seed)
        identity = {"kind": name, "jitter": jitter, "through": dropout, **identity_of(runs, surrogate)}
        folder = None if out is None else Path(out) / name
        made, history[name] = fit(surrogate, loss, plan, folder=folder, identity=identity, resume=resume)
        return made

    with torch.inference_mode(False), torch.enable_grad():
        between = train("interpolator", between, of_each[0], _interpolation(runs, horizon, jitter))
        interpolator = NetworkInterpolator(between, horizon)
        jump = train("forecaster", jump, of_each[1], _forecasting(runs, interpolator, jitter))
    return DYffusion(
        interpolator,
        NetworkForecaster(jump, horizon),
        horizon,
        runs.space,
        runs.normalisation,
        interval_of(space),
        sampling,
        refine,
        history=history,
    )


def _interpolation(runs: Runs, horizon: int, jitter: float) -> Callable[[Surrogate, int], Tensor]:
    def loss(network: Surrogate, step: int) -> Tensor:
        z, rows = runs.windows(step), torch.arange(runs.batch)
        i = _places(runs, step, 1, horizon)
        uniform, shaken = training_noise(network, runs, step, jitter)
        guess = NetworkInterpolator(network, horizon).between(
            z[:, 0] + shaken, z[:, -1], i / horizon, uniform
        )
        return _error(guess, z[rows, i])

    return loss


def _forecasting(
    runs: Runs, interpolator: NetworkInterpolator, jitter: float
) -> Callable[[Surrogate, int], Tensor]:
    horizon = interpolator.horizon

    def at(z0: Tensor, last: Tensor, i: Tensor, uniform: Tensor | None) -> Tensor:
        with torch.no_grad():
            drawn = interpolator.between(z0, last, i / horizon, uniform)
        return torch.where(i.reshape(-1, *(1,) * (z0.ndim - 1)) == 0, z0, drawn)

    def loss(network: Surrogate, step: int) -> Tensor:
        z = runs.windows(step)
        i, forecaster = _places(runs, step, 0, horizon), NetworkForecaster(network, horizon)
        uniform, shaken = training_noise(interpolator.network, runs, 2 * step, jitter)
        again, _ = training_noise(interpolator.network, runs, 2 * step + 1, 0.0)
        z0, last = z[:, 0] + shaken, z[:, -1]
        forecast = forecaster.jump(at(z0, last, i, uniform), i / horizon)
        first = _error(forecast, last)
        inside = i + 1 < horizon
        led = at(z0, forecast.detach(), i + 1, again)
        second = _error(forecaster.jump(led[inside], (i + 1)[inside] / horizon), last[inside])
        return first.where(~inside, 0.5 * first).index_add(0, inside.nonzero()[:, 0], 0.5 * second)

    return loss


def _places(runs: Runs, step: int, low: int, high: int) -> Tensor:
    """Uniform integers ``low <= i < high``, one for each window."""
    generator = Streams(runs.seed, [step], purpose="training places").numpy()[0]
    return torch.from_numpy(generator.integers(low, high, size=runs.batch))


def _error(guess: Tensor, truth: Tensor) -> Tensor:
    return (guess - truth).abs().flatten(1).mean(1)
