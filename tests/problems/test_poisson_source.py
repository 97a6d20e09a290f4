import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import definition, problem

source = definition("poisson_source")


def posterior_covariance(many):
    """Dense posterior covariance of one field, by the textbook formula."""
    n = many.space.size
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *many.space.shape)
    k = many.prior.physical_covariance.apply(eye).reshape(n, n)
    a = many.operator.apply(eye).reshape(n, -1).T
    s = a @ k @ a.T + float(many.noise.sd) ** 2 * torch.eye(len(a), dtype=torch.float64)
    return k - k @ a.T @ torch.linalg.solve(s, a @ k)


@pytest.fixture(scope="module")
def small():
    many = source.build(n=24, fields=20, sensors=40)
    draws = many.posterior.sample(40, method=many.method, steps=source.STEPS, seed=0)
    return many, draws, posterior_covariance(many)


def test_the_shipped_reference_is_the_dense_gaussian_posterior(small):
    many, _, covariance = small
    exact = torch.diagonal(covariance).sqrt().reshape(many.space.shape).numpy()
    np.testing.assert_allclose(many.reference["sd"]["a"].values, exact, rtol=1e-6, atol=1e-7)
    shown = sd.GaussianPrior(many.space, many.prior.physical_covariance)
    n = many.space.size
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *many.space.shape)
    a = many.operator.apply(eye).reshape(n, -1)
    k = shown.physical_covariance.apply(eye).reshape(n, n)
    y = torch.from_numpy(many.y["u"].values)
    s = a.T @ k @ a + float(many.noise.sd) ** 2 * torch.eye(a.shape[1], dtype=torch.float64)
    mean = (k @ a @ torch.linalg.solve(s, y.T)).T.reshape(-1, *many.space.shape)
    np.testing.assert_allclose(many.reference["mean"]["a"].values, mean.numpy(), rtol=1e-5, atol=1e-6)


def test_means_of_draws_scatter_around_the_exact_means_by_the_posterior_variance_over_n(small):
    many, draws, covariance = small
    error = (draws["a"].mean("sample") - many.reference["mean"]["a"]).values
    trace, fields = float(covariance.trace()), len(error)
    ratio = (error**2).sum((1, 2)).mean() / (trace / draws.sizes["sample"])
    deviation = math.sqrt(2 * float((covariance**2).sum()) / trace**2 / fields)
    assert abs(ratio - 1) < 4 * deviation


def test_the_spread_of_draws_is_the_exact_one(small):
    _, draws, covariance = small
    total = float(draws["a"].var("sample", ddof=1).sum(["y", "x"]).mean())
    trace, n = float(covariance.trace()), draws.sizes["sample"]
    deviation = math.sqrt(2 * float((covariance**2).sum()) / trace**2 / (draws.sizes["field"] * (n - 1)))
    assert abs(total / trace - 1) < 4 * deviation


def test_the_problem_for_people_is_one_of_those_fields():
    one = problem("poisson_source")
    assert one.truth["a"].dims == ("y", "x") and one.y["u"].sizes == {"sensor": source.SENSORS}
    assert (one.y["x"] > 0).all() and (one.y["x"] < 1).all()


@pytest.mark.slow
def test_the_full_problem_meets_its_exact_posterior():
    many = source.build()
    draws = many.posterior.sample(64, method=many.method, steps=source.STEPS, seed=1)
    s = source.scores(many, draws)
    assert abs(s["corrected"].mean() - s["exact"].mean()) < 0.005
    assert abs(np.sqrt((s["sd_ratio"] ** 2).mean()) - 1) < 0.05
    assert 0.04 < s["exact"].mean() < 0.07
