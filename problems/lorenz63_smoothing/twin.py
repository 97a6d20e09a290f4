"""The twin experiments: four ways to observe a trajectory, the model that made it, and how draws of it are judged.

Observations are of standardised variables, ``(x - MEAN)/SD`` as in the paper, and so are their errors; trajectories
are in the units of the system. ``log p(y | x)`` is a density of standardised observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import Assimilation, StateSpaceModel
from sciddiff.bench.catalog import dataset
from sciddiff.operators import AtTimes, Select
from sciddiff.random import Streams

data = dataset("lorenz63")
LENGTH = 65
NAMES = ("x", "y", "z")
HERE = Path(__file__).parent


class Instrument(NamedTuple):
    """One variable, seen at some states of the trajectory with errors of one sd in standardised units."""

    variable: str
    times: range
    sd: float


@final
@dataclass(frozen=True)
class Setting:
    """What is observed, and which sign is asked for: that of x at this state."""

    title: str
    instruments: tuple[Instrument, ...]
    sign_at: int = LENGTH // 2


SETTINGS = {
    "lo": Setting("x every 8 steps, sd 0.05", (Instrument("x", range(0, LENGTH, 8), 0.05),)),
    "hi": Setting("x at every step, sd 0.25", (Instrument("x", range(LENGTH), 0.25),)),
    "even": Setting("z every 4 steps, sd 0.1", (Instrument("z", range(0, LENGTH, 4), 0.1),)),
    "uneven": Setting(
        "z every 4 steps, sd 0.1, and x once, sd 1.5",
        (Instrument("z", range(0, LENGTH, 4), 0.1), Instrument("x", range(32, 33), 1.5)),
    ),
}


# -- truth, data and what is conditioned on them -----------------------------------------------------


def truths(cases: int, seed: int = 0) -> torch.Tensor:
    """Trajectories of the steady state, ``(cases, LENGTH, 3)``; independent of the runs for training."""
    x: torch.Tensor = data.climate(cases, length=LENGTH, seed=seed + 1000)
    return x


def observe(setting: Setting, x: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """What each instrument saw of trajectories ``(cases, LENGTH, 3)``: ``(cases, times)``, in the system's units."""
    streams, out = Streams(seed, range(len(x)), purpose="observations"), []
    for i in setting.instruments:
        k = NAMES.index(i.variable)
        noise = streams.normal((len(i.times),), dtype=torch.float64)
        out.append(x[:, list(i.times), k] + i.sd * data.SD[k] * noise)
    return out


def model(initial: sd.Prior | None = None) -> StateSpaceModel:
    """The law that made the trajectories; the first state is drawn about those of the training runs."""
    state = data.SYSTEM.space
    if initial is None:
        runs = data.load("training").isel(time=slice(0, None, 50))
        states = np.stack([runs[name].values.ravel() for name in NAMES], 1).astype(float)
        initial = sd.EmpiricalPrior(state, states, bandwidth=0.05)
    return StateSpaceModel(
        data.SYSTEM.step,
        initial,
        space=state,
        noise=sd.noise.Gaussian(data.NOISE_SD),
        times=data.space(LENGTH).coords["time"],
    )


def gaussian() -> sd.GaussianPrior:
    """The first state as a Gaussian, for methods that need its density to be smooth."""
    state = data.SYSTEM.space
    variance = torch.tensor([v**2 for v in data.SD], dtype=torch.float64)
    return sd.GaussianPrior(
        state, sd.covariance.diagonal(variance), mean=torch.tensor(data.MEAN, dtype=torch.float64)
    )


def assimilation(setting: Setting, y: list[torch.Tensor], law: StateSpaceModel) -> Assimilation:
    """The model and the data, for methods that know the model."""
    out: Any = law
    for i, seen in zip(setting.instruments, y, strict=True):
        k = NAMES.index(i.variable)
        full = torch.full((len(seen), LENGTH, 1), math.nan, dtype=torch.float64)
        full[:, list(i.times), 0] = seen
        operator = Select(law.space, variables=i.variable)
        full = full.movedim(2, 1) if full.shape[1:] != (LENGTH, 1) else full
        out = out.given(full.squeeze(2), operator, sd.noise.Gaussian(i.sd * data.SD[k]), batch_dim="case")
    assert isinstance(out, Assimilation)
    return out


def posterior(setting: Setting, y: list[torch.Tensor], prior: sd.Prior) -> sd.Posterior:
    """A prior over trajectories and the data, for methods that know the prior alone."""
    times, out = prior.space.coords["time"], None
    for i, seen in zip(setting.instruments, y, strict=True):
        k = NAMES.index(i.variable)
        operator = AtTimes(Select(data.SYSTEM.space, variables=i.variable), prior.space, times[list(i.times)])
        noise = sd.noise.Gaussian(i.sd * data.SD[k])
        out = (prior if out is None else out).given(seen, operator, noise, batch_dim="case")
    assert out is not None
    return out


