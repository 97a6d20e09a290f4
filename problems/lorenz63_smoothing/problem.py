"""Smoothing a noisy Lorenz-63: a prior that learnt from runs, against methods that know the model.

A state is a trajectory of 65 steps. The four ways to observe it in `twin` change the operator alone; the prior is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import FFBS, EnKS
from sciddiff.assimilation.variational import Weak4DVar
from sciddiff.bench.catalog import module
from sciddiff.bench.problem import Problem
from sciddiff.solvers.langevin import AnnealedLangevin

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior

TITLE = "Lorenz-63: smooth trajectories of noise-driven chaos, with one and with two modes"
SUMMARY = (
    "Trajectories of the noisy Lorenz-63 system of Rozet and Louppe (2023) are recovered from a few or noisy values of x, and "
    "from z alone, which leaves the sign of x and y open: then the posterior has two modes of weight 1/2 each, exactly. "
    "A prior over whole trajectories, learnt from runs and without the model, stands beside methods that know the model: "
    "a particle smoother as the reference, an ensemble Kalman smoother and weak-constraint 4D-Var. The learned prior's "
    "own errors, in the mean and the variance of its increments, are measured too."
)
HERE = Path(__file__).parent
twin = module(__file__, "twin")
CASES, SAMPLES = 4, 32
METHOD = sd.MMPS("scalar", gamma=0.03)
SOLVER = AnnealedLangevin(steps=40, corrections=3)
REFERENCE = FFBS(particles=16384)
NETWORK = {
    "width": 64,
    "dilations": [1, 2, 4, 8, 1, 2, 4, 8],
    # sd of the first, second and third differences of standardised trajectories
    "differences": [0.18, 0.067, 0.057],
}


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the network on windows of the training runs and keep the prior in ``out``; about 13 minutes of one core."""
    data = twin.data
    prior = sd.train(
        data.Windows(data.load("training"), batch=64),
        data.space(twin.LENGTH),
        network="dilated",
        settings=NETWORK,
        gaussian=None,
        steps=9000,
        batch=64,
        learning_rate=2e-3,
        sigmas=(-1.5, 1.7),
        sigma_min=0.003,
        sigma_max=40.0,
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    return prior


def load(seed: int = 0) -> Problem:
    """One trajectory whose x is seen every 8 steps."""
    setting = twin.SETTINGS["lo"]
    prior = sd.load_prior(HERE / "prior")
    truth = twin.truths(1, seed)
    posterior = twin.posterior(setting, twin.observe(setting, truth, seed), prior)
    (seen,) = posterior.observations
    y = seen.operator.codomain.dataset(seen.y)
    return Problem(
        "lorenz63_smoothing",
        TITLE,
        prior,
        seen.operator,
        seen.noise,
        prior.space.dataset(truth[0].T),
        y,
        method=METHOD,
    )


@final
@dataclass(frozen=True, eq=False)
class Experiment:
    """One setting: what was seen of some trajectories, and draws ``(sample, case, state, 3)`` by the names of methods."""

    setting: Any
    truth: torch.Tensor
    y: list[torch.Tensor]
    draws: dict[str, torch.Tensor]

    def scores(self, name: str) -> dict[str, np.ndarray]:
        """Figures of a method by case, beside those of the reference."""
        found: dict[str, np.ndarray] = twin.scores(
            self.setting, self.draws[name], self.truth, self.y, self.draws["FFBS"]
        )
        return found


def experiment(
    name: str,
    prior: sd.Prior,
    *,
    cases: int = CASES,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[Experiment, xr.Dataset]:
    """All methods on one setting, and the labelled draws under the learned prior."""
    setting = twin.SETTINGS[name]
    truth = twin.truths(cases, seed)
    y = twin.observe(setting, truth, seed)
    law = twin.assimilation(setting, y, twin.model())
    smooth = twin.assimilation(setting, y, twin.model(twin.gaussian()))
    learned = twin.posterior(setting, y, prior).sample(
        samples, METHOD, solver=SOLVER, seed=seed, progress=progress
    )
    draws = {
        "FFBS": law.sample(4 * samples, REFERENCE, seed=seed),
        "FFBS again": law.sample(samples, REFERENCE, seed=seed + 1),
        "EnKS": law.sample(samples, EnKS(members=256), seed=seed),
        "4D-Var": smooth.sample(samples, Weak4DVar(), seed=seed),
        "learned prior": learned,
    }
    return Experiment(setting, truth, y, {n: twin.states(d) for n, d in draws.items()}), learned
