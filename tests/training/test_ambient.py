"""Priors from incomplete data: the objective, what a network learns by it, and the Gaussian by EM."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.covariance import white
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.priors.neural import Plain
from sciddiff.random import Streams
from sciddiff.training import Glimpse, fit_incomplete, train_ambient
from sciddiff.training.ambient import AmbientLoss

SPACE = sd.Space({"i": 3})
SIGMA = torch.tensor([[1.0, 0.7, 0.3], [0.7, 1.0, -0.2], [0.3, -0.2, 1.0]], dtype=torch.float64)


def states(n: int, covariance: torch.Tensor, seed: int) -> torch.Tensor:
    z = Streams(seed, range(n), purpose="test states").normal((len(covariance),), dtype=torch.float64)
    return z @ torch.linalg.cholesky(covariance).T


def holes(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    u = Streams(seed, range(len(x)), purpose="test holes").uniform(x.shape[1:], dtype=torch.float64)
    return torch.where(u < rate, torch.nan, x)


def exact(covariance: torch.Tensor, mask: torch.Tensor, sigma: float) -> torch.Tensor:
    """``W`` with ``E[z0 | B z, B] = W B z``, for every row of a mask of ones and zeros."""
    on = mask[..., :, None] * mask[..., None, :]
    eye = torch.eye(len(covariance), dtype=torch.float64)
    noisy = on * (covariance + sigma**2 * eye) + (1 - mask)[..., :, None] * eye
    return covariance @ (on * torch.linalg.inv(noisy))


def slopes(weights, x: torch.Tensor, loss: AmbientLoss, level: float, seed: int = 0) -> np.ndarray:
    """z-scores of the mean slope of the loss in every entry of a linear denoiser ``W_B`` of each mask B.

    At the minimiser among linear maps all means are 0.
    """
    plain, used = Plain(SPACE, white((3,))), {}
    sigma = torch.full((len(x),), level, dtype=torch.float64)

    def network(inputs: torch.Tensor, time: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        used["mask"] = mask[:, 0]
        used["w"] = weights(mask[:, 0]).requires_grad_()
        shown = inputs[:, 0] * (1 + level**2) ** 0.5
        d = torch.linalg.vecdot(used["w"], shown[:, None, :])
        skip = shown / (1 + level**2)
        gain = torch.where(mask[:, 0] > 0, plain.c_out(sigma)[:, None], 1.0)
        return ((d - skip) / gain)[:, None]

    total = loss(plain, network, x, sigma, Streams(seed, [0], purpose="test noise"))
    (rows,) = torch.autograd.grad(total.sum(), used["w"])
    found = []
    # rows of which nothing is shown have no weights
    for pattern in list(itertools.product((False, True), repeat=3))[1:]:
        here = rows[(used["mask"].bool() == torch.tensor(pattern)).all(1)][:, :, list(pattern)]
        found.append((here.mean(0) / here.std(0) * len(here) ** 0.5).flatten())
    return torch.cat(found).numpy()


def test_the_exact_denoiser_of_what_is_shown_minimises_the_loss_among_linear_maps():
    x, loss = holes(states(40_000, SIGMA, 0), 0.4, 1), AmbientLoss(0.3)
    z = slopes(lambda mask: exact(SIGMA, mask, 0.8), x, loss, 0.8)
    # 3 rows of weights for each of the values that the 7 patterns show
    assert len(z) == 36 and np.isfinite(z).all() and np.abs(z).max() < 4.0
    # it would not be seen with twice the noise, nor without what is missing
    assert np.abs(slopes(lambda mask: exact(SIGMA, mask, 0.8 * 2**0.5), x, loss, 0.8)).max() > 8
    zeros = x.nan_to_num()
    assert np.abs(slopes(lambda mask: exact(SIGMA, mask, 0.8), zeros, loss, 0.8)).max() > 8


def test_what_is_missing_does_not_enter_the_loss():
    x = holes(states(50, SIGMA, 0), 0.4, 1)
    plain, sigma = Plain(SPACE, white((3,))), torch.ones(50, dtype=torch.float64)
    seen = []

    def network(inputs, time, mask):
        seen.append((inputs * (1 - mask)).abs().max())
        return torch.where(x.isnan(), 1e6, 0.0)[:, None]

    total = AmbientLoss(0.2)(plain, network, x, sigma, Streams(0, [0], purpose="test"))
    assert float(seen[0]) == 0 and float(total.max()) < 1e3


def test_the_em_gaussian_has_no_slope_of_the_likelihood_of_what_was_seen():
    x = holes(3 + 2 * states(300, SIGMA, 0), 0.4, 1)
    prior = fit_incomplete(x, SPACE, tol=1e-9)
    eye = torch.eye(3, dtype=torch.float64)
    covariance = prior.physical_covariance.apply(eye).requires_grad_()
    mean = prior.normalisation.mean.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row in x:
        on = ~row.isnan()
        if bool(on.any()):
            law = torch.distributions.MultivariateNormal(mean[on], covariance[on][:, on])
            total = total + law.log_prob(row[on])
    for slope in torch.autograd.grad(total, [mean, covariance]):
        assert float(slope.abs().max()) < 1e-4


def test_of_complete_states_em_is_the_sample_covariance():
    x = states(50, SIGMA, 0)
    prior = fit_incomplete(x, SPACE)
    centred = x - x.mean(0)
    found = prior.physical_covariance.apply(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found, centred.T @ centred / 50)
    torch.testing.assert_close(prior.normalisation.mean, x.mean(0))


def test_em_says_when_it_has_not_converged():
    with pytest.raises(ConvergenceError, match="Raise iterations"):
        fit_incomplete(holes(states(50, SIGMA, 0), 0.4, 1), SPACE, iterations=3)


def small(x: torch.Tensor, **options) -> sd.NeuralPrior:
    settings = {"width": 16, "depth": 1}
    return train_ambient(
        x, SPACE, network="mlp", settings=settings, seed=0, progress=False, **{"steps": 12, **options}
    )


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    x = holes(states(64, SIGMA, 0), 0.4, 1)
    whole = small(x)
    small(x, out=tmp_path)
    again = small(x, out=tmp_path)
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="objective"):
        small(x, out=tmp_path, delta=0.2)


def test_a_glimpse_does_not_look_at_what_it_is_not_shown():
    prior = Glimpse(small(holes(states(64, SIGMA, 0), 0.4, 1)), [True, False, True])
    z = torch.ones(2, 3)
    other = z.clone()
    other[:, 1] = 7.0
    assert torch.equal(prior.denoise(z, 0.5), prior.denoise(other, 0.5))
    assert prior.sample(3, seed=0, steps=8)["x"].dtype == np.float32


@pytest.mark.parametrize("space", [sd.Space({"y": 4, "x": 4}), sd.Space({"t": 8}, ["a", "b"])], ids=str)
def test_grids_and_several_variables_are_learnt_from_too(space):
    x = Streams(0, range(20), purpose="test").normal(space.shape, dtype=torch.float64)
    settings = {"width": 8}
    prior = train_ambient(holes(x, 0.3, 1), space, settings=settings, steps=2, seed=0, progress=False)
    assert prior.denoise(torch.zeros(2, *space.shape), 1.0).shape == (2, *space.shape)


def test_bad_settings_and_data_are_refused():
    x = holes(states(64, SIGMA, 0), 0.4, 1)
    with pytest.raises(InputError, match="delta"):
        small(x, delta=0.0)
    x[:, 1] = torch.nan
    with pytest.raises(InputError, match="seen in 0"):
        small(x)
    with pytest.raises(InputError, match="train_ambient"):
        Glimpse(sd.GaussianPrior(SPACE, white((3,))), [1, 1, 1])


@pytest.mark.slow
def test_a_network_that_never_saw_a_whole_state_comes_near_the_exact_denoiser():
    lag = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    covariance, space = torch.tensor(np.exp(-lag / 4)), sd.Space({"i": 6})
    x = holes(states(20_000, covariance, 0), 0.4, 1)
    options = {"network": "mlp", "settings": {"width": 64, "depth": 2}, "steps": 1200, "batch": 256}
    options |= {"learning_rate": 3e-3, "seed": 0, "progress": False}
    ambient = train_ambient(x, space, delta=0.2, **options)
    naive = sd.train(x.nan_to_num(), space, gaussian=None, **options)
    clean, whole = states(2000, covariance, 7), torch.ones(1, 6, dtype=torch.float64)
    noise = Streams(9, range(2000), purpose="test").normal((6,), dtype=torch.float64)
    for sigma in (0.1, 0.3, 1.0, 3.0):
        best = (clean + sigma * noise) @ exact(covariance, whole, sigma)[0].T
        excess = {}
        for name, prior in (("ambient", ambient), ("naive", naive)):
            units = prior.normalisation
            z = units.normal(clean + sigma * noise).float()
            level = sigma / float(units.scale.mean())
            d = units.physical(prior.denoise(z, level).detach().double())
            excess[name] = float(((d - best) ** 2).mean() / ((clean - best) ** 2).mean())
        # the Monte Carlo error of these shares is about 3 % of them
        assert excess["ambient"] < 0.05
        # at less noise a value is its own best guess, for either
        assert sigma < 1 or excess["ambient"] < 0.5 * excess["naive"]
    spread = ambient.sample(1000, seed=0)["x"].values.std(0), naive.sample(1000, seed=0)["x"].values.std(0)
    assert spread[0].min() > 0.9 > spread[1].max()
