"""Smoothing a noisy Lorenz-63: a prior that learnt from runs, against methods that know the model.

A state is a trajectory of 65 steps. The four ways to observe it in `twin` change the operator alone; the prior is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import FFBS, EnKS
from sciddiff.bench.catalog import module
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.solvers import Ancestral, Karras, PredictorCorrector, Solver
from sciddiff.solvers.langevin import AnnealedLangevin

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior

TITLE = "Lorenz-63: smooth trajectories of noise-driven chaos, with one and with two modes"
SUMMARY = (
    "Trajectories of the noisy Lorenz-63 system of Rozet and Louppe (2023) are recovered from a few or noisy values of x, and "
    "from z alone, which leaves the sign of x and y open: then the posterior has two modes of weight 1/2 each, exactly. "
    "A prior over whole trajectories, learnt from runs and without the model, stands beside methods that know the model: "
    "a particle smoother as the reference and an ensemble Kalman smoother. The learned prior's "
    "own errors, in the mean and the variance of its increments, are measured too."
)
HERE = Path(__file__).parent
twin = module(__file__, "twin")
CASES, SAMPLES = 4, 32
METHOD = sd.MMPS("scalar", gamma=0.03)
# chosen on other trajectories (seed 1): accurate data make the guidance too stiff for steps that keep the spread exactly
SOLVERS: Mapping[str, Solver] = dict.fromkeys(
    ("lo", "even"),
    AnnealedLangevin(
        steps=64,
        schedule=Karras(),
        corrections=3,
        below=0.1,
        above=PredictorCorrector(predictor=Ancestral(), corrections=1, tau=4.0),
    ),
) | {"hi": AnnealedLangevin(steps=40, corrections=3)}
REFERENCE = FFBS(particles=8192)
NETWORK = {
    "width": 64,
    "dilations": [1, 2, 4, 8, 1, 2, 4, 8],
    # sd of the first, second and third differences of standardised trajectories
    "differences": [0.18, 0.067, 0.057],
}


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the network on windows of the training runs and keep the prior in ``out``; about 13 minutes of one core."""
    data = twin.data
    prior = sd.train(
        data.Windows(data.load("training"), batch=64),
        data.space(twin.LENGTH),
        network="dilated",
        settings=NETWORK,
        gaussian=None,
        steps=9000,
        batch=64,
        learning_rate=2e-3,
        sigmas=(-1.5, 1.7),
        sigma_min=0.003,
        sigma_max=40.0,
        seed=seed,
    )
    prior.save(out / "prior", half=True)
    return prior


def load(seed: int = 0) -> Problem:
    """One trajectory whose x is seen every 8 steps."""
    setting = twin.SETTINGS["lo"]
    prior = sd.load_prior(HERE / "prior")
    truth = twin.truths(1, seed)
    posterior = twin.posterior(setting, twin.observe(setting, truth, seed), prior)
    (seen,) = posterior.observations
    y = seen.operator.codomain.dataset(seen.y[0])
    return Problem(
        "lorenz63_smoothing",
        TITLE,
        prior,
        seen.operator,
        seen.noise,
        prior.space.dataset(truth[0].T),
        y,
        method=METHOD,
    )


@final
@dataclass(frozen=True, eq=False)
class Experiment:
    """One setting: what was seen of some trajectories, and draws ``(sample, case, state, 3)`` by the names of methods."""

    setting: Any
    truth: torch.Tensor
    y: list[torch.Tensor]
    draws: dict[str, torch.Tensor]

    def scores(self, name: str) -> dict[str, np.ndarray]:
        """Figures of a method by case, beside those of the reference."""
        found: dict[str, np.ndarray] = twin.scores(
            self.setting, self.draws[name], self.truth, self.y, self.draws["FFBS"]
        )
        return found


