"""Moment matching: ``D_y = D + Cov B^T (R + B Cov B^T)^-1 (y - B D)`` (Rozet et al. 2024, arXiv 2405.13712, eq. 14).

Exact for Gaussian priors with the exact denoising covariance. A learned network's Jacobian is
neither symmetric nor positive, so what stands for ``Cov[z0 | z]`` is a named choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.covariance import Covariance, multiple
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.linalg import cg, lanczos_root
from sciddiff.methods.banded import banded
from sciddiff.methods.base import Guided, GuidedDenoiser, Run, tweedie
from sciddiff.noise import Gaussian
from sciddiff.posterior import check_count
from sciddiff.priors.spread import learned, unit
from sciddiff.random import Streams
from sciddiff.solvers import DPMSolver, Moments, Solver

if TYPE_CHECKING:
    from sciddiff.posterior import LinearGaussian, Posterior

__all__ = ["MMPS"]

Action = Callable[[torch.Tensor], torch.Tensor]

_FORM_LIMIT = 2**27
# so many data are solved for by a VJP each and a factorisation; CG takes about as many, and is not exact
_FEW = 8
# draws of N(0, Cov) are held to no less than this share of the noise's variance, which hides what is smaller
_SMALL = 1e-3
_unit = unit
_CHOICES = ("exact", "guarded", "gaussian", "unit", "scalar", "learned")


@final
@dataclass(frozen=True)
class MMPS(GuidedDenoiser):
    """Moment-matching posterior sampling, for linear operators and Gaussian noise.

    Args:
        covariance: what stands for ``Cov[z0 | z]``; None takes the prior's best of these:

            - "exact": ``sigma^2 J C``, for exact priors. Where it does not depend on z, ``R + B Cov B^T`` is formed
              and factored once per sigma (in information form, at a cost linear in the size of a series, where it is a sparse
              precision and each datum hangs on a few values; see `sciddiff.methods.banded`); else formed by a VJP a
              datum up to 8 data, and CG on VJPs beyond, to ``rtol`` or `ConvergenceError`. The solver `Moments`, its
              default, draws from it by Lanczos, at some 2 to 30 VJPs a step.
            - "guarded": the same, symmetrised, for networks; CG stops at negative curvature. Two VJPs an iteration.
              Experimental: a guard against divergence, not against inaccuracy.
            - "gaussian": that of the Gaussian fitted to the prior: positive, no VJP. The default of trained priors.
            - "unit": that of a Gaussian of variance one in normalised units: positive, no VJP. The default of networks
              without a fitted Gaussian.
            - "learned": "gaussian", or "unit" without a fitted Gaussian, times the factor that `training.calibrate`
              measured on held-out states at each noise level. On three learned priors (a series, digits, a graph) its
              CRPS on validation data was within 2 % of that of "gaussian", which so stays the default.
            - "scalar": ``gamma sigma^2 C`` in the solve and one VJP outside (Rozet and Louppe 2023, SDA).
        rtol: relative residual of the Krylov solves, in the norm of ``R^-1``; float32 does not reach much less than
            the default.
        draw_rtol: relative tolerance of the draws from ``Cov`` that the solver `Moments` takes by Lanczos; has to be
            small beside the Monte Carlo error only.
        max_iterations: most iterations of a Krylov solve.
        gamma: the factor of "scalar".

    Raises:
        InputError: on settings out of range.
        ConvergenceError: where CG does not reach ``rtol`` (all but "guarded"), Lanczos does not reach ``draw_rtol``, or
            the covariance to be drawn from has a negative eigenvalue.

    Example:
        >>> MMPS(covariance="gaussian")
        MMPS(covariance='gaussian', rtol=1e-05, max_iterations=500, gamma=0.01, draw_rtol=0.001)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    reference: ClassVar[str] = (
        "@inproceedings{rozet2024learning, title={Learning Diffusion Priors from Observations by Expectation Maximization}, "
        "author={Rozet, Fran{\\c{c}}ois and Andry, G{\\'e}r{\\^o}me and Lanusse, Fran{\\c{c}}ois and Louppe, Gilles}, booktitle={NeurIPS}, year={2024}}"
    )
    covariance: str | None = None
    rtol: float = 1e-5
    max_iterations: int = 500
    gamma: float = 1e-2
    draw_rtol: float = 1e-3

    def __post_init__(self) -> None:
        if self.covariance not in (None, *_CHOICES):
            raise InputError(
                "covariance",
                expected=f"one of {_CHOICES} or None",
                got=repr(self.covariance),
                fix="see the docstring of MMPS",
            )
        check_count("max_iterations", self.max_iterations)
        numbers = (self.rtol, self.draw_rtol, self.gamma)
        if (
            any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers)
            or not (0 < self.rtol < 1 and 0 < self.draw_rtol < 1)
            or not 0 < self.gamma < math.inf
        ):
            raise InputError(
                "rtol",
                expected="0 < rtol < 1, 0 < draw_rtol < 1 and gamma > 0",
                got=repr(self),
                fix="leave them at their defaults",
            )

    def choice(self, posterior: Posterior) -> str:
        """The denoising covariance that is used on this posterior."""
        if self.covariance is not None:
            return self.covariance
        prior = posterior.prior
        if prior.exact:
            return "exact"
        return "gaussian" if prior.gaussian_covariance(prior.sigma_max) is not None else "unit"

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        reason = super().misfit(posterior)
        if (
            reason is None
            and self.choice(posterior) == "gaussian"
            and posterior.prior.gaussian_covariance(posterior.prior.sigma_max) is None
        ):
            return "the prior holds no fitted Gaussian for covariance='gaussian'"
        if reason is None and self.choice(posterior) == "learned" and posterior.prior.spread is None:
            return "the prior has no measured spread for covariance='learned'; see training.calibrate"
        return reason

    def guide(self, run: Run) -> Guided:
        """The guided denoiser."""
        choice = self.choice(run.posterior)
        run.notes["denoising_covariance"] = choice
        if choice == "gaussian":
            given = run.prior.gaussian_covariance
            return banded(run, given) or _Fixed(self, run, given)
        if choice == "unit":
            return _Fixed(self, run, partial(_unit, run.prior.reference), own=False)
        if choice == "learned":
            return _Fixed(self, run, partial(learned, run.prior))
        if choice == "scalar":
            return _Scalar(self, run)
        if run.prior.covariance(run.prior.sigma_max) is not None:
            return banded(run, run.prior.covariance) or _Fixed(self, run, run.prior.covariance)
        return _Krylov(self, run, guard=choice == "guarded")


