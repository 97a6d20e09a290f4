from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors.empirical import EmpiricalPrior
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams
from sciddiff.solvers import DPMSolver

D, N = 3, 7
SPACE = sd.Space({"site": D})
DATA = np.random.default_rng(0).standard_normal((N, D)) * 2 + 1
ROOT = np.random.default_rng(1).standard_normal((D, D))
REFERENCES = {
    "white": None,
    "diagonal": sd.covariance.diagonal([0.5, 1.0, 2.0]),
    "dense": sd.covariance.dense(ROOT @ ROOT.T + np.eye(D)),
    "projector": sd.covariance.centred((D,)),
}


@pytest.fixture(params=[(r, h) for r in REFERENCES for h in (0.0, 0.3)], ids=str)
def prior(request) -> EmpiricalPrior:
    reference, bandwidth = request.param
    data = DATA - DATA.mean(1, keepdims=True) + 4.0 if reference == "projector" else DATA
    return EmpiricalPrior(SPACE, data, bandwidth=bandwidth, reference=REFERENCES[reference])


def states(prior, sigma, n=5) -> torch.Tensor:
    streams = Streams(0, range(n), purpose="test")
    return prior.draw(streams) + sigma * prior.noise(streams)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_the_denoiser_is_tweedies_formula_on_the_log_density(prior, sigma):
    z, h = states(prior, sigma), 1e-5
    steps = h * prior.reference.apply(torch.eye(D, dtype=torch.float64))
    gradient = torch.stack(
        [(prior.log_density(z + s, sigma) - prior.log_density(z - s, sigma)) / (2 * h) for s in steps], 1
    )
    torch.testing.assert_close(prior.denoise(z, sigma), z + sigma**2 * gradient, rtol=1e-6, atol=1e-6)


def test_a_bandwidth_makes_it_the_mixture_of_those_gaussians():
    reference, h, sigma = REFERENCES["dense"], 0.4, 0.7
    prior = EmpiricalPrior(SPACE, DATA, bandwidth=h, reference=reference)
    unit = float(prior.normalisation.scale)
    kernel = sd.covariance.dense(unit**2 * h**2 * reference.apply(torch.eye(D, dtype=torch.float64)))
    mixture = GaussianMixturePrior(SPACE, np.ones(N), DATA, kernel, reference=reference)
    # the two have units of their own: compare in physical ones
    x = prior.normalisation.physical(states(prior, sigma))
    other = sigma * unit / float(mixture.normalisation.scale)
    # C is of normalised units, so that the same physical noise is another sigma
    a = prior.normalisation.physical(prior.denoise(prior.normalisation.normal(x), sigma))
    b = mixture.normalisation.physical(mixture.denoise(mixture.normalisation.normal(x), other))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    logs = [
        p.log_density(p.normalisation.normal(x), s) - p.normalisation.log_det((D,))
        for p, s in ((prior, sigma), (mixture, other))
    ]
    torch.testing.assert_close(logs[0], logs[1], rtol=1e-8, atol=1e-8)


def test_the_denoiser_is_the_mean_of_the_data_by_their_weights():
    prior, sigma = EmpiricalPrior(SPACE, DATA), 0.6
    z = states(prior, sigma).numpy()
    points = prior.points.numpy()
    w = np.exp(-((z[:, None] - points) ** 2).sum(-1) / (2 * sigma**2))
    expected = (w / w.sum(1, keepdims=True)) @ points
    np.testing.assert_allclose(prior.denoise(torch.from_numpy(z), sigma), expected, rtol=1e-10, atol=1e-12)


def test_little_noise_leads_to_the_nearest_state_and_much_noise_to_the_mean():
    prior = EmpiricalPrior(SPACE, DATA)
    z = prior.points + 1e-3
    torch.testing.assert_close(prior.denoise(z, prior.sigma_min), prior.points, rtol=0, atol=1e-9)
    far = prior.denoise(torch.zeros(1, D).double(), 1e4)
    torch.testing.assert_close(far, torch.zeros(1, D).double(), rtol=0, atol=1e-6)
    assert prior.denoise(z, 0.0) is z


