"""How far guidance by a gradient of fixed length is from the posterior, where MMPS is at the floor of the test.

An Ornstein-Uhlenbeck series of 64 times, 16 of them observed with sd 0.1, and the exact denoiser. The
docstrings of `DPS` and `DPSDenoiser` quote these figures, and `benchmarks/fidelity.py` prints them for many
problems.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.diagnostics import gaussian_w2
from sciddiff.methods import DPS, DPSDenoiser
from sciddiff.solvers import Ancestral

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

N = 500


@pytest.fixture(scope="module")
def ornstein_uhlenbeck() -> sd.Posterior:
    rng, times = np.random.default_rng(0), np.arange(64.0)
    space = sd.Space({"time": times})
    prior = sd.GaussianPrior(space, sd.covariance.kernel(lambda h: np.exp(-h / 8), times))
    operator = sd.operators.Points.at_indices(space, np.sort(rng.choice(64, 16, replace=False)))
    noise = sd.noise.Gaussian(0.1)
    return prior.given(
        operator.observe(prior.sample(1, seed=0).isel(sample=0), noise, seed=0), operator, noise
    )


def figures(posterior, calibration, method, **settings) -> tuple[float, float, float, float]:
    """Rms error of the means in posterior sds, mean and least ratio of the sds, and W2 over its floor."""
    truth = calibration.exact(posterior)
    x = calibration.flat(posterior, posterior.sample(N, method=method, seed=0, **settings))
    scale, rng = np.sqrt(np.diag(truth.cov)), np.random.default_rng(1)
    spread = x.std(0, ddof=1) / scale
    exact = [truth.draw(N, rng) for _ in range(6)]
    floor = np.median([gaussian_w2(a, b) for a, b in zip(exact[::2], exact[1::2], strict=True)])
    off = np.sqrt((((x.mean(0) - truth.mean) / scale) ** 2).mean())
    far = gaussian_w2(torch.from_numpy(x), exact[0]) / floor
    return float(off), float(spread.mean()), float(spread.min()), float(far)


def test_mmps_is_at_the_floor_of_the_same_test(ornstein_uhlenbeck, calibration):
    off, spread, least, far = figures(ornstein_uhlenbeck, calibration, sd.MMPS())
    # rms of 64 means of N draws, correlated: at most 4 standard errors; one sd of a sample sd is 1/sqrt(2 N)
    assert off < 4 / np.sqrt(N) and abs(spread - 1) < 0.05
    assert least > 1 - 4 / np.sqrt(2 * N) and far < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("zeta", [0.1, 0.3, 1.0])
def test_dps_is_off_by_what_its_docstring_says(ornstein_uhlenbeck, calibration, zeta):
    off, spread, least, far = figures(ornstein_uhlenbeck, calibration, DPS(zeta=zeta))
    assert 0.1 < off < 0.6
    assert least < 0.5 and 0.6 < spread < 1.1
    assert 1.4 < far < 5


@pytest.mark.parametrize("zeta", [0.25, 0.5])
def test_the_denoiser_form_of_dps_is_off_by_what_its_docstring_says(ornstein_uhlenbeck, calibration, zeta):
    solver = Ancestral(steps=256)
    off, spread, least, far = figures(ornstein_uhlenbeck, calibration, DPSDenoiser(zeta), solver=solver)
    assert 0.15 < off < 0.6
    assert 0.8 < spread < 1.4 and 0.7 < least < 1.0
    assert 1.4 < far < 4