def experiment(
    name: str,
    prior: sd.Prior,
    *,
    cases: int = CASES,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: bool | None = None,
    proposals: xr.Dataset | None = None,
) -> tuple[Experiment, xr.Dataset]:
    """All methods on one setting, and the labelled draws under the learned prior, made from ``proposals`` if given."""
    setting = twin.SETTINGS[name]
    truth = twin.truths(cases, seed)
    y = twin.observe(setting, truth, seed)
    law = twin.assimilation(setting, y, twin.model())
    learned = proposals if proposals is not None else propose(name, prior, truth, samples, seed, progress)
    learned = settled(setting, learned, y, samples)
    draws = {
        "FFBS": law.sample(4 * samples, REFERENCE, seed=seed),
        "FFBS again": law.sample(samples, REFERENCE, seed=seed + 1),
        "EnKS": law.sample(samples, EnKS(members=256), seed=seed),
        "learned prior": learned,
    }
    return Experiment(setting, truth, y, {n: twin.states(d) for n, d in draws.items()}), learned


def propose(
    name: str, prior: sd.Prior, truth: torch.Tensor, samples: int, seed: int, progress: bool | None
) -> xr.Dataset:
    """Guided draws, a quarter more than are asked for; for `uneven` given z alone."""
    name = "even" if name == "uneven" else name
    setting = twin.SETTINGS[name]
    posterior = twin.posterior(setting, twin.observe(setting, truth, seed), prior)
    more = samples + samples // 4
    return posterior.sample(more, METHOD, solver=SOLVERS[name], seed=seed, progress=progress)


def settled(setting: Any, proposals: xr.Dataset, y: list[torch.Tensor], samples: int) -> xr.Dataset:
    """The draws that count, ``samples`` of each case, by the data alone.

    Guided draws that end in a lobe from which they cannot meet the data are passed over: those whose misfit has a
    chi-square probability below 1e-6 for as many data. Where too few are left, such draws come after them. Where a second
    instrument was left out of the guidance, the rest are resampled (systematically) by its likelihood.
    """
    import xarray as xr
    from scipy.stats import chi2

    x = twin.states(proposals)
    guided = twin.Setting("", setting.instruments[:1], setting.sign_at)
    misfit = twin.misfit(guided, x, y[:1])
    stray = misfit > float(chi2.isf(1e-6, y[0].shape[1]))
    if len(y) == 1:
        picked = torch.argsort(stray.int(), dim=0, stable=True)[:samples]
    else:
        rest = twin.Setting("", setting.instruments[1:], setting.sign_at)
        log_weight = twin.log_likelihood(rest, x, y[1:]).masked_fill(stray, -1e3)
        steps = log_weight.softmax(0).cumsum(0).T.contiguous()
        places = ((torch.arange(samples, dtype=steps.dtype) + 0.5) / samples).expand(len(steps), -1)
        picked = torch.searchsorted(steps, places.contiguous()).clamp(max=len(x) - 1).T
    rows = xr.DataArray(picked.numpy(), dims=("sample", "case"))
    cases = xr.DataArray(np.arange(x.shape[1]), dims="case")
    out = proposals.drop_vars("sample", errors="ignore").isel(sample=rows, case=cases)
    return out.transpose("sample", "case", ...)


def run(*, seed: int = 0, progress: bool | None = None, cases: int = CASES, samples: int = SAMPLES) -> Result:
    """The four settings, all methods, and the learned prior's own errors."""
    prior = sd.load_prior(HERE / "prior")
    experiments, labelled, known = {}, None, {}
    truth = twin.truths(cases, seed)
    for name in twin.SETTINGS:
        source = "even" if name == "uneven" else name
        if source not in known:
            known[source] = propose(source, prior, truth, samples, seed, progress)
        experiments[name], drawn = experiment(
            name,
            prior,
            cases=cases,
            samples=samples,
            seed=seed,
            progress=progress,
            proposals=known[source],
        )
        labelled = drawn if labelled is None else labelled
    own = unconditional(prior, seed=seed)
    scores = {n: {m: e.scores(m) for m in e.draws} for n, e in experiments.items()}
    tables = {
        f"{'One mode' if n in ('lo', 'hi') else 'Two modes'}: {e.setting.title}": [
            row(m, e, scores[n]) for m in e.draws
        ]
        for n, e in experiments.items()
    }
    tables["The learned prior against the law that it learnt"] = [
        {
            "": label,
            "log p(x)": f"{v['log_prior']:.1f} ± {v['se']:.1f}",
            "bias of increments [sd]": f"{v['bias']:.3f}",
            "variance of increments": f"{v['variance']:.3f}",
        }
        for label, v in own.items()
    ]
    assert labelled is not None
    return Result(
        metrics(experiments, scores, own),
        labelled,
        pictures(experiments),
        tables,
        NOTES,
        {"seed": seed, "cases": cases, "samples": samples, "particles": REFERENCE.particles},
        headline=["lo_spread_ratio", "hi_spread_ratio", "uneven_weight_error"],
    )


