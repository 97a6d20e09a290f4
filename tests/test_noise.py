"""Claims about the laws of observations: densities, draws, gaps and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as st
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from sciddiff import covariance
from sciddiff.errors import DivergenceError, InputError
from sciddiff.noise import Gaussian, Laplace, Noise, Poisson, StudentT
from sciddiff.random import Streams

SHAPE = (2, 3)
# one p-value below this in some seeded test of a right law would be bad luck of one in ten thousand
LEVEL = 1e-4
SCALES = np.linspace(0.2, 1.2, 6).reshape(SHAPE)


def correlated(n: int = 6) -> np.ndarray:
    root = np.random.default_rng(3).standard_normal((n, n))
    return root @ root.T + 0.1 * np.eye(n)


R = correlated()
LAWS = {
    "gaussian": (Gaussian(0.7), lambda m, s: st.norm(m, 0.7)),
    "gaussian by value": (Gaussian(SCALES), lambda m, s: st.norm(m, s)),
    "laplace": (Laplace(0.7), lambda m, s: st.laplace(m, 0.7)),
    "laplace by value": (Laplace(SCALES), lambda m, s: st.laplace(m, s)),
    "student": (StudentT(5, 0.7), lambda m, s: st.t(5, m, 0.7)),
    "student by value": (StudentT(2.5, SCALES), lambda m, s: st.t(2.5, m, s)),
    "cauchy": (StudentT(1, 0.3), lambda m, s: st.cauchy(m, 0.3)),
    "poisson": (Poisson(), lambda m, s: st.poisson(m)),
    "poisson by value": (Poisson(SCALES * 10), lambda m, s: st.poisson(10 * s * m)),
}
ALL: dict[str, Noise] = {name: noise for name, (noise, _) in LAWS.items()}
ALL["gaussian full"] = Gaussian(covariance=covariance.dense(R, SHAPE))


@pytest.fixture(params=list(ALL))
def name(request):
    return request.param


def pair(noise: Noise, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and their noise-free values; positive ones, which every law takes."""
    mean = torch.from_numpy(np.random.default_rng(1).uniform(0.5, 4.0, (rows, *SHAPE)))
    return noise.sample(mean, seed=7), mean


@pytest.mark.parametrize("name", list(LAWS))
def test_log_prob_is_that_of_scipy(name):
    noise, law = LAWS[name]
    y, mean = pair(noise)
    frozen = law(mean.numpy(), SCALES)
    terms = frozen.logpmf(y.numpy()) if "poisson" in name else frozen.logpdf(y.numpy())
    np.testing.assert_allclose(noise.log_prob(y, mean), terms.sum((1, 2)), rtol=1e-12)


def test_log_prob_of_correlated_errors_is_that_of_scipy():
    noise = ALL["gaussian full"]
    y, mean = pair(noise)
    law = st.multivariate_normal(np.zeros(6), R)
    np.testing.assert_allclose(
        noise.log_prob(y, mean), law.logpdf((y - mean).reshape(4, 6).numpy()), rtol=1e-10
    )


def test_score_is_the_slope_of_log_prob(name):
    noise = ALL[name]
    y, mean = pair(noise, rows=1)
    steps = 1e-5 * torch.eye(6, dtype=torch.float64).reshape(6, *SHAPE)
    slope = (noise.log_prob(y, mean + steps) - noise.log_prob(y, mean - steps)) / 2e-5
    np.testing.assert_allclose(noise.score(y, mean)[0].flatten(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in LAWS if "poisson" not in n])
def test_draws_have_the_law(name):
    noise, law = LAWS[name]
    mean = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, 10.0]], dtype=torch.float64).expand(2000, *SHAPE)
    levels = law(mean.numpy(), SCALES).cdf(noise.sample(mean, seed=0).numpy())
    for i, j in np.ndindex(SHAPE):
        assert st.kstest(levels[:, i, j], "uniform").pvalue > LEVEL


@pytest.mark.parametrize("rate", [0.3, 4.0, 60.0])
def test_poisson_counts_have_the_law(rate):
    y = Poisson(10.0).sample(torch.full((4000, 1), rate / 10, dtype=torch.float64), seed=0).numpy()
    law = st.poisson(rate)
    edges = np.unique([law.ppf(q) for q in np.linspace(0.02, 0.98, 12)])
    bins = np.concatenate([[-1], edges, [np.inf]])
    seen = np.histogram(y, bins + 0.5)[0]
    expected = 4000 * np.diff([0, *law.cdf(edges), 1.0])
    keep = expected > 1e-9
    assert st.chisquare(seen[keep], expected[keep]).pvalue > LEVEL


