"""Moment matching in information form: time and memory linear in the size of a long series.

With ``Cov[z0 | z] = Q^-1``, a sparse ``Q``, and data of which each hangs on a few values, with independent errors,

    ``S = Q + B^T R^-1 B``,   ``D_y = D + S^-1 B^T R^-1 (y - B D)``,   ``Cov[z0 | z, y] = S^-1``

(Rue and Held 2005, "Gaussian Markov random fields", section 2.3.3) is the same `MMPS` as ``Cov B^T (R + B Cov B^T)^-1``,
whose matrix is full and as large as the data are many. Of a chain, ``S`` is banded, and so are its factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch

from sciddiff.covariance import Covariance, Eigen, Precision, Standard
from sciddiff.noise import Gaussian
from sciddiff.solvers import Moments, Solver

if TYPE_CHECKING:
    from sciddiff.methods.base import Run
    from sciddiff.posterior import LinearGaussian
    from sciddiff.random import Streams

__all__ = ["Banded", "banded"]

# values that a datum hangs on, and neighbours that data give a value, on average, from which on nothing is sparse
_FEW = 64
# entries of the factors that are kept
_KEPT = 2**19
_BLOCK = 2**21

Action = Callable[[float], "Covariance | None"]


def banded(run: Run, covariance: Action) -> Banded | None:
    """The guided denoiser in information form; None where the covariance or the data are not sparse.

    Args:
        run: the call of `Posterior.sample`.
        covariance: ``sigma -> Cov[z0 | z]``, the same for every z.
    """
    linear = run.posterior.linear_gaussian()
    if not isinstance(covariance(run.prior.sigma_max), Precision):
        return None
    variance = _variances(linear)
    rows = None if variance is None else _rows(run, linear)
    if rows is None or variance is None:
        return None
    # what B^T B links on average
    if (abs(rows).T @ abs(rows)).nnz > _FEW * run.prior.space.size:
        return None
    return Banded(run, covariance, rows, 1 / variance)


def _variances(linear: LinearGaussian) -> torch.Tensor | None:
    """The diagonal of R, ``(size,)``; None where errors are correlated."""
    parts = []
    for o in linear.observations:
        assert isinstance(o.noise, Gaussian)  # needs "gaussian"
        cov = o.noise.covariance(o.operator.codomain.shape)
        if not (isinstance(cov, Eigen) and isinstance(cov.basis, Standard)):
            return None
        parts.append(cov.variance().flatten().double())
    values = torch.cat(parts)
    return values if bool((values > 0).all()) else None


def _rows(run: Run, linear: LinearGaussian) -> Any:
    """``B`` as scipy's sparse rows, by adjoints of a block of unit data at a time; None where it is not sparse."""
    import scipy.sparse as sp

    prior, step = run.prior, max(1, _BLOCK // run.prior.space.size)
    blocks, entries = [], 0
    for start in range(0, linear.size, step):
        n = min(step, linear.size - start)
        unit = torch.zeros(n, linear.size, dtype=prior.dtype, device=prior.device)
        unit[torch.arange(n), start + torch.arange(n)] = 1.0
        block = sp.csr_matrix(linear.adjoint(unit).flatten(1).double().cpu().numpy())
        blocks.append(block)
        entries += block.nnz
        run.cost.operator_calls += n
        if entries > _FEW * (start + n):
            return None
    return sp.vstack(blocks).tocsr()


@final
class Banded:
    """`MMPS` by a sparse factorisation of ``S`` for every noise level and pattern of missing data.

    Attributes:
        solver: the one to take where the caller names none.
    """

    def __init__(self, run: Run, covariance: Action, rows: Any, weights: torch.Tensor) -> None:
        self.run, self.covariance, self.rows = run, covariance, rows
        self.linear = run.posterior.linear_gaussian()
        self.weights = weights
        mask = self.linear.mask
        self.seen: torch.Tensor | None = None
        self.pattern: torch.Tensor | None = None
        if mask is not None:
            self.seen, self.pattern = torch.unique(mask, dim=0, return_inverse=True)
        self.factors: dict[tuple[float, int], Precision] = {}
        # exact where the covariance is the prior's own; elsewhere it is a guess, which more steps correct
        own = run.prior.exact and run.prior.covariance(run.prior.sigma_max) is not None
        self.solver: Solver = Moments() if own else Moments(steps=64)

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        """``D_y``."""
        d = self.run.denoise(z, sigma)
        return d + self.each(sigma, self.pulled(d, cases), cases, Precision.apply)

    def draw(self, z: torch.Tensor, sigma: float, cases: torch.Tensor, streams: Streams) -> torch.Tensor:
        """A draw of ``N(D_y, S^-1)``."""
        prior = self.run.prior
        white = streams.normal(prior.space.shape, dtype=prior.dtype, device=prior.device)
        return self(z, sigma, cases) + self.each(sigma, white, cases, Precision.sqrt)

    def pulled(self, d: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``B^T R^-1 (y - B D)``."""
        self.run.cost.operator_calls += 2 * len(d)
        residual = self.linear.residual(d, cases)
        return self.linear.adjoint(self.weights.to(residual) * residual)

    def each(
        self,
        sigma: float,
        v: torch.Tensor,
        cases: torch.Tensor,
        action: Callable[[Precision, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """An action of ``S^-1`` on every row, by the pattern of what was observed of its case."""
        if self.pattern is None:
            return action(self.factor(sigma, 0), v)
        out, pattern = torch.empty_like(v), self.pattern[cases]
        for i in pattern.unique().tolist():
            out[pattern == i] = action(self.factor(sigma, i), v[pattern == i])
        return out

    def factor(self, sigma: float, pattern: int) -> Precision:
        """``S^-1``, factored."""
        import scipy.sparse as sp

        key = (sigma, pattern)
        if key not in self.factors:
            prior = self.covariance(sigma)
            assert isinstance(prior, Precision)  # as at sigma_max
            weights = self.weights if self.seen is None else self.weights * self.seen[pattern].cpu()
            inner = self.rows.T @ sp.diags(weights.numpy()) @ self.rows
            made = Precision(self.run.prior.space.shape, prior.matrix + (inner + inner.T) / 2)
            kept = max(2, math.floor(_KEPT / made.matrix.nnz))
            if len(self.factors) >= kept:
                self.factors.pop(next(iter(self.factors)))
            self.factors[key] = made
        return self.factors[key]
