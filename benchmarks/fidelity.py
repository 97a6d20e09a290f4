"""How far every method's draws are from the exact posterior, with the exact denoiser: any error is its own.

Two settings whose posterior is known. An Ornstein-Uhlenbeck series (64 times, length scale 8, 16 of them
observed with sd 0.1 of the prior's): means and standard deviations in units of the exact ones, and Gaussian
W2. And the mixture of 25 Gaussians of the MCGdiff paper (Cardoso et al. 2023, arXiv 2308.07983; 8 dimensions,
1, 2 or 4 data): sliced W1. Distances are divided by their floor, the same estimator on pairs of exact sets of
that size (the median of 20 for W2, of 10 for SW1): 1.00 is perfect.

    python benchmarks/fidelity.py [--seeds 5] [--draws 1000] [--only series|mixture]

What it prints at these settings is kept in fidelity.txt beside it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch

import sciddiff as sd
from sciddiff.diagnostics import floor, gaussian_w2, sliced_w1
from sciddiff.methods import DPS, MMPS, DPSDenoiser, EnsembleKalman, GaussianVI, Method
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.solvers import Ancestral, DPMSolver, Moments, Solver

Exact = Callable[[int, int], np.ndarray]
Rule = tuple[str, Method, Solver | None, bool]


class Hidden(sd.Prior):
    """A prior that does not tell its covariance, so that methods go through its denoiser as for a network."""

    exact = True

    def __init__(self, inner: sd.Prior) -> None:
        self.__dict__.update(inner.__dict__)
        self.inner = inner

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """That of the prior inside."""
        return self.inner.denoise(z, sigma)


def series(seed: int) -> tuple[sd.Posterior, np.ndarray, np.ndarray]:
    """The posterior of a series, its exact mean and its exact covariance."""
    length, rng = 64, np.random.default_rng(seed)
    times = np.arange(float(length))
    kernel = np.exp(-np.abs(times[:, None] - times) / 8)
    seen = np.sort(rng.choice(length, 16, replace=False))
    x = np.linalg.cholesky(kernel) @ rng.standard_normal(length)
    y = x[seen] + 0.1 * rng.standard_normal(16)
    space = sd.Space({"time": times})
    prior = sd.GaussianPrior(space, sd.covariance.dense(kernel))
    posterior = prior.given(y, sd.operators.Points.at_indices(space, seen), sd.noise.Gaussian(0.1))
    gain = kernel[:, seen] @ np.linalg.inv(kernel[np.ix_(seen, seen)] + 0.01 * np.eye(16))
    return posterior, gain @ y, kernel - gain @ kernel[seen]


def mixture(seed: int, data: int, d: int = 8) -> tuple[sd.Posterior, Exact, sd.Prior]:
    """The posterior of a 25-mode mixture, its exact draws, and itself as a mixture with the exact score."""
    rng = np.random.default_rng([seed, data])
    grid = 8.0 * (np.arange(5) - 2)
    means = np.stack([np.tile([a, b], d // 2) for a in grid for b in grid])
    weights = rng.chisquare(1, 25)
    weights /= weights.sum()
    u, _, vt = np.linalg.svd(rng.standard_normal((data, d)), full_matrices=False)
    s = np.sort(rng.uniform(size=data))[::-1]
    a, sigma = (u * s) @ vt, rng.uniform() * s.max()
    x = means[rng.choice(25, p=weights)] + rng.standard_normal(d)
    y = a @ x + sigma * rng.standard_normal(data)
    space = sd.Space({"i": d})
    prior = GaussianMixturePrior(space, weights, means, 1.0)
    operator = sd.operators.Matrix(space, sd.Space({"j": data}, "y"), a)
    # every component's posterior is Gaussian, and its weight the evidence of the data
    total = a @ a.T + sigma**2 * np.eye(data)
    off = y - means @ a.T
    logs = np.log(weights) - 0.5 * (off @ np.linalg.inv(total) * off).sum(1)
    share = np.exp(logs - logs.max())
    centres = means + off @ (a.T @ np.linalg.inv(total)).T
    root = np.linalg.cholesky(np.eye(d) - a.T @ np.linalg.inv(total) @ a)

    share /= share.sum()

    def exact(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return centres[rng.choice(25, n, p=share)] + rng.standard_normal((n, d)) @ root.T

    kept = share > 1e-12
    answer = GaussianMixturePrior(space, share[kept], centres[kept], sd.covariance.dense(root @ root.T))
    return prior.given(y, operator, sd.noise.Gaussian(sigma)), exact, answer


def draw(posterior: sd.Posterior, rule: Rule, n: int) -> np.ndarray:
    """Draws of a rule, ``(n, d)``."""
    _, method, solver, hidden = rule
    if hidden:
        posterior = sd.Posterior(Hidden(posterior.prior), posterior.observations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the draws say themselves that they look wrong; here it is measured
        return posterior.sample(n, method=method, solver=solver, seed=0)["x"].values


SERIES: list[Rule] = [
    ("MMPS, Moments, 4 steps", MMPS(), Moments(steps=4), False),
    ("MMPS, Moments, 16 steps (default)", MMPS(), None, False),
    *((f"MMPS, DPM-Solver++, {n} steps", MMPS(), DPMSolver(steps=n), False) for n in (8, 16, 32, 64)),
    *((f"MMPS, ancestral, {n} steps", MMPS(), Ancestral(steps=n), False) for n in (64, 256, 1024)),
    ("MMPS by VJPs, DPM-Solver++, 32 steps", MMPS(), DPMSolver(steps=32), True),
    ("MMPS, 1 CG step, ancestral, 256 steps", MMPS("guarded", max_iterations=1), Ancestral(steps=256), True),
    *((f"SDA gamma {g}, ancestral, 256 steps", MMPS("scalar", gamma=g), Ancestral(steps=256), False) for g in (0.03, 1.0)),
    *((f"DPS zeta {z}, 1000 steps", DPS(zeta=z), None, False) for z in (0.1, 0.3, 1.0)),
    *((f"DPS zeta {z}, 256 steps, VE", DPS(zeta=z, steps=256, path="ve"), None, False) for z in (0.3, 1.0)),
    *((f"DPSDenoiser zeta {z}, ancestral, 256 steps", DPSDenoiser(z), Ancestral(steps=256), False) for z in (0.25, 0.5, 1.0)),
    ("EnsembleKalman, as many members as draws", EnsembleKalman(), None, False),
    ("GaussianVI", GaussianVI(), None, False),
]  # fmt: skip

MIXTURE: list[Rule] = [
    ("MMPS by VJPs, ancestral, 100 steps", MMPS(), Ancestral(steps=100), False),
    ("MMPS by VJPs, DPM-Solver++, 32 steps", MMPS(), DPMSolver(steps=32), False),
    ("MMPS, fitted Gaussian, Moments", MMPS("gaussian"), None, False),
    ("SDA gamma 0.03, ancestral, 100 steps", MMPS("scalar", gamma=0.03), Ancestral(steps=100), False),
    ("DPS zeta 0.3, 1000 steps", DPS(), None, False),
    ("DPSDenoiser zeta 0.5, ancestral, 100 steps", DPSDenoiser(), Ancestral(steps=100), False),
    ("EnsembleKalman, as many members as draws", EnsembleKalman(), None, False),
]


def ratio(values: np.ndarray, floors: np.ndarray) -> str:
    """Mean over mean of the floor, with a bootstrap interval of 90 % over the problems."""
    picks = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    low, high = np.quantile(values[picks].mean(1) / floors[picks].mean(1), [0.05, 0.95])
    return f"{values.mean() / floors.mean():6.2f} ({low:.2f}-{high:.2f})"


def report_series(seeds: int, n: int) -> None:
    """Print the table of the series."""
    problems = [series(s) for s in range(seeds)]
    exact, floors = [], []
    for s, (_, mean, cov) in enumerate(problems):
        root = np.linalg.cholesky(cov)

        def sample(n: int, seed: int, mean: np.ndarray = mean, root: np.ndarray = root) -> np.ndarray:
            return mean + np.random.default_rng(seed).standard_normal((n, len(mean))) @ root.T

        exact.append(sample(n, 10_000 + s))
        floors.append(floor(sample, n, gaussian_w2))
    print(f"\nseries: {n} draws, seeds 0 to {seeds - 1}; W2 floor {np.mean(floors):.3f}")
    print(f"{'rule':46s} {'mean error':>10s} {'sd ratio (min-max)':>20s} {'W2/floor (90 %)':>22s}")
    for rule in SERIES:
        rows = []
        for (posterior, mean, cov), reference in zip(problems, exact, strict=True):
            x, scale = draw(posterior, rule, n), np.sqrt(np.diag(cov))
            spread = x.std(0, ddof=1) / scale
            off = np.sqrt((((x.mean(0) - mean) / scale) ** 2).mean())
            rows.append([off, spread.mean(), spread.min(), spread.max(), gaussian_w2(x, reference)])
        r = np.array(rows)
        sds = f"{r[:, 1].mean():.2f} ({r[:, 2].min():.2f}-{r[:, 3].max():.2f})"
        far = ratio(r[:, 4], np.array(floors))
        print(f"{rule[0]:46s} {r[:, 0].mean():10.3f} {sds:>20s} {far:>22s}", flush=True)


def report_mixture(seeds: int, n: int) -> None:
    """Print the table of the mixture."""
    print(
        f"\nmixture of 25 in 8 dimensions: {n} draws, seeds 0 to {seeds - 1}; SW1/floor (90 %), and SW1 itself"
    )
    kept = {data: [mixture(s, data) for s in range(seeds)] for data in (1, 2, 4)}
    floors = {k: np.array([floor(e, n, sliced_w1, pairs=10) for _, e, _ in p]) for k, p in kept.items()}
    print(f"{'rule':46s}" + "".join(f"{f'{data} data':>30s}" for data in kept))
    print(f"{'floor':46s}" + "".join(f"{f.mean():30.3f}" for f in floors.values()))

    def line(name: str, sample: Callable[[sd.Posterior, sd.Prior], np.ndarray]) -> None:
        cells = ""
        for data, problems in kept.items():
            far = np.array(
                [sliced_w1(sample(p, a), e(n, 10_000 + s)) for s, (p, e, a) in enumerate(problems)]
            )
            cells += f"{f'{ratio(far, floors[data])} {far.mean():6.3f}':>30s}"
        print(f"{name:46s}{cells}", flush=True)

    line(
        "the exact score, DPM-Solver++, 32 steps",
        lambda _, answer: answer.sample(n, seed=0, solver=DPMSolver(steps=32))["x"].values,
    )
    for rule in MIXTURE:
        line(rule[0], lambda posterior, _, rule=rule: draw(posterior, rule, n))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="problems of each setting")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--only", choices=("series", "mixture"))
    options = parser.parse_args()
    if options.only != "mixture":
        report_series(options.seeds, options.draws)
    if options.only != "series":
        report_mixture(options.seeds, options.draws)


if __name__ == "__main__":
    main()
