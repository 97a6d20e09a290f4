"""Total variation across slices: the problem that ADMM solves, what it reduces to, and what it is good for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.methods.base import Run
from sciddiff.methods.mbir import DiffusionMBIR, Split, WeightedMBIR
from sciddiff.priors import SlicesPrior
from sciddiff.priors.composed import repeated
from sciddiff.random import Streams
from sciddiff.testing import check_method

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

VOLUME = sd.Space({"z": 12, "x": 8})
NOISE = 0.3


def slices() -> SlicesPrior:
    h = np.arange(8.0)
    row = sd.covariance.dense(np.exp(-np.abs(h[:, None] - h) / 3))
    return SlicesPrior(sd.GaussianPrior(sd.Space({"x": 8}), row), VOLUME, "z")


def phantom(number: int = 0) -> torch.Tensor:
    """Three blocks of equal slices."""
    blocks = slices().prior.draw(Streams(5 + number, range(3), purpose="phantom"))
    return torch.cat([b.expand(n, 8) for b, n in zip(blocks, (4, 5, 3), strict=True)])


def posterior(**settings: object) -> sd.Posterior:
    rng = np.random.default_rng(0)
    points = sd.operators.Points.at_indices(VOLUME, np.argwhere(rng.random((12, 8)) < 0.4))
    mean = points.apply(phantom()[None])[0].numpy()
    y = mean + NOISE * rng.standard_normal(mean.shape)
    return slices().given(y, points, sd.noise.Gaussian(NOISE), **settings)


def solved(method: WeightedMBIR, given: sd.Posterior, d: torch.Tensor, sigma: float, passes: int = 1):
    """``D_y`` after so many calls at one level."""
    run = Run(given, method, len(d), seed=0, solver=None, steps=None, chunk=None, progress=False)
    split, cases = Split(method, given.prior), torch.zeros(len(d), dtype=torch.long)
    with torch.no_grad():
        for _ in range(passes):
            z = method.denoised(run, d, sigma, cases, split)
    return z


def states(n: int) -> torch.Tensor:
    return Streams(1, range(n), purpose="states").normal(VOLUME.shape, dtype=torch.float64)


def test_differences_have_their_transpose():
    for dim in ("z", "x"):
        split = Split(WeightedMBIR(dim=dim), slices())
        z = states(2)
        v = split.differences(states(4)[2:])
        torch.testing.assert_close((split.differences(z) * v).sum(), (z * split.transposed(v)).sum())
    assert Split(WeightedMBIR(), slices()).differences(states(1)).shape == (1, 11, 8)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_admm_meets_the_conditions_of_the_optimum(weight):
    space, sigma = sd.Space({"z": 6, "x": 2}), 0.8
    row = sd.GaussianPrior(sd.Space({"x": 2}), sd.covariance.dense([[1.0, 0.6], [0.6, 1.0]]))
    points = sd.operators.Points.at_indices(space, [[0, 0], [2, 1], [5, 0]])
    given = SlicesPrior(row, space, "z").given([1.0, -1.0, 0.5], points, sd.noise.Gaussian(NOISE))
    d = Streams(1, range(2), purpose="states").normal(space.shape, dtype=torch.float64)
    z = solved(WeightedMBIR(weight=weight, rho=4.0, iterations=150), given, d, sigma)
    lg, v = given.linear_gaussian(), given.prior.covariance(sigma)
    cases = torch.zeros(2, dtype=torch.long)
    gradient = v.solve(z - d) - lg.adjoint(lg.residual(z, cases)) / NOISE**2
    # 0 = gradient + T^T p with p in weight times the subdifferential of |T z|_1: p is the running sum of the gradient
    p = gradient.cumsum(1)
    jumps = z.diff(dim=1)
    assert float(p[:, -1].abs().max()) < 1e-5 * weight
    assert float(p.abs().max()) < weight * (1 + 1e-5)
    large = jumps.abs() > 1e-3
    assert 0.0 < float(large.double().mean()) < 1.0
    torch.testing.assert_close(p[:, :-1][large], weight * jumps.sign()[large], rtol=1e-4, atol=0)


def test_without_total_variation_it_is_the_rule_of_mmps():
    given, d, sigma = posterior(), states(3), 0.8
    v, lg = given.prior.covariance(sigma), given.linear_gaussian()
    b = lg.matrix().flatten(1)
    cov = v.apply(torch.eye(96, dtype=torch.float64).reshape(96, 12, 8)).flatten(1)
    gain = cov @ b.T @ torch.linalg.inv(b @ cov @ b.T + NOISE**2 * torch.eye(lg.size))
    residual = lg.residual(d, torch.zeros(3, dtype=torch.long))
    expected = d + (residual @ gain.T).reshape(d.shape)
    found = solved(WeightedMBIR(weight=0.0, rtol=1e-10), given, d, sigma)
    torch.testing.assert_close(found, expected)
    # and the split with a small weight goes there
    near = solved(WeightedMBIR(weight=1e-7, rho=1e-6, rtol=1e-12, iterations=4), given, d, sigma)
    torch.testing.assert_close(near, expected, atol=1e-5, rtol=0)


def test_as_published_without_total_variation_it_is_steepest_descent_on_the_misfit():
    given, z = posterior(), states(3)
    method = DiffusionMBIR(weight=0.0, rho=1e-12)
    run = Run(given, method, 3, seed=0, solver=None, steps=None, chunk=None, progress=False)
    lg, cases = given.linear_gaussian(), torch.zeros(3, dtype=torch.long)
    g = lg.adjoint(lg.residual(z, cases))
    length = g.square().sum((1, 2)) / lg.apply(g).square().sum(1)
    found = method.stepped(run, z, cases, Split(method, given.prior, method.unit(run)))
    torch.testing.assert_close(found, z + length[:, None, None] * g)


def test_the_split_is_warm_from_level_to_level():
    given, d = posterior(), states(1)
    cold, warm = WeightedMBIR(iterations=6), WeightedMBIR(iterations=1)
    torch.testing.assert_close(solved(warm, given, d, 0.8, passes=6), solved(cold, given, d, 0.8))


def test_missing_values_are_left_out():
    points = sd.operators.Points.at_indices(VOLUME, [[0, 0], [5, 3], [9, 1]])
    noise = sd.noise.Gaussian(np.array([0.3, 0.2, 0.1]))
    gap = slices().given([1.0, np.nan, -1.0], points, noise, missing="mask")
    fewer = slices().given(
        [1.0, -1.0],
        sd.operators.Points.at_indices(VOLUME, [[0, 0], [9, 1]]),
        sd.noise.Gaussian(np.array([0.3, 0.1])),
    )
    for method in (WeightedMBIR(steps=4), WeightedMBIR(weight=0.0, steps=4)):
        a, b = (p.sample(2, method=method, seed=0)["u"].values for p in (gap, fewer))
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", [WeightedMBIR(steps=16), DiffusionMBIR()])
def test_total_variation_helps_where_slices_agree(method):
    cases, rng = 8, np.random.default_rng(1)
    points = sd.operators.Points.at_indices(VOLUME, np.argwhere(rng.random((12, 8)) < 0.4))
    truth = torch.stack([phantom(i) for i in range(cases)])
    mean = points.apply(truth).numpy()
    y = torch.from_numpy(mean + NOISE * rng.standard_normal(mean.shape))
    given = slices().given(y, points, sd.noise.Gaussian(NOISE), batch_dim="case")
    draws = given.sample(2, method=method, seed=0)["u"].values.mean(0)
    # the best that can be done with slices by themselves: their exact posterior mean
    lg = given.linear_gaussian()
    b, prior = lg.matrix().flatten(1), given.prior
    cov = (
        repeated(prior.prior.law, (12, 8), 0)
        .apply(torch.eye(96, dtype=torch.float64).reshape(96, 12, 8))
        .flatten(1)
    )
    gain = cov @ b.T @ torch.linalg.inv(b @ cov @ b.T + NOISE**2 * torch.eye(lg.size))
    alone = (y @ gain.T).reshape(truth.shape).numpy()
    ours, theirs = (np.sqrt(((x - truth.numpy()) ** 2).mean((1, 2))) for x in (draws, alone))
    better = theirs - ours
    assert better.mean() / (better.std(ddof=1) / np.sqrt(cases)) > 3


def test_both_with_total_variation_keep_the_contract_but_for_their_bias():
    biased = {"mean": "biased by construction", "covariance": "biased by construction"}
    # a vector and a field of its values have other neighbours
    shape = {"shape": "total variation depends on the shape"}
    for method in (WeightedMBIR(weight=2.0, steps=4), DiffusionMBIR(steps=16)):
        check_method(method, draws=40, expected_failures=biased | shape)


@pytest.mark.slow
def test_weighted_mbir_without_total_variation_is_exact():
    check_method(WeightedMBIR(weight=0.0, steps=200), draws=500)


@pytest.mark.parametrize("method", [WeightedMBIR(steps=6), DiffusionMBIR(steps=6)])
def test_draws_do_not_depend_on_their_company(method):
    given = posterior()
    whole = given.sample(5, method=method, seed=0)["u"].values
    np.testing.assert_allclose(given.sample(5, method=method, seed=0, chunk=2)["u"], whole, atol=1e-10)
    np.testing.assert_allclose(given.sample(1, method=method, seed=0)["u"], whole[:1], atol=1e-10)


@pytest.mark.parametrize("method", [WeightedMBIR(steps=6), DiffusionMBIR(steps=6)])
def test_series_and_graphs_in_both_precisions(method):
    times = np.array([0.0, 0.4, 1.0, 1.1, 2.0, 3.5])
    process = sd.covariance.kernel(lambda h: np.exp(-h), times)
    series = sd.GaussianPrior(sd.Space({"time": times}), process, reference=process)
    ring = sd.Space({"node": 6}, edges=[[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    on = sd.covariance.graph(ring, lambda values: np.where(values > 1e-9, 1 / (values + 1), 0.0))
    graph = sd.GaussianPrior(ring, on, reference=sd.covariance.centred((6,)))
    for prior in (series, graph):
        found = []
        for dtype in (torch.float64, torch.float32):
            here = prior.to(dtype=dtype)
            points = sd.operators.Points.at_indices(here.space, [[0], [4]])
            given = here.given([0.5, -0.3], points, sd.noise.Gaussian(0.4))
            found.append(next(iter(given.sample(3, method=method, seed=0).data_vars.values())))
        assert found[1].dtype == np.float32
        np.testing.assert_allclose(found[0], found[1], atol=2e-2)
    np.testing.assert_allclose(found[0].mean("node"), 0.0, atol=1e-9)


@pytest.mark.parametrize("method", [DiffusionMBIR, WeightedMBIR])
@pytest.mark.parametrize(
    "settings",
    [{"weight": -1.0}, {"weight": True}, {"rho": 0.0}, {"rho": "a"}, {"iterations": 0}, {"steps": 1}],
)
def test_bad_settings_are_refused(method, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        method(**settings)


def test_the_published_form_refuses_noise_whose_mean_is_not_that_of_the_operator():
    points = sd.operators.Points.at_indices(VOLUME, [[0, 0]])
    for noise in (sd.noise.Exceeds(0.5, sd=0.1), sd.noise.Poisson(2.0)):
        assert "mean other than" in DiffusionMBIR().misfit(slices().given([1.0], points, noise))
    for noise in (sd.noise.Laplace(0.5), sd.noise.Poisson(1.0)):
        assert DiffusionMBIR().misfit(slices().given([1.0], points, noise)) is None


def test_a_dim_that_is_not_there_and_a_gaussian_that_is_not_known_are_refused():
    assert "no dim" in WeightedMBIR(dim="t").misfit(posterior())
    mixture = sd.priors.EmpiricalPrior(VOLUME, states(4))
    given = mixture.given([0.0], sd.operators.Points.at_indices(VOLUME, [[0, 0]]), sd.noise.Gaussian(1.0))
    known = mixture.gaussian_covariance(mixture.sigma_max) is not None
    assert (WeightedMBIR(covariance="gaussian").misfit(given) is None) == known
    assert WeightedMBIR().misfit(given) is None
