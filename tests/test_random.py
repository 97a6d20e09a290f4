"""Claims about the only source of randomness: what a draw depends on, and what it does not."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats as st
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from sciddiff.errors import InputError
from sciddiff.random import Streams, check_seed

DOUBLE = {"dtype": torch.float64}


def normals(seed: int, draws, cases=None, purpose: str = "test", shape=(3,)) -> torch.Tensor:
    return Streams(seed, draws, cases, purpose=purpose).normal(shape, **DOUBLE)


@settings(deadline=None, max_examples=40)
@given(
    some.integers(0, 2**64 - 1),
    some.lists(some.tuples(some.integers(0, 2**40), some.integers(0, 2**40)), min_size=1, max_size=8),
    some.randoms(use_true_random=False),
)
def test_a_row_depends_on_seed_draw_and_case_alone(seed, rows, shuffle):
    draws, cases = zip(*rows, strict=True)
    whole = normals(seed, draws, cases)
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    mixed = normals(seed, [draws[i] for i in order], [cases[i] for i in order])
    assert torch.equal(mixed, whole[order])
    alone = torch.cat([normals(seed, [d], [c]) for d, c in rows])
    assert torch.equal(alone, whole)


def test_a_stream_goes_on_the_same_in_any_batch():
    whole, part = Streams(5, range(4), purpose="test"), Streams(5, [2], purpose="test")
    for draw in (Streams.normal, Streams.uniform, Streams.normal):
        assert torch.equal(draw(whole, (2, 3), **DOUBLE)[2], draw(part, (2, 3), **DOUBLE)[0])


def test_two_draws_of_a_stream_differ():
    streams = Streams(0, [0], purpose="test")
    assert not torch.equal(streams.normal((4,), **DOUBLE), streams.normal((4,), **DOUBLE))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0, 0, 0, "test"), (2**32, 0, 0, "test")),
        ((0, 0, 0, "test"), (1, 0, 0, "test")),
        ((0, 0, 0, "test"), (0, 1, 0, "test")),
        ((0, 0, 0, "test"), (0, 2**32, 0, "test")),
        ((0, 0, 0, "test"), (0, 0, 1, "test")),
        ((0, 0, 0, "test"), (0, 0, 0, "truth")),
        ((1, 0, 0, "test"), (0, 1, 0, "test")),
        ((0, 1, 0, "test"), (0, 0, 1, "test")),
    ],
)
def test_streams_of_other_keys_are_independent(a, b):
    n = 20000
    x, y = (normals(s, [d], [c], p, (n,))[0].numpy() for s, d, c, p in (a, b))
    # uncorrelated, and so are the squares: both are standard normal over sqrt(n) for independent streams
    for u, v in ((x, y), (x**2, y**2)):
        assert abs(np.corrcoef(u, v)[0, 1]) * np.sqrt(n) < st.norm.isf(5e-5)
    assert not set(x.tolist()) & set(y.tolist())


def test_normals_and_uniforms_have_their_laws():
    x = normals(11, range(50), shape=(400,)).flatten().numpy()
    assert st.kstest(x, "norm").pvalue > 1e-4
    u = Streams(11, range(50), purpose="test").uniform((400,), **DOUBLE).flatten().numpy()
    assert st.kstest(u, "uniform").pvalue > 1e-4
    assert 0 <= u.min() and u.max() < 1


def test_rows_are_uncorrelated():
    x = normals(12, range(40), shape=(2000,)).numpy()
    z = np.corrcoef(x)[np.triu_indices(40, 1)] * np.sqrt(2000)
    assert st.kstest(z, "norm").pvalue > 1e-4


def test_float32_sees_the_rounded_stream():
    a, b = (
        Streams(3, range(4), purpose="test").normal((5,), dtype=t) for t in (torch.float64, torch.float32)
    )
    assert b.dtype == torch.float32 and torch.equal(a.float(), b)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (2, 3, 4)])
def test_any_shape_is_drawn(shape):
    assert normals(0, range(3), shape=shape).shape == (3, *shape)
    assert normals(0, [], shape=shape).shape == (0, *shape)


def test_a_longer_request_begins_like_a_shorter_one():
    assert torch.equal(normals(0, [0], shape=(17,))[:, :16], normals(0, [0], shape=(16,)))


def test_no_global_generator_is_read_or_touched():
    def everywhere():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before, first = everywhere(), normals(0, range(3))
    assert everywhere() == before
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    again = normals(0, range(3))
    torch.set_rng_state(kept[0]), np.random.set_state(kept[1]), random.setstate(kept[2])
    assert torch.equal(first, again)


@pytest.mark.parametrize("seed", [None, True, 1.0, "0", -1, 2**64, [0], np.float64(1)])
def test_a_seed_that_is_no_count_is_refused(seed):
    with pytest.raises(InputError, match="`seed`: expected an int"):
        check_seed(seed)
    with pytest.raises(InputError):
        Streams(seed, [0], purpose="test")


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.int32(3), np.uint64(2**63)])
def test_a_seed_may_be_any_count_below_two_to_the_64(seed):
    assert check_seed(seed) == int(seed)
    assert normals(seed, [0]).shape == (1, 3)


def test_draws_lie_in_memory_of_torch():
    # which is aligned, so that matrix products of them are rounded the same every time
    for shape in [(3,), (5, 7), (1,)] * 20:
        assert normals(0, range(2), shape=shape).data_ptr() % 64 == 0
