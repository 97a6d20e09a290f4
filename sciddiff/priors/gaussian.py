"""The Gaussian prior ``N(m, Sigma)``, with its exact denoiser ``D = Sigma (Sigma + sigma^2 C)^+ z``."""

from __future__ import annotations

import math
from typing import Any, Literal, final

import torch

from sciddiff.covariance import (
    Covariance,
    Eigen,
    dense,
    diagonal,
    frequencies,
    joint,
    scaled,
    spectral,
    white,
)
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior, check_dtype, level, sigma_range
from sciddiff.random import Streams
from sciddiff.spaces import Space, check_space

__all__ = ["GaussianPrior"]

_BOUNDARIES = ("periodic", "neumann", "dirichlet")


@final
class GaussianPrior(Prior):
    """``N(mean, covariance)`` in physical units; every quantity of it is exact.

    Normalised by its mean and, per variable, the rms of its standard deviations.

    Args:
        space: the states.
        covariance: on ``space.shape``, in physical units.
        mean: anything `Space.tensor` reads, or None for zero.
        reference: covariance ``C`` of the noise in normalised units; default white.
        dtype: of the states.
        device: of the states.
        sigma_min: lowest noise level of samplers, in normalised units.
        sigma_max: highest noise level; default 20 times the prior's largest standard deviation.

    Raises:
        InputError: if the shapes differ, the prior has mass outside the range of C, or sigma_max is
            below 5 times the largest standard deviation.

    Example:
        >>> space = Space({"x": 3}, {"t": "K"})
        >>> prior = GaussianPrior(space, diagonal([1.0, 4.0, 9.0]), mean=[280.0, 281.0, 282.0])
        >>> prior.sample(2, seed=0)["t"].dims
        ('sample', 'x')
    """

    exact = True

    def __init__(
        self,
        space: Space,
        covariance: Covariance,
        mean: Any = None,
        *,
        reference: Covariance | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        check_space(space), check_dtype(dtype)
        for name, given in (("covariance", covariance), ("reference", reference)):
            if name == "reference" and given is None:
                continue
            if not isinstance(given, Covariance) or tuple(given.shape) != space.shape:
                raise InputError(
                    name,
                    expected=f"a Covariance on shape {space.shape} of {space!r}",
                    got=f"one on {tuple(given.shape)}"
                    if isinstance(given, Covariance)
                    else type(given).__name__,
                    fix="build it with the shape of the space, such as covariance.dense(matrix, space.shape)",
                )
        self.space, self.dtype, self.device = space, dtype, torch.device(device)
        centre = (
            torch.zeros(space.shape, dtype=torch.float64)
            if mean is None
            else space.tensor(mean, argument="mean")
        )
        self.normalisation = Normalisation(centre.to(self.device), _scale(covariance, space).to(self.device))
        self.physical_covariance = covariance
        self.reference = white(space.shape) if reference is None else reference
        self.law = scaled(covariance, self.normalisation.scale)
        self.joint = joint(self.law, self.reference)
        spread = math.sqrt(math.prod(space.shape) / max(self.reference.rank, 1))
        self.sigma_min, self.sigma_max = sigma_range(self.joint.largest, spread, sigma_min, sigma_max)

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``Sigma (Sigma + sigma^2 C)^+ z``, exactly."""
        variance = level(sigma, z) ** 2
        return self.joint.shrink(z, variance.reshape(-1) if variance.ndim else variance)

    def covariance(self, sigma: float) -> Covariance:
        """``sigma^2 Sigma (Sigma + sigma^2 C)^+ C``, the same for every ``z``."""
        return self.joint.covariance(sigma)

    def draw(self, streams: Streams) -> torch.Tensor:
        """``Sigma^1/2 z``."""
        return self.law.sqrt(streams.normal(self.law.white_shape, dtype=self.dtype, device=self.device))

    def log_density(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """Exact log density of noisy normalised states, on the prior's range; one number per row."""
        return self.joint.log_density(z, sigma)

    @classmethod
    def fit(
        cls,
        data: Any,
        space: Space,
        *,
        batch_dim: str = "sample",
        kind: str = "dense",
        shrinkage: float | Literal["optimal"] = 0.0,
        **settings: Any,
    ) -> GaussianPrior:
        """Fit mean and covariance to many states.

        Args:
            data: states along ``batch_dim``: xarray, numpy or torch ``(n, *shape)``.
            space: the states.
            batch_dim: name of the dim of ``data`` that counts states.
            kind: "dense" (sample covariance), "diagonal", or the boundary of a regular grid, "periodic", "neumann" or
                "dirichlet": variables independent of each other and diagonal in the grid's modes (see
                `covariance.spectral`), which takes few states; "periodic" means are the same everywhere.
            shrinkage: weight in [0, 1] of the diagonal in the dense covariance; "optimal" estimates the
                weight of least squared error of the correlations (Schäfer and Strimmer 2005,
                "A shrinkage approach to large-scale covariance matrix estimation", section 2.4).
            settings: passed to the constructor.

        Raises:
            InputError: on fewer than two states, an unknown kind, modes of states that are not on a grid, or
                a shrinkage outside [0, 1].
        """
        states = space.tensor(data, batch_dim=batch_dim)
        if len(states) < 2:
            raise InputError("data", expected="at least 2 states", got=len(states), fix="pass more data")
        if kind not in ("dense", "diagonal", *_BOUNDARIES) or (kind in _BOUNDARIES and not space.homogeneous):
            raise InputError(
                "kind",
                expected=f"'dense', 'diagonal' or, for variables on one grid, one of {_BOUNDARIES}",
                got=repr(kind),
                fix="choose one",
            )
        if shrinkage != "optimal" and not (isinstance(shrinkage, (int, float)) and 0.0 <= shrinkage <= 1.0):
            raise InputError(
                "shrinkage",
                expected="a weight from 0 to 1, or 'optimal'",
                got=shrinkage,
                fix="0 keeps the sample covariance",
            )
        mean = states.mean(0)
        if kind in _BOUNDARIES:
            mean = _everywhere(mean, space) if kind == "periodic" else mean
            covariance = _in_modes(states - mean, space, kind)
        elif kind == "diagonal":
            covariance = diagonal((states - mean).square().sum(0) / (len(states) - 1))
        else:
            covariance = _dense(states - mean, shrinkage, settings.get("reference"))
        return cls(space, covariance, mean, **settings)


def _everywhere(mean: torch.Tensor, space: Space) -> torch.Tensor:
    """The mean of each variable over the grid."""
    return mean.mean(tuple(range(-len(space.grid), 0)), keepdim=True).expand(space.shape)


def _in_modes(centred: torch.Tensor, space: Space, boundary: str) -> Covariance:
    """Variances of the modes of the grid, the same for the cosine and the sine of a frequency."""
    axes = len(space.grid)
    basis = spectral(space.shape, 1.0, boundary, axes=axes).basis
    variances = basis.analysis(centred).square().sum(0) / (len(centred) - 1)
    if boundary == "periodic":
        for axis, n in enumerate(space.grid, -axes):
            k = torch.from_numpy(frequencies(n, boundary))
            same = (k[:, None] == k).double()
            pooled = variances.movedim(axis, -1) @ (same / same.sum(1))
            variances = pooled.movedim(-1, axis).contiguous()
    return Eigen(basis, variances)


def _dense(
    centred: torch.Tensor, shrinkage: float | Literal["optimal"], reference: Covariance | None
) -> Covariance:
    """Sample covariance, with a weight on its diagonal."""
    shape, flat = tuple(centred.shape[1:]), centred.flatten(1)
    matrix = flat.T @ flat / (len(flat) - 1)
    weight = _shrinkage(flat) if shrinkage == "optimal" else shrinkage
    matrix = (1 - weight) * matrix + weight * torch.diag(torch.diagonal(matrix))
    if weight > 0 and reference is not None and reference.rank < len(matrix):
        # the diagonal has mass outside the range of the noise, which the data have not
        for _ in range(2):
            matrix = reference.apply(reference.solve(matrix.reshape(-1, *shape))).flatten(1).T
    return dense(matrix, shape)


def _shrinkage(centred: torch.Tensor) -> float:
    """``sum Var(r_ij) / sum r_ij^2`` over the off-diagonal correlations, at most 1."""
    n, sd = len(centred), centred.std(0)
    x = centred / torch.where(sd > 0, sd, 1.0)
    product = x.T @ x / n
    variance = ((x**2).T @ x**2 / n - product**2) * (n / (n - 1)) ** 2 / (n - 1)
    off = ~torch.eye(len(product), dtype=torch.bool, device=x.device)
    total = float(((product * n / (n - 1)) ** 2)[off].sum())
    return min(1.0, float(variance[off].sum()) / total) if total > 0 else 1.0


def _scale(covariance: Covariance, space: Space) -> torch.Tensor:
    """Per variable, the rms of the standard deviations of its values."""
    variance = covariance.variance()
    if not bool(variance.sum() > 0):
        raise InputError(
            "covariance",
            expected="a prior that varies",
            got="zero variance everywhere",
            fix="check the covariance",
        )
    if not space.homogeneous:
        sizes = [space._size(name) for name, _ in space.components]
        parts = [part.mean().expand(n) for part, n in zip(variance.split(sizes), sizes, strict=True)]
        scale = torch.cat(parts).sqrt()
    elif len(space.components) > 1:
        scale = variance.flatten(1).mean(1).sqrt().reshape(-1, *(1,) * (variance.ndim - 1))
    else:
        scale = variance.mean().sqrt()
    return torch.where(scale > 0, scale, 1.0)
