"""Several unknowns at once, independent a priori: ``p(x, k) = p(x) p(k)``, each part with a prior of its own.

The noise of every part is drawn on its own, at one level for all, so that the denoiser acts block by block,
``D(z, sigma) = (D_x(z_x, sigma), D_k(z_k, sigma))``, and with it ``J``, ``C`` and ``Cov[z0 | z]``. What ties the
parts together is the data alone: an operator on the joint space, such as `BlindConvolution`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self, final

import numpy as np
import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior, level
from sciddiff.random import Streams
from sciddiff.spaces import Space, Variable

__all__ = ["Blocks", "JointPrior", "joint"]


def joint(**parts: Prior) -> JointPrior:
    """A prior of several unknowns that are independent a priori, named as the arguments are.

    A part with one variable gives it the name of the part; the variables of other parts take it as a prefix,
    ``state_t``. A dim keeps its name, unless an earlier part has one of that name with other labels: then it is
    called ``<part>_<dim>``.

    Args:
        parts: name -> prior, at least one; all of one dtype and on one device.

    Returns:
        `JointPrior` on the space of all variables. It knows its log density where all parts know theirs.

    Raises:
        InputError: on no parts, parts that are no priors, of other dtypes, or on different graphs.

    Example:
        >>> import sciddiff as sd
        >>> signal = sd.GaussianPrior(sd.Space({"t": 16}), sd.covariance.white((16,)))
        >>> kernel = sd.GaussianPrior(sd.Space({"lag": 3}), sd.covariance.white((3,)), mean=[0.2, 0.6, 0.2])
        >>> joint(state=signal, kernel=kernel).sample(2, seed=0)["kernel"].dims
        ('sample', 'lag')
    """
    closed = bool(parts) and all(hasattr(part, "log_density") for part in parts.values())
    return _ClosedJointPrior(parts) if closed else JointPrior(parts)


class JointPrior(Prior):
    """See `joint`.

    Exact parts are asked for any level. A learned part is asked only for levels up to its own ``sigma_max``:
    where another part needs more noise, its coordinates are stretched by the ratio ``1/c`` of the two, and
    ``D = D_part(c z, c sigma) / c``.

    Attributes:
        parts: name -> prior.
        factors: ``c`` of every part, 1 where nothing is stretched.
    """

    def __init__(self, parts: dict[str, Prior]) -> None:
        _check(parts)
        self.parts, every = dict(parts), list(parts.values())
        self.space = _joined({name: part.space for name, part in parts.items()})
        self.dtype, self.device = every[0].dtype, every[0].device
        self.exact, self.normalised = all(p.exact for p in every), all(p.normalised for p in every)
        self.sigma_max = max(p.sigma_max for p in every)
        self.factors = [1.0 if p.exact else p.sigma_max / self.sigma_max for p in every]
        lows = [p.sigma_min / c for p, c in zip(every, self.factors, strict=True)]
        learned = [low for p, low in zip(every, lows, strict=True) if not p.exact]
        self.sigma_min = max(learned) if learned else min(lows)
        self.sizes = [p.space.size for p in every]
        self.normalisation = Normalisation(
            self._flat([p.normalisation.mean for p in every]),
            self._flat([c * p.normalisation.scale for p, c in zip(every, self.factors, strict=True)]),
        )
        self.reference = Blocks([p.reference for p in every], self.space.shape)

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Block by block."""
        level(sigma, z)
        return self._together(
            [
                part.denoise(c * block, c * sigma) / c
                for part, c, block in zip(self.parts.values(), self.factors, self.split(z), strict=True)
            ]
        )

    def covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` where every part knows its own."""
        return self._blocks(lambda part, s: part.covariance(s), sigma)

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` under the Gaussians fitted to the parts; None where one has none."""
        return self._blocks(lambda part, s: part.gaussian_covariance(s), sigma)

    def draw(self, streams: Streams) -> torch.Tensor | None:
        """Exact draws of all parts; None where one cannot."""
        out = [part.draw(streams) for part in self.parts.values()]
        drawn = [z / c for z, c in zip(out, self.factors, strict=True) if z is not None]
        return self._together(drawn) if len(drawn) == len(out) else None

    def split(self, z: torch.Tensor) -> list[torch.Tensor]:
        """Joint states ``(rows, *shape)`` as those of the parts, ``(rows, *part.space.shape)`` each."""
        blocks = z.flatten(1).split(self.sizes, 1)
        shapes = [part.space.shape for part in self.parts.values()]
        return [block.reshape(len(z), *shape) for block, shape in zip(blocks, shapes, strict=True)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        other = super().to(device, dtype)
        other.parts = {name: part.to(device, dtype) for name, part in self.parts.items()}
        return other

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name}={type(part).__name__}" for name, part in self.parts.items())
        return f"JointPrior({kinds} on {self.space}, sigma {self.sigma_min:.3g} to {self.sigma_max:.3g})"

    def _blocks(self, ask: Callable[[Prior, float], Covariance | None], sigma: float) -> Covariance | None:
        asked = [ask(part, c * sigma) for part, c in zip(self.parts.values(), self.factors, strict=True)]
        known = [block for block in asked if block is not None]
        gains = [1 / c for c in self.factors]
        return Blocks(known, self.space.shape, gains) if len(known) == len(asked) else None

    def _together(self, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([b.flatten(1) for b in blocks], 1).reshape(len(blocks[0]), *self.space.shape)

    def _flat(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Means or scales that broadcast on the parts as one of the shape of a joint state."""
        shapes = [part.space.shape for part in self.parts.values()]
        wide = [torch.broadcast_to(v, shape).flatten() for v, shape in zip(values, shapes, strict=True)]
        return torch.cat(wide).reshape(self.space.shape)


