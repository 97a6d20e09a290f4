"""Gaps in an Ornstein-Uhlenbeck series: a posterior known in closed form, to hold draws and learned priors against.

``x ~ N(0, exp(-|t - s| / 8))`` at 64 times, 16 of them seen with errors of 0.1. The exact posterior by dense algebra, and
again by a Kalman smoother. Three settings of one posterior: regular times and white reference noise; irregular times; and
irregular times whose reference noise is itself an Ornstein-Uhlenbeck process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import floor, gaussian_w2
from sciddiff.methods import DPS, PiGDM, RePaint
from sciddiff.operators import Points
from sciddiff.random import Streams
from sciddiff.solvers import Ancestral

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods import Method
    from sciddiff.priors import NeuralPrior, Prior
    from sciddiff.solvers import Solver

TITLE = "Smooth an Ornstein-Uhlenbeck series: a posterior known exactly"
SUMMARY = (
    "Sixteen of 64 values of an Ornstein-Uhlenbeck series are seen with errors of a tenth of its standard deviation. The "
    "posterior is Gaussian and known twice, by dense algebra and by a Kalman smoother. Draws under the exact prior, on "
    "regular and irregular times and with noise that is a process of time itself, stand beside those of seven rules of "
    "guidance and of two trained priors."
)
HERE = Path(__file__).parent
LENGTH, SEEN, SCALE, NOISE_SD = 64, 16, 8.0, 0.1
# of the reference noise that is a process: it forgets four times faster than the series
NOISE_SCALE = 2.0
SETTINGS = ("regular", "irregular", "process noise")
DRAWS = 4000
# of the rule that takes many products with the Jacobian
FEW = 500
PATHS = 20_000


@dataclass(frozen=True, eq=False)
class Exact:
    """The posterior in closed form: mean ``(64,)``, covariance ``(64, 64)``, and where the data are."""

    mean: np.ndarray
    covariance: np.ndarray
    seen: np.ndarray
    y: np.ndarray

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations, ``(64,)``."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))

    def draw(self, n: int, seed: int) -> np.ndarray:
        """Exact draws, ``(n, 64)``."""
        z = Streams(seed, [0], purpose="exact draws").numpy()[0].standard_normal((n, LENGTH))
        return np.asarray(self.mean + z @ np.linalg.cholesky(self.covariance).T)


def correlation(h: np.ndarray, scale: float = SCALE) -> np.ndarray:
    """``exp(-|h| / scale)``."""
    return np.asarray(np.exp(-np.abs(h) / scale))


def times(setting: str, seed: int = 0) -> np.ndarray:
    """64 times in [0, 63]: regular, or uniformly at random and sorted."""
    if setting == "regular":
        return np.arange(float(LENGTH))
    u = Streams(seed, [0], purpose="ou times").numpy()[0].uniform(0.0, LENGTH - 1.0, LENGTH)
    return np.asarray(np.sort(u))


def prior(setting: str, seed: int = 0) -> sd.GaussianPrior:
    """The series, exactly; under "process noise" with a reference noise that is correlated in time."""
    t = times(setting, seed)
    noise = None
    if setting == "process noise":
        noise = sd.covariance.kernel(lambda h: correlation(h, NOISE_SCALE), t)
    return sd.GaussianPrior(sd.Space({"time": t}), sd.covariance.kernel(correlation, t), reference=noise)


def conditioned(setting: str, seed: int = 0) -> tuple[Problem, Exact]:
    """A truth, its data, and the exact posterior."""
    law = prior(setting, seed)
    t = times(setting, seed)
    generator = Streams(seed, [0], purpose=f"ou {setting}").numpy()[0]
    seen = np.sort(generator.choice(LENGTH, SEEN, replace=False))
    k = correlation(t[:, None] - t)
    truth = np.linalg.cholesky(k) @ generator.standard_normal(LENGTH)
    y = truth[seen] + NOISE_SD * generator.standard_normal(SEEN)
    gain = np.linalg.solve(k[np.ix_(seen, seen)] + NOISE_SD**2 * np.eye(SEEN), k[seen]).T
    exact = Exact(gain @ y, k - gain @ k[seen], seen, y)
    operator = Points.at_indices(law.space, seen)
    labelled = {
        name: law.space.dataset(torch.from_numpy(v)) for name, v in (("mean", exact.mean), ("sd", exact.sd))
    }
    problem = Problem(
        "ou_smoothing",
        TITLE,
        law,
        operator,
        sd.noise.Gaussian(NOISE_SD),
        law.space.dataset(torch.from_numpy(truth)),
        operator.codomain.dataset(torch.from_numpy(y)),
        labelled,
        method=sd.MMPS(),
    )
    return problem, exact


def load(seed: int = 0) -> Problem:
    """The series at regular times, under its exact prior."""
    return conditioned("regular", seed)[0]


def kalman(t: np.ndarray, seen: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and sd by statsmodels' Kalman smoother: ``x_{k+1} = a_k x_k + N(0, 1 - a_k^2)``."""
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    data = np.full(len(t), np.nan)
    data[seen] = y
    step = np.append(correlation(np.diff(t)), 1.0)
    model = KalmanSmoother(k_endog=1, k_states=1)
    model.bind(data[:, None])
    model["design"], model["selection"] = np.ones((1, 1)), np.ones((1, 1))
    model["obs_cov"] = np.full((1, 1), NOISE_SD**2)
    model["transition"], model["state_cov"] = step[None, None], (1 - step**2)[None, None]
    model.initialize_known(np.zeros(1), np.ones((1, 1)))
    found = model.smooth()
    return found.smoothed_state[0], np.sqrt(found.smoothed_state_cov[0, 0])


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train both networks on simulated series at regular times and keep them in ``out``.

    ``prior`` learns all there is, ``fitted`` what a Gaussian fitted to the same series leaves, which here is nothing.
    """
    law = prior("regular")
    series = law.sample(PATHS, seed=seed)
    shared: dict[str, Any] = {"network": "mlp", "batch": 256, "seed": seed, "weight_decay": 0.0}
    alone = sd.train(
        series,
        law.space,
        settings={"width": 128, "depth": 2},
        gaussian=None,
        steps=8000,
        learning_rate=2e-3,
        **shared,
    )
    alone.save(out / "prior", half=True)
    fitted = sd.train(
        series, law.space, settings={"width": 32, "depth": 1}, gaussian="dense", steps=1000, **shared
    )
    fitted.save(out / "fitted", half=True)
    return alone


def rules(steps: int = 256) -> dict[str, tuple[Method, Solver | None]]:
    """The rules of guidance that are compared, each under ancestral steps where it takes a solver."""
    walk = Ancestral(steps=steps)
    return {
        "MMPS": (sd.MMPS(), None),
        "MMPS, ancestral": (sd.MMPS(), walk),
        "MMPS, 64 ancestral steps": (sd.MMPS(), Ancestral(steps=64)),
        "MMPS, scalar covariance (SDA), gamma 0.03": (sd.MMPS(covariance="scalar", gamma=0.03), walk),
        "MMPS, scalar covariance (SDA), gamma 1": (sd.MMPS(covariance="scalar", gamma=1.0), walk),
        "PiGDM": (PiGDM(), walk),
        "DPS, zeta 1": (DPS(zeta=1.0, steps=steps), None),
        "DPS, zeta 0.3": (DPS(zeta=0.3, steps=steps), None),
        "RePaint, without going back": (RePaint(steps=steps, resamplings=1), None),
    }


def figures(x: np.ndarray, exact: Exact, least: float) -> dict[str, float]:
    """How far draws ``(n, 64)`` are from the exact posterior, in its standard deviations."""
    ratio = x.std(0, ddof=1) / exact.sd
    apart = np.median([gaussian_w2(x, exact.draw(len(x), seed)) for seed in range(100, 105)])
    return {
        "mean_error": float(np.sqrt(np.mean(((x.mean(0) - exact.mean) / exact.sd) ** 2))),
        "sd_ratio": float(np.median(ratio)),
        "sd_low": float(ratio.min()),
        "sd_high": float(ratio.max()),
        "w2": float(apart),
        "w2_ratio": float(apart / least),
    }


def drawn(
    problem: Problem,
    law: Prior,
    method: Method | None = None,
    solver: Solver | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool | None = False,
) -> xr.Dataset:
    """Draws of a problem's posterior under any prior on its space."""
    posterior = law.given(problem.y, problem.operator, problem.noise)
    return posterior.sample(draws, method, solver=solver, seed=seed, progress=progress)


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """The exact prior in three settings, seven rules of guidance on the first, and two trained priors."""
    problem, exact = conditioned("regular", seed)
    least = floor(exact.draw, DRAWS, gaussian_w2)
    table: dict[str, dict[str, float]] = {}
    draws = drawn(problem, problem.prior, seed=seed)
    table["exact prior, MMPS"] = figures(draws["x"].values, exact, least)
    metrics = {}
    checks = [(s, *conditioned(s, seed)) for s in SETTINGS]
    agreement = 0.0
    for setting, here, known in checks:
        x = draws if setting == "regular" else drawn(here, here.prior, seed=seed)
        low = least if setting == "regular" else floor(known.draw, DRAWS, gaussian_w2)
        found = figures(x["x"].values, known, low)
        if setting != "regular":
            table[f"exact prior, MMPS, {setting}"] = found
        smoothed = kalman(here.space.coords["time"], known.seen, known.y)
        agreement = max(
            agreement,
            float(np.abs(smoothed[0] - known.mean).max()),
            float(np.abs(smoothed[1] - known.sd).max()),
        )
        metrics |= described(setting, found, "exact prior")
    metrics["kalman_agreement"] = Metric(
        agreement,
        "1",
        0.0,
        "dense algebra",
        "largest difference of mean or sd between dense algebra and the Kalman smoother",
        "lower",
    )
    for name, (method, solver) in list(rules().items())[1:]:
        x = drawn(problem, problem.prior, method, solver, seed=seed)
        table[f"exact prior, {name}"] = figures(x["x"].values, exact, least)
    shown = {"exact prior": draws}
    for name, file in (("network on a fitted Gaussian", "fitted"), ("network alone", "prior")):
        law = sd.load_prior(HERE / file)
        x = drawn(problem, law, seed=seed)
        shown[name if file == "fitted" else f"{name}, 'unit' covariance: the default without a Gaussian"] = x
        table[f"{name}, MMPS"] = figures(x["x"].values, exact, least)
        metrics |= described(name, table[f"{name}, MMPS"], "trained prior")
        if file == "prior":
            for other, (method, solver, n) in learned_rules().items():
                x = drawn(problem, law, method, solver, draws=n, seed=seed)
                if n == FEW:
                    shown[f"{name}, {other}"] = x
                low = least if n == DRAWS else floor(exact.draw, n, gaussian_w2)
                table[f"{name}, {other}"] = figures(x["x"].values, exact, low)
            best = table[f"{name}, MMPS, guarded Jacobian"]
            metrics |= described(f"{name}, guarded", best, "trained prior")
    return Result(
        metrics,
        draws,
        pictures(problem, exact, shown, table),
        {f"Distance from the exact posterior, {DRAWS} draws; floor of W2 {least:.3f}": rows(table)},
        [
            "Mean errors and ratios are in units of the exact standard deviations; chance alone gives a mean error of "
            f"{1 / math.sqrt(DRAWS):.3f} ({1 / math.sqrt(FEW):.3f} with the {FEW} draws of the guarded Jacobian, whose floor is "
            "its own). W2 is that of the Gaussians of two sets of draws; the floor is that of two exact sets of as many.",
            "The network that stands alone has learned the series: what its first row shows is that of a Gaussian of variance one "
            "in every direction, which is all that MMPS can take for its covariance without a fitted Gaussian or the Jacobian.",
            "What the exact prior's rows show is the error of the sampler; a trained prior's row adds that of the network "
            "and of what stands for its denoising covariance.",
        ],
        {"seed": seed, "draws": DRAWS},
        headline=["regular_w2_ratio", "irregular_w2_ratio", "process_noise_w2_ratio"],
    )


