"""Twists for particles: what is believed of ``y`` on the way, and a step of the chain that leans to it.

Given a noisy state ``z`` at level s, ``z0 ~ N(D, Sigma)`` and ``y ~ N(A(D) + B (z0 - D), R)``, with ``B`` the
derivative of ``A``. A step to level t is ``z' = r z + (1 - r) z0 + sqrt(v) n``, ``r = (t/s)^2``, ``v = t^2 (1 - r)``.
All of them are jointly Gaussian: the chain ``p(z' | z)``, the proposal ``p(z' | z, y)`` and the twist
``psi(z) = p(y | z)`` have exact densities, and ``p(z' | z) / p(z' | z, y) = psi(z) / p(y | z, z')``.

In coordinates where ``C = F F^T`` and R are the identity ``Sigma = c (I - V^T V) + V^T diag(tau) V``, with a few
orthonormal rows ``V``: a block Krylov space of ``Cov[z0 | z]`` that starts from the data's directions ``W = R^-1/2 B F``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Self, final

import torch

from sciddiff.covariance import Covariance, multiple
from sciddiff.errors import ConvergenceError
from sciddiff.methods.base import Guided, GuidedDenoiser, Run, likelihood_gradient, tweedie
from sciddiff.methods.linearised import Sited
from sciddiff.noise import Gaussian
from sciddiff.posterior import Observation
from sciddiff.priors.base import Prior
from sciddiff.priors.spread import learned
from sciddiff.random import Streams
from sciddiff.solvers.likelihood import ClosedForm

__all__ = ["Conjugate", "Look", "Moments", "Observed", "Shifted", "guided_by", "tempered"]

Product = Callable[[torch.Tensor], torch.Tensor]
Power = Callable[[float], float]
_SHARED, _PROBES, _SIMULATIONS, _MOST = 256, 16, 64, 100


@dataclass(frozen=True)
class Look:
    """What is known of every row at one level. Where a tensor has one row, it stands for all.

    Attributes:
        d: the denoised states, ``(rows, *shape)``.
        twist: ``log psi``, ``(rows,)``.
        density: ``log p(z)`` where the chain is held to it (see `Chain`), else 0, ``(rows or 1,)``.
    """

    d: torch.Tensor
    twist: torch.Tensor
    density: torch.Tensor

    def take(self, index: torch.Tensor) -> Self:
        """The rows of an index."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v if len(v) == 1 else v[index] for k, v in parts.items()})

    @classmethod
    def join(cls, looks: list[Self]) -> Self:
        """The rows of many, of which those that stand for all are the same."""
        if len(looks) == 1:
            return looks[0]
        parts = {}
        for name in (f.name for f in fields(cls)):
            rows = [getattr(look, name) for look in looks]
            shared = any(len(look.d) > 1 for look in looks) and all(len(r) == 1 for r in rows)
            # a chunk may have met all directions sooner than another; zeros stand for none
            parts[name] = rows[0] if shared else torch.cat(_padded(rows))
        return replace(looks[0], **parts)


