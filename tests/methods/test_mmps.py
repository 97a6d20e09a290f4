"""The guided denoiser of MMPS, one evaluation at a time, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import ConvergenceError, InputError, MethodError
from sciddiff.methods import MMPS
from sciddiff.methods.base import Run
from sciddiff.priors.base import Normalisation
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

D, SPACE = 4, sd.Space({"i": 4})
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((D, D)) / 2
REFERENCES = {"white": None, "dense": sd.covariance.dense(ROOT @ ROOT.T + 0.5 * np.eye(D))}
MATRIX = RNG.standard_normal((3, D))
OPERATOR = sd.operators.Matrix(SPACE, sd.Space({"j": 3}, "y"), MATRIX)
NOISE = sd.covariance.dense([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]])
Y = np.array([[1.0, -2.0, 0.5], [1.0, np.nan, 0.5]])


class Network(sd.Prior):
    """A denoiser that is no conditional mean: its Jacobian is neither symmetric nor, if asked, positive."""

    def __init__(self, negative: bool, reference=None) -> None:
        self.space, self.dtype, self.device = SPACE, torch.float64, torch.device("cpu")
        zero = torch.zeros((), dtype=torch.float64)
        self.normalisation = Normalisation(zero, zero + 1)
        self.reference = reference or sd.covariance.white((D,))
        self.sigma_min, self.sigma_max = 2e-3, 30.0
        twist = 0.1 * np.triu(RNG.standard_normal((D, D)), 1)
        self.weight = torch.from_numpy(np.diag([0.9, 0.6, 0.4, -0.5 if negative else 0.3]) + twist)

    def denoise(self, z, sigma):
        return torch.tanh(z @ self.weight.T) / (1 + sigma**2)


def mixture(reference="white") -> GaussianMixturePrior:
    means = 2 * np.random.default_rng(1).standard_normal((3, D))
    return GaussianMixturePrior(
        SPACE, [0.2, 0.5, 0.3], means, [0.3, 1.0, 0.6], reference=REFERENCES[reference]
    )


def guided(prior, method, z, sigma, cases) -> torch.Tensor:
    noise = sd.noise.Gaussian(covariance=NOISE)
    posterior = prior.given(Y, OPERATOR, noise, missing="mask", batch_dim="case")
    run = Run(posterior, method, len(z), seed=0, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        return method.guide(run)(z, sigma, cases)


def by_hand(prior, z, sigma, cases, outer, inner) -> torch.Tensor:
    """``D + outer B^T (R + B inner B^T)^-1 (y - B D)`` on the rows that were seen; covariances from ``(J, C)``."""
    c = prior.reference.apply(torch.eye(D, dtype=torch.float64))
    r = NOISE.apply(torch.eye(3, dtype=torch.float64))
    out = []
    for row, case in zip(z, cases, strict=True):
        d = prior.denoise(row[None], sigma)[0]
        j = torch.autograd.functional.jacobian(lambda v: prior.denoise(v[None], sigma)[0], row)
        seen = torch.from_numpy(np.flatnonzero(~np.isnan(Y[case])))
        b = torch.from_numpy(MATRIX)[seen] * prior.normalisation.scale
        residual = (
            torch.from_numpy(Y[case])[seen] - OPERATOR.apply(prior.normalisation.physical(d[None]))[0, seen]
        )
        system = r[seen][:, seen] + b @ inner(j, c) @ b.T
        out.append(d + outer(j, c) @ b.T @ torch.linalg.solve(system, residual))
    return torch.stack(out)


def states(prior, sigma, n=4) -> tuple[torch.Tensor, torch.Tensor]:
    streams = Streams(0, range(n), purpose="test")
    return 2 * prior.noise(streams) + sigma * prior.noise(streams), torch.arange(n) % 2


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", [0.2, 1.5])
@pytest.mark.parametrize("choice", ["exact", "guarded"])
def test_a_prior_whose_covariance_depends_on_the_state_is_conditioned_with_it(reference, sigma, choice):
    prior = mixture(reference)
    z, cases = states(prior, sigma)

    def covariance(j, c):
        return sigma**2 * j @ c

    expected = by_hand(prior, z, sigma, cases, covariance, covariance)
    found = guided(prior, MMPS(choice, rtol=1e-12), z, sigma, cases)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("prior", ["mixture", "network"])
def test_the_scalar_choice_is_the_rule_of_sda(reference, prior):
    prior = mixture(reference) if prior == "mixture" else Network(True, REFERENCES[reference])
    sigma, gamma = 0.8, 0.05
    z, cases = states(prior, sigma)
    expected = by_hand(
        prior, z, sigma, cases, lambda j, c: sigma**2 * c @ j.T, lambda j, c: gamma * sigma**2 * c
    )
    found = guided(prior, MMPS("scalar", gamma=gamma, rtol=1e-12), z, sigma, cases)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("reference", list(REFERENCES))
def test_the_gaussian_choice_conditions_with_the_fitted_gaussian(reference):
    prior, sigma = mixture(reference), 0.7
    z, cases = states(prior, sigma)
    fitted = prior.gaussian_covariance(sigma).apply(torch.eye(D, dtype=torch.float64))
    expected = by_hand(prior, z, sigma, cases, lambda j, c: fitted, lambda j, c: fitted)
    torch.testing.assert_close(
        guided(prior, MMPS("gaussian"), z, sigma, cases), expected, rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("reference", list(REFERENCES))
def test_the_guarded_choice_symmetrises_a_networks_jacobian(reference):
    prior, sigma = Network(False, REFERENCES[reference]), 0.4
    z, cases = states(prior, sigma)

    def covariance(j, c):
        return 0.5 * sigma**2 * (j @ c + c @ j.T)

    expected = by_hand(prior, z, sigma, cases, covariance, covariance)
    found = guided(prior, MMPS("guarded", rtol=1e-12), z, sigma, cases)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_negative_curvature_stops_a_guarded_row_and_is_an_error_for_the_exact_choice():
    prior, sigma = Network(True), 25.0
    prior.denoise = lambda z, sigma: z @ prior.weight.T  # strong, and wrong, where the noise is large
    z, cases = states(prior, sigma)
    found = guided(prior, MMPS("guarded"), z, sigma, cases)
    assert torch.isfinite(found).all()
    with pytest.raises(ConvergenceError):
        guided(prior, MMPS("exact"), z, sigma, cases)


@pytest.mark.parametrize("choice", ["exact", "guarded", "gaussian", "scalar"])
def test_a_row_does_not_depend_on_the_rows_beside_it(choice):
    prior, sigma = mixture("dense"), 0.9
    z, cases = states(prior, sigma, 6)
    together = guided(prior, MMPS(choice), z, sigma, cases)
    for i in range(6):
        alone = guided(prior, MMPS(choice), z[i : i + 1], sigma, cases[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-11)


def test_the_choice_follows_the_prior_and_is_recorded():
    def choice(prior):
        posterior = prior.given(Y[0], OPERATOR, sd.noise.Gaussian(0.5))
        return posterior.sample(2, method=MMPS(), steps=3, seed=0).attrs["denoising_covariance"]

    assert choice(mixture()) == "exact"
    assert choice(Network(False)) == "unit"
    fitted = Network(False)
    fitted.gaussian_covariance = mixture().gaussian_covariance
    assert choice(fitted) == "gaussian"


def test_a_prior_without_a_fitted_gaussian_is_refused_where_one_is_asked_for():
    posterior = Network(False).given(Y[0], OPERATOR, sd.noise.Gaussian(0.5))
    for method in (MMPS("gaussian"), sd.methods.GaussianVI()):
        with pytest.raises(MethodError, match="no fitted Gaussian"):
            posterior.sample(2, method=method, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"covariance": "full"},
        {"rtol": 0.0},
        {"rtol": 2.0},
        {"draw_rtol": 0.0},
        {"max_iterations": 0},
        {"gamma": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError):
        MMPS(**change)


class Units:
    """Streams whose row i draws the i-th unit vector of all that is drawn, and row 0 zeros."""

    def __init__(self, rows: int) -> None:
        self.rows, self.drawn = rows, 0

    def __len__(self) -> int:
        return self.rows

    def normal(self, shape, *, dtype, device="cpu"):
        size = int(np.prod(shape))
        out = torch.zeros(self.rows, size, dtype=dtype)
        out[1 + self.drawn + torch.arange(size), torch.arange(size)] = 1.0
        self.drawn += size
        return out.reshape(self.rows, *shape)


@pytest.mark.parametrize("few", [0, 8], ids=["by CG", "formed"])
@pytest.mark.parametrize("reference", list(REFERENCES))
@pytest.mark.parametrize("sigma", [0.2, 1.5])
@pytest.mark.parametrize("case", [0, 1])
def test_a_draw_given_a_state_of_a_mixture_has_the_covariance_of_that_state(
    monkeypatch, few, reference, sigma, case
):
    """``x0 = D_y + L w``: the answers to unit noise are the columns of L, and ``L L^T = Cov[z0 | z, y]``."""
    monkeypatch.setattr("sciddiff.methods.mmps._FEW", few)
    prior = mixture(reference)
    method, row = MMPS(rtol=1e-12, draw_rtol=1e-12), states(prior, sigma)[0][2]
    posterior = prior.given(
        Y, OPERATOR, sd.noise.Gaussian(covariance=NOISE), missing="mask", batch_dim="case"
    )
    rows = 1 + prior.space.size + 3
    run = Run(posterior, method, rows, seed=0, solver=None, steps=None, chunk=None, progress=False)
    cases = torch.full((rows,), case)
    with torch.no_grad():
        found = method.guide(run).draw(row.expand(rows, -1), sigma, cases, Units(rows))
    # a row of zeros has no noise: it is the mean
    mean = guided(prior, method, row[None], sigma, cases[:1])
    torch.testing.assert_close(found[:1], mean, rtol=1e-8, atol=1e-9)
    j = torch.autograd.functional.jacobian(lambda v: prior.denoise(v[None], sigma)[0], row)
    cov = sigma**2 * j @ prior.reference.apply(torch.eye(D, dtype=torch.float64))
    seen = torch.from_numpy(np.flatnonzero(~np.isnan(Y[case])))
    b = torch.from_numpy(MATRIX)[seen] * prior.normalisation.scale
    r = NOISE.apply(torch.eye(3, dtype=torch.float64))[seen][:, seen]
    expected = cov - cov @ b.T @ torch.linalg.solve(r + b @ cov @ b.T, b @ cov)
    columns = found[1:] - found[:1]
    torch.testing.assert_close(columns.T @ columns, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bad", [{"max_iterations": 1.5}, {"gamma": True}, {"rtol": "small"}], ids=repr)
def test_settings_of_another_type_are_refused(bad):
    with pytest.raises(InputError):
        MMPS(**bad)


@pytest.mark.parametrize("choice", ["gaussian", "unit"])
def test_a_guessed_covariance_takes_more_steps_also_on_exact_priors(choice):
    method, rows = MMPS(choice), Y[0] if not np.isnan(Y[0]).any() else np.nan_to_num(Y[0])
    draws = mixture().given(rows, OPERATOR, sd.noise.Gaussian(0.5)).sample(1, method=method, seed=0)
    assert draws.attrs["forwards"] == 65
