"""Problems whose posterior is known exactly, to hold samplers against: ``p(x | y) ~ p(x) N(y; A x, R)``.

For a Gaussian prior ``N(m, Sigma)`` the posterior is ``N(m + K (y - A m), Sigma - K A Sigma)`` with
``K = Sigma A^T (A Sigma A^T + R)^-1``; for a mixture of Gaussians it is a mixture of such, each weighted by the
evidence that the data have under it. The priors' denoisers are exact, so that any error of the draws is the
sampler's own. Covariances, gains and exact draws are computed here in numpy, beside the library's own algebra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from sciddiff.covariance import dense, frequencies, graph, spectral
from sciddiff.errors import InputError
from sciddiff.noise import Gaussian
from sciddiff.operators import Matrix, Points
from sciddiff.posterior import Posterior
from sciddiff.priors.base import Prior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = ["ExactProblem", "Hidden", "gaussian", "mixture", "point_sensors", "state_space"]

Draw = Callable[[int, int], np.ndarray]


@final
class Hidden(Prior):
    """A prior that tells nothing but its denoiser, so that methods go through it as through a network's.

    Example:
        >>> prior = gaussian("vector", 0).posterior.prior
        >>> prior.covariance(1.0) is None, Hidden(prior).covariance(1.0) is None
        (False, True)
    """

    exact = True

    def __init__(self, inner: Prior) -> None:
        self.__dict__.update(inner.__dict__)
        self.inner = inner

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """That of the prior inside."""
        return self.inner.denoise(z, sigma)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Hidden:
        """The same law with states of another dtype or on another device."""
        return Hidden(self.inner.to(device, dtype))


@final
@dataclass(frozen=True, eq=False)
class ExactProblem:
    """A posterior and what is known of it; states are flattened to ``(d,)``, in physical units.

    Attributes:
        name: in a word or two.
        posterior: one observation of one state.
        truth: the state that the data were made from, ``(d,)``.
        mean: of the posterior, ``(d,)``.
        covariance: of the posterior, ``(d, d)``.
        draw: ``draw(n, seed)``, n independent exact draws ``(n, d)``.
        log_evidence: ``log p(y)``, in nats; NaN where it is not known.
        gaussian: whether the posterior is Gaussian, so that mean and covariance say all.
        solution: the posterior as a prior with its exact denoiser, which tells a solver's error from a method's;
            None where there is none.

    Example:
        >>> problem = gaussian("vector", seed=0)
        >>> problem.draw(100, seed=1).shape == (100, len(problem.mean))
        True
        >>> truths, posterior = problem.cases(5, seed=0)
        >>> truths.shape[0], posterior.cases
        (5, 5)
    """

    name: str
    posterior: Posterior
    truth: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    draw: Draw
    log_evidence: float
    gaussian: bool = True
    solution: Prior | None = None

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations of the posterior, ``(d,)``."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))

    def hidden(self) -> ExactProblem:
        """The same problem under a prior that tells nothing but its denoiser."""
        return replace(self, posterior=Posterior(Hidden(self.posterior.prior), self.posterior.observations))

    def cases(self, n: int, seed: int) -> tuple[np.ndarray, Posterior]:
        """Truths from the prior, ``(n, d)``, and the posterior given a datum of each, along "case".

        Truth and datum i depend on (seed, i) alone. The operator and the noise are those of this problem.
        """
        prior = self.posterior.prior
        teller = prior.inner if isinstance(prior, Hidden) else prior
        z = teller.draw(Streams(seed, range(n), purpose="truths of cases"))
        assert z is not None  # every prior of these problems draws exactly
        x = prior.normalisation.physical(z)
        made = Posterior(prior, ())
        for i, o in enumerate(self.posterior.observations):
            errors = Streams(seed, range(n), purpose=f"data of cases {i}")
            y = o.noise.draw(o.operator.apply(x), errors)
            made = made.given(y, o.operator, o.noise, batch_dim="case")
        return x.flatten(1).double().cpu().numpy(), made


def gaussian(kind: str, seed: int) -> ExactProblem:
    """A linear Gaussian problem.

    Args:
        kind: "vector": 8 values, 4 data of a random matrix, under a correlated reference noise. "series": an
            Ornstein-Uhlenbeck process at 64 times, length scale 8, 16 of them seen. "grid": a smooth periodic field
            of 16 by 16, 40 values seen, the reference noise a rougher field. "graph": a Markov field on a geometric
            graph of 40 nodes, 12 of them seen. Data have errors of 0.1 (0.3 for the vector), in units of the prior's sd.
        seed: of the problem: what is seen, the truth and the errors.

    Raises:
        InputError: on another kind.

    Example:
        >>> gaussian("graph", 0).posterior.prior.space.sizes
        {'node': 40}
    """
    if kind not in _KINDS:
        raise InputError("kind", expected=f"one of {list(_KINDS)}", got=repr(kind), fix="choose one")
    return _KINDS[kind](np.random.default_rng(seed))


def point_sensors(seed: int) -> ExactProblem:
    """A Gaussian random field and sensors between its grid points.

    ``N(0, c (9 - Laplacian)^-2)`` on the unit square, zero on its border, at 20 by 20 points inside, of mean variance
    one; 40 sensors at random places interpolate between the points, with errors of 0.05.

    Example:
        >>> point_sensors(0).posterior.observations[0].operator.linear
        True
    """
    rng, n = np.random.default_rng(seed), 20
    at, k = np.arange(1, n + 1) / (n + 1), np.arange(1, n + 1)
    modes = np.sqrt(2 / (n + 1)) * np.sin(np.pi * at[:, None] * k)
    power = (9 + (np.pi * k[:, None]) ** 2 + (np.pi * k) ** 2) ** -2.0
    power *= n**2 / power.sum()
    both = np.kron(modes, modes)
    space = Space({"y": at, "x": at})
    prior = GaussianPrior(space, spectral((n, n), power, "dirichlet"))
    places = rng.uniform(at[0], at[-1], (40, 2))
    hats = np.maximum(0.0, 1 - np.abs(places[:, None] - at[None, :, None]) * (n + 1))
    a = (hats[:, :, 0, None] * hats[:, None, :, 1]).reshape(40, -1)
    law = (np.zeros(n * n), (both * power.ravel()) @ both.T)
    operator = Points(space, places, interpolate="linear")
    return _conditioned("point sensors", prior, operator, law, a, np.full(40, 0.05), rng)


def mixture(seed: int, data: int, d: int = 8) -> ExactProblem:
    """The mixture of 25 Gaussians of Cardoso et al. (2023), arXiv 2308.07983, appendix B, with random data.

    Modes at ``(8 i, 8 j, 8 i, ...)``, i and j from -2 to 2, of unit covariance and chi-square weights; a random
    matrix whose singular values are uniform on [0, 1], and a noise sd uniform below the largest of them, of at least 0.01.

    Args:
        seed: of the problem.
        data: number of data.
        d: number of dimensions, even.

    Example:
        >>> mixture(0, data=2).gaussian
        False
    """
    rng = np.random.default_rng([seed, data])
    grid = 8.0 * (np.arange(5) - 2)
    means = np.stack([np.tile([a, b], d // 2) for a in grid for b in grid])
    weights = rng.chisquare(1, 25)
    weights /= weights.sum()
    u, _, vt = np.linalg.svd(rng.standard_normal((data, d)), full_matrices=False)
    s = np.sort(rng.uniform(size=data))[::-1]
    a, sd = (u * s) @ vt, max(0.01, rng.uniform() * s.max())
    truth = means[rng.choice(25, p=weights)] + rng.standard_normal(d)
    y = a @ truth + sd * rng.standard_normal(data)
    space = Space({"i": d})
    prior = GaussianMixturePrior(space, weights, means, 1.0)
    posterior = prior.given(y, Matrix(space, Space({"j": data}, "y"), a), Gaussian(sd))
    noise = sd**2 * np.eye(data)
    logs = np.log(weights) + np.array([_log_normal(y - a @ m, a @ a.T + noise) for m in means])
    centres, cov = means + (y - means @ a.T) @ _gain(np.eye(d), a, noise).T, _left(np.eye(d), a, noise)
    share = np.exp(logs - np.logaddexp.reduce(logs))
    root, mean = np.linalg.cholesky(cov), share @ centres

    def draw(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.asarray(centres[rng.choice(25, n, p=share)] + rng.standard_normal((n, d)) @ root.T)

    between = (share[:, None] * (centres - mean)).T @ (centres - mean)
    evidence = float(np.logaddexp.reduce(logs))
    kept = share > 1e-12
    solution = GaussianMixturePrior(space, share[kept], centres[kept], dense(cov))
    return ExactProblem(
        f"mixture d={d} m={data}", posterior, truth, mean, cov + between, draw, evidence, False, solution
    )


def state_space(seed: int) -> ExactProblem:
    """A moving body seen now and then: ``x[t+1] = F x[t] + N(0, Q)``, positions seen with errors of 0.2 m.

    32 times of position and velocity; the position is seen at every third of the first 24, so that the rest is a forecast.
    Known by the Kalman filter and the Rauch-Tung-Striebel smoother; exact draws by backward sampling.

    Source: Rauch, Tung and Striebel (1965), "Maximum likelihood estimates of linear dynamic systems".

    Example:
        >>> state_space(0).posterior.prior.space.shape
        (2, 32)
    """
    rng, steps = np.random.default_rng(seed), 32
    f, q = np.array([[1.0, 1.0], [0.0, 0.9]]), np.diag([0.05, 0.3]) ** 2
    start, noise, seen = np.diag([1.0, 0.5]) ** 2, 0.2**2, list(range(0, 24, 3))
    x = np.zeros((steps, 2))
    x[0] = np.sqrt(np.diag(start)) * rng.standard_normal(2)
    for t in range(1, steps):
        x[t] = f @ x[t - 1] + np.sqrt(np.diag(q)) * rng.standard_normal(2)
    y = x[seen, 0] + math.sqrt(noise) * rng.standard_normal(len(seen))
    space = Space({"time": np.arange(float(steps))}, {"position": "m", "velocity": "m/s"})
    prior = GaussianPrior(space, dense(_by_variable(_markov(f, q, start, steps)), space.shape))
    operator = Points.at_indices(space, seen, variables="position")
    posterior = prior.given(y, operator, Gaussian(math.sqrt(noise)))
    chain = _Smoother(f, q, start, steps, dict(zip(seen, y, strict=True)), noise)
    mean, cov = chain.mean.T.ravel(), _by_variable(chain.joint())
    return ExactProblem("state space", posterior, x.T.ravel(), mean, cov, chain.draw, chain.log_evidence)


# -- linear Gaussian problems ------------------------------------------------------------------------


def _gain(prior: np.ndarray, a: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.solve(a @ prior @ a.T + noise, a @ prior).T)


def _left(prior: np.ndarray, a: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """``(I - K A) Sigma (I - K A)^T + K R K^T``, Joseph's form, which keeps it positive."""
    k = _gain(prior, a, noise)
    rest = np.eye(len(prior)) - k @ a
    return np.asarray(rest @ prior @ rest.T + k @ noise @ k.T)


