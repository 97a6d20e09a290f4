"""Operators from other libraries keep their values and their adjoints, and wrong claims are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pylops
import pytest
import scipy.sparse.linalg as sla
import torch

from sciddiff.errors import InputError
from sciddiff.operators import (
    LinearOperator,
    Matrix,
    Points,
    compose,
    from_deepinv,
    from_matvec,
    from_pylops,
    from_scipy,
    from_torch,
    poisson,
)
from sciddiff.spaces import Space, Variable

SERIES, PLANE = Space({"t": 6}), Space({"y": 4, "x": 5}, "a")
WAVE = Space({"k": 6}, {"f": Variable(("k",), complex=True)})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_gradients(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """First and second derivatives against finite differences; torch's check draws from its global stream."""
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def dot_error(operator: LinearOperator) -> float:
    x, y = random(3, *operator.domain.shape), random(3, *operator.codomain.shape, seed=1)
    ax, aty = operator.apply(x), operator.adjoint(y)
    return float(((ax * y).sum() - (x * aty).sum()).abs() / (ax.norm() * y.norm()))


PYLOPS: dict[str, Callable[[], object]] = {
    "derivative": lambda: pylops.FirstDerivative((4, 5), axis=1),
    "blur": lambda: pylops.signalprocessing.Convolve2D((4, 5), np.arange(9.0).reshape(3, 3), offset=(1, 1)),
    "laplacian": lambda: pylops.Laplacian((4, 5)),
    "mask": lambda: pylops.Restriction(20, np.array([1, 5, 7])),
}


@pytest.mark.parametrize("name", list(PYLOPS))
def test_pylops_operators_keep_values_and_adjoints(name):
    op = PYLOPS[name]()
    codomain = Space({"s": 3}) if name == "mask" else PLANE
    operator = from_pylops(op, PLANE, codomain)
    x, y = random(2, 4, 5), random(2, *codomain.shape)
    assert np.allclose(
        operator.apply(x).reshape(2, -1), [op.matvec(r.numpy().ravel()) for r in x], atol=1e-13
    )
    assert np.allclose(
        operator.adjoint(y).reshape(2, -1), [op.rmatvec(r.numpy().ravel()) for r in y], atol=1e-13
    )
    assert dot_error(operator) < 1e-12


def test_complex_pylops_operators_have_hermitian_adjoints():
    op = pylops.signalprocessing.FFT(6, norm="ortho", dtype="complex128")
    state = Space({"t": 6}, {"psi": Variable(("t",), complex=True)})
    operator = from_pylops(op, state, WAVE)
    x = random(2, 2, 6)
    out = operator.apply(x)
    assert np.allclose(
        out[:, 0] + 1j * out[:, 1], np.fft.fft(x[:, 0] + 1j * x[:, 1], norm="ortho"), atol=1e-14
    )
    assert dot_error(operator) < 1e-12
    # an orthonormal transform of complex states is undone by its Hermitian adjoint
    assert torch.allclose(operator.adjoint(out), x, atol=1e-14)


def test_a_complex_operator_of_real_states_takes_the_real_part_back():
    m = np.random.default_rng(0).standard_normal((6, 6)) * (1 + 0.3j)
    through = from_scipy(sla.aslinearoperator(m), SERIES, WAVE)
    assert dot_error(through) < 1e-12
    assert torch.allclose(
        through.apply(random(2, 6)), Matrix(SERIES, WAVE, m).apply(random(2, 6)), atol=1e-13
    )
    assert torch.allclose(
        through.adjoint(random(2, 2, 6)), Matrix(SERIES, WAVE, m).adjoint(random(2, 2, 6)), atol=1e-13
    )


def test_a_real_matrix_acts_on_complex_values():
    m = np.random.default_rng(0).standard_normal((6, 6))
    x = random(2, 2, 6)
    for operator in (from_scipy(m, WAVE, WAVE), from_scipy(sla.aslinearoperator(m), WAVE, WAVE)):
        assert np.allclose(operator.apply(x), x.numpy() @ m.T)


@pytest.mark.parametrize(
    ("operator", "codomain", "message"),
    [
        (sla.aslinearoperator(np.ones((3, 6))), Space({"s": 4}), "shape"),
        (sla.aslinearoperator(1j * np.ones((4, 6))), Space({"s": 4}), "a real operator onto real"),
        (1j * np.ones((4, 6)), Space({"s": 4}), "a real matrix onto real"),
        (np.ones((3, 6)), Space({"s": 4}), "shape"),
        (np.full((4, 6), np.inf), Space({"s": 4}), "finite"),
        (lambda x: x, SERIES, "an operator with matvec"),
        (
            sla.LinearOperator((6, 6), matvec=lambda x: 2 * x, rmatvec=lambda x: 3 * x, dtype=float),
            SERIES,
            "1.5 times",
        ),
    ],
)
def test_operators_that_do_not_fit_are_refused(operator, codomain, message):
    with pytest.raises(InputError, match=message):
        from_scipy(operator, SERIES, codomain)


def test_a_wrong_adjoint_is_refused_and_its_factor_named():
    with pytest.raises(InputError, match=r"4 times too large.*divide it by 4"):
        from_matvec(lambda x: 2 * x, lambda y: 8 * y, SERIES, SERIES)
    with pytest.raises(InputError, match="<A x, y> = "):
        from_matvec(lambda x: x.roll(1, 1), lambda y: y.roll(1, 1), SERIES, SERIES)
    with pytest.raises(InputError, match=r"shape \(1, 6\).*got shape \(1, 3\)"):
        from_matvec(lambda x: x[:, :3], lambda y: y, SERIES, SERIES)


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x.square(), lambda x: x.abs()])
def test_a_false_claim_of_linearity_is_refused(function):
    with pytest.raises(InputError, match="a linear function"):
        from_torch(function, SERIES, SERIES, linear=True)


