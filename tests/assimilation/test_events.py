"""Probabilities of events against the normal law, within the errors that are stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.assimilation.events import Counting, EventProbability, Evidence, Splitting, event_probability
from sciddiff.errors import ConvergenceError, InputError, MethodError
from sciddiff.testing import Hidden

D = 4
SPACE = sd.Space({"i": D})
ROOT = np.random.default_rng(0).standard_normal((D, D))
COVARIANCE = ROOT @ ROOT.T / D + 0.2 * np.eye(D)
C = np.array([1.0, -0.5, 0.3, 2.0])
SPREAD = float(np.sqrt(C @ COVARIANCE @ C))
PRIOR = sd.GaussianPrior(SPACE, sd.covariance.dense(COVARIANCE), np.arange(D))
VALUE = sd.operators.Matrix(SPACE, sd.Space({"event": 1}, "value"), C[None])
LEVELS = [0.5, 0.05, 1e-3]
SMALL = sd.Particles(sd.methods.LocalGaussian(), particles=24)


MEAN = float(C @ np.arange(D))


def threshold(p, mean=MEAN, sd=SPREAD):
    """The level that ``C x`` exceeds with probability p."""
    return mean + sd * float(stats.norm.isf(p))


def agrees(found: EventProbability, p: float, z: float = 4.0) -> None:
    assert abs(found.probability - p) < z * found.error, (found, p)
    # and the error is not so wide that anything would do
    assert found.log_error < 0.5


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize("method", [Counting(20_000), Splitting(repeats=12)], ids=["counting", "splitting"])
def test_the_probability_of_a_linear_event_of_a_gaussian_is_that_of_the_normal_law(p, method):
    found = event_probability(PRIOR, VALUE, threshold=threshold(p), method=method, seed=0)
    agrees(found, p)


@pytest.mark.parametrize(
    "p", [pytest.param(0.5, marks=pytest.mark.slow), 0.05, pytest.param(1e-3, marks=pytest.mark.slow)]
)
def test_the_evidence_of_the_event_is_its_probability_under_a_blurred_threshold(p):
    blur = 0.1 * SPREAD
    level = threshold(p, sd=np.hypot(SPREAD, blur))
    found = event_probability(PRIOR, VALUE, threshold=level, method=Evidence(blur, SMALL, steps=40), seed=0)
    agrees(found, p)


def test_splitting_reaches_a_probability_of_one_in_a_million_and_states_its_error():
    found = event_probability(
        PRIOR, VALUE, threshold=threshold(1e-6), method=Splitting(population=250, repeats=16), seed=0
    )
    # a mean of 16 log-normal-like estimates: Student's t and their skewness widen the tails of the score
    agrees(found, 1e-6, z=5.0)
    assert found.notes["levels"] >= 8


def test_the_stated_error_of_splitting_is_how_far_off_it_is():
    """Over 12 seeds the mean square of the score is 1, with the tails of Student's t of 7 degrees."""
    scores = []
    for seed in range(12):
        found = event_probability(
            PRIOR, VALUE, threshold=threshold(1e-3), method=Splitting(population=100, moves=5), seed=seed
        )
        scores.append((found.probability - 1e-3) / found.error)
    # the mean square of a t of 7 degrees is 7/5, and of 12 of them varies by about 1
    assert 0.2 < np.mean(np.square(scores)) < 5.5


def test_the_flow_of_a_prior_that_tells_its_denoiser_only_gives_the_same():
    hidden = Hidden(PRIOR)
    method = Splitting(population=300, repeats=8, moves=6, solver=sd.solvers.DPMSolver(steps=48))
    found = event_probability(hidden, VALUE, threshold=threshold(0.01), method=method, seed=0)
    agrees(found, 0.01)
    assert found.notes["forwards"] > 300 * 8 * 48


def conditioned():
    """The posterior of a datum, and mean and sd of ``C x`` under it."""
    a, mean = np.eye(D)[[3]], np.arange(D)
    gain = COVARIANCE @ a.T / (COVARIANCE[3, 3] + 0.25)
    centre, cov = mean + gain[:, 0] * (4.0 - mean[3]), COVARIANCE - gain @ a @ COVARIANCE
    posterior = PRIOR.given(
        [4.0], sd.operators.Matrix(SPACE, sd.Space({"j": 1}, "y"), a), sd.noise.Gaussian(0.5)
    )
    return posterior, float(C @ centre), float(np.sqrt(C @ cov @ C))


def test_the_probability_given_data_is_that_of_the_posterior():
    posterior, mean, spread = conditioned()
    level = threshold(0.05, mean, spread)
    for method in (Splitting(population=100, moves=4, sampler=sd.MMPS()), Counting(4000)):
        agrees(event_probability(posterior, VALUE, threshold=level, method=method, seed=0), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 1e-3])
