"""Every method on a vector, a series, a grid and a graph: one test for all of them.

What is exact is proved in tests/calibration/; here each method has to run, label its draws, keep its dtype,
and give the same draws however they are cut into chunks and however many there are.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.methods import METHODS

# a handful of draws with few steps, and of biased methods
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

TIMES = np.array([0.0, 0.4, 1.0, 1.1, 2.0, 3.5, 4.0, 6.0])
RING = [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]


def vector() -> sd.Prior:
    root = np.random.default_rng(0).standard_normal((5, 5))
    return sd.GaussianPrior(
        sd.Space({"i": 5}), sd.covariance.dense(root @ root.T + np.eye(5)), np.arange(5.0)
    )


def series() -> sd.Prior:
    process = sd.covariance.kernel(lambda h: np.exp(-h), TIMES)
    return sd.GaussianPrior(sd.Space({"time": TIMES}), process, reference=process)


def grid() -> sd.Prior:
    falling = 1 / (1.0 + np.arange(4)[:, None] + np.arange(3))
    space = sd.Space({"y": 4, "x": 3})
    return sd.GaussianPrior(space, sd.covariance.spectral((4, 3), falling, "neumann"))


def graph() -> sd.Prior:
    space = sd.Space({"node": 6}, edges=RING)
    # a reference that knows no constant: the states have mean zero
    on = sd.covariance.graph(space, lambda values: np.where(values > 1e-9, 1 / (values + 1), 0.0))
    return sd.GaussianPrior(space, on, reference=sd.covariance.centred((6,)))


KINDS = {"vector": vector, "series": series, "grid": grid, "graph": graph}


def posterior(kind: str, dtype: torch.dtype = torch.float64) -> sd.Posterior:
    prior = KINDS[kind]().to(dtype=dtype)
    shape = prior.space.shape
    nodes = [tuple(0 for _ in shape), tuple(n - 1 for n in shape)]
    points = sd.operators.Points.at_indices(prior.space, np.array(nodes))
    return prior.given([0.5, -0.3], points, sd.noise.Gaussian(0.4))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_it_runs_on_every_kind_of_state_alone_and_in_company(method, kind, quick):
    here, how = posterior(kind), quick(method)
    if (reason := how.misfit(here)) is not None:
        pytest.skip(reason)
    many = here.sample(5, method=how, seed=3)
    name = next(iter(many.data_vars))
    assert many[name].dims == ("sample", *here.prior.space.sizes)
    found = many[name].values
    assert np.isfinite(found).all() and found.dtype == np.float64
    np.testing.assert_allclose(here.sample(5, method=how, seed=3, chunk=2)[name], found, atol=1e-8)
    assert not np.array_equal(here.sample(5, method=how, seed=4)[name], found)
    one = here.sample(1, method=how, seed=3)[name].values
    assert np.isfinite(one).all()
    if not how.interacts:
        np.testing.assert_allclose(one[0], found[0], atol=1e-8)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_single_precision_stays_single_and_close(method, kind, quick):
    here, how = posterior(kind, torch.float32), quick(method)
    if (reason := how.misfit(here)) is not None:
        pytest.skip(reason)
    single = here.sample(3, method=how, seed=3)
    name = next(iter(single.data_vars))
    assert single[name].dtype == np.float32
    double = posterior(kind).sample(3, method=how, seed=3)[name]
    # rounding of the score at small noise is what differs most
    np.testing.assert_allclose(single[name], double, rtol=0, atol=5e-3)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_states_of_mean_zero_stay_so(method, quick):
    here, how = posterior("graph"), quick(method)
    if (reason := how.misfit(here)) is not None:
        pytest.skip(reason)
    draws = here.sample(4, method=how, seed=0)
    np.testing.assert_allclose(next(iter(draws.data_vars.values())).mean("node"), 0.0, atol=1e-9)
