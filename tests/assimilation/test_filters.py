"""Ensemble and particle filters and smoothers against the exact posterior of a linear Gaussian model."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation import (
    ETKF,
    FFBS,
    LETKF,
    BootstrapFilter,
    EnKF,
    EnKS,
    EnSF,
    IEnKS,
    StateSpaceModel,
    Weak4DVar,
)
from sciddiff.assimilation.filters import rotation
from sciddiff.assimilation.particles import systematic
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.methods import LocalGaussian
from sciddiff.methods.analysis import Localised, LocalSquareRoot, Perturbed, SquareRoot
from sciddiff.random import Streams

sys.path.append(str(Path(__file__).parent))

from linear_gaussian import TIMES, D, assimilation, dense, errors, matrices, model, observations, operator

CASES = 30
WHOLE = LETKF(radius=math.inf)
KALMAN = {"EnKF": EnKF(), "ETKF": ETKF(), "rotated ETKF": ETKF(rotate=True)}
SMOOTHERS = {"EnKS": EnKS(), "perturbed EnKS": EnKS(analysis=Perturbed())}


def repeats(method, members: int, seed: int = 0) -> np.ndarray:
    """``(members, cases, times, d)`` of the same data, every case with an ensemble of its own."""
    return np.asarray(assimilation(CASES).sample(members, method, seed=seed)["x"].values)


def errors_of(x: np.ndarray, smoothing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Errors of means and of covariances of every case, in posterior standard deviations, ``(cases, ...)``."""
    means, covariances = [], []
    for k in range(TIMES):
        mean, covariance = dense(until=TIMES - 1 if smoothing else k).at(k)
        root = np.linalg.inv(np.linalg.cholesky(covariance))
        z = np.einsum("ij,ncj->nci", root, x[:, :, k] - mean)
        means.append(z.mean(0))
        off = z - z.mean(0)
        covariances.append(np.einsum("nci,ncj->cij", off, off) / (len(x) - 1) - np.eye(D))
    return np.stack(means, 1), np.stack(covariances, 1)


@pytest.mark.parametrize(
    ("method", "smoothing"),
    [*((m, False) for m in KALMAN.values()), *((m, True) for m in SMOOTHERS.values())],
    ids=[*KALMAN, *SMOOTHERS],
)
def test_ensembles_tend_to_the_exact_moments_as_the_root_of_their_size(method, smoothing):
    # a rotation of J members takes J^3
    sizes, rms = (50, 200 if getattr(method, "rotate", False) else 800), []
    factor = math.sqrt(sizes[1] / sizes[0])
    for size in sizes:
        mean, covariance = errors_of(repeats(method, size), smoothing)
        # the mean over the cases shows a bias, which falls as 1/J and is no larger than the scatter of one case
        for error in (mean, covariance):
            scatter = error.std(0, ddof=1)
            assert (np.abs(error.mean(0)) < 4.5 * scatter / math.sqrt(CASES) + 6 / size).all()
        rms.append((np.sqrt((mean**2).mean()), np.sqrt((covariance**2).mean())))
    # two rms values, each known to about 1/sqrt(2 CASES) if all values of a case erred as one
    for small, large in zip(*rms, strict=True):
        assert abs(math.log(small / large) - math.log(factor)) < 4 / math.sqrt(CASES)


def test_a_local_analysis_without_end_is_the_transform_of_the_whole():
    for rotate in (False, True):
        whole, local = (
            assimilation(2).sample(9, m, seed=0)["x"].values
            for m in (ETKF(rotate=rotate), LETKF(radius=math.inf, rotate=rotate))
        )
        np.testing.assert_allclose(local, whole, atol=1e-9)


@pytest.mark.parametrize("method", [ETKF(), WHOLE], ids=["ETKF", "LETKF"])
def test_one_analysis_turns_the_members_own_moments_into_kalmans(method):
    y = observations()
    y[:] = np.nan
    y[0] = [0.3, np.nan, -0.2]
    one, members = assimilation(y=y), 12
    before = one.work(members, method, 5).initial(members)[0].numpy()
    x = one.sample(members, method, seed=5)["x"].values[:, 0]
    h, r = matrices()["H"][[0, 2]], matrices()["R"][[0, 2]][:, [0, 2]]
    covariance, mean = np.cov(before.T), before.mean(0)
    gain = covariance @ h.T @ np.linalg.inv(h @ covariance @ h.T + r)
    np.testing.assert_allclose(x.mean(0), mean + gain @ (y[0][[0, 2]] - h @ mean), atol=1e-10)
    np.testing.assert_allclose(np.cov(x.T), covariance - gain @ h @ covariance, atol=1e-10)


