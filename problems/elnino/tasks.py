"""More that the same prior over windows is asked: events, months that were missed, and two years ahead.

None of it is trained for: an event is counted among the draws, a missing month is not observed, and two years are drawn
window by window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import sciddiff as sd
from sciddiff.bench.catalog import module
from sciddiff.diagnostics import crps
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import Prior

__all__ = ["event_table", "far_table", "holed_table", "in_a_row", "missed", "two_years"]

baselines = module(__file__, "baselines")
TRAIN_END, ORIGINS = "1994-12", ("1995-01", "2010-12")
WINDOW, HORIZON, FAR = 24, 12, 24
# an event: so many months in a row are so much warmer than the training mean of their calendar month
MONTHS, WARM = 3, 1.0
SHARE, THIRD = 0.4, 3
# two years ahead are forecast from every fifth origin, which come from all seasons
EVERY = 5
FAR_LEADS = (6, 12, 13, 18, 24)


def in_a_row(anomalies: np.ndarray) -> np.ndarray:
    """Whether at least `MONTHS` months in a row are `WARM` or more, along the last axis; NaN where one is not known."""
    warm = np.lib.stride_tricks.sliding_window_view(anomalies >= WARM, MONTHS, axis=-1)
    found = warm.all(-1).any(-1).astype(float)
    return np.where(np.isnan(anomalies).any(-1), np.nan, found)


def event_table(
    draws: Mapping[str, xr.DataArray], sst: xr.DataArray
) -> tuple[dict[str, xr.DataArray], list[dict[str, str]]]:
    """Brier scores of the probability that a warm spell comes in the year ahead, by origin, and a table of them.

    Args:
        draws: name -> temperatures ("sample", "origin", "lead").
        sst: what happened.

    Returns:
        Scores ``(origin, lead: 1)`` of each method, for `baselines.block_means`, and rows of a table with the ratio to
        the score of the training years' frequency and a paired 95 % interval.
    """
    frame = next(iter(draws.values())).isel(sample=0, drop=True)
    season, train = baselines.normals(sst)[0], int((sst["time"] <= np.datetime64(TRAIN_END)).sum())
    mean = season[frame["valid_time"].dt.month.values - 1]
    happened = in_a_row(_truth(frame, sst).values - mean)
    past = sst.values[:train] - season[sst["time"].dt.month.values[:train] - 1]
    often = in_a_row(np.lib.stride_tricks.sliding_window_view(past, HORIZON)).mean()
    chance = {"frequency of 1950-1994": np.full(happened.shape, often)}
    chance |= {name: in_a_row(x.values - mean).mean(0) for name, x in draws.items()}
    scores = {
        name: frame.isel(lead=[0]).copy(data=((p - happened) ** 2)[:, None]) for name, p in chance.items()
    }
    reference, rows = baselines.block_means(scores["frequency of 1950-1994"]), []
    for name, score in scores.items():
        ratio = (baselines.block_means(score) / reference).values
        low, high = np.quantile(ratio, [0.025, 0.975])
        here = float(score.mean() / scores["frequency of 1950-1994"].mean())
        rows.append(
            {
                "method": name,
                "Brier score": f"{float(score.mean()):.3f}",
                "over the frequency's": f"{here:.2f} [{low:.2f}, {high:.2f}]",
                "mean probability where it came": f"{np.nanmean(chance[name][happened == 1]):.2f}",
                "where it did not": f"{np.nanmean(chance[name][happened == 0]):.2f}",
            }
        )
    return scores, rows


def missed(y: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Histories with months missing: windows of anomalies ``(cases, 24)``, NaN where not seen."""
    chance = Streams(seed, [0], purpose="missed months").uniform(y.shape, dtype=torch.float64)[0].numpy()
    third = np.arange(WINDOW) % THIRD != (WINDOW - HORIZON - 1) % THIRD
    last = np.arange(WINDOW) >= WINDOW - HORIZON - 3
    return {
        "all twelve months": y,
        f"{100 * SHARE:.0f} % of the months missing at random": np.where(chance < SHARE, np.nan, y),
        "every third month only": np.where(third, np.nan, y),
        "the last three months missing": np.where(last, np.nan, y),
    }


def holed_table(scores: Mapping[str, xr.DataArray], leads: tuple[int, ...]) -> list[dict[str, str]]:
    """CRPS by lead of each history, ``(origin, lead)``."""
    return [
        {"history": name} | {f"lead {lead}": f"{float(s.sel(lead=lead).mean()):.3f}" for lead in leads}
        for name, s in scores.items()
    ]


def two_years(
    prior: Prior, sst: xr.DataArray, *, samples: int = 100, seed: int = 0, every: int = EVERY
) -> xr.DataArray:
    """Forecasts of 24 months by `sd.forecast`, from every fifth origin, dims ("sample", "origin", "lead")."""
    frame = baselines.climatology(sst, train_end=TRAIN_END, origins=ORIGINS, horizon=FAR).isel(
        origin=slice(None, None, every)
    )
    out = np.empty((samples, *frame["mean"].shape))
    for i, last in enumerate(frame["init_time"].values):
        past = sst.sel(time=slice(None, last))
        # forecasts of different origins are to share no noise
        drawn = sd.forecast(prior, past, horizon=FAR, obs_std=0.01, samples=samples, seed=1000 * seed + i)
        out[:, i] = drawn["sst"].values
    return frame["mean"].expand_dims(sample=samples).copy(data=out).rename("sst")


def far_table(
    draws: Mapping[str, xr.DataArray], sst: xr.DataArray
) -> tuple[dict[str, xr.DataArray], list[dict[str, str]]]:
    """CRPS ``(origin, lead)`` of forecasts of two years beside climatology and the AR(3), and a table by lead."""
    origins = next(iter(draws.values()))["origin"]
    scores = {}
    for name in ("climatology", "AR(3)"):
        normal = baselines.BASELINES[name](sst, train_end=TRAIN_END, origins=ORIGINS, horizon=FAR)
        scores[name] = baselines.verify(normal.sel(origin=origins), sst)["crps"]
    scores |= {
        name: crps(x, _truth(x.isel(sample=0, drop=True), sst), nan="omit") for name, x in draws.items()
    }
    rows = [
        {"method": name} | {f"lead {lead}": f"{float(s.sel(lead=lead).mean()):.3f}" for lead in FAR_LEADS}
        for name, s in scores.items()
    ]
    return scores, rows


def _truth(frame: xr.DataArray, sst: xr.DataArray) -> Any:
    """What happened at the valid times of a frame; NaN beyond the record."""
    times = frame["valid_time"].values
    seen = sst.to_series().reindex(pd.DatetimeIndex(times.ravel()))
    return frame.copy(data=seen.to_numpy().reshape(times.shape))
