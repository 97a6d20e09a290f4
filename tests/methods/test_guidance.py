from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods import DPS, LGD, DPSDenoiser, PiGDM
from sciddiff.methods.base import Rows, Run
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams
from sciddiff.solvers import Ancestral, DPMSolver, Heun, Karras

# guidance is biased, and a few steps of it more so: what is proved here is what it computes
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

SPACE = sd.Space({"i": 3})
DATA = sd.Space({"j": 2}, "y")
REFERENCES = {
    "white": None,
    "dense": sd.covariance.dense([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]]),
}
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]], dtype=torch.float64)
BEND = sd.operators.from_torch(lambda x: torch.tanh(x @ MATRIX.T.to(x)) + x[:, :2] ** 2, SPACE, DATA)
LINEAR = sd.operators.Matrix(SPACE, DATA, MATRIX)


def mixture(reference="white") -> GaussianMixturePrior:
    return GaussianMixturePrior(
        SPACE, [0.4, 0.6], [[-1.0, 0.0, 1.0], [1.5, 1.0, -1.0]], [0.3, 0.8], reference=REFERENCES[reference]
    )


def gaussian(reference="white") -> sd.GaussianPrior:
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.2, -0.4, 0.7]], dtype=torch.float64)
    return sd.GaussianPrior(SPACE, sd.covariance.dense(root @ root.T), reference=REFERENCES[reference])


def nonlinear(prior=None, noise=None) -> sd.Posterior:
    return (prior or mixture()).given([0.5, 1.5], BEND, noise or sd.noise.Gaussian(0.3))


def published(posterior, zeta, steps, draw) -> torch.Tensor:
    """DPS as in the paper's algorithm, for one draw, in the variance-preserving coordinate ``alpha z``.

    The step is DDPM's ancestral one with ``alpha_bar = 1/(1 + sigma^2)``; then minus zeta times the gradient of the norm.
    """
    prior, seen = posterior.prior, posterior.observations[0]
    noise = Streams(0, [draw], purpose="posterior")
    sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
    bar = [1 / (1 + s**2) for s in sigmas]
    x = math.sqrt(bar[0]) * sigmas[0] * prior.noise(noise)
    for i in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = prior.denoise(x / math.sqrt(bar[i]), sigmas[i])
            residual = seen.y - seen.operator.apply(prior.normalisation.physical(x0))
            (gradient,) = torch.autograd.grad(residual.norm(), x)
        alpha = bar[i] / bar[i + 1]
        x = (math.sqrt(alpha) * (1 - bar[i + 1]) * x + math.sqrt(bar[i + 1]) * (1 - alpha) * x0).detach() / (
            1 - bar[i]
        )
        if i + 1 < steps:
            x = x + math.sqrt((1 - bar[i + 1]) / (1 - bar[i]) * (1 - alpha)) * prior.noise(noise)
        x = x - zeta * gradient
    return prior.normalisation.physical(x)