def _log_normal(off: np.ndarray, cov: np.ndarray) -> float:
    _, logdet = np.linalg.slogdet(2 * np.pi * cov)
    return float(-0.5 * (off @ np.linalg.solve(cov, off) + logdet))


def _conditioned(
    name: str,
    prior: GaussianPrior,
    operator: Points | Matrix,
    law: tuple[np.ndarray, np.ndarray],
    a: np.ndarray,
    sd: np.ndarray,
    rng: np.random.Generator,
) -> ExactProblem:
    """Make a truth and data, and condition the prior's mean and covariance on them."""
    mean, prior_cov = law
    d, noise = len(mean), np.diag(sd**2)
    truth = mean + np.linalg.cholesky(prior_cov) @ rng.standard_normal(d)
    y = a @ truth + sd * rng.standard_normal(len(a))
    cov = _left(prior_cov, a, noise)
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(values.clip(min=0.0))
    centre = mean + _gain(prior_cov, a, noise) @ (y - a @ mean)

    def draw(n: int, seed: int) -> np.ndarray:
        return np.asarray(centre + np.random.default_rng(seed).standard_normal((n, d)) @ root.T)

    posterior = prior.given(y.reshape(operator.codomain.shape), operator, Gaussian(sd))
    evidence = _log_normal(y - a @ mean, a @ prior_cov @ a.T + noise)
    return ExactProblem(name, posterior, truth, centre, cov, draw, evidence)


