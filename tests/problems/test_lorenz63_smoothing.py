"""Smoothing of Lorenz-63: the data, the scores and the shipped prior; the figures of the page in the slow test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation import FFBS
from sciddiff.bench.catalog import definition
from sciddiff.solvers.langevin import AnnealedLangevin

problem = definition("lorenz63_smoothing")
twin = problem.twin
TURN = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    x: torch.Tensor = twin.truths(64)
    return x


def test_true_trajectories_have_the_density_and_the_increments_of_the_model(truth: torch.Tensor) -> None:
    n = twin.increments(truth)
    assert abs(float(n.mean())) < 4.5 / n.numel() ** 0.5
    assert abs(float(n.square().mean()) - 1) < 4.5 * (2 / n.numel()) ** 0.5
    # -E log p = (64 * 3 / 2)(1 + log 2 pi dt); the sum of 192 squares has variance 384
    exact = -96 * (1 + math.log(2 * math.pi * 0.025))
    assert abs(float(twin.log_prior(truth).mean()) - exact) < 4.5 * (96 / len(truth)) ** 0.5
    assert torch.allclose(twin.log_prior(truth * TURN), twin.log_prior(truth))


def test_the_density_is_that_of_the_state_space_model(truth: torch.Tensor) -> None:
    law = twin.model()
    labelled = law.trajectories.dataset(truth[:3].movedim(2, 1), ["sample"])
    torch.testing.assert_close(law.transition_log_prob(labelled).sum(1), twin.log_prior(truth[:3]))


@pytest.mark.parametrize("name", ["lo", "hi", "even", "uneven"])
def test_model_and_prior_are_given_the_same_data(name: str, truth: torch.Tensor) -> None:
    setting = twin.SETTINGS[name]
    y = [v[:2] for v in twin.observe(setting, truth)]
    prior = sd.load_prior(problem.HERE / "prior").to(dtype=torch.float64)
    posterior = twin.posterior(setting, y, prior)
    mine = twin.log_likelihood(setting, truth[:2], y)
    shift = sum(
        len(i.times) * math.log(twin.data.SD[twin.NAMES.index(i.variable)]) for i in setting.instruments
    )
    theirs = posterior.log_likelihood(truth[:2].movedim(2, 1), torch.arange(2))
    torch.testing.assert_close(theirs + shift, mine)
    law = twin.assimilation(setting, [v[:1] for v in y], twin.model())
    found = law.log_likelihood(law.model.trajectories.dataset(truth[:1].movedim(2, 1), ["sample"]))
    torch.testing.assert_close(found + shift, mine[:1])


def test_the_weight_of_a_mode_is_half_where_z_alone_is_seen_and_by_bayes_rule_elsewhere(
    truth: torch.Tensor,
) -> None:
    y = twin.observe(twin.SETTINGS["even"], truth[:1])
    x = truth[:8, None]
    assert twin.weight(twin.SETTINGS["even"], x, y).tolist() == [0.5]
    setting = twin.SETTINGS["uneven"]
    y = twin.observe(setting, truth[:1])
    middle, seen, deviation = truth[0, 32, 0], y[1][0, 0], 1.5 * 8
    exact = 1 / (1 + torch.exp(-2 * middle * seen / deviation**2))
    ahead = exact if middle > 0 else 1 - exact
    own = twin.weight(setting, truth[:1, None], y)
    assert own[0] == pytest.approx(float(ahead), abs=1e-9)


def test_the_particle_smoother_draws_from_the_law_of_the_model(truth: torch.Tensor) -> None:
    setting = twin.SETTINGS["hi"]
    y = [v[:2] for v in twin.observe(setting, truth)]
    x = twin.states(twin.assimilation(setting, y, twin.model()).sample(64, FFBS(particles=1024), seed=0))
    # log p(x) of smoothed trajectories is that of true ones up to what data say of the noise, a few nats
    assert abs(float(twin.log_prior(x).mean()) - 81.6) < 8
    assert float((x.mean(0) - truth[:2]).square().mean().sqrt()) < 1.5


def test_draws_that_cannot_meet_the_data_are_passed_over_and_the_others_weighed(truth: torch.Tensor) -> None:
    setting = twin.SETTINGS["lo"]
    y = [v[:1] for v in twin.observe(setting, truth)]
    x = truth[:1].expand(5, 1, -1, -1).clone()
    x[1] *= TURN
    x[:, :, 0, 2] += torch.arange(5.0)[:, None]
    labelled = twin.model().trajectories.dataset(x.movedim(3, 2), ["sample", "case"])
    kept = twin.states(problem.settled(setting, labelled, y, 4))
    torch.testing.assert_close(kept, x[[0, 2, 3, 4]])
    setting = twin.SETTINGS["uneven"]
    y = [v[:1] for v in twin.observe(setting, truth)]
    x = torch.cat([x[:1], x[:1] * TURN]).repeat_interleave(200, 0)
    labelled = twin.model().trajectories.dataset(x.movedim(3, 2), ["sample", "case"])
    kept = twin.states(problem.settled(setting, labelled, y, 400))
    exact = twin.weight(setting, truth[:1, None], y)
    assert abs(float(twin.positive(setting, kept).mean() - exact)) < 0.01


def test_w1_of_two_sets_is_that_of_the_best_pairing() -> None:
    a = torch.tensor([[[0.0, 0.0, 0.0]], [[10.0, 0.0, 0.0]]], dtype=torch.float64)
    b = torch.tensor([[[10.0, 0.0, 3.0]], [[0.0, 4.0, 0.0]]], dtype=torch.float64)
    assert twin.w1(a, b) == pytest.approx(3.5)


def test_the_shipped_prior_draws_trajectories_of_the_attractor() -> None:
    prior = sd.load_prior(problem.HERE / "prior")
    x = twin.states(prior.sample(8, solver=AnnealedLangevin(steps=30), seed=0).expand_dims("case", 1))[:, 0]
    assert np.abs(x.mean((0, 1)).numpy() - twin.data.MEAN).max() < 12
    assert float(twin.increments(x).square().mean()) < 3


@pytest.mark.slow
def test_draws_of_the_learned_prior_are_near_those_of_the_particle_smoother() -> None:
    result = problem.run(seed=0, progress=False)
    figures = {name: m.value for name, m in result.metrics.items()}
    assert 0.85 < figures["hi_spread_ratio"] < 1.15
    assert 0.85 < figures["hi_rmse_ratio"] < 1.15
    # 128 draws of four trajectories: the standard error of a share is 0.044 at most
    assert abs(figures["even_weight_error"]) < 0.05 + 2 * 0.044
    assert abs(figures["uneven_weight_error"]) < 0.05 + 2 * 0.044
