"""Splitting samplers where no closed form helps: other noises, bent operators, networks, and bad settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError, MethodError
from sciddiff.methods import DAPS, DPnP, PnPDM
from sciddiff.methods.base import Run
from sciddiff.methods.likelihood_steps import stiffness
from sciddiff.testing import check_method
from sciddiff.testing.exact import Hidden, mixture

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

LINE = sd.Space({"i": 1})
COUNT = sd.Space({"j": 1}, "y")
GROWTH = sd.operators.from_torch(torch.exp, LINE, COUNT)
WEIGH = sd.operators.from_torch(lambda x: 2.0 * x, LINE, COUNT, linear=True)
CUBE = sd.operators.from_torch(lambda x: x + 0.3 * x**3, LINE, COUNT)

# one unknown, so that quadrature knows the posterior
LINES = {
    "counts": lambda p: p.given([7], GROWTH, sd.noise.Poisson(2.0)),
    "laplace": lambda p: p.given([1.5], WEIGH, sd.noise.Laplace(0.4)),
    "student": lambda p: p.given([1.5], WEIGH, sd.noise.StudentT(df=3, scale=0.4)),
    "bent": lambda p: p.given([2.0], CUBE, sd.noise.Gaussian(0.5)),
    "two": lambda p: p.given([7], GROWTH, sd.noise.Poisson(2.0)).given([2.0], CUBE, sd.noise.Gaussian(0.5)),
}


def line(kind: str) -> sd.Posterior:
    return LINES[kind](sd.GaussianPrior(LINE, sd.covariance.white((1,), 1.5), [0.2]))


def moments(posterior: sd.Posterior, rho: float = 0.0) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment by quadrature, with the likelihood smoothed by a coupling."""
    x = torch.linspace(-7, 7, 2801, dtype=torch.float64)
    log = posterior.log_likelihood(x[:, None])
    if rho > 0:
        kernel = -0.5 * ((x - x[:, None]) / (rho * 1.5**0.5)) ** 2
        log = torch.logsumexp(log + kernel - kernel.logsumexp(1, keepdim=True), 1)
    p = (log - (x - 0.2) ** 2 / 3.0).softmax(0)
    mean = float((p * x).sum())
    return mean, float((p * (x - mean) ** 2).sum()), float((p * (x - mean) ** 4).sum())


def agrees(x: np.ndarray, posterior: sd.Posterior, rho: float = 0.0) -> None:
    mean, variance, fourth = moments(posterior, rho)
    z = (x.mean() - mean) / math.sqrt(variance / len(x))
    assert abs(z) < 4, f"the mean is {z:.1f} standard errors off"
    z = (((x - mean) ** 2).mean() - variance) / math.sqrt((fourth - variance**2) / len(x))
    assert abs(z) < 4, f"the variance is {z:.1f} standard errors off"


@pytest.mark.parametrize("kind", list(LINES))
def test_daps_draws_from_the_posterior_of_any_differentiable_likelihood(kind):
    posterior = line(kind)
    draws = posterior.sample(1200, method=DAPS(steps=25, leaps=6), seed=1)
    assert draws.attrs["likelihood_step"] == "hamiltonian" and draws.attrs["acceptance"] > 0.7
    agrees(draws["x"].values[:, 0], posterior)


@pytest.mark.parametrize("kind", ["counts", "bent"])
def test_split_gibbs_settles_at_the_posterior_of_the_likelihood_smoothed_by_the_coupling(kind):
    posterior, rho = line(kind), 0.25
    x = posterior.sample(1500, method=PnPDM(steps=30, rho_min=rho, settle=20, leaps=4), seed=1)["x"].values
    agrees(x[:, 0], posterior, rho)
    with pytest.raises(AssertionError, match="standard errors off"):
        agrees(x[:, 0], posterior)


def test_a_factor_of_two_in_the_likelihood_would_be_noticed():
    wrong = sd.GaussianPrior(LINE, sd.covariance.white((1,), 1.5), [0.2]).given(
        [1.5], WEIGH, sd.noise.Laplace(0.4 * 2**0.5)
    )
    draws = wrong.sample(1200, method=DAPS(steps=25, leaps=6), seed=1)
    with pytest.raises(AssertionError, match="standard errors off"):
        agrees(draws["x"].values[:, 0], line("laplace"))


def test_a_prior_that_hides_its_covariance_is_drawn_from_by_ancestral_steps():
    posterior, rho = line("bent"), 0.25
    hidden = sd.Posterior(Hidden(posterior.prior), posterior.observations)
    method = PnPDM(steps=25, rho_min=rho, settle=15, prior_steps=24, leaps=4)
    draws = hidden.sample(800, method=method, seed=2)
    assert draws.attrs["forwards"] > 25 * 20
    mean, variance, _ = moments(posterior, rho)
    # the ancestral steps leave a bias of first order in them, beside four standard errors
    x, scale = draws["x"].values[:, 0], math.sqrt(variance)
    assert abs(x.mean() - mean) < (4 / math.sqrt(len(x)) + 1 / 24) * scale
    assert abs(x.std() / scale - 1) < 4 / math.sqrt(2 * len(x)) + 1 / 24


