"""The Kalman smoother and 4D-Var against dense Gaussian algebra."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation import Kalman, KalmanFilter, StateSpaceModel, Weak4DVar, kalman_moments
from sciddiff.assimilation.base import Work
from sciddiff.assimilation.kalman import _transition
from sciddiff.assimilation.models import Assimilation
from sciddiff.assimilation.variational import _Paths, _Problem
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.physics import Lorenz63

sys.path.append(str(Path(__file__).parent))

from linear_gaussian import TIMES, D, assimilation, dense, errors, matrices, model, observations, operator

N = 4000


def values(draws) -> np.ndarray:
    """``(n, times * d)``."""
    x = draws["x"].values
    return x.reshape(len(x), -1)


def agree(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray, z: float = 4.5) -> None:
    """Independent rows ``(n, d)`` have this Gaussian's mean and covariance, each entry within z standard errors."""
    n, variance = len(x), np.diag(covariance)
    assert (np.abs(x.mean(0) - mean) < z * np.sqrt(variance / n)).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
    assert (np.abs(np.cov(x.T) - covariance) < z * error).all()


def test_the_smoother_is_dense_gaussian_algebra_with_gaps():
    found, exact = kalman_moments(assimilation()), dense()
    np.testing.assert_allclose(found.mean.flatten(), exact.mean, atol=1e-8)
    assert abs(found.log_likelihood - exact.log_likelihood) < 1e-8
    for k in range(TIMES):
        np.testing.assert_allclose(found.covariance[k], exact.at(k)[1], atol=1e-8)
        mean, covariance = dense(until=k).at(k)
        np.testing.assert_allclose(found.filter_mean[k], mean, atol=1e-8)
        np.testing.assert_allclose(found.filter_covariance[k], covariance, atol=1e-8)
        mean, covariance = dense(until=k - 1).at(k)
        np.testing.assert_allclose(found.forecast_mean[k], mean, atol=1e-8)
        np.testing.assert_allclose(found.forecast_covariance[k], covariance, atol=1e-8)


def test_two_instruments_are_one_with_all_their_values():
    y = np.full((TIMES, 1), 0.3)
    part = sd.operators.Points.at_indices(sd.Space({"value": D}), [2])
    both = assimilation().given(y, part, sd.noise.Gaussian(0.7))
    alone = model().given(y, part, sd.noise.Gaussian(0.7))
    stacked = alone.given(observations(), operator(), errors())
    np.testing.assert_allclose(kalman_moments(both).mean, kalman_moments(stacked).mean, atol=1e-10)
    assert not np.allclose(kalman_moments(both).mean, kalman_moments(assimilation()).mean, atol=1e-2)


def test_drawn_trajectories_have_the_exact_mean_and_covariance_across_times():
    exact = dense()
    draws = assimilation().sample(N, Kalman(), seed=0)
    agree(values(draws), exact.mean, exact.covariance)
    assert draws.attrs["law"] == "smoothing"
    assert abs(draws.attrs["log_evidence"] - exact.log_likelihood) < 1e-8


def test_drawn_filter_states_have_the_exact_law_of_each_time():
    draws = assimilation().sample(N, KalmanFilter(), seed=0)
    assert draws.attrs["law"] == "filtering"
    for k in range(TIMES):
        agree(draws["x"].values[:, k], *dense(until=k).at(k))


def test_a_model_without_error_is_drawn_along_its_own_path():
    seen = assimilation(noise=False)
    draws = seen.sample(50, Kalman(), seed=0)
    x = torch.from_numpy(draws["x"].values)
    there = seen.model.advance(x[:, :-1].flatten(0, 1)).reshape(x[:, 1:].shape)
    assert float((there - x[:, 1:]).abs().max()) < 1e-6
    assert float(x[:, 0].std(0).min()) > 1e-3


def diffusing(rate: float, *, noise: float | None = None) -> Assimilation:
    """Heat on a ring whose modes are forgotten, or grow, and data of all sites at most times."""
    size, times = 12, 30
    space = sd.Space({"site": size})
    eye = torch.eye(size, dtype=torch.float64)
    step = rate * (0.6 * eye + 0.2 * eye.roll(1, 0) + 0.2 * eye.roll(-1, 0))
    law = StateSpaceModel(
        lambda x: x @ step.T,
        sd.GaussianPrior(space, sd.covariance.white((size,))),
        space=space,
        noise=noise if noise is None else sd.noise.Gaussian(noise),
        times=times,
    )
    y = np.sin(np.arange(times * size)).reshape(times, size)
    y[::4], y[1, :5] = np.nan, np.nan
    return law.given(y, sd.operators.Identity(space), sd.noise.Gaussian(0.5))


