"""Counts seen through log-linear rates: methods against quadrature on a linear Gaussian latent of three times."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.assimilation import FFBS, StateSpaceModel
from sciddiff.errors import InputError
from sciddiff.operators import AtTimes, log_rates
from sciddiff.testing import check_operator

T, N, BIN = 3, 4, 0.5
KEEP, DRIFT = 0.9, 0.5
STATE = sd.Space({"i": 1}, "latent")
LOADINGS, BASELINE = np.array([[1.0], [-0.7], [0.4], [1.3]]), np.log([3.0, 4.0, 2.0, 1.5])
READ_OUT = log_rates(STATE, LOADINGS, BASELINE)
COUNTS = np.array([[3.0, 1.0, 2.0, 4.0], [2.0, 0.0, 1.0, 1.0], [0.0, 3.0, 1.0, 0.0]])


def law() -> np.ndarray:
    """Covariance of the latent at the three times, of variance one at the first."""
    variance = [1.0]
    for _ in range(T - 1):
        variance.append(KEEP**2 * variance[-1] + DRIFT**2)
    return np.array([[variance[min(i, j)] * KEEP ** abs(i - j) for j in range(T)] for i in range(T)])


def model() -> StateSpaceModel:
    return StateSpaceModel(
        lambda x: KEEP * x,
        sd.GaussianPrior(STATE, sd.covariance.white((1,))),
        space=STATE,
        noise=sd.noise.Gaussian(DRIFT),
        times=T,
    )


@lru_cache
def quadrature() -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of the latent given the counts, and their evidence, on a grid of 81^3 points."""
    axis = np.linspace(-6, 6, 81)
    x = np.stack([g.ravel() for g in np.meshgrid(axis, axis, axis, indexing="ij")], 1)
    log = stats.multivariate_normal(np.zeros(T), law()).logpdf(x)
    for t in range(T):
        rate = BIN * np.exp(BASELINE + x[:, [t]] @ LOADINGS.T)
        log += stats.poisson.logpmf(COUNTS[t], rate).sum(1)
    weight = np.exp(log - log.max())
    evidence = float(np.log(weight.sum() * (axis[1] - axis[0]) ** T) + log.max())
    weight /= weight.sum()
    mean = weight @ x
    return mean, (weight[:, None] * (x - mean)).T @ (x - mean), evidence


def posterior() -> sd.Posterior:
    trajectories = model().trajectories
    prior = sd.GaussianPrior(trajectories, sd.covariance.dense(law(), trajectories.shape))
    return prior.given(COUNTS, AtTimes(READ_OUT, trajectories), sd.noise.Poisson(BIN))


def test_the_read_out_keeps_the_contract_of_operators():
    check_operator(READ_OUT)


def test_counts_in_bins_are_poisson_of_rate_times_width():
    x = torch.tensor([[0.4]], dtype=torch.float64)
    rate = BIN * np.exp(BASELINE + 0.4 * LOADINGS[:, 0])
    found = sd.noise.Poisson(BIN).log_prob(torch.as_tensor(COUNTS[:1]), READ_OUT.apply(x))
    assert float(found[0]) == pytest.approx(stats.poisson.logpmf(COUNTS[0], rate).sum())
    many = sd.noise.Poisson(BIN).sample(READ_OUT.apply(x.expand(4000, 1)), seed=0).numpy()
    assert (np.abs(many.mean(0) - rate) < 4.5 * np.sqrt(rate / 4000)).all()


def test_the_particle_smoother_is_right_given_counts():
    """Draws share particles: their error is bounded by that of as many draws as half the particles."""
    mean, cov, _ = quadrature()
    seen = model().given(COUNTS[None], READ_OUT, sd.noise.Poisson(BIN), batch_dim="case")
    x = seen.sample(2000, FFBS(particles=4096), seed=0)["latent"].values.reshape(2000, T)
    assert (np.abs(x.mean(0) - mean) / np.sqrt(np.diag(cov) / 1000) < 4.5).all()
    assert (np.abs(x.var(0) / np.diag(cov) - 1) < 4.5 * np.sqrt(2 / 1000)).all()


@pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")
def test_particles_are_right_given_counts_and_their_evidence_too():
    """Means of independent systems of particles, whose scatter is their error."""
    mean, _, evidence = quadrature()
    method = sd.Particles(particles=200, steps=20)
    runs = [posterior().sample(200, method, seed=seed) for seed in range(12)]
    x = np.stack([r["latent"].values.reshape(200, T) for r in runs])
    centres = x.mean(1)
    z = (centres.mean(0) - mean) / (centres.std(0, ddof=1) / np.sqrt(12))
    # Student's t of 11 degrees: beyond 5.5 with a probability of 2e-4
    assert (np.abs(z) < 5.5).all()
    logs = np.array([r.attrs["log_evidence"] for r in runs])
    # the mean of an evidence is unbiased; that of its logarithm is low by half its variance
    error = logs.std(ddof=1) / np.sqrt(12)
    assert abs(logs.mean() + logs.var() / 2 - evidence) < 5.5 * error


@pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")
def test_local_gaussian_is_off_by_less_than_a_third_of_a_standard_deviation_given_counts():
    """What its docstring says of Poisson noise: biased by construction."""
    mean, cov, _ = quadrature()
    x = (
        posterior()
        .sample(500, sd.methods.LocalGaussian(), steps=100, seed=0)["latent"]
        .values.reshape(500, T)
    )
    assert (np.abs(x.mean(0) - mean) / np.sqrt(np.diag(cov)) < 0.34 + 4.5 / np.sqrt(500)).all()
    assert (np.abs(np.sqrt(x.var(0) / np.diag(cov)) - 1) < 0.3).all()


def test_loadings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="a column for each value"):
        log_rates(STATE, np.ones((4, 2)), 0.0)
    with pytest.raises(InputError, match="one number, or 4"):
        log_rates(STATE, LOADINGS, np.zeros(3))
    with pytest.raises(InputError, match="finite"):
        log_rates(STATE, LOADINGS * np.nan, 0.0)
