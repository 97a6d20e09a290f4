"""What a noise promises: its draws have the law that its density says, whatever is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.noise import Noise
from sciddiff.random import Streams, check_seed
from sciddiff.testing.base import (
    BrokenError,
    Check,
    Report,
    SkippedError,
    at_most,
    leaves_alone,
    normals,
    relative,
    run,
    within,
)

__all__ = ["check_noise"]

_ROWS = 3


def check_noise(
    noise: Noise,
    shape: tuple[int, ...],
    *,
    mean: Any = None,
    draws: int = 4000,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Check a noise against its contract, in float64.

    Args:
        noise: yours.
        shape: of one observation.
        mean: a noise-free observation of that shape, inside the law's range. Default: values from 1 to 4.
        draws: how many observations the statistical checks look at; errors of more than about ``5/sqrt(draws)`` show.
        seed: of the draws.
        expected_failures: name of a check -> why it fails.

    Returns:
        A report of "shape", "dtype", "own draws accepted", "seed", "score", "missing values", "normalised",
        "marginal law" (Kolmogorov-Smirnov or chi-square of the draws of one value), "likelihood ratio" (of all
        values at once, ``E[p(y | m + v) / p(y | m)] = 1``), "expectation", "variance", "global state".

    Raises:
        CheckError: naming the checks that failed, with figures.
        InputError: on a mean of another shape.

    Example:
        >>> from sciddiff.noise import Laplace
        >>> check_noise(Laplace(0.3), (4,), draws=500).named("failed")
        []
    """
    if not isinstance(noise, Noise):
        raise InputError(
            "noise", expected="a Noise", got=type(noise).__name__, fix="pass for example noise.Gaussian(0.1)"
        )
    centre = torch.linspace(1, 4, math.prod(shape), dtype=torch.float64).reshape(shape)
    if mean is not None:
        centre = torch.as_tensor(np.asarray(mean), dtype=torch.float64)
        if tuple(centre.shape) != tuple(shape):
            raise InputError(
                "mean", expected=f"shape {shape}", got=tuple(centre.shape), fix="give one value each"
            )
    return run(noise, _Trial(noise, centre, draws, check_seed(seed)).checks(), expected_failures)


