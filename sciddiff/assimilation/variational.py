"""Four-dimensional variational assimilation: ``min_x -log p_0(x_0) - sum_k log N(x_{k+1}; step(x_k), Q) - log p(y | x)``.

The unknowns are white: ``x_0 = m + P^1/2 v_0`` and model errors ``q_k = Q^1/2 v_k``, so that all but the data is ``|v|^2 / 2``,
and ``Q`` may be singular or zero. An iteration of Gauss-Newton, which is an iterated Kalman smoother (Bell 1994), solves the
linearised problem by one pass backwards over time, in which every error answers the deviation of the state before it; the
pass forwards through the model itself keeps these answers, so that chaos does not carry a deviation away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch

from sciddiff.assimilation.base import AssimilationMethod, Work
from sciddiff.assimilation.models import Assimilation
from sciddiff.errors import DivergenceError, InputError, MethodError
from sciddiff.posterior import check_count
from sciddiff.priors import GaussianPrior
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.covariance import Covariance

__all__ = ["Weak4DVar"]

# of derivatives that are held at once
NUMBERS = 2**24
# and of one trajectory, 4 GB of them
LARGEST = 2**29
# windows before the whole, and iterations in each
WINDOWS, STEPS = 20, 5


@final
@dataclass(frozen=True)
class Weak4DVar(AssimilationMethod):
    """Weak-constraint 4D-Var (Tremolet 2006), and draws by randomised maximum likelihood.

    A draw is the minimum for a prior mean and data that were perturbed by their own errors (Kitanidis 1995; Chen and
    Oliver 2012): exact for linear Gaussian models; elsewhere an approximation that puts draws into the modes that
    their starts lead to, with wrong weights. Each starts at its own perturbed prior. Without model error the first state
    alone is unknown, which is strong-constraint 4D-Var. `minimum` is the single best trajectory.

    Steps are those of Gauss-Newton, damped for each draw on its own (Levenberg 1944, Marquardt 1963; Mandel et al. 2016 for
    4D-Var), and cost a Jacobian of the model at every time: memory and time are linear in the number of times and at
    least quadratic in the size of a state. Data come in from the first time on, each longer window from the minimum of the
    one before it (Pires et al. 1996), which passes by many minima that are not the lowest, and not by all.

    On 65 steps of noisy Lorenz-63 (the problem lorenz63_smoothing, 16 trajectories, 128 draws of each, about 0.012 s a draw):
    with x seen every 8 steps, log p(x) is 77.4 and log p(y | x) 8.9 in the mean, a particle smoother's 81.9 and 13.9; about 4 in 100
    draws end in poor local minima, which the diagnosis counts, and widen the spread to 3.0 from 0.55. The medians over draws are 81.2
    and 14.1. With z alone, where two modes weigh 1/2 each: 81.6 and 14.8 (81.2 and 14.7), and 0.50 of the draws in one mode.

    Draw i depends on (seed, i) alone, up to where its descent stops.

    Args:
        iterations: most of them for the whole window; a run that ends there is reported in the diagnosis.
        tolerance: largest gradient in a white unknown at which the minimum is taken as reached.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> Weak4DVar(iterations=50)
        Weak4DVar(iterations=50, tolerance=1e-06)
    """

    law: ClassVar[str] = "smoothing"
    reference: ClassVar[str] = (
        "@article{tremolet2006accounting, title={Accounting for an imperfect model in {4D-Var}}, author={Tr{\\'e}molet, "
        "Yannick}, journal={Quarterly Journal of the Royal Meteorological Society}, volume={132}, number={621}, "
        "pages={2483--2504}, year={2006}}\n\n"
        "@article{bell1994iterated, title={The Iterated {Kalman} Smoother as a {Gauss-Newton} Method}, author={Bell, Bradley M.}, "
        "journal={SIAM Journal on Optimization}, volume={4}, number={3}, pages={626--636}, year={1994}}\n\n"
        "@article{mandel2016hybrid, title={Hybrid {Levenberg-Marquardt} and weak-constraint ensemble {Kalman} smoother method}, "
        "author={Mandel, Jan and Bergou, El Houcine and G{\\\"u}rol, Selime and Gratton, Serge and Kasanick{\\'y}, Ivan}, "
        "journal={Nonlinear Processes in Geophysics}, volume={23}, number={2}, pages={59--73}, year={2016}}\n\n"
        "@article{pires1996extending, title={On extending the limits of variational assimilation in nonlinear chaotic systems}, "
        "author={Pires, Carlos and Vautard, Robert and Talagrand, Olivier}, journal={Tellus A}, volume={48}, number={1}, "
        "pages={96--121}, year={1996}}\n\n"
        "@article{chen2012ensemble, title={Ensemble randomized maximum likelihood method as an iterative ensemble smoother}, "
        "author={Chen, Yan and Oliver, Dean S.}, journal={Mathematical Geosciences}, volume={44}, number={1}, pages={1--26}, "
        "year={2012}}"
    )
    iterations: int = 200
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        good = isinstance(self.tolerance, (int, float)) and not isinstance(self.tolerance, bool)
        if not good or not 0 < self.tolerance < math.inf:
            raise InputError(
                "tolerance", expected="a positive number", got=repr(self.tolerance), fix="leave it out"
            )

    def misfit(self, assimilation: Assimilation) -> str | None:
        """A Gaussian initial law, Gaussian errors, and derivatives that can be held."""
        if not isinstance(assimilation.model.initial, GaussianPrior):
            return f"the initial law is no GaussianPrior but {assimilation.model.initial!r}"
        offers = assimilation.posterior.offers()
        reasons = [reason for need in ("differentiable", "gaussian") if (reason := offers[need]) is not None]
        numbers = assimilation.model.length * assimilation.model.space.size**2
        if numbers > LARGEST:
            reasons.append(f"the model's derivatives along one trajectory are {numbers:.1e} numbers")
        return "; ".join(reasons) or None

    def draw(self, work: Work) -> torch.Tensor:
        """Minima for perturbed means and data."""
        return self._minimise(work, work.n, perturbed=True)

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
        with torch.inference_mode(False), torch.no_grad():
            x = self._minimise(work, 1, perturbed=False)
        out = assimilation._labelled(x, "sample").isel(sample=0)
        out.attrs.update({**work.attrs(), "diagnosis": "; ".join(work.warnings) or "ok"})
        return out

    def _minimise(self, work: Work, n: int, *, perturbed: bool) -> torch.Tensor:
        """The trajectories at the minimum, ``(n, cases, times, *shape)``."""
        groups, found, cost = work.alike(), [], []
        late = poor = taken = 0
        worst, rows = 0.0, n * work.cases
        # windows end where a case has data, and are its own
        for cases in groups:
            problem = _Problem(work, n, cases, perturbed=perturbed)
            best, left, gradient, steps = self._follow(problem)
            late, taken, worst = late + left, max(taken, steps), max(worst, gradient)
            poor += int((best.cost > problem.bound()).sum())
            found.append(best.x.unflatten(0, (n, len(cases))))
            cost.append(best.cost)
        work.notes.update({"iterations": taken, "gradient": worst, "cost": float(torch.cat(cost).mean())})
        if late:
            work.warnings.append(
                f"4D-Var: {late} of {rows} descents stopped at gradients of up to {worst:.2g} after {taken} iterations: allow "
                "more, or use a shorter window"
            )
        if poor:
            work.warnings.append(
                f"4D-Var: {poor} of {rows} minima fit worse than one in a million would by chance: local minima, or data "
                "that the model does not explain"
            )
        order = torch.tensor([case for cases in groups for case in cases]).argsort()
        return torch.cat(found, 1)[:, order]

    def _follow(self, problem: _Problem) -> tuple[_Paths, int, float, int]:
        """The minima over growing windows; unfinished rows, the largest gradient, and iterations."""
        best, taken = _Paths([], problem.mean, torch.empty(0)), 0
        for times in problem.windows():
            whole = times == problem.work.times
            best = problem.extend(best, times)
            limits = (self.iterations, self.tolerance) if whole else (STEPS, 0.1)
            late, worst, more = _descend(problem, best, *limits)
            taken += more
        return best, late, worst, taken


def _descend(problem: _Problem, best: _Paths, iterations: int, tolerance: float) -> tuple[int, float, int]:
    """Iterate rows in place until each has its minimum; unfinished rows, the largest gradient, and iterations."""
    damping = torch.ones(problem.rows, dtype=torch.float64)
    worst, active = torch.full_like(damping, math.inf), torch.arange(problem.rows)
    # changes of the function below its rounding cannot be seen
    rounding = 50 * torch.finfo(problem.mean.dtype).eps
    for taken in range(iterations + 1):
        left = []
        for part in active.split(problem.at_once):
            now, before = best.take(part), damping[part]
            plan, worst[part] = problem.plan(now, part, before)
            unseen = rounding * (1 + now.cost.abs())
            left.append(part[(worst[part] > tolerance) & ~(plan.decrease < unseen)])
            if taken < iterations:
                new = problem.roll(part, now, plan)
                share = (now.cost - new.cost + unseen) / plan.decrease
                good = (share > 1e-4) & new.cost.isfinite()
                best.put(part[good], new.take(good))
                # where the curvature of the model counts, full steps go to and fro
                trust = torch.where(share > 0.75, 0.1, torch.where(share < 0.25, 4.0, 1.0))
                damping[part] = before * torch.where(good, trust, 8.0)
        active = torch.cat(left)
        if len(active) == 0:
            break
    return len(active), float(worst.max()), taken


@dataclass(eq=False)
class _Paths:
    """White unknowns ``(rows, w_k)`` of every time, the states they lead to, ``(rows, times, *shape)``, and the function."""

    v: list[torch.Tensor]
    x: torch.Tensor
    cost: torch.Tensor

    def take(self, rows: torch.Tensor) -> _Paths:
        return _Paths([v[rows] for v in self.v], self.x[rows], self.cost[rows])

    def put(self, rows: torch.Tensor, new: _Paths) -> None:
        for old, v in zip([*self.v, self.x, self.cost], [*new.v, new.x, new.cost], strict=True):
            old[rows] = v


@dataclass(eq=False)
class _Plan:
    """Changes of the unknowns of every time: fixed ones, answers to a deviation of the state, and the decrease they promise."""

    decrease: torch.Tensor
    fixed: list[torch.Tensor] = field(default_factory=list)
    answers: list[torch.Tensor] = field(default_factory=list)


class _Problem:
    """The function of white unknowns, one row for every draw of every case, of all cases or of some."""

    def __init__(self, work: Work, n: int, which: list[int] | None = None, *, perturbed: bool) -> None:
        which = list(range(work.cases)) if which is None else which
        self.work, self.rows, self.perturbed = work, n * len(which), perturbed
        draws = [i for i in range(n) for _ in which]
        cases = which * n
        streams = Streams(work.seed, draws, cases, purpose="variational")
        initial, covariance, d = work.model.initial, work.model.covariance, work.model.space.size
        assert isinstance(initial, GaussianPrior)  # misfit
        # states count from the mean of the first, and errors from none
        self.mean = initial.normalisation.physical(
            torch.zeros((1, *initial.space.shape), dtype=initial.dtype)
        )
        first = _root(initial.physical_covariance)
        error = torch.zeros((d, 0), dtype=torch.float64) if covariance is None else _root(covariance)
        self.roots = [first] + [error] * (work.times - 1)
        sizes = [root.shape[1] for root in self.roots]
        centre = torch.zeros((self.rows, sum(sizes)), dtype=torch.float64)
        if perturbed:
            centre = streams.normal((sum(sizes),), dtype=torch.float64)
        self.centre = list(centre.split(sizes, 1))
        self.seen: list[int] = np.flatnonzero(work.assimilation.seen[which].any(0)).tolist()
        self.observations = work.posterior.observations if self.seen else ()
        self.data = [self._data(o, torch.tensor(cases), streams, perturbed) for o in self.observations]
        # derivatives of a part of the rows are held at once
        self.at_once = max(1, NUMBERS // (work.times * d * d))

    def _data(
        self, o: Any, cases: torch.Tensor, streams: Streams, perturbed: bool
    ) -> tuple[torch.Tensor, Any]:
        """Data and mask of the observed times for every row, ``(rows, seen, *codomain.shape)``."""
        shape, times = o.operator.codomain.shape, self.work.times
        at = cases[:, None] * times + torch.tensor(self.seen)
        y = o.y[at]
        if perturbed:
            covariance = o.noise.covariance(shape)
            white = streams.normal((len(self.seen), *covariance.white_shape), dtype=y.dtype)
            y = y + covariance.sqrt(white.flatten(0, 1)).reshape(y.shape)
        return y, None if o.mask is None else o.mask[at]

    def windows(self) -> list[int]:
        """Numbers of times, from those up to the first that was observed to all."""
        last = [k + 1 for k in self.seen[:-1]]
        return [*last[:: max(1, len(last) // WINDOWS)], self.work.times]

    def extend(self, known: _Paths, times: int) -> _Paths:
        """So many times, the later ones along their own centres.

        Raises:
            DivergenceError: if the model is not finite there.
        """
        out = self.roll(
            torch.arange(self.rows),
            _Paths([*known.v, *self.centre[len(known.v) : times]], known.x, known.cost),
            None,
        )
        if not bool(out.cost.isfinite().all()):
            raise DivergenceError(
                f"the model is not finite from {int((~out.cost.isfinite()).sum())} of {self.rows} starts. Use a shorter window, a "
                "shorter step of the model, or a narrower initial law."
            )
        return out

    def bound(self) -> torch.Tensor:
        """What the function at a minimum exceeds with probability 1e-6 if all is linear and the model true, ``(rows,)``.

        Then twice the function, counted from a perfect fit, is a chi-squared of as many values as there are data, and twice
        that with perturbations; the bound on its tail is that of Laurent and Massart (2000), Lemma 1.
        """
        perfect = torch.zeros(self.rows, dtype=torch.float64)
        count = torch.zeros_like(perfect)
        for o, (y, mask) in zip(self.observations, self.data, strict=True):
            flat, hidden = y.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
            perfect -= o.noise.log_prob(flat, flat, hidden).double().reshape(self.rows, -1).sum(1)
            count += (torch.ones_like(y) if mask is None else mask).double().flatten(1).sum(1)
        t = math.log(1e6)
        return perfect + (1.0 if self.perturbed else 0.5) * (count + 2 * (count * t).sqrt() + 2 * t)

    def roll(self, rows: torch.Tensor, now: _Paths, plan: _Plan | None) -> _Paths:
        """Forwards through the model with the unknowns changed as planned; the cost is infinite where it is not finite."""
        v: list[torch.Tensor] = []
        x: list[torch.Tensor] = []
        model = self.work.model
        ahead = self.mean.expand(len(rows), *self.mean.shape[1:])
        for k, (root, old) in enumerate(zip(self.roots, now.v, strict=False)):
            ahead = model.advance(x[-1]) if k else ahead
            v.append(old.clone())
            if plan is not None:
                v[k] += plan.fixed[k]
                if k:
                    there = now.x[:, k].double().flatten(1) - old @ root.T
                    v[k] += _times(plan.answers[k], ahead.double().flatten(1) - there)
            x.append(ahead + (v[k] @ root.T).reshape(ahead.shape).to(ahead))
        self.work.model_steps += len(rows) * (len(x) - 1)
        out = torch.stack(x, 1)
        return _Paths(v, out, self.cost(rows, v, out))

    def cost(self, rows: torch.Tensor, v: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """The function, ``(rows,)``."""
        out = torch.zeros(len(rows), dtype=torch.float64)
        for a, centre in zip(v, self.centre, strict=False):
            out += 0.5 * (a - centre[rows]).square().sum(1)
        seen = [k for k in self.seen if k < len(v)]
        states = x[:, seen].flatten(0, 1)
        for o, (y, mask) in zip(self.observations, self.data, strict=True):
            mask = None if mask is None else mask[rows, : len(seen)].flatten(0, 1)
            log_prob = o.noise.log_prob(y[rows, : len(seen)].flatten(0, 1), o.operator.apply(states), mask)
            out -= log_prob.double().reshape(len(rows), -1).sum(1)
        self.work.operator_calls += len(states)
        return torch.where(out.isfinite(), out, math.inf)

    def plan(self, now: _Paths, rows: torch.Tensor, damping: torch.Tensor) -> tuple[_Plan, torch.Tensor]:
        """The step of Levenberg and Marquardt, and the largest gradient of every row.

        Backwards over time, ``dx S dx / 2 + s dx`` is the least that the future costs after a deviation ``dx``.
        """
        slopes, curvatures = self._seen(now.x, rows)
        steps = _jacobian(self.work.model.advance, now.x[:, :-1], self.work.model.space.size)
        self.work.model_steps += steps.shape[0] * steps.shape[1] * steps.shape[2]
        s = gradient = slopes.new_zeros((len(rows), slopes.shape[2]))
        big, worst = slopes.new_zeros((len(rows), *curvatures.shape[2:])), torch.zeros_like(damping)
        out = _Plan(torch.zeros_like(damping))
        for k in reversed(range(len(now.v))):
            if k in self.seen:
                at = self.seen.index(k)
                s, gradient, big = s + slopes[:, at], gradient + slopes[:, at], big + curvatures[:, at]
            root, offset = self.roots[k], now.v[k] - self.centre[k][rows]
            worst = torch.cat([worst[:, None], (offset + gradient @ root).abs()], 1).amax(1)
            slope, cross = offset + s @ root, root.T @ big
            eye = torch.eye(root.shape[1], dtype=torch.float64)
            factor, failed = torch.linalg.cholesky_ex((1 + damping)[:, None, None] * eye + cross @ root)
            # a step that is not finite is not taken, and the next is damped more
            factor = torch.where(failed[:, None, None] > 0, math.nan, factor)
            fixed = torch.cholesky_solve(slope[..., None], factor)[..., 0]
            answer = torch.cholesky_solve(cross, factor)
            out.fixed.insert(0, -fixed)
            out.answers.insert(0, -answer)
            out.decrease += 0.5 * (slope * fixed).sum(1)
            s, big = s - _times(answer.mT, slope), big - cross.mT @ answer
            if k:
                a = steps[:, k - 1]
                s, gradient, big = _times(a.mT, s), _times(a.mT, gradient), a.mT @ ((big + big.mT) / 2) @ a
        return out, worst

    def _seen(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient and Gauss-Newton curvature of ``-log p(y_k | x_k)`` at the times that were observed."""
        seen = [k for k in self.seen if k < x.shape[1]]
        states, d = x[:, seen], self.work.model.space.size
        slope = torch.zeros((*states.shape[:2], d), dtype=torch.float64)
        curvature = torch.zeros((*states.shape[:2], d, d), dtype=torch.float64)
        for o, (y, mask) in zip(self.observations, self.data, strict=True):
            shape = o.operator.codomain.shape
            j = _jacobian(o.operator.apply, states, o.operator.codomain.size)
            mask = None if mask is None else mask[rows, : len(seen)].flatten(0, 1)
            score = o.noise.score(
                y[rows, : len(seen)].flatten(0, 1), o.operator.apply(states.flatten(0, 1)), mask
            )
            slope -= _times(j.mT, score.double().reshape(*j.shape[:3]))
            # the score of Gaussian noise is linear: of the columns of j it is R^-1 j
            columns = j.mT.reshape(-1, *shape).to(y)
            mask = None if mask is None else mask.repeat_interleave(d, 0)
            weighed = o.noise.score(columns, torch.zeros_like(columns), mask).double()
            curvature += weighed.reshape(j.mT.shape) @ j
            self.work.operator_calls += j[..., 0].numel() + states.shape[0] * states.shape[1]
        return slope, curvature


def _jacobian(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int) -> torch.Tensor:
    """Derivatives ``(rows, times, size, d)`` at states ``(rows, times, *shape)``, by a copy of a state for every output."""
    with torch.enable_grad():
        copies = x.detach().flatten(0, 1).repeat_interleave(size, 0).requires_grad_()
        out = function(copies).flatten(1)
        units = torch.eye(size, dtype=out.dtype).repeat(len(out) // size, 1)
        (rows,) = torch.autograd.grad(out, copies, units)
    return rows.double().reshape(*x.shape[:2], size, math.prod(x.shape[2:]))


def _root(covariance: Covariance) -> torch.Tensor:
    """``F`` of ``F F^T``, ``(d, white)``."""
    n = math.prod(covariance.white_shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *covariance.white_shape)
    return covariance.sqrt(eye).reshape(n, -1).T


def _times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (matrix @ vector[..., None])[..., 0]
