"""What MMPS can take for the covariance, and DPSDenoiser beside it, on a learned prior: digits from five views.

No posterior is known here, so draws are judged by the truth: PSNR of the mean, CRPS of every cell, and coverage of
90 % intervals. 32 test digits, 16 draws of each; "guarded" is so slow that it gets 4 digits, 8 draws and 16 steps, and
"gaussian" is run beside it on the same.

    python benchmarks/learned.py

What it prints is kept in learned.txt beside it.
"""

from __future__ import annotations

import time
import warnings

import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset, definition
from sciddiff.methods import MMPS, DPSDenoiser, Method
from sciddiff.solvers import Ancestral, DPMSolver, Moments, Solver

IMAGES, DRAWS = 32, 16
RULES: list[tuple[str, Method, Solver | None]] = [
    ("MMPS (default)", MMPS(), None),
    ('MMPS "gaussian", Moments, 16 steps', MMPS("gaussian"), Moments(steps=16)),
    ('MMPS "gaussian", Moments, 64 steps', MMPS("gaussian"), Moments(steps=64)),
    ('MMPS "unit", Moments, 64 steps', MMPS("unit"), Moments(steps=64)),
    ('MMPS "scalar", gamma 0.1, DPMSolver, 64 steps', MMPS("scalar", gamma=0.1), DPMSolver(steps=64)),
    ('MMPS "scalar", gamma 0.01, DPMSolver, 64 steps', MMPS("scalar", gamma=0.01), DPMSolver(steps=64)),
    ("DPSDenoiser, zeta 0.5, Ancestral, 96 steps", DPSDenoiser(), Ancestral(steps=96)),
]
SLOW: list[tuple[str, Method, Solver | None]] = [
    ('MMPS "gaussian", DPMSolver, 16 steps', MMPS("gaussian"), DPMSolver(steps=16)),
    ('MMPS "guarded", DPMSolver, 16 steps', MMPS("guarded"), DPMSolver(steps=16)),
]


def table(rules: list[tuple[str, Method, Solver | None]], images: int, n: int) -> None:
    """Print the scores of some rules."""
    digits = definition("digits_ct")
    prior = sd.load_prior(digits.HERE / "prior")
    problem = digits.build(prior, dataset("digits").TEST, images=images)
    truth = problem.truth["ink"]
    print(f"\ndigits_ct: {images} test digits, {n} draws, one thread")
    print(f"{'rule':48s}{'PSNR [dB]':>10s}{'CRPS':>8s}{'90 %':>8s}{'seconds':>9s}")
    for name, method, solver in rules:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the draws say themselves that they look wrong; here it is measured
            draws = problem.posterior.sample(n, method=method, solver=solver, seed=0, progress=False)
        took, x = time.perf_counter() - start, draws["ink"]
        found = digits.scores(truth, x.mean("sample"), x)
        held = f"{100 * found['coverage_90']:.0f} %"
        print(f"{name:48s}{found['psnr']:10.1f}{found['crps']:8.3f}{held:>8s}{took:9.1f}", flush=True)


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    table(RULES, IMAGES, DRAWS)
    table(SLOW, 4, 8)


if __name__ == "__main__":
    main()
