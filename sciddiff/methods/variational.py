"""Gaussian variational inference: the Gaussian ``q`` nearest to the posterior in ``KL(q | posterior)``.

At the optimum ``E_q grad V = 0`` and ``Cov_q^-1 = E_q hess V`` with ``V = -log posterior``, whose gradient is
the prior's score and that of the likelihood. Coordinates are whitened by the prior, ``z = F u`` with
``F F^T`` its covariance; there the data change only a subspace ``U``, and
``Cov_q = F (I + U (K - I) U^T) F^T``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.methods.base import Method, Run, likelihood_gradient
from sciddiff.posterior import chunks
from sciddiff.random import Streams

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["GaussianFit", "GaussianVI"]


@final
@dataclass(frozen=True, eq=False)
class GaussianFit:
    """``N(F mean, F (I + U (K - I) U^T) F^T)``, normalised.

    Attributes:
        factor: the covariance ``F F^T``.
        mean: in whitened coordinates, ``(k,)``.
        basis: ``U``, orthonormal ``(k, r)``.
        covariance: ``K``, ``(r, r)``.
        iterations: how many the fit took.
    """

    factor: Covariance
    mean: torch.Tensor
    basis: torch.Tensor
    covariance: torch.Tensor
    iterations: int

    def draw(self, white: torch.Tensor) -> torch.Tensor:
        """States from white noise ``(rows, k)``."""
        root = _power(self.covariance, 0.5) - torch.eye(len(self.covariance)).to(self.covariance)
        u = self.mean.to(white) + white + (white @ self.basis.to(white)) @ (self.basis @ root).T.to(white)
        return self.factor.sqrt(u.reshape(-1, *self.factor.white_shape))


@final
@dataclass(frozen=True)
class GaussianVI(Method):
    """Gaussian variational inference under the prior's score, for any differentiable operator and noise.

    Forward-backward steps in the Bures-Wasserstein geometry (FB-GVI, Diao et al. 2023, arXiv 2304.05398),
    preconditioned by the larger of the precision of ``q`` and the expected Hessian of ``V``: each direction
    is then solved in closed form where ``V`` is quadratic, and the covariance stays positive elsewhere. The
    Hessian comes by Stein's identity from gradients at points of ``q`` whose first three moments are exact;
    no derivative of the denoiser is taken.

    Exact for Gaussian priors, linear operators and Gaussian noise with ``rank`` at least the number of data
    (up to the widening of the prior by ``sigma^2 C``). Elsewhere it is the best Gaussian of the family: one
    mode, and the prior's own covariance outside the subspace.

    Args:
        rank: largest dimension of ``U``.
        samples: pairs of points of ``q``, at least two for each dimension of ``U``; an iteration takes a
            gradient of the likelihood and a denoiser call at each. The points are the same in all iterations.
        sigma: noise level of the prior's score; None takes sigma_min for exact priors (at least the fourth
            root of the precision of the dtype), 0.05 for others.
        step: of the forward-backward iteration, at most 1; halved where the gradient grows.
        iterations: most iterations.
        tol: stop where the mean moves by less than this many posterior standard deviations, and the
            covariance by less than this part of itself.

    Raises:
        InputError: on settings out of range.
        ConvergenceError: if the iteration does not stop in time.

    Example:
        >>> GaussianVI(rank=32).step
        1.0
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    reference: ClassVar[str] = (
        "@inproceedings{diao2023forward, title={Forward-Backward {G}aussian Variational Inference via {JKO} "
        "in the {B}ures-{W}asserstein Space}, author={Diao, Michael and Balasubramanian, Krishnakumar and "
        "Chewi, Sinho and Salim, Adil}, booktitle={ICML}, year={2023}}"
    )
    rank: int = 64
    samples: int = 64
    sigma: float | None = None
    step: float = 1.0
    iterations: int = 100
    tol: float = 1e-4

    def __post_init__(self) -> None:
        good = (
            self.rank >= 1
            and self.samples >= 1
            and self.iterations >= 1
            and 0 < self.step <= 1
            and 0 < self.tol < 1
            and (self.sigma is None or 0 < self.sigma < math.inf)
        )
        if not good:
            raise InputError(
                "rank",
                expected="rank, samples, iterations >= 1, sigma > 0, 0 < step <= 1 and 0 < tol < 1",
                got=repr(self),
                fix="leave them at their defaults",
            )

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        prior = posterior.prior
        if prior.gaussian_covariance(prior.sigma_max) is None:
            return super().misfit(posterior) or "the prior holds no fitted Gaussian to whiten with"
        return super().misfit(posterior)

    def draw(self, run: Run) -> torch.Tensor:
        """Fit every case, then draw independently."""
        fits = [self.fit(run, case) for case in range(run.posterior.cases)]
        run.notes["iterations"] = max(fit.iterations for fit in fits)
        out = []
        for rows in run.rows():
            white = rows.streams.normal(
                (math.prod(fits[0].factor.white_shape),), dtype=run.prior.dtype, device=run.prior.device
            )
            z = torch.empty((len(white), *run.prior.space.shape), dtype=white.dtype, device=white.device)
            for case in rows.cases.unique().tolist():
                own = rows.cases == case
                z[own] = fits[case].draw(white[own])
            out.append(z)
        return torch.cat(out)

    def fit(self, run: Run, case: int) -> GaussianFit:
        """The Gaussian nearest to the posterior of one case."""
        prior = run.prior
        factor = prior.gaussian_covariance(prior.sigma_max)
        assert factor is not None  # `misfit` has refused priors without one
        target = _Target(run, case, factor, self._level(run))
        basis, outer = target.subspace(self.rank)
        r = basis.shape[1]
        points = _points(run, case, basis, self.samples)
        mean = torch.zeros_like(basis[:, 0])
        k = torch.eye(r, dtype=basis.dtype, device=basis.device)
        step, before = self.step, math.inf
        for i in range(1, self.iterations + 1):
            root = _power(k, 0.5)
            inner = points @ basis
            u = mean + points + inner @ (basis @ (root - torch.eye(r).to(root))).T
            g = target.gradient(u)
            average, local = g.mean(0), (g @ basis) @ root
            hessian = inner.T @ local / len(points)
            lam, q = torch.linalg.eigh((hessian + hessian.T) / 2)
            frame = root @ q
            # in the metric max(lam, 1) no direction overshoots, and a quadratic one is solved at step 1
            metric = lam.clamp(min=1.0)
            pull = frame.T @ (basis.T @ average)
            outside = average - basis @ (basis.T @ average)
            moved = float((pull**2 / metric).sum() + (outside**2).sum() / outer) ** 0.5
            if moved > 2 * before and step > 1e-3:
                step = step / 2
            mean = mean - step * (basis @ (frame @ (pull / metric)) + outside / outer)
            spread = _forward_backward(lam / metric, metric, step) / metric
            changed = float((spread - 1).abs().max())
            k = (frame * spread) @ frame.T
            if not math.isfinite(moved + changed):
                break
            if moved < self.tol and changed < self.tol:
                return GaussianFit(factor, mean, basis, k, i)
            before = moved
        raise ConvergenceError(
            f"GaussianVI: after {i} iterations the mean still moves by {moved:.2g} posterior standard "
            f"deviations and the covariance by {changed:.2g} of itself. Raise iterations, or lower step or rank."
        )

    def _level(self, run: Run) -> float:
        if self.sigma is not None:
            return self.sigma
        if not run.prior.exact:
            return max(run.prior.sigma_min, 0.05)
        return max(run.prior.sigma_min, math.sqrt(math.sqrt(torch.finfo(run.prior.dtype).eps)))


