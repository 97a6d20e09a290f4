"""Moment matching: ``D_y = D + Cov B^T (R + B Cov B^T)^-1 (y - B D)`` (Rozet et al. 2024, arXiv 2405.13712, eq. 14).

Exact for Gaussian priors with the exact denoising covariance. A learned network's Jacobian is
neither symmetric nor positive, so what stands for ``Cov[z0 | z]`` is a named choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.linalg import cg
from sciddiff.methods.base import Guided, GuidedDenoiser, Run

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["MMPS"]

_FORM_LIMIT = 2**27
_CHOICES = ("exact", "guarded", "gaussian", "scalar")


@final
@dataclass(frozen=True)
class MMPS(GuidedDenoiser):
    """Moment-matching posterior sampling, for linear operators and Gaussian noise.

    Args:
        covariance: what stands for ``Cov[z0 | z]``; None takes the prior's best:
            "exact": ``sigma^2 J C``, for exact priors. Where it does not depend on z, ``B Cov B^T`` is formed and
            factored once per sigma; else CG on VJPs, to ``rtol`` or `ConvergenceError`.
            "guarded": the same, symmetrised, for networks; CG stops at negative curvature. Two VJPs an iteration.
            "gaussian": that of the Gaussian fitted to the prior: positive, no VJP.
            "scalar": ``gamma sigma^2 C`` in the solve and one VJP outside (Rozet and Louppe 2023, SDA).
        rtol: relative residual of the Krylov solves.
        max_iterations: most iterations of a Krylov solve.
        gamma: the factor of "scalar".

    Raises:
        InputError: on settings out of range.
        ConvergenceError: where CG does not reach ``rtol`` ("exact" and "gaussian").

    Example:
        >>> MMPS(covariance="gaussian")
        MMPS(covariance='gaussian', rtol=1e-06, max_iterations=500, gamma=0.01)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    reference: ClassVar[str] = (
        "@inproceedings{rozet2024learning, title={Learning Diffusion Priors from Observations by Expectation Maximization}, "
        "author={Rozet, Fran{\\c{c}}ois and Andry, G{\\'e}r{\\^o}me and Lanusse, Fran{\\c{c}}ois and Louppe, Gilles}, booktitle={NeurIPS}, year={2024}}"
    )
    covariance: str | None = None
    rtol: float = 1e-6
    max_iterations: int = 500
    gamma: float = 1e-2

    def __post_init__(self) -> None:
        if self.covariance not in (None, *_CHOICES):
            raise InputError(
                "covariance",
                expected=f"one of {_CHOICES} or None",
                got=repr(self.covariance),
                fix="see the docstring of MMPS",
            )
        if not 0 < self.rtol < 1 or self.max_iterations < 1 or not self.gamma > 0:
            raise InputError(
                "rtol",
                expected="0 < rtol < 1, max_iterations >= 1 and gamma > 0",
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
        return "gaussian" if prior.gaussian_covariance(prior.sigma_max) is not None else "scalar"

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        reason = super().misfit(posterior)
        if (
            reason is None
            and self.choice(posterior) == "gaussian"
            and posterior.prior.gaussian_covariance(posterior.prior.sigma_max) is None
        ):
            return "the prior holds no fitted Gaussian for covariance='gaussian'"
        return reason

    def guide(self, run: Run) -> Guided:
        """The guided denoiser."""
        choice = self.choice(run.posterior)
        run.notes["denoising_covariance"] = choice
        prior = run.prior
        if choice == "exact" and prior.covariance(prior.sigma_max) is None or choice == "guarded":
            return _Krylov(self, run, guard=choice == "guarded")
        if choice == "scalar":
            return _Scalar(self, run)
        return _Fixed(self, run, choice)


@final
class _Fixed:
    """``Cov`` is the same for every ``z``: ``S = R + B Cov B^T`` is factored once per sigma, or solved by CG."""

    def __init__(self, method: MMPS, run: Run, choice: str) -> None:
        self.method, self.run, self.linear = method, run, run.posterior.linear_gaussian()
        self.covariance = run.prior.covariance if choice == "exact" else run.prior.gaussian_covariance
        self.form = self.linear.size * max(self.linear.size, run.prior.space.size) <= _FORM_LIMIT
        self.factors: dict[float, tuple[Covariance, torch.Tensor | None]] = {}
        if self.form:
            self.linear.matrix()

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        d = self.run.denoise(z, sigma)
        cov, factor = self.factor(sigma)
        r = self.linear.residual(d, cases)
        if factor is None:
            v = self.iterate(cov, r, cases)
        elif len(factor) == 1:
            v = torch.cholesky_solve(r.T, factor[0]).T
        else:
            v = torch.cholesky_solve(r[..., None], factor[cases])[..., 0]
        return d + cov.apply(self.linear.adjoint(v))

    def factor(self, sigma: float) -> tuple[Covariance, torch.Tensor | None]:
        if sigma not in self.factors:
            cov = self.covariance(sigma)
            assert cov is not None  # `misfit` has refused priors without one
            self.factors[sigma] = (cov, self.cholesky(cov) if self.form else None)
        return self.factors[sigma]

    def cholesky(self, cov: Covariance) -> torch.Tensor:
        """Factor of ``R + B Cov B^T``, one, or one per case where other values are missing in each."""
        half = cov.sqrt_adjoint(self.linear.matrix()).flatten(1)
        s = (half @ half.T + self.linear.noise_matrix)[None]
        mask = self.linear.mask
        if mask is not None:
            # a missing value is its own unit equation, whose residual is 0
            seen = (mask[:1] if bool((mask == mask[:1]).all()) else mask).to(s)
            s = seen[:, :, None] * s * seen[:, None, :] + torch.diag_embed(1 - seen)
        return _cholesky(s)

    def iterate(self, cov: Covariance, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        seen = None if self.linear.mask is None else self.linear.mask[cases]

        def apply(v: torch.Tensor) -> torch.Tensor:
            self.run.cost.operator_calls += 2 * len(v)
            out = self.linear.noise_apply(v) + self.linear.apply(cov.apply(self.linear.adjoint(v)))
            return out if seen is None else torch.where(seen, out, 0.0)

        return _solve(self.method, apply, r, guard=False)


@final
class _Krylov:
    """``Cov = sigma^2 C J^T`` by VJPs, one after the other through the one forward of the denoiser."""

    def __init__(self, method: MMPS, run: Run, *, guard: bool) -> None:
        self.method, self.run, self.guard = method, run, guard
        self.linear = run.posterior.linear_gaussian()

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            d = self.run.denoise(z, sigma)
        prior, cost, linear = self.run.prior, self.run.cost, self.linear

        def covariance(w: torch.Tensor) -> torch.Tensor:
            cost.vjps += len(w)
            (jw,) = torch.autograd.grad(d, z, w, retain_graph=True)
            return sigma**2 * prior.reference.apply(jw)

        def symmetric(w: torch.Tensor) -> torch.Tensor:
            # J C is symmetric for a true denoiser; for a network the mean with its transpose is
            cost.vjps += 2 * len(w)
            (jw,) = torch.autograd.grad(d, z, w, retain_graph=True)
            jv = _jvp(prior.denoise, z.detach(), sigma, prior.reference.apply(w))
            return 0.5 * sigma**2 * (prior.reference.apply(jw) + jv)

        cov = symmetric if self.guard else covariance
        seen = None if linear.mask is None else linear.mask[cases]

        def apply(v: torch.Tensor) -> torch.Tensor:
            cost.operator_calls += 2 * len(v)
            out = linear.noise_apply(v) + linear.apply(cov(linear.adjoint(v)))
            return out if seen is None else torch.where(seen, out, 0.0)

        mean = d.detach()
        cost.operator_calls += 2 * len(z)
        v = _solve(self.method, apply, linear.residual(mean, cases), guard=self.guard)
        return mean + cov(linear.adjoint(v))


@final
class _Scalar:
    """SDA's rule: ``D_y = D + sigma^2 C J^T B^T (R + gamma sigma^2 B C B^T)^-1 (y - B D)``."""

    def __init__(self, method: MMPS, run: Run) -> None:
        self.method, self.run, self.linear = method, run, run.posterior.linear_gaussian()

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        prior, linear, cost = self.run.prior, self.linear, self.run.cost
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            d = self.run.denoise(z, sigma)
        seen = None if linear.mask is None else linear.mask[cases]

        def apply(v: torch.Tensor) -> torch.Tensor:
            cost.operator_calls += 2 * len(v)
            spread = linear.apply(prior.reference.apply(linear.adjoint(v)))
            out = linear.noise_apply(v) + self.method.gamma * sigma**2 * spread
            return out if seen is None else torch.where(seen, out, 0.0)

        v = _solve(self.method, apply, linear.residual(d.detach(), cases), guard=False)
        cost.vjps += len(z)
        (jw,) = torch.autograd.grad(d, z, linear.adjoint(v))
        return d.detach() + sigma**2 * prior.reference.apply(jw)


def _solve(method: MMPS, apply: object, r: torch.Tensor, *, guard: bool) -> torch.Tensor:
    found = cg(apply, r, rtol=method.rtol, max_iterations=method.max_iterations, guard=guard)  # type: ignore[arg-type]
    worst = float(found.residual.max())
    if not guard and not worst <= method.rtol:
        raise ConvergenceError(
            f"MMPS: after {found.iterations} CG iterations the relative residual is {worst:.2g}, above rtol = {method.rtol:g}. Raise max_iterations or rtol; on a learned prior use covariance='gaussian' or 'guarded'."
        )
    return found.x


def _cholesky(s: torch.Tensor) -> torch.Tensor:
    factor, info = torch.linalg.cholesky_ex(s)
    if bool((info != 0).any()):
        raise ConvergenceError(
            "MMPS: R + A Cov A^T is not positive definite in this precision. Use float64, or a larger noise sd."
        )
    return factor


def _jvp(denoise: object, z: torch.Tensor, sigma: float, v: torch.Tensor) -> torch.Tensor:
    """``J v`` by reverse mode twice, which every network supports."""
    with torch.enable_grad():
        z = z.requires_grad_()
        d = denoise(z, sigma)  # type: ignore[operator]
        u = torch.zeros_like(d, requires_grad=True)
        (g,) = torch.autograd.grad(d, z, u, create_graph=True)
        (out,) = torch.autograd.grad(g, u, v)
    return out
