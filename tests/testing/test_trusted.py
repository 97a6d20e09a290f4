"""Claims about the problems without a closed form: their denoisers and their references, by quadrature and weighting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sciddiff.errors import ConvergenceError, InputError
from sciddiff.random import Streams
from sciddiff.testing import check_prior, trusted
from sciddiff.testing.trusted import IncrementPrior

SHARES = {"Laplace": 1.0, "Bernoulli-Laplace": 0.2}


def quadrature(share, v, sigma):
    """Mean and variance of an increment seen through noise, and the log density of what is seen."""
    b = np.sqrt(0.5 / share)
    # fine at the scale of the noise and of the kink, wide enough for both
    u = np.sort(np.concatenate([np.linspace(-30, 30, 400_001), v + sigma * np.linspace(-9, 9, 20_001)]))
    log = -np.abs(u) / b - 0.5 * ((v - u) / sigma) ** 2
    atom = np.log(1 - share) - 0.5 * (v / sigma) ** 2 if share < 1 else -np.inf
    top = max(log.max(), atom)
    density = share / (2 * b) * np.exp(log - top)
    total, first, second = (np.trapezoid(density * u**k, u) for k in range(3))
    total += np.exp(atom - top)
    log_density = np.log(total) + top - 0.5 * np.log(2 * np.pi * sigma**2)
    return first / total, second / total - (first / total) ** 2, log_density


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 5.0, 20.0])
def test_the_denoiser_of_an_increment_its_slope_and_its_density_are_those_of_quadrature(share, sigma):
    prior = IncrementPrior(1, share)
    for v in (-4.0, -0.3, 0.0, 0.02, 1.0, 6.0):
        z = torch.full((1, 1), v, dtype=torch.float64, requires_grad=True)
        d = prior.denoise(z, sigma)
        (slope,) = torch.autograd.grad(d.sum(), z)
        mean, variance, log_density = quadrature(share, v, sigma)
        assert prior.log_density(z.detach(), sigma).item() == pytest.approx(log_density, abs=1e-5)
        assert d.item() == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert sigma**2 * slope.item() == pytest.approx(variance, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_the_prior_keeps_the_contract_of_priors(share):
    # samplers stop at sigma_min, which spreads what lies exactly at zero to both sides of it
    expected = {"sampler": "an atom"} if share < 1 else None
    assert check_prior(IncrementPrior(6, share), expected_failures=expected).named("failed") == []


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_increments_have_variance_one_and_the_stated_share_of_zeros(share):
    n = 20_000
    z = IncrementPrior(2, share).draw(Streams(0, range(n), purpose="test")).numpy()
    u = np.diff(z, prepend=0.0)
    moving = np.abs(u) > 1e-12
    assert stats.binomtest(int(moving.sum()), 2 * n, share).pvalue > 1e-6
    assert stats.kstest(u[moving], stats.laplace(scale=np.sqrt(0.5 / share)).cdf).pvalue > 1e-6
    square = u[:, 1] ** 2
    assert abs(square.mean() - 1) < 4.9 * square.std() / np.sqrt(n)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_gibbs_draws_have_the_moments_of_weighted_prior_draws(share):
    d, sd, n = 3, 0.5, 1_000_000
    m, y = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), np.array([1.5, 0.5])
    prior = IncrementPrior(d, share)
    chains = trusted._Gibbs(m, y, sd, prior)
    found = chains.run(1.0, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    u = rng.laplace(0.0, prior.scale, (n, d)) * (rng.random((n, d)) < share)
    weight = np.exp(-0.5 * (((y - u @ m.T) / sd) ** 2).sum(1))
    for function in (
        lambda u: u,
        lambda u: u**2,
        lambda u: u * np.roll(u, 1, -1),
        lambda u: np.abs(u) > 1e-9,
    ):
        values = function(u).astype(float)
        mean = weight @ values / weight.sum()
        error = np.sqrt(((weight[:, None] * (values - mean)) ** 2).sum(0)) / weight.sum()
        # chains are independent, so that their means tell the error of the whole
        each = function(found).astype(float).mean(0)
        error = np.hypot(error, each.std(0, ddof=1) / np.sqrt(len(each)))
        assert (np.abs(each.mean(0) - mean) <= 4.5 * error + 1e-12).all()


def test_chains_that_do_not_agree_raise():
    rng = np.random.default_rng(0)
    kept = rng.standard_normal((2, 5, 100, 3))
    trusted._agree(kept)
    kept[1, ..., 2] += 0.5
    with pytest.raises(ConvergenceError, match="standard errors"):
        trusted._agree(kept)


def test_rejection_draws_have_the_moments_and_the_evidence_of_weighted_prior_draws():
    problem, n = trusted.curved(1), 50_000
    x = problem.posterior.prior.draw(Streams(0, range(n), purpose="test"))
    x = problem.posterior.prior.normalisation.physical(x)
    log = problem.posterior.log_likelihood(x).numpy()
    weight, x = np.exp(log), x.numpy()
    error = weight.std() / np.sqrt(len(x))
    assert abs(weight.mean() - np.exp(problem.log_evidence)) < 4.5 * np.hypot(error, 0.01 * weight.mean())
    mean = weight @ x / weight.sum()
    error = np.sqrt(((weight[:, None] * (x - mean)) ** 2).sum(0)) / weight.sum()
    assert (np.abs(mean - problem.mean) < 4.5 * np.hypot(error, problem.sd / np.sqrt(20_000))).all()


def test_walks_are_known_by_their_seed():
    a, b = trusted.increments("laplace", 2), trusted.increments("laplace", 2)
    assert (a.draw(50, seed=3) == b.draw(50, seed=3)).all() and len(
        np.unique(a.draw(50, seed=3)[:, -1])
    ) == 50
    with pytest.raises(InputError, match="pool"):
        a.draw(10**6, seed=0)


def test_a_walk_has_a_density_without_noise_unless_it_has_atoms():
    z = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    scale = np.sqrt(0.5)
    wanted = stats.laplace(scale=scale).logpdf([1.0, -0.5]).sum()
    assert IncrementPrior(2).log_density(z).item() == pytest.approx(wanted)
    with pytest.raises(InputError, match="noise level"):
        IncrementPrior(2, 0.5).log_density(z)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="share"):
        IncrementPrior(3, 0.0)
    with pytest.raises(InputError, match="laplace"):
        trusted.increments("cauchy", 0)