@final
class Chain:
    """What a step of the chain lacks to be the prior's own, where the prior knows the density of noisy states.

    With ``z = z' + sqrt(s^2 - t^2) n`` the exact step back is ``p_t(z') p(z | z') / p_s(z)``. Weighed by
    that, particles meet the exact law in any number of steps. The last step, to 0, is left as it is: from ``sigma_min`` it
    is Gaussian to rounding, and a prior may have points there. Nothing is done for Gaussian priors, whose chain
    is theirs, nor in more than 100 dimensions: what a step lacks where the data do not see it would cost more
    weight than it mends. These closed forms are not counted as forwards; that of a mixture takes about as long
    as one.

    Args:
        prior: the prior.
    """

    def __init__(self, prior: Prior) -> None:
        self.reference, self.rank = prior.reference, prior.reference.rank
        self.closed: ClosedForm | None = None
        if isinstance(prior, ClosedForm) and prior.covariance(prior.sigma_max) is None and self.rank <= _MOST:
            self.closed = prior

    def density(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """``log p_sigma(z)``, 0 where it is not known, ``(rows,)``."""
        return _zeros(z) if self.closed is None else self.closed.log_density(z, sigma).double()

    def lack(
        self, z: torch.Tensor, look: Look, s: float, t: float, step: torch.Tensor, spread: Spread
    ) -> torch.Tensor | float:
        """``log p(z | z') - log p_s(z)`` less the log density of the chain's step.

        Args:
            z: where it started, at level s; of no meaning where s is infinite.
            look: from there.
            s: infinity at the start.
            t: the level of ``z'``.
            step: ``F^-1 (z' - r z - (1 - r) D)``.
            spread: covariance of ``z0`` in the chain.
        """
        if self.closed is None or t == 0:
            return 0.0
        step = self.white(self.reference.sqrt(step.reshape(-1, *self.reference.white_shape)))
        r = (t / s) ** 2
        own = _log_step(step, t**2 * (1 - r), 1 - r, spread, self.rank)
        if math.isinf(s):
            return 0.5 * self.reference.logdet - own
        noise = ((1 - r) * self.white(z - look.d) - step).square().sum(1) / (s**2 - t**2)
        back = -0.5 * (noise + self.rank * math.log(2 * math.pi * (s**2 - t**2)))
        return back - own - look.density

    def white(self, x: torch.Tensor) -> torch.Tensor:
        """``F^-1 x`` on the range of ``C``, ``(rows, q)`` in float64."""
        return self.reference.sqrt_adjoint(self.reference.solve(x)).flatten(1).double()


def _log_step(u: torch.Tensor, v: float, a: float, spread: Spread, rank: int) -> torch.Tensor:
    """``log N(u; 0, v I + a^2 Sigma)`` on ``rank`` dimensions."""
    inside, outside = v + a**2 * spread.tau, v + a**2 * spread.rest
    seen = _times(spread.frame, u).square()
    # rows of zeros stand for no direction; their tau is 0
    many = spread.frame.square().sum((1, 2))
    logdet = (
        inside.log().sum(1) - (spread.frame.shape[1] - many) * math.log(v) + (rank - many) * outside.log()
    )
    energy = (seen / inside).sum(1) + (u.square().sum(1) - seen.sum(1)) / outside
    return -0.5 * (energy + logdet + rank * math.log(2 * math.pi))


def _zeros(z: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(z), dtype=torch.float64, device=z.device)


@final
class Moments:
    """The chain, proposal and twist of ``N(D, Sigma)``.

    Args:
        run: the run.
        observed: the observations of the case.
        choice: what stands for ``Cov[z0 | z]``, as in `MMPS`.
        depth: blocks of the Krylov space.
        gamma: the factor of "scalar".
    """

    def __init__(self, run: Run, observed: Observed, choice: str, depth: int, gamma: float) -> None:
        self.run, self.observed, self.reference, self.depth = run, observed, run.prior.reference, depth
        self.chain = Chain(run.prior)
        self.fixed = _fixed(run, choice, gamma)
        self.normals = 2 * math.prod(self.reference.white_shape) + len(observed.index)
        # fixed by the seed, so that Sigma is a function of z
        streams = Streams(run.seed, range(_PROBES if self.fixed else 1), purpose="particle probes")
        probes = streams.normal(self.reference.white_shape, dtype=torch.float64, device=run.prior.device)
        inside = self.reference.solve(self.reference.sqrt(probes))
        self.probes = self.reference.sqrt_adjoint(inside).flatten(1)

    def look(self, z: torch.Tensor, sigma: float) -> Look:
        """The belief at ``z``."""
        if self.fixed is None:
            d, covariance = tweedie(self.run, z, sigma)
            rows, depth = len(z), self.depth
        else:
            d, covariance = self.run.denoise(z, sigma), self.fixed(sigma).apply
            rows, depth = 1, max(2, math.ceil(_SHARED / max(1, len(self.observed.index))))
        data = self.observed(d)
        rows = max(rows, len(data.directions))

        def product(u: torch.Tensor) -> torch.Tensor:
            u = u.expand(rows, -1, -1).to(z).reshape(rows, -1, *self.reference.white_shape)
            w = self.reference.solve(self.reference.sqrt(u))
            # one VJP a vector for all rows
            w = (
                covariance(w.flatten(0, 1)).reshape(w.shape)
                if self.fixed
                else torch.stack([covariance(v) for v in w.unbind(1)], 1)
            )
            return self.reference.sqrt_adjoint(self.reference.solve(w)).flatten(2).double()

        # a case of which nothing was seen has no directions of its own
        start = data.directions if len(self.observed.index) else self.probes[None]
        tol = torch.finfo(z.dtype).eps ** 0.4
        return belief(d, self.chain.density(z, sigma), data, krylov(product, start, depth, self.probes, tol))

    def step(
        self, z: torch.Tensor, look: Look, s: float, t: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By the joint law of ``z'`` and ``y``."""
        assert isinstance(look, Belief)
        step, predicted = look_ahead(look, s, t, normals)
        lack = self.chain.lack(z, look, s, t, step, Spread(look.frame, look.tau, look.rest))
        return _moved(self.reference, z, look.d, s, t, step), lack - predicted


@final
class Shifted:
    """A plain ancestral step whose mean a guidance moves, and ``p(y | A(D))`` to some power as the twist.

    Args:
        run: the run.
        observed: the observations of the case.
        guided: ``(z, sigma, case) -> D_y``; None takes the gradient of the log twist.
        power: of the twist at a level.
    """

    def __init__(self, run: Run, observed: Observed, guided: Guided | None, power: Power) -> None:
        self.run, self.observed, self.guided, self.power = run, observed, guided, power
        self.reference = run.prior.reference
        self.normals = math.prod(self.reference.white_shape)

    def look(self, z: torch.Tensor, sigma: float) -> Look:
        """``D``, the twist and where ``D_y`` is from there."""
        d, covariance = tweedie(self.run, z, sigma, once=True)
        cases, power = self.observed.cases(len(z)), self.power(sigma)
        if self.guided is None:
            shift = power * covariance(likelihood_gradient(self.run, d, cases))
        else:
            shift = self.guided(z, sigma, cases) - d
        return _Pulled(d, power * self.observed.log_prob(d), _zeros(z), shift)

    def step(
        self, z: torch.Tensor, look: Look, s: float, t: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``N(r z + (1 - r) D_y, v C)`` beside ``N(r z + (1 - r) D, v C)``; the last step, to 0, is to ``D``."""
        assert isinstance(look, _Pulled)
        if t == 0:
            return look.d, -look.twist
        r = (t / s) ** 2
        a, root = 1 - r, t * math.sqrt(1 - r)
        shift = a * self.reference.sqrt_adjoint(self.reference.solve(look.shift)).flatten(1).double()
        step = root * normals + shift
        gain = 0.5 * (normals.square().sum(1) - (step / root).square().sum(1))
        return _moved(self.reference, z, look.d, s, t, step), gain - look.twist


@final
@dataclass(frozen=True)
class _Pulled(Look):
    """A `Look` with ``D_y - D``."""

    shift: torch.Tensor


@final
class Conjugate:
    """A plain ancestral step, conditioned on ``y ~ N(B z', R + t^2 B C B^T)``, which is the twist."""

    def __init__(self, run: Run, observed: Observed) -> None:
        self.run, self.observed, self.reference = run, observed, run.prior.reference
        self.normals = math.prod(self.reference.white_shape) + len(observed.index)

    def look(self, z: torch.Tensor, sigma: float) -> Look:
        """The twist at ``z`` and the data seen from ``D``."""
        d = self.run.denoise(z, sigma)
        here, there = self.observed(z), self.observed(d)
        twist = _log_normal(here.residual, self._factor(here, sigma**2)) - here.constant
        return _Noisy(d, twist, _zeros(z), here.residual, there.residual, here.directions, here.constant)

    def step(
        self, z: torch.Tensor, look: Look, s: float, t: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By the joint law of ``z'`` and ``y``; its weight does not depend on ``z'``."""
        assert isinstance(look, _Noisy)
        r, w = (t / s) ** 2, look.directions
        v = t**2 * (1 - r)
        first, noise = normals.split([normals.shape[1] - w.shape[1], w.shape[1]], 1)
        data = Data(w, torch.lerp(look.after, look.before, r), look.constant)
        level, both = self._factor(data, t**2), self._factor(data, t**2 + v)
        step = math.sqrt(v) * first
        off = data.residual - _times(w, step) - _times(level, noise)
        step = step + v * _adjoint(w, _solve(both, off))
        predicted = _log_normal(data.residual, both)
        psi = _log_normal(data.residual - _times(w, step), level)
        return _moved(self.reference, z, look.d, s, t, step), predicted - psi - look.twist

    @staticmethod
    def _factor(data: Data, variance: float) -> torch.Tensor:
        m = data.directions.shape[1]
        eye = torch.eye(m, dtype=torch.float64, device=data.directions.device)
        return _factor(eye + variance * data.directions @ data.directions.mT)


@final
@dataclass(frozen=True)
class _Noisy(Look):
    """A `Look` with the whitened residuals of ``z`` and of ``D``, and the rest of `Data`."""

    before: torch.Tensor
    after: torch.Tensor
    directions: torch.Tensor
    constant: torch.Tensor


def _moved(
    reference: Covariance, z: torch.Tensor, d: torch.Tensor, s: float, t: float, step: torch.Tensor
) -> torch.Tensor:
    """``r z + (1 - r) D + F step``."""
    step = step.to(z).reshape(len(z), *reference.white_shape)
    return torch.lerp(d, z, (t / s) ** 2) + reference.sqrt(step)


def _fixed(run: Run, choice: str, gamma: float) -> Callable[[float], Covariance] | None:
    """``Cov[z0 | z]`` where it does not depend on ``z``."""
    prior = run.prior
    reference = prior.reference
    if choice == "scalar":
        return lambda sigma: multiple(reference, gamma * sigma**2)
    if choice == "unit":
        one = 1.0 / float(reference.variance().mean())
        return lambda sigma: multiple(reference, sigma**2 * one / (one + sigma**2))
    known: Callable[[float], Covariance | None] = prior.covariance
    if choice == "gaussian":
        known = prior.gaussian_covariance
    elif choice == "learned":
        known = partial(learned, prior)
    if known(prior.sigma_max) is None:
        return None

    def covariance(sigma: float) -> Covariance:
        found = known(sigma)
        assert found is not None  # asked above
        return found

    return covariance


def guided_by(run: Run, guidance: GuidedDenoiser) -> Guided:
    """The guided denoiser of a method."""
    return guidance.guide(run)


def tempered(run: Run, observed: Observed) -> Power:
    """``1 / (1 + a)``, ``a`` the variance of ``A(z0)`` given ``z`` in units of the noise, for a prior of variance one.

    ``a = sigma^2 / (1 + sigma^2) tr(R^-1 B C B^T) / m``, by gradients at the prior's mean for data
    simulated there, or the curvature of the log-likelihood there for events.
    """
    prior, shape = run.prior, run.prior.space.shape
    centre = torch.zeros((_SIMULATIONS, *shape), dtype=prior.dtype, device=prior.device)
    with torch.enable_grad():
        x = prior.normalisation.physical(centre).requires_grad_()
        means = [o.operator.apply(x) for o in observed.observations]
    scores = []
    for i, (o, mean) in enumerate(zip(observed.observations, means, strict=True)):
        streams, mean = Streams(0, range(_SIMULATIONS), purpose=f"twist {i}"), mean.detach()
        mask = None if o.mask is None else o.mask[observed.case][None].expand_as(mean)
        if isinstance(o.noise, Sited):
            # made at the mean a rare event does not happen, and would say nothing of how sharp it is
            _, variance = o.noise.site(o.y[observed.case][None], mean[:1], torch.zeros_like(mean[:1]))
            white = streams.normal(tuple(mean.shape[1:]), dtype=mean.dtype, device=mean.device)
            score = variance.rsqrt() * white
            scores.append(score if mask is None else torch.where(mask, score, 0.0))
        else:
            scores.append(o.noise.score(o.noise.draw(mean, streams), mean, mask))
    (pulled,) = torch.autograd.grad(means, x, scores)
    run.cost.operator_calls += 2 * _SIMULATIONS
    pulled = prior.reference.sqrt_adjoint(prior.normalisation.scale.to(pulled) * pulled)
    ratio = float(pulled.double().flatten(1).square().sum(1).mean()) / max(1, len(observed.index))
    return lambda sigma: 1 / (1 + sigma**2 / (1 + sigma**2) * ratio)


def _padded(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Filled up with zeros along the second dim to the longest."""
    if rows[0].ndim == 1 or len({r.shape[1] for r in rows}) == 1:
        return rows
    most = max(r.shape[1] for r in rows)
    fill = [r.new_zeros((len(r), most - r.shape[1], *r.shape[2:])) for r in rows]
    return [torch.cat([r, f], 1) for r, f in zip(rows, fill, strict=True)]


@final
@dataclass(frozen=True)
class Data:
    """The data seen from a state: whitened by ``R``, linear around ``D``.

    Attributes:
        directions: ``W = R^-1/2 B F``, ``(rows or 1, m, q)``.
        residual: ``R^-1/2 (y - A(D))``, ``(rows, m)``.
        constant: ``log det(2 pi R) / 2``, ``(rows or 1,)``.
    """

    directions: torch.Tensor
    residual: torch.Tensor
    constant: torch.Tensor


@final
@dataclass(frozen=True)
class Spread:
    """``Sigma = c (I - V^T V) + V^T diag(tau) V``: frame ``V (rows or 1, k, q)``, ``tau (rows or 1, k)``, ``c``."""

    frame: torch.Tensor
    tau: torch.Tensor
    rest: torch.Tensor


@final
@dataclass(frozen=True)
class Belief(Look):
    """A `Look` with the joint Gaussian law of ``z0`` and ``y``; `Data` and `Spread` say what the parts are.

    Attributes:
        seen: ``V W^T``, ``(rows or 1, k, m)``.
        unseen: ``W (I - V^T V) W^T``, ``(rows or 1, m, m)``.
        factor: Cholesky factor of ``I + W Sigma W^T``.
    """

    directions: torch.Tensor
    residual: torch.Tensor
    constant: torch.Tensor
    frame: torch.Tensor
    tau: torch.Tensor
    rest: torch.Tensor
    seen: torch.Tensor
    unseen: torch.Tensor
    factor: torch.Tensor


def belief(d: torch.Tensor, density: torch.Tensor, data: Data, spread: Spread) -> Belief:
    """Join what is known of ``z0`` with what is known of ``y``."""
    seen = spread.frame @ data.directions.mT
    unseen = data.directions @ data.directions.mT - seen.mT @ seen
    factor = _factor(_sandwich(seen, spread.tau, unseen, spread.rest))
    return Belief(
        d,
        _log_normal(data.residual, factor) - data.constant,
        density,
        data.directions,
        data.residual,
        data.constant,
        spread.frame,
        spread.tau,
        spread.rest,
        seen,
        unseen,
        factor,
    )


def look_ahead(b: Belief, s: float, t: float, normals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A draw of the proposal ``p(z' | z, y)`` as ``F^-1 (z' - r z - (1 - r) D)``, and ``log p(y | z, z')``.

    Args:
        b: the belief at ``z``.
        s: the level of ``z``; infinity where nothing is known of ``z``.
        t: the level of ``z'``.
        normals: standard normals, ``(rows, 2 q + m)``.
    """
    r = (t / s) ** 2
    a, v = 1 - r, t**2 * (1 - r)
    q, m = b.directions.shape[2], b.directions.shape[1]
    first, second, noise = normals.split([q, q, m], 1)
    # a draw of (z0, y) with y made what was seen: Matheron's rule
    root = b.rest.sqrt()
    u = root[:, None] * first + _adjoint(b.frame, (b.tau.sqrt() - root[:, None]) * _times(b.frame, first))
    g = _solve(b.factor, b.residual - _times(b.directions, u) - noise)
    u = u + b.rest[:, None] * _adjoint(b.directions, g)
    u = u + _adjoint(b.frame, (b.tau - b.rest[:, None]) * _times(b.seen, g))
    step = a * u + math.sqrt(v) * second
    # E[z0 | z, z'] - D and Cov[z0 | z, z'], and of y with them
    inside, outside = _share(b.tau, v, a), _share(b.rest, v, a)[:, None]
    mean = _adjoint(b.seen, (inside - outside) * _times(b.frame, step)) + outside * _times(b.directions, step)
    left = _sandwich(b.seen, v * _share(b.tau, v, a) / a, b.unseen, v * _share(b.rest, v, a) / a)
    return step, _log_normal(b.residual - mean, _factor(left)) - b.constant


def _share(tau: torch.Tensor, v: float, a: float) -> torch.Tensor:
    """``a tau / (v + a^2 tau)``."""
    total = v + a**2 * tau
    return torch.where(total > 0, a * tau / torch.where(total > 0, total, 1.0), 0.0)


def _sandwich(
    seen: torch.Tensor, tau: torch.Tensor, unseen: torch.Tensor, rest: torch.Tensor
) -> torch.Tensor:
    """``I + W Sigma W^T``."""
    eye = torch.eye(unseen.shape[-1], dtype=unseen.dtype, device=unseen.device)
    return eye + seen.mT @ (tau[:, :, None] * seen) + rest[:, None, None] * unseen


def _factor(s: torch.Tensor) -> torch.Tensor:
    factor: torch.Tensor
    factor, info = torch.linalg.cholesky_ex(s)
    if bool((info != 0).any()):
        raise ConvergenceError(
            "Particles: R + B Cov B^T is not positive definite to rounding. Use a larger noise sd, or a prior in float64."
        )
    return factor


def _log_normal(r: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``log N(r; 0, L L^T)`` but for ``2 pi``, ``(rows,)``."""
    white = _triangular(factor, r)
    return -0.5 * white.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _triangular(factor: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """``L^-1 r``."""
    shared = len(factor) == 1
    columns = r.T[None] if shared else r[:, :, None]
    white: torch.Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
    return white[0].T if shared else white[:, :, 0]


def _solve(factor: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """``(L L^T)^-1 r``."""
    if len(factor) == 1:
        return torch.cholesky_solve(r.T, factor[0]).T
    return torch.cholesky_solve(r[:, :, None], factor)[:, :, 0]


def _times(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``a x`` row by row; one ``a`` for all or one each."""
    return x @ a[0].T if len(a) == 1 else (a @ x[:, :, None])[:, :, 0]


def _adjoint(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``a^T x`` row by row."""
    return x @ a[0] if len(a) == 1 else (x[:, None, :] @ a)[:, 0]


def krylov(product: Product, start: torch.Tensor, depth: int, probes: torch.Tensor, tol: float) -> Spread:
    """``Sigma`` that is right on the block Krylov space of ``start`` and on average outside.

    Args:
        product: ``(rows or 1, k, q) -> (rows, k, q)``, the covariance in whitened coordinates.
        start: ``W``, ``(rows or 1, m, q)``.
        depth: number of blocks; from 2 on ``Sigma W^T`` is exact.
        probes: fixed vectors ``(p, q)`` for the mean of what is outside (Hutchinson's estimator).
        tol: directions that are shorter than that, relative to the block's, are left out.
    """
    frame = orthonormal(start, start, tol)
    products = product(frame)
    frame = frame.expand(len(products), -1, -1)
    block = products
    while block.shape[1] and depth > 1 and frame.shape[1] < frame.shape[2]:
        fresh = orthonormal(_outside(frame, block), block, tol)
        fresh = orthonormal(_outside(frame, fresh), fresh, 0.5)
        if not bool(fresh.any()):
            break
        block = product(fresh)
        frame, products, depth = torch.cat([frame, fresh], 1), torch.cat([products, block], 1), depth - 1
    t = products @ frame.mT
    # what is not a covariance in a network's Jacobian, asymmetric or negative, has no place in a Gaussian
    tau, vectors = torch.linalg.eigh((t + t.mT) / 2)
    probes = _outside(frame, probes.expand(len(frame), -1, -1))
    size = probes.square().sum((1, 2))
    some = size > 1e-6 * probes.shape[1] * probes.shape[2]
    rest = (probes * product(probes)).sum((1, 2)) / torch.where(some, size, 1.0)
    return Spread(vectors.mT @ frame, tau.clamp(min=0), torch.where(some, rest, 0.0).clamp(min=0))


def _outside(frame: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What of ``x`` is orthogonal to the frame; twice, for rounding."""
    for _ in range(2):
        x = x - (x @ frame.mT) @ frame
    return x


def orthonormal(x: torch.Tensor, scale: torch.Tensor, tol: float) -> torch.Tensor:
    """Orthonormal rows that span those of ``x (rows, k, q)``; zeros for what is short beside ``scale``."""
    longest = scale.square().sum(2).amax(1, keepdim=True)
    for limit in (tol**2 * longest, torch.full_like(longest, 0.25)):
        lam, vectors = torch.linalg.eigh(x @ x.mT)
        keep = lam > limit
        x = torch.where(keep, torch.where(keep, lam, 1.0).rsqrt(), 0.0)[:, :, None] * (vectors.mT @ x)
    return x


@final
class Observed:
    """The observations of one case, without what is missing."""

    def __init__(self, run: Run, case: int) -> None:
        self.run, self.case, self.posterior = run, case, run.posterior
        self.observations = run.posterior.observations
        device = run.prior.device
        masks = [
            torch.ones(o.operator.codomain.size, dtype=torch.bool, device=device)
            if o.mask is None
            else o.mask[case].flatten()
            for o in self.observations
        ]
        self.index = torch.nonzero(torch.cat(masks))[:, 0]
        offers = run.posterior.offers()
        self.linear = offers["linear"] is None and offers["gaussian"] is None

    def __call__(self, d: torch.Tensor) -> Data:
        """The data seen from clean states ``d``."""
        return self._straight(d) if self.linear else self._bent(d)

    def log_prob(self, z0: torch.Tensor) -> torch.Tensor:
        """``log p(y | A(m + S z0))``, ``(rows,)``, in float64."""
        self.run.cost.operator_calls += len(z0)
        x = self.run.prior.normalisation.physical(z0)
        return self.posterior.log_likelihood(x, self.cases(len(z0))).double()

    def cases(self, rows: int) -> torch.Tensor:
        """The number of the case, once a row."""
        return torch.full((rows,), self.case, dtype=torch.long, device=self.run.prior.device)

    @cached_property
    def _fixed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``W``, the Cholesky factor of ``R`` and half its log determinant, where they are the same for all states."""
        linear = self.posterior.linear_gaussian()
        self.run.cost.operator_calls += linear.prepare()
        factor = _factor(linear.noise_matrix.double()[self.index][:, self.index][None])
        rows = self.run.prior.reference.sqrt_adjoint(linear.matrix()[self.index]).flatten(1).double()
        directions = torch.linalg.solve_triangular(factor, rows[None], upper=False)
        return directions, factor, _half_log_det(factor)

    def _straight(self, d: torch.Tensor) -> Data:
        directions, factor, constant = self._fixed
        self.run.cost.operator_calls += len(d)
        residual = self.posterior.linear_gaussian().residual(d, self.cases(len(d)))[:, self.index].double()
        return Data(directions, _triangular(factor, residual), constant)

    def _bent(self, d: torch.Tensor) -> Data:
        """By one VJP of ``E[y | A(x)]`` for every datum, with the noise's covariance at ``A(D)``."""
        prior = self.run.prior
        with torch.enable_grad():
            x = prior.normalisation.physical(d).detach().requires_grad_()
            means = [o.operator.apply(x) for o in self.observations]
            pairs = list(zip(self.observations, means, strict=True))
            expected = [o.noise.expectation(mean) for o, mean in pairs]
            flat = torch.cat([e.flatten(1) for e in expected], 1)[:, self.index]
            columns = [
                torch.autograd.grad(flat[:, j].sum(), x, retain_graph=True)[0] for j in range(flat.shape[1])
            ]
        self.run.cost.operator_calls += (1 + len(columns)) * len(d)
        rows = prior.normalisation.scale.to(d) * torch.stack(columns, 1)
        y = torch.cat([o.y[self.case].flatten() for o in self.observations])[self.index]
        noise = [_noise_matrix(o, mean.detach(), o.y[self.case]) for o, mean in pairs]
        factor = _factor(_blocks(noise)[:, self.index][:, :, self.index])
        rows = prior.reference.sqrt_adjoint(rows).flatten(2).double()
        return Data(
            torch.linalg.solve_triangular(factor, rows, upper=False),
            _triangular(factor, (y - flat.detach()).double()),
            _half_log_det(factor),
        )


def _half_log_det(factor: torch.Tensor) -> torch.Tensor:
    return factor.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * factor.shape[1] * math.log(2 * math.pi)


def _noise_matrix(o: Observation, mean: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The covariance of ``y`` given its noise-free value, ``(rows, size, size)`` in float64."""
    shape, size = o.operator.codomain.shape, o.operator.codomain.size
    if isinstance(o.noise, Gaussian):
        eye = torch.eye(size, dtype=torch.float64, device=mean.device).reshape(size, *shape)
        return o.noise.covariance(shape).apply(eye).reshape(1, size, size).expand(len(mean), -1, -1)
    at_mean, at_y = o.noise.variance(mean), o.noise.variance(_reading(o, mean, y))
    assert at_mean is not None and at_y is not None  # `misfit` has refused noises without
    both = ((at_mean + torch.where(at_y.isfinite(), at_y, at_mean)) / 2).flatten(1).double()
    # counts of 0 at rates of 0 would leave no noise; any positive twist will do
    floor = 1e-2 * both.mean(1, keepdim=True)
    return torch.diag_embed(torch.maximum(both, torch.where(floor > 0, floor, 1.0)))


def _reading(o: Observation, mean: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The noise-free value that lets ``y`` be expected, by one Newton step from ``mean``: a count over its exposure."""
    with torch.enable_grad():
        mean = mean.clone().requires_grad_()
        expected = o.noise.expectation(mean)
        (slope,) = torch.autograd.grad(expected.sum(), mean)
    return mean.detach() + (y - expected.detach()) / slope


def _blocks(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Block-diagonal matrices, row by row."""
    total = sum(m.shape[1] for m in matrices)
    out = matrices[0].new_zeros((len(matrices[0]), total, total))
    start = 0
    for m in matrices:
        end = start + m.shape[1]
        out[:, start:end, start:end] = m
        start = end
    return out
