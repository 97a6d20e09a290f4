"""What a prior promises: ``D(z, sigma) = E[z0 | z0 + sigma n = z]``, with slopes that are its covariance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.priors.base import Prior
from sciddiff.random import Streams, check_seed
from sciddiff.testing.base import (
    LIMIT,
    BrokenError,
    Check,
    Report,
    SkippedError,
    at_most,
    leaves_alone,
    relative,
    run,
    within,
)

__all__ = ["check_prior"]

_ROWS = 4


def check_prior(
    prior: Prior, *, draws: int = 400, seed: int = 0, expected_failures: Mapping[str, str] | None = None
) -> Report:
    """Check a prior against its contract, in its own dtype.

    Args:
        prior: yours.
        draws: how many states the statistical checks look at; errors of more than about ``5/sqrt(draws)`` show.
        seed: of the draws.
        expected_failures: name of a check -> why it fails.

    Returns:
        A report of "shape", "dtype", "batch invariance", "clean limit" (``D -> z`` as sigma falls), "autograd"
        (VJP against finite differences), "seed", "global state" and, where they apply: "conditional mean"
        (``z0 - D`` is uncorrelated with ``z`` and ``D``), "score" (the slope of ``log_density``), "covariance"
        (``sigma^2 J C`` against `Prior.covariance`), "symmetric", "positive" and "sampler" (what a solver makes of the
        denoiser against exact draws, Kolmogorov-Smirnov in 8 directions).

    Raises:
        CheckError: naming the checks that failed, with figures.

    Example:
        >>> import sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"x": 3}), sd.covariance.diagonal([1.0, 2.0, 3.0]))
        >>> check_prior(prior, draws=100).named("failed", "skipped")
        []
    """
    if not isinstance(prior, Prior):
        raise InputError(
            "prior",
            expected="a Prior",
            got=type(prior).__name__,
            fix="wrap a network with Prior.from_network",
        )
    return run(prior, _Trial(prior, draws, check_seed(seed)).checks(), expected_failures)


class _Trial:
    """A prior, levels from its lowest noise to its highest, and states of it."""

    def __init__(self, prior: Prior, draws: int, seed: int) -> None:
        self.prior, self.n, self.seed = prior, draws, seed
        self.levels: list[float] = np.geomspace(prior.sigma_min, prior.sigma_max, 5)[1:-1].tolist()
        # the statistics are of single values: rounding hides no error that they could show
        self.tolerance = 1e-9 if prior.dtype == torch.float64 else 1e-4
        self._clean: torch.Tensor | None = None

    @property
    def clean(self) -> torch.Tensor:
        """Normalised states: exact draws, or a few of the default solver's."""
        if self._clean is None:
            exact = self.prior.draw(Streams(self.seed, range(self.n), purpose="testing states"))
            self._clean = self.sampled(8) if exact is None else exact
        return self._clean

    def sampled(self, n: int, **options: Any) -> torch.Tensor:
        draws = self.prior.sample(n, seed=self.seed, **options)
        x = self.prior.space.tensor(
            draws, batch_dim="sample", dtype=self.prior.dtype, device=self.prior.device
        )
        return self.prior.normalisation.normal(x)

    def noisy(self, sigma: float, rows: int | None = None) -> torch.Tensor:
        z0 = self.clean[:rows]
        return z0 + sigma * self.prior.noise(Streams(self.seed, range(len(z0)), purpose="testing noise"))

    def inside(self, purpose: str) -> torch.Tensor:
        """Directions ``C^1/2 z`` in the range of the reference noise."""
        return self.prior.noise(Streams(self.seed, range(_ROWS), purpose=f"testing {purpose}"))

    def checks(self) -> dict[str, Check]:
        return {
            "shape": self.shape,
            "dtype": self.dtype,
            "batch invariance": self.batch,
            "clean limit": self.limit,
            "conditional mean": self.mean,
            "autograd": self.autograd,
            "score": self.score,
            "covariance": self.covariance,
            "symmetric": self.symmetric,
            "positive": self.positive,
            "sampler": self.sampler,
            "seed": self.seeded,
            "global state": lambda: leaves_alone(
                lambda: self.prior.denoise(self.inside("states"), self.levels[0])
            ),
        }

    def shape(self) -> str:
        z = self.inside("states")
        for batch in (z, z[:1], z[:0]):
            got = tuple(self.prior.denoise(batch, self.levels[1]).shape)
            if got != tuple(batch.shape):
                raise BrokenError(f"a batch {tuple(batch.shape)} gave {got}")
        if tuple(z.shape[1:]) != self.prior.space.shape:
            raise BrokenError(f"noise has shape {tuple(z.shape[1:])} in place of {self.prior.space.shape}")
        return str(tuple(z.shape))

    def dtype(self) -> str:
        out = self.prior.denoise(self.inside("states"), self.levels[1])
        if out.dtype != self.prior.dtype:
            raise BrokenError(f"{self.prior.dtype} in, {out.dtype} out")
        return str(out.dtype)

    def batch(self) -> str:
        z = self.noisy(1.0, _ROWS)
        sigmas = torch.as_tensor(np.geomspace(self.levels[0], self.levels[-1], len(z))).to(z)
        together = self.prior.denoise(z, sigmas)
        rows = [self.prior.denoise(z[i : i + 1], float(sigmas[i])) for i in range(len(z))]
        error = relative(together, torch.cat(rows))
        return at_most("rows alone and together differ by", error, max(self.tolerance, 1e-10))

    def limit(self) -> str:
        """``|D - z|`` is at most about ``|z - z0|``, which the conditional mean halves at worst."""
        sigma = self.prior.sigma_min
        z = self.noisy(sigma)
        moved = float((self.prior.denoise(z, sigma) - z).norm())
        return at_most("at sigma_min, |D - z| over the noise is", moved / float((z - self.clean).norm()), 1.5)

    def mean(self) -> str:
        if self.prior.draw(Streams(self.seed, [0], purpose="testing states")) is None:
            raise SkippedError("no exact draws")
        worst, where = 0.0, ""
        for sigma in self.levels:
            z = self.noisy(sigma)
            d = self.prior.denoise(z, sigma)
            for name, other in (("z", z), ("D", d), ("a constant", torch.ones_like(z))):
                moment = ((self.clean - d) * other).flatten(1).sum(1).double()
                sd = float(moment.std()) / math.sqrt(self.n)
                score = float(moment.mean()) / sd if sd else 0.0
                if abs(score) > abs(worst):
                    worst, where = score, f"at sigma = {sigma:.3g} the correlation of z0 - D with {name}"
        return within(where or "nothing", worst, "D is not E[z0 | z] at that sigma")

    def slope(self, z: torch.Tensor, w: torch.Tensor, sigma: float) -> torch.Tensor:
        """``J w`` by central differences; each is good to about ``eps^(2/3)``."""
        h: float = torch.finfo(z.dtype).eps ** (1 / 3) * max(1.0, sigma)
        return (self.prior.denoise(z + h * w, sigma) - self.prior.denoise(z - h * w, sigma)) / (2 * h)

    @property
    def slack(self) -> float:
        return 1e-5 if self.prior.dtype == torch.float64 else 3e-2

    def autograd(self) -> str:
        worst = 0.0
        for sigma in self.levels:
            z, w, u = self.noisy(sigma, _ROWS), self.inside("directions"), self.inside("pulls")
            leaf = z.clone().requires_grad_()
            with torch.enable_grad():
                d = self.prior.denoise(leaf, sigma)
            (jtu,) = torch.autograd.grad(d, leaf, u)
            jw = self.slope(z, w, sigma)
            gap = (jtu * w).flatten(1).sum(1) - (jw * u).flatten(1).sum(1)
            worst = max(worst, float((gap.abs() / _size(jw, w, u)).max()))
        return at_most("finite differences differ by", worst, self.slack)

    def score(self) -> str:
        density = getattr(self.prior, "log_density", None)
        if density is None:
            raise SkippedError("no log_density")
        worst = 0.0
        for sigma in self.levels:
            z, w = self.noisy(sigma, _ROWS), self.inside("directions")
            h = torch.finfo(z.dtype).eps ** (1 / 3) * max(1.0, sigma)
            seen = (density(z + h * w, sigma) - density(z - h * w, sigma)) / (2 * h)
            worst = max(worst, relative((self.prior.score(z, sigma) * w).flatten(1).sum(1), seen))
        return at_most("the slope of log_density differs by", worst, self.slack)

    def exactly(self) -> None:
        if not self.prior.exact:
            raise SkippedError("the denoiser is learned, and promises no covariance")

    def action(self, sigma: float, w: torch.Tensor) -> torch.Tensor:
        """``sigma^2 J C w``."""
        return float(sigma) ** 2 * self.slope(self.noisy(sigma, _ROWS), self.prior.reference.apply(w), sigma)

    def covariance(self) -> str:
        if self.prior.covariance(self.levels[0]) is None:
            raise SkippedError("the covariance depends on the state")
        worst, w = 0.0, self.inside("directions")
        for sigma in self.levels:
            known = self.prior.covariance(sigma)
            assert known is not None  # asked above
            worst = max(worst, relative(known.apply(w), self.action(sigma, w)))
        return at_most("sigma^2 J C differs by", worst, self.slack)

    def symmetric(self) -> str:
        self.exactly()
        worst, w, u = 0.0, self.inside("directions"), self.inside("pulls")
        for sigma in self.levels:
            a, b = self.action(sigma, w), self.action(sigma, u)
            gap = (a * u).flatten(1).sum(1) - (b * w).flatten(1).sum(1)
            worst = max(
                worst, float((gap.abs() / _size(a, sigma**2 * self.prior.reference.apply(w), u)).max())
            )
        return at_most("sigma^2 J C and its transpose differ by", worst, self.slack)

    def positive(self) -> str:
        self.exactly()
        worst, w = math.inf, self.inside("directions")
        for sigma in self.levels:
            a = self.action(sigma, w)
            size = _size(a, sigma**2 * self.prior.reference.apply(w), w)
            worst = min(worst, float(((a * w).flatten(1).sum(1) / size).min()))
        if not worst >= -self.slack:
            raise BrokenError(f"w^T sigma^2 J C w falls to {worst:.2g} |w| |sigma^2 J C w|")
        return f"at least {worst:.2g} |w| |sigma^2 J C w|"

    def sampler(self) -> str:
        from scipy import stats

        from sciddiff.solvers import DPMSolver

        if self.prior.draw(Streams(self.seed, [0], purpose="testing states")) is None:
            raise SkippedError("no exact draws")
        solved = self.sampled(self.n, solver=DPMSolver()).flatten(1).double()
        exact = self.clean.flatten(1).double()
        ways = torch.cat(
            [self.inside("directions").flatten(1).double(), torch.eye(exact.shape[1])[:4].double()]
        )
        least, worst = 1.0, 0.0
        for way in ways:
            a, b = (solved @ way).numpy(), (exact @ way).numpy()
            if np.std(b) > 1e-6 * float(exact.std()):
                least = min(least, float(stats.ks_2samp(a, b).pvalue))
                worst = max(worst, abs(_moved(a, b)), abs(_moved((a - b.mean()) ** 2, (b - b.mean()) ** 2)))
        if not least > 2 * stats.norm.sf(LIMIT):
            raise BrokenError(f"samples and exact draws have other laws: p = {least:.1g}")
        return within(f"p = {least:.2g} at least; the worst moment of the samples", worst)

    def seeded(self) -> str:
        whole = self.sampled(_ROWS)
        pieces = self.sampled(_ROWS, chunk=1)
        error = max(relative(whole, pieces), relative(whole[:2], self.sampled(2)))
        if relative(whole, self.sampled(_ROWS)) != 0:
            raise BrokenError("the same seed gives other draws")
        return at_most("draws in pieces differ by", error, self.tolerance)


def _moved(a: np.ndarray, b: np.ndarray) -> float:
    """z-score of the difference of two means."""
    return float((a.mean() - b.mean()) / math.sqrt(a.var() / len(a) + b.var() / len(b)))


def _size(jw: torch.Tensor, w: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """``|J w| |u|``, with a floor where the denoiser hardly moves and differences see rounding only."""
    jw, w, u = (torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (jw, w, u))
    return (jw + 1e-3 * w) * u
