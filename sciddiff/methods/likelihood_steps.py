"""Draws of ``p(y | z) N(z; centre, Cov)`` up to a constant: the step that splitting methods share.

A linear operator with Gaussian noise has it in closed form (Matheron's rule): with ``u`` a draw of
``N(centre, Cov)`` and ``e`` of ``N(0, R)``, it is ``u + Cov B^T (R + B Cov B^T)^-1 (y - e - B u)``. Elsewhere
Hamiltonian trajectories leave the law invariant; their step follows from the noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, final

import torch

from sciddiff.covariance import Covariance, multiple
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.linalg import cg
from sciddiff.methods.base import Rows, Run, integrate, likelihood_gradient
from sciddiff.noise import Gaussian
from sciddiff.random import Streams
from sciddiff.solvers import DPMSolver
from sciddiff.solvers.base import checked

if TYPE_CHECKING:
    from sciddiff.posterior import LinearGaussian, Observation

__all__ = ["GaussianStep", "HamiltonianStep", "LikelihoodStep", "likelihood_step", "stiffness"]

_FORM_LIMIT = 2**27


class LikelihoodStep(Protocol):
    """One step that leaves ``p(y | z)^(1/tempering^2) N(z; centre, Cov)`` invariant, for every row."""

    def __call__(self, start: torch.Tensor, centre: torch.Tensor, sigma: float, rows: Rows) -> torch.Tensor:
        """A draw, of the shape of ``start``; ``Cov`` is that of the level ``sigma``."""


def likelihood_step(
    run: Run,
    covariance: Callable[[float], Covariance],
    *,
    moves: int,
    leaps: int,
    tempering: float = 1.0,
) -> LikelihoodStep:
    """The step in closed form where the observations are linear and Gaussian, else by Hamiltonian trajectories.

    Args:
        run: the run.
        covariance: ``Cov`` of a noise level, at most ``sigma^2 C``.
        moves: trajectories of one step.
        leaps: gradients of a trajectory.
        tempering: factor on the sd of the noise; 1 is Bayes' rule.
    """
    offers = run.posterior.offers()
    closed = offers["linear"] is None and offers["gaussian"] is None
    run.notes["likelihood_step"] = "closed form" if closed else "hamiltonian"
    if closed:
        return GaussianStep(run, covariance, tempering)
    return HamiltonianStep(run, covariance, moves, leaps, tempering)


@final
class GaussianStep:
    """An exact, independent draw; ``R + B Cov B^T`` is factored once per level, or solved by CG where it is large."""

    def __init__(
        self, run: Run, covariance: Callable[[float], Covariance], tempering: float = 1.0, rtol: float = 1e-6
    ) -> None:
        self.run, self.covariance, self.tempering, self.rtol = run, covariance, tempering, rtol
        self.linear = run.posterior.linear_gaussian()
        self.seen, self.pattern = missing_patterns(self.linear)
        systems, size = len(self.seen), self.linear.size
        self.form = size * max(size * systems, run.prior.space.size) <= _FORM_LIMIT
        if self.form:
            run.cost.operator_calls += self.linear.prepare()
        self.kept = max(1, _FORM_LIMIT // (size**2 * systems))
        self.factors: dict[float, tuple[Covariance, torch.Tensor | None]] = {}

    def __call__(self, start: torch.Tensor, centre: torch.Tensor, sigma: float, rows: Rows) -> torch.Tensor:
        """See `LikelihoodStep`; ``start`` is not used."""
        cov, linear = self.factor(sigma)[0], self.linear
        u = centre + cov.sqrt(rows.streams.normal(cov.white_shape, dtype=centre.dtype, device=centre.device))
        e = self.tempering * linear.noise_draw(rows.streams)
        e = e if linear.mask is None else torch.where(linear.mask[rows.cases], e, 0.0)
        return u + self.gain(sigma, linear.residual(u, rows.cases) - e, rows.cases)

    def nearest(self, centre: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        """The mode, ``centre + Cov B^T (R + B Cov B^T)^-1 (y - B centre)``."""
        return centre + self.gain(sigma, self.linear.residual(centre, cases), cases)

    def gain(self, sigma: float, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``Cov B^T (R + B Cov B^T)^-1 r`` on what was observed."""
        cov, factor = self.factor(sigma)
        if factor is None:
            self.run.cost.operator_calls += 2 * len(r)
            return cov.apply(self.linear.adjoint(self._iterate(cov, r, cases)))
        v = torch.empty_like(r)
        for i, own in groups(self.pattern[cases]):
            v[own] = torch.cholesky_solve(r[own].double().T, factor[i]).T.to(r)
        return cov.apply(self.linear.adjoint(v))

    def factor(self, sigma: float) -> tuple[Covariance, torch.Tensor | None]:
        """``Cov`` and the factors of ``R + B Cov B^T``; None where that is too large to form."""
        if sigma not in self.factors:
            if len(self.factors) >= self.kept:
                self.factors.clear()
            cov = self.covariance(sigma)
            self.factors[sigma] = (cov, self._cholesky(cov) if self.form else None)
        return self.factors[sigma]

    def _cholesky(self, cov: Covariance) -> torch.Tensor:
        """Factors of ``R + B Cov B^T``, ``(patterns, size, size)``, in float64."""
        half = cov.sqrt_adjoint(self.linear.matrix()).flatten(1).double()
        noise = self.tempering**2 * self.linear.noise_matrix.double()
        factor: torch.Tensor
        factor, info = torch.linalg.cholesky_ex(visible(half @ half.T + noise, self.seen))
        if bool((info != 0).any()):
            raise ConvergenceError(
                "R + A Cov A^T is not positive definite to rounding. Use a larger noise sd, or a prior in float64."
            )
        return factor

    def _iterate(self, cov: Covariance, r: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        linear, seen = self.linear, self.seen[self.pattern[cases]]

        def apply(v: torch.Tensor) -> torch.Tensor:
            self.run.cost.operator_calls += 2 * len(v)
            through = linear.apply(cov.apply(linear.adjoint(v)))
            return torch.where(seen, self.tempering**2 * linear.noise_apply(v) + through, 0.0)

        found = cg(
            apply,
            r,
            rtol=self.rtol,
            max_iterations=1000,
            precondition=lambda v: torch.where(seen, _solve(linear, v) / self.tempering**2, 0.0),
        )
        worst = float(found.residual.max())
        if not worst <= self.rtol:
            raise ConvergenceError(
                f"the likelihood step: after {found.iterations} CG iterations the relative residual is {worst:.2g}, "
                f"above {self.rtol:g}. Use float64, or a larger noise sd."
            )
        return found.x


@final
class HamiltonianStep:
    """Trajectories that keep the Gaussian exactly and are corrected by accepting or rejecting, row by row.

    Between kicks by the gradient of the likelihood, ``v += h/2 Cov g``, position and velocity turn about the
    centre, which solves the Gaussian's part of the motion (Beskos et al. 2011, "Hybrid Monte Carlo on Hilbert
    spaces", section 3): its stiffness costs nothing. The kicks change ``v^T Cov^+ v / 2`` by ``h/2 g^T v +
    h^2/8 g^T Cov g``, so that no inverse of ``Cov`` is needed.

    The step is ``h = min(1.5, 2 m^-1/4) (1 + lambda)^-1/2`` with ``lambda`` the largest curvature of the
    likelihood in the metric of ``Cov`` and m the number of data, times a random factor between 1/4 and 1 for
    every trajectory.
    """

    def __init__(
        self,
        run: Run,
        covariance: Callable[[float], Covariance],
        moves: int,
        leaps: int,
        tempering: float = 1.0,
    ) -> None:
        self.run, self.covariance, self.moves, self.leaps = run, covariance, moves, leaps
        self.power = tempering**-2
        self.curvature = self.power * stiffness(run, run.prior.reference)
        self.most = self.power * stiffness(run, covariance(run.prior.sigma_max))
        data = sum(o.y[0].numel() for o in run.posterior.observations)
        self.length = min(1.5, 2 * min(data, run.prior.space.size) ** -0.25)
        self.tried, self.accepted = 0, 0

    def __call__(self, start: torch.Tensor, centre: torch.Tensor, sigma: float, rows: Rows) -> torch.Tensor:
        """See `LikelihoodStep`."""
        cov, z = self.covariance(sigma), start
        h = self.length / math.sqrt(1 + min(sigma**2 * self.curvature, self.most))
        level, g = self._level(z, rows.cases), self._gradient(z, rows.cases)
        for _ in range(self.moves):
            uniform = rows.streams.uniform((2,), dtype=z.dtype, device=z.device)
            white = rows.streams.normal(cov.white_shape, dtype=z.dtype, device=z.device)
            end, slope, heat = self._trajectory(
                z, centre, cov, cov.sqrt(white), g, h * 4.0 ** -uniform[:, 0], rows.cases
            )
            there = self._level(end, rows.cases)
            # a trajectory that leaves the support or overflows compares as False
            taken = uniform[:, 1].log() < there - level - heat
            wide = _per_row(taken, z)
            z, g, level = (
                torch.where(wide, end, z),
                torch.where(wide, slope, g),
                torch.where(taken, there, level),
            )
            self.tried, self.accepted = self.tried + len(z), self.accepted + int(taken.sum())
        self.run.notes["acceptance"] = self.accepted / self.tried
        checked(_per_row(level, z), 0, sigma)
        return z

    def _trajectory(
        self,
        z: torch.Tensor,
        centre: torch.Tensor,
        cov: Covariance,
        v: torch.Tensor,
        g: torch.Tensor,
        h: torch.Tensor,
        cases: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where it ends, the gradient there, and what the kicks added to the energy of the Gaussian's part."""
        heat, half = torch.zeros_like(h), _per_row(h / 2, z)
        cos, sin = _per_row(h.cos(), z), _per_row(h.sin(), z)
        pull = cov.apply(g)
        for _ in range(self.leaps):
            heat = heat + _inner(half * g, v + half / 2 * pull)
            v, off = v + half * pull, z - centre
            z, v = centre + cos * off + sin * v, cos * v - sin * off
            g = self._gradient(z, cases)
            pull = cov.apply(g)
            heat = heat + _inner(half * g, v + half / 2 * pull)
            v = v + half * pull
        return z, g, heat

    def _gradient(self, z: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        return self.power * likelihood_gradient(self.run, z, cases)

    def _level(self, z: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        self.run.cost.operator_calls += len(z)
        x = self.run.prior.normalisation.physical(z)
        return self.power * self.run.posterior.log_likelihood(x, cases)


def stiffness(run: Run, cov: Covariance, states: int = 4, iterations: int = 20) -> float:
    """Largest eigenvalue of ``F^T S A'^T I A' S F`` with ``F F^T = cov`` and ``I`` the Fisher information of the noise.

    The largest curvature that data add, in the metric of a covariance: ``1/sqrt`` of it is the smallest sd
    that one datum alone would leave, where ``cov`` has one. By power iteration at some draws of the prior, of
    which the largest counts; it does not depend on ``y``, on the seed or on what is missing.
    """
    prior = run.prior
    streams = Streams(0, range(states), purpose="stiffness")
    z = prior.draw(streams)
    if z is None:
        z = integrate(prior, run.denoise, streams, DPMSolver(steps=8), None, lambda steps: steps)
    x = prior.normalisation.physical(z)
    w = streams.normal(cov.white_shape, dtype=prior.dtype, device=prior.device)
    worst, scale = torch.zeros(states), prior.normalisation.scale.to(z)
    information = [_information(o, o.operator.apply(x)) for o in run.posterior.observations]
    for _ in range(iterations):
        w = w / _per_row(w.flatten(1).norm(dim=1).clamp(min=torch.finfo(w.dtype).tiny), w)
        step, pulled = scale * cov.sqrt(w), torch.zeros_like(z)
        for o, inform in zip(run.posterior.observations, information, strict=True):
            pulled = pulled + scale * o.operator.vjp(x, inform(_directional(o, x, step)))
        w = cov.sqrt_adjoint(pulled)
        worst = w.flatten(1).norm(dim=1)
    run.cost.operator_calls += states * (4 * iterations + 1) * len(information)
    return float(worst.max())


def multiples(reference: Covariance) -> Callable[[float], Covariance]:
    """``sigma -> sigma^2 C``."""
    return lambda sigma: multiple(reference, sigma**2)


def missing_patterns(linear: LinearGaussian) -> tuple[torch.Tensor, torch.Tensor]:
    """What is seen in each pattern of missing values, ``(patterns, size)``, and the pattern of each case."""
    if linear.mask is not None:
        seen, pattern = torch.unique(linear.mask, dim=0, return_inverse=True)
        return seen, pattern
    device = linear.prior.device
    seen = torch.ones((1, linear.size), dtype=torch.bool, device=device)
    return seen, torch.zeros(len(linear.target), dtype=torch.long, device=device)


def visible(matrix: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """One system for every pattern: a missing value is its own unit equation, whose right-hand side is 0."""
    s = seen.to(matrix)
    return s[:, :, None] * matrix * s[:, None, :] + torch.diag_embed(1 - s)


def groups(pattern: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """The patterns that occur, and which rows have each."""
    return [(i, pattern == i) for i in pattern.unique().tolist()]


def _information(o: Observation, mean: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The Fisher information of the noise at these noise-free values; off its diagonal for Gaussian noise only."""
    if isinstance(o.noise, Gaussian):
        return o.noise.covariance(o.operator.codomain.shape).solve
    many = mean.repeat_interleave(32, 0)
    y = o.noise.draw(many, Streams(0, range(len(many)), purpose="information"))
    power = (o.noise.score(y, many) ** 2).unflatten(0, (len(mean), 32)).mean(1)
    if not bool(torch.isfinite(power).all()):
        raise InputError(
            "method",
            expected="a likelihood with a finite gradient at draws of the prior, which sets the steps",
            got=f"{o.noise!r} without one",
            fix="let the operator end in a positive function where the noise needs a positive mean",
        )
    return lambda v: power * v


def _directional(o: Observation, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``A'(x) v`` by a central difference, which is exact for linear operators."""
    size = (x.flatten(1).norm(dim=1) + v.flatten(1).norm(dim=1)) / v.flatten(1).norm(dim=1).clamp(min=1e-30)
    step = _per_row(size * torch.finfo(x.dtype).eps ** (1 / 3), x)
    rise = o.operator.apply(x + step * v) - o.operator.apply(x - step * v)
    return rise / (2 * _per_row(step.flatten(), rise))


def _solve(linear: LinearGaussian, v: torch.Tensor) -> torch.Tensor:
    """``R^-1 v``, ``(rows, size)``."""
    out = []
    for o, part in zip(linear.observations, v.split(linear.sizes, 1), strict=True):
        assert isinstance(o.noise, Gaussian)
        shape = o.operator.codomain.shape
        out.append(o.noise.covariance(shape).solve(part.reshape(-1, *shape)).flatten(1))
    return torch.cat(out, 1)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1)


def _per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per row, broadcastable on a batch."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
