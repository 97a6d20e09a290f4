"""Priors made of others: slices of a volume side by side, and several priors on the same states.

With a common ``S`` and ``C`` the scores of priors on the same states are in the same coordinates, so that weights
``w_i`` give ``score = sum_i w_i score_i``, which is ``D = z + sum_i w_i (D_i - z)`` (`ProductPrior`). Two priors of
slices that cut a volume along different dims make a prior of volumes from states of one dim less (Lee et al. 2023,
"Improving 3D Imaging with Pre-Trained Perpendicular 2D Diffusion Models", ICCV, arXiv 2303.08440).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, final

import torch

from sciddiff.covariance import Covariance, Eigen, Standard
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior, level
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space, check_space

if TYPE_CHECKING:
    from sciddiff.solvers import Schedule

__all__ = ["AlternatingPrior", "ProductPrior", "SlicesPrior", "SlicewiseCovariance"]


@final
class SlicesPrior(Prior):
    """Independent slices along one dim, each with the law of a prior on states without it.

    All slices of all rows go through the prior as one batch. The law is exact where the prior's is; what the
    slices of a real volume have in common is left to the data, to a second prior across them (`ProductPrior`,
    `AlternatingPrior`) or to a method that smooths along ``dim`` (`methods.DiffusionMBIR`).

    Args:
        prior: of one slice.
        space: the volumes; its dims are those of the slice, in their order, and ``dim`` among them.
        dim: the dim that the slices are counted along.

    Raises:
        InputError: if the space is not that of the slices with one more dim.

    Example:
        >>> from sciddiff.covariance import white
        >>> from sciddiff.priors import GaussianPrior
        >>> line = GaussianPrior(Space({"x": 3}), white((3,)))
        >>> SlicesPrior(line, Space({"z": 2, "x": 3}), "z").sample(1, seed=0)["u"].shape
        (1, 2, 3)
    """

    def __init__(self, prior: Prior, space: Space, dim: str) -> None:
        check_space(space)
        _check_slices(prior, space, dim)
        self.prior, self.space, self.dim = prior, space, dim
        self.axis = axis_of(space, dim)
        units, shape = prior.normalisation, prior.space.shape
        self.normalisation = Normalisation(
            *(torch.broadcast_to(v, shape).unsqueeze(self.axis) for v in (units.mean, units.scale))
        )
        self.reference = repeated(prior.reference, space.shape, self.axis)
        self.sigma_min, self.sigma_max = prior.sigma_min, prior.sigma_max
        self.dtype, self.device = prior.dtype, prior.device
        self.exact, self.normalised = prior.exact, prior.normalised

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Every slice denoised by itself."""
        slices = z.movedim(1 + self.axis, 1)
        if isinstance(sigma, torch.Tensor) and sigma.ndim:
            level(sigma, z)
            sigma = sigma.repeat_interleave(slices.shape[1])
        out = self.prior.denoise(slices.flatten(0, 1), sigma)
        return out.reshape(slices.shape).movedim(1, 1 + self.axis)

    def covariance(self, sigma: float) -> Covariance | None:
        """That of the slices, side by side."""
        return self._side_by_side(self.prior.covariance(sigma))

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """That of the Gaussian fitted to the slices, side by side."""
        return self._side_by_side(self.prior.gaussian_covariance(sigma))

    def draw(self, streams: Streams) -> torch.Tensor | None:
        """Exact slices, the ones behind the others in each stream."""
        slices = [self.prior.draw(streams) for _ in range(self.space.sizes[self.dim])]
        found = [s for s in slices if s is not None]
        return torch.stack(found, 1 + self.axis) if found else None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        other = super().to(device, dtype)
        other.prior = self.prior.to(device, dtype)
        return other

    def _side_by_side(self, inner: Covariance | None) -> Covariance | None:
        return None if inner is None else repeated(inner, self.space.shape, self.axis)


