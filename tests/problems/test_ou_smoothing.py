import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import definition
from sciddiff.diagnostics import floor, gaussian_w2

ou = definition("ou_smoothing")
DRAWS = 1000


@pytest.fixture(scope="module")
def regular():
    problem, exact = ou.conditioned("regular")
    return problem, exact, floor(exact.draw, DRAWS, gaussian_w2)


@pytest.mark.parametrize("setting", ou.SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_kalman_smoother_and_dense_algebra_agree(setting, seed):
    problem, exact = ou.conditioned(setting, seed)
    mean, sds = ou.kalman(problem.space.coords["time"], exact.seen, exact.y)
    np.testing.assert_allclose(mean, exact.mean, atol=1e-10)
    np.testing.assert_allclose(sds, exact.sd, atol=1e-10)


@pytest.mark.parametrize("setting", ou.SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_under_the_exact_prior_are_exact_on_irregular_times_and_with_process_noise_too(setting, seed):
    problem, exact = ou.conditioned(setting, seed)
    x = ou.drawn(problem, problem.prior, draws=DRAWS, seed=seed)
    found = ou.figures(x["x"].values, exact, floor(exact.draw, DRAWS, gaussian_w2))
    assert found["w2_ratio"] < 1.2
    assert found["mean_error"] < 0.05
    assert 0.95 < found["sd_ratio"] < 1.05


def test_the_noise_that_is_a_process_is_the_priors_reference():
    noise = ou.prior("process noise").reference
    white = ou.prior("irregular").reference
    eye = np.eye(64)
    assert not np.allclose(noise.apply(torch.from_numpy(eye)).numpy(), eye)
    assert np.allclose(white.apply(torch.from_numpy(eye)).numpy(), eye)


def test_the_network_on_a_fitted_gaussian_is_near_the_exact_posterior(regular):
    problem, exact, least = regular
    x = ou.drawn(problem, sd.load_prior(ou.HERE / "fitted"), draws=DRAWS)
    found = ou.figures(x["x"].values, exact, least)
    assert found["w2_ratio"] < 1.2
    assert found["mean_error"] < 0.05
    assert 0.95 < found["sd_ratio"] < 1.05


def test_the_network_alone_has_learned_the_series():
    law, prior = ou.prior("regular"), sd.load_prior(ou.HERE / "prior")
    for sigma in (0.1, 1.0, 10.0):
        z = sd.random.Streams(0, range(200), purpose="test").normal((64,), dtype=torch.float64)
        z = law.law.sqrt(z) + sigma * z.flip(0)
        want = law.denoise(z, sigma)
        got = prior.denoise(z.float(), sigma).double()
        assert float((got - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()) < 0.15


def test_the_heuristic_rules_are_biased_where_mmps_is_not(regular):
    problem, exact, least = regular
    for name, (method, solver) in ou.rules(64).items():
        if name.startswith(("PiGDM", "RePaint", "MMPS, scalar")):
            x = ou.drawn(problem, problem.prior, method, solver, draws=DRAWS)
            assert ou.figures(x["x"].values, exact, least)["w2_ratio"] > 1.5, name


def test_the_problem_loads_and_repeats():
    a, b = ou.load(3), ou.load(3)
    assert a.y.equals(b.y)
    assert not a.truth.equals(ou.load(4).truth)
    assert set(a.reference) == {"mean", "sd"}
