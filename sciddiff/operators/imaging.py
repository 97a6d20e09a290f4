"""Blur and resolution on regular grids of one to three (or more) dims.

A convolution is ``y_i = sum_j k_j x_(i + c - j)`` with ``c = (n - 1) // 2`` the centre of a kernel of ``n``
values, as `scipy.signal.convolve` with ``mode="same"``; the boundary says what ``x`` is outside the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch.nn import functional

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator
from sciddiff.operators.grids import labels, per_dim, stacked
from sciddiff.spaces import Space

__all__ = ["Convolution", "Downsample"]

_DIRECT = 25
"""Kernels of more values are applied by FFT, which is as fast at 5 x 5 and 100 times faster at 25 x 25."""


@final
class Convolution(LinearOperator):
    """Every variable convolved with one kernel, on the same grid.

    Kernels of more than 25 values are applied by FFT, which leaves rounding errors of either sign where the
    exact result is 0.

    Args:
        domain: a space whose variables all live on all dims.
        kernel: real array with one axis per dim in ``dims``; it is not normalised, and its sum is the gain.
        boundary: outside the grid, "zero", "periodic", or "reflect" (``c b a | a b c``, scipy.ndimage's
            "reflect", which has no flux through the edge).
        dims: the dims to convolve; default: all, in their order.

    Raises:
        InputError: on a kernel of other dims, values that are not finite, or an unknown boundary.

    Example:
        >>> blur = Convolution(Space({"t": 4}), [0.25, 0.5, 0.25], boundary="periodic")
        >>> blur.apply(torch.tensor([[4.0, 0.0, 0.0, 0.0]])).tolist()
        [[2.0, 1.0, 0.0, 1.0]]
    """

    def __init__(
        self, domain: Space, kernel: Any, *, boundary: str = "zero", dims: Sequence[str] | None = None
    ) -> None:
        stacked(domain, "domain")
        if boundary not in ("zero", "periodic", "reflect"):
            raise InputError(
                "boundary",
                expected="'zero', 'periodic' or 'reflect'",
                got=repr(boundary),
                fix="choose one of them",
            )
        self.domain = self.codomain = domain
        self.boundary = boundary
        self.kernel = _kernel(domain, kernel, tuple(domain.dims if dims is None else dims))
        before = [k // 2 for k in self.kernel.shape]
        after = [(k - 1) // 2 for k in self.kernel.shape]
        self._margins = list(zip(before, after, strict=True))
        self._padded = tuple(n + k - 1 for n, k in zip(domain.grid, self.kernel.shape, strict=True))
        self._direct = self.kernel.numel() <= _DIRECT and self.kernel.ndim <= 3

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Extend beyond the edges, convolve, keep the grid."""
        fields = self._extend(x.reshape(self._planes(x), *self.domain.grid))
        if self._direct:
            flipped = self.kernel.flip(tuple(range(self.kernel.ndim))).to(x)
            convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[self.kernel.ndim - 1]
            direct: torch.Tensor = convolve(fields[:, None], flipped[None, None])
            return direct.reshape(x.shape)
        out = self._spectral(fields, conjugate=False)
        for axis, k in enumerate(self.kernel.shape, 1):
            out = out.narrow(axis, k - 1, out.shape[axis] - k + 1)
        return out.reshape(x.shape)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Correlate onto the extended grid, then fold the margins back."""
        fields = y.reshape(self._planes(y), *self.domain.grid)
        if self._direct:
            flipped = self.kernel.flip(tuple(range(self.kernel.ndim))).to(y)
            spread = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
            wide = spread[self.kernel.ndim - 1](fields[:, None], flipped[None, None])[:, 0]
        else:
            lead = [w for k in reversed(self.kernel.shape) for w in (k - 1, 0)]
            wide = self._spectral(functional.pad(fields, lead), conjugate=True)
        return self._fold(wide).reshape(y.shape)

    def _planes(self, x: torch.Tensor) -> int:
        return x.shape[0] * len(self.domain.components)

    def _spectral(self, fields: torch.Tensor, conjugate: bool) -> torch.Tensor:
        """Circular convolution on the extended grid, or its adjoint."""
        if not len(fields):
            return fields
        axes = tuple(range(1, fields.ndim))
        transfer = torch.fft.rfftn(self.kernel.to(fields), s=self._padded)
        spectrum: torch.Tensor = torch.fft.rfftn(fields, dim=axes) * (
            transfer.conj() if conjugate else transfer
        )
        out: torch.Tensor = torch.fft.irfftn(spectrum, s=self._padded, dim=axes)
        return out

    def _extend(self, fields: torch.Tensor) -> torch.Tensor:
        if self.boundary == "zero":
            return functional.pad(fields, [w for margin in reversed(self._margins) for w in margin])
        for axis, margin in enumerate(self._margins, 1):
            if sum(margin):
                fields = fields.index_select(axis, self._source(axis, margin, fields.device))
        return fields

    def _fold(self, wide: torch.Tensor) -> torch.Tensor:
        for axis, margin in enumerate(self._margins, 1):
            n = self.domain.grid[axis - 1]
            if self.boundary == "zero":
                wide = wide.narrow(axis, margin[0], n)
            elif sum(margin):
                shape = (*wide.shape[:axis], n, *wide.shape[axis + 1 :])
                source = self._source(axis, margin, wide.device)
                wide = wide.new_zeros(shape).index_add(axis, source, wide)
        return wide

    def _source(self, axis: int, margin: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Grid points that the extended axis repeats."""
        n = self.domain.grid[axis - 1]
        i = torch.arange(-margin[0], n + margin[1], device=device)
        if self.boundary == "periodic":
            return i % n
        i = i % (2 * n)
        return torch.minimum(i, 2 * n - 1 - i)


