"""The laws of the splitting samplers and of their likelihood steps, against dense algebra.

For Gaussian priors, linear operators and Gaussian noise every step is affine in its noise, so that the law of the
draws is known without sampling.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.covariance import dense, multiple, scaled
from sciddiff.diagnostics import gaussian_w2
from sciddiff.methods import DAPS, DDNM, DDRM, DiffPIR, DPnP, Method, PnPDM, RePaint
from sciddiff.methods.likelihood_steps import GaussianStep, HamiltonianStep, multiples
from sciddiff.priors.base import Prior
from sciddiff.testing.exact import gaussian

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

SIGMA = 0.4
known = cache(lambda kind: gaussian(kind, 0))
FEW = ["vector, dense C", "series, C a process", "particles, C a projector", "two instruments"]


@dataclass(frozen=True)
class Alone(Method):
    """A likelihood step from a fixed centre, and nothing else."""

    kind: ClassVar[type] = GaussianStep
    moves: int = 1
    start: str = "centre"

    def centre(self, prior: Prior, rows: int) -> torch.Tensor:
        z = torch.linspace(-1, 1, prior.space.size, dtype=torch.float64).reshape(1, *prior.space.shape)
        return prior.reference.apply(z).expand(rows, *prior.space.shape).to(prior.dtype)

    def draw(self, run):
        covariance, out = multiples(run.prior.reference), []
        exact = GaussianStep(run, covariance)
        step = exact if self.moves == 0 else HamiltonianStep(run, covariance, self.moves, 5)
        if self.moves:
            # a longer step than the method's own, so that much is rejected and the rule of it matters
            step.length *= 1.6
        for rows in run.rows():
            centre = self.centre(run.prior, len(rows.cases))
            start = centre if self.start == "centre" else exact(centre, centre, SIGMA, rows)
            out.append(step(start, centre, SIGMA, rows))
        return torch.cat(out)


def narrow(posterior: sd.Posterior) -> sd.Posterior:
    """The same data under the prior ``N(centre, SIGMA^2 C)``, which is the law of `Alone`."""
    prior = copy.copy(posterior.prior)
    units = prior.normalisation
    centre = units.physical(Alone().centre(prior, 1))[0]
    units = type(units)(centre, units.scale)
    prior.normalisation = units
    prior.physical_covariance = scaled(multiple(prior.reference, SIGMA**2), 1 / units.scale)
    return sd.Posterior(prior, posterior.observations, posterior.batch)


def widened(posterior: sd.Posterior, rho: float, calibration) -> sd.Posterior:
    """The posterior with ``R + rho^2 B C B^T`` in place of ``R``."""
    prior, y, blocks = posterior.prior, [], []
    eye = torch.eye(prior.space.size, dtype=torch.float64).reshape(-1, *prior.space.shape)
    for o in posterior.observations:
        blocks.append(o.operator.apply(eye).flatten(1).T)
        y.append(o.y[0].flatten())
    a, scale = torch.cat(blocks), prior.normalisation.scale * torch.ones(prior.space.shape)
    noise = torch.block_diag(
        *[
            o.noise.covariance(o.operator.codomain.shape)
            .apply(
                torch.eye(o.operator.codomain.size, dtype=torch.float64).reshape(
                    -1, *o.operator.codomain.shape
                )
            )
            .flatten(1)
            for o in posterior.observations
        ]
    )
    c = scale.flatten()[:, None] * prior.reference.apply(eye).flatten(1) * scale.flatten()
    total = noise + rho**2 * a @ c.double() @ a.T
    return prior.given(
        torch.cat(y), calibration.Dense(prior.space, a), sd.noise.Gaussian(covariance=dense(total))
    )


def test_the_likelihood_step_has_the_law_of_the_data_times_its_gaussian(posterior, calibration):
    law = calibration.law_of_draws(posterior, Alone(moves=0))
    truth = calibration.exact(narrow(posterior))
    assert max(truth.error(law)) < 1e-9


@pytest.mark.parametrize("name", ["vector, dense C", "two instruments"])
def test_the_likelihood_step_by_conjugate_gradients_is_that_of_the_formed_system(
    name, calibration, monkeypatch
):
    formed = calibration.law_of_draws(calibration.PROBLEMS[name](), Alone(moves=0))
    monkeypatch.setattr("sciddiff.methods.likelihood_steps._FORM_LIMIT", 0)
    assert max(formed.error(calibration.law_of_draws(calibration.PROBLEMS[name](), Alone(moves=0)))) < 1e-4


@pytest.mark.parametrize("name", ["vector, dense C", "particles, C a projector"])
def test_hamiltonian_moves_leave_the_law_of_the_step_as_it_is(name, calibration):
    posterior = calibration.PROBLEMS[name]()
    draws = posterior.sample(2000, method=Alone(moves=3, start="exact"), seed=1)
    assert 0.5 < draws.attrs["acceptance"] < 0.95  # so that accepting all would be noticed
    calibration.exact(narrow(posterior)).agree(calibration.flat(posterior, draws))


def test_hamiltonian_moves_find_the_law_of_the_step_from_elsewhere(calibration):
    posterior = calibration.PROBLEMS["vector, dense C"]()
    draws = posterior.sample(1000, method=Alone(moves=20), seed=2)
    calibration.exact(narrow(posterior)).agree(calibration.flat(posterior, draws))


def test_the_law_of_daps_is_the_exact_posterior_in_a_few_steps(posterior, calibration):
    law = calibration.law_of_draws(posterior, DAPS(), steps=8)
    # what is left is the start at sigma_max, forgotten from level to level
    assert max(calibration.exact(posterior).error(law)) < 1e-5


def test_daps_with_tempering_one_fifth_has_the_law_of_a_fifth_of_the_noise(calibration):
    posterior = calibration.vector()
    seen = posterior.observations[0]
    fifth = posterior.prior.given(seen.y[0], seen.operator, sd.noise.Gaussian(seen.noise.sd / 5))
    law = calibration.law_of_draws(posterior, DAPS(tempering=0.2), steps=10)
    assert max(calibration.exact(fifth).error(law)) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_split_gibbs_settles_at_the_posterior_of_noise_widened_by_the_coupling(name, calibration):
    posterior, rho = calibration.PROBLEMS[name](), 1.5
    method = PnPDM(rho_min=rho, rho_max=2.0, steps=45, settle=40)
    law = calibration.law_of_draws(posterior, method)
    assert max(calibration.exact(widened(posterior, rho, calibration)).error(law)) < 1e-6
    # and that is not the posterior
    assert max(calibration.exact(posterior).error(law)) > 0.05


def small() -> sd.Posterior:
    """Two correlated values, one of them seen: small, for laws of many steps."""
    prior = sd.GaussianPrior(sd.Space({"i": 2}), dense([[1.0, 0.6], [0.6, 1.0]]), [3.0, 1.0])
    return prior.given([2.0], sd.operators.Points.at_indices(prior.space, [0]), sd.noise.Gaussian(1.0))


def test_the_bias_of_split_gibbs_falls_as_the_square_of_the_coupling(calibration):
    posterior, off = small(), {}
    truth = calibration.exact(posterior)
    for rho in (0.4, 0.2):
        method = PnPDM(rho_min=rho, rho_max=2.0, steps=130, settle=120)
        off[rho] = truth.error(calibration.law_of_draws(posterior, method))[1]
    assert 3.5 < off[0.4] / off[0.2] < 4.5


@pytest.mark.parametrize("method", [PnPDM(), DPnP()], ids=repr)
def test_split_gibbs_is_near_the_posterior_at_its_own_coupling(method, calibration):
    posterior = small()
    truth, law = calibration.exact(posterior), calibration.law_of_draws(posterior, method)
    scale = np.sqrt(np.diag(truth.cov))
    assert np.abs((law.mean - truth.mean) / scale).max() < 0.1
    assert 0.95 < np.median(np.sqrt(np.diag(law.cov)) / scale) < 1.05


def test_repaint_that_uses_the_noise_tends_to_the_posterior_where_all_is_seen(calibration):
    prior = sd.GaussianPrior(sd.Space({"i": 2}), sd.covariance.white((2,)), [1.0, 0.0])
    posterior = prior.given([0.5, 2.0], sd.operators.Identity(prior.space), sd.noise.Gaussian(0.5))
    truth, method, off = calibration.exact(posterior), RePaint(noise="used", resamplings=1), {}
    for steps in (100, 200):
        off[steps] = truth.error(calibration.law_of_draws(posterior, method, steps=steps))
    # of first order in the steps, as every ancestral step is
    for coarse, fine in zip(off[100], off[200], strict=True):
        assert fine < 0.05 and 1.6 < coarse / fine < 2.4


@pytest.mark.parametrize("kind", ["series", "grid", "graph"])
def test_daps_matches_the_posterior_of_a_series_a_grid_and_a_graph_in_both_precisions(kind, calibration):
    problem = known(kind)
    seen, n = problem.posterior.observations[0], 150
    truth = calibration.Law(problem.mean, problem.covariance)
    draws = {}
    for dtype in (torch.float64, torch.float32):
        posterior = problem.posterior.prior.to(dtype=dtype).given(
            seen.y[0].to(dtype), seen.operator, seen.noise
        )
        draws[dtype] = calibration.flat(posterior, posterior.sample(n, method=DAPS(steps=6), seed=1))
    white = (draws[torch.float64] - truth.mean) @ np.linalg.inv(np.linalg.cholesky(truth.cov)).T
    # chi-square of n d degrees of freedom, and d means
    d = white.shape[1]
    assert abs((white**2).sum() / (n * d) - 1) < 4 * np.sqrt(2 / (n * d))
    assert abs(n * (white.mean(0) ** 2).sum() / d - 1) < 4 * np.sqrt(2 / d)
    gap = np.abs(draws[torch.float32] - draws[torch.float64]).max() / np.sqrt(np.diag(truth.cov)).max()
    assert gap < 5e-3


@pytest.mark.parametrize(
    "method", [PnPDM(rho_min=0.1), DiffPIR(), DDRM(), DDNM(), RePaint(resamplings=2)], ids=repr
)
@pytest.mark.parametrize("kind", ["series", "grid", "graph"])
def test_the_biased_methods_run_on_every_space_and_round_float64_in_float32(kind, method):
    problem = known(kind)
    seen, draws = problem.posterior.observations[0], {}
    for dtype in (torch.float64, torch.float32):
        prior = problem.posterior.prior.to(dtype=dtype)
        posterior = prior.given(seen.y[0].to(dtype), seen.operator, seen.noise)
        draws[dtype] = posterior.sample(3, method=method, steps=6, seed=0)
    a, b = (d.to_array().values for d in draws.values())
    assert a.dtype == np.float64 and b.dtype == np.float32
    assert np.abs(a - b).max() < 5e-3 * np.abs(a).max()


# -- the figures that docstrings quote: 500 draws, means of three problems ---------------------------

# rms error of the means in posterior sds; mean, least and largest ratio of the sds; W2 over its floor
FIGURES = {
    DAPS(): (0.05, 1.00, 0.93, 1.09, 0.99),
    DAPS(rule="published"): (0.20, 1.28, 0.94, 1.47, 2.68),
    DAPS(rule="published", steps=200, tempering=0.2): (0.15, 1.00, 0.19, 1.34, 2.01),
    PnPDM(): (0.07, 1.03, 0.92, 1.11, 1.05),
    PnPDM(rho_min=0.3): (0.58, 1.53, 1.00, 3.11, 1.88),
    DPnP(): (0.08, 1.04, 0.93, 1.12, 1.10),
    DiffPIR(): (0.71, 1.58, 1.10, 2.72, 3.88),
    DiffPIR(lam=1.0, zeta=1.0): (0.17, 0.73, 0.64, 0.80, 1.91),
    DDRM(): (0.27, 0.83, 0.37, 1.05, 2.07),
    DDRM(steps=20): (0.61, 1.05, 0.80, 1.23, 3.98),
    DDNM(): (0.51, 1.00, 0.08, 1.47, 3.98),
    DDNM(noise="ignored"): (0.51, 0.98, 0.00, 1.47, 3.99),
    RePaint(): (0.16, 0.73, 0.00, 1.04, 1.38),
    RePaint(noise="used"): (0.25, 1.10, 0.99, 1.20, 1.95),
}


def figures(method: Method, seed: int) -> np.ndarray:
    """One row of the table, for one Ornstein-Uhlenbeck series."""
    problem, n = gaussian("series", seed), 500
    scale = np.sqrt(np.diag(problem.covariance))
    draws = problem.posterior.sample(n, method=method, seed=0)
    x = problem.posterior.prior.space.tensor(draws, batch_dim="sample").numpy()
    spread, exact = x.std(0, ddof=1) / scale, [problem.draw(n, 100 + i) for i in range(7)]
    floor = np.median([gaussian_w2(a, b) for a, b in zip(exact[1::2], exact[2::2], strict=True)])
    off = np.sqrt((((x.mean(0) - problem.mean) / scale) ** 2).mean())
    return np.array([off, spread.mean(), spread.min(), spread.max(), gaussian_w2(x, exact[0]) / floor])


@pytest.mark.slow
@pytest.mark.parametrize("method", list(FIGURES), ids=repr)
def test_the_figures_in_the_docstrings_are_what_is_measured(method):
    found = np.mean([figures(method, seed) for seed in range(3)], 0)
    # the problems and the noise are fixed; a standard error of 500 draws leaves room for another rounding
    room = np.array([0.02, 0.01, 0.04, 0.08, 0.1]) + 0.005
    assert (np.abs(found - FIGURES[method]) < room).all(), found.round(3)
