"""Guidance with a covariance in the solve: where it is exact, where it is not, and by how much.

The figures that the docstrings quote are of an Ornstein-Uhlenbeck series of 64 times, 16 of them observed with sd
0.1, and the exact denoiser.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.diagnostics import gaussian_w2
from sciddiff.methods import LGD, MMPS, TMPD, LocalGaussian, PiGDM
from sciddiff.noise import Gaussian, Laplace, Poisson, StudentT
from sciddiff.solvers import Ancestral, DPMSolver
from sciddiff.testing import check_method

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

BIASED = {"mean": "biased by construction", "covariance": "biased by construction"}
N = 500


@pytest.mark.parametrize("method", [LocalGaussian(), PiGDM("gaussian")], ids=lambda m: type(m).__name__)
def test_what_is_exact_for_gaussian_priors_passes_every_check(method):
    check_method(method, draws=200, steps=16)


@pytest.mark.parametrize("method", [PiGDM(), TMPD(), LGD(k=3)], ids=lambda m: type(m).__name__)
def test_what_is_biased_fails_only_in_its_moments(method):
    report = check_method(method, draws=200, steps=8, expected_failures=BIASED)
    assert set(report.named("failed")) == set()


def test_a_local_gaussian_and_corrected_pigdm_have_the_law_of_mmps_on_every_kind_of_space(
    posterior, calibration
):
    """The same solver, step for step, so that what is known of the law of `MMPS` holds for them."""
    solver = DPMSolver(steps=6)
    exact = calibration.law_of_draws(posterior, MMPS(), solver=solver)
    for method in (LocalGaussian(rtol=1e-12), PiGDM("gaussian")):
        law = calibration.law_of_draws(posterior, method, solver=solver)
        scale = np.sqrt(np.diag(exact.cov).max())
        assert np.abs(law.mean - exact.mean).max() < 1e-6 * scale
        assert np.abs(law.cov - exact.cov).max() < 1e-6 * scale**2


@pytest.mark.parametrize(
    "method", [LocalGaussian(), PiGDM("gaussian"), PiGDM(), TMPD(), LGD(k=3)], ids=lambda m: type(m).__name__
)
def test_single_precision_gives_the_same_draws_on_every_kind_of_space(posterior, method):
    single = sd.Posterior(
        posterior.prior.to(dtype=torch.float32),
        tuple(replace(o, y=o.y.float()) for o in posterior.observations),
    )
    a, b = (p.sample(3, method=method, steps=6, seed=0).to_array() for p in (posterior, single))
    assert b.dtype in (np.float32, np.complex64)
    # of the states, which in physical units may be far from 0
    assert float(abs(a - b).max()) < 1e-3 * float(abs(a - a.mean()).max()) + 1e-6 * float(abs(a).max())


@pytest.fixture(scope="module")
def ornstein_uhlenbeck() -> sd.Posterior:
    rng, times = np.random.default_rng(0), np.arange(64.0)
    space = sd.Space({"time": times})
    prior = sd.GaussianPrior(space, sd.covariance.kernel(lambda h: np.exp(-h / 8), times))
    operator = sd.operators.Points.at_indices(space, np.sort(rng.choice(64, 16, replace=False)))
    noise = sd.noise.Gaussian(0.1)
    return prior.given(
        operator.observe(prior.sample(1, seed=0).isel(sample=0), noise, seed=0), operator, noise
    )


def figures(posterior, calibration, method, solver, seed=0) -> tuple[float, float, float, float]:
    """Rms error of the means in posterior sds, mean and least ratio of the sds, and W2 over its floor."""
    truth = calibration.exact(posterior)
    x = calibration.flat(posterior, posterior.sample(N, method=method, solver=solver, seed=seed))
    scale, rng = np.sqrt(np.diag(truth.cov)), np.random.default_rng(1)
    spread = x.std(0, ddof=1) / scale
    exact = [truth.draw(N, rng) for _ in range(6)]
    floor = np.median([gaussian_w2(a, b) for a, b in zip(exact[::2], exact[1::2], strict=True)])
    off = np.sqrt((((x.mean(0) - truth.mean) / scale) ** 2).mean())
    far = gaussian_w2(torch.from_numpy(x), exact[0]) / floor
    return float(off), float(spread.mean()), float(spread.min()), float(far)


# standard deviations from seed to seed are at most 0.016, 0.008, 0.03 and 0.11; the bounds are four of these
WITHIN = np.array([0.065, 0.03, 0.12, 0.45])


@pytest.mark.parametrize(
    ("method", "solver", "measured"),
    [
        (PiGDM(), DPMSolver(steps=32), (0.655, 1.154, 0.978, 3.01)),
        (PiGDM(), Ancestral(steps=256), (0.230, 1.054, 0.965, 1.56)),
        (PiGDM("gaussian"), DPMSolver(steps=32), (0.045, 1.017, 0.946, 1.03)),
        (TMPD(), DPMSolver(steps=32), (1.391, 1.573, 1.220, 6.56)),
        pytest.param(TMPD(), Ancestral(steps=256), (0.743, 1.202, 1.033, 4.48), marks=pytest.mark.slow),
        pytest.param(LGD(), DPMSolver(steps=64), (0.778, 1.209, 0.884, 3.56), marks=pytest.mark.slow),
        pytest.param(LGD(), Ancestral(steps=64), (0.362, 1.165, 0.870, 1.69), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_each_rule_is_off_by_what_was_measured(ornstein_uhlenbeck, calibration, method, solver, measured):
    found = figures(ornstein_uhlenbeck, calibration, method, solver)
    assert (np.abs(np.subtract(found, measured)) < WITHIN).all(), found


def test_a_local_gaussian_is_at_the_floor_of_the_same_test(ornstein_uhlenbeck, calibration):
    off, spread, least, far = figures(ornstein_uhlenbeck, calibration, LocalGaussian(), DPMSolver(steps=32))
    assert off < 4 / np.sqrt(N) and abs(spread - 1) < 0.05
    assert least > 1 - 4 / np.sqrt(2 * N) and far < 1.2


def single(bend, noise, y) -> tuple[sd.Posterior, np.ndarray, np.ndarray]:
    """Four values of variance one, each seen alone, with their exact posterior means and sds by quadrature."""
    space = sd.Space({"i": 4})
    operator = sd.operators.from_torch(bend, space, space)
    posterior = sd.GaussianPrior(space, sd.covariance.white((4,))).given(y, operator, noise)
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)[:, None]
    seen = posterior.observations[0].y
    log = torch.stack([noise.log_prob(seen[:, i : i + 1], bend(grid)) for i in range(4)], 1).numpy()
    log = log + stats.norm.logpdf(grid.numpy())
    weight = np.exp(log - log.max(0))
    weight /= weight.sum(0)
    mean = (weight * grid.numpy()).sum(0)
    return posterior, mean, np.sqrt((weight * (grid.numpy() - mean) ** 2).sum(0))


SINGLE = {
    "counts": (torch.exp, Poisson(3.0), [0.0, 1.0, 6.0, 20.0], [0.23, 0.16, 0.18, 0.31], [1.01, 1.05, 0.97, 0.94]),
    "many counts": (torch.exp, Poisson(30.0), [5.0, 20.0, 60.0, 150.0], [0.48, 0.21, 0.20, 0.15], [1.09, 1.05, 1.00, 0.99]),
    "a quadratic": (
        lambda x: x + 0.3 * x**2, Gaussian(0.3), [-0.5, 0.0, 1.5, 4.0], [0.26, 0.13, 0.12, 0.09], [0.86, 0.89, 0.94, 0.98],
    ),
    "exp": (torch.exp, Gaussian(0.2), [0.3, 1.0, 3.0, 6.0], [0.28, 0.18, 0.18, 0.08], [0.93, 1.02, 0.98, 0.97]),
    "Laplace": (lambda x: 1.0 * x, Laplace(0.3), [0.0, 0.5, 1.5, 3.0], [0.0, -0.02, -0.03, 0.19], [1.06, 1.09, 0.96, 0.67]),
    "Student": (
        lambda x: 1.0 * x, StudentT(4, 0.3), [0.0, 0.5, 1.5, 3.0], [0.0, -0.03, -0.06, 0.20], [1.09, 1.13, 0.99, 0.57],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SINGLE))
def test_a_local_gaussian_is_off_by_what_was_measured_where_it_is_bent(kind):
    bend, noise, y, off, spread = SINGLE[kind]
    n, (posterior, mean, scale) = 1000, single(bend, noise, y)
    draws = posterior.sample(n, method=LocalGaussian(), seed=1)
    assert draws.attrs["solver"].startswith("Ancestral")
    x = posterior.prior.space.tensor(draws, batch_dim="sample").numpy()
    # the figures were taken of 2000 other draws; four standard errors of both, and rounding
    error = 4 * np.sqrt(1 / n + 1 / 2000)
    assert np.abs((x.mean(0) - mean) / scale - off).max() < 1.1 * error + 0.005
    # the kurtosis of these posteriors is below 6, so that the variance of a relative sd is below 5/4n
    assert np.abs(x.std(0) / scale - spread).max() < np.sqrt(5 / 4) * error + 0.005