def _vector(rng: np.random.Generator) -> ExactProblem:
    d, m = 8, 4
    root, colour = rng.standard_normal((2, d, d))
    cov = root @ root.T / d + 0.2 * np.eye(d)
    cov /= np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    mean, a = rng.standard_normal(d), rng.standard_normal((m, d)) / math.sqrt(d)
    space = Space({"i": d})
    reference = dense(colour @ colour.T / d + 0.3 * np.eye(d))
    prior = GaussianPrior(space, dense(cov), mean, reference=reference)
    operator = Matrix(space, Space({"j": m}, "y"), a)
    return _conditioned("vector", prior, operator, (mean, cov), a, np.full(m, 0.3), rng)


def _series(rng: np.random.Generator) -> ExactProblem:
    n = 64
    times = np.arange(float(n))
    cov = np.exp(-np.abs(times[:, None] - times) / 8)
    seen = np.sort(rng.choice(n, 16, replace=False))
    space = Space({"time": times})
    operator = Points.at_indices(space, seen)
    law = (np.zeros(n), cov)
    return _conditioned(
        "series", GaussianPrior(space, dense(cov)), operator, law, np.eye(n)[seen], np.full(16, 0.1), rng
    )


def _grid(rng: np.random.Generator) -> ExactProblem:
    n = 16
    waves = np.minimum(np.arange(n), n - np.arange(n))
    power = (1 + (waves[:, None] ** 2 + waves**2) / 4) ** -2.0
    # a stationary field: the covariance of two points is the transform of the spectrum at their distance
    along = np.fft.ifft2(power).real
    along /= along[0, 0]
    i, j = (v.ravel() for v in np.indices((n, n)))
    cov = along[(i[:, None] - i) % n, (j[:, None] - j) % n]
    k = frequencies(n, "periodic") / 2
    modes = (1 + (k[:, None] ** 2 + k**2) / 4) ** -2.0
    rough = np.sqrt(modes)
    space = Space({"row": n, "column": n})
    prior = GaussianPrior(
        space,
        spectral((n, n), modes * n**2 / modes.sum(), "periodic"),
        reference=spectral((n, n), rough * n**2 / rough.sum(), "periodic"),
    )
    seen = np.sort(rng.choice(n * n, 40, replace=False))
    operator = Points.at_indices(space, np.stack([seen // n, seen % n], 1))
    return _conditioned(
        "grid", prior, operator, (np.zeros(n * n), cov), np.eye(n * n)[seen], np.full(40, 0.1), rng
    )


def _graph(rng: np.random.Generator) -> ExactProblem:
    n = 40
    places = rng.uniform(size=(n, 2))
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    near = np.argsort(apart, axis=1)[:, 1:4]
    pairs = {(min(i, j), max(i, j)) for i in range(n) for j in near[i].tolist()}
    edges = np.array(sorted(pairs)).T
    adjacency = np.zeros((n, n))
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1.0
    walk = np.diag(adjacency.sum(0)) - adjacency + 0.3 * np.eye(n)
    cov = np.linalg.inv(walk @ walk)
    scale = n / np.trace(cov)
    space = Space({"node": n}, edges=edges)
    prior = GaussianPrior(space, graph(space, lambda values: scale * (values + 0.3) ** -2))
    seen = np.sort(rng.choice(n, 12, replace=False))
    operator = Points.at_indices(space, seen)
    return _conditioned(
        "graph", prior, operator, (np.zeros(n), scale * cov), np.eye(n)[seen], np.full(12, 0.1), rng
    )


_KINDS: dict[str, Callable[[np.random.Generator], ExactProblem]] = {
    "vector": _vector,
    "series": _series,
    "grid": _grid,
    "graph": _graph,
}


# -- linear Gaussian state space ---------------------------------------------------------------------


def _markov(f: np.ndarray, q: np.ndarray, start: np.ndarray, steps: int) -> np.ndarray:
    """Covariance ``(steps, 2, steps, 2)`` of the unconditioned chain."""
    out, now = np.zeros((steps, 2, steps, 2)), start
    for t in range(steps):
        cross = now
        for s in range(t, steps):
            out[s, :, t], out[t, :, s] = cross, cross.T
            cross = f @ cross
        now = f @ now @ f.T + q
    return out


def _by_variable(cov: np.ndarray) -> np.ndarray:
    """``(steps, 2, steps, 2)`` as a matrix whose states are ``(2, steps)``."""
    return cov.transpose(1, 0, 3, 2).reshape(cov.shape[0] * 2, -1)


class _Smoother:
    """Kalman filter, smoother and backward sampler of a chain whose first component is seen now and then."""

    def __init__(
        self,
        f: np.ndarray,
        q: np.ndarray,
        start: np.ndarray,
        steps: int,
        data: dict[int, float],
        noise: float,
    ) -> None:
        h, self.log_evidence = np.array([1.0, 0.0]), 0.0
        m, p = np.zeros(2), start
        self.filtered: list[tuple[np.ndarray, np.ndarray]] = []
        # of each step but the last: gain of the smoother, predicted mean, covariance left given the next state
        self.backward: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for t in range(steps):
            if t:
                ahead = f @ p @ f.T + q
                gain = np.linalg.solve(ahead, f @ p).T
                self.backward.append((gain, f @ m, p - gain @ ahead @ gain.T))
                m, p = f @ m, ahead
            if t in data:
                off, var = data[t] - h @ m, h @ p @ h + noise
                self.log_evidence -= 0.5 * float(off**2 / var + np.log(2 * np.pi * var))
                m, p = m + p @ h * (off / var), p - np.outer(p @ h, h @ p) / var
            self.filtered.append((m, p))
        means, covs = [m], [p]
        for (gain, ahead_mean, left), (m, _) in zip(
            reversed(self.backward), reversed(self.filtered[:-1]), strict=True
        ):
            means.append(m + gain @ (means[-1] - ahead_mean))
            covs.append(left + gain @ covs[-1] @ gain.T)
        self.mean, self.covs = np.array(means[::-1]), np.array(covs[::-1])

    def joint(self) -> np.ndarray:
        """``Cov[x_s, x_t | y]``, ``(steps, 2, steps, 2)``: products of the smoother's gains."""
        steps = len(self.mean)
        out = np.zeros((steps, 2, steps, 2))
        for t in range(steps):
            cross = self.covs[t]
            for s in range(t, -1, -1):
                out[s, :, t], out[t, :, s] = cross, cross.T
                cross = self.backward[s - 1][0] @ cross if s else cross
        return out

    def draw(self, n: int, seed: int) -> np.ndarray:
        """Exact draws ``(n, 2 steps)`` by backward sampling, the positions first."""
        white = np.random.default_rng(seed).standard_normal((len(self.mean), n, 2))
        m, p = self.filtered[-1]
        x = [m + white[-1] @ np.linalg.cholesky(p).T]
        for t in range(len(self.mean) - 2, -1, -1):
            gain, ahead, left = self.backward[t]
            mean = self.filtered[t][0] + (x[-1] - ahead) @ gain.T
            x.append(mean + white[t] @ np.linalg.cholesky(left).T)
        return np.stack(x[::-1], 2).reshape(n, -1)
