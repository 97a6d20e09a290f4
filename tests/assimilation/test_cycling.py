"""Windows along a long series give the marginals that dense algebra gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciddiff as sd
from sciddiff.assimilation.cycling import fixed_lag_smoother
from sciddiff.errors import InputError
from sciddiff.operators import Identity
from sciddiff.operators.basic import Matrix

LENGTH, SITES, SEEN, TIMES, NOISE = 5, 3, 2, 12, 0.4
STATE = sd.Space({"site": SITES})


def covariance() -> np.ndarray:
    """Of windows: correlations that fade in time beside those of the sites."""
    time = 0.8 ** np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
    return np.kron(time, np.eye(SITES) + 0.4)


def prior() -> sd.GaussianPrior:
    return sd.GaussianPrior(
        sd.Space({"time": LENGTH, "site": SITES}), sd.covariance.dense(covariance(), (LENGTH, SITES))
    )


def operator() -> Matrix:
    h = np.random.Generator(np.random.Philox(1)).standard_normal((SEEN, SITES))
    return Matrix(STATE, sd.Space({"sensor": SEEN}), h)


def observations() -> np.ndarray:
    """Of a run of the process whose windows the prior knows, so that no diagnosis is due."""
    rng = np.random.Generator(np.random.Philox(2))
    root = np.linalg.cholesky(np.eye(SITES) + 0.4)
    x = [root @ rng.standard_normal(SITES)]
    while len(x) < TIMES:
        x.append(0.8 * x[-1] + 0.6 * root @ rng.standard_normal(SITES))
    y = np.array(x) @ operator().matrix.numpy().T + NOISE * rng.standard_normal((TIMES, SEEN))
    y[3, 0], y[7] = np.nan, np.nan
    return y


def exact(y: np.ndarray, k: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the state at time k given its window."""
    h, c = operator().matrix.numpy(), covariance()
    times = np.arange(k + lag - LENGTH + 1, k + lag + 1)
    values = np.stack([y[t] if 0 <= t < len(y) else np.full(SEEN, np.nan) for t in times]).ravel()
    here = ~np.isnan(values)
    big = np.kron(np.eye(LENGTH), h)[here]
    gain = c @ big.T @ np.linalg.inv(big @ c @ big.T + NOISE**2 * np.eye(here.sum()))
    mean, cov = gain @ values[here], c - gain @ big @ c
    part = slice((LENGTH - 1 - lag) * SITES, (LENGTH - lag) * SITES)
    return mean[part], cov[part, part]


@pytest.mark.parametrize("lag", [0, 2, 4])
def test_every_time_is_the_exact_posterior_of_its_window(lag: int) -> None:
    n, y = 1500, observations()
    draws = fixed_lag_smoother(prior(), y, operator(), sd.noise.Gaussian(NOISE), n, lag=lag, seed=0)
    assert draws["x"].dims == ("sample", "time", "site")
    z_mean, z_var = [], []
    for k in range(TIMES):
        mean, cov = exact(y, k, lag)
        x = draws["x"].values[:, k]
        z_mean += list((x.mean(0) - mean) / np.sqrt(np.diag(cov) / n))
        z_var += list((x.var(0, ddof=1) / np.diag(cov) - 1) / np.sqrt(2 / n))
    # 36 z-scores each: the largest of so many normals is under 4.2 but once in a thousand times
    assert np.abs(z_mean).max() < 4.2
    assert np.abs(z_var).max() < 4.2
    assert draws.attrs["lag"] == lag
    assert draws.attrs["law"] == ("smoothing at a fixed lag" if lag else "filtering")


def test_some_times_of_labelled_data_keep_their_labels() -> None:
    dates = pd.date_range("2001-03-01", periods=TIMES, freq="D")
    y = xr.DataArray(observations(), dims=("time", "sensor"), coords={"time": dates})
    noise, asked = sd.noise.Gaussian(NOISE), dates[[2, 9]]
    draws = fixed_lag_smoother(prior(), y, operator(), noise, 3, times=asked, seed=0)
    assert list(draws["time"].values) == list(asked.values)
    plain = fixed_lag_smoother(prior(), observations(), operator(), noise, 3, times=[2, 9], seed=0)
    np.testing.assert_array_equal(draws["x"].values, plain["x"].values)


def test_many_series_are_solved_side_by_side() -> None:
    y, noise = observations(), sd.noise.Gaussian(NOISE)
    both = xr.DataArray(np.stack([y, -y]), dims=("run", "time", "sensor"), coords={"run": ["a", "b"]})
    draws = fixed_lag_smoother(prior(), both, operator(), noise, 2000, times=[6], batch_dim="run", seed=1)[
        "x"
    ]
    assert draws.dims == ("sample", "run", "time", "site")
    assert list(draws["run"].values) == ["a", "b"]
    for i, sign in enumerate([1.0, -1.0]):
        mean, cov = exact(sign * y, 6, 0)
        z = (draws.values[:, i, 0].mean(0) - mean) / np.sqrt(np.diag(cov) / 2000)
        assert np.abs(z).max() < 4.0


