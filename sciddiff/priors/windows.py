"""A prior of long series from one of short windows (Rozet and Louppe 2023, arXiv 2306.10574, section 3.1).

In a series that is Markov of order k, ``E[z_i | z]`` at small noise depends on ``z_{i-k..i+k}`` alone. So the denoiser of
windows of ``2k + 1`` states gives that of a series of any length: each state from the window centred at it, the first
and the last k from the windows at the ends. With noise the neglected states count for something, and less
with every step that the window is wider.
"""

from __future__ import annotations

import math
from typing import Any, Self, final

import torch

from sciddiff.covariance import Covariance, Eigen, Standard, joint, precision
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior, level
from sciddiff.priors.composed import axis_of
from sciddiff.spaces import Space

__all__ = ["WindowPrior"]

# the most entries of the precision of the Gaussian that is carried over to the series, windows counted apart
_ENTRIES = 2**24
# values of windows at a time
_BLOCK = 2**18


@final
class WindowPrior(Prior):
    """A long series whose windows have the law of a prior on ``2k + 1`` states (Rozet and Louppe 2023, algorithm 2).

    Time and memory are linear in the length, and all windows go through the prior in batches. One forward of
    the composed prior is ``(length - 2k)/stride`` forwards of windows.

    The score is exact in the limit of small noise, for a series that is Markov of order k. For a series
    ``z_i = phi z_{i-1} + e_i`` of unit variance the error of ``D`` falls like ``r^k`` with
    ``r + 1/r = ((1 + phi^2)/(1 - phi^2) + 1/sigma^2) (1 - phi^2)/phi``. With phi 0.9 and 200 times its rms, in units
    of that of ``D`` itself, was 0.001, 0.3 and 0.8 at sigma 0.1, 1 and 10 for k = 1, and below 1e-6, 0.07 and 0.6
    for k = 4.

    What is drawn forgets faster than the series where the window is shorter than its memory. With phi 0.9, whose
    correlations over 1, 5 and 10 steps are 0.90, 0.59 and 0.35, draws along the probability flow had 0.76, 0.01 and 0
    for k = 1, 0.88, 0.37 and 0.05 for k = 4, and 0.90, 0.59 and 0.34 for k = 16; their variances were 0.81, 0.91 and
    1. Four Langevin corrections a step (`PredictorCorrector`) gave 0.88, 0.45 and 0.12 for k = 4: the paper's
    corrections help a little, a wider window helps more.

    Where the window's fitted Gaussian is known and the window small, the series has one too, with the window's
    conditional law of a state given the 2k before it: a banded precision, for `MMPS` and others.

    With it 10 000 states of the series above, every fourth seen with errors of 0.3, were smoothed by 64 steps (32 draws, k = 16,
    stride 9) in 12 s of one core, 7 times what 1000 states took; means and spreads were those of the Kalman smoother to within
    chance. With a network's windows of a double well the means were 0.14 posterior standard deviations off (rms) and the
    spreads within 2 % (benchmarks/long_series.py).

    Args:
        prior: over windows of an odd number of states, the same wherever the window begins.
        length: number of states; or the space of the series, for its labels.
        dim: the dim of time, in the window's space.
        stride: how many states are taken from the middle of each window, an odd number as the window's: with more than one
            a forward takes that many times fewer windows, and a state may be ``(stride - 1)/2`` steps off the centre.
        sigma_max: highest noise level; None takes the window's, raised for exact priors where the longest
            waves of the series need it.
        chunk: windows at a time, for each call; None fits them to memory.

    Raises:
        InputError: on a window of an even number of states, one whose mean, scale or noise changes along it or
            whose noise is not independent, a series that is shorter than the window, another space or sigma_max.

    Example:
        >>> import numpy as np
        >>> from sciddiff.covariance import kernel
        >>> from sciddiff.priors import GaussianPrior
        >>> window = GaussianPrior(Space({"time": 5}), kernel(lambda h: np.exp(-h), np.arange(5.0)))
        >>> WindowPrior(window, 1000).sample(2, seed=0, steps=8)["x"].shape
        (2, 1000)
    """

    def __init__(
        self,
        prior: Prior,
        length: int | Space,
        *,
        dim: str = "time",
        stride: int = 1,
        sigma_max: float | None = None,
        chunk: int | None = None,
    ) -> None:
        self.window, self.dim, self.axis = prior, dim, axis_of(prior.space, dim)
        self.width, self.chunk, self.stride = prior.space.sizes[dim], chunk, stride
        _count("stride", stride)
        if chunk is not None:
            _count("chunk", chunk)
        if self.width % 2 == 0 or self.width < 3:
            raise InputError(
                "prior",
                expected="a window of an odd number of states, at least 3",
                got=self.width,
                fix="a window has a state in the middle and k on either side",
            )
        if stride % 2 == 0 or stride > self.width - 2:
            raise InputError(
                "stride",
                expected=f"an odd number of states, at most {self.width - 2} of a window of {self.width}",
                got=stride,
                fix="leave states on either side of those that are taken; 1 takes the middle one",
            )
        self.space = _series(prior.space, length, dim)
        shape = prior.space.shape
        values = {n: torch.broadcast_to(getattr(prior.normalisation, n), shape) for n in ("mean", "scale")}
        self.normalisation = Normalisation(*(self._constant(v, n) for n, v in values.items()))
        if not (isinstance(prior.reference, Eigen) and isinstance(prior.reference.basis, Standard)):
            raise InputError(
                "prior",
                expected="noise that is independent from time to time",
                got=prior.reference,
                fix="train the window's prior with white reference noise",
            )
        noise = self._constant(prior.reference.eigenvalues, "reference noise")
        self.reference = Eigen(Standard(self.space.shape), noise.expand(self.space.shape).contiguous())
        self.dtype, self.device, self.normalised = prior.dtype, prior.device, prior.normalised
        self._joint = self._gaussian()
        self.sigma_min = prior.sigma_min
        self.sigma_max = self._highest(sigma_max)

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Each state from the window around it; those at the ends from the first and last window."""
        axis, off = 1 + self.axis, (self.width - self.stride) // 2
        # (windows, batch, *window shape), a view
        windows = z.unfold(axis, self.width, 1).movedim(-1, axis + 1).movedim(axis, 0)
        if isinstance(sigma, torch.Tensor) and sigma.ndim:
            level(sigma, z)
        size = max(1, len(z)) * self.window.space.size
        step = max(1, _BLOCK // size) if self.chunk is None else self.chunk
        parts: list[torch.Tensor] = []
        for block in windows[:: self.stride].split(step):
            d = self._windows(block, sigma)
            if not parts:
                parts.append(d[0].narrow(axis, 0, off).clone())
            parts.append(d.narrow(axis + 1, off, self.stride).movedim(0, axis).flatten(axis, axis + 1))
        # what is left at the end, from the last of all windows
        done = sum(part.shape[axis] for part in parts)
        if (len(windows) - 1) % self.stride:
            d = self._windows(windows[-1:], sigma)
        left = z.shape[axis] - done
        parts.append(d[-1].narrow(axis, self.width - left, left))
        return torch.cat(parts, axis)

    def _windows(self, block: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """The denoiser of some windows ``(windows, batch, *window shape)``."""
        if isinstance(sigma, torch.Tensor) and sigma.ndim:
            sigma = sigma.repeat(len(block))
        return self.window.denoise(block.flatten(0, 1), sigma).reshape(block.shape)

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` of the Gaussian series whose windows have the law fitted to the window's prior."""
        return None if self._joint is None else self._joint.covariance(sigma)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        other = super().to(device, dtype)
        other.window = self.window.to(device, dtype)
        return other

    def _constant(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """Values of a window that are the same at all its times, with one time left."""
        first = values.narrow(self.axis, 0, 1)
        if not torch.allclose(values.double(), first.double(), rtol=1e-6, atol=1e-12):
            raise InputError(
                "prior",
                expected=f"a {what} that is the same at all times of the window",
                got=f"values from {float(values.min()):.4g} to {float(values.max()):.4g}",
                fix="take what depends on the date out of the data first",
            )
        return first

    def _gaussian(self) -> Any:
        """The Gaussian series beside its noise; None where the window has no fitted Gaussian, or is large."""
        fitted = self.window.gaussian_covariance(self.window.sigma_max)
        noise = torch.as_tensor(self.reference.variance())
        entries = (self.space.sizes[self.dim] - self.width + 1) * self.window.space.size**2
        if fitted is None or entries > _ENTRIES or bool((noise != noise.reshape(-1)[0]).any()):
            return None
        eye = torch.eye(self.window.space.size, dtype=torch.float64).reshape(-1, *self.window.space.shape)
        # with the noise of the highest level taken out again, which is what the window itself varies by
        inverse = (fitted.solve(eye) - self.window.reference.solve(eye) / self.window.sigma_max**2).flatten(1)
        if fitted.rank < len(eye) or not bool((torch.linalg.eigvalsh(inverse) > 0).all()):
            return None
        return joint(self._extended(inverse), self.reference)

    def _extended(self, inverse: torch.Tensor) -> Covariance:
        """``p(x_1..w) prod_i p(x_i | x_{i-w+1..i-1})``: positive whatever the window's law."""
        import numpy as np
        import scipy.sparse as sp

        index = torch.arange(self.space.size).reshape(self.space.shape)
        windows = index.unfold(self.axis, self.width, 1).movedim(-1, self.axis + 1).movedim(self.axis, 0)
        inner = torch.arange(self.window.space.size).reshape(self.window.space.shape)
        before = inner.narrow(self.axis, 0, self.width - 1).flatten()
        covariance = torch.linalg.inv(inverse)
        step = inverse.clone()
        step[before[:, None], before] -= torch.linalg.inv(covariance[before[:, None], before])
        places = windows.flatten(1).numpy()
        blocks = np.concatenate([inverse[None], step[None].expand(len(places) - 1, -1, -1)])
        rows, columns = np.repeat(places, places.shape[1], 1), np.tile(places, places.shape[1])
        matrix = sp.coo_matrix((blocks.reshape(-1), (rows.reshape(-1), columns.reshape(-1)))).tocsc()
        return precision((matrix + matrix.T) / 2, self.space.shape)

    def _highest(self, asked: float | None) -> float:
        least = 0.0 if self._joint is None else math.sqrt(self._joint.largest)
        top = self.window.sigma_max
        if asked is not None:
            top = float(asked)
        elif self.window.exact:
            top = max(top, 20 * least)
        if not max(5 * least, self.sigma_min) <= top < math.inf:
            raise InputError(
                "sigma_max",
                expected=f"at least 5 sqrt(lambda_max) = {5 * least:.4g} of the long series",
                got=f"{top:.4g}",
                fix="use a window that was trained up to that level, or pass sigma_max if it works there too",
            )
        return top


def _series(window: Space, length: int | Space, dim: str) -> Space:
    """The space of the series."""
    if isinstance(length, Space):
        space, width = length, window.sizes[dim]
        axis_of(space, dim)
        same = Space(
            {d: width if d == dim else space.coords.get(d, n) for d, n in space.sizes.items()},
            space.variables,
        )
        difference = window.difference(same)
        if difference is not None:
            raise InputError(
                "length",
                expected=f"a number, or {window} with another {dim!r}",
                got=difference,
                fix="keep the other dims and the variables",
            )
    else:
        _count("length", length)
        rest: dict[str, Any] = {d: window.coords.get(d, n) for d, n in window.sizes.items()}
        space = Space({**rest, dim: int(length)}, window.variables)
    if space.sizes[dim] < window.sizes[dim]:
        raise InputError(
            "length",
            expected=f"at least the window's {window.sizes[dim]} states",
            got=space.sizes[dim],
            fix="use the window's own prior for shorter series",
        )
    return space


def _count(argument: str, n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(
            argument, expected="an int of at least 1", got=repr(n), fix=f"pass for example {argument}=64"
        )
