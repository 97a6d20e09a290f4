import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset, definition

problem, data = definition("lorenz96_filter"), dataset("lorenz96")


@pytest.fixture(scope="module")
def prior():
    return sd.load_prior(problem.HERE / "prior")


def test_windows_are_pieces_of_runs_turned_around_the_ring_and_begin_anew_alike():
    runs = data.trajectories(3, 30, seed=1)
    windows = data.Windows(runs, length=5, batch=16, seed=0)
    first, again = next(iter(windows)), next(iter(windows))
    assert torch.equal(first, again)
    for window in first:
        step = data.SYSTEM.step(window[:-1])
        torch.testing.assert_close(step, window[1:], rtol=1e-9, atol=1e-9)
    starts = {tuple(w[0, :2].tolist()) for w in first}
    assert len(starts) > 12


def test_states_have_the_climate_that_is_published():
    # mean 2.34 and standard deviation 3.64 of 40 sites with forcing 8; neighbours are nearly independent
    x = data.states(400, seed=3)
    scatter = x.mean(1).std() / 400**0.5
    assert abs(float(x.mean()) - 2.34) < 4 * float(scatter) + 0.01
    assert abs(float(x.std()) - 3.64) < 0.1


def test_the_prior_knows_a_state_from_full_windows_far_better_than_its_gaussian(prior):
    x = data.trajectories(32, problem.LENGTH, seed=77, purpose="held out").float()
    z0 = prior.normalisation.normal(x)
    sigma = 1.0 / float(prior.normalisation.scale)
    noise = sd.random.Streams(0, range(32), purpose="held out").normal(tuple(x.shape[1:]), dtype=x.dtype)
    with torch.no_grad():
        network = prior.denoise(z0 + sigma * noise, sigma)
        gaussian = prior.gaussian.denoise((z0 + sigma * noise).to(prior.gaussian.dtype), sigma)
    errors = [
        float((prior.normalisation.scale * (d - z0))[:, -1].square().mean().sqrt())
        for d in (network, gaussian)
    ]
    # all 40 sites seen at 24 times with errors of sd 1: that is this denoiser, at its last time
    assert errors[0] < 0.55 * errors[1]


def test_the_prior_commutes_with_a_turn_of_the_ring(prior):
    z = sd.random.Streams(0, [0, 1], purpose="turn").normal(prior.space.shape, dtype=prior.dtype)
    with torch.no_grad():
        turned, plain = (prior.network(torch.stack([v, v], 1), torch.zeros(2)) for v in (z.roll(2, 2), z))
    torch.testing.assert_close(turned, plain.roll(2, 3), rtol=1e-4, atol=1e-4)


def test_data_are_hidden_where_the_instrument_does_not_see():
    x, y = problem.twin(problem.settings()[problem.HALF], seeds=2, seed=0)
    assert y.shape == x.shape == (2, problem.CYCLES, 40)
    assert bool(y[:, 0].isnan().all())
    assert bool(y[..., 1::2].isnan().all()) and not bool(y[:, 1:, ::2].isnan().any())
    residual = (y - x)[:, 1:, ::2]
    assert abs(float(residual.std()) / 1.5 - 1) < 4 / np.sqrt(2 * residual.numel())


def test_filters_that_know_the_model_have_their_published_errors():
    setting = problem.settings()[problem.FULL]
    x, y = problem.twin(setting, seeds=12, seed=2)
    draws = problem.model().given(y, setting.operator, setting.noise, batch_dim="seed")
    at = np.arange(60, problem.CYCLES)
    found = draws.sample(40, problem.FILTERS["EnKF, 40 members"], seed=0).isel(time=at)
    error = found["x"].mean("sample").values - x[:, at].numpy()
    errors = np.sqrt((error**2).mean(-1)).mean(1)
    row = problem.scored(problem.FULL, "EnKF", found, x[:, at])
    assert abs(row["rmse"] - np.median(errors)) < 1e-6
    # DAPPER gives 0.22 to two digits; truths of 60 cycles scatter by about .023
    assert abs(errors.mean() - 0.22) < 0.005 + 4 * errors.std(ddof=1) / np.sqrt(12)
    assert errors.std(ddof=1) < 0.05
