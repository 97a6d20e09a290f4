"""The score filter: the published rule has its own limit, and the corrected one is Kalman's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation.models import Assimilation, StateSpaceModel
from sciddiff.assimilation.score_filter import EnSF, kernels
from sciddiff.errors import InputError, MethodError
from sciddiff.methods import LocalGaussian

ONE = sd.Space({"site": 1})


def scalar(variance: float, y: float, cases: int) -> Assimilation:
    """A standard normal forecast and one datum, the same in every case."""
    prior = sd.GaussianPrior(ONE, sd.covariance.dense(np.eye(1)))
    model = StateSpaceModel(lambda x: x, prior, space=ONE, times=1)
    data = np.full((cases, 1, 1), y)
    return model.given(
        data, sd.operators.Identity(ONE), sd.noise.Gaussian(math.sqrt(variance)), batch_dim="case"
    )


def limit(variance: float, steps: int) -> tuple[float, float]:
    """Gain and variance of the published rule with endlessly many members: its SDE is linear then."""
    gain, spread, dt = 0.0, 1.0, 1 / steps
    for i in range(steps):
        t = 1 - i / steps
        alpha = 1 - 0.95 * t
        f = -0.95 / alpha
        g2 = 1 - 2 * f * t
        keep = 1 - dt * (f + g2 * (1 / (alpha**2 + t) + (1 - t) / variance))
        gain = keep * gain + dt * g2 * (1 - t) / variance
        spread = keep**2 * spread + dt * g2
    return gain, spread


@pytest.mark.parametrize("variance", [0.25, 4.0])
def test_the_published_rule_has_the_gain_and_variance_of_its_own_sde_and_not_kalmans(variance: float) -> None:
    members, cases, y, steps = 300, 16, 1.5, 40
    draws = scalar(variance, y, cases).sample(members, EnSF(steps=steps), seed=0)["x"].values[:, :, 0, 0]
    gain, spread = limit(variance, steps)
    means, variances = draws.mean(0) / y, draws.var(0, ddof=1)
    # every case has members of its own; their scatter over the cases is the standard error
    z_mean = (means.mean() - gain) / (means.std(ddof=1) / math.sqrt(cases))
    z_var = (variances.mean() - spread) / (variances.std(ddof=1) / math.sqrt(cases))
    assert abs(z_mean) < 4
    assert abs(z_var) < 4
    # which is not Bayes' rule
    assert 0.05 < abs(gain * (1 + variance) - 1) < 0.2


def test_with_a_posterior_sampler_it_is_kalmans() -> None:
    size, members = 3, 200
    space = sd.Space({"site": size})
    c = np.eye(size) + 0.5
    prior = sd.GaussianPrior(space, sd.covariance.dense(c))
    model = StateSpaceModel(lambda x: x, prior, space=space, times=1)
    seen = sd.operators.Points.at_indices(space, [[0], [2]])
    y = np.array([[1.0, -0.5]])
    twin = model.given(y, seen, sd.noise.Gaussian(0.7))
    draws = twin.sample(members, EnSF(posterior=sd.MMPS("gaussian"), bandwidth=1.0), seed=0)
    x = draws["x"].values[:, 0]
    h = np.eye(size)[[0, 2]]
    gain = c @ h.T @ np.linalg.inv(h @ c @ h.T + 0.49 * np.eye(2))
    mean, cov = gain @ y[0], c - gain @ h @ c
    # the moments of the forecast are those of its own members, so that both they and the draws scatter
    sd_mean = np.sqrt(np.diag(cov + gain @ h @ c) / members)
    assert np.abs((x.mean(0) - mean) / sd_mean).max() < 4
    assert np.abs(x.var(0, ddof=1) / np.diag(cov) - 1).max() < 4 * 2 / math.sqrt(members)
    assert "MMPS" in draws.attrs["settings"]
    assert "bao2024ensemble" in draws.attrs["references"]


def test_kernels_keep_the_mean_and_the_covariance_of_the_members() -> None:
    space = sd.Space({"site": 4})
    x = sd.random.Streams(0, range(30), purpose="members").normal((4,), dtype=torch.float64)
    for h in (None, 0.3, 1.0):
        prior = kernels(x, space, h)
        scale = prior.normalisation.scale
        torch.testing.assert_close(prior.normalisation.physical(prior.means).mean(0), x.mean(0))
        covariance = prior._apply(torch.eye(4, dtype=torch.float64)) * scale**2
        torch.testing.assert_close(covariance, torch.cov(x.T), rtol=1e-6, atol=1e-9)


def test_missing_data_leave_the_members_as_they_were_and_cases_are_those_that_come_alone() -> None:
    twin = scalar(0.25, 1.5, 2)
    both = twin.sample(50, EnSF(steps=20), seed=3)["x"].values
    one = scalar(0.25, 1.5, 1).sample(50, EnSF(steps=20), seed=3)["x"].values
    np.testing.assert_allclose(both[:, 0], one[:, 0])
    assert not np.allclose(both[:, 1], one[:, 0], atol=1e-3)
    (seen,) = twin.posterior.observations
    half = twin.model.given([[[np.nan]], [[1.5]]], seen.operator, seen.noise, batch_dim="case")
    for method in (EnSF(steps=20, inflation=1.3), EnSF(posterior=LocalGaussian("gaussian"), steps=4)):
        drawn = half.sample(50, method, seed=3)["x"].values
        start = half.work(50, method, 3).initial(50)[:, :, 0].numpy()
        np.testing.assert_array_equal(drawn[:, 0, 0, 0], start[0])
        assert np.abs(drawn[:, 1, 0, 0] - start[1]).max() > 0.1


def test_what_goes_beyond_the_limit_is_counted() -> None:
    assert scalar(1e-8, 1.5, 1).sample(10, EnSF(steps=10), seed=0).attrs["limited"] > 0
    assert scalar(1.0, 1.5, 1).sample(10, EnSF(steps=10), seed=0).attrs["limited"] == 0


def test_operators_without_derivatives_need_another_posterior() -> None:
    twin = scalar(1.0, 1.5, 1)
    blind = sd.operators.black_box(lambda x: x, ONE, ONE)
    seen = twin.model.given([[1.0]], blind, sd.noise.Gaussian(1.0))
    with pytest.raises(MethodError, match="gradients"):
        seen.sample(5, EnSF(), seed=0)


@pytest.mark.parametrize(
    "settings", [{"steps": 1}, {"bandwidth": 0.0}, {"bandwidth": 1.5}, {"limit": 0.0}, {"posterior": "MMPS"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        EnSF(**settings)  # type: ignore[arg-type]
