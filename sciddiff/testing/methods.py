"""What a method promises: the moments of an exact posterior, whatever the batch, the shape and the units."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sciddiff.covariance import Covariance, centred, dense, white
from sciddiff.draws import DiagnosisWarning
from sciddiff.errors import InputError, MethodError
from sciddiff.methods.base import Method
from sciddiff.noise import Gaussian, Laplace
from sciddiff.operators import Matrix, black_box, from_torch
from sciddiff.posterior import Posterior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.random import check_seed
from sciddiff.solvers import Solver
from sciddiff.spaces import Space
from sciddiff.testing.base import (
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

__all__ = ["check_method"]

_D, _M, _GROUPS = 6, 4, 12


def check_method(
    method: Method,
    *,
    draws: int = 1000,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int = 0,
    rtol: float = 1e-8,
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Check a method on Gaussian priors with linear operators and Gaussian noise, whose posterior is known.

    There are six unknowns and four data; the prior, and in some problems its reference noise, is correlated. In others
    the reference noise is a projector, or a value of ``y`` is missing.

    Args:
        method: yours.
        draws: how many the moments are taken of; errors of a variance of more than about ``7/sqrt(draws)`` show.
        solver: of the method, where it takes one.
        steps: of the solver.
        seed: of the draws.
        rtol: tolerance of what should be the same draws, in float64.
        expected_failures: name of a check -> why it fails, such as ``{"covariance": "biased by construction"}``.

    Returns:
        A report of "mean" and "covariance" against the exact ones, "range" (draws stay in the range of the
        prior), "seed", "chunks" (draws in pieces are the same), "prefix" (draw i does not depend on how many there
        are), "cases" (the first of two observations gives what it gives alone), "units" of state and data, "shape"
        (a vector and a field of the same values), "dtype", "global state", "surroundings" (grad modes, default dtype
        and seeds of others), "settings" (plain JSON values), "record" and "misfits" (refused before any compute).

    Raises:
        CheckError: naming the checks that failed, with figures.
        InputError: if the method does not fit linear Gaussian problems, which is all that is known here.

    Example:
        >>> import sciddiff as sd
        >>> check_method(sd.MMPS(), draws=200).named("failed")
        []
    """
    if not isinstance(method, Method):
        raise InputError(
            "method",
            expected="a Method such as MMPS()",
            got=repr(method),
            fix="pass an instance, not a class",
        )
    reason = method.misfit(_problem().posterior)
    if reason is not None:
        raise InputError(
            "method",
            expected="a method that fits a linear operator with Gaussian noise",
            got=f"{method!r}: {reason}",
            fix="test it on problems of its own",
        )
    options: dict[str, Any] = {"solver": solver, "steps": steps}
    return run(method, _Trial(method, draws, check_seed(seed), options, rtol).checks(), expected_failures)


@dataclass(frozen=True)
class _Problem:
    """A posterior and its exact mean ``(d,)`` and covariance ``(d, d)``, in physical units."""

    posterior: Posterior
    mean: np.ndarray
    covariance: np.ndarray


