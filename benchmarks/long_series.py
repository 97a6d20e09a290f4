"""Smoothing of series of 1000, 3000 and 10 000 steps: seconds, peak memory, and how far from the exact smoother.

    python benchmarks/long_series.py [--draws 32] [--lengths 1000 3000 10000] [--only chain window ...]

Rows, each in a process of its own, so that peak memory is its own:

- "chain": ``x_{k+1} = 0.9 x_k + e_k`` under its exact prior, by its tridiagonal precision.
- "window": the same chain under `WindowPrior` of exact windows of 33 states, each state from the window centred at it.
- "window, stride 9": the same with the middle nine states of each window, for a ninth of the windows.
- "learned": a double well, ``x_{k+1} = x_k + 0.1 (x_k - x_k^3) + 0.25 e_k``, under `WindowPrior` of a network trained on
  windows of 33 states (stride 9). Trained here first, in about two minutes of one core.

Every fourth state is seen, with errors of 0.3. The references are exact: statsmodels' Kalman smoother of the chain, and
for the double well the forward-backward recursions on a fine grid. Seconds are processor time of sampling alone, one thread;
memory is the peak of the process less what it held before the prior was built. What was measured is kept in long_series.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

import sciddiff as sd
from sciddiff.operators import Points
from sciddiff.priors.windows import WindowPrior

KEPT = Path(__file__).with_suffix(".json")
ROWS = ("chain", "window", "window, stride 9", "learned")
PHI, NOISE_SD, EVERY, WIDTH = 0.9, 0.3, 4, 33
WELL_STEP, WELL_NOISE = 0.1, 0.25


# -- the chain, and its smoother ---------------------------------------------------------------------


def chain(length: int, rng: np.random.Generator) -> np.ndarray:
    """One path of the chain, of unit variance."""
    x = rng.standard_normal(length)
    for k in range(1, length):
        x[k] = PHI * x[k - 1] + np.sqrt(1 - PHI**2) * x[k]
    return np.asarray(x)


def chain_prior(length: int) -> sd.GaussianPrior:
    """The chain, exactly."""
    inner = np.full(length, 1 + PHI**2)
    inner[[0, -1]] = 1.0
    beside = np.full(length - 1, -PHI)
    matrix = sp.diags([beside, inner, beside], [-1, 0, 1]).tocsc() / (1 - PHI**2)
    return sd.GaussianPrior(sd.Space({"time": length}), sd.covariance.precision(matrix))


def window_prior(length: int, stride: int) -> WindowPrior:
    """The chain from windows."""
    times = np.arange(float(WIDTH))
    window = sd.GaussianPrior(
        sd.Space({"time": WIDTH}), sd.covariance.kernel(lambda h: np.asarray(PHI**h), times)
    )
    return WindowPrior(window, length, stride=stride)


def kalman(seen: np.ndarray, y: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of the chain given data, by statsmodels."""
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    data = np.full(length, np.nan)
    data[seen] = y
    model = KalmanSmoother(k_endog=1, k_states=1)
    model.bind(data[:, None])
    one = np.ones((1, 1))
    model["design"], model["selection"], model["obs_cov"] = one, one, NOISE_SD**2 * one
    model["transition"], model["state_cov"] = PHI * one, (1 - PHI**2) * one
    model.initialize_known(np.zeros(1), one)
    found = model.smooth()
    return found.smoothed_state[0], np.sqrt(found.smoothed_state_cov[0, 0])


# -- the double well, and its smoother ---------------------------------------------------------------


