"""The Nile with Durbin and Koopman's gaps: real data, a local level, and an exact smoother to compare with.

``level_{k+1} = level_k + N(0, s_level^2)`` and ``volume_k = level_k + N(0, s_volume^2)``. The state is the level of all
100 years, the observation the flow of those that are not hidden; a gap is filled by the level and the errors of a flow.

The level is not stationary: it has no law to normalise a window by until its start has one. Here the first year's level is
``N(1000, 1000^2)``, in 10^8 cubic metres, in every prior of this folder, which is eight times wider than one observation,
where the smoother of reference starts diffusely.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import coverage, crps, crps_normal
from sciddiff.operators import Identity
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior, Prior

TITLE = "The Nile: fill Durbin and Koopman's gaps in a hundred years of flow"
SUMMARY = (
    "Forty of a hundred yearly flows of the Nile are hidden in two blocks of twenty. A local level model smooths them "
    "exactly; draws under the exact Gaussian prior of its level, and under a network trained on simulated levels, stand "
    "beside the Kalman smoother and linear interpolation, scored on the flows that were hidden."
)
HERE = Path(__file__).parent
GAPS = (slice(20, 40), slice(60, 80))
START, START_SD = 1000.0, 1000.0
# what Durbin and Koopman (2012, section 2.10.3) estimate from the whole series
PUBLISHED = {"volume": 15099.0, "level": 1469.1}
DRAWS = 4000
PATHS = 20_000


def space() -> sd.Space:
    """The level of every year."""
    return sd.Space({"time": pd.date_range("1871-01", periods=100, freq="YS").values}, {"level": "1e8 m3"})


def estimates() -> tuple[dict[str, float], float]:
    """Maximum likelihood variances from all 100 years, by statsmodels, and their diffuse log-likelihood."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    fitted = UnobservedComponents(dataset("nile").load()["volume"].values, "llevel").fit(disp=False)
    return dict(zip(("volume", "level"), map(float, fitted.params), strict=True)), float(fitted.llf)


def log_likelihood(variances: dict[str, float]) -> float:
    """The diffuse log-likelihood of all 100 years by this library: that of the 99 changes from year to year.

    Changes are ``N(0, s_level^2 I + s_volume^2 D D^T)`` with the differences ``D``, whatever the first level.
    """
    change = np.diff(dataset("nile").load()["volume"].values)
    n = len(change)
    matrix = variances["level"] * np.eye(n) + variances["volume"] * (
        2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    )
    law = sd.GaussianPrior(sd.Space({"time": n}), sd.covariance.dense(matrix))
    return float(law.log_prob(change)["log_prob"])


def gaussian(variances: dict[str, float]) -> sd.GaussianPrior:
    """The level, exactly: a random walk from its start, by its banded precision."""
    import scipy.sparse as sp

    n, inner = 100, np.full(100, 2.0)
    inner[-1] = 1.0
    matrix = sp.diags([np.full(n - 1, -1.0), inner, np.full(n - 1, -1.0)], [-1, 0, 1]).tolil()
    matrix[0, 0] = 1.0 + variances["level"] / START_SD**2
    return sd.GaussianPrior(
        space(),
        sd.covariance.precision(matrix.tocsc() / variances["level"]),
        mean=np.full(n, START),
    )


def hidden() -> tuple[xr.DataArray, np.ndarray]:
    """The flow, and True in the gaps."""
    volume = dataset("nile").load()["volume"]
    gap = np.zeros(volume.size, dtype=bool)
    for part in GAPS:
        gap[part] = True
    return volume, gap


def load(seed: int = 0) -> Problem:
    """The level given the sixty flows that are not hidden, under the trained prior."""
    volume, gap = hidden()
    variances, _ = estimates()
    mean, sds = smoother(variances)
    here = space()
    truth, y = (
        v.rename("level").drop_attrs().to_dataset() for v in (volume, volume.where(xr_mask(volume, ~gap)))
    )
    labelled = {k: here.dataset(torch.from_numpy(v)) for k, v in (("mean", mean), ("sd", sds))}
    return Problem(
        "nile",
        TITLE,
        sd.load_prior(HERE / "prior"),
        Identity(here),
        sd.noise.Gaussian(variances["volume"] ** 0.5),
        truth,
        y,
        labelled,
        missing="mask",
    )


