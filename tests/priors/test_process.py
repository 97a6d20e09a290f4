"""Claims about priors of series at any times: the law at new times is that of the process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import sciddiff as sd
from sciddiff.covariance.markov import OrnsteinUhlenbeck
from sciddiff.errors import InputError
from sciddiff.networks import Transformer
from sciddiff.priors import NeuralPrior, Normalisation, ProcessPrior, load_prior
from sciddiff.training import train_process
from sciddiff.training.process import AtTimes

RNG = np.random.default_rng(0)
LENGTH, MEAN, SD = 3.0, 20.0, 4.0
TIMES = np.sort(np.random.default_rng(2).uniform(0.0, 12.0, 24))
SEEN = np.arange(24) % 3 == 0


def kernel(s: np.ndarray, t: np.ndarray, length: float = LENGTH) -> np.ndarray:
    return np.exp(-np.abs(s[..., :, None] - t[..., None, :]) / length)


class Exact(nn.Module):
    """The network under which the prior is the Ornstein-Uhlenbeck process, in closed form at the times it is shown."""

    def __init__(self, memory: float, length: float, gap: float) -> None:
        super().__init__()
        self.memory, self.length, self.gap = memory, length, gap
        self.dtype = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        stamps, variance = x[:, 1] * self.gap, (8 * time).exp()[:, None, None]
        apart = (stamps[:, :, None] - stamps[:, None, :]).abs()
        own, noise = torch.exp(-apart / self.memory), torch.exp(-apart / self.length)
        z = x[:, 0] * (1 + variance[:, 0]).sqrt()
        d = (own @ torch.linalg.solve(own + variance * noise, z[..., None]))[..., 0]
        f = (d - z / (1 + variance[:, 0])) / (variance[:, 0] / (1 + variance[:, 0])).sqrt()
        return torch.stack([f, torch.zeros_like(f)], 1)


def closed(memory: float = LENGTH, length: float = 1.0) -> ProcessPrior:
    one = torch.ones(1, dtype=torch.float64)
    return ProcessPrior(
        Exact(memory, length, 0.5),
        {"h": "m"},
        Normalisation(MEAN * one, SD * one),
        length=length,
        memory=memory,
        gap=0.5,
        window=64,
        largest=memory / length,
    )


def conditioned(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A series with gaps, and mean and covariance of the process given its values."""
    k = SD**2 * kernel(TIMES, TIMES)
    x = MEAN + np.linalg.cholesky(k) @ np.random.default_rng(3).standard_normal(24)
    y = np.where(SEEN, x + noise * np.random.default_rng(4).standard_normal(24), np.nan)
    gain = k[:, SEEN] @ np.linalg.inv(k[np.ix_(SEEN, SEEN)] + noise**2 * np.eye(SEEN.sum()))
    return y, MEAN + gain @ (y[SEEN] - MEAN), k - gain @ k[SEEN]


@pytest.mark.parametrize("length", [1.0, 10.0])
def test_the_network_is_shown_the_times_in_their_own_units(length: float):
    """The closed form at the times that it is shown is that of the times of the prior."""
    at = closed(length=length).at(TIMES)
    own, noise = kernel(TIMES, TIMES), kernel(TIMES, TIMES, length)
    z = RNG.standard_normal((3, 24))
    for sigma in (0.1, 1.0, 10.0):
        exact = z @ np.linalg.solve(own + sigma**2 * noise, own)
        np.testing.assert_allclose(at.denoise(torch.from_numpy(z), sigma), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("length", [1.0, 10.0])
def test_a_posterior_at_irregular_times_is_that_of_gaussian_process_regression(length: float):
    """The noise forgets faster than the process, or slower."""
    prior = closed(length=length).at(TIMES)
    y, mean, covariance = conditioned(0.5)
    n = 800
    draws = prior.given(y, sd.operators.Identity(prior.space), sd.noise.Gaussian(0.5), missing="mask").sample(
        n, sd.MMPS(), steps=24, seed=0
    )["h"]
    spread = np.sqrt(np.diag(covariance))
    z = (draws.values.mean(0) - mean) / spread * np.sqrt(n)
    # 24 correlated means: a chi-square of at most so many degrees of freedom, at 4.5 standard deviations
    assert (z**2).sum() < 24 + 4.5 * np.sqrt(2 * 24**2)
    assert np.abs(np.log(draws.values.std(0, ddof=1) / spread)).max() < 4.5 / np.sqrt(2 * n) + 0.01
    np.testing.assert_array_equal(draws["time"].values, TIMES)


def test_draws_of_the_prior_have_the_covariance_of_the_process():
    n = 4000
    draws = closed().at(TIMES[:6]).sample(n, seed=0, steps=48)["h"].values
    found, exact = np.cov(draws.T), SD**2 * kernel(TIMES[:6], TIMES[:6])
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / n)
    assert (np.abs(found - exact) < 4.5 * error + 0.01 * exact).all()


