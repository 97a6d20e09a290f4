"""The probability-flow ODE as a flow map between two noise levels, by torchdiffeq, for likelihoods and inversion.

In ``w = z/sqrt(1 + sigma^2)`` and ``u = log sigma``, ``dw/du = P (E - D)/sqrt(1 + sigma^2)`` with ``E = z/(1 + sigma^2)``,
the denoiser of a unit Gaussian, and ``P`` the projector onto the range of the reference noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import ConvergenceError, DivergenceError, InputError
from sciddiff.priors.base import Prior
from sciddiff.solvers.adaptive import check_tolerances
from sciddiff.spaces import Space

__all__ = ["PriorFlow", "project", "read_states", "transport", "within"]

# how far outside the range a state may be, in normalised units: rounding of single-precision data
_OUTSIDE = 1e-4
_MOST_STEPS = 5000


@final
class PriorFlow:
    """A prior's denoiser along the flow: in float64 outside of it, in the prior's own dtype inside.

    Attributes:
        prior: the prior.
        rtol, atol: tolerances of a step.
        size: values of a state.
        rank: dimension of the range of the reference noise.
        forwards: evaluations of the denoiser so far, in rows.

    Raises:
        InputError: on tolerances that are not positive or below the precision of the prior.
    """

    def __init__(self, prior: Prior, rtol: float, atol: float) -> None:
        check_tolerances(rtol, atol)
        least = 4 * torch.finfo(prior.dtype).eps
        if min(rtol, atol) < least:
            raise InputError(
                "rtol",
                expected=f"tolerances of at least {least:.2g}, for a prior in {prior.dtype}",
                got=f"rtol = {rtol:g}, atol = {atol:g}",
                fix="use prior.to(dtype=torch.float64), or the default tolerances",
            )
        self.rtol, self.atol = rtol, atol
        self.prior, self.shape = prior, prior.space.shape
        self.size, self.rank = math.prod(self.shape), prior.reference.rank
        self.forwards = 0

    def denoise(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """``D(z, sigma)``, ``(rows, *shape)``, checked to be finite."""
        self.forwards += len(z)
        d = self.prior.denoise(z.to(self.prior.dtype), sigma).to(z.dtype)
        if not bool(torch.isfinite(d).all()):
            raise DivergenceError(
                f"The denoiser is not finite at sigma = {sigma:.4g} on the probability flow. "
                "Check that the states are like those of the prior."
            )
        return d

    def project(self, z: torch.Tensor) -> torch.Tensor:
        """``P z``."""
        return project(self.prior.reference, z)

    def slope(self, w: torch.Tensor, d: torch.Tensor, sigma: float) -> torch.Tensor:
        """``dw/du``, from ``w`` in the range and ``D``."""
        c = math.hypot(1.0, sigma)
        return w / c**2 - self.project(d) / c

    def carry(self, w: torch.Tensor, start: float, end: float) -> torch.Tensor:
        """Carry ``w``, ``(rows, *shape)``, from one level to another."""

        def slope(sigma: float, y: torch.Tensor) -> torch.Tensor:
            w = y.reshape(-1, *self.shape)
            return self.slope(w, self.denoise(w * math.hypot(1.0, sigma), sigma), sigma).flatten(1)

        y = transport(slope, w.flatten(1), start, end, rtol=self.rtol, atol=self.atol, states=self.size)
        return y.reshape(-1, *self.shape)


def transport(
    slope: Callable[[float, torch.Tensor], torch.Tensor],
    y: torch.Tensor,
    start: float,
    end: float,
    *,
    rtol: float,
    atol: float,
    states: int,
) -> torch.Tensor:
    """Integrate ``dy/dlog sigma`` by Dormand-Prince 5(4), from level ``start`` to ``end``.

    The rows share their steps, and every row meets the tolerance by itself: the norm is the largest, over rows, of
    the root mean square of the state's columns and of each further column. So a row depends on those
    beside it within the tolerance only.

    Args:
        slope: ``(sigma, y) -> dy/dlog sigma``.
        y: ``(rows, columns)``, float64.
        start: first level.
        end: last level, above or below.
        rtol: relative tolerance of a step, on the state.
        atol: absolute tolerance of a step, on all columns.
        states: how many columns are the state; the others are log densities.

    Raises:
        ConvergenceError: if the steps become too small.
    """
    from torchdiffeq import odeint

    def norm(ratio: torch.Tensor) -> torch.Tensor:
        square = ratio.square()
        return torch.cat([square[:, :states].mean(1), square[:, states:].flatten()]).amax().sqrt()

    relative = torch.full((y.shape[1],), rtol, dtype=torch.float64, device=y.device)
    relative[states:] = 0.0
    ends = torch.tensor([math.log(start), math.log(end)], dtype=torch.float64, device=y.device)
    # step_t makes the last step end at the end, where torchdiffeq would go beyond and interpolate; where the slope
    # vanishes its guess of the first step is far too long, and no step may leap over a factor e of sigma
    options = {
        "norm": norm,
        "step_t": ends[1:],
        "first_step": 0.1,
        "max_step": 1.0,
        "max_num_steps": _MOST_STEPS,
    }
    try:
        path = odeint(
            lambda u, state: slope(math.exp(float(u)), state),
            y,
            ends,
            rtol=relative,
            atol=atol,
            method="dopri5",
            options=options,
        )
    except AssertionError as error:
        raise ConvergenceError(
            f"The probability flow from sigma = {start:.4g} to {end:.4g} misses rtol = {rtol:g}, atol = {atol:g} "
            f"({error}). Loosen the tolerances, or use a smoother denoiser."
        ) from error
    return torch.as_tensor(path[-1])


def within(covariance: Covariance, z: torch.Tensor) -> torch.Tensor:
    """Which rows lie in the range of a covariance, to 1e-4 in normalised units."""
    return (z - project(covariance, z)).flatten(1).abs().amax(1) <= _OUTSIDE


def project(covariance: Covariance, z: torch.Tensor) -> torch.Tensor:
    """The orthogonal projection onto the range of a covariance."""
    return z if covariance.rank == math.prod(covariance.shape) else covariance.apply(covariance.solve(z))


def read_states(
    prior: Prior, x: Any, batch_dim: str | None
) -> tuple[torch.Tensor, dict[str, Any], str | None]:
    """States in physical units as a float64 batch, the coords of the batch dim, and its name.

    Without a name, a labelled object with a dim "sample" and an array of one axis more than a state are
    batches along "sample"; anything else is one state.
    """
    space = prior.space
    if batch_dim is None and _many(x, space):
        batch_dim = "sample"
    values = space.tensor(x, argument="x", batch_dim=batch_dim, device=prior.device)
    if batch_dim is None:
        return values[None], {}, None
    if len(values) == 0:
        raise InputError("x", expected="at least one state", got=0, fix="pass more data")
    coords = getattr(x, "coords", {})
    return values, {batch_dim: coords[batch_dim]} if batch_dim in coords else {}, batch_dim


def _many(x: Any, space: Space) -> bool:
    """Whether ``x`` looks like a batch of states."""
    if hasattr(x, "dims"):
        return bool("sample" in x.dims)
    if type(x).__module__.startswith("pandas"):
        return False
    is_complex = x.is_complex() if isinstance(x, torch.Tensor) else np.iscomplexobj(x)
    # the two parts of one complex variable are an axis of a state, and none of a complex array
    return np.ndim(x) == len(space.shape) + (0 if is_complex and len(space.variables) == 1 else 1)
