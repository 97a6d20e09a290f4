"""Elliptic solves converge at second order, solve the equation they name and refuse singular ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sciddiff.errors import InputError
from sciddiff.operators import Darcy, elliptic, from_torch, helmholtz, poisson
from sciddiff.spaces import Space

PI = np.pi


def plane(n: int, periodic: bool = False) -> tuple[Space, np.ndarray, np.ndarray]:
    x = np.linspace(0, 1, n, endpoint=not periodic)
    return Space({"y": x, "x": x}, "f"), x[:, None], x[None, :]


def order(boundary: str, kappa, c, u, f) -> float:
    """Measured order of convergence of the largest error, from two grids of spacing 1/32 and 1/64."""
    errors = []
    for cells in (32, 64):
        periodic = boundary == "periodic"
        space, y, x = plane(cells if periodic else cells + 1, periodic)
        solve = elliptic(space, diffusion=kappa(y, x), reaction=c, boundary=boundary)
        values = np.broadcast_to(f(y, x), space.grid).copy()
        errors.append(np.abs(solve.apply(torch.from_numpy(values)[None])[0].numpy() - u(y, x)).max())
    return float(np.log2(errors[0] / errors[1]))


def constant(y, x):
    return 1.0


def varying(y, x):
    return 1.0 + y**2 + x


@pytest.mark.parametrize(
    ("boundary", "kappa", "c", "u", "f"),
    [
        pytest.param(
            "dirichlet",
            constant,
            0.0,
            lambda y, x: np.sin(PI * y) * np.sin(2 * PI * x),
            lambda y, x: 5 * PI**2 * np.sin(PI * y) * np.sin(2 * PI * x),
            id="dirichlet",
        ),
        pytest.param(
            "neumann",
            constant,
            3.0,
            lambda y, x: np.cos(PI * y) * np.cos(2 * PI * x),
            lambda y, x: (5 * PI**2 + 3) * np.cos(PI * y) * np.cos(2 * PI * x),
            id="neumann",
        ),
        pytest.param(
            "periodic",
            constant,
            3.0,
            lambda y, x: np.sin(2 * PI * y) + np.cos(4 * PI * x),
            lambda y, x: (4 * PI**2 + 3) * np.sin(2 * PI * y) + (16 * PI**2 + 3) * np.cos(4 * PI * x),
            id="periodic",
        ),
        # -d/dy(k du/dy) - d/dx(k du/dx) with k = 1 + y^2 + x
        pytest.param(
            "dirichlet",
            varying,
            2.0,
            lambda y, x: np.sin(PI * y) * np.sin(PI * x),
            lambda y, x: (
                (2 * PI**2 * (1 + y**2 + x) + 2) * np.sin(PI * y) * np.sin(PI * x)
                - 2 * y * PI * np.cos(PI * y) * np.sin(PI * x)
                - PI * np.sin(PI * y) * np.cos(PI * x)
            ),
            id="varying dirichlet",
        ),
        pytest.param(
            "neumann",
            varying,
            2.0,
            lambda y, x: np.cos(PI * y) * np.cos(PI * x),
            lambda y, x: (
                (2 * PI**2 * (1 + y**2 + x) + 2) * np.cos(PI * y) * np.cos(PI * x)
                + 2 * y * PI * np.sin(PI * y) * np.cos(PI * x)
                + PI * np.cos(PI * y) * np.sin(PI * x)
            ),
            id="varying neumann",
        ),
    ],
)
def test_manufactured_solutions_converge_at_second_order(boundary, kappa, c, u, f):
    assert 1.9 < order(boundary, kappa, c, u, f) < 2.1


def test_poisson_inverts_the_five_point_laplacian_with_zero_on_the_rim():
    space, _, _ = plane(20)
    a = torch.randn(3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = poisson(space).apply(a)
    laplacian = (
        u[:, 2:, 1:-1] + u[:, :-2, 1:-1] + u[:, 1:-1, 2:] + u[:, 1:-1, :-2] - 4 * u[:, 1:-1, 1:-1]
    ) * 19**2
    assert torch.allclose(laplacian, a[:, 1:-1, 1:-1], rtol=0, atol=1e-11)
    rim = torch.ones(20, 20, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert (u[:, rim] == 0).all()
    assert torch.equal(poisson(space).apply(torch.where(rim, 7.0, a)), u)


def test_helmholtz_has_the_sign_of_the_laplacian_plus_k_squared():
    space, y, x = plane(65)
    u = np.sin(PI * y) * np.sin(PI * x)
    f = torch.from_numpy((9.0 - 2 * PI**2) * u)[None]
    assert np.abs(helmholtz(space, 3.0).apply(f)[0].numpy() - u).max() < 1e-3


@pytest.mark.parametrize("boundary", ["dirichlet", "neumann", "periodic", ("neumann", "dirichlet")])
def test_both_solvers_agree(boundary):
    space = Space({"y": np.linspace(0, 1, 9), "x": np.linspace(0, 2, 12)}, ["a", "b"])
    f = torch.randn(2, 2, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    modes = elliptic(space, diffusion=2.0, reaction=0.7, boundary=boundary)
    sparse = elliptic(space, diffusion=np.full((9, 12), 2.0), reaction=0.7, boundary=boundary)
    assert type(modes) is not type(sparse)
    assert torch.allclose(modes.apply(f), sparse.apply(f), rtol=1e-11)


def test_the_units_of_length_are_those_of_the_coords():
    # metres to kilometres: the Laplacian grows by 10^6, the solution shrinks by as much
    metres, km = (
        Space({"y": s * np.linspace(0, 1, 9), "x": s * np.linspace(0, 1, 9)}, "a") for s in (1.0, 1e-3)
    )
    f = torch.ones(1, 9, 9, dtype=torch.float64)
    assert torch.allclose(poisson(km).apply(f), 1e-6 * poisson(metres).apply(f), rtol=1e-12)


def test_equations_without_a_unique_solution_are_refused():
    space, _, _ = plane(9)
    for boundary in ("neumann", "periodic"):
        with pytest.raises(InputError, match="unique solution"):
            elliptic(space, boundary=boundary)
        with pytest.raises(InputError, match="unique solution"):
            elliptic(space, diffusion=np.ones((9, 9)), boundary=boundary)
    resonance = np.sqrt(2 * (2 * 8 * np.sin(PI / 16)) ** 2)
    with pytest.raises(InputError, match="unique solution"):
        helmholtz(space, resonance)
    with pytest.raises(InputError, match="unique solution"):
        elliptic(space, diffusion=-np.ones((9, 9)), reaction=resonance**2)


@pytest.mark.parametrize(
    ("domain", "options", "message"),
    [
        (Space({"y": [0.0, 1.0, 3.0], "x": [0.0, 1.0, 2.0]}, "a"), {}, "evenly spaced"),
        (Space({"y": 5, "x": 5}, "a"), {}, "coords of at least 2 points"),
        (Space({"y": [0.0, 1.0], "x": [0.0, 1.0]}, "a"), {}, "at least 3 points"),
        (Space({d: [0.0, 1.0, 2.0] for d in "abcd"}, "u"), {}, "1 or 2 or 3 dims"),
        (plane(5)[0], {"boundary": "robin"}, "'dirichlet', 'neumann' or 'periodic'"),
        (plane(5)[0], {"boundary": ["dirichlet"]}, "one for each"),
        (plane(5)[0], {"diffusion": np.linspace(-1, 1, 25).reshape(5, 5)}, "all positive or all negative"),
        (plane(5)[0], {"diffusion": 0.0}, "all positive or all negative"),
        (plane(5)[0], {"reaction": np.ones(5)}, "a finite number, or finite values"),
        (plane(5)[0], {"codomain": Space({"y": 5}, "u")}, "a space on"),
    ],
)
def test_bad_equations_are_refused(domain, options, message):
    with pytest.raises(InputError, match=message):
        elliptic(domain, **options)


def permeability(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()


@pytest.mark.parametrize("boundary", ["dirichlet", "neumann", ("periodic", "dirichlet")])
def test_darcy_is_the_elliptic_solve_with_every_diffusion(boundary):
    space = Space({"y": np.linspace(0, 1, 7), "x": np.linspace(0, 2, 6)}, "kappa")
    source = np.arange(42.0).reshape(7, 6)
    flow = Darcy(space, source=source, reaction=0.5, boundary=boundary)
    kappa = permeability(3, 7, 6)
    for row, out in zip(kappa, flow.apply(kappa), strict=True):
        solve = elliptic(space, diffusion=row, reaction=0.5, boundary=boundary)
        assert torch.allclose(out, solve.apply(torch.from_numpy(source)[None])[0], rtol=1e-12)
    assert flow.apply(kappa[:0]).shape == (0, 7, 6) and flow.apply(kappa.float()).dtype == torch.float32


def test_darcy_has_exact_first_and_second_derivatives():
    space = Space({"y": np.linspace(0, 1, 4), "x": np.linspace(0, 1, 5)}, "kappa")
    flow = Darcy(space, reaction=0.5, boundary=("neumann", "dirichlet"))
    kappa = permeability(2, 4, 5).requires_grad_()
    with torch.random.fork_rng():  # torch's check draws from its global stream
        assert torch.autograd.gradcheck(flow.apply, kappa)
        assert torch.autograd.gradgradcheck(flow.apply, kappa)


def test_darcy_refuses_a_diffusion_that_is_not_positive():
    space, _, _ = plane(5)
    flow = Darcy(space)
    with pytest.raises(InputError, match="a positive diffusion"):
        flow.apply(torch.zeros(1, 5, 5))
    logarithmic = flow @ from_torch(torch.exp, space, space)
    assert torch.allclose(logarithmic.apply(torch.zeros(1, 5, 5)), flow.apply(torch.ones(1, 5, 5)))
    with pytest.raises(InputError, match="unique solution"):
        Darcy(space, boundary="neumann")
