from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from sciddiff.diagnostics import floor, gaussian_w2, sliced_w1
from sciddiff.errors import InputError


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def bures(mean_a, cov_a, mean_b, cov_b) -> float:
    """The textbook form, with matrix roots."""
    root = linalg.sqrtm(cov_a)
    cross = linalg.sqrtm(root @ cov_b @ root)
    return float(np.sqrt(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * cross).real))


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 73)])
def test_sliced_w1_in_one_dimension_equals_scipys_wasserstein_distance(n, m):
    a, b = normal(n, 1, 0), 2 * normal(m, 1, 1) + 1
    assert sliced_w1(a, b) == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-12)


def test_sliced_w1_of_equal_sizes_is_the_mean_gap_of_sorted_projections():
    a, b = torch.from_numpy(normal(40, 3, 2)), torch.from_numpy(normal(40, 3, 3))
    # a rotation to any direction is unknown here, so take points on one axis and its projections
    axis = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    x, y = a[:, :1] * axis, b[:, :1] * axis
    gap = (a[:, 0].sort().values - b[:, 0].sort().values).abs().mean()
    mean_cosine = 0.5  # E|u_1| on the sphere in three dimensions, sd 0.289
    directions = 20_000
    assert sliced_w1(x, y, directions=directions) / float(gap) == pytest.approx(
        mean_cosine, abs=4 * 0.289 / directions**0.5
    )


def test_sliced_w1_of_a_shift_is_its_length_times_the_mean_cosine():
    d, directions = 4, 20_000
    a, shift = normal(10, d, 4), np.array([3.0, 0.0, 4.0, 0.0])
    # E|u_1| = Gamma(d/2) / (sqrt(pi) Gamma((d + 1)/2)) = 4 / (3 pi) for d = 4, E u_1^2 = 1/4
    cosine = 4 / (3 * np.pi)
    se = np.sqrt((1 / d - cosine**2) / directions)
    distance = sliced_w1(a, a + shift, directions=directions)
    assert distance == pytest.approx(5 * cosine, abs=4 * 5 * se)


def test_sliced_w1_is_zero_for_one_set_in_another_order_and_symmetric():
    a, b = normal(30, 5, 5), normal(30, 5, 6)
    assert sliced_w1(a, a[::-1]) == 0.0
    assert sliced_w1(a, b) == pytest.approx(sliced_w1(b, a), rel=1e-12)
    # a set repeated is the same law
    assert sliced_w1(a, np.concatenate([a, a])) == pytest.approx(0.0, abs=1e-12)


def test_sliced_w1_has_fixed_directions_that_follow_the_seed():
    a, b = normal(30, 5, 5), normal(30, 5, 6)
    assert sliced_w1(a, b) == sliced_w1(a, b, seed=0)
    assert sliced_w1(a, b) != sliced_w1(a, b, seed=1)


@pytest.mark.parametrize("d", [1, 4])
def test_gaussian_w2_equals_the_closed_form_between_the_sample_moments(d):
    a = normal(60, d, 7) @ normal(d, d, 8)
    b = normal(80, d, 9) @ normal(d, d, 10) + 2.0
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    expected = bures(a.mean(0), cov_a, b.mean(0), cov_b)
    assert gaussian_w2(a, b) == pytest.approx(expected, rel=1e-7)


def test_gaussian_w2_of_commuting_covariances_is_the_gap_of_their_roots():
    x = normal(500, 3, 11)
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # sample covariance I
    scale_a, scale_b, shift = np.array([1.0, 2.0, 3.0]), np.array([4.0, 1.0, 0.0]), np.array([0.0, 0.0, 6.0])
    expected = np.sqrt(np.sum((scale_a - scale_b) ** 2) + 36.0)
    assert gaussian_w2(x * scale_a, x * scale_b + shift) == pytest.approx(expected, rel=1e-12)


def test_gaussian_w2_is_exact_for_fewer_points_than_dimensions():
    # two points each: covariances of rank one, 2 p p^T and 2 q q^T
    p, q = normal(1, 50, 12), normal(1, 50, 13)
    # min over signs of |p -+ q|, since a factor of rank one is fixed up to its sign
    expected = np.sqrt(2) * min(np.linalg.norm(p - q), np.linalg.norm(p + q))
    distance = gaussian_w2(np.concatenate([p, -p]), np.concatenate([q, -q]))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_gaussian_w2_of_a_set_with_itself_is_zero_to_rounding_at_any_rank():
    # the difference of traces would leave sqrt(1e-16) = 1e-8
    for n, d in ((5, 200), (200, 5)):
        a = 1e3 * normal(n, d, 14)
        assert gaussian_w2(a, a[::-1].copy()) < 1e-13 * np.sqrt(d) * 1e3 * 10


def test_single_precision_sets_are_measured_in_double():
    a = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    b = (a.double() + 1e-9).double()
    assert gaussian_w2(a, b) == pytest.approx(np.sqrt(3) * 1e-9, rel=1e-6)


def test_the_event_shape_is_free():
    a, b = normal(20, 12, 15), normal(20, 12, 16)
    for distance in (sliced_w1, gaussian_w2):
        assert distance(a.reshape(20, 3, 4), b.reshape(20, 3, 4)) == distance(a, b)


def test_the_floor_is_the_expected_distance_of_two_exact_sets():
    def draw_exact(n: int, seed: int) -> torch.Tensor:
        return torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    n = 400

    def gap(a, b) -> float:
        return float((a.mean() - b.mean()).abs())

    # |N(0, 2/n)| has median 0.6745 sqrt(2/n); a sample median of 400 has relative sd 0.058
    measured = floor(draw_exact, n, gap, pairs=400)
    assert measured == pytest.approx(0.6745 * np.sqrt(2 / n), rel=4 * 0.058)


def test_the_floor_follows_its_seed():
    def draw_exact(n: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(n, 2))

    default = floor(draw_exact, 50, sliced_w1, pairs=3)
    assert default == floor(draw_exact, 50, sliced_w1, pairs=3, seed=0)
    assert default != floor(draw_exact, 50, sliced_w1, pairs=3, seed=1)


def test_the_floor_uses_independent_sets():
    seeds = []

    def draw_exact(n: int, seed: int) -> np.ndarray:
        seeds.append(seed)
        return np.zeros((n, 1))

    floor(draw_exact, 3, sliced_w1, pairs=10)
    assert len(set(seeds)) == 20 and all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("distance", [sliced_w1, gaussian_w2])
def test_sets_that_do_not_compare_are_refused(distance):
    a = normal(10, 3, 17)
    spoilt = a.copy()
    spoilt[3, 1] = np.nan
    for b in (a[:, :2], a[:, 0], spoilt, a + 0j, a[:0], a.astype(object), torch.from_numpy(spoilt)):
        with pytest.raises(InputError, match="`b`"):
            distance(a, b)
    with pytest.raises(InputError, match="`b`"):
        distance(a.reshape(10, 3, 1), a.reshape(10, 1, 3))


def test_bad_settings_are_refused():
    a = normal(10, 3, 18)
    with pytest.raises(InputError, match="directions"):
        sliced_w1(a, a, directions=0)
    with pytest.raises(InputError, match="at least 2"):
        gaussian_w2(a, a[:1])
    with pytest.raises(InputError, match="`n`"):
        floor(lambda n, seed: a, 0, sliced_w1)
    with pytest.raises(InputError, match="draw_exact"):
        floor(lambda n, seed: a, 11, sliced_w1)
