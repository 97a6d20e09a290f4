"""Blind problems: a joint prior, a bilinear operator, and the methods that draw both unknowns at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError, MethodError
from sciddiff.methods import DPS, LocalGaussian
from sciddiff.methods.blind import BlindDPS
from sciddiff.operators.blind import BlindConvolution, views
from sciddiff.priors import joint
from sciddiff.random import Streams
from sciddiff.solvers import Karras
from sciddiff.testing import check_method

# few steps of biased methods: what is proved here is what they compute
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")


def scalar(name: str, mean: float, deviation: float) -> sd.GaussianPrior:
    return sd.GaussianPrior(sd.Space({name: 1}), sd.covariance.diagonal([deviation**2]), [mean])


def product(y: float = 3.0, noise: float = 0.3) -> sd.Posterior:
    """``y = k x + n`` with ``x ~ N(2, 1)`` and ``k ~ N(1, 1/4)``."""
    prior = joint(state=scalar("i", 2.0, 1.0), gain=scalar("j", 1.0, 0.5))

    def forward(z: torch.Tensor) -> torch.Tensor:
        v = views(prior.space, z)
        return v["gain"] * v["state"]

    operator = sd.operators.from_torch(forward, prior.space, sd.Space({"d": 1}, "y"))
    return prior.given([y], operator, sd.noise.Gaussian(noise))


def quadrature(y: float = 3.0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Exact means and covariance of ``(x, k, k x)``, on a grid of 801 by 801."""
    x, k = np.linspace(-6.0, 10.0, 801)[:, None], np.linspace(-3.0, 5.0, 801)[None]
    log = -0.5 * ((x - 2) ** 2 + ((k - 1) / 0.5) ** 2 + ((y - k * x) / noise) ** 2)
    w = (np.exp(log) / np.exp(log).sum()).ravel()
    values = np.stack([np.broadcast_to(v, log.shape).ravel() for v in (x, k, k * x)])
    return values @ w, np.cov(values, aweights=w, ddof=0)


def drawn(draws) -> np.ndarray:
    x, k = draws["state"].values[:, 0], draws["gain"].values[:, 0]
    return np.stack([x, k, k * x])


def series(n: int = 20, kernel_is: str = "values", dtype: torch.dtype = torch.float64):
    """An Ornstein-Uhlenbeck series blurred by an unknown kernel of five values."""
    lag = np.arange(-2.0, 3.0)
    shape = np.exp(-0.5 * (lag / 1.5) ** 2)
    around = np.log(shape) if kernel_is == "logits" else shape / shape.sum()
    spread = 0.5 if kernel_is == "logits" else 0.08
    signal = sd.GaussianPrior(
        sd.Space({"t": n}), sd.covariance.kernel(lambda h: np.exp(-h / 3), np.arange(n)), np.ones(n)
    )
    kernel = sd.GaussianPrior(
        sd.Space({"lag": 5}), sd.covariance.kernel(lambda h: spread**2 * np.exp(-h / 2), lag), around
    )
    prior = joint(state=signal, kernel=kernel).to(dtype=dtype)
    return prior, BlindConvolution(prior.space, boundary="periodic", kernel_is=kernel_is), around


def blurred(seed: int, n: int = 20, noise: float = 0.02, **options):
    """A truth, its observation and the posterior."""
    prior, operator, around = series(n, **options)
    z = prior.draw(Streams(seed, [0], purpose="truth"))
    truth = prior.normalisation.physical(z)
    y = operator.observe(prior.space.dataset(truth[0]), sd.noise.Gaussian(noise), seed=seed)
    values = torch.as_tensor(y["state"].values)
    return truth[0], values, prior.given(values, operator, sd.noise.Gaussian(noise)), around


# -- the operator ------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["zero", "periodic", "reflect"])
@pytest.mark.parametrize(("grid", "window"), [((7,), (4,)), ((5, 6), (3, 4))], ids=["series", "field"])
def test_with_the_kernel_known_it_is_the_convolution(boundary, grid, window):
    coords = {f"x{i}": n for i, n in enumerate(grid)} | {f"k{i}": n for i, n in enumerate(window)}
    dims = tuple(coords)
    half = len(grid)
    space = sd.Space(coords, {"field": sd.Variable(dims[:half]), "psf": sd.Variable(dims[half:])})
    operator = BlindConvolution(space, state="field", kernel="psf", boundary=boundary)
    x = Streams(0, range(3), purpose="test").normal((space.size,), dtype=torch.float64)
    parts = views(space, x)
    for row, field, kernel in zip(operator.apply(x), parts["field"], parts["psf"], strict=True):
        known = sd.operators.Convolution(operator.codomain, kernel, boundary=boundary)
        torch.testing.assert_close(row, known.apply(field[None])[0])


