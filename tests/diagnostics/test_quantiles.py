import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sciddiff.diagnostics import crps, pit, weighted_quantile_loss
from sciddiff.errors import InputError

Z = 4.0


def labelled(values, *dims):
    return xr.DataArray(values, dims=dims, name="u", attrs={"units": "K"})


def pair(members, *shape, seed=0):
    rng = np.random.default_rng(seed)
    return labelled(rng.standard_normal((members, *shape)), "sample", "case", "x"), labelled(
        rng.standard_normal(shape), "case", "x"
    )


def test_the_loss_is_that_of_the_published_evaluations():
    draws, truth = pair(40, 12, 3)
    y, losses = truth.values, []
    for q in np.arange(1, 10) / 10:
        forecast = np.quantile(draws.values, q, axis=0)
        losses.append(2 * np.abs((forecast - y) * ((y <= forecast) - q)).sum() / np.abs(y).sum())
    assert np.isclose(float(weighted_quantile_loss(draws, truth)), np.mean(losses), rtol=1e-12)


def test_with_many_levels_it_is_the_crps_over_the_mean_modulus():
    draws, truth = pair(4000, 50, 1)
    levels = (np.arange(400) + 0.5) / 400
    ratio = float(crps(draws, truth).mean()) / float(np.abs(truth).mean())
    # midpoints of 400 levels, and quantiles of 4000 draws: both within some thousandths
    assert abs(float(weighted_quantile_loss(draws, truth, levels=levels)) / ratio - 1) < 0.01


def test_it_is_not_the_crps_and_moves_with_the_zero_of_the_scale():
    draws, truth = pair(50, 30, 1)
    far = float(weighted_quantile_loss(draws + 300.0, truth + 300.0))
    assert far < 0.01 * float(weighted_quantile_loss(draws, truth))
    np.testing.assert_allclose(crps(draws + 300.0, truth + 300.0), crps(draws, truth), atol=1e-10)


@pytest.mark.parametrize("change", [lambda x: x + 0.5, lambda x: 2 * x, lambda x: 0.5 * x])
def test_the_law_behind_the_truth_scores_best(change):
    draws, truth = pair(200, 4000, 1, seed=1)
    # the divisor is the same on both sides, so that losses compare case by case
    right, wrong = (
        weighted_quantile_loss(d, truth, "x").values * np.abs(truth.values[:, 0])
        for d in (draws, change(draws))
    )
    gain = wrong - right
    assert gain.mean() > Z * gain.std() / np.sqrt(len(gain))


def test_missing_values_leave_both_sums():
    draws, truth = pair(30, 6, 4)
    holed = truth.copy()
    holed[:, 2] = np.nan
    got = weighted_quantile_loss(draws, holed, nan="omit")
    want = weighted_quantile_loss(draws.isel(x=[0, 1, 3]), truth.isel(x=[0, 1, 3]))
    assert np.isclose(float(got), float(want))
    spoilt = draws.copy()
    spoilt[3, :, 2] = np.nan
    assert np.isclose(float(weighted_quantile_loss(spoilt, truth, nan="omit")), float(want))
    for score in (weighted_quantile_loss, pit):
        with pytest.raises(InputError, match="NaN"):
            score(draws, holed)


def test_levels_outside_the_open_unit_interval_are_refused():
    with pytest.raises(InputError, match="levels"):
        weighted_quantile_loss(*pair(5, 2, 2), levels=[0.0, 0.5])


@pytest.mark.parametrize("members", [1, 5, 50])
def test_the_pit_of_exact_draws_is_uniform_for_any_number_of_them(members):
    draws, truth = pair(members, 3000, 1, seed=2)
    assert stats.kstest(pit(draws, truth).values.ravel(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("change", [lambda x: x + 0.3, lambda x: 1.5 * x, lambda x: 0.6 * x])
def test_the_pit_of_wrong_draws_is_not_uniform(change):
    draws, truth = pair(50, 3000, 1, seed=3)
    assert stats.kstest(pit(change(draws), truth).values.ravel(), "uniform").pvalue < 1e-6


def test_ties_leave_the_pit_uniform():
    rng = np.random.default_rng(4)
    x = rng.poisson(1.0, size=(21, 3000)).astype(float)
    values = pit(labelled(x[1:], "member", "x"), labelled(x[0], "x"), sample_dim="member").values
    assert stats.kstest(values, "uniform").pvalue > 1e-4


def test_the_pit_keeps_holes_and_depends_on_its_seed_alone():
    draws, truth = pair(5, 3, 3)
    holed = truth.where(truth < 1.0)
    a, b = (pit(draws, holed, nan="omit", seed=1) for _ in range(2))
    xr.testing.assert_identical(a, b)
    assert (a.isnull() == holed.isnull()).all()
    assert not np.array_equal(a.values, pit(draws, holed, nan="omit", seed=2).values, equal_nan=True)
