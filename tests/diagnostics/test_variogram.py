import numpy as np
import pytest
import scoringrules as sr
import xarray as xr

from sciddiff.diagnostics import variogram_score
from sciddiff.errors import InputError

Z = 4.0


def paths(members, cases, points, rho, rng):
    """Stationary series of unit variance, ``(members, cases, points)``, correlation rho from place to place."""
    x = rng.standard_normal((members, cases, points))
    for i in range(1, points):
        x[..., i] = rho * x[..., i - 1] + np.sqrt(1 - rho**2) * x[..., i]
    return x


def labelled(values, *dims):
    return xr.DataArray(values, dims=dims, name="u", attrs={"units": "K"})


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_the_plain_score_is_scoringrules(p):
    x = paths(7, 5, 6, 0.6, np.random.default_rng(0))
    w = np.random.default_rng(1).uniform(size=(6, 6))
    ours = variogram_score(
        labelled(x[1:], "sample", "case", "x"), labelled(x[0], "case", "x"), p=p, weights=w + w.T, fair=False
    )
    theirs = sr.vs_ensemble(x[0], x[1:].transpose(1, 0, 2), w=w + w.T, m_axis=-2, v_axis=-1, p=p)
    np.testing.assert_allclose(ours.values, theirs, rtol=1e-10)


def test_the_fair_score_has_the_same_expectation_for_any_number_of_draws():
    rng = np.random.default_rng(2)
    x, cases = paths(41, 4000, 4, 0.6, rng), 4000
    truth = labelled(x[0], "case", "x")
    many = labelled(x[1:], "sample", "case", "x")
    few = many.isel(sample=slice(0, 2))
    gap = variogram_score(few, truth).values - variogram_score(many, truth).values
    assert abs(gap.mean()) < Z * gap.std() / np.sqrt(cases)
    plain = variogram_score(few, truth, fair=False).values - variogram_score(many, truth, fair=False).values
    assert plain.mean() > Z * plain.std() / np.sqrt(cases)


@pytest.mark.parametrize("wrong", ["uncorrelated", "too wide", "too narrow"])
def test_the_law_behind_the_truth_scores_best(wrong):
    rng, cases = np.random.default_rng(3), 2000
    x = paths(21, cases, 6, 0.8, rng)
    other = {
        "uncorrelated": rng.standard_normal((20, cases, 6)),
        "too wide": 1.5 * paths(20, cases, 6, 0.8, rng),
        "too narrow": 0.6 * paths(20, cases, 6, 0.8, rng),
    }[wrong]
    truth = labelled(x[0], "case", "x")
    right, off = (variogram_score(labelled(v, "sample", "case", "x"), truth).values for v in (x[1:], other))
    gain = off - right
    assert gain.mean() > Z * gain.std() / np.sqrt(cases)


def test_points_that_are_left_out_count_in_no_pair():
    x = paths(9, 3, 5, 0.5, np.random.default_rng(4))
    w = np.arange(25.0).reshape(5, 5)
    y = x[0].copy()
    y[:, [1, 4]] = np.nan
    seen = [0, 2, 3]
    got = variogram_score(
        labelled(x[1:], "sample", "case", "x"), labelled(y, "case", "x"), weights=w, nan="omit"
    )
    want = variogram_score(
        labelled(x[1:, :, seen], "sample", "case", "x"),
        labelled(x[0][:, seen], "case", "x"),
        weights=w[np.ix_(seen, seen)],
    )
    np.testing.assert_allclose(got.values, want.values)
    with pytest.raises(InputError, match="NaN"):
        variogram_score(labelled(x[1:], "sample", "case", "x"), labelled(y, "case", "x"))


def test_weights_follow_the_draws_whatever_the_order_of_the_truths_dims():
    x = paths(5, 2, 6, 0.5, np.random.default_rng(5)).reshape(5, 2, 3, 2)
    draws, truth = labelled(x[1:], "sample", "case", "a", "b"), labelled(x[0], "case", "a", "b")
    w = np.random.default_rng(6).uniform(size=(6, 6))
    turned = variogram_score(draws, truth.transpose("b", "a", "case"), weights=w)
    np.testing.assert_allclose(variogram_score(draws, truth, weights=w).values, turned.values)


def test_another_name_of_the_dim_of_draws_and_units_to_the_power_of_2p():
    x = paths(5, 2, 3, 0.5, np.random.default_rng(7))
    draws, truth = labelled(x[1:], "member", "case", "x"), labelled(x[0], "case", "x")
    assert variogram_score(draws, truth, sample_dim="member").attrs["units"] == "K"
    assert variogram_score(draws, truth, sample_dim="member", p=1).attrs["units"] == "(K)^2"


@pytest.mark.parametrize(
    "settings", [{"p": 0.0}, {"p": "1"}, {"weights": np.ones((2, 2))}, {"weights": -np.ones((3, 3))}]
)
def test_an_order_or_weights_out_of_range_are_refused(settings):
    x = paths(5, 2, 3, 0.5, np.random.default_rng(8))
    with pytest.raises(InputError):
        variogram_score(labelled(x[1:], "sample", "case", "x"), labelled(x[0], "case", "x"), **settings)
