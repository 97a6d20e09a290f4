"""Filtering Lorenz-63: the twin experiment of Sakov et al. (2012), and two in which less is seen.

The filters know the model, which has no error; what differs is what is observed. Nothing is learned here: these are the
baselines that a filter with a learned prior has to meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import ETKF, BootstrapFilter, EnKF, StateSpaceModel
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.physics import Lorenz63

if TYPE_CHECKING:
    import xarray as xr

TITLE = "Lorenz-63 filters: all values seen, x alone, and a sensor that saturates"
SUMMARY = (
    "Ensemble Kalman filters and particle filters follow a truth of the Lorenz-63 system through noisy observations. First the "
    "twin experiment of Sakov, Oliver and Bertino (2012) with DAPPER's settings, where all three values are seen; then x alone; "
    "then all three through a sensor that saturates. A particle filter with 4000 members is the "
    "reference: the others are measured by their error, their spread, their CRPS and how far their means are from its mean."
)
CASES, CYCLES, BURN_IN, DRAWS = 8, 200, 40, 200
SYSTEM = Lorenz63(dt=0.01)
REFERENCE = "particle filter, 4000"


@dataclass(frozen=True)
class Setting:
    """What is observed, how often, with which error, and what stands in DAPPER's files for it."""

    title: str
    operator: sd.operators.Operator
    every: int
    sd: float
    documented: tuple[tuple[str, float], ...] = ()


def saturating(x: torch.Tensor) -> torch.Tensor:
    """``arctan(x / 5)`` of every value, ``(rows, 3)``: it hardly tells large values apart."""
    return torch.atan(x / 5)


SETTINGS = {
    "full": Setting(
        "all three values, sd 1.41, every 0.25",
        sd.operators.Identity(SYSTEM.space),
        25,
        math.sqrt(2.0),
        (("ETKF, 10", 0.60), ("EnKF, 100", 0.56), ("particle filter, 800", 0.28), (REFERENCE, 0.27)),
    ),
    "half": Setting("x alone, sd 1, every 0.12", sd.operators.Select(SYSTEM.space, variables="x"), 12, 1.0),
    "arctan": Setting(
        "arctan(value / 5) of all three, sd 0.1, every 0.25",
        sd.operators.from_torch(saturating, SYSTEM.space, SYSTEM.space),
        25,
        0.1,
    ),
}
# members or draws, and the filter with DAPPER's inflation, jitter and threshold
FILTERS: dict[str, tuple[int, Any]] = {
    "ETKF, 10": (10, ETKF(inflation=1.02, rotate=True)),
    "EnKF, 100": (100, EnKF(inflation=1.01)),
    "ETKF, 100": (100, ETKF(inflation=1.01, rotate=True)),
    "particle filter, 100": (DRAWS, BootstrapFilter(100, threshold=0.3, jitter=2.4)),
    "particle filter, 800": (DRAWS, BootstrapFilter(800, threshold=0.2, jitter=0.9)),
    REFERENCE: (DRAWS, BootstrapFilter(4000, threshold=0.05, jitter=0.7)),
}


def initial() -> sd.GaussianPrior:
    """The law of the first state: DAPPER's, around a point of the attractor."""
    spread = sd.covariance.white(SYSTEM.space.shape, 2.0)
    return sd.GaussianPrior(SYSTEM.space, spread, mean=[1.509, -1.531, 25.46])


def model(setting: Setting, cycles: int = CYCLES) -> StateSpaceModel:
    """The system from one observation to the next."""

    def cycle(x: torch.Tensor) -> torch.Tensor:
        for _ in range(setting.every):
            x = SYSTEM.step(x)
        return x

    times = np.arange(cycles + 1) * setting.every * SYSTEM.dt
    return StateSpaceModel(cycle, initial(), space=SYSTEM.space, times=times)


def twins(setting: Setting, *, cases: int, cycles: int, seed: int) -> tuple[xr.Dataset, Any]:
    """Truths with dims ("twin", "time"), and the model given what was seen of them."""
    law, noise = model(setting, cycles), sd.noise.Gaussian(setting.sd)
    truth = law.simulate(cases, seed=seed).rename(sample="twin")
    seen = sd.operators.AtTimes(setting.operator, law.trajectories)
    clean = seen.apply(law.trajectories.tensor(truth, batch_dim="twin"))
    y = seen.codomain.dataset(noise.sample(clean, seed=seed), ["twin"])
    # a cycle begins with a forecast: nothing is seen of the first state
    y = y.isel(time=slice(1, None))
    return truth, law.given(y, setting.operator, noise, batch_dim="twin")