def test_correlated_draws_have_the_covariance():
    noise, n = ALL["gaussian full"], 4000
    e = noise.sample(torch.zeros(n, *SHAPE, dtype=torch.float64), seed=0).reshape(n, 6).numpy()
    found = e.T @ e / n
    sd = np.sqrt((R**2 + np.outer(np.diag(R), np.diag(R))) / n)
    assert np.abs((found - R) / sd).max() < st.norm.isf(LEVEL / 2 / 21)


def test_expectation_and_variance_are_those_of_the_draws(name):
    noise, n = ALL[name], 4000
    mean = torch.linspace(0.5, 4.0, 6, dtype=torch.float64).reshape(SHAPE)
    y = noise.sample(mean.expand(n, *SHAPE), seed=1).numpy()
    variance = noise.variance(mean[None])[0].numpy()
    if name == "cauchy":
        assert np.isinf(variance).all()
        return
    z = (y.mean(0) - noise.expectation(mean[None])[0].numpy()) / np.sqrt(variance / n)
    assert np.abs(z).max() < st.norm.isf(LEVEL / 2 / 6)
    if name != "student by value":  # whose fourth moment is infinite
        centred = (y - y.mean(0)) ** 2
        z = (centred.mean(0) - variance) / (centred.std(0) / math.sqrt(n))
        assert np.abs(z).max() < st.norm.isf(LEVEL / 2 / 6)


@pytest.mark.parametrize("junk", [0.0, math.nan, -1e9])
def test_a_masked_value_does_not_count(name, junk):
    noise = ALL[name]
    y, mean = pair(noise)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[0] = mask[1]
    y, mean = torch.where(mask, y, junk), torch.where(mask, mean, -1.0)
    out, score = noise.log_prob(y, mean, mask), noise.score(y, mean, mask)
    for row in range(len(y)):
        seen = mask[row].flatten()
        if name == "gaussian full":
            block = Gaussian(covariance=covariance.dense(R[np.ix_(seen.numpy(), seen.numpy())]))
        elif name in ("gaussian by value", "laplace by value"):
            block = type(noise)(SCALES.reshape(-1)[seen.numpy()])
        elif name == "student by value":
            block = StudentT(2.5, SCALES.reshape(-1)[seen.numpy()])
        elif name == "poisson by value":
            block = Poisson(10 * SCALES.reshape(-1)[seen.numpy()])
        else:
            block = noise
        part = (y[row].flatten()[seen][None], mean[row].flatten()[seen][None])
        assert torch.allclose(out[row], block.log_prob(*part)[0], rtol=1e-10)
        assert torch.allclose(score[row].flatten()[seen], block.score(*part)[0], rtol=1e-8)
    assert bool((score[~mask] == 0).all())


def test_all_missing_says_nothing(name):
    noise = ALL[name]
    y, mean = pair(noise)
    assert noise.log_prob(y * math.nan, mean, torch.zeros_like(y, dtype=torch.bool)).tolist() == [0.0] * 4


def test_a_row_depends_on_the_seed_and_its_number_alone(name):
    noise = ALL[name]
    mean = pair(noise, rows=5)[1]
    whole = noise.sample(mean, seed=3)
    apart = torch.cat([noise.draw(mean[i : i + 1], Streams(3, [i], purpose="observation")) for i in range(5)])
    assert torch.equal(whole, apart)
    assert not torch.equal(whole, noise.sample(mean, seed=4))
    assert torch.equal(whole, noise.sample(mean, seed=3))


def test_float32_rounds_the_draws_of_float64(name):
    noise = ALL[name]
    # multiples of a power of two, the same in both
    mean = torch.arange(1, 7, dtype=torch.float64).reshape(1, *SHAPE)
    exact, rounded = noise.sample(mean, seed=0), noise.sample(mean.float(), seed=0)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.double(), exact, rtol=1e-6, atol=1e-6)


def test_works_in_inference_mode(name):
    noise = ALL[name]
    with torch.inference_mode():
        y, mean = pair(noise)
        assert bool(torch.isfinite(noise.score(y.clone(), mean.clone())).all())


@settings(deadline=None, max_examples=30)
@given(some.floats(1e-3, 1e3), some.sampled_from([Gaussian, Laplace, lambda s: StudentT(3, s)]))
def test_a_change_of_units_costs_the_log_determinant(c, law):
    y, mean = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = law(0.3 * c).log_prob(c * y, c * mean) - law(0.3).log_prob(y, mean)
    assert torch.allclose(change, torch.tensor(-4 * math.log(c), dtype=torch.float64), atol=1e-9)


def test_many_degrees_of_freedom_are_gaussian():
    y, mean = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        StudentT(1e12, 0.5).log_prob(y, mean), Gaussian(0.5).log_prob(y, mean), rtol=0, atol=1e-9
    )


