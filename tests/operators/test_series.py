"""Operators at some times of a trajectory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sciddiff import Space, Variable, operators
from sciddiff.errors import InputError
from sciddiff.operators.series import AtTimes, as_states, as_trajectory, trajectory_space
from sciddiff.testing import check_operator

TIMES = np.arange(5) * 0.1
GRAPH = {"node": 3, "edge": 2}
SPACES = {
    "one variable": Space({"site": [1.0, 2.0, 3.0]}, {"u": "m"}),
    "several variables": Space({"site": 3}, ["u", "v"]),
    "no dims": Space({}, ["x", "y", "z"]),
    "other dims": Space(GRAPH, {"p": Variable(("node",)), "q": Variable(("edge",))}),
    "complex": Space({"site": 3}, {"u": Variable(("site",), complex=True)}),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_states_and_trajectories_are_the_same_values(space: Space) -> None:
    states = torch.randn(4, 5, *space.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trajectories = trajectory_space(space, TIMES)
    there = as_trajectory(states, space)
    assert there.shape == (4, *trajectories.shape)
    assert torch.equal(as_states(there, space), states)
    # labels tell which value is which, whatever the layout
    labelled = trajectories.dataset(there, ["sample"])
    for k in range(5):
        at = labelled.isel(time=k, drop=True)
        assert at.identical(space.dataset(states[:, k], ["sample"]))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("times", [None, [0.1, 0.4]], ids=["all times", "some times"])
def test_a_linear_operator_at_times_keeps_the_contract(space: Space, times: list[float] | None) -> None:
    report = check_operator(AtTimes(operators.Identity(space), trajectory_space(space, TIMES), times))
    assert "adjoint" in str(report)


def test_a_nonlinear_operator_at_times_keeps_the_contract() -> None:
    space = SPACES["no dims"]
    codomain = Space({"sensor": 2})
    bent = operators.from_torch(lambda x: torch.atan(x[:, :2]) * x[:, 2:] ** 2, space, codomain)
    operator = AtTimes(bent, trajectory_space(space, TIMES), [0.2, 0.3])
    assert not operator.linear
    check_operator(operator)


def test_the_values_are_those_of_the_operator_at_each_time() -> None:
    space = SPACES["several variables"]
    sensors = operators.Points.at_indices(space, [[2], [0]])
    operator = AtTimes(sensors, trajectory_space(space, 5), [4, 1])
    states = torch.randn(2, 5, *space.shape, generator=torch.Generator().manual_seed(1))
    seen = as_states(operator.apply(as_trajectory(states, space)), sensors.codomain)
    assert torch.equal(seen[:, 0], sensors.apply(states[:, 4]))
    assert torch.equal(seen[:, 1], sensors.apply(states[:, 1]))


@pytest.mark.parametrize("times", [[0.25], [0.1, 0.1], [9.0]])
def test_times_that_are_not_there_are_refused(times: list[float]) -> None:
    space = SPACES["one variable"]
    with pytest.raises(InputError):
        AtTimes(operators.Identity(space), trajectory_space(space, TIMES), times)


def test_trajectories_of_another_space_are_refused() -> None:
    with pytest.raises(InputError, match="trajectories"):
        AtTimes(operators.Identity(SPACES["no dims"]), SPACES["one variable"])
    with pytest.raises(InputError, match="time"):
        trajectory_space(Space({"time": 3}), 4)
