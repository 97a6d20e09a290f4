"""MMPS is exact for a Gaussian prior, a linear operator and the exact denoiser, on every kind of space.

Two kinds of proof. The samplers are affine in their noise here, so that the law of their draws is known
without sampling: it is compared with dense algebra to many digits. And the draws themselves pass the tests of
statistics.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.covariance import Covariance
from sciddiff.diagnostics import gaussian_w2
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.priors.base import Prior
from sciddiff.solvers import DPMSolver, Moments


def test_the_law_of_mmps_with_moments_is_the_exact_posterior_in_any_number_of_steps(posterior, calibration):
    truth = calibration.exact(posterior)
    for steps in (2, 16):
        law = calibration.law_of_draws(posterior, sd.MMPS(), solver=Moments(), steps=steps)
        mean, variance = truth.error(law)
        # what is left is the start at sigma_max; a factor of two in R or Cov would be of order 1
        assert mean < 1e-5 and variance < 1e-5


def test_the_law_of_mmps_with_dpm_solver_tends_to_the_exact_posterior_at_second_order(posterior, calibration):
    truth = calibration.exact(posterior)
    coarse, fine = (
        truth.error(calibration.law_of_draws(posterior, sd.MMPS(), solver=DPMSolver(steps=n)))
        for n in (32, 64)
    )
    assert max(coarse[0], fine[0]) < 1e-4  # means are exact at any number of steps
    assert fine[1] < 0.02
    assert coarse[1] / fine[1] > 3  # 4 in the limit of small steps


@pytest.mark.parametrize("solver", [Moments(steps=4), DPMSolver(steps=128)], ids=lambda s: type(s).__name__)
def test_draws_of_mmps_match_the_exact_posterior_within_monte_carlo_error(posterior, calibration, solver):
    n, truth = 600, calibration.exact(posterior)
    if isinstance(solver, DPMSolver):
        # the bias of the solver, known exactly, is below half a standard error of the sharpest test
        law = calibration.law_of_draws(posterior, sd.MMPS(), solver=solver)
        mean, cov = truth.whitened(law)
        r = len(cov)
        assert np.abs(mean).max() < 0.5 / np.sqrt(n)
        assert abs(np.trace(cov) - r) < 0.5 * np.sqrt(2 * r / n)
    draws = posterior.sample(n, method=sd.MMPS(), solver=solver, seed=3)
    truth.agree(calibration.flat(posterior, draws))


def test_gaussian_w2_of_mmps_falls_to_its_floor_as_the_steps_grow(calibration):
    """The pattern of a guided ODE: far at 8 steps, at the floor of two exact sets at 64."""
    posterior, n = calibration.series(), 1000
    truth = calibration.exact(posterior)
    rng = np.random.default_rng(0)
    pairs = [gaussian_w2(truth.draw(n, rng), truth.draw(n, rng)) for _ in range(20)]
    reference = truth.draw(n, rng)
    sampled, law = {}, {}
    for steps in (8, 16, 32, 64):
        solver = DPMSolver(steps=steps)
        draws = posterior.sample(n, method=sd.MMPS(), solver=solver, seed=4)
        sampled[steps] = gaussian_w2(torch.from_numpy(calibration.flat(posterior, draws)), reference)
        law[steps] = calibration.bures(truth, calibration.law_of_draws(posterior, sd.MMPS(), solver=solver))
    assert law[8] > 2 * law[16] > 4 * law[32] > 8 * law[64]
    assert sampled[8] > np.mean(pairs) + 4 * np.std(pairs)
    assert sampled[64] < np.mean(pairs) + 4 * np.std(pairs)
    # by 64 steps what is left is an eighth of what two exact sets of this size differ by
    assert law[64] < np.mean(pairs) / 8


class Scaled(Covariance):
    """A covariance times a factor: a bug to be noticed."""

    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor
        self.shape, self.white_shape, self.rank = inner.shape, inner.white_shape, inner.rank

    def sqrt(self, z):
        return self.factor**0.5 * self.inner.sqrt(z)

    def sqrt_adjoint(self, x):
        return self.factor**0.5 * self.inner.sqrt_adjoint(x)

    def solve(self, x):
        return self.inner.solve(x) / self.factor


class Misscaled(Prior):
    """A Gaussian prior whose denoising covariance is wrong by a factor."""

    exact = True

    def __init__(self, prior, factor):
        self.__dict__.update(prior.__dict__)
        self.inner, self.factor = prior, factor

    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma)

    def covariance(self, sigma):
        return Scaled(self.inner.covariance(sigma), self.factor)


@pytest.mark.parametrize("solver", [Moments(steps=16), DPMSolver(steps=128)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("what", ["R", "Cov"])
def test_a_factor_of_two_in_r_or_in_the_denoising_covariance_would_be_noticed(
    calibration, solver, factor, what
):
    posterior = calibration.vector()
    truth, seen = calibration.exact(posterior), posterior.observations[0]
    if what == "R":
        wrong = posterior.prior.given(
            seen.y[0], seen.operator, sd.noise.Gaussian(factor**0.5 * seen.noise.sd)
        )
    else:
        wrong = Misscaled(posterior.prior, factor).given(seen.y[0], seen.operator, seen.noise)
    draws = wrong.sample(600, method=sd.MMPS(), solver=solver, seed=3)
    with pytest.raises(AssertionError, match=r"is off|quantile"):
        truth.agree(calibration.flat(posterior, draws))
    law = calibration.law_of_draws(wrong, sd.MMPS(), solver=solver)
    assert max(truth.error(law)) > 0.1


def test_krylov_solves_through_the_denoiser_equal_the_formed_system(posterior, calibration):
    hidden = calibration.Hidden(posterior.prior)
    krylov = sd.Posterior(hidden, posterior.observations)
    formed = posterior.sample(3, method=sd.MMPS(), steps=6, solver=DPMSolver(), seed=0)
    for choice in ("exact", "guarded"):
        draws = krylov.sample(
            3, method=sd.MMPS(covariance=choice, rtol=1e-11), steps=6, solver=DPMSolver(), seed=0
        )
        assert draws.attrs["vjps"] > 0
        spread = formed.to_array().std()
        assert float(abs(draws - formed).to_array().max()) < 1e-6 * float(spread)


def test_solving_by_cg_with_the_known_covariance_equals_the_formed_system(posterior, monkeypatch):
    # sparse precisions are conditioned in information form otherwise; see tests/methods/test_banded.py
    monkeypatch.setattr("sciddiff.methods.mmps.banded", lambda run, covariance: None)
    formed = posterior.sample(3, method=sd.MMPS(), steps=4, seed=0)
    monkeypatch.setattr("sciddiff.methods.mmps._FORM_LIMIT", 0)
    fresh = sd.Posterior(posterior.prior, posterior.observations)
    iterated = fresh.sample(3, method=sd.MMPS(rtol=1e-11), steps=4, seed=0)
    assert iterated.attrs["operator_calls"] > formed.attrs["operator_calls"]
    spread = float(formed.to_array().std())
    assert float(abs(iterated - formed).to_array().max()) < 1e-7 * spread


def test_the_gaussian_fitted_to_a_gaussian_prior_is_as_exact(posterior, calibration):
    truth = calibration.exact(posterior)
    law = calibration.law_of_draws(posterior, sd.MMPS(covariance="gaussian"), steps=4)
    assert max(truth.error(law)) < 1e-5


def test_missing_values_equal_dropping_their_rows(calibration):
    full = calibration.vector()
    prior, seen = full.prior, full.observations[0]
    y = seen.y[0].clone()
    y[[1, 3]] = torch.nan
    masked = prior.given(y, seen.operator, seen.noise, missing="mask")
    kept = prior.given(
        y[[0, 2]],
        calibration.Dense(prior.space, seen.operator.matrix[[0, 2]]),
        sd.noise.Gaussian(seen.noise.sd[[0, 2]]),
    )
    for solver in (DPMSolver(steps=8), Moments(steps=2)):
        a = calibration.law_of_draws(masked, sd.MMPS(), solver=solver)
        b = calibration.law_of_draws(kept, sd.MMPS(), solver=solver)
        assert max(b.error(a)) < 1e-9


def test_every_case_has_its_own_gaps_and_its_own_exact_posterior(calibration):
    single = calibration.vector()
    prior, seen = single.prior, single.observations[0]
    y = seen.y[0] + torch.arange(4.0).double()[:, None]
    y[1, 0], y[2, 2], y[3, [0, 2]] = torch.nan, torch.nan, torch.nan
    noise = sd.noise.Gaussian(covariance=sd.covariance.dense(0.1 * calibration.random_covariance(4, 9)))
    cases = prior.given(y, seen.operator, noise, missing="mask", batch_dim="case")
    hidden = sd.Posterior(calibration.Hidden(prior), cases.observations, cases.batch)
    n = 600
    draws = cases.sample(n, method=sd.MMPS(), seed=0, chunk=500)
    assert draws["t"].dims == ("sample", "case", "site")
    for case in range(4):
        truth = calibration.exact(cases, case)
        assert max(truth.error(calibration.law_of_draws(cases, sd.MMPS(), steps=4, case=case))) < 1e-5
        truth.agree(calibration.flat(cases, draws, case=case))
        # by CG, where a missing value takes no part
        method, solver = sd.MMPS(rtol=1e-11), DPMSolver(steps=6)
        formed = calibration.law_of_draws(cases, method, solver=solver, case=case)
        assert max(formed.error(calibration.law_of_draws(hidden, method, solver=solver, case=case))) < 1e-6
    one = prior.given(y[:1], seen.operator, noise, batch_dim="case").sample(5, method=sd.MMPS(), seed=0)
    assert float(abs(one.isel(case=0) - draws.isel(case=0, sample=slice(5))).to_array().max()) < 1e-9


def test_several_observations_are_one_observation_of_all_values(calibration):
    whole = calibration.vector()
    prior, seen = whole.prior, whole.observations[0]
    parts = sd.Posterior(prior, ())
    for rows in ([0, 2], [1], [3]):
        operator = calibration.Dense(prior.space, seen.operator.matrix[rows])
        parts = parts.given(seen.y[0, rows], operator, sd.noise.Gaussian(seen.noise.sd[rows]))
    law = calibration.law_of_draws(whole, sd.MMPS(), steps=4)
    assert max(law.error(calibration.law_of_draws(parts, sd.MMPS(), steps=4))) < 1e-9


@pytest.mark.parametrize("solver", [Moments(steps=4), DPMSolver(steps=12)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("hide", [False, True], ids=["formed", "krylov"])
def test_other_units_of_state_and_data_give_the_same_draws(calibration, solver, hide):
    first = calibration.vector()
    if hide and isinstance(solver, Moments):
        solver = DPMSolver(steps=8)
    space, seen = first.prior.space, first.observations[0]
    a, b, c = 1.8, -459.67, 1e3  # kelvin to fahrenheit, volts to millivolts
    prior = sd.GaussianPrior(
        space,
        sd.covariance.scaled(first.prior.physical_covariance, torch.tensor(1 / a, dtype=torch.float64)),
        a * first.prior.normalisation.mean + b,
    )
    matrix = c * seen.operator.matrix
    y = c * a * seen.y[0] + matrix @ torch.full((space.size,), b, dtype=torch.float64)
    operator, noise = calibration.Dense(space, matrix), sd.noise.Gaussian(c * a * seen.noise.sd)
    posteriors = [first, prior.given(y, operator, noise)]
    if hide:
        posteriors = [sd.Posterior(calibration.Hidden(p.prior), p.observations) for p in posteriors]
    x, scaled = (p.sample(4, method=sd.MMPS(), solver=solver, seed=0)["t"] for p in posteriors)
    assert float(abs(scaled - (a * x + b)).max()) < 1e-9 * float(abs(scaled).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("hide", [False, True], ids=["formed", "krylov"])
def test_draw_i_does_not_depend_on_the_number_of_draws_or_on_chunks(calibration, dtype, tolerance, hide):
    double = calibration.series()
    prior = double.prior.to(dtype=dtype)
    seen = double.observations[0]
    prior = calibration.Hidden(prior) if hide else prior
    posterior = prior.given(seen.y[0], seen.operator, seen.noise)
    settings = {"method": sd.MMPS(rtol=1e-8 if dtype == torch.float64 else 1e-5), "steps": 8, "seed": 5}
    whole = posterior.sample(10, **settings)["x"]
    assert whole.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    for other in (
        posterior.sample(10, chunk=3, **settings)["x"],
        posterior.sample(10, chunk=1, **settings)["x"],
        posterior.sample(4, **settings)["x"],
    ):
        assert float(abs(other - whole[: len(other)]).max()) < tolerance * float(abs(whole).max())
    assert float(abs(posterior.sample(2, **{**settings, "seed": 6})["x"] - whole[:2]).max()) > 0.1


def test_float32_draws_are_rounded_float64_draws(calibration):
    double = calibration.series()
    seen = double.observations[0]
    single = double.prior.to(dtype=torch.float32).given(seen.y[0], seen.operator, seen.noise)
    a, b = (p.sample(6, method=sd.MMPS(), seed=0)["x"] for p in (double, single))
    assert float(abs(a - b).max()) < 1e-4


def test_the_shape_of_a_state_does_not_matter(calibration):
    d, rng = 12, np.random.default_rng(8)
    covariance = calibration.random_covariance(d, 10)
    # unit variances: the variables of every layout then have the same scale
    covariance = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    matrix, y = rng.standard_normal((5, d)), rng.standard_normal(5)
    spaces = [
        sd.Space({"i": 12}),
        sd.Space({"l": 6}, ["a", "b"]),
        sd.Space({"h": 2, "w": 3}, ["a", "b"]),
        sd.Space({"h": 2, "w": 3}, {"a": sd.Variable(("h", "w"), complex=True)}),
    ]
    draws = []
    for space in spaces:
        prior = sd.GaussianPrior(space, sd.covariance.dense(covariance, space.shape))
        for p in (prior, calibration.Hidden(prior)):
            posterior = p.given(y, calibration.Dense(space, matrix), sd.noise.Gaussian(0.2))
            out = posterior.sample(4, method=sd.MMPS(rtol=1e-12), solver=DPMSolver(steps=8), seed=0)
            draws.append(calibration.flat(posterior, out))
    for other in draws[1:]:
        np.testing.assert_allclose(other, draws[0], atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_is_refused_before_any_compute(calibration, bad):
    posterior = calibration.vector()
    seen = posterior.observations[0]
    y = seen.y[0].clone()
    y[2] = bad
    with pytest.raises(InputError, match="finite"):
        posterior.prior.given(y, seen.operator, seen.noise)


def test_a_krylov_solve_that_does_not_converge_raises(calibration):
    posterior = calibration.vector()
    hidden = sd.Posterior(calibration.Hidden(posterior.prior), posterior.observations)
    with pytest.raises(ConvergenceError, match="after 1 CG iterations"):
        hidden.sample(2, method=sd.MMPS(rtol=1e-10, max_iterations=1), steps=4, seed=0)
