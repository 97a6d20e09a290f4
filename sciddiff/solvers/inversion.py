"""Inversion: the probability flow from data to the noise it comes from, and back.

The flow map is one to one, and carries the prior at sigma_min to Gaussian noise at sigma_max.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from sciddiff.errors import InputError
from sciddiff.priors.base import Prior
from sciddiff.solvers.flow import PriorFlow, project, read_states, within

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["generate", "invert"]


def invert(
    prior: Prior, x: Any, *, batch_dim: str | None = None, rtol: float = 1e-6, atol: float = 1e-6
) -> xr.Dataset:
    """The noise ``n`` that the probability flow carries to each state: ``N(0, C)`` if the states are draws of the prior.

    The state is taken as lying at sigma_min; ``n = z/sqrt(1 + sigma^2)`` at sigma_max, where ``z`` is the end of the flow.
    Its covariance is ``C`` but for the prior's spread over sigma_max squared. `generate` takes it back.

    Args:
        prior: the prior.
        x: states in physical units: labelled, or an array ``(*shape)`` or ``(rows, *shape)``.
        batch_dim: name of the dim of many states; None: "sample" if there is one.
        rtol: relative tolerance of a step of the flow.
        atol: absolute tolerance of a step, in normalised units.

    Returns:
        `xarray.Dataset` of the space's variables, without units, dims ``(batch_dim, *space.dims)``.

    Raises:
        InputError: on states that do not fit the space or lie outside the range of the reference noise.
        ConvergenceError: if the flow misses its tolerance.
        DivergenceError: if the denoiser is not finite.

    Example:
        >>> import sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"point": 2}), sd.covariance.white((2,)), mean=[1.0, 1.0])
        >>> noise = invert(prior, [1.0, 3.0])
        >>> generate(prior, noise)["x"].values.round(4).tolist()
        [1.0, 3.0]
    """
    values, coords, batch_dim = read_states(prior, x, batch_dim)
    z = _inside(prior, prior.normalisation.normal(values), "x")
    out = _carried(prior, z / math.hypot(1.0, prior.sigma_min), prior.sigma_min, prior.sigma_max, rtol, atol)
    dataset = _label(prior, out, coords, batch_dim)
    for variable in dataset.data_vars.values():
        variable.attrs.pop("units", None)
    return dataset


def generate(
    prior: Prior, noise: Any, *, batch_dim: str | None = None, rtol: float = 1e-6, atol: float = 1e-6
) -> xr.Dataset:
    """The states that the probability flow carries noise to, in physical units; the inverse of `invert`.

    Args:
        prior: the prior.
        noise: as `invert` returns it, or draws of ``N(0, C)``, on the prior's space.
        batch_dim: name of the dim of many states; None: "sample" if there is one.
        rtol: relative tolerance of a step of the flow.
        atol: absolute tolerance of a step, in normalised units.

    Raises:
        InputError: on noise that does not fit the space or lies outside the range of the reference noise.
        ConvergenceError: if the flow misses its tolerance.
        DivergenceError: if the denoiser is not finite.

    Example:
        >>> import sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"point": 2}), sd.covariance.white((2,)), mean=[1.0, 1.0])
        >>> generate(prior, [[0.0, 0.0], [1.0, -1.0]])["x"].dims
        ('sample', 'point')
    """
    values, coords, batch_dim = read_states(prior, noise, batch_dim)
    w = _carried(prior, _inside(prior, values, "noise"), prior.sigma_max, prior.sigma_min, rtol, atol)
    x = prior.normalisation.physical(w * math.hypot(1.0, prior.sigma_min))
    return _label(prior, x, coords, batch_dim)


def _carried(
    prior: Prior, w: torch.Tensor, start: float, end: float, rtol: float, atol: float
) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return PriorFlow(prior, rtol, atol).carry(w, start, end)


def _inside(prior: Prior, z: torch.Tensor, argument: str) -> torch.Tensor:
    inside = within(prior.reference, z)
    if not bool(inside.all()):
        raise InputError(
            argument,
            expected="states in the range of the prior's reference noise",
            got=f"{int((~inside).sum())} of {len(z)} outside it",
            fix="project them first, for example remove the centre of mass",
        )
    return project(prior.reference, z)


def _label(prior: Prior, values: torch.Tensor, coords: dict[str, Any], batch_dim: str | None) -> xr.Dataset:
    if batch_dim is None:
        return prior.space.dataset(values[0])
    return prior.space.dataset(values, [batch_dim], coords)
