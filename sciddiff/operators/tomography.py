"""Parallel-beam tomography of a plane.

A detector bin at ``s`` and angle ``theta`` sees the mean, over its width, of the line integrals of the field
along ``(x - x0) cos(theta) + (y - y0) sin(theta) = s``, with ``(x0, y0)`` the middle of the grid, ``x`` its
last dim and ``y`` its first. Pixels are rectangles of constant value, so that the weight of a pixel is
exactly the area of its part inside the bin's strip over the bin's width: every angle conserves mass.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.basic import Matrix
from sciddiff.operators.external import External
from sciddiff.operators.grids import positions, spacing, stacked
from sciddiff.spaces import Space, Variable

__all__ = ["Radon", "fbp"]


@final
class Radon(External):
    """Strip integrals of every variable, as one sparse matrix with its exact transpose.

    Args:
        domain: a space of two dims, ``y`` then ``x``, evenly spaced, in units of length (without coords: 1).
        angles: degrees, ``(angles,)``, from the x axis to the detector axis; at 0 the rays run along ``y``.
        detectors: centres of the bins, evenly spaced, in units of length from the middle; or their number,
            over the diagonal of the grid; None for bins as wide as the smaller side of a pixel.
        units: units of the projections, for instance the variable's times metres.

    Raises:
        InputError: on a space that is no even 2-D grid, or angles or bins that are not finite and distinct.

    Example:
        >>> square = Space({"y": [-0.5, 0.5], "x": [-0.5, 0.5]}, "density")
        >>> A = Radon(square, [0.0, 90.0], [-0.5, 0.5])
        >>> A.apply(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
        [[[4.0, 6.0], [3.0, 7.0]]]
    """

    def __init__(
        self, domain: Space, angles: Any, detectors: Any = None, *, units: str | None = None
    ) -> None:
        stacked(domain, "domain", (2,))
        self.pixel = spacing(domain, domain.dims, labelled=False)
        theta = _vector(angles, "angles")
        bins, self.width = _bins(domain, self.pixel, detectors)
        dims = ("angle", "detector")
        variables = {n: Variable(dims, units, v.complex) for n, v in domain.variables.items()}
        self.domain = domain
        self.codomain = Space({"angle": theta, "detector": bins}, variables)
        self.angles, self.detectors = theta, bins
        matrix = _weights(domain, self.pixel, theta, bins, self.width)
        self._plane = Matrix(Space({"pixel": matrix.shape[1]}), Space({"ray": matrix.shape[0]}), matrix)

    @property
    def matrix(self) -> torch.Tensor:
        """The sparse CSR matrix ``(angles * detectors, pixels)`` of one variable, in units of length."""
        return self._plane.matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project."""
        fields = x.reshape(x.shape[0] * len(self.domain.components), math.prod(self.domain.grid))
        return self._plane.forward(fields).reshape(x.shape[0], *self.codomain.shape)

    def transposed(self, y: torch.Tensor) -> torch.Tensor:
        """Back-project."""
        rays = y.reshape(y.shape[0] * len(self.domain.components), math.prod(self.codomain.grid))
        return self._plane.transposed(rays).reshape(y.shape[0], *self.domain.shape)


def fbp(operator: Radon, y: torch.Tensor) -> torch.Tensor:
    """Filtered back-projection with the ramp filter: ``f = integral of (y * h)(theta, s) over half a turn``.

    The filter is the band-limited ramp of Kak and Slaney 1988, "Principles of computerized tomographic
    imaging", eq. 3.61, applied in the Fourier domain with zero padding; angles are weighted by their gaps, so
    uneven ones and full turns are right too.

    Args:
        operator: the projector; its bins should cover the object.
        y: projections ``(batch, *operator.codomain.shape)``.

    Returns:
        Fields ``(batch, *operator.domain.shape)``.

    Raises:
        InputError: on a wrong shape.

    Example:
        >>> space = Space({"y": np.linspace(-1, 1, 32), "x": np.linspace(-1, 1, 32)}, "density")
        >>> A = Radon(space, np.arange(0.0, 180.0, 4.0))
        >>> disc = torch.from_numpy((np.hypot(*np.meshgrid(*space.coords.values())) < 0.6) * 1.0)[None]
        >>> bool((fbp(A, A.apply(disc))[0, 12:20, 12:20] - 1).abs().max() < 0.05)
        True
    """
    if y.ndim != 1 + len(operator.codomain.shape) or tuple(y.shape[1:]) != operator.codomain.shape:
        raise InputError(
            "y",
            expected=f"a batch of shape (batch, *{operator.codomain.shape})",
            got=tuple(y.shape),
            fix="add a leading batch dim, y[None]",
        )
    n = len(operator.detectors)
    size = 2 ** math.ceil(math.log2(2 * n))
    ramp = torch.fft.rfft(torch.from_numpy(_ramp(size, operator.width)).to(y)).real
    filtered = torch.fft.irfft(torch.fft.rfft(y, size) * ramp, size)[..., :n] * operator.width
    weights = torch.from_numpy(_gaps(operator.angles)).to(y)[:, None]
    # a pixel's weights sum to its area over the bin's width: divided by it, the transpose interpolates
    return operator.adjoint(filtered * weights) * (operator.width / math.prod(operator.pixel))


def _ramp(size: int, step: float) -> np.ndarray:
    """The band-limited ramp on a circle of ``size`` samples."""
    k = np.fft.fftfreq(size, 1.0 / size)
    odd = k % 2 == 1
    h = np.zeros(size)
    h[odd] = -1.0 / (np.pi * k[odd] * step) ** 2
    h[0] = 1.0 / (2 * step) ** 2
    return h


def _gaps(degrees: np.ndarray) -> np.ndarray:
    """Radians that each angle stands for, half way to its neighbours modulo half a turn; they sum to pi."""
    turn = np.mod(degrees, 180.0)
    order = np.argsort(turn)
    ahead = np.diff(turn[order], append=turn[order][0] + 180.0)
    out = np.empty(len(turn))
    out[order] = (ahead + np.roll(ahead, 1)) / 2
    return np.deg2rad(out)


def _vector(values: Any, argument: str) -> np.ndarray:
    raw = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if raw.ndim != 1 or not raw.size or raw.dtype.kind not in "iuf" or not np.isfinite(raw).all():
        raise InputError(
            argument,
            expected="a 1-D list of finite numbers",
            got=f"{raw.dtype} of shape {raw.shape}",
            fix="pass for example numpy.arange(0, 180, 3)",
        )
    if len(np.unique(raw)) != len(raw):
        raise InputError(argument, expected="distinct values", got="repeated ones", fix="drop the duplicates")
    return raw.astype(np.float64)


def _bins(domain: Space, pixel: tuple[float, ...], detectors: Any) -> tuple[np.ndarray, float]:
    diagonal = math.hypot(*(n * h for n, h in zip(domain.grid, pixel, strict=True)))
    if detectors is None or (isinstance(detectors, (int, np.integer)) and not isinstance(detectors, bool)):
        count = math.ceil(diagonal / min(pixel)) if detectors is None else int(detectors)
        if count < 1:
            raise InputError(
                "detectors", expected="at least one bin", got=count, fix="pass a positive number"
            )
        width = min(pixel) if detectors is None else diagonal / count
        return (np.arange(count) - (count - 1) / 2) * width, width
    centres = _vector(detectors, "detectors")
    steps = np.diff(centres)
    if len(centres) < 2 or steps.mean() <= 0 or np.abs(steps - steps.mean()).max() > 1e-4 * steps.mean():
        raise InputError(
            "detectors",
            expected="at least 2 evenly spaced, increasing centres of bins",
            got=f"{len(centres)} values",
            fix="pass numpy.linspace(first, last, n), or a number of bins",
        )
    return centres, float(steps.mean())


def _weights(
    domain: Space, pixel: tuple[float, ...], degrees: np.ndarray, bins: np.ndarray, width: float
) -> Any:
    """Sparse matrix of area inside a strip over the strip's width, ``(angles * bins, pixels)``."""
    import scipy.sparse as sp

    y, x = (positions(domain, d) for d in domain.dims)
    y, x = y - (y[0] + y[-1]) / 2, x - (x[0] + x[-1]) / 2
    first, rows, columns, values = bins[0] - width / 2, [], [], []
    for k, theta in enumerate(np.deg2rad(degrees)):
        cos, sin = math.cos(theta), math.sin(theta)
        centre = (x[None, :] * cos + y[:, None] * sin).reshape(-1)
        sides = sorted((pixel[1] * abs(cos), pixel[0] * abs(sin)))
        reach = sum(sides) / 2
        lowest = np.floor((centre - reach - first) / width).astype(np.int64)
        for offset in range(math.ceil(2 * reach / width) + 1):
            j = lowest + offset
            left = first + j * width - centre
            share = _shadow(left + width, *sides) - _shadow(left, *sides)
            seen = (j >= 0) & (j < len(bins)) & (share > 1e-14)
            rows.append(k * len(bins) + j[seen])
            columns.append(np.flatnonzero(seen))
            values.append(share[seen] * math.prod(pixel) / width)
    shape = (len(degrees) * len(bins), len(x) * len(y))
    index = (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_matrix((np.concatenate(values), index), shape=shape)


def _shadow(u: np.ndarray, short: float, long: float) -> np.ndarray:
    """Share of a pixel left of ``u``: the integral of its trapezoid shadow, with these projected sides."""
    flat = long - short
    rise = np.clip(u + (long + short) / 2, 0.0, short)
    fall = np.clip(u - flat / 2, 0.0, short)
    level = np.clip(u + flat / 2, 0.0, flat)
    inverse = 1.0 / short if short > 0 else 0.0
    return np.asarray((rise * rise * inverse / 2 + level + fall * (2.0 - fall * inverse) / 2) / long)