def test_a_zero_sd_is_refused_with_advice_on_noise_free_data():
    with pytest.raises(InputError) as caught:
        Gaussian(0)
    assert "noise-free" in caught.value.fix and "1e-5" in caught.value.fix and "float64" in caught.value.fix


@pytest.mark.parametrize(
    "bad", [0, -1.0, math.nan, math.inf, True, "0.1", None, 1j, [], [0.1, -0.1], {"sd": 1}]
)
@pytest.mark.parametrize(
    "law", [Gaussian, Laplace, lambda s: StudentT(3, s), Poisson, lambda d: StudentT(d, 1.0)]
)
def test_a_scale_that_is_no_positive_number_is_refused(law, bad):
    with pytest.raises(InputError):
        law(bad)


def test_masked_and_labelled_scales_are_refused():
    import xarray as xr

    for bad in (np.ma.masked_array([1.0, 2.0], [False, True]), xr.DataArray([1.0, 2.0], dims="x")):
        with pytest.raises(InputError, match=r"operator\.codomain\.tensor"):
            Gaussian(bad)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (3, 2), (6,)])
def test_scales_are_not_broadcast(shape):
    y = torch.ones(1, *SHAPE, dtype=torch.float64)
    full = covariance.white(shape)
    for noise in (
        Gaussian(np.ones(shape)),
        Gaussian(covariance=full),
        Laplace(np.ones(shape)),
        Poisson(np.ones(shape)),
    ):
        for act in (
            noise.check,
            lambda y, noise=noise: noise.sample(y, seed=0),
            lambda y, noise=noise: noise.log_prob(y, y),
        ):
            with pytest.raises(InputError, match="nothing is broadcast"):
                act(y)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 3), (3, 2, 3), (4, 2, 1)])
def test_observations_and_masks_are_not_broadcast(name, shape):
    noise = ALL[name]
    mean = torch.ones(4, *SHAPE, dtype=torch.float64)
    with pytest.raises(InputError, match="nothing is broadcast but a batch of one"):
        noise.log_prob(torch.ones(shape, dtype=torch.float64), mean)
    with pytest.raises(InputError, match="nothing is broadcast but a batch of one"):
        noise.log_prob(mean, mean, torch.ones(shape, dtype=torch.bool))


def test_a_scale_that_vanishes_in_the_dtype_is_refused():
    y = torch.zeros(1, 2)
    for scale in (1e-30, 1e30):
        Gaussian(scale).check(y.double())
        with pytest.raises(InputError, match="representable in float32"):
            Gaussian(scale).check(y)


@pytest.mark.parametrize("bad", [0.5, -1.0])
def test_poisson_refuses_what_is_no_count(bad):
    y = torch.tensor([[3.0, bad, math.nan]])
    with pytest.raises(InputError, match="counts"):
        Poisson().check(y)
    Poisson().check(torch.tensor([[3.0, 0.0, math.nan]]))


def test_negative_rates_are_neither_drawn_nor_likely_nor_followed():
    noise = Poisson(2.0)
    mean = torch.tensor([[1.0, -0.1]], dtype=torch.float64)
    for y in (torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)):
        assert noise.log_prob(y, mean).item() == -math.inf
        with pytest.raises(DivergenceError, match="1 of 2 rates are negative"):
            noise.score(y, mean)
        leaf = mean.clone().requires_grad_()
        (slope,) = torch.autograd.grad(noise.log_prob(y, leaf).sum(), leaf)
        assert torch.isfinite(slope).tolist() == [[True, False]]
    with pytest.raises(InputError, match="rates of at least 0"):
        noise.sample(mean, seed=0)


def test_a_rate_of_zero_gives_no_count():
    noise, zero = Poisson(2.0), torch.zeros(1, 1, dtype=torch.float64)
    assert noise.log_prob(zero, zero).item() == 0.0
    assert noise.score(zero, zero).item() == -2.0
    assert noise.log_prob(zero + 1, zero).item() == -math.inf
    assert noise.sample(zero, seed=0).item() == 0.0


def test_reprs_are_short():
    assert [repr(n) for n in (Gaussian(0.1), Laplace(2), StudentT(3, 0.5), Poisson(1e3))] == [
        "Gaussian(0.1)",
        "Laplace(scale=2)",
        "StudentT(df=3, scale=0.5)",
        "Poisson(exposure=1000)",
    ]
    assert repr(Laplace(SCALES)) == "Laplace(scale of shape (2, 3))"
    assert repr(Gaussian(SCALES)) == "Gaussian(sd of shape (2, 3))"
    assert repr(ALL["gaussian full"]) == "Gaussian(covariance on (2, 3))"
