"""Ensembles in the space of black boxes: localised and square-root analyses, inversion, Kalman diffusion, EnKG."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.methods.analysis import Localised, Perturbed, SquareRoot, Tapered, gaspari_cohn
from sciddiff.methods.enkg import EnKG, KalmanDiffusion
from sciddiff.methods.kalman import EKI, EnsembleKalman, TemperedEKI
from sciddiff.posterior import Posterior
from sciddiff.random import Streams
from sciddiff.testing import check_method
from sciddiff.testing.exact import gaussian

# small ensembles and biased settings on purpose: what is proved here is what is computed
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

KINDS = ["vector", "series", "grid", "graph"]
SMALL_ENKG = EnKG(ensemble=12, steps=6, rollout=3)
EVERY = [
    EnsembleKalman(ensemble=12),
    EnsembleKalman(ensemble=12, analysis=SquareRoot()),
    TemperedEKI(ensemble=12),
    EKI(ensemble=12, tau=0.3, iterations=3),
    KalmanDiffusion(ensemble=12, steps=3),
    KalmanDiffusion(ensemble=12, steps=3, analysis=SquareRoot()),
    KalmanDiffusion(ensemble=12, steps=3, spread="rollout", rollout=3),
    SMALL_ENKG,
]
NAMES = [f"{type(m).__name__}-{i}" for i, m in enumerate(EVERY)]


def values(draws) -> np.ndarray:
    """Draws as they lie, ``(n, cases..., d)``."""
    name = next(iter(draws.data_vars))
    return draws[name].values


def sample(posterior: Posterior, method, n: int, seed: int = 0, **settings) -> np.ndarray:
    x = values(posterior.sample(n, method=method, seed=seed, **settings))
    return x.reshape(n, -1)


class Dense:
    """What the textbook formulas need of a Gaussian problem, as dense matrices in physical units."""

    def __init__(self, problem) -> None:
        self.problem, prior = problem, problem.posterior.prior
        self.space, (o,) = prior.space, problem.posterior.observations
        eye = torch.eye(self.space.size, dtype=torch.float64).reshape(-1, *self.space.shape)
        self.a = o.operator.apply(eye).flatten(1).T.numpy()
        m = len(self.a)
        self.r = o.noise.covariance((m,)).apply(torch.eye(m, dtype=torch.float64)).numpy()
        self.y = o.y[0].numpy()

    def members(self, j: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The ensemble that methods start from, and the errors of their data."""
        prior = self.problem.posterior.prior
        z = prior.draw(Streams(seed, range(j), [0] * j, purpose="ensemble"))
        e = Streams(seed, range(j), [0] * j, purpose="perturbation").normal(self.y.shape, dtype=torch.float64)
        return prior.normalisation.physical(z).flatten(1).numpy(), e.numpy() @ np.sqrt(self.r)

    def black_box(self, function=None, dtype=None, **settings) -> Posterior:
        """The same posterior, of which nothing is known but values."""
        (o,), prior = self.problem.posterior.observations, self.problem.posterior.prior
        a = self.a

        def plain(x: np.ndarray) -> np.ndarray:
            return a.astype(x.dtype) @ x.reshape(-1)

        box = sd.operators.black_box(function or plain, self.space, o.operator.codomain, **settings)
        prior = prior if dtype is None else prior.to(dtype=dtype)
        return prior.given(self.y, box, o.noise)


def of(kind: str, seed: int = 0) -> Dense:
    return Dense(gaussian(kind, seed))


# -- one analysis ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("j", [10, 60], ids=["fewer members than data", "more"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_square_root_turns_the_ensembles_own_moments_into_kalmans(j, iterations):
    p = of("series")
    x, _ = p.members(j)
    cov, mean = np.cov(x.T), x.mean(0)
    gain = cov @ p.a.T @ np.linalg.inv(p.a @ cov @ p.a.T + p.r)
    draws = sample(
        p.problem.posterior,
        EnsembleKalman(ensemble=j, iterations=iterations, analysis=SquareRoot()),
        j,
    )
    np.testing.assert_allclose(draws.mean(0), mean + gain @ (p.y - p.a @ mean), atol=1e-9)
    np.testing.assert_allclose(np.cov(draws.T), cov - gain @ p.a @ cov, atol=1e-9)