def xr_mask(like: xr.DataArray, values: np.ndarray) -> xr.DataArray:
    """The mask, labelled as the series."""
    return like.copy(data=values)


def smoother(variances: dict[str, float], *, seen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of the level by statsmodels' Kalman smoother with a diffuse start."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    volume, gap = hidden()
    y = np.where(gap if seen is None else ~seen, np.nan, volume.values)
    found = UnobservedComponents(y, "llevel").smooth([variances["volume"], variances["level"]])
    return found.smoothed_state[0], np.sqrt(found.smoothed_state_cov[0, 0])


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the network on simulated levels, on top of the Gaussian fitted to them, and keep it in ``out``.

    The variances of the simulation are those of `estimates`; no flow is seen by the network.
    """
    levels = gaussian(estimates()[0]).sample(PATHS, seed=seed)
    prior = sd.train(
        levels,
        space(),
        network="mlp",
        settings={"width": 64, "depth": 1},
        gaussian="dense",
        steps=2000,
        batch=256,
        weight_decay=0.0,
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    return prior


def drawn(
    prior: Prior,
    variances: dict[str, float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool | None = False,
) -> xr.Dataset:
    """Draws of the level in all years given the flows that are not hidden."""
    volume, gap = hidden()
    y = np.where(gap, np.nan, volume.values)
    noise = sd.noise.Gaussian(variances["volume"] ** 0.5)
    return prior.given(y, Identity(prior.space), noise, missing="mask").sample(
        draws, seed=seed, progress=progress
    )


def flows(levels: xr.Dataset, variances: dict[str, float], seed: int) -> xr.DataArray:
    """Flows that such levels would have: the level and an error, in the hidden years."""
    volume, gap = hidden()
    at = levels["level"].isel(time=gap)
    errors = Streams(seed, range(at.sizes["sample"]), purpose="errors of the flow")
    noise = variances["volume"] ** 0.5 * errors.normal((int(gap.sum()),), dtype=torch.float64).numpy()
    return (at + noise).rename("volume").assign_attrs(units="1e8 m3", long_name=volume.attrs["long_name"])


def scored(x: xr.DataArray, truth: xr.DataArray) -> dict[str, float]:
    """RMSE of the mean, CRPS and coverage of the flows in the gaps."""
    return {
        "rmse": float(np.sqrt(((x.mean("sample") - truth) ** 2).mean())),
        "crps": float(crps(x, truth).mean()),
        "coverage": coverage(x, truth, [0.9]).item(),
    }


def references(variances: dict[str, float]) -> dict[str, dict[str, float]]:
    """The same figures of the Kalman smoother, in closed form, and of linear interpolation."""
    volume, gap = hidden()
    mean, level_sd = smoother(variances)
    truth, centre = volume.values[gap], mean[gap]
    sds = np.sqrt(level_sd[gap] ** 2 + variances["volume"])
    where = np.arange(len(gap))
    line = np.interp(where[gap], where[~gap], volume.values[~gap])
    return {
        "Kalman smoother, diffuse start": {
            "rmse": float(np.sqrt(np.mean((centre - truth) ** 2))),
            "crps": float(np.mean(np.asarray(crps_normal(centre, sds, truth)))),
            "coverage": float(np.mean(np.abs(truth - centre) < 1.6449 * sds)),
        },
        "linear interpolation": {
            "rmse": float(np.sqrt(np.mean((line - truth) ** 2))),
            "crps": float(np.mean(np.abs(line - truth))),
        },
    }


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """Fill the gaps under the exact prior and the trained one, beside the smoother and the line."""
    variances, best = estimates()
    volume, gap = hidden()
    truth = volume.isel(time=gap)
    priors: dict[str, Prior] = {
        "exact Gaussian prior": gaussian(variances),
        "trained prior": sd.load_prior(HERE / "prior"),
    }
    levels = {name: drawn(p, variances, seed=seed, progress=progress) for name, p in priors.items()}
    table = references(variances)
    table |= {name: scored(flows(x, variances, seed), truth) for name, x in levels.items()}
    kalman = table["Kalman smoother, diffuse start"]
    ours = log_likelihood(variances)
    metrics = {
        "log_likelihood": Metric(
            ours, "nats", best, "statsmodels", "diffuse log-likelihood of the series", "nearer"
        ),
        "variance_volume": Metric(
            variances["volume"], "1e16 m6", PUBLISHED["volume"], "Durbin and Koopman", "variance of a flow"
        ),
        "variance_level": Metric(
            variances["level"],
            "1e16 m6",
            PUBLISHED["level"],
            "Durbin and Koopman",
            "variance of a year's change of level",
        ),
    }
    for name, key in (("exact Gaussian prior", "exact"), ("trained prior", "trained")):
        metrics |= {
            f"{key}_gap_rmse": Metric(
                table[name]["rmse"],
                "1e8 m3",
                kalman["rmse"],
                "Kalman smoother",
                f"RMSE in the gaps, {name}",
                "nearer",
            ),
            f"{key}_gap_crps": Metric(
                table[name]["crps"],
                "1e8 m3",
                kalman["crps"],
                "Kalman smoother",
                f"CRPS in the gaps, {name}",
                "nearer",
            ),
            f"{key}_coverage_90": Metric(
                table[name]["coverage"], "1", 0.9, "nominal", f"coverage of 90 % intervals, {name}", "nearer"
            ),
            f"{key}_level_error": Metric(
                level_error(levels[name], variances),
                "1",
                0.0,
                "Kalman smoother",
                f"rms difference of the mean level from the smoother's, in its sd, {name}",
                "lower",
            ),
        }
    return Result(
        metrics,
        levels["trained prior"],
        pictures(levels, variances, seed),
        {"Hidden flows of the Nile [1e8 m3]": rows(table)},
        [
            "The variances are those of maximum likelihood on all 100 years, hidden ones among them, as in the published "
            "example; the gaps test the smoothing and not the estimation.",
            f"40 flows are hidden: by chance alone their 90 % coverage strays by {np.sqrt(0.09 / 40):.3f}.",
            "The CRPS of linear interpolation is its mean absolute error.",
        ],
        {"seed": seed, "draws": DRAWS, "start_sd": START_SD},
        headline=["trained_gap_rmse", "trained_gap_crps", "trained_coverage_90"],
    )


def level_error(x: xr.Dataset, variances: dict[str, float]) -> float:
    """Rms difference of the draws' mean level from the smoother's, in the smoother's sd, over all years."""
    mean, sds = smoother(variances)
    return float(np.sqrt(np.mean(((x["level"].mean("sample").values - mean) / sds) ** 2)))


def rows(table: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The table as text."""
    return [
        {
            "method": name,
            "RMSE": f"{f['rmse']:.1f}",
            "CRPS": f"{f['crps']:.1f}",
            "coverage 90 %": f"{100 * f['coverage']:.1f} %" if "coverage" in f else "",
        }
        for name, f in table.items()
    ]


def pictures(levels: dict[str, xr.Dataset], variances: dict[str, float], seed: int) -> dict[str, Figure]:
    """The level under both priors against the smoother's 90 % band, with the flows seen and hidden."""
    import matplotlib.pyplot as plt

    from sciddiff.plot.style import BLUE, VERMILION

    volume, gap = hidden()
    years, values = volume["time"].dt.year.values, volume.values
    mean, sds = smoother(variances)
    figure, axes = plt.subplots(2, 1, figsize=(7.0, 5.0), sharex=True, sharey=True, layout="constrained")
    for ax, (name, x) in zip(axes, levels.items(), strict=True):
        for part in GAPS:
            ax.axvspan(years[part.start] - 0.5, years[part.stop - 1] + 0.5, color="0.95", lw=0)
        ax.fill_between(
            years, mean - 1.645 * sds, mean + 1.645 * sds, color="0.78", lw=0, label="Kalman smoother, 90 %"
        )
        for q in (0.05, 0.5, 0.95):
            ax.plot(
                years,
                x["level"].quantile(q, "sample"),
                color=BLUE,
                lw=1.2,
                ls="-" if q == 0.5 else "--",
                label={0.5: "median of the draws", 0.05: "5 % and 95 %"}.get(q),
            )
        ax.plot(years[~gap], values[~gap], "o", ms=3, color="black", label="flow")
        ax.plot(years[gap], values[gap], "o", ms=3, mfc="white", mec=VERMILION, label="hidden flow")
        ax.set_title(name, fontsize=10, loc="left")
        ax.set_ylabel("flow [$10^8$ m$^3$]")
    axes[-1].set_xlim(years[0] - 0.5, years[-1] + 0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return {
        "level": Figure(
            figure,
            "The level of the Nile under both priors, against the Kalman smoother; grey years were hidden.",
        )
    }