def test_it_is_linear_in_each_part_and_blind_to_the_scale():
    prior, operator, _ = series()
    x = Streams(0, range(2), purpose="test").normal(prior.space.shape, dtype=torch.float64)
    scale = torch.cat([torch.full((20,), 4.0), torch.full((5,), 0.25)]).double()
    torch.testing.assert_close(operator.apply(scale * x), operator.apply(x))
    twice = torch.cat([torch.full((20,), 2.0), torch.ones(5)]).double()
    torch.testing.assert_close(operator.apply(twice * x), 2 * operator.apply(x))


def test_logits_make_a_kernel_that_keeps_constants():
    prior, operator, _ = series(kernel_is="logits")
    x = Streams(0, range(2), purpose="test").normal(prior.space.shape, dtype=torch.float64)
    x[:, :20] = 3.0
    torch.testing.assert_close(operator.apply(x), torch.full((2, 20), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("kernel_is", ["values", "logits"])
def test_its_derivatives_of_both_orders_are_right(kernel_is):
    _, operator, _ = series(6, kernel_is=kernel_is)
    x = Streams(0, [0], purpose="test").normal((11,), dtype=torch.float64).requires_grad_()
    # they draw from torch's own generator
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(operator.apply, x)
        assert torch.autograd.gradgradcheck(operator.apply, x)


def test_kernels_that_do_not_fit_are_refused():
    space = sd.Space({"t": 4, "lag": 5}, {"state": sd.Variable(("t",)), "kernel": sd.Variable(("lag",))})
    with pytest.raises(InputError, match="at most"):
        BlindConvolution(space)
    with pytest.raises(InputError, match="name it"):
        BlindConvolution(space, kernel="psf")


# -- BlindDPS ----------------------------------------------------------------------------------------


def published(posterior: sd.Posterior, zeta: torch.Tensor, l1: float, steps: int, draw: int) -> torch.Tensor:
    """Two parallel chains as in the paper's algorithm, in the variance-preserving coordinate, for one draw."""
    prior, seen = posterior.prior, posterior.observations[0]
    noise = Streams(0, [draw], purpose="posterior")
    sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
    bar = [1 / (1 + s**2) for s in sigmas]
    x = math.sqrt(bar[0]) * sigmas[0] * prior.noise(noise)
    for i in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = prior.denoise(x / math.sqrt(bar[i]), sigmas[i])
            physical = prior.normalisation.physical(x0)
            loss = (seen.y - seen.operator.apply(physical)).norm() + l1 * physical[:, 20:].abs().sum()
            (gradient,) = torch.autograd.grad(loss, x)
        alpha, x0 = bar[i] / bar[i + 1], x0.detach()
        x = (math.sqrt(alpha) * (1 - bar[i + 1]) * x + math.sqrt(bar[i + 1]) * (1 - alpha) * x0).detach()
        x = x / (1 - bar[i])
        if i + 1 < steps:
            x = x + math.sqrt((1 - bar[i + 1]) / (1 - bar[i]) * (1 - alpha)) * prior.noise(noise)
        x = x - zeta * gradient
    return prior.normalisation.physical(x)


def test_blind_dps_is_the_published_algorithm():
    _, _, posterior, _ = blurred(0)
    method = BlindDPS(zeta={"state": 0.3, "kernel": 0.05}, l1={"kernel": 0.7}, norm="data")
    draws = posterior.sample(3, method, steps=30, seed=0)
    zeta = torch.tensor([0.3] * 20 + [0.05] * 5, dtype=torch.float64)
    for i in range(3):
        found = np.concatenate([draws["state"].values[i], draws["kernel"].values[i]])
        np.testing.assert_allclose(found, published(posterior, zeta, 0.7, 30, i)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", ["data", "state"])
@pytest.mark.parametrize("path", ["vp", "ve"])
def test_on_a_single_part_it_is_dps(norm, path):
    space = sd.Space({"t": 4})
    prior = sd.GaussianPrior(space, sd.covariance.diagonal([1.0, 2.0, 3.0, 4.0]))
    posterior = prior.given(
        [1.0, -1.0], sd.operators.Points.at_indices(space, [[0], [2]]), sd.noise.Gaussian(0.2)
    )
    settings = {"zeta": 0.3, "steps": 20, "norm": norm, "path": path}
    blind, plain = (posterior.sample(3, kind(**settings), seed=0)["x"] for kind in (BlindDPS, DPS))
    np.testing.assert_allclose(blind, plain, rtol=1e-12, atol=1e-12)


def test_blind_dps_keeps_the_contract_of_a_method():
    biased = "biased by construction"
    check_method(
        BlindDPS(zeta=0.2),
        steps=30,
        draws=200,
        expected_failures={"mean": biased, "covariance": biased},
    )


def graph() -> sd.Prior:
    space = sd.Space({"node": 6}, edges=[[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    on = sd.covariance.graph(space, lambda values: np.where(values > 1e-9, 1 / (values + 1), 0.0))
    return sd.GaussianPrior(space, on, reference=sd.covariance.centred((6,)))


def grid() -> sd.Prior:
    falling = 1 / (1.0 + np.arange(4)[:, None] + np.arange(3))
    return sd.GaussianPrior(sd.Space({"y": 4, "x": 3}), sd.covariance.spectral((4, 3), falling, "neumann"))


def wave() -> sd.Prior:
    process = sd.covariance.kernel(lambda h: np.exp(-h), np.array([0.0, 0.4, 1.0, 2.0]))
    return sd.GaussianPrior(sd.Space({"time": 4}), process, reference=process)


@pytest.mark.parametrize("make", [wave, grid, graph])
@pytest.mark.parametrize("method", [BlindDPS(steps=20), LocalGaussian()], ids=lambda m: type(m).__name__)
def test_an_unknown_gain_beside_a_series_a_grid_or_a_graph(make, method):
    def posterior(dtype: torch.dtype) -> sd.Posterior:
        prior = joint(state=make(), gain=scalar("one", 1.0, 0.3)).to(dtype=dtype)

        def gained(z: torch.Tensor) -> torch.Tensor:
            v = views(prior.space, z)
            return v["gain"] * v["state"].flatten(1)[:, :3]

        operator = sd.operators.from_torch(gained, prior.space, sd.Space({"d": 3}, "y"))
        return prior.given([0.5, -0.3, 0.2], operator, sd.noise.Gaussian(0.3))

    options = {} if isinstance(method, BlindDPS) else {"steps": 12}
    here = posterior(torch.float64)
    many = here.sample(4, method, seed=1, **options)
    for name in ("state", "gain"):
        cut = here.sample(4, method, seed=1, chunk=3, **options)[name]
        np.testing.assert_allclose(cut, many[name], atol=1e-8)
        single = posterior(torch.float32).sample(4, method, seed=1, **options)[name]
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, many[name], atol=2e-2)
    if make is graph:
        np.testing.assert_allclose(many["state"].mean("node"), 0.0, atol=1e-9)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="zeta"):
        BlindDPS(zeta={"state": 0.3, "gain": -1.0})
    with pytest.raises(InputError, match="l1"):
        BlindDPS(l1={"gain": 1.0})
    with pytest.raises(MethodError, match="zeta is for"):
        product().sample(2, BlindDPS(zeta={"state": 0.3}), seed=0)
    with pytest.raises(MethodError, match="unknown to the prior"):
        product().sample(2, BlindDPS(l1={"psf": 1.0}, norm="data"), seed=0)


# -- against exact posteriors ------------------------------------------------------------------------


def test_a_bilinear_posterior_by_the_linearised_rule_is_that_of_quadrature():
    mean, covariance = quadrature()
    found = drawn(product().sample(2000, LocalGaussian(), seed=0))
    deviation = np.sqrt(np.diag(covariance))
    slack = 4 / math.sqrt(2000)
    # linearising costs up to a twentieth here, as the module of BlindDPS says
    assert np.abs((found.mean(1) - mean) / deviation).max() < 0.05 + slack
    assert np.abs(np.log(found.std(1) / deviation)).max() < 0.05 + slack / math.sqrt(2)
    exact = covariance[0, 1] / (deviation[0] * deviation[1])
    assert abs(np.arctanh(np.corrcoef(found[:2])[0, 1]) - np.arctanh(exact)) < 0.1 + slack


def test_an_unknown_kernel_is_better_than_a_wrong_one():
    blind = wrong = 0.0
    for seed in range(3):
        truth, y, posterior, around = blurred(seed)
        signal = posterior.prior.parts["state"]
        fixed = sd.operators.Convolution(signal.space, around, boundary="periodic")
        mean = signal.given(y, fixed, sd.noise.Gaussian(0.02)).sample(16, seed=0)["x"].mean("sample")
        wrong += float(((mean - truth[:20].numpy()) ** 2).sum())
        mean = posterior.sample(8, LocalGaussian(), steps=24, seed=0)["state"].mean("sample")
        blind += float(((mean - truth[:20].numpy()) ** 2).sum())
    assert blind < 0.7 * wrong
