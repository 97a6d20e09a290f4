"""Claims about covariances: every action is that of the dense matrix it stands for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg as la
import scipy.sparse as sp
import torch

from sciddiff import covariance as cov
from sciddiff.covariance import makers, pairs
from sciddiff.errors import InputError
from sciddiff.spaces import Space

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((6, 6))
FULL = ROOT @ ROOT.T + 0.1 * np.eye(6)
LOW = ROOT[:, :3] @ ROOT[:, :3].T
EDGES = np.array([[0, 1, 2, 3, 0], [1, 2, 3, 4, 3]])
GRAPH = Space({"node": 5}, "t", edges=EDGES)
PAIR = Space({"node": 5}, ["a", "b"], edges=EDGES)
Q = sp.diags([2.5, -1.0, -1.0], [0, -1, 1], shape=(6, 6)).toarray() + np.diag(RNG.random(6))
Q[0, 5] = Q[5, 0] = -0.5


def laplacian() -> np.ndarray:
    out = np.zeros((5, 5))
    for i, j in EDGES.T:
        out += np.outer(np.eye(5)[i] - np.eye(5)[j], np.eye(5)[i] - np.eye(5)[j])
    return out


def modes(n: int, boundary: str) -> np.ndarray:
    """The orthonormal modes as columns, from their formulas."""
    t, columns = np.arange(n), []
    for k in range(n):
        if boundary == "neumann":
            v = np.cos(np.pi * k * (t + 0.5) / n)
        elif boundary == "dirichlet":
            v = np.sin(np.pi * (k + 1) * (t + 1) / (n + 1))
        else:
            wave = np.exp(2j * np.pi * ((k + 1) // 2) * t / n)
            v = wave.imag if k % 2 == 0 and k > 0 else wave.real
        columns.append(v / np.linalg.norm(v))
    return np.stack(columns, 1)


def product(matrices: list[np.ndarray], eigenvalues: np.ndarray) -> np.ndarray:
    basis = np.eye(1)
    for matrix in matrices:
        basis = np.kron(basis, matrix)
    return basis @ np.diag(eigenvalues.reshape(-1)) @ basis.T


S1, S2, S3 = RNG.random(6), RNG.random((3, 4)), RNG.random((2, 3, 4))
S2[0, 0] = 0.0
T = np.array([0.0, 0.3, 1.0, 1.7, 4.0])
DAYS = np.datetime64("2000-01-01") + (T * 24).astype("timedelta64[h]").astype(int) * np.timedelta64(1, "h")
SWAP = np.eye(16).reshape(4, 4, 4, 4).transpose(1, 0, 2, 3).reshape(16, 16)

# name -> (covariance, dense matrix)
MAKERS = {
    "white": (cov.white((2, 3), 2.5), 2.5 * np.eye(6)),
    "diagonal": (cov.diagonal([[1.0, 4.0], [0.5, 2.0]]), np.diag([1.0, 4.0, 0.5, 2.0])),
    "mask": (cov.diagonal([1.0, 0.0, 1.0, 0.0]), np.diag([1.0, 0.0, 1.0, 0.0])),
    "dense": (cov.dense(FULL, (2, 3)), FULL),
    "dense of low rank": (cov.dense(LOW), LOW),
    "kernel": (cov.kernel(lambda h: np.exp(-h), T), np.exp(-np.abs(T[:, None] - T))),
    "kernel of dates": (
        cov.kernel(lambda h: np.exp(-h), DAYS),
        np.exp(-np.abs((DAYS[:, None] - DAYS) / np.timedelta64(1, "D"))),
    ),
    **{
        f"spectral {b}": (cov.spectral((6,), S1, b), product([modes(6, b)], S1))
        for b in ("periodic", "neumann", "dirichlet")
    },
    "spectral odd": (cov.spectral((5,), S1[:5], "periodic"), product([modes(5, "periodic")], S1[:5])),
    "spectral plane": (
        cov.spectral((3, 4), S2, ("periodic", "dirichlet")),
        product([modes(3, "periodic"), modes(4, "dirichlet")], S2),
    ),
    "spectral solid": (
        cov.spectral((2, 3, 4), S3, ["neumann", "periodic", "dirichlet"]),
        product([modes(2, "neumann"), modes(3, "periodic"), modes(4, "dirichlet")], S3),
    ),
    "spectral components": (
        cov.spectral((2, 3, 4), S2, "neumann", axes=2),
        product([np.eye(2), modes(3, "neumann"), modes(4, "neumann")], np.stack([S2, S2])),
    ),
    "graph": (cov.graph(GRAPH, lambda v: np.exp(-0.7 * v)), la.expm(-0.7 * laplacian())),
    "graph of components": (
        cov.graph(PAIR, lambda v: (v + 1) ** -2.0),
        np.kron(np.eye(2), np.linalg.matrix_power(np.linalg.inv(laplacian() + np.eye(5)), 2)),
    ),
    "precision": (cov.precision(sp.csr_matrix(Q), (2, 3)), np.linalg.inv(Q)),
    "ornstein uhlenbeck": (
        cov.ornstein_uhlenbeck(T, 1.3, variance=2.5),
        2.5 * np.exp(-np.abs(T[:, None] - T) / 1.3),
    ),
    "ornstein uhlenbeck of variables": (
        cov.ornstein_uhlenbeck(T, 0.4, variance=[1.0, 9.0], shape=(2, 5)),
        np.kron(np.diag([1.0, 9.0]), np.exp(-np.abs(T[:, None] - T) / 0.4)),
    ),
    "centred": (cov.centred((3, 2), axis=0), np.kron(np.eye(3) - 1 / 3, np.eye(2))),
    "symmetric": (cov.symmetric((4, 4)), (np.eye(16) + SWAP) / 2),
    "scaled": (
        cov.scaled(cov.dense(FULL), torch.arange(1.0, 7.0)),
        np.diag(1 / np.arange(1, 7)) @ FULL @ np.diag(1 / np.arange(1, 7)),
    ),
    "joint": (
        cov.joint(cov.dense(FULL), cov.diagonal(np.arange(1.0, 7.0))).covariance(0.7),
        0.49
        * FULL
        @ np.linalg.inv(FULL + 0.49 * np.diag(np.arange(1.0, 7.0)))
        @ np.diag(np.arange(1.0, 7.0)),
    ),
}


@pytest.fixture(params=list(MAKERS))
def made(request):
    return MAKERS[request.param]


def rows(c: cov.Covariance, *lead: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).standard_normal((*lead, *c.shape))).to(dtype)


def flat(x: torch.Tensor, c: cov.Covariance) -> np.ndarray:
    return x.reshape(-1, math.prod(c.shape)).numpy()


def pinv(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(matrix, rcond=1e-10, hermitian=True)


def root(matrix: np.ndarray, power: float = 0.5) -> np.ndarray:
    """A power of a symmetric matrix on its range."""
    values, vectors = np.linalg.eigh(matrix)
    on = values > 1e-10 * values[-1]
    return (vectors[:, on] * values[on] ** power) @ vectors[:, on].T


def logdet(matrix: np.ndarray) -> float:
    values = np.linalg.eigvalsh(matrix)
    return float(np.log(values[values > 1e-10 * values[-1]]).sum())


def close(a: object, b: object, tolerance: float = 1e-9) -> None:
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(initial=0), 1e-5))


def test_apply_is_the_matrix(made):
    c, matrix = made
    close(flat(c.apply(rows(c, 3)), c), flat(rows(c, 3), c) @ matrix)


def test_colouring_has_the_covariance(made):
    c, matrix = made
    n = math.prod(c.white_shape)
    factor = flat(c.sqrt(torch.eye(n, dtype=torch.float64).reshape(n, *c.white_shape)), c)
    close(factor.T @ factor, matrix)


def test_sqrt_adjoint_is_the_transpose_of_sqrt(made):
    c, _ = made
    x, z = (
        rows(c, 3),
        torch.randn(3, *c.white_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    close((c.sqrt(z) * x).flatten(1).sum(1), (z * c.sqrt_adjoint(x)).flatten(1).sum(1))


def test_solve_is_the_pseudo_inverse(made):
    c, matrix = made
    close(flat(c.solve(rows(c, 3)), c), flat(rows(c, 3), c) @ pinv(matrix))


def test_rank_and_logdet_are_those_of_the_range(made):
    c, matrix = made
    assert c.rank == np.linalg.matrix_rank(matrix, tol=1e-10, hermitian=True)
    close(c.logdet, logdet(matrix))


def test_variance_is_the_diagonal(made):
    c, matrix = made
    assert tuple(c.variance().shape) == c.shape
    close(c.variance().reshape(-1), np.diag(matrix))


def test_any_leading_dims_are_a_batch(made):
    c, _ = made
    x = rows(c, 2, 3)
    for act in (c.apply, c.solve, c.sqrt_adjoint):
        together = act(x)
        assert together.shape[:2] == (2, 3)
        close(together[1, 2], act(x[1, 2]), 1e-12)
    assert c.apply(rows(c, 0)).shape == (0, *c.shape)


def test_single_precision_stays_single(made):
    c, _ = made
    x = rows(c, 2, dtype=torch.float32)
    for act in (c.apply, c.solve):
        assert act(x).dtype == torch.float32
        close(act(x), act(x.double()), 1e-4)


def test_gradients_pass_through(made):
    c, matrix = made
    x, w = rows(c, 2).requires_grad_(), rows(c, 2).flip(0)
    (slope,) = torch.autograd.grad((c.apply(x) * w).sum(), x, create_graph=True)
    close(flat(slope.detach(), c), flat(w, c) @ matrix)
    (slope,) = torch.autograd.grad((c.solve(x) * w).sum(), x)
    close(flat(slope, c), flat(w, c) @ pinv(matrix))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("boundary", ["periodic", "neumann", "dirichlet"])
def test_modes_are_orthonormal_and_have_their_formulas(n, boundary):
    c = cov.spectral((n,), np.arange(1.0, n + 1), boundary)
    basis = c.basis.synthesis(torch.eye(n, dtype=torch.float64)).T.numpy()
    close(basis.T @ basis, np.eye(n), 1e-12)
    close(basis, modes(n, boundary), 1e-12)


@pytest.mark.parametrize(("boundary", "shift"), [("periodic", 0), ("neumann", 0), ("dirichlet", 1)])
def test_frequencies_give_the_laplacian_of_the_modes(boundary, shift):
    n, length = 256, 3.0
    h = length / (n + shift)
    v = modes(n, boundary)
    # the ghost points beside the grid that each boundary stands for
    ghosts = {"periodic": (v[-1], v[0]), "neumann": (v[0], v[-1]), "dirichlet": (0 * v[0], 0 * v[0])}[
        boundary
    ]
    wide = np.concatenate([ghosts[0][None], v, ghosts[1][None]])
    rayleigh = (v * -(wide[2:] - 2 * v + wide[:-2])).sum(0) / h**2
    k = cov.frequencies(n, boundary)
    expected = (np.pi * k / length) ** 2
    low = k <= 16
    # second differences are off by (k pi h / length)^2 / 12
    np.testing.assert_allclose(rayleigh[low], expected[low], rtol=(16 * np.pi / n) ** 2 / 11, atol=1e-9)


STAMPS = np.cumsum(10 ** np.random.default_rng(3).uniform(-9, 2, 1500))


def test_the_recursion_is_the_dense_kernel_on_gaps_of_eleven_orders_of_magnitude():
    c = cov.ornstein_uhlenbeck(STAMPS, 3.0, variance=4.0)
    matrix = 4.0 * np.exp(-np.abs(STAMPS[:, None] - STAMPS) / 3.0)
    x = np.random.default_rng(4).standard_normal((3, len(STAMPS)))
    close(c.apply(torch.from_numpy(x)), x @ matrix, 1e-10)
    root = c.sqrt(torch.eye(len(STAMPS), dtype=torch.float64)).numpy()
    close(root.T @ root, matrix, 1e-10)


def test_the_determinant_and_the_precision_of_regular_times_are_those_of_the_kernel_to_ten_digits():
    t = np.sort(np.random.default_rng(5).uniform(0, 100, 300) + np.arange(300))
    c = cov.ornstein_uhlenbeck(t, 2.0)
    matrix = np.exp(-np.abs(t[:, None] - t) / 2.0)
    close(c.logdet, np.linalg.slogdet(matrix)[1], 1e-10)
    close(c.solve(torch.eye(300, dtype=torch.float64)), np.linalg.inv(matrix), 1e-9)


def test_a_process_beside_white_noise_denoises_as_the_dense_kernel_does_row_by_row():
    t = np.sort(np.random.default_rng(6).uniform(0, 50, 200))
    matrix = np.exp(-np.abs(t[:, None] - t) / 4.0)
    both = cov.joint(cov.ornstein_uhlenbeck(t, 4.0), cov.white((200,)))
    x, levels = np.random.default_rng(7).standard_normal((5, 200)), np.array([1e-6, 0.01, 0.3, 2.0, 400.0])
    d = both.shrink(torch.from_numpy(x), torch.from_numpy(levels))
    for row, v, out in zip(x, levels, d, strict=True):
        close(out, matrix @ np.linalg.solve(matrix + v * np.eye(200), row), 1e-9)


def test_a_long_process_needs_no_matrix():
    n = 200_000
    t = np.cumsum(np.random.default_rng(8).exponential(size=n))
    c = cov.ornstein_uhlenbeck(t, 2.0)
    x = c.sqrt(torch.from_numpy(np.random.default_rng(9).standard_normal((2, n))))
    assert abs(float(x.var()) - 1) < 5 * (2 / (2 * n / 5)) ** 0.5  # a fifth of the values are independent
    close(c.apply(c.solve(x)), x, 1e-7)
    shrunk = cov.joint(c, cov.white((n,))).shrink(x, torch.tensor(0.5, dtype=torch.float64))
    close(c.solve(shrunk) * 0.5 + shrunk, x, 1e-7)  # (I + v Q) D = x


def test_gradients_of_gradients_and_vmap_pass_through_a_process():
    both = cov.joint(cov.ornstein_uhlenbeck(T, 1.0), cov.ornstein_uhlenbeck(T, 0.2))
    x = rows(cov.white((5,)), 3).requires_grad_()
    v = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    with torch.random.fork_rng():  # the check draws its directions from the global state
        assert torch.autograd.gradcheck(lambda x: both.shrink(x, v), (x,))
        assert torch.autograd.gradgradcheck(lambda x: both.shrink(x, v).square(), (x,))
    one = torch.tensor(0.3, dtype=torch.float64)
    together = torch.func.vmap(lambda row: both.shrink(row[None], one)[0])(x.detach())
    close(together, both.shrink(x.detach(), one), 1e-12)


# -- two covariances at once -------------------------------------------------------------------------

SHAPE, N = (3, 3), 9
WIDE = RNG.standard_normal((N, N))
SPECTRUM = 0.2 + RNG.random(SHAPE)
GAPPED = np.where(np.arange(N).reshape(SHAPE) % 4 == 0, 0.0, SPECTRUM)
BAND = sp.diags([2.2, -1.0, -1.0], [0, -1, 1], shape=(N, N))
KINDS: dict[str, cov.Covariance] = {
    "white": cov.white(SHAPE, 1.7),
    "diagonal": cov.diagonal(SPECTRUM),
    "mask": cov.diagonal((np.arange(N) % 3 > 0).reshape(SHAPE).astype(float)),
    "dense": cov.dense(WIDE @ WIDE.T + 0.2 * np.eye(N), SHAPE),
    "low rank": cov.dense(WIDE[:, :4] @ WIDE[:, :4].T, SHAPE),
    "spectral": cov.spectral(SHAPE, SPECTRUM, "neumann"),
    "spectral gapped": cov.spectral(SHAPE, GAPPED, "neumann"),
    "spectral periodic": cov.spectral(SHAPE, SPECTRUM.T, "periodic"),
    "centred": cov.centred(SHAPE, axis=0),
    "symmetric": cov.symmetric(SHAPE),
    "precision": cov.precision(BAND, SHAPE),
    "ornstein uhlenbeck": cov.ornstein_uhlenbeck([0.0, 0.1, 3.0], 0.7, variance=[1.0, 4.0, 0.5], shape=SHAPE),
    "slower": cov.ornstein_uhlenbeck([0.0, 0.1, 3.0], 5.0, shape=SHAPE),
}


def matrix_of(c: cov.Covariance) -> np.ndarray:
    return flat(c.apply(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)), c)


def inside(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(b @ pinv(b) @ a - a).max() < 1e-9)


PAIRS = list(itertools.product(KINDS, KINDS))


@pytest.mark.parametrize(("prior", "noise"), PAIRS)
def test_two_covariances_are_seen_at_once(prior, noise):
    sigma_0, c = matrix_of(KINDS[prior]), matrix_of(KINDS[noise])
    if prior == "precision" and noise != "white":
        with pytest.raises(InputError, match="white noise beside a sparse precision"):
            cov.joint(KINDS[prior], KINDS[noise])
        return
    if not inside(sigma_0, c):
        with pytest.raises(InputError, match="outside"):
            cov.joint(KINDS[prior], KINDS[noise])
        return
    both = cov.joint(KINDS[prior], KINDS[noise])
    close(both.largest, np.linalg.eigvalsh(root(c, -0.5) @ sigma_0 @ root(c, -0.5))[-1])
    z = RNG.standard_normal((4, N))
    for level in (0.0, 0.3, 2.0):
        noisy = sigma_0 + level**2 * c
        x = z @ root(noisy)  # of the range of the noisy states
        state = torch.from_numpy(x).reshape(4, *SHAPE)
        variance = torch.tensor(level**2, dtype=torch.float64)
        close(flat(both.shrink(state, variance), KINDS[prior]), x @ pinv(noisy) @ sigma_0, 1e-7)
        values = np.linalg.eigvalsh(noisy)
        rank = int((values > 1e-10 * values[-1]).sum())
        expected = -0.5 * ((x @ pinv(noisy) * x).sum(1) + logdet(noisy) + rank * math.log(2 * math.pi))
        close(both.log_density(state, level), expected, 1e-7)
        if level > 0:
            posterior = level**2 * sigma_0 @ pinv(noisy) @ c
            check_covariance(both.covariance(level), (posterior + posterior.T) / 2)
    levels = torch.tensor([0.01, 0.3, 0.3, 4.0], dtype=torch.float64)
    each = torch.cat([both.shrink(state[i : i + 1], levels[i]) for i in range(4)])
    close(both.shrink(state, levels), each, 1e-12)


def check_covariance(c: cov.Covariance, matrix: np.ndarray) -> None:
    close(matrix_of(c), matrix, 1e-8)
    close(flat(c.solve(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)), c), pinv(matrix), 1e-7)
    close(c.variance().reshape(-1), np.diag(matrix), 1e-8)
    close(c.logdet, logdet(matrix), 1e-8)
    assert c.rank == np.linalg.matrix_rank(matrix, tol=1e-9, hermitian=True)
    n = math.prod(c.white_shape)
    factor = flat(c.sqrt(torch.eye(n, dtype=torch.float64).reshape(n, *c.white_shape)), c)
    close(factor.T @ factor, matrix, 1e-8)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize(
    "scale", [torch.tensor(2.0), torch.tensor([[1.0], [2.0], [5.0]]), 1 + torch.arange(9.0).reshape(3, 3)]
)
def test_a_change_of_units_divides_both_sides(name, scale):
    c = KINDS[name]
    s = np.diag(1 / np.broadcast_to(scale.double().numpy(), SHAPE).reshape(-1))
    out = cov.scaled(c, scale)
    close(matrix_of(out), s @ matrix_of(c) @ s)
    close(out.logdet, logdet(s @ matrix_of(c) @ s), 1e-7)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_multiple_multiplies(name):
    close(matrix_of(cov.multiple(KINDS[name], 2.5)), 2.5 * matrix_of(KINDS[name]))


def test_units_that_do_not_mix_keep_the_basis():
    c = cov.spectral((2, 5), np.ones(5), "periodic", axes=1)
    assert cov.scaled(c, torch.tensor([[1.0], [7.0]])).basis == c.basis


def test_variances_of_very_different_size_survive_a_change_of_units():
    # pressure in pascals beside a mixing ratio: fourteen orders of magnitude
    units = np.array([1e5, 1e5, 1e-9, 1e-9])
    root = np.random.default_rng(1).standard_normal((4, 4))
    matrix = root @ root.T + np.eye(4)
    c = cov.dense(units[:, None] * matrix * units)
    close(matrix_of_any(cov.scaled(c, torch.from_numpy(units))), matrix, 1e-6)
    close(c.variance(), np.diag(matrix) * units**2)


@pytest.mark.parametrize("units", [(500.0, 1e-5, 3.0), (1e-9, 1e5, 1.0), (1e-6, 1e-3, 1e4)])
def test_the_rank_of_a_dense_covariance_does_not_depend_on_units(units):
    s = np.array(units)
    correlations = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 1.0]])
    c = cov.dense(correlations * np.outer(s, s))
    assert c.rank == 3
    assert math.isclose(c.logdet, np.linalg.slogdet(correlations)[1] + 2 * np.log(s).sum(), rel_tol=1e-9)
    # each value with its own digits, not those of the largest
    close(matrix_of_any(c) / np.outer(s, s), correlations, 1e-6)
    # the same with the last value a sum of the others, of rank two
    mix = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]) * s
    assert cov.dense(mix.T @ mix).rank == 2


def matrix_of_any(c: cov.Covariance) -> np.ndarray:
    n = math.prod(c.shape)
    return flat(c.apply(torch.eye(n, dtype=torch.float64).reshape(n, *c.shape)), c)


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: cov.white(5), "shape"),
        (lambda: cov.white(()), "shape"),
        (lambda: cov.white((0,)), "shape"),
        (lambda: cov.white((2.0,)), "shape"),
        (lambda: cov.white((2,), -1.0), "variance"),
        (lambda: cov.white((2,), math.nan), "variance"),
        (lambda: cov.white((2,), True), "variance"),
        (lambda: cov.white((2,), "1"), "variance"),
        (lambda: cov.diagonal([1.0, -1.0]), "variances"),
        (lambda: cov.ornstein_uhlenbeck([0.0, 1.0, 1.0], 1.0), "times"),
        (lambda: cov.ornstein_uhlenbeck([0.0, math.nan], 1.0), "times"),
        (lambda: cov.ornstein_uhlenbeck([[0.0, 1.0]], 1.0), "times"),
        (lambda: cov.ornstein_uhlenbeck(["a"], 1.0), "times"),
        (lambda: cov.ornstein_uhlenbeck([0.0, 1.0], 0.0), "length"),
        (lambda: cov.ornstein_uhlenbeck([0.0, 1.0], True), "length"),
        (lambda: cov.ornstein_uhlenbeck([0.0, 1.0], 1.0, variance=-1.0), "variance"),
        (lambda: cov.ornstein_uhlenbeck([0.0, 1.0], 1.0, shape=(2, 3)), "shape"),
        (lambda: cov.diagonal([1.0, math.inf]), "variances"),
        (lambda: cov.diagonal([]), "variances"),
        (lambda: cov.diagonal(1.0), "variances"),
        (lambda: cov.diagonal(["a"]), "variances"),
        (lambda: cov.diagonal([1j]), "variances"),
        (lambda: cov.diagonal(torch.ones(2, dtype=torch.complex64)), "variances"),
        (lambda: cov.diagonal(np.ma.masked_array([1.0, 2.0], [0, 1])), "variances"),
        (lambda: cov.diagonal([[1.0], [1.0, 2.0]]), "variances"),
        (lambda: cov.dense(np.ones((2, 3))), "matrix"),
        (lambda: cov.dense(np.ones(4)), "matrix"),
        (lambda: cov.dense(np.ones((0, 0))), "matrix"),
        (lambda: cov.dense(np.eye(4), (3,)), "matrix"),
        (lambda: cov.dense([[1.0, 0.5], [0.0, 1.0]]), "matrix"),
        (lambda: cov.dense([[1.0, 2.0], [2.0, 1.0]]), "matrix"),
        (lambda: cov.dense([[1.0, math.nan], [math.nan, 1.0]]), "matrix"),
        (lambda: cov.dense(-np.eye(2)), "matrix"),
        (lambda: cov.dense(np.eye(2, dtype=complex)), "matrix"),
        (lambda: cov.kernel(np.exp, [[0.0]]), "points"),
        (lambda: cov.kernel(np.exp, [0.0, math.nan]), "points"),
        (lambda: cov.kernel(np.exp, ["a"]), "points"),
        (lambda: cov.kernel(lambda h: -h, [0.0, 1.0]), "matrix"),
        (lambda: cov.spectral((4,), 1.0, "open"), "boundary"),
        (lambda: cov.spectral((4,), 1.0, ["neumann"] * 2), "boundary"),
        (lambda: cov.spectral((4, 4), 1.0, ["neumann"], axes=2), "boundary"),
        (lambda: cov.spectral((4,), 1.0, "neumann", axes=2), "boundary"),
        (lambda: cov.spectral((4,), [1.0, 1.0], "neumann"), "eigenvalues"),
        (lambda: cov.spectral((2,), [1.0, -1.0], "neumann"), "eigenvalues"),
        (lambda: cov.graph(Space({"node": 3}, "t"), np.exp), "space"),
        (lambda: cov.graph(Space({"node": 3, "time": 9}, "t", edges=[[0], [1]]), np.exp), "space"),
        (lambda: cov.graph(Space({"time": 9, "node": 3}, "t", edges=[[0], [5]]), np.exp), "space"),
        (lambda: cov.graph(GRAPH, lambda v: v[:2]), "function"),
        (lambda: cov.graph(GRAPH, lambda v: v - 1), "eigenvalues"),
        (lambda: cov.precision(sp.eye(3), (2,)), "matrix"),
        (lambda: cov.precision(sp.csc_matrix([[1.0, 0.5], [0.0, 1.0]])), "matrix"),
        (lambda: cov.precision(sp.csc_matrix([[1.0, 2.0], [2.0, 1.0]])), "matrix"),
        (lambda: cov.precision(sp.csc_matrix([[1.0, math.nan], [math.nan, 1.0]])), "matrix"),
        (lambda: cov.precision(sp.eye(2, dtype=complex)), "matrix"),
        (lambda: cov.precision(sp.csc_matrix((2, 2))), "matrix"),
        (lambda: cov.centred((3, 2), axis=2), "axis"),
        (lambda: cov.symmetric((3, 2)), "shape"),
        (lambda: cov.symmetric((3,)), "shape"),
        (lambda: cov.joint(cov.white((2,)), cov.white((3,))), "reference"),
        (lambda: cov.joint(cov.white((2,)), cov.diagonal([1.0, 0.0])), "reference"),
        (lambda: cov.scaled(cov.white((2,)), torch.tensor([1.0, 0.0])), "scale"),
        (lambda: cov.scaled(cov.white((2,)), torch.ones(3)), "scale"),
    ],
)
def test_what_is_no_covariance_is_refused(make, word):
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == word


def test_dense_matrices_that_are_too_large_are_refused(monkeypatch):
    for module in (makers, pairs):
        monkeypatch.setattr(module, "DENSE_LIMIT", 3)
    with pytest.raises(InputError, match="at most 3 rows"):
        cov.dense(np.eye(4))
    with pytest.raises(InputError, match="4 values in different bases"):
        cov.joint(cov.diagonal([1.0, 2, 3, 4]), cov.spectral((4,), [1.0, 2, 3, 4], "neumann"))
