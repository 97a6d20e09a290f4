"""What every linear operator promises, tried on all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sciddiff.errors import InputError
from sciddiff.operators import (
    Convolution,
    Downsample,
    Fourier,
    Gather,
    Identity,
    LinearOperator,
    Mask,
    Matrix,
    Points,
    Radon,
    Select,
    compose,
    elliptic,
    from_matvec,
    from_scipy,
    from_torch,
    helmholtz,
    poisson,
    restrict,
    stack,
)
from sciddiff.spaces import Space, Variable

SERIES = Space({"time": [0.0, 0.5, 1.5, 2.0, 3.0]})
PLANE = Space({"y": np.linspace(0, 1, 6), "x": np.linspace(0, 1.5, 8)}, {"a": "K", "b": "m"})
SQUARE = Space({"y": np.linspace(0, 1, 8), "x": np.linspace(0, 1, 8)}, "a")
SOLID = Space({"z": np.linspace(0, 1, 5), "y": np.linspace(0, 1, 4), "x": np.linspace(0, 2, 6)}, "a")
WAVES = Space({"t": 6}, {"psi": Variable(("t",), complex=True), "phi": Variable(("t",), complex=True)})
MIXED = Space({"node": 4, "edge": 3}, {"p": Variable(("node",)), "q": Variable(("edge",))})


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(rows: int, columns: int, kind: str = "real") -> np.ndarray:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((rows, columns))
    return real + 1j * rng.standard_normal((rows, columns)) if kind == "complex" else real


CASES: dict[str, Callable[[], LinearOperator]] = {
    "identity": lambda: Identity(MIXED),
    "gather": lambda: Gather(MIXED, Space({"s": 2}), [[0, 6], [6, 6]], [[1.0, 2.0], [0.5, 0.25]]),
    "points": lambda: Points.at_indices(PLANE, [[0, 1], [5, 7], [5, 7]]),
    "points linear": lambda: Points(PLANE, [[0.11, 1.5], [0.77, 0.2]], interpolate="linear"),
    "points of one dim": lambda: Points(PLANE, {"x": [0.3, 0.1]}, interpolate="linear", variables="b"),
    "points in time": lambda: Points(SERIES, [0.7, 3.0], interpolate="linear"),
    "points of complex": lambda: Points.at_indices(WAVES, [1, 4], variables="phi"),
    "select": lambda: Select.at_indices(PLANE, {"x": [5, 2]}, variables="b"),
    "mask": lambda: Mask(PLANE, np.arange(48).reshape(6, 8) % 3 == 0),
    "mask by variable": lambda: Mask(MIXED, {"p": [True, False, True, True], "q": [False, True, False]}),
    "matrix": lambda: Matrix(MIXED, Space({"s": 3}), dense(3, 7)),
    "matrix sparse": lambda: Matrix(SERIES, Space({"s": 4}), sp.random(4, 5, 0.5, random_state=0)),
    "matrix complex": lambda: Matrix(
        WAVES, Space({"k": 5}, {"f": Variable(("k",), complex=True)}), dense(5, 12, "complex")
    ),
    "matrix real to complex": lambda: Matrix(
        SERIES, Space({"k": 5}, {"f": Variable(("k",), complex=True)}), dense(5, 5, "complex")
    ),
    "blur": lambda: Convolution(PLANE, dense(3, 4)),
    "blur periodic": lambda: Convolution(PLANE, dense(4, 3), boundary="periodic"),
    "blur reflect": lambda: Convolution(PLANE, dense(5, 3), boundary="reflect"),
    "blur wide": lambda: Convolution(PLANE, dense(13, 17), boundary="reflect"),
    "blur wide periodic": lambda: Convolution(PLANE, dense(12, 14), boundary="periodic"),
    "blur wide zero": lambda: Convolution(PLANE, dense(12, 14)),
    "blur series": lambda: Convolution(Space({"t": 7}), [1.0, 2.0, -1.0], boundary="reflect"),
    "blur solid": lambda: Convolution(SOLID, np.ones((3, 3, 3)), boundary="periodic"),
    "blur one dim": lambda: Convolution(PLANE, [1.0, 2.0, 4.0], dims=["y"]),
    "downsample": lambda: Downsample(PLANE, 2),
    "downsample one dim": lambda: Downsample(SOLID, {"x": 3}),
    "fourier": lambda: Fourier(PLANE),
    "fourier complex": lambda: Fourier(WAVES),
    "poisson": lambda: poisson(SQUARE),
    "helmholtz": lambda: helmholtz(SQUARE, 1.0),
    "elliptic series": lambda: elliptic(Space({"t": np.linspace(0, 1, 7)}), reaction=1.0, boundary="neumann"),
    "elliptic solid": lambda: elliptic(SOLID, reaction=1.0, boundary=("periodic", "dirichlet", "neumann")),
    "elliptic varying": lambda: elliptic(PLANE, diffusion=1.0 + np.arange(48.0).reshape(6, 8), reaction=2.0),
    "elliptic varying neumann": lambda: elliptic(
        SQUARE, reaction=1.0 + np.eye(8), boundary=("neumann", "periodic")
    ),
    "radon": lambda: Radon(PLANE, [0.0, 33.0, 90.0, 121.0]),
    "matvec": lambda: from_matvec(
        lambda x: x.cumsum(1), lambda y: y.flip(1).cumsum(1).flip(1), SERIES, SERIES
    ),
    "scipy": lambda: from_scipy(sp.linalg.aslinearoperator(dense(4, 7)), MIXED, Space({"s": 4})),
    "torch": lambda: from_torch(lambda x: x.diff(dim=1), SERIES, Space({"s": 4}), linear=True),
    "chain": lambda: compose(Points.at_indices(poisson(SQUARE).codomain, [[3, 3], [1, 6]]), poisson(SQUARE)),
    "restricted": lambda: restrict(Radon(SQUARE, [0.0, 45.0, 90.0]), {"angle": [1, 2]}),
    "stack": lambda: stack({"all": Identity(PLANE), "some": Downsample(PLANE, 2)}),
}


@pytest.fixture(params=list(CASES), scope="module")
def operator(request: pytest.FixtureRequest) -> LinearOperator:
    return CASES[request.param]()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / (b.detach().norm() + 1e-300))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_adjoint_is_the_transpose(operator: LinearOperator, dtype: torch.dtype, tolerance: float) -> None:
    x, y = (
        random(3, *operator.domain.shape, dtype=dtype),
        random(3, *operator.codomain.shape, dtype=dtype, seed=1),
    )
    ax, aty = operator.apply(x), operator.adjoint(y)
    assert ax.shape == y.shape and aty.shape == x.shape and ax.dtype == aty.dtype == dtype
    assert ax.norm() > 0 and aty.norm() > 0
    left, right = (ax * y).flatten(1).sum(1), (x * aty).flatten(1).sum(1)
    assert ((left - right).abs() / (ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1))).max() <= tolerance


def test_apply_is_linear(operator: LinearOperator) -> None:
    x, z = random(2, *operator.domain.shape), random(2, *operator.domain.shape, seed=1)
    assert relative(operator.apply(2 * x - 3 * z), 2 * operator.apply(x) - 3 * operator.apply(z)) < 1e-12


def test_rows_do_not_depend_on_the_batch(operator: LinearOperator) -> None:
    x, y = random(3, *operator.domain.shape), random(3, *operator.codomain.shape)
    rows = torch.cat([operator.apply(row[None]) for row in x])
    assert relative(operator.apply(x), rows) < 1e-13
    rows = torch.cat([operator.adjoint(row[None]) for row in y])
    assert relative(operator.adjoint(y), rows) < 1e-13
    assert operator.apply(x[:0]).shape == (0, *operator.codomain.shape)
    assert operator.adjoint(y[:0]).shape == (0, *operator.domain.shape)


def test_memory_layout_does_not_matter(operator: LinearOperator) -> None:
    x, y = (
        random(*operator.domain.shape, 4).movedim(-1, 0)[::2],
        random(*operator.codomain.shape, 4).movedim(-1, 0)[::2],
    )
    assert not x.is_contiguous() or x[0].numel() == 1
    assert relative(operator.apply(x), operator.apply(x.contiguous())) < 1e-13
    assert relative(operator.adjoint(y), operator.adjoint(y.contiguous())) < 1e-13


def test_autograd_agrees_with_the_adjoint_twice(operator: LinearOperator) -> None:
    x, y = (
        random(2, *operator.domain.shape).requires_grad_(),
        random(2, *operator.codomain.shape).requires_grad_(),
    )
    # d/dx <A x, y> = A^T y, whose own derivative in y, in the direction w, is A w
    (grad,) = torch.autograd.grad((operator.apply(x) * y).sum(), x, create_graph=True)
    assert relative(grad, operator.adjoint(y)) < 1e-12
    w = random(2, *operator.domain.shape, seed=5)
    for aty in (grad, operator.adjoint(y)):
        (second,) = torch.autograd.grad((aty * w).sum(), y, retain_graph=True)
        assert relative(second, operator.apply(w)) < 1e-12


def test_inputs_and_global_state_are_left_alone(operator: LinearOperator) -> None:
    x, before = random(2, *operator.domain.shape), torch.random.get_rng_state()
    copy = x.clone()
    with torch.inference_mode():
        out = operator.apply(x)
        back = operator.adjoint(out)
    assert torch.equal(x, copy) and back.shape == x.shape
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_wrong_shape_is_refused(operator: LinearOperator) -> None:
    with pytest.raises(InputError, match="expected a batch of shape"):
        operator(random(3, *operator.domain.shape, 2))


def test_labelled_states_come_out_labelled(operator: LinearOperator) -> None:
    x = random(*operator.domain.shape)
    out = operator(operator.domain.dataset(x))
    assert set(out.data_vars) == set(operator.codomain.variables)
    assert relative(operator.codomain.tensor(out), operator.apply(x[None])[0]) < 1e-12