@pytest.mark.parametrize("blocks", [2**22, 40], ids=["at once", "in blocks of states"])
def test_localised_is_the_textbook_formula_with_tapered_covariances(blocks, monkeypatch):
    monkeypatch.setattr("sciddiff.methods.analysis._BLOCK", blocks)
    p, j = of("series"), 20
    x, e = p.members(j)
    t, s = np.arange(64.0), p.problem.posterior.observations[0].operator.locations["time"]
    g = x @ p.a.T
    dx, dg = (x - x.mean(0)) / math.sqrt(j - 1), (g - g.mean(0)) / math.sqrt(j - 1)
    xy = gaspari_cohn(abs(t[:, None] - s) / 12) * (dx.T @ dg)
    yy = gaspari_cohn(abs(s[:, None] - s) / 12) * (dg.T @ dg)
    expected = x + (p.y + e - g) @ (xy @ np.linalg.inv(yy + p.r)).T
    draws = sample(p.problem.posterior, EnsembleKalman(ensemble=j, analysis=Localised(12.0)), j)
    np.testing.assert_allclose(draws, expected, atol=1e-9)


def test_a_taper_of_ones_changes_nothing_and_any_other_multiplies_the_gain():
    p, j = of("graph"), 20
    posterior = p.problem.posterior
    plain = sample(posterior, EnsembleKalman(ensemble=j), j)
    ones = EnsembleKalman(ensemble=j, analysis=Tapered(np.ones(p.a.shape)))
    np.testing.assert_allclose(sample(posterior, ones, j), plain, atol=1e-9)
    taper = np.random.default_rng(0).uniform(size=p.a.shape)
    x, e = p.members(j)
    g = x @ p.a.T
    cov = np.cov(x.T)
    gain = taper.T * (cov @ p.a.T @ np.linalg.inv(p.a @ cov @ p.a.T + p.r))
    method = EnsembleKalman(ensemble=j, analysis=Tapered(taper))
    np.testing.assert_allclose(sample(posterior, method, j), x + (p.y + e - g) @ gain.T, atol=1e-9)


def test_missing_data_of_a_localised_analysis_equal_dropping_them():
    space = sd.Space({"time": np.arange(20.0)})
    prior = sd.GaussianPrior(space, sd.covariance.kernel(lambda h: np.exp(-h / 5), np.arange(20.0)))

    def draws(at, y, sds, analysis):
        sensors = sd.operators.Points.at_indices(space, at)
        posterior = prior.given(y, sensors, sd.noise.Gaussian(sds), missing="mask")
        return sample(posterior, EnsembleKalman(ensemble=200, analysis=analysis), 200)

    gap = draws([2, 9, 14], [1.0, math.nan, -1.0], [0.2, 0.5, 0.3], Localised(8.0))
    rest = draws([2, 14], [1.0, -1.0], [0.2, 0.3], Localised(8.0))
    # the errors of the data are others, the gain is the same: means differ by 0.3/sqrt(200) at most
    assert abs(gap.mean(0) - rest.mean(0)).max() < 4 * math.sqrt(2) * 0.3 / math.sqrt(200)
    taper = np.random.default_rng(0).uniform(size=(3, 20))
    gap = draws([2, 9, 14], [1.0, math.nan, -1.0], [0.2, 0.5, 0.3], Tapered(taper))
    rest = draws([2, 14], [1.0, -1.0], [0.2, 0.3], Tapered(taper[[0, 2]]))
    assert abs(gap.mean(0) - rest.mean(0)).max() < 4 * math.sqrt(2) * 0.3 / math.sqrt(200)


def test_localisation_halves_the_error_of_an_ensemble_smaller_than_the_state():
    problem = gaussian("series", 0)
    truths, posterior = problem.cases(8, seed=0)
    p = Dense(problem)
    gain = p.problem.covariance @ p.a.T @ np.linalg.inv(p.r)
    exact = posterior.observations[0].y.numpy() @ gain.T
    errors = []
    for analysis in (Perturbed(), Localised(32.0)):
        x = values(posterior.sample(24, method=EnsembleKalman(ensemble=24, analysis=analysis), seed=0))
        errors.append(np.sqrt((((x.mean(0) - exact) / p.problem.sd) ** 2).mean()))
    assert errors[1] < 0.5 * errors[0] and len(truths) == 8