class _Trial:
    """A noise, a noise-free observation ``m`` and many draws around it."""

    def __init__(self, noise: Noise, mean: torch.Tensor, draws: int, seed: int) -> None:
        self.noise, self.mean, self.seed, self.n = noise, mean, seed, draws
        self.few = mean.expand(_ROWS, *mean.shape).clone()
        self._many: torch.Tensor | None = None

    @property
    def many(self) -> torch.Tensor:
        if self._many is None:
            self._many = self.noise.sample(self.mean.expand(self.n, *self.mean.shape).clone(), seed=self.seed)
        return self._many

    def checks(self) -> dict[str, Check]:
        return {
            "shape": self.shape,
            "dtype": self.dtype,
            "own draws accepted": self.accepted,
            "seed": self.seeded,
            "score": self.score,
            "missing values": self.missing,
            "normalised": self.normalised,
            "marginal law": self.marginal,
            "likelihood ratio": self.ratio,
            "expectation": self.expectation,
            "variance": self.variance,
            "global state": lambda: leaves_alone(lambda: self.noise.sample(self.few, seed=self.seed)),
        }

    def shape(self) -> str:
        y = self.noise.sample(self.few, seed=self.seed)
        if y.shape != self.few.shape:
            raise BrokenError(f"draws of {tuple(self.few.shape)} have shape {tuple(y.shape)}")
        out = self.noise.log_prob(y, self.few)
        if tuple(out.shape) != (_ROWS,):
            raise BrokenError(f"log_prob of {_ROWS} rows has shape {tuple(out.shape)}")
        return str(tuple(y.shape))

    def dtype(self) -> str:
        for dtype in (torch.float32, torch.float64):
            y = self.noise.sample(self.few.to(dtype), seed=self.seed)
            if not y.dtype == self.noise.log_prob(y, self.few.to(dtype)).dtype == dtype:
                raise BrokenError(f"{dtype} does not stay what it is")
        return "float32 and float64 stay what they are"

    def accepted(self) -> str:
        self.noise.check(self.many)
        if not bool(self.noise.log_prob(self.many, self.mean[None].expand_as(self.many)).isfinite().all()):
            raise BrokenError("log_prob of draws is not finite")
        return f"{self.n} draws"

    def seeded(self) -> str:
        whole = self.noise.sample(self.few, seed=self.seed)
        apart = [
            self.noise.draw(self.few[i : i + 1], Streams(self.seed, [i], purpose="observation"))
            for i in range(_ROWS)
        ]
        if not torch.equal(whole, torch.cat(apart)):
            raise BrokenError("a row depends on the rows beside it, and not on (seed, row) alone")
        if torch.equal(whole, self.noise.sample(self.few, seed=self.seed + 1)):
            raise BrokenError("two seeds give the same draws")
        return "row i depends on (seed, i) alone"

    def score(self) -> str:
        y, h = self.many[:_ROWS], 1e-5 * float(self.mean.abs().max())
        v = normals(self.seed, tuple(y.shape), y.dtype, "directions")
        up, down = (self.noise.log_prob(y, self.few + s * h * v) for s in (1, -1))
        slope = (self.noise.score(y, self.few) * v).flatten(1).sum(1)
        return at_most("finite differences differ by", relative(slope, (up - down) / (2 * h)), 1e-5)

    def missing(self) -> str:
        y = self.many[:_ROWS]
        mask = torch.ones_like(y, dtype=torch.bool)
        mask.view(_ROWS, -1)[:, ::2] = False
        a, b = torch.where(mask, y, torch.nan), torch.where(mask, y, 7.0)
        means = self.few, torch.where(mask, self.few, 2 * self.few)
        error = relative(self.noise.log_prob(a, means[0], mask), self.noise.log_prob(b, means[1], mask))
        at_most("what stands in place of a missing value changes log_prob by", error, 1e-12)
        score = self.noise.score(a, self.few, mask)
        if not bool((score[~mask] == 0).all()) or not bool(score.isfinite().all()):
            raise BrokenError("the score of a missing value is not 0")
        nothing = float(self.noise.log_prob(y, self.few, torch.zeros_like(mask)).abs().max())
        at_most("with nothing observed log_prob differs from 0 by", nothing, 1e-12)
        return "do not count"

    def normalised(self) -> str:
        """``sum_y1 p(y1, rest) = p(rest)``, with the rest seen and with it missing."""
        y = self.many[0]
        for seen in (True, False):
            log, grid = self.law(seen, y)
            others = torch.full((1, *y.shape), seen)
            others.view(-1)[0] = False
            total = float(torch.logsumexp(log, 0) - self.noise.log_prob(y[None], self.mean[None], others)[0])
            what = f"the density of one value, the others {'seen' if seen else 'missing'}, adds up to"
            if not abs(total) <= 1e-3:
                raise BrokenError(f"{what} {math.exp(min(total, 700)):.4g}")
        return f"to 1 within {abs(total):.1g}, on {len(grid)} points"

    def law(self, seen: bool, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities of the first value on a grid, the others seen at ``y`` or missing."""
        values = self.many.reshape(self.n, -1)[:, 0]
        if bool((values == values.round()).all()):
            low, high = float(values.min()), float(values.max())
            reach = 30 + 3 * (high - low)
            grid = torch.arange(max(0.0, low - reach), high + reach, dtype=torch.float64)
            weights = torch.zeros_like(grid)
        else:
            # t = centre + width tan(pi (u - 1/2)) reaches the far tails, Cauchy's too
            u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
            quarter = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
            centre, width = float(quarter[1]), float(quarter[2] - quarter[0])
            grid = centre + width * torch.tan(math.pi * (u - 0.5))
            weights = torch.log(math.pi * width * (1 + ((grid - centre) / width) ** 2) / 20000)
        rows = y.expand(len(grid), *y.shape).clone()
        rows.view(len(grid), -1)[:, 0] = grid
        mask = torch.full(rows.shape, seen)
        mask.view(len(grid), -1)[:, 0] = True
        mean = self.mean.expand(len(grid), *self.mean.shape)
        return self.noise.log_prob(rows, mean, mask) + weights, grid

    def marginal(self) -> str:
        from scipy import stats

        log, grid = self.law(False, self.many[0])
        values = self.many.reshape(self.n, -1)[:, 0].numpy()
        cdf = np.concatenate([[0.0], torch.softmax(log, 0).cumsum(0).numpy()])
        if (values == values.round()).all():
            edges = np.unique(np.quantile(values, np.linspace(0.02, 0.98, 15)))
            below = cdf[np.searchsorted(grid.numpy(), edges, side="right")]
            expected = self.n * np.diff([0.0, *below, max(1.0, below[-1])])
            seen = np.diff([0, *(int((values <= e).sum()) for e in edges), self.n])
            keep = expected > 1e-9 * self.n
            found = stats.chisquare(seen[keep], expected[keep] * seen[keep].sum() / expected[keep].sum())
        else:
            middle = (cdf[1:] + cdf[:-1]) / 2
            found = stats.kstest(np.interp(values, grid.numpy(), middle), "uniform")
        if not found.pvalue > 1e-6:
            raise BrokenError(f"the draws do not have the density of log_prob: p = {found.pvalue:.1g}")
        return f"p = {found.pvalue:.2g}"

    def ratio(self) -> str:
        """With the size of ``v`` such that the ratio's logarithm is about -1/2 on average."""
        v = normals(self.seed, (1, *self.mean.shape), torch.float64, "directions")
        base = self.noise.log_prob(self.many, self.mean[None].expand_as(self.many))

        def log_ratio(size: float) -> torch.Tensor:
            return self.noise.log_prob(self.many, (self.mean + size * v).expand_as(self.many)) - base

        low, high = 0.0, 1e3 * float(self.mean.abs().max())
        for _ in range(60):
            middle = (low + high) / 2
            gap = -float(log_ratio(middle).mean())
            low, high = (middle, high) if gap < 0.5 else (low, middle)
        ratio = log_ratio(low).exp()
        z = (float(ratio.mean()) - 1) / (float(ratio.std()) / math.sqrt(self.n))
        return within(f"the mean ratio {float(ratio.mean()):.3f}", z, "log_prob is not the law of the draws")

    def expectation(self) -> str:
        wanted = self.noise.expectation(self.mean[None])[0]
        variance = self.noise.variance(self.mean[None])
        if variance is None or not bool(variance.isfinite().all()):
            raise SkippedError("no finite variance")
        z = (self.many.mean(0) - wanted) / (self.many.std(0) / math.sqrt(self.n))
        return within("the worst mean of the draws", float(z.abs().max()))

    def variance(self) -> str:
        wanted = self.noise.variance(self.mean[None])
        if wanted is None or not bool(wanted.isfinite().all()):
            raise SkippedError("no finite variance")
        squares = (self.many - self.many.mean(0)) ** 2
        spread = squares.std(0)
        if float((spread / squares.mean(0)).max()) > 4:
            raise SkippedError("tails too heavy to judge a variance by its draws")
        z = (squares.mean(0) - wanted[0]) / (spread / math.sqrt(self.n))
        return within("the worst variance of the draws", float(z.abs().max()))
