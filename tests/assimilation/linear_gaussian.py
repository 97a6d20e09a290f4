"""A linear Gaussian model of 4 values whose posterior is dense algebra: what filters and smoothers are judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

import sciddiff as sd
from sciddiff.assimilation import Assimilation, StateSpaceModel

D, TIMES = 4, 6


@dataclass(frozen=True)
class Dense:
    """``N(mean, covariance)`` of the trajectory given the data, by the textbook formulas; nothing of the library's."""

    mean: np.ndarray
    covariance: np.ndarray
    log_likelihood: float

    def at(self, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Of one time."""
        block = slice(D * time, D * time + D)
        return self.mean[block], self.covariance[block, block]


def matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    root, start = rng.normal(size=(D, D)), rng.normal(size=(D, D))
    turn, _ = np.linalg.qr(rng.normal(size=(D, D)))
    return {
        "A": 0.95 * turn,
        "b": rng.normal(size=D),
        "Q": 0.1 * root @ root.T + 0.05 * np.eye(D),
        "P": 0.2 * start @ start.T + 0.2 * np.eye(D),
        "m": rng.normal(size=D),
        "H": rng.normal(size=(3, D)),
        "R": np.diag([1.0, 1.5, 0.8]),
    }


def observations() -> np.ndarray:
    """One data set, ``(TIMES, 3)``: nothing at the first time and the fourth, gaps at others."""
    m, rng = matrices(), np.random.default_rng(8)
    x, y = rng.multivariate_normal(m["m"], m["P"]), np.full((TIMES, 3), np.nan)
    for k in range(TIMES):
        if k:
            x = m["A"] @ x + m["b"] + rng.multivariate_normal(np.zeros(D), m["Q"])
        y[k] = m["H"] @ x + rng.multivariate_normal(np.zeros(3), m["R"])
    y[0] = y[3] = np.nan
    y[2, 1] = y[5, 0] = np.nan
    return y


def model(*, noise: bool = True, dtype: torch.dtype = torch.float64) -> StateSpaceModel:
    m = matrices()
    space = sd.Space({"value": D})
    a, b = torch.as_tensor(m["A"], dtype=dtype), torch.as_tensor(m["b"], dtype=dtype)
    initial = sd.GaussianPrior(space, sd.covariance.dense(m["P"]), mean=m["m"], dtype=dtype)
    errors = sd.noise.Gaussian(covariance=sd.covariance.dense(m["Q"])) if noise else None
    return StateSpaceModel(lambda x: x @ a.T + b, initial, space=space, noise=errors, times=TIMES)


def operator(*, placed: bool = True) -> sd.operators.Operator:
    """Three mixtures of the values; ``placed`` gives them places among those, for localisation."""
    along = {"value": ("sensor", [0.0, 1.0, 3.0])} if placed else None
    codomain = sd.Space({"sensor": 3}, "mixture", along=along)
    return sd.operators.Matrix(sd.Space({"value": D}), codomain, matrices()["H"])


def errors() -> sd.noise.Gaussian:
    return sd.noise.Gaussian(np.sqrt(np.diag(matrices()["R"])))


def assimilation(cases: int | None = None, y: np.ndarray | None = None, **settings) -> Assimilation:
    """The model given the data; the same data ``cases`` times, for independent repeats."""
    y = observations() if y is None else y
    if cases is None:
        return model(**settings).given(y, operator(), errors())
    return model(**settings).given(np.repeat(y[None], cases, 0), operator(), errors(), batch_dim="case")


def dense(until: int = TIMES - 1, y: np.ndarray | None = None) -> Dense:
    """The trajectory given the data up to and including a time."""
    m, y = matrices(), (observations() if y is None else y).copy()
    y[until + 1 :] = np.nan
    mean, covariance = [m["m"]], np.zeros((TIMES, D, TIMES, D))
    spread = m["P"]
    for k in range(TIMES):
        if k:
            mean.append(m["A"] @ mean[-1] + m["b"])
            spread = m["A"] @ spread @ m["A"].T + m["Q"]
        block = spread
        covariance[k, :, k] = block
        for later in range(k + 1, TIMES):
            block = m["A"] @ block
            covariance[later, :, k], covariance[k, :, later] = block, block.T
    prior = covariance.reshape(TIMES * D, TIMES * D)
    seen = ~np.isnan(y.ravel())
    h = np.kron(np.eye(TIMES), m["H"])[seen]
    system = h @ prior @ h.T + np.kron(np.eye(TIMES), m["R"])[seen][:, seen]
    gain = prior @ h.T @ np.linalg.inv(system)
    surprise = y.ravel()[seen] - h @ np.concatenate(mean)
    _, log_det = np.linalg.slogdet(2 * math.pi * system)
    return Dense(
        np.concatenate(mean) + gain @ surprise,
        prior - gain @ h @ prior,
        float(-0.5 * (surprise @ np.linalg.solve(system, surprise) + log_det)),
    )
