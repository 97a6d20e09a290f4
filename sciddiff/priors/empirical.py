"""The empirical prior: a finite set of states, each as likely as the others, with its exact denoiser.

``D = sum_i p(i | z) x_i`` with ``p(i | z) ~ exp(-|z - x_i|^2 / 2 sigma^2)`` in the norm of ``C^+``.
"""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch

from sciddiff.covariance import Covariance, Joint, white
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior, check_dtype, level, sigma_range
from sciddiff.priors.mixture import check_range, fitted, largest
from sciddiff.random import Streams
from sciddiff.spaces import Space, check_space

__all__ = ["EmpiricalPrior"]


@final
class EmpiricalPrior(Prior):
    """The law of a state picked from ``data`` at random, and smoothed if asked.

    Its posterior is a set of weights on the data: what a generative model that only remembers would give.
    With ``bandwidth`` h each state is the centre of ``N(x_i, h^2 C)`` (a kernel density), which fills the
    gaps between them; the law is then wider than the data by ``h^2 C``.

    Args:
        space: the states.
        data: states along ``batch_dim``: xarray, numpy or torch ``(n, *space.shape)``.
        batch_dim: name of the dim of ``data`` that counts states.
        bandwidth: h in normalised units, 0 for none.
        reference: covariance ``C`` of the noise in normalised units; default white.
        dtype: of the states; the weights are computed in float64 whatever it is.
        device: of the states.
        sigma_min: lowest noise level of samplers, in normalised units.
        sigma_max: highest noise level; the default follows the largest generalised eigenvalue of the
            covariance.

    Raises:
        InputError: on fewer than two states, states that do not vary or differ outside the range of C, a
            negative bandwidth, or a sigma_max below 5 times the largest standard deviation.

    Example:
        >>> prior = EmpiricalPrior(Space({"t": 2}), [[0.0, 1.0], [2.0, 3.0], [4.0, -1.0]])
        >>> sorted(set(prior.sample(50, seed=0)["x"].values[:, 0].round(6).tolist()))
        [0.0, 2.0, 4.0]
    """

    exact = True

    def __init__(
        self,
        space: Space,
        data: Any,
        *,
        batch_dim: str = "sample",
        bandwidth: float = 0.0,
        reference: Covariance | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        if not (isinstance(bandwidth, (int, float)) and 0 <= bandwidth < math.inf):
            raise InputError(
                "bandwidth", expected="a number of at least 0", got=repr(bandwidth), fix="0 smooths nothing"
            )
        states = space.tensor(data, batch_dim=batch_dim)
        if len(states) < 2:
            raise InputError("data", expected="at least 2 states", got=len(states), fix="pass more data")
        units = Normalisation.fit(states, space)
        mean = states.mean(0)
        self.space, self.dtype, self.device = check_space(space), check_dtype(dtype), torch.device(device)
        self.normalisation = Normalisation(mean.to(self.device), units.scale.to(self.device))
        self.reference = white(space.shape) if reference is None else reference
        points = (states - mean) / units.scale
        check_range(points, self.reference, "data")
        self.bandwidth = float(bandwidth)
        self.points = points.to(self.device, dtype)
        self._whitened = self._whiten(points).to(self.device)
        self._fitted: Joint | None = None
        top = largest(self._apply, self.reference)
        spread = math.sqrt(space.size / max(self.reference.rank, 1))
        self.sigma_min, self.sigma_max = sigma_range(top, spread, sigma_min, sigma_max)

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``sum_i p(i | z) E[z0 | z, i]``, exactly; at sigma = 0 the states are taken as they are."""
        h, variance = self.bandwidth**2, level(sigma, z) ** 2
        total = variance + h
        if bool((total == 0).any()):
            if total.ndim == 0 or bool((total == 0).all()):
                return z
            raise InputError(
                "sigma",
                expected="noise levels that are all positive",
                got=0.0,
                fix="leave out the rows at sigma = 0",
            )
        share = self._logits(z, total.reshape(-1, 1)).softmax(1).to(z)
        picked = (share @ self.points.to(z).flatten(1)).reshape(z.shape)
        return torch.lerp(picked, z, h / total) if h > 0 else picked

    def log_density(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """Exact log density of noisy normalised states, on the range of C; one number per row.

        Raises:
            InputError: at sigma = 0 without a bandwidth.
        """
        total = sigma**2 + self.bandwidth**2
        if total == 0:
            raise InputError(
                "sigma",
                expected="a positive noise level: points have no density",
                got=sigma,
                fix="pass sigma=0.1",
            )
        n, rank = len(self.points), self.reference.rank
        own = self._whiten(z).square().sum(1) / (2 * total)
        logs = self._logits(z, torch.full((1, 1), total, dtype=torch.float64)).logsumexp(1) - own
        constant = math.log(n) + 0.5 * (rank * math.log(2 * math.pi * total) + self.reference.logdet)
        return (logs - constant).to(z)

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` under the Gaussian of the same mean and covariance; None above 8192 values."""
        if self._fitted is None:
            self._fitted = fitted(self._apply, self.space.shape, self.reference)
        return None if self._fitted is None else self._fitted.covariance(sigma)

    def draw(self, streams: Streams) -> torch.Tensor:
        """A state at random, and ``h C^1/2 z`` where there is a bandwidth."""
        u = streams.uniform((1,), dtype=torch.float64, device=self.device)[:, 0]
        z = self.points[(u * len(self.points)).long().clamp(max=len(self.points) - 1)]
        return z + self.bandwidth * self.noise(streams) if self.bandwidth > 0 else z

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        other = super().to(device, dtype)
        other.points = self.points.to(other.device, other.dtype)
        other._whitened = self._whitened.to(other.device)
        return other

    def _whiten(self, z: torch.Tensor) -> torch.Tensor:
        """``F^+ z`` with ``C = F F^T``, flat and in float64: squares would cancel in float32."""
        z = z.double()
        return self.reference.sqrt_adjoint(self.reference.solve(z)).flatten(1)

    def _logits(self, z: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """``-|z - x_i|^2 / 2 total`` without the term that all points share, ``(rows, n)``."""
        points = self._whitened
        return (self._whiten(z) @ points.T - 0.5 * points.square().sum(1)) / total.to(points)

    def _apply(self, x: torch.Tensor) -> torch.Tensor:
        """The covariance of the law, normalised."""
        points = self.points.to(x).flatten(1)
        spread = (x.flatten(1) @ points.T @ points).reshape(x.shape) / len(points)
        return spread + self.bandwidth**2 * self.reference.apply(x)
