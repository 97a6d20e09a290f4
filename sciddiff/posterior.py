"""A prior and one or more observations: ``p(x | y) ~ p(x) prod_i p(y_i | A_i(x))``, and its draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from sciddiff.draws import diagnose, report
from sciddiff.errors import InputError, MethodError
from sciddiff.html import card
from sciddiff.noise import Gaussian, Noise
from sciddiff.operators.base import LinearOperator, Operator
from sciddiff.priors.base import Prior
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods.base import Method
    from sciddiff.solvers.base import Solver

__all__ = ["LinearGaussian", "Observation", "Posterior", "sample_prior"]


@final
@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen, how it was made and with which noise.

    Attributes:
        y: ``(cases, *codomain.shape)``; missing values hold 0.
        mask: True where observed, of y's shape; None where nothing is missing.
        operator: from states to noise-free observations.
        noise: the law of ``y`` given those.
    """

    y: torch.Tensor
    mask: torch.Tensor | None
    operator: Operator
    noise: Noise

    def log_prob(self, mean: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``log p(y[case] | mean)``, one number per row of ``mean``."""
        return self.noise.log_prob(self.y[cases], mean, None if self.mask is None else self.mask[cases])

    def residual(self, mean: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``y - mean``, 0 where missing."""
        r = self.y[cases] - mean
        return r if self.mask is None else torch.where(self.mask[cases], r, 0.0)

    def __repr__(self) -> str:
        total = self.y.numel()
        seen = "" if self.mask is None else f"{int(self.mask.sum())} of "
        return f"{seen}{total} value{'' if total == 1 else 's'} by {self.operator.name} with {self.noise!r}"


@final
class LinearGaussian:
    """All observations of a linear Gaussian posterior as one: ``y = B z + offset + N(0, R)``.

    ``z`` is normalised and ``y`` has ``size`` values, those of every observation one behind the other.
    """

    def __init__(self, prior: Prior, observations: tuple[Observation, ...]) -> None:
        self.prior, self.observations = prior, observations
        self.sizes = [o.operator.codomain.size for o in observations]
        self.size = sum(self.sizes)
        self._matrix: torch.Tensor | None = None
        self._noise: torch.Tensor | None = None

    def apply(self, z: torch.Tensor) -> torch.Tensor:
        """``B z``, ``(rows, size)``."""
        if self._matrix is not None:
            return z.flatten(1) @ self._matrix.to(z).flatten(1).T
        x = self.prior.normalisation.scale.to(z) * z
        return torch.cat([o.operator.apply(x).flatten(1) for o in self.observations], 1)

    def adjoint(self, v: torch.Tensor) -> torch.Tensor:
        """``B^T v``, ``(rows, *shape)``."""
        if self._matrix is not None:
            return (v @ self._matrix.to(v).flatten(1)).reshape(-1, *self.prior.space.shape)
        total = torch.zeros((len(v), *self.prior.space.shape), dtype=v.dtype, device=v.device)
        for o, part in zip(self.observations, v.split(self.sizes, 1), strict=True):
            assert isinstance(o.operator, LinearOperator)
            total = total + o.operator.adjoint(part.reshape(-1, *o.operator.codomain.shape))
        return self.prior.normalisation.scale.to(v) * total

    def residual(self, z: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``y - offset - B z``, ``(rows, size)``, 0 where missing."""
        r = self.target[cases] - self.apply(z)
        return r if self.mask is None else torch.where(self.mask[cases], r, 0.0)

    @property
    def target(self) -> torch.Tensor:
        """``y - offset``, ``(cases, size)``."""
        if not hasattr(self, "_target"):
            zero = torch.zeros((1, *self.prior.space.shape), dtype=self.prior.dtype, device=self.prior.device)
            mean = self.prior.normalisation.physical(zero)
            self._target = torch.cat(
                [(o.y - o.operator.apply(mean)).flatten(1) for o in self.observations], 1
            )
        return self._target

    @property
    def mask(self) -> torch.Tensor | None:
        """True where observed, ``(cases, size)``; None if nothing is missing."""
        if all(o.mask is None for o in self.observations):
            return None
        return torch.cat(
            [
                (torch.ones_like(o.y, dtype=torch.bool) if o.mask is None else o.mask).flatten(1)
                for o in self.observations
            ],
            1,
        )

    def noise_apply(self, v: torch.Tensor) -> torch.Tensor:
        """``R v``, ``(rows, size)``."""
        out = []
        for o, part in zip(self.observations, v.split(self.sizes, 1), strict=True):
            assert isinstance(o.noise, Gaussian)
            shape = o.operator.codomain.shape
            out.append(o.noise.covariance(shape).apply(part.reshape(-1, *shape)).flatten(1))
        return torch.cat(out, 1)

    def noise_draw(self, streams: Streams) -> torch.Tensor:
        """A draw of ``N(0, R)`` for every stream, ``(rows, size)``."""
        out = []
        for o in self.observations:
            assert isinstance(o.noise, Gaussian)
            zero = torch.zeros(
                (len(streams), *o.operator.codomain.shape), dtype=self.prior.dtype, device=self.prior.device
            )
            out.append(o.noise.draw(zero, streams).flatten(1))
        return torch.cat(out, 1)

    @property
    def noise_matrix(self) -> torch.Tensor:
        """``R``, ``(size, size)``."""
        if self._noise is None:
            self._noise = self.noise_apply(
                torch.eye(self.size, dtype=self.prior.dtype, device=self.prior.device)
            )
        return self._noise

    def matrix(self) -> torch.Tensor:
        """The rows of ``B``, ``(size, *shape)``, by one adjoint a row; kept, and used by `apply` from then on."""
        if self._matrix is None:
            eye = torch.eye(self.size, dtype=self.prior.dtype, device=self.prior.device)
            self._matrix = torch.cat([self.adjoint(block) for block in eye.split(64)])
        return self._matrix

    def prepare(self) -> int:
        """Make the `matrix`; returns the rows that went through an operator for it, 0 where it was there."""
        if self._matrix is not None:
            return 0
        self.matrix()
        return self.size


@final
class Posterior:
    """A prior, conditioned; made by ``prior.given(y, operator, noise)``.

    Args:
        prior: the prior.
        observations: what was seen.
        batch: name and labels of the dim of many observations at once; None for one.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"x": 4})
        >>> prior = sd.GaussianPrior(space, sd.covariance.white((4,)))
        >>> operator = sd.operators.Points.at_indices(space, [[0], [2]])
        >>> posterior = prior.given([1.0, -1.0], operator, sd.noise.Gaussian(0.1))
        >>> posterior.sample(8, seed=0)["u"].dims
        ('sample', 'x')
    """

    def __init__(
        self,
        prior: Prior,
        observations: tuple[Observation, ...],
        batch: tuple[str, np.ndarray | None, int] | None = None,
    ) -> None:
        self.prior, self.observations, self.batch = prior, observations, batch
        self._linear: LinearGaussian | None = None

    def __repr__(self) -> str:
        of = "" if self.batch is None else f", {self.cases} cases along {self.batch[0]!r}"
        seen = " and ".join(map(repr, self.observations)) or "nothing"
        return f"Posterior({type(self.prior).__name__} on {self.prior.space} given {seen}{of})"

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {"prior": self.prior}
        for i, o in enumerate(self.observations, 1):
            number = f" {i}" if len(self.observations) > 1 else ""
            rows |= {f"observation{number}": repr(o), f"operator{number}": o.operator}
        if self.batch is not None:
            rows["cases"] = f"{self.cases} along {self.batch[0]!r}"
        return card("Posterior", rows)

    @property
    def cases(self) -> int:
        """How many observations are conditioned on side by side."""
        return 1 if self.batch is None else self.batch[2]

    def given(
        self,
        y: Any,
        operator: Operator,
        noise: Noise,
        *,
        missing: str = "refuse",
        batch_dim: str | None = None,
    ) -> Posterior:
        """Condition on one more observation, independent of the others given the state; see `Prior.given`."""
        if not isinstance(operator, Operator):
            raise InputError(
                "operator",
                expected="an Operator",
                got=f"the class {operator.__name__}"
                if isinstance(operator, type)
                else type(operator).__name__,
                fix="pass an instance; wrap a function with operators.from_torch or operators.black_box",
            )
        if not isinstance(noise, Noise):
            raise InputError(
                "noise",
                expected="a Noise",
                got=f"the class {noise.__name__}" if isinstance(noise, type) else type(noise).__name__,
                fix="pass an instance, for example noise.Gaussian(0.1)",
            )
        difference = self.prior.space.difference(operator.domain)
        if difference is not None:
            raise InputError(
                "operator",
                expected=f"an operator on the prior's {self.prior.space}",
                got=difference,
                fix="build the operator with domain=prior.space",
            )
        if missing not in ("refuse", "mask"):
            raise InputError("missing", expected="'refuse' or 'mask'", got=repr(missing), fix="choose one")
        if self.observations and batch_dim != (self.batch and self.batch[0]):
            raise InputError(
                "batch_dim",
                expected=f"{self.batch and self.batch[0]!r}, as in the first observation",
                got=repr(batch_dim),
                fix="give all observations the same batch of cases",
            )
        taken = {*self.prior.space.sizes, *self.prior.space.variables}
        taken |= {"sample", *operator.codomain.sizes, *operator.codomain.variables}
        if batch_dim is not None and (not isinstance(batch_dim, str) or batch_dim in taken):
            raise InputError(
                "batch_dim",
                expected=f"None, or a name other than {', '.join(sorted(taken))}",
                got=repr(batch_dim),
                fix="call the dim of many observations for example 'case'",
            )
        values = operator.codomain.tensor(
            y,
            argument="y",
            batch_dim=batch_dim,
            dtype=self.prior.dtype,
            device=self.prior.device,
            missing=missing == "mask",
        )
        values = values if batch_dim else values[None]
        noise.check(values)
        mask = None if missing == "refuse" or not bool(values.isnan().any()) else ~values.isnan()
        batch = None if batch_dim is None else (batch_dim, _labels(y, batch_dim), len(values))
        if (self.batch is not None and len(values) != self.cases) or len(values) == 0:
            raise InputError(
                "y",
                expected=f"{self.cases} cases along {batch_dim!r}",
                got=len(values),
                fix="give all observations the same batch of cases",
            )
        seen = Observation(values if mask is None else torch.where(mask, values, 0.0), mask, operator, noise)
        return Posterior(self.prior, (*self.observations, seen), batch)

    def satisfying(self, residual: Operator | Callable[[torch.Tensor], torch.Tensor], sd: Any) -> Posterior:
        """Condition on an equation as well: ``residual(x) = 0`` up to Gaussian errors, as an observation of zeros.

        Args:
            residual: an operator, or a torch function of physical states ``(rows, *shape)``, row by row, of any
                shape. A linear one should be an operator, which more methods fit.
            sd: how far from 0 the residual may be: a number, or one for each value of the residual.

        Raises:
            InputError: as `operators.from_torch` and `given` do.

        Example:
            >>> import sciddiff as sd
            >>> space = sd.Space({"x": 4})
            >>> seen = sd.GaussianPrior(space, sd.covariance.white((4,))).given(
            ...     [1.0], sd.operators.Points.at_indices(space, [[0]]), sd.noise.Gaussian(0.1)
            ... )
            >>> seen.satisfying(lambda x: x.diff(dim=1), sd=0.01)
            Posterior(GaussianPrior on Space(u on (x: 4)) given 1 value by Points with Gaussian(0.1) and 3 values by Torch with Gaussian(0.01))
        """
        from sciddiff.operators import from_torch

        prior, batch = self.prior, [] if self.batch is None else [self.cases]
        dim = self.batch and self.batch[0]
        if isinstance(residual, Operator):
            zeros = torch.zeros((*batch, *residual.codomain.shape), dtype=torch.float64)
            return self.given(zeros, residual, Gaussian(sd), batch_dim=dim)
        zero = torch.zeros((2, *prior.space.shape), dtype=prior.dtype, device=prior.device)
        with torch.no_grad():
            out = residual(prior.normalisation.physical(zero)) if callable(residual) else residual
        if not callable(residual) or not isinstance(out, torch.Tensor) or out.shape[:1] != zero.shape[:1]:
            raise InputError(
                "residual",
                expected="a torch function of states (rows, *shape) with one row for each",
                got=f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__,
                fix="keep the rows, such as x.diff(dim=1) or x.flatten(1).sum(1)",
            )
        shape = tuple(out.shape[1:])
        codomain = Space({f"equation_{i}": n for i, n in enumerate(shape)} or {"equation": 1}, "residual")
        operator = from_torch(lambda x: residual(x).reshape(len(x), *codomain.shape), prior.space, codomain)
        y = torch.zeros((*batch, *codomain.shape), dtype=torch.float64)
        return self.given(y, operator, Gaussian(sd), batch_dim=dim)

    def log_likelihood(self, x: torch.Tensor, cases: torch.Tensor | None = None) -> torch.Tensor:
        """``sum_i log p(y_i | A_i(x))`` of physical states ``(rows, *shape)``, one number per row.

        Args:
            x: a tensor.
            cases: which of many observations each row is judged by, ``(rows,)``; default the first.

        Raises:
            InputError: on wrong shapes, or cases that there are not.
        """
        if not isinstance(x, torch.Tensor) or tuple(x.shape[1:]) != self.prior.space.shape:
            raise InputError(
                "x",
                expected=f"a tensor (rows, {', '.join(map(str, self.prior.space.shape))})",
                got=tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__,
                fix="read labelled states with space.tensor(x, batch_dim='sample')",
            )
        if cases is not None and (
            cases.shape != x.shape[:1] or bool(((cases < 0) | (cases >= self.cases)).any())
        ):
            raise InputError(
                "cases",
                expected=f"one number from 0 to {self.cases - 1} for each of {len(x)} rows",
                got=cases.tolist() if cases.numel() < 9 else tuple(cases.shape),
                fix="leave it out where there is one observation",
            )
        cases = torch.zeros(len(x), dtype=torch.long, device=x.device) if cases is None else cases
        return torch.stack([o.log_prob(o.operator.apply(x), cases) for o in self.observations]).sum(0)

    def linear_gaussian(self) -> LinearGaussian:
        """The observations as one linear Gaussian observation of the normalised state."""
        if self._linear is None:
            self._linear = LinearGaussian(self.prior, self.observations)
        return self._linear

    def offers(self) -> Mapping[str, str | None]:
        """For every need that a method may have: None where it is met, else why it is not."""
        operators = [o.operator for o in self.observations]
        bent = [repr(a) for a in operators if not isinstance(a, LinearOperator)]
        opaque = [repr(a) for a in operators if not a.differentiable]
        other = [repr(o.noise) for o in self.observations if not o.noise.gaussian]
        return {
            "linear": f"{bent[0]} is not linear" if bent else None,
            "gaussian": f"{other[0]} is not Gaussian" if other else None,
            "differentiable": f"{opaque[0]} is a black box without gradients" if opaque else None,
            "one case": f"there are {self.cases} cases" if self.cases > 1 else None,
        }

    def sample(
        self,
        n: int,
        method: Method | None = None,
        *,
        solver: Solver | None = None,
        steps: int | None = None,
        seed: int,
        chunk: int | None = None,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """Draw from the posterior.

        Args:
            n: number of draws.
            method: how; None takes the default for this posterior, which the result records.
            solver: what integrates a guided denoiser; None takes ``Moments()`` where the method can draw from its
                covariance, 64 steps of it on learned priors, and ``DPMSolver()`` elsewhere.
            steps: number of steps, in place of the solver's.
            seed: draw i of case j depends on (seed, j, i) alone, for methods whose draws do not interact.
            chunk: rows (draws times cases) at a time; None fits them to memory.
            progress: a progress bar; None shows it on a terminal and in notebooks.

        Returns:
            `xarray.Dataset` with dims ``("sample", *space.dims)``, or ``("sample", batch_dim, ...)``, in
            physical units. Its attrs record method, solver, seed, cost, versions and a one-line diagnosis.

        Raises:
            InputError: on bad settings.
            MethodError: if the method does not fit the posterior; the message names those that do.
            DivergenceError: if a draw becomes non-finite, with the step and sigma.
            ConvergenceError: if an inner solve does not reach its tolerance.
        """
        from sciddiff.methods import default_method, fitting
        from sciddiff.methods.base import Method, Run

        check_count("n", n), check_seed(seed)
        if method is None:
            method = default_method(self)
        if not isinstance(method, Method):
            raise InputError(
                "method",
                expected="a Method such as MMPS()",
                got=repr(method),
                fix="pass an instance, MMPS() and not MMPS",
            )
        misfit = method.misfit(self)
        if misfit is not None:
            raise MethodError(
                "method",
                expected="a method that fits this posterior",
                got=f"{method!r}: {misfit}",
                fix=f"use one of {', '.join(fitting(self)) or '(none fits)'}",
            )
        run = Run(self, method, n, seed=seed, solver=solver, steps=steps, chunk=chunk, progress=progress)
        started = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            z = method.draw(run)
            x = self.prior.normalisation.physical(z)
        seconds = time.perf_counter() - started
        return label(self, x, n, attrs={**run.attrs(), "seconds": seconds})


def label(posterior: Posterior, x: torch.Tensor, n: int, attrs: dict[str, Any]) -> xr.Dataset:
    """Physical rows ``(n * cases, *shape)``, case running fastest, as the labelled result."""
    space = posterior.prior.space
    if posterior.batch is None:
        out = space.dataset(x, ["sample"])
    else:
        name, labels, count = posterior.batch
        out = space.dataset(
            x.reshape(n, count, *space.shape), ["sample", name], None if labels is None else {name: labels}
        )
    out.attrs.update({**attrs, "diagnosis": diagnose(posterior, x, attrs)})
    report(out.attrs["diagnosis"])
    return out


def check_count(argument: str, n: object) -> int:
    """Return ``n`` as an int of at least 1, or raise `InputError`."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise InputError(
            argument, expected="an int of at least 1", got=repr(n), fix=f"pass for example {argument}=64"
        )
    return int(n)


