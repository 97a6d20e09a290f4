"""MMPS draws from denoising covariances that it knows by VJPs only: exact for Gaussians, at any number of steps.

The priors hide their covariance, so that everything goes through the denoiser: the draws of ``N(0, Cov)`` by Lanczos,
the solves by CG or, for few data, by a VJP each.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.diagnostics import floor, gaussian_w2
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.methods import mmps
from sciddiff.solvers import DPMSolver, Moments
from sciddiff.testing import exact

TIGHT = sd.MMPS(rtol=1e-11, draw_rtol=1e-11)
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")


def hidden(calibration, posterior):
    return sd.Posterior(calibration.Hidden(posterior.prior), posterior.observations, posterior.batch)


@pytest.mark.parametrize("few", [0, 8], ids=["by CG", "formed"])
def test_the_law_of_the_draws_is_the_exact_posterior_in_any_number_of_steps(
    posterior, calibration, monkeypatch, few
):
    monkeypatch.setattr(mmps, "_FEW", few)
    truth = calibration.exact(posterior)
    for steps in (2, 5):
        law = calibration.law_of_draws(hidden(calibration, posterior), TIGHT, solver=Moments(), steps=steps)
        mean, variance = truth.error(law)
        # what is left is the start at sigma_max, as where the covariance is known
        assert mean < 1e-5 and variance < 1e-5


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("what", ["Cov", "draw", "R"])
def test_a_factor_of_two_would_be_noticed(calibration, monkeypatch, factor, what):
    posterior = calibration.vector()
    if what == "Cov":
        tweedie = mmps.tweedie

        def wrong(run, z, sigma):
            d, cov = tweedie(run, z, sigma)
            return d, lambda w: factor * cov(w)

        monkeypatch.setattr(mmps, "tweedie", wrong)
    elif what == "draw":
        spread = mmps._Krylov.spread
        monkeypatch.setattr(mmps._Krylov, "spread", lambda *a: factor**0.5 * spread(*a))
    truth = calibration.exact(posterior)
    if what == "R":
        seen = posterior.observations[0]
        noise = sd.noise.Gaussian(factor**0.5 * seen.noise.sd)
        posterior = posterior.prior.given(seen.y[0], seen.operator, noise)
    law = calibration.law_of_draws(hidden(calibration, posterior), TIGHT, solver=Moments(), steps=4)
    assert max(truth.error(law)) > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["series", "grid, neumann, coloured C", "graph", "particles, C a projector"])
def test_draws_at_the_default_tolerances_match_the_exact_posterior(calibration, kind, dtype):
    posterior = exact.gaussian("series", 0).posterior if kind == "series" else calibration.PROBLEMS[kind]()
    truth, seen = calibration.exact(posterior), posterior.observations[0]
    prior = calibration.Hidden(posterior.prior.to(dtype=dtype))
    posterior = prior.given(seen.y[0], seen.operator, seen.noise)
    draws = posterior.sample(600, method=sd.MMPS(), solver=Moments(steps=4), seed=3)
    assert draws.attrs["solver"].startswith("Moments") and draws.attrs["vjps"] > 0
    truth.agree(calibration.flat(posterior, draws).astype(np.float64))


def test_sixteen_forwards_and_a_budget_of_400_reach_the_floor():
    problem, n = exact.gaussian("series", 1), 1000
    draws = problem.hidden().posterior.sample(n, method=sd.MMPS(), solver=Moments(steps=4), seed=0)
    least = floor(problem.draw, n, gaussian_w2)
    assert draws.attrs["forwards"] <= 16
    assert draws.attrs["forwards"] + 2 * draws.attrs["vjps"] <= 400
    x = draws[next(iter(draws.data_vars))].values.reshape(n, -1)
    assert gaussian_w2(x, problem.draw(n, 10_000)) < 1.2 * least


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("few", [0, 8], ids=["by CG", "formed"])
def test_draw_i_does_not_depend_on_the_number_of_draws_or_on_chunks(
    calibration, monkeypatch, dtype, tolerance, few
):
    monkeypatch.setattr(mmps, "_FEW", few)
    known = calibration.series()
    seen = known.observations[0]
    posterior = calibration.Hidden(known.prior.to(dtype=dtype)).given(seen.y[0], seen.operator, seen.noise)
    settings = {"method": sd.MMPS(), "solver": Moments(steps=4), "seed": 5}
    whole = posterior.sample(7, **settings)["x"]
    for other in (posterior.sample(7, chunk=3, **settings)["x"], posterior.sample(2, **settings)["x"]):
        assert float(abs(other - whole[: len(other)]).max()) < tolerance * float(abs(whole).max())


def test_every_case_with_gaps_of_its_own_has_its_exact_posterior(calibration, monkeypatch):
    single = calibration.vector()
    seen = single.observations[0]
    y = seen.y[0] + torch.arange(3.0).double()[:, None]
    y[1, 0], y[2, [0, 2]] = torch.nan, torch.nan
    noise = sd.noise.Gaussian(covariance=sd.covariance.dense(0.1 * calibration.random_covariance(4, 9)))
    cases = single.prior.given(y, seen.operator, noise, missing="mask", batch_dim="case")
    for few in (0, 8):
        monkeypatch.setattr(mmps, "_FEW", few)
        for case in range(3):
            law = calibration.law_of_draws(
                hidden(calibration, cases), TIGHT, solver=Moments(steps=3), case=case
            )
            assert max(calibration.exact(cases, case).error(law)) < 1e-5


def test_every_vjp_is_counted(calibration, monkeypatch):
    """VJPs through the denoiser are the calls of `torch.autograd.grad`, each of all rows."""
    rows, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda d, *a, **k: rows.append(len(d)) or grad(d, *a, **k))
    for few in (0, 8):
        monkeypatch.setattr(mmps, "_FEW", few)
        rows.clear()
        draws = hidden(calibration, calibration.series()).sample(5, sd.MMPS(), steps=3, seed=0)
        assert draws.attrs["vjps"] == sum(rows) / 5
        assert draws.attrs["forwards"] == 4


def test_the_default_solver_draws_where_the_denoiser_is_exact_and_nowhere_else(calibration):
    def solver(posterior, method):
        return posterior.sample(2, method, steps=3, seed=0).attrs["solver"].split("(")[0]

    known = calibration.vector()
    secret = hidden(calibration, known)
    assert solver(known, sd.MMPS()) == solver(secret, sd.MMPS()) == "Moments"
    assert solver(secret, sd.MMPS("guarded")) == solver(secret, sd.MMPS("scalar")) == "DPMSolver"
    secret.prior.exact = False
    assert solver(secret, sd.MMPS("exact")) == "DPMSolver"


def test_a_covariance_with_a_negative_eigenvalue_is_not_drawn_from(calibration):
    known = calibration.vector()
    seen = known.observations[0]
    blind = torch.linalg.svd(seen.operator.matrix.double()).Vh[
        -1
    ]  # the data do not see it, and so raise nothing

    class Repelling(type(calibration.Hidden(known.prior))):
        def denoise(self, z, sigma):
            return super().denoise(z, sigma) - 2.0 * (z @ blind)[:, None] * blind

    posterior = Repelling(known.prior).given(seen.y[0], seen.operator, seen.noise)
    with pytest.raises(ConvergenceError, match=r"negative eigenvalue.*gaussian"):
        posterior.sample(2, sd.MMPS("exact"), solver=Moments(steps=3), seed=0)


def test_draws_that_lanczos_does_not_reach_are_refused(calibration):
    posterior = hidden(calibration, calibration.vector())
    method = sd.MMPS(max_iterations=4, draw_rtol=1e-9)
    with pytest.raises(ConvergenceError, match="after 4 Lanczos iterations"):
        posterior.sample(2, method, solver=Moments(steps=3), seed=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_prior_of_points_whose_covariance_vanishes_is_drawn_from(dtype):
    rng = np.random.default_rng(0)
    space, points = sd.Space({"i": 24}), rng.standard_normal((15, 24))
    prior = sd.EmpiricalPrior(space, points, dtype=dtype)
    posterior = prior.given(
        points[4, :10] + 0.1, sd.operators.Points.at_indices(space, range(10)), sd.noise.Gaussian(0.1)
    )
    draws = posterior.sample(20, sd.MMPS(), solver=Moments(), seed=0)["x"].values
    # other points are many noise sds away: every draw is the point that made the data
    np.testing.assert_allclose(draws, np.tile(points[4], (20, 1)), atol=1e-3)


def test_moments_refuses_a_denoiser_that_cannot_draw(calibration):
    with pytest.raises(InputError, match="Moments"):
        hidden(calibration, calibration.vector()).sample(2, sd.MMPS("scalar"), solver=Moments(), seed=0)


def test_as_many_steps_as_dpm_solver_takes_are_not_needed(calibration):
    """Where a guided ODE is still far from its limit, the draws are exact: the reason for the default."""
    posterior = calibration.series()
    truth, secret = calibration.exact(posterior), hidden(calibration, posterior)
    law = {
        type(solver): calibration.law_of_draws(secret, TIGHT, solver=solver)
        for solver in (DPMSolver(steps=8), Moments(steps=8))
    }
    assert truth.error(law[DPMSolver])[1] > 0.1
    assert truth.error(law[Moments])[1] < 1e-5
