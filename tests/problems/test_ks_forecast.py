"""ks_forecast: the symmetries that training uses hold, what is shipped forecasts, and the page's Lyapunov time is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation import WindowDiffusion, load_emulator
from sciddiff.bench.catalog import definition
from sciddiff.methods import DAPS
from sciddiff.physics import simulate

ks = definition("ks_forecast")
SYSTEM, SPACE = ks.kuramoto.SYSTEM, ks.kuramoto.SYSTEM.space


@pytest.fixture(scope="module")
def truth():
    x, y = ks.truths(6, seed=1)
    labelled = SPACE.dataset(x[:, 1:], ["case", "lead"], {"lead": np.arange(1.0, ks.LEADS + 1)})["u"]
    return labelled, y


def forecast(emulator, truth, steps=4, samples=8):
    labelled, y = truth
    noise = sd.noise.Gaussian(ks.NOISE_SD)
    ahead = emulator.forecast(y, steps=steps, samples=samples, seed=0, noise=noise, batch_dim="case")
    return ks.score(ahead["u"], labelled.isel(lead=slice(0, steps)))


def test_turned_and_mirrored_runs_are_runs():
    x = ks.truths(8, seed=2)[0]
    other = ks.turned(x, np.random.Generator(np.random.Philox(0)))
    assert not torch.equal(x, other) and bool((other[:, 0].sum(-1).abs() < 1e-9).all())
    again = simulate(SYSTEM, other[:, 0], 2 * ks.kuramoto.EVERY, every=ks.kuramoto.EVERY)
    assert float((again - other[:, :3]).abs().max()) < 1e-8


def test_windows_to_train_on_are_runs_too():
    x = ks.truths(8, seed=2)[0]
    first = next(iter(ks.kuramoto.Windows(x, 3, 16, seed=0)))
    again = simulate(SYSTEM, first[:, 0], 2 * ks.kuramoto.EVERY, every=ks.kuramoto.EVERY)
    assert float((again - first).abs().max()) < 1e-8


def test_the_gaussian_of_windows_has_the_moments_of_the_runs_and_their_symmetry():
    runs = ks.kuramoto.runs(48, 60, seed=3)
    law = ks.gaussian(runs).physical_covariance
    basis = torch.zeros(2, ks.HORIZON + 1, 64, dtype=torch.float64)
    basis[0, 0, 0], basis[1, 0, 5] = 1.0, 1.0
    column, moved = law.apply(basis)
    assert float((moved - column.roll(5, -1)).abs().max()) < 1e-9
    cut = runs.unfold(1, ks.HORIZON + 1, 4).movedim(-1, 2)
    exact = torch.einsum("nwi,nwai->a", cut[:, :, 0], cut) / (cut.shape[0] * cut.shape[1] * 64)
    torch.testing.assert_close(column[:, 0], exact, rtol=1e-9, atol=1e-9)


def test_the_lyapunov_exponent_is_that_of_the_page():
    rate, error = ks.lyapunov(24, seed=4)
    # 0.0791 +- 0.0008 from 128 runs of 500 units of time
    assert abs(rate - 0.0791) < 4.5 * math.hypot(error, 0.0008)


def test_first_states_are_measured_with_the_stated_error():
    x, y = ks.truths(64, seed=5)
    error = (y - x[:, 0]) / ks.NOISE_SD
    assert abs(float(error.square().mean()) - 1) < 4.5 * math.sqrt(2 / error.numel())


def test_what_is_shipped_is_small():
    sizes = {path.name: path.stat().st_size for path in ks.HERE.glob("*.safetensors")}
    assert set(sizes) == {"prior.safetensors", "dyffusion.safetensors", "one_step.safetensors"}
    assert max(sizes.values()) < 2e6


@pytest.mark.parametrize("name", ["DYffusion", "one step, fitted noise", "one step, dropout"])
def test_shipped_networks_forecast_better_than_persistence_and_climatology(truth, name):
    scores = forecast(ks.emulators()[name], truth)
    labelled, y = truth
    still = np.abs(labelled.isel(lead=slice(0, 4)) - y.numpy()[:, None]).mean(["case", "x"])
    assert bool((scores["crps"] < 0.5 * still).all())
    assert float(scores["crps"].max()) < 0.5 * 0.6


def test_the_model_from_perturbed_states_has_the_spread_of_its_error(truth):
    scores = forecast(ks.emulators()["the model"], truth, steps=2)
    # 6 runs of 64 sites, whose errors go together over a few sites
    assert bool((np.abs(scores["ratio"] - 1) < 0.4).all())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the draws do not fit:sciddiff.draws.DiagnosisWarning")
def test_the_shipped_window_prior_forecasts_what_it_was_not_trained_for(truth):
    emulator = WindowDiffusion(sd.load_prior(ks.HERE / "prior"), DAPS(steps=200))
    scores = forecast(emulator, truth)
    assert float(scores["crps"].max()) < 0.5 * 0.6


def test_the_problem_is_one_window_given_its_first_state():
    problem = ks.load(seed=0)
    assert problem.posterior.prior.space == ks.window()
    assert float(np.abs(problem.y["u"].values[0] - problem.truth["u"].values[0]).max()) < 6 * ks.NOISE_SD


@pytest.mark.parametrize("name", ["dyffusion", "one_step"])
def test_shipped_emulators_say_what_they_are(name):
    emulator = load_emulator(ks.HERE / name)
    assert emulator.space == SPACE and emulator.interval == 1.0
