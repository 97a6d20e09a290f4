"""Emulators draw the future of a state without the model: step by step, or a window at a time.

All of them answer one question, ``p(x_1, ..., x_n | x_0)``, in one way, `Emulator.forecast`: labelled draws over leads.
What reaches beyond a window goes on from each draw's own last state.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from sciddiff import networks
from sciddiff.assimilation.surrogates import Runs, Surrogate, fit, state_space
from sciddiff.covariance import Covariance, dense
from sciddiff.errors import DivergenceError, InputError
from sciddiff.noise import Gaussian, Noise
from sciddiff.operators import Gather
from sciddiff.operators.series import as_states
from sciddiff.posterior import check_count
from sciddiff.priors import GaussianPrior, Prior
from sciddiff.priors.base import Normalisation
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space
from sciddiff.training.run import Augment, Plan

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods import Method

__all__ = ["Autoregressive", "Dynamics", "Emulator", "Rollout", "WindowDiffusion", "train_autoregressive"]

_ROWS = 2**20
"""Values of the states that are moved at a time."""


class Emulator(ABC):
    """A law of what follows a state.

    Attributes:
        space: one state.
        interval: time between two leads, in the units of the dim "time", or 1 where it has no labels.
        dtype: of the states.
    """

    space: Space
    interval: Any
    dtype: torch.dtype

    def forecast(
        self,
        initial: Any,
        *,
        steps: int,
        samples: int = 20,
        seed: int,
        noise: Noise | None = None,
        batch_dim: str | None = None,
        init_time: Any = None,
    ) -> xr.Dataset:
        """Draw the next ``steps`` states.

        Args:
            initial: the first state, or many along ``batch_dim``: xarray, numpy or torch, in physical units.
            steps: number of leads.
            samples: number of draws.
            seed: draw i of case j depends on (seed, j, i) alone.
            noise: the error of ``initial``, a Gaussian; None where it is exact. Emulators that begin at a state begin
                each draw at another, ``initial`` plus an error drawn from it.
            batch_dim: name of the dim that counts first states.
            init_time: time of ``initial``, or one for each.

        Returns:
            `xarray.Dataset` with dims ``("sample", batch_dim, "lead", *space.dims)``, with ``lead`` in the units of time,
            and ``init_time`` and the time that is forecast, ``time``, where an init_time is given. Its attrs record
            the method, the seed, seconds, and the network's (or the model's) evaluations per draw as "forwards".

        Raises:
            InputError: on first states that do not fit, or a noise that is not Gaussian.
            DivergenceError: if a draw is no longer finite.
        """
        check_count("steps", steps), check_count("samples", samples), check_seed(seed)
        if noise is not None and not isinstance(noise, Gaussian):
            raise InputError(
                "noise", expected="a Gaussian noise or None", got=repr(noise), fix="noise.Gaussian(sd)"
            )
        x0 = self.space.tensor(initial, argument="initial", batch_dim=batch_dim, dtype=self.dtype)
        x0 = x0 if batch_dim else x0[None]
        if noise is not None:
            noise.check(x0)
        started = time.perf_counter()
        with torch.no_grad():
            x, attrs = self.paths(x0, noise, steps, samples, seed)
        if not bool(x.isfinite().all()):
            bad = int((~x.isfinite()).flatten(2).any(2).sum())
            raise DivergenceError(f"{bad} of {samples * len(x0)} forecasts by {self} are no longer finite")
        attrs |= {"method": repr(self), "seed": seed, "seconds": time.perf_counter() - started}
        attrs |= {"sciddiff": version("sciddiff"), "torch": str(torch.__version__)}
        return self._labelled(x, batch_dim, init_time, attrs)

    @abstractmethod
    def paths(
        self, x0: Tensor, noise: Gaussian | None, steps: int, samples: int, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Physical states ``(samples, cases, steps, *space.shape)`` that follow ``(cases, *space.shape)``, and "forwards"."""

    def _labelled(
        self, x: Tensor, batch_dim: str | None, init_time: Any, attrs: Mapping[str, Any]
    ) -> xr.Dataset:
        lead = np.arange(1, x.shape[2] + 1) * self.interval
        dims = ["sample", *([batch_dim] if batch_dim else []), "lead"]
        out = self.space.dataset(x if batch_dim else x[:, 0], dims, {"lead": lead})
        out.attrs.update(attrs)
        if init_time is None:
            return out
        begun = np.asarray(init_time)
        if begun.shape not in ((), (x.shape[1],)) or (begun.ndim and batch_dim is None):
            raise InputError(
                "init_time",
                expected=f"one time, or one for each of {x.shape[1]} first states",
                got=f"shape {begun.shape}",
                fix="pass the time of each first state",
            )
        on = [batch_dim] if begun.ndim else []
        return out.assign_coords(init_time=(on, begun), time=([*on, "lead"], begun[..., None] + lead))


