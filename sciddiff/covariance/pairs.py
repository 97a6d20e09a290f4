"""A prior covariance and the reference noise at once: ``C = T T^T`` and ``Sigma = T diag(lambda) T^T``.

In these coordinates the exact Gaussian denoiser is ``T lambda/(lambda + sigma^2) T^+ x`` at every noise level
sigma. A sparse precision beside white noise needs no ``T``: one sparse factorisation per level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.covariance.arrays import DENSE_LIMIT, flattened, reciprocal
from sciddiff.covariance.base import Covariance
from sciddiff.covariance.bases import Basis, Full, Standard
from sciddiff.covariance.kinds import Eigen, Precision
from sciddiff.covariance.markov import OrnsteinUhlenbeck, solve_tridiagonal
from sciddiff.errors import InputError

__all__ = ["Joint", "joint"]

_FACTORS = 128
# entries of the matrices whose factors are kept
_ENTRIES = 2**21


class Joint(ABC):
    """``Sigma`` and ``C`` at once: the Gaussian ``N(0, Sigma)`` seen through noise ``N(0, sigma^2 C)``.

    Attributes:
        largest: largest generalised eigenvalue of ``(Sigma, C)``, in units of sigma squared.
    """

    largest: float

    @abstractmethod
    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``Sigma (Sigma + variance C)^+ x``, the denoiser of centred states; variance broadcasts on x."""

    @abstractmethod
    def covariance(self, sigma: float) -> Covariance:
        """``Cov[x0 | x] = sigma^2 Sigma (Sigma + sigma^2 C)^+ C``."""

    @abstractmethod
    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """``log N(x; 0, Sigma + sigma^2 C)`` on its range, one number per row."""


