"""One run of a training: its numbers, its loop, its records and checkpoints.

    theta <- AdamW(theta, grad of E |D_theta(z0 + sigma n, sigma) - z0|^2 / c_out(sigma)^2)
    average <- average + (1 - 2^(-1/h)) (theta - average)

Batches, noise levels and noise of step k depend on (data, seed, k) alone. So a run that was stopped, also
by SIGKILL, goes on from its last checkpoint to the same weights, bit for bit, on the same machine.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sciddiff import networks
from sciddiff.covariance import Covariance
from sciddiff.errors import DivergenceError, InputError
from sciddiff.priors.base import Normalisation
from sciddiff.priors.covariates import tell
from sciddiff.priors.neural import NeuralPrior, Preconditioning
from sciddiff.random import Streams
from sciddiff.training.checkpoints import (
    Checkpoint,
    check_same_run,
    flatten,
    load_checkpoint,
    restore_optimiser,
    save_checkpoint,
    weights,
)
from sciddiff.training.data import Source
from sciddiff.training.objective import Levels, losses

__all__ = ["Augment", "Plan", "Training", "augmented"]

Augment = Callable[[Tensor, np.random.Generator], Tensor]
Objective = Callable[..., Tensor]
Network = Callable[[Tensor, Tensor], Tensor]
Knowing = Callable[[nn.Module, Tensor | None], tuple[Preconditioning, Network]]
_BANDS = 6
_RAMP = 0.1


@final
@dataclass(frozen=True)
class Plan:
    """The numbers of a run; a checkpoint is only continued under the same ones."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup: int
    ema: float
    keep: str
    seed: int
    checkpoint_every: int
    log_every: int

    def check(self, validated: bool) -> None:
        """Raise `InputError` on the first setting out of range."""
        for name in ("steps", "batch", "warmup", "checkpoint_every", "log_every"):
            value, least = getattr(self, name), 0 if name == "warmup" else 1
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise InputError(
                    name, expected=f"an int of at least {least}", got=repr(value), fix="change it"
                )
        for name in ("learning_rate", "weight_decay", "ema"):
            value = getattr(self, name)
            if not (0 <= value < math.inf) or (name == "learning_rate" and value == 0):
                raise InputError(name, expected="a number from 0", got=repr(value), fix="leave it out")
        for name, choices in (("schedule", ("cosine", "constant")), ("keep", ("last", "best"))):
            if getattr(self, name) not in choices:
                raise InputError(
                    name, expected=f"one of {choices}", got=repr(getattr(self, name)), fix="choose one"
                )
        if self.keep == "best" and not validated:
            raise InputError(
                "keep",
                expected="'last'",
                got="'best' without validation",
                fix="pass held-out states as validation",
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall

    def share(self, step: int) -> float:
        """How much of the new weights goes into the average after a step."""
        life = min(self.ema, _RAMP * step)
        return 1.0 if life == 0 else 1 - 0.5 ** (1 / life)


@final
class Training:
    """One run: the network, its average, the optimiser, and what was recorded so far."""

    def __init__(
        self,
        untrained: NeuralPrior,
        plan: Plan,
        law: Levels,
        states: Source,
        held_out: Tensor | None,
        augment: Augment | None,
        folder: Path | None,
        objective: Objective = losses,
        held_out_drivers: Tensor | None = None,
        knowing: Knowing | None = None,
    ) -> None:
        self.untrained, self.plan, self.law, self.states = untrained, plan, law, states
        self.augment, self.folder, self.objective = augment, folder, objective
        self.held_out = None if held_out is None else self.normal(held_out)
        self.validation = None if held_out is None else _digest(held_out)
        self.held_out_drivers, self.knowing = held_out_drivers, knowing or self.told
        self.network = untrained.network.train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.best: nn.Module | None = None
        self.parameters = list(zip(self.average.parameters(), self.network.parameters(), strict=True))
        self.buffers = list(zip(self.average.buffers(), self.network.buffers(), strict=True))
        self.optimiser = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
        )
        self.step, self.lowest = 0, math.inf
        self.edges = law.edges(_BANDS)
        self.history: dict[str, list[Any]] = {"step": [], "training": []}
        self.history |= {"validation": []} if held_out is not None else {}
        self.history |= {name: [] for name in self.bands}
        self.window = np.zeros((2, _BANDS))

    @property
    def bands(self) -> list[str]:
        """Names of the bands of sigma in the history."""
        return [f"sigma {a:.3g} to {b:.3g}" for a, b in zip(self.edges[:-1], self.edges[1:], strict=True)]

    # -- the loop ------------------------------------------------------------------------------------

    def go(self, progress: bool | None) -> None:
        """Train to the last step, with records and checkpoints on the way."""
        plan = self.plan
        with _bar(progress, plan.steps, self.step) as tick:
            while self.step < plan.steps:
                self.train_once()
                self.step += 1
                done = self.step == plan.steps
                tick(self.record() if self.step % plan.log_every == 0 or done else None)
                if self.folder is not None and (self.step % plan.checkpoint_every == 0 or done):
                    self.save(self.folder)

    def train_once(self) -> None:
        """One optimiser step, and its share in the average."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.rate(self.step)
        x = augmented(self.states.batch(self.step), self.augment, self.plan.seed, "augment", self.step)
        z0 = self.normal(x)
        levels = Streams(self.plan.seed, [self.step], purpose="training levels").numpy()[0]
        sigma = self.law.draw(len(z0), levels)
        noise = Streams(self.plan.seed, [self.step], purpose="training noise")
        preconditioning, network = self.knowing(self.network, self.states.drivers(self.step))
        with _own_randomness(self.network, self.plan.seed, self.step):
            loss = self.objective(preconditioning, network, z0, sigma.to(z0.device), noise)
        self.optimiser.zero_grad()
        loss.mean().backward()
        self.optimiser.step()
        self.tally(sigma, loss.detach())
        with torch.no_grad():
            share = self.plan.share(self.step)
            for average, parameter in self.parameters:
                average.lerp_(parameter, share)
            for kept, buffer in self.buffers:
                kept.copy_(buffer)

    def told(self, network: nn.Module, drivers: Tensor | None) -> tuple[Preconditioning, Network]:
        """The skip path, and the network that has been told the drivers of a batch."""
        return self.untrained.preconditioning, network if drivers is None else tell(network, drivers)

    def normal(self, x: Tensor) -> Tensor:
        """Normalised states in the network's dtype; the units are changed in float64."""
        units, prior = self.untrained.normalisation, self.untrained
        z = (x - units.mean.to(x.device)) / units.scale.to(x.device)
        return z.to(prior.device, prior.dtype)

    # -- records -------------------------------------------------------------------------------------

    def tally(self, sigma: Tensor, loss: Tensor) -> None:
        """Add a step's losses to the record that is being made."""
        values = loss.double().cpu().numpy()
        if not np.isfinite(values).all():
            raise DivergenceError(
                f"The loss is no longer finite at step {self.step}. Lower learning_rate "
                f"({self.plan.learning_rate:g}), or look for outliers in the data."
            )
        band = np.searchsorted(self.edges[1:-1], sigma.numpy())
        self.window += [np.bincount(band, minlength=_BANDS), np.bincount(band, values, minlength=_BANDS)]

    def record(self) -> float:
        """Close a record; returns the training loss in it."""
        counts, sums = self.window
        self.history["step"].append(self.step)
        self.history["training"].append(float(sums.sum() / counts.sum()))
        for name, count, total in zip(self.bands, counts, sums, strict=True):
            self.history[name].append(float(total / count) if count else None)
        self.window = np.zeros((2, _BANDS))
        if self.held_out is not None:
            self.history["validation"].append(self.validate(self.held_out))
        return float(self.history["training"][-1])

    def validate(self, z0: Tensor) -> float:
        """Loss of the averaged weights on held-out states, each time with the same noise and levels."""
        generator = Streams(self.plan.seed, [0], purpose="validation levels").numpy()[0]
        sigma = self.law.draw(len(z0), generator)
        total, size = 0.0, self.plan.batch
        with torch.no_grad():
            for start in range(0, len(z0), size):
                part = slice(start, start + size)
                streams = Streams(self.plan.seed, [start], purpose="validation noise")
                drivers = None if self.held_out_drivers is None else self.held_out_drivers[part]
                preconditioning, network = self.knowing(self.average, drivers)
                loss = self.objective(preconditioning, network, z0[part], sigma[part].to(z0.device), streams)
                total += float(loss.double().sum())
        loss_now = total / len(z0)
        if self.plan.keep == "best" and loss_now < self.lowest:
            self.lowest, self.best = loss_now, copy.deepcopy(self.average)
        return loss_now

    # -- checkpoints ---------------------------------------------------------------------------------

    def begin(self, resume: bool) -> None:
        """Take up the run in the folder, or clear it."""
        if self.folder is None:
            return
        if not resume:
            (self.folder / "checkpoint.json").unlink(missing_ok=True)
        found = load_checkpoint(self.folder)
        if found is None:
            return
        check_same_run(self.folder, self.identity, found.record["identity"])
        self.network.load_state_dict(weights(found.tensors, "network"))
        self.average.load_state_dict(weights(found.tensors, "average"))
        if best := weights(found.tensors, "best"):
            self.best = copy.deepcopy(self.average)
            self.best.load_state_dict(best)
        restore_optimiser(self.optimiser, found.tensors)
        self.step, self.history = found.step, {k: list(v) for k, v in found.record["history"].items()}
        self.window = np.array(found.record["window"])
        self.lowest = math.inf if found.record["lowest"] is None else float(found.record["lowest"])

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        nets = {"network": self.network, "average": self.average}
        nets |= {} if self.best is None else {"best": self.best}
        record = {
            "identity": self.identity,
            "history": self.history,
            "window": self.window.tolist(),
            "lowest": self.lowest if math.isfinite(self.lowest) else None,
        }
        save_checkpoint(folder, Checkpoint(self.step, flatten(nets, self.optimiser), record))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to go on.

        Of ``augment`` that is its qualified name: its code cannot be compared. What is computed from the data, by
        products whose last digits depend on the number of threads, is compared to six digits.
        """
        prior = self.untrained
        network = prior.network
        return dict(
            json.loads(
                json.dumps(
                    {
                        **asdict(self.plan),
                        "data": self.states.digest,
                        "space": prior.space.to_dict(),
                        "network": type(network).__name__,
                        "settings": getattr(network, "settings", None),
                        "gaussian": None if prior.gaussian is None else _probed(prior.gaussian.law),
                        "reference": _probed(prior.reference),
                        "normalisation": _units(prior.normalisation, prior.space.shape),
                        "season": None if prior.season is None else _digest(prior.season),
                        "augment": None if self.augment is None else _qualified(self.augment),
                        "sigmas": [f"{self.law.low:.6g}", f"{self.law.high:.6g}", self.law.normal],
                        "validation": self.validation,
                        "dtype": str(prior.dtype),
                        **({} if self.objective is losses else {"objective": repr(self.objective)}),
                        **self.driven,
                    }
                )
            )
        )

    @property
    def driven(self) -> dict[str, Any]:
        """What a run with covariates is known by besides."""
        covariates = self.untrained.covariates
        if covariates is None:
            return {}
        drivers = getattr(self.states, "covariates", None)
        return {
            "covariates": covariates.units,
            "drivers": None if drivers is None else _digest(drivers),
            "held-out drivers": None if self.held_out_drivers is None else _digest(self.held_out_drivers),
        }

    def prior(self) -> NeuralPrior:
        """The prior with the averaged weights that were to be kept."""
        made = copy.copy(self.untrained)
        made.network = self.average if self.best is None else self.best
        made.history = {name: list(values) for name, values in self.history.items()}
        return made


# -- what a run is known by --------------------------------------------------------------------------


def _digest(x: Tensor) -> str:
    """A hash of values that a caller gave."""
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().data).hexdigest()


def _probes(shape: tuple[int, ...]) -> Tensor:
    """Fixed states of unit length, ``(4, *shape)``."""
    x = Streams(0, range(4), purpose="identity").normal(shape, dtype=torch.float64)
    unit: Tensor = x / x.flatten(1).norm(dim=1).reshape(-1, *(1,) * len(shape))
    return unit


def _probed(covariance: Covariance) -> list[str]:
    """``p^T Sigma p`` of fixed states ``p``."""
    device = covariance.variance().device
    p = _probes(tuple(covariance.shape)).to(device)
    return [f"{v:.6g}" for v in (p * covariance.apply(p)).flatten(1).sum(1).tolist()]


def _units(units: Normalisation, shape: tuple[int, ...]) -> list[str]:
    """``p^T m/s`` and ``p^T (s p)`` of fixed states ``p``."""
    p, scale = _probes(shape), units.scale.cpu().double()
    means = (p * (units.mean.cpu().double() / scale)).flatten(1).sum(1).tolist()
    scales = (p**2 * scale).flatten(1).sum(1).tolist()
    return [f"{v:.6f}" for v in means] + [f"{v:.6g}" for v in scales]


def _qualified(augment: Augment) -> str:
    """Module and name of a function, or of the class of a callable object."""
    named = augment if hasattr(augment, "__qualname__") else type(augment)
    return f"{named.__module__}.{named.__qualname__}"


def augmented(x: Tensor, augment: Augment | None, seed: int, purpose: str, step: int) -> Tensor:
    """States after the caller's augmentation, checked."""
    if augment is None:
        return x
    out = augment(x.clone(), Streams(seed, [step], purpose=f"training {purpose}").numpy()[0])
    if not isinstance(out, Tensor) or out.shape[1:] != x.shape[1:] or not bool(torch.isfinite(out).all()):
        got = f"{out.dtype} of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            "augment",
            expected=f"finite states of shape (batch, {', '.join(map(str, x.shape[1:]))}) from (x, generator)",
            got=got,
            fix="return a tensor of states in physical units",
        )
    return out.to(x.dtype)


@contextmanager
def _own_randomness(network: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Give dropout in a caller's module noise of (seed, step), and torch its own random state back."""
    if isinstance(network, networks.Backbone):
        yield
        return
    devices = {p.device.index or 0 for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(Streams(seed, [step], purpose="training dropout").numpy()[0].integers(2**32))
        yield


@contextmanager
def _bar(show: bool | None, steps: int, begun: int) -> Iterator[Callable[[float | None], None]]:
    """A progress bar; what it yields is called after every step, with the loss where there is a new record."""
    if not ((sys.stderr.isatty() or "ipykernel" in sys.modules) if show is None else show):
        yield lambda loss: None
        return
    from tqdm import tqdm

    with tqdm(total=steps, initial=begun, desc="training") as bar:

        def tick(loss: float | None) -> None:
            bar.update(1)
            if loss is not None:
                bar.set_postfix(loss=f"{loss:.4g}")

        yield tick