@final
class _Fixed:
    """``Cov`` is the same for every ``z``: ``S = R + B Cov B^T`` is factored once per sigma, or solved by CG."""

    def __init__(
        self, method: MMPS, run: Run, covariance: Callable[[float], Covariance | None], *, own: bool = True
    ) -> None:
        self.run, self.covariance = run, covariance
        self.linear = run.posterior.linear_gaussian()
        # one system for every pattern of missing values
        mask = self.linear.mask
        self.seen: torch.Tensor | None = None
        self.pattern: torch.Tensor | None = None
        if mask is not None:
            self.seen, self.pattern = torch.unique(mask, dim=0, return_inverse=True)
        self.system = _System(method, run)
        size, systems = self.linear.size, 1 if self.seen is None else len(self.seen)
        self.form = size * max(size * systems, run.prior.space.size) <= _FORM_LIMIT
        self.factors: dict[float, tuple[Covariance, torch.Tensor | None]] = {}
        if self.form:
            # kept by the posterior; made here so that the first run rounds as every later one does
            run.cost.operator_calls += self.linear.prepare()
        self.kept = max(1, _FORM_LIMIT // (size**2 * systems))
        # exact where the covariance is the prior's own; elsewhere it is a guess, which more steps correct
        own = own and run.prior.exact and run.prior.covariance(run.prior.sigma_max) is not None
        self.solver: Solver = Moments() if own else Moments(steps=64)

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        d = self.run.denoise(z, sigma)
        return d + self.gain(sigma, self.linear.residual(d, cases), cases)

    def draw(self, z: torch.Tensor, sigma: float, cases: torch.Tensor, streams: Streams) -> torch.Tensor:
        """A draw of ``N(D_y, Cov[z0 | z, y])``: condition one of ``N(D, Cov)`` and its data (Matheron's rule)."""
        cov, _ = self.factor(sigma)
        prior = self.run.prior
        white = streams.normal(cov.white_shape, dtype=prior.dtype, device=prior.device)
        z0 = self.run.denoise(z, sigma) + cov.sqrt(white)
        return z0 + self.gain(sigma, _misses(self.linear, z0, cases, streams), cases)

    def gain(self, sigma: float, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``Cov B^T (R + B Cov B^T)^-1 r`` on what was observed."""
        cov, factor = self.factor(sigma)
        if factor is None:
            return self.system.solve(cov.apply, r, cases)[1]
        return cov.apply(self.linear.adjoint(self.direct(factor, r, cases)))

    def weights(self, sigma: float, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``(R + B Cov B^T)^-1 r`` on what was observed."""
        cov, factor = self.factor(sigma)
        return self.system.solve(cov.apply, r, cases)[0] if factor is None else self.direct(factor, r, cases)

    def factor(self, sigma: float) -> tuple[Covariance, torch.Tensor | None]:
        if sigma not in self.factors:
            cov = self.covariance(sigma)
            assert cov is not None  # `misfit` has refused priors without one
            if len(self.factors) >= self.kept:
                self.factors.clear()
            self.factors[sigma] = (cov, self.cholesky(cov) if self.form else None)
        return self.factors[sigma]

    def cholesky(self, cov: Covariance) -> torch.Tensor:
        """Factors of ``R + B Cov B^T``, ``(patterns, size, size)``, in float64."""
        half = cov.sqrt_adjoint(self.linear.matrix()).flatten(1).double()
        s = (half @ half.T + self.linear.noise_matrix.double())[None]
        return _cholesky(s, self.seen)

    def direct(self, factor: torch.Tensor, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        if self.pattern is None:
            return torch.cholesky_solve(r.double().T, factor[0]).T.to(r)
        v, pattern = torch.empty_like(r), self.pattern[cases]
        for i in pattern.unique().tolist():
            v[pattern == i] = torch.cholesky_solve(r[pattern == i].double().T, factor[i]).T.to(r)
        return v


@final
class _Krylov:
    """``Cov = sigma^2 C J^T`` by VJPs, one after the other through the one forward of the denoiser."""

    def __init__(self, method: MMPS, run: Run, *, guard: bool) -> None:
        self.method, self.run = method, run
        self.tweedie = _symmetric if guard else tweedie
        self.linear, self.system = run.posterior.linear_gaussian(), _System(method, run, guard=guard)
        self.form = self.linear.size <= min(_FEW, method.max_iterations) and not guard
        if self.form:
            run.cost.operator_calls += self.linear.prepare()
        # draws need a Jacobian that is symmetric and positive, as no network's is
        self.solver: Solver = Moments() if run.prior.exact and not guard else DPMSolver()

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        d, cov = self.tweedie(self.run, z, sigma)
        return d + self.gain(cov, self.linear.residual(d, cases), cases)

    def draw(self, z: torch.Tensor, sigma: float, cases: torch.Tensor, streams: Streams) -> torch.Tensor:
        """A draw of ``N(D_y, Cov[z0 | z, y])``, as `_Fixed.draw`; that of ``N(0, Cov)`` is a root by Lanczos."""
        d, cov = self.tweedie(self.run, z, sigma)
        z0 = d + self.spread(cov, sigma, streams)
        return z0 + self.gain(cov, _misses(self.linear, z0, cases, streams), cases)

    def gain(self, cov: Action, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``Cov B^T (R + B Cov B^T)^-1 r`` on what was observed."""
        if self.form:
            return self.formed(cov, r, cases)
        self.run.cost.operator_calls += len(r)
        return self.system.solve(cov, r, cases)[1]

    def formed(self, cov: Action, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """`gain` by ``Cov B^T``, one VJP a datum."""
        linear, matrix = self.linear, self.linear.matrix()
        rows = torch.stack([cov(b.expand(len(r), *b.shape)).flatten(1) for b in matrix], 1)
        s = linear.noise_matrix.double() + (rows @ matrix.flatten(1).T).double()
        factor = _cholesky(s, None if linear.mask is None else linear.mask[cases])
        v = torch.cholesky_solve(r.double()[:, :, None], factor).to(r)
        return (v.mT @ rows).reshape(-1, *matrix.shape[1:])

    def spread(self, cov: Action, sigma: float, streams: Streams) -> torch.Tensor:
        """A draw of ``N(0, Cov)``, from reference noise: ``Cov C^+`` is self-adjoint in the metric of ``C^+``."""
        reference, noise = self.run.prior.reference, self.run.prior.noise(streams)

        def flat(action: Action) -> Action:
            return lambda v: action(v.reshape(noise.shape)).flatten(1)

        found = lanczos_root(
            flat(cov),
            noise.flatten(1),
            rtol=self.method.draw_rtol,
            max_iterations=self.method.max_iterations,
            metric=flat(reference.solve),
            least=_SMALL * sigma**2,
        )
        worst = float(found.change.max())
        # no eigenvalue is larger than sigma^2 for a log-concave prior: rounding is judged by that
        unit = found.largest.clamp(min=_SMALL * sigma**2)
        negative = float((found.lowest / unit).min())
        if not negative >= -_rounding(noise.dtype):
            raise ConvergenceError(
                f"MMPS: the denoiser's covariance has a negative eigenvalue, {negative:.2g} of the largest, at sigma = "
                f"{sigma:.4g}, so that nothing can be drawn from it. Use covariance='gaussian' or 'unit', a solver "
                "other than Moments, or float64."
            )
        if not worst <= self.method.draw_rtol:
            raise ConvergenceError(
                f"MMPS: after {found.iterations} Lanczos iterations a draw still changes by {worst:.2g}, more than "
                f"draw_rtol = {self.method.draw_rtol:g}. Raise max_iterations or draw_rtol, or use float64."
            )
        return found.x.reshape(noise.shape)


def _rounding(dtype: torch.dtype) -> float:
    """What an eigenvalue of 0 may be below it, relative to the largest."""
    return float(torch.finfo(dtype).eps ** 0.5)


def _cholesky(s: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Factors of ``R + B Cov B^T``, ``(systems, size, size)``, for the values seen in each."""
    if seen is not None:
        # a missing value is its own unit equation, whose residual is 0
        here = seen.to(s)
        s = here[:, :, None] * s * here[:, None, :] + torch.diag_embed(1 - here)
    factor: torch.Tensor
    factor, info = torch.linalg.cholesky_ex(s)
    if bool((info != 0).any()):
        raise ConvergenceError(
            "MMPS: R + A Cov A^T is not positive definite to rounding. Use a larger noise sd, or a prior in float64; "
            "on a learned prior use covariance='gaussian' or 'guarded'."
        )
    return factor


def _misses(linear: LinearGaussian, z0: torch.Tensor, cases: torch.Tensor, streams: Streams) -> torch.Tensor:
    """By how much the data miss those that ``z0`` would have made, with noise of their own; 0 where missing."""
    r = linear.residual(z0, cases) - linear.noise_draw(streams)
    return r if linear.mask is None else torch.where(linear.mask[cases], r, 0.0)


@final
class _Scalar:
    """SDA's rule: ``D_y = D + sigma^2 C J^T B^T (R + gamma sigma^2 B C B^T)^-1 (y - B D)``."""

    def __init__(self, method: MMPS, run: Run) -> None:
        self.run, reference = run, run.prior.reference
        # the covariance in the solve does not depend on z, so that it is factored as a fixed one is
        self.fixed = _Fixed(method, run, lambda sigma: multiple(reference, method.gamma * sigma**2))

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        d, cov = tweedie(self.run, z, sigma, once=True)
        linear = self.fixed.linear
        return d + cov(linear.adjoint(self.fixed.weights(sigma, linear.residual(d, cases), cases)))


@final
class _System:
    """``(R + B Cov B^T) v = r`` by CG preconditioned with ``R^-1``, so that units of ``y`` do not matter."""

    def __init__(self, method: MMPS, run: Run, *, guard: bool = False) -> None:
        self.method, self.run, self.guard = method, run, guard
        self.linear = run.posterior.linear_gaussian()
        self.mask = self.linear.mask

    def solve(self, cov: Action, r: torch.Tensor, cases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``v`` and ``Cov B^T v``."""
        linear, seen = self.linear, None if self.mask is None else self.mask[cases]
        pulled: list[torch.Tensor] = []

        def visible(v: torch.Tensor) -> torch.Tensor:
            return v if seen is None else torch.where(seen, v, 0.0)

        def pull(v: torch.Tensor) -> torch.Tensor:
            self.run.cost.operator_calls += 2 * len(v)
            pulled[:] = [cov(linear.adjoint(v))]
            return pulled[0]

        found = cg(
            lambda v: visible(linear.noise_apply(v) + linear.apply(pull(v))),
            r,
            rtol=self.method.rtol,
            max_iterations=self.method.max_iterations,
            guard=self.guard,
            precondition=lambda v: visible(_noise_solve(linear, v)),
        )
        worst = float(found.residual.max())
        if not self.guard and not worst <= self.method.rtol:
            raise ConvergenceError(
                f"MMPS: after {found.iterations} CG iterations the relative residual is {worst:.2g}, above rtol = "
                f"{self.method.rtol:g}. Raise max_iterations or rtol, or use float64; on a learned prior use "
                "covariance='gaussian' or 'guarded'."
            )
        # the last product of `cg` is that with its answer, unless it was guarded or had nothing to do
        return found.x, pull(found.x) if self.guard or not pulled else pulled[0]


def _noise_solve(linear: LinearGaussian, v: torch.Tensor) -> torch.Tensor:
    """``R^-1 v``, ``(rows, size)``."""
    out = []
    for o, part in zip(linear.observations, v.split(linear.sizes, 1), strict=True):
        assert isinstance(o.noise, Gaussian)
        shape = o.operator.codomain.shape
        out.append(o.noise.covariance(shape).solve(part.reshape(-1, *shape)).flatten(1))
    return torch.cat(out, 1)


def _symmetric(run: Run, z: torch.Tensor, sigma: float) -> tuple[torch.Tensor, Action]:
    """``D(z)`` and ``w -> sigma^2 (C J^T + J C) w / 2``; ``J C`` is symmetric for a true denoiser, not for a network.

    ``J v`` is the derivative of ``J^T u`` in ``u``, so that reverse mode is all that a network has to support.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        d = run.denoise(z, sigma)
        u = torch.zeros_like(d, requires_grad=True)
        (pulled,) = torch.autograd.grad(d, z, u, create_graph=True)
    run.cost.vjps += len(z)
    reference = run.prior.reference

    def covariance(w: torch.Tensor) -> torch.Tensor:
        run.cost.vjps += 2 * len(w)
        (jw,) = torch.autograd.grad(d, z, w, retain_graph=True)
        (jv,) = torch.autograd.grad(pulled, u, reference.apply(w), retain_graph=True)
        return 0.5 * sigma**2 * (reference.apply(jw) + jv)

    return d.detach(), covariance
