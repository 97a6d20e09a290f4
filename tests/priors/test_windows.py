"""Long series from windows: exact where they have to be, and wrong elsewhere by what a window leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors import Prior
from sciddiff.priors.windows import WindowPrior
from sciddiff.random import Streams
from sciddiff.testing import check_prior

PHI = 0.9


def ar1(length: int, **settings: object) -> sd.GaussianPrior:
    """``z_i = phi z_{i-1} + e_i`` of unit variance."""
    times = np.arange(float(length))
    space = sd.Space({"time": length})
    return sd.GaussianPrior(space, sd.covariance.kernel(lambda h: PHI**h, times), **settings)


def noisy(prior: sd.Prior, sigma: float, n: int = 200) -> torch.Tensor:
    z0 = prior.draw(Streams(0, range(n), purpose="states"))
    return z0 + sigma * prior.noise(Streams(0, range(n), purpose="noise"))


def test_it_keeps_the_contract_of_a_prior():
    check_prior(WindowPrior(ar1(5), 12))
    check_prior(WindowPrior(ar1(5), 12).to(dtype=torch.float32))


def test_a_series_as_long_as_the_window_has_the_window_s_denoiser():
    window = ar1(7)
    z = noisy(window, 0.7)
    torch.testing.assert_close(WindowPrior(window, 7).denoise(z, 0.7), window.denoise(z, 0.7))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_its_error_falls_with_the_window_as_the_smoother_forgets(sigma):
    exact = ar1(120)
    z = noisy(exact, sigma)
    middle = slice(40, 80)
    d = exact.denoise(z, sigma)[:, middle]
    errors = [
        float((WindowPrior(ar1(2 * k + 1), 120).denoise(z, sigma)[:, middle] - d).square().mean().sqrt())
        for k in (8, 12)
    ]
    # off the diagonal the inverse of a tridiagonal matrix falls by r a step, and 1/r + r is the ratio of its entries
    ratio = ((1 + PHI**2) / (1 - PHI**2) + 1 / sigma**2) * (1 - PHI**2) / PHI
    r = (ratio - math.sqrt(ratio**2 - 4)) / 2
    assert (errors[1] / errors[0]) ** (1 / 4) == pytest.approx(r, rel=0.01)


def test_small_noise_leaves_no_error():
    exact, sigma = ar1(60), 0.01
    z = noisy(exact, sigma)
    wrong = WindowPrior(ar1(5), 60).denoise(z, sigma) - exact.denoise(z, sigma)
    # the first state left out counts for r^3, and r is about sigma^2 phi/(1 - phi^2) = 5e-4
    assert float(wrong.abs().max()) < 1e-9


def test_the_ends_come_from_the_windows_at_the_ends():
    window = ar1(5)
    z = noisy(ar1(20), 1.0, 3)
    d = WindowPrior(window, 20).denoise(z, 1.0)
    torch.testing.assert_close(d[:, :3], window.denoise(z[:, :5], 1.0)[:, :3])
    torch.testing.assert_close(d[:, -3:], window.denoise(z[:, -5:], 1.0)[:, -3:])
    torch.testing.assert_close(d[:, 7], window.denoise(z[:, 5:10], 1.0)[:, 2])


def test_the_gaussian_of_a_markov_window_is_that_of_the_series():
    series = WindowPrior(ar1(5), 50)
    v = Streams(0, range(3), purpose="v").normal((50,), dtype=torch.float64)
    for sigma in (0.1, 1.0, 10.0):
        found, known = series.gaussian_covariance(sigma), ar1(50).covariance(sigma)
        torch.testing.assert_close(found.apply(v), known.apply(v), rtol=1e-8, atol=1e-10)
    assert series.sigma_max == pytest.approx(ar1(50).sigma_max, rel=1e-6)


def test_a_series_of_several_variables_is_cut_along_time():
    times, root = np.arange(5.0), np.array([[1.0, 0.0], [0.6, 0.8]])
    both = np.kron(root @ root.T, PHI ** np.abs(times[:, None] - times))
    space = sd.Space({"time": 5}, ["a", "b"])
    window = sd.GaussianPrior(space, sd.covariance.dense(both, space.shape))
    series = WindowPrior(window, 30)
    long = np.kron(root @ root.T, PHI ** np.abs(np.arange(30.0)[:, None] - np.arange(30.0)))
    exact = sd.GaussianPrior(series.space, sd.covariance.dense(long, (2, 30)))
    z = noisy(exact, 0.1)
    torch.testing.assert_close(series.denoise(z, 0.1), exact.denoise(z, 0.1), atol=2e-3, rtol=0)
    v = noisy(exact, 1.0, 2)
    torch.testing.assert_close(
        series.gaussian_covariance(0.5).apply(v), exact.covariance(0.5).apply(v), rtol=1e-7, atol=1e-9
    )


def test_chunks_of_windows_change_nothing():
    z = noisy(ar1(40), 1.0, 5)
    sigmas = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)
    whole = WindowPrior(ar1(5), 40).denoise(z, sigmas)
    torch.testing.assert_close(WindowPrior(ar1(5), 40, chunk=7).denoise(z, sigmas), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        WindowPrior(ar1(5), 40).denoise(z[3:4], float(sigmas[3])), whole[3:4], rtol=0, atol=1e-12
    )


def test_work_is_linear_in_the_length():
    counts = []

    class Counting(Prior):
        def __init__(self, inner: sd.Prior) -> None:
            self.__dict__ |= inner.__dict__
            self.inner = inner

        def denoise(self, z, sigma):
            counts.append(len(z))
            return self.inner.denoise(z, sigma)

    for length in (1000, 3000):
        series = WindowPrior(Counting(ar1(5)), length, chunk=500)
        series.denoise(torch.zeros(2, length, dtype=torch.float64), 1.0)
    assert sum(counts[:2]) == 2 * 996 and sum(counts[2:]) == 2 * 2996
    assert max(counts) <= 2 * 500


def test_mmps_on_a_long_series_is_the_smoother():
    length, n, noise = 40, 500, 0.3
    series, exact = WindowPrior(ar1(17), length), ar1(length)
    seen = np.arange(0, length, 4)
    y = np.sin(seen / 5.0)
    points = sd.operators.Points.at_indices(series.space, seen[:, None])
    draws = (
        series.given(y, points, sd.noise.Gaussian(noise))
        .sample(n, method=sd.MMPS(covariance="gaussian"), solver=sd.solvers.Moments(steps=24), seed=0)["x"]
        .values
    )
    times = np.arange(float(length))
    sigma = PHI ** np.abs(times[:, None] - times)
    gain = sigma[:, seen] @ np.linalg.inv(sigma[np.ix_(seen, seen)] + noise**2 * np.eye(len(seen)))
    mean, cov = gain @ y, sigma - gain @ sigma[seen]
    assert exact.space == series.space
    sd_ = np.sqrt(np.diag(cov))
    z = (draws.mean(0) - mean) / sd_ * math.sqrt(n)
    # what a window of 17 leaves out is 2 % of a standard deviation, which is a tenth of the 5 standard errors
    assert np.abs(z).max() < 5
    ratio = draws.var(0, ddof=1) / np.diag(cov)
    assert np.abs((ratio - 1) / math.sqrt(2 / (n - 1))).max() < 5


def test_labels_of_the_series_are_kept():
    dates = np.arange("2001-01", "2003-01", dtype="datetime64[M]").astype("datetime64[ns]")
    series = WindowPrior(ar1(5), sd.Space({"time": dates}))
    assert (series.sample(1, seed=0, steps=4)["time"].values == dates).all()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: WindowPrior(ar1(4), 20), "prior"),
        (lambda: WindowPrior(ar1(5), 4), "length"),
        (lambda: WindowPrior(ar1(5), 20, dim="x"), "dim"),
        (lambda: WindowPrior(ar1(5), sd.Space({"time": 20}, "other")), "length"),
        (lambda: WindowPrior(ar1(5, mean=np.arange(5.0)), 20), "prior"),
        (lambda: WindowPrior(ar1(5), 20, sigma_max=1.0), "sigma_max"),
        (lambda: WindowPrior(ar1(5), 20, chunk=0), "chunk"),
    ],
)
def test_what_cannot_be_composed_is_refused(make, argument):
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument


def test_noise_that_is_correlated_in_time_is_refused():
    process = sd.covariance.kernel(lambda h: PHI**h, np.arange(5.0))
    with pytest.raises(InputError, match="independent from time to time"):
        WindowPrior(sd.GaussianPrior(sd.Space({"time": 5}), process, reference=process), 20)
