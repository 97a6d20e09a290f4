"""DiffPIR, DDRM, DDNM and RePaint: the published updates, mode by mode, and what they do to the data."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError, MethodError
from sciddiff.methods import DDNM, DDRM, DiffPIR, Method, RePaint
from sciddiff.methods.base import Run
from sciddiff.methods.transitions import Modes
from sciddiff.random import Streams
from sciddiff.solvers import Karras
from sciddiff.testing import check_method

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

SPACE, DATA = sd.Space({"i": 4}), sd.Space({"j": 3}, "y")
VARIANCES = torch.tensor([4.0, 1.0, 0.5, 2.5], dtype=torch.float64)
TAU = torch.tensor([0.05, 0.4, 3.0, 0.8], dtype=torch.float64)
Y = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)


def diagonal_problem() -> sd.Posterior:
    """Independent values with a datum each; the unit of the state is 1, so that modes are values."""
    prior = sd.GaussianPrior(SPACE, sd.covariance.diagonal(VARIANCES))
    return prior.given(Y, sd.operators.Identity(SPACE), sd.noise.Gaussian(TAU))


def correlated() -> sd.GaussianPrior:
    root = np.random.default_rng(0).standard_normal((4, 4))
    c = np.random.default_rng(1).standard_normal((4, 4))
    return sd.GaussianPrior(
        SPACE,
        sd.covariance.dense(root @ root.T + 0.3 * np.eye(4)),
        [1.0, 2.0, 3.0, 4.0],
        reference=sd.covariance.dense(c @ c.T + 0.3 * np.eye(4)),
    )


def matrix_problem(scale: float = 1.0) -> sd.Posterior:
    a = np.random.default_rng(2).standard_normal((3, 4))
    noise = sd.noise.Gaussian(scale * np.array([0.1, 0.2, 0.4]))
    return correlated().given([0.5, 1.0, -1.0], sd.operators.Matrix(SPACE, DATA, a), noise)


def noises(posterior: sd.Posterior, rows: int, draws: int) -> list[torch.Tensor]:
    """The white noise that a method sees, one draw after the other, seed 0."""
    streams = Streams(0, range(rows), [0] * rows, purpose="posterior")
    return [streams.normal((4,), dtype=torch.float64) for _ in range(draws)]


def by_hand(posterior: sd.Posterior, method: Method, steps: int, update, start) -> torch.Tensor:
    """The published update of independent values of unit scale, written out."""
    prior = posterior.prior
    s0 = prior.normalisation.scale
    y, tau = Y / s0, TAU / s0
    sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
    n = noises(posterior, 3, steps + 1)
    z = start(y, tau, sigmas[0], n[0])
    for i in range(steps):
        d = prior.denoise(z, sigmas[i])
        z = update(z, d, y, tau, sigmas[i], sigmas[i + 1], n[i + 1])
    return z * s0


@pytest.mark.parametrize("eta_b", [1.0, 0.7])
def test_ddrm_on_the_identity_is_the_published_update_of_every_mode(eta_b):
    eta, posterior = 0.85, diagonal_problem()

    def start(y, tau, s, n):
        return torch.where(tau <= s, y + (s**2 - tau**2).clamp(min=0).sqrt() * n, s * n)

    def update(z, d, y, tau, s, t, n):
        above = (1 - eta_b) * d + eta_b * y + (t**2 - tau**2 * eta_b**2).clamp(min=0).sqrt() * n
        below = d + math.sqrt(1 - eta**2) * t * (y - d) / tau + eta * t * n
        return torch.where(t >= tau, above, below)

    method = DDRM(eta=eta, eta_b=eta_b)
    expected = by_hand(posterior, method, 12, update, start)
    draws = posterior.sample(3, method=method, steps=12, seed=0)["x"]
    np.testing.assert_allclose(draws, expected, rtol=1e-9, atol=1e-9)


def test_ddrm_takes_ddim_steps_where_nothing_is_seen():
    prior = sd.GaussianPrior(SPACE, sd.covariance.diagonal(VARIANCES))
    posterior = prior.given([1.0], sd.operators.Points.at_indices(SPACE, [1]), sd.noise.Gaussian(0.1))

    def ddim(y, tau, s, n):
        return s * n

    def update(z, d, y, tau, s, t, n):
        return d + math.sqrt(1 - 0.85**2) * t / s * (z - d) + 0.85 * t * n

    hand = by_hand(posterior, DDRM(), 9, update, ddim)
    draws = posterior.sample(3, method=DDRM(), steps=9, seed=0)["x"].values
    np.testing.assert_allclose(draws[:, [0, 2, 3]], hand[:, [0, 2, 3]], rtol=1e-9, atol=1e-9)
    assert np.abs(draws[:, 1] - hand[:, 1].numpy()).max() > 0.1


@pytest.mark.parametrize("noise", ["used", "ignored"])
def test_ddnm_on_the_identity_is_the_published_update_of_every_mode(noise):
    posterior = diagonal_problem()

    def update(z, d, y, tau, s, t, n):
        keep, width = t**2 / s**2, t * math.sqrt(1 - t**2 / s**2)
        tau = tau if noise == "used" else torch.zeros_like(tau)
        own = (1 - keep) * tau
        lam = torch.where(width >= own, 1.0, width / own)
        rest = (width**2 - own**2).clamp(min=0).sqrt()
        return (1 - keep) * (d + lam * (y - d)) + keep * z + rest * n

    method = DDNM(noise=noise)
    expected = by_hand(posterior, method, 12, update, lambda y, tau, s, n: s * n)
    draws = posterior.sample(3, method=method, steps=12, seed=0)["x"]
    np.testing.assert_allclose(draws, expected, rtol=1e-9, atol=1e-9)


def test_ddnm_that_ignores_the_noise_fits_the_data_exactly():
    posterior = matrix_problem()
    draws = posterior.sample(20, method=DDNM(noise="ignored"), steps=10, seed=0)
    o = posterior.observations[0]
    fit = o.operator.apply(torch.from_numpy(draws["x"].values))
    torch.testing.assert_close(fit, o.y.expand_as(fit), rtol=0, atol=1e-9)
    # and what the data leave open still varies: four values, three data
    assert float(draws["x"].std("sample").max()) > 0.1
    used = posterior.sample(20, method=DDNM(), steps=10, seed=0)
    assert (o.operator.apply(torch.from_numpy(used["x"].values)) - o.y).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["white", "correlated"])
def test_repaint_leaves_what_was_seen_at_the_data(kind):
    prior = (
        correlated() if kind == "correlated" else sd.GaussianPrior(SPACE, sd.covariance.diagonal(VARIANCES))
    )
    seen = sd.operators.Points.at_indices(SPACE, [2, 0])
    draws = {}
    for noise in (0.3, 1e-4):
        posterior = prior.given([1.0, -2.0], seen, sd.noise.Gaussian(noise))
        for use in ("ignored", "used"):
            method = RePaint(noise=use, resamplings=3, jump=4)
            draws[use, noise] = posterior.sample(20, method=method, steps=12, seed=0)["x"].values
    for noise in (0.3, 1e-4):
        np.testing.assert_allclose(draws["ignored", noise][:, [2, 0]], [[1.0, -2.0]] * 20, atol=1e-9)
    # the last step, from sigma_min, is the prior's own
    c = math.sqrt(float(prior.reference.variance().max()))
    reach = 5 * prior.sigma_min * float(prior.normalisation.scale) * c
    assert np.abs(draws["used", 1e-4][:, [2, 0]] - [1.0, -2.0]).max() < reach < 0.1
    assert np.abs(draws["used", 0.3][:, [2, 0]] - [1.0, -2.0]).max() > 0.1
    assert draws["ignored", 0.3][:, 1].std() > 0.1


@pytest.mark.parametrize("noise", ["used", "ignored"])
def test_repaint_is_the_published_update_up_and_down_its_path(noise):
    posterior = diagonal_problem()
    prior, s0 = posterior.prior, posterior.prior.normalisation.scale
    y, tau = Y / s0, TAU / s0
    sigmas = Karras().sigmas(9, prior.sigma_min, prior.sigma_max)
    method = RePaint(noise=noise, resamplings=2, jump=4)
    path = method.path(sigmas, floor=float(tau.max()) if noise == "used" else 0.0)
    assert sum(b < a for a, b in path) == (1 if noise == "used" else 3)
    n = iter(noises(posterior, 3, len(path) + 1))
    z = sigmas[0] * next(n)
    for a, b in path:
        s, t, e = sigmas[a], sigmas[b], next(n)
        if t > s:
            z = z + (t**2 - s**2) ** 0.5 * e
            continue
        keep = t**2 / s**2
        unknown = keep * z + (1 - keep) * prior.denoise(z, s) + t * math.sqrt(1 - keep) * e
        known = y + t * e if noise == "ignored" else y + (t**2 - tau**2).clamp(min=0).sqrt() * e
        seen = torch.ones(4, dtype=torch.bool) if noise == "ignored" else tau <= t
        z = torch.where(seen, known, unknown)
    draws = posterior.sample(3, method=method, steps=9, seed=0)["x"]
    np.testing.assert_allclose(draws, z * s0, rtol=1e-9, atol=1e-9)


def test_repaint_goes_up_by_a_jump_and_comes_down_again():
    path = RePaint(resamplings=3, jump=5).path(list(range(13, -1, -1)))
    assert path[0] == (0, 1) and path[-1][1] == 13
    assert [p for p in path if p[1] < p[0]] == [(3, 0)] * 2 + [(8, 3)] * 2 + [(13, 8)] * 2
    assert len([p for p in path if p[1] > p[0]]) == 3 * 13
    # the state is always where the last move left it
    assert all(a[1] == b[0] for a, b in pairwise(path))
    # below the noise of the data nothing is gone through again
    above = RePaint(resamplings=3, jump=5).path(list(range(13, -1, -1)), floor=4.0)
    assert [p for p in above if p[1] < p[0]] == [(3, 0)] * 2 + [(8, 3)] * 2


def test_the_modes_are_those_in_which_noise_and_reference_are_white():
    posterior = matrix_problem()
    run = Run(posterior, DDRM(), 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    modes, linear = Modes(run), posterior.linear_gaussian()
    cases = torch.zeros(3, dtype=torch.long)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(modes.analysis(modes.synthesis(eye, cases), cases), eye)
    # the columns of C^1/2 V are white in the metric of C
    columns = modes.synthesis(eye, cases)
    torch.testing.assert_close(columns @ run.prior.reference.solve(columns).T, eye)
    # the data of a mode have the variance tau^2 and no covariance
    weights = modes.weights[0]
    noise = weights @ linear.noise_matrix @ weights.T
    torch.testing.assert_close(noise, torch.diag(modes.tau[0] ** 2))
    # and are the modes of what was seen, A (m + S z) = y
    z = columns.T @ modes.y[0]
    torch.testing.assert_close(linear.apply(z[None]), linear.target)


def test_a_missing_value_is_no_mode():
    prior, operator = correlated(), matrix_problem().observations[0].operator
    y = torch.tensor([[0.5, torch.nan, -1.0], [0.5, 1.0, -1.0]], dtype=torch.float64)
    noise = sd.noise.Gaussian([0.1, 0.2, 0.4])
    gaps = prior.given(y, operator, noise, missing="mask", batch_dim="case")
    kept = sd.operators.Matrix(SPACE, sd.Space({"j": 2}, "y"), operator.matrix[[0, 2]])
    alone = prior.given(y[0, [0, 2]], kept, sd.noise.Gaussian([0.1, 0.4]))
    for method in (DDRM(), DDNM(), DDNM(noise="ignored"), DiffPIR()):
        a = gaps.sample(4, method=method, steps=8, seed=0)["x"].isel(case=0)
        b = alone.sample(4, method=method, steps=8, seed=0)["x"]
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)


def test_diffpir_goes_to_the_nearest_state_and_renews_a_share_of_the_noise():
    posterior, lam, zeta, steps = matrix_problem(), 3.0, 0.4, 7
    prior, o = posterior.prior, posterior.observations[0]
    scale = prior.normalisation.scale
    eye = torch.eye(4, dtype=torch.float64)
    b, c = o.operator.matrix * scale, prior.reference.apply(eye)
    precision, target = torch.diag(1 / o.noise.sd**2), posterior.linear_gaussian().target[0]
    sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
    streams = Streams(0, range(3), [0] * 3, purpose="posterior")
    z = sigmas[0] * prior.noise(streams)
    for s, t in pairwise(sigmas):
        # argmin |y - B x|^2_R + lam |x - D|^2_C/s^2
        pull = lam / s**2 * torch.linalg.inv(c)
        right = (b.T @ precision @ target)[None] + prior.denoise(z, s) @ pull
        near = torch.linalg.solve(b.T @ precision @ b + pull, right.T).T
        rest = math.sqrt(1 - zeta) * (z - near) / s
        z = near if t == 0 else near + t * (rest + math.sqrt(zeta) * prior.noise(streams))
    draws = posterior.sample(3, method=DiffPIR(lam=lam, zeta=zeta), steps=steps, seed=0)["x"]
    np.testing.assert_allclose(draws, prior.normalisation.physical(z), rtol=1e-8, atol=1e-8)


def test_diffpir_takes_one_gradient_step_where_there_is_no_closed_form():
    space, lam = sd.Space({"i": 1}), 5.0
    prior = sd.GaussianPrior(space, sd.covariance.white((1,)))
    bend = sd.operators.from_torch(torch.sinh, space, space)
    posterior = prior.given([1.2], bend, sd.noise.Gaussian(0.8))
    sigmas = Karras().sigmas(6, prior.sigma_min, prior.sigma_max)
    streams = Streams(0, range(3), [0] * 3, purpose="posterior")
    z = sigmas[0] * prior.noise(streams)
    with pytest.raises(sd.errors.DivergenceError):
        # at sigma_max the step is sigma^2/lam/0.8^2 times a slope, which overflows in sinh
        posterior.sample(3, method=DiffPIR(lam=1e-3), steps=6, seed=0)
    mild = prior.given([1.2], bend, sd.noise.Gaussian(20.0))
    for s, t in pairwise(sigmas):
        d = prior.denoise(z, s)
        near = d + s**2 / lam * (1.2 - d.sinh()) * d.cosh() / 20.0**2
        z = near if t == 0 else near + t * ((z - near) / s * 0.7**0.5 + 0.3**0.5 * prior.noise(streams))
    draws = mild.sample(3, method=DiffPIR(lam=lam, zeta=0.3), steps=6, seed=0)["x"]
    np.testing.assert_allclose(draws, z, rtol=1e-9, atol=1e-9)


def test_diffpir_without_fresh_noise_differs_by_its_start_alone():
    posterior = matrix_problem()
    a, b = (posterior.sample(2, method=DiffPIR(zeta=0.0), steps=n, seed=0)["x"] for n in (60, 120))
    # the ODE that it steps along has one end for every start
    assert float(abs(a - b).max()) < 0.2 * float(b.std())


@pytest.mark.parametrize("method", [DiffPIR(), DDRM(), DDNM(), DDNM(noise="ignored")], ids=repr)
def test_transitions_fail_in_their_moments_alone(method):
    biased = dict.fromkeys(("mean", "covariance"), "biased by construction")
    check_method(method, draws=300, steps=12, expected_failures=biased)


@pytest.mark.parametrize("noise", ["used", "ignored"])
def test_repaint_draws_depend_on_seed_case_and_draw_alone(noise):
    prior, seen = correlated(), sd.operators.Mask(SPACE, [True, False, True, True])
    y = torch.tensor([[0.5, 1.0, 2.0], [0.5, torch.nan, 2.0], [3.0, 0.0, 1.0]], dtype=torch.float64)
    method = RePaint(noise=noise, resamplings=2, jump=3)
    many = prior.given(y, seen, sd.noise.Gaussian(0.2), missing="mask", batch_dim="case")
    whole = many.sample(4, method=method, steps=9, seed=3)["x"]
    for other in (
        many.sample(4, method=method, steps=9, seed=3, chunk=5),
        many.sample(2, method=method, steps=9, seed=3),
    ):
        np.testing.assert_allclose(other["x"], whole[: other.sizes["sample"]], rtol=1e-9, atol=1e-9)
    alone = prior.given(y[:1], seen, sd.noise.Gaussian(0.2), batch_dim="case")
    one = alone.sample(4, method=method, steps=9, seed=3)["x"]
    np.testing.assert_allclose(one[:, 0], whole[:, 0], rtol=1e-9, atol=1e-9)
    # other units of state and data
    kelvin = sd.GaussianPrior(
        SPACE,
        sd.covariance.scaled(prior.physical_covariance, torch.tensor(1e-3, dtype=torch.float64)),
        1e3 * prior.normalisation.mean - 40.0,
        reference=prior.reference,
    )
    moved = kelvin.given(1e3 * y - 40.0, seen, sd.noise.Gaussian(200.0), missing="mask", batch_dim="case")
    other = moved.sample(4, method=method, steps=9, seed=3)["x"]
    np.testing.assert_allclose((other + 40.0) / 1e3, whole, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused_by_name_before_any_compute():
    with pytest.raises(MethodError, match=r"Matrix.* does not select values") as caught:
        matrix_problem().sample(2, method=RePaint(), seed=0)
    assert "MMPS" in caught.value.fix
    twice = sd.operators.Gather(SPACE, DATA, [[0], [0], [1]])
    with pytest.raises(MethodError, match="does not select"):
        correlated().given([0.0] * 3, twice, sd.noise.Gaussian(0.1)).sample(2, method=RePaint(), seed=0)
    bent = correlated().given(
        [0.0] * 4, sd.operators.from_torch(torch.sin, SPACE, SPACE), sd.noise.Gaussian(0.1)
    )
    for method in (DDRM(), DDNM(), RePaint()):
        with pytest.raises(MethodError, match="is not linear"):
            bent.sample(2, method=method, seed=0)
    counts = correlated().given([1] * 4, sd.operators.Identity(SPACE), sd.noise.Poisson(1.0))
    for method in (DDRM(), DDNM(), RePaint()):
        with pytest.raises(MethodError, match="is not Gaussian"):
            counts.sample(2, method=method, seed=0)
    assert DiffPIR().misfit(bent) is None and DiffPIR().misfit(counts) is None


def test_more_data_than_singular_vectors_can_be_taken_of_are_refused():
    space = sd.Space({"i": 5000})
    prior = sd.GaussianPrior(space, sd.covariance.white((5000,)))
    posterior = prior.given(np.zeros(5000), sd.operators.Identity(space), sd.noise.Gaussian(0.1))
    with pytest.raises(MethodError, match="5000 data are more than the 4096"):
        posterior.sample(2, method=DDRM(), seed=0)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: DiffPIR(lam=0.0),
        lambda: DiffPIR(zeta=1.1),
        lambda: DDRM(eta=-0.1),
        lambda: DDRM(eta_b=2.0),
        lambda: DDNM(noise="some"),
        lambda: DDNM(steps=0),
        lambda: RePaint(jump=0),
        lambda: RePaint(noise=0.1),
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        bad()


def test_a_truth_value_is_no_share_of_the_noise():
    with pytest.raises(InputError):
        DDRM(eta=True)