@final
class _Spectrum(Joint):
    """``C = T T^T``, ``Sigma = T diag(eigenvalues) T^T``, ``T = frame C^1/2`` in a common basis."""

    def __init__(
        self, basis: Basis, frame: torch.Tensor | None, eigenvalues: torch.Tensor, noise: Covariance
    ) -> None:
        # frame holds sqrt of the eigenvalues of C where the basis is C's own, None where T is in `basis`
        self.basis, self.frame, self.eigenvalues, self.noise = basis, frame, eigenvalues, noise
        self.largest = float(eigenvalues.max())

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        c = self.basis.analysis(x)
        return c if self.frame is None else c * reciprocal(self.frame).to(x)

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        return self.basis.synthesis(c if self.frame is None else c * self.frame.to(c))

    def adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``T^T x``."""
        if isinstance(self.basis, _Oblique):
            return self.basis.adjoint(x)
        c = self.basis.analysis(x)
        return c if self.frame is None else c * self.frame.to(x)

    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``T lambda/(lambda + variance) T^+ x``."""
        lam = self.eigenvalues.to(x)
        c = self.analysis(x)
        v = variance.reshape(*variance.shape, *(1,) * lam.ndim) if variance.ndim else variance
        return self.synthesis(c * _ratio(lam, v))

    def covariance(self, sigma: float) -> Covariance:
        """``sigma^2 T lambda/(lambda + sigma^2) T^T``."""
        return _Scaled(self, sigma**2 * _ratio(self.eigenvalues, torch.tensor(sigma**2, dtype=torch.float64)))

    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Over the coefficients, minus half the log determinant of ``C``."""
        total = (self.eigenvalues + sigma**2).to(x)
        used = total > 0 if self.frame is None else (total > 0) & (self.frame.to(x) > 0)
        c = self.analysis(x)
        terms = torch.where(used, c**2 * reciprocal(total) + total.clamp(min=1e-300).log(), 0.0)
        dims = tuple(range(-self.eigenvalues.ndim, 0))
        on = int(used.sum())
        base = self.noise.logdet if sigma > 0 or on == self.noise.rank else self._logdet_on(used)
        return -0.5 * (terms.sum(dims) + base + on * math.log(2 * math.pi))

    def _logdet_on(self, used: torch.Tensor) -> float:
        """Log pseudo-determinant of ``T diag(used) T^T``."""
        if not isinstance(self.basis, _Oblique):
            return 0.0 if self.frame is None else float(2 * self.frame[used].log().sum())
        return float(torch.linalg.svdvals(self.basis.columns[:, used]).log().sum() * 2)


@final
class _Oblique(Basis):
    """Columns ``T`` that are not orthonormal, with their left inverse."""

    def __init__(self, shape: Sequence[int], columns: torch.Tensor, inverse: torch.Tensor) -> None:
        self.shape, self.columns, self.inverse = tuple(shape), columns, inverse
        self.coefficients = (columns.shape[1],)

    def analysis(self, x: torch.Tensor) -> torch.Tensor:
        return flattened(x, self.shape) @ self.inverse.to(x).T

    def synthesis(self, c: torch.Tensor) -> torch.Tensor:
        return (c @ self.columns.to(c).T).reshape(*c.shape[:-1], *self.shape)

    def adjoint(self, x: torch.Tensor) -> torch.Tensor:
        return flattened(x, self.shape) @ self.columns.to(x)

    def same(self, other: Basis) -> bool:
        return self is other


@final
class _Scaled(Covariance):
    """``T diag(weights) T^T`` of a joint spectrum."""

    def __init__(self, spectrum: _Spectrum, weights: torch.Tensor) -> None:
        self.spectrum, self.weights = spectrum, weights
        self.shape, self.white_shape = spectrum.basis.shape, tuple(weights.shape)
        used = weights > 0 if spectrum.frame is None else (weights > 0) & (spectrum.frame > 0)
        self.rank = int(used.sum())
        whole = self.rank == spectrum.noise.rank
        self.logdet = float(weights[used].log().sum()) + (
            spectrum.noise.logdet if whole else spectrum._logdet_on(used)
        )

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        return self.spectrum.synthesis(self.weights.to(z).sqrt() * z)

    def variance(self) -> torch.Tensor:
        basis = self.spectrum.basis
        weights = self.weights if self.spectrum.frame is None else self.weights * self.spectrum.frame**2
        if isinstance(basis, _Oblique):
            return (basis.columns**2 @ weights).reshape(self.shape)
        square = basis.square(weights)
        return super().variance() if square is None else square

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights.to(x).sqrt() * self.spectrum.adjoint(x)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        # the pseudo-inverse of F F^T; T's columns are orthogonal unless the basis is oblique
        if isinstance(self.spectrum.basis, _Oblique):
            half = self.spectrum.basis.columns * self.weights.sqrt()
            inverse: torch.Tensor = torch.linalg.pinv(half)
            return (flattened(x, self.shape) @ (inverse.T @ inverse).to(x)).reshape(x.shape)
        scale = self.weights if self.spectrum.frame is None else self.weights * self.spectrum.frame**2
        return self.spectrum.basis.synthesis(reciprocal(scale).to(x) * self.spectrum.basis.analysis(x))


@final
class _Markov(Joint):
    """``Sigma = Q^-1`` sparse and ``C = variance I``: one sparse factorisation per noise level."""

    def __init__(self, prior: Precision, variance: float) -> None:
        from scipy.sparse.linalg import eigsh

        self.prior, self.variance = prior, variance
        start = np.random.Generator(np.random.Philox(0)).standard_normal(prior.rank)
        lowest = (
            eigsh(prior.matrix, k=1, sigma=0, v0=start, return_eigenvectors=False)[0]
            if prior.rank > 2
            else np.linalg.eigvalsh(prior.matrix.toarray())[0]
        )
        self.largest = float(1.0 / lowest / variance)
        self._cache: dict[float, Precision] = {}

    def _with_noise(self, variance: float) -> Precision:
        """``Cov[x0|x] = (Q + 1/(variance c) I)^-1``."""
        import scipy.sparse as sp

        if variance not in self._cache:
            # solvers that choose their own levels would fill the memory with factors
            if len(self._cache) >= _room(self.prior.matrix.nnz):
                self._cache.pop(next(iter(self._cache)))
            eye = sp.identity(self.prior.rank, format="csc")
            self._cache[variance] = Precision(
                self.prior.shape, self.prior.matrix + eye / (variance * self.variance)
            )
        return self._cache[variance]

    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``(Q + I/v)^-1 x / v``."""
        levels = variance.reshape(-1).expand(x.shape[0]) if variance.ndim else variance.reshape(1)
        if variance.ndim == 0 or bool((levels == levels[0]).all()):
            v = float(levels[0])
            return x if v == 0 else self._with_noise(v).apply(x) / (v * self.variance)
        return torch.stack([self.shrink(row, v) for row, v in zip(x, levels, strict=True)])

    def covariance(self, sigma: float) -> Covariance:
        """``(Q + I/(sigma^2 c))^-1``."""
        return self._with_noise(sigma**2)

    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """By the matrix determinant lemma and Woodbury's identity."""
        n, flat = self.prior.rank, flattened(x, self.prior.shape)
        if sigma == 0:
            energy = (flat * flattened(self.prior.solve(x), self.prior.shape)).sum(-1)
            logdet = self.prior.logdet
        else:
            v = sigma**2 * self.variance
            post = self._with_noise(sigma**2)
            residual = x - post.apply(x) / v
            energy = (flat * flattened(residual, self.prior.shape)).sum(-1) / v
            logdet = n * math.log(v) + self.prior.logdet - post.logdet
        return -0.5 * (energy + logdet + n * math.log(2 * math.pi))


