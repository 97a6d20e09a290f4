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


# means of seeds 0 to 2. Their standard deviations from seed to seed are at most 0.012, 0.006, 0.011 and 0.05; the bounds
# are four of these, since W2 to another exact set and a later torch move them as another seed does
WITHIN = np.array([0.05, 0.025, 0.045, 0.2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zeta", "measured"),
    [
        (0.1, (0.206, 0.724, 0.127, 1.59)),
        (0.3, (0.372, 0.764, 0.304, 2.52)),
        (1.0, (0.537, 0.920, 0.331, 3.52)),
    ],
)
def test_dps_is_off_by_what_was_measured_for_its_zeta(ornstein_uhlenbeck, calibration, zeta, measured):
    found = figures(ornstein_uhlenbeck, calibration, DPS(zeta=zeta))
    assert (np.abs(np.subtract(found, measured)) < WITHIN).all()


@pytest.mark.parametrize(
    ("zeta", "measured"), [(0.25, (0.447, 1.277, 0.868, 1.85)), (0.5, (0.288, 0.920, 0.823, 2.11))]
)
def test_the_denoiser_form_of_dps_is_off_by_what_was_measured(
    ornstein_uhlenbeck, calibration, zeta, measured
):
    found = figures(ornstein_uhlenbeck, calibration, DPSDenoiser(zeta), solver=Ancestral(steps=256))
    assert (np.abs(np.subtract(found, measured)) < WITHIN).all()
