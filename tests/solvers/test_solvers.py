"""What every solver promises: the right draws, alone or in a batch, counted, checked and without side effects."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torchdiffeq import odeint

import sciddiff as sd
from sciddiff.covariance import pairs
from sciddiff.errors import ConvergenceError, DivergenceError, InputError
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.solvers import (
    Adaptive,
    Ancestral,
    DPMSolver,
    Euler,
    Heun,
    PredictorCorrector,
    Solver,
    generate,
    invert,
)

# steps such that the bias, by the measured orders, is below a fifth of the standard error of a variance
SOLVERS = {
    "Euler": (Euler(steps=1024), 2000),
    "Heun": (Heun(steps=128), 2000),
    "DPMSolver": (DPMSolver(steps=128), 2000),
    "Adaptive": (Adaptive(), 2000),
    "Ancestral": (Ancestral(steps=640), 300),
    "Ancestral(eta=0.3)": (Ancestral(steps=320, eta=0.3), 300),
    "PredictorCorrector": (PredictorCorrector(steps=128), 300),
    "PredictorCorrector(Ancestral)": (PredictorCorrector(steps=640, predictor=Ancestral()), 300),
}
FALSE_ALARM = 1e-4  # of each test, at fixed seeds


def gaussian(kind: str) -> tuple[sd.GaussianPrior, np.ndarray, np.ndarray]:
    """A prior on eight values, its mean and its covariance matrix."""
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal((2, 8, 8))
    mean, law = generator.standard_normal(8), a @ a.T / 8 + 0.1 * np.eye(8)
    reference = None
    if kind == "correlated":
        reference = sd.covariance.dense(b @ b.T / 8 + 0.2 * np.eye(8))
    elif kind == "centred":
        reference = sd.covariance.centred((8,))
        law = (np.eye(8) - 1 / 8) @ law @ (np.eye(8) - 1 / 8)
    prior = sd.GaussianPrior(sd.Space({"i": 8}), sd.covariance.dense(law), mean, reference=reference)
    return prior, mean, law


def bimodal(dtype: torch.dtype = torch.float64) -> GaussianMixturePrior:
    return GaussianMixturePrior(sd.Space({"i": 1}), [0.3, 0.7], [[-1.0], [1.5]], [0.04, 0.16], dtype=dtype)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["white", "correlated", "centred"])
def test_draws_have_the_mean_and_covariance_of_a_gaussian_prior(name: str, kind: str):
    prior, mean, law = gaussian(kind)
    solver, n = SOLVERS[name]
    x = prior.sample(n, seed=0, solver=solver)["x"].values - mean
    values, vectors = np.linalg.eigh(law)
    inside = values > 1e-9 * values[-1]
    np.testing.assert_allclose(x @ vectors[:, ~inside], 0.0, atol=1e-9)
    z = x @ vectors[:, inside] / np.sqrt(values[inside])
    rank, s = z.shape[1], z.T @ z / n
    # n mean^2, n s_ij^2 and n (s_ii - 1)^2 / 2 are chi-square of one degree each, and independent
    mean_statistic = n * (z.mean(0) ** 2).sum()
    law_statistic = n * (np.triu(s, 1) ** 2).sum() + n / 2 * ((np.diag(s) - 1) ** 2).sum()
    assert mean_statistic < stats.chi2.isf(FALSE_ALARM, rank)
    assert law_statistic < stats.chi2.isf(FALSE_ALARM, rank * (rank + 1) // 2)


@pytest.mark.parametrize("name", SOLVERS)
def test_draws_of_a_bimodal_prior_follow_its_distribution_function(name: str):
    solver, n = SOLVERS[name]
    x = bimodal().sample(n, seed=0, solver=solver)["x"].values[:, 0]

    def cdf(v: np.ndarray) -> np.ndarray:
        return 0.3 * stats.norm.cdf(v, -1, 0.2) + 0.7 * stats.norm.cdf(v, 1.5, 0.4)

    assert stats.kstest(x, cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_a_draw_is_the_same_alone_and_in_any_batch(name: str, dtype: torch.dtype, tolerance: float):
    solver, prior = SOLVERS[name][0].with_steps(16), bimodal(dtype)
    together = prior.sample(9, seed=5, solver=solver)["x"].values
    chunked = prior.sample(9, seed=5, solver=solver, chunk=4)["x"].values
    alone = prior.sample(9, seed=5, solver=solver, chunk=1)["x"].values
    assert together.dtype == np.dtype(str(dtype).removeprefix("torch."))
    np.testing.assert_allclose(chunked, together, rtol=0, atol=tolerance)
    np.testing.assert_allclose(alone, together, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("solver", "calls"),
    [
        (Euler(steps=16), 16),
        (DPMSolver(steps=16), 16),
        (Heun(steps=16), 31),
        (Ancestral(steps=16), 16),
        (PredictorCorrector(steps=16), 31 + 15),
        (PredictorCorrector(steps=16, predictor=Euler(), corrections=3), 16 + 3 * 15),
        # one slope at the start, six for each of seven steps, and the last call; nothing is halved
        (Adaptive(steps=8, rtol=1e9), 1 + 6 * 7 + 1),
    ],
    ids=repr,
)
def test_every_evaluation_is_counted_and_every_step_shown(solver: Solver, calls: int):
    evaluated, shown = [], []

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        evaluated.append(sigma)
        return 0.5 * x

    def progress(steps):
        for i in steps:
            shown.append(i)
            yield i

    x = torch.ones(2, 3)
    sigmas = solver.schedule.sigmas(solver.steps, 0.1, 10.0)
    out = solver.integrate(denoise, x, sigmas, lambda: torch.zeros(2, 3), progress)
    assert len(evaluated) == calls and shown == list(range(solver.steps))
    assert out.dtype is torch.float32 and torch.equal(x, torch.ones(2, 3))
    assert bimodal().sample(2, seed=0, solver=solver).attrs["forwards"] == calls + 1  # the start takes one


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_that_becomes_infinite_is_reported_with_its_step_and_sigma(name: str):
    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        bad = torch.tensor([[False], [sigma < 1.0]])
        return torch.where(bad, torch.inf, 0.5 * x)

    solver = SOLVERS[name][0].with_steps(8)
    sigmas = solver.schedule.sigmas(8, 0.1, 10.0)
    with pytest.raises(DivergenceError, match=r"^1 of .* step \d+ at sigma = [\d.]+"):
        solver.integrate(denoise, torch.ones(2, 1), sigmas, lambda: torch.zeros(2, 1), iter)


def test_large_finite_states_are_not_taken_for_divergence():
    x = torch.full((4, 100), 3e37)
    assert torch.equal(Euler().integrate(lambda x, s: x, x, [2.0, 1.0], lambda: x, iter), x)


@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 2.0], [2.0, 2.0, 0.0], [math.inf, 0.0], [1.0, math.nan], [1.0, -1.0]]
)
def test_levels_that_do_not_fall_are_refused(sigmas: list[float]):
    with pytest.raises(InputError, match="sigmas"):
        Heun().integrate(lambda x, s: x, torch.ones(1, 1), sigmas, lambda: torch.ones(1, 1), iter)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Ancestral(eta=1.5), "eta"),
        (lambda: Ancestral(eta=math.nan), "eta"),
        (lambda: PredictorCorrector(tau=0.0), "tau"),
        (lambda: PredictorCorrector(corrections=0), "corrections"),
        (lambda: PredictorCorrector(predictor=Heun), "predictor"),
        (lambda: Adaptive(rtol=0.0), "rtol"),
        (lambda: Adaptive(atol=-1.0), "atol"),
        (lambda: Adaptive(halvings=-1), "halvings"),
    ],
)
def test_settings_out_of_range_are_refused(make, argument: str):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        make()


def test_adaptive_agrees_with_torchdiffeq_on_the_ode_in_sigma():
    prior = bimodal()
    x = 20.0 * torch.from_numpy(np.random.default_rng(0).standard_normal((16, 1)))
    levels = torch.tensor([20.0, 0.02], dtype=torch.float64)

    def slope(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - prior.denoise(x, float(sigma))) / sigma

    exact = odeint(slope, x, levels, rtol=1e-11, atol=1e-11)[-1]
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        solver = Adaptive(rtol=tolerance, atol=tolerance)
        sigmas = solver.schedule.sigmas(solver.steps, 0.02, 20.0)[:-1]
        ours = solver.integrate(prior.denoise, x, sigmas, lambda: x, iter)
        errors.append(float((ours - exact).abs().max()))
        assert errors[-1] < 30 * tolerance  # the sum of the errors of some tens of steps
    assert errors[0] > errors[1] > errors[2]


def test_a_markov_field_keeps_a_bounded_number_of_factors_however_many_levels_there_are(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pairs, "_FACTORS", 5)
    field = sd.covariance.precision(sparse.diags([-np.ones(5), 2.5 * np.ones(6), -np.ones(5)], [-1, 0, 1]))
    prior = sd.GaussianPrior(sd.Space({"i": 6}), field)
    kept = prior.sample(3, seed=0, solver=Heun(steps=20))
    monkeypatch.undo()
    assert len(prior.joint._cache) == 5
    assert prior.sample(3, seed=0, solver=Heun(steps=20)).equals(kept)


def test_adaptive_says_so_where_it_misses_the_tolerance():
    def jump(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.sign(x) * (1.0 + (sigma < 1.2345)) * (1.0 + (x > 0.3))

    solver = Adaptive(rtol=1e-9, atol=1e-9, halvings=4)
    with pytest.raises(ConvergenceError, match=r"1 of 1 draws miss rtol"):
        solver.integrate(jump, torch.full((1, 1), 2.0), [10.0, 0.1, 0.0], lambda: torch.zeros(1, 1), iter)


def test_solvers_likelihood_and_inversion_touch_no_global_state():
    def state() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            random.getstate(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_num_threads(),
        ]

    prior = bimodal()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            before = state()
            draws = [prior.sample(3, seed=0, solver=s.with_steps(8)) for s, _ in SOLVERS.values()]
            prior.log_prob(draws[0])
            prior.log_prob(draws[0], probes=2, rtol=1e-3, atol=1e-3)
            generate(prior, invert(prior, draws[0], rtol=1e-3, atol=1e-3), rtol=1e-3, atol=1e-3)
            assert state() == before
