"""Operators with unknown parameters: maps of a state and of what is not known of the instrument at once.

A blind problem is an ordinary one on the joint space of `joint`: ``A(x, k)`` is bilinear, linear in each of
the two alone. What the data cannot tell apart, as the scale of a kernel from that of the signal, ``A(x, k) =
A(a x, k/a)``, only the prior or a constraint can.
"""

from __future__ import annotations

import math
from typing import final

import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import Operator
from sciddiff.operators.grids import labels
from sciddiff.operators.imaging import Convolution
from sciddiff.spaces import Space

__all__ = ["BlindConvolution", "views"]


def views(space: Space, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """States ``(rows, *space.shape)`` by variable: name -> ``(rows, *sizes of its dims)``, without copies.

    Complex variables have their real and imaginary parts on an axis of 2 behind the rows.

    Example:
        >>> from sciddiff.operators import from_torch
        >>> from sciddiff.spaces import Variable
        >>> sky = Space({"t": 3, "band": 1}, {"x": Variable(("t",)), "gain": Variable(("band",))})
        >>> def calibrated(z):
        ...     v = views(sky, z)
        ...     return v["gain"] * v["x"]
        >>> gain = from_torch(calibrated, sky, Space({"t": 3}))
        >>> gain.apply(torch.tensor([[1.0, 2.0, 3.0, 10.0]])).tolist()
        [[10.0, 20.0, 30.0]]
    """
    parts: dict[str, torch.Tensor] = {}
    flat, start = x.flatten(1), 0
    for name, v in space.variables.items():
        shape = ((2,) if v.complex else ()) + tuple(space.sizes[d] for d in v.dims)
        parts[name] = flat[:, start : start + math.prod(shape)].reshape(len(x), *shape)
        start += math.prod(shape)
    return parts


@final
class BlindConvolution(Operator):
    """A field convolved with a kernel, both unknown: ``y_i = sum_j k_j x_(i + c - j)``, `Convolution` in both.

    The scale and the place of the kernel are not in the data: ``k * x = (k/a) * (a x)``, and a kernel that is moved
    to the left comes with a field that is moved to the right. Priors with known means and scales tell them
    apart; ``kernel_is="logits"`` fixes the scale for good; ``posterior.satisfying(...)`` adds a soft equation,
    such as a sum of one.

    Args:
        domain: a space with both variables, as that of ``joint(state=..., kernel=...)``; real ones.
        state: name of the field's variable.
        kernel: name of the kernel's variable, on as many dims as the field and no longer along any.
        boundary: outside the grid, "zero", "periodic" or "reflect", as for `Convolution`.
        kernel_is: "values", or "logits": the kernel is ``softmax`` of its variable, positive and of sum one.

    Raises:
        InputError: on unknown or complex variables, or a kernel that is larger than the field.

    Example:
        >>> from sciddiff.spaces import Variable
        >>> space = Space({"t": 4, "lag": 3}, {"state": Variable(("t",)), "kernel": Variable(("lag",))})
        >>> blur = BlindConvolution(space, boundary="periodic")
        >>> blur.apply(torch.tensor([[4.0, 0.0, 0.0, 0.0, 0.25, 0.5, 0.25]])).round(decimals=5).tolist()
        [[2.0, 1.0, 0.0, 1.0]]
    """

    def __init__(
        self,
        domain: Space,
        *,
        state: str = "state",
        kernel: str = "kernel",
        boundary: str = "zero",
        kernel_is: str = "values",
    ) -> None:
        for argument, name in (("state", state), ("kernel", kernel)):
            v = domain.variables.get(name)
            if v is None or v.complex or not v.dims:
                raise InputError(
                    argument,
                    expected=f"a real variable on dims, among {list(domain.variables)}",
                    got=repr(name),
                    fix="name it as in joint(...)",
                )
        if kernel_is not in ("values", "logits"):
            raise InputError(
                "kernel_is", expected="'values' or 'logits'", got=repr(kernel_is), fix="choose one"
            )
        field, window = domain.variables[state], domain.variables[kernel]
        grid, sizes = [domain.sizes[d] for d in field.dims], [domain.sizes[d] for d in window.dims]
        if len(grid) != len(sizes) or any(k > n for k, n in zip(sizes, grid, strict=True)):
            raise InputError(
                "kernel",
                expected=f"a kernel on {len(grid)} dims of at most {grid} values",
                got=f"one of {sizes}",
                fix="give the kernel one dim for each of the field's",
            )
        self.domain, self.state, self.kernel, self.kernel_is = domain, state, kernel, kernel_is
        given = labels(domain)
        self.codomain = Space({d: given[d] for d in field.dims}, {state: field.units})
        self._frame = Convolution(self.codomain, torch.ones(sizes), boundary=boundary)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve every row with its own kernel, by FFT."""
        parts, frame = views(self.domain, x), self._frame
        fields, kernels = frame._extend(parts[self.state]), parts[self.kernel]
        if self.kernel_is == "logits":
            kernels = kernels.flatten(1).softmax(1).reshape(kernels.shape)
        axes = tuple(range(1, fields.ndim))
        product = torch.fft.rfftn(fields, dim=axes) * torch.fft.rfftn(kernels, s=frame._padded, dim=axes)
        out: torch.Tensor = torch.fft.irfftn(product, s=frame._padded, dim=axes)
        for axis, k in enumerate(kernels.shape[1:], 1):
            out = out.narrow(axis, k - 1, out.shape[axis] - k + 1)
        return out.reshape(len(x), *self.codomain.shape)
