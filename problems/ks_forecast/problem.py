"""Forecasts of a chaotic field over more than one Lyapunov time: DYffusion, one-step networks, and a window prior.

All learn from the same runs of the Kuramoto-Sivashinsky equation and answer the same question: what follows a state that
was measured with a small error? The window prior alone was not trained for it: it is given its first state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import (
    Autoregressive,
    Dynamics,
    Emulator,
    WindowDiffusion,
    load_emulator,
    save_emulator,
    train_autoregressive,
    train_dyffusion,
)
from sciddiff.assimilation.surrogates import Surrogate
from sciddiff.bench.catalog import dataset
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import crps
from sciddiff.methods import DAPS
from sciddiff.operators import AtTimes, Identity
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior

TITLE = "Kuramoto-Sivashinsky: forecast a chaotic field with DYffusion and its rivals"
SUMMARY = (
    "A field on a ring of 64 sites is forecast over sixteen units of time, more than one Lyapunov time, from a measured "
    "state. DYffusion, one-step networks with dropout or with fitted noise, and a prior over windows that is only given its "
    "first state stand beside the model itself, climatology and persistence. All networks have the same architecture."
)
HERE = Path(__file__).parent
kuramoto = dataset("kuramoto")
HORIZON, LEADS = 8, 16
# sd of the error of the first state; the field's own is 1.31
NOISE_SD = 0.05
CASES, MEMBERS = 16, 16
DROPOUT = 0.05
# of the window prior: its error still falls with more, see the page
SOLVER_STEPS = 300
SETTINGS = {"width": 32, "multipliers": [1, 2, 2], "padding": "circular"}
JITTER = 0.04
SHOWN = 0


def window() -> sd.Space:
    """Nine states, a unit of time apart."""
    return kuramoto.SYSTEM.trajectories(np.arange(HORIZON + 1) * kuramoto.INTERVAL)


def gaussian(runs: torch.Tensor) -> sd.GaussianPrior:
    """The Gaussian of windows with the covariance of the runs, averaged over turns and mirrors of the ring."""
    length, sites = HORIZON + 1, runs.shape[-1]
    cut = runs.unfold(1, length, 4).movedim(-1, 2).reshape(-1, length, sites)
    f = torch.fft.fft(cut, dim=-1)
    spectrum = torch.einsum("nak,nbk->abk", f, f.conj()).real / (len(cut) * sites)
    lags = torch.fft.ifft(spectrum, dim=-1).real
    i = torch.arange(sites)
    matrix = lags[:, :, (i[:, None] - i) % sites].permute(0, 2, 1, 3).reshape(length * sites, -1)
    law = sd.covariance.dense((matrix + matrix.T) / 2, (length, sites))
    return sd.GaussianPrior(window(), law, dtype=torch.float32)


def turned(x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Windows turned around the ring, and every other one mirrored as ``-u(-x)``, which leaves their law."""
    sites = x.shape[-1]
    turn, sign = (torch.from_numpy(generator.integers(n, size=(len(x), 1, 1))) for n in (sites, 2))
    sign = 1 - 2 * sign
    return sign * x.gather(-1, ((sign * torch.arange(sites) + turn) % sites).expand(x.shape))


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the window prior, DYffusion and a one-step network, and keep them in ``out``: some ten minutes of one core."""
    runs = torch.from_numpy(kuramoto.load()["u"].values).double()
    prior = sd.train(
        kuramoto.Windows(runs, HORIZON + 1, 64, seed),
        window(),
        settings={**SETTINGS, "folded": [HORIZON + 1]},
        gaussian=gaussian(runs),
        steps=4000,
        batch=64,
        learning_rate=2e-3,
        sigmas=(-1.0, 1.6),
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    space = kuramoto.SYSTEM.trajectories(np.arange(runs.shape[1]) * kuramoto.INTERVAL)
    shared: dict[str, Any] = {
        "settings": SETTINGS,
        "learning_rate": 2e-3,
        "jitter": JITTER,
        "augment": turned,
        "seed": seed,
    }
    dyffusion = train_dyffusion(runs, space, horizon=HORIZON, dropout=0.1, steps=(3000, 1000), **shared)
    save_emulator(dyffusion, out / "dyffusion", half=True)
    stepper = train_autoregressive(runs, space, dropout=DROPOUT, noise="periodic", steps=1500, **shared)
    save_emulator(stepper, out / "one_step", half=True)
    return prior


def truths(cases: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs that no training has seen, ``(cases, leads + 1, 64)``, and their measured first states."""
    x = kuramoto.runs(cases, LEADS + 1, seed=seed, purpose="ks_forecast truth")
    noise = Streams(seed, range(cases), purpose="ks_forecast noise")
    return x, x[:, 0] + NOISE_SD * noise.normal((x.shape[-1],), dtype=x.dtype)


