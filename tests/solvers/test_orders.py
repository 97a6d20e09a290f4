"""How the error falls with the steps, in float64 and with exact denoisers.

The flow map of a Gaussian is known, ``x -> (Sigma + t^2 C)^1/2 (Sigma + s^2 C)^-1/2 x`` in the coordinates where both are
diagonal. A stochastic solver is linear in its start and its noises there, so that the law of its draws
is found without sampling: one row for each noise that it calls for.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sciddiff as sd
from sciddiff.priors.base import Prior
from sciddiff.solvers import (
    VP,
    Adaptive,
    Ancestral,
    Cosine,
    DPMSolver,
    Euler,
    Exponential,
    Flow,
    Heun,
    Karras,
    PredictorCorrector,
    Schedule,
    Solver,
)

LOW, HIGH = 0.02, 20.0
STEPS = (128, 256, 512)
DETERMINISTIC = [Euler, Heun, DPMSolver]
STOCHASTIC = [
    Ancestral(),
    Ancestral(eta=0.5),
    PredictorCorrector(),
    PredictorCorrector(predictor=Euler()),
    PredictorCorrector(predictor=DPMSolver()),
    PredictorCorrector(predictor=Ancestral(), corrections=2, tau=0.3),
]


def gaussian(kind: str) -> Prior:
    """Three values; the reference noise white, correlated, or without a mean."""
    generator = np.random.default_rng(3)
    a, b = generator.standard_normal((2, 3, 3))
    space = sd.Space({"i": 3})
    centred = sd.covariance.centred((3,))
    reference = {"white": None, "correlated": sd.covariance.dense(b @ b.T + np.eye(3)), "centred": centred}[
        kind
    ]
    law = sd.covariance.dense(a @ a.T)
    if kind == "centred":
        law = sd.covariance.dense(centred.apply(centred.apply(torch.from_numpy(a @ a.T)).T))
    return sd.GaussianPrior(space, law, reference=reference, sigma_min=LOW, sigma_max=None)


def mixture(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The denoiser of ``0.3 N(-1, 0.2^2) + 0.7 N(1.5, 0.4^2)``, value by value."""
    weight, mean, sd = (torch.tensor(v, dtype=x.dtype) for v in ([0.3, 0.7], [-1.0, 1.5], [0.2, 0.4]))
    total, offset = sd**2 + sigma**2, x[..., None] - mean
    share = torch.softmax(weight.log() - 0.5 * total.log() - 0.5 * offset**2 / total, -1)
    return (share * (mean + sd**2 / total * offset)).sum(-1)


def run(solver: Solver, denoise, x: torch.Tensor, noise=None) -> torch.Tensor:
    """From HIGH to LOW: the step to 0 is the same for all solvers and has no order."""
    sigmas = solver.schedule.sigmas(solver.steps, LOW, HIGH)[:-1]
    return solver.integrate(denoise, x, sigmas, noise, iter)


def start(rows: int, *shape: int) -> torch.Tensor:
    return HIGH * torch.from_numpy(np.random.default_rng(0).standard_normal((rows, *shape)))


def flow_map(prior: Prior, x: torch.Tensor) -> torch.Tensor:
    """The closed form, by the spectrum of ``C^1/2+ Sigma C^1/2+``."""
    eye = torch.eye(3, dtype=torch.float64)
    c, law = prior.reference.apply(eye), prior.law.apply(eye)
    gamma, u = torch.linalg.eigh(c)
    keep = gamma > 1e-9
    half, inverse = u[:, keep] * gamma[keep].sqrt(), u[:, keep] / gamma[keep].sqrt()
    lam, v = torch.linalg.eigh(inverse.T @ law @ inverse)
    shrink = ((lam + LOW**2) / (lam + HIGH**2)).sqrt()
    return x @ (half @ v @ torch.diag(shrink) @ (inverse @ v).T).T