@pytest.mark.parametrize(("rate", "noise"), [(1.0, None), (1.0, 1e-8), (1.0, 1e-3), (1.5, None), (1.5, 0.1)])
def test_draws_have_the_smoothers_variances_where_the_model_forgets_or_grows_with_little_noise(rate, noise):
    seen, n = diffusing(rate, noise=noise), 1000
    exact, x = kalman_moments(seen), seen.sample(n, Kalman(), seed=0)["x"].values
    variance = exact.covariance.diagonal(dim1=1, dim2=2).numpy()
    assert (np.abs(x.var(0, ddof=1) / variance - 1) < 4.5 * math.sqrt(2 / n)).all()
    assert (np.abs(x.mean(0) - exact.mean.numpy()) < 4.5 * np.sqrt(variance / n)).all()
    if noise is None:
        there = seen.model.advance(torch.from_numpy(x[:, :-1])).numpy()
        assert np.abs(there - x[:, 1:]).max() < 1e-8 * np.abs(x).max()


@pytest.mark.parametrize("method", [Kalman(), KalmanFilter(), Weak4DVar()])
def test_a_draw_depends_on_its_seed_and_number_alone(method):
    few, many = (assimilation().sample(n, method, seed=3)["x"].values for n in (2, 5))
    np.testing.assert_allclose(few, many[:2], atol=1e-5)
    other = assimilation().sample(2, method, seed=4)["x"].values
    assert np.abs(other - few).max() > 1e-2


def two_values(scale, *, mean=0.0, dtype=torch.float64, noise=True) -> Assimilation:
    """Two coupled values in units of these sizes, and data of both; the mean in their standard deviations."""
    space, s = sd.Space({}, ["a", "b"]), np.array(scale)
    turn = np.array([[0.9, 0.3], [-0.2, 0.8]])
    turn = torch.as_tensor(turn * s[:, None] / s, dtype=dtype)
    centre = torch.as_tensor(mean * s, dtype=dtype)
    start, errors = (
        np.array(c) * np.outer(s, s) for c in ([[1.0, 0.5], [0.5, 1.0]], [[0.3, 0.1], [0.1, 0.2]])
    )
    initial = sd.GaussianPrior(space, sd.covariance.dense(start), mean=mean * s, dtype=dtype)
    law = StateSpaceModel(
        lambda x: centre + (x - centre) @ turn.T,
        initial,
        space=space,
        noise=sd.covariance.dense(errors) if noise else None,
        times=6,
    )
    both = sd.operators.Matrix(space, sd.Space({"sensor": 1}), 1 / s[None])
    return law.given(np.sin(np.arange(6.0))[:, None] + 2 * mean, both, sd.noise.Gaussian(0.3))


@pytest.mark.parametrize("method", [Kalman(), KalmanFilter()])
@pytest.mark.parametrize("noise", [True, False])
def test_draws_are_the_same_in_all_units(method, noise):
    plain = two_values((1.0, 1.0), noise=noise).sample(5, method, seed=0)
    for a, b in ((1e4, 1e-5), (1e6, 1e-6)):
        draws = two_values((a, b), noise=noise).sample(5, method, seed=0)
        np.testing.assert_allclose(draws["a"] / a, plain["a"], atol=1e-6)
        np.testing.assert_allclose(draws["b"] / b, plain["b"], atol=1e-6)


@pytest.mark.parametrize("mean", [300.0, 1e4])
def test_a_mean_far_from_zero_is_no_trouble_in_single_precision(mean):
    near = kalman_moments(two_values((1.0, 1.0)))
    far = kalman_moments(two_values((1.0, 1.0), mean=mean, dtype=torch.float32))
    # single precision holds the data and the initial mean to 6e-8 of their size, and there are a few of them
    rounding = 5 * 6e-8 * mean
    np.testing.assert_allclose(far.mean - mean, near.mean, atol=rounding)
    np.testing.assert_allclose(far.covariance, near.covariance, atol=rounding)
    # a step without tensors of its own is taken in double precision
    law = StateSpaceModel(
        lambda x: mean + 0.9 * (x - mean), two_values((1.0, 1.0), mean=mean, dtype=torch.float32).model.initial,
        space=sd.Space({}, ["a", "b"]), times=2,
    )  # fmt: skip
    matrix, constant = _transition(law)
    np.testing.assert_allclose(matrix, 0.9 * np.eye(2), atol=1e-10)
    np.testing.assert_allclose(constant, 0.1 * mean, rtol=1e-9)


