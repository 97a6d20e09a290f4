"""A prior in units of the past forecasts any series as it forecasts that series in these units."""

import numpy as np
import pandas as pd
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation import scaled_to
from sciddiff.errors import InputError


@pytest.fixture
def prior():
    memory = np.exp(-np.abs(np.subtract.outer(np.arange(12.0), np.arange(12.0))) / 3)
    space = sd.Space({"time": 12}, ["z"])
    return sd.GaussianPrior(space, sd.covariance.dense(memory), mean=np.linspace(0, 1, 12)).to(
        dtype=torch.float64
    )


@pytest.fixture
def past():
    dates = pd.date_range("2001-01", periods=8, freq="MS")
    return pd.Series(290 + 5 * np.random.default_rng(0).standard_normal(8), dates, name="t")


def test_a_forecast_is_that_of_the_scaled_series_in_the_units_of_the_series(prior, past):
    m, s = past.mean(), past.std(ddof=0)
    found = sd.forecast(scaled_to(prior, past), past, horizon=4, samples=6, seed=0)["t"]
    z = sd.forecast(
        prior, pd.Series(((past - m) / s).to_numpy(), range(8), name="z"), horizon=4, samples=6, seed=0
    )["z"]
    np.testing.assert_allclose(found.values, m + s * z.values, rtol=1e-6)
    assert (found["time"].values == pd.date_range("2001-09", periods=4, freq="MS").values).all()


def test_gaps_are_left_out_of_the_scale(prior, past):
    past.iloc[[2, 3]] = np.nan
    law = scaled_to(prior, past).normalisation
    np.testing.assert_allclose(
        law.mean.flatten()[0], past.mean() + past.std(ddof=0) * prior.normalisation.mean[0]
    )


@pytest.mark.parametrize(
    "broken", [lambda p: p * 0, lambda p: pd.concat([p, p.set_axis(p.index + pd.DateOffset(months=8))])]
)
def test_a_context_that_gives_no_scale_or_no_future_is_refused(prior, past, broken):
    with pytest.raises(InputError, match="context"):
        scaled_to(prior, broken(past))


def test_a_prior_of_something_else_is_refused(past):
    fields = sd.GaussianPrior(sd.Space({"x": 12}), sd.covariance.white((12,)))
    with pytest.raises(InputError, match="prior"):
        scaled_to(fields, past)
