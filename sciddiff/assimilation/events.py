"""How probable an event ``C(x) > threshold`` is under a prior or a posterior, with the error of the estimate.

Three ways to one number. `Counting` takes draws and counts, for events that a hundred draws show. `Splitting` follows
``P(C > c) = P(C > c_1) P(C > c_2 | C > c_1) ...`` up a ladder of levels, for rare ones: it moves the noise ``xi`` that a
deterministic sampler turns into a state, by steps that leave ``N(0, I)`` as it is, and keeps what stays above the level.
`Evidence` asks a particle method for ``p(event)``, the mean weight of its particles. To draw states that have the event,
condition on it: ``prior.given([1.0], operator, noise.Exceeds(threshold, sd))``.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch

from sciddiff.draws import DiagnosisWarning
from sciddiff.errors import ConvergenceError, InputError, MethodError
from sciddiff.methods import LocalGaussian, Particles
from sciddiff.methods.base import Cost, GuidedDenoiser, Method, Run, bar
from sciddiff.noise import Exceeds
from sciddiff.operators import Operator, from_torch
from sciddiff.posterior import Posterior, check_count, check_solver, chunks
from sciddiff.priors.base import Prior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.random import Streams, check_seed
from sciddiff.solvers import DPMSolver, Solver
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Counting", "Estimator", "EventProbability", "Evidence", "Splitting", "event_probability"]

Event = Operator | Callable[[torch.Tensor], torch.Tensor]
# more levels than this and the event's value does not grow on the way to it
_MOST_LEVELS = 60
# the share of moves that are taken, which the step is tuned to
_ACCEPTED = 0.3


@final
@dataclass(frozen=True)
class EventProbability:
    """The probability of an event.

    Attributes:
        probability: the estimate.
        error: its standard error.
        log_probability: its natural logarithm; minus infinity where no draw had the event.
        log_error: the standard error of that, ``error / probability``; infinite where no draw had the event.
        notes: what was done: draws, hits, levels, share of moves taken, forwards.

    Example:
        >>> EventProbability.of(0.25, 0.01)
        EventProbability(0.25 +- 0.01, log -1.386 +- 0.04)
    """

    probability: float
    error: float
    log_probability: float
    log_error: float
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, probability: float, error: float, notes: Mapping[str, Any] | None = None) -> EventProbability:
        """From a probability and its standard error."""
        log = math.log(probability) if probability > 0 else -math.inf
        return cls(
            probability, error, log, error / probability if probability > 0 else math.inf, dict(notes or {})
        )

    def __repr__(self) -> str:
        return (
            f"EventProbability({self.probability:.3g} +- {self.error:.2g}, "
            f"log {self.log_probability:.4g} +- {self.log_error:.2g})"
        )


@dataclass(frozen=True)
class Estimator(ABC):
    """A way to estimate the probability of an event: a frozen dataclass of its settings."""

    @abstractmethod
    def estimate(self, law: Posterior, value: Operator, threshold: float, seed: int) -> EventProbability:
        """``P(value > threshold)`` under a law of one case; without observations it is the prior."""


def event_probability(
    law: Prior | Posterior,
    event: Event,
    *,
    threshold: float = 0.0,
    method: Estimator | None = None,
    seed: int,
) -> EventProbability:
    """The probability that ``event(x) > threshold``, with its standard error.

    Errors of the law are not in it: a learned prior has its own probability of the event, and a biased sampler of a
    posterior another than the posterior.

    Args:
        law: a prior, or a posterior of one case.
        event: an operator on its space with one value, or a torch function of physical states ``(rows, *shape)`` with
            one value a row, such as ``lambda x: x.flatten(1).amax(1)``.
        threshold: in the units of that value.
        method: `Counting` (default), `Splitting` or `Evidence`.
        seed: of all draws.

    Raises:
        InputError: on an event of more than one value, or whose value is NaN or infinite at some state on the way; a
            threshold that is not finite, or many cases.

    Source: Finzi et al. (2023), "User-defined Event Sampling and Uncertainty Quantification in Diffusion Models for
    Physical Dynamical Systems", who estimate ``P(E) = exp(E[log p(x) - log p(x|E)])`` over draws given the event, by two
    likelihoods along the flow, and so carry the errors of the conditional sampler. None of the ways here does.

    Example:
        >>> import sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"i": 2}), sd.covariance.white((2,)))
        >>> found = event_probability(prior, lambda x: x[:, 0], threshold=1.0, seed=0)   # 1 - Phi(1) = .1587
        >>> abs(found.probability - 0.1587) < 4 * found.error
        True
    """
    posterior, value = _checked(law, event, threshold)
    method = Counting() if method is None else method
    if not isinstance(method, Estimator):
        raise InputError(
            "method",
            expected="an Estimator such as Splitting()",
            got=repr(method),
            fix="pass an instance",
        )
    with torch.inference_mode(False), torch.no_grad():
        return method.estimate(posterior, value, float(threshold), check_seed(seed))


@final
@dataclass(frozen=True)
class Counting(Estimator):
    """The share of independent draws that have the event; the error is binomial, ``sqrt(p (1 - p)/n)``.

    Where none or all have it the error is ``1/n``, the probability that would just show.

    Args:
        draws: number of draws.
        sampler: of a posterior; None takes its default. Draws that interact have no such error, and are refused.
        solver: of the sampler; None takes the default.
        steps: of the solver; None takes the default.

    Raises:
        InputError: on fewer than 2 draws, or a sampler whose draws interact.
    """

    draws: int = 10_000
    sampler: Method | None = None
    solver: Solver | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        _at_least("draws", self.draws, 2)
        check_solver(self.solver)
        if self.sampler is not None and (not isinstance(self.sampler, Method) or self.sampler.interacts):
            raise InputError(
                "sampler",
                expected="a Method whose draws are independent",
                got=repr(self.sampler),
                fix="use Evidence for particle methods, or leave it out",
            )

    def estimate(self, law: Posterior, value: Operator, threshold: float, seed: int) -> EventProbability:
        """Draw and count."""
        prior, n = law.prior, self.draws
        if law.observations:
            made = law.sample(
                n, self.sampler, solver=self.solver, steps=self.steps, seed=seed, progress=False
            )
        else:
            made = prior.sample(n, seed=seed, solver=self.solver, steps=self.steps)
        x = prior.space.tensor(made, batch_dim="sample", dtype=prior.dtype)
        hits = int((_values(value, x) > threshold).sum())
        p = hits / n
        error = math.sqrt(p * (1 - p) / n) if 0 < hits < n else 1 / n
        return EventProbability.of(p, error, {"draws": n, "hits": hits})


@final
@dataclass(frozen=True)
class Splitting(Estimator):
    """Adaptive multilevel splitting, or subset simulation, in the noise that a deterministic sampler starts from.

    A population of noises ``xi ~ N(0, I)`` is carried to states by the probability flow (exact draws of a Gaussian prior
    need none). Its best ``share`` sets the next level; copies of those take ``moves`` steps ``sqrt(1 - b^2) xi + b w`` that are
    undone where the value falls below the level; and so on until the threshold is among the best. A level costs
    ``moves`` solves of the population. The populations are independent, and the error is taken from how they scatter;
    of one population the estimate is biased by about the inverse of its size, and draws that share an ancestor make
    its error larger than that of as many independent draws.

    Args:
        population: noises of one population.
        repeats: independent populations.
        share: of a population that goes on to the next level.
        moves: steps at each level.
        sampler: of a posterior, a guided denoiser; None: its default has to be one.
        solver: deterministic, such as `DPMSolver`, the default.

    Raises:
        InputError: on settings out of range, an event whose value does not grow towards it, or a solver that draws noise.
        ConvergenceError: if the threshold is not reached in 60 levels.

    Source: Au and Beck (2001), "Estimation of small failure probabilities in high dimensions by subset simulation";
    Cotter et al. (2013), "MCMC methods for functions", for the steps.

    Example:
        >>> import sciddiff as sd
        >>> prior = sd.GaussianPrior(sd.Space({"i": 2}), sd.covariance.white((2,)))
        >>> found = event_probability(prior, lambda x: x[:, 0], threshold=4.0, method=Splitting(), seed=0)
        >>> abs(found.log_probability - math.log(3.167e-5)) < 4 * found.log_error
        True
    """

    population: int = 500
    repeats: int = 8
    share: float = 0.2
    moves: int = 10
    sampler: GuidedDenoiser | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        _at_least("population", self.population, 10)
        _at_least("repeats", self.repeats, 2)
        _at_least("moves", self.moves, 1)
        check_solver(self.solver)
        if isinstance(self.share, bool) or not (isinstance(self.share, float) and 0 < self.share <= 0.5):
            raise InputError(
                "share", expected="a number up to 0.5", got=repr(self.share), fix="0.2 is a good start"
            )

    def estimate(self, law: Posterior, value: Operator, threshold: float, seed: int) -> EventProbability:
        """Go up the levels with all populations side by side."""
        return self._climb(law, value, threshold, seed)[0]

    def states(
        self, law: Prior | Posterior, event: Event, *, threshold: float = 0.0, seed: int
    ) -> tuple[EventProbability, xr.Dataset]:
        """The probability, and states that have the event: the members of the populations that end above the threshold.

        They follow the law given the event as the populations grow, and are not independent: many of one population share
        an ancestor. No guidance, and none of its bias, is in them.

        Args:
            law: as in `event_probability`.
            event: as in `event_probability`.
            threshold: as in `event_probability`.
            seed: of all noise.

        Returns:
            The estimate, and a `xarray.Dataset` with dims ``("sample", *space.dims)`` and the coordinate "population".
        """
        posterior, value = _checked(law, event, threshold)
        with torch.inference_mode(False), torch.no_grad():
            found, x, v = self._climb(posterior, value, float(threshold), check_seed(seed))
        above = v > threshold
        rows = x[above.reshape(-1)]
        out = law.prior.space if isinstance(law, Posterior) else law.space
        which = torch.nonzero(above)[:, 0].numpy()
        draws = out.dataset(rows, ["sample"]).assign_coords(population=("sample", which))
        return found, draws.assign_attrs(**found.notes)

    def _climb(
        self, law: Posterior, value: Operator, threshold: float, seed: int
    ) -> tuple[EventProbability, torch.Tensor, torch.Tensor]:
        """The estimate, the last states ``(repeats * population, *shape)`` and their values by population."""
        flow = _Flow(law, value, self.sampler, self.solver or DPMSolver(), seed)
        r, n = self.repeats, self.population
        kept = max(1, round(self.share * n))
        streams = Streams(seed, range(r * n), purpose="splitting")
        xi = flow.normals(streams)
        v = flow.value(xi).reshape(r, n)
        log, active, beta, levels, taken = torch.zeros(r, dtype=torch.float64), torch.arange(r), 0.5, 0, []
        while True:
            ordered = v.sort(1, descending=True).values
            active = active[ordered[active, kept - 1] <= threshold]
            if not len(active):
                break
            if levels == _MOST_LEVELS:
                raise ConvergenceError(
                    f"Splitting: after {levels} levels the value is at most {float(v.max()):.4g}, and the threshold "
                    f"{threshold:.4g}: the event may be impossible, or the moves too few."
                )
            levels += 1
            level = ordered[active, kept]
            above = [torch.nonzero(v[a] > c)[:, 0] for a, c in zip(active, level, strict=True)]
            if min(map(len, above)) == 0:
                raise InputError(
                    "event",
                    expected="a value that grows as the event comes nearer",
                    got=f"{kept + 1} or more of {n} states with the same value {float(level.max()):.4g}",
                    fix="return how far the state is from the event, such as x.amax(1) - level",
                )
            log[active] += torch.tensor([math.log(len(a) / n) for a in above], dtype=torch.float64)
            rows = torch.cat(
                [a * n + up[torch.arange(n) % len(up)] for a, up in zip(active, above, strict=True)]
            )
            here = torch.cat([a * n + torch.arange(n) for a in active])
            state, floor = xi[rows], level.repeat_interleave(n)
            reached = v.reshape(-1)[rows]
            for _ in range(self.moves):
                fresh = flow.normals(streams)[here]
                proposal = math.sqrt(1 - beta**2) * state + beta * fresh
                new = flow.value(proposal)
                accept = new > floor
                state[accept], reached[accept] = proposal[accept], new[accept]
                taken.append(float(accept.double().mean()))
                beta = min(1.0, beta * math.exp(taken[-1] - _ACCEPTED))
            xi[here] = state
            v.reshape(-1)[here] = reached
        p = log.exp() * (v > threshold).double().mean(1)
        notes = {
            "populations": r,
            "population": n,
            "levels": levels,
            "accepted": sum(taken) / len(taken) if taken else 1.0,
            "forwards": flow.cost.forwards,
        }
        found = EventProbability.of(float(p.mean()), float(p.std() / math.sqrt(r)), notes)
        return found, flow.states(xi), v


@final
@dataclass(frozen=True)
class Evidence(Estimator):
    """The evidence of the event as a datum, by a particle method, extrapolated in the number of its steps.

    The event is seen through `noise.Exceeds` with an sd, so that this is ``P(C(x) + sd n > threshold)``; take an sd that is
    small beside the spread of ``C(x)``. Particles have an unbiased evidence under their chain, whose law is too narrow by
    an error of first order in the steps: for a linear event of a Gaussian prior the logarithms were low by 0.29, 0.15,
    0.09 and 0.02 at P = .05 and 50, 100, 200 and 400 steps, and by 0.96, 0.46, 0.25 and 0.09 at .001. So two chains are
    run, of ``steps`` and of twice as many, and ``2 log P_2 - log P_1`` is taken, which leaves the second order. Under a
    posterior each is a ratio of evidences with and without the event. The error is taken from how repeats scatter: where
    one run seldom finds what carries the weight, it is too small, and so is the estimate.

    Args:
        sd: blur of the threshold, in the units of the value.
        sampler: a method that records ``log_evidence``: `Particles` or `TDS`.
        repeats: independent runs of each.
        steps: of the shorter chain.

    Raises:
        InputError: on settings out of range.
        MethodError: if the sampler does not fit, or records no evidence.
    """

    sd: float
    sampler: Method = field(default_factory=lambda: Particles(LocalGaussian(), particles=64))
    repeats: int = 8
    steps: int = 100

    def __post_init__(self) -> None:
        if isinstance(self.sd, bool) or not (isinstance(self.sd, (int, float)) and 0 < self.sd < math.inf):
            raise InputError("sd", expected="a positive number", got=repr(self.sd), fix="give the blur")
        _at_least("repeats", self.repeats, 2)
        _at_least("steps", self.steps, 2)
        if not isinstance(self.sampler, Method):
            raise InputError(
                "sampler",
                expected="a Method such as Particles()",
                got=repr(self.sampler),
                fix="pass an instance",
            )

    def estimate(self, law: Posterior, value: Operator, threshold: float, seed: int) -> EventProbability:
        """Both chains, with and, where there are data, without the event."""
        given = law.given([1.0], value, Exceeds(threshold, self.sd))
        log, square = 0.0, 0.0
        for steps, weight in ((self.steps, -1), (2 * self.steps, 2)):
            for sign, what in ((1, given), (-1, law)) if law.observations else ((1, given),):
                mean, relative = self._evidence(what, steps, seed)
                log, square = log + weight * sign * mean, square + (weight * relative) ** 2
        p, error = math.exp(log), math.sqrt(square)
        return EventProbability.of(
            p, p * error, {"repeats": self.repeats, "steps": self.steps, "sd": self.sd}
        )

    def _evidence(self, law: Posterior, steps: int, seed: int) -> tuple[float, float]:
        """Log of the mean evidence of the repeats, and the relative standard error of that mean."""
        logs = []
        for i in range(self.repeats):
            key = int(Streams(seed, [i], [steps], purpose="evidence").numpy()[0].integers(2**63))
            with warnings.catch_warnings():
                # the draws are thrown away, and what they look like says nothing
                warnings.simplefilter("ignore", DiagnosisWarning)
                attrs = law.sample(2, self.sampler, steps=steps, seed=key, progress=False).attrs
            if "log_evidence" not in attrs:
                raise MethodError(
                    "sampler",
                    expected="a method that records log_evidence",
                    got=repr(self.sampler),
                    fix="use Particles or TDS",
                )
            logs.append(float(attrs["log_evidence"]))
        top = torch.tensor(logs, dtype=torch.float64)
        scaled = (top - top.max()).exp()
        relative = float(scaled.std() / scaled.mean()) / math.sqrt(self.repeats)
        return float(top.max() + scaled.mean().log()), relative


class _Flow:
    """From standard normal noise to the value of the event, deterministically."""

    def __init__(
        self, law: Posterior, value: Operator, sampler: GuidedDenoiser | None, solver: Solver, seed: int
    ) -> None:
        self.prior, self.of, self.solver, self.cost = law.prior, value, solver, Cost()
        self.exact = isinstance(law.prior, GaussianPrior) and not law.observations
        self.denoise = self.cost.count(law.prior.denoise)
        if law.observations:
            chosen: Method = sampler if sampler is not None else LocalGaussian()
            if not isinstance(chosen, GuidedDenoiser) or (reason := chosen.misfit(law)) is not None:
                raise MethodError(
                    "sampler",
                    expected="a GuidedDenoiser that fits the posterior",
                    got=f"{chosen!r}" + (f": {reason}" if isinstance(chosen, GuidedDenoiser) else ""),
                    fix="pass for example sampler=MMPS()",
                )
            run = Run(law, chosen, 1, seed=seed, solver=None, steps=None, chunk=None, progress=False)
            run.cost, guided = self.cost, chosen.guide(run)
            self.denoise = lambda z, sigma: guided(z, sigma, torch.zeros(len(z), dtype=torch.long))

    def normals(self, streams: Streams) -> torch.Tensor:
        """Standard normal noise, one row a stream."""
        law = self.prior.law if isinstance(self.prior, GaussianPrior) and self.exact else self.prior.reference
        return streams.normal(law.white_shape, dtype=self.prior.dtype, device=self.prior.device)

    def value(self, xi: torch.Tensor) -> torch.Tensor:
        """``C(x)``, ``(rows,)``, in float64."""
        return _values(self.of, self.states(xi))

    def states(self, xi: torch.Tensor) -> torch.Tensor:
        """Physical states ``(rows, *shape)``."""
        rows = chunks(len(xi), self.prior.space.size, None)
        return torch.cat([self._some(xi[part.start : part.stop]) for part in rows])

    def _some(self, xi: torch.Tensor) -> torch.Tensor:
        prior = self.prior
        if isinstance(prior, GaussianPrior) and self.exact:
            z = prior.law.sqrt(xi)
        else:
            sigmas = self.solver.schedule.sigmas(self.solver.steps, prior.sigma_min, prior.sigma_max)
            z = sigmas[0] * prior.reference.sqrt(xi)
            z = z + self.denoise(z, sigmas[0])
            z = self.solver.integrate(self.denoise, z, sigmas, _refused, bar(False))
        return prior.normalisation.physical(z)


def _refused() -> torch.Tensor:
    raise InputError(
        "solver",
        expected="a deterministic solver",
        got="one that draws noise",
        fix="take DPMSolver() or Heun()",
    )


def _values(value: Operator, x: torch.Tensor) -> torch.Tensor:
    """The values of the event ``(rows,)``, in float64."""
    return _finite(value.apply(x)).reshape(len(x)).double()


def _finite(values: torch.Tensor) -> torch.Tensor:
    """Values of the event as they are, one a row; NaN would count as an event that did not happen."""
    if bad := int((~values.isfinite()).sum()):
        raise InputError(
            "event",
            expected="finite values at all states that the law can draw",
            got=f"NaN or infinity at {bad} of {len(values)} states",
            fix="say what the event is there, such as by torch.nan_to_num or a clamp before a logarithm",
        )
    return values


@final
class _Finite(Operator):
    """An event that is not linear, refused where it is not finite, in whatever method asks for it."""

    def __init__(self, value: Operator) -> None:
        self.value, self.domain, self.codomain = value, value.domain, value.codomain
        self.differentiable = value.differentiable

    @property
    def name(self) -> str:
        """That of the event."""
        return self.value.name

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The value, if it is finite."""
        return _finite(self.value.apply(x))


