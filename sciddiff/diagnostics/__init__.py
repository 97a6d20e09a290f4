"""Are the draws any good: scores against a truth, tests of calibration, distances between sets of draws."""

from __future__ import annotations

from sciddiff.diagnostics.calibration import c2st, coverage_test, log_likelihood, sbc, tarp
from sciddiff.diagnostics.distances import floor, gaussian_w2, sliced_w1
from sciddiff.diagnostics.scores import (
    chi_square,
    coverage,
    crps,
    crps_normal,
    energy_score,
    pooled_ranks,
    rank_histogram,
    relative_error,
    rmse,
    spread,
    spread_skill,
    summary,
)

__all__ = [
    "c2st",
    "chi_square",
    "coverage",
    "coverage_test",
    "crps",
    "crps_normal",
    "energy_score",
    "floor",
    "gaussian_w2",
    "log_likelihood",
    "pooled_ranks",
    "rank_histogram",
    "relative_error",
    "rmse",
    "sbc",
    "sliced_w1",
    "spread",
    "spread_skill",
    "summary",
    "tarp",
]
