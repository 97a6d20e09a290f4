"""The whole table of `lorenz63_smoothing`: more trajectories and more draws than `sciddiff run` takes.

Trajectories are the problem's own with seed 0; settings of methods were chosen on others (seed 1). Every figure is a mean
over trajectories with the standard error of that mean; ratios are of means over trajectories, to the reference's.

    python benchmarks/lorenz63.py model lo hi even uneven    # methods that know the model
    python benchmarks/lorenz63.py learned lo hi even uneven  # methods on the learned prior
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import FFBS, EnKS
from sciddiff.assimilation.variational import Weak4DVar
from sciddiff.bench.cache import cached
from sciddiff.bench.catalog import module

HERE = Path(__file__).resolve().parent
KEPT, PROBLEM = HERE / "lorenz63.json", HERE.parent / "problems" / "lorenz63_smoothing"
twin = module(PROBLEM, "twin")
CASES, DRAWS, PARTICLES = 16, 128, 16384
LEARNED_DRAWS = 32


def case_data(name: str, cases: int) -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
    """Setting, truth and data of the first trajectories."""
    setting, truth = twin.SETTINGS[name], twin.truths(cases)
    return setting, truth, twin.observe(setting, truth)


def summary(scores: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None) -> dict[str, float]:
    """Means and standard errors over trajectories, ratios, and the largest and the mean error of a weight."""
    out: dict[str, float] = {}
    for name, values in scores.items():
        out[name] = round(float(values.mean()), 4)
        out[f"{name}_se"] = round(float(values.std(ddof=1) / np.sqrt(len(values))), 4)
    out["rmse_ratio"] = out["spread_ratio"] = 1.0
    if reference is not None:
        for name in ("rmse", "spread"):
            out[f"{name}_ratio"] = round(float(scores[name].mean() / reference[name].mean()), 4)
        for name in ("log_prior", "log_likelihood"):
            out[f"{name}_gap"] = round(float((scores[name] - reference[name]).mean()), 4)
    return out


def reference(name: str) -> torch.Tensor:
    """Draws of the particle smoother, ``(draws, cases, states, 3)``, kept in the cache."""

    def make(path: Path) -> None:
        setting, _, y = case_data(name, CASES)
        torch.save(smoothed(setting, y, twin.model(), FFBS(particles=PARTICLES), seed=100).float(), path)

    drawn: torch.Tensor = torch.load(
        cached(f"lorenz63_smoothing_{name}_{CASES}_{DRAWS}_{PARTICLES}.pt", make)
    )
    return drawn.double()


def smoothed(setting: Any, y: list[torch.Tensor], law: Any, method: Any, seed: int) -> torch.Tensor:
    """Draws of a method that knows the model, four trajectories at a time."""
    parts = []
    for first in range(0, CASES, 4):
        some = [v[first : first + 4] for v in y]
        parts.append(
            twin.states(twin.assimilation(setting, some, law).sample(DRAWS, method, seed=seed + first))
        )
    return torch.cat(parts, 1)


def keep(what: str, name: str, rows: dict[str, Any]) -> None:
    """Put rows beside those that were measured before."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept.setdefault(what, {}).setdefault(name, {}).update(rows)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def with_model(name: str) -> None:
    """Rows of methods that know the model."""
    setting, truth, y = case_data(name, CASES)
    found = reference(name)
    base = twin.scores(setting, found, truth, y)
    rows: dict[str, Any] = {
        f"FFBS, {PARTICLES} particles (reference)": summary(base, None) | weights(setting, found, y, found)
    }
    keep("model", name, rows)
    law, smooth = twin.model(), twin.model(twin.gaussian())
    methods: dict[str, tuple[Any, Any]] = {
        f"FFBS, {PARTICLES // 2} particles": (law, FFBS(particles=PARTICLES // 2)),
        f"FFBS, {PARTICLES // 4} particles": (law, FFBS(particles=PARTICLES // 4)),
        "FFBS, 2048 particles": (law, FFBS(particles=2048)),
        "EnKS, 512 members": (law, EnKS(members=512)),
        "weak 4D-Var, randomised": (smooth, Weak4DVar()),
    }
    for label, (known, method) in methods.items():
        started = time.process_time()
        x = smoothed(setting, y, known, method, seed=0)
        rows[label] = summary(twin.scores(setting, x, truth, y, found), base)
        rows[label] |= {"seconds": round(time.process_time() - started, 1)} | weights(setting, x, y, found)
        print(name, label, rows[label], flush=True)
        keep("model", name, rows)


def weights(setting: Any, x: torch.Tensor, y: list[torch.Tensor], found: torch.Tensor) -> dict[str, float]:
    """Mean over trajectories and largest error of the share of draws with a positive x, against the reference's."""
    off = (twin.positive(setting, x).mean(0) - twin.weight(setting, found, y)).numpy()
    return {
        "weight_error": round(float(off.mean()), 4),
        "weight_error_rms": round(float(np.sqrt((off**2).mean())), 4),
    }


def with_prior(name: str) -> None:
    """Rows of methods on the learned prior."""
    setting, truth, y = case_data(name, CASES)
    found = reference(name)
    base = twin.scores(setting, found, truth, y)
    prior = sd.load_prior(PROBLEM / "prior")
    rows: dict[str, Any] = {}
    problem = module(PROBLEM, "problem")
    for label in ["learned prior"]:
        started = time.process_time()
        proposals = problem.propose(name, prior, truth, LEARNED_DRAWS, 0, False)
        x = twin.states(problem.settled(setting, proposals, y, LEARNED_DRAWS))
        rows[label] = summary(twin.scores(setting, x, truth, y, found), base)
        rows[label] |= {"seconds": round(time.process_time() - started, 1)} | weights(setting, x, y, found)
        print(name, label, rows[label], flush=True)
        keep("learned", name, rows)


def main(arguments: list[str]) -> None:
    """Measure what is named and keep it beside what was measured before."""
    measure = {"model": with_model, "learned": with_prior}[arguments[0]]
    for name in arguments[1:]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measure(name)


if __name__ == "__main__":
    main(sys.argv[1:])