def test_gaspari_cohn_is_a_correlation_of_compact_support():
    x = np.linspace(0, 3, 80)
    taper = gaspari_cohn(abs(x[:, None] - x))
    assert np.linalg.eigvalsh(taper).min() > -1e-12
    assert (taper.diagonal() == 1).all() and (taper[abs(x[:, None] - x) >= 1] == 0).all()


# -- the calibrated diffusion ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("analysis", [Perturbed(), SquareRoot()], ids=repr)
def test_kalman_diffusion_of_one_step_is_the_ensemble_kalman_analysis(kind, analysis):
    p, j = of(kind), 30
    draws = sample(p.problem.posterior, KalmanDiffusion(ensemble=j, steps=1, analysis=analysis), j)
    analysed = sample(p.problem.posterior, EnsembleKalman(ensemble=j, analysis=analysis), j)
    np.testing.assert_allclose(draws, analysed, rtol=1e-6, atol=1e-12)
    if isinstance(analysis, Perturbed):
        x, e = p.members(j)
        cov = np.cov(x.T)
        gain = cov @ p.a.T @ np.linalg.inv(p.a @ cov @ p.a.T + p.r)
        np.testing.assert_allclose(draws, x + (p.y + e - x @ p.a.T) @ gain.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "analysis", [Perturbed(), pytest.param(SquareRoot(), marks=pytest.mark.slow)], ids=repr
)
def test_kalman_diffusion_tends_to_the_posterior_of_64_values_as_one_over_root_j(analysis):
    problem = gaussian("series", 0)
    _, posterior = problem.cases(4, seed=0)
    p, sizes = Dense(problem), np.array([64, 256, 1024])
    exact = posterior.observations[0].y.numpy() @ (problem.covariance @ p.a.T @ np.linalg.inv(p.r)).T
    lam, v = np.linalg.eigh(problem.covariance)
    errors = []
    for j in sizes:
        method = KalmanDiffusion(ensemble=2, steps=4, analysis=analysis)
        w = (values(posterior.sample(int(j), method=method, seed=1)) - exact) @ (v / np.sqrt(lam))
        mean = np.sqrt((w.mean(0) ** 2).mean())
        cov = np.sqrt(np.mean([(np.cov(w[:, c].T) - np.eye(64)) ** 2 for c in range(4)]))
        errors.append([mean, cov])
    slopes = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # 4 cases of 64 means: 6 % an error, 0.03 a slope; small ensembles are a little worse than their law
    assert (abs(slopes + 0.5) < 0.15).all(), slopes
    # exact draws alone have means off by 1/sqrt(J) and covariances by about as much
    assert errors[-1][0] * 32 < 4 and errors[-1][1] * 32 < 1.2


