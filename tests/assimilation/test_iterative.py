"""The iterative smoother is the Kalman filter where that is exact, and beats it where the model bends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation.iterative import IEnKS
from sciddiff.assimilation.models import Assimilation, StateSpaceModel
from sciddiff.errors import InputError, MethodError
from sciddiff.operators.basic import Matrix
from sciddiff.physics import Lorenz63
from sciddiff.random import Streams

SIZE, SEEN, TIMES = 4, 3, 9


def linear_twin(
    *, correlated: bool = True
) -> tuple[Assimilation, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A linear model without error, seen in part, with missing values and times; and F, H, R and y."""
    rng = np.random.Generator(np.random.Philox(3))
    forward = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0] * 1.1
    h = rng.standard_normal((SEEN, SIZE))
    half = rng.standard_normal((SEEN, SEEN))
    r = half @ half.T / 4 + 0.3 * np.eye(SEEN) if correlated else np.diag([0.3, 0.5, 0.8])
    space = sd.Space({"site": SIZE})
    prior = sd.GaussianPrior(space, sd.covariance.dense(np.eye(SIZE) + 0.5))
    step = torch.from_numpy(forward)
    model = StateSpaceModel(lambda x: x @ step.T, prior, space=space, times=TIMES)
    y = rng.standard_normal((TIMES, SEEN)) * 2
    y[0], y[4], y[2, 1], y[6, :2] = np.nan, np.nan, np.nan, np.nan
    noise = (
        sd.noise.Gaussian(covariance=sd.covariance.dense(r))
        if correlated
        else sd.noise.Gaussian(np.sqrt(np.diag(r)))
    )
    return model.given(y, Matrix(space, sd.Space({"sensor": SEEN}), h), noise), forward, h, r, y


