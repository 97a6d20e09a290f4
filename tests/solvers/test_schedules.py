"""Grids of noise levels."""

import math
from itertools import pairwise

import numpy as np
import pytest

from sciddiff.errors import InputError
from sciddiff.solvers import VP, Cosine, Exponential, Flow, Karras, Schedule

SCHEDULES = [Karras(), Exponential(), VP(), VP(beta_min=1.0, beta_max=1.0), Cosine(), Cosine(0.0), Flow()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("ends", [(0.002, 80.0), (1e-5, 0.3), (0.5, 3e4)])
@pytest.mark.parametrize("steps", [2, 3, 200])
def test_levels_fall_strictly_from_exactly_sigma_max_to_exactly_sigma_min_and_then_zero(
    schedule: Schedule, ends: tuple[float, float], steps: int
):
    sigmas = schedule.sigmas(steps, *ends)
    assert len(sigmas) == steps + 1
    assert (sigmas[0], sigmas[-2], sigmas[-1]) == (ends[1], ends[0], 0.0)
    assert all(s > t for s, t in pairwise(sigmas))


@pytest.mark.parametrize(
    ("schedule", "time"),
    [
        (Flow(), lambda s: s / (1 + s)),
        (Cosine(0.0), lambda s: np.arctan(s)),
        (Exponential(), np.log),
        (Karras(rho=3.0), lambda s: s ** (1 / 3)),
        # alpha^2 = exp(-t/10 - 9.95 t^2) and s^2 = 1/alpha^2 - 1: t by completing the square
        (VP(), lambda s: np.sqrt(0.05**2 + 9.95 * np.log1p(s**2))),
        # Nichol and Dhariwal: alpha = cos(f)/cos(f0), f linear in time
        (Cosine(), lambda s: np.arccos(math.cos(math.pi * 0.004 / 1.008) / np.sqrt(1 + s**2))),
    ],
    ids=lambda p: repr(p) if isinstance(p, Schedule) else "",
)
def test_levels_are_uniform_in_the_time_of_the_named_path(schedule: Schedule, time):
    gaps = np.diff(time(np.array(schedule.sigmas(50, 0.01, 100.0)[:-1])))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, True, "8"])
def test_a_number_of_steps_below_two_or_not_an_int_is_refused(steps: object):
    with pytest.raises(InputError, match="steps"):
        Karras().sigmas(steps, 0.1, 1.0)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_levels_out_of_order_or_not_finite_are_refused(ends: tuple[float, float]):
    with pytest.raises(InputError, match="sigma_min"):
        Flow().sigmas(8, *ends)


@pytest.mark.parametrize(
    "make", [lambda: VP(beta_min=0.0), lambda: VP(beta_min=2.0, beta_max=1.0), lambda: Cosine(offset=1.0)]
)
def test_paths_that_do_not_exist_are_refused(make):
    with pytest.raises(InputError):
        make()
