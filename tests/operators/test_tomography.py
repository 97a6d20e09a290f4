"""Projections of known objects, and the two reconstructions without a prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sciddiff.errors import ConvergenceError, InputError
from sciddiff.operators import Matrix, Radon, fbp, tikhonov
from sciddiff.spaces import Space

ANGLES = np.arange(0.0, 180.0, 7.5)
CENTRE, RADIUS = (0.2, -0.3), 0.55


def square(n: int, half: float = 1.0) -> Space:
    x = (np.arange(n) + 0.5) / n * 2 * half - half
    return Space({"y": x, "x": x}, "density")


def disc(n: int, fine: int = 8) -> torch.Tensor:
    """Area fractions of the pixels inside a disc off the centre, ``(1, n, n)``."""
    x = (np.arange(n * fine) + 0.5) / (n * fine) * 2 - 1
    inside = (x[None, :] - CENTRE[0]) ** 2 + (x[:, None] - CENTRE[1]) ** 2 < RADIUS**2
    return torch.from_numpy(inside.reshape(n, fine, n, fine).mean((1, 3)))[None]


def offsets(radon: Radon) -> np.ndarray:
    """Distance of every ray from the disc's centre, ``(angles, detectors)``."""
    theta = np.deg2rad(radon.angles)[:, None]
    return radon.detectors[None, :] - CENTRE[0] * np.cos(theta) - CENTRE[1] * np.sin(theta)


def test_projections_of_a_disc_are_its_chords_to_first_order():
    errors = []
    for n in (32, 64, 128):
        radon = Radon(square(n), ANGLES)
        chords = 2 * np.sqrt(np.clip(RADIUS**2 - offsets(radon) ** 2, 0, None))
        error = radon.apply(disc(n))[0].numpy() - chords
        errors.append(np.sqrt((error**2).mean() / (chords**2).mean()))
        inner = np.abs(offsets(radon)) < 0.8 * RADIUS
        assert np.abs(error[inner]).max() < 2 / n
    # a pixel's width h of the edge is smeared, where a chord is of order sqrt(h): first order in the rms
    assert 0.8 < np.log2(errors[0] / errors[2]) / 2 < 1.2


def test_every_angle_conserves_mass():
    space = Space({"y": np.linspace(0, 3, 9), "x": np.linspace(-2, 0, 13)}, "density")
    x = torch.rand(2, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radon = Radon(space, np.linspace(-50.0, 400.0, 31))
    mass = radon.apply(x).sum(-1) * radon.width
    assert torch.allclose(mass, x.sum((1, 2))[:, None].expand_as(mass) * (3 / 8) * (2 / 12), rtol=1e-12)


def test_the_centre_of_mass_moves_as_a_cosine():
    radon = Radon(square(64), ANGLES)
    p = radon.apply(disc(64))[0].numpy()
    theta = np.deg2rad(ANGLES)
    centre = (p * radon.detectors).sum(1) / p.sum(1)
    assert np.abs(centre - CENTRE[0] * np.cos(theta) - CENTRE[1] * np.sin(theta)).max() < 2e-3


def test_projections_scale_with_the_units_of_length():
    x = disc(16)
    assert torch.allclose(Radon(square(16, 10.0), ANGLES).apply(x), 10 * Radon(square(16), ANGLES).apply(x))


def test_fine_bins_see_exact_chords_of_a_pixel():
    one = Space({"y": [0.0, 1.0], "x": [0.0, 1.0]}, "density")
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    radon = Radon(one, [45.0], 2001)
    # the ray through the pixel's corners, sqrt 2 long, is the longest
    assert abs(float(radon.apply(x).max()) - np.sqrt(2)) < 2e-3


@pytest.mark.parametrize(
    "angles", [ANGLES[:0:-1] / 4 + 3, np.arange(0.0, 360.0, 3.0), np.arange(0.0, 180.0, 3.0)]
)
def test_filtered_back_projection_has_the_right_scale(angles):
    if len(angles) == len(ANGLES) - 1:  # uneven: dense over the first quarter, sparse over the rest
        angles = np.concatenate([angles, np.arange(48.0, 183.0, 2.0)])
    radon = Radon(square(64), angles)
    x = disc(64)
    inner = (
        torch.from_numpy(offsets(Radon(square(64), [0.0], square(64).coords["x"])))[0][None, :] ** 2
        + torch.from_numpy(square(64).coords["y"] - CENTRE[1])[:, None] ** 2
    ) < (0.8 * RADIUS) ** 2
    values = fbp(radon, radon.apply(x))[0][inner]
    assert abs(float(values.mean()) - 1) < 0.01 and float((values - 1).abs().max()) < 0.1


@pytest.mark.parametrize("penalty", ["size", "gradient"])
def test_tikhonov_solves_the_normal_equations(penalty):
    space, rng = Space({"y": 4, "x": 3}, "a"), np.random.default_rng(0)
    m, y = rng.standard_normal((7, 12)), rng.standard_normal((2, 7))
    p = np.eye(12)
    if penalty == "gradient":
        dy, dx = np.diff(np.eye(4), axis=0), np.diff(np.eye(3), axis=0)
        p = np.concatenate([np.kron(dy, np.eye(3)), np.kron(np.eye(4), dx)])
    expected = np.linalg.solve(m.T @ m + 0.3 * p.T @ p, m.T @ y.T).T
    operator = Matrix(space, Space({"s": 7}), m)
    out = tikhonov(operator, torch.from_numpy(y), 0.3, penalty=penalty, tolerance=1e-12)
    assert np.allclose(out.reshape(2, 12), expected, rtol=1e-9, atol=1e-12)


def test_tikhonov_does_not_hide_an_unfinished_solve():
    operator = Matrix(Space({"t": 20}), Space({"s": 20}), np.diag(np.logspace(0, 6, 20)))
    with pytest.raises(ConvergenceError, match="3 steps"):
        tikhonov(operator, torch.ones(1, 20, dtype=torch.float64), 1e-3, max_iterations=3)


@pytest.mark.parametrize(
    ("domain", "angles", "detectors", "message"),
    [
        (Space({"x": 5}, "a"), [0.0], None, "2 dims"),
        (Space({"y": [0.0, 1.0, 3.0], "x": 3}, "a"), [0.0], None, "evenly spaced"),
        (square(4), [], None, "1-D list of finite numbers"),
        (square(4), [0.0, np.nan], None, "1-D list of finite numbers"),
        (square(4), [0.0, 0.0], None, "distinct"),
        (square(4), [0.0], 0, "at least one bin"),
        (square(4), [0.0], [1.0, 0.0], "increasing centres"),
        (square(4), [0.0], [0.0, 1.0, 3.0], "evenly spaced"),
    ],
)
def test_bad_geometries_are_refused(domain, angles, detectors, message):
    with pytest.raises(InputError, match=message):
        Radon(domain, angles, detectors)