@final
class _ClosedJointPrior(JointPrior):
    """A joint prior all parts of which know their log density."""

    def log_density(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """The sum of the parts' log densities, in joint coordinates; one number per row."""
        total = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        for part, c, block in zip(self.parts.values(), self.factors, self.split(z), strict=True):
            known: Any = part
            total = total + known.log_density(c * block, c * sigma) + part.reference.rank * math.log(c)
        return total


@final
class Blocks(Covariance):
    """A block-diagonal covariance, ``g_i^2 Sigma_i`` on part i of a flattened state.

    Args:
        blocks: the covariances, in the order of the parts.
        shape: shape of a joint state, of as many values as all blocks have.
        gains: ``g_i``; default 1.

    Example:
        >>> from sciddiff.covariance import diagonal, white
        >>> both = Blocks([white((2,)), diagonal([4.0])], (3,))
        >>> both.apply(torch.ones(1, 3)).tolist(), both.rank
        ([[1.0, 1.0, 4.0]], 3)
    """

    def __init__(
        self, blocks: Sequence[Covariance], shape: Sequence[int], gains: Sequence[float] | None = None
    ) -> None:
        self.blocks, self.shape = list(blocks), tuple(shape)
        self.gains = [1.0] * len(self.blocks) if gains is None else list(gains)
        self.sizes = [math.prod(b.shape) for b in self.blocks]
        self.white_sizes = [math.prod(b.white_shape) for b in self.blocks]
        self.white_shape, self.rank = (sum(self.white_sizes),), sum(b.rank for b in self.blocks)
        pairs = list(zip(self.blocks, self.gains, strict=True))
        self.logdet = sum(b.logdet + 2 * b.rank * math.log(g) for b, g in pairs)

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        """``g_i F_i z_i``."""
        out = [
            g * b.sqrt(part.reshape(*z.shape[:-1], *b.white_shape)).reshape(*z.shape[:-1], -1)
            for b, g, part in zip(self.blocks, self.gains, z.split(self.white_sizes, -1), strict=True)
        ]
        return torch.cat(out, -1).reshape(*z.shape[:-1], *self.shape)

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``g_i F_i^T x_i``."""
        return self._each(x, lambda b, g, part: g * b.sqrt_adjoint(part))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``g_i^2 Sigma_i x_i``."""
        return self._each(x, lambda b, g, part: g**2 * b.apply(part)).reshape(x.shape)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """``Sigma_i^+ x_i / g_i^2``."""
        return self._each(x, lambda b, g, part: b.solve(part) / g**2).reshape(x.shape)

    def variance(self) -> torch.Tensor:
        """The diagonals of the blocks."""
        parts = [g**2 * b.variance().flatten() for b, g in zip(self.blocks, self.gains, strict=True)]
        return torch.cat(parts).reshape(self.shape)

    def _each(
        self, x: torch.Tensor, act: Callable[[Covariance, float, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What ``act`` makes of every part, flattened one behind the other."""
        lead = x.shape[: x.ndim - len(self.shape)]
        parts = x.reshape(*lead, -1).split(self.sizes, -1)
        out = [
            act(b, g, part.reshape(*lead, *b.shape)).reshape(*lead, -1)
            for b, g, part in zip(self.blocks, self.gains, parts, strict=True)
        ]
        return torch.cat(out, -1)


def _check(parts: dict[str, Prior]) -> None:
    if not parts or not all(isinstance(part, Prior) for part in parts.values()):
        raise InputError(
            "parts",
            expected="at least one prior, each under its name",
            got={name: type(part).__name__ for name, part in parts.items()} or "none",
            fix="write joint(state=prior_x, kernel=prior_k)",
        )
    for what in ("dtype", "device"):
        found = {name: str(getattr(part, what)) for name, part in parts.items()}
        if len(set(found.values())) > 1:
            raise InputError(
                "parts", expected=f"parts of one {what}", got=found, fix=f"convert them: prior.to({what}=...)"
            )


def _joined(spaces: dict[str, Space]) -> Space:
    """The space of all variables, in the order of the parts."""
    coords: dict[str, Any] = {}
    along: dict[str, Any] = {}
    variables: dict[str, Variable] = {}
    edges = None
    for part, space in spaces.items():
        given = {dim: space.coords.get(dim, n) for dim, n in space.sizes.items()}
        named = {
            dim: dim if dim not in coords or np.array_equal(coords[dim], labels) else f"{part}_{dim}"
            for dim, labels in given.items()
        }
        coords |= {named[dim]: labels for dim, labels in given.items()}
        for name, v in space.variables.items():
            called = part if len(space.variables) == 1 else f"{part}_{name}"
            dims = tuple(named[d] for d in v.dims)
            variables[called] = Variable(dims, v.units, v.complex, v.attrs)
        along |= {
            (name if name not in along else f"{part}_{name}"): (named[dim], values)
            for name, (dim, values) in space.along.items()
        }
        if edges is not None and space.edges is not None and not np.array_equal(edges, space.edges):
            raise InputError(
                "parts", expected="parts on one graph", got="two graphs", fix="join the graphs into one"
            )
        edges = space.edges if edges is None else edges
    return Space(coords, variables, edges=edges, along=along)