def learned_rules() -> dict[str, tuple[Method, Solver | None, int]]:
    """Rules that need nothing of a prior but its denoiser, for the network that stands alone, and how many draws."""
    scalar = sd.MMPS(covariance="scalar", gamma=0.03)
    return {
        "MMPS, guarded Jacobian": (sd.MMPS(covariance="guarded"), Ancestral(steps=128), FEW),
        "MMPS, scalar covariance (SDA), gamma 0.03": (scalar, Ancestral(steps=256), DRAWS),
    }


def described(name: str, found: dict[str, float], what: str) -> dict[str, Metric]:
    """The metrics of one row."""
    key = name.replace(",", "").replace(" ", "_")
    label = f"{what}, {name}"
    return {
        f"{key}_w2_ratio": Metric(
            found["w2_ratio"], "1", 1.0, "exact draws", f"W2 over its floor, {label}", "nearer"
        ),
        f"{key}_mean_error": Metric(
            found["mean_error"], "1", 0.0, "exact posterior", f"error of the mean in sd, {label}", "lower"
        ),
        f"{key}_sd_ratio": Metric(
            found["sd_ratio"], "1", 1.0, "exact posterior", f"median ratio of sd, {label}", "nearer"
        ),
    }


def rows(table: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """The table as text."""
    return [
        {
            "prior and rule": name,
            "mean error": f"{f['mean_error']:.3f}",
            "sd ratio": f"{f['sd_ratio']:.2f} ({f['sd_low']:.2f} to {f['sd_high']:.2f})",
            "W2": f"{f['w2']:.3f}",
            "W2 / floor": f"{f['w2_ratio']:.2f}",
        }
        for name, f in table.items()
    ]


def pictures(
    problem: Problem, exact: Exact, shown: dict[str, xr.Dataset], table: dict[str, dict[str, float]]
) -> dict[str, Figure]:
    """Draws beside the exact 90 % band, and the distance of every row."""
    import matplotlib.pyplot as plt

    from sciddiff.plot.style import BLUE, ORANGE, VERMILION

    t = problem.space.coords["time"]
    series, axes = plt.subplots(4, 1, figsize=(6.5, 7.0), sharex=True, sharey=True, layout="constrained")
    for ax, (name, x) in zip(axes, shown.items(), strict=True):
        low, high = exact.mean - 1.645 * exact.sd, exact.mean + 1.645 * exact.sd
        ax.fill_between(t, low, high, color="0.85", lw=0, label="exact posterior, 90 %")
        for q, style in ((0.05, "--"), (0.5, "-"), (0.95, "--")):
            line = x["x"].quantile(q, "sample")
            label = {0.5: "median of the draws", 0.05: "5 % and 95 %"}.get(q)
            ax.plot(t, line, color=BLUE, ls=style, lw=1.2, label=label)
        ax.plot(t, problem.truth["x"], color="black", lw=0.8, label="truth")
        ax.plot(t[exact.seen], exact.y, "o", ms=4, color=VERMILION, mec="white", mew=0.5, label="observation")
        ax.set_title(name, fontsize=10, loc="left")
        ax.set_ylabel("x")
    axes[-1].set_xlabel("time")
    axes[-1].set_xlim(t[0], t[-1])
    handles, labels = axes[0].get_legend_handles_labels()
    series.legend(
        handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=7, handlelength=1.4
    )
    dots, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    names = list(table)[::-1]
    for name in names:
        colour = BLUE if name.startswith("exact") else ORANGE
        ax.plot([1, table[name]["w2_ratio"]], [name, name], color=colour, lw=1.5)
        ax.plot(table[name]["w2_ratio"], name, "o", color=colour, ms=6)
    ax.axvline(1.0, color="black", lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    ax.minorticks_off()
    ax.set_xlabel("W2 to the exact posterior, over its floor")
    ax.tick_params(axis="y", labelsize=8, length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    return {
        "series": Figure(
            series, "Draws under the exact prior and two trained ones against the exact posterior."
        ),
        "distance": Figure(
            dots, "How far the draws are from the exact posterior: 1 is what exact draws would show."
        ),
    }
