"""Carbon dioxide at Mauna Loa: gaps of weeks and months in a series with a trend, a season and a short memory.

``co2 = trend + season + slow + fast + rounding``: polynomial and harmonics by regression, two Ornstein-Uhlenbeck processes by
maximum likelihood, and the rounding of the record to a tenth of a ppm as an error. Everything is fitted to the weeks that are seen: neither the 59 weeks that
were not measured nor the 260 that are hidden here for scoring enter anything but the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import coverage, crps, crps_normal
from sciddiff.operators import Identity, Matrix
from sciddiff.priors.windows import WindowPrior
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior

TITLE = "Mauna Loa: fill gaps in weekly carbon dioxide"
SUMMARY = (
    "Of 2284 weekly concentrations of carbon dioxide 59 were not measured, and 260 more, in blocks of thirteen weeks, are "
    "hidden to score what fills them. A Gaussian prior with a trend, a season and a short memory, and windows of 65 weeks of a "
    "trained network joined over 44 years, stand beside statsmodels' unobserved components and linear interpolation."
)
HERE = Path(__file__).parent
YEAR = 365.2425 / 7
DEGREE, HARMONICS = 4, 4
BLOCKS, WEEKS = 20, 13
WIDTH, STRIDE = 65, 17
# tenths of ppm are what the record gives
ROUNDING = 0.1 / 12**0.5
DRAWS, FEW = 400, 64
COMPLETIONS = 8


# -- data --------------------------------------------------------------------------------------------


def record() -> xr.DataArray:
    """The series, NaN where it was not measured."""
    return dataset("co2").load()["co2"]


@lru_cache
def hidden() -> np.ndarray:
    """True in the weeks that are hidden: blocks at random places, apart from each other and from real gaps."""
    there = record().notnull().values
    generator = Streams(0, [0], purpose="co2 hidden").numpy()[0]
    out = np.zeros(there.size, dtype=bool)
    while out.sum() < BLOCKS * WEEKS:
        first = int(generator.integers(WIDTH, there.size - WIDTH))
        near = slice(first - WEEKS, first + 2 * WEEKS)
        if there[near].all() and not out[near].any():
            out[first : first + WEEKS] = True
    return out


def kept() -> np.ndarray:
    """The weeks that are seen, NaN elsewhere."""
    return np.where(hidden(), np.nan, record().values)


# -- what is fitted ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """What is fitted to the weeks that are seen, in ppm and weeks.

    Attributes:
        mean: trend and season of every week.
        sds, lengths: of the slow and the fast process.
        log_likelihood: of the rest.
    """

    mean: np.ndarray
    sds: tuple[float, float]
    lengths: tuple[float, float]
    log_likelihood: float


def regression(y: np.ndarray) -> np.ndarray:
    """Trend and season of every week: a polynomial, and harmonics whose size changes linearly."""
    t = np.arange(len(y)) / YEAR
    u = 2 * t / t[-1] - 1
    columns = [u**k for k in range(DEGREE + 1)]
    for k in range(1, HARMONICS + 1):
        for wave in (np.cos(2 * np.pi * k * t), np.sin(2 * np.pi * k * t)):
            columns += [wave, u * wave]
    design, seen = np.stack(columns, 1), ~np.isnan(y)
    return np.asarray(design @ np.linalg.lstsq(design[seen], y[seen], rcond=None)[0])


def smoother(rest: np.ndarray, numbers: np.ndarray) -> Any:
    """The Kalman smoother of two processes and the rounding, by statsmodels; ``numbers`` are logs of two sds and two lengths."""
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    sds, lengths = np.exp(numbers[:2]), np.exp(numbers[2:])
    step = np.exp(-1 / lengths)
    model = KalmanSmoother(k_endog=1, k_states=2)
    model.bind(rest[:, None].copy())
    model["design"], model["selection"] = np.ones((1, 2)), np.eye(2)
    model["obs_cov"] = np.full((1, 1), ROUNDING**2)
    model["transition"], model["state_cov"] = np.diag(step), np.diag(sds**2 * (1 - step**2))
    model.initialize_known(np.zeros(2), np.diag(sds**2))
    return model


@lru_cache
def fit() -> Fit:
    """Regression, then maximum likelihood on what it leaves."""
    from scipy.optimize import minimize

    y = kept()
    mean = regression(y)
    start = np.log([0.5, 0.3, 50.0, 1.0])
    found = minimize(lambda p: -smoother(y - mean, p).loglike(), start, method="L-BFGS-B")
    p = np.exp(found.x)
    slow, fast = (0, 1) if p[2] > p[3] else (1, 0)
    return Fit(
        mean,
        (float(p[slow]), float(p[fast])),
        (float(p[2 + slow]), float(p[2 + fast])),
        -float(found.fun),
    )


def logs(law: Fit) -> np.ndarray:
    """The numbers that `smoother` takes."""
    return np.log([*law.sds, *law.lengths])


# -- priors ------------------------------------------------------------------------------------------


def gaussian(law: Fit) -> sd.GaussianPrior:
    """The slow and the fast process of every week, the slow one around trend and season, by a banded precision."""
    import scipy.sparse as sp

    n, blocks = len(law.mean), []
    for s, length in zip(law.sds, law.lengths, strict=True):
        a = np.exp(-1 / length)
        inner = np.full(n, 1 + a**2)
        inner[[0, -1]] = 1.0
        beside = np.full(n - 1, -a)
        blocks.append(sp.diags([beside, inner, beside], [-1, 0, 1]) / (s**2 * (1 - a**2)))
    space = sd.Space({"time": record()["time"].values}, {"slow": "ppm", "fast": "ppm"})
    mean = np.stack([law.mean, np.zeros(n)])
    return sd.GaussianPrior(
        space, sd.covariance.precision(sp.block_diag(blocks, format="csc"), space.shape), mean
    )


def window(law: Fit) -> sd.GaussianPrior:
    """What is left of 65 weeks after trend and season."""

    def covariance(h: np.ndarray) -> np.ndarray:
        parts = [s**2 * np.exp(-h / length) for s, length in zip(law.sds, law.lengths, strict=True)]
        return np.asarray(parts[0] + parts[1])

    space = sd.Space({"time": WIDTH}, {"co2": "ppm"})
    return sd.GaussianPrior(space, sd.covariance.kernel(covariance, np.arange(float(WIDTH))))


def joined(prior: sd.Prior) -> WindowPrior:
    """What is left of all weeks, from windows."""
    space = sd.Space({"time": record()["time"].values}, {"co2": "ppm"})
    return WindowPrior(prior, space, stride=STRIDE)


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the network on windows of the weeks that are seen, whose gaps are draws of the Gaussian, and keep it."""
    law = fit()
    base = window(law)
    rest = kept() - law.mean
    filled = by_gaussian(law, draws=COMPLETIONS, seed=seed) - law.mean
    whole = np.where(np.isnan(rest), filled, rest)
    windows = np.lib.stride_tricks.sliding_window_view(whole, WIDTH, axis=1).reshape(-1, WIDTH)
    half = base.law.apply(torch.eye(WIDTH, dtype=torch.float64)) * base.normalisation.scale**2
    factor = np.linalg.cholesky(half.numpy())

    def augment(x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Windows forwards or backwards, or draws of the Gaussian."""
        choice = torch.from_numpy(generator.random((len(x), 1)))
        drawn = torch.from_numpy(generator.standard_normal(tuple(x.shape)) @ factor.T)
        return torch.where(choice < 0.5, drawn, torch.where(choice < 0.75, x.flip(1), x))

    prior = sd.train(
        windows,
        base.space,
        network="mlp",
        settings={"width": 64, "depth": 1},
        gaussian=base,
        steps=2000,
        batch=256,
        weight_decay=1e-2,
        augment=augment,
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    return prior


# -- filling -----------------------------------------------------------------------------------------


def load(seed: int = 0) -> Problem:
    """What trend and season leave of all weeks, given those that are seen, under the trained windows."""
    law = fit()
    prior = joined(sd.load_prior(HERE / "prior"))
    rest = torch.from_numpy(kept() - law.mean)
    whole = prior.space.dataset(torch.from_numpy(record().values - law.mean))
    return Problem(
        "co2",
        TITLE,
        prior,
        Identity(prior.space),
        sd.noise.Gaussian(ROUNDING),
        whole,
        prior.space.dataset(rest),
        missing="mask",
    )


def by_gaussian(law: Fit, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Draws ``(draws, 2284)`` of every week's concentration under the Gaussian prior, in ppm."""
    import scipy.sparse as sp

    prior = gaussian(law)
    n = len(law.mean)
    weeks = sd.Space({"time": record()["time"].values}, {"co2": "ppm"})
    total = Matrix(prior.space, weeks, sp.hstack([sp.identity(n), sp.identity(n)], format="csr"))
    posterior = prior.given(kept(), total, sd.noise.Gaussian(ROUNDING), missing="mask")
    x = posterior.sample(draws, seed=seed, progress=False)
    errors = Streams(seed, range(draws), purpose="rounding of weeks").normal((n,), dtype=torch.float64)
    return np.asarray(x["slow"].values + x["fast"].values + ROUNDING * errors.numpy())


def by_network(
    law: Fit, prior: sd.Prior, *, draws: int = FEW, seed: int = 0, progress: bool | None = False
) -> xr.Dataset:
    """Draws of what trend and season leave of every week, under windows of a prior."""
    whole = joined(prior)
    posterior = whole.given(
        kept() - law.mean, Identity(whole.space), sd.noise.Gaussian(ROUNDING), missing="mask"
    )
    return posterior.sample(draws, seed=seed, progress=progress)


def components() -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of every week by statsmodels: a smooth trend, four harmonics, an AR(1) and an error."""
    import warnings

    from statsmodels.tsa.statespace.structural import UnobservedComponents

    with warnings.catch_warnings():
        # that naming the trend decides on the error too, which it does as meant
        warnings.simplefilter("ignore")
        model = UnobservedComponents(
            kept(),
            "smooth trend",
            irregular=True,
            autoregressive=1,
            freq_seasonal=[{"period": YEAR, "harmonics": HARMONICS}],
            stochastic_freq_seasonal=[False],
        )
        fitted = model.fit(disp=False, maxiter=200)
    found = model.smooth(fitted.params)
    design = np.asarray(model.ssm["design"]).reshape(1, -1)[0]
    variance = np.einsum("i,ijt,j->t", design, found.smoothed_state_cov, design) + fitted.params[0]
    return np.asarray(design @ found.smoothed_state), np.sqrt(variance)


# -- scores ------------------------------------------------------------------------------------------


def labelled(x: np.ndarray) -> xr.DataArray:
    """Draws ``(draws, 2284)`` in the hidden weeks."""
    truth = record().isel(time=hidden())
    return truth.expand_dims(sample=len(x)).copy(data=x[:, hidden()])


def scored(x: np.ndarray) -> dict[str, float]:
    """RMSE of the mean, CRPS and coverage of draws in the hidden weeks."""
    draws, truth = labelled(x), record().isel(time=hidden())
    return {
        "rmse": float(np.sqrt(((draws.mean("sample") - truth) ** 2).mean())),
        "crps": float(crps(draws, truth).mean()),
        "coverage": coverage(draws, truth, [0.9]).item(),
    }


def of_normal(mean: np.ndarray, sds: np.ndarray) -> dict[str, float]:
    """The same of normal laws, in closed form."""
    truth, off = record().values[hidden()], hidden()
    return {
        "rmse": float(np.sqrt(np.mean((mean[off] - truth) ** 2))),
        "crps": float(np.mean(np.asarray(crps_normal(mean[off], sds[off], truth)))),
        "coverage": float(np.mean(np.abs(truth - mean[off]) < 1.6449 * sds[off])),
    }


def of_line(y: np.ndarray, mean: np.ndarray | float = 0.0) -> dict[str, float]:
    """The same of linear interpolation of ``y - mean``."""
    rest, where = y - mean, np.arange(len(y))
    seen = ~np.isnan(rest)
    line = (np.interp(where, where[seen], rest[seen]) + mean)[hidden()]
    off = line - record().values[hidden()]
    return {"rmse": float(np.sqrt(np.mean(off**2))), "crps": float(np.mean(np.abs(off)))}


def exact(law: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of every week under the Gaussian prior, by the Kalman smoother."""
    found = smoother(kept() - law.mean, logs(law)).smooth()
    variance = found.smoothed_state_cov.sum((0, 1)) + ROUNDING**2
    return law.mean + found.smoothed_state.sum(0), np.sqrt(variance)


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """Fill hidden and real gaps by all methods, and score the hidden ones."""
    law = fit()
    mean, sds = exact(law)
    ours = by_gaussian(law, seed=seed)
    drawn = by_network(law, sd.load_prior(HERE / "prior"), seed=seed, progress=progress)
    network = law.mean + drawn["co2"].values
    table = {
        "Gaussian prior": scored(ours),
        "the same, Kalman smoother": of_normal(mean, sds),
        "network windows": scored(network),
        "unobserved components (statsmodels)": of_normal(*components()),
        "linear interpolation of what trend and season leave": of_line(kept(), law.mean),
        "linear interpolation": of_line(kept()),
    }
    reference = table["unobserved components (statsmodels)"]
    metrics = {}
    for name, key in (("Gaussian prior", "gaussian"), ("network windows", "network")):
        source = "unobserved components"
        for score in ("crps", "rmse"):
            metrics[f"{key}_{score}"] = Metric(
                table[name][score],
                "ppm",
                reference[score],
                source,
                f"{score.upper()} in hidden weeks, {name}",
                "lower",
            )
        metrics[f"{key}_coverage_90"] = Metric(
            table[name]["coverage"], "1", 0.9, "nominal", f"coverage of 90 % intervals, {name}", "nearer"
        )
    gap = np.isnan(kept())
    metrics["gaussian_mean_error"] = Metric(
        float(np.sqrt(np.mean(((ours.mean(0) - mean) / sds)[gap] ** 2))),
        "1",
        0.0,
        "Kalman smoother",
        "rms difference of the mean in all gaps from the smoother's, in its sd, Gaussian prior",
        "lower",
    )
    result = drawn.assign(co2=drawn["co2"] + law.mean)
    result["co2"].attrs, result.attrs = drawn["co2"].attrs, drawn.attrs
    return Result(
        metrics,
        result,
        pictures(ours, network, law),
        {
            "Hidden weeks of carbon dioxide [ppm]": rows(table),
            "What is fitted to the weeks that are seen": [numbers(law)],
        },
        [
            f"{BLOCKS} blocks of {WEEKS} weeks are hidden. Errors within a block are correlated: if each block were one trial, "
            f"coverage would stray by {np.sqrt(0.09 / BLOCKS):.2f} by chance.",
            "The CRPS of an interpolation is its mean absolute error.",
            f"The 59 weeks that were not measured are filled too, without a truth to score. {DRAWS} draws of the Gaussian "
            f"prior, {FEW} of the network's windows.",
        ],
        {"seed": seed, "draws": DRAWS, "network_draws": FEW},
        headline=["gaussian_crps", "network_crps", "network_coverage_90"],
    )


def rows(table: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The table as text."""
    return [
        {
            "method": name,
            "RMSE": f"{f['rmse']:.3f}",
            "CRPS": f"{f['crps']:.3f}",
            "coverage 90 %": f"{100 * f['coverage']:.1f} %" if "coverage" in f else "",
        }
        for name, f in table.items()
    ]


def numbers(law: Fit) -> dict[str, str]:
    """The fitted numbers as text."""
    return {
        "slow, sd [ppm]": f"{law.sds[0]:.3f}",
        "slow, memory [weeks]": f"{law.lengths[0]:.1f}",
        "fast, sd [ppm]": f"{law.sds[1]:.3f}",
        "fast, memory [weeks]": f"{law.lengths[1]:.2f}",
        "log-likelihood": f"{law.log_likelihood:.1f}",
    }


def pictures(ours: np.ndarray, network: np.ndarray, law: Fit) -> dict[str, Figure]:
    """The longest real gap and three hidden blocks, under both priors."""
    import matplotlib.dates as dates
    import matplotlib.pyplot as plt

    from sciddiff.plot.style import BLUE, ORANGE, VERMILION

    series, seen, off = record(), kept(), hidden()
    starts = np.flatnonzero(off & ~np.roll(off, 1))
    real = int(np.flatnonzero(series["time"].values == np.datetime64("1964-01-25"))[0])
    shown = [real, *starts[[BLOCKS // 4, BLOCKS // 2, -2]].tolist()]
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 5.0), layout="constrained")
    for ax, first in zip(axes.flat, shown, strict=True):
        part = slice(first - 20, first + 38)
        t = series["time"].values[part]
        for x, colour, name in ((ours, BLUE, "Gaussian prior"), (network, ORANGE, "network windows")):
            low, middle, high = np.quantile(x[:, part], [0.05, 0.5, 0.95], axis=0)
            gap = np.isnan(seen[part])
            near = gap | np.roll(gap, 1) | np.roll(gap, -1)
            middle, low, high = (np.where(near, v, np.nan) for v in (middle, low, high))
            if colour == BLUE:
                ax.fill_between(t, low, high, color=colour, alpha=0.25, lw=0, label=f"{name}, 90 %")
            else:
                ax.plot(t, low, color=colour, lw=1.0, ls="--", label=f"{name}, 5 % and 95 %")
                ax.plot(t, high, color=colour, lw=1.0, ls="--")
            ax.plot(t, middle, color=colour, lw=1.4, label=f"{name}, median")
        ax.plot(t, seen[part], "o", ms=3, color="black", label="seen")
        truth = np.where(off, series.values, np.nan)[part]
        ax.plot(t, truth, "o", ms=3, mfc="white", mec=VERMILION, label="hidden")
        ax.plot(t, law.mean[part], color="0.6", lw=0.8, zorder=0, label="trend and season")
        ax.xaxis.set_major_locator(dates.MonthLocator(interval=4))
        ax.xaxis.set_major_formatter(dates.DateFormatter("%b %Y"))
        ax.tick_params(labelsize=8)
        ax.set_title("not measured" if first == real else "hidden", fontsize=9, loc="left")
    for ax in axes[:, 0]:
        ax.set_ylabel("CO$_2$ [ppm]")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return {
        "gaps": Figure(
            figure, "The longest gap of the record and three hidden blocks, filled under both priors."
        )
    }
