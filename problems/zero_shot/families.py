"""The many series of the training: levels, trends, cycles of any period, autoregressions and skew, at random.

A series is ``g(level + trend + season + cycle + autoregression + noise)`` with weights, periods and memories of its own;
``g`` is a straight line or bends upwards, as series of counts and amounts do. None of them is a series of the test.
"""

from __future__ import annotations

import numpy as np

from sciddiff.random import Streams

__all__ = ["CONTEXT", "HORIZON", "WINDOW", "simulate", "standardise"]

CONTEXT, HORIZON = 60, 12
WINDOW = CONTEXT + HORIZON
_BURN = 80
_LIMIT = 8.0
# hours of a day, days of a week, months, quarters and weeks of a year come more often than other periods
_PERIODS = np.array([4.0, 7.0, 12.0, 24.0, 52.0])


def simulate(n: int, *, seed: int) -> np.ndarray:
    """Windows ``(n, 72)`` of as many series, in units of their context; see `standardise`.

    Windows that leave 8 standard deviations of their context are drawn anew: a forecast there is no one's business.
    """
    generator = Streams(seed, [0], purpose="series of many families").numpy()[0]
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < n:
        z, _, _ = standardise(_series(n, generator))
        kept.append(z[np.isfinite(z).all(1) & (np.abs(z) < _LIMIT).all(1)])
    return np.concatenate(kept)[:n]


def standardise(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(z, m, s)``, ``z = (x - m)/s`` with mean and sd of the first 60 values, the context; NaN is left out."""
    context = windows[:, :CONTEXT]
    m, s = np.nanmean(context, 1, keepdims=True), np.nanstd(context, 1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (windows - m) / s, m, s


def _series(n: int, rng: np.random.Generator) -> np.ndarray:
    parts = [
        _trend(n, rng),
        _season(n, rng),
        _cycle(n, rng),
        _memory(n, rng),
        rng.standard_normal((n, WINDOW)),
    ]
    # each part is there or not, and of any weight
    present = rng.random((n, len(parts))) < [0.6, 0.55, 0.25, 0.7, 0.7]
    present[~present.any(1), -1] = True
    weights = present * np.exp(rng.normal(0.0, 1.0, present.shape))
    x = np.einsum("np,npt->nt", weights, np.stack(parts, 1))
    x = (x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-9)
    bend = np.where(rng.random(n) < 0.35, rng.uniform(0.1, 0.7, n), 0.0)[:, None]
    return np.where(bend > 0, np.expm1(bend * x) / np.maximum(bend, 1e-9), x)


def _unit(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-9)


def _trend(n: int, rng: np.random.Generator) -> np.ndarray:
    """Lines, random walks, walks of the slope and shifts of the level, one of them each."""
    t = np.linspace(-1.0, 1.0, WINDOW)
    line = t + rng.normal(0.0, 0.3, (n, 1)) * t**2
    walk = rng.standard_normal((n, WINDOW)).cumsum(1)
    slope = (rng.standard_normal((n, WINDOW)).cumsum(1) * 0.1 + rng.standard_normal((n, 1))).cumsum(1)
    shift = (np.arange(WINDOW) >= rng.integers(1, WINDOW, (n, 1))).astype(float)
    which = rng.choice(4, n, p=[0.3, 0.35, 0.25, 0.1])
    signs = rng.choice([-1.0, 1.0], (n, 1))
    return signs * _unit(np.stack([line, walk, slope, shift], 1)[np.arange(n), which])


def _season(n: int, rng: np.random.Generator) -> np.ndarray:
    """A fixed shape of up to four harmonics, repeated, whose size may drift."""
    usual = rng.choice(_PERIODS, n, p=[0.2, 0.15, 0.4, 0.2, 0.05])
    period = np.where(rng.random(n) < 0.75, usual, np.exp(rng.uniform(np.log(2.5), np.log(45.0), n)))
    k = np.arange(1, 5)
    size = rng.standard_normal((n, 4)) / k ** rng.uniform(0.5, 2.0, (n, 1))
    # a harmonic beyond half a turn a step would be another one in disguise
    size *= k[None] / period[:, None] <= 0.5
    phase = rng.uniform(0, 2 * np.pi, (n, 4))
    t = np.arange(WINDOW)
    angle = 2 * np.pi * k[None, :, None] * t / period[:, None, None] + phase[..., None]
    shape = (size[..., None] * np.cos(angle)).sum(1)
    drift = 1 + rng.choice([0.0, 0.25], (n, 1)) * rng.uniform(-1.0, 1.0, (n, 1)) * np.linspace(-1, 1, WINDOW)
    return _unit(shape * drift)


def _cycle(n: int, rng: np.random.Generator) -> np.ndarray:
    """A wave that loses its phase: a rotation by ``2 pi / period`` a step, damped and driven by noise."""
    period, damping = np.exp(rng.uniform(np.log(4.0), np.log(45.0), n)), 1 - 10 ** rng.uniform(-2.5, -0.7, n)
    turn = damping * np.exp(2j * np.pi / period)
    return _unit(_recursion(turn, rng.standard_normal((n, _BURN + WINDOW, 2)) @ np.array([1.0, 1j])).real)


def _memory(n: int, rng: np.random.Generator) -> np.ndarray:
    """First-order autoregressions, from alternating to nearly a random walk; some with heavy-tailed shocks."""
    phi = np.where(rng.random(n) < 0.15, rng.uniform(-0.7, 0.0, n), 1 - 10 ** rng.uniform(-2.0, 0.0, n))
    shocks = rng.standard_normal((n, _BURN + WINDOW))
    heavy = rng.standard_t(4.0, (n, _BURN + WINDOW))
    return _unit(_recursion(phi, np.where(rng.random((n, 1)) < 0.2, heavy, shocks)).real)


def _recursion(factor: np.ndarray, shocks: np.ndarray) -> np.ndarray:
    """``x_t = factor x_(t-1) + shock_t``, its last 72 values."""
    x, out = np.zeros(len(factor), dtype=np.result_type(factor, shocks)), []
    for t in range(shocks.shape[1]):
        x = factor * x + shocks[:, t]
        out.append(x)
    return np.stack(out[-WINDOW:], 1)
