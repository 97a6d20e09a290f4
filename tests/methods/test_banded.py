"""Moment matching in information form: the same posterior as by a full matrix, at a cost that grows with the length."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import sciddiff as sd
from sciddiff.covariance.banded import inverse_diagonal
from sciddiff.methods.banded import Banded
from sciddiff.methods.base import Run
from sciddiff.operators import Identity, Matrix, Points
from sciddiff.priors.windows import WindowPrior
from sciddiff.random import Streams

PHI = 0.9


def chain(length: int) -> sd.GaussianPrior:
    inner = np.full(length, 1 + PHI**2)
    inner[[0, -1]] = 1.0
    beside = np.full(length - 1, -PHI)
    matrix = sp.diags([beside, inner, beside], [-1, 0, 1]).tocsc() / (1 - PHI**2)
    return sd.GaussianPrior(sd.Space({"time": length}), sd.covariance.precision(matrix))


def dense(length: int) -> sd.GaussianPrior:
    times = np.arange(float(length))
    return sd.GaussianPrior(sd.Space({"time": length}), sd.covariance.kernel(lambda h: PHI**h, times))


def guided(posterior: sd.Posterior) -> object:
    run = Run(posterior, sd.MMPS(), 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    return run.method.guide(run)


def holes(length: int, cases: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((cases, length))
    y[rng.random(y.shape) < 0.5] = np.nan
    y[-1] = np.nan
    return y


def test_the_guided_denoiser_is_that_of_a_full_matrix_also_with_values_missing():
    y, noise = holes(30, 3), sd.noise.Gaussian(np.linspace(0.1, 0.5, 30))
    posteriors = [
        p.given(y, Identity(p.space), noise, missing="mask", batch_dim="case") for p in (chain(30), dense(30))
    ]
    assert isinstance(guided(posteriors[0]), Banded)
    assert not isinstance(guided(posteriors[1]), Banded)
    z, cases = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 30))), torch.arange(6) % 3
    for sigma in (0.05, 1.0, 20.0):
        a, b = (guided(p)(z, sigma, cases) for p in posteriors)
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_draws_have_the_exact_mean_and_covariance():
    n = 4000
    prior, seen = chain(12), [1, 4, 8]
    y = np.array([1.0, -1.0, 0.5])
    posterior = prior.given(y, Points.at_indices(prior.space, seen), sd.noise.Gaussian(0.3))
    x = posterior.sample(n, seed=0, progress=False)["x"].values
    k = PHI ** np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    gain = np.linalg.solve(k[np.ix_(seen, seen)] + 0.09 * np.eye(3), k[seen]).T
    cov = k - gain @ k[seen]
    s = np.sqrt(np.diag(cov))
    assert np.abs((x.mean(0) - gain @ y) / s).max() < 4.5 / np.sqrt(n)
    off = (np.cov(x.T) - cov) / np.outer(s, s)
    # the variance of a sample covariance of normal values is at most 2/n of the product of variances
    assert np.abs(off).max() < 4.5 * np.sqrt(2 / n)


def test_sums_of_variables_are_sparse_and_means_of_everything_are_not():
    prior = chain(200)
    weights = sp.diags([np.ones(200), np.ones(199)], [0, 1], format="csr")
    few = Matrix(prior.space, sd.Space({"j": 200}, "y"), weights)
    everything = Matrix(prior.space, sd.Space({"j": 1}, "y"), np.full((1, 200), 0.005))
    assert isinstance(guided(prior.given(np.zeros(200), few, sd.noise.Gaussian(0.1))), Banded)
    assert not isinstance(guided(prior.given([0.0], everything, sd.noise.Gaussian(0.1))), Banded)


def test_correlated_errors_go_the_other_way():
    prior = chain(20)
    noise = sd.noise.Gaussian(covariance=sd.covariance.kernel(lambda h: 0.01 * np.exp(-h), np.arange(20.0)))
    assert not isinstance(guided(prior.given(np.zeros(20), Identity(prior.space), noise)), Banded)


def test_variances_of_a_banded_precision_are_the_diagonal_of_its_inverse():
    rng = np.random.default_rng(0)
    for n, width in ((1, 0), (6, 2), (50, 7)):
        root = np.tril(np.triu(rng.standard_normal((n, n)), -width))
        shuffle = rng.permutation(n)
        matrix = (root @ root.T + 0.1 * np.eye(n))[shuffle][:, shuffle]
        found = inverse_diagonal(sp.csc_matrix(matrix))
        np.testing.assert_allclose(found, np.diag(np.linalg.inv(matrix)), rtol=1e-9)
    assert inverse_diagonal(sp.csc_matrix(np.eye(600) + 1.0)) is None


def entries(length: int) -> tuple[float, float]:
    """Entries of the factors of one step and operator calls beside the sparse rows, of one run."""
    prior = WindowPrior(dense(9), length)
    seen = np.arange(0, length, 4)
    posterior = prior.given(np.zeros(len(seen)), Points.at_indices(prior.space, seen), sd.noise.Gaussian(0.3))
    inside = guided(posterior)
    assert isinstance(inside, Banded)
    factor = inside.factor(1.0, 0)
    return factor._lower.nnz, inside.rows.nnz


def test_what_is_factored_grows_with_the_length_and_not_its_square():
    short, long = entries(1000), entries(2000)
    for a, b in zip(short, long, strict=True):
        assert 1.9 < b / a < 2.1


def smoothed(length: int, stride: int, draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws under windows, with the exact mean and sd."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(length)
    for i in range(1, length):
        truth[i] = PHI * truth[i - 1] + np.sqrt(1 - PHI**2) * truth[i]
    seen = np.arange(0, length, 4)
    y = truth[seen] + 0.3 * rng.standard_normal(len(seen))
    prior = WindowPrior(dense(33), length, stride=stride)
    posterior = prior.given(y, Points.at_indices(prior.space, seen), sd.noise.Gaussian(0.3))
    x = posterior.sample(draws, seed=0, progress=False)["x"].values
    # the exact moments from the banded algebra, which the tests above hold against dense matrices
    exact = chain(length).given(y, Points.at_indices(prior.space, seen), sd.noise.Gaussian(0.3))
    inside = guided(exact)
    mean = inside(torch.zeros(1, length, dtype=torch.float64), 1e6, torch.zeros(1, dtype=torch.long))
    variance = inside.factor(1e6, 0).variance()
    return x, mean[0].numpy(), variance.sqrt().numpy()


@pytest.mark.parametrize("stride", [1, 9])
def test_windows_smooth_a_chain_as_the_kalman_smoother_does(stride):
    x, mean, s = smoothed(300, stride, draws := 32)
    z = (x.mean(0) - mean) / s * np.sqrt(draws)
    # some 300 / 10 independent places
    assert abs((z**2).mean() - 1) < 4.5 * np.sqrt(2 / 30)
    assert abs(np.sqrt((x.std(0, ddof=1) ** 2 / s**2).mean()) - 1) < 4.5 / np.sqrt(2 * draws * 30)


@pytest.mark.slow
def test_ten_thousand_steps_are_smoothed():
    x, mean, s = smoothed(10_000, 9, draws := 32)
    z = (x.mean(0) - mean) / s * np.sqrt(draws)
    assert abs((z**2).mean() - 1) < 4.5 * np.sqrt(2 / 1000)
    assert abs(np.sqrt((x.std(0, ddof=1) ** 2 / s**2).mean()) - 1) < 4.5 / np.sqrt(2 * draws * 1000)


@pytest.mark.parametrize(("length", "stride"), [(33, 3), (34, 3), (35, 5), (60, 7), (64, 17)])
def test_with_a_stride_every_state_is_taken_once_and_from_near_the_middle_of_a_window(length, stride):
    window = dense(33)
    z = Streams(0, range(3), purpose="states").normal((length,), dtype=torch.float64)
    prior = WindowPrior(window, length, stride=stride)
    d = prior.denoise(z, 0.05)
    # at small noise the window's edge is far: as without a stride
    torch.testing.assert_close(d, WindowPrior(window, length).denoise(z, 0.05), rtol=0, atol=1e-6)


def test_a_stride_saves_as_many_forwards_of_windows():
    calls = []
    window = dense(33)
    whole = window.denoise
    window.denoise = lambda z, sigma: calls.append(len(z)) or whole(z, sigma)
    z = torch.zeros(2, 1000, dtype=torch.float64)
    for stride in (1, 9):
        WindowPrior(window, 1000, stride=stride).denoise(z, 1.0)
        calls, done = [], sum(calls)
        assert done == 2 * (-(-967 // stride) + 1)


@pytest.mark.parametrize("stride", [0, 2, 33, 1.0])
def test_a_stride_that_has_no_middle_or_no_margin_is_refused(stride):
    with pytest.raises(sd.errors.InputError, match="stride"):
        WindowPrior(dense(33), 100, stride=stride)
