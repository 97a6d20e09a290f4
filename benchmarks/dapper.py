"""Filters on the twin experiments of DAPPER (Raanes et al. 2024), with its settings: do ours reach its errors?

    python benchmarks/dapper.py [--only letkf ...]
    python benchmarks/dapper.py --render          (only write the page anew)

A truth and its observations are simulated, a filter runs over them, and ``rmse.a`` is the mean over the cycles after a
burn-in of the root mean square error of the analysis mean over the state's values. What was measured is kept in
dapper.json beside it, one line a row; what is there already, with the same settings, is not run again. At the end it writes
docs/dapper.md from that file. Documented figures stand in comments of DAPPER's experiment files. "dapper" in the file holds
what DAPPER 1.7.1 itself gave when it was run again with these numbers of cycles, seed by seed (``dpr.set_seed(seed)``, then
``HMM.simulate()`` and the filter; Python 3.11, numpy 2.4), and "dapper once" what it gave at one seed before that, from which
ours were to be off by 0.03 at most.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciddiff import GaussianPrior, covariance, noise, operators
from sciddiff.assimilation import ETKF, LETKF, BootstrapFilter, EnKF, StateSpaceModel
from sciddiff.assimilation.base import Filter
from sciddiff.physics import Lorenz63, Lorenz96, System

KEPT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "dapper.md"
SEED = 0


@dataclass(frozen=True)
class Experiment:
    """A twin experiment: a model without error, all of its values observed.

    Attributes:
        source: the file of DAPPER's and the paper whose experiment it is.
        system: the model.
        every: steps of the model from one observation to the next.
        start: mean of the initial law, of members and truth alike.
        start_variance: its variance.
        variance: of the errors of the observations.
        cycles: number of observations.
        burn_in: those that do not count.
    """

    source: str
    system: System
    every: int
    start: tuple[float, ...]
    start_variance: float
    variance: float
    cycles: int
    burn_in: int

    def model(self, step: Callable[[torch.Tensor], torch.Tensor] | None = None) -> StateSpaceModel:
        """The model, one time a cycle and one before the first."""
        space = self.system.space
        spread = covariance.white(space.shape, self.start_variance)

        def cycle(x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.every):
                x = self.system.step(x)
            return x

        initial = GaussianPrior(space, spread, mean=list(self.start))
        return StateSpaceModel(step or cycle, initial, space=space, times=self.cycles + 1)


@dataclass(frozen=True)
class Row:
    """A filter on an experiment, with the call and the error that DAPPER documents, and the number of our truths."""

    key: str
    on: str
    method: Filter
    members: int
    dapper: str
    documented: float
    seeds: int = 20

    @property
    def settings(self) -> dict[str, Any]:
        """What it was measured with."""
        one = EXPERIMENTS[self.on]
        return {
            "experiment": self.on,
            "cycles": one.cycles,
            "burn_in": one.burn_in,
            "members": self.members,
            "seeds": self.seeds,
            "method": repr(self.method),
        }


EXPERIMENTS = {
    "L63": Experiment(
        "`Lorenz63/sakov2012`", Lorenz63(dt=0.01), 25, (1.509, -1.531, 25.46), 2.0, 2.0, 2000, 64
    ),
    "L96": Experiment(
        "`Lorenz96/sakov2008`", Lorenz96(dt=0.05), 1, (1.0,) + (0.0,) * 39, 1e-3, 1.0, 1000, 400
    ),
}
# Gaspari and Cohn's taper of DAPPER ends at 2 * 1.82 radii
_LOCAL = LETKF(inflation=1.04, radius=4 * 3.64, period=40.0, rotate=True)
ROWS = [
    Row("etkf", "L63", ETKF(inflation=1.02, rotate=True), 10, "EnKF('Sqrt', N=10, infl=1.02, rot=True)", 0.60),
    Row("enkf", "L63", EnKF(inflation=1.01), 100, "EnKF('PertObs', N=100, infl=1.01)", 0.56),
    Row("pf100", "L63", BootstrapFilter(100, 0.3, 2.4), 100, "PartFilt(N=100, reg=2.4, NER=0.3)", 0.38),
    Row("pf800", "L63", BootstrapFilter(800, 0.2, 0.9), 800, "PartFilt(N=800, reg=0.9, NER=0.2)", 0.28, 5),
    Row("letkf", "L96", _LOCAL, 7, "LETKF(N=7, rot=True, infl=1.04, loc_rad=4)", 0.22),
    Row("enkf96", "L96", EnKF(inflation=1.06), 40, "EnKF('PertObs', N=40, infl=1.06)", 0.22),
    Row("etkf96", "L96", ETKF(inflation=1.013, rotate=True), 24, "EnKF('Sqrt', N=24, infl=1.013, rot=True)", 0.18),
]  # fmt: skip


def measure(row: Row, cycles: int | None = None) -> dict[str, Any]:
    """The scores of a row, all truths side by side, each with observations and an ensemble of its own.

    Args:
        row: which.
        cycles: fewer than the experiment's, for a test.
    """
    one = EXPERIMENTS[row.on]
    one = one if cycles is None else replace(one, cycles=cycles)
    model, see = one.model(), operators.Identity(one.system.space)
    errors = noise.Gaussian(math.sqrt(one.variance))
    started = time.perf_counter()
    truth = model.simulate(row.seeds, seed=SEED).rename(sample="twin")
    states = model.trajectories.tensor(truth, batch_dim="twin")
    y = errors.sample(states, seed=SEED + 1)
    # the first time has no observation: a cycle begins with a forecast
    y = torch.where(_first(model), torch.nan, y)
    seen = model.given(y, see, errors, batch_dim="twin")
    found = seen.moments(row.members, row.method, seed=SEED)
    dims = [d for d in truth[next(iter(truth))].dims if d not in ("twin", "time")]
    square = ((found.sel(moment="mean") - truth) ** 2).to_dataarray("value").mean(["value", *dims])
    width = (found.sel(moment="sd") ** 2).to_dataarray("value").mean(["value", *dims])
    late = {"time": slice(one.burn_in + 1, None)}
    rmse = np.sqrt(square).isel(late).mean("time").values
    return {
        "settings": row.settings,
        "rmse_a": rmse.round(5).tolist(),
        "rmv_a": np.sqrt(width).isel(late).mean("time").values.round(5).tolist(),
        "diverged": int((rmse > math.sqrt(one.variance)).sum()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _first(model: StateSpaceModel) -> torch.Tensor:
    """True at the first time of a trajectory."""
    axis = 0 if model.trajectories.shape[0] == model.length else 1
    index = torch.arange(model.length).reshape(-1, *(1,) * (len(model.trajectories.shape) - 1 - axis))
    return index == 0


def page(table: dict[str, Any]) -> str:
    """The page, from what was kept."""
    lines = [
        "# Filters against DAPPER's",
        "",
        "Made by `python benchmarks/dapper.py`, which keeps what it measured in `benchmarks/dapper.json` and writes this page.",
        "",
        "The twin experiments of [DAPPER](https://github.com/nansencenter/DAPPER) with its settings: a truth, observations of all",
        "of its values at every cycle, a filter that knows the model. `rmse.a` is the mean over the cycles, after a burn-in, of the",
        "root mean square error of the analysis mean; `rmv.a` is the ensemble's own spread in the same sense. The documented figure",
        "stands beside each filter in DAPPER's file of the experiment, for one seed; DAPPER 1.7.1 was also run again, at the seeds",
        "that are counted. One truth is not another: single seeds scatter by about 6 % on Lorenz-63, so medians are compared. A run",
        "whose error is above that of the observations themselves is counted as diverged; it stays in the median.",
        "",
        *_once(table),
        "",
    ]
    for name, one in EXPERIMENTS.items():
        lines += [
            f"## {one.source}",
            "",
            f"{one.cycles} cycles, {one.burn_in} of them burn-in, observed every {one.every * one.system.dt:g} time units with a "
            f"variance of {one.variance:g}.",
            "",
            "| filter | of DAPPER | documented | DAPPER, one seed | DAPPER again, median (seeds) | ours, median (seeds) | from to | rmv.a | diverged |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in ROWS:
            if row.on != name or row.key not in table["rows"]:
                continue
            got, again = table["rows"][row.key], table["dapper"].get(row.key)
            rmse = np.array(got["rmse_a"])
            once = table["dapper once"].get(row.key)
            single = "" if once is None else f"{once:.3f}"
            there = "" if again is None else f"{np.median(again):.3f} ({len(again)})"
            if again is not None and (lost := sum(error > math.sqrt(one.variance) for error in again)):
                there += f", {lost} diverged"
            lines.append(
                f"| `{_short(row)}` | `{row.dapper}` | {row.documented:.2f} | {single} | {there} | "
                f"**{np.median(rmse):.3f}** ({len(rmse)}) | {rmse.min():.3f} to {rmse.max():.3f} | "
                f"{np.median(got['rmv_a']):.3f} | {got['diverged']} |"
            )
        lines.append("")
    return "\n".join(lines)


def _once(table: dict[str, Any]) -> list[str]:
    """How far ours are from DAPPER's single seeds, and what the numbers of seeds are for."""
    off = {
        key: float(np.median(table["rows"][key]["rmse_a"])) - once
        for key, once in table["dapper once"].items()
    }
    names = {row.key: f"{type(row.method).__name__} of {row.members}" for row in ROWS}
    shown = ", ".join(f"{names[key]} {d:+.3f}" for key, d in off.items())
    ours, theirs = np.array(table["rows"]["etkf"]["rmse_a"]), np.array(table["dapper"]["etkf"])
    low = int((theirs > table["dapper once"]["etkf"]).sum())
    return [
        f"Ours were to be within 0.03 of a run of DAPPER at one seed. The medians differ from that by: {shown}.",
        "The ETKF on Lorenz-63 is the one that misses. That seed was a lucky one: of "
        f"{len(theirs)} others of DAPPER's, {low} have larger errors, and from their median ours is off by "
        f"{np.median(ours) - np.median(theirs):+.3f}.",
        f"Errors of single seeds scatter there by {theirs.std(ddof=1):.3f} (DAPPER) and {ours.std(ddof=1):.3f} (ours), so that a "
        f"median of five is itself uncertain by {1.25 * theirs.std(ddof=1) / 5**0.5:.3f} and "
        f"{1.25 * ours.std(ddof=1) / 5**0.5:.3f}:",
        "too much to tell 0.03. So ours were run at 20 seeds, and DAPPER's ETKF at 13, which leaves "
        f"{1.25 * ours.std(ddof=1) / len(ours) ** 0.5:.3f} and {1.25 * theirs.std(ddof=1) / len(theirs) ** 0.5:.3f}; the costly",
        "filter with 800 particles and DAPPER's other filters stayed at five.",
    ]


def _short(row: Row) -> str:
    return row.settings["method"].replace("members=None", f"members={row.members}")


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="*", help="keys of rows")
    parser.add_argument("--render", action="store_true", help="write the page alone")
    asked = parser.parse_args()
    table = json.loads(KEPT.read_text(encoding="utf-8"))
    for row in ROWS:
        kept = table["rows"].get(row.key, {}).get("settings")
        if asked.render or (asked.only and row.key not in asked.only) or kept == row.settings:
            continue
        table["rows"][row.key] = measure(row)
        print(row.key, table["rows"][row.key]["rmse_a"], flush=True)
        KEPT.write_text(_lines(table), encoding="utf-8")
    PAGE.write_text(page(table), encoding="utf-8")


def _lines(table: dict[str, Any]) -> str:
    """JSON with one line a row."""
    parts = [
        f'"{name}": {{\n' + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in rows.items()) + "\n}"
        for name, rows in table.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