def test_variables_of_a_state_find_their_place() -> None:
    state = sd.Space({}, ["a", "b"])
    space = sd.Space({"time": LENGTH}, ["a", "b"])
    c = np.kron(
        np.array([[1.0, 0.6], [0.6, 1.0]]), 0.9 ** np.abs(np.subtract.outer(range(LENGTH), range(LENGTH)))
    )
    both = sd.GaussianPrior(space, sd.covariance.dense(c, space.shape))
    y = np.stack([np.linspace(0, 1, TIMES), np.linspace(3, 2, TIMES)])
    draws = fixed_lag_smoother(both, y, Identity(state), sd.noise.Gaussian(0.01), 20, seed=0)
    np.testing.assert_allclose(draws["a"].mean("sample"), y[0], atol=0.03)
    np.testing.assert_allclose(draws["b"].mean("sample"), y[1], atol=0.03)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("lag", {"lag": LENGTH}),
        ("lag", {"lag": -1}),
        ("times", {"times": [TIMES]}),
        ("times", {"times": [0.5]}),
        ("y", {"y": np.full((TIMES, SEEN + 1), 0.0)}),
        ("y", {"y": np.full((TIMES, SEEN), np.inf)}),
        ("operator", {"operator": Identity(sd.Space({"site": SITES + 1}))}),
        ("operator", {"operator": Identity(sd.Space({"time": LENGTH, "site": SITES}))}),
        ("operator", {"operator": lambda x: x}),
        ("prior", {"prior": sd.GaussianPrior(STATE, sd.covariance.white((SITES,)))}),
    ],
)
def test_what_does_not_fit_is_refused(argument: str, change: dict[str, object]) -> None:
    given: dict[str, object] = {
        "prior": prior(), "y": observations(), "operator": operator(), "noise": sd.noise.Gaussian(NOISE), "n": 2,
        "seed": 0,
    } | change  # fmt: skip
    with pytest.raises(InputError) as caught:
        fixed_lag_smoother(**given)  # type: ignore[arg-type]
    assert caught.value.argument == argument


def test_a_prior_whose_law_follows_the_calendar_is_refused() -> None:
    seasonal = prior()
    seasonal.season = torch.zeros(12, SITES)
    with pytest.raises(InputError, match="season"):
        fixed_lag_smoother(seasonal, observations(), operator(), sd.noise.Gaussian(NOISE), 2, seed=0)


def dated(y: np.ndarray, times: object) -> xr.DataArray:
    return xr.DataArray(y, dims=("time", "sensor"), coords={"time": times})


DAYS = pd.date_range("2001-03-01", periods=TIMES, freq="D")
SHUFFLED = np.array([3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11])


@pytest.mark.parametrize(
    ("times", "match"),
    [
        (DAYS[SHUFFLED], "sort"),
        (DAYS[::-1], "sort"),
        (DAYS[:6].append(DAYS[6:] + pd.Timedelta(days=30)), "NaN"),
        (pd.bdate_range("2001-03-01", periods=TIMES), "NaN"),
        (np.r_[0.0:6.0, 7.0:13.0], "NaN"),
        (np.r_[0.0:1.1:0.1, 1.11], "NaN"),
        ([f"t{k:02}" for k in range(TIMES)], "numbers or dates"),
    ],
    ids=["shuffled", "backwards", "jump", "business days", "dropped", "short step", "strings"],
)
def test_times_that_do_not_increase_by_equal_steps_are_refused(times: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        fixed_lag_smoother(
            prior(), dated(observations(), times), operator(), sd.noise.Gaussian(NOISE), 2, seed=0
        )
    assert caught.value.argument == "y"


@pytest.mark.parametrize(
    "times",
    [
        0.1 * np.arange(TIMES),
        (1e4 + 0.1 * np.arange(TIMES)).astype(np.float32),
        pd.date_range("2001-01-31", periods=TIMES, freq="ME"),
        pd.date_range("2001-01-01", periods=TIMES, freq="YS"),
    ],
    ids=["rounded", "single precision", "months", "years"],
)
def test_steps_may_differ_by_rounding_and_the_calendar(times: object) -> None:
    y = observations()
    noise = sd.noise.Gaussian(NOISE)
    draws = fixed_lag_smoother(prior(), dated(y, times), operator(), noise, 2, seed=0)
    plain = fixed_lag_smoother(prior(), y, operator(), noise, 2, seed=0)
    np.testing.assert_array_equal(draws["x"].values, plain["x"].values)


@pytest.mark.parametrize(
    ("window", "good", "bad"),
    [
        (0.1 * np.arange(LENGTH), 7.0 + 0.1 * np.arange(TIMES), 0.2 * np.arange(TIMES)),
        (DAYS[:LENGTH], DAYS + pd.Timedelta(days=9), pd.date_range("2001", periods=TIMES, freq="2D")),
        (
            pd.date_range("2001-01-01", periods=LENGTH, freq="MS"),
            pd.date_range("1990-05-01", periods=TIMES, freq="MS"),
            pd.date_range("2001-01-01", periods=TIMES, freq="QS"),
        ),
    ],
    ids=["numbers", "days", "months"],
)
def test_steps_are_those_of_the_labels_of_the_prior(window: object, good: object, bad: object) -> None:
    labelled = prior().relabel(sd.Space({"time": window, "site": SITES}))
    noise = sd.noise.Gaussian(NOISE)
    y = observations()
    assert fixed_lag_smoother(labelled, dated(y, good), operator(), noise, 2, seed=0).sizes["time"] == TIMES
    with pytest.raises(InputError, match="steps of the prior's windows"):
        fixed_lag_smoother(labelled, dated(y, bad), operator(), noise, 2, seed=0)


def test_the_index_of_a_pandas_series_is_read() -> None:
    one = sd.Space({}, "x")
    gap = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
    short = sd.GaussianPrior(sd.Space({"time": LENGTH}), sd.covariance.dense(0.9**gap))
    series = pd.Series(np.linspace(0.0, 1.0, TIMES), DAYS)
    draws = fixed_lag_smoother(short, series, Identity(one), sd.noise.Gaussian(NOISE), 2, seed=0)
    assert list(draws["time"].values) == list(DAYS.values)
    with pytest.raises(InputError, match="sort"):
        fixed_lag_smoother(short, series.iloc[SHUFFLED], Identity(one), sd.noise.Gaussian(NOISE), 2, seed=0)