def test_rare_events_given_data_by_both_ways(p):
    posterior, mean, spread = conditioned()
    splitting = Splitting(population=200, moves=6, sampler=sd.MMPS())
    level = threshold(p, mean, spread)
    agrees(event_probability(posterior, VALUE, threshold=level, method=splitting, seed=0), p)
    level = threshold(p, mean, np.hypot(spread, 0.1 * spread))
    blurred = Evidence(0.1 * spread, steps=64)
    agrees(event_probability(posterior, VALUE, threshold=level, method=blurred, seed=0), p)


def test_the_states_of_splitting_follow_the_truncated_law():
    """Means by population are independent; ``C x`` and what is independent of it have the moments of the truncated Gaussian."""
    method = Splitting(population=400, repeats=16)
    found, draws = method.states(PRIOR, VALUE, threshold=threshold(0.01), seed=0)
    agrees(found, 0.01)
    x = draws["x"].values - np.arange(D)
    u = float(stats.norm.isf(0.01))
    along = COVARIANCE @ C / SPREAD
    mean = stats.truncnorm.mean(u, np.inf) * along
    which = draws["population"].values
    means = np.stack([x[which == i].mean(0) for i in range(16)])
    assert (np.abs(means.mean(0) - mean) / (means.std(0, ddof=1) / 4) < 5).all()
    assert ((x @ C) / SPREAD > u).all()


def test_an_event_that_no_draw_has_is_zero_with_the_error_of_one_hit():
    found = event_probability(PRIOR, VALUE, threshold=1e3, method=Counting(50), seed=0)
    assert found.probability == 0 and found.error == 1 / 50
    assert found.log_probability == -np.inf and found.log_error == np.inf


def test_a_function_of_states_is_an_event_too_and_the_seed_decides():
    matrix = torch.as_tensor(C)
    method = Counting(500)
    a, b = (
        event_probability(PRIOR, e, threshold=1.0, method=method, seed=3)
        for e in (VALUE, lambda x: x @ matrix)
    )
    assert a == b
    assert event_probability(PRIOR, VALUE, threshold=1.0, method=method, seed=4) != a
    split = Splitting(population=20, repeats=2, moves=2)
    one, two = (event_probability(PRIOR, VALUE, threshold=6.0, method=split, seed=3) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    "method",
    [Counting(400), Splitting(50, 2, moves=1), Evidence(0.2, SMALL, repeats=2, steps=8)],
    ids=["counting", "splitting", "evidence"],
)
def test_an_event_without_a_value_somewhere_is_refused_with_how_often_that_was(method):
    def log(x):
        return x[:, 0].log()

    with pytest.raises(InputError, match=r"NaN or infinity at \d+ of \d+ states"):
        event_probability(PRIOR, log, threshold=-1.0, method=method, seed=0)
    n = 400
    if isinstance(method, Counting):
        x = PRIOR.sample(n, seed=0)["x"].values[:, 0]
        with pytest.raises(InputError, match=f"at {(x <= 0).sum()} of {n} states"):
            event_probability(PRIOR, log, threshold=-1.0, method=method, seed=0)


def test_what_is_no_event_and_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="one value a row"):
        event_probability(PRIOR, lambda x: x, seed=0)
    with pytest.raises(InputError, match="one value"):
        event_probability(PRIOR, sd.operators.Identity(SPACE), seed=0)
    with pytest.raises(InputError, match="threshold"):
        event_probability(PRIOR, VALUE, threshold=np.nan, seed=0)
    with pytest.raises(InputError, match="grows"):
        event_probability(PRIOR, lambda x: x[:, 0].clamp(max=0.0), threshold=0.5, method=Splitting(), seed=0)
    with pytest.raises(InputError, match="deterministic"):
        method = Splitting(solver=sd.solvers.Ancestral(steps=4))
        event_probability(Hidden(PRIOR), VALUE, threshold=1.0, method=method, seed=0)
    with pytest.raises(ConvergenceError, match="impossible"):
        bounded = Splitting(population=100, repeats=2, moves=2)
        event_probability(PRIOR, lambda x: torch.tanh(x[:, 0]), threshold=2.0, method=bounded, seed=0)
    for bad in (
        lambda: Counting(1),
        lambda: Counting(sampler=sd.Particles()),
        lambda: Splitting(share=0.9),
        lambda: Evidence(0.0),
    ):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(MethodError, match="log_evidence"):
        event_probability(PRIOR, VALUE, method=Evidence(0.1, sd.methods.LocalGaussian()), seed=0)
    two = PRIOR.given(np.zeros((2, 1)), VALUE, sd.noise.Gaussian(1.0), batch_dim="case")
    with pytest.raises(InputError, match="one case"):
        event_probability(two, VALUE, seed=0)


def test_the_error_of_a_share_is_its_scatter_over_seeds():
    prior = sd.GaussianPrior(sd.Space({"i": 1}), sd.covariance.white((1,)))
    found = [
        event_probability(prior, lambda x: x[:, 0], threshold=0.5, method=Counting(draws=100), seed=seed)
        for seed in range(200)
    ]
    scatter = np.std([f.probability for f in found], ddof=1)
    stated = np.sqrt(np.mean([f.error**2 for f in found]))
    # a standard deviation of 200 values is known to 5 %
    assert abs(scatter / stated - 1) < 4.9 * 0.05
