"""Latent priors: exact where decoder and operator are linear, and labelled in the space of the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors.latent import LatentPrior

LATENTS, DATA = sd.Space({"h": 2}), sd.Space({"x": [0.0, 0.5, 1.0, 1.5, 2.0]}, {"t": "K"})
W = np.array([[1.0, 0.0], [0.8, 0.6], [0.3, 1.0], [-0.4, 0.9], [-1.0, 0.2]])
LAW = np.array([[2.0, 0.5], [0.5, 1.0]])
SEEN = [0, 3]


def ppca(dtype: torch.dtype = torch.float64) -> LatentPrior:
    prior = sd.GaussianPrior(LATENTS, sd.covariance.dense(LAW), mean=[0.3, -0.2], dtype=dtype)
    return LatentPrior(prior, sd.operators.Matrix(LATENTS, DATA, W))


def bent() -> LatentPrior:
    weights = torch.tensor(W)
    prior = sd.GaussianPrior(LATENTS, sd.covariance.dense(LAW))
    decoder = sd.operators.from_torch(lambda h: torch.tanh(h @ weights.to(h).T), LATENTS, DATA)
    return LatentPrior(prior, decoder)


def sensors() -> sd.operators.Points:
    return sd.operators.Points.at_indices(DATA, [[i] for i in SEEN])


def exact(y: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of ``x`` given ``y``."""
    mean, b = np.array([0.3, -0.2]), W[SEEN]
    gain = LAW @ b.T @ np.linalg.inv(b @ LAW @ b.T + noise**2 * np.eye(len(SEEN)))
    return W @ (mean + gain @ (y - b @ mean)), W @ (LAW - gain @ b @ LAW) @ W.T


def test_the_posterior_of_ppca_is_exact():
    n, y = 1000, np.array([1.2, -0.7])
    draws = ppca().given(y, sensors(), sd.noise.Gaussian(0.4)).sample(n, seed=0)
    assert draws["t"].dims == ("sample", "x") and draws["t"].attrs["units"] == "K"
    np.testing.assert_array_equal(draws["x"], DATA.coords["x"])
    mean, cov = exact(y, 0.4)
    x, sds = draws["t"].values, np.sqrt(np.diag(cov))
    assert np.abs((x.mean(0) - mean) / sds * math.sqrt(n)).max() < 5
    found = np.cov(x.T)
    spread = np.sqrt((cov**2 + np.outer(sds**2, sds**2)) / (n - 1))
    assert np.abs((found - cov) / spread).max() < 5
    assert np.linalg.matrix_rank(x - x.mean(0), tol=1e-8) == 2


def test_two_observations_add_up():
    y, n = np.array([1.2, -0.7]), 1000
    one, other = (sd.operators.Points.at_indices(DATA, [[i]]) for i in SEEN)
    noise = sd.noise.Gaussian(0.4)
    draws = ppca().given(y[:1], one, noise).given(y[1:], other, noise).sample(n, seed=1)["t"].values
    mean, cov = exact(y, 0.4)
    assert np.abs((draws.mean(0) - mean) / np.sqrt(np.diag(cov) / n)).max() < 5


def test_many_cases_are_labelled_and_each_is_its_own():
    import xarray as xr

    y = xr.DataArray(
        [[1.2, -0.7], [0.0, 0.5], [2.0, 2.0]], dims=("case", "point"), coords={"case": ["a", "b", "c"]}
    )
    y = sensors().codomain.dataset(torch.from_numpy(y.values), ["case"], {"case": ["a", "b", "c"]})
    posterior = ppca().given(y, sensors(), sd.noise.Gaussian(0.4), batch_dim="case")
    draws = posterior.sample(400, seed=0)
    assert draws["t"].dims == ("sample", "case", "x") and list(draws["case"].values) == ["a", "b", "c"]
    mean, cov = exact(np.array([2.0, 2.0]), 0.4)
    x = draws["t"].sel(case="c").values
    assert np.abs((x.mean(0) - mean) / np.sqrt(np.diag(cov) / 400)).max() < 5
    latents = posterior.latent.sample(400, seed=0)
    np.testing.assert_allclose(latents["x"].values @ W.T, draws["t"].values, atol=1e-12)