NOTES = [
    "log p(x) is that of all states given the first, in the system's units; log p(y | x) that of standardised observations. "
    "The distance W1 is to as many draws of FFBS, and that of a second run of FFBS is what draws alone cost.",
    "log p(x) above that of FFBS means increments that are too small, not better draws.",
    "EnKS knows the model and the learned prior does not. Where there are two modes EnKS, which knows Gaussians alone, fails: "
    "its draws are no trajectories of the system.",
    "Of the learned prior's guided draws those whose misfit has a chi-square probability below 1e-6 are passed over, from a quarter "
    "more than are shown: that takes the data alone. Where x is seen once, draws given z alone are weighed by its likelihood.",
    "FFBS has the right trajectories and, with so few particles, uncertain weights of the two modes; the exact weight is that of "
    "its draws and their mirror images by their likelihoods.",
]


def unconditional(prior: sd.Prior, *, samples: int = 128, seed: int = 0) -> dict[str, dict[str, float]]:
    """Draws of the prior and true trajectories: log density, and mean and variance of the increments."""
    drawn = prior.sample(samples, solver=AnnealedLangevin(steps=40, corrections=1), seed=seed)
    sets = {
        "draws of the learned prior": twin.states(drawn.expand_dims("case", 1))[:, 0],
        "true trajectories": twin.truths(samples, seed + 1),
    }
    out = {}
    for label, x in sets.items():
        density, noise = twin.log_prior(x), twin.increments(x)
        out[label] = {
            "log_prior": float(density.mean()),
            "se": float(density.std() / len(density) ** 0.5),
            "bias": float(noise.mean((0, 1)).abs().max()),
            "variance": float(noise.square().mean()),
        }
    return out


def row(name: str, e: Experiment, scores: dict[str, dict[str, np.ndarray]]) -> dict[str, str]:
    """One line of the table of a setting."""
    s, base = scores[name], scores["FFBS"]
    knows = "no" if name == "learned prior" else "yes"
    out = {"method": name, "knows the model": knows}
    out |= {
        "log p(x)": f"{s['log_prior'].mean():.1f}",
        "log p(y | x)": f"{s['log_likelihood'].mean():.1f}",
        "RMSE of the mean": f"{s['rmse'].mean():.3f}",
        "spread": f"{s['spread'].mean():.3f}",
        "spread / FFBS": f"{s['spread'].mean() / base['spread'].mean():.2f}",
        "W1": "" if name == "FFBS" else f"{s['w1'].mean():.1f}",
    }
    if two_modes(e):
        exact = twin.weight(e.setting, e.draws["FFBS"], e.y).numpy()
        out["P(x > 0), mean"] = f"{s['weight'].mean():.2f}"
        out["exact, mean"] = f"{exact.mean():.2f}"
        out["largest error of a trajectory"] = f"{np.abs(s['weight'] - exact).max():.2f}"
    return out


def two_modes(e: Experiment) -> bool:
    """Whether the sign of x is left open."""
    return bool(e.setting.title.startswith("z"))


