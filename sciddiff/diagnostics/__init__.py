"""Are the draws any good: scores against a truth, tests of calibration, distances between sets of draws."""

from __future__ import annotations

from sciddiff.diagnostics.calibration import c2st, coverage_test, log_likelihood, sbc, tarp
from sciddiff.diagnostics.distances import floor, gaussian_w2, sliced_w1
from sciddiff.diagnostics.forecasts import analysis_scores, verify
from sciddiff.diagnostics.quantiles import pit, weighted_quantile_loss
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
from sciddiff.diagnostics.variogram import variogram_score

__all__ = [
    "analysis_scores",
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
    "pit",
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
    "variogram_score",
    "verify",
    "weighted_quantile_loss",
]
