from __future__ import annotations

import pytest
import torch

from sciddiff.linalg import cg, lanczos_root


def systems(rows: int, m: int, condition: float, dtype=torch.float64) -> torch.Tensor:
    """Symmetric positive definite matrices, the last the worst conditioned."""
    gen = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(rows, m, m, generator=gen, dtype=torch.float64))
    u = (
        torch.linspace(0, 1, m, dtype=torch.float64)
        * torch.linspace(0, 1, rows, dtype=torch.float64)[:, None]
    )
    return ((q * condition ** u[:, None, :]) @ q.mT).to(dtype)


def right(rows: int, m: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(rows, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def product(a):
    return lambda v: (a @ v[..., None])[..., 0]


def test_cg_solves_every_row_to_its_tolerance():
    a, b = systems(5, 8, 1e4), right(5, 8)
    found = cg(product(a), b, rtol=1e-10, max_iterations=200)
    assert (b - product(a)(found.x)).norm(dim=1).div(b.norm(dim=1)).max() <= 1e-10
    torch.testing.assert_close(found.x, torch.linalg.solve(a, b), rtol=1e-5, atol=1e-7)


def test_cg_needs_no_more_products_than_there_are_different_eigenvalues():
    q, _ = torch.linalg.qr(right(9, 9))
    a = ((q * torch.tensor([1.0, 1, 1, 4, 4, 4, 9, 9, 9]).double()) @ q.T)[None]
    assert cg(product(a), right(1, 9), rtol=1e-10, max_iterations=50).iterations == 3


def test_the_answer_of_a_row_does_not_depend_on_the_rows_beside_it():
    a, b = systems(6, 10, 1e5), right(6, 10)
    together = cg(product(a), b, rtol=1e-8, max_iterations=300).x
    for i in range(6):
        alone = cg(product(a[i : i + 1]), b[i : i + 1], rtol=1e-8, max_iterations=300).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-14)


def test_rows_of_zeros_are_solved_by_zeros():
    a, b = systems(2, 4, 10.0), right(2, 4)
    b[0] = 0
    found = cg(product(a), b, rtol=1e-8, max_iterations=20)
    assert (found.x[0] == 0).all() and found.residual[0] == 0 and found.residual[1] <= 1e-8


def test_the_residual_is_the_true_one_and_not_what_the_recursion_believes():
    # in float32 the recursion runs on to 1e-7 while b - M x stays where rounding holds it
    a, b = systems(3, 12, 1e7, torch.float32), right(3, 12, torch.float32)
    found = cg(product(a), b, rtol=1e-7, max_iterations=400)
    true = (b - product(a)(found.x)).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(found.residual, true, rtol=0.05, atol=1e-8)
    assert found.residual.max() > 1e-7


def test_restarts_reach_a_tolerance_that_one_recursion_misses():
    a, b = systems(1, 30, 1e8), right(1, 30)
    found = cg(product(a), b, rtol=1e-9, max_iterations=2000)
    assert (b - product(a)(found.x)).norm() <= 1e-9 * b.norm()


def test_a_guarded_row_stops_at_negative_curvature_and_the_others_go_on():
    a, b = systems(2, 6, 100.0), right(2, 6)
    lam, q = torch.linalg.eigh(a[0])
    lam[0] = -lam[0]
    a[0] = (q * lam) @ q.T
    found = cg(product(a), b, rtol=1e-9, max_iterations=100, guard=True)
    assert found.negative.tolist() == [True, False]
    assert torch.isfinite(found.x).all()
    # what a stopped row keeps still goes downhill: x^T b >= 0
    assert (found.x[0] * b[0]).sum() >= 0
    torch.testing.assert_close(found.x[1], torch.linalg.solve(a[1], b[1]), rtol=1e-6, atol=1e-8)


def test_preconditioning_changes_the_work_and_not_the_answer():
    scale = torch.logspace(-3, 3, 12, dtype=torch.float64)
    inner, b = systems(1, 12, 10.0), right(1, 12)
    a = scale[:, None] * inner * scale
    plain = cg(product(a), b, rtol=1e-9, max_iterations=5000)
    clever = cg(product(a), b, rtol=1e-9, max_iterations=5000, precondition=lambda v: v / scale**2)
    assert clever.iterations < plain.iterations / 2
    torch.testing.assert_close(clever.x, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-6)


def test_units_of_single_values_do_not_matter_under_a_preconditioner_of_those_units():
    inner, b = systems(1, 5, 100.0), right(1, 5)
    units = torch.tensor([1.0, 1e3, 1e-2, 10.0, 1e5], dtype=torch.float64)
    first = cg(product(inner), b, rtol=1e-3, max_iterations=50, precondition=lambda v: v)
    other = cg(
        product(units[:, None] * inner * units),
        units * b,
        rtol=1e-3,
        max_iterations=50,
        precondition=lambda v: v / units**2,
    )
    assert first.iterations == other.iterations
    torch.testing.assert_close(units * other.x, first.x, rtol=1e-9, atol=0)


@pytest.mark.parametrize("most", [1, 3])
def test_cg_stops_at_the_most_iterations_and_says_how_far_it_came(most):
    a, b = systems(2, 20, 1e6), right(2, 20)
    found = cg(product(a), b, rtol=1e-12, max_iterations=most)
    true = (b - product(a)(found.x)).norm(dim=1) / b.norm(dim=1)
    assert found.iterations == most
    torch.testing.assert_close(found.residual, true, rtol=1e-9, atol=0)


def dense_root(a):
    lam, q = torch.linalg.eigh(a)
    return (q * lam.clamp(min=0).sqrt()[..., None, :]) @ q.mT


def test_the_root_by_lanczos_is_the_symmetric_root_of_every_row():
    a, b = systems(5, 8, 1e4), right(5, 8)
    found = lanczos_root(product(a), b, rtol=1e-12, max_iterations=50)
    torch.testing.assert_close(found.x, product(dense_root(a))(b), rtol=1e-9, atol=1e-9)
    assert found.change.max() <= 1e-12 and found.iterations <= 8
    torch.testing.assert_close(found.lowest, torch.linalg.eigvalsh(a)[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.largest, torch.linalg.eigvalsh(a)[:, -1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("rank", [6, 4])
def test_in_a_metric_noise_of_the_inverse_metric_becomes_a_draw_of_the_matrix(rank):
    """Row i of ``b`` is ``F e_i`` with ``W^+ = F F^T``, so that the rows' answers ``x`` have ``x^T x = M``."""
    d = 6
    q, _ = torch.linalg.qr(right(d, d))
    scale = torch.tensor([0.2, 0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    scale[rank:] = 0
    factor = q * scale.sqrt()
    inverse = (q * torch.where(scale > 0, 1 / scale.clamp(min=0.1), 0.0)) @ q.T
    m = factor @ systems(1, d, 50.0)[0] @ factor.T
    found = lanczos_root(
        lambda v: v @ m, factor.T.contiguous(), rtol=1e-12, max_iterations=50, metric=lambda v: v @ inverse
    )
    torch.testing.assert_close(found.x.T @ found.x, m, rtol=1e-9, atol=1e-9)


def test_the_root_needs_no_more_products_than_there_are_different_eigenvalues():
    q, _ = torch.linalg.qr(right(9, 9))
    a = ((q * torch.tensor([0.0, 0, 1, 4, 4, 4, 9, 9, 9]).double()) @ q.T)[None]
    found = lanczos_root(product(a), right(1, 9), rtol=1e-10, max_iterations=50)
    assert found.iterations == 4
    # an eigenvalue of zero is met to rounding, whose root is what is left
    torch.testing.assert_close(found.x, product(dense_root(a))(right(1, 9)), rtol=0, atol=1e-6)


def test_the_root_of_a_row_does_not_depend_on_the_rows_beside_it():
    a, b = systems(6, 10, 1e5), right(6, 10)
    b[3] = 0
    together = lanczos_root(product(a), b, rtol=1e-2, max_iterations=300)
    assert (together.x[3] == 0).all() and together.change[3] == 0
    for i in range(6):
        alone = lanczos_root(product(a[i : i + 1]), b[i : i + 1], rtol=1e-2, max_iterations=300)
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-5])
def test_the_root_is_as_near_as_its_tolerance_says_within_the_rate_of_lanczos(rtol):
    a, b = systems(4, 60, 100.0), right(4, 60)
    found, exact = lanczos_root(product(a), b, rtol=rtol, max_iterations=300), product(dense_root(a))(b)
    error = (found.x - exact).norm(dim=1) / exact.norm(dim=1)
    assert found.iterations < 60
    # the error falls by q = (sqrt 100 - 1)/(sqrt 100 + 1) a product, so that it is below change q/(1 - q)
    assert error.max() < 5 * rtol


def test_negative_eigenvalues_and_an_early_end_are_reported():
    a, b = systems(2, 6, 100.0), right(2, 6)
    lam, q = torch.linalg.eigh(a[0])
    a[0] = (q * torch.where(lam == lam[0], -lam[0], lam)) @ q.T
    found = lanczos_root(product(a), b, rtol=1e-12, max_iterations=50)
    assert found.lowest[0] < -0.9 * lam[0] and found.lowest[1] > 0
    early = lanczos_root(product(a), b, rtol=1e-12, max_iterations=2)
    assert early.iterations == 2 and early.change[1] > 1e-3


def test_a_matrix_of_rounding_is_not_worked_on():
    noise = 1e-20 * right(40, 40)
    found = lanczos_root(
        lambda v: v @ (noise + noise.T), right(3, 40), rtol=1e-3, max_iterations=40, least=1e-3
    )
    assert found.iterations == 1 and found.x.abs().max() < 1e-8


def test_the_root_holds_in_single_precision():
    a, b = systems(4, 30, 1e4, torch.float32), right(4, 30, torch.float32)
    found = lanczos_root(product(a), b, rtol=1e-5, max_iterations=100)
    exact = product(dense_root(a.double()))(b.double())
    assert found.x.dtype == torch.float32
    assert ((found.x - exact).norm(dim=1) / exact.norm(dim=1)).max() < 1e-3
