"""Four-dimensional variational assimilation: ``min_x -log p_0(x_0) - sum_k log N(x_{k+1}; step(x_k), Q) - log p(y | x)``.

The unknowns are white: ``x_0 = m + P^1/2 v_0`` and model errors ``q_k = Q^1/2 v_k``, so that all but the data is ``|v|^2 / 2``
and its curvature at least one. Gradients are torch's, through the steps of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from sciddiff.assimilation.base import AssimilationMethod, Work
from sciddiff.assimilation.models import Assimilation
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.posterior import check_count
from sciddiff.priors import GaussianPrior
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Weak4DVar", "minimise"]


@final
@dataclass(frozen=True)
class Weak4DVar(AssimilationMethod):
    """Weak-constraint 4D-Var (Tremolet 2006), and draws by randomised maximum likelihood.

    A draw is the minimum for a prior mean and data that were perturbed by their own errors (Kitanidis 1995; Chen and
    Oliver 2012): exact for linear Gaussian models; elsewhere an approximation that puts draws into the modes that
    their starts lead to, with wrong weights. Each starts at its own perturbed prior. Without model error the first state
    alone is unknown, which is strong-constraint 4D-Var. `minimum` is the single best trajectory.

    Draw i depends on (seed, i) alone, up to where its descent stops.

    Args:
        iterations: most of them; a run that ends there is reported in the diagnosis.
        tolerance: largest gradient in a white unknown at which the minimum is taken as reached.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> Weak4DVar(iterations=200)
        Weak4DVar(iterations=200, tolerance=1e-06)
    """

    law: ClassVar[str] = "smoothing"
    reference: ClassVar[str] = (
        "@article{tremolet2006accounting, title={Accounting for an imperfect model in {4D-Var}}, author={Tr{\\'e}molet, "
        "Yannick}, journal={Quarterly Journal of the Royal Meteorological Society}, volume={132}, number={621}, "
        "pages={2483--2504}, year={2006}}\n\n"
        "@article{chen2012ensemble, title={Ensemble randomized maximum likelihood method as an iterative ensemble smoother}, "
        "author={Chen, Yan and Oliver, Dean S.}, journal={Mathematical Geosciences}, volume={44}, number={1}, pages={1--26}, "
        "year={2012}}"
    )
    iterations: int = 500
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        good = isinstance(self.tolerance, (int, float)) and not isinstance(self.tolerance, bool)
        if not good or not 0 < self.tolerance < math.inf:
            raise InputError(
                "tolerance", expected="a positive number", got=repr(self.tolerance), fix="leave it out"
            )

    def misfit(self, assimilation: Assimilation) -> str | None:
        """A Gaussian initial law, Gaussian errors, and derivatives."""
        if not isinstance(assimilation.model.initial, GaussianPrior):
            return f"the initial law is no GaussianPrior but {assimilation.model.initial!r}"
        offers = assimilation.posterior.offers()
        reasons = [reason for need in ("differentiable", "gaussian") if (reason := offers[need]) is not None]
        return "; ".join(reasons) or None

    def draw(self, work: Work) -> torch.Tensor:
        """Minima for perturbed means and data."""
        problem = _Problem(work, work.n, perturbed=True)
        x = self._minimise(problem, work)
        return x.reshape(work.n, work.cases, *x.shape[1:])

    def minimum(self, assimilation: Assimilation) -> xr.Dataset:
        """The trajectory at which the posterior density is largest, as far as a descent from the prior mean finds it.

        Returns:
            `xarray.Dataset` with dims ``("time", *space.dims)``, and the dim of many cases in front. Attrs: ``cost``, the value
            of the function that was minimised, and ``diagnosis``.

        Raises:
            MethodError: if the model or the data do not fit.
            DivergenceError: if the model is not finite along the prior mean.
        """
        misfit = self.misfit(assimilation)
        if misfit is not None:
            raise MethodError("method", expected="a fit", got=misfit, fix="take another method")
        work = assimilation.work(1, self, 0)
        with torch.inference_mode(False):
            x = self._minimise(_Problem(work, 1, perturbed=False), work)[None]
        out = assimilation._labelled(x, "sample").isel(sample=0)
        out.attrs.update({**work.attrs(), "diagnosis": "; ".join(work.warnings) or "ok"})
        return out

    def _minimise(self, problem: _Problem, work: Work) -> torch.Tensor:
        """The trajectories at the minimum, ``(rows, times, *shape)``."""
        v, cost, gradient, taken = minimise(problem.value, problem.start, self.iterations, self.tolerance)
        worst = gradient.abs().amax(1)
        # a gradient cannot be zeroed beyond the rounding of the function
        late = worst > 100 * self.tolerance * (1 + cost.abs()).sqrt()
        work.notes.update({"iterations": taken, "gradient": float(worst.max()), "cost": float(cost.mean())})
        if bool(late.any()):
            work.warnings.append(
                f"4D-Var: {int(late.sum())} of {len(late)} descents stopped at gradients of up to {float(worst.max()):.2g} after "
                f"{taken} iterations: allow more, or use a shorter window"
            )
        with torch.no_grad():
            return problem.trajectory(v)


class _Problem:
    """The function of white unknowns ``(rows, unknowns)``, one row for every draw of every case."""

    def __init__(self, work: Work, n: int, *, perturbed: bool) -> None:
        self.work, self.rows = work, n * work.cases
        draws = [i for i in range(n) for _ in range(work.cases)]
        cases = [c for _ in range(n) for c in range(work.cases)]
        streams = Streams(work.seed, draws, cases, purpose="variational")
        initial, covariance = work.model.initial, work.model.covariance
        assert isinstance(initial, GaussianPrior)  # misfit
        self.prior, self.first = initial, math.prod(initial.law.white_shape)
        self.error = 0 if covariance is None else math.prod(covariance.white_shape)
        unknowns = self.first + (work.times - 1) * self.error
        self.centre = torch.zeros((self.rows, unknowns), dtype=torch.float64)
        if perturbed:
            self.centre = streams.normal((unknowns,), dtype=torch.float64)
        self.start = self.centre
        self.seen = [k for k in range(work.times) if work.observed(k)]
        self.data = [
            self._data(o, torch.tensor(cases), streams, perturbed) for o in work.posterior.observations
        ]

    def _data(
        self, o: Any, cases: torch.Tensor, streams: Streams, perturbed: bool
    ) -> tuple[torch.Tensor, Any]:
        """Data and mask of the observed times for every row, ``(rows * seen, *codomain.shape)``."""
        shape, times = o.operator.codomain.shape, self.work.times
        at = (cases[:, None] * times + torch.tensor(self.seen)).flatten()
        y = o.y[at]
        if perturbed:
            covariance = o.noise.covariance(shape)
            white = streams.normal((len(self.seen), *covariance.white_shape), dtype=y.dtype)
            y = y + covariance.sqrt(white).reshape(y.shape)
        return y, None if o.mask is None else o.mask[at]

    def trajectory(self, v: torch.Tensor) -> torch.Tensor:
        """``(rows, times, *shape)``."""
        prior, model = self.prior, self.work.model
        v = v.to(prior.dtype)
        z = prior.law.sqrt(v[:, : self.first].reshape(len(v), *prior.law.white_shape))
        x, errors = [prior.normalisation.physical(z)], None
        if model.covariance is not None:
            white = v[:, self.first :].reshape(len(v), self.work.times - 1, *model.covariance.white_shape)
            errors = model.covariance.sqrt(white)
        for k in range(self.work.times - 1):
            after = model.advance(x[-1])
            x.append(after if errors is None else after + errors[:, k])
        self.work.model_steps += len(v) * (self.work.times - 1)
        return torch.stack(x, 1)

    def value(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The function of every row, ``(rows,)``, infinite where the model is not finite, and its gradient."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            states = self.trajectory(v)[:, self.seen].flatten(0, 1)
            cost = 0.5 * (v - self.centre).square().sum(1)
            for o, (y, mask) in zip(self.work.posterior.observations, self.data, strict=True):
                log_prob: torch.Tensor = o.noise.log_prob(y, o.operator.apply(states), mask)
                cost = cost - log_prob.double().unflatten(0, (self.rows, len(self.seen))).sum(1)
            self.work.operator_calls += len(states)
            (gradient,) = torch.autograd.grad(cost.sum(), v)
        fine = cost.isfinite() & gradient.isfinite().all(1)
        return torch.where(fine, cost.detach(), math.inf), torch.where(fine[:, None], gradient, 0.0)


def minimise(
    value: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    start: torch.Tensor,
    iterations: int,
    tolerance: float,
    *,
    memory: int = 20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """L-BFGS (Nocedal 1980) of many functions at once, each with a curvature and a step of its own.

    scipy's takes one function: of the sum over many rows it goes down as slowly as the worst of them.

    Args:
        value: rows ``(rows, d)`` to values ``(rows,)``, infinite where a step went too far, and gradients.
        start: rows ``(rows, d)``.
        iterations: most of them.
        tolerance: largest gradient of a row that is done.
        memory: how many steps the curvature is learned from.

    Returns:
        Rows, values, gradients and the number of iterations.

    Raises:
        DivergenceError: if the function is not finite at the start.

    Example:
        >>> def value(x):
        ...     return (x - 1).square().sum(1), 2 * (x - 1)
        >>> minimise(value, torch.zeros(2, 3, dtype=torch.float64), 50, 1e-9)[0].sum().item()
        6.0
    """
    x = start.clone()
    f, g = value(x)
    if not bool(f.isfinite().all()):
        raise DivergenceError(
            f"the model is not finite from {int((~f.isfinite()).sum())} of {len(f)} starts. Use a shorter window, a shorter step "
            "of the model, or a narrower initial law."
        )
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    last = 0.5 / g.norm(dim=1).clamp_min(1.0)
    for k in range(iterations):
        active = g.abs().amax(1) > tolerance
        if not bool(active.any()):
            return x, f, g, k
        d = _direction(g, pairs)
        slope = (d * g).sum(1)
        lost = slope >= 0
        d, slope = torch.where(lost[:, None], -g, d), torch.where(lost, -g.square().sum(1), slope)
        # a row that had to be cut back starts near where it was cut to: one such row costs all of them evaluations
        t = torch.where(active, last.mul(2).clamp_max(1.0), 0.0)
        accepted, new = ~active, (x, f, g)
        for _ in range(30):
            trial = x + t[:, None] * d
            at, slopes = value(trial)
            # below the rounding of the function its decrease cannot be seen
            good = (at <= f + 1e-4 * t * slope + 1e-14 * f.abs()) & ~accepted
            new = (
                torch.where(good[:, None], trial, new[0]),
                torch.where(good, at, new[1]),
                torch.where(good[:, None], slopes, new[2]),
            )
            accepted = accepted | good
            if bool(accepted.all()):
                break
            t = torch.where(accepted, t, 0.25 * t)
        last = torch.where(active, t, last)
        step, change = new[0] - x, new[2] - g
        if not bool((step != 0).any()):
            return x, f, g, k
        curvature = (step * change).sum(1)
        learned = curvature > 1e-10 * change.square().sum(1)
        inverse = torch.where(learned, 1 / torch.where(learned, curvature, 1.0), 0.0)
        pairs = [*pairs[-(memory - 1) :], (step, change, inverse)]
        x, f, g = new
    return x, f, g, iterations


def _direction(
    gradient: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """``-H g`` with the inverse curvature of the last steps: two loops over them, all rows at once."""
    q, weights = gradient, []
    for step, change, inverse in reversed(pairs):
        weights.append(inverse * (step * q).sum(1))
        q = q - weights[-1][:, None] * change
    scale = torch.ones_like(q[:, 0])
    for _, change, inverse in pairs:
        square = change.square().sum(1)
        scale = torch.where(inverse > 0, 1 / (inverse * square.clamp_min(1e-300)), scale)
    q = scale[:, None] * q
    for (step, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - inverse * (change * q).sum(1))[:, None] * step
    return -q
