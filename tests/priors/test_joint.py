"""Joint priors: block by block what the parts say, on one space and at one noise level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors import JointPrior, joint
from sciddiff.random import Streams
from sciddiff.testing import check_prior

SERIES = sd.Space({"t": 5})
KERNEL = sd.Space({"t": 3})


def process(**options) -> sd.GaussianPrior:
    covariance = sd.covariance.kernel(lambda h: 4.0 * np.exp(-h), np.arange(5.0))
    return sd.GaussianPrior(SERIES, covariance, mean=np.arange(5.0), **options)


def small(**options) -> sd.GaussianPrior:
    return sd.GaussianPrior(KERNEL, sd.covariance.diagonal([0.1, 0.2, 0.3]), [0.2, 0.6, 0.2], **options)


def mixture() -> sd.GaussianMixturePrior:
    return sd.GaussianMixturePrior(sd.Space({"i": 2}), [0.5, 0.5], [[-2.0, 1.0], [2.0, 0.0]], 0.5)


class Learned(sd.Prior):
    """The denoiser of a Gaussian that refuses levels above its own highest, as learned ones may."""

    def __init__(self, exact: sd.GaussianPrior, sigma_max: float) -> None:
        self.inner, self.sigma_max, self.sigma_min = exact, sigma_max, exact.sigma_min
        for name in ("space", "normalisation", "reference", "dtype", "device"):
            setattr(self, name, getattr(exact, name))

    def denoise(self, z, sigma):
        assert float(torch.as_tensor(sigma).max()) <= self.sigma_max * (1 + 1e-9)
        return self.inner.denoise(z, sigma)


@pytest.mark.parametrize(
    "prior",
    [
        joint(state=process(), kernel=small()),
        joint(state=process(reference=process().law), kernel=small()),
        joint(state=mixture(), kernel=small()),
    ],
    ids=["gaussians", "coloured reference", "mixture"],
)
def test_it_keeps_the_contract_of_a_prior(prior):
    check_prior(prior, draws=300)


def test_a_joint_gaussian_is_the_gaussian_of_the_block_covariance():
    both = joint(state=process(), kernel=small())
    x = both.split(torch.eye(8, dtype=torch.float64))
    matrix = torch.zeros(8, 8, dtype=torch.float64)
    matrix[:, :5] = process().physical_covariance.apply(x[0])
    matrix[:, 5:] = small().physical_covariance.apply(x[1])
    mean = torch.cat(
        [torch.arange(5.0, dtype=torch.float64), torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)]
    )
    draws = both.sample(4000, seed=1)
    found = np.concatenate([draws["state"].values, draws["kernel"].values], 1)
    white = np.linalg.solve(np.linalg.cholesky(matrix.numpy()), (found - mean.numpy()).T).T
    # standard errors of means and of second moments of standard normals
    assert np.abs(white.mean(0)).max() < 4.5 / math.sqrt(4000)
    scaled = np.abs(white.T @ white / 4000 - np.eye(8)) / np.sqrt((1 + np.eye(8)) / 4000)
    assert scaled.max() < 4.5
    exact = torch.distributions.MultivariateNormal(mean, matrix).log_prob(torch.from_numpy(found[:3]))
    known = both.log_prob(draws.isel(sample=slice(3)), sigma=0.0, batch_dim="sample")["log_prob"]
    np.testing.assert_allclose(known, exact, rtol=1e-9)


def test_a_part_is_conditioned_as_if_it_were_alone_where_the_data_see_only_it():
    both, alone = joint(state=process(), kernel=small()), process()
    seen = np.array([1.0, -1.0])
    at = [[0], [3]]
    first = both.given(
        seen,
        sd.operators.Matrix(both.space, sd.Space({"d": 2}), np.eye(8)[[0, 3]]),
        sd.noise.Gaussian(0.3),
    ).sample(2000, seed=0, method=sd.MMPS())
    second = alone.given(seen, sd.operators.Points.at_indices(SERIES, at), sd.noise.Gaussian(0.3))
    other = second.sample(2000, seed=1, method=sd.MMPS())["x"].values
    found = first["state"].values
    z = (found.mean(0) - other.mean(0)) / np.sqrt((found.var(0) + other.var(0)) / 2000)
    assert np.abs(z).max() < 4.5
    ratio = np.log(found.std(0) / other.std(0))
    assert np.abs(ratio).max() < 4.5 / math.sqrt(2000)
    kernel = first["kernel"].values
    assert np.abs(np.log(kernel.std(0) / np.sqrt([0.1, 0.2, 0.3]))).max() < 4.5 / math.sqrt(4000)


def test_a_learned_part_is_never_asked_for_more_noise_than_it_was_trained_with():
    limited = Learned(small(), sigma_max=30.0)
    both = joint(state=process(sigma_max=120.0), kernel=limited)
    assert both.factors == [1.0, 0.25] and not isinstance(both, type(joint(kernel=small())))
    draws = both.sample(2000, seed=0)["kernel"].values
    assert np.abs((draws.mean(0) - [0.2, 0.6, 0.2]) / np.sqrt(np.array([0.1, 0.2, 0.3]) / 2000)).max() < 4.5
    # a thousandth for the solver's own error
    assert np.abs(np.log(draws.std(0) / np.sqrt([0.1, 0.2, 0.3]))).max() < 4.5 / math.sqrt(4000) + 1e-2


def test_stretched_coordinates_keep_the_score():
    limited = Learned(small(), sigma_max=30.0)
    both = joint(state=process(sigma_max=120.0), kernel=limited)
    z = 3.0 * both.noise(Streams(0, range(4), purpose="test"))
    plain = small()
    x = both.normalisation.physical(z)
    # grad of log p in physical units is S^-1 times that in normalised ones, whatever the units
    expected = plain.score(plain.normalisation.normal(x[:, 5:]), 0.25 * 3.0) / plain.normalisation.scale
    found = (both.score(z, 3.0) / both.normalisation.scale)[:, 5:]
    torch.testing.assert_close(found, expected)


def test_labels_of_the_parts_are_kept_apart():
    both = joint(state=process(), kernel=small())
    assert both.space.variables["state"].dims == ("t",) and both.space.variables["kernel"].dims == (
        "kernel_t",
    )
    same = joint(a=small(), b=small()).space
    assert same.shape == (2, 3) and same.dims == ("t",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_precision_stays_single(dtype):
    both = joint(state=process(), kernel=small()).to(dtype=dtype)
    z = both.noise(Streams(0, range(3), purpose="test"))
    assert z.dtype == both.denoise(z, torch.tensor([0.1, 1.0, 9.0], dtype=dtype)).dtype == dtype
    assert isinstance(both, JointPrior) and both.parts["kernel"].dtype == dtype


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="joint"):
        joint()
    with pytest.raises(InputError, match="dtype"):
        joint(a=small(), b=process(dtype=torch.float32))
