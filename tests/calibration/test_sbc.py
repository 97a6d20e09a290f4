"""Simulation-based calibration of the methods that are exact for linear Gaussian problems, 50 cases of 19 draws each.

`make calibration` runs 300 of 99 for every row of the table of fidelity.
"""

from __future__ import annotations

import pytest
import torch

import sciddiff as sd
from sciddiff.diagnostics.calibration import log_likelihood, sbc
from sciddiff.methods import DAPS, MMPS, DPSDenoiser, EnsembleKalman, GaussianVI, LocalGaussian
from sciddiff.posterior import Posterior
from sciddiff.solvers import Ancestral
from sciddiff.testing import exact

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

CASES, DRAWS = 50, 19
# a right method falls below it in one of ten thousand runs of a test
ALPHA = 1e-4
PROBLEMS = {
    "vector, C dense": lambda: exact.gaussian("vector", 0),
    "state space": lambda: exact.state_space(0),
}
EXACT = {
    "MMPS": MMPS(),
    "LocalGaussian": LocalGaussian(),
    "GaussianVI": GaussianVI(),
    "DAPS": DAPS(steps=12),
    "EnsembleKalman": EnsembleKalman(ensemble=512),
}


def p_value(problem, method, told=None, **settings):
    """Of SBC with the log-likelihood; ``told`` changes the posterior that the method samples."""
    truths, posterior = problem.cases(CASES, seed=0)
    space = posterior.prior.space
    draws = (told or (lambda p: p))(posterior).sample(DRAWS, method=method, seed=0, **settings)
    truth = space.dataset(torch.from_numpy(truths).reshape(CASES, *space.shape), ["case"])
    return float(sbc(draws, truth, quantities={"log-likelihood": log_likelihood(posterior)}).p_value)


@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("method", EXACT.values(), ids=EXACT)
def test_exact_methods_are_calibrated_over_simulated_cases(make, method):
    assert p_value(make(), method) > ALPHA


def with_noise(factor):
    """A posterior that takes the noise for another than the data have."""

    def told(posterior):
        out = Posterior(posterior.prior, ())
        for o in posterior.observations:
            out = out.given(o.y, o.operator, sd.noise.Gaussian(factor * o.noise.sd), batch_dim="case")
        return out

    return told


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
def test_a_noise_sd_wrong_by_a_factor_of_two_is_found(make, factor):
    assert p_value(make(), MMPS(), with_noise(factor)) < ALPHA


def test_guidance_of_a_fixed_strength_is_found():
    assert p_value(PROBLEMS["state space"](), DPSDenoiser(1.0), solver=Ancestral(steps=64)) < ALPHA
