"""Problems whose posterior has no closed form, held against draws of another kind: rejection and Gibbs sampling.

Rejection is exact. Gibbs chains are trusted because two sets of them, from far apart starts, agree: the mean of every
coordinate and of its square, to the standard errors that independent chains give. The denoisers are exact here too:
a series of independent increments, ``x = L u`` with ``L`` the running sum, has under the reference noise ``C = L L^T`` a
denoiser that works on one increment at a time, ``D(z) = L d(L^-1 z)``, and ``d`` is known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np
import torch

from sciddiff.covariance import Covariance, dense, multiple
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.noise import Gaussian
from sciddiff.operators import Points, from_torch
from sciddiff.priors.base import Normalisation, Prior, level
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams
from sciddiff.spaces import Space
from sciddiff.testing.exact import Draw, ExactProblem

__all__ = ["IncrementPrior", "curved", "increments"]

# below this the Gaussian's lower tail is zero to every digit, and above it erfcx overflows
_TAIL = 12.0


@final
class IncrementPrior(Prior):
    """A walk with independent Laplace increments, each of them zero with probability ``1 - share``; exact.

    ``x[t] = u[0] + ... + u[t]``, the increments of variance one. With ``share`` below one (Bernoulli-Laplace) the walk
    is piecewise constant and its law has atoms. Normalised units are physical ones, and the reference noise is a
    Gaussian walk, so that noise on the increments is white.

    Args:
        length: number of times.
        share: probability of an increment that is not zero.
        dtype: of the states.

    Raises:
        InputError: if ``share`` is not in (0, 1].

    Source: the laws of Bohra et al. (2023), "A statistical framework to investigate the optimality of
    signal-reconstruction methods"; the denoiser is ours.

    Example:
        >>> prior = IncrementPrior(8, share=0.3)
        >>> prior.denoise(torch.zeros(1, 8, dtype=torch.float64), 1.0).abs().max().item()
        0.0
    """

    exact = True

    def __init__(self, length: int, share: float = 1.0, *, dtype: torch.dtype = torch.float64) -> None:
        if not 0 < share <= 1:
            raise InputError(
                "share", expected="a probability above 0", got=repr(share), fix="1 is a Laplace walk"
            )
        self.share, self.scale = share, math.sqrt(0.5 / share)
        self.space = Space({"time": np.arange(float(length))})
        self.dtype, self.device = dtype, torch.device("cpu")
        self.normalisation = Normalisation(torch.zeros(()), torch.ones(()))
        order = np.minimum(np.arange(length)[:, None], np.arange(length)) + 1.0
        self.reference = dense(order)
        self.sigma_min, self.sigma_max = 2e-3, 20.0

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``L d(L^-1 z)``, exactly; computed in float64."""
        steps, s = _increments(z), level(sigma, z.double())
        mean, slab, atom = self._parts(steps, s)
        return torch.cumsum(mean if atom is None else torch.sigmoid(slab - atom) * mean, -1).to(z)

    def log_density(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """Exact log density of noisy states, one number per row.

        Raises:
            InputError: at sigma = 0, where a law with atoms has none.
        """
        steps = _increments(z)
        if sigma == 0 and self.share == 1:
            terms = -steps.abs() / self.scale - math.log(2 * self.scale)
        elif sigma == 0:
            raise InputError(
                "sigma",
                expected="a positive noise level, since increments of exactly zero have no density",
                got=sigma,
                fix="pass for example sigma=prior.sigma_min",
            )
        else:
            _, slab, atom = self._parts(steps, torch.tensor(sigma, dtype=torch.float64))
            terms = slab if atom is None else torch.logaddexp(slab, atom)
        return terms.sum(1).to(z)

    def gaussian_covariance(self, sigma: float) -> Covariance:
        """``Cov[z0 | z]`` of the Gaussian walk of the same covariance."""
        return multiple(self.reference, sigma**2 / (1 + sigma**2))

    def draw(self, streams: Streams) -> torch.Tensor:
        """Increments by the inverse of their distribution function, added up."""
        u = streams.uniform((2, self.space.size), dtype=torch.float64)
        size = -self.scale * torch.log1p(-(2 * u[:, 0] - 1).abs()) * (2 * u[:, 0] - 1).sign()
        return torch.cumsum(torch.where(u[:, 1] < self.share, size, 0.0), 1).to(self.device, self.dtype)

    def _parts(
        self, v: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Of ``u + sigma n = v``: ``E[u | v, u not 0]``, and the log densities of v with u not 0 and with u = 0.

        A Gaussian cut at zero on each side of it.
        """
        ratio, parts, logs = sigma / self.scale, [], []
        for side in (1.0, -1.0):
            t = side * v / sigma - ratio
            cut = t.clamp(max=_TAIL)
            hazard = math.sqrt(2 / math.pi) / torch.special.erfcx(-cut / math.sqrt(2))
            parts.append(side * sigma * (t + hazard))
            logs.append(torch.special.log_ndtr(cut) - side * v / self.scale)
        sides = torch.stack(logs)
        mean = (sides.softmax(0) * torch.stack(parts)).sum(0)
        slab = sides.logsumexp(0) + 0.5 * ratio**2 + math.log(self.share / (2 * self.scale))
        if self.share == 1:
            return mean, slab, None
        atom = math.log(1 - self.share) - 0.5 * (v / sigma) ** 2 - torch.log(sigma * math.sqrt(2 * math.pi))
        return mean, slab, atom


def _increments(z: torch.Tensor) -> torch.Tensor:
    """``L^-1 z`` in float64."""
    z = z.double()
    return torch.diff(z, dim=-1, prepend=torch.zeros_like(z[..., :1]))


def increments(kind: str, seed: int) -> ExactProblem:
    """A walk of 32 increments seen at 10 random times with errors of 0.1, its posterior known by Gibbs sampling.

    Args:
        kind: "laplace", or "bernoulli-laplace" with one increment in five that is not zero.
        seed: of the problem.

    Raises:
        InputError: on another kind.
        ConvergenceError: if two sets of chains from different starts do not agree.

    Source: Park and Casella (2008), "The Bayesian Lasso", section 2, for the scales; the indicators are flipped with the
    increments integrated out.

    Example:
        >>> increments("laplace", 0).gaussian
        False
    """
    shares = {"laplace": 1.0, "bernoulli-laplace": 0.2}
    if kind not in shares:
        raise InputError("kind", expected=f"one of {list(shares)}", got=repr(kind), fix="choose one")
    rng, d, m, sd = np.random.default_rng(seed), 32, 10, 0.1
    prior = IncrementPrior(d, shares[kind])
    truth = prior.draw(Streams(seed, [0], purpose="truth")).numpy()[0]
    seen = np.sort(rng.choice(d, m, replace=False))
    a = np.eye(d)[seen]
    y = a @ truth + sd * rng.standard_normal(m)
    posterior = prior.given(y, Points.at_indices(prior.space, seen), Gaussian(sd))
    chains = _Gibbs(a @ np.tril(np.ones((d, d))), y, sd, prior)
    kept = np.stack(
        [chains.run(start, np.random.default_rng([seed, i])) for i, start in enumerate((1.0, 0.0))]
    )
    walks = np.cumsum(kept, -1)
    _agree(np.concatenate([walks, walks**2], -1))
    pool = walks.reshape(-1, d)
    return ExactProblem(
        f"{kind} walk", posterior, truth, pool.mean(0), np.cov(pool.T), _picks(pool), math.nan, gaussian=False
    )


def curved(seed: int) -> ExactProblem:
    """Three Gaussians of different shape in 4 dimensions, seen through two curved functions; known by rejection.

    Example:
        >>> curved(0).posterior.observations[0].operator.linear
        False
    """
    rng, d, m, sd = np.random.default_rng(seed), 4, 2, 0.3
    means = 2.0 * rng.standard_normal((3, d))
    shapes = rng.standard_normal((3, d, d))
    covs = shapes @ shapes.transpose(0, 2, 1) / d + 0.05 * np.eye(d)
    weights, (b, c) = rng.dirichlet(np.full(3, 3.0)), rng.standard_normal((2, d, m)) / math.sqrt(d)
    space, roots = Space({"i": d}), np.linalg.cholesky(covs)

    def bent(x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ b + 0.5 * (x @ c) ** 2)

    def states(n: int) -> np.ndarray:
        k = rng.choice(3, n, p=weights)
        return np.asarray(means[k] + np.einsum("nij,nj->ni", roots[k], rng.standard_normal((n, d))))

    truth = states(1)[0]
    y = bent(truth[None])[0] + sd * rng.standard_normal(m)
    prior = GaussianMixturePrior(space, weights, means, covs)
    first, second = torch.from_numpy(b), torch.from_numpy(c)
    operator = from_torch(
        lambda x: x @ first.to(x) + 0.5 * (x @ second.to(x)) ** 2, space, Space({"j": m}, "y")
    )
    pool, likelihood = _rejection(states, lambda x: (y - bent(x)) / sd, rng)
    evidence = math.log(likelihood) - m * math.log(sd * math.sqrt(2 * math.pi))
    posterior = prior.given(y, operator, Gaussian(sd))
    return ExactProblem(
        "curved mixture",
        posterior,
        truth,
        pool.mean(0),
        np.cov(pool.T),
        _picks(pool),
        evidence,
        gaussian=False,
    )


# -- references --------------------------------------------------------------------------------------

_POOL = 20_000


def _picks(pool: np.ndarray) -> Draw:
    """Sets of draws from a pool, without replacement within a set."""

    def draw(n: int, seed: int) -> np.ndarray:
        if n > len(pool):
            raise InputError("n", expected=f"at most {len(pool)}, the pool", got=n, fix="ask for fewer")
        return np.asarray(pool[np.random.default_rng(seed).choice(len(pool), n, replace=False)])

    return draw


def _rejection(
    states: Callable[[int], np.ndarray],
    residual: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Exact draws: a prior draw is kept with probability ``exp(-|residual|^2 / 2)``; and the share that was kept."""
    kept, tried = [np.empty((0, states(1).shape[1]))], 0
    while sum(map(len, kept)) < _POOL:
        x = states(200_000)
        kept.append(x[rng.random(len(x)) < np.exp(-0.5 * (residual(x) ** 2).sum(1))])
        tried += len(x)
        if tried > 10**8:
            raise ConvergenceError("rejection: fewer than one draw in 5000 is kept; use a larger noise sd.")
    pool = np.concatenate(kept)
    return pool, len(pool) / tried


def _agree(kept: np.ndarray) -> None:
    """Two sets of chains, ``(2, times, chains, quantities)``, have the same means to their standard errors.

    Raises:
        ConvergenceError: if they have not.
    """
    means = kept.mean(1)
    error = np.sqrt((means.var(1, ddof=1) / means.shape[1]).sum(0))
    gap = np.abs(means[0].mean(0) - means[1].mean(0))
    worst = float((gap / np.maximum(error, 1e-12)).max())
    if not worst < 4.9:
        raise ConvergenceError(
            f"Gibbs: two sets of chains differ by {worst:.1f} standard errors; run them longer."
        )


class _Gibbs:
    """Gibbs sampling of ``y = M u + N(0, sd^2)`` with ``u_i ~ s_i N(0, tau_i)``, tau exponential: Laplace where s = 1.

    A sweep flips every indicator ``s_i`` with all of ``u`` integrated out, then draws ``u`` at once, then ``tau``.
    """

    chains, burn, times, thin = 250, 200, 40, 5

    def __init__(self, m: np.ndarray, y: np.ndarray, sd: float, prior: IncrementPrior) -> None:
        self.m, self.y, self.sd = m, y, sd
        self.share, self.scale = prior.share, prior.scale

    def run(self, start: float, rng: np.random.Generator) -> np.ndarray:
        """Increments ``(times, chains, d)``; chains start with all indicators on or all off, at one scale."""
        shape = (self.chains, self.m.shape[1])
        on = np.full(shape, start == 1.0 or self.share == 1)
        tau = np.full(shape, (0.1 + 5 * start) * self.scale**2)
        kept = []
        for sweep in range(self.burn + self.times * self.thin):
            on, u = self._states(on, tau, rng)
            tau = self._scales(on, u, rng)
            if sweep >= self.burn and (sweep - self.burn) % self.thin == 0:
                kept.append(u)
        return np.stack(kept)

    def _states(
        self, on: np.ndarray, tau: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        m, (n, d) = self.m, on.shape
        total = np.einsum("ij,cj,kj->cik", m, on * tau, m) + self.sd**2 * np.eye(len(m))
        inverse = np.linalg.inv(total)
        if self.share < 1:
            on = on.copy()
            for i in rng.permutation(d):
                self._flip(i, on, tau[:, i], inverse, rng)
        root = np.sqrt(on * tau)
        u = root * rng.standard_normal((n, d))
        off = self.y - u @ m.T - self.sd * rng.standard_normal((n, len(m)))
        return on, u + on * tau * (np.einsum("cik,ck->ci", inverse, off) @ m)

    def _flip(
        self, i: int, on: np.ndarray, tau: np.ndarray, inverse: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Draw one indicator of every chain, and bring the inverse of ``Cov[y]`` up to date."""
        a = inverse @ self.m[:, i]
        # without the i-th increment in Cov[y], by Sherman and Morrison
        less = 1 / (1 - on[:, i] * tau * (a @ self.m[:, i]))
        gain, pull = less * (a @ self.m[:, i]), less * (a @ self.y)
        odds = math.log(self.share / (1 - self.share)) - 0.5 * np.log1p(tau * gain)
        odds += 0.5 * tau * pull**2 / (1 + tau * gain)
        new = rng.random(len(on)) < 1 / (1 + np.exp(-odds))
        change = on[:, i] * tau * less - new * tau * less**2 / (1 + tau * gain)
        inverse += change[:, None, None] * a[:, :, None] * a[:, None, :]
        on[:, i] = new

    def _scales(self, on: np.ndarray, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Where an increment is on, ``1/tau`` is inverse Gaussian; where it is off, tau has its prior."""
        size = np.where(on, np.maximum(np.abs(u), 1e-10), self.scale)
        seen = 1 / np.maximum(rng.wald(1 / (self.scale * size), self.scale**-2), 1e-12)
        return np.where(on, seen, rng.exponential(2 * self.scale**2, on.shape))