@pytest.mark.parametrize(("method", "n"), [(sd.methods.DPS(steps=20), 16), (sd.methods.LocalGaussian(), 4)])
@pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")
def test_a_decoder_that_is_not_linear_is_guided_through(method, n):
    posterior = bent().given([0.5, -0.5], sensors(), sd.noise.Gaussian(0.05))
    steps = None if isinstance(method, sd.methods.DPS) else 8
    draws = posterior.sample(n, method=method, steps=steps, seed=0)
    seen = draws["t"].values[:, SEEN]
    free = bent().sample(200, seed=0)["t"].values[:, SEEN]
    assert np.abs(seen - [0.5, -0.5]).mean() < 0.5 * np.abs(free - [0.5, -0.5]).mean()
    assert (np.abs(draws["t"].values) <= 1).all()
    again = posterior.sample(n, method=method, steps=steps, seed=0, chunk=3)["t"].values
    np.testing.assert_allclose(again, draws["t"].values, atol=1e-8)


def test_linear_methods_are_refused_through_a_bent_decoder():
    posterior = bent().given([0.5, -0.5], sensors(), sd.noise.Gaussian(0.05))
    with pytest.raises(sd.errors.MethodError, match="not linear"):
        posterior.sample(2, method=sd.MMPS(), seed=0)


def test_a_black_box_behind_the_decoder_is_still_one():
    seen = sd.operators.black_box(lambda x: x[:, :1], DATA, sd.Space({"point": 1}))
    posterior = bent().given([0.5], seen, sd.noise.Gaussian(0.1))
    with pytest.raises(sd.errors.MethodError, match="black box"):
        posterior.sample(2, method=sd.methods.DPS(), seed=0)


def test_prior_draws_are_decoded_and_encoded_back():
    latent = ppca()
    inverse = np.linalg.pinv(W)
    both = LatentPrior(latent.prior, latent.decoder, sd.operators.Matrix(DATA, LATENTS, inverse))
    draws = both.sample(3, seed=0)
    latents = latent.prior.sample(3, seed=0)
    np.testing.assert_allclose(draws["t"].values, latents["x"].values @ W.T)
    np.testing.assert_allclose(both.encode(draws)["x"].values, latents["x"].values, atol=1e-12)
    np.testing.assert_allclose(both.encode(draws.isel(sample=1))["x"], latents["x"][1], atol=1e-12)
    assert draws.attrs["seed"] == 0


def test_one_labelled_latent_is_decoded_alone():
    latent = ppca()
    h = latent.prior.space.dataset(torch.tensor([1.0, 2.0]))
    np.testing.assert_allclose(latent.decode(h)["t"], W @ [1.0, 2.0])
    assert latent.decode(h)["t"].dims == ("x",)


def test_single_precision_stays_single():
    draws = ppca(torch.float32).given([1.0, 0.0], sensors(), sd.noise.Gaussian(0.4)).sample(3, seed=0)
    assert draws["t"].dtype == np.float32


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: LatentPrior(ppca().prior, lambda h: h), "decoder"),
        (lambda: LatentPrior(ppca().prior, sd.operators.Identity(DATA)), "decoder"),
        (lambda: LatentPrior(ppca().prior, ppca().decoder, ppca().decoder), "encoder"),
        (
            lambda: ppca().given([0.0, 0.0], sd.operators.Identity(LATENTS), sd.noise.Gaussian(1.0)),
            "operator",
        ),
        (lambda: ppca().given([0.0], "points", sd.noise.Gaussian(1.0)), "operator"),
        (lambda: ppca().encode(torch.zeros(1, 5)), "x"),
    ],
)
def test_what_does_not_fit_is_refused(make, argument):
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
