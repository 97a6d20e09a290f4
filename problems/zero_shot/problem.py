"""Forecasts of series that the prior has never seen: one network, trained on simulated series of many families.

A state is a window of 72 values in units of its first 60, the context: less their mean and over their standard
deviation. So it is in training, and so it is for a series of any size; the twelve values after are what is asked for.
After Yang et al. 2024, arXiv 2406.02212.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

import sciddiff as sd
from sciddiff.assimilation import scaled_to
from sciddiff.bench.catalog import module
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import coverage, crps, weighted_quantile_loss
from sciddiff.operators import Identity
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior

TITLE = "Zero-shot forecasts: one prior for series that it has never seen"
SUMMARY = (
    "A plain network is trained once, without any task, on windows of 100 000 simulated series with trends, seasons of any "
    "period, cycles and memory. It then forecasts seven real series that it has never seen, of years, quarters and months, "
    "twelve steps ahead from sixty, and is compared with the seasonal naive forecast and with a SARIMAX fitted to each of them."
)
HERE = Path(__file__).parent
families = module(__file__, "families")
real = module(__file__, "real")
CONTEXT, HORIZON, WINDOW = families.CONTEXT, families.HORIZON, families.WINDOW
SAMPLES, ORIGINS, STEPS = 200, 16, 24
# of the context, in its own standard deviations: the network has not learnt what is finer
NOISE = 0.03
SHOWN, SHOWN_AT, ROLLED = "sunspots", "1960-01-01", 36


def space() -> sd.Space:
    """A window in units of its context."""
    return sd.Space({"time": WINDOW}, ["z"])


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train on simulated windows and keep the prior in ``out``."""
    prior = sd.train(
        families.simulate(100_000, seed=seed),
        space(),
        network="mlp",
        settings={"width": 256, "depth": 3},
        steps=10_000,
        batch=512,
        learning_rate=2e-3,
        sigmas=(-0.7, 1.4),
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    return prior


def forecasts(
    prior: sd.Prior,
    context: np.ndarray,
    horizon: int = HORIZON,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: bool | None = None,
) -> np.ndarray:
    """Draws ``(samples, cases, horizon)`` after contexts ``(cases, 60)`` in any units, NaN where missing.

    Beyond twelve steps each draw goes on from its own last sixty values, in units of these.
    """
    z, m, s = families.standardise(_open(context))
    drawn = _draw(prior, z, samples, seed, progress)
    paths = m + s * drawn
    out = paths[:, :, CONTEXT:]
    while out.shape[2] < horizon:
        last = (
            np.concatenate([paths, out], 2)[:, :, -CONTEXT:]
            if out.shape[2] > HORIZON
            else paths[:, :, -CONTEXT:]
        )
        z, m, s = families.standardise(_open(last.reshape(-1, CONTEXT)))
        ahead = m + s * _draw(prior, z, 1, seed + out.shape[2], progress)[0]
        ahead = ahead.reshape(samples, len(context), WINDOW)[:, :, CONTEXT:]
        paths = np.concatenate([last, ahead], 2)
        out = np.concatenate([out, ahead], 2)
    return out[:, :, :horizon]


def _open(context: np.ndarray) -> np.ndarray:
    """A window of which only the context is known."""
    return np.concatenate([context, np.full((len(context), HORIZON), np.nan)], 1)


def _draw(prior: sd.Prior, z: np.ndarray, samples: int, seed: int, progress: bool | None) -> np.ndarray:
    posterior = prior.given(
        z, Identity(prior.space), sd.noise.Gaussian(NOISE), missing="mask", batch_dim="case"
    )
    draws = posterior.sample(samples, method=sd.MMPS(), steps=STEPS, seed=seed, progress=progress)
    return draws["z"].values


def origins(values: pd.Series) -> list[int]:
    """Sixteen places in the second half of a series, or as many as there are, with 60 values before and 12 after."""
    first, last = max(CONTEXT, len(values) // 2), len(values) - HORIZON
    return [int(o) for o in np.unique(np.linspace(first, last, ORIGINS).astype(int))]


def load(seed: int = 0) -> Problem:
    """The sunspots of twelve years from 1960 on, from the sixty years before."""
    spots = next(r for r in real.series() if r.name == SHOWN)
    at = spots.values.index.get_loc(pd.Timestamp(SHOWN_AT))
    window = spots.values.iloc[at - CONTEXT : at + HORIZON]
    seen = window.where(window.index < pd.Timestamp(SHOWN_AT))
    past = (
        window.iloc[:CONTEXT].rename("value").rename_axis("time").to_xarray().assign_attrs(units=spots.units)
    )
    prior = scaled_to(sd.load_prior(HERE / "prior"), past)
    scale = float(np.nanstd(seen))
    truth = prior.space.dataset(torch.tensor(window.to_numpy()))
    y = prior.space.dataset(torch.tensor(seen.to_numpy()))
    noise = sd.noise.Gaussian(NOISE * scale)
    return Problem("zero_shot", TITLE, prior, Identity(prior.space), noise, truth, y, missing="mask")


def scores(draws: np.ndarray, truth: np.ndarray, units: str) -> dict[str, float]:
    """Fair CRPS, weighted quantile loss and coverage of draws ``(samples, origins, leads)``; missing truth is left out."""
    labelled, seen = _labelled(draws, units), _labelled(truth, units)
    return {
        "crps": float(crps(labelled, seen, nan="omit").mean()),
        "wql": float(weighted_quantile_loss(labelled, seen, nan="omit")),
        "coverage": coverage(labelled, seen, [0.9], nan="omit").item(),
    }


def ratio_interval(
    ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray, every: float, seed: int = 0
) -> tuple[float, float, float]:
    """The ratio of two CRPS, and its 90 % interval by a paired circular block bootstrap over the origins.

    A block of origins ``every`` so many steps spans a horizon: their years ahead overlap. Sixteen origins tell little.
    """
    a, b = (
        crps(_labelled(d, "1"), _labelled(truth, "1"), nan="omit").transpose("origin", "lead").values
        for d in (ours, theirs)
    )
    a, b, n = np.nanmean(a, 1), np.nanmean(b, 1), len(a)
    block = min(n, -(-HORIZON // max(1, int(every))))
    starts = Streams(seed, [0], purpose="block bootstrap").numpy()[0].integers(0, n, (2000, -(-n // block)))
    rows = ((starts[..., None] + np.arange(block)) % n).reshape(2000, -1)[:, :n]
    low, high = np.quantile(a[rows].mean(1) / b[rows].mean(1), [0.05, 0.95])
    return float(a.mean() / b.mean()), float(low), float(high)


def _labelled(values: np.ndarray, units: str) -> xr.DataArray:
    import xarray as xr

    return xr.DataArray(values, dims=("sample", "origin", "lead")[3 - values.ndim :], attrs={"units": units})


METHODS = ("prior, zero-shot", "seasonal naive", "SARIMAX")


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """Seven series from sixteen origins each, windows of the families themselves, and a roll over 36 months."""
    prior = sd.load_prior(HERE / "prior")
    listed = real.series()
    places = {r.name: origins(r.values) for r in listed}
    context = np.concatenate([_windows(r, places[r.name])[:, :CONTEXT] for r in listed])
    ours = forecasts(prior, context, samples=SAMPLES, seed=seed, progress=progress)
    scored: dict[str, dict[str, dict[str, float]]] = {}
    ratios: dict[str, dict[str, tuple[float, float, float]]] = {}
    start = 0
    for r in listed:
        at, truth = places[r.name], _windows(r, places[r.name])[:, CONTEXT:]
        drawn = {
            METHODS[0]: ours[:, start : start + len(at)],
            METHODS[1]: real.seasonal_naive(r, at, HORIZON, CONTEXT, SAMPLES, seed=seed),
            METHODS[2]: real.sarimax(r, at, HORIZON, SAMPLES, seed=seed),
        }
        scored[r.name] = {name: scores(d, truth, r.units) for name, d in drawn.items()}
        every = float(np.diff(at).mean())
        ratios[r.name] = {
            name: ratio_interval(drawn[METHODS[0]], drawn[name], truth, every, seed) for name in METHODS[1:]
        }
        start += len(at)
    own = in_family(prior, seed=seed)
    metrics: dict[str, Metric] = {}
    for rival, key in (("seasonal naive", "naive"), ("SARIMAX", "sarimax")):
        metrics[f"crps_over_{key}"] = Metric(
            _ratio(scored, rival),
            "1",
            1.0,
            rival,
            f"geometric mean over the series of the CRPS over that of {rival}",
            "lower",
        )
    metrics["coverage_90"] = Metric(
        float(np.mean([s[METHODS[0]]["coverage"] for s in scored.values()])),
        "1",
        0.9,
        "nominal",
        "coverage of 90 % intervals, mean over the series",
        "nearer",
    )
    metrics["coverage_90_simulated"] = Metric(
        own["coverage"],
        "1",
        0.9,
        "nominal",
        "coverage of 90 % intervals on simulated series not trained on",
        "nearer",
    )
    for r in listed:
        metrics[f"crps_{_key(r.name)}"] = Metric(
            scored[r.name][METHODS[0]]["crps"],
            r.units,
            scored[r.name]["SARIMAX"]["crps"],
            "SARIMAX fitted to the series",
            f"CRPS of {r.name}, zero-shot",
            "lower",
        )
    worse, better = (
        [r.name for r in listed if told(*ratios[r.name]["SARIMAX"])]
        for told in (lambda _, low, high: low > 1, lambda _, low, high: high < 1)
    )
    notes = [
        f"The prior sees {CONTEXT} values and was fitted to none of the series; SARIMAX is fitted to all values before the first "
        "origin, at least half of the series, and sees every value up to each origin. The seasonal naive forecast sees what the prior sees.",
        f"Where the 90 % interval of the ratio of the CRPS leaves out 1, the prior is behind SARIMAX on {len(worse)} of {len(listed)} "
        f"series ({', '.join(worse) or 'none'}), and ahead on {len(better)} ({', '.join(better) or 'none'}).",
        f"On simulated series of its own families the 90 % intervals hold {100 * own['coverage']:.1f} %.",
    ]
    shown = load(seed).posterior.sample(500, seed=seed, steps=STEPS, progress=False)
    return Result(
        metrics,
        shown,
        pictures(prior, listed, scored, shown, seed),
        {
            "CRPS, in the units of the series": _table(listed, scored, "crps"),
            "CRPS of the prior over that of others, 90 % intervals by blocks of origins": [
                {
                    "series": r.name,
                    **{name: "{:.2f} ({:.2f} to {:.2f})".format(*q) for name, q in ratios[r.name].items()},
                }
                for r in listed
            ],
            "weighted quantile loss (levels .1 to .9)": _table(listed, scored, "wql"),
            "coverage of 90 % intervals": _table(listed, scored, "coverage"),
        },
        notes,
        {"seed": seed, "samples": SAMPLES, "origins": ORIGINS, "noise": NOISE},
        headline=["crps_over_naive", "crps_over_sarimax", "coverage_90"],
    )


def in_family(prior: sd.Prior, *, cases: int = 100, seed: int = 0) -> dict[str, float]:
    """Scores on simulated series that were not trained on, in units of their context."""
    z = families.simulate(cases, seed=10_000 + seed)
    drawn = forecasts(prior, z[:, :CONTEXT], samples=100, seed=seed, progress=False)
    return scores(drawn, z[:, CONTEXT:], "1")


def _windows(r: real.Real, at: list[int]) -> np.ndarray:
    values = r.values.to_numpy(dtype=float)
    return np.stack([values[o - CONTEXT : o + HORIZON] for o in at])


def _ratio(scored: dict[str, dict[str, dict[str, float]]], rival: str) -> float:
    return float(np.exp(np.mean([np.log(s[METHODS[0]]["crps"] / s[rival]["crps"]) for s in scored.values()])))


def _key(name: str) -> str:
    return name.lower().replace(" ", "_").replace("ñ", "n")


def _table(
    listed: list[real.Real], scored: dict[str, dict[str, dict[str, float]]], what: str
) -> list[dict[str, str]]:
    return [
        {
            "series": f"{r.name} [{r.units}]" if what == "crps" else r.name,
            **{name: f"{scored[r.name][name][what]:.3g}" for name in METHODS},
        }
        for r in listed
    ]


def pictures(
    prior: NeuralPrior,
    listed: list[real.Real],
    scored: dict[str, dict[str, dict[str, float]]],
    shown: xr.Dataset,
    seed: int,
) -> dict[str, Figure]:
    """The sunspots, a forecast rolled over three windows, and the ratios of the CRPS."""
    import matplotlib.pyplot as plt

    problem = load()
    fan, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    sd.plot.fan(shown, truth=problem.truth, observation=problem.y, ax=ax)
    ax.set_ylabel("sunspots a year")
    return {
        "fan": Figure(
            fan,
            "Sunspots of 1960 to 1971, from the sixty years before, by a prior that has never seen any.",
        ),
        "rolled": Figure(
            _rolled(prior, listed, seed),
            "Three years ahead, window after window, where each draw goes on from its own last values; grey, the end of what is seen.",
        ),
        "ratios": Figure(
            _ratios(listed, scored),
            "CRPS of the zero-shot prior over that of the others; left of 1 the prior is ahead.",
        ),
    }


def _rolled(prior: NeuralPrior, listed: list[real.Real], seed: int) -> object:
    import matplotlib.pyplot as plt
    from matplotlib.dates import DateFormatter, YearLocator

    chosen = [r for r in listed if r.name in ("CO2", "El Niño")]
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
    for ax, r in zip(axes, chosen, strict=True):
        o = len(r.values) - ROLLED
        window = r.values.iloc[o - CONTEXT :]
        drawn = forecasts(
            prior,
            window.to_numpy(dtype=float)[None, :CONTEXT],
            ROLLED,
            samples=100,
            seed=seed,
            progress=False,
        )
        at = sd.Space({"time": window.index.values[CONTEXT:]}, {"value": r.units})
        ahead = at.dataset(torch.tensor(drawn[:, 0]), ["sample"])
        sd.plot.fan(ahead, truth=at.dataset(torch.tensor(window.to_numpy()[CONTEXT:])), ax=ax)
        ax.plot(window.index[CONTEXT - 24 : CONTEXT], window.iloc[CONTEXT - 24 : CONTEXT], color="0.5", lw=1)
        ax.set_xlim(window.index[CONTEXT - 24], window.index[-1])
        ax.xaxis.set_major_locator(YearLocator())
        ax.xaxis.set_major_formatter(DateFormatter("%Y"))
        ax.set_xlabel("")
        ax.set_ylabel(f"{r.name} [{r.units}]")
        ax.get_legend().remove()
    return figure


def _ratios(listed: list[real.Real], scored: dict[str, dict[str, dict[str, float]]]) -> object:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
    place = np.arange(len(listed))[::-1]
    for rival, marker in (("seasonal naive", "o"), ("SARIMAX", "s")):
        ratio = [scored[r.name][METHODS[0]]["crps"] / scored[r.name][rival]["crps"] for r in listed]
        ax.plot(ratio, place, marker, ms=6, label=f"over {rival}")
    ax.axvline(1.0, color="0.5", lw=1)
    ax.set_xscale("log")
    ax.set_yticks(place, [r.name for r in listed])
    ticks = [0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0]
    low, high = ax.get_xlim()
    kept = [t for t in ticks if low <= t <= high]
    ax.set_xticks(kept, [f"{t:g}" for t in kept])
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.set_xlabel("ratio of the CRPS")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