def test_daps_uses_the_gaussian_of_a_mixture_and_stays_among_its_modes():
    problem = mixture(0, 4)
    draws = problem.posterior.sample(200, method=DAPS(steps=40), seed=0)
    assert draws.attrs["denoising_covariance"] == "gaussian"
    x = draws["x"].values
    # the modes lie 8 apart with sd 1: the chi-square of 8 values around the nearest has mean 8 and sd 4
    nearest = 8.0 * np.clip(np.round(x / 8.0), -2, 2)
    assert ((x - nearest) ** 2).sum(1).mean() < 8 + 4 * 4 / math.sqrt(200) + 2


def test_the_widths_of_daps_are_named_in_the_record():
    posterior = line("bent")
    for p, rule, name in (
        (posterior, "moments", "exact"),
        (sd.Posterior(Hidden(posterior.prior), posterior.observations), "moments", "unit"),
        (posterior, "published", "sigma^2 C"),
    ):
        draws = p.sample(3, method=DAPS(rule=rule, steps=6), seed=0)
        assert draws.attrs["denoising_covariance"] == name and np.isfinite(draws["x"]).all()


def test_published_daps_takes_euler_steps_of_the_ode_at_every_level():
    draws = line("laplace").sample(2, method=DAPS(rule="published", steps=10, ode_steps=5), seed=0)
    assert draws.attrs["forwards"] == 9 * 5 + 1  # at sigma_min one call is left


@pytest.mark.parametrize("method", [DAPS(steps=12, leaps=3), PnPDM(steps=12, leaps=3)], ids=repr)
def test_hamiltonian_draws_depend_on_seed_case_and_draw_alone(method):
    space, data = sd.Space({"i": 3}), sd.Space({"j": 2}, "y")
    bend = sd.operators.from_torch(lambda x: torch.sinh(x[:, :2]) + x[:, 1:], space, data)
    prior = sd.GaussianPrior(space, sd.covariance.dense([[2.0, 0.9, 0], [0.9, 1.0, 0.2], [0, 0.2, 0.5]]))
    y = torch.tensor([[0.5, 1.0], [0.5, torch.nan], [2.0, 0.0]], dtype=torch.float64)
    many = prior.given(y, bend, sd.noise.Laplace(0.3), missing="mask", batch_dim="case")
    whole = many.sample(5, method=method, seed=3)["x"]
    for other in (many.sample(5, method=method, seed=3, chunk=4), many.sample(2, method=method, seed=3)):
        np.testing.assert_allclose(other["x"], whole[: other.sizes["sample"]], rtol=1e-9, atol=1e-10)
    alone = prior.given(y[:1], bend, sd.noise.Laplace(0.3), batch_dim="case")
    np.testing.assert_allclose(
        alone.sample(5, method=method, seed=3)["x"][:, 0], whole[:, 0], rtol=1e-9, atol=1e-10
    )
    assert float(abs(many.sample(5, method=method, seed=4)["x"] - whole).max()) > 0.1


def test_the_stiffness_is_the_largest_curvature_of_the_likelihood():
    space, data = sd.Space({"i": 4}), sd.Space({"j": 3}, "y")
    rng = np.random.default_rng(0)
    a, root = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    c = root @ root.T
    prior = sd.GaussianPrior(space, sd.covariance.white((4,), 9.0), reference=sd.covariance.dense(c))
    noise = np.array([0.1, 0.3, 0.2])
    for law, information in (
        (sd.noise.Gaussian(noise), noise**-2),
        (sd.noise.Laplace(noise), noise**-2),
    ):
        posterior = prior.given(np.zeros(3), sd.operators.Matrix(space, data, a), law)
        run = Run(posterior, DAPS(), 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
        b = 3.0 * a  # the prior's scale
        exact = np.linalg.eigvals(c @ b.T @ np.diag(information) @ b).real.max()
        assert stiffness(run, prior.reference) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("method", [DAPS(steps=6)], ids=repr)
def test_daps_passes_every_check_of_a_method(method):
    check_method(method, draws=300)


@pytest.mark.parametrize(
    "method",
    [
        PnPDM(steps=8, settle=2, rho_min=0.3),
        DPnP(steps=8, rho_min=0.3),
        DAPS(rule="published", steps=6, ode_steps=3),
    ],
    ids=repr,
)
def test_biased_splitting_fails_in_its_moments_alone(method):
    biased = dict.fromkeys(("mean", "covariance"), "biased by construction")
    check_method(method, draws=300, expected_failures=biased)


def test_black_boxes_are_refused_before_they_run_and_what_fits_is_named():
    def never(x):
        raise AssertionError("called")

    prior = sd.GaussianPrior(LINE, sd.covariance.white((1,)))
    posterior = prior.given([1.0], sd.operators.black_box(never, LINE, COUNT), sd.noise.Gaussian(0.1))
    for method in (DAPS(), PnPDM(), DPnP()):
        with pytest.raises(MethodError, match="EnsembleKalman"):
            posterior.sample(2, method=method, seed=0)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: PnPDM(rho_min=0.0),
        lambda: PnPDM(rho_min=2.0, rho_max=1.0),
        lambda: PnPDM(settle=0),
        lambda: DPnP(leaps=0),
        lambda: DPnP(prior_steps=1.5),
        lambda: DAPS(rule="mean"),
        lambda: DAPS(tempering=-1.0),
        lambda: DAPS(moves=0),
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        bad()