@final
class Downsample(LinearOperator):
    """Means over blocks of the grid; coords that are numbers or dates become the blocks' means.

    Args:
        domain: a space whose variables all live on all dims.
        factor: block size, one for all dims or dim -> size; each has to divide its dim.

    Raises:
        InputError: on a factor that is no positive int or does not divide the grid.

    Example:
        >>> coarse = Downsample(Space({"t": [0.0, 1.0, 2.0, 3.0]}), 2)
        >>> coarse.apply(torch.tensor([[1.0, 3.0, 5.0, 5.0]])).tolist(), coarse.codomain.coords["t"].tolist()
        ([[2.0, 5.0]], [0.5, 2.5])
    """

    def __init__(self, domain: Space, factor: int | Mapping[str, int]) -> None:
        stacked(domain, "domain")
        self.factors = per_dim(factor, domain, "factor")
        for dim, f in zip(domain.dims, self.factors, strict=True):
            if domain.sizes[dim] % f:
                raise InputError(
                    "factor",
                    expected=f"a divisor of {domain.sizes[dim]}, the size of {dim!r}",
                    got=f,
                    fix="crop the space with Select, or choose another factor",
                )
        coords = {d: _means(v, f) for (d, v), f in zip(labels(domain).items(), self.factors, strict=True)}
        self.domain, self.codomain = domain, Space(coords, domain.variables)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Block means."""
        pairs = zip(self.domain.grid, self.factors, strict=True)
        blocks = x.reshape(
            *x.shape[: x.ndim - len(self.factors)], *(s for n, f in pairs for s in (n // f, f))
        )
        return blocks.mean(tuple(range(-1, -2 * len(self.factors), -2)))

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Every value spread evenly over its block."""
        for axis, f in enumerate(reversed(self.factors), 1):
            y = y.repeat_interleave(f, dim=-axis) if f > 1 else y
        return y / math.prod(self.factors)


def _means(values: np.ndarray | int, factor: int) -> np.ndarray | int:
    if isinstance(values, int):
        return values // factor
    if factor == 1:
        return values
    rows = values.reshape(-1, factor)
    if values.dtype.kind in "iuf":
        return np.asarray(rows.mean(1))
    if values.dtype.kind == "M":
        first = rows[:, :1].astype("M8[ns]")
        return np.asarray(first[:, 0] + (rows.astype("M8[ns]") - first).mean(1))
    return len(rows)


def _kernel(domain: Space, kernel: Any, dims: tuple[str, ...]) -> torch.Tensor:
    values = torch.as_tensor(kernel if isinstance(kernel, torch.Tensor) else np.asarray(kernel))
    if not set(dims) <= set(domain.dims) or len(set(dims)) != len(dims):
        raise InputError("dims", expected=f"dims among {domain.dims}", got=dims, fix="check the names")
    if values.ndim != len(dims) or values.is_complex() or not values.numel():
        raise InputError(
            "kernel",
            expected=f"a real array with one axis for each of {dims}",
            got=f"shape {tuple(values.shape)}",
            fix="name the dims that the kernel covers, with dims=",
        )
    values = values.detach().to(torch.float64)
    if not torch.isfinite(values).all():
        raise InputError("kernel", expected="finite numbers", got="NaN or infinity", fix="remove them")
    order = sorted(range(len(dims)), key=lambda k: domain.dims.index(dims[k]))
    shape = [values.shape[dims.index(d)] if d in dims else 1 for d in domain.dims]
    return values.permute(order).reshape(shape).contiguous()