@final
class _Chain(Joint):
    """Both precisions tridiagonal, ``Q`` of the prior and ``R`` of the noise: ``D = (R + v Q)^-1 R x``.

    Both are diagonally dominant, and so is every sum of them; levels may differ from row to row.
    """

    def __init__(self, prior: Covariance, noise: Covariance) -> None:
        self.prior, self.noise = prior, noise
        self.q, self.r = _bands(prior), _bands(noise)
        self._cache: dict[float, Precision] = {}
        self.largest = self._largest()

    def shrink(self, x: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``(R + v Q)^-1 R x``, in float64."""
        v = variance.to(x.device, torch.float64)
        v = v.reshape(*v.shape, *(1,) * len(self.prior.shape)) if v.ndim else v
        (q, q_beside), (r, r_beside) = ([b.to(x.device) for b in bands] for bands in (self.q, self.r))
        y = _multiplied(r, r_beside, x.double())
        return solve_tridiagonal(r + v * q, r_beside + v * q_beside, y).to(x)

    def covariance(self, sigma: float) -> Covariance:
        """``(Q + R/sigma^2)^-1``."""
        if sigma not in self._cache:
            if len(self._cache) >= _room(3 * self.prior.rank):
                self._cache.pop(next(iter(self._cache)))
            matrix = self._sparse(self.q) + self._sparse(self.r) / sigma**2
            self._cache[sigma] = Precision(self.prior.shape, matrix)
        return self._cache[sigma]

    def log_density(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """``(Sigma + v C)^-1 = Q D`` and ``|Sigma + v C| = |Sigma| |C| |R + v Q|``."""
        from scipy.linalg import cholesky_banded

        v, n, dims = sigma**2, self.prior.rank, tuple(range(-len(self.prior.shape), 0))
        shrunk = self.shrink(x, torch.tensor(v, dtype=torch.float64)).double() if sigma else x.double()
        energy = (x.double() * _multiplied(self.q[0].to(x.device), self.q[1].to(x.device), shrunk)).sum(dims)
        logdet = self.prior.logdet
        if sigma:
            matrix = self._sparse(self.r) + v * self._sparse(self.q)
            # LAPACK's upper form: the row above the diagonal begins one place later
            above = np.concatenate([[0.0], matrix.diagonal(1)])
            factor = cholesky_banded(np.stack([above, matrix.diagonal()]))
            logdet += self.noise.logdet + 2 * float(np.log(factor[-1]).sum())
        return (-0.5 * (energy + logdet + n * math.log(2 * math.pi))).to(x)

    def _sparse(self, bands: tuple[torch.Tensor, torch.Tensor]) -> Any:
        """All copies, one behind the other."""
        import scipy.sparse as sp

        shape = self.prior.shape
        diagonal, beside = bands[0].expand(shape), bands[1].expand(*shape[:-1], shape[-1] - 1)
        # nothing couples the end of a copy to the start of the next
        padded = torch.cat([beside, torch.zeros_like(diagonal[..., :1])], -1).reshape(-1)[:-1].numpy()
        return sp.diags([padded, diagonal.reshape(-1).numpy(), padded], [-1, 0, 1], format="csc")

    def _largest(self) -> float:
        from scipy.linalg import eigh
        from scipy.sparse.linalg import eigsh

        q, r = self._sparse(self.q), self._sparse(self.r)
        if self.prior.rank <= 3:
            return float(1 / eigh(q.toarray(), r.toarray(), eigvals_only=True)[0])
        start = np.random.Generator(np.random.Philox(0)).standard_normal(self.prior.rank)
        lowest = eigsh(q, k=1, M=r, sigma=0, which="LM", v0=start, return_eigenvectors=False)[0]
        return float(1 / lowest)


def _bands(covariance: Covariance) -> tuple[torch.Tensor, torch.Tensor]:
    """Diagonal and what is beside it of a tridiagonal precision; see `_chained`."""
    if isinstance(covariance, OrnsteinUhlenbeck):
        return covariance.bands
    weight = 1 / covariance.variance().double().cpu()
    return weight, torch.zeros_like(weight[..., 1:])


def _chained(covariance: Covariance) -> bool:
    """Whether the precision is tridiagonal along the last axis: a Markov process, or independent values."""
    if isinstance(covariance, OrnsteinUhlenbeck):
        return True
    independent = isinstance(covariance, Eigen) and isinstance(covariance.basis, Standard)
    return independent and covariance.rank == math.prod(covariance.shape)


def _multiplied(diagonal: torch.Tensor, beside: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A symmetric tridiagonal matrix times x."""
    zero = torch.zeros_like(x[..., :1])
    before, after = torch.cat([zero, x[..., :-1]], -1), torch.cat([x[..., 1:], zero], -1)
    edge = torch.zeros_like(diagonal[..., :1])
    return diagonal * x + torch.cat([edge, beside], -1) * before + torch.cat([beside, edge], -1) * after


def joint(prior: Covariance, noise: Covariance) -> Joint:
    """See ``prior`` and the reference noise in common coordinates.

    Cheap when they share a basis, one of them is a multiple of the identity, or both are Markov processes on
    the same times or independent values; a dense eigenproblem (at most 8192 values) otherwise.

    Raises:
        InputError: if the prior has mass outside the range of the noise, or a dense problem is too large.
    """
    if prior.shape != noise.shape:
        raise InputError(
            "reference",
            expected=f"a covariance on shape {prior.shape}",
            got=noise.shape,
            fix="prior and reference noise live on the same space",
        )
    level = _level(noise)
    markov = isinstance(prior, OrnsteinUhlenbeck) or isinstance(noise, OrnsteinUhlenbeck)
    if markov and _chained(prior) and _chained(noise):
        return _Chain(prior, noise)
    if isinstance(prior, Precision):
        if level is None:
            raise InputError(
                "reference",
                expected="white noise beside a sparse precision",
                got=type(noise).__name__,
                fix="use graph(), or a white reference",
            )
        return _Markov(prior, level)
    if isinstance(prior, Eigen) and isinstance(noise, Eigen):
        if level is not None:
            frame = torch.full_like(prior.eigenvalues, math.sqrt(level))
            return _Spectrum(prior.basis, frame, prior.eigenvalues / level, noise)
        if prior.basis == noise.basis or (_level(prior) is not None and not isinstance(noise.basis, Full)):
            values = (
                prior.eigenvalues
                if prior.basis == noise.basis
                else torch.full_like(noise.eigenvalues, _level(prior) or 0.0)
            )
            if bool(((noise.eigenvalues == 0) & (values > 0)).any()):
                raise _outside()
            return _Spectrum(
                noise.basis, noise.eigenvalues.sqrt(), values * reciprocal(noise.eigenvalues), noise
            )
    return _dense_joint(prior, noise)


def _dense_joint(prior: Covariance, noise: Covariance) -> Joint:
    n = math.prod(prior.shape)
    if n > DENSE_LIMIT:
        raise InputError(
            "reference",
            expected=f"a reference in the basis of the prior, or at most {DENSE_LIMIT} values",
            got=f"{n} values in different bases",
            fix="use a white reference or the same spectral basis",
        )
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *prior.shape)
    sigma = flattened(prior.apply(eye), prior.shape)
    gamma, u = torch.linalg.eigh(flattened(noise.apply(eye), prior.shape))
    keep = gamma > 1e-12 * gamma[-1]
    half, inverse = u[:, keep] * gamma[keep].sqrt(), (u[:, keep] / gamma[keep].sqrt()).T
    inside = u[:, keep] @ (u[:, keep].T @ sigma)
    if (inside - sigma).abs().max() > 1e-8 * sigma.abs().max():
        raise _outside()
    lam, v = torch.linalg.eigh(inverse @ sigma @ inverse.T)
    lam = torch.where(lam > 1e-12 * lam[-1], lam, 0.0)
    return _Spectrum(_Oblique(prior.shape, half @ v, v.T @ inverse), None, lam, noise)


def _outside() -> InputError:
    return InputError(
        "reference",
        expected="a reference noise whose range holds the whole prior",
        got="a prior with mass outside it",
        fix="choose a reference noise that is positive wherever the prior is",
    )


def _room(entries: int) -> int:
    """How many factors of sparse matrices of so many entries are kept."""
    return max(2, min(_FACTORS, _ENTRIES // max(1, entries)))


def _level(covariance: Covariance) -> float | None:
    """The variance of a multiple of the identity, None for any other covariance."""
    if isinstance(covariance, Eigen) and covariance.rank == math.prod(covariance.shape):
        first = covariance.eigenvalues.reshape(-1)[0]
        if bool((covariance.eigenvalues == first).all()):
            return float(first)
    return None


def _ratio(lam: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """``lam/(lam + variance)``, 0 where both vanish."""
    total = lam + variance
    return torch.where(total > 0, lam / torch.where(total > 0, total, 1.0), 0.0)
