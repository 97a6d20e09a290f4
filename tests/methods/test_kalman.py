from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods import EnsembleKalman
from sciddiff.random import Streams
from sciddiff.solvers import DPMSolver

# small ensembles and biased settings on purpose: what is proved here is what is computed
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

D = 5
SPACE = sd.Space({"i": D})
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((D, D)) / 2
PRIOR = sd.GaussianPrior(SPACE, sd.covariance.dense(ROOT @ ROOT.T + 0.3 * np.eye(D)), np.arange(D))
NOISE = sd.covariance.dense([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]])
MATRIX = RNG.standard_normal((3, D))


def matrix(rows) -> sd.operators.Matrix:
    return sd.operators.Matrix(SPACE, sd.Space({"j": len(rows)}, "y"), MATRIX[list(rows)])


def linear(y=(1.0, 2.0, -1.0), **settings) -> sd.Posterior:
    return PRIOR.given(y, matrix(range(3)), sd.noise.Gaussian(covariance=NOISE), **settings)


def exact(y) -> tuple[np.ndarray, np.ndarray]:
    sigma = PRIOR.physical_covariance.apply(torch.eye(D, dtype=torch.float64)).numpy()
    r = NOISE.apply(torch.eye(3, dtype=torch.float64)).numpy()
    gain = sigma @ MATRIX.T @ np.linalg.inv(MATRIX @ sigma @ MATRIX.T + r)
    mean = np.arange(D)
    return mean + gain @ (np.asarray(y) - MATRIX @ mean), sigma - gain @ MATRIX @ sigma


def members(j, seed=0, case=0) -> tuple[np.ndarray, list[Streams]]:
    """The ensemble that the method starts from, and the streams of its perturbations."""
    prior = PRIOR.draw(Streams(seed, range(j), [case] * j, purpose="ensemble"))
    return PRIOR.normalisation.physical(prior).numpy(), Streams(
        seed, range(j), [case] * j, purpose="perturbation"
    )


