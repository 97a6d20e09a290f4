"""How far every method's draws are from the exact posterior, with the exact denoiser: any error is its own.

    python benchmarks/fidelity.py [--only series MMPS ...] [--seeds 20] [--draws 1000] [--jobs 2]
    python benchmarks/fidelity.py --sbc 300 99      (simulation-based calibration of every row)
    python benchmarks/fidelity.py --render          (only write the page and the figure anew)

Rows (rows.py) are tried on problems whose posterior is known (`sciddiff.testing.exact` and `trusted`), each problem made
anew from every seed. What was measured is kept in fidelity.json beside it, one line a row and problem; what is there
already, with the same settings, is not run again, so that the command can be stopped and goes on where it was. At the end
it writes docs/fidelity.md and docs/images/fidelity_budget.png from that file.

Distances are Gaussian W2 where the posterior is Gaussian and sliced W1 elsewhere, in the prior's normalised units, over
their floor: the median of the same estimator on 20 pairs of exact sets of that size.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page import render
from rows import PROBLEMS, ROWS, Row

from sciddiff.diagnostics import floor, gaussian_w2, sliced_w1
from sciddiff.diagnostics.calibration import log_likelihood, sbc
from sciddiff.posterior import Posterior
from sciddiff.testing import ExactProblem

KEPT = Path(__file__).with_suffix(".json")
FIGURES = (
    "distance", "mean_error", "sd_median", "sd_low", "sd_high", "cover50", "cover90",
    "forwards", "vjps", "operator_calls", "seconds",
)  # fmt: skip
# problems on which calibration over simulated cases is tried
CALIBRATED = ("series", "mixture, 2 data", "Laplace walk")

Cell = dict[str, Any]


def sample(row: Row, problem: ExactProblem, n: int, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """Draws of a row ``(n, d)``, and what they cost."""
    space, started = problem.posterior.prior.space, time.process_time()
    if row.method is None and row.solver is None:
        x, attrs = problem.draw(n, 777_000 + seed), {}
    elif row.method is None:
        assert problem.solution is not None  # rows.py names the problems that have one
        draws = problem.solution.sample(n, seed=seed, solver=row.solver)
        x, attrs = space.tensor(draws, batch_dim="sample").flatten(1).numpy(), draws.attrs
    else:
        known = (problem.hidden() if row.hidden else problem).posterior
        # a new one, since a posterior keeps the matrix that an earlier row has paid for
        posterior = Posterior(known.prior, known.observations)
        draws = posterior.sample(n, method=row.method, solver=row.solver, seed=seed, progress=False)
        x, attrs = space.tensor(draws, batch_dim="sample").flatten(1).numpy(), draws.attrs
    cost = {name: float(attrs.get(name, 0.0)) for name in ("forwards", "vjps", "operator_calls")}
    return x, {**cost, "seconds": time.process_time() - started}


def units(problem: ExactProblem) -> np.ndarray:
    """The prior's scale, ``(d,)``."""
    prior = problem.posterior.prior
    return torch.broadcast_to(prior.normalisation.scale, prior.space.shape).flatten().double().numpy()


def distance(problem: ExactProblem, a: np.ndarray, b: np.ndarray) -> float:
    """W2g or SW1 of two sets, in normalised units."""
    scale = units(problem)
    return (gaussian_w2 if problem.gaussian else sliced_w1)(a / scale, b / scale)


def measure(row: Row, problem: ExactProblem, n: int, seed: int) -> Cell:
    """One row on one problem: its figures, or why there are none."""
    if row.method is not None and (why := row.method.misfit(problem.posterior)) is not None:
        return {"misfit": why}
    try:
        x, cost = sample(row, problem, n, seed)
        return {**figures(problem, x, seed), **cost}
    except Exception as error:
        # whatever a row raises is its result, and is told on the page
        return {"raises": _said(error)}