def metrics(
    experiments: dict[str, Experiment],
    scores: dict[str, dict[str, dict[str, np.ndarray]]],
    own: dict[str, dict[str, float]],
) -> dict[str, Metric]:
    """What the learned prior and the smaller particle smoother are off by."""
    out = {}
    for n, e in experiments.items():
        s, base = scores[n]["learned prior"], scores[n]["FFBS"]
        for key, words in (("rmse", "RMSE of the mean"), ("spread", "spread")):
            if not two_modes(e):
                ratio = float(s[key].mean() / base[key].mean())
                out[f"{n}_{key}_ratio"] = Metric(
                    ratio,
                    "1",
                    1.0,
                    "FFBS",
                    f"{words} of the learned prior over FFBS, {e.setting.title}",
                    "nearer",
                )
        if two_modes(e):
            exact = twin.weight(e.setting, e.draws["FFBS"], e.y).numpy()
            off = float((s["weight"] - exact).mean())
            out[f"{n}_weight_error"] = Metric(
                off,
                "1",
                0.0,
                "symmetry",
                f"error of the weight of a mode, learned prior, {e.setting.title}",
                "nearer",
            )
    learned, true = own["draws of the learned prior"], own["true trajectories"]
    out["prior_log_density"] = Metric(
        learned["log_prior"],
        "1",
        true["log_prior"],
        "true trajectories",
        "log p(x) of draws of the prior",
        "nearer",
    )
    out["prior_increment_variance"] = Metric(
        learned["variance"],
        "1",
        1.0,
        "the model",
        "variance of increments of the prior, over the model's",
        "nearer",
    )
    return out


def pictures(experiments: dict[str, Experiment]) -> dict[str, Figure]:
    """Draws beside the truth, and the sign of x where it is left open."""
    import matplotlib.pyplot as plt

    times = np.arange(twin.LENGTH) * twin.data.SYSTEM.dt
    shown = {"FFBS": "FFBS, with the model", "learned prior": "learned prior"}
    lines, axes = plt.subplots(4, 2, figsize=(7.4, 7.6), sharex=True, sharey="row", layout="constrained")
    for i, e in enumerate(experiments.values()):
        for ax, (method, label) in zip(axes[i], shown.items(), strict=True):
            x = e.draws[method][:32, 0, :, 0].numpy()
            ax.plot(times, x.T, color="#0072b2", lw=0.5, alpha=0.5, label=["draws"] + [None] * (len(x) - 1))
            ax.plot(times, e.truth[0, :, 0], color="black", lw=1.4, label="truth")
            for instrument, seen in zip(e.setting.instruments, e.y, strict=True):
                if instrument.variable == "x":
                    at = list(instrument.times)
                    ax.plot(times[at], seen[0], "o", ms=3, color="#d55e00", mew=0, label="data")
            if i == 0:
                ax.set_title(label, fontsize=10)
                ax.legend(frameon=False, fontsize=8, loc="lower right")
        axes[i, 0].set_ylabel(
            f"{e.setting.title.replace(', sd', chr(10) + 'sd').replace(', and', chr(10) + 'and')}\n\nx",
            fontsize=8,
        )
    for ax in axes[-1]:
        ax.set_xlabel("time")
    bars, axes = plt.subplots(1, 2, figsize=(7.4, 2.8), layout="constrained", sharey=True)
    open_signs = [e for e in experiments.values() if two_modes(e)]
    for ax, e in zip(axes, open_signs, strict=True):
        bins = np.linspace(-22, 22, 45)
        for method, style in HISTOGRAMS.items():
            x = e.draws[method][:, 0, e.setting.sign_at, 0].numpy()
            ax.hist(x, bins, density=True, label=method, **style)
        ax.axvline(float(e.truth[0, e.setting.sign_at, 0]), color="black", lw=1, ls=":", label="truth")
        ax.set_xlabel("x in the middle of the trajectory")
        ax.set_title(e.setting.title, fontsize=9)
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False, fontsize=8)
    return {
        "draws": Figure(
            lines, "Draws of x of one trajectory in the four settings, with the truth and what was seen of x."
        ),
        "modes": Figure(
            bars,
            "x in the middle of one trajectory where z alone is seen (left), and x once, with a large error (right).",
        ),
    }


HISTOGRAMS: dict[str, dict[str, Any]] = {
    "FFBS": {"histtype": "stepfilled", "color": "0.8"},
    "learned prior": {"histtype": "step", "color": "#0072b2", "lw": 1.5},
    "EnKS": {"histtype": "step", "color": "#009e73", "lw": 1.2},
}