@pytest.mark.parametrize("j", [3, 12], ids=["fewer members than data and dims", "more"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_analysis_is_the_textbook_formula_with_dense_covariances(j, iterations):
    y = np.array([1.0, 2.0, -1.0])
    x, streams = members(j)
    r = NOISE.apply(torch.eye(3, dtype=torch.float64)).numpy() * iterations
    for _ in range(iterations):
        g = x @ MATRIX.T
        e = math.sqrt(iterations) * NOISE.sqrt(streams.normal((3,), dtype=torch.float64)).numpy()
        cross = (x - x.mean(0)).T @ (g - g.mean(0)) / (j - 1)
        gain = cross @ np.linalg.inv(np.cov(g.T) + r)
        x = x + (y + e - g) @ gain.T
    method = EnsembleKalman(ensemble=j, iterations=iterations)
    draws = linear(y).sample(j, method=method, seed=0)
    np.testing.assert_allclose(draws["x"], x, rtol=1e-9, atol=1e-9)
    assert draws.attrs["operator_calls"] == iterations and draws.attrs["ensemble"] == j


@pytest.mark.parametrize("iterations", [1, 4])
def test_means_and_covariances_tend_to_the_exact_ones_as_one_over_root_j(iterations):
    cases, sizes = 16, np.array([64, 256, 1024])
    y = RNG.standard_normal((cases, 3))
    posterior = linear(y, batch_dim="case")
    lam, v = np.linalg.eigh(exact(y[0])[1])
    whiten = v / np.sqrt(lam)
    errors = []
    for j in sizes:
        x = posterior.sample(int(j), method=EnsembleKalman(ensemble=2, iterations=iterations), seed=2)[
            "x"
        ].values
        w = np.stack([(x[:, c] - exact(y[c])[0]) @ whiten for c in range(cases)])
        mean = np.sqrt((w.mean(1) ** 2).mean())
        cov = np.sqrt(np.mean([(np.cov(c.T) - np.eye(D)) ** 2 for c in w]))
        errors.append([mean, cov])
    slopes = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # 16 cases of 5 means (25 covariances) give each error to 8 % and a slope over log 16 to about 0.05
    assert (np.abs(slopes + 0.5) < 0.2).all()
    # exact draws alone would have mean errors of 1/sqrt(J); the gain's own error adds to that
    assert errors[-1][0] * math.sqrt(sizes[-1]) < 4 and errors[-1][1] * math.sqrt(sizes[-1]) < 4


def test_draws_of_a_large_ensemble_have_the_exact_moments_and_half_the_noise_would_be_noticed():
    y, j = [1.0, 2.0, -1.0], 4000
    mean, cov = exact(y)
    lam, v = np.linalg.eigh(cov)

    def z(posterior):
        w = (posterior.sample(j, method=EnsembleKalman(), seed=0)["x"].values - mean) @ (v / np.sqrt(lam))
        # total spread: j * D chi-square values, with as much again for the error of the gain
        return ((w**2).sum() / (j * D) - 1) / math.sqrt(2 * 2 / (j * D))

    assert abs(z(linear(y))) < 4
    half = sd.noise.Gaussian(covariance=sd.covariance.dense(0.5 * NOISE.apply(torch.eye(3).double())))
    assert abs(z(PRIOR.given(y, matrix(range(3)), half))) > 8


@pytest.mark.parametrize("full", [False, True], ids=["diagonal R", "full R"])
def test_missing_values_equal_dropping_their_rows(full):
    keep, j = [0, 2], 12
    r = (
        NOISE.apply(torch.eye(3, dtype=torch.float64))
        if full
        else torch.diag(torch.tensor([0.3, 0.4, 0.2]).double())
    )
    noise = (
        sd.noise.Gaussian(covariance=sd.covariance.dense(r))
        if full
        else sd.noise.Gaussian(r.diagonal().sqrt())
    )
    posterior = PRIOR.given([1.0, math.nan, -1.0], matrix(range(3)), noise, missing="mask")
    draws = posterior.sample(j, method=EnsembleKalman(ensemble=j), seed=0)
    x, streams = members(j)
    e = noise.draw(torch.zeros(j, 3, dtype=torch.float64), streams).numpy()[:, keep]
    g = x @ MATRIX[keep].T
    cross = (x - x.mean(0)).T @ (g - g.mean(0)) / (j - 1)
    gain = cross @ np.linalg.inv(np.cov(g.T) + r.numpy()[np.ix_(keep, keep)])
    np.testing.assert_allclose(draws["x"], x + (np.array([1.0, -1.0]) + e - g) @ gain.T, rtol=1e-9, atol=1e-9)


def test_several_instruments_are_one_of_all_values():
    whole = PRIOR.given([1.0, 2.0, -1.0], matrix(range(3)), sd.noise.Gaussian([0.5, 0.6, 0.4]))
    parts = PRIOR.given([1.0, 2.0], matrix([0, 1]), sd.noise.Gaussian([0.5, 0.6])).given(
        [-1.0], matrix([2]), sd.noise.Gaussian(0.4)
    )
    a, b = (p.sample(8, method=EnsembleKalman(ensemble=8), seed=0)["x"] for p in (whole, parts))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_every_case_has_its_own_ensemble_in_its_own_place():
    y = RNG.standard_normal((3, 3))
    draws = linear(y, batch_dim="case").sample(6, method=EnsembleKalman(ensemble=20), seed=4)["x"]
    assert draws.dims == ("sample", "case", "i")
    alone = linear(y[:1], batch_dim="case").sample(6, method=EnsembleKalman(ensemble=20), seed=4)["x"]
    np.testing.assert_allclose(draws[:, :1], alone, rtol=1e-10, atol=1e-10)
    x, streams = members(20, seed=4, case=2)
    e = NOISE.sqrt(streams.normal((3,), dtype=torch.float64)).numpy()
    g = x @ MATRIX.T
    cross = (x - x.mean(0)).T @ (g - g.mean(0)) / 19
    gain = cross @ np.linalg.inv(np.cov(g.T) + NOISE.apply(torch.eye(3).double()).numpy())
    np.testing.assert_allclose(draws[:, 2], (x + (y[2] + e - g) @ gain.T)[:6], rtol=1e-9, atol=1e-9)


def test_the_first_draws_of_an_ensemble_do_not_depend_on_how_many_are_asked_for_or_on_chunks():
    settings = {"method": EnsembleKalman(ensemble=30), "seed": 0}
    whole = linear().sample(30, **settings)["x"]
    np.testing.assert_array_equal(linear().sample(4, **settings)["x"], whole[:4])
    np.testing.assert_allclose(linear().sample(30, chunk=7, **settings)["x"], whole, rtol=0, atol=1e-10)
    # a larger ensemble is another analysis: the draws interact
    assert EnsembleKalman.interacts
    assert float(abs(linear().sample(31, **settings)["x"][:4] - whole[:4]).max()) > 1e-6


def test_inflation_widens_the_prior_ensemble():
    blind = PRIOR.given([0.0], matrix([0]), sd.noise.Gaussian(1e6))
    plain, wide = (
        blind.sample(50, method=EnsembleKalman(ensemble=50, inflation=f), seed=0)["x"] for f in (1.0, 1.5)
    )
    np.testing.assert_allclose(wide.std("sample"), 1.5 * plain.std("sample"), rtol=1e-6)
    np.testing.assert_allclose(wide.mean("sample"), plain.mean("sample"), atol=1e-6)


def simulator(x: np.ndarray) -> np.ndarray:
    return np.tanh(MATRIX @ x)


def opaque(function=simulator, **settings) -> sd.Posterior:
    operator = sd.operators.black_box(function, SPACE, sd.Space({"j": 3}, "y"), **settings)
    return PRIOR.given([0.3, 0.5, -0.8], operator, sd.noise.Gaussian(0.1))


def test_a_black_box_on_threads_gives_the_same_draws_as_one_after_the_other():
    with ThreadPoolExecutor(3) as pool:
        threads = opaque(executor=pool).sample(10, method=EnsembleKalman(ensemble=24, iterations=2), seed=0)
    serial = opaque().sample(10, method=EnsembleKalman(ensemble=24, iterations=2), seed=0)
    np.testing.assert_array_equal(threads["x"], serial["x"])
    assert threads.attrs["vjps"] == 0


def fails_sometimes(x: np.ndarray) -> np.ndarray:
    if x[0] > 0.5:
        raise ArithmeticError("unstable")
    return simulator(x)


def test_a_failing_simulator_raises_unless_its_operator_allows_it():
    method = EnsembleKalman(ensemble=40)
    with pytest.raises(sd.errors.SciddiffError, match="unstable"):
        opaque(fails_sometimes).sample(40, method=method, seed=0)
    with pytest.raises(DivergenceError, match=r"on_error=\"drop\""):
        opaque(fails_sometimes, on_error="nan").sample(40, method=method, seed=0)


def test_members_that_fail_are_left_out_of_the_analysis_counted_and_nan():
    x, _ = members(40)
    failed = x[:, 0] > 0.5
    assert 0 < failed.sum() < 20
    draws = opaque(fails_sometimes, on_error="drop").sample(40, method=EnsembleKalman(ensemble=40), seed=0)
    np.testing.assert_array_equal(np.isnan(draws["x"]).all("i"), failed)
    assert draws.attrs["failed_members"] == failed.sum()
    # the others are analysed with one another alone
    g = np.stack([simulator(m) for m in x[~failed]])
    e = sd.noise.Gaussian(0.1).draw(torch.zeros(40, 3, dtype=torch.float64), members(40)[1]).numpy()[~failed]
    alive = x[~failed]
    cross = (alive - alive.mean(0)).T @ (g - g.mean(0)) / (len(alive) - 1)
    gain = cross @ np.linalg.inv(np.cov(g.T) + 0.01 * np.eye(3))
    expected = alive + (np.array([0.3, 0.5, -0.8]) + e - g) @ gain.T
    np.testing.assert_allclose(draws["x"].values[~failed], expected, rtol=1e-8, atol=1e-8)


def test_nothing_of_the_size_of_a_state_squared_is_formed():
    n = 60_000  # squared, 29 GB
    space = sd.Space({"i": n})
    prior = sd.GaussianPrior(space, sd.covariance.white((n,)))
    posterior = prior.given(
        np.zeros(40), sd.operators.Points.at_indices(space, np.arange(40)), sd.noise.Gaussian(1.0)
    )
    assert posterior.sample(16, method=EnsembleKalman(ensemble=16), seed=0)["x"].shape == (16, n)


def test_a_named_solver_draws_the_prior_ensemble():
    exactly = linear().sample(5, method=EnsembleKalman(ensemble=20), seed=0)
    solver = DPMSolver(steps=64)
    solved = linear().sample(5, method=EnsembleKalman(ensemble=20), solver=solver, seed=0)
    assert exactly.attrs["solver"] == "none" and solved.attrs["solver"] == repr(solver)
    assert exactly.attrs["forwards"] == 0 and solved.attrs["forwards"] > 0


@pytest.mark.parametrize(
    "change", [{"ensemble": 1}, {"iterations": 0}, {"inflation": 0.9}, {"ensemble": 2.5}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError):
        EnsembleKalman(**change)


def test_where_enough_members_live_every_draw_is_one_of_them():
    method = EnsembleKalman(ensemble=80)
    every = opaque(fails_sometimes, on_error="drop").sample(80, method=method, seed=0)
    draws = opaque(fails_sometimes, on_error="drop").sample(30, method=method, seed=0)
    assert draws.attrs["failed_members"] == every.attrs["failed_members"] > 0
    np.testing.assert_array_equal(draws["x"], every["x"].values[np.isfinite(every["x"]).all("i")][:30])
    with pytest.raises(sd.errors.SciddiffError, match="on_error='drop'"):
        opaque(fails_sometimes).sample(30, method=method, seed=0)