def check_solver(solver: object) -> None:
    """Raise `InputError` unless ``solver`` is None or an instance."""
    from sciddiff.solvers.base import Solver

    if solver is not None and not isinstance(solver, Solver):
        raise InputError(
            "solver",
            expected="a Solver such as Heun()",
            got=repr(solver),
            fix="pass an instance, Heun() and not Heun",
        )


def _labels(y: Any, dim: str) -> np.ndarray | None:
    coords = getattr(y, "coords", {})
    return np.asarray(coords[dim].values) if dim in coords else None


def chunks(rows: int, size: int, chunk: int | None) -> list[range]:
    """Cut rows into ranges; by default about two million values at a time."""
    step = max(1, 2**21 // size) if chunk is None else check_count("chunk", chunk)
    return [range(start, min(rows, start + step)) for start in range(0, rows, step)]


def sample_prior(
    prior: Prior, n: int, *, seed: int, solver: Solver | None, steps: int | None, chunk: int | None
) -> xr.Dataset:
    """Unconditional draws; see `Prior.sample`."""
    from sciddiff.methods.base import Cost, bar, integrate, unconditional
    from sciddiff.solvers import DPMSolver

    check_count("n", n), check_seed(seed)
    check_solver(solver)
    cost, out = Cost(), []
    started = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():
        for rows in chunks(n, prior.space.size, chunk):
            streams = Streams(seed, rows, purpose="prior")
            z = prior.draw(streams) if solver is None and steps is None else None
            if z is None:
                denoise: Callable[[torch.Tensor, float], torch.Tensor] = cost.count(prior.denoise)
                z = integrate(
                    prior, unconditional(prior, denoise, streams), streams, solver, steps, bar(None)
                )
            out.append(prior.normalisation.physical(z))
    draws = prior.space.dataset(torch.cat(out), ["sample"])
    draws.attrs.update(
        {
            "references": (solver or DPMSolver()).reference if cost.forwards else "",
            "prior": repr(prior),
            "seed": seed,
            "forwards": cost.forwards / n,
            "seconds": time.perf_counter() - started,
        }
    )
    return draws
