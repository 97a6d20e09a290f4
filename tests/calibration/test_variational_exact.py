"""GaussianVI finds the exact posterior where it is Gaussian, and the best Gaussian of its family elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

import sciddiff as sd
from sciddiff.draws import DiagnosisWarning
from sciddiff.errors import ConvergenceError
from sciddiff.methods import GaussianVI
from sciddiff.methods.base import Run
from sciddiff.testing.exact import gaussian, point_sensors, state_space


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


def log_rates(n, length, sd_prior, noise, observe=torch.exp):
    """A series of log-rates about log 20 with an exponential covariance, seen at every time."""
    t = np.arange(n)
    cov = sd_prior**2 * np.exp(-np.abs(t[:, None] - t) / length)
    space, generator = sd.Space({"t": n}), np.random.default_rng(0)
    prior = sd.GaussianPrior(space, sd.covariance.dense(cov), np.full(n, np.log(20.0)))
    operator = sd.operators.from_torch(
        observe, space, sd.Space({"t": n}, "y"), linear=observe is not torch.exp
    )
    x = np.log(20.0) + np.linalg.cholesky(cov) @ generator.standard_normal(n)
    y = generator.poisson(np.exp(x)).astype(float) if observe is torch.exp else x
    return prior.given(y, operator, noise), cov, y


def law(posterior, found):
    """Mean and standard deviations of a fit, in the units of the state."""
    unit = torch.eye(len(found.mean), dtype=torch.float64)
    f = posterior.prior.normalisation.scale * found.factor.sqrt(unit).T
    inner = found.covariance - torch.eye(len(found.covariance)).double()
    cov = f @ (unit + found.basis @ inner @ found.basis.T) @ f.T
    mean = posterior.prior.normalisation.mean + f @ found.mean
    return mean.numpy(), cov.diagonal().sqrt().numpy()


@pytest.mark.parametrize(("length", "sd_prior"), [(5.0, 1.0), (20.0, 1.0)])
def test_with_256_counts_the_default_agrees_with_laplace(length, sd_prior):
    """Steps of full length overflow here, and a rank below the number of data is too wide."""
    posterior, cov, y = log_rates(256, length, sd_prior, sd.noise.Poisson())
    precision, mode = np.linalg.inv(cov), np.full(256, np.log(20.0))
    for _ in range(50):
        gradient = precision @ (mode - np.log(20.0)) - y + np.exp(mode)
        mode = mode - np.clip(np.linalg.solve(precision + np.diag(np.exp(mode)), gradient), -1, 1)
    truth = np.sqrt(np.linalg.inv(precision + np.diag(np.exp(mode))).diagonal())
    mean, spread = law(posterior, fit(posterior, GaussianVI()))
    # mean and mode of one count's log-rate differ by half of its sd, a little less than a fifth at 20 counts
    assert np.sqrt(np.mean(((mean - mode) / truth) ** 2)) < 0.2
    assert np.mean(spread / truth) == pytest.approx(1, abs=0.01)
    assert np.abs(spread / truth - 1).max() < 0.2


def test_with_150_values_the_default_has_the_exact_spread_and_a_smaller_rank_says_so():
    posterior, cov, _ = log_rates(150, 1.0, 1.0, sd.noise.Gaussian(0.2), lambda x: 2 * x)
    truth = np.sqrt(np.linalg.inv(np.linalg.inv(cov) + np.eye(150) * (2 / 0.2) ** 2).diagonal())
    _, spread = law(posterior, fit(posterior, GaussianVI()))
    np.testing.assert_allclose(spread, truth, rtol=5e-3)
    with pytest.raises(ConvergenceError, match="Raise rank to at least the number of data, 150"):
        fit(posterior, GaussianVI(rank=16, iterations=3))


@pytest.mark.parametrize(
    "make",
    [*(lambda k=k: gaussian(k, 1) for k in ("series", "grid", "graph")), point_sensors, state_space],
    ids=["series", "grid", "graph", "point sensors", "state space"],
)
def test_means_and_spreads_of_problems_of_every_kind_are_exact(make):
    problem = make(1) if make in (point_sensors, state_space) else make()
    posterior = problem.posterior
    found = fit(posterior, GaussianVI())
    unit = torch.eye(len(found.mean), dtype=torch.float64)
    scale = torch.broadcast_to(posterior.prior.normalisation.scale, posterior.prior.space.shape).flatten()
    centre = torch.broadcast_to(posterior.prior.normalisation.mean, posterior.prior.space.shape).flatten()
    f = scale * found.factor.sqrt(unit.reshape(-1, *found.factor.white_shape)).flatten(1)
    inner = found.covariance - torch.eye(len(found.covariance)).double()
    cov = f.T @ (unit + found.basis @ inner @ found.basis.T) @ f
    ratio = cov.diagonal().sqrt().numpy() / problem.sd
    off = ((centre + found.mean @ f).numpy() - problem.mean) / problem.sd
    # the law itself and not draws of it: no sampling error, but for the widening by sigma^2 C
    assert np.abs(ratio - 1).max() < 0.01 and np.abs(off).max() < 0.01


@pytest.mark.filterwarnings("ignore:the draws do not fit")
def test_a_rank_that_makes_draws_too_wide_is_warned_of():
    posterior = gaussian("series", 0).posterior
    with pytest.warns(DiagnosisWarning, match="with rank 12 and 16 data the draws may be up to"):
        posterior.sample(2, method=GaussianVI(rank=12), seed=0)