def test_dps_is_the_published_algorithm():
    posterior = nonlinear()
    draws = posterior.sample(3, method=DPS(zeta=0.4, norm="data"), steps=40, seed=0)["x"].values
    for i in range(3):
        np.testing.assert_allclose(draws[i : i + 1], published(posterior, 0.4, 40, i), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [DPS(zeta=0.3), DPS(norm="data", path="ve"), DPSDenoiser()], ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_no_norm_couples_draws_batches_or_chunks(method, dtype, tolerance):
    posterior = nonlinear(mixture().to(dtype=dtype))
    whole = posterior.sample(9, method=method, steps=25, seed=1)["x"].values
    for n, chunk in ((9, 2), (9, 1), (4, None)):
        other = posterior.sample(n, method=method, steps=25, seed=1, chunk=chunk)["x"].values
        np.testing.assert_allclose(other, whole[:n], rtol=0, atol=tolerance * np.abs(whole).max())


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", [0.2, 2.0])
def test_the_denoiser_form_follows_the_gradient_of_the_norm(reference, sigma):
    """``D_y = D - zeta l sigma^2 C grad_z |y - A(D(z))|/s`` with ``l s = sqrt(m)``, by finite differences."""
    prior, s, h = mixture(reference), 0.3, 1e-6
    posterior, method = nonlinear(prior), DPSDenoiser(zeta=0.7)
    run = Run(posterior, method, 4, seed=0, solver=None, steps=None, chunk=None, progress=False)
    streams = Streams(0, range(4), purpose="test")
    z, cases = prior.draw(streams) + sigma * prior.noise(streams), torch.zeros(4, dtype=torch.long)
    guided = method.guide(run)(z, sigma, cases)

    def norm(z):
        return (
            posterior.observations[0].y - BEND.apply(prior.normalisation.physical(prior.denoise(z, sigma)))
        ).norm(dim=1)

    c = prior.reference.apply(torch.eye(3, dtype=torch.float64))
    gradient = torch.stack([(norm(z + h * e) - norm(z - h * e)) / (2 * h) for e in c], 1)
    length = (prior.denoise(z, sigma) - guided) / (0.7 * sigma**2 * gradient)
    # one number for every draw and value: sqrt(m)/s, from 256 simulations of m chi-square values
    torch.testing.assert_close(length, length.mean().expand_as(length), rtol=1e-5, atol=0)
    m = 2
    assert abs(float(length.mean()) * s / math.sqrt(m) - 1) < 4 * 0.5 * math.sqrt(2 / (256 * m))


def test_a_mask_of_the_normalised_state_has_the_same_length_on_both_sides():
    prior = sd.GaussianPrior(SPACE, sd.covariance.white((3,)))
    posterior = prior.given(
        [1.0, -2.0], sd.operators.Points.at_indices(SPACE, [0, 2]), sd.noise.Gaussian(0.1)
    )
    data, state = (
        posterior.sample(4, method=DPS(norm=norm), steps=20, seed=0)["x"] for norm in ("data", "state")
    )
    np.testing.assert_allclose(data, state, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [DPS(zeta=0.5), DPSDenoiser()], ids=repr)
def test_units_of_the_data_do_not_matter(method):
    first = gaussian().given([0.5, 1.5], LINEAR, sd.noise.Gaussian(0.3))
    volts = sd.operators.Matrix(SPACE, DATA, 1e4 * MATRIX)
    other = gaussian().given([5e3, 1.5e4], volts, sd.noise.Gaussian(3e3))
    a, b = (p.sample(4, method=method, steps=20, seed=0)["x"] for p in (first, other))
    np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", [DPS(), DPSDenoiser()], ids=repr)
def test_a_known_covariance_needs_no_vjp_and_gives_the_same_draws(method):
    class Hidden(sd.Prior):
        exact = True

        def __init__(self, inner):
            self.__dict__.update(inner.__dict__)
            self.inner = inner

        def denoise(self, z, sigma):
            return self.inner.denoise(z, sigma)

    prior = gaussian("dense")
    a, b = (
        p.given([0.5, 1.5], BEND, sd.noise.Gaussian(0.3)).sample(3, method=method, steps=15, seed=0)
        for p in (prior, Hidden(prior))
    )
    np.testing.assert_allclose(a["x"], b["x"], rtol=1e-8, atol=1e-9)
    assert a.attrs["vjps"] == 0
    assert b.attrs["vjps"] == b.attrs["forwards"] > 0


NOISES = {
    "gaussian": (sd.noise.Gaussian(0.2), [2.3, 1.4]),
    "full": (sd.noise.Gaussian(covariance=sd.covariance.dense([[0.05, 0.02], [0.02, 0.1]])), [2.3, 1.4]),
    "laplace": (sd.noise.Laplace(0.2), [2.3, 1.4]),
    "student": (sd.noise.StudentT(df=4, scale=0.2), [2.3, 1.4]),
    "poisson": (sd.noise.Poisson(50.0), [115.0, 70.0]),
}


@pytest.mark.parametrize("noise", list(NOISES))
@pytest.mark.parametrize("method", [DPS(steps=100), DPSDenoiser(), LGD(k=4)], ids=lambda m: type(m).__name__)
def test_guidance_draws_towards_the_data_for_every_noise_and_a_bent_operator(noise, method):
    positive = sd.operators.from_torch(lambda x: (0.7 * x[:, :2]).exp(), SPACE, DATA)
    law, y = NOISES[noise]
    prior = mixture()
    posterior = prior.given(y, positive, law)

    def likelihood(draws):
        return posterior.log_likelihood(SPACE.tensor(draws, batch_dim="sample"))

    n = 600
    before = likelihood(prior.sample(n, seed=0))
    after = likelihood(posterior.sample(n, method=method, seed=0))
    assert torch.isfinite(after).all()
    error = (before.std() ** 2 + after.std() ** 2).sqrt() / math.sqrt(n)
    assert after.mean() - before.mean() > 5 * error
    # a share of n draws has a standard error of at most 0.5/sqrt(n)
    assert (after > before.median()).double().mean() > 0.5 + 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("solver", [DPMSolver(steps=12), Heun(steps=6), Ancestral(steps=12)], ids=repr)
def test_the_denoiser_form_works_with_every_solver(solver):
    draws = nonlinear().sample(3, method=DPSDenoiser(), solver=solver, seed=0)
    assert np.isfinite(draws["x"]).all() and draws.attrs["solver"] == repr(solver)


@pytest.mark.parametrize("method", [DPS(), DPSDenoiser()], ids=repr)
def test_missing_values_take_no_part_and_cases_do_not_touch_one_another(method):
    prior, noise = gaussian(), sd.noise.Gaussian(0.3)
    y = torch.tensor([[0.5, torch.nan], [0.5, 1.5]], dtype=torch.float64)
    both = prior.given(y, LINEAR, noise, missing="mask", batch_dim="case")
    draws = both.sample(3, method=method, steps=15, seed=0)
    changed = y.clone()
    changed[1] = 7.0
    other = prior.given(changed, LINEAR, noise, missing="mask", batch_dim="case")
    first = other.sample(3, method=method, steps=15, seed=0)["x"].isel(case=0)
    np.testing.assert_array_equal(first, draws["x"].isel(case=0))
    # the first case is the first row of the operator alone
    alone = prior.given([0.5], sd.operators.Matrix(SPACE, sd.Space({"j": 1}, "y"), MATRIX[:1]), noise)
    kept = alone.sample(3, method=method, steps=15, seed=0)["x"]
    tolerance = 1e-9 if isinstance(method, DPS) else 0.1  # the other's unit of zeta is simulated
    np.testing.assert_allclose(kept, draws["x"].isel(case=0), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: DPS(zeta=0.0),
        lambda: DPS(norm="batch"),
        lambda: DPS(path="edm"),
        lambda: DPSDenoiser(zeta=-1.0),
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        bad()


def test_dps_takes_steps_and_refuses_a_solver():
    with pytest.raises(InputError, match="DPS takes no solver"):
        nonlinear().sample(2, method=DPS(), solver=Heun(), seed=0)
    draws = nonlinear().sample(2, method=DPS(), steps=7, seed=0)
    assert draws.attrs["steps"] == 7 and draws.attrs["forwards"] == 7


def test_a_likelihood_without_a_gradient_at_the_prior_mean_is_refused_by_the_denoiser_form():
    rate = sd.operators.from_torch(lambda x: x[:, :2] - 5.0, SPACE, DATA)
    with pytest.raises(InputError):
        gaussian().given([3.0, 2.0], rate, sd.noise.Poisson(1.0)).sample(2, method=DPSDenoiser(), seed=0)


def lgd(posterior, method, z, sigma, *, length=None) -> torch.Tensor:
    """The guided denoiser of LGD at states of one chunk."""
    n = len(z)
    run = Run(posterior, method, n, seed=0, solver=None, steps=None, chunk=None, progress=False)
    rows = Rows(torch.zeros(n, dtype=torch.long), Streams(0, range(n), purpose="posterior"))
    with torch.no_grad():
        return method.guided(run, rows, length)(z, sigma)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("choice", ["unit", "gaussian"])
def test_loss_guidance_tends_to_pigdm_on_linear_gaussian_problems_as_its_draws_grow(reference, choice):
    """The log-mean-exp of k draws estimates ``log N(y; B D, R + B V B^T)``: over many rows its mean gradient is that one."""
    prior, sigma, rows, k = gaussian(reference), 0.6, 200, 4000
    posterior = prior.given([0.5, 1.5], LINEAR, sd.noise.Gaussian(1.0))
    z = (0.7 * prior.noise(Streams(3, [0], purpose="test"))).expand(rows, 3)
    exact = PiGDM(choice)
    run = Run(posterior, exact, 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    step = exact.guide(run)(z[:1], sigma, torch.zeros(1, dtype=torch.long)) - prior.denoise(z[:1], sigma)
    found = lgd(posterior, LGD(None, k, choice), z, sigma) - prior.denoise(z, sigma)
    error = found.std(0) / math.sqrt(rows)
    # the bias of a ratio of means is about its variance, that is a row's error squared: far below the mean's error here
    assert bool(((found.mean(0) - step[0]).abs() < 4.5 * error).all())
    assert bool((error < 0.01 * step.abs().max()).all())


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "poisson"])
def test_loss_guidance_with_one_draw_far_down_is_the_score_at_the_denoised_state(noise):
    """As sigma falls the draws close up on D: ``D_y = D + sigma^2 C J^T grad log p(y | A(D))``, by finite differences."""
    positive = sd.operators.from_torch(lambda x: (0.7 * x[:, :2]).exp(), SPACE, DATA)
    law, y = NOISES[noise]
    prior, sigma, h = mixture("dense"), 1e-4, 1e-4
    posterior = prior.given(y, positive, law)
    z = prior.noise(Streams(0, range(3), purpose="test"))
    d = prior.denoise(z, sigma)

    def log(d):
        return posterior.log_likelihood(prior.normalisation.physical(d))

    c = prior.reference.apply(torch.eye(3, dtype=torch.float64))
    # J is the identity this far down
    expected = torch.stack([(log(d + h * e) - log(d - h * e)) / (2 * h) for e in c], 1)
    found = (lgd(posterior, LGD(None, 50), z, sigma) - d) / sigma**2
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_the_length_of_loss_guidance_is_that_of_the_denoiser_form_of_dps():
    """Far down, where all draws are D, both rules are the same."""
    posterior, sigma = nonlinear(), 1e-5
    z = posterior.prior.noise(Streams(0, range(3), purpose="test"))
    method = DPSDenoiser(zeta=0.7)
    run = Run(posterior, method, 3, seed=0, solver=None, steps=None, chunk=None, progress=False)
    d, dps = posterior.prior.denoise(z, sigma), method.guide(run)(z, sigma, torch.zeros(3, dtype=torch.long))
    unit = lgd(posterior, LGD(k=5), z, sigma, length=torch.ones(3, dtype=torch.float64)) - d
    ratio = (dps - d) / unit
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    assert abs(float(ratio.mean()) * 0.3 / (0.7 * math.sqrt(2)) - 1) < 4 * 0.5 * math.sqrt(2 / (256 * 2))


def test_states_that_make_the_data_impossible_have_no_weight():
    """Poisson's rate is negative for some of the draws around D; the gradient is that of the others."""
    rate = sd.operators.from_torch(lambda x: x[:, :2] + 1.0, SPACE, DATA)
    prior = gaussian()
    posterior = prior.given([2.0, 1.0], rate, sd.noise.Poisson(1.0))
    z = prior.noise(Streams(0, range(50), purpose="test"))
    assert bool(lgd(posterior, LGD(None, 20), z, 1.0).isfinite().all())
    with pytest.raises(DivergenceError):
        prior.given(
            [2.0, 1.0], sd.operators.from_torch(lambda x: -(x[:, :2] ** 2), SPACE, DATA), sd.noise.Poisson()
        ).sample(2, method=LGD(None), steps=4, seed=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_draws_of_loss_guidance_depend_on_their_own_stream_alone(dtype, tolerance):
    posterior, method = nonlinear(mixture().to(dtype=dtype)), LGD(k=5)
    whole = posterior.sample(9, method=method, steps=25, seed=1)["x"].values
    for n, chunk in ((9, 2), (9, 1), (4, None)):
        other = posterior.sample(n, method=method, steps=25, seed=1, chunk=chunk)["x"].values
        np.testing.assert_allclose(other, whole[:n], rtol=0, atol=tolerance * np.abs(whole).max())


@pytest.mark.parametrize(
    "bad", [lambda: LGD(0.0), lambda: LGD(k=0), lambda: LGD(k=2.5), lambda: LGD(covariance="exact")]
)
def test_settings_of_loss_guidance_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        bad()


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 2.5}, {"zeta": True}], ids=repr)
def test_settings_of_dps_of_another_type_are_refused(bad):
    with pytest.raises(InputError):
        DPS(**bad)


@pytest.mark.parametrize("method", [DPSDenoiser(), LGD()], ids=repr)
def test_a_case_with_nothing_observed_is_taken(method):
    y = np.array([[0.5, 1.5], [np.nan, np.nan]])
    posterior = mixture().given(y, LINEAR, sd.noise.Gaussian(0.3), missing="mask", batch_dim="case")
    draws = posterior.sample(2, method=method, steps=8, seed=0)
    assert np.isfinite(draws["x"].values).all()
