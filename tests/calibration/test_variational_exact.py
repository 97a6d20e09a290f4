"""GaussianVI finds the exact posterior where it is Gaussian, and the best Gaussian of its family elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

import sciddiff as sd
from sciddiff.errors import ConvergenceError
from sciddiff.methods import GaussianVI
from sciddiff.methods.base import Run


def fit(posterior, method, case=0):
    run = Run(posterior, method, 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        return method.fit(run, case)


def test_the_law_of_gaussian_vi_is_the_exact_posterior_of_a_gaussian_prior(posterior, calibration):
    truth = calibration.exact(posterior)
    mean, variance = truth.error(calibration.law_of_draws(posterior, GaussianVI()))
    # the prior is widened by sigma_min^2 C, 4e-6 of its largest variance and up to 2e-3 of the smallest here
    assert mean < 1e-3 and variance < 5e-3


def test_draws_of_gaussian_vi_match_the_exact_posterior_within_monte_carlo_error(calibration):
    posterior = calibration.series()
    draws = posterior.sample(2000, method=GaussianVI(), seed=1)
    calibration.exact(posterior).agree(calibration.flat(posterior, draws))


def test_a_quadratic_problem_takes_a_step_for_the_data_one_for_the_start_and_one_to_look(calibration):
    assert fit(calibration.vector(), GaussianVI()).iterations <= 3


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_with_a_small_rank_it_is_the_best_gaussian_of_its_family(calibration, rank):
    """Given U, the KL of ``N(mean, I + U (K - I) U^T)`` to a Gaussian is least at ``K = (U^T (I + H) U)^-1``."""
    posterior = calibration.vector()
    found = fit(posterior, GaussianVI(rank=rank, tol=1e-6))
    unit = torch.eye(6, dtype=torch.float64)
    f = found.factor.sqrt(unit).T
    seen, scale = posterior.observations[0], posterior.prior.normalisation.scale
    b = seen.operator.matrix @ (scale * f)
    hessian = b.T @ (b / seen.noise.sd[:, None] ** 2)
    # the prior, widened by sigma^2 C and seen in coordinates whitened with all but sigma_max^-2 of it
    sigma = posterior.prior.sigma_min
    law = posterior.prior.law.apply(unit)
    prior = f.T @ torch.linalg.inv(law + sigma**2 * posterior.prior.reference.apply(unit)) @ f
    best = torch.linalg.inv(found.basis.T @ (prior + hessian) @ found.basis)
    torch.testing.assert_close(found.covariance, best, rtol=1e-5, atol=1e-7)
    # the mean is the posterior's, whatever the family: the gradient of a quadratic averages to that at the mean
    gradient = (prior + hessian) @ found.mean - b.T @ (
        (seen.y[0] - seen.operator.matrix @ posterior.prior.normalisation.mean) / seen.noise.sd**2
    )
    assert gradient.norm() < 1e-4


def test_every_case_has_its_own_fit(calibration):
    single = calibration.vector()
    seen = single.observations[0]
    y = seen.y[0] + torch.arange(3.0).double()[:, None]
    y[1, 0] = torch.nan
    cases = single.prior.given(y, seen.operator, seen.noise, missing="mask", batch_dim="case")
    draws = cases.sample(1000, method=GaussianVI(), seed=0, chunk=700)
    for case in range(3):
        calibration.exact(cases, case).agree(calibration.flat(cases, draws, case=case))


def test_for_counts_it_is_the_gaussian_nearest_in_kl():
    """One log-rate under Poisson noise, where E_q of everything is known in closed form."""
    space = sd.Space({"i": 1})
    prior = sd.GaussianPrior(space, sd.covariance.white((1,), 0.5), [1.0])
    rate = sd.operators.from_torch(torch.exp, space, sd.Space({"pixel": 1}, "rate"))
    counts, exposure = 7.0, 2.0
    posterior = prior.given([counts], rate, sd.noise.Poisson(exposure))

    def kl(p):  # E_q exp(x) = exp(mean + variance / 2)
        mean, log_sd = p
        variance = np.exp(2 * log_sd)
        likelihood = counts * mean - exposure * np.exp(mean + variance / 2)
        return ((mean - 1) ** 2 + variance) / (2 * 0.5) - likelihood - log_sd

    best = optimize.minimize(kl, [1.0, -1.0], tol=1e-12).x
    law = fit(posterior, GaussianVI(samples=4000, tol=1e-6))
    scale = float(prior.normalisation.scale)
    f = float(law.factor.sqrt(torch.ones(1, 1, dtype=torch.float64)))
    assert 1 + scale * f * float(law.mean) == pytest.approx(best[0], abs=0.01)
    assert scale * f * float(law.covariance) ** 0.5 == pytest.approx(np.exp(best[1]), rel=0.02)


def test_heavy_tailed_noise_and_a_bent_operator_converge_to_a_stationary_gaussian(calibration):
    """E_q grad V = 0 and E_q hess V = Cov^-1, checked with draws and derivatives of its own."""
    space = sd.Space({"i": 3})
    prior = sd.GaussianPrior(space, sd.covariance.dense(calibration.random_covariance(3, 1)))
    bend = sd.operators.from_torch(lambda x: x + 0.2 * x.sin(), space, sd.Space({"j": 3}, "y"))
    posterior = prior.given([0.5, -1.0, 2.0], bend, sd.noise.StudentT(df=5, scale=0.5))
    found = fit(posterior, GaussianVI(samples=2000))
    unit = torch.eye(3, dtype=torch.float64)
    f = posterior.prior.normalisation.scale * found.factor.sqrt(unit).T
    root = torch.linalg.cholesky(found.basis @ found.covariance @ found.basis.T)
    white = torch.from_numpy(stats.norm.ppf(stats.qmc.Sobol(3, seed=0).random(2**12)))
    precision = torch.linalg.inv(prior.physical_covariance.apply(unit))

    def potential(u):
        x = f @ u
        return 0.5 * x @ precision @ x - posterior.log_likelihood(x[None])[0]

    u = found.mean + white @ root.T
    gradient = torch.func.vmap(torch.func.grad(potential))(u).mean(0)
    hessian = torch.func.vmap(torch.func.hessian(potential))(u).mean(0)
    assert (root.T @ gradient).norm() < 0.05  # in posterior standard deviations
    torch.testing.assert_close(root.T @ hessian @ root, unit, rtol=0, atol=0.05)


def test_a_fit_that_does_not_settle_raises(calibration):
    space = sd.Space({"i": 3})
    prior = sd.GaussianPrior(space, sd.covariance.dense(calibration.random_covariance(3, 1)))
    cube = sd.operators.from_torch(lambda x: x**3, space, sd.Space({"j": 3}, "y"))
    posterior = prior.given([2.0, -1.0, 5.0], cube, sd.noise.Gaussian(0.3))
    with pytest.raises(ConvergenceError, match="after 2 iterations"):
        posterior.sample(2, method=GaussianVI(iterations=2), seed=0)
