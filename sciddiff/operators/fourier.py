"""The discrete Fourier transform as an operator onto complex variables.

``y_k = N^-1/2 sum_j x_j exp(-2 pi i k j / n)`` over the grid of ``N`` points: an isometry, ``A^T A = 1`` in
the real views that states are stored in.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator
from sciddiff.operators.grids import spacing, stacked
from sciddiff.spaces import Space, Variable

__all__ = ["Fourier"]


@final
class Fourier(LinearOperator):
    """The orthonormal DFT over all dims, of real or complex variables, onto complex ones.

    Codomain dims are ``k_<dim>``, with frequencies in cycles per unit of the coords (per step where a dim has
    none), in the order of `numpy.fft.fftfreq`.

    Args:
        domain: a space whose variables all live on all dims, and are all real or all complex; evenly spaced.

    Raises:
        InputError: on uneven coords, or a mix of real and complex variables.

    Example:
        >>> Fourier(Space({"t": 4})).apply(torch.ones(1, 4)).tolist()
        [[[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """

    def __init__(self, domain: Space) -> None:
        stacked(domain, "domain")
        kinds = {v.complex for v in domain.variables.values()}
        if len(kinds) > 1:
            raise InputError(
                "domain",
                expected="variables that are all real or all complex",
                got=domain,
                fix="select the variables first, with Select(domain, variables=...)",
            )
        steps = spacing(domain, domain.dims, labelled=False)
        dims = tuple(f"k_{d}" for d in domain.dims)
        coords = {k: np.fft.fftfreq(n, h) for k, n, h in zip(dims, domain.grid, steps, strict=True)}
        variables = {n: Variable(dims, v.units, True, v.attrs) for n, v in domain.variables.items()}
        self.domain, self.codomain = domain, Space(coords, variables)
        self._complex = kinds == {True}
        self._axes = tuple(range(-len(dims), 0))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Transform."""
        z = (
            self._view(x)
            if self._complex
            else x.reshape(x.shape[0], len(self.domain.variables), *self.domain.grid)
        )
        out = torch.fft.fftn(z, dim=self._axes, norm="ortho") if len(x) else z + 0j
        return torch.stack([out.real, out.imag], 2).reshape(x.shape[0], *self.codomain.shape)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Transform back; the real part where the domain is real."""
        z = self._view(y)
        out = torch.fft.ifftn(z, dim=self._axes, norm="ortho") if len(y) else z
        parts = torch.stack([out.real, out.imag], 2) if self._complex else out.real
        return parts.reshape(y.shape[0], *self.domain.shape)

    def _view(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(x.shape[0], len(self.domain.variables), 2, *self.domain.grid)
        return torch.complex(parts[:, :, 0], parts[:, :, 1])
