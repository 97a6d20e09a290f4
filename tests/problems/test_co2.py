import numpy as np
import pytest

import sciddiff as sd
from sciddiff.bench.catalog import definition

co2 = definition("co2")
DRAWS = 100


@pytest.fixture(scope="module")
def law():
    return co2.fit()


@pytest.fixture(scope="module")
def draws(law):
    return co2.by_gaussian(law, draws=DRAWS)


def test_hidden_blocks_meet_neither_each_other_nor_the_real_gaps():
    off, there = co2.hidden(), co2.record().notnull().values
    assert off.sum() == co2.BLOCKS * co2.WEEKS
    assert (~there).sum() == 59
    starts = np.flatnonzero(off & ~np.roll(off, 1))
    assert len(starts) == co2.BLOCKS
    assert (np.diff(starts) > co2.WEEKS).all()
    assert there[off].all()


def test_nothing_that_is_fitted_sees_the_hidden_weeks(law, monkeypatch):
    spoilt = co2.record().copy()
    spoilt[co2.hidden()] += 100.0
    monkeypatch.setattr(co2, "record", lambda: spoilt)
    np.testing.assert_array_equal(co2.regression(co2.kept()), law.mean)
    assert co2.smoother(co2.kept() - law.mean, co2.logs(law)).loglike() == law.log_likelihood


def test_the_fit_is_a_maximum_of_the_likelihood(law):
    rest, best = co2.kept() - law.mean, co2.logs(law)
    for i in range(4):
        for step in (-0.1, 0.1):
            assert co2.smoother(rest, best + step * np.eye(4)[i]).loglike() < law.log_likelihood


def test_draws_are_the_kalman_smoothers_in_every_gap(law, draws):
    mean, sds = co2.exact(law)
    gap = np.isnan(co2.kept())
    z = (draws.mean(0) - mean)[gap] / sds[gap] * np.sqrt(DRAWS)
    # 319 weeks in 42 gaps, within which errors go together
    assert abs((z**2).mean() - 1) < 4.5 * np.sqrt(2 / 42)
    ratio = (draws.var(0, ddof=1)[gap] / sds[gap] ** 2).mean()
    assert abs(ratio - 1) < 4.5 * np.sqrt(2 / (42 * DRAWS))


def test_hidden_weeks_are_filled_better_than_by_lines_and_components(law, draws):
    ours = co2.scored(draws)
    assert ours["crps"] < co2.of_normal(*co2.components())["crps"]
    assert ours["crps"] < 0.7 * co2.of_line(co2.kept(), law.mean)["crps"]
    assert co2.of_line(co2.kept(), law.mean)["rmse"] < co2.of_line(co2.kept())["rmse"]
    # as if each block were one trial
    assert abs(ours["coverage"] - 0.9) < 2 * np.sqrt(0.09 / co2.BLOCKS)


@pytest.mark.slow
def test_the_network_fills_as_well_as_its_gaussian(law, draws):
    x = co2.by_network(law, sd.load_prior(co2.HERE / "prior"), draws=40)
    assert co2.scored(law.mean + x["co2"].values)["crps"] < 1.03 * co2.scored(draws)["crps"]


@pytest.mark.slow
def test_the_problem_loads_with_both_kinds_of_gaps():
    problem = co2.load()
    assert int(problem.y["co2"].isnull().sum()) == 319
    assert int(problem.truth["co2"].isnull().sum()) == 59
    assert problem.space.sizes == {"time": 2284}
