"""Processes are exact at any times: kernels, transitions and draws say the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.physics import ARMA, Matern, OrnsteinUhlenbeck
from sciddiff.physics.processes import _grouped
from sciddiff.random import Streams

CONTINUOUS = [
    OrnsteinUhlenbeck(rate=0.7, sd=2.0),
    Matern(nu=0.5, length=2.0, sd=0.5),
    Matern(nu=1.5, length=2.0, sd=3.0),
    Matern(nu=2.5, length=1.3),
]
DISCRETE = [ARMA(ar=(1.2, -0.5), ma=(0.4,), sd=2.0), ARMA(ma=(0.5, -0.3)), ARMA(ar=(0.9,))]
TIMES = np.array([0.0, 0.3, 0.35, 1.0, 2.5, 2.6, 6.0])


@pytest.mark.parametrize("process", [*CONTINUOUS, *DISCRETE], ids=repr)
def test_the_kernel_is_that_of_the_markov_state(process):
    for lag in [0, 1, 2, 5] if isinstance(process, ARMA) else [0.0, 0.01, 0.4, 3.0]:
        a, q = process.transition(lag)
        p = process.stationary()
        assert math.isclose(
            (a @ p)[0, 0], float(process.kernel(np.array([-lag]))[0]), rel_tol=1e-12, abs_tol=1e-14
        )
        np.testing.assert_allclose(a @ p @ a.T + q, p, atol=1e-12 * p.max())
        assert np.linalg.eigvalsh(q).min() > -1e-12 * p.max()


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_two_lags_are_one(process):
    np.testing.assert_allclose(
        process.propagator(0.3) @ process.propagator(1.1), process.propagator(1.4), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("process", CONTINUOUS[2:], ids=repr)
def test_matern_states_obey_their_stochastic_differential_equation(process):
    # F P + P F^T + q e e^T = 0, whose only free entry is the last one
    h = 1e-6
    drift = (process.propagator(h) - np.eye(len(process.stationary()))) / h
    left = drift @ process.stationary() + process.stationary() @ drift.T
    assert left[-1, -1] < 0
    left[-1, -1] = 0
    assert np.abs(left).max() < 1e-4 * process.stationary().max()


@pytest.mark.parametrize("process", [*CONTINUOUS, *DISCRETE], ids=repr)
def test_draws_have_the_covariance_of_the_kernel(process):
    n = 4000
    times = TIMES if process in CONTINUOUS else np.array([0, 1, 2, 4, 9])
    x = process.simulate(times, Streams(0, range(n), purpose="process")).numpy()
    exact = process.kernel(times[:, None] - times)
    # the sample covariance of normals has variance (k_ii k_jj + k_ij^2) / n
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / n)
    assert np.abs((x.T @ x / n - exact) / error).max() < 4.5
    assert np.abs(x.mean(0) / np.sqrt(np.diag(exact) / n)).max() < 4.5


def test_an_ornstein_uhlenbeck_path_is_exact_in_variance_and_correlation_at_any_step():
    process = OrnsteinUhlenbeck(rate=0.5, sd=1.5)
    for step in (0.01, 1.0, 10.0):
        a, q = process.transition(step)
        assert math.isclose(a[0, 0], math.exp(-0.5 * step)) and math.isclose(
            q[0, 0], 1.5**2 * (1 - math.exp(-step)), rel_tol=1e-12
        )


@pytest.mark.parametrize("process", [*CONTINUOUS, *DISCRETE], ids=repr)
def test_a_draw_depends_on_its_own_stream_alone(process):
    whole = process.simulate(12, Streams(3, range(5), purpose="process"))
    alone = process.simulate(12, Streams(3, [4], purpose="process"))
    torch.testing.assert_close(alone[0], whole[4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", DISCRETE, ids=repr)
def test_arma_covariances_are_those_of_statsmodels(process):
    arima = pytest.importorskip("statsmodels.tsa.arima_process")
    ar, ma = np.r_[1.0, -np.array(process.ar)], np.r_[1.0, np.array(process.ma)]
    theirs = arima.ArmaProcess(ar, ma).acovf(30) * process.sd**2
    np.testing.assert_allclose(process.kernel(np.arange(30)), theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_matern_kernels_are_those_of_the_bessel_function(nu):
    from scipy.special import gamma, kv

    lag = np.array([0.01, 0.5, 2.0, 7.0])
    r = np.sqrt(2 * nu) * lag / 1.7
    bessel = 4.0 * 2 ** (1 - nu) / gamma(nu) * r**nu * kv(nu, r)
    np.testing.assert_allclose(Matern(nu, length=1.7, sd=2.0).kernel(lag), bessel, rtol=1e-10)


@pytest.mark.parametrize("process", [*CONTINUOUS, DISCRETE[0]], ids=repr)
def test_the_covariance_makes_a_prior(process):
    times = np.arange(6.0)
    space = sd.Space({"time": times})
    prior = sd.GaussianPrior(space, process.covariance(times))
    sds = np.sqrt(process.kernel(np.zeros(1))[0])
    assert math.isclose(float(prior.normalisation.scale), sds, rel_tol=1e-9)
    matrix = process.covariance(times).apply(torch.eye(6, dtype=torch.float64))
    np.testing.assert_allclose(matrix.numpy(), process.kernel(times[:, None] - times), atol=1e-9)


def test_dates_count_days():
    dates = np.array(["2020-01-01", "2020-01-03"], dtype="datetime64[ns]")
    process = OrnsteinUhlenbeck(rate=0.5)
    matrix = process.covariance(dates).apply(torch.eye(2, dtype=torch.float64))
    assert math.isclose(float(matrix[0, 1]), math.exp(-1.0), rel_tol=1e-9)
    a = process.simulate(dates, Streams(0, [0], purpose="p"))
    assert bool((a == process.simulate([0.0, 2.0], Streams(0, [0], purpose="p"))).all())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: OrnsteinUhlenbeck(rate=0.0), "rate"),
        (lambda: Matern(nu=1.0, length=1.0), "nu"),
        (lambda: Matern(nu=1.5, length=math.inf), "length"),
        (lambda: ARMA(ar=(1.0,)), "ar"),
        (lambda: ARMA(ar=(0.5, 0.6)), "ar"),
        (lambda: ARMA(ma=(math.nan,)), "ma"),
        (lambda: ARMA(ar=(0.5,)).covariance([0.0, 0.5]), "times"),
        (lambda: OrnsteinUhlenbeck(1.0).simulate([0.0, 0.0], Streams(0, [0], purpose="p")), "times"),
        (lambda: OrnsteinUhlenbeck(1.0).simulate([0.0, math.nan], Streams(0, [0], purpose="p")), "times"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, argument):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.argument == argument


@pytest.mark.parametrize("unit", [1e-13, 1e13])
def test_draws_are_the_same_in_all_units_of_time(unit):
    times = np.array([0.0, 1.0, 2.0, 2.5, 6.0])
    streams = Streams(0, range(4), purpose="process")
    plain = OrnsteinUhlenbeck(rate=0.8).simulate(times, streams)
    other = OrnsteinUhlenbeck(rate=0.8 / unit).simulate(times * unit, Streams(0, range(4), purpose="process"))
    torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-10)


def test_steps_that_differ_by_rounding_are_one_and_others_are_not():
    steps = _grouped(7.3 + 0.1 * np.arange(1000))
    assert len(np.unique(steps)) == 1 and math.isclose(steps[0], 0.1, rel_tol=1e-12)
    times = np.array([0.0, 1e-13, 3e-13, 1.0, 2.0])
    np.testing.assert_allclose(_grouped(times)[:2], [1e-13, 2e-13], rtol=1e-10)