@pytest.mark.parametrize("sigma", [0.4, 2.0])
def test_j_c_is_symmetric_and_positive(prior, sigma):
    jc = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda v: prior.denoise(v[None], sigma)[0], row)
            for row in states(prior, sigma)
        ]
    ) @ prior.reference.apply(torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(jc, jc.mT, rtol=1e-8, atol=1e-9)
    assert torch.linalg.eigvalsh((jc + jc.mT) / 2).min() > -1e-9


def test_a_row_does_not_depend_on_the_batch_and_may_have_its_own_sigma(prior):
    z, sigma = states(prior, 1.0, 4), torch.tensor([0.1, 2.0, 0.5, 7.0]).double()
    together = prior.denoise(z, sigma)
    for i in range(4):
        alone = prior.denoise(z[i : i + 1], float(sigma[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_float32_weights_are_those_of_float64_where_squares_would_cancel():
    rng = np.random.default_rng(2)
    space, data = sd.Space({"i": 400}), rng.standard_normal((6, 400))
    data[1] = data[0] + 0.004 * rng.standard_normal(400)
    double = EmpiricalPrior(space, data)
    single, sigma = double.to(dtype=torch.float32), 0.02
    z = (0.5 * (double.points[:1] + double.points[1:2])).float()
    assert single.denoise(z, sigma).dtype == torch.float32
    torch.testing.assert_close(
        single.denoise(z, sigma).double(), double.denoise(z.double(), sigma), rtol=0, atol=1e-6
    )


def test_draws_are_the_data_each_as_often_as_the_others():
    n = 2000
    x = EmpiricalPrior(SPACE, DATA).sample(n, seed=0)["x"].values
    which = np.abs(x[:, None] - DATA).max(-1).argmin(1)
    np.testing.assert_allclose(x, DATA[which], atol=1e-12)
    assert stats.chisquare(np.bincount(which, minlength=N)).pvalue > 1e-4


def test_a_bandwidth_widens_the_draws_by_h_squared_c():
    n, h = 4000, 0.5
    prior = EmpiricalPrior(SPACE, DATA, bandwidth=h, reference=REFERENCES["diagonal"])
    z = prior.draw(Streams(2, range(n), purpose="test"))
    expected = prior.points.var(0, correction=0) + h**2 * REFERENCES["diagonal"].eigenvalues
    # the variance of a sample variance is at most 2/n here: the law is flatter than a Gaussian
    assert ((z.var(0) / expected - 1).abs()).max() < 4.5 * np.sqrt(2 / n)
    torch.testing.assert_close(torch.diagonal(prior._apply(torch.eye(D).double())), expected)


def test_draw_i_is_the_same_for_any_number_of_draws(prior):
    few, many = (prior.sample(n, seed=3) for n in (3, 9))
    assert float(abs(many.isel(sample=slice(3)) - few).to_array().max()) == 0


def test_the_fitted_gaussian_has_the_moments_of_the_data(prior):
    z = prior.points.numpy()
    c = prior.reference.apply(torch.eye(D, dtype=torch.float64)).numpy()
    total = z.T @ z / N + prior.bandwidth**2 * c
    sigma = 0.9
    expected = sigma**2 * total @ np.linalg.pinv(total + sigma**2 * c) @ c
    np.testing.assert_allclose(
        prior.gaussian_covariance(sigma).apply(torch.eye(D).double()), expected, rtol=1e-7, atol=1e-9
    )


def test_integrating_the_denoiser_draws_the_data_each_as_often_as_the_others():
    n = 700
    x = EmpiricalPrior(SPACE, DATA).sample(n, seed=0, solver=DPMSolver(steps=64))["x"].values
    which = np.abs(x[:, None] - DATA).max(-1).argmin(1)
    assert np.abs(x - DATA[which]).max() < 1e-6
    assert stats.chisquare(np.bincount(which, minlength=N)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"data": DATA[:1]}, "data"),
        ({"data": np.ones((4, D))}, "data"),
        ({"data": DATA[:, :2]}, "data"),
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"reference": sd.covariance.centred((D,))}, "reference"),
        ({"sigma_max": 1.0}, "sigma_max"),
    ],
)
def test_what_is_not_an_empirical_prior_is_refused(change, argument):
    given = {"data": DATA, **change}
    with pytest.raises(InputError, match=f"`{argument}`"):
        EmpiricalPrior(SPACE, given.pop("data"), **given)


def test_points_have_no_density_without_noise():
    with pytest.raises(InputError, match="positive noise level"):
        EmpiricalPrior(SPACE, DATA).log_density(torch.zeros(1, D).double())
