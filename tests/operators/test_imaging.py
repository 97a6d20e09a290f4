"""Convolutions, coarse grids and Fourier transforms against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from sciddiff.errors import InputError
from sciddiff.operators import Convolution, Downsample, Fourier
from sciddiff.spaces import Space, Variable

DIMS = ("z", "y", "x")


def arrays(grid: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Space, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    space = Space(dict(zip(DIMS[-len(grid) :], grid, strict=True)), ["a", "b"])
    return space, rng.standard_normal((2, *grid)), rng.standard_normal(kernel)


SIZES = [
    ((9,), (4,)),
    ((9,), (5,)),
    ((7, 8), (3, 4)),
    ((7, 8), (6, 7)),
    ((5, 6, 4), (3, 2, 3)),
    ((5, 6, 4), (4, 5, 3)),
]


@pytest.mark.parametrize(("grid", "shape"), SIZES)
def test_convolution_is_scipys(grid, shape):
    space, x, kernel = arrays(grid, shape)
    out = Convolution(space, kernel).apply(torch.from_numpy(x)[None])[0].numpy()
    assert np.allclose(out, [scipy.signal.convolve(f, kernel, mode="same") for f in x], atol=1e-13)


@pytest.mark.parametrize(
    ("grid", "shape"), [s for s in SIZES if all(k % 2 for k in s[1])] + [((7, 8), (13, 9))]
)
@pytest.mark.parametrize(
    ("boundary", "mode"), [("periodic", "wrap"), ("reflect", "reflect"), ("zero", "constant")]
)
def test_boundaries_are_scipys(grid, shape, boundary, mode):
    space, x, kernel = arrays(grid, shape)
    out = Convolution(space, kernel, boundary=boundary).apply(torch.from_numpy(x)[None])[0].numpy()
    assert np.allclose(out, [scipy.ndimage.convolve(f, kernel, mode=mode) for f in x], atol=1e-13)


def test_a_kernel_may_cover_some_dims_in_any_order():
    space, x, kernel = arrays((5, 6, 4), (3, 5))
    out = Convolution(space, kernel, dims=["x", "z"]).apply(torch.from_numpy(x)[None])[0].numpy()
    planes = np.stack([scipy.signal.convolve(f, kernel.T[:, None, :], mode="same") for f in x])
    assert np.allclose(out, planes, atol=1e-13)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (np.ones(3), {}, "one axis for each"),
        (np.ones((3, 3)), {"boundary": "mirror"}, "'zero', 'periodic' or 'reflect'"),
        (np.ones((3, 3)), {"dims": ["x", "t"]}, "dims among"),
        (np.full((3, 3), np.nan), {}, "finite numbers"),
        (np.ones((3, 3)) * 1j, {}, "real array"),
    ],
)
def test_bad_kernels_are_refused(kernel, options, message):
    with pytest.raises(InputError, match=message):
        Convolution(Space({"y": 5, "x": 5}, "a"), kernel, **options)


def test_downsampling_takes_block_means_of_values_and_labels():
    days = np.arange("2000-01-01", "2000-01-07", dtype="M8[D]")
    space = Space({"time": days, "x": np.arange(4.0)}, ["a", "b"])
    coarse = Downsample(space, {"time": 3, "x": 2})
    x = np.random.default_rng(0).standard_normal((2, 6, 4))
    assert np.allclose(coarse.apply(torch.from_numpy(x)[None])[0], x.reshape(2, 2, 3, 2, 2).mean((2, 4)))
    assert coarse.codomain.coords["x"].tolist() == [0.5, 2.5]
    assert coarse.codomain.coords["time"].astype("M8[D]").astype(str).tolist() == ["2000-01-02", "2000-01-05"]


@pytest.mark.parametrize("factor", [4, 0, 1.5, {"t": 2}])
def test_factors_that_do_not_divide_the_grid_are_refused(factor):
    with pytest.raises(InputError, match="factor"):
        Downsample(Space({"y": 6, "x": 6}, "a"), factor)


@pytest.mark.parametrize("is_complex", [False, True])
def test_fourier_is_the_orthonormal_dft(is_complex):
    grid = Space({"t": np.arange(6) * 0.5, "s": 5})
    kind = Variable(("t", "s"), complex=is_complex)
    space = Space({"t": grid.coords["t"], "s": 5}, {"a": kind, "b": kind})
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 6, 5)) + (1j * rng.standard_normal((2, 6, 5)) if is_complex else 0)
    operator = Fourier(space)
    out = operator.codomain.dataset(operator.apply(space.tensor(z)[None])[0])
    for name, field in zip("ab", z, strict=True):
        assert np.allclose(out[name].values, np.fft.fft2(field, norm="ortho"), atol=1e-14)
    assert np.allclose(out["k_t"], np.fft.fftfreq(6, 0.5))


def test_fourier_is_an_isometry():
    space = Space({"y": 4, "x": 7}, ["a", "b"])
    x = torch.randn(3, *space.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = Fourier(space)
    assert torch.allclose(operator.adjoint(operator.apply(x)), x, atol=1e-14)


def test_fourier_refuses_a_mix_of_real_and_complex_variables():
    with pytest.raises(InputError, match="all real or all complex"):
        Fourier(Space({"t": 4}, {"a": None, "b": Variable(("t",), complex=True)}))
