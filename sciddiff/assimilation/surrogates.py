"""Networks that map states to states, with dropout that belongs to a draw, and the loop that trains them.

A surrogate returns ``base + F(states, place)``: a guess, such as the state before, and what the network adds to it. With
dropout it is a random function, ``F(states, place, m)`` with a mask ``m`` of its own for every row (Gal and Ghahramani 2016,
"Dropout as a Bayesian approximation", section 3). The masks come from keyed streams: a row is the same in every batch.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sciddiff import networks
from sciddiff.errors import DivergenceError, InputError
from sciddiff.operators.series import as_states
from sciddiff.priors.base import Normalisation
from sciddiff.random import Streams
from sciddiff.spaces import Space
from sciddiff.training.checkpoints import (
    Checkpoint,
    check_same_run,
    flatten,
    load_checkpoint,
    restore_optimiser,
    save_checkpoint,
    weights,
)
from sciddiff.training.run import Augment, Plan, augmented

__all__ = ["Runs", "Surrogate", "fit", "state_space"]

Loss = Callable[["Surrogate", int], Tensor]


@final
class Surrogate:
    """A function of states of one space, made of a network of `sciddiff.networks`.

    Args:
        network: ``F(x, time)`` on ``inputs`` states, one behind the other along the channels; the first of what it
            returns count. As everywhere in this library, layers called "last" end a residual branch: in front of them
            channels are dropped.
        space: one state.
        inputs: number of states that it sees.
        dropout: share of the channels that are dropped.

    Example:
        >>> from sciddiff.networks import MLP
        >>> f = Surrogate(MLP(features=6, width=8, depth=2), Space({}, ["a", "b", "c"]), inputs=2, dropout=0.1)
        >>> x = torch.ones(5, 3)
        >>> f([x, x], 0.5, x, torch.zeros(5, f.masks)).shape, f.masks
        (torch.Size([5, 3]), 16)
    """

    def __init__(
        self, network: networks.Backbone, space: Space, *, inputs: int, dropout: float = 0.0
    ) -> None:
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise InputError(
                "dropout", expected="a share from 0 to below 1", got=repr(dropout), fix="try 0.1"
            )
        self.network, self.space, self.inputs, self.dropout = network, space, inputs, float(dropout)
        self.layers = [m for name, m in network.named_modules() if name.endswith(".last")] if dropout else []
        self.widths = [int(layer.weight.shape[1]) for layer in self.layers]

    @property
    def masks(self) -> int:
        """Uniform numbers that a row's mask takes; 0 without dropout."""
        return sum(self.widths)

    def __call__(
        self, states: Sequence[Tensor], place: float | Tensor, base: Tensor, uniform: Tensor | None = None
    ) -> Tensor:
        """``base + F(states, place)``, of the shape of one of the states ``(rows, *space.shape)``.

        Args:
            states: as many as `inputs`, normalised.
            place: where in the window, from 0 to 1; or one number per row.
            base: the guess that the network corrects.
            uniform: ``(rows, masks)``; None drops nothing.
        """
        x = torch.cat([self._channels(z) for z in states], 1)
        # the networks look at time from about -1 to 1
        time = torch.as_tensor(2.0 * place - 1.0, dtype=x.dtype, device=x.device).expand(len(x))
        with self._dropping(uniform):
            out = self.network(x, time)
        channels = x.shape[1] // self.inputs
        correction: Tensor = base + out[:, :channels].reshape(base.shape)
        return correction

    def _channels(self, z: Tensor) -> Tensor:
        """``(rows, channels, *grid)``."""
        if self.space.homogeneous and len(self.space.components) > 1:
            return z
        return z.unsqueeze(1)

    @contextmanager
    def _dropping(self, uniform: Tensor | None) -> Iterator[None]:
        hooks = []
        if uniform is not None and self.masks:
            keep = (uniform >= self.dropout).to(next(self.network.parameters())) / (1 - self.dropout)
            for layer, part in zip(self.layers, keep.split(self.widths, 1), strict=True):
                hooks.append(layer.register_forward_pre_hook(partial(_masked, part)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _masked(keep: Tensor, layer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    (h,) = arguments
    middle = (1,) * (h.ndim - 2)
    shape = (len(keep), *middle, -1) if isinstance(layer, nn.Linear) else (len(keep), -1, *middle)
    return (h * keep.reshape(shape),)


@final
class Runs:
    """Trajectories in memory, of which a step of training takes windows.

    Args:
        data: trajectories along ``batch_dim``, in physical units, of at least ``length`` states.
        space: theirs, with a dim "time" in front.
        length: states of a window.
        batch: windows a step.
        seed: of their places.
        augment: ``(x, generator) -> x`` on windows ``(batch, length, *state)`` in physical units.
        batch_dim: the dim of labelled data that counts trajectories.
        dtype: of the windows.
    """

    def __init__(
        self,
        data: Any,
        space: Space,
        *,
        length: int,
        batch: int,
        seed: int,
        augment: Augment | None,
        batch_dim: str,
        dtype: torch.dtype,
    ) -> None:
        self.space = state_space(space)
        self.states = as_states(space.tensor(data, batch_dim=batch_dim), self.space)
        if self.states.shape[1] < length:
            raise InputError(
                "data",
                expected=f"trajectories of at least {length} states",
                got=self.states.shape[1],
                fix="pass longer ones, or a shorter horizon",
            )
        self.normalisation = Normalisation.fit(self.states.flatten(0, 1), self.space)
        self.length, self.batch, self.seed, self.augment, self.dtype = length, batch, seed, augment, dtype

    def windows(self, step: int) -> Tensor:
        """Normalised windows ``(batch, length, *state)`` of one step of training."""
        generator = Streams(self.seed, [step], purpose="training windows").numpy()[0]
        runs, states = self.states.shape[:2]
        run = torch.from_numpy(generator.integers(runs, size=(self.batch, 1)))
        start = torch.from_numpy(generator.integers(states - self.length + 1, size=(self.batch, 1)))
        x = augmented(
            self.states[run, start + torch.arange(self.length)], self.augment, self.seed, "augment", step
        )
        return self.normalisation.normal(x).to(self.dtype)


def fit(
    surrogate: Surrogate,
    loss: Loss,
    plan: Plan,
    *,
    folder: Path | None,
    identity: Mapping[str, Any],
    resume: bool = True,
) -> tuple[Surrogate, dict[str, list[float]]]:
    """Train a surrogate, and return one with the averaged weights, and the mean loss by step.

    Args:
        surrogate: whose network is trained, in place.
        loss: ``(surrogate, step) -> (rows,)``; its randomness is a function of the step.
        plan: steps, rates, average and checkpoints.
        folder: for checkpoints, so that a run that was stopped goes on; None writes none.
        identity: what has to be the same for a run to go on, as plain values.
        resume: go on with the run in the folder.

    Raises:
        InputError: if the folder holds another run.
        DivergenceError: if the loss is no longer finite.
    """
    network = surrogate.network.train()
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    named = dict(json.loads(json.dumps({**asdict(plan), **identity})))
    history: dict[str, list[float]] = {"step": [], "loss": []}
    first = 0
    found = None if folder is None or not resume else load_checkpoint(folder)
    if found is not None and folder is not None:
        check_same_run(folder, named, found.record["identity"])
        network.load_state_dict(weights(found.tensors, "network"))
        average.load_state_dict(weights(found.tensors, "average"))
        restore_optimiser(optimiser, found.tensors)
        first, history = found.step, {k: list(v) for k, v in found.record["history"].items()}
    recent: list[float] = []
    for step in range(first, plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(step)
        mean = loss(surrogate, step).mean()
        optimiser.zero_grad()
        mean.backward()
        optimiser.step()
        recent.append(float(mean.detach()))
        if not math.isfinite(recent[-1]):
            raise DivergenceError(
                f"The loss is no longer finite at step {step}: lower learning_rate ({plan.learning_rate:g})."
            )
        with torch.no_grad():
            for kept, parameter in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(parameter, plan.share(step + 1))
        done = step + 1 == plan.steps
        if (step + 1) % plan.log_every == 0 or done:
            history["step"].append(step + 1)
            history["loss"].append(float(np.mean(recent)))
            recent = []
        if folder is not None and ((step + 1) % plan.checkpoint_every == 0 or done):
            tensors = flatten({"network": network, "average": average}, optimiser)
            save_checkpoint(folder, Checkpoint(step + 1, tensors, {"identity": named, "history": history}))
    return (
        Surrogate(average, surrogate.space, inputs=surrogate.inputs, dropout=surrogate.dropout),
        history,
    )


def state_space(trajectories: Space) -> Space:
    """The space of one state, from that of trajectories, whose first dim is "time".

    Example:
        >>> state_space(Space({"time": 9, "x": 64}, {"u": "K"}))
        Space(u [K] on (x: 64))
    """
    if trajectories.dims[:1] != ("time",) or not trajectories.homogeneous:
        raise InputError(
            "space",
            expected="a space of trajectories, with a dim 'time' in front that all variables have",
            got=trajectories,
            fix="write for example Space({'time': 9, 'x': 64})",
        )
    coords = {d: trajectories.coords.get(d, trajectories.sizes[d]) for d in trajectories.dims[1:]}
    return Space(coords, {n: replace(v, dims=v.dims[1:]) for n, v in trajectories.variables.items()})
