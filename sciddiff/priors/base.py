"""A prior is a denoiser ``D(z, sigma) = E[z0 | z0 + sigma n = z]`` with ``n ~ N(0, C)``.

States ``z`` are in normalised units, ``x = m + S z`` in physical ones; ``C`` is the reference noise.
The score of the noisy law is ``C^+ (D - z) / sigma^2`` and ``Cov[z0 | z] = sigma^2 J C`` with ``J = dD/dz``.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import InputError
from sciddiff.html import card
from sciddiff.random import Streams
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.noise import Noise
    from sciddiff.operators.base import Operator
    from sciddiff.posterior import Posterior
    from sciddiff.priors.neural import NetworkPrior
    from sciddiff.priors.paths import Path
    from sciddiff.priors.spread import Spread
    from sciddiff.solvers.base import Solver

__all__ = ["Normalisation", "Prior", "level"]


@dataclass(frozen=True, eq=False)
class Normalisation:
    """``x = mean + scale * z``; both broadcast to the shape of a state, and ``scale`` is positive.

    Example:
        >>> Normalisation(torch.tensor(1.0), torch.tensor(2.0)).physical(torch.zeros(1, 3))
        tensor([[1., 1., 1.]])
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def physical(self, z: torch.Tensor) -> torch.Tensor:
        """``m + S z``."""
        return self.mean.to(z) + self.scale.to(z) * z

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """``(x - m) / S``."""
        return (x - self.mean.to(x)) / self.scale.to(x)

    def log_det(self, shape: tuple[int, ...]) -> float:
        """``log |S|`` on states of this shape."""
        return float(torch.broadcast_to(self.scale.double().log(), shape).sum())

    @classmethod
    def fit(cls, data: torch.Tensor, space: Space) -> Normalisation:
        """Mean and standard deviation of each variable over states ``(n, *shape)``.

        Raises:
            InputError: if a variable does not vary.
        """
        if not space.homogeneous:
            sizes = [space._size(name) for name, _ in space.components]
            moments = [(part.mean(), part.std()) for part in data.double().split(sizes, dim=1)]
            mean = torch.cat([m.expand(n) for (m, _), n in zip(moments, sizes, strict=True)])
            scale = torch.cat([s.expand(n) for (_, s), n in zip(moments, sizes, strict=True)])
        else:
            channels = len(space.components)
            dims = tuple(i for i in range(data.ndim) if not (channels > 1 and i == 1))
            mean, scale = data.double().mean(dims, keepdim=True)[0], data.double().std(dims, keepdim=True)[0]
        if not bool((scale > 0).all()):
            raise InputError(
                "data",
                expected="variables that vary",
                got="a variable of zero standard deviation",
                fix="drop the constant variable",
            )
        return cls(mean, scale)