def test_a_rotation_and_inflation_change_no_mean_and_the_covariance_by_the_square_of_the_factor():
    plain, turned, wide = (
        assimilation(y=np.where(np.arange(TIMES)[:, None] == 0, np.full((TIMES, 3), 0.1), np.nan))
        .sample(9, m, seed=1)["x"]
        .values[:, 0]
        for m in (ETKF(), ETKF(rotate=True), ETKF(inflation=1.1))
    )
    for other, factor in ((turned, 1.0), (wide, 1.21)):
        np.testing.assert_allclose(other.mean(0), plain.mean(0), atol=1e-10)
        np.testing.assert_allclose(np.cov(other.T), factor * np.cov(plain.T), atol=1e-10)
    assert np.abs(turned - plain).max() > 0.1


def test_rotations_are_orthogonal_keep_the_mean_and_are_uniform():
    turns = rotation(5, Streams(0, range(4000), purpose="test"), dtype=torch.float64)
    eye, ones = torch.eye(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(turns @ turns.mT, eye.expand_as(turns))
    torch.testing.assert_close(turns @ ones, ones.expand(4000, 5))
    # Haar on the complement of ones: the mean of the rotation is the projection on ones, whose entries are 1/5
    error = turns.std(0) / math.sqrt(4000)
    assert float(((turns.mean(0) - 0.2).abs() / error).max()) < 4.5


@pytest.mark.parametrize("smoothing", [False, True], ids=["filter", "smoother"])
def test_particles_have_the_exact_moments_and_evidence(smoothing):
    particles, draws = 2000, 300
    method = FFBS(particles) if smoothing else BootstrapFilter(particles)
    found = assimilation(CASES).sample(draws, method, seed=2)
    x, evidence = found["x"].values, np.asarray(found.attrs["log_evidence"])
    mean, covariance = errors_of(x, smoothing)
    for error in (mean, covariance):
        scatter = error.std(0, ddof=1) / math.sqrt(CASES)
        # particles bias by O(1/N), here below a tenth of the scatter of a case
        assert (np.abs(error.mean(0)) < 4.5 * scatter + 10 / particles).all()
    # exp(evidence) is unbiased; its log is below by half of its variance
    exact, variance = dense().log_likelihood, evidence.var(ddof=1)
    assert abs(evidence.mean() + variance / 2 - exact) < 4.5 * math.sqrt(variance / CASES)
    assert found.attrs["law"] == ("smoothing" if smoothing else "filtering")


def test_backward_sampled_trajectories_have_the_covariance_of_neighbouring_times():
    x = assimilation(CASES).sample(300, FFBS(2000), seed=3)["x"].values
    exact = dense()
    off = x - exact.mean.reshape(TIMES, D)
    for k in range(TIMES - 1):
        lag = np.einsum("nci,ncj->cij", off[:, :, k], off[:, :, k + 1]) / len(x)
        block = exact.covariance[D * k : D * k + D, D * k + D : D * k + 2 * D]
        error = lag.std(0, ddof=1) / math.sqrt(CASES)
        assert (np.abs(lag.mean(0) - block) < 4.5 * error + 0.01 * np.abs(block).max()).all()
        # times drawn one by one would be far off
        assert (np.abs(block) > 9 * error + 0.02 * np.abs(block).max()).any()


def test_systematic_resampling_takes_each_particle_about_as_often_as_its_weight():
    streams = Streams(0, range(2000), purpose="test")
    weights = torch.tensor([0.05, 0.3, 0.15, 0.25, 0.25], dtype=torch.float64)
    index = systematic(weights.log().expand(2000, 5), streams.uniform((1,), dtype=torch.float64))
    counts = torch.stack([(index == j).sum(1) for j in range(5)], 1).double()
    assert bool(((counts - 5 * weights).abs() < 1).all())
    error = counts.std(0) / math.sqrt(2000)
    assert bool(((counts.mean(0) - 5 * weights).abs() < 4.5 * error + 1e-9).all())


@pytest.mark.parametrize(
    "method",
    [
        EnKF(inflation=1.3),
        ETKF(inflation=1.3),
        ETKF(rotate=True),
        LETKF(radius=math.inf, inflation=1.3, rotate=True),
        EnKS(inflation=1.3),
        BootstrapFilter(200, threshold=1.0),
        FFBS(200, threshold=1.0),
        EnSF(steps=10),
        EnSF(posterior=LocalGaussian("gaussian"), steps=4, inflation=1.3),
        Weak4DVar(),
    ],
)
def test_a_case_is_the_same_alone_and_beside_others(method):
    y = observations()
    # the other has data where the case has none, and none where the case has some
    other = np.where(np.isnan(y), 0.5, y + 0.1)
    other[2] = np.nan
    law = model()
    alone = law.given(y, operator(), errors()).sample(20, method, seed=0)["x"].values
    many = law.given(np.stack([y, other]), operator(), errors(), batch_dim="case")
    many = many.sample(20, method, seed=0)["x"].values
    np.testing.assert_allclose(many[:, 0], alone, atol=1e-9)
    again = law.given(y, operator(), errors()).sample(20, method, seed=1)["x"].values
    assert np.abs(again - alone).max() > 1e-2


@pytest.mark.parametrize("method", [BootstrapFilter(200), FFBS(200)])
def test_a_draw_of_particles_depends_on_its_number_alone(method):
    few, many = (assimilation().sample(n, method, seed=3)["x"].values for n in (2, 6))
    np.testing.assert_array_equal(few, many[:2])


@pytest.mark.parametrize("method", [EnKF(), ETKF(), WHOLE, EnKS(), BootstrapFilter(200), FFBS(200)])
def test_the_dtype_is_the_models(method):
    draws = assimilation(dtype=torch.float32).sample(8, method, seed=0)
    assert draws["x"].dtype == np.float32
    exact = assimilation().sample(8, method, seed=0)["x"].values
    assert np.isfinite(draws["x"].values).all()
    if not isinstance(method, (BootstrapFilter, FFBS)):  # a rounding may select another particle
        np.testing.assert_allclose(draws["x"].values, exact, atol=1e-3)


@pytest.mark.parametrize("method", [EnKF(inflation=1.02), ETKF(rotate=True), BootstrapFilter(300)])
def test_moments_are_those_of_the_members(method):
    seen = assimilation(2)
    moments = seen.moments(30, method, seed=4)["x"]
    if isinstance(method, BootstrapFilter):
        draws = seen.sample(10_000, method, seed=4)["x"]
        error = float((draws.std("sample") / math.sqrt(10_000)).max())
        assert float(abs(moments.sel(moment="mean") - draws.mean("sample")).max()) < 5 * error
        return
    draws = seen.sample(30, method, seed=4)["x"]
    np.testing.assert_allclose(moments.sel(moment="mean"), draws.mean("sample"), atol=1e-10)
    np.testing.assert_allclose(moments.sel(moment="sd"), draws.std("sample", ddof=1), atol=1e-10)
    # nothing is observed at the fourth time
    at = moments.isel(time=3)
    np.testing.assert_array_equal(at.sel(moment="sd"), at.sel(moment="forecast sd"))


def test_the_lag_of_a_smoother_keeps_what_lies_further_behind():
    y = np.full((TIMES, 3), np.nan)
    y[4] = 1.0
    near, far, none = (
        assimilation(y=y).sample(20, EnKS(lag=lag), seed=0)["x"].values for lag in (2, None, 1)
    )
    np.testing.assert_allclose(near[:, 2:5], far[:, 2:5], atol=1e-10)
    assert np.abs(near[:, 1] - far[:, 1]).max() > 1e-3
    np.testing.assert_allclose(near[:, :2], none[:, :2], atol=1e-12)


def test_a_local_analysis_sees_data_by_their_distance_around_a_ring():
    space = sd.Space({"site": 12})
    prior = sd.GaussianPrior(space, sd.covariance.white((12,)))
    law = StateSpaceModel(lambda x: x, prior, space=space, times=1)
    y = np.full((1, 12), np.nan)
    y[0, 0] = 2.0
    seen = law.given(y, sd.operators.Identity(space), sd.noise.Gaussian(0.5))
    before = seen.work(9, ETKF(), 0).initial(9)[0].numpy()
    moved = seen.sample(9, LETKF(radius=4.0, period=12), seed=0)["x"].values[:, 0] - before
    reach = np.minimum(np.arange(12), 12 - np.arange(12))
    assert (np.abs(moved).max(0)[reach < 4] > 1e-6).all()
    assert (np.abs(moved).max(0)[reach >= 4] < 1e-12).all()
    # at distance 2 the taper is 0.2083: as a datum with a variance of 0.25 / 0.2083
    x, g = before[:, 2] - before[:, 2].mean(), before[:, 0]
    gain = np.cov(x, g)[0, 1] / (g.var(ddof=1) + 0.25 / sd.methods.analysis.gaspari_cohn(np.array(0.5)))
    assert abs(moved[:, 2].mean() - gain * (2.0 - g.mean())) < 1e-10


def test_a_localised_analysis_knows_the_ring_too():
    space = sd.Space({"site": 12})
    law = StateSpaceModel(
        lambda x: x, sd.GaussianPrior(space, sd.covariance.white((12,))), space=space, times=1
    )
    y = np.full((1, 12), np.nan)
    y[0, 0] = 2.0
    seen = law.given(y, sd.operators.Identity(space), sd.noise.Gaussian(0.5))
    before = seen.work(9, EnKF(), 0).initial(9)[0].numpy()
    for period, reached in ((12, [1, 2, 3, 9, 10, 11]), (None, [1, 2, 3])):
        method = EnKF(analysis=Localised(4.0, period))
        moved = np.abs(seen.sample(9, method, seed=0)["x"].values[:, 0] - before).max(0)
        assert sorted(np.flatnonzero(moved > 1e-9)) == sorted([0, *reached])


def test_a_local_square_root_in_blocks_is_the_same(monkeypatch):
    whole = assimilation().sample(9, LETKF(radius=2.0), seed=0)["x"].values
    monkeypatch.setattr("sciddiff.methods.analysis._BLOCK", 100)
    np.testing.assert_allclose(
        assimilation().sample(9, LETKF(radius=2.0), seed=0)["x"].values, whole, atol=1e-12
    )


def test_times_of_the_data_may_be_some_of_the_models_and_labels_are_kept():
    law, y = model(), observations()
    dates = np.array("2000-01-01", dtype="datetime64[D]") + np.arange(TIMES)
    dated = StateSpaceModel(
        law.step,
        law.initial,
        space=law.space,
        noise=sd.noise.Gaussian(covariance=law.covariance),
        times=dates,
    )
    import xarray as xr

    some = xr.DataArray(y, dims=("time", "sensor"), coords={"time": dates}).isel(time=[1, 2, 4, 5])
    draws = dated.given(some, operator(), errors()).sample(5, ETKF(), seed=0)
    np.testing.assert_array_equal(draws["time"].values, dates)
    plain = law.given(y, operator(), errors()).sample(5, ETKF(), seed=0)
    np.testing.assert_array_equal(draws["x"].values, plain["x"].values)
    late = some.assign_coords(time=some["time"].values + np.timedelta64(9, "D"))
    with pytest.raises(InputError, match="other times"):
        dated.given(late, operator(), errors())


def test_the_density_of_a_trajectory_is_gaussian_algebra():
    law, m = model(), matrices()
    x = law.simulate(3, seed=0)
    found = law.log_prob(x).numpy()
    values, expected = x["x"].values, []
    for path in values:
        total = 0.0
        for k in range(TIMES):
            mean, cov = (m["m"], m["P"]) if k == 0 else (m["A"] @ path[k - 1] + m["b"], m["Q"])
            r = path[k] - mean
            total -= 0.5 * (r @ np.linalg.solve(cov, r) + np.linalg.slogdet(2 * math.pi * cov)[1])
        expected.append(total)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    with pytest.raises(InputError, match="full rank"):
        model(noise=False).log_prob(x)


def test_simulated_trajectories_have_the_models_covariance():
    law, m, n = model(), matrices(), 4000
    x = law.simulate(n, seed=0)["x"].values
    last = m["P"]
    for _ in range(1, TIMES):
        last = m["A"] @ last @ m["A"].T + m["Q"]
    sample = np.cov(x[:, -1].T)
    error = np.sqrt((np.outer(np.diag(last), np.diag(last)) + last**2) / n)
    assert (np.abs(sample - last) < 4.5 * error).all()
    np.testing.assert_allclose(law.simulate(2, seed=0)["x"].values, x[:2], atol=1e-12)


def test_what_does_not_fit_is_refused_before_any_step():
    law, y = model(), observations()
    seen = law.given(y, operator(), errors())
    with pytest.raises(MethodError, match="not Gaussian"):
        law.given(y, operator(), sd.noise.Laplace(0.2)).sample(4, EnKF(), seed=0)
    with pytest.raises(MethodError, match="full rank"):
        assimilation(noise=False).sample(4, FFBS(10), seed=0)
    with pytest.raises(MethodError, match="shares no coordinates"):
        law.given(y, operator(placed=False), errors()).sample(4, LETKF(radius=1.0), seed=0)
    with pytest.raises(InputError, match="instance"):
        seen.sample(4, ETKF, seed=0)
    with pytest.raises(InputError, match="filter"):
        seen.moments(4, FFBS(10), seed=0)
    with pytest.raises(InputError, match="shape"):
        law.given(y[:3], operator(), errors())
    with pytest.raises(InputError, match="finite"):
        law.given(np.where(np.isnan(y), np.inf, y), operator(), errors())
    for bad in (
        lambda: ETKF(members=1),
        lambda: ETKF(inflation=0.0),
        lambda: LETKF(radius=-1.0),
        lambda: EnKS(lag=0),
        lambda: EnKS(analysis=Localised(1.0)),
        lambda: EnKF(analysis=Perturbed),
        lambda: BootstrapFilter(threshold=1.5),
        lambda: BootstrapFilter(jitter=-0.1),
        lambda: StateSpaceModel(lambda x: x[:, :2], law.initial, space=law.space, times=3),
        lambda: StateSpaceModel(law.step, law.initial, space=law.space, times=[0.0, 2.0, 1.0]),
        lambda: StateSpaceModel(law.step, law.initial, space=law.space, times=[0.0, 1.0, 2.1]),
        lambda: StateSpaceModel(law.step, law.initial, space=law.space, noise=sd.noise.Laplace(1.0), times=3),
    ):
        with pytest.raises(InputError):
            bad()


@pytest.mark.parametrize("method", [ETKF(), EnKF(), EnKS(), EnSF(), IEnKS()])
def test_one_draw_needs_a_number_of_members(method):
    seen = assimilation(noise=not isinstance(method, IEnKS))
    with pytest.raises(InputError, match="members=40"):
        seen.sample(1, method, seed=0)
    assert seen.sample(1, replace(method, members=4), seed=0).sizes["sample"] == 1


REGULAR = {
    "days": np.array("2000-01-01", dtype="datetime64[D]") + np.arange(TIMES),
    "months": np.array("2000-01", dtype="datetime64[M]") + np.arange(TIMES),
    "seconds": np.arange(TIMES) * np.timedelta64(3, "s"),
    "rounded numbers": np.arange(TIMES) * np.float32(0.1),
}


@pytest.mark.parametrize("kind", REGULAR)
def test_times_are_steps_of_the_model(kind):
    law, times = model(), REGULAR[kind]
    regular = StateSpaceModel(law.step, law.initial, space=law.space, times=times)
    assert regular.length == TIMES
    with pytest.raises(InputError, match="one step of the model"):
        StateSpaceModel(law.step, law.initial, space=law.space, times=times[[0, 1, 2, 5]])


def test_a_model_without_labels_takes_labelled_data_in_regular_order_alone():
    import xarray as xr

    law, y = model(), observations()
    dated = xr.DataArray(y, dims=("time", "sensor"), coords={"time": REGULAR["days"]})
    np.testing.assert_array_equal(
        law.given(dated, operator(), errors()).posterior.observations[0].y,
        law.given(y, operator(), errors()).posterior.observations[0].y,
    )
    # without labels an array is taken as it lies, backwards too
    turned = law.given(dated.drop_vars("time")[::-1], operator(), errors())
    np.testing.assert_array_equal(
        turned.posterior.observations[0].y,
        law.given(y[::-1].copy(), operator(), errors()).posterior.observations[0].y,
    )
    for bad in (dated[::-1], dated.assign_coords(time=[0, 1, 2, 3, 4, 6])):
        with pytest.raises(InputError, match="`y`"):
            law.given(bad, operator(), errors())


def test_cases_of_a_second_instrument_are_matched_by_their_labels():
    import xarray as xr

    law, y = model(), observations()
    first = xr.DataArray(np.stack([y, y + 1]), dims=("case", "time", "sensor"), coords={"case": ["a", "b"]})
    one = law.given(first, operator(), errors(), batch_dim="case")
    for second in (first + 2, (first + 2).sel(case=["b", "a"]), first.values + 2):
        both = one.given(second, operator(), errors(), batch_dim="case")
        before, after = (o.y for o in both.posterior.observations)
        seen = both.posterior.observations[0].mask
        np.testing.assert_allclose(after[seen], before[seen] + 2)
        assert both.batch[1].tolist() == ["a", "b"]
    for labels in (["a", "c"], ["a", "a"]):
        with pytest.raises(InputError, match="first observation"):
            one.given(first.assign_coords(case=labels), operator(), errors(), batch_dim="case")


def test_correlated_errors_of_data_have_no_local_square_root():
    law = model()
    noise = sd.noise.Gaussian(covariance=sd.covariance.dense(0.2 * np.eye(3) + 0.1))
    with pytest.raises(MethodError, match="correlated"):
        law.given(observations(), operator(), noise).sample(4, LETKF(radius=3.0), seed=0)
    draws = law.given(observations(), operator(), noise).sample(4, ETKF(), seed=0)
    assert np.isfinite(draws["x"].values).all()


def test_a_model_that_blows_up_is_reported_with_its_time():
    law = model()
    wild = StateSpaceModel(lambda x: 1e200 * x**3, law.initial, space=law.space, times=TIMES)
    with pytest.raises(DivergenceError, match="time 1"):
        wild.given(observations(), operator(), errors()).sample(4, ETKF(), seed=0)


def test_data_that_no_particle_can_have_made_are_reported():
    space = sd.Space({"site": 1})
    law = StateSpaceModel(
        lambda x: x, sd.GaussianPrior(space, sd.covariance.white((1,)), mean=[5.0]), space=space, times=2
    )
    counts = sd.operators.from_torch(lambda x: 0 * x, space, space)
    with pytest.raises(DivergenceError, match="no particle"):
        law.given([[3.0], [1.0]], counts, sd.noise.Poisson(1.0)).sample(4, BootstrapFilter(50), seed=0)


def test_few_particles_are_reported():
    y = observations() + np.array([40.0, 0.0, -40.0])
    with pytest.warns(sd.draws.DiagnosisWarning, match="particles held the weight"):
        assimilation(y=y).sample(4, BootstrapFilter(2000), seed=0)


def test_attrs_say_what_was_done():
    draws = assimilation().sample(6, ETKF(members=10, inflation=1.02), seed=0)
    assert draws.attrs["law"] == "filtering"
    assert draws.attrs["diagnosis"] == "ok"
    assert draws.attrs["model_steps"] == (TIMES - 1) * 10 / 6
    assert '"inflation": 1.02' in draws.attrs["settings"]
    assert "bishop2001" in draws.attrs["references"]
    assert draws.sizes["sample"] == 6
    assert isinstance(ETKF().kind(), SquareRoot)
    assert isinstance(LETKF().kind(), LocalSquareRoot)


@pytest.mark.parametrize("draw", ["sample", "moments"])
def test_a_call_without_a_method_is_told_which_to_take(draw):
    space = sd.Space({"site": 2})
    start = sd.GaussianPrior(space, sd.covariance.white((2,)))
    model = StateSpaceModel(lambda x: 0.9 * x, start, space=space, noise=sd.noise.Gaussian(0.1), times=3)
    given = model.given(np.zeros((3, 2)), sd.operators.Identity(space), sd.noise.Gaussian(0.1))
    with pytest.raises(sd.errors.InputError, match="ETKF"):
        getattr(given, draw)(5, seed=0)