def test_a_linear_module_in_float32_is_linear():
    with torch.random.fork_rng():
        weight = torch.nn.Linear(6, 3, bias=False)
    operator = from_torch(weight, SERIES, Space({"s": 3}), linear=True)
    assert isinstance(operator, LinearOperator)
    y = random(2, 3).float()
    assert torch.allclose(operator.adjoint(y), y @ weight.weight)


def sensor(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.sin().sum((1, 2)), (x[:, 0] * x[:, 1]).sum(1).exp()], 1)


def test_vjps_of_nonlinear_operators_are_those_of_finite_differences():
    operator = from_torch(sensor, PLANE, Space({"s": 2}))
    x = 0.3 * random(2, 4, 5)
    assert not operator.linear
    assert_gradients(operator.apply, x.clone().requires_grad_())
    v, h = random(2, 2), 1e-6
    w = random(2, 4, 5, seed=3)
    slope = (operator.apply(x + h * w) - operator.apply(x - h * w)) / (2 * h)
    assert torch.allclose((operator.vjp(x, v) * w).sum((1, 2)), (v * slope).sum(1), rtol=1e-7)


def test_vjps_of_chains_with_external_parts_are_those_of_finite_differences():
    space = Space({"y": np.linspace(0, 1, 5), "x": np.linspace(0, 1, 6)}, "a")
    solve = poisson(space)
    inner = from_torch(lambda x: x.exp(), space, space)
    outer = from_torch(lambda u: u.square(), Space({"sensor": 2}, "u"), Space({"sensor": 2}, "power"))
    chain = compose(
        outer, compose(Points.at_indices(solve.codomain, [[2, 2], [1, 4]]), compose(solve, inner))
    )
    assert not chain.linear and chain.differentiable
    x = random(2, 5, 6).requires_grad_()
    assert_gradients(chain.apply, x)


def test_complex_results_of_torch_functions_become_real_views():
    operator = from_torch(lambda x: torch.fft.fft(x, norm="ortho"), SERIES, WAVE, linear=True)
    assert dot_error(operator) < 1e-12
    assert torch.allclose(operator.adjoint(operator.apply(random(2, 6))), random(2, 6), atol=1e-14)


def test_a_result_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"shape \(2, 2\).*got shape \(\)"):
        from_torch(lambda x: x.sum(), SERIES, Space({"s": 2}))


class Physics:
    """What deepinv calls a linear physics: channels in, channels out."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
        assert x.ndim == 4
        return x[..., ::2, :]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:  # noqa: N802
        out = y.new_zeros((*y.shape[:2], 4, 5))
        out[..., ::2, :] = self.factor * y
        return out


class NonlinearPhysics:
    """One without an adjoint."""

    def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802
        return x.square().sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_deepinv_physics_keep_their_channels(names):
    domain, codomain = Space({"y": 4, "x": 5}, names), Space({"y": 2, "x": 5}, names)
    operator = from_deepinv(Physics(), domain, codomain)
    x = random(2, *domain.shape)
    assert isinstance(operator, LinearOperator) and dot_error(operator) < 1e-12
    assert torch.equal(operator.apply(x), x[..., ::2, :])


def test_deepinv_physics_without_an_adjoint_are_nonlinear():
    operator = from_deepinv(NonlinearPhysics(), PLANE, Space({"s": 1}))
    assert not operator.linear
    x = random(2, 4, 5)
    assert torch.allclose(operator.vjp(x, torch.ones(2, 1, dtype=torch.float64)), 2 * x)


def test_deepinv_physics_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"physics\.A returns"):
        from_deepinv(Physics(), PLANE, PLANE)
    with pytest.raises(InputError, match="3 times too large"):
        from_deepinv(Physics(3.0), PLANE, Space({"y": 2, "x": 5}, "a"))
    with pytest.raises(InputError, match="physics"):
        from_deepinv(object(), PLANE, PLANE)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.mul_(2), "writes into its input"),
        (lambda x: torch.from_numpy(np.sin(x.numpy())), "numpy inside.*black_box"),
        (lambda x: np.ones((len(x), 6)), "ndarray.*black_box"),
        (lambda x: x.detach() ** 2, "without gradient.*black_box"),
        (lambda x: x[:, :4], r"shape \(2, 6\)"),
        (lambda x: x - x.mean(), "row alone"),
        (lambda x: x.flip(0), "row alone"),
    ],
)
def test_functions_that_would_fail_while_sampling_are_refused_at_once(function, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        from_torch(function, SERIES, SERIES)


def test_a_function_of_either_dtype_is_taken_and_modules_are_left_as_they_were():
    weight = torch.eye(6)
    single = from_torch(lambda x: x @ weight, SERIES, SERIES)
    assert single.apply(torch.ones(1, 6)).dtype == torch.float32
    with torch.random.fork_rng():
        module = torch.nn.Linear(6, 6)
    from_torch(module, SERIES, SERIES)
    assert all(p.grad is None for p in module.parameters())
    from_torch(lambda x: x.log(), SERIES, SERIES)  # not finite where the trial states are negative