def level(sigma: float | torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """``sigma`` as a tensor that broadcasts on the batch ``z``: 0-d, or ``(batch, 1, ...)``.

    Raises:
        InputError: unless it is a number or one number per row, finite and not negative.
    """
    value = torch.as_tensor(sigma, dtype=z.dtype, device=z.device)
    if value.ndim == 0:
        return value
    if value.shape != z.shape[:1]:
        raise InputError(
            "sigma",
            expected=f"a number or shape ({len(z)},)",
            got=tuple(value.shape),
            fix="give one noise level per row",
        )
    return value.reshape(-1, *(1,) * (z.ndim - 1))


class Prior(ABC):
    """A law of states, known through its denoiser.

    Attributes:
        space: the states, in physical units.
        normalisation: ``x = m + S z``.
        reference: covariance ``C`` of the noise, in normalised units.
        sigma_min, sigma_max: the noise levels between which samplers work.
        dtype, device: of the states.
        exact: whether `denoise` is the exact conditional mean.
        normalised: whether ``z`` varies by about one; False for networks that came without a normalisation.
        spread: measured size of the denoising covariance, see `training.calibrate`; None where it was not.
    """

    space: Space
    normalisation: Normalisation
    reference: Covariance
    sigma_min: float
    sigma_max: float
    dtype: torch.dtype
    device: torch.device
    exact: bool = False
    normalised: bool = True
    spread: Spread | None = None
    _season: torch.Tensor | None = None

    @property
    def season(self) -> torch.Tensor | None:
        """Mean of each calendar month, January first, in physical units; None for priors without.

        For priors over monthly windows of anomalies that may start in any month: ``(12, *space.shape)`` without the
        axis of the dim "time", so ``(12,)`` for one series and ``(12, variables)`` for several.

        Raises:
            InputError: when it is set to another shape, or to what is not finite.
        """
        return self._season

    @season.setter
    def season(self, value: Any) -> None:
        season = check_season(value, self.space)
        self._season = None if season is None else season.to(self.device)

    @abstractmethod
    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``E[z0 | z]`` for ``(batch, *shape)`` in normalised units; sigma is a number or ``(batch,)``."""

    def covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` at one noise level where it does not depend on ``z``; None where it does."""
        return None

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` under the Gaussian fitted to this prior; None without one."""
        return self.covariance(sigma)

    def draw(self, streams: Streams) -> torch.Tensor | None:
        """Exact normalised draws, one per stream; None where only a solver can draw."""
        return None

    def score(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``C^+ (D - z) / sigma^2``, the gradient of the noisy log density in normalised units."""
        return self.reference.solve(self.denoise(z, sigma) - z) / level(sigma, z) ** 2

    def relabel(self, space: Space, mean: torch.Tensor | None = None) -> Self:
        """The same law on a space of other labels and the same shape, and with another physical mean if given.

        Raises:
            InputError: if the shapes differ.
        """
        if space.shape != self.space.shape:
            raise InputError(
                "space",
                expected=f"states of shape {self.space.shape}",
                got=space.shape,
                fix="a prior keeps the shape that it was made with",
            )
        other = copy.copy(self)
        other.space = space
        if mean is not None:
            other.normalisation = Normalisation(mean.to(self.normalisation.mean), self.normalisation.scale)
        return other

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same law with states of another dtype or on another device; this one is left as it is.

        Raises:
            InputError: on a dtype that is not real.
        """
        dtype = check_dtype(self.dtype if dtype is None else dtype)
        other = copy.copy(self)
        other.device, other.dtype = self.device if device is None else torch.device(device), dtype
        units = self.normalisation
        other.normalisation = Normalisation(units.mean.to(other.device), units.scale.to(other.device))
        other.season = self.season
        return other

    def save(self, path: str | PathLike[str], *, half: bool = False) -> None:
        """Write ``path.safetensors`` and ``path.json``, which `load_prior` reads back; no code is stored.

        Args:
            path: where, without a suffix.
            half: store network weights in half precision and fitted covariances in single precision.

        Raises:
            InputError: if the prior is of a kind that cannot be stored.
        """
        from sciddiff.priors.storage import save_prior

        save_prior(self, path, half=half)

    @staticmethod
    def from_network(
        net: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        space: Space,
        *,
        predicts: str,
        path: str | Path,
        sigma_max: float,
        sigma_min: float | None = None,
        normalisation: Normalisation | None = None,
        reference: Covariance | None = None,
        time: Callable[[torch.Tensor], torch.Tensor] | None = None,
        channel_axis: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> NetworkPrior:
        """A prior from a network that was trained elsewhere; see `NetworkPrior` for the arguments."""
        from sciddiff.priors.neural import NetworkPrior

        return NetworkPrior(
            net,
            space,
            predicts=predicts,
            path=path,
            sigma_max=sigma_max,
            sigma_min=sigma_min,
            normalisation=normalisation,
            reference=reference,
            time=time,
            channel_axis=channel_axis,
            dtype=dtype,
            device=device,
        )

    def noise(self, streams: Streams) -> torch.Tensor:
        """Reference noise ``C^1/2 z``, one row per stream."""
        return self.reference.sqrt(
            streams.normal(self.reference.white_shape, dtype=self.dtype, device=self.device)
        )

    def sample(
        self,
        n: int,
        *,
        seed: int,
        solver: Solver | None = None,
        steps: int | None = None,
        chunk: int | None = None,
    ) -> xr.Dataset:
        """Draw ``n`` states of the prior: exactly where it can, by a solver otherwise or if one is named.

        Args:
            n: number of draws.
            seed: draw i depends on (seed, i) alone.
            solver: integrates the denoiser; None: exact draws, or the default solver.
            steps: number of steps of the solver.
            chunk: draws at a time.

        Returns:
            `xarray.Dataset` with dims ``("sample", *space.dims)``, physical units.
        """
        from sciddiff.posterior import sample_prior

        return sample_prior(self, n, seed=seed, solver=solver, steps=steps, chunk=chunk)

    def log_prob(
        self,
        x: Any,
        *,
        sigma: float | None = None,
        batch_dim: str | None = None,
        rtol: float = 1e-6,
        atol: float = 1e-6,
        probes: int | None = None,
        seed: int = 0,
    ) -> xr.Dataset:
        """Log density of states in physical units, in nats, with its standard error.

        In closed form where the prior knows it, else along the probability flow; see
        `sciddiff.solvers.likelihood.log_prob` for the arguments, the errors and what the density is of.

        Returns:
            `xarray.Dataset` with ``log_prob`` and ``standard_error``, dims ``(batch_dim,)`` or none.
        """
        from sciddiff.solvers.likelihood import log_prob

        return log_prob(
            self, x, sigma=sigma, batch_dim=batch_dim, rtol=rtol, atol=atol, probes=probes, seed=seed
        )

    def given(
        self,
        y: Any,
        operator: Operator,
        noise: Noise,
        *,
        missing: str = "refuse",
        batch_dim: str | None = None,
    ) -> Posterior:
        """Condition on an observation: Bayes' rule, as an object.

        Args:
            y: the observation, on ``operator.codomain``: xarray, pandas, numpy or torch.
            operator: how a state makes the noise-free observation, from this prior's space.
            noise: the law of ``y`` given that.
            missing: "refuse" NaN in ``y``, or "mask" it: NaN was not observed.
            batch_dim: the name of the leading dim of many observations at once.

        Raises:
            InputError: if the spaces, shapes, units or values do not fit.
        """
        from sciddiff.posterior import Posterior

        return Posterior(self, ()).given(y, operator, noise, missing=missing, batch_dim=batch_dim)

    def satisfying(self, residual: Operator | Callable[[torch.Tensor], torch.Tensor], sd: Any) -> Posterior:
        """Condition on an equation, ``residual(x) = 0`` up to Gaussian errors; see `Posterior.satisfying`."""
        from sciddiff.posterior import Posterior

        return Posterior(self, ()).satisfying(residual, sd)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.space}, sigma {self.sigma_min:.3g} to {self.sigma_max:.3g}, {str(self.dtype).removeprefix('torch.')})"

    def _repr_html_(self) -> str:
        units = self.normalisation
        parts = {
            "space": self.space,
            "denoiser": "exact" if self.exact else "learned",
            "noise levels": f"{self.sigma_min:.3g} to {self.sigma_max:.3g}, in units of the scale",
            "scale": " to ".join(dict.fromkeys(f"{v:.3g}" for v in (units.scale.min(), units.scale.max()))),
            "reference noise": self.reference,
            "states": f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
        }
        return card(type(self).__name__, parts)


def check_dtype(dtype: object) -> torch.dtype:
    """Return ``dtype``, or raise `InputError` unless it is a real one of torch's."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(
            "dtype", expected="a real dtype of torch", got=dtype, fix="pass for example torch.float64"
        )
    return dtype


def check_season(season: Any, space: Space) -> torch.Tensor | None:
    """Return a mean of each calendar month as a tensor, see `Prior.season`, or raise `InputError`."""
    if season is None:
        return None
    axes = range(len(space.shape) - len(space.dims), len(space.shape)) if space.homogeneous else ()
    time = dict(zip(space.dims, axes, strict=False)).get("time")
    shape = (12, *(n for i, n in enumerate(space.shape) if i != time))
    try:
        value = season if isinstance(season, torch.Tensor) else torch.tensor(np.asarray(season, np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(
            "season", expected="numbers", got=type(season).__name__, fix="pass an array of twelve means"
        ) from error
    if tuple(value.shape) != shape or not value.is_floating_point() or not bool(value.isfinite().all()):
        wrong = tuple(value.shape) != shape or not value.is_floating_point()
        raise InputError(
            "season",
            expected=f"a finite mean of each calendar month, shape {shape} for {space!r}",
            got=f"{value.dtype} of shape {tuple(value.shape)}" if wrong else "NaN or infinite means",
            fix="give the means of January to December, in physical units",
        )
    return value


def sigma_range(
    largest: float, smallest: float, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    """Check or choose the noise levels of a prior whose generalised eigenvalues are known.

    At ``sigma_max`` the start of a sampler counts the prior's own spread twice, an error of
    ``largest / (2 sigma_max^2)`` in the standard deviation: at least 5 times its root is
    required (2 %) and 20 times is the default (0.13 %).
    """
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float, np.number))):
            raise InputError(
                name, expected="a number or None", got=repr(value), fix="leave it out to take the default"
            )
    top = math.sqrt(largest)
    if sigma_max is not None and not sigma_max >= 5 * top:
        raise InputError(
            "sigma_max",
            expected=f"at least 5 sqrt(lambda_max) = {5 * top:.4g} of this prior",
            got=sigma_max,
            fix="leave it out to take the default",
        )
    high = 20 * top if sigma_max is None else float(sigma_max)
    low = 2e-3 * math.sqrt(smallest) if sigma_min is None else float(sigma_min)
    if not 0 < low < high or not math.isfinite(high):
        raise InputError(
            "sigma_min",
            expected=f"a number between 0 and sigma_max = {high:.4g}",
            got=low,
            fix="leave it out to take the default",
        )
    return low, high
