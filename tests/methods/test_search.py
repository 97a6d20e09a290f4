"""Search by values: candidates of the prior, of the start's noise and of the steps, and clouds around ``D``."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods.base import Run
from sciddiff.methods.search import SCG, BestOfN, Judge, NoiseSearch, families, picked
from sciddiff.methods.zeroth_order import DPG, GSG
from sciddiff.testing import check_method
from sciddiff.testing.exact import gaussian

# small families, and methods that are biased
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

BIASED = {"mean": "few candidates, or biased by construction", "covariance": "the same"}
QUICK = [
    BestOfN(8),
    BestOfN(8, choice="best"),
    NoiseSearch(4, iterations=2, steps=4),
    NoiseSearch(4, iterations=2, choice="best", steps=4),
    SCG(8, steps=4),
    SCG(8, steps=4, choice="best", free=0.25),
    DPG(8),
    DPG(8, strength=0.5),
    GSG(8),
    GSG(8, scheme="forward", strength=0.5),
]
SPACE = sd.Space({"i": 3})
DATA = sd.Space({"j": 2}, "y")
MATRIX = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
DENSE = sd.covariance.dense([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]])


def bend(x: np.ndarray) -> np.ndarray:
    return np.tanh(MATRIX @ x) + x[:2] ** 2


def opaque(noise=None, **settings) -> sd.Posterior:
    prior = sd.GaussianPrior(SPACE, DENSE, reference=sd.covariance.diagonal([1.0, 2.0, 0.5]))
    operator = sd.operators.black_box(bend, SPACE, DATA, **settings)
    return prior.given([0.5, 1.5], operator, noise or sd.noise.Laplace(0.5))


def run_of(posterior, method) -> Run:
    return Run(posterior, method, 1, seed=0, solver=None, steps=None, chunk=None, progress=False)


def values(draws) -> np.ndarray:
    return next(iter(draws.data_vars.values())).values


@pytest.mark.parametrize("method", QUICK, ids=repr)
def test_it_keeps_the_contract_of_methods(method):
    steps = 6 if isinstance(method, (DPG, GSG)) else None
    check_method(method, draws=30, steps=steps, expected_failures=BIASED)


@pytest.mark.parametrize("kind", ["series", "grid", "graph"])
@pytest.mark.parametrize("method", QUICK, ids=repr)
def test_single_precision_stays_single_and_close_on_every_kind_of_space(method, kind):
    posterior = gaussian(kind, 0).posterior
    single = sd.posterior.Posterior(posterior.prior.to(dtype=torch.float32), ())
    seen = posterior.observations[0]
    single = single.given(seen.y[0].float(), seen.operator, seen.noise)
    steps = 6 if isinstance(method, (DPG, GSG)) else None
    x, y = (values(p.sample(2, method, seed=0, steps=steps)) for p in (posterior, single))
    assert y.dtype == np.float32 and x.dtype == np.float64
    np.testing.assert_allclose(y, x, atol=2e-2 * np.abs(x).max())


@pytest.mark.parametrize("method", QUICK, ids=repr)
def test_it_takes_black_boxes_and_noise_that_is_not_gaussian(method):
    steps = 6 if isinstance(method, (DPG, GSG)) else None
    draws = opaque().sample(3, method, seed=0, steps=steps)
    assert np.isfinite(values(draws)).all() and draws.attrs["operator_calls"] >= method.candidates


@pytest.mark.parametrize("on_error", ["nan", "drop"])
@pytest.mark.parametrize("method", QUICK, ids=repr)
def test_failed_simulations_are_never_kept_and_are_counted(method, on_error):
    def fragile(x: np.ndarray) -> np.ndarray:
        if x[0] > 0.5:
            raise ArithmeticError("no convergence")
        return bend(x)

    prior = sd.GaussianPrior(SPACE, DENSE)
    operator = sd.operators.black_box(fragile, SPACE, DATA, on_error=on_error)
    posterior = prior.given([0.5, 1.5], operator, sd.noise.Gaussian(0.5))
    steps = 6 if isinstance(method, (DPG, GSG)) else None
    draws = posterior.sample(6, method, seed=0, steps=steps)
    assert draws.attrs.get("failed_members", 0) == len(operator.failures)
    assert len(operator.failures) > 0 or isinstance(method, GSG)
    assert np.isfinite(values(draws)).all()
    if isinstance(method, (BestOfN, NoiseSearch)) or (
        isinstance(method, SCG) and method.choice == "weighted"
    ):
        assert (values(draws)[:, 0] <= 0.5).all()


def test_a_simulation_that_is_not_finite_is_refused_where_nothing_allows_it():
    root = sd.operators.from_torch(lambda x: x[:, :2].sqrt(), SPACE, DATA)
    posterior = sd.GaussianPrior(SPACE, DENSE).given([1.0, 1.0], root, sd.noise.Gaussian(0.5))
    with pytest.raises(DivergenceError, match="NaN"):
        posterior.sample(2, BestOfN(8), seed=0)


def test_data_that_no_candidate_can_make_are_refused():
    counts = sd.operators.from_torch(lambda x: 0.0 * x[:, :2], SPACE, DATA)
    posterior = sd.GaussianPrior(SPACE, DENSE).given([3.0, 2.0], counts, sd.noise.Poisson())
    with pytest.raises(DivergenceError, match="finite likelihood"):
        posterior.sample(2, BestOfN(8), seed=0)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: BestOfN(1), "candidates"),
        (lambda: BestOfN(choice="worst"), "choice"),
        (lambda: NoiseSearch(radius=0.0), "radius"),
        (lambda: NoiseSearch(radius="a"), "radius"),
        (lambda: SCG(free="a"), "free"),
        (lambda: NoiseSearch(iterations=-1), "iterations"),
        (lambda: SCG(free=1.0), "free"),
        (lambda: SCG(covariance="exact"), "covariance"),
        (lambda: SCG(steps=1), "steps"),
        (lambda: DPG(strength=0.0), "strength"),
        (lambda: GSG(scheme="backward"), "scheme"),
        (lambda: GSG(smoothing=0.0), "smoothing"),
    ],
)
def test_bad_settings_are_refused(make, argument):
    with pytest.raises(InputError) as wrong:
        make()
    assert wrong.value.argument == argument


def test_settings_are_plain_values():
    for method in QUICK:
        assert json.loads(json.dumps(method.settings())) == method.settings()


def test_candidates_are_kept_by_their_weights():
    log = torch.tensor([0.0, math.log(3.0), -math.inf, math.log(4.0)]).expand(8000, 4)
    index = picked(log, torch.arange(8000).double().add(0.5) / 8000)
    assert index.bincount(minlength=4).tolist() == [1000, 3000, 0, 4000]


def test_every_draw_owns_its_candidates():
    run = run_of(opaque(), BestOfN(4))
    run.n = 3
    (rows,) = families(run, 4, "test")
    x = rows.streams.normal((4, 2), dtype=torch.float64)
    assert len(x.flatten().unique()) == x.numel()


def test_the_judge_gives_the_likelihood_and_the_squares():
    posterior, cases = opaque(sd.noise.Gaussian([0.5, 2.0])), torch.zeros(5, dtype=torch.long)
    judge = Judge(run_of(posterior, BestOfN(4)))
    z = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = posterior.prior.normalisation.physical(z.flatten(0, 1))
    found = np.stack([bend(row) for row in x.numpy()])
    off = (np.array([0.5, 1.5]) - found).reshape(5, 4, 2)
    np.testing.assert_allclose(judge.squares(z, cases), (off**2).sum(2))
    expected = stats.norm(0, [0.5, 2.0]).logpdf(off).sum(2)
    np.testing.assert_allclose(judge(z, cases), expected)
    assert judge.run.cost.operator_calls == 40


def test_missing_values_do_not_judge():
    prior = sd.GaussianPrior(SPACE, DENSE)
    operator = sd.operators.Matrix(SPACE, DATA, MATRIX)
    gap = prior.given([0.5, np.nan], operator, sd.noise.Gaussian(0.3), missing="mask")
    alone = prior.given(
        [0.5], sd.operators.Matrix(SPACE, sd.Space({"j": 1}, "y"), MATRIX[:1]), sd.noise.Gaussian(0.3)
    )
    for method in (
        BestOfN(16),
        SCG(16, steps=3),
        SCG(4, steps=3, choice="best"),
        GSG(8),
        DPG(8, strength=0.3),
    ):
        steps = 4 if isinstance(method, (DPG, GSG)) else None
        x, y = (values(p.sample(3, method, seed=0, steps=steps)) for p in (gap, alone))
        np.testing.assert_allclose(x, y, atol=1e-9)


def test_the_best_of_n_is_the_likeliest_of_the_same_candidates():
    posterior = opaque()
    one = posterior.sample(20, BestOfN(2), seed=0)
    best = posterior.sample(20, BestOfN(2, choice="best"), seed=0)
    like = [posterior.log_likelihood(torch.as_tensor(values(d))) for d in (one, best)]
    assert (like[1] >= like[0]).all() and (like[1] > like[0]).any()


def test_the_noise_search_never_gets_worse_with_iterations():
    posterior = opaque()
    found = []
    for iterations in (0, 2, 6):
        draws = posterior.sample(10, NoiseSearch(4, iterations, choice="best", steps=4), seed=0)
        found.append(posterior.log_likelihood(torch.as_tensor(values(draws))))
        assert draws.attrs["operator_calls"] == 4 * (iterations + 1)
        assert draws.attrs["log_likelihood"] == pytest.approx(float(found[-1].mean()))
    assert (found[1] >= found[0] - 1e-9).all() and (found[2] >= found[1] - 1e-9).all()


def test_stochastic_control_keeps_the_step_whose_denoised_state_fits_best():
    problem = gaussian("vector", 0)
    posterior, prior, k = problem.posterior, problem.posterior.prior, 5
    run = run_of(posterior, SCG(k, choice="best", steps=3))
    (rows,) = families(run, k, "stochastic control")
    sigmas = sd.solvers.Karras().sigmas(3, prior.sigma_min, prior.sigma_max)
    noise = rows.streams
    z = sigmas[0] * prior.noise(noise)
    for s, t in pairwise(sigmas[:3]):
        white = noise.normal((k, *prior.reference.white_shape), dtype=prior.dtype)[0]
        r = (t / s) ** 2
        tried = (1 - r) * prior.denoise(z, s) + r * z + t * math.sqrt(1 - r) * prior.reference.sqrt(white)
        like = posterior.log_likelihood(prior.normalisation.physical(prior.denoise(tried, t)))
        z = tried[like.argmax()][None]
    expected = prior.normalisation.physical(prior.denoise(z, sigmas[2]))
    draws = posterior.sample(1, SCG(k, choice="best", steps=3), seed=0)
    np.testing.assert_allclose(values(draws), expected, rtol=1e-9)
    assert draws.attrs["forwards"] == 2 * k + 1 and draws.attrs["operator_calls"] == 2 * k


def test_the_published_policy_gradient_refuses_noise_whose_mean_is_not_that_of_the_operator():
    prior = sd.GaussianPrior(SPACE, DENSE)
    operator = sd.operators.Matrix(SPACE, DATA, MATRIX)
    for noise in (sd.noise.Exceeds(0.5, sd=0.1), sd.noise.Poisson(2.0)):
        given = prior.given([1.0, 0.0], operator, noise)
        assert "mean other than" in DPG(8, strength=0.5).misfit(given)
        assert DPG(8).misfit(given) is None
    assert DPG(8, strength=0.5).misfit(opaque()) is None


def test_the_published_policy_gradient_ignores_the_noise_and_the_weighted_one_does_not():
    precise, loose = (opaque(sd.noise.Gaussian(s)) for s in (0.05, 1.0))
    same, other = DPG(16, strength=0.5), DPG(16)
    x, y = (values(p.sample(3, same, seed=0, steps=4)) for p in (precise, loose))
    np.testing.assert_allclose(x, y)
    x, y = (values(p.sample(3, other, seed=0, steps=4)) for p in (precise, loose))
    assert np.abs(x - y).max() > 0.1


@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_smoothed_gradients_are_right_on_average(scheme):
    posterior = opaque(sd.noise.Gaussian(0.5))
    prior, k = posterior.prior, 4000
    method = GSG(k, scheme=scheme, smoothing=1e-4)
    run = run_of(posterior, method)
    (rows,) = families(run, k, "gradient")
    d = torch.tensor([[0.4, -0.8, 0.3]], dtype=torch.float64)
    found = method._gradient(run, Judge(run), rows, d)[0].numpy()

    def like(z):
        return float(posterior.log_likelihood(prior.normalisation.physical(torch.as_tensor(z)[None])))

    eye = 1e-5 * np.eye(3)
    exact = np.array([(like(d[0].numpy() + e) - like(d[0].numpy() - e)) / 2e-5 for e in eye])
    # v = C^-1 mean(n n^T) g, whose entries vary as g^T C g / C_ii + g_i^2
    c = np.array([1.0, 2.0, 0.5])
    sd_ = np.sqrt(((exact**2 * c).sum() / c + exact**2) / k)
    assert (np.abs(found - exact) < 4 * sd_ + 1e-2 * np.abs(exact).max()).all()
    assert (np.abs(exact) > 8 * sd_).any()