class Rollout(Emulator):
    """An emulator that moves states on by a window of `window` leads, again and again."""

    window: int
    forwards: int

    @abstractmethod
    def advance(self, x: Tensor, streams: Streams) -> Tensor:
        """The next states ``(rows, window, *space.shape)`` of ``(rows, *space.shape)``, physical; one stream per row."""

    def paths(
        self, x0: Tensor, noise: Gaussian | None, steps: int, samples: int, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Windows one behind the other, as many as it takes; see the base."""
        cases = len(x0)
        rows = torch.arange(samples * cases)
        parts = [
            self._run(x0, noise, steps, seed, part) for part in rows.split(max(1, _ROWS // x0[0].numel()))
        ]
        windows = -(-steps // self.window)
        x = torch.cat(parts).reshape(samples, cases, steps, *x0.shape[1:])
        return x, {"forwards": windows * self.forwards}

    def _run(self, x0: Tensor, noise: Gaussian | None, steps: int, seed: int, rows: Tensor) -> Tensor:
        draws, cases = (rows // len(x0)).tolist(), (rows % len(x0)).tolist()
        x = x0[cases]
        if noise is not None:
            x = noise.draw(x, Streams(seed, draws, cases, purpose="first state"))
        streams = Streams(seed, draws, cases, purpose="forecast")
        out: list[Tensor] = []
        while sum(part.shape[1] for part in out) < steps:
            out.append(self.advance(x, streams))
            x = out[-1][:, -1]
        return torch.cat(out, 1)[:, :steps]


@final
@dataclass(frozen=True, eq=False)
class Dynamics(Rollout):
    """The model itself: ``x_{k+1} = step(x_k)``, to compare with; only the first states differ between draws.

    Args:
        step: one interval of time, on ``(rows, *space.shape)``.
        space: one state.
        interval: time of a step.
        dtype: of the states.

    Example:
        >>> import sciddiff as sd
        >>> model = Dynamics(lambda x: 0.5 * x, Space({"x": 2}), interval=6.0)
        >>> ahead = model.forecast([8.0, 4.0], steps=3, samples=1, seed=0, init_time=100.0)
        >>> ahead["u"].isel(sample=0, x=0).values.tolist(), ahead["time"].values.tolist()
        ([4.0, 2.0, 1.0], [106.0, 112.0, 118.0])
    """

    step: Callable[[Tensor], Tensor]
    space: Space
    interval: Any = 1
    dtype: torch.dtype = torch.float64
    window = 1
    forwards = 1

    def advance(self, x: Tensor, streams: Streams) -> Tensor:
        """One step."""
        return self.step(x)[:, None]


@final
@dataclass(frozen=True, eq=False)
class Autoregressive(Rollout):
    """A network that makes one step, ``x_{k+1} = x_k + F(x_k, m) + e``, with dropout masks ``m`` and noise ``e`` of its own in each.

    Args:
        network: of one state, normalised.
        normalisation: of the states.
        noise: covariance of ``e`` in normalised units; None for none.
        interval: time of a step.
    """

    network: Surrogate
    normalisation: Normalisation
    noise: Covariance | None = None
    interval: Any = 1
    window = 1
    forwards = 1

    @property
    def space(self) -> Space:  # type: ignore[override]
        """One state."""
        return self.network.space

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the network.

        :meta private:
        """
        return next(self.network.network.parameters()).dtype

    def advance(self, x: Tensor, streams: Streams) -> Tensor:
        """One step."""
        z = self.normalisation.normal(x)
        z = self.network([z], 0.0, z, masks(self.network, streams, x))
        if self.noise is not None:
            z = z + self.noise.sqrt(streams.normal(self.noise.white_shape, dtype=z.dtype, device=z.device))
        return self.normalisation.physical(z)[:, None]

    def __repr__(self) -> str:
        kind = type(self.network.network).__name__
        noise = "" if self.noise is None else ", with noise"
        return f"Autoregressive({kind} on {self.space}, dropout {self.network.dropout:g}{noise})"


@final
@dataclass(frozen=True, eq=False)
class WindowDiffusion(Emulator):
    """A prior over windows, given their first state: the plain diffusion forecast, without any training for it.

    Args:
        prior: over trajectories ``Space({"time": n, ...})``.
        method: the posterior sampler; None takes the default.
        steps: of the solver; None takes the default.
        exact: sd, in units of the scale of the states, at which a state that is known exactly is observed, such as that
            from which a draw goes on.
    """

    prior: Prior
    method: Method | None = None
    steps: int | None = None
    exact: float = 1e-2

    @property
    def space(self) -> Space:  # type: ignore[override]
        """One state."""
        return state_space(self.prior.space)

    @property
    def interval(self) -> Any:
        """Time between two states of the window."""
        return interval_of(self.prior.space)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the prior.

        :meta private:
        """
        return self.prior.dtype

    def paths(
        self, x0: Tensor, noise: Gaussian | None, steps: int, samples: int, seed: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """See the base."""
        length, cases = self.prior.space.sizes["time"], len(x0)
        scale = float(self.prior.normalisation.scale.mean())
        sharp = Gaussian(self.exact * scale)
        out: list[Tensor] = []
        forwards, begun, law = 0.0, x0, sharp if noise is None else noise
        while len(out) * (length - 1) < steps:
            # the first window has the draws as samples, the later ones each draw as a case of its own
            n = samples if not out else 1
            seeds = Streams(seed, [len(out)], purpose="window").numpy()[0]
            x, cost = self._window(begun, law, n, seed if not out else int(seeds.integers(2**63)))
            x = x.reshape(samples, cases, *x.shape[1:])
            forwards += cost
            out.append(x[:, :, 1:])
            begun, law = x[:, :, -1].flatten(0, 1), sharp
        return torch.cat(out, 2)[:, :, :steps], {"forwards": forwards}

    def _window(self, first: Tensor, noise: Gaussian, samples: int, seed: int) -> tuple[Tensor, float]:
        """Draws ``(samples * cases, time, *state)`` of a window whose first state was observed."""
        window = self.prior.space
        places = torch.arange(window.size).reshape(1, *window.shape)
        index = as_states(places, self.space)[0, 0].reshape(-1, 1).numpy()
        operator = Gather(window, self.space, index)
        posterior = self.prior.given(first, operator, noise, batch_dim="case")
        drawn = posterior.sample(samples, self.method, steps=self.steps, seed=seed, progress=False)
        rows = drawn.stack(row=("sample", "case"), create_index=False).transpose("row", ...)
        x = window.tensor(rows, batch_dim="row", dtype=first.dtype)
        return as_states(x, self.space), float(drawn.attrs["forwards"])


def train_autoregressive(
    data: Any,
    space: Space,
    *,
    network: str = "unet",
    settings: Mapping[str, Any] | None = None,
    dropout: float = 0.0,
    noise: Literal["none", "dense", "diagonal", "periodic", "neumann", "dirichlet"] = "none",
    steps: int = 5000,
    batch: int = 64,
    learning_rate: float = 1e-3,
    jitter: float = 0.0,
    augment: Augment | None = None,
    batch_dim: str = "sample",
    seed: int,
    out: str | PathLike[str] | None = None,
    resume: bool = True,
) -> Autoregressive:
    """Train a network for one step, ``min E |x_{k+1} - x_k - F(x_k)|_1``.

    Args:
        data: trajectories along ``batch_dim``, in physical units.
        space: theirs, with a dim "time" in front.
        network: name of a backbone, see `networks.build`.
        settings: of the network, beside the sizes of the space.
        dropout: share of channels dropped, in training and in forecasts.
        noise: the errors of one step, over 4096 windows, as a Gaussian of this kind (see `GaussianPrior.fit`) that
            is added in forecasts, in which nothing is dropped then; "none" adds nothing.
        steps: optimiser steps.
        batch: pairs a step.
        learning_rate: of AdamW, falling to 0.
        jitter: sd, in normalised units, of white noise on the state that the network sees.
        augment: see `Runs`.
        batch_dim: the dim of labelled data that counts trajectories.
        seed: fixes weights, order, masks and noise.
        out: folder for checkpoints.
        resume: go on with the run in ``out``.

    Raises:
        InputError: on data or settings that do not fit.
    """
    runs = Runs(
        data,
        space,
        length=2,
        batch=batch,
        seed=seed,
        augment=augment,
        batch_dim=batch_dim,
        dtype=torch.float32,
    )
    step = make_surrogate(network, settings, runs.space, 1, dropout, seed)
    check_jitter(jitter)

    def loss(step: Surrogate, k: int) -> Tensor:
        z = runs.windows(k)
        uniform, shaken = training_noise(step, runs, k, jitter)
        return (step([z[:, 0] + shaken], 0.0, z[:, 0], uniform) - z[:, 1]).abs().flatten(1).mean(1)

    plan = plan_of(steps, batch, learning_rate, seed)
    with torch.inference_mode(False), torch.enable_grad():
        identity = {"kind": "autoregressive", "jitter": jitter, **identity_of(runs, step)}
        made, _ = fit(
            step, loss, plan, folder=None if out is None else Path(out), identity=identity, resume=resume
        )
    if noise == "none":
        return Autoregressive(made, runs.normalisation, None, interval_of(space))
    whole = Surrogate(made.network, made.space, inputs=1)
    return Autoregressive(whole, runs.normalisation, _errors(whole, runs, noise), interval_of(space))


def _errors(step: Surrogate, runs: Runs, kind: str) -> Covariance:
    """The covariance of errors of one step, around their mean."""
    first = 2**40  # windows that no step of training has seen
    errors = []
    with torch.no_grad():
        for k in range(first, first + -(-4096 // runs.batch)):
            z = runs.windows(k)
            errors.append(z[:, 1] - step([z[:, 0]], 0.0, z[:, 0]))
    fitted = GaussianPrior.fit(torch.cat(errors).double(), runs.space, kind=kind).physical_covariance
    # as one matrix, which is what is kept on disk
    size = runs.space.size
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *runs.space.shape)
    return dense(fitted.apply(eye).reshape(size, size), runs.space.shape)


# -- what the emulators with networks share ---------------------------------------------------------


def masks(network: Surrogate, streams: Streams, like: Tensor) -> Tensor | None:
    """The next mask of every row; None without dropout."""
    if not network.masks:
        return None
    return streams.uniform((network.masks,), dtype=like.dtype, device=like.device)


def training_noise(network: Surrogate, runs: Runs, step: int, jitter: float) -> tuple[Tensor | None, Tensor]:
    """Masks for the windows of a step, and what is added to the states that are seen."""
    streams = Streams(runs.seed, [step], purpose="training masks")
    uniform = None
    if network.masks:
        uniform = streams.uniform((runs.batch, network.masks), dtype=runs.dtype)[0]
    if jitter == 0:
        return uniform, torch.zeros((), dtype=runs.dtype)
    return uniform, jitter * streams.normal((runs.batch, *runs.space.shape), dtype=runs.dtype)[0]


def make_surrogate(
    network: str,
    settings: Mapping[str, Any] | None,
    space: Space,
    inputs: int,
    dropout: float,
    seed: int,
) -> Surrogate:
    """A network by name, with the sizes of the space filled in."""
    channels = inputs * (len(space.components) if space.homogeneous else 1)
    if network == "mlp":
        size = channels * int(np.prod(space.grid))
        made = networks.build("mlp", {"features": size, "seed": seed, **(settings or {})})
    else:
        sizes = {"channels": channels, "dimensions": len(space.grid), "seed": seed}
        made = networks.build(network, {**sizes, **(settings or {})})
    return Surrogate(made, space, inputs=inputs, dropout=dropout)


def check_jitter(jitter: object) -> None:
    """Refuse what is no standard deviation."""
    good = isinstance(jitter, (int, float)) and not isinstance(jitter, bool) and 0 <= jitter < math.inf
    if not good:
        raise InputError(
            "jitter", expected="a standard deviation from 0", got=repr(jitter), fix="0 adds no noise"
        )


def plan_of(steps: int, batch: int, learning_rate: float, seed: int) -> Plan:
    """The plan of a run with the library's defaults."""
    plan = Plan(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=1e-2,
        schedule="cosine",
        warmup=max(1, steps // 50),
        ema=steps / 20,
        keep="last",
        seed=check_seed(seed),
        checkpoint_every=max(1, steps // 20),
        log_every=max(1, steps // 50),
    )
    plan.check(False)
    return plan


def identity_of(runs: Runs, network: Surrogate) -> dict[str, Any]:
    """What has to be the same for a training to go on."""
    moments = [float(runs.states.mean()), float(runs.states.std())]
    return {
        "data": [list(runs.states.shape), *(f"{m:.6g}" for m in moments)],
        "space": runs.space.to_dict(),
        "network": type(network.network).__name__,
        "settings": json.loads(json.dumps(network.network.settings)),
        "dropout": network.dropout,
        "length": runs.length,
    }


def interval_of(trajectories: Space) -> Any:
    """The step of the dim "time"; 1 without labels."""
    labels = trajectories.coords.get("time")
    if labels is None or len(labels) < 2:
        return 1
    if labels.dtype.kind not in "iufM":
        raise InputError(
            "space", expected="times", got=f"labels of {labels.dtype}", fix="use numbers or dates"
        )
    steps = np.diff(labels)
    ok = (steps == steps[0]).all() if labels.dtype.kind == "M" else np.allclose(steps, steps[0], rtol=1e-6)
    if not ok:
        raise InputError("space", expected="evenly spaced times", got="others", fix="resample the data")
    return steps[0]
