"""Events: on a Gaussian prior and a linear ``C`` the conditioned law is a truncated Gaussian, blurred by the sd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods.base import Run
from sciddiff.methods.linearised import TMPD, LocalGaussian
from sciddiff.random import Streams
from sciddiff.testing import check_noise

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

D, N = 5, 1500
SPACE = sd.Space({"i": D})
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((D, D))
COVARIANCE = ROOT @ ROOT.T / D + 0.2 * np.eye(D)
C = RNG.standard_normal(D)
SPREAD = float(np.sqrt(C @ COVARIANCE @ C))
REFERENCES = {"white": None, "dense": sd.covariance.dense(np.diag(np.linspace(0.3, 2, D)) + 0.1)}


def prior(reference="white", mean=None) -> sd.GaussianPrior:
    return sd.GaussianPrior(SPACE, sd.covariance.dense(COVARIANCE), mean, reference=REFERENCES[reference])


def event(*rows) -> sd.operators.Matrix:
    return sd.operators.Matrix(SPACE, sd.Space({"event": len(rows)}, "y"), np.stack(rows))


def truncated(u: float, blur: float) -> tuple[float, float]:
    """Mean and variance of ``a ~ N(0, 1)`` given that ``a + N(0, blur^2)`` exceeds u."""
    t = np.sqrt(1 + blur**2)
    ratio = stats.norm.pdf(u / t) / stats.norm.sf(u / t)
    return ratio / t, 1 - ratio * (ratio - u / t) / t**2


def test_the_noise_of_events_keeps_its_contract():
    check_noise(sd.noise.Exceeds([2.0, 1.5, 3.0, 3.5], sd=[0.8, 0.5, 1.0, 2.0]), (4,))


def test_the_probability_of_an_event_and_of_its_contrary_add_up_to_one():
    law, mean = sd.noise.Exceeds(1.0, sd=0.5), torch.tensor([[1.3], [-40.0], [60.0]], dtype=torch.float64)
    yes, no = (law.log_prob(torch.full_like(mean, y), mean) for y in (1.0, 0.0))
    torch.testing.assert_close(yes.exp() + no.exp(), torch.ones(3, dtype=torch.float64))
    assert float(yes[0]) == pytest.approx(stats.norm.logcdf(0.3 / 0.5))
    # far in the tails the logarithm and its gradient stay finite
    assert float(yes[1]) == pytest.approx(stats.norm.logcdf(-82.0)) and float(no[2]) < -6000


@pytest.mark.parametrize("y", [0.0, 1.0])
@pytest.mark.parametrize(("mean", "variance"), [(0.3, 2.0), (-4.0, 0.5), (2.5, 0.1), (1.0, 1e-8)])
def test_the_site_of_an_event_moves_a_gaussian_as_the_event_does(y, mean, variance):
    """The mean and variance of the tilted law, by quadrature, are those given the Gaussian datum."""
    law = sd.noise.Exceeds(1.0, sd=0.4)
    one = torch.ones(1, 1, dtype=torch.float64)
    miss, noise = (float(v) for v in law.site(y * one, mean * one, variance * one))
    sign, s = 2 * y - 1, np.sqrt(variance)

    t = np.linspace(-15, 15, 300_001)
    weight = stats.norm.pdf(t) * stats.norm.cdf(sign * (mean + s * t - 1.0) / 0.4)
    weight /= weight.sum()
    first, second = (t * weight).sum(), (t**2 * weight).sum()
    gain = variance / (variance + noise)
    assert gain * miss == pytest.approx(s * first, rel=1e-5, abs=1e-9)
    assert variance * (1 - gain) == pytest.approx(variance * (second - first**2), rel=1e-5)


def test_a_sure_event_says_nothing():
    one = torch.ones(1, 1, dtype=torch.float64)
    miss, noise = sd.noise.Exceeds(0.0, sd=0.1).site(one, 50 * one, one)
    assert float(miss) == 0 and float(noise) == np.inf


@pytest.mark.parametrize("t", [900.0, 1.1e3, 1e5, 1e8, 1e12])
def test_the_site_of_an_event_far_off_is_that_of_an_exponential_tail(t):
    """Beyond t the law of N(0, 1) has mean ``t + 1/t`` and variance ``1/t^2 - 6/t^4``, to orders left out."""
    one = torch.ones(1, 1, dtype=torch.float64)
    miss, noise = (float(v) for v in sd.noise.Exceeds(t, sd=1e-20).site(one, 0 * one, one))
    assert miss / (1 + noise) == pytest.approx(t + 1 / t, rel=1e-11)
    # what cancels is 1e-4 of the variance where the series takes over
    assert noise / (1 + noise) == pytest.approx(t**-2 - 6 * t**-4, rel=3e-4)


def test_a_variance_that_rounding_made_negative_counts_as_none():
    one = torch.ones(1, 1, dtype=torch.float64)
    miss, noise = sd.noise.Exceeds(1.0, sd=1e-9).site(one, 0 * one, -1e-17 * one)
    assert 0.99 < float(miss) < 1.01 and np.isfinite(float(noise))


def test_an_event_of_what_is_not_a_number_raises_and_is_not_taken_for_unseen():
    law, y = sd.noise.Exceeds(1.0, sd=0.1), torch.ones(2, 1, dtype=torch.float64)
    assert bool(law.site(y, torch.nan * y, y)[1].isnan().all())
    root = sd.operators.from_torch(lambda x: x[:, :1].sqrt(), SPACE, sd.Space({"event": 1}, "y"))
    with pytest.raises(DivergenceError, match=r"sigma .*events"):
        prior().given([1.0], root, law).sample(4, method=LocalGaussian("unit"), steps=4, seed=0)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_the_guided_denoiser_is_the_conditional_mean_given_one_event_and_gaussian_data(reference, sigma):
    """``E[z0 | z, y, event]`` in closed form: condition on z and y by dense algebra, then truncate along ``C``."""
    p = prior(reference, mean=np.arange(D))
    sensors = np.eye(D)[[0, 3]]
    posterior = p.given([1.0, 2.0], event(*sensors), sd.noise.Gaussian(0.3))
    posterior = posterior.given([1.0], event(C), sd.noise.Exceeds(4.0, sd=0.2))
    z = p.noise(Streams(0, range(4), purpose="test")) * sigma
    method = LocalGaussian(rtol=1e-13)
    run = Run(posterior, method, 4, seed=0, solver=None, steps=None, chunk=None, progress=False)
    found = p.normalisation.physical(method.guide(run)(z, sigma, torch.zeros(4, dtype=torch.long)))
    d = p.normalisation.physical(p.denoise(z, sigma)).numpy()
    scale = p.normalisation.scale.numpy()
    cov = p.covariance(sigma).apply(torch.eye(D, dtype=torch.float64)).numpy() * scale**2
    gain = cov @ sensors.T @ np.linalg.inv(sensors @ cov @ sensors.T + 0.09 * np.eye(2))
    mean, cov = d + (np.array([1.0, 2.0]) - d @ sensors.T) @ gain.T, cov - gain @ sensors @ cov
    s = np.sqrt(C @ cov @ C + 0.04)
    u = (mean @ C - 4.0) / s
    expected = mean + np.outer(np.exp(stats.norm.logpdf(u) - stats.norm.logcdf(u)), cov @ C) / s
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize(("u", "blur"), [(1.0, 1e-3), (2.5, 0.3), (-0.5, 1e-3)])
def test_draws_given_an_event_are_a_truncated_gaussian(reference, u, blur):
    posterior = prior(reference).given([1.0], event(C), sd.noise.Exceeds(u * SPREAD, sd=blur * SPREAD))
    x = posterior.sample(N, method=LocalGaussian(), steps=48, seed=0)["x"].values
    a = x @ C / SPREAD
    mean, variance = truncated(u, blur)
    assert abs(a.mean() - mean) < 4 * np.sqrt(variance / N)
    # the fourth moment of the truncated law is below 9 of its squared variance, an exponential's
    assert abs(a.var() / variance - 1) < 4 * np.sqrt(8 / N)
    if blur < 0.01:
        assert stats.kstest(a, lambda q: stats.truncnorm.cdf(q, u, np.inf)).pvalue > 1e-4
    # what is independent of C x is as it was
    along = COVARIANCE @ C / SPREAD**2
    rest = x - np.outer(x @ C, along)
    exact = COVARIANCE - np.outer(along, along) * SPREAD**2
    assert (np.abs(rest.mean(0)) < 4.5 * np.sqrt(np.diag(exact) / N)).all()
    assert (np.abs(rest.var(0) / np.diag(exact) - 1) < 4.5 * np.sqrt(2 / N)).all()


def test_what_did_not_happen_is_the_mirror_image():
    above = prior().given([1.0], event(C), sd.noise.Exceeds(1.0, sd=0.1))
    below = prior().given([0.0], event(-C), sd.noise.Exceeds(-1.0, sd=0.1))
    a, b = (p.sample(3, method=LocalGaussian(), steps=8, seed=0)["x"] for p in (above, below))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_probability_of_an_event_before_any_data_is_that_of_the_guidance_at_the_highest_noise():
    """The gradient of ``log P(event | z)`` in the mean of ``C x`` is ``phi/(s Phi)``, whose Phi is the probability."""
    u, blur = 1.5, 0.1
    p = prior()
    posterior = p.given([1.0], event(C), sd.noise.Exceeds(u * SPREAD, sd=blur * SPREAD))
    method = LocalGaussian(rtol=1e-12)
    run = Run(posterior, method, 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    z = torch.zeros(1, D, dtype=torch.float64)
    d_y = p.normalisation.physical(method.guide(run)(z, 1e4, torch.zeros(1, dtype=torch.long)))[0].numpy()
    t = np.sqrt(1 + blur**2)
    probability = stats.norm.pdf(u / t) / (t * (C @ d_y) / SPREAD)
    assert probability == pytest.approx(stats.norm.sf(u / t), rel=1e-5)
    truth = p.sample(20000, seed=1)["x"].values @ C / SPREAD
    blurred = truth + blur * np.random.default_rng(0).standard_normal(len(truth))
    assert abs((blurred > u).mean() - probability) < 4 * np.sqrt(probability / len(truth))


def test_two_independent_events_are_matched_exactly():
    """Events of independent values do not tell of one another, so that matching each alone is exact."""
    white = sd.GaussianPrior(SPACE, sd.covariance.white((D,)))
    posterior = white.given([1.0, 0.0], event(*np.eye(D)[:2]), sd.noise.Exceeds([1.0, -0.5], sd=1e-3))
    x = posterior.sample(N, method=LocalGaussian(), steps=48, seed=0)["x"].values
    assert stats.kstest(x[:, 0], lambda q: stats.truncnorm.cdf(q, 1.0, np.inf)).pvalue > 1e-4
    assert stats.kstest(x[:, 1], lambda q: stats.truncnorm.cdf(q, -np.inf, -0.5)).pvalue > 1e-4
    assert stats.kstest(x[:, 2], "norm").pvalue > 1e-4


def test_correlated_events_are_met_to_a_tenth_of_a_standard_deviation():
    """Each is matched as if it were alone, which is an approximation; the exact law by rejection."""
    rho, u = 0.8, 1.0
    pair = sd.GaussianPrior(sd.Space({"i": 2}), sd.covariance.dense([[1.0, rho], [rho, 1.0]]))
    both = sd.operators.Matrix(pair.space, sd.Space({"event": 2}, "y"), np.eye(2))
    posterior = pair.given([1.0, 1.0], both, sd.noise.Exceeds(u, sd=1e-3))
    x = posterior.sample(N, method=LocalGaussian(), steps=48, seed=0)["x"].values
    z = np.random.default_rng(1).multivariate_normal(np.zeros(2), [[1.0, rho], [rho, 1.0]], 400_000)
    z = z[(z > u).all(1)]
    error = 4.5 * np.sqrt(1 / N + 1 / len(z))
    assert (np.abs(x.mean(0) - z.mean(0)) / z.std(0) < 0.1 + error).all()
    assert (np.abs(x.std(0) / z.std(0) - 1) < 0.07 + np.sqrt(2) * error).all()


def test_a_missing_event_takes_no_part_and_cases_are_apart():
    y = np.array([[1.0, np.nan], [0.0, 1.0]])
    law = sd.noise.Exceeds(0.5, sd=0.1)
    both = prior().given(y, event(C, ROOT[0]), law, missing="mask", batch_dim="case")
    draws = both.sample(3, method=LocalGaussian(rtol=1e-10), steps=8, seed=0)["x"]
    alone = (
        prior().given([1.0], event(C), law).sample(3, method=LocalGaussian(rtol=1e-10), steps=8, seed=0)["x"]
    )
    np.testing.assert_allclose(draws.isel(case=0), alone, rtol=1e-8, atol=1e-8)
    # draws are keyed by their case, so that only the law of the second one is the same elsewhere
    assert float(abs(draws.isel(case=1) - alone).max()) > 0.1


def test_other_units_of_the_event_change_nothing():
    a = prior().given([1.0], event(C), sd.noise.Exceeds(1.0, sd=0.1))
    b = prior().given([1.0], event(1e3 * C), sd.noise.Exceeds(1e3, sd=1e2))
    x, y = (p.sample(3, method=LocalGaussian(), steps=8, seed=0)["x"] for p in (a, b))
    np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bent_event_is_met_by_the_draws_in_both_precisions(dtype):
    """The largest of a series of smoothed values exceeds a threshold; in float32 the sites stay finite."""
    bent = sd.operators.from_torch(lambda x: x.logsumexp(1, keepdim=True), SPACE, sd.Space({"event": 1}, "y"))
    threshold = 4.0
    p = prior().to(dtype=dtype)
    posterior = p.given([1.0], bent, sd.noise.Exceeds(threshold, sd=0.02))
    x = posterior.sample(400, method=LocalGaussian(), steps=32, seed=0)["x"].values
    assert x.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    met = np.log(np.exp(x).sum(1)) > threshold - 0.1
    before = np.log(np.exp(prior().sample(2000, seed=0)["x"].values).sum(1)) > threshold
    # the event is rare, and nearly all draws have it
    assert before.mean() < 0.1 and met.mean() > 0.97


def test_a_threshold_that_is_not_finite_and_observations_that_are_no_events_are_refused():
    for bad in (np.nan, "high", [[]]):
        with pytest.raises(InputError, match="threshold"):
            sd.noise.Exceeds(bad, sd=0.1)
    with pytest.raises(InputError, match="sd"):
        sd.noise.Exceeds(1.0, sd=0.0)
    with pytest.raises(InputError, match="threshold itself"):
        prior().given([2.0], event(C), sd.noise.Exceeds(2.0, sd=0.1))
    with pytest.raises(InputError, match="threshold"):
        prior().given([1.0], event(C), sd.noise.Exceeds([2.0, 1.0], sd=0.1))


def test_the_row_sums_of_tmpd_take_events_too():
    posterior = prior().given([1.0], event(C), sd.noise.Exceeds(SPREAD, sd=0.1))
    x = posterior.sample(200, method=TMPD(), steps=32, seed=0)["x"].values
    assert ((x @ C) > 0.7 * SPREAD).mean() > 0.95