def kalman(
    first: np.ndarray,
    forward: np.ndarray,
    h: np.ndarray,
    r: np.ndarray,
    y: np.ndarray,
    inflation: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariances of the filter that begins with those of the members ``(n, size)``."""
    mean, cov, means, covs = first.mean(0), np.cov(first.T), [], []
    for k, value in enumerate(y):
        if k:
            mean, cov = forward @ mean, forward @ cov @ forward.T
        here = ~np.isnan(value)
        if here.any():
            a = h[here]
            gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + r[np.ix_(here, here)])
            mean, cov = mean + gain @ (value[here] - a @ mean), cov - gain @ a @ cov
        means.append(mean), covs.append(cov)
        cov = cov * (inflation**2 if here.any() else 1)
    return np.array(means), np.array(covs)


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("correlated", [True, False])
def test_it_is_the_kalman_filter_of_its_own_first_members_for_a_linear_model(
    lag: int, correlated: bool
) -> None:
    twin, *matrices = linear_twin(correlated=correlated)
    draws = twin.sample(12, IEnKS(lag=lag, rotate=lag > 0), seed=0)
    members = draws["x"].values
    means, covs = kalman(members[:, 0], *matrices)
    np.testing.assert_allclose(members.mean(0), means, atol=1e-9)
    np.testing.assert_allclose([np.cov(members[:, k].T) for k in range(TIMES)], covs, atol=1e-9)
    assert draws.attrs["law"] == "filtering"
    assert draws.attrs["iterations"] <= 2 + 1e-9  # one to arrive, one to see that it did


def test_cases_are_those_that_come_alone_and_rotations_are_their_own() -> None:
    twin, *_, y = linear_twin()
    space, (seen,) = twin.model.space, twin.posterior.observations
    both = twin.model.given(np.stack([y, y + 1]), seen.operator, seen.noise, batch_dim="case")
    other = np.where(np.isnan(y), 0.5, y + 1)
    other[5] = np.nan
    same, mixed = (
        twin.model.given(np.stack([a, y, a]), seen.operator, seen.noise, batch_dim="case") for a in (y, other)
    )
    together = both.sample(6, IEnKS(rotate=True), seed=5)["x"]
    alone = twin.sample(6, IEnKS(rotate=True), seed=5)["x"]
    assert together.dims == ("sample", "case", "time", *space.dims)
    np.testing.assert_allclose(together.isel(case=0).values, alone.values, atol=1e-10)
    # windows of a case are counted in its own times, whatever others see
    settings = IEnKS(lag=2, inflation=1.3, rotate=True)
    np.testing.assert_allclose(
        mixed.sample(6, settings, seed=5)["x"].isel(case=1),
        same.sample(6, settings, seed=5)["x"].isel(case=1),
        atol=1e-9,
    )
    assert not np.allclose(together.isel(case=1).values, alone.values, atol=1e-2)


def test_more_members_than_draws_are_carried() -> None:
    twin, *_ = linear_twin()
    few, all_ = (twin.sample(n, IEnKS(members=12), seed=0)["x"].values for n in (3, 12))
    np.testing.assert_allclose(few, all_[:3])


def test_inflation_widens_what_goes_on_and_not_the_analysis_itself() -> None:
    twin, *matrices = linear_twin()
    members = twin.sample(12, IEnKS(lag=1, inflation=1.5), seed=0)["x"].values
    _, covs = kalman(members[:, 0], *matrices)
    np.testing.assert_allclose(np.cov(members[:, 1].T), covs[1], atol=1e-9)
    assert np.trace(np.cov(members[:, -1].T)) > 1.2 * np.trace(covs[-1])


def test_it_finds_the_mode_where_one_linear_analysis_does_not() -> None:
    # y = x^2 with x near 3 and a first guess at 1: the mode of the exact posterior is known by a grid
    space = sd.Space({"site": 1})
    prior = sd.GaussianPrior(space, sd.covariance.dense(np.eye(1)), mean=np.ones(1))
    square = sd.operators.from_torch(lambda x: x**2, space, space)
    model = StateSpaceModel(lambda x: x, prior, space=space, times=2)
    y = np.array([[np.nan], [9.0]])
    seen = model.given(y, square, sd.noise.Gaussian(0.5))
    draws = seen.sample(40, IEnKS(tolerance=1e-12, iterations=50), seed=0)["x"].values[:, 1, 0]
    once = seen.sample(40, IEnKS(iterations=1), seed=0)["x"].values[:, 1, 0]
    first = seen.sample(40, IEnKS(), seed=0)["x"].values[:, 0, 0]
    grid = np.linspace(0.5, 4, 40_001)
    mode = grid[np.argmax(-((grid - first.mean()) ** 2) / (2 * first.var(ddof=1)) - (9 - grid**2) ** 2 / 0.5)]
    # the ensemble's secant is the tangent to second order in its spread
    assert abs(draws.mean() - mode) < 0.1 * draws.std() + 0.01
    assert abs(once.mean() - mode) > 5 * abs(draws.mean() - mode)


@pytest.mark.parametrize(
    "settings", [{"lag": -1}, {"members": 1}, {"iterations": 0}, {"inflation": 0.9}, {"tolerance": -1.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        IEnKS(**settings)  # type: ignore[arg-type]


def test_a_model_with_error_and_noise_that_is_not_gaussian_are_refused() -> None:
    twin, *_, y = linear_twin()
    (seen,), model = twin.posterior.observations, twin.model
    noisy = StateSpaceModel(
        model.step, model.initial, space=model.space, noise=sd.noise.Gaussian(0.1), times=TIMES
    )
    with pytest.raises(MethodError, match="without error"):
        noisy.given(y, seen.operator, seen.noise).sample(5, IEnKS(), seed=0)
    with pytest.raises(MethodError, match="not Gaussian"):
        model.given(y, seen.operator, sd.noise.Laplace(1.0)).sample(5, IEnKS(), seed=0)


def sakov2012(cycles: int, seeds: int) -> tuple[Assimilation, torch.Tensor]:
    """Lorenz-63 seen every 0.25 with variance 2, one truth a case (Sakov et al. 2012, table 1)."""
    system = Lorenz63(dt=0.01)

    def step(x: torch.Tensor) -> torch.Tensor:
        for _ in range(25):
            x = system.step(x)
        return x

    start = sd.GaussianPrior(
        system.space, sd.covariance.dense(2 * np.eye(3)), mean=np.array([1.509, -1.531, 25.46])
    )
    model = StateSpaceModel(step, start, space=system.space, times=cycles + 1)
    truth = torch.from_numpy(model.simulate(seeds, seed=1).to_dataarray().values).permute(1, 2, 0)
    errors = Streams(1, range(seeds), purpose="errors")
    noise = errors.normal(tuple(truth.shape[1:]), dtype=truth.dtype)
    y = truth + 2**0.5 * noise
    y[:, 0] = torch.nan
    operator = sd.operators.Identity(system.space)
    return model.given(y.movedim(-1, 1), operator, sd.noise.Gaussian(2**0.5), batch_dim="seed"), truth


@pytest.mark.slow
def test_the_error_on_lorenz_63_is_the_published_one() -> None:
    twin, truth = sakov2012(500, 5)
    draws = twin.sample(10, IEnKS(inflation=1.02, rotate=True), seed=0).to_dataarray().values
    mean = torch.from_numpy(draws.mean(1)).permute(1, 2, 0)
    rmse = (mean - truth).square().mean(2).sqrt()[:, 32:].mean(1)
    # 0.31 is documented, and 0.307 was measured again in 2000 cycles; seeds of 500 scatter by about 0.01
    assert abs(float(rmse.median()) - 0.307) < 0.03
