"""Exact posteriors of linear-Gaussian problems, and the exact law of samplers affine in their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.methods import Method
from sciddiff.methods.base import Rows, Run
from sciddiff.operators import LinearOperator
from sciddiff.priors.base import Prior


class Dense(LinearOperator):
    """A matrix on flattened states."""

    def __init__(self, domain, matrix):
        self.domain, self.matrix = domain, torch.as_tensor(matrix)
        self.codomain = sd.Space({"datum": len(matrix)}, "y")

    def apply(self, x):
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y):
        return (y @ self.matrix.to(y)).reshape(-1, *self.domain.shape)


class Hidden(Prior):
    """A Gaussian prior that does not tell its covariance, so that methods have to ask its denoiser."""

    exact = True

    def __init__(self, prior):
        self.__dict__.update({k: v for k, v in prior.__dict__.items() if k != "covariance"})
        self.inner = prior

    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma)


@dataclass(frozen=True)
class Law:
    """Mean ``(d,)`` and covariance ``(d, d)`` of flattened physical states."""

    mean: np.ndarray
    cov: np.ndarray

    def whitened(self, other: Law) -> tuple[np.ndarray, np.ndarray]:
        """The mean and covariance of another law where this one is standard, on the range of this one."""
        lam, v = np.linalg.eigh(self.cov)
        keep = lam > 1e-10 * lam[-1]
        w = v[:, keep] / np.sqrt(lam[keep])
        return w.T @ (other.mean - self.mean), w.T @ other.cov @ w

    def error(self, other: Law) -> tuple[float, float]:
        """The error of another law's mean, and the worst relative error of a variance, in any direction."""
        mean, cov = self.whitened(other)
        return float(np.linalg.norm(mean)), float(np.abs(np.linalg.eigvalsh(cov) - 1).max())

    def draw(self, n: int, rng: np.random.Generator) -> torch.Tensor:
        lam, v = np.linalg.eigh(self.cov)
        return torch.from_numpy(
            self.mean + rng.standard_normal((n, len(lam))) @ (v * np.sqrt(lam.clip(min=0))).T
        )

    def agree(self, draws: np.ndarray, alpha: float = 1e-4) -> None:
        """Test draws ``(n, d)`` of this law: means, total spread, every covariance; alpha for each test."""
        n = len(draws)
        lam, v = np.linalg.eigh(self.cov)
        keep = lam > 1e-10 * lam[-1]
        off = (draws - self.mean) @ v
        assert np.abs(off[:, ~keep]).max(initial=0.0) < 1e-6 * np.sqrt(lam[-1]), "draws leave the range"
        w = off[:, keep] / np.sqrt(lam[keep])
        r = w.shape[1]
        z = np.sqrt(n) * np.abs(w.mean(0)).max()
        assert z < stats.norm.isf(alpha / 2 / r), f"a mean is off by {z:.1f} standard errors"
        chi2 = stats.chi2(n * r).cdf((w**2).sum())
        assert alpha / 2 < chi2 < 1 - alpha / 2, f"chi-square at quantile {chi2}"
        # entries of the sample covariance have variance 1/n, on the diagonal 2/n
        gap = np.abs(w.T @ w / n - np.eye(r)) * np.sqrt(n / (1 + np.eye(r)))
        bound = stats.norm.isf(alpha / 2 / (r * (r + 1) / 2))
        assert gap.max() < bound, f"a covariance is off by {gap.max():.1f} standard errors"