# -- how draws are judged ----------------------------------------------------------------------------


def states(draws: Any) -> torch.Tensor:
    """Labelled draws as ``(sample, case, LENGTH, 3)``, float64."""
    x = np.stack([draws[name].transpose("sample", "case", "time").values for name in NAMES], 3)
    return torch.from_numpy(x.astype(np.float64))


def log_prior(x: torch.Tensor) -> torch.Tensor:
    """``log p(x_2:L | x_1)`` of trajectories ``(..., LENGTH, 3)``; 81.6 in the mean of true ones."""
    r = increments(x)
    return -0.5 * (r.square().sum((-1, -2)) + (LENGTH - 1) * 3 * math.log(2 * math.pi * data.NOISE_SD**2))


def increments(x: torch.Tensor) -> torch.Tensor:
    """``(x_{k+1} - step(x_k))/sd`` of trajectories, standard normals in true ones, ``(..., LENGTH - 1, 3)``."""
    return (x[..., 1:, :] - data.SYSTEM.step(x[..., :-1, :])) / data.NOISE_SD


def log_likelihood(setting: Setting, x: torch.Tensor, y: list[torch.Tensor]) -> torch.Tensor:
    """``log p(y | x)`` of trajectories ``(..., cases, LENGTH, 3)`` with standardised observations, ``(..., cases)``."""
    total = torch.zeros(x.shape[:-2], dtype=x.dtype)
    for i, seen in zip(setting.instruments, y, strict=True):
        k = NAMES.index(i.variable)
        r = (x[..., list(i.times), k] - seen) / (i.sd * data.SD[k])
        total = total - 0.5 * (r.square() + math.log(2 * math.pi * i.sd**2)).sum(-1)
    return total


def misfit(setting: Setting, x: torch.Tensor, y: list[torch.Tensor]) -> torch.Tensor:
    """Squared misfits of trajectories ``(..., cases, LENGTH, 3)`` in error variances, summed over data, ``(..., cases)``."""
    total = torch.zeros(x.shape[:-2], dtype=x.dtype)
    for i, seen in zip(setting.instruments, y, strict=True):
        k = NAMES.index(i.variable)
        total = total + ((x[..., list(i.times), k] - seen) / (i.sd * data.SD[k])).square().sum(-1)
    return total


def positive(setting: Setting, x: torch.Tensor) -> torch.Tensor:
    """Whether x is positive at the state that is asked for, ``(...)``."""
    return (x[..., setting.sign_at, 0] > 0).double()


def weight(setting: Setting, x: torch.Tensor, y: list[torch.Tensor]) -> torch.Tensor:
    """Posterior probability of a positive x by draws ``(sample, cases, LENGTH, 3)`` of the reference, ``(cases,)``.

    The prior is invariant under (x, y) -> (-x, -y), so that of a draw and its mirror image each has a probability by the
    likelihoods alone. Only where the draws lie counts then, and not how many a particle method put into each mode.
    """
    ahead = log_likelihood(setting, x, y) - log_likelihood(setting, x * x.new_tensor([-1.0, -1.0, 1.0]), y)
    own = torch.sigmoid(ahead)
    return torch.lerp(1 - own, own, positive(setting, x)).mean(0)


def w1(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wasserstein-1 distance of as many trajectories, in the Euclidean norm of all their numbers."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(a.flatten(1), b.flatten(1)).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def scores(
    setting: Setting,
    x: torch.Tensor,
    truth: torch.Tensor,
    y: list[torch.Tensor],
    reference: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Figures of each case, ``(cases,)`` each, of draws ``(sample, cases, LENGTH, 3)``.

    ``rmse`` is that of the mean, less nothing; ``spread`` the root mean square sd; ``w1`` that to as many
    draws of the reference; ``weight`` the share of draws with x positive at the state that is asked for.
    """
    noise = increments(x)
    out = {
        "log_prior": log_prior(x).mean(0),
        "log_likelihood": log_likelihood(setting, x, y).mean(0),
        "rmse": (x.mean(0) - truth).square().mean((1, 2)).sqrt(),
        "spread": x.var(0).mean((1, 2)).sqrt(),
        "weight": positive(setting, x).mean(0),
        "bias": noise.mean((0, 2)).abs().amax(1),
        "variance": noise.square().mean((0, 2, 3)),
    }
    if reference is not None:
        n = min(len(x), len(reference))
        out["w1"] = torch.tensor([w1(x[:n, c], reference[:n, c]) for c in range(x.shape[1])])
        out["distance"] = (x.mean(0) - reference.mean(0)).square().mean((1, 2)).sqrt()
    return {name: np.asarray(value) for name, value in out.items()}
