"""How often the tests of calibration accuse draws that are exact: never more than their level, by chance.

Truths of a correlated Gaussian prior, observed with noise, and draws from the exact posterior, all made with numpy.
Every run is a new set of cases; c2st compares two exact sets of one case. Printed is the share of runs with a p-value
up to each level, with the 99.9 % binomial band around the level. Bonferroni and whole numbers of hits can only lower
the share, so that one below its band is no fault of those marked "at most".

    python benchmarks/diagnostics.py [--runs 1000] [--c2st-runs 300]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import xarray as xr
from scipy import stats

from sciddiff.diagnostics import c2st, coverage_test, sbc, tarp

CASES, DRAWS, SET, LEVELS = 100, 49, 40, (0.01, 0.05, 0.2)
H = np.array([[1.0, 1.0], [1.0, -1.0]])
NOISE = np.array([0.3, 1.5])
COV = np.linalg.inv(np.eye(2) + H.T @ np.diag(NOISE**-2) @ H)
GAIN = COV @ H.T @ np.diag(NOISE**-2)


def exact(cases: int, draws: int, rng: np.random.Generator) -> tuple[xr.DataArray, np.ndarray, xr.DataArray]:
    """Truth, data ``(cases, 2)`` and exact draws."""
    truth = rng.normal(size=(cases, 2))
    y = truth @ H.T + NOISE * rng.normal(size=(cases, 2))
    x = y @ GAIN.T + rng.normal(size=(draws, cases, 2)) @ np.linalg.cholesky(COV).T
    return xr.DataArray(truth, dims=("case", "x")), y, xr.DataArray(x, dims=("sample", "case", "x"))


def one_run(seed: int) -> dict[str, float]:
    """The p-values of one run."""
    truth, y, draws = exact(CASES, DRAWS, np.random.default_rng(seed))

    def likelihood(x: xr.DataArray) -> xr.DataArray:
        return xr.DataArray(-(((y - x.values @ H.T) / NOISE) ** 2).sum(-1), dims=x.dims[:-1])

    ranks = sbc(draws, truth, quantities={"log-likelihood": likelihood}, projections=1, seed=seed)
    p = dict(zip(ranks["kind"].values.tolist(), ranks["p_quantity"].values.tolist(), strict=True))
    return {
        **{f"sbc, {kind}": value for kind, value in p.items()},
        "tarp, random references": float(tarp(draws, truth, seed=seed).p_value),
        "tarp, references given y": float(
            tarp(draws, truth, references=truth.copy(data=y @ H), seed=seed).p_value
        ),
        "sbc, all (at most)": float(ranks.p_value),
        "coverage (at most)": float(coverage_test(draws, truth, seed=seed).p_value),
    }


def two_sets(seed: int) -> dict[str, float]:
    """The p-value of c2st for two exact sets."""
    rng = np.random.default_rng(seed)
    a, b = (xr.DataArray(rng.normal(size=(SET, 2)), dims=("sample", "x")) for _ in range(2))
    out = c2st(a, b, folds=2, seed=seed)
    return {"c2st (at most)": float(out.p_value), "c2st accuracy": float(out.accuracy)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--c2st-runs", type=int, default=300)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"sbc, tarp, coverage: {CASES} cases x {DRAWS} draws; c2st: 2 x {SET} draws; 2 coordinates")
    head = "  ".join(f"level {level:<4}  99.9 % band " for level in LEVELS)
    print(f"{'test':28s} runs  {head}")
    for runs, once in ((asked.runs, one_run), (asked.c2st_runs, two_sets)):
        start = time.perf_counter()
        found = [once(seed) for seed in range(runs)]
        for name in found[0] if found else ():
            values = np.array([f[name] for f in found])
            if name == "c2st accuracy":
                error = values.std(ddof=1) / np.sqrt(runs)
                print(f"mean accuracy of c2st {values.mean():.4f} +- {error:.4f}")
                continue
            cells = []
            for level in LEVELS:
                low, high = stats.binom.interval(0.999, runs, level)
                share = (values <= level).mean()
                cells.append(f"{share:10.3f}  {low / runs:.3f}-{high / runs:.3f}  ")
            print(f"{name:28s} {runs:4d}  {'  '.join(cells)}")
        print(f"({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