def exact(posterior: sd.Posterior, case: int = 0) -> Law:
    """The posterior by dense algebra, from the actions of prior, operators and noise on unit vectors."""
    prior = posterior.prior
    d, shape = prior.space.size, prior.space.shape
    eye = torch.eye(d, dtype=torch.float64).reshape(d, *shape)
    sigma = prior.physical_covariance.apply(eye).reshape(d, d).numpy()
    mean = torch.broadcast_to(prior.normalisation.mean.double(), shape).reshape(d).numpy()
    rows, noises, values = [], [], []
    for o in posterior.observations:
        m = o.operator.codomain.size
        a = o.operator.apply(eye).reshape(d, m).T.numpy()
        unit = torch.eye(m, dtype=torch.float64).reshape(m, *o.operator.codomain.shape)
        r = o.noise.covariance(o.operator.codomain.shape).apply(unit).reshape(m, m).numpy()
        seen = np.ones(m, bool) if o.mask is None else o.mask[case].flatten().numpy()
        rows.append(a[seen]), noises.append(r[np.ix_(seen, seen)])
        values.append(o.y[case].double().flatten().numpy()[seen])
    a, y = np.concatenate(rows), np.concatenate(values)
    r = np.zeros((len(y), len(y)))
    start = 0
    for block in noises:
        r[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    gain = np.linalg.solve(a @ sigma @ a.T + r, a @ sigma).T
    cov = sigma - gain @ a @ sigma
    return Law(mean + gain @ (y - a @ mean), (cov + cov.T) / 2)


class Units:
    """A stream of noise whose row i is the i-th unit vector of everything that is drawn, row 0 zeros."""

    def __init__(self, rows: int) -> None:
        self.rows, self.drawn = rows, 0

    def __len__(self) -> int:
        return self.rows

    def normal(self, shape, *, dtype, device="cpu"):
        size = int(np.prod(shape, dtype=int))
        out = torch.zeros(self.rows, size, dtype=dtype, device=device)
        for i in range(size):
            if self.drawn + i + 1 < self.rows:
                out[self.drawn + i + 1, i] = 1.0
        self.drawn += size
        return out.reshape(self.rows, *shape)


class Probe(Run):
    """A run on unit noise."""

    def __init__(self, posterior, method, size, case, **settings) -> None:
        super().__init__(posterior, method, size, seed=0, chunk=None, progress=False, **settings)
        self.size, self.case, self.units = size, case, Units(size)

    def rows(self) -> Iterable[Rows]:
        yield Rows(torch.full((self.size,), self.case), self.units)


def law_of_draws(
    posterior: sd.Posterior, method: Method, *, solver=None, steps: int | None = None, case: int = 0
) -> Law:
    """The exact law of a sampler affine in its noise: its answer to zero and to every unit of noise."""
    with torch.no_grad():
        probe = Probe(posterior, method, 1, case, solver=solver, steps=steps)
        method.draw(probe)
        run = Probe(posterior, method, probe.units.drawn + 1, case, solver=solver, steps=steps)
        x = posterior.prior.normalisation.physical(method.draw(run)).flatten(1).double().numpy()
    return Law(x[0], (x[1:] - x[0]).T @ (x[1:] - x[0]))


def bures(a: Law, b: Law) -> float:
    """W2 distance of two Gaussians."""
    lam, v = np.linalg.eigh(a.cov)
    root = (v * np.sqrt(lam.clip(min=0))) @ v.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.cov @ root).clip(min=0)).sum()
    square = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    return float(np.sqrt(max(square, 0.0)))


def flat(posterior: sd.Posterior, draws, **case) -> np.ndarray:
    """Draws as ``(n, d)``."""
    return posterior.prior.space.tensor(draws.isel(case), batch_dim="sample").flatten(1).numpy()


# -- problems: (prior, operator, noise) on every kind of space ---------------------------------------


def observed(prior: sd.Prior, operator, noise, seed: int = 0, **settings) -> sd.Posterior:
    """Condition on a datum made from a draw of the prior."""
    truth = prior.sample(1, seed=seed).isel(sample=0)
    return prior.given(operator.observe(truth, noise, seed=seed), operator, noise, **settings)


def random_covariance(d: int, seed: int, spread: float = 1.0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return (q * np.exp(spread * np.linspace(-1, 1, d))) @ q.T


def gaussian(space, matrix_seed, *, reference=None, mean=None):
    cov = sd.covariance.dense(random_covariance(space.size, matrix_seed), space.shape)
    return sd.GaussianPrior(space, cov, mean, reference=reference)


def vector(reference=None):
    space = sd.Space({"site": 6}, {"t": "K"})
    prior = gaussian(space, 0, mean=[280.0, 281.0, 282.0, 283.0, 284.0, 285.0], reference=reference)
    matrix = np.random.default_rng(1).standard_normal((4, 6))
    return observed(prior, Dense(space, matrix), sd.noise.Gaussian([0.3, 0.5, 0.4, 1.0]))


def series(reference=None):
    times = np.cumsum(np.random.default_rng(2).gamma(2.0, 0.5, size=9))
    space = sd.Space({"time": times})
    cov = sd.covariance.kernel(lambda h: 4.0 * np.exp(-h / 3), times)
    if reference == "process":
        reference = sd.covariance.kernel(lambda h: np.exp(-h), times)
    prior = sd.GaussianPrior(space, cov, np.sin(times), reference=reference)
    operator = sd.operators.Points.at_indices(space, [0, 2, 3, 7])
    return observed(prior, operator, sd.noise.Gaussian(0.5))


def grid(boundary, coloured):
    shape = (3, 4)
    k = [sd.covariance.frequencies(n, boundary) / n for n in shape]
    power = (1 + 4 * (k[0][:, None] ** 2 + k[1][None] ** 2)) ** -2.0
    cov = sd.covariance.spectral(shape, power, boundary)
    space = sd.Space({"row": 3, "column": 4})
    reference = sd.covariance.spectral(shape, power**0.5, boundary) if coloured else None
    prior = sd.GaussianPrior(space, cov, reference=reference)
    operator = sd.operators.Points.at_indices(space, [[0, 0], [1, 2], [2, 3], [2, 1]])
    return observed(prior, operator, sd.noise.Gaussian(0.2))


EDGES = np.array([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 6, 6, 5]])


