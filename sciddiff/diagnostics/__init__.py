"""Are the draws any good: scores against a truth, and distances between sets of draws."""

from __future__ import annotations

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
    "chi_square",
    "coverage",
    "crps",
    "crps_normal",
    "energy_score",
    "floor",
    "gaussian_w2",
    "pooled_ranks",
    "rank_histogram",
    "relative_error",
    "rmse",
    "sliced_w1",
    "spread",
    "spread_skill",
    "summary",
]
