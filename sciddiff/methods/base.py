"""What a posterior sampler is, and what one call of `Posterior.sample` hands to it.

Three kinds fit one seam, `Method.draw`: a `GuidedDenoiser` turns ``D`` into ``D_y ~ E[z0 | z, y]`` and
any solver integrates it; a transition or an ensemble or a variational fit write `draw` themselves.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, final, runtime_checkable

import torch

from sciddiff.errors import InputError
from sciddiff.posterior import check_count, check_solver, chunks
from sciddiff.priors.base import Prior
from sciddiff.random import Streams
from sciddiff.solvers import Denoiser, DPMSolver, Solver

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = [
    "Cost",
    "Guided",
    "GuidedDenoiser",
    "Method",
    "Rows",
    "Run",
    "bar",
    "integrate",
    "likelihood_gradient",
    "tweedie",
    "unconditional",
]

Guided = Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]


@dataclass
class Cost:
    """What was evaluated, in rows: forwards of the denoiser, VJPs through it, operator calls."""

    forwards: int = 0
    vjps: int = 0
    operator_calls: int = 0

    def count(self, denoise: Callable[[torch.Tensor, float], torch.Tensor]) -> Denoiser:
        """The denoiser, counted."""

        def counted(z: torch.Tensor, sigma: float) -> torch.Tensor:
            self.forwards += len(z)
            return denoise(z, sigma)

        return counted


@dataclass(frozen=True)
class Rows:
    """A chunk of draws: ``cases[i]`` is the observation of row i and ``streams`` its noise."""

    cases: torch.Tensor
    streams: Streams


class Run:
    """One call of `Posterior.sample`: the posterior, the rows to draw, the solver and the cost so far."""

    def __init__(
        self,
        posterior: Posterior,
        method: Method,
        n: int,
        *,
        seed: int,
        solver: Solver | None,
        steps: int | None,
        chunk: int | None,
        progress: bool | None,
    ) -> None:
        check_solver(solver)
        if chunk is not None:
            check_count("chunk", chunk)
        many = steps if steps is not None or solver is None else solver.steps
        if many is not None and check_count("steps", many) < 2:
            raise InputError(
                "steps",
                expected="an int of at least 2",
                got=repr(many),
                fix="more steps are more exact; 32 is a good start",
            )
        if progress not in (None, True, False):
            raise InputError(
                "progress", expected="True, False or None", got=repr(progress), fix="leave it out"
            )
        for name, value in (("solver", solver), ("steps", steps)):
            if value is not None and name not in method.takes:
                raise InputError(
                    name,
                    expected=f"None: {type(method).__name__} takes no {name}",
                    got=repr(value),
                    fix="leave it out; the method's own settings say how it works",
                )
        self.posterior, self.method, self.n, self.seed = posterior, method, n, seed
        self.solver = solver
        self.steps, self.chunk, self.cost = steps, chunk, Cost()
        self.asked = solver is not None or steps is not None
        self.bar = bar(progress)
        self.notes: dict[str, Any] = {}
        self.references = method.references()

    @property
    def prior(self) -> Prior:
        """The posterior's prior."""
        return self.posterior.prior

    def solver_for(self, guided: Guided) -> Solver:
        """The caller's solver, else the guided denoiser's own if it has one."""
        default = guided.solver if isinstance(guided, DrawingGuided) else DPMSolver()
        chosen = (self.solver or default).with_steps(self.steps)
        return self.record(chosen)

    def record(self, solver: Solver) -> Solver:
        """Note the solver that is used, and its paper."""
        self.notes["solver"] = repr(solver)
        self.references.append(solver.reference)
        return solver

    def denoise(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """The prior's denoiser, counted."""
        self.cost.forwards += len(z)
        return self.prior.denoise(z, sigma)

    def rows(self) -> Iterable[Rows]:
        """The rows of the result in chunks; the case runs fastest."""
        cases = self.posterior.cases
        for part in chunks(self.n * cases, self.prior.space.size, self.chunk):
            index = [i % cases for i in part]
            yield Rows(
                torch.tensor(index, dtype=torch.long, device=self.prior.device),
                Streams(self.seed, [i // cases for i in part], index, purpose="posterior"),
            )

    def ensemble(self, case: int, size: int | None = None, *, purpose: str = "posterior") -> Rows:
        """All draws of one case, or more members than draws, for methods whose draws interact."""
        size = self.n if size is None else size
        return Rows(
            torch.full((size,), case, dtype=torch.long, device=self.prior.device),
            Streams(self.seed, range(size), [case] * size, purpose=purpose),
        )

    def prior_draws(self, case: int, size: int) -> torch.Tensor:
        """An ensemble of the prior: exact where it can and no solver was asked for, else by the solver."""
        exact, solver = not self.asked, (self.solver or DPMSolver()).with_steps(self.steps)
        out = []
        for part in chunks(size, self.prior.space.size, self.chunk):
            streams = Streams(self.seed, part, [case] * len(part), purpose="ensemble")
            z = self.prior.draw(streams) if exact else None
            if z is None:
                denoise = unconditional(self.prior, self.denoise, streams)
                z = integrate(self.prior, denoise, streams, solver, None, self.bar)
                self.record(solver)
            out.append(z)
        return torch.cat(out)

    def per_case(self, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """``draw(case)``, ``(n, *shape)``, for every case, in the order of the result's rows."""
        every = [draw(case) for case in range(self.posterior.cases)]
        return torch.stack(every, 1).flatten(0, 1)

    def attrs(self) -> dict[str, Any]:
        """What the result records of the call, as plain values."""
        total = self.n * self.posterior.cases
        return {
            "method": repr(self.method),
            "settings": json.dumps(self.method.settings(), sort_keys=True),
            "references": "\n\n".join(dict.fromkeys(filter(None, self.references))),
            "solver": "none",
            "prior": repr(self.prior),
            "seed": self.seed,
            "cases": self.posterior.cases,
            "forwards": self.cost.forwards / total,
            "vjps": self.cost.vjps / total,
            "operator_calls": self.cost.operator_calls / total,
            "sciddiff": version("sciddiff"),
            "torch": str(torch.__version__),
            **self.notes,
        }


@dataclass(frozen=True)
class Method(ABC):
    """A posterior sampler: a frozen dataclass of its settings.

    Attributes:
        needs: what the posterior has to offer: "linear", "gaussian", "differentiable", "one case".
        takes: which of the arguments "solver" and "steps" of `Posterior.sample` it heeds; others are refused.
        interacts: whether the draws depend on one another.
        reference: the paper, as BibTeX.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    interacts: ClassVar[bool] = False
    reference: ClassVar[str] = ""

    @abstractmethod
    def draw(self, run: Run) -> torch.Tensor:
        """All rows of the run, ``(n * cases, *shape)``, normalised, the case running fastest."""

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit the posterior, None if it does."""
        offers = posterior.offers()
        reasons = [reason for need in sorted(self.needs) if (reason := offers[need]) is not None]
        return "; ".join(reasons) or None

    def references(self) -> list[str]:
        """The papers of this method and of the methods among its settings, as BibTeX."""
        parts = [getattr(self, field.name) for field in fields(self)]
        inner = [r for part in parts if isinstance(part, Method) for r in part.references()]
        return [self.reference, *inner]

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class GuidedDenoiser(Method):
    """A method that is a denoiser given ``y``; draws do not interact."""

    takes: ClassVar[frozenset[str]] = frozenset({"solver", "steps"})

    @abstractmethod
    def guide(self, run: Run) -> Guided:
        """The function ``(z, sigma, cases) -> D_y``; row i is conditioned on observation ``cases[i]``."""

    def draw(self, run: Run) -> torch.Tensor:
        """Integrate the guided denoiser from noise to data, chunk by chunk."""
        guided, out = self.guide(run), []
        solver = run.solver_for(guided)
        for rows in run.rows():
            out.append(integrate(run.prior, _bound(guided, rows), rows.streams, solver, None, run.bar))
        return torch.cat(out)


@runtime_checkable
class DrawingGuided(Protocol):
    """A guided denoiser that can draw too, for the solver `Moments`.

    Attributes:
        solver: the solver to take where the caller names none.
    """

    solver: Solver

    def __call__(self, z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        """``D_y``."""

    def draw(self, z: torch.Tensor, sigma: float, cases: torch.Tensor, streams: Streams) -> torch.Tensor:
        """A draw of ``N(D_y, Cov[z0 | z, y])`` for every row."""


@final
@dataclass(frozen=True)
class _Drawing:
    """A denoiser of some rows that can draw too."""

    denoise: Denoiser
    sample: Denoiser

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.denoise(x, sigma)

    def draw(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.sample(x, sigma)


def _bound(guided: Guided, rows: Rows) -> Denoiser:
    """The guided denoiser of some rows, with its draws where it has them."""

    def denoise(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return guided(z, sigma, rows.cases)

    if not isinstance(guided, DrawingGuided):
        return denoise
    drawing: DrawingGuided = guided
    return _Drawing(denoise, lambda z, sigma: drawing.draw(z, sigma, rows.cases, rows.streams))


def integrate(
    prior: Prior,
    denoise: Denoiser,
    streams: Streams,
    solver: Solver | None,
    steps: int | None,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> torch.Tensor:
    """Start at ``sigma_max`` and follow the solver to 0.

    The start is ``E[z0 | y] + sigma_max n`` and not just the noise: without that mean the draws would be
    off by ``E[z0 | y] / sigma_max`` posterior standard deviations. It costs one more forward.
    """
    solver = (DPMSolver() if solver is None else solver).with_steps(steps)
    sigmas = solver.schedule.sigmas(solver.steps, prior.sigma_min, prior.sigma_max)
    z = sigmas[0] * prior.noise(streams)
    z = z + denoise(z, sigmas[0])
    return solver.integrate(denoise, z, sigmas, lambda: prior.noise(streams), progress)


def unconditional(prior: Prior, denoise: Denoiser, streams: Streams) -> Denoiser:
    """The prior's denoiser of some rows, with draws of the clean state where its covariance is known."""
    if prior.covariance(prior.sigma_max) is None:
        return denoise

    def draw(z: torch.Tensor, sigma: float) -> torch.Tensor:
        cov = prior.covariance(sigma)
        assert cov is not None  # asked above
        white = streams.normal(cov.white_shape, dtype=prior.dtype, device=prior.device)
        return denoise(z, sigma) + cov.sqrt(white)

    return _Drawing(denoise, draw)


def tweedie(
    run: Run, z: torch.Tensor, sigma: float, *, once: bool = False
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """``D(z)`` and the action ``w -> Cov[z0 | z] w = sigma^2 C J^T w``, of the shape of ``z``.

    Where the prior knows its covariance no VJP is taken; elsewhere one a call, all through one forward. With
    ``once`` there may be one call only, which frees the forward's memory as it goes: that is a fifth faster.
    """
    known = run.prior.covariance(sigma)
    if known is not None:
        return run.denoise(z, sigma), known.apply
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        d = run.denoise(z, sigma)

    def covariance(w: torch.Tensor) -> torch.Tensor:
        run.cost.vjps += len(w)
        (jw,) = torch.autograd.grad(d, z, w, retain_graph=not once)
        return sigma**2 * run.prior.reference.apply(jw)

    return d.detach(), covariance


def likelihood_gradient(
    run: Run, z0: torch.Tensor, cases: torch.Tensor, *, unit: bool = False
) -> torch.Tensor:
    """Gradient of ``log p(y | A(m + S z0))`` in the clean normalised state, ``(rows, *shape)``.

    Args:
        run: the run.
        z0: clean normalised states.
        cases: which observation each row is conditioned on.
        unit: scale the gradient in the space of the data to unit length, per row, before it is pulled back.
    """
    prior, observations = run.prior, run.posterior.observations
    with torch.enable_grad():
        x = prior.normalisation.physical(z0).detach().requires_grad_()
        means = [o.operator.apply(x) for o in observations]
    run.cost.operator_calls += 2 * len(z0)
    scores = [
        o.noise.score(o.y[cases], mean.detach(), None if o.mask is None else o.mask[cases])
        for o, mean in zip(observations, means, strict=True)
    ]
    if unit:
        length = torch.cat([s.flatten(1) for s in scores], 1).norm(dim=1)
        length = torch.where(length > 0, length, 1.0)
        scores = [s / length.reshape(-1, *(1,) * (s.ndim - 1)) for s in scores]
    (gradient,) = torch.autograd.grad(means, x, scores)
    return prior.normalisation.scale.to(gradient) * gradient


def bar(show: bool | None) -> Callable[[Iterable[int]], Iterable[int]]:
    """A progress bar around an iterable; None shows it on a terminal or in a notebook."""
    if show is None:
        show = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not show:
        return lambda steps: steps
    from tqdm import tqdm

    return lambda steps: tqdm(steps, desc="sampling", leave=False)
