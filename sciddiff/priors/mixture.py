"""The Gaussian mixture prior ``sum_k w_k N(m_k, Sigma_k)``, with its exact denoiser.

Each component is a Gaussian seen through noise, ``D_k = m_k + Sigma_k (Sigma_k + sigma^2 C)^+ (z - m_k)``,
and ``D = sum_k p(k | z) D_k`` with ``p(k | z) ~ w_k N(z; m_k, Sigma_k + sigma^2 C)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance import Covariance, Joint, dense, diagonal, joint, scaled, white
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior, check_dtype, level, sigma_range
from sciddiff.priors.gaussian import _scale
from sciddiff.random import Streams
from sciddiff.spaces import Space, check_space

__all__ = ["GaussianMixturePrior", "by_level", "check_range", "fitted", "largest"]

_DENSE_LIMIT = 8192


@final
class GaussianMixturePrior(Prior):
    """``sum_k w_k N(m_k, Sigma_k)`` in physical units; every quantity of it is exact.

    Normalised by its mean and, per variable, the rms of its standard deviations. Components that share
    a covariance are evaluated together, also where it is given as equal numbers.

    Args:
        space: the states.
        weights: ``(k,)``, positive; scaled to sum to 1.
        means: ``(k, *space.shape)``, anything `Space.tensor` reads with ``batch_dim="component"``.
        covariances: in physical units; one `Covariance` for all components or a sequence of k; or variances:
            a number or ``(k,)`` (isotropic), ``(k, *space.shape)`` (diagonal); or matrices
            ``(k, size, size)``.
        reference: covariance ``C`` of the noise in normalised units; default white.
        dtype: of the states.
        device: of the states.
        sigma_min: lowest noise level of samplers, in normalised units; the default follows the narrowest
            component.
        sigma_max: highest noise level; the default follows the largest generalised eigenvalue of the
            covariance.

    Raises:
        InputError: on weights that are not positive, shapes that do not fit, mass outside the range of C, or
            a sigma_max below 5 times the largest standard deviation.

    Example:
        >>> prior = GaussianMixturePrior(Space({"t": 2}), [0.3, 0.7], [[-4.0, 0.0], [4.0, 0.0]], 1.0)
        >>> prior.sample(5, seed=0)["x"].dims, prior.gaussian_covariance(1.0).rank
        (('sample', 't'), 2)
    """

    exact = True

    def __init__(
        self,
        space: Space,
        weights: Any,
        means: Any,
        covariances: Any,
        *,
        reference: Covariance | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        self.space, self.dtype, self.device = check_space(space), check_dtype(dtype), torch.device(device)
        self.weights = _weights(weights)
        centres = space.tensor(means, argument="means", batch_dim="component")
        if len(centres) != len(self.weights):
            raise InputError(
                "means",
                expected=f"{len(self.weights)} components, as many as weights",
                got=len(centres),
                fix="one mean per weight",
            )
        laws, self.members = _families(covariances, len(centres), space)
        share = torch.stack([self.weights[i].sum() for i in self.members])
        mean = torch.tensordot(self.weights, centres, 1)
        variance = torch.tensordot(self.weights, (centres - mean) ** 2, 1)
        variance = variance + sum(w * law.variance() for w, law in zip(share, laws, strict=True))
        units = Normalisation(mean, _scale(diagonal(variance), space))
        self.normalisation = Normalisation(mean.to(self.device), units.scale.to(self.device))
        self.means, self.laws = units.normal(centres), [scaled(law, units.scale) for law in laws]
        self.reference = white(space.shape) if reference is None else reference
        check_range(self.means, self.reference, "means")
        self.joints = [joint(law, self.reference) for law in self.laws]
        self._fitted: Joint | None = None
        narrow = (
            min(float(law.variance().mean()) for law in self.laws if law.rank) if _wide(self.laws) else 1.0
        )
        self.sigma_min, self.sigma_max = sigma_range(
            largest(self._apply, self.reference),
            narrow / float(self.reference.variance().mean()),
            sigma_min,
            sigma_max,
        )

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``sum_k p(k | z) E[z0 | z, k]``, exactly."""

        def at(z: torch.Tensor, sigma: float) -> torch.Tensor:
            variance = torch.as_tensor(sigma, dtype=z.dtype, device=z.device) ** 2
            logits, parts = [], []
            for members, law in zip(self.members, self.joints, strict=True):
                means = self.means[members].to(z)
                offset = (z[:, None] - means).flatten(0, 1)
                parts.append(means + law.shrink(offset, variance).reshape(len(z), *means.shape))
                logits.append(self._logits(offset, members, law, sigma))
            share = torch.cat(logits, 1).softmax(1)
            return (share.reshape(*share.shape, *(1,) * (z.ndim - 1)) * torch.cat(parts, 1)).sum(1)

        return by_level(at, z, sigma)

    def responsibilities(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """``p(k | z)``, ``(rows, k)``, of noisy normalised states.

        Raises:
            InputError: at sigma = 0 where a component is of lower rank than C.
        """
        return self._joint_log_density(z, sigma).softmax(1)

    def log_density(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """Exact log density of noisy normalised states, on the range of C; one number per row.

        Raises:
            InputError: at sigma = 0 where a component is of lower rank than C and has none.
        """
        return self._joint_log_density(z, sigma).logsumexp(1)

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` under the Gaussian of the same mean and covariance; None above 8192 values."""
        if self._fitted is None:
            self._fitted = fitted(self._apply, self.space.shape, self.reference)
        return None if self._fitted is None else self._fitted.covariance(sigma)

    def draw(self, streams: Streams) -> torch.Tensor:
        """A component by its weight, then ``m_k + Sigma_k^1/2 z``."""
        u = streams.uniform((1,), dtype=torch.float64)[:, 0]
        white = streams.normal((self.space.size,), dtype=self.dtype, device=self.device)
        picked = torch.searchsorted(self.weights.cumsum(0), u, right=True).clamp(max=len(self.weights) - 1)
        out = self.means[picked].to(white)
        for members, law in zip(self.members, self.laws, strict=True):
            rows = torch.isin(picked, members).to(self.device)
            out[rows] += law.sqrt(white[rows].reshape(-1, *law.white_shape))
        return out

    def _logits(self, offset: torch.Tensor, members: torch.Tensor, law: Joint, sigma: float) -> torch.Tensor:
        """``log w_k N(z; m_k, Sigma_k + sigma^2 C)`` from ``z - m_k``, ``(rows, members)``."""
        density = law.log_density(offset, sigma).reshape(-1, len(members))
        return density + self.weights[members].to(offset).log()

    def _joint_log_density(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        if sigma == 0 and any(law.rank < self.reference.rank for law in self.laws):
            raise InputError(
                "sigma",
                expected="a positive noise level, since a component has no density of its own",
                got=sigma,
                fix="pass for example sigma=prior.sigma_min",
            )
        out = z.new_empty((len(z), len(self.weights)))
        for members, law in zip(self.members, self.joints, strict=True):
            offset = (z[:, None] - self.means[members].to(z)).flatten(0, 1)
            out[:, members.to(z.device)] = self._logits(offset, members, law, sigma)
        return out

    def _apply(self, x: torch.Tensor) -> torch.Tensor:
        """The covariance of the mixture, normalised."""
        means, weights = self.means.flatten(1).to(x), self.weights.to(x)
        between = ((x.flatten(1) @ means.T) * weights @ means).reshape(x.shape)
        share = [float(self.weights[i].sum()) for i in self.members]
        return between + sum(w * law.apply(x) for w, law in zip(share, self.laws, strict=True))


def by_level(
    function: Callable[[torch.Tensor, float], torch.Tensor], z: torch.Tensor, sigma: float | torch.Tensor
) -> torch.Tensor:
    """``function(z, sigma)`` of one noise level, for one level per row: one call for each different level."""
    levels = level(sigma, z).reshape(-1)
    if not isinstance(sigma, torch.Tensor) or sigma.ndim == 0:
        return function(z, float(sigma))
    values, which = torch.unique(levels, return_inverse=True)
    groups = [torch.nonzero(which == i)[:, 0] for i in range(len(values))]
    rows = torch.cat([function(z[g], float(v)) for g, v in zip(groups, values, strict=True)])
    return rows[torch.cat(groups).argsort()]


def largest(apply: Callable[[torch.Tensor], torch.Tensor], reference: Covariance) -> float:
    """Largest generalised eigenvalue of a covariance, given by its action, and ``C``: by Lanczos.

    That of ``F^+ Sigma F^+T`` with ``C = F F^T`` and ``F^+ = F^T C^+``.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = math.prod(reference.white_shape)

    def product(v: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(np.asarray(v, dtype=np.float64).T.reshape(-1, *reference.white_shape))
        out = reference.sqrt_adjoint(reference.solve(apply(reference.solve(reference.sqrt(z)))))
        return out.reshape(len(z), n).T.reshape(v.shape).numpy()

    if n <= 64:
        return float(np.linalg.eigvalsh(product(np.eye(n)))[-1])
    start = np.random.Generator(np.random.Philox(0)).standard_normal(n)
    system = LinearOperator((n, n), matvec=product, matmat=product, dtype=np.float64)
    return float(eigsh(system, k=1, v0=start, tol=1e-6, return_eigenvectors=False)[0])


def fitted(
    apply: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], reference: Covariance
) -> Joint | None:
    """A covariance, given by its action, beside ``C``; None above 8192 values, which are not formed."""
    n = math.prod(shape)
    if n > _DENSE_LIMIT:
        return None
    matrix = apply(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, n)
    return joint(dense((matrix + matrix.T) / 2, shape), reference)


def check_range(points: torch.Tensor, reference: Covariance, argument: str) -> None:
    """Refuse centred points ``(k, *shape)`` outside the range of ``C``.

    Raises:
        InputError: if a point is not ``C C^+`` of itself.
    """
    if reference.rank == math.prod(reference.shape):
        return
    gap = (reference.apply(reference.solve(points)) - points).abs().max()
    if gap > 1e-8 * points.abs().max():
        raise InputError(
            "reference",
            expected=f"a reference noise whose range holds the whole prior, `{argument}` included",
            got=f"{argument} that differ outside it",
            fix=f"choose a reference noise that is positive wherever they differ, or project the {argument}",
        )


def _weights(weights: Any) -> torch.Tensor:
    values = np.asarray(weights)
    if (
        values.ndim != 1
        or values.dtype.kind not in "iuf"
        or not (values > 0).all()
        or not np.isfinite(values).all()
    ):
        raise InputError(
            "weights",
            expected="positive numbers (k,)",
            got=repr(weights),
            fix="one positive weight per component",
        )
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor / tensor.sum()


def _families(covariances: Any, k: int, space: Space) -> tuple[list[Covariance], list[torch.Tensor]]:
    """The different covariances, and which components have each."""
    if isinstance(covariances, Covariance):
        laws, which = [covariances], [0] * k
    elif isinstance(covariances, Sequence) and all(isinstance(c, Covariance) for c in covariances):
        ids = list(dict.fromkeys(id(c) for c in covariances))
        laws = [next(c for c in covariances if id(c) == i) for i in ids]
        which = [ids.index(id(c)) for c in covariances]
    else:
        values = _array(covariances)
        if not np.isfinite(values).all() or (values.ndim < 3 and (values < 0).any()):
            raise _misfit(k, space, "numbers that are negative or not finite")
        if values.ndim == 0:
            values = np.full(k, float(values))
        if values.shape == (k,):
            levels = list(dict.fromkeys(values.tolist()))
            laws = [white(space.shape, v) for v in levels]
            which = [levels.index(v) for v in values.tolist()]
        elif values.shape == (k, *space.shape):
            laws, which = [diagonal(v) for v in values], list(range(k))
        elif values.shape == (k, space.size, space.size):
            laws, which = [dense(v, space.shape) for v in values], list(range(k))
        else:
            raise _misfit(k, space, f"shape {values.shape}")
    wrong = [c.shape for c in laws if tuple(c.shape) != space.shape]
    if len(which) != k or wrong:
        raise _misfit(k, space, f"a covariance on shape {wrong[0]}" if wrong else f"{len(which)} covariances")
    return laws, [torch.tensor([i for i in range(k) if which[i] == j]) for j in range(len(laws))]


def _array(covariances: Any) -> np.ndarray:
    try:
        return np.asarray(covariances, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty((0, 0, 0, 0))


def _misfit(k: int, space: Space, got: str) -> InputError:
    return InputError(
        "covariances",
        expected=f"one Covariance or {k} of them on {space.shape}, variances of shape (), ({k},) or "
        f"{(k, *space.shape)}, or matrices {(k, space.size, space.size)}",
        got=got,
        fix="see the docstring of GaussianMixturePrior",
    )


def _wide(laws: Sequence[Covariance]) -> bool:
    return any(law.rank for law in laws)
