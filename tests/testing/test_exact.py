"""Claims about the exact problems: their references are right, by ways that share nothing with how they were made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.testing import Hidden, exact

LINEAR = {
    **{
        kind: lambda seed, kind=kind: exact.gaussian(kind, seed)
        for kind in ("vector", "series", "grid", "graph")
    },
    "point sensors": exact.point_sensors,
    "state space": exact.state_space,
}
MIXTURES = {f"{m} data": lambda seed, m=m: exact.mixture(seed, m) for m in (1, 2, 4)}


def parts(problem):
    """Prior mean, prior covariance, matrix, noise variances and data, by the library's actions."""
    prior, (o,) = problem.posterior.prior, problem.posterior.observations
    d, m = prior.space.size, o.operator.codomain.size
    eye = torch.eye(d, dtype=torch.float64).reshape(d, *prior.space.shape)
    a = o.operator.apply(eye).reshape(d, m).T.numpy()
    r = o.noise.covariance(o.operator.codomain.shape).variance().flatten().numpy()
    mean = prior.normalisation.physical(torch.zeros(1, *prior.space.shape, dtype=torch.float64))
    return mean.flatten().numpy(), eye, a, r, o.y.flatten().numpy()


@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_linear_references_are_the_posterior_of_the_library_s_own_covariances(make):
    problem = make(3)
    mean, eye, a, r, y = parts(problem)
    prior_cov = problem.posterior.prior.physical_covariance.apply(eye).reshape(len(mean), -1).numpy()
    total = a @ prior_cov @ a.T + np.diag(r)
    gain = np.linalg.solve(total, a @ prior_cov).T
    scale = problem.sd
    assert np.abs((mean + gain @ (y - a @ mean) - problem.mean) / scale).max() < 1e-7
    error = (prior_cov - gain @ a @ prior_cov - problem.covariance) / np.outer(scale, scale)
    assert np.abs(error).max() < 1e-7
    evidence = stats.multivariate_normal(a @ mean, total).logpdf(y)
    assert problem.log_evidence == pytest.approx(evidence, abs=1e-8)


@pytest.mark.parametrize("make", [*LINEAR.values(), *MIXTURES.values()], ids=[*LINEAR, *MIXTURES])
def test_exact_draws_have_the_stated_moments(make):
    problem, n = make(1), 4000
    x = problem.draw(n, seed=7)
    d = len(problem.mean)
    off = (x - problem.mean) / problem.sd
    assert np.sqrt(n) * np.abs(off.mean(0)).max() < stats.norm.isf(1e-5 / d)
    # every second moment against its own standard error: the mixtures are not Gaussian
    wanted = problem.covariance / np.outer(problem.sd, problem.sd)
    i, j = np.triu_indices(min(d, 40))
    products = off[:, i] * off[:, j]
    z = np.sqrt(n) * (products.mean(0) - wanted[i, j]) / products.std(0)
    assert np.abs(z).max() < stats.norm.isf(1e-5 / len(i))
    assert (problem.draw(5, seed=1) == problem.draw(5, seed=1)).all()
    assert (problem.draw(5, seed=1) != problem.draw(5, seed=2)).any()


@pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES)
def test_the_mixture_s_evidence_and_mean_are_what_weighted_prior_draws_give(make):
    problem, n = make(5), 400_000
    prior, rng = problem.posterior.prior, np.random.default_rng(0)
    means = prior.normalisation.physical(prior.means).numpy()
    x = means[rng.choice(25, n, p=prior.weights.numpy())] + rng.standard_normal((n, 8))
    log = problem.posterior.log_likelihood(torch.from_numpy(x)).numpy()
    top = log.max()
    weight = np.exp(log - top)
    found, error = weight.mean(), weight.std() / np.sqrt(n)
    assert abs(found - np.exp(problem.log_evidence - top)) < 4.5 * error
    # the error of a ratio of means
    ratio = weight @ x / weight.sum()
    spread = np.sqrt(((weight[:, None] * (x - ratio)) ** 2).mean(0) / n) / found
    assert (np.abs(ratio - problem.mean) < 4.5 * spread).all()


def test_the_filter_s_evidence_and_moments_do_not_depend_on_the_dense_covariance():
    """At a chain of one step the smoother is Bayes' rule for two numbers."""
    f, q, start = np.array([[1.0, 1.0], [0.0, 0.9]]), 0.1 * np.eye(2), np.diag([1.0, 0.25])
    chain = exact._Smoother(f, q, start, 1, {0: 2.0}, 0.5)
    assert chain.mean[0] == pytest.approx([2.0 / 1.5, 0.0])
    assert np.diag(chain.covs[0]) == pytest.approx([1.0 - 1 / 1.5, 0.25])
    assert chain.log_evidence == pytest.approx(stats.norm(0, np.sqrt(1.5)).logpdf(2.0))


@pytest.mark.parametrize("make", [*LINEAR.values(), *MIXTURES.values()], ids=[*LINEAR, *MIXTURES])
def test_problems_are_given_by_their_seed_alone(make):
    a, b, other = make(4), make(4), make(5)
    assert (a.posterior.observations[0].y == b.posterior.observations[0].y).all()
    assert a.log_evidence == b.log_evidence != other.log_evidence


@pytest.mark.parametrize("make", [exact.state_space, MIXTURES["2 data"]], ids=["state space", "mixture"])
def test_cases_are_truths_of_the_prior_with_data_of_the_operator(make):
    problem = make(0)
    n = 3000
    truths, posterior = problem.cases(n, seed=0)
    prior, (o,) = posterior.prior, posterior.observations
    assert posterior.cases == n
    x = torch.from_numpy(truths).reshape(n, *prior.space.shape)
    off = (o.y - o.operator.apply(x)).numpy() / float(o.noise.sd)
    assert stats.kstest(off.ravel(), "norm").pvalue > 1e-6
    drawn = prior.normalisation.normal(x).flatten(1).numpy()
    other = prior.draw(sd.random.Streams(1, range(n), purpose="test")).flatten(1).numpy()
    for i in range(drawn.shape[1]):
        assert stats.ks_2samp(drawn[:, i], other[:, i]).pvalue > 1e-6
    again, _ = problem.cases(10, seed=0)
    assert (again == truths[:10]).all()


def test_a_hidden_prior_denoises_as_the_one_inside_and_tells_nothing_else():
    problem = exact.gaussian("series", 0)
    open_, shut = problem.posterior.prior, problem.hidden().posterior.prior
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 64)))
    assert torch.equal(shut.denoise(z, 0.7), open_.denoise(z, 0.7))
    assert shut.covariance(1.0) is None and shut.gaussian_covariance(1.0) is None
    single = shut.to(dtype=torch.float32)
    assert isinstance(single, Hidden) and single.denoise(z.float(), 0.7).dtype == torch.float32
    assert problem.hidden().cases(2, seed=0)[1].prior.covariance(1.0) is None


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="series"):
        exact.gaussian("torus", 0)


@pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES)
def test_the_solution_of_a_mixture_draws_what_the_problem_draws(make):
    problem, n = make(2), 3000
    z = problem.solution.draw(sd.random.Streams(0, range(n), purpose="test"))
    x, y = problem.solution.normalisation.physical(z).numpy(), problem.draw(n, seed=0)
    for u in np.random.default_rng(0).standard_normal((8, 8)):
        assert stats.ks_2samp(x @ u, y @ u).pvalue > 1e-6
