"""The events of Lorenz-63: what counts as one, and what the shipped prior knows of the system."""

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import definition
from sciddiff.methods import TDS
from sciddiff.solvers import Ancestral

events = definition("lorenz_events")


@pytest.fixture(scope="module")
def prior():
    return sd.load_prior(events.HERE / "prior")


def test_an_event_is_seen_where_it_is_and_where_it_is_not():
    x = torch.ones(3, 3, events.data.LENGTH)
    x[1, 0, events.data.STAY - 1] = -1.0
    # after the time of staying a change of sign does not count
    x[2, 0, events.data.STAY] = -1.0
    assert (events.data.stays(x) > 0).tolist() == [True, False, True]
    x[0, 0, -1] = events.data.HIGH + 0.5
    assert events.data.peak(x).tolist() == pytest.approx([0.5, 1 - events.data.HIGH, 1 - events.data.HIGH])


def test_the_shares_of_a_million_are_those_of_fresh_simulations():
    exact, n = events.reference(), 20_000
    found, _ = events.data.counted(n, seed=77)
    for name in events.data.EVENTS:
        p = exact[name]
        assert abs(found[name] - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_draws_follow_the_equations_and_the_climate(prior):
    n = 60
    x = prior.space.tensor(prior.sample(n, seed=0, solver=Ancestral(steps=32)), batch_dim="sample")
    # a hundredth of the system's spread in the median over steps, where simulations have none
    assert events.defect(x) < 0.5
    truth = events.data.trajectories(4000, seed=8)
    for k in range(3):
        mine = x[:, k].mean(1).double()
        assert abs(float(mine.mean() - truth[:, k].mean())) < 4.5 * float(mine.std()) / np.sqrt(n)


def test_the_event_of_the_problem_is_met_by_its_method(prior):
    problem = events.load()
    assert float(events.data.stays(problem.space.tensor(problem.truth)[None])[0]) > 0
    draws = problem.posterior.sample(24, TDS(particles=24, steps=32), seed=0)
    x = prior.space.tensor(draws, batch_dim="sample")
    assert float((events.data.stays(x) > 0).double().mean()) > 0.5