def test_a_network_of_zeros_is_the_process_of_the_noise():
    net = Transformer(channels=3, width=8, depth=1, heads=2, stamps=True)
    two = Normalisation(torch.zeros(2, 1), torch.ones(2, 1))
    prior = ProcessPrior(
        net, {"a": None, "b": "m"}, two, length=2.0, memory=2.0, gap=0.5, window=32, largest=1.0
    )
    at = prior.at(TIMES)
    exact = sd.GaussianPrior(
        at.space,
        sd.covariance.ornstein_uhlenbeck(TIMES, 2.0, shape=at.space.shape),
        reference=at.reference,
        dtype=torch.float32,
    )
    z = torch.from_numpy(RNG.standard_normal((3, 2, 24))).float()
    for sigma in (0.01, 1.0, 30.0):
        torch.testing.assert_close(at.denoise(z, sigma), exact.denoise(z, sigma), rtol=1e-4, atol=1e-5)
        fitted = at.gaussian_covariance(sigma)
        assert fitted is not None
        torch.testing.assert_close(fitted.apply(z), exact.covariance(sigma).apply(z), rtol=1e-4, atol=1e-5)


# -- trained -----------------------------------------------------------------------------------------


def made(n: int, times: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Series of the process, each at times of its own."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(0.0, 0.5 * times, (n, times)), 1)
    root = np.linalg.cholesky(kernel(t, t) + 1e-12 * np.eye(times))
    x = MEAN + SD * (root @ rng.standard_normal((n, times, 1)))[..., 0]
    return list(zip(t, x, strict=True))


@cache
def trained() -> ProcessPrior:
    return train_process(
        made(400, 30, 0),
        {"h": "m"},
        window=24,
        length=1.0,  # the noise forgets three times as fast: there is something left to learn
        settings={"width": 32, "depth": 2, "heads": 2},
        steps=200,
        batch=64,
        learning_rate=4e-3,
        seed=0,
        progress=False,
    )


def test_a_little_training_brings_the_denoiser_nearer_to_the_process_than_the_skip_path():
    """At times that no training series was seen at, and on lengths of section of every kind."""
    prior, n = trained(), 400
    for times in (8, 24):
        t = made(1, times, 7)[0][0]
        at = prior.at(t)
        own, noise = kernel(t, t), kernel(t, t, 1.0)
        rng = np.random.default_rng(8)
        z0 = rng.standard_normal((n, times)) @ np.linalg.cholesky(own).T
        for sigma in (1.0, 3.0):
            z = z0 + sigma * rng.standard_normal((n, times)) @ np.linalg.cholesky(noise).T
            exact = z @ np.linalg.solve(own + sigma**2 * noise, own)
            learnt = at.denoise(torch.from_numpy(z).float(), sigma).double().numpy()
            skip = z / (1 + sigma**2)
            ours, linear = ((learnt - exact) ** 2).mean(1), ((skip - exact) ** 2).mean(1)
            gain = 0.8 * linear - ours
            assert gain.mean() > 4 * gain.std() / np.sqrt(n), (times, sigma, ours.mean() / linear.mean())


def test_in_training_every_row_is_denoised_as_by_the_prior_at_its_own_times():
    prior = closed()
    rows = np.sort(np.random.default_rng(5).uniform(0.0, 9.0, (3, 7)), 1)
    at = [prior.at(t) for t in rows]
    known = AtTimes(at[0], prior.gap, prior.length)
    skip, told = known(at[0].network, torch.from_numpy(rows)[:, None])
    z, sigma = (
        torch.from_numpy(RNG.standard_normal((3, 7))),
        torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64),
    )
    together = skip.denoise(told, z, sigma)
    white = torch.from_numpy(RNG.standard_normal((3, 7)))
    for i, one in enumerate(at):
        torch.testing.assert_close(together[i], one.denoise(z[i : i + 1], sigma[i])[0])
        torch.testing.assert_close(skip.reference.sqrt(white)[i], one.reference.sqrt(white[i]))


def test_the_likeliest_memory_is_found():
    prior = trained()
    # 12,000 neighbours: the standard error of the log of the memory is about sqrt(2/12000) times a few
    assert abs(np.log(prior.memory / LENGTH)) < 0.15
    assert prior.length == 1.0 and 0.1 < prior.gap < 0.5