def wells(paths: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Paths ``(paths, length)`` of the double well, from its stationary law."""
    x = rng.standard_normal(paths)
    out = np.empty((paths, length))
    for k in range(-200, length):
        x = x + WELL_STEP * (x - x**3) + WELL_NOISE * rng.standard_normal(paths)
        if k >= 0:
            out[:, k] = x
    return out


def on_grid(seen: np.ndarray, y: np.ndarray, length: int, cells: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of the double well given data, by forward-backward recursions on a grid."""
    grid = np.linspace(-2.5, 2.5, cells)
    move = np.exp(-0.5 * ((grid[None] - (grid + WELL_STEP * (grid - grid**3))[:, None]) / WELL_NOISE) ** 2)
    move /= move.sum(1, keepdims=True)
    like = np.ones((length, cells))
    like[seen] = np.exp(-0.5 * ((y[:, None] - grid) / NOISE_SD) ** 2)
    start = np.full(cells, 1 / cells)
    for _ in range(2000):
        start = start @ move
    ahead, back = np.empty((length, cells)), np.ones((length, cells))
    now = start
    for k in range(length):
        now = (now if k == 0 else now @ move) * like[k]
        now /= now.sum()
        ahead[k] = now
    for k in range(length - 2, -1, -1):
        back[k] = move @ (like[k + 1] * back[k + 1])
        back[k] /= back[k].max()
    weight = ahead * back
    weight /= weight.sum(1, keepdims=True)
    mean = weight @ grid
    return mean, np.sqrt(weight @ grid**2 - mean**2)


def learn(path: Path) -> None:
    """Train the windows of the double well."""
    rng = np.random.default_rng(1)
    series = wells(2000, 10 * WIDTH, rng).reshape(-1, WIDTH)
    # either way in time and either way up are as likely
    data = np.concatenate([series, -series, series[:, ::-1], -series[:, ::-1]])
    prior = sd.train(
        data,
        sd.Space({"time": WIDTH}),
        network="mlp",
        settings={"width": 128, "depth": 3},
        gaussian=stationary(series),
        steps=8000,
        batch=256,
        learning_rate=2e-3,
        weight_decay=0.0,
        seed=0,
        progress=False,
    )
    prior.save(path)


def stationary(series: np.ndarray) -> sd.GaussianPrior:
    """The Gaussian with the windows' own correlations, the same at all their times."""
    second = series.T @ series / len(series)
    lags = [float(np.diagonal(second, k).mean()) for k in range(WIDTH)]
    matrix = np.array([[lags[abs(i - j)] for j in range(WIDTH)] for i in range(WIDTH)])
    return sd.GaussianPrior(sd.Space({"time": WIDTH}), sd.covariance.dense(matrix))


# -- one row -----------------------------------------------------------------------------------------


def measure(row: str, length: int, draws: int, learned: Path) -> dict[str, float]:
    """Sample one posterior; seconds, memory, and the distance from the exact smoother."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = wells(1, length, rng)[0] if row == "learned" else chain(length, rng)
    seen = np.arange(0, length, EVERY)
    y = x[seen] + NOISE_SD * rng.standard_normal(len(seen))
    before = peak()
    prior: sd.Prior
    if row == "learned":
        prior = WindowPrior(sd.load_prior(learned), length, stride=9)
    elif row == "chain":
        prior = chain_prior(length)
    else:
        prior = window_prior(length, 9 if "stride" in row else 1)
    posterior = prior.given(y, Points.at_indices(prior.space, seen), sd.noise.Gaussian(NOISE_SD))
    started = time.process_time()
    drawn = posterior.sample(draws, seed=0, progress=False)
    seconds, memory = time.process_time() - started, peak() - before
    mean, spread = on_grid(seen, y, length) if row == "learned" else kalman(seen, y, length)
    z = (drawn["x"].mean("sample").values - mean) / spread
    ratio = drawn["x"].std("sample", ddof=1).values / spread
    return {
        "seconds": round(seconds, 2),
        "MB": round(memory),
        "mean_error": round(float(np.sqrt(np.mean(z**2))), 4),
        "chance": round(draws**-0.5, 4),
        "sd_ratio": round(float(np.sqrt(np.mean(ratio**2))), 4),
        "forwards": float(drawn.attrs["forwards"]),
    }


def peak() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every row at every length and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--only", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--learned", type=Path, help="a trained window that is there already")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], int(asked.one[1]), asked.draws, asked.learned)))
        return
    table = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        learned = asked.learned or Path(folder) / "learned"
        if "learned" in asked.only and asked.learned is None:
            torch.set_num_threads(1)
            learn(learned)
        for row in asked.only:
            for length in asked.lengths:
                command = [sys.executable, __file__, "--one", row, str(length)]
                command += ["--draws", str(asked.draws), "--learned", str(learned)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                table.setdefault(row, {})[str(length)] = found
                print(row, length, found, flush=True)
                KEPT.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
