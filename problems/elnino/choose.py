"""The choices that were made on 1985-1994, fitted on 1950-1984: `MIX` of the Gaussian and the orders of SARIMAX.

The score is the mean CRPS of normal forecasts over leads 1 to 12 and every origin whose twelve months lie in those
years, so that nothing after 1994 is looked at. For a Gaussian prior the forecast is closed form.

    python problems/elnino/choose.py
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from sciddiff.bench.catalog import dataset, definition

__all__ = ["conditioned", "mixes", "orders"]

TRAIN_END, ORIGINS = "1984-12", ("1985-01", "1994-01")
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
elnino = definition("elnino")
baselines = elnino.baselines


def conditioned(sst: xr.DataArray, mix: float) -> xr.Dataset:
    """Forecasts under the Gaussian of this mix: the law of the last 12 months of a window, given the first 12."""
    prior = elnino.gaussian(sst, TRAIN_END, mix)
    eye = torch.eye(elnino.WINDOW, dtype=torch.float64)
    k = (prior.law.apply(eye) * prior.normalisation.scale**2).numpy()
    h = elnino.WINDOW - elnino.HORIZON
    gain = k[h:, :h] @ np.linalg.inv(k[:h, :h] + elnino.NOISE_SD**2 * np.eye(h))
    frame = baselines.climatology(sst, train_end=TRAIN_END, origins=ORIGINS)
    first = sst.indexes["time"].get_indexer(frame["origin"].values)
    a, season = elnino.anomalies(sst, TRAIN_END)
    mean = a[first[:, None] + np.arange(-h, 0)] @ gain.T + season[frame["valid_time"].dt.month.values - 1]
    sd = np.tile(np.sqrt(np.diag(k[h:, h:] - gain @ k[:h, h:])), (len(first), 1))
    forecast: xr.Dataset = frame.assign(mean=frame["mean"].copy(data=mean), sd=frame["sd"].copy(data=sd))
    return forecast


def mixes(sst: xr.DataArray) -> dict[float, float]:
    """CRPS [degC] of every mix of the grid."""
    return {mix: float(baselines.verify(conditioned(sst, mix), sst)["crps"].mean()) for mix in MIXES}


def orders(sst: xr.DataArray) -> dict[tuple[int, int, int], float]:
    """CRPS [degC] of SARIMAX (p, 0, q)(0, 1, 1, 12), p from 1 to 3 and q from 0 to 2."""
    grid = [(p, 0, q) for p in (1, 2, 3) for q in (0, 1, 2)]
    made = {o: baselines.sarimax(sst, order=o, train_end=TRAIN_END, origins=ORIGINS) for o in grid}
    return {o: float(baselines.verify(forecast, sst)["crps"].mean()) for o, forecast in made.items()}


def main() -> None:
    """Print both tables; a star marks the least."""
    sst = dataset("elnino").load()["sst"]
    print(f"CRPS [degC] of {ORIGINS[0]} to 1994-12, fitted on 1950-01 to {TRAIN_END}")
    for name, scores in (("MIX", mixes(sst)), ("SARIMAX order", orders(sst))):
        print(f"\n{name}")
        for choice, score in scores.items():
            print(f"{choice!s:>12s} {score:.4f}{' *' * (score == min(scores.values()))}")


if __name__ == "__main__":
    main()
