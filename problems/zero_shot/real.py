"""The seven series of the test, none of which the prior has seen, and the two forecasts that it is compared with.

All of them come with statsmodels: sunspots, the flow of the Nile, carbon dioxide at Mauna Loa, sea-surface temperature off
Peru, and gross domestic product, unemployment and inflation of the United States.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sciddiff.assimilation import baselines
from sciddiff.bench.catalog import dataset
from sciddiff.errors import ConvergenceError, MissingDependencyError
from sciddiff.random import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Real", "sarimax", "seasonal_naive", "series"]


@dataclass(frozen=True)
class Real:
    """One series: its values on regular dates, the period of its season, and the orders of its ARIMA.

    The orders are those of textbooks for the sunspots (an AR(9)) and the Nile (a local level), of the problem ``elnino`` for
    the temperature, the airline model for carbon dioxide, and a difference with one coefficient on either side elsewhere.
    ``trend="c"`` is a constant of what is left after differencing: of a series that is differenced once, a steady growth.
    """

    name: str
    units: str
    values: pd.Series
    period: int
    order: tuple[int, int, int]
    seasonal_order: tuple[int, int, int, int] = (0, 0, 0, 0)
    trend: str | None = None


def series() -> list[Real]:
    """The series, shortest steps last.

    Raises:
        MissingDependencyError: without statsmodels.
    """
    try:
        from statsmodels.datasets import macrodata, sunspots
    except ImportError as error:
        raise MissingDependencyError("statsmodels", "data", "the series of zero_shot") from error
    spots = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
    macro = macrodata.load_pandas().data
    quarters = pd.date_range("1959-01-01", periods=len(macro), freq="QS")
    nile = dataset("nile").load()["volume"].to_series()
    co2 = dataset("co2").load()["co2"].to_series().resample("MS").mean()
    sst = dataset("elnino").load()["sst"].to_series()
    years = pd.date_range("1700-01-01", periods=len(spots), freq="YS")
    return [
        Real("sunspots", "1", pd.Series(spots, years), 11, (9, 0, 0), trend="c"),
        Real("Nile", "1e8 m3", nile, 1, (0, 1, 1)),
        Real("GDP", "log", pd.Series(np.log(macro["realgdp"].to_numpy()), quarters), 1, (1, 1, 1), trend="c"),
        Real("unemployment", "%", pd.Series(macro["unemp"].to_numpy(), quarters), 1, (1, 1, 1)),
        Real("inflation", "%", pd.Series(macro["infl"].to_numpy(), quarters), 1, (1, 1, 1)),
        Real("CO2", "ppm", co2, 12, (0, 1, 1), (0, 1, 1, 12)),
        Real("El Niño", "degC", sst, 12, (2, 0, 2), (0, 1, 1, 12)),
    ]


def seasonal_naive(
    real: Real, origins: Sequence[int], horizon: int, context: int, samples: int, *, seed: int
) -> np.ndarray:
    """The library's, of the context alone: draws ``(samples, origins, horizon)``."""
    past = [real.values.iloc[o - context : o].rename("x") for o in origins]
    made = [
        baselines.seasonal_naive(p, horizon=horizon, period=real.period, samples=samples, seed=seed)
        for p in past
    ]
    return np.stack([drawn["x"].values for drawn in made], 1)


def sarimax(real: Real, origins: Sequence[int], horizon: int, samples: int, *, seed: int) -> np.ndarray:
    """A seasonal ARIMA fitted once, on all values before the first origin, and filtered on to every other one.

    Raises:
        ConvergenceError: if the likelihood was not maximised.
    """
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    y = real.values.to_numpy(dtype=float)
    shape = {"order": real.order, "seasonal_order": real.seasonal_order, "trend": real.trend}
    means, sds = [], []
    with warnings.catch_warnings():
        # of first guesses, which the likelihood then replaces
        warnings.simplefilter("ignore")
        fit = SARIMAX(y[: origins[0]], **shape).fit(disp=0, maxiter=500)
        if not fit.mle_retvals["converged"]:
            raise ConvergenceError(f"SARIMAX of {real.name}: the likelihood was not maximised")
        for o in origins:
            ahead = SARIMAX(y[:o], **shape).filter(fit.params).get_forecast(horizon)
            means.append(ahead.predicted_mean)
            sds.append(np.sqrt(ahead.var_pred_mean))
    return _normal(np.array(means), np.array(sds), samples, f"sarimax {real.name}", seed)


def _normal(mean: np.ndarray, sd: np.ndarray, samples: int, purpose: str, seed: int) -> np.ndarray:
    generator = Streams(seed, [0], purpose=purpose).numpy()[0]
    return mean + sd * generator.standard_normal((samples, *mean.shape))