def load(seed: int = 0) -> Problem:
    """One window, of which the first state was measured."""
    prior = sd.load_prior(HERE / "prior")
    x, y = truths(1, seed)
    operator = AtTimes(Identity(kuramoto.SYSTEM.space), prior.space, prior.space.coords["time"][:1])
    truth = prior.space.dataset(x[0, : HORIZON + 1])
    return Problem(
        "ks_forecast",
        TITLE,
        prior,
        operator,
        sd.noise.Gaussian(NOISE_SD),
        truth,
        operator.codomain.dataset(y),
        method=DAPS(steps=SOLVER_STEPS),
    )


def emulators() -> dict[str, Emulator]:
    """All that forecast by themselves; the last one has the model and is the bound."""

    def steps(x: torch.Tensor) -> torch.Tensor:
        for _ in range(kuramoto.EVERY):
            x = kuramoto.SYSTEM.step(x)
        return x

    stepper = load_emulator(HERE / "one_step")
    assert isinstance(stepper, Autoregressive)
    dropped = Surrogate(stepper.network.network, stepper.space, inputs=1, dropout=DROPOUT)
    return {
        "DYffusion": load_emulator(HERE / "dyffusion"),
        "one step, fitted noise": stepper,
        "one step, dropout": replace(stepper, network=dropped, noise=None),
        "window prior": WindowDiffusion(sd.load_prior(HERE / "prior"), DAPS(steps=SOLVER_STEPS)),
        "the model": Dynamics(steps, kuramoto.SYSTEM.space, kuramoto.INTERVAL),
    }