def load(seed: int = 0) -> Problem:
    """One analysis: a state of the initial law, of which x is seen."""
    setting, prior = SETTINGS["half"], initial()
    truth = prior.sample(1, seed=seed).isel(sample=0)
    noise = sd.noise.Gaussian(setting.sd)
    y = setting.operator.observe(truth, noise, seed=seed)
    return Problem("lorenz63_filter", TITLE, prior, setting.operator, noise, truth, y)


def run(*, seed: int = 0, progress: bool | None = None, cases: int = CASES, cycles: int = CYCLES) -> Result:
    """Every filter on every setting."""
    burn_in = min(BURN_IN, cycles // 4)
    truths, found, rows = {}, {}, {}
    for name, setting in SETTINGS.items():
        truths[name], law = twins(setting, cases=cases, cycles=cycles, seed=seed)
        found[name] = {label: law.sample(n, method, seed=seed) for label, (n, method) in FILTERS.items()}
        rows[name] = scores(truths[name], found[name], burn_in)
    return Result(
        metrics(rows),
        found["full"]["ETKF, 10"],
        {
            "track": Figure(
                track(truths, found),
                "The value x of one truth, and two filters: mean and two standard deviations. Dots: the truth.",
            ),
            "ranks": Figure(
                ranks(truths, found, burn_in),
                "Rank of the true x among 20 members, or 10: flat where the filter is calibrated, U-shaped where it is too sure.",
            ),
            "errors": Figure(
                errors(rows),
                "Error of the mean of every filter: a dot for each truth, a bar at the median. Grey: the filter's own spread.",
            ),
        },
        {
            f"{SETTINGS[n].title}": [shown(label, row, SETTINGS[n]) for label, row in r.items()]
            for n, r in rows.items()
        },
        notes=[
            f"Medians over {cases} truths of {cycles} cycles, {burn_in} of them burn-in. A run counts as diverged whose error is "
            "over three times that of the reference on the same truth.",
            "Inflation and jitter are DAPPER's for the first setting, and are the same in the others.",
            "The reference is a filter with jitter, not an exact posterior: its own error and spread stand in the table.",
        ],
        settings={"seed": seed, "cases": cases, "cycles": cycles, "burn_in": burn_in},
        headline=("full_etkf_10", "full_particle_filter_4000", "arctan_enkf_100"),
    )


Row = dict[str, np.ndarray]


def scores(truth: xr.Dataset, found: dict[str, xr.Dataset], burn_in: int) -> dict[str, Row]:
    """Per filter, and for climatology, figures for every truth."""
    late = {"time": slice(burn_in + 1, None)}
    true = truth.isel(late).to_dataarray("value").transpose("twin", "time", "value").values
    means = {}
    rows: dict[str, Row] = {"climatology": {"rmse_a": _rmse(true.mean((0, 1)) - true)}}
    for label, draws in found.items():
        x = draws.isel(late).to_dataarray("value").transpose("sample", "twin", "time", "value").values
        means[label] = x.mean(0)
        fair = sd.diagnostics.crps(draws.isel(late), truth.isel(late))
        rows[label] = {
            "rmse_a": _rmse(x.mean(0) - true),
            "rmv_a": np.sqrt(x.var(0, ddof=1).mean(-1)).mean(-1),
            "crps": fair.to_dataarray("value").mean(["value", "time"]).values,
        }
    for label, mean in means.items():
        rows[label]["gap"] = _rmse(mean - means[REFERENCE])
        rows[label]["diverged"] = rows[label]["rmse_a"] > 3 * rows[REFERENCE]["rmse_a"]
    return rows


def _rmse(error: np.ndarray) -> np.ndarray:
    """Mean over time of the root mean square over values, ``(twin,)``."""
    return np.asarray(np.sqrt((error**2).mean(-1)).mean(-1))


def metrics(rows: dict[str, dict[str, Row]]) -> dict[str, Metric]:
    """The median error of every filter."""
    out = {}
    for name, table in rows.items():
        documented = dict(SETTINGS[name].documented)
        for label, row in table.items():
            key = f"{name}_{label}".replace(", ", "_").replace(" ", "_").lower()
            known = documented.get(label)
            out[key] = Metric(
                float(np.median(row["rmse_a"])),
                "1",
                known,
                "documented in DAPPER" if known else "",
                f"rmse.a of {label}, {SETTINGS[name].title}",
                "nearer" if known else "lower",
            )
    return out


def shown(label: str, row: Row, setting: Setting) -> dict[str, Any]:
    """A row of a table."""
    known = dict(setting.documented).get(label)
    middle = {k: float(np.median(v)) for k, v in row.items() if k != "diverged"}
    return {
        "filter": label,
        "rmse.a": f"{middle['rmse_a']:.2f}",
        "rmv.a": f"{middle['rmv_a']:.2f}" if "rmv_a" in middle else "",
        "CRPS": f"{middle['crps']:.3f}" if "crps" in middle else "",
        "from the reference's mean": f"{middle['gap']:.2f}" if "gap" in middle else "",
        "diverged": f"{int(row['diverged'].sum())} of {len(row['diverged'])}" if "diverged" in row else "",
        **({"documented rmse.a": "" if known is None else f"{known:.2f}"} if setting.documented else {}),
    }


def _panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=size, layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False, **options)