@pytest.mark.parametrize("steps", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("analysis", [Perturbed(), SquareRoot()], ids=repr)
def test_kalman_diffusion_has_the_exact_moments_and_half_the_noise_would_be_noticed(steps, analysis):
    p, j = of("vector"), 2500
    lam, v = np.linalg.eigh(p.problem.covariance)

    def z(posterior):
        method = KalmanDiffusion(steps=steps, analysis=analysis)
        w = (sample(posterior, method, j) - p.problem.mean) @ (v / np.sqrt(lam))
        # chi-square values, with as much again for the error of the gain
        return ((w**2).sum() / w.size - 1) / math.sqrt(2 * 2 / w.size), w.mean(0) * math.sqrt(j / 2)

    spread, mean = z(p.problem.posterior)
    assert abs(spread) < 4 and abs(mean).max() < 4.5
    (o,) = p.problem.posterior.observations
    half = sd.noise.Gaussian(math.sqrt(0.5) * o.noise.sd)
    assert abs(z(p.problem.posterior.prior.given(p.y, o.operator, half))[0]) > 8


def test_every_further_step_reads_the_data_without_counting_them_again():
    # at twice the noise the prior's spread would show: the law of many steps is that of one
    p, j = of("vector"), 2000
    spreads = [
        np.log(sample(p.problem.posterior, KalmanDiffusion(steps=k), j).var(0) / p.problem.sd**2)
        for k in (1, 4, 16)
    ]
    # the log of a variance has sd sqrt(2/j), and as much again for the gain
    assert abs(np.array(spreads)).max() < 4.5 * math.sqrt(2 * 2 / j)


@pytest.mark.parametrize("rollout", [16, 64])
def test_a_rollout_stands_in_for_a_covariance_that_the_prior_does_not_tell(rollout):
    problem, j = gaussian("vector", 0).hidden(), 1000
    posterior = problem.posterior
    exact = gaussian("vector", 0).posterior
    draws = sample(exact, KalmanDiffusion(steps=4, spread="rollout", rollout=rollout), j)
    off = (draws.mean(0) - problem.mean) / problem.sd
    ratio = draws.std(0, ddof=1) / problem.sd
    # ancestral steps are of order 1: their spread is short by about 1/rollout
    assert abs(ratio - 1).max() < 4 / rollout + 4.5 / math.sqrt(j)
    assert abs(off).max() < 4 / rollout + 4.5 * math.sqrt(2 / j)
    assert KalmanDiffusion().choice(posterior) == "rollout" and KalmanDiffusion().choice(exact) == "exact"


# -- inversion ---------------------------------------------------------------------------------------------


def test_adaptive_steps_to_time_one_are_one_analysis_where_the_operator_is_linear():
    p, j = of("series"), 40
    one = sample(p.problem.posterior, EnsembleKalman(ensemble=j, analysis=SquareRoot()), j)
    draws = p.problem.posterior.sample(j, method=TemperedEKI(ensemble=j, analysis=SquareRoot()), seed=0)
    many = values(draws)
    assert draws.attrs["analyses"] > 2
    np.testing.assert_allclose(many.mean(0), one.mean(0), atol=1e-8)
    np.testing.assert_allclose(np.cov(many.T), np.cov(one.T), atol=1e-8)


def test_eki_stops_where_the_mean_prediction_fits_within_the_noise():
    p, j = of("series"), 100
    first = sample(p.problem.posterior, EnsembleKalman(ensemble=j), j)
    seen, whitened = [], np.sqrt(p.r.diagonal())
    for tau in (100.0, 1.0, 0.05):
        draws = p.problem.posterior.sample(j, method=EKI(ensemble=j, tau=tau, analysis=SquareRoot()), seed=0)
        misfit = np.linalg.norm((p.y - p.a @ values(draws).mean(0)) / whitened)
        assert misfit <= (1 + 1e-9) * tau * math.sqrt(len(p.y))
        seen.append(draws.attrs["analyses"])
        if seen[-1] > 1:  # and one analysis less would not have done
            short = EKI(ensemble=j, tau=1e-6, iterations=seen[-1] - 1, analysis=SquareRoot())
            before = sample(p.problem.posterior, short, j)
            assert np.linalg.norm((p.y - p.a @ before.mean(0)) / whitened) > tau * math.sqrt(len(p.y))
    assert seen[0] == 0 and seen[0] <= seen[1] < seen[2]
    once = sample(p.problem.posterior, EKI(ensemble=j, tau=1e-6, iterations=1), j)
    np.testing.assert_allclose(once, first, atol=1e-9)


def test_eki_closes_in_on_one_fit_as_data_count_again_and_again():
    # n times the same data are data of n times the precision
    p, j, n = of("vector"), 2000, 9
    method = EKI(ensemble=j, tau=1e-6, iterations=n, analysis=SquareRoot())
    draws = sample(p.problem.posterior, method, j)
    precision = np.linalg.inv(p.problem.covariance) + (n - 1) * p.a.T @ np.linalg.inv(p.r) @ p.a
    exact = np.sqrt(np.linalg.inv(precision).diagonal())
    assert abs(np.log(draws.std(0) / exact)).max() < 4.5 / math.sqrt(2 * j) * math.sqrt(2)


# -- EnKG as published -------------------------------------------------------------------------------------


def test_enkg_is_the_published_algorithm():
    j, n, guidance = 6, 8, 2.0
    space = sd.Space({"i": 3})
    prior = sd.GaussianPrior(space, sd.covariance.white((3,)), sigma_min=0.01, sigma_max=20.0)
    a, y = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), np.array([1.0, 2.0])
    operator = sd.operators.Matrix(space, sd.Space({"j": 2}, "y"), a)
    noise = sd.noise.Gaussian(0.1)
    levels = sd.solvers.Karras().sigmas
    x = 20.0 * Streams(0, range(j), [0] * j, purpose="posterior").normal((3,), dtype=torch.float64).numpy()
    sigmas = levels(n, 0.01, 20.0)
    for i in range(n):
        for _ in range(2 if 0.05 * n < i < 0.95 * n else 0):
            depth = min(1 + (n - i) // 4, 20)
            inner = [sigmas[i], 0.0]
            if depth > 1 and sigmas[i] > 0.01:
                inner = levels(depth, 0.01, sigmas[i])
            x0 = x
            for s, t in pairwise(inner):
                x0 = x0 + (t - s) * (x0 - x0 / (1 + s**2)) / s
            g = x0 @ a.T
            c = np.array([[(g[k] - y) @ (g[h] - g.mean(0)) / j for h in range(j)] for k in range(j)])
            x = x - guidance / np.sqrt((c**2).sum()) * c @ (x - x.mean(0))
        s, t = sigmas[i], sigmas[i + 1]
        x = x + (t - s) * (x - x / (1 + s**2)) / s
    draws = sample(prior.given(y, operator, noise), EnKG(ensemble=j, steps=n, guidance=guidance), j)
    np.testing.assert_allclose(draws, x, rtol=1e-8, atol=1e-10)


def test_enkg_does_not_know_the_noise_and_kalman_diffusion_does():
    space = sd.Space({"i": 3})
    prior = sd.GaussianPrior(space, sd.covariance.white((3,)))
    operator = sd.operators.Matrix(space, sd.Space({"j": 1}, "y"), [[1.0, 1.0, 0.0]])
    sharp, blunt = (prior.given([3.0], operator, sd.noise.Gaussian(s)) for s in (1e-3, 10.0))
    np.testing.assert_array_equal(sample(sharp, SMALL_ENKG, 12), sample(blunt, SMALL_ENKG, 12))
    means = [sample(p, KalmanDiffusion(ensemble=400, steps=3), 400).sum(1).mean() for p in (sharp, blunt)]
    # the sum of the first two is 3 where data are sharp, and 3 * 2 / 102 where they are blunt
    assert abs(means[0] - 3) < 0.3 and abs(means[1]) < 0.5


# -- black boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", EVERY, ids=NAMES)
def test_a_black_box_is_as_good_as_the_operator_that_it_hides(kind, method):
    p = of(kind)
    opaque, known = (sample(q, method, 12) for q in (p.black_box(), p.problem.posterior))
    np.testing.assert_allclose(opaque, known, rtol=1e-6, atol=1e-6)
    single = p.black_box(dtype=torch.float32).sample(12, method=method, seed=0)
    assert values(single).dtype == np.float32
    if not isinstance(method, EnKG):  # whose corrections at high noise magnify every rounding
        np.testing.assert_allclose(values(single).reshape(12, -1), opaque, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", EVERY, ids=NAMES)
def test_chunks_and_the_number_of_workers_change_nothing(method):
    p = of("series")
    whole = sample(p.black_box(), method, 12)
    for chunk in (1, 5):
        np.testing.assert_allclose(sample(p.black_box(), method, 12, chunk=chunk), whole, rtol=0, atol=1e-10)
        known = sample(p.problem.posterior, method, 12, chunk=chunk)
        np.testing.assert_allclose(known, whole, rtol=0, atol=1e-8)
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            np.testing.assert_array_equal(sample(p.black_box(executor=pool), method, 12), whole)


@pytest.mark.parametrize("method", EVERY, ids=NAMES)
@pytest.mark.parametrize("chunk", [None, 1])
def test_members_that_fail_leave_the_ensemble_and_the_others_go_on(method, chunk):
    p = of("series")
    # corrected members of EnKG are near their mean
    limit = 0.25 if isinstance(method, EnKG) else 1.0

    def fails(x: np.ndarray) -> np.ndarray:
        if x[3] > limit:
            raise ArithmeticError("unstable")
        return p.a @ x

    draws = p.black_box(fails, on_error="drop").sample(6, method=method, seed=0, chunk=chunk)
    assert np.isfinite(values(draws)).all() and draws.attrs["failed_members"] > 0
    with pytest.raises(DivergenceError, match=rf"{type(method).__name__}.*on_error"):
        p.black_box(fails, on_error="nan").sample(6, method=method, seed=0)


def test_cost_counts_forwards_and_simulations():
    p, j = of("series"), 10
    attrs = p.problem.posterior.sample(j, method=KalmanDiffusion(ensemble=j, steps=4), seed=0).attrs
    assert (attrs["forwards"], attrs["operator_calls"], attrs["vjps"]) == (3, 7, 0)
    method = KalmanDiffusion(ensemble=j, steps=4, spread="rollout", rollout=5)
    assert p.problem.posterior.sample(j, method=method, seed=0).attrs["forwards"] == 3 * (1 + 5)
    attrs = p.problem.posterior.sample(j, method=EnKG(ensemble=j, steps=2, repeats=3), seed=0).attrs
    # level 1 of 2 is corrected three times, each by a solve of one step
    assert (attrs["forwards"], attrs["operator_calls"]) == (2 + 3, 3)


# -- contracts ---------------------------------------------------------------------------------------------


# a square root scatters so little that its bias of 1/J shows, unless J is much more than the draws that are judged
@pytest.mark.parametrize(
    "method",
    [
        KalmanDiffusion(ensemble=200, steps=3),
        pytest.param(TemperedEKI(ensemble=200), marks=pytest.mark.slow),
        pytest.param(EnsembleKalman(ensemble=1000, analysis=SquareRoot()), marks=pytest.mark.slow),
        pytest.param(KalmanDiffusion(ensemble=1000, steps=3, analysis=SquareRoot()), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_calibrated_methods_keep_every_promise(method):
    assert check_method(method, draws=400).named("skipped") == ["prefix"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [EnKG(ensemble=32, steps=20), EKI(ensemble=64, tau=0.1)], ids=repr)
def test_biased_methods_keep_every_other_promise(method):
    failures = {"mean": "biased by construction", "covariance": "biased by construction"}
    check_method(method, draws=400, expected_failures=failures)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EKI(tau=0.0),
        lambda: EKI(tau=None),
        lambda: EnKG(guidance="a"),
        lambda: EnsembleKalman(inflation=True),
        lambda: EKI(iterations=0),
        lambda: TemperedEKI(ensemble=1),
        lambda: EnsembleKalman(analysis="local"),
        lambda: KalmanDiffusion(steps=0),
        lambda: KalmanDiffusion(spread="wide"),
        lambda: EnKG(guidance=0.0),
        lambda: EnKG(steps=1),
        lambda: Localised(radius=0.0),
        lambda: Localised(radius={"x": -1.0}),
        lambda: Tapered([1.0, 2.0]),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    ("kind", "analysis", "message"),
    [
        ("graph", Localised(1.0), "nodes of a graph"),
        ("vector", Localised(1.0), "shares no coordinates"),
        ("series", Localised({"lat": 1.0}), "shares no coordinates"),
        ("series", Tapered(np.ones((2, 2))), r"taper of \(2, 2\)"),
    ],
)
def test_a_taper_that_does_not_fit_is_refused_before_any_simulation(kind, analysis, message):
    with pytest.raises(MethodError, match=message):
        of(kind).problem.posterior.sample(4, method=EnsembleKalman(analysis=analysis), seed=0)


def test_enkg_raises_where_living_members_overflow():
    p = of("vector")
    given = p.black_box(on_error="drop")
    with pytest.raises(DivergenceError, match="not finite after step"):
        given.sample(4, method=EnKG(ensemble=8, steps=8, guidance=1e308), seed=0)


def test_enkg_leaves_members_alone_whose_predictions_agree():
    p = of("vector")
    space = p.problem.posterior.prior.space
    same = sd.operators.black_box(lambda x: np.ones(2), space, sd.Space({"j": 2}, "y"))
    given = p.problem.posterior.prior.given([3.0, 1.0], same, sd.noise.Gaussian(0.5))
    assert np.isfinite(values(given.sample(4, method=EnKG(ensemble=8, steps=8), seed=0))).all()


@pytest.mark.parametrize(
    ("analysis", "keys"),
    [
        (Perturbed(), ["emerick2013", "burgers1998"]),
        (SquareRoot(), ["emerick2013", "burgers1998", "bishop2001"]),
        (Localised(2.0), ["emerick2013", "burgers1998", "houtekamer2001", "gaspari1999"]),
        (Tapered([[1.0]]), ["emerick2013", "burgers1998", "chen2017"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_ensemble_cites_its_analysis_too(analysis, keys):
    entries = [e for r in EnsembleKalman(analysis=analysis).references() for e in r.split("\n\n") if e]
    assert [e.split("{")[1].split(",")[0][: len(k)] for e, k in zip(entries, keys, strict=True)] == keys