def lyapunov(runs: int = 64, *, seed: int = 0) -> tuple[float, float]:
    """The leading Lyapunov exponent [1 / time] and its standard error, from runs beside which a near one is kept near."""
    system, gap, every, rounds = kuramoto.SYSTEM, 1e-7, 8, 125
    x = kuramoto.states(runs, seed=seed, purpose="ks_forecast lyapunov")
    apart = Streams(seed, range(runs), purpose="ks_forecast apart").normal(x.shape[1:], dtype=x.dtype)
    near, rates = x + gap * (apart - apart.mean(-1, keepdim=True)), []
    for _ in range(rounds):
        for _ in range(every):
            x, near = system.step(x), system.step(near)
        distance = (near - x).norm(dim=-1, keepdim=True)
        rates.append((distance / gap).log() / (every * system.dt))
        near = x + (near - x) * (gap / distance)
    # the first ones still turn towards the fastest growing direction
    mean = torch.stack(rates)[25:].mean(0)
    return float(mean.mean()), float(mean.std() / math.sqrt(runs))


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """Forecasts from sixteen measured states by all, with their scores at every lead."""
    x, y = truths(CASES, seed)
    space = kuramoto.SYSTEM.space
    lead = np.arange(1, LEADS + 1) * kuramoto.INTERVAL
    truth = space.dataset(x[:, 1:], ["case", "lead"], {"lead": lead})["u"]
    draws: dict[str, xr.DataArray] = {}
    settings: dict[str, Any] = {"steps": LEADS, "samples": MEMBERS, "batch_dim": "case"}
    for name, emulator in emulators().items():
        ahead = emulator.forecast(y, seed=seed, noise=sd.noise.Gaussian(NOISE_SD), **settings)
        draws[name] = ahead["u"].assign_attrs(ahead.attrs)
    climate = kuramoto.states(200, seed=seed, purpose="ks_forecast climate")
    any_state = space.dataset(climate, ["sample"])["u"]
    draws["climatology"] = any_state.broadcast_like(truth).transpose("sample", "case", "lead", "x")
    still = space.dataset(y, ["case"])["u"].expand_dims(sample=2)
    draws["persistence"] = still.broadcast_like(truth).transpose("sample", "case", "lead", "x")
    scores = {name: score(d, truth) for name, d in draws.items()}
    rate, error = lyapunov(seed=seed)
    notes = [
        f"Differences grow at {rate:.3f} +- {error:.3f} per unit of time: a Lyapunov time is {1 / rate:.1f} units, and the "
        f"last lead {LEADS * kuramoto.INTERVAL * rate:.2f} of them.",
        f"{CASES} runs, {MEMBERS} draws each; first states measured with an error of sd {NOISE_SD}. All but the window prior, "
        "which has the error as its likelihood, begin every draw at the measured state plus an error of that law.",
        "The model itself is run in float64 from the same perturbed states. It bounds what a forecast without a better "
        "analysis of the first state can reach.",
        "Seconds and evaluations are per draw; the network of the window prior has nine times the input and output channels.",
    ]
    ours = draws["DYffusion"]
    result = ours.to_dataset(name="u")
    result.attrs = dict(ours.attrs)
    return Result(
        measured(scores, rate, error),
        result,
        pictures(draws, scores, truth, 1 / rate),
        {"Scores by lead": [row(n, s, draws[n].attrs) for n, s in scores.items()]},
        notes,
        {"seed": seed, "cases": CASES, "members": MEMBERS, "noise_sd": NOISE_SD},
        headline=["dyffusion_crps_8", "window_prior_crps_8", "one_step_fitted_noise_crps_8"],
    )


def score(draws: xr.DataArray, truth: xr.DataArray) -> xr.Dataset:
    """Fair CRPS, RMSE of the mean, and the ratio of spread to error with its factor for few draws, by lead."""
    over, m = ["case", "x"], draws.sizes["sample"]
    rmse = np.sqrt(((draws.mean("sample") - truth) ** 2).mean(over))
    spread = np.sqrt(draws.var("sample", ddof=1).mean(over))
    out = crps(draws, truth).mean(over).to_dataset(name="crps")
    return out.assign(rmse=rmse, ratio=math.sqrt((m + 1) / m) * spread / rmse)


def measured(scores: dict[str, xr.Dataset], rate: float, error: float) -> dict[str, Metric]:
    """The figures of the table, one by one."""
    out = {
        "lyapunov_exponent": Metric(rate, "1 / time", label=f"leading Lyapunov exponent (+- {error:.3f})"),
    }
    for name, s in scores.items():
        key = name.lower().replace(",", "").replace(" ", "_")
        for at in (HORIZON, LEADS):
            bound = float(scores["the model"]["crps"].sel(lead=at))
            out[f"{key}_crps_{at}"] = Metric(
                float(s["crps"].sel(lead=at)),
                "1",
                None if name == "the model" else bound,
                "the model from perturbed states",
                f"CRPS at lead {at}, {name}",
                "lower",
            )
        if name not in ("climatology", "persistence"):
            out[f"{key}_spread_skill_{HORIZON}"] = Metric(
                float(s["ratio"].sel(lead=HORIZON)),
                "1",
                1.0,
                "calibrated",
                f"spread over error at lead {HORIZON}, {name}",
                "nearer",
            )
    return out