def track(truths: dict[str, xr.Dataset], found: dict[str, dict[str, xr.Dataset]]) -> Any:
    """The first truth's x over the last cycles, a panel for each setting."""
    from sciddiff.plot.style import BLUE, VERMILION

    canvas, axes = _panels(len(truths), 1, (6.4, 5.4))
    for ax, (name, truth) in zip(axes[:, 0], truths.items(), strict=True):
        time, last = truth["time"].values, slice(-61, None)
        for label, colour in (("EnKF, 100", VERMILION), (REFERENCE, BLUE)):
            x = found[name][label]["x"].isel(twin=0)
            mean, wide = x.mean("sample").values, 2 * x.std("sample", ddof=1).values
            ax.fill_between(
                time[last], (mean - wide)[last], (mean + wide)[last], color=colour, alpha=0.25, lw=0
            )
            ax.plot(time[last], mean[last], color=colour, lw=1.0, label=label)
        ax.plot(time[last], truth["x"].isel(twin=0).values[last], "k.", ms=3.5, label="truth")
        ax.set(ylabel="x", xlim=(time[last][0], time[-1]))
        ax.set_title(SETTINGS[name].title, loc="left", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    axes[-1, 0].set_xlabel("time")
    return canvas


def ranks(truths: dict[str, xr.Dataset], found: dict[str, dict[str, xr.Dataset]], burn_in: int) -> Any:
    """Histograms of the rank of the truth, filters across and settings down."""
    from sciddiff.plot.style import GREY

    labels = ["ETKF, 10", "EnKF, 100", "particle filter, 800", REFERENCE]
    canvas, axes = _panels(len(truths), len(labels), (7.2, 4.8), sharex="col")
    # neighbouring cycles are not independent
    some = {"time": slice(burn_in + 1, None, 4)}
    for line, (name, truth) in zip(axes, truths.items(), strict=True):
        for ax, label in zip(line, labels, strict=True):
            draws = found[name][label]["x"].isel(some).isel(sample=slice(0, 20))
            rank = (draws < truth["x"].isel(some)).sum("sample").values.flatten()
            members = draws.sizes["sample"]
            share = np.bincount(rank, minlength=members + 1) / len(rank) * (members + 1)
            error = 2 * math.sqrt(members / len(rank))
            ax.bar(np.arange(members + 1), share, width=0.9, color="#0072B2")
            ax.axhspan(1 - error, 1 + error, color=GREY, zorder=0, lw=0)
            ax.axhline(1, color="black", lw=0.6)
            ax.set_ylim(0, max(2.2, 1.05 * share.max()))
        line[0].set_ylabel(name)
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(label, fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("rank of the truth")
    return canvas


def errors(rows: dict[str, dict[str, Row]]) -> Any:
    """Errors of every filter, a panel for each setting."""
    from sciddiff.plot.style import BLUE

    canvas, axes = _panels(1, len(rows), (7.2, 3.0), sharey=True)
    labels = list(FILTERS)
    for ax, (name, table) in zip(axes[0], rows.items(), strict=True):
        for at, label in enumerate(labels):
            error, width = table[label]["rmse_a"], float(np.median(table[label]["rmv_a"]))
            ax.barh(at, np.median(error), height=0.62, color=BLUE, alpha=0.35, lw=0)
            ax.plot(error, np.full(len(error), at), ".", color=BLUE, ms=4)
            ax.plot([width, width], [at - 0.36, at + 0.36], color="0.35", lw=1.6)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set(xlabel="rmse.a", xlim=(0, None))
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0, 0].invert_yaxis()
    return canvas
