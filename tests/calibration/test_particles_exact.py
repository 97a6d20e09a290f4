"""Particles against mixtures of Gaussians, whose posteriors and evidence are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sciddiff.diagnostics import floor, sliced_w1
from sciddiff.methods import Particles
from sciddiff.testing.exact import Hidden, mixture

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")


def evidence(problem, steps, hidden=False, cases=12, n=64) -> tuple[float, float]:
    """Mean of Z over the exact one, less 1, and its standard error over systems of particles."""
    o = problem.posterior.observations[0]
    prior = problem.posterior.prior
    posterior = (Hidden(prior) if hidden else prior).given(
        np.tile(o.y.numpy(), (cases, 1)), o.operator, o.noise, batch_dim="case"
    )
    draws = posterior.sample(n, method=Particles(particles=n), steps=steps, seed=0)
    ratio = np.exp(np.array(draws.attrs["log_evidence"]) - problem.log_evidence)
    return float(ratio.mean() - 1), float(ratio.std(ddof=1) / math.sqrt(cases))


@pytest.mark.parametrize("steps", [12, 40])
def test_the_evidence_of_a_prior_that_knows_its_density_is_unbiased_at_any_steps(steps):
    off, error = evidence(mixture(0, data=4), steps)
    # a factor of two in a weight would show
    assert error < 0.15 and abs(off) < stats.norm.isf(1e-4) * error


def test_the_evidence_of_a_chain_tends_to_the_exact_one_with_the_steps():
    problem = mixture(0, data=4)
    (coarse, spread), (fine, error) = evidence(problem, 6, hidden=True), evidence(problem, 40, hidden=True)
    assert error < 0.15 and abs(fine) < stats.norm.isf(1e-4) * error
    assert abs(fine) < abs(coarse) + stats.norm.isf(1e-4) * math.hypot(spread, error)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "data", "most"), [(8, 1, 1.3), (8, 2, 1.3), (8, 4, 1.3), (80, 2, 2.0)])
def test_draws_of_many_modes_are_nearly_as_close_to_exact_ones_as_those_to_each_other(d, data, most):
    n, found, least = 1000, [], []
    for seed in range(20):
        problem = mixture(seed, data=data, d=d)
        draws = problem.posterior.sample(n, method=Particles(particles=2 * n), seed=0)
        assert draws.attrs["forwards"] <= 101 and draws.attrs["vjps"] <= 100 * (1 + 2 * data)
        found.append(sliced_w1(draws["x"].values, problem.draw(n, 10_000 + seed)))
        least.append(floor(problem.draw, n, sliced_w1, pairs=10))
    assert np.mean(found) / np.mean(least) < most
