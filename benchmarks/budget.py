"""Accuracy against budget of the solvers of MMPS, where the denoising covariance is known by VJPs only.

The budget of a draw is its forwards of the denoiser and twice its VJPs. Two problems of `sciddiff.testing.exact`: the
Ornstein-Uhlenbeck series (64 times, 16 data) under a prior that tells nothing but its denoiser, Gaussian W2 of 4000 draws;
and the mixture of 25 Gaussians (8 dimensions; 1, 2 or 4 data), sliced W1 of 1000 draws. Distances are means over
problems, divided by the mean floor (1.00 is perfect), with a bootstrap interval of 90 % over the problems.

    python benchmarks/budget.py [--seeds 20] [--mixtures 5] [--out budget.json]

On the series the plain solvers are measured on the prior that tells its covariance, which gives the same draws faster,
and their VJPs are counted on 64 draws of the one that does not.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import sciddiff as sd
from sciddiff.diagnostics import floor, gaussian_w2, sliced_w1
from sciddiff.methods import MMPS
from sciddiff.solvers import Ancestral, DPMSolver, Heun, Moments, Solver
from sciddiff.testing.exact import ExactProblem, gaussian, mixture

Rule = tuple[MMPS, Solver]

SERIES: list[Rule] = [
    *((MMPS(), Moments(steps=n)) for n in (4, 8, 3)),
    (MMPS(rtol=1e-3, draw_rtol=1e-2), Moments(steps=4)),
    *((MMPS(), DPMSolver(steps=n)) for n in (7, 15, 31, 63)),
    *((MMPS(), Ancestral(steps=n)) for n in (15, 63)),
    *((MMPS(), Heun(steps=n)) for n in (8, 16)),
]
MIXTURE: list[Rule] = [
    *((MMPS(), DPMSolver(steps=n)) for n in (16, 32, 64)),
    *((MMPS(), Ancestral(steps=n)) for n in (16, 32)),
    *((MMPS(), Moments(steps=n)) for n in (8, 16, 32)),
]


def sample(posterior: sd.Posterior, rule: Rule, n: int) -> tuple[np.ndarray, float, float]:
    """Draws ``(n, d)``, forwards and budget of one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the draws say themselves that they look wrong; here it is measured
        draws = posterior.sample(n, rule[0], solver=rule[1], seed=0)
    forwards = draws.attrs["forwards"]
    return (
        draws[next(iter(draws.data_vars))].values.reshape(n, -1),
        forwards,
        forwards + 2 * draws.attrs["vjps"],
    )


def on_series(problem: ExactProblem, rule: Rule, n: int) -> tuple[float, float, float]:
    """W2, forwards and budget."""
    secret = problem.hidden().posterior
    if isinstance(rule[1], Moments):
        x, forwards, budget = sample(secret, rule, n)
    else:
        x, _, _ = sample(problem.posterior, rule, n)
        _, forwards, budget = sample(secret, rule, 64)
    return gaussian_w2(x, problem.draw(n, 10_000)), forwards, budget


def on_mixture(problem: ExactProblem, rule: Rule, n: int) -> tuple[float, float, float]:
    """SW1, forwards and budget."""
    x, forwards, budget = sample(problem.posterior, rule, n)
    return sliced_w1(x, problem.draw(n, 10_000)), forwards, budget


def summary(
    problem: str, rule: Rule, rows: list[tuple[float, float, float]], floors: np.ndarray
) -> dict[str, Any]:
    """One row of the table, printed and returned."""
    distance, forwards, budget = np.array(rows).T
    picks = np.random.default_rng(0).integers(0, len(rows), (1000, len(rows)))
    low, high = np.quantile(distance[picks].mean(1) / floors[picks].mean(1), [0.05, 0.95])
    method, solver = rule
    name = f"{type(solver).__name__}, {solver.steps} steps" + (", loose" if method != MMPS() else "")
    found = {
        "problem": problem,
        "rule": name,
        "method": repr(method),
        "solver": repr(solver),
        "forwards": forwards.mean(),
        "budget": budget.mean(),
        "distance": distance.mean(),
        "over floor": distance.mean() / floors.mean(),
        "low": low,
        "high": high,
    }
    print(
        f"{problem:16s} {name:28s} {forwards.mean():8.1f} {budget.mean():8.0f} {distance.mean():8.3f} "
        f"{found['over floor']:8.2f} ({low:.2f}-{high:.2f})",
        flush=True,
    )
    return found


def main() -> None:
    """Print the tables and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="problems of the series")
    parser.add_argument("--mixtures", type=int, default=5, help="problems of each mixture")
    parser.add_argument("--out", type=Path, default=Path("budget.json"))
    options = parser.parse_args()
    print(
        f"{'problem':16s} {'rule':28s} {'forwards':>8s} {'budget':>8s} {'distance':>8s} {'/ floor (90 %)':>15s}"
    )
    table: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        table.append(row)
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

    problems = [gaussian("series", s) for s in range(options.seeds)]
    floors = np.array([floor(p.draw, 4000, gaussian_w2) for p in problems])
    for rule in SERIES:
        note(summary("series", rule, [on_series(p, rule, 4000) for p in problems], floors))
    for data in (1, 2, 4) if options.mixtures else ():
        problems = [mixture(s, data) for s in range(options.mixtures)]
        floors = np.array([floor(p.draw, 1000, sliced_w1, pairs=10) for p in problems])
        for rule in MIXTURE:
            rows = [on_mixture(p, rule, 1000) for p in problems]
            note(summary(f"mixture, {data} data", rule, rows, floors))


if __name__ == "__main__":
    main()