def _checked(law: Any, event: Any, threshold: Any) -> tuple[Posterior, Operator]:
    """The law as a posterior of one case, and the event as an operator."""
    if not isinstance(law, (Prior, Posterior)):
        raise InputError(
            "law",
            expected="a Prior or a Posterior",
            got=type(law).__name__,
            fix="condition with prior.given(...)",
        )
    posterior = Posterior(law, ()) if isinstance(law, Prior) else law
    if posterior.cases != 1:
        raise InputError(
            "law", expected="one case", got=f"{posterior.cases} cases", fix="estimate case by case"
        )
    if isinstance(threshold, bool) or not (isinstance(threshold, (int, float)) and math.isfinite(threshold)):
        raise InputError("threshold", expected="a finite number", got=repr(threshold), fix="0.0 is usual")
    value = _operator(posterior.prior, event)
    return posterior, value if value.linear else _Finite(value)


def _operator(prior: Prior, event: Event) -> Operator:
    """The event as an operator with one value."""
    if isinstance(event, Operator):
        if (difference := prior.space.difference(event.domain)) is not None:
            raise InputError(
                "event",
                expected=f"an operator on {prior.space}",
                got=difference,
                fix="build it with domain=prior.space",
            )
        if event.codomain.size != 1:
            raise InputError(
                "event",
                expected="an operator with one value",
                got=f"{event.codomain.size} values",
                fix="reduce them, such as by their maximum",
            )
        return event
    zero = torch.zeros((2, *prior.space.shape), dtype=prior.dtype, device=prior.device)
    with torch.no_grad():
        out = event(prior.normalisation.physical(zero)) if callable(event) else None
    if not isinstance(out, torch.Tensor) or out.shape not in ((2,), (2, 1)):
        raise InputError(
            "event",
            expected="an operator, or a torch function of states (rows, *shape) with one value a row",
            got=f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(event).__name__,
            fix="reduce all but the rows, such as x.flatten(1).amax(1)",
        )
    value = event
    return from_torch(lambda x: value(x).reshape(len(x), 1), prior.space, Space({"event": 1}, "value"))


def _at_least(name: str, value: object, least: int) -> None:
    if check_count(name, value) < least:
        raise InputError(name, expected=f"an int of at least {least}", got=repr(value), fix="leave it out")