def row(name: str, scores: xr.Dataset, attrs: dict[str, Any]) -> dict[str, str]:
    """One method in the table."""
    shown = {"method": name}
    for key, title in (("crps", "CRPS"), ("rmse", "RMSE"), ("ratio", "spread / error")):
        for at in (1, 4, HORIZON, LEADS):
            alone = key == "ratio" and name == "persistence"
            shown[f"{title} {at}"] = "" if alone else f"{float(scores[key].sel(lead=at)):.3f}"
    if "seconds" in attrs:
        shown["evaluations"] = f"{attrs['forwards']:.0f}"
        shown["seconds"] = f"{attrs['seconds'] / (CASES * MEMBERS):.4f}"
    return shown


def pictures(
    draws: dict[str, xr.DataArray], scores: dict[str, xr.Dataset], truth: xr.DataArray, time: float
) -> dict[str, Figure]:
    """One forecast in space and time by each, and the scores against lead."""
    import matplotlib.pyplot as plt

    from sciddiff.plot import style

    names = ["DYffusion", "one step, fitted noise", "window prior", "the model"]
    fields, axes = plt.subplots(
        2, len(names) + 1, figsize=(9.5, 4.6), sharex=True, sharey=True, layout="constrained"
    )
    extent = (0.0, kuramoto.SYSTEM.length, 0.5, LEADS + 0.5)
    image = {"origin": "lower", "aspect": "auto", "extent": extent}
    field = {**image, "vmin": -3.2, "vmax": 3.2, "cmap": "RdBu_r"}
    seen = truth.isel(case=SHOWN)
    first = axes[0, 0].imshow(seen, **field)
    axes[0, 0].set_title("truth", fontsize=9)
    axes[1, 0].axis("off")
    last = None
    for ax, name in zip(axes.T[1:], names, strict=True):
        one = draws[name].isel(case=SHOWN)
        ax[0].imshow(one.isel(sample=0), **field)
        ax[0].set_title("\n".join(name.split(", ")) + ": a draw", fontsize=9)
        last = ax[1].imshow(one.std("sample", ddof=1), **image, vmin=0, vmax=1.5, cmap="viridis")
        ax[1].set_title("standard deviation", fontsize=9)
        ax[1].set_xlabel("x")
    axes[0, 0].set_xlabel("x")
    axes[0, 0].xaxis.set_tick_params(labelbottom=True)
    axes[0, 0].set_ylabel("lead")
    axes[1, 1].set_ylabel("lead")
    axes[1, 1].yaxis.set_tick_params(labelleft=True)
    fields.colorbar(first, ax=axes[0], label="u", pad=0.01)
    fields.colorbar(last, ax=axes[1], label="sd of u", pad=0.01, extend="max")
    colours = [style.VERMILION, style.BLUE, style.SKY, style.GREEN, "0.2", "0.6", "0.75"]
    curves, axes = plt.subplots(1, 3, figsize=(9.5, 3.3), layout="constrained")
    for (name, s), colour in zip(scores.items(), colours, strict=True):
        plain = name in ("climatology", "persistence")
        for ax, key in zip(axes, ("crps", "rmse", "ratio"), strict=True):
            if not (plain and key == "ratio"):
                dash = "--" if plain or name == "the model" else "-"
                ax.plot(s["lead"], s[key], dash, color=colour, lw=1.4, label=name)
    for ax, title in zip(axes, ("CRPS", "RMSE of the mean", "spread / error"), strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("lead")
        ax.axvline(time, color="0.85", lw=1, zorder=0)
        ax.set_xlim(0, LEADS + 0.5)
    for ax in axes[:2]:
        ax.set_yscale("log")
    axes[2].set_ylim(bottom=0)
    axes[2].axhline(1.0, color="0.85", lw=1, zorder=0)
    axes[2].text(time - 0.2, 0.04, "Lyapunov time", color="0.5", fontsize=8, ha="right")
    curves.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return {
        "fields": Figure(
            fields,
            "A forecast from one measured state: a draw by each (above) and the standard deviation of sixteen (below); "
            "time runs upwards.",
        ),
        "scores": Figure(curves, f"Scores against lead, means over {CASES} runs and all sites."),
    }