def test_a_step_that_bends_far_from_zero_is_refused():
    start = two_values((1.0, 1.0), mean=300.0, dtype=torch.float32).model.initial
    law = StateSpaceModel(
        lambda x: x + 0.01 * (x - 300.0) ** 2, start, space=start.space, times=6, noise=sd.noise.Gaussian(0.1)
    )
    seen = law.given(np.full((2, 6), 300.0), sd.operators.Identity(start.space), sd.noise.Gaussian(0.3))
    with pytest.raises(MethodError, match="not linear"):
        kalman_moments(seen)


def test_cases_are_their_own():
    many = assimilation(3).sample(4, Kalman(), seed=0)["x"]
    assert many.dims == ("sample", "case", "time", "value")
    one = assimilation().sample(4, Kalman(), seed=0)["x"].values
    np.testing.assert_allclose(many.isel(case=0).values, one, atol=1e-12)
    assert np.abs(many.isel(case=1).values - one).max() > 1e-2


def test_the_minimum_of_4dvar_is_the_smoothers_mean():
    found = Weak4DVar(tolerance=1e-9).minimum(assimilation())
    np.testing.assert_allclose(found["x"].values.ravel(), dense().mean, atol=1e-6)
    assert found.attrs["diagnosis"] == "ok"


def test_randomised_maximum_likelihood_is_exact_for_linear_gaussian_models():
    exact = dense()
    agree(values(assimilation().sample(N, Weak4DVar(), seed=0)), exact.mean, exact.covariance)


def test_4dvar_without_data_draws_from_the_model_and_has_its_mean_at_the_minimum():
    seen = assimilation(y=np.full_like(observations(), np.nan))
    assert seen.sample(1, Weak4DVar(), seed=0).attrs["diagnosis"] == "ok"
    draws, nothing = values(seen.sample(2000, Weak4DVar(), seed=0)), dense(until=-1)
    agree(draws, nothing.mean, nothing.covariance)
    found = Weak4DVar().minimum(seen)["x"].values.ravel()
    np.testing.assert_allclose(found, nothing.mean, atol=1e-6)


def test_4dvar_of_a_model_without_error_moves_the_first_state_alone():
    seen = assimilation(noise=False)
    found = Weak4DVar(tolerance=1e-9).minimum(seen)
    np.testing.assert_allclose(found["x"].values, kalman_moments(seen).mean, atol=1e-6)


def test_4dvar_takes_a_singular_model_error():
    m = model()
    noise = sd.covariance.dense(np.diag([0.5, 0.2, 0.0, 0.0]))
    law = StateSpaceModel(m.step, m.initial, space=m.space, noise=noise, times=TIMES)
    seen = law.given(observations(), operator(), errors())
    found = Weak4DVar(tolerance=1e-9).minimum(seen)
    np.testing.assert_allclose(found["x"].values, kalman_moments(seen).mean, atol=1e-6)


def noisy_lorenz(times: int) -> Assimilation:
    """Lorenz-63 through a bent instrument, two of its variables with gaps."""
    system = Lorenz63(dt=0.025)
    prior = sd.GaussianPrior(system.space, sd.covariance.white((3,), 4.0), mean=[1.0, 2.0, 20.0])
    law = StateSpaceModel(system.step, prior, space=system.space, noise=sd.noise.Gaussian(0.3), times=times)
    bent = sd.operators.from_torch(lambda x: (x[:, :2] / 5).sinh(), system.space, sd.Space({"sensor": 2}))
    truth = law.simulate(1, seed=0).isel(sample=0)
    y = np.sinh(np.stack([truth["x"].values, truth["y"].values]) / 5).T
    y[::3], y[1, 0] = np.nan, np.nan
    return law.given(y, bent, sd.noise.Gaussian(covariance=sd.covariance.dense([[0.04, 0.01], [0.01, 0.09]])))


def test_the_gradient_of_4dvar_is_the_slope_of_its_function():
    work = Work(noisy_lorenz(6), Weak4DVar(), 1, 0)
    problem, row = _Problem(work, 1, perturbed=True), torch.tensor([0])
    now = problem.extend(_Paths([], problem.mean, torch.empty(0)), 6)
    _, worst = problem.plan(now, row, torch.zeros(1).double())

    def value(k: int, i: int, h: float) -> torch.Tensor:
        v = [a.clone() for a in now.v]
        v[k][:, i] += h
        return problem.roll(row, _Paths(v, now.x, now.cost), None).cost

    slopes = [(value(k, i, 1e-5) - value(k, i, -1e-5)) / 2e-5 for k in range(6) for i in range(3)]
    torch.testing.assert_close(worst, torch.stack(slopes).abs().amax(0), rtol=1e-6, atol=1e-6)


