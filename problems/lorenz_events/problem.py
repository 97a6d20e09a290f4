"""How probable is it that Lorenz-63 does not leave a lobe, or exceeds a level? A learned prior against a million simulations.

The setting of Finzi et al. (2023), "User-defined Event Sampling and Uncertainty Quantification in Diffusion Models for
Physical Dynamical Systems": trajectories of 7 time units at a spacing of 0.1 after a burn-in of 3.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation.events import EventProbability, Splitting
from sciddiff.bench.catalog import module
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import sliced_w1
from sciddiff.draws import DiagnosisWarning
from sciddiff.methods import TDS, LocalGaussian
from sciddiff.physics import Lorenz63
from sciddiff.priors import NeuralPrior
from sciddiff.solvers import Ancestral, DPMSolver

TITLE = "Lorenz-63: probabilities of events, and trajectories that have them"
SUMMARY = (
    "A prior is learned from trajectories of the chaotic Lorenz-63 system, 7 time units long, without knowing the equations. "
    "Two events: x stays above 0, in the right lobe, for 6 time units; and the largest x exceeds 18.5. Their "
    "probabilities under the prior are estimated by counting draws and by multilevel splitting, and held "
    "against a million direct simulations; trajectories conditioned on them against simulations that had them."
)
HERE = Path(__file__).parent
data = module(__file__, "data")
TRAINING, DRAWS, SIMULATIONS, PARTICLES = 32_768, 2000, 40_000, 128
NAMES = {
    "stay": "x > 0 for 6 time units",
    "peak": f"largest x > {data.HIGH:g}",
}
# of the thresholds, in the units of x
BLUR = 0.2


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the network and keep the prior in ``out``: 5000 steps, some 8 minutes of one core."""

    def turned(x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Half of them turned by the symmetry of the system, (x, y, z) -> (-x, -y, z)."""
        sign = torch.from_numpy(generator.choice([-1.0, 1.0], (len(x), 1, 1)))
        return torch.cat([sign * x[:, :2], x[:, 2:]], 1)

    prior = sd.train(
        data.trajectories(TRAINING, seed=seed + 1).double(),
        data.space(),
        network="unet",
        settings={"width": 32, "multipliers": (1, 2, 4)},
        steps=5000,
        learning_rate=2e-3,
        augment=turned,
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    return prior


def reference() -> dict[str, float]:
    """The shares of a million direct simulations that have each event, made by reference.py."""
    found: dict[str, float] = json.loads((HERE / "reference.json").read_text())
    return found


def given(prior: Any, name: str) -> sd.Posterior:
    """The prior, given that an event happened."""
    event = data.EVENTS[name]
    value = sd.operators.from_torch(lambda x: event(x)[:, None], prior.space, sd.Space({"event": 1}, "value"))
    return prior.given([1.0], value, sd.noise.Exceeds(0.0, BLUR))


def load(seed: int = 0) -> Problem:
    """A trajectory that stays in the right lobe, of which nothing else is known."""
    prior = sd.load_prior(HERE / "prior")
    posterior = given(prior, "stay")
    seen = posterior.observations[0]
    x = data.trajectories(2000, seed=seed + 3)
    truth = prior.space.dataset(x[data.stays(x) > 0][0])
    y = seen.operator.codomain.dataset(seen.y[0])
    method = TDS(particles=PARTICLES, steps=64)
    return Problem("lorenz_events", TITLE, prior, seen.operator, seen.noise, truth, y, method=method)


def defect(x: torch.Tensor) -> float:
    """Root mean square of what a state lacks to the one that the equations make of its predecessor."""
    states = x.movedim(1, 2).double()
    ahead, system = states[:, :-1].reshape(-1, 3), Lorenz63(dt=data.STEP)
    for _ in range(data.EVERY):
        ahead = system.step(ahead)
    return float((ahead - states[:, 1:].reshape(-1, 3)).square().mean().sqrt())


def drawn(prior: Any, *, seed: int) -> dict[str, torch.Tensor]:
    """Draws of the prior by a stochastic and a deterministic solver, ``(DRAWS, 3, 71)``."""
    solvers = {"ancestral": Ancestral(steps=64), "flow": DPMSolver(steps=32)}
    made = {k: prior.sample(DRAWS, seed=seed, solver=solver) for k, solver in solvers.items()}
    return {k: prior.space.tensor(v, batch_dim="sample") for k, v in made.items()}


def estimates(
    prior: Any, draws: dict[str, torch.Tensor], *, seed: int
) -> tuple[dict[str, dict[str, EventProbability]], dict[str, torch.Tensor]]:
    """Every event by every way, and the states of splitting that have them."""
    out: dict[str, dict[str, EventProbability]] = {}
    states = {}
    splitting = Splitting(population=60, repeats=6, moves=4, solver=DPMSolver(steps=32))
    for name, event in data.EVENTS.items():
        out[name] = {}
        for label, x in draws.items():
            # what `Counting` does, on draws that serve both events
            p = float((event(x) > 0).double().mean())
            error = math.sqrt(p * (1 - p) / len(x)) if 0 < p < 1 else 1 / len(x)
            out[name][f"counting, {label}"] = EventProbability.of(p, error)
        found, held = splitting.states(prior, event, seed=seed)
        out[name]["splitting, flow"] = found
        states[name] = prior.space.tensor(held, batch_dim="sample")
    return out, states


def conditioned(prior: Any, *, seed: int, progress: bool | None) -> dict[str, dict[str, Any]]:
    """Draws given each event by guidance."""
    methods = {
        "TDS": (TDS(particles=PARTICLES, steps=64), {}),
        "LocalGaussian": (LocalGaussian(), {"steps": 64}),
    }
    out: dict[str, dict[str, Any]] = {}
    for name in data.EVENTS:
        posterior = given(prior, name)
        with warnings.catch_warnings():
            # what it would say is in the table
            warnings.simplefilter("ignore", DiagnosisWarning)
            out[name] = {
                label: posterior.sample(PARTICLES, method, seed=seed, progress=progress, **options)
                for label, (method, options) in methods.items()
            }
    return out


def compared(x: torch.Tensor, truth: torch.Tensor, scale: torch.Tensor, event: Any) -> dict[str, float]:
    """Share with the event, one-step defect, and the distance to simulations that had it, over its floor."""
    a, b = ((v.double() / scale).numpy() for v in (x, truth))
    size = min(len(a), len(b) // 2)

    def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng(seed).permutation(len(b))
        return b[order[:size]], b[order[size : 2 * size]]

    least = np.mean([sliced_w1(*pair(i)) for i in range(8)])
    return {
        "share": float((event(x) > 0).double().mean()),
        "defect": defect(x),
        "distance": float(np.mean([sliced_w1(a[:size], pair(i)[0]) for i in range(8)]) / least),
    }


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """Probabilities by three ways, conditional draws by three, and direct simulation beside."""
    prior, exact = sd.load_prior(HERE / "prior"), reference()
    loose = drawn(prior, seed=seed)
    found, states = estimates(prior, loose, seed=seed)
    guided = conditioned(prior, seed=seed, progress=progress)
    _, kept = data.counted(SIMULATIONS, seed=seed + 5)
    scale = prior.normalisation.scale.double()
    metrics: dict[str, Metric] = {}
    chances, draws = [], []
    source = f"{exact['simulations']:,} direct simulations".replace(",", " ")
    for name, event in data.EVENTS.items():
        truth = torch.from_numpy(kept[name])
        spread = math.sqrt((1 - exact[name]) / exact[name] / exact["simulations"])
        log = math.log(exact[name])
        chances.append(
            {"event": NAMES[name], "way": "direct simulation", "probability": f"{exact[name]:.5f}",
             "log": f"{log:.3f} ± {spread:.3f}", "log error": ""}
        )  # fmt: skip
        for way, p in found[name].items():
            off = p.log_probability - log
            chances.append(
                {"event": NAMES[name], "way": f"prior, {way}", "probability": f"{p.probability:.5f}",
                 "log": f"{p.log_probability:.3f} ± {p.log_error:.3f}", "log error": f"{off:+.2f}"}
            )  # fmt: skip
            key = f"{name}_log_error_{way.replace(', ', '_')}"
            # no draw with the event has no logarithm, which the table shows
            if math.isfinite(off):
                metrics[key] = Metric(
                    off, "nat", 0.0, source, f"error of log P({NAMES[name]}), {way}", "nearer"
                )
        everyone = {"simulations": truth[: len(truth) // 2], "splitting": states[name]}
        everyone |= {k: prior.space.tensor(v, batch_dim="sample") for k, v in guided[name].items()}
        for label, x in everyone.items():
            row = compared(x, truth[len(truth) // 2 :] if label == "simulations" else truth, scale, event)
            draws.append(
                {"event": NAMES[name], "draws": label, "number": len(x), "have it": f"{100 * row['share']:.0f} %",
                 "one-step defect": f"{row['defect']:.3f}", "distance": f"{row['distance']:.2f}"}
            )  # fmt: skip
            if label != "simulations":
                metrics[f"{name}_{label}_distance"] = Metric(
                    row["distance"], "1", 1.0, "two sets of simulations",
                    f"sliced W1 over its floor, {label}, {NAMES[name]}", "lower",
                )  # fmt: skip
                metrics[f"{name}_{label}_share"] = Metric(
                    row["share"], "1", 1.0, "the event", f"share that have it, {label}, {NAMES[name]}", "higher"
                )  # fmt: skip
    notes = [
        "Counting and splitting have no error but chance, within which they agree: what they are off by beyond it is the learned "
        "prior's own and its solver's. Trajectories of one population of splitting share ancestors.",
        f"The blur of the events in guidance is {BLUR:g}. LocalGaussian takes the event for linear in the state around the denoised "
        "one, with the covariance of a Gaussian fitted to all trajectories, which knows no lobes; TDS follows "
        "the network's own gradient and weighs its particles, but many draws are copies of few.",
        "Distances are sliced W1 in normalised units over that of two sets of simulations of that size; in the row "
        "'simulations' one half is held against the other.",
    ]
    return Result(
        metrics,
        guided["stay"]["TDS"],
        pictures(loose["ancestral"], states, guided, kept, seed),
        {"Probabilities of the events": chances, "Trajectories given the events": draws},
        notes,
        {"seed": seed, "draws": DRAWS, "simulations": SIMULATIONS, "particles": PARTICLES, "blur": BLUR},
        headline=["stay_log_error_counting_ancestral", "peak_log_error_splitting_flow", "stay_TDS_distance"],
    )


def pictures(
    loose: torch.Tensor,
    states: dict[str, torch.Tensor],
    guided: dict[str, dict[str, Any]],
    kept: dict[str, np.ndarray],
    seed: int,
) -> dict[str, Figure]:
    """Trajectories given each event, and the probability that the largest x exceeds a level."""
    import matplotlib.pyplot as plt

    times = np.asarray(data.space().coords["time"])
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.2), sharex=True, sharey="row", layout="constrained")
    for row, name in zip(axes, data.EVENTS, strict=True):
        sets = {
            "simulations that had it": kept[name],
            "prior, splitting": states[name].numpy(),
            "prior, TDS": np.asarray(guided[name]["TDS"]["x"])[:, None],
        }
        for ax, (label, x) in zip(row, sets.items(), strict=True):
            shown = np.random.default_rng(0).permutation(len(x))[:12]
            ax.plot(times, x[shown, 0].T, lw=0.8, alpha=0.8)
            ax.axhline(0.0 if name == "stay" else data.HIGH, color="0.3", lw=0.8, ls="--")
            if name == "stay":
                ax.axvline(times[data.STAY - 1], color="0.3", lw=0.8, ls="--")
                ax.set_title(label, fontsize=10)
        row[0].set_ylabel("x, given " + ("x > 0\nup to time 6" if name == "stay" else "a peak\nabove 18.5"))
    for ax in axes[1]:
        ax.set_xlabel("time")
    level, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
    direct = data.trajectories(SIMULATIONS, seed=seed + 7)[:, 0].amax(1).numpy()
    ours = loose[:, 0].amax(1).numpy()
    grid = np.linspace(12, 19.5, 120)
    for label, values, style in (("simulations", direct, "k-"), ("learned prior", ours, "C0-")):
        share = (values[:, None] > grid).mean(0)
        error = np.sqrt(share * (1 - share) / len(values))
        ax.plot(grid, np.where(share > 0, share, np.nan), style, lw=1.4, label=f"{label}, {len(values)}")
        ax.fill_between(grid, (share - error).clip(1e-6), share + error, color=style[:-1], alpha=0.2, lw=0)
    ax.axvline(data.HIGH, color="0.3", lw=0.8, ls="--")
    ax.set(yscale="log", ylim=(2e-4, 1.2), xlabel="level", ylabel="P(largest x > level)")
    ax.legend(frameon=False, fontsize=8)
    return {
        "trajectories": Figure(
            figure,
            "Twelve trajectories given each event: simulations that had it, and the learned prior's, conditioned.",
        ),
        "exceedance": Figure(
            level, "Probability that the largest x of a trajectory exceeds a level, with a standard error."
        ),
    }
