"""Operators together: chains, stacks, and torch's function transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sciddiff.errors import InputError
from sciddiff.noise import Gaussian
from sciddiff.operators import (
    External,
    Identity,
    LinearOperator,
    Mask,
    Matrix,
    Points,
    black_box,
    compose,
    embedding,
    from_torch,
    stack,
)
from sciddiff.spaces import Space, Variable

SERIES = Space({"t": [0.0, 0.5, 1.0, 1.5]}, {"flow": "m3/s"})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sparse() -> Matrix:
    return Matrix(SERIES, Space({"s": 3}), np.random.default_rng(0).standard_normal((3, 4)))


def test_external_maps_pass_through_torch_func():
    operator, x = sparse(), random(5, 2, 4)
    assert isinstance(operator, External)
    m = operator.matrix
    assert torch.allclose(torch.func.vmap(operator.apply)(x), x @ m.T)
    assert torch.allclose(torch.func.vmap(operator.apply, in_dims=1)(x), x.movedim(1, 0) @ m.T)
    _, out = torch.func.jvp(operator.apply, (x[0],), (x[1],))
    assert torch.allclose(out, x[1] @ m.T)
    jacobian = torch.func.jacrev(lambda v: operator.apply(v[None])[0])(x[0, 0])
    assert torch.allclose(jacobian, m)


def test_a_chain_is_its_parts_one_after_the_other():
    inner, outer = sparse(), Matrix(Space({"s": 3}), Space({"k": 2}), np.ones((2, 3)))
    x = random(2, 4)
    assert isinstance(outer @ inner, LinearOperator)
    assert torch.equal((outer @ inner).apply(x), outer.apply(inner.apply(x)))
    with pytest.raises(InputError, match="an operator into"):
        compose(inner, outer)


def test_a_stack_keeps_values_units_and_labels():
    both = stack({"gauge": Points.at_indices(SERIES, [3, 0]), "total": Identity(SERIES)})
    assert both.linear and isinstance(both, LinearOperator)
    assert both.codomain == Space(
        {"gauge_sensor": 2, "total_t": SERIES.coords["t"]},
        {"gauge": Variable(("gauge_sensor",), "m3/s"), "total": Variable(("total_t",), "m3/s")},
    )
    assert both.apply(torch.arange(4.0)[None]).tolist() == [[3.0, 0.0, 0.0, 1.0, 2.0, 3.0]]


def test_stacked_fields_on_one_grid_are_channels():
    double = from_torch(lambda x: 2 * x, SERIES, Space(SERIES.coords, "twice"), linear=True)
    both = stack([Identity(SERIES), double])
    assert both.codomain.shape == (2, 4)
    x = random(2, 4)
    assert torch.equal(both.apply(x), torch.stack([x, 2 * x], 1))


def test_a_stack_is_as_linear_and_differentiable_as_its_parts():
    square = from_torch(torch.square, SERIES, SERIES)
    black = black_box(lambda x: x, SERIES, SERIES)
    mixed = stack({"a": Identity(SERIES), "b": square})
    assert not mixed.linear and mixed.differentiable and not stack({"a": square, "b": black}).differentiable
    x, v = random(2, 4), random(2, 8)
    assert torch.allclose(mixed.vjp(x, v), v[:, :4] + 2 * x * v[:, 4:])


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ([], "at least one"),
        ([Identity(SERIES), Identity(SERIES)], "two kinds of variable 'flow'"),
        ([Identity(SERIES), Identity(Space({"t": 3}))], "operators on"),
        ([sparse(), Mask(SERIES, [True] * 4, dim="s")], "two kinds of dim 's'"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(operators, message):
    with pytest.raises(InputError, match=message):
        stack(operators)


def test_black_boxes_make_whole_chains_underivable():
    chain = compose(sparse(), black_box(lambda x: x, SERIES, SERIES))
    with pytest.raises(InputError, match="derivative-free"):
        chain.vjp(random(1, 4), random(1, 3))


def test_embeddings_turn_real_views_into_complex_numbers():
    space = Space({"t": 3, "s": 2}, {"z": Variable(("t",), complex=True), "w": Variable(("s",))})
    x = np.arange(8.0)
    assert (embedding(space) @ x).tolist() == [0 + 3j, 1 + 4j, 2 + 5j, 6, 7]


def test_observations_are_labelled_and_keyed_by_their_seed():
    operator = Points.at_indices(SERIES, [1, 2])
    truth = SERIES.dataset(torch.arange(4.0))
    y = operator.observe(truth, Gaussian(0.1), seed=0)
    assert y["flow"].attrs["units"] == "m3/s" and y["flow"].dims == ("sensor",)
    assert y.identical(operator.observe(truth, Gaussian(0.1), seed=0))
    assert not y.identical(operator.observe(truth, Gaussian(0.1), seed=1))