def slopes(errors: list[float]) -> np.ndarray:
    return -np.diff(np.log2(errors))


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: s.__name__)
@pytest.mark.parametrize("kind", ["white", "correlated", "centred"])
def test_a_deterministic_solver_has_its_order_on_a_gaussian(solver: type[Solver], kind: str):
    prior = gaussian(kind)
    x = prior.reference.sqrt(start(4, 3))
    exact = flow_map(prior, x)
    errors = [float((run(solver(steps=n), prior.denoise, x) - exact).abs().max()) for n in STEPS]
    assert slopes(errors) == pytest.approx(solver.order, abs=0.25)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("schedule", [Karras(), Exponential(), VP(), Cosine(), Flow()], ids=repr)
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: s.__name__)
def test_a_deterministic_solver_has_its_order_on_a_mixture_on_every_schedule(
    solver: type[Solver], schedule: Schedule
):
    x = start(1, 8)

    def slope(u: float, y: np.ndarray) -> np.ndarray:
        return y - mixture(torch.from_numpy(y), math.exp(u)).numpy()

    ends = (math.log(HIGH), math.log(LOW))
    exact = solve_ivp(slope, ends, x[0].numpy(), method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    errors = [
        float(np.abs(run(solver(steps=n, schedule=schedule), mixture, x)[0].numpy() - exact).max())
        for n in STEPS
    ]
    assert slopes(errors) == pytest.approx(solver.order, abs=0.25)


def test_adaptive_steps_that_are_not_halved_have_at_least_order_five():
    x = start(1, 8)
    exact = run(Adaptive(steps=512, rtol=1.0, atol=1.0), mixture, x)
    errors = [float((run(Adaptive(steps=n, rtol=1e9), mixture, x) - exact).abs().max()) for n in (24, 48, 96)]
    assert (slopes(errors) > Adaptive.order - 0.25).all()


def law(solver: Solver, prior: Prior) -> torch.Tensor:
    """Covariance of the draws at LOW, ``(3, 3)``, from a start with the covariance at HIGH."""
    eye = torch.eye(3, dtype=torch.float64)
    calls = solver.steps * (getattr(solver, "corrections", 0) + 1)
    x = torch.zeros(3 * (calls + 1), 3, dtype=torch.float64)
    at = prior.law.apply(eye) + HIGH**2 * prior.reference.apply(eye)
    values, vectors = torch.linalg.eigh(at)
    x[:3] = (vectors * values.clamp(min=0.0).sqrt()).T
    used = 0

    def noise() -> torch.Tensor:
        nonlocal used
        used += 1
        z = torch.zeros_like(x)
        z[3 * used : 3 * used + 3] = prior.reference.sqrt(eye)
        return z

    rows = run(solver, prior.denoise, x, noise)
    return rows.T @ rows


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
@pytest.mark.parametrize("kind", ["correlated", "centred"])
def test_the_law_of_a_stochastic_solver_has_order_one(solver: Solver, kind: str):
    prior, eye = gaussian(kind), torch.eye(3, dtype=torch.float64)
    exact = prior.law.apply(eye) + LOW**2 * prior.reference.apply(eye)
    errors = [
        float(torch.linalg.matrix_norm(law(solver.with_steps(n), prior) - exact, 2)) for n in (128, 256, 512)
    ]
    assert slopes(errors) == pytest.approx(solver.order, abs=0.25)
    assert errors[-1] < 0.03 * float(torch.linalg.matrix_norm(exact, 2))


def test_ancestral_at_eta_zero_is_euler():
    x = start(2, 8)
    assert torch.equal(run(Ancestral(eta=0.0), mixture, x), run(Euler(), mixture, x))


def test_ancestral_at_eta_one_is_the_gaussian_posterior_step():
    # p(x_t | x_s, x0 = D) of the Gaussian chain x0 -> x_t -> x_s with variances t^2 and s^2 - t^2
    s, t, x, d = 3.0, 1.25, torch.tensor([[2.0]], dtype=torch.float64), 0.5
    precision = 1 / t**2 + 1 / (s**2 - t**2)
    mean, sd = (d / t**2 + float(x) / (s**2 - t**2)) / precision, precision**-0.5
    rows = [
        float(
            Ancestral().stepper(lambda x, s: torch.full_like(x, d), lambda n=n: torch.full_like(x, n))(
                x, s, t
            )
        )
        for n in (-1.0, 1.0)
    ]
    assert rows == pytest.approx([mean - sd, mean + sd], rel=1e-12)
