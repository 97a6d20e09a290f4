"""Refining another model's forecast by a prior over windows: low energy, near to the forecast.

    E(z) = |n - n_theta(z + sigma n, sigma)|^2 + weight R(z, f),   |n - n_theta|^2 = |D(z + sigma n, sigma) - z|^2 / sigma^2

for one noise level ``sigma`` and fresh noise n at every iteration, with R the squared distance to the base forecast ``f`` or
the pinball loss of a quantile level. It comes from TSDiff (Kollovieh et al. 2023, arXiv 2307.11494, section 3.2), whose
energy is a bound of ``-log p`` at one level and no density. Where the base forecast has an error of known size,
``prior.given(forecast, operator, noise)`` is Bayes' rule for it, and refining is not needed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from sciddiff.assimilation.paths import seasonal_mean
from sciddiff.assimilation.series import at_times
from sciddiff.errors import DivergenceError, InputError
from sciddiff.posterior import check_count
from sciddiff.random import Streams, check_seed

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors.base import Prior

__all__ = ["Descent", "Langevin", "Refinement", "refine"]

Gradient = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Refinement(ABC):
    """How the energy is gone down: a frozen dataclass of its settings.

    Args:
        regulariser: R: "mse", the sum of squares over all times, as the paper has it (the authors' code counts squares over
            the history alone, and nothing but the prior then pulls on the forecast), or "quantile", the pinball loss of the levels ``k/(n + 1)`` of n draws,
            which are sorted at every time before, as published: paths are then no longer the base model's.
        weight: of R.
        sigma: noise level of the energy, in normalised units; the paper's step 20 of 100 is 0.49.
        rate: step length.
        iterations: how many.

    Raises:
        InputError: on settings out of range.
    """

    regulariser: str = "mse"
    weight: float = 1.0
    sigma: float = 0.49
    rate: float = 0.1
    iterations: int = 20

    def __post_init__(self) -> None:
        if self.regulariser not in ("mse", "quantile"):
            raise InputError(
                "regulariser",
                expected="'mse' or 'quantile'",
                got=repr(self.regulariser),
                fix="choose one",
            )
        for name in ("sigma", "rate"):
            _number(name, getattr(self, name), positive=True)
        _number("weight", self.weight, positive=False)
        check_count("iterations", self.iterations)

    @abstractmethod
    def move(self, z: torch.Tensor, gradient: torch.Tensor, streams: Streams) -> torch.Tensor:
        """One iteration."""


@final
@dataclass(frozen=True)
class Langevin(Refinement):
    """``z <- z - rate dE/dz + sqrt(2 rate) noise n``, LMC of the paper, whose noise is 0.1.

    Without the error of its steps the law is ``exp(-E/noise^2)``: with 0.1 draws huddle near the minimum between their own
    base draw and the prior, and the ensemble's spread is that of the base, shrunk; with 1 it is ``exp(-E)``.

    Args:
        noise: square root of the temperature.

    Example:
        >>> Langevin(noise=1.0).iterations
        20
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("noise", self.noise, positive=False)

    def move(self, z: torch.Tensor, gradient: torch.Tensor, streams: Streams) -> torch.Tensor:
        """Down the gradient, and noise."""
        fresh = streams.normal(z.shape[1:], dtype=z.dtype, device=z.device)
        return z - self.rate * gradient + math.sqrt(2 * self.rate) * self.noise * fresh


@final
@dataclass(frozen=True)
class Descent(Refinement):
    """``z <- z - rate dE/dz``: the maximum likelihood refinement of the paper, without its reduction of the rate."""

    def move(self, z: torch.Tensor, gradient: torch.Tensor, streams: Streams) -> torch.Tensor:
        """Down the gradient."""
        return z - self.rate * gradient