@final
class ProductPrior(Prior):
    """Several priors on the same states, their scores added with weights that sum to one (product of experts).

    ``D = sum_i w_i D_i``. As sigma falls to 0 the score is that of ``prod_i p_i(z)^w_i``; at other levels it is that
    of the product of the noisy densities, which is not the noisy product but wider. So what is drawn depends on the
    solver. For Gaussians of variances ``a`` and ``b`` in one direction, with weights of a half, the noisy variance is
    too large by ``s (a - b)^2/((a + b)(a + b + 2 s))``, ``s = sigma^2``, and that of the draws is

    - ``2ab/(a + b)``, that of the product, after many Langevin corrections (`PredictorCorrector`);
    - ``ab log(a/b)/(a - b)`` by stochastic steps (`Ancestral`);
    - ``sqrt(ab)``, the geometric mean, along the probability flow (`Heun`, `DPMSolver`).

    For ``a = 4 b`` these are 1.6, 1.85 and 2 times ``b``. Weights that do not sum to one are refused: at large sigma the
    noise itself would be counted that many times.

    Args:
        priors: two or more, on the same space with the same normalisation and reference noise.
        weights: positive, of sum one; None for equal ones.

    Raises:
        InputError: on fewer than two priors, other spaces, units or noise among them, or such weights.

    Example:
        >>> from sciddiff.covariance import diagonal
        >>> from sciddiff.priors import GaussianPrior
        >>> a, b = (GaussianPrior(Space({"i": 2}), diagonal(v)) for v in ([1.0, 3.0], [3.0, 1.0]))
        >>> ProductPrior([a, b]).denoise(torch.ones(1, 2, dtype=torch.float64), 0.0).tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, priors: Sequence[Prior], weights: Sequence[float] | None = None) -> None:
        self.priors = _common(self, priors)
        count = len(self.priors)
        self.weights = tuple([1 / count] * count if weights is None else map(float, weights))
        if (
            len(self.weights) != count
            or not all(0 < w < math.inf for w in self.weights)
            or abs(sum(self.weights) - 1) > 1e-9
        ):
            raise InputError(
                "weights",
                expected=f"{count} positive numbers that sum to one",
                got=weights,
                fix="divide them by their sum: the noise is to be counted once",
            )

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """``sum_i w_i D_i``."""
        parts = [w * p.denoise(z, sigma) for w, p in zip(self.weights, self.priors, strict=True)]
        return torch.stack(parts).sum(0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        other = super().to(device, dtype)
        other.priors = [p.to(device, dtype) for p in self.priors]
        return other


@final
class AlternatingPrior(Prior):
    """Two priors on the same states that take turns from noise level to noise level, as in TPDM.

    Of the levels of ``schedule`` with ``steps``, from the top, the second prior has every ``every``-th (an int), or each
    with probability ``1/every`` (a float; drawn once, from ``seed``, the same for all states); the first has the rest.
    A level between two of the grid belongs to the next one below. Drawing with the same schedule and number of
    steps is the published alternation (Lee et al. 2023, algorithm 1). Many fine steps average the scores: the
    draws are those of a `ProductPrior` with weights ``1 - 1/every`` and ``1/every``, with the same reservations.

    Args:
        first: the primary prior.
        second: the auxiliary one, on the same space with the same normalisation and reference noise.
        schedule: how the noise levels are spaced, ``solvers.Karras()`` for most solvers.
        every: 2 or more for turns; a float above 1 for chance.
        steps: number of noise levels.
        seed: of the turns by chance.

    Raises:
        InputError: on another space, units or noise of the second prior, or settings out of range.

    Example:
        >>> from sciddiff.covariance import diagonal
        >>> from sciddiff.priors import GaussianPrior
        >>> a, b = (GaussianPrior(Space({"i": 2}), diagonal(v)) for v in ([1.0, 3.0], [3.0, 1.0]))
        >>> from sciddiff.solvers import Karras
        >>> AlternatingPrior(a, b, Karras(), every=3, steps=6).turns
        (False, False, True, False, False, True)
    """

    def __init__(
        self,
        first: Prior,
        second: Prior,
        schedule: Schedule,
        *,
        every: float = 2,
        steps: int = 32,
        seed: int = 0,
    ) -> None:
        self.priors = _common(self, [first, second])
        whole = isinstance(every, int) and not isinstance(every, bool)
        if not (isinstance(every, (int, float)) and (every >= 2 if whole else 1 < every < math.inf)):
            raise InputError(
                "every",
                expected="an int of at least 2, or a float above 1",
                got=repr(every),
                fix="2 gives both priors the same share",
            )
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise InputError("steps", expected="an int of at least 2", got=repr(steps), fix="pass steps=32")
        self.levels = tuple(schedule.sigmas(steps, self.sigma_min, self.sigma_max))[:steps]
        if whole:
            self.turns = tuple(i % int(every) == every - 1 for i in range(steps))
        else:
            chance = Streams(check_seed(seed), [0], purpose="turns of two priors")
            drawn = chance.uniform((steps,), dtype=torch.float64)[0] < 1 / every
            self.turns = tuple(bool(turn) for turn in drawn)

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """The denoiser of the prior whose turn it is, row by row where the levels differ."""
        first, second = self.priors
        if not isinstance(sigma, torch.Tensor) or not sigma.ndim:
            return (second if self.turn(float(sigma)) else first).denoise(z, sigma)
        level(sigma, z)
        turn = torch.tensor([self.turn(float(s)) for s in sigma], dtype=torch.bool, device=z.device)
        shown = turn.reshape(-1, *(1,) * (z.ndim - 1))
        return torch.where(shown, second.denoise(z, sigma), first.denoise(z, sigma))

    def turn(self, sigma: float) -> bool:
        """Whether a level is the second prior's."""
        # rounding of a solver's level must not move it to the next one
        i = bisect_left([-s for s in self.levels], -sigma * (1 + 1e-6))
        return self.turns[min(i, len(self.turns) - 1)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        other = super().to(device, dtype)
        other.priors = [p.to(device, dtype) for p in self.priors]
        return other


@final
class SlicewiseCovariance(Covariance):
    """The same covariance on every slice along one axis, and none between slices.

    Args:
        inner: covariance of a slice.
        slices: how many there are.
        axis: of a state, that they are counted along.

    Example:
        >>> from sciddiff.covariance import white
        >>> SlicewiseCovariance(white((3,)), 4, 1).shape
        (3, 4)
    """

    def __init__(self, inner: Covariance, slices: int, axis: int) -> None:
        self.inner, self.slices, self.axis = inner, slices, axis
        shape = tuple(inner.shape)
        self.shape = (*shape[:axis], slices, *shape[axis:])
        self.white_shape = (slices, *inner.white_shape)
        self.rank, self.logdet = slices * inner.rank, slices * inner.logdet

    def sqrt(self, z: torch.Tensor) -> torch.Tensor:
        """Give ``F z`` of every slice."""
        return self._back(self.inner.sqrt(z))

    def sqrt_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``F^T x`` of every slice."""
        return self.inner.sqrt_adjoint(self._front(x))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``Sigma x`` of every slice."""
        return self._back(self.inner.apply(self._front(x)))

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """``Sigma^+ x`` of every slice."""
        return self._back(self.inner.solve(self._front(x)))

    def variance(self) -> torch.Tensor:
        """The slice's, repeated."""
        return self.inner.variance().unsqueeze(self.axis).expand(self.shape)

    def _front(self, x: torch.Tensor) -> torch.Tensor:
        rank = len(self.shape)
        return x.movedim(x.ndim - rank + self.axis, x.ndim - rank)

    def _back(self, x: torch.Tensor) -> torch.Tensor:
        rank = len(self.shape)
        return x.movedim(x.ndim - rank, x.ndim - rank + self.axis)


def axis_of(space: Space, dim: str) -> int:
    """Where a dim is in a state of a space, or `InputError`."""
    if not space.homogeneous or dim not in space.dims:
        raise InputError(
            "dim",
            expected=f"a dim that every variable of {space} has",
            got=repr(dim),
            fix=f"choose one of {space.dims}",
        )
    return len(space.shape) - len(space.dims) + space.dims.index(dim)


def repeated(covariance: Covariance, shape: tuple[int, ...], axis: int) -> Covariance:
    """A covariance of slices side by side, diagonal where that of a slice is."""
    if isinstance(covariance, Eigen) and isinstance(covariance.basis, Standard):
        values = covariance.eigenvalues.unsqueeze(axis).expand(shape).contiguous()
        return Eigen(Standard(shape), values)
    return SlicewiseCovariance(covariance, shape[axis], axis)


def _check_slices(prior: Prior, space: Space, dim: str) -> None:
    axis_of(space, dim)
    rest = {d: space.coords.get(d, n) for d, n in space.sizes.items() if d != dim}
    inner = prior.space
    names = [(n, v.units, v.complex) for n, v in inner.variables.items()]
    want = [(n, v.units, v.complex) for n, v in space.variables.items()]
    fits = inner.homogeneous and bool(rest) and names == want
    difference = inner.difference(Space(rest, inner.variables)) if fits and inner.dims == tuple(rest) else ""
    if difference is not None:
        raise InputError(
            "space",
            expected=f"{inner} with one more dim",
            got=difference or f"{space}, whose slices are on {tuple(rest)} with {[n for n, *_ in want]}",
            fix="give the volumes the slice's variables, and its dims in the same order",
        )


def _common(composed: Prior, priors: Sequence[Prior]) -> list[Prior]:
    """Check that priors share space, units and noise, and give these to what is composed of them."""
    parts = list(priors)
    if len(parts) < 2 or not all(isinstance(p, Prior) for p in parts):
        raise InputError(
            "priors",
            expected="two priors or more",
            got=[type(p).__name__ for p in parts],
            fix="pass a list of priors",
        )
    first = parts[0]
    shape = first.space.shape
    composed.space, composed.normalisation, composed.reference = (
        first.space,
        first.normalisation,
        first.reference,
    )
    composed.dtype, composed.device = first.dtype, first.device
    composed.normalised = all(p.normalised for p in parts)
    parts = [p.to(first.device, first.dtype) for p in parts]
    probe = Streams(0, range(2), purpose="shared noise").normal(shape, dtype=torch.float64)
    for other in parts[1:]:
        difference = first.space.difference(other.space)
        if difference is None:
            for name in ("mean", "scale"):
                a, b = (torch.broadcast_to(getattr(p.normalisation, name), shape) for p in (first, other))
                if not torch.allclose(a.double(), b.double(), rtol=1e-9, atol=1e-12):
                    difference = f"another {name} of the normalisation x = mean + scale z"
            a, b = (p.reference.apply(probe) for p in (first, other))
            if difference is None and not torch.allclose(a, b, rtol=1e-6, atol=1e-9):
                difference = f"another reference noise, {other.reference}"
        if difference is not None:
            raise InputError(
                "priors",
                expected="priors with one space, normalisation and reference noise",
                got=difference,
                fix="train or build them with the same ones: their noisy states have to be the same states",
            )
    # the levels at which all of them are known to work
    composed.sigma_min = max(p.sigma_min for p in parts)
    composed.sigma_max = min(p.sigma_max for p in parts)
    return parts