def figures(problem: ExactProblem, x: np.ndarray, seed: int) -> Cell:
    """How far draws ``(n, d)`` are from the exact posterior."""
    exact = problem.draw(len(x), 10_000 + seed)
    ratio = x.std(0, ddof=1) / problem.sd
    covered = {}
    for level in (50, 90):
        low, high = np.quantile(x, [0.5 - level / 200, 0.5 + level / 200], axis=0)
        covered[f"cover{level}"] = float(((exact > low) & (exact < high)).mean())
    return {
        "distance": distance(problem, x, exact),
        "mean_error": float(np.sqrt((((x.mean(0) - problem.mean) / problem.sd) ** 2).mean())),
        "sd_median": float(np.median(ratio)),
        "sd_low": float(ratio.min()),
        "sd_high": float(ratio.max()),
        **covered,
    }


def calibrate(row: Row, problem: ExactProblem, cases: int, draws: int) -> Cell:
    """Simulation-based calibration of one row: the overall p-value, and the worst quantity."""
    truths, posterior = problem.cases(cases, seed=0)
    space = posterior.prior.space
    started = time.process_time()
    try:
        x = posterior.sample(draws, method=row.method, solver=row.solver, seed=0, progress=False)
    except Exception as error:
        return {"raises": _said(error)}
    truth = space.dataset(torch.from_numpy(truths).reshape(cases, *space.shape), ["case"])
    found = sbc(x, truth, quantities={"log-likelihood": log_likelihood(posterior)})
    return {
        "p_value": float(found.p_value),
        "worst": str(found.quantity.values[int(found.p_quantity.argmin())]),
        "seconds": time.process_time() - started,
    }


# -- what is kept ------------------------------------------------------------------------------------


class Kept:
    """The JSON file: floors of the problems and, for every row and problem, settings, seeds and figures."""

    def __init__(self, path: Path, draws: int) -> None:
        self.path, self.draws = path, draws
        self.table: dict[str, Any] = {"draws": draws, "floors": {}, "rows": {}, "sbc": {}}
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old["draws"] == draws:
                self.table = old
        for row in ROWS:
            if self.table["rows"].get(row.label, {}).get("settings") != row.settings:
                self.table["rows"][row.label] = {"settings": row.settings, "family": row.family, "on": {}}
                self.table["sbc"].pop(row.label, None)
            on = self.table["rows"][row.label]["on"]
            self.table["rows"][row.label]["on"] = {k: on[k] for k in PROBLEMS if k in row.on and k in on}
        labels = [row.label for row in ROWS]
        self.table["rows"] = {label: self.table["rows"][label] for label in labels}
        self.table["sbc"] = {k: v for k, v in self.table["sbc"].items() if k in labels}

    def forget(self, labels: list[str]) -> None:
        """Drop what was measured of some rows."""
        for label in labels:
            self.table["rows"][label]["on"] = {}
            self.table["sbc"].pop(label, None)

    def missing(self, name: str, seed: int, rows: list[Row]) -> list[Row]:
        """Rows that were not tried on a problem yet."""
        on = {row.label: self.table["rows"][row.label]["on"].get(name, {}) for row in rows}
        return [row for row in rows if name in row.on and str(seed) not in on[row.label]]

    def add(self, name: str, seed: int, least: float, cells: dict[str, Cell]) -> None:
        """Keep what was measured on one problem."""
        self.table["floors"].setdefault(name, {})[str(seed)] = _short(least)
        for label, cell in cells.items():
            figures = [_short(cell[f]) for f in FIGURES] if "distance" in cell else cell
            self.table["rows"][label]["on"].setdefault(name, {})[str(seed)] = figures

    def write(self) -> None:
        """Write the file at once, so that a stop leaves the old one or the new."""
        self.table["figures"] = FIGURES
        flat = json.dumps(self.table, indent=1, sort_keys=False)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(_one_line_a_list(flat), encoding="utf-8")
        os.replace(temporary, self.path)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _one_line_a_list(text: str) -> str:
    """Lists of numbers on one line each."""
    out, inside = [], False
    for line in text.splitlines():
        out.append(line.strip() if inside else line)
        inside = inside or line.rstrip().endswith("[")
        if inside and line.strip().startswith("]"):
            inside = False
        out.append("" if inside else "\n")
    return "".join(out)