def refine(
    prior: Prior,
    forecast: xr.DataArray,
    history: xr.DataArray,
    *,
    method: Refinement | None = None,
    seed: int,
) -> xr.DataArray:
    """Refine an ensemble of any forecaster by a prior over windows of the same series.

    The window is the last of the history and then the forecast; all of it moves, as published, and the forecast's part
    is returned. The energy is not a density. For a Gaussian prior of variance ``l`` in a direction its curvature is
    ``2 sigma^2/(l + sigma^2)^2`` where ``-log p`` has ``1/l``: 0.31, not 1, at ``l = 1`` and the default sigma, and 8, not
    100, at ``l = .01``, so that rough forecasts are smoothed less than Bayes' rule would; and the pull is to the prior's
    mean, not to what the history tells beyond the base forecast's own paths.

    Args:
        prior: over windows with the one dim "time" and one variable; its labels do not matter, but that a prior with a
            season takes the calendar months of the window.
        forecast: dims ("sample", "time"), physical units.
        history: dim ("time",), before the forecast, at least as long as the rest of the window, without NaN.
        method: `Langevin()` (default) or `Descent()`.
        seed: draw i moves by noise of (seed, i) alone, but for "quantile", whose draws are tied by their order.

    Returns:
        The refined ensemble, like ``forecast``.

    Raises:
        InputError: on another layout, NaN, a history that is too short, or one that does not end before the forecast.
        DivergenceError: if a draw becomes non-finite; take a smaller rate.

    Example:
        >>> import sciddiff as sd, xarray as xr
        >>> prior = sd.GaussianPrior(sd.Space({"time": 4}), sd.covariance.white((4,)))
        >>> past = xr.DataArray([0.1, 0.2], {"time": [0, 1]}, "time")
        >>> ahead = xr.DataArray(np.ones((3, 2)), {"time": [2, 3]}, ("sample", "time"))
        >>> bool((refine(prior, ahead, past, seed=0) < 1).all())      # pulled towards the prior's mean of 0
        True
    """
    import xarray as xr

    check_seed(seed)
    method = Langevin() if method is None else method
    if not isinstance(method, Refinement):
        raise InputError(
            "method",
            expected="a Refinement such as Langevin()",
            got=repr(method),
            fix="pass an instance",
        )
    ahead, past, times = _window(prior, forecast, history)
    here = _placed(prior, times)
    n, horizon = ahead.shape
    first = np.sort(ahead, 0) if method.regulariser == "quantile" else ahead
    x = np.concatenate([np.broadcast_to(past, (n, len(past))), first], 1)
    base = here.normalisation.normal(torch.as_tensor(x, dtype=here.dtype, device=here.device))
    base = base.reshape(n, *here.space.shape)
    streams = Streams(seed, range(n), purpose="refinement")
    with torch.inference_mode(False), torch.enable_grad():
        z = _refined(here, base, method, streams)
    out = here.normalisation.physical(z).reshape(n, -1)[:, -horizon:]
    return xr.DataArray(
        out.double().cpu().numpy(),
        coords={k: v for k, v in forecast.coords.items()},
        dims=("sample", "time"),
        name=forecast.name,
        attrs=dict(forecast.attrs),
    )


def _refined(prior: Prior, base: torch.Tensor, method: Refinement, streams: Streams) -> torch.Tensor:
    """Windows ``(n, *shape)``, normalised, after all iterations."""
    z, sigma, n = base.clone(), method.sigma, len(base)
    q = (torch.arange(1, n + 1, dtype=base.dtype, device=base.device) / (n + 1)).reshape(
        -1, *(1,) * (base.ndim - 1)
    )
    for i in range(method.iterations):
        noise = prior.noise(streams)
        z = z.detach().requires_grad_()
        off = prior.denoise(z + sigma * noise, sigma) - z
        # in the norm of the noise's own covariance, |n - n_theta|^2
        energy = (off * prior.reference.solve(off)).sum() / sigma**2
        e = base - z
        near = e.square() if method.regulariser == "mse" else torch.maximum(q * e, (q - 1) * e)
        (gradient,) = torch.autograd.grad(energy + method.weight * near.sum(), z)
        z = method.move(z.detach(), gradient, streams)
        if not bool(z.isfinite().all()):
            raise DivergenceError(
                f"refine: a draw is not finite after iteration {i + 1} at rate {method.rate:g}. Take a smaller rate."
            )
    return z


def _window(prior: Prior, forecast: Any, history: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The forecast ``(n, horizon)``, the history that fits before it, and the times of both."""
    for name, array, dims in (("forecast", forecast, ("sample", "time")), ("history", history, ("time",))):
        if getattr(array, "dims", None) != dims or "time" not in array.coords:
            raise InputError(
                name,
                expected=f"a DataArray with dims {dims} and labels of time",
                got=getattr(array, "dims", type(array).__name__),
                fix="one variable, transposed to these dims",
            )
        if not bool(np.isfinite(array.values).all()):
            raise InputError(
                name,
                expected="finite values",
                got="NaN or infinity",
                fix="impute the history first, with sciddiff.impute",
            )
    space = prior.space
    if tuple(space.sizes) != ("time",) or len(space.components) != 1:
        raise InputError(
            "prior", expected="a prior over windows of one variable", got=space, fix="refine it by itself"
        )
    length, horizon = space.sizes["time"], forecast.sizes["time"]
    need = length - horizon
    if need < 0 or history.sizes["time"] < need:
        raise InputError(
            "history",
            expected=f"at least {max(need, 0)} values before a horizon of at most {length}",
            got=f"{history.sizes['time']} values before a horizon of {horizon}",
            fix="give more of the past, or a shorter forecast",
        )
    past = history.isel(time=slice(history.sizes["time"] - need, None))
    times = np.concatenate([past["time"].values, forecast["time"].values])
    if not bool((times[1:] > times[:-1]).all()):
        raise InputError(
            "history",
            expected="times in order, all before the forecast",
            got=f"a history up to {times[need - 1] if need else 'nothing'}",
            fix="cut the history where the forecast begins",
        )
    return np.asarray(forecast.values, float), np.asarray(past.values, float), times


def _placed(prior: Prior, times: np.ndarray) -> Prior:
    """The prior with the labels of a window, and the mean of its months where it has a season."""
    return prior.relabel(at_times(prior.space, times), seasonal_mean(prior, times))


def _number(name: str, value: object, *, positive: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value < math.inf and (value > 0 or not positive)):  # type: ignore[operator]
        raise InputError(
            name,
            expected="a positive number" if positive else "a number of at least 0",
            got=repr(value),
            fix="leave it out",
        )