def test_one_step_of_4dvar_without_damping_minimises_a_linear_problem_and_keeps_its_promise():
    problem, rows = _Problem(Work(assimilation(3), Weak4DVar(), 2, 0), 2, perturbed=True), torch.arange(6)
    before = problem.extend(_Paths([], problem.mean, torch.empty(0)), TIMES)
    plan, _ = problem.plan(before, rows, torch.zeros(6).double())
    after = problem.roll(rows, before, plan)
    torch.testing.assert_close(before.cost - after.cost, plan.decrease, rtol=1e-10, atol=1e-10)
    assert float(problem.plan(after, rows, torch.zeros(6).double())[1].max()) < 1e-9


def test_draws_of_4dvar_reach_their_minima_on_a_nonlinear_window():
    draws = noisy_lorenz(41).sample(8, Weak4DVar(), seed=0)
    assert draws.attrs["diagnosis"] == "ok"
    assert draws.attrs["gradient"] < 1e-4


def test_rows_held_at_once_do_not_change_the_draws_of_4dvar(monkeypatch):
    seen = noisy_lorenz(9)
    together = seen.sample(4, Weak4DVar(), seed=0)
    monkeypatch.setattr("sciddiff.assimilation.variational.NUMBERS", 200)
    np.testing.assert_allclose(seen.sample(4, Weak4DVar(), seed=0)["x"], together["x"], atol=1e-6)


def test_4dvar_that_stops_too_early_says_so():
    with pytest.warns(sd.draws.DiagnosisWarning, match="4D-Var"):
        assimilation().sample(2, Weak4DVar(iterations=1), seed=0)


def test_the_least_cost_of_4dvar_is_half_or_all_of_a_chi_squared_of_as_many_values_as_data():
    seen = model().simulate(400, seed=1)
    y = torch.from_numpy(seen["x"].values) @ torch.from_numpy(matrices()["H"]).T
    y = y + torch.tensor([1.0, 1.5, 0.8]).sqrt() * torch.randn(
        y.shape, generator=torch.Generator().manual_seed(0)
    )
    law = model().given(y.numpy(), operator(), errors(), batch_dim="case")
    m, t = 3 * TIMES, math.log(1e6)
    for perturbed, scale in ((False, 0.5), (True, 1.0)):
        problem, rows = _Problem(Work(law, Weak4DVar(), 1, 0), 1, perturbed=perturbed), torch.arange(400)
        start = problem.extend(_Paths([], problem.mean, torch.empty(0)), TIMES)
        least = problem.roll(rows, start, problem.plan(start, rows, torch.zeros(400).double())[0]).cost
        perfect = problem.bound() - scale * (m + 2 * math.sqrt(m * t) + 2 * t)
        assert abs(float((least - perfect).mean()) - scale * m) < 4.5 * scale * math.sqrt(2 * m / 400)
        assert bool((least < problem.bound()).all())


def test_minima_that_do_not_explain_their_data_are_counted():
    with pytest.warns(sd.draws.DiagnosisWarning, match="3 of 3 minima"):
        assimilation(y=observations() + 100.0).sample(3, Weak4DVar(), seed=0)


def test_states_whose_derivatives_cannot_be_held_are_refused(monkeypatch):
    monkeypatch.setattr("sciddiff.assimilation.variational.LARGEST", TIMES * D * D - 1)
    with pytest.raises(MethodError, match="derivatives along one trajectory"):
        assimilation().sample(1, Weak4DVar(), seed=0)


def test_4dvar_from_starts_where_the_model_is_not_finite_diverges():
    m = model()
    law = StateSpaceModel(lambda x: (100 * x) ** 9, m.initial, space=m.space, times=TIMES + 40)
    y = np.concatenate([observations(), np.full((40, 3), 1.0)])
    with pytest.raises(DivergenceError, match="not finite"):
        law.given(y, operator(), errors()).sample(2, Weak4DVar(), seed=0)


def test_what_is_not_linear_or_gaussian_is_refused():
    m = model()
    bent = StateSpaceModel(lambda x: x + 0.1 * x**2, m.initial, space=m.space, times=TIMES)
    with pytest.raises(MethodError, match="not linear"):
        bent.given(observations(), operator(), errors()).sample(2, Kalman(), seed=0)
    with pytest.raises(MethodError, match="not Gaussian"):
        m.given(observations(), operator(), sd.noise.Laplace(0.2)).sample(2, Kalman(), seed=0)
    mixture = sd.EmpiricalPrior(m.space, np.random.default_rng(0).normal(size=(50, D)))
    other = StateSpaceModel(m.step, mixture, space=m.space, noise=sd.noise.Gaussian(0.1), times=TIMES)
    for method in (Kalman(), Weak4DVar()):
        with pytest.raises(MethodError, match="GaussianPrior"):
            other.given(observations(), operator(), errors()).sample(2, method, seed=0)
    with pytest.raises(InputError, match="tolerance"):
        Weak4DVar(tolerance=0.0)
