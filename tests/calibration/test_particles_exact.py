"""Particles against mixtures of Gaussians, whose posteriors and evidence are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sciddiff.diagnostics import floor, sliced_w1
from sciddiff.methods import Particles
from sciddiff.testing.exact import mixture

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")


def test_the_evidence_of_a_mixture_tends_to_the_exact_one_with_the_steps():
    problem, cases = mixture(0, data=4), 10
    o = problem.posterior.observations[0]
    posterior = problem.posterior.prior.given(
        np.tile(o.y.numpy(), (cases, 1)), o.operator, o.noise, batch_dim="case"
    )
    off, error = [], []
    for steps in (6, 32):
        draws = posterior.sample(48, method=Particles(particles=48, depth=2), steps=steps, seed=0)
        ratio = np.exp(np.array(draws.attrs["log_evidence"]) - problem.log_evidence)
        off.append(abs(ratio.mean() - 1)), error.append(ratio.std(ddof=1) / math.sqrt(cases))
    # a factor of two in a weight would show
    assert error[1] < 0.15
    assert off[1] < stats.norm.isf(1e-4) * error[1]
    assert off[1] < off[0] + stats.norm.isf(1e-4) * math.hypot(*error)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "data", "most"), [(8, 1, 1.6), (8, 2, 1.6), (8, 4, 1.3), (80, 2, 2.0)])
def test_draws_of_many_modes_are_nearly_as_close_to_exact_ones_as_those_to_each_other(d, data, most):
    n, found, least = 1000, [], []
    for seed in range(20):
        problem = mixture(seed, data=data, d=d)
        draws = problem.posterior.sample(n, method=Particles(particles=2 * n, depth=2), seed=0)
        found.append(sliced_w1(draws["x"].values, problem.draw(n, 10_000 + seed)))
        least.append(floor(problem.draw, n, sliced_w1, pairs=10))
    assert np.mean(found) / np.mean(least) < most