# -- the work ----------------------------------------------------------------------------------------


@lru_cache(4)
def made(name: str, seed: int) -> ExactProblem:
    """A problem; those known by Gibbs sampling take seconds."""
    return PROBLEMS[name](seed)


def one(name: str, seed: int, rows: list[Row], n: int) -> tuple[str, int, float, dict[str, Cell]]:
    """Some rows on one problem."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # draws say themselves that they look wrong; here it is measured
    problem = made(name, seed)
    least = floor(problem.draw, n, lambda a, b: distance(problem, a, b))
    return name, seed, least, {row.label: measure(row, problem, n, seed) for row in rows}


def one_sbc(name: str, row: Row, cases: int, draws: int) -> tuple[str, str, Cell]:
    """One row over many cases."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    problem = made(name, 0)
    problem = problem.hidden() if row.hidden else problem
    fits = row.method is not None and row.method.misfit(problem.cases(2, 0)[1]) is None
    return name, row.label, calibrate(row, problem, cases, draws) if fits else {"misfit": ""}


def work(options: argparse.Namespace, kept: Kept) -> Iterator[str]:
    """Run what is missing, and keep it as it comes."""
    chosen = [row for row in ROWS if _named(options.only, row.label, list(PROBLEMS))]
    problems = [name for name in PROBLEMS if _named(options.only, name, [row.label for row in ROWS])]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = []
        if options.sbc:
            for row in chosen:
                for name in CALIBRATED:
                    known = kept.table["sbc"].get(row.label, {}).get(name, {})
                    if name in problems and name in row.on and known.get("size") != options.sbc:
                        jobs.append(pool.submit(one_sbc, name, row, *options.sbc))
        else:
            for seed in range(options.seeds):
                for name in problems:
                    rows = kept.missing(name, seed, chosen)
                    parts = [rows[i : i + 5] for i in range(0, len(rows), 5)]
                    jobs += [pool.submit(one, name, seed, part, options.draws) for part in parts]
        for i, job in enumerate(as_completed(jobs), 1):
            if options.sbc:
                name, label, cell = job.result()
                kept.table["sbc"].setdefault(label, {})[name] = {"size": options.sbc, **cell}
                said = f"{label}: {cell}"
            else:
                name, seed, least, cells = job.result()
                kept.add(name, seed, least, cells)
                said = f"seed {seed}: {len(cells)} rows"
            kept.write()
            yield f"{i} of {len(jobs)}: {name}, {said}"


def _named(only: list[str], name: str, others: list[str]) -> bool:
    """Whether a name holds one of the words, if any of the words is of its kind."""
    mine = [word for word in only if word in name]
    foreign = [word for word in only if any(word in other for other in others)]
    return bool(mine) or len(foreign) == len(only)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=[], help="parts of labels of rows or of names of problems"
    )
    parser.add_argument("--seeds", type=int, default=20, help="problems of each kind")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sbc", type=int, nargs=2, metavar=("CASES", "DRAWS"))
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument(
        "--again", action="store_true", help="forget what is kept of the rows named by --only"
    )
    parser.add_argument("--kept", type=Path, default=KEPT, help="the JSON file")
    options = parser.parse_args()
    kept = Kept(options.kept, options.draws)
    if options.again:
        kept.forget([row.label for row in ROWS if any(word in row.label for word in options.only)])
    if not options.render:
        for line in work(options, kept):
            print(line, flush=True)
    render(kept.table)


if __name__ == "__main__":
    main()
