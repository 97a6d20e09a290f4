"""Claims about drivers: a prior learns the response to them, and refuses to guess one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.priors import NeuralPrior, load_prior
from sciddiff.priors.covariates import Told
from sciddiff.random import Streams
from sciddiff.spaces import Space

L = 6
DATES = pd.date_range("2001-03-01", periods=L, freq="D")
LINE = Space({"time": DATES.values}, {"load": "MW"})
TINY = {"settings": {"width": 16, "depth": 1}, "batch": 128, "progress": False, "seed": 0}
LAGS = np.abs(np.subtract.outer(np.arange(L), np.arange(L)))
OWN = 4.0 * np.exp(-LAGS / 3.0)
# each day follows the driver of that day and of the day before
RESPONSE = 3.0 * np.eye(L) - 2.0 * np.eye(L, k=-1)


def normal(purpose: str, *shape: int) -> np.ndarray:
    return Streams(0, [0], purpose=purpose).normal(shape, dtype=torch.float64)[0].numpy()


def made(n: int, purpose: str = "made") -> tuple[np.ndarray, np.ndarray]:
    """States and drivers of the linear-Gaussian model."""
    u = 10.0 + 2.0 * normal(f"{purpose} u", n, L)
    x = 100.0 + (u - 10.0) @ RESPONSE.T + normal(purpose, n, L) @ np.linalg.cholesky(OWN).T
    return x, u


@cache
def trained(network: str = "mlp") -> NeuralPrior:
    x, u = made(4000)
    settings = {"mlp": {"width": 16, "depth": 1}, "transformer": {"width": 8, "depth": 1, "heads": 2}}
    settings["unet"] = {"width": 8, "multipliers": (1, 2)}
    return sd.train(
        x,
        LINE,
        network=network,
        **{**TINY, "settings": settings[network]},
        steps=150,
        covariates=u,
        covariate_names={"temperature": "degC"},
    )


@pytest.mark.parametrize("network", ["mlp", "unet", "transformer"])
def test_the_forecast_responds_to_the_driver_as_the_model_does(network: str):
    prior = trained(network)
    seen, ahead = slice(0, 3), slice(3, L)
    x, u = made(2, "case")
    gain = OWN[ahead, seen] @ np.linalg.inv(OWN[seen, seen] + 0.01 * np.eye(3))
    y = np.where(np.arange(L) < 3, x[0], np.nan)
    n, means = 400, []
    for drivers in (
        u[0],
        np.where(np.arange(L) < 3, u[0], u[0] + 2.0),
    ):  # another scenario for the days ahead
        driven = prior.driven(drivers)
        draws = driven.given(y, sd.operators.Identity(LINE), sd.noise.Gaussian(0.1), missing="mask").sample(
            n, sd.MMPS(), steps=24, seed=0
        )["load"]
        mean = 100.0 + RESPONSE @ (drivers - 10.0)
        exact = mean[ahead] + gain @ (x[0, seen] - mean[seen])
        spread = np.sqrt(np.diag(OWN[ahead, ahead] - gain @ OWN[seen, ahead]))
        means.append(draws.values[:, ahead].mean(0))
        # draws of n, a regression on 4000 states at this place, and a tenth for what 150 steps leave in the network
        leverage = (1 + ((drivers - 10.0) ** 2).sum() / 4.0) / 4000
        error = np.abs(means[-1] - exact) / spread
        assert (error < 4 * (1 / n + leverage * (2.0 / spread) ** 2) ** 0.5 + 0.1).all(), error
        assert (np.abs(draws.values[:, ahead].std(0) / spread - 1) < 4 / (2 * n) ** 0.5 + 0.1).all()
    assert np.abs(means[0] - means[1]).max() > 2.0  # the same history under other drivers is another forecast


def test_the_network_learns_a_response_that_no_line_can_follow():
    """``x = u^2 + e``: the linear response is nothing, and the prior without drivers is three times as wide."""
    n, space = 4000, Space({"time": 2})
    u = normal("square u", n, 2)
    x = u**2 + 0.3 * normal("square", n, 2)
    prior = sd.train(
        x,
        space,
        network="mlp",
        **{**TINY, "settings": {"width": 32, "depth": 2}},
        learning_rate=4e-3,
        steps=500,
        covariates=u,
        covariate_names="u",
    )
    for value in (0.0, 1.5):
        draws = prior.driven(np.full(2, value)).sample(400, seed=1)["x"].values
        # 0.15 is a tenth of the sd without drivers, sqrt(2)
        assert (np.abs(draws.mean(0) - value**2) < 4 * 0.3 / 20 + 0.15).all()
        assert (np.abs(draws.std(0) - 0.3) < 0.3).all()


def test_an_unknown_driver_is_refused_and_not_taken_for_its_mean():
    prior = trained()
    with pytest.raises(InputError, match=r"drivers \['temperature'\].*prior\.driven"):
        prior.denoise(torch.zeros(1, L), 1.0)
    with pytest.raises(InputError, match=r"prior\.driven"):
        prior.sample(2, seed=0)
    posterior = prior.given(np.full(L, 100.0), sd.operators.Identity(LINE), sd.noise.Gaussian(1.0))
    with pytest.raises(InputError, match=r"prior\.driven"):
        posterior.sample(2, seed=0)
    driven = prior.driven(np.full(L, 10.0))
    assert driven.covariates is None and isinstance(driven.network, Told)
    with pytest.raises(InputError, match="covariates"):
        driven.driven(np.full(L, 10.0))


def labelled(values: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"temperature": ("time", values, {"units": "degC"})}, coords={"time": DATES})


def test_a_hole_in_a_driver_is_refused_with_its_date():
    values = np.full(L, 10.0)
    values[4] = np.nan
    for data in (labelled(values), pd.DataFrame({"temperature": values}, index=DATES), values):
        with pytest.raises(InputError, match="NaN in 'temperature' at time=2001-03-05"):
            trained().driven(data)
    x, u = made(20)
    u[7, 2] = np.nan
    with pytest.raises(InputError, match="NaN in 'u' at state 7, time=2001-03-03"):
        sd.train(x, LINE, network="mlp", **TINY, steps=2, covariates=u, covariate_names=["u"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.rename(temperature="wind"), "variables"),
        (lambda d: d.assign_coords(time=DATES + pd.Timedelta(days=1)), "coords of 'time'"),
        (lambda d: d.isel(time=slice(0, 3)), "6 values along 'time'"),
        (lambda d: d.assign(temperature=d["temperature"].assign_attrs(units="K")), "units 'degC'"),
        (lambda d: d["temperature"].values[:3], "shape"),
    ],
)
def test_other_drivers_than_those_of_the_training_are_refused(change, words: str):
    with pytest.raises(InputError, match=words) as caught:
        trained().driven(change(labelled(np.full(L, 10.0))))
    assert caught.value.argument == "covariates"


def test_labelled_drivers_bring_their_names_and_units_and_the_same_law():
    x, u = made(50)
    data = xr.Dataset({"temperature": (("sample", "time"), u, {"units": "degC"})}, coords={"time": DATES})
    settings = {**TINY, "steps": 3, "network": "mlp"}
    a = sd.train(x, LINE, **settings, covariates=data)
    b = sd.train(x, LINE, **settings, covariates=u, covariate_names={"temperature": "degC"})
    assert a.covariates is not None and a.covariates.units == {"temperature": "degC"}
    z = torch.ones(2, L)
    drivers = np.linspace(8.0, 12.0, L)
    frame = pd.DataFrame({"temperature": drivers}, index=DATES)
    assert torch.equal(a.driven(labelled(drivers)).denoise(z, 1.0), b.driven(frame).denoise(z, 1.0))


def test_a_prior_with_drivers_comes_back_from_disk_and_a_driven_one_is_not_stored(tmp_path: Path):
    prior, drivers = trained(), np.linspace(8.0, 12.0, L)
    prior.save(tmp_path / "prior")
    again = load_prior(tmp_path / "prior")
    assert isinstance(again, NeuralPrior) and again.covariates is not None
    assert again.covariates.units == {"temperature": "degC"}
    a, b = (p.driven(drivers).sample(3, seed=0, steps=8)["load"] for p in (prior, again))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="before it was told"):
        prior.driven(drivers).save(tmp_path / "driven")


def test_relabelled_dates_take_the_drivers_of_those_dates():
    later = Space({"time": (DATES + pd.Timedelta(days=30)).values}, {"load": "MW"})
    moved = trained().relabel(later)
    drivers = pd.DataFrame({"temperature": np.full(L, 12.0)}, index=DATES + pd.Timedelta(days=30))
    assert torch.equal(
        moved.driven(drivers).normalisation.mean, trained().driven(np.full(L, 12.0)).normalisation.mean
    )


def test_several_variables_take_several_drivers():
    n = 200
    space = Space({"time": 4}, {"a": "m", "b": "s"})
    u, x = normal("several u", n, 2, 4), normal("several", n, 2, 4)
    x[:, 1] += 5 * u[:, 0]
    for network in ("mlp", "unet", "transformer"):
        prior = sd.train(
            x,
            space,
            network=network,
            steps=2,
            seed=0,
            progress=False,
            covariates=u,
            covariate_names=["p", "q"],
            settings={"width": 8},
        )
        shift = prior.driven(np.ones((2, 4))).normalisation.mean - prior.normalisation.mean
        assert (shift[1] - 5).abs().max() < 5 * (8 / n) ** 0.5
        assert shift[0].abs().max() < 5 * (8 / n) ** 0.5
        assert prior.driven(np.ones((2, 4))).sample(2, seed=0, steps=4)["b"].shape == (2, 4)


def test_the_rest_has_the_variance_of_the_errors_and_not_of_the_residuals():
    n, k = 60, 20
    u, e = normal("few u", n, k), normal("few", n, k)
    prior = sd.train(
        e + u,
        Space({"time": k}),
        network="mlp",
        gaussian="diagonal",
        steps=1,
        seed=0,
        progress=False,
        settings={"width": 8, "depth": 1},
        covariates=u,
        covariate_names="u",
    )
    assert prior.gaussian is not None
    variance = float(prior.gaussian.physical_covariance.variance().mean())
    assert abs(variance - 1) < 4 * (2 / (n * k)) ** 0.5 + k / (n * k) ** 0.5 / n


def test_validation_takes_the_drivers_of_the_held_out_states():
    x, u = made(60)
    settings = {**TINY, "steps": 4, "network": "mlp", "covariates": u, "covariate_names": "u"}
    held = made(20, "held")
    prior = sd.train(x, LINE, **settings, validation=held)
    assert np.isfinite(prior.history["validation"]).all()
    with pytest.raises(InputError, match="pair"):
        sd.train(x, LINE, **settings, validation=held[0])


def test_a_run_with_other_drivers_is_not_gone_on_with(tmp_path: Path):
    x, u = made(40)
    settings = {**TINY, "steps": 4, "network": "mlp", "covariate_names": "u", "out": tmp_path}
    first = sd.train(x, LINE, **settings, covariates=u)
    again = sd.train(x, LINE, **settings, covariates=u)
    for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError):
        sd.train(x, LINE, **settings, covariates=u[::-1].copy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"covariates": np.ones((40, L))}, "constant 'u'"),
        ({"covariates": np.ones((39, L))}, "39"),
        ({"covariates": np.ones((40, L - 1))}, "shape"),
        ({"covariate_names": None}, "names of the drivers"),
        ({"augment": lambda x, generator: x}, "augment"),
    ],
)
def test_covariates_that_do_not_fit_are_refused(change: dict, words: str):
    x, u = made(40)
    settings = {**TINY, "steps": 2, "network": "mlp", "covariates": u, "covariate_names": "u", **change}
    with pytest.raises(InputError, match=words):
        sd.train(x, LINE, **settings)