def _problem(
    *,
    reference: Covariance | None = None,
    centre: bool = False,
    gap: bool = False,
    state: float = 1.0,
    shift: float = 0.0,
    data: float = 1.0,
    shape: tuple[int, ...] = (_D,),
    data_shape: tuple[int, ...] = (_M,),
    dtype: torch.dtype = torch.float64,
    cases: int = 0,
) -> _Problem:
    """The problem in other units, ``x' = state x + shift`` and ``y' = data y``, and of another shape."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((_D, _D))
    prior_cov = root @ root.T / _D + 0.2 * np.eye(_D)
    mean, a = rng.standard_normal(_D), rng.standard_normal((_M, _D))
    sd, y = np.array([0.3, 0.5, 0.3, 1.0]), rng.standard_normal(_M)
    if centre:
        projector = np.eye(_D) - 1 / _D
        prior_cov, mean = projector @ prior_cov @ projector, projector @ mean
    seen = np.arange(_M) != 1 if gap else np.full(_M, True)
    gain = prior_cov @ a[seen].T @ np.linalg.inv(a[seen] @ prior_cov @ a[seen].T + np.diag(sd[seen] ** 2))
    exact_mean = mean + gain @ (y - a @ mean)[seen]
    exact_cov = prior_cov - gain @ a[seen] @ prior_cov
    # in the units asked for: x = (x' - shift)/state, so that y' = A' x' + noise with A' = data A / state
    moved = data / state * a
    y = data * y + moved @ np.full(_D, shift)
    domain, codomain = _space(shape, "x"), _space(data_shape, "y")
    prior = GaussianPrior(
        domain,
        dense(state**2 * prior_cov, shape),
        (state * mean + shift).reshape(shape),
        reference=reference,
        dtype=dtype,
    )
    y = np.where(seen, y, np.nan).reshape(data_shape)
    posterior = prior.given(
        np.stack([y, y + data, y - data])[:cases] if cases else y,
        Matrix(domain, codomain, moved),
        Gaussian((data * sd).reshape(data_shape)),
        missing="mask" if gap else "refuse",
        batch_dim="case" if cases else None,
    )
    return _Problem(posterior, state * exact_mean + shift, state**2 * exact_cov)


def _space(shape: tuple[int, ...], name: str) -> Space:
    return Space({f"{name}{i}": n for i, n in enumerate(shape)}, name)


def _correlated() -> Covariance:
    root = np.random.default_rng(1).standard_normal((_D, _D))
    return dense(root @ root.T / _D + 0.3 * np.eye(_D))


_PROBLEMS: dict[str, Callable[[], _Problem]] = {
    "white reference": _problem,
    "correlated reference": lambda: _problem(reference=_correlated()),
    "projector reference": lambda: _problem(reference=centred((_D,)), centre=True),
    "missing value": lambda: _problem(gap=True),
}


class _Trial:
    """A method and the draws that it made so far."""

    def __init__(self, method: Method, n: int, seed: int, options: dict[str, Any], rtol: float) -> None:
        self.method, self.n, self.seed, self.options, self.rtol = method, n, seed, options, rtol
        self._moments: dict[str, tuple[_Problem, list[np.ndarray]]] = {}

    def draw(
        self, posterior: Posterior, n: int, *, seed: int | None = None, chunk: int | None = None
    ) -> torch.Tensor:
        """Draws as they lie, ``(n, cases, *shape)``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DiagnosisWarning)
            draws = posterior.sample(
                n, self.method, seed=self.seed if seed is None else seed, chunk=chunk, **self.options
            )
        return torch.from_numpy(draws[next(iter(draws.data_vars))].values)

    def solved(self) -> dict[str, tuple[_Problem, list[np.ndarray]]]:
        """For every problem its draws, in independent sets: one, or some ensembles where draws interact."""
        groups, size = (_GROUPS, max(2, self.n // 4)) if self.method.interacts else (1, self.n)
        for name, make in _PROBLEMS.items():
            if name not in self._moments:
                problem = make()
                sets = [
                    self.draw(problem.posterior, size, seed=(self.seed + g) % 2**64) for g in range(groups)
                ]
                self._moments[name] = problem, [x.reshape(size, _D).numpy() for x in sets]
        return self._moments

    def independent(self) -> None:
        if self.method.interacts:
            raise SkippedError("the draws interact")

    def checks(self) -> dict[str, Check]:
        return {
            "mean": self.mean,
            "covariance": self.covariance,
            "range": self.range,
            "seed": self.seeded,
            "chunks": self.chunks,
            "prefix": self.prefix,
            "cases": self.cases,
            "units": self.units,
            "shape": self.shape,
            "dtype": self.dtype,
            "global state": lambda: leaves_alone(lambda: self.draw(_problem().posterior, 3)),
            "surroundings": self.surroundings,
            "settings": self.settings,
            "record": self.record,
            "misfits": self.misfits,
        }

    def mean(self) -> str:
        """Whitened means against 0."""
        worst = ("", 0.0, 0.0)
        for name, (problem, sets) in self.solved().items():
            means = np.stack([_whiten(problem, x).mean(0) for x in sets])
            z = _scores(means, 1 / math.sqrt(len(sets[0])))
            off = float(np.sqrt((means.mean(0) ** 2).mean()))
            worst = max(worst, (name, float(np.abs(z).max()), off), key=lambda w: w[1])
        return within(f"{worst[0]}: the mean, {worst[2]:.3g} posterior sds away,", worst[1])

    def covariance(self) -> str:
        """Entries of the whitened covariance against those of the identity."""
        worst = ("", 0.0, 1.0)
        for name, (problem, sets) in self.solved().items():
            white = [_whiten(problem, x) for x in sets]
            found, eye = np.stack([w.T @ w / len(w) for w in white]), np.eye(white[0].shape[1])
            z = _scores(found - eye, np.sqrt((1 + eye) / len(sets[0])))
            at = np.unravel_index(np.abs(z).argmax(), z.shape)
            variance = np.diag(found.mean(0))[np.abs(np.diag(z)).argmax()]
            worst = max(worst, (name, float(z[at]), float(variance)), key=lambda w: abs(w[1]))
        text = f"{worst[0]}: the covariance, with a variance {worst[2]:.3g} times the exact one,"
        return within(text, worst[1])

    def range(self) -> str:
        x = np.concatenate(self.solved()["projector reference"][1])
        outside = float(np.abs(x.mean(1)).max() / np.abs(x).max())
        return at_most("the share of the draws outside the range of the prior is", outside, 1e-6)

    def seeded(self) -> str:
        posterior = _problem().posterior
        first = self.draw(posterior, 4)
        if not torch.equal(first, self.draw(posterior, 4)):
            raise BrokenError("the same seed gives other draws")
        if torch.equal(first, self.draw(posterior, 4, seed=(self.seed + 2**32) % 2**64)):
            raise BrokenError("seeds 2**32 apart give the same draws")
        return "bitwise the same"

    def chunks(self) -> str:
        posterior = _problem().posterior
        whole = self.draw(posterior, 7)
        error = max(relative(whole, self.draw(posterior, 7, chunk=chunk)) for chunk in (1, 3))
        return at_most("draws in chunks of 1 and 3 differ by", error, self.rtol)

    def prefix(self) -> str:
        self.independent()
        posterior = _problem().posterior
        error = relative(self.draw(posterior, 7)[:3], self.draw(posterior, 3))
        return at_most("the first 3 of 7 draws and 3 draws differ by", error, self.rtol)

    def cases(self) -> str:
        many = _problem(cases=3).posterior
        reason = self.method.misfit(many)
        if reason is not None:
            raise SkippedError(reason)
        alone, beside = self.draw(_problem(cases=1).posterior, 5), self.draw(many, 5)
        if relative(beside[:, 0], beside[:, 1]) < 1e-3:
            raise BrokenError("two observations give the same draws")
        return at_most(
            "a case alone and beside others differs by", relative(alone[:, 0], beside[:, 0]), self.rtol
        )

    def units(self) -> str:
        x = self.draw(_problem().posterior, 5)
        kelvin = self.draw(_problem(state=1e3, shift=-40.0).posterior, 5)
        scaled = self.draw(_problem(data=1e-3).posterior, 5)
        # the shift costs digits
        state = relative((kelvin + 40.0) / 1e3, x)
        text = at_most("other units of the state change the draws by", state, 1e2 * self.rtol)
        return f"{text}; {at_most('other units of the data', relative(scaled, x), 1e2 * self.rtol)}"

    def shape(self) -> str:
        x = self.draw(_problem().posterior, 5)
        worst = 0.0
        for shape, data in (((2, 3), (_M,)), ((1, 3, 2), (2, 2))):
            other = self.draw(_problem(shape=shape, data_shape=data).posterior, 5)
            worst = max(worst, relative(other.reshape(x.shape), x))
        return at_most("a vector and a field of the same values differ by", worst, self.rtol)

    def dtype(self) -> str:
        single = self.draw(_problem(dtype=torch.float32).posterior, 5)
        if single.dtype != torch.float32:
            raise BrokenError(f"a float32 prior gave {single.dtype}")
        x = self.draw(_problem().posterior, 5)
        if x.dtype != torch.float64:
            raise BrokenError(f"a float64 prior gave {x.dtype}")
        return at_most("float32 and float64 differ by", relative(single, x), 0.1)

    def surroundings(self) -> str:
        posterior = _problem().posterior
        x = self.draw(posterior, 3)
        for name, surrounding in (("inference mode", torch.inference_mode), ("no_grad", torch.no_grad)):
            with surrounding():
                at_most(f"in {name} the draws differ by", relative(self.draw(posterior, 3), x), self.rtol)
        with _foreign():
            text = at_most("they differ by", relative(self.draw(posterior, 3), x), self.rtol)
        return f"in other grad modes, with another default dtype and other global seeds {text}"

    def settings(self) -> str:
        return json.dumps(self.method.settings(), sort_keys=True)

    def record(self) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DiagnosisWarning)
            attrs = _problem().posterior.sample(2, self.method, seed=self.seed, **self.options).attrs
        absent = [key for key in ("method", "settings", "seed", "forwards", "diagnosis") if key not in attrs]
        if absent:
            raise BrokenError(f"the result does not record {', '.join(absent)}")
        return f"{attrs['forwards']:g} forwards, {attrs.get('vjps', 0):g} VJPs a draw"

    def misfits(self) -> str:
        refused = []
        for need, posterior in _misfits().items():
            if self.method.misfit(posterior) is None:
                continue
            try:
                self.draw(posterior, 2)
            except MethodError:
                refused.append(need)
        unmet = sorted(self.method.needs - {"one case"} - set(refused))
        if unmet:
            raise BrokenError(f"needs {', '.join(unmet)}, and is not refused without")
        return f"refused where not {', '.join(refused)}" if refused else "fits all"


def _whiten(problem: _Problem, x: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(problem.covariance)
    on = values > 1e-10 * values[-1]
    return np.asarray((x - problem.mean) @ vectors[:, on] / np.sqrt(values[on]))


def _scores(found: np.ndarray, sd: Any) -> np.ndarray:
    """z-scores of figures ``(sets, ...)`` that should be 0 on average.

    Of one set of independent draws by the sd of the figure; of many by how they scatter, as Student's t.
    """
    from scipy import stats

    if len(found) == 1:
        return np.asarray(found[0] / sd)
    t = found.mean(0) / (found.std(0, ddof=1) / math.sqrt(len(found)))
    return np.asarray(np.sign(t) * stats.norm.isf(np.maximum(stats.t.sf(np.abs(t), len(found) - 1), 1e-300)))


def _misfits() -> dict[str, Posterior]:
    """Posteriors that each lack one need, with operators that must not be called."""
    space = Space({"i": 3}, "x")

    def never(x: Any) -> Any:
        raise AssertionError("called before the method was refused")

    prior = GaussianPrior(space, white((3,)))
    bent, opaque = from_torch(never, space, space), black_box(never, space, space)
    straight = from_torch(_identity, space, space, linear=True)
    zeros, noise = np.zeros(3), Gaussian(0.1)
    return {
        "linear": prior.given(zeros, bent, noise),
        "gaussian": prior.given(zeros, straight, Laplace(0.1)),
        "differentiable": prior.given(zeros, opaque, noise),
    }


def _identity(x: torch.Tensor) -> torch.Tensor:
    return 1.0 * x


@contextmanager
def _foreign() -> Iterator[None]:
    """Another default dtype and other global seeds, put back afterwards."""
    kept = torch.get_default_dtype(), torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        yield
    finally:
        torch.set_default_dtype(kept[0])
        torch.set_rng_state(kept[1])
        np.random.set_state(kept[2])
        random.setstate(kept[3])
