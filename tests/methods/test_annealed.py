"""CMCD: weights are unbiased for the evidence whatever the control, and draws match the posterior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.draws import DiagnosisWarning
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.methods.annealed import CMCD
from sciddiff.methods.base import Run
from sciddiff.random import Streams
from sciddiff.testing import check_method
from sciddiff.testing.exact import Hidden, gaussian, mixture

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")


def log_weights(posterior, method, paths, control=None, seed=0):
    run = Run(posterior, method, 1, seed=seed, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        bridge = method.bridge(run, 0)
        control = method.fit(bridge) if control is None else control
        return bridge.sample(Streams(seed, range(paths), purpose="test"), 1, control)[1]


def two_data(reference=None):
    """Two values, each seen, with the exact evidence."""
    space = sd.Space({"i": 2})
    cov = np.array([[1.0, 0.6], [0.6, 2.0]])
    prior = sd.GaussianPrior(space, sd.covariance.dense(cov), [1.0, 0.0], reference=reference)
    a, y = np.array([[1.0, 0.5], [0.3, -1.0]]), np.array([2.0, 0.4])
    posterior = prior.given(y, sd.operators.Matrix(space, sd.Space({"j": 2}, "y"), a), sd.noise.Gaussian(0.7))
    total, off = a @ cov @ a.T + 0.49 * np.eye(2), y - a @ [1.0, 0.0]
    return posterior, -0.5 * (off @ np.linalg.solve(total, off) + np.linalg.slogdet(2 * np.pi * total)[1])


def wrong(u, b):
    """A control that is no good."""
    return 0.4 * u.flip(1) - 0.3 * b[:, None]


@pytest.mark.parametrize("step", [0.1, 0.6])
@pytest.mark.parametrize("control", [lambda u, b: torch.zeros_like(u), wrong], ids=["none", "wrong"])
def test_the_mean_weight_is_the_evidence_whatever_the_control(control, step):
    posterior, evidence = two_data()
    w = torch.exp(log_weights(posterior, CMCD(bridges=4, step=step), 10_000, control) - evidence)
    error = float(w.std()) / len(w) ** 0.5
    assert error < 0.1
    assert abs(float(w.mean()) - 1) < 4 * error


def test_the_variance_of_the_weights_falls_as_the_number_of_bridges_rises():
    """Without control it is the work lost, as 1 over the length of the path, where way out and way back agree."""
    posterior, _ = two_data()
    short, long = (
        float(log_weights(posterior, CMCD(bridges=n, step=0.05), 300, lambda u, b: torch.zeros_like(u)).var())
        for n in (60, 240)
    )
    # a quarter; the ratio of two variances of 300 each is off by more than 1.6 once in 10 000
    assert 0.25 / 1.6 < long / short < 0.25 * 1.6


def test_the_ends_of_long_paths_without_control_are_the_posterior_before_any_weights():
    posterior, _ = two_data()
    a, cov = np.array([[1.0, 0.5], [0.3, -1.0]]), np.array([[1.0, 0.6], [0.6, 2.0]])
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + 0.49 * np.eye(2))
    mean, root = gain @ (np.array([2.0, 0.4]) - a @ [1.0, 0.0]), np.linalg.cholesky(cov - gain @ a @ cov)
    draws = posterior.sample(1000, CMCD(bridges=240, step=0.05, training=0, pool=1), seed=0)
    w = np.linalg.solve(root, (draws["x"].values - [1.0, 0.0] - mean).T)
    # at the end b still moves by 1/12 a unit of time, and a step of h widens by h/2
    assert np.abs(w.mean(1)).max() < 0.15 + 4 / 1000**0.5
    assert np.abs(np.cov(w) - np.eye(2)).max() < 0.15 + 4 * (2 / 1000) ** 0.5


def test_the_drift_is_the_gradient_of_the_log_density():
    posterior, _ = two_data(sd.covariance.diagonal([0.5, 2.0]))
    run = Run(posterior, CMCD(), 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    target, u = CMCD().bridge(run, 0).target, torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    h = 1e-4 * torch.eye(2, dtype=torch.float64)
    slope = (target.log_density(u + h) - target.log_density(u - h)) / 2e-4
    torch.testing.assert_close(target.excess(u)[0], slope, rtol=1e-5, atol=1e-6)


def test_training_makes_the_weights_more_equal():
    posterior, evidence = two_data()
    before = log_weights(posterior, CMCD(bridges=6, training=0), 500)
    after = log_weights(posterior, CMCD(bridges=6, training=60, paths=32, width=16), 500)
    assert float(after.var()) < 0.25 * float(before.var())
    assert float(after.logsumexp(0)) - np.log(500) == pytest.approx(
        evidence, abs=4 * float(after.std()) / 500**0.5
    )


def test_draws_of_a_trained_control_are_exact_and_the_result_holds_the_evidence():
    problem = gaussian("vector", 0)
    draws = problem.posterior.sample(200, CMCD(bridges=16, training=60, paths=32), seed=0)
    z = (draws["x"].values - problem.mean) / problem.sd
    assert np.abs(z.mean(0)).max() * 200**0.5 < 4.5
    assert np.abs((z**2).mean(0) - 1).max() * (200 / 2) ** 0.5 < 4.5
    found, error = draws.attrs["log_evidence"][0], draws.attrs["log_evidence_error"][0]
    assert error < 0.1 and abs(found - problem.log_evidence) < 4 * error + 1e-3


def test_where_few_paths_hold_the_weight_the_diagnosis_says_so():
    # 64 values, 16 sharp data: more than a few untrained bridges can cross
    posterior = gaussian("series", 0).posterior
    with pytest.warns(DiagnosisWarning, match="of the paths held the weight"):
        draws = posterior.sample(16, CMCD(bridges=16, training=0, pool=4), seed=0)
    assert draws.attrs["path_efficiency"][0] < 0.05


def test_a_prior_without_a_log_density_is_refused():
    posterior = gaussian("vector", 0).hidden().posterior
    assert isinstance(posterior.prior, Hidden)
    with pytest.raises(MethodError, match="log density in closed form"):
        posterior.sample(2, CMCD(), seed=0)


def test_cmcd_passes_the_conformance_check_but_for_the_moments_of_single_paths():
    few = "four bridges, hardly any training and no choice by weight"
    method = CMCD(bridges=4, training=2, paths=4, pool=1, width=8)
    check_method(method, draws=200, expected_failures={"mean": few, "covariance": few})


WRONG = [{"bridges": 2.5}, {"training": 1.5}, {"step": "a"}]


@pytest.mark.parametrize(
    "bad", [{"bridges": 0}, {"step": 1.5}, {"pool": 0}, {"paths": 1}, {"rate": -1.0}, *WRONG]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError):
        CMCD(**bad)


def test_steps_that_overshoot_narrow_modes_are_reported():
    problem = mixture(0, data=2)
    with pytest.raises(DivergenceError, match="Lower step"):
        problem.posterior.sample(4, method=CMCD(training=0, bridges=32, pool=2, step=0.5), seed=0)