def graph(coloured):
    space = sd.Space({"node": 7}, edges=EDGES)
    cov = sd.covariance.graph(space, lambda lam: 2.0 * (lam + 0.5) ** -2)
    reference = sd.covariance.graph(space, lambda lam: 1 / (lam + 1)) if coloured else None
    prior = sd.GaussianPrior(space, cov, reference=reference)
    return observed(prior, sd.operators.Points.at_indices(space, [0, 3, 5]), sd.noise.Gaussian(0.3))


def markov():
    import scipy.sparse as sp

    space = sd.Space({"node": 7}, edges=EDGES)
    adjacency = sp.coo_matrix((np.ones(len(EDGES[0])), EDGES), shape=(7, 7))
    adjacency = adjacency + adjacency.T
    laplacian = sp.diags(np.asarray(adjacency.sum(0))[0]) - adjacency
    prior = sd.GaussianPrior(space, sd.covariance.precision(laplacian + 0.3 * sp.identity(7)))
    return observed(prior, sd.operators.Points.at_indices(space, [1, 4, 6]), sd.noise.Gaussian(0.3))


def complex_field():
    variable = sd.Variable(("x",), complex=True)
    space = sd.Space({"x": 4}, {"psi": variable})
    matrix = np.random.default_rng(3).standard_normal((5, 8))
    noise = sd.noise.Gaussian(covariance=sd.covariance.dense(0.2 * random_covariance(5, 4)))
    return observed(gaussian(space, 5), Dense(space, matrix), noise)


def particles():
    """Seven particles in one dimension without a centre of mass; the prior is inside the range of C."""
    projector = sd.covariance.centred((7,))
    values = torch.cat([torch.zeros(1), torch.linspace(0.5, 3.0, 6)]).double()
    space = sd.Space({"particle": 7})
    cov = sd.covariance.Eigen(projector.basis, values)
    prior = sd.GaussianPrior(space, cov, reference=projector)
    return observed(prior, sd.operators.Points.at_indices(space, [0, 2, 3]), sd.noise.Gaussian(0.4))


def two_instruments():
    """Two variables of very different units, each seen by its own instrument."""
    space = sd.Space({"x": 4}, {"t": "K", "p": "Pa"})
    scale = np.repeat([2.0, 5e3], 4)
    cov = sd.covariance.dense(random_covariance(8, 6) * np.outer(scale, scale), space.shape)
    prior = sd.GaussianPrior(space, cov, np.stack([np.full(4, 280.0), np.full(4, 1e5)]))
    warm = sd.operators.Points.at_indices(space, [0, 3], variables="t")
    heavy = sd.operators.Points.at_indices(space, [1, 2], variables="p")
    posterior = observed(prior, warm, sd.noise.Gaussian(0.5), seed=1)
    truth = prior.sample(1, seed=1).isel(sample=0)
    noise = sd.noise.Gaussian(1e3)
    return posterior.given(heavy.observe(truth, noise, seed=2), heavy, noise)


PROBLEMS: dict[str, Callable[[], sd.Posterior]] = {
    "vector": vector,
    "vector, diagonal C": lambda: vector(sd.covariance.diagonal([0.2, 0.5, 1.0, 2.0, 3.0, 1.5])),
    "vector, dense C": lambda: vector(sd.covariance.dense(random_covariance(6, 7, 0.5))),
    "series on irregular times": series,
    "series, C a process": lambda: series("process"),
    **{f"grid, {b}": lambda b=b: grid(b, False) for b in ("periodic", "neumann", "dirichlet")},
    **{f"grid, {b}, coloured C": lambda b=b: grid(b, True) for b in ("periodic", "neumann", "dirichlet")},
    "graph": lambda: graph(False),
    "graph, C of the graph": lambda: graph(True),
    "graph, sparse precision": markov,
    "complex variable": complex_field,
    "particles, C a projector": particles,
    "two instruments": two_instruments,
}


@pytest.fixture(params=list(PROBLEMS), ids=str)
def posterior(request) -> sd.Posterior:
    return PROBLEMS[request.param]()


@pytest.fixture
def calibration() -> SimpleNamespace:
    """The tools above, since test modules cannot import one another."""
    return SimpleNamespace(
        Dense=Dense,
        Hidden=Hidden,
        Law=Law,
        PROBLEMS=PROBLEMS,
        bures=bures,
        exact=exact,
        flat=flat,
        law_of_draws=law_of_draws,
        observed=observed,
        random_covariance=random_covariance,
        series=series,
        vector=vector,
    )