@final
class _Target:
    """``grad V`` in whitened coordinates, ``(rows, k)`` to ``(rows, k)``, in float64."""

    def __init__(self, run: Run, case: int, factor: Covariance, sigma: float) -> None:
        self.run, self.case, self.factor, self.sigma = run, case, factor, sigma
        self.size = math.prod(factor.white_shape)

    def gradient(self, u: torch.Tensor) -> torch.Tensor:
        return self._rows(u, self._prior) - self._rows(u, self._likelihood)

    def subspace(self, rank: int) -> tuple[torch.Tensor, float]:
        """Where the likelihood bends, ``U`` of ``(k, r)``, and how much ``V`` bends outside it.

        The centred gradients over the prior are ``H u`` where the likelihood is quadratic with Hessian
        ``-H``.
        """
        n = min(2 * rank + 8, 4 * self.size)
        white = _white(self.run, self.case, n, self.size, "variational subspace")
        g = self._rows(white, self._likelihood)
        _, s, vh = torch.linalg.svd(g - g.mean(0), full_matrices=False)
        kept = max(1, min(rank, int((s > 1e-8 * s[0]).sum())))
        # the singular values of a white (n, k) matrix are at most sqrt(n) + sqrt(k)
        left = float(s[kept]) / (math.sqrt(n) - math.sqrt(min(n - 1, kept))) if kept < len(s) else 0.0
        basis: torch.Tensor = vh[:kept].T.contiguous()
        return basis, 1 + left

    def _prior(self, z: torch.Tensor) -> torch.Tensor:
        return self.run.prior.reference.solve(z - self.run.denoise(z, self.sigma)) / self.sigma**2

    def _likelihood(self, z: torch.Tensor) -> torch.Tensor:
        cases = torch.full((len(z),), self.case, dtype=torch.long, device=z.device)
        return likelihood_gradient(self.run, z, cases)

    def _rows(self, u: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        prior, out = self.run.prior, []
        for part in chunks(len(u), prior.space.size, self.run.chunk):
            white = u[part.start : part.stop].reshape(-1, *self.factor.white_shape).to(prior.dtype)
            out.append(self.factor.sqrt_adjoint(function(self.factor.sqrt(white))).flatten(1))
        return torch.cat(out).double()


def _forward_backward(curvature: torch.Tensor, variance: torch.Tensor, step: float) -> torch.Tensor:
    """One step on variances: ``(1 - step curvature)^2 variance``, then the proximal step of the entropy."""
    half = (1 - step * curvature) ** 2 * variance
    out: torch.Tensor = 0.5 * (half + 2 * step + (half * (half + 4 * step)).sqrt())
    return out


def _points(run: Run, case: int, basis: torch.Tensor, pairs: int) -> torch.Tensor:
    """White points ``(2 pairs, k)`` in opposite pairs.

    In ``U`` their covariance is exactly the identity, and with what is outside it exactly zero: Stein's
    identity then gives the Hessian of a quadratic without sampling error.
    """
    size, r = basis.shape
    pairs = max(pairs, 2 * r)
    inner = _white(run, case, pairs, r, "variational points in U")
    inner = inner @ _power(inner.T @ inner / pairs, -0.5)
    noise = _white(run, case, pairs, size, "variational points")
    noise = (noise - inner @ (inner.T @ noise) / pairs) * math.sqrt(pairs / (pairs - r))
    half = inner @ basis.T + noise - (noise @ basis) @ basis.T
    return torch.cat([half, -half])


def _white(run: Run, case: int, rows: int, size: int, purpose: str) -> torch.Tensor:
    streams = Streams(run.seed, range(rows), [case] * rows, purpose=purpose)
    return streams.normal((size,), dtype=torch.float64, device=run.prior.device)


def _power(k: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power of a symmetric positive definite matrix."""
    lam, q = torch.linalg.eigh(k)
    root: torch.Tensor = (q * lam**exponent) @ q.T
    return root