def test_dates_come_in_as_days_and_stay_dates():
    days = pd.to_datetime("2001-01-01") + pd.to_timedelta(
        np.sort(RNG.uniform(0, 40, (6, 20)), 1).ravel(), "D"
    )
    series = [
        pd.Series(RNG.standard_normal(20), index=days[20 * i : 20 * i + 20], name="h") for i in range(6)
    ]
    tiny = {"width": 8, "depth": 1, "heads": 2}
    prior = train_process(series, {"h": "m"}, window=16, settings=tiny, steps=2, seed=0, progress=False)
    assert prior.dated and 0.2 < prior.gap < 3.0
    later = pd.to_datetime(["2020-01-01", "2020-01-02", "2020-02-01"])
    draws = prior.at(later).sample(2, seed=0, steps=4)["h"]
    np.testing.assert_array_equal(draws["time"].values, later.values)
    with pytest.raises(InputError, match="dates"):
        prior.at([0.0, 1.0])
    with pytest.raises(InputError, match="numbers"):
        closed().at(later)


def test_a_frame_brings_several_variables_and_a_missing_value_is_refused():
    t = np.sort(RNG.uniform(0, 9, 20))
    frames = [pd.DataFrame(RNG.standard_normal((20, 2)), index=t, columns=["a", "b"]) for _ in range(4)]
    tiny = {"settings": {"width": 8, "depth": 1, "heads": 2}, "steps": 2, "seed": 0, "progress": False}
    prior = train_process(frames, {"a": "m", "b": "K"}, window=16, **tiny)
    assert prior.at([0.0, 0.5, 4.0]).sample(3, seed=0, steps=4)["b"].shape == (3, 3)
    frames[2].iloc[3, 1] = np.nan
    with pytest.raises(InputError, match=r"series\[2\]"):
        train_process(frames, {"a": "m", "b": "K"}, window=16, **tiny)


@pytest.mark.parametrize("half", [False, True])
def test_it_comes_back_from_disk(half: bool, tmp_path: Path):
    prior = trained()
    prior.save(tmp_path / "prior", half=half)
    again = load_prior(tmp_path / "prior")
    assert isinstance(again, ProcessPrior)
    assert (again.length, again.memory, again.gap, again.window) == (
        prior.length,
        prior.memory,
        prior.gap,
        prior.window,
    )
    a, b = (p.at(TIMES[:9]).sample(3, seed=0, steps=8)["h"].values for p in (prior, again))
    if half:
        assert np.abs(a - b).max() < 0.05 * SD
    else:
        np.testing.assert_array_equal(a, b)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path):
    settings = {"settings": {"width": 8, "depth": 1, "heads": 2}, "steps": 6, "seed": 0, "progress": False}
    series = made(20, 20, 1)
    whole = train_process(series, window=16, **settings)
    train_process(series, window=16, out=tmp_path, **settings)
    again = train_process(series, window=16, out=tmp_path, **settings)
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError):
        train_process(made(20, 20, 2), window=16, out=tmp_path, **settings)


def test_without_times_there_is_no_denoiser():
    with pytest.raises(InputError, match=r"prior\.at\(times\)"):
        closed().sample(2, seed=0)


def test_the_noise_is_a_process_on_the_times_and_one_time_is_enough():
    prior = closed()
    at = prior.at(TIMES)
    assert isinstance(at, NeuralPrior) and isinstance(at.reference, OrnsteinUhlenbeck)
    one = prior.at([4.0]).sample(2000, seed=0, steps=24)["h"].values
    assert abs(one.mean() - MEAN) < 4.5 * SD / np.sqrt(2000)
    assert abs(one.std() / SD - 1) < 4.5 / np.sqrt(4000) + 0.01


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: closed().at([0.0, 0.0]), "times"),
        (lambda: closed().at([1.0, 0.0]), "times"),
        (lambda: closed().at(np.arange(65.0)), "at most 64"),
        (lambda: train_process(made(1, 20, 0), seed=0), "at least 2"),
        (lambda: train_process(made(4, 20, 0), window=40, seed=0), "at most 20"),
        (lambda: train_process(made(4, 20, 0), window=1, seed=0), "window"),
        (lambda: train_process([np.ones(9), np.ones(9)], seed=0), "at place 0"),
        (lambda: train_process([([1.0, 0.0], [1.0, 2.0])] * 2, window=2, seed=0), r"series\[0\]"),
        (lambda: train_process(made(4, 20, 0), window=16, network="mlp", seed=0), "transformer"),
        (lambda: train_process([(np.arange(20.0), np.ones(20))] * 3, window=16, seed=0), "constant"),
    ],
)
def test_what_does_not_fit_is_refused(call, words: str):
    with pytest.raises(InputError, match=words):
        call()


def test_series_on_dates_with_a_time_zone_are_refused():
    days = pd.date_range("2020", periods=20, tz="Europe/Berlin")
    series = pd.Series(np.arange(20.0), days)
    for one in (series, (days, series.to_numpy())):
        with pytest.raises(InputError, match=r"series\[0\].*time zone"):
            train_process([one, one], window=8, steps=1, seed=0)
