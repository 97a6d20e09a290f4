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

# the largest rank that is taken unasked: an iteration costs four gradients for each, and eigenvalues
_MOST = 512
# steps are halved down to this
_LEAST = 1e-3


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
    preconditioned by the larger of the precision of ``q`` and the size of the expected Hessian of ``V``: each
    direction is then solved in closed form where ``V`` is quadratic, and the covariance stays positive
    elsewhere. The Hessian comes by Stein's identity from gradients at points of ``q`` whose first three moments are exact;
    no derivative of the denoiser is taken.

    Exact for Gaussian priors, linear operators and Gaussian noise with ``rank`` at least the number of data
    (up to the widening of the prior by ``sigma^2 C``). Elsewhere it is the best Gaussian of the family: one
    mode, and the prior's own covariance outside the subspace.

    Args:
        rank: largest dimension of ``U``; None takes the number of data or of values of the state, whichever
            is less, and at most 512. With fewer than the number of data the draws are too wide.
        samples: pairs of points of ``q``, at least two for each dimension of ``U``; an iteration takes a
            gradient of the likelihood and a denoiser call at each. The points are the same in all iterations.
        sigma: noise level of the prior's score; None takes sigma_min for exact priors (at least the fourth
            root of the precision of the dtype), 0.05 for others.
        step: of the forward-backward iteration, at most 1; a step after which the gradient overflows or grows is
            taken again at half its length.
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
    rank: int | None = None
    samples: int = 64
    sigma: float | None = None
    step: float = 1.0
    iterations: int = 100
    tol: float = 1e-4

    def __post_init__(self) -> None:
        good = (
            (self.rank is None or self.rank >= 1)
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
        basis, outer = target.subspace(self._rank(run, case))
        points = _points(run, case, basis, self.samples)
        mean, k = torch.zeros_like(basis[:, 0]), torch.eye(basis.shape[1]).to(basis)
        last: _Local | None = None
        step, moved, changed = self.step, math.inf, math.inf
        for i in range(1, self.iterations + 1):
            here = _local(target, points, basis, outer, mean, k)
            if last is not None and (here is None or here.moved > 2 * last.moved):
                step = step / 2
                # less than a standard deviation too far is no reason to go back
                if here is None or (here.moved > 1 and step > _LEAST):
                    here = last
            elif last is not None and here is not None and here.moved < last.moved:
                # a step that was halved far from the optimum may be too short near to it
                step = min(self.step, 1.5 * step)
            if here is None or step < _LEAST / 2:
                break
            mean, k, changed = here.stepped(step)
            moved = here.moved
            if here is not last and moved < self.tol and changed < self.tol:
                return GaussianFit(factor, mean, basis, k, i)
            last = here
        raise ConvergenceError(
            f"GaussianVI: after {i} iterations the mean still moves by {moved:.2g} posterior standard "
            f"deviations and the covariance by {changed:.2g} of itself. {self._advice(run, case, len(k))}"
        )

    def _rank(self, run: Run, case: int) -> int:
        return self.rank or min(_data(run, case), run.prior.space.size, _MOST)

    def _advice(self, run: Run, case: int, rank: int) -> str:
        data = min(_data(run, case), run.prior.space.size)
        if rank < data and self._rank(run, case) < data:
            return f"Raise rank to at least the number of data, {data}; else raise iterations, or lower step."
        return "Raise iterations or samples, or lower step."

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


@final
@dataclass(frozen=True)
class _Local:
    """Gradient and Hessian of ``V`` over one ``q``, in its frame ``K = frame frame^T``."""

    mean: torch.Tensor
    basis: torch.Tensor
    frame: torch.Tensor
    curvature: torch.Tensor
    pull: torch.Tensor
    outside: torch.Tensor
    outer: float
    moved: float

    def stepped(self, step: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The next mean and ``K``, and the relative change of the latter."""
        # in the metric max(|curvature|, 1) no direction overshoots, and a quadratic one is solved at step 1
        metric = self.curvature.abs().clamp(min=1.0)
        inner = self.basis @ (self.frame @ (self.pull / metric))
        spread = _forward_backward(self.curvature / metric, metric, step) / metric
        mean = self.mean - step * (inner + self.outside / self.outer)
        return mean, (self.frame * spread) @ self.frame.T, float((spread - 1).abs().max())


def _local(
    target: _Target,
    points: torch.Tensor,
    basis: torch.Tensor,
    outer: float,
    mean: torch.Tensor,
    k: torch.Tensor,
) -> _Local | None:
    """`_Local` of the Gaussian with this mean and ``K``; None where a gradient or a variance overflows."""
    if not bool(torch.isfinite(mean).all() & torch.isfinite(k).all()):
        return None
    root, inner = _power(k, 0.5), points @ basis
    g = target.gradient(mean + points + inner @ (basis @ (root - torch.eye(len(k)).to(root))).T)
    average, local = g.mean(0), (g @ basis) @ root
    hessian = inner.T @ local / len(points)
    if not bool(torch.isfinite(average).all() & torch.isfinite(hessian).all()):
        return None
    lam, q = torch.linalg.eigh((hessian + hessian.T) / 2)
    frame = root @ q
    pull = frame.T @ (basis.T @ average)
    outside = average - basis @ (basis.T @ average)
    moved = float((pull**2 / lam.abs().clamp(min=1.0)).sum() + (outside**2).sum() / outer) ** 0.5
    return _Local(mean, basis, frame, lam, pull, outside, outer, moved) if math.isfinite(moved) else None


def _data(run: Run, case: int) -> int:
    """The number of values that were observed."""
    seen = [
        o.y[case].numel() if o.mask is None else int(o.mask[case].sum()) for o in run.posterior.observations
    ]
    return max(1, sum(seen))


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
