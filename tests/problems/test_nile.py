import numpy as np
import pytest

import sciddiff as sd
from sciddiff.bench.catalog import definition

nile = definition("nile")
DRAWS = 800


@pytest.fixture(scope="module")
def variances():
    return nile.estimates()[0]


@pytest.fixture(scope="module")
def levels(variances):
    priors = {"exact": nile.gaussian(variances), "trained": sd.load_prior(nile.HERE / "prior")}
    return {name: nile.drawn(p, variances, draws=DRAWS) for name, p in priors.items()}


def test_the_published_variances_and_log_likelihood_are_reproduced(variances):
    # the published estimates stop where the likelihood is flat; another optimiser stops within 1 % of them
    for name, value in nile.PUBLISHED.items():
        assert abs(variances[name] / value - 1) < 0.01
    assert round(nile.estimates()[1], 2) == -632.54
    # statsmodels leaves the first year to a start of variance 1e6, which is not quite diffuse
    assert abs(nile.log_likelihood(variances) - -632.54) < 0.01


def test_the_estimates_maximise_the_log_likelihood_of_the_changes(variances):
    best = nile.log_likelihood(variances)
    for name in variances:
        for factor in (0.8, 1.25):
            assert nile.log_likelihood(variances | {name: factor * variances[name]}) < best


def test_the_smoothers_figures_in_the_gaps_are_those_of_the_literature(variances):
    kalman = nile.references(variances)["Kalman smoother, diffuse start"]
    assert [round(kalman[k], 1) for k in ("rmse", "crps")] == [143.2, 82.0]
    assert kalman["coverage"] == 37 / 40


@pytest.mark.parametrize("name", ["exact", "trained"])
def test_gaps_are_filled_as_well_as_by_the_kalman_smoother(levels, variances, name):
    volume, gap = nile.hidden()
    found = nile.scored(nile.flows(levels[name], variances, 0), volume.isel(time=gap))
    kalman = nile.references(variances)["Kalman smoother, diffuse start"]
    assert abs(found["rmse"] / kalman["rmse"] - 1) < 0.03
    assert abs(found["crps"] / kalman["crps"] - 1) < 0.03
    assert 0.9 <= found["coverage"] <= 0.95


def test_draws_under_the_exact_prior_have_the_smoothers_mean_and_spread(levels, variances):
    mean, sds = nile.smoother(variances)
    x = levels["exact"]["level"]
    z = (x.mean("sample").values - mean) / sds * np.sqrt(DRAWS)
    # 100 correlated years: each is held to what the worst of 100 does, 3 in 10 000 times
    assert np.abs(z).max() < 4.5
    assert np.abs(x.std("sample", ddof=1).values / sds - 1).max() < 4.5 / np.sqrt(2 * DRAWS)


def test_the_trained_priors_levels_stay_within_a_tenth_of_the_smoothers_spread(levels, variances):
    assert nile.level_error(levels["trained"], variances) < 0.1


def test_the_problem_loads_with_its_gaps_as_missing_values():
    problem = nile.load()
    assert int(problem.y["level"].isnull().sum()) == 40
    assert problem.posterior.sample(4, seed=0)["level"].sizes == {"sample": 4, "time": 100}
