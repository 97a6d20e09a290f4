"""A state-space model and what is known of its trajectory: ``x_0 ~ p_0``, ``x_{k+1} = step(x_k) + N(0, Q)``, ``y_k ~ p(y | A(x_k))``.

The model knows the law of whole trajectories, ``log p(x) = log p_0(x_0) + sum_k log N(x_{k+1}; step(x_k), Q)``; given
data it is an `Assimilation`, which methods draw from: filters, given the data so far, and smoothers, given all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from sciddiff.assimilation.base import AssimilationMethod, Filter, Work
from sciddiff.covariance import Covariance
from sciddiff.draws import report
from sciddiff.errors import InputError, MethodError
from sciddiff.html import card
from sciddiff.noise import Gaussian, Noise
from sciddiff.operators import Operator
from sciddiff.operators.series import as_states, as_trajectory, trajectory_space
from sciddiff.posterior import Posterior, check_count
from sciddiff.priors import Prior
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space, check_space

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Assimilation", "StateSpaceModel"]

Step = Callable[[torch.Tensor], torch.Tensor]


@final
class StateSpaceModel:
    """``x_0 ~ initial``, ``x_{k+1} = step(x_k) + N(0, Q)``.

    Args:
        step: from physical states ``(rows, *space.shape)`` at one time to those at the next: a torch function, such as
            the ``step`` of a `physics.System`, or an operator on the space.
        initial: the law of the state at the first time, a prior on ``space``; its dtype is the states'.
        space: of one state.
        noise: the errors of a step, `noise.Gaussian` of a standard deviation or a covariance ``Q``, or a
            `Covariance`, which may be singular; None for a model without error.
        times: of the trajectory, the first included: their number, or their labels, sorted. A step of the model lies between
            two of them, so that they are equally far apart, or steps of a calendar such as months or business days.

    Attributes:
        trajectories: the space of trajectories, a dim "time" in front.
        covariance: ``Q``, None without noise.
        length: number of times.

    Raises:
        InputError: on anything else, and on a step that changes the shape or the dtype of a state.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"site": 3})
        >>> model = StateSpaceModel(
        ...     lambda x: 0.9 * x,
        ...     sd.GaussianPrior(space, sd.covariance.white((3,))),
        ...     space=space,
        ...     noise=sd.noise.Gaussian(0.1),
        ...     times=5,
        ... )
        >>> model.simulate(2, seed=0)["x"].dims
        ('sample', 'time', 'site')
    """

    def __init__(
        self, step: Step | Operator, initial: Prior, *, space: Space, noise: Any = None, times: Any
    ) -> None:
        check_space(space)
        if not isinstance(initial, Prior):
            raise InputError(
                "initial",
                expected="a Prior",
                got=type(initial).__name__,
                fix="for example GaussianPrior(...)",
            )
        difference = space.difference(initial.space)
        if difference is not None:
            raise InputError(
                "initial",
                expected=f"a prior on {space}",
                got=difference,
                fix="build the prior on the model's space",
            )
        self.space, self.initial, self.step = space, initial.relabel(space), step
        self.trajectories = trajectory_space(space, times)
        self.length = self.trajectories.sizes["time"]
        labels = self.trajectories.coords.get("time")
        if labels is not None:
            _check_steps("times", labels)
        self.covariance = _covariance(noise, space)
        self._function: Step = step.apply if isinstance(step, Operator) else step
        self._check_step()

    def _check_step(self) -> None:
        """The step keeps shape and dtype."""
        fits = callable(self._function)
        if fits and isinstance(self.step, Operator):
            fits = self.step.domain == self.space and self.step.codomain.shape == self.space.shape
        got = repr(self.step)
        if fits:
            # away from zero, where a system may be singular
            x = self.initial.normalisation.physical(
                torch.ones((2, *self.space.shape), dtype=self.initial.dtype, device=self.initial.device)
            )
            with torch.no_grad():
                out = self._function(x)
            fits = isinstance(out, torch.Tensor) and out.shape == x.shape and out.dtype == x.dtype
            got = (
                f"{out.dtype} of shape {tuple(out.shape)}"
                if isinstance(out, torch.Tensor)
                else type(out).__name__
            )
        if not fits:
            raise InputError(
                "step",
                expected=f"a torch function of states (rows, {', '.join(map(str, self.space.shape))}) that keeps shape and dtype",
                got=got,
                fix="pass for example the step of a physics.System, without arguments of its own",
            )

    def advance(self, x: torch.Tensor) -> torch.Tensor:
        """``step(x)`` without noise, for rows ``(rows, *space.shape)``."""
        return self._function(x)

    def start(self, streams: Streams) -> torch.Tensor:
        """Draws of the initial law in physical units, one for every stream."""
        from sciddiff.methods.base import bar, integrate, unconditional

        prior = self.initial
        z = prior.draw(streams)
        if z is None:
            denoise = unconditional(prior, prior.denoise, streams)
            z = integrate(prior, denoise, streams, None, None, bar(False))
        return prior.normalisation.physical(z)

    def simulate(self, n: int, *, seed: int) -> xr.Dataset:
        """Draw trajectories: an `xarray.Dataset` with dims ``("sample", "time", *space.dims)``.

        Args:
            n: number of draws.
            seed: draw i depends on (seed, i) alone.
        """
        check_count("n", n), check_seed(seed)
        streams = Streams(seed, range(n), purpose="trajectories")
        with torch.no_grad():
            x = [self.start(streams)]
            for _ in range(self.length - 1):
                x.append(self.advance(x[-1]))
                if self.covariance is not None:
                    white = streams.normal(
                        self.covariance.white_shape, dtype=x[-1].dtype, device=x[-1].device
                    )
                    x[-1] = x[-1] + self.covariance.sqrt(white)
            return self.dataset(torch.stack(x, 1), ["sample"])

    def log_prob(self, x: Any) -> torch.Tensor:
        """``log p(x)`` of whole trajectories, ``(rows,)``.

        Args:
            x: trajectories: a labelled result of `simulate` or `Assimilation.sample`, or a tensor ``(rows, *trajectories.shape)``.

        Raises:
            InputError: without noise of full rank, where trajectories have no density; on an initial law without one.
        """
        transitions, states = self.transition_log_prob(x), self._states(x)
        first = self.initial.log_prob(states[:, 0], batch_dim="row")["log_prob"].values
        return torch.as_tensor(first).to(transitions) + transitions.sum(1)

    def transition_log_prob(self, x: Any) -> torch.Tensor:
        """``log p(x_{k+1} | x_k)`` of every step of trajectories, ``(rows, times - 1)``; differentiable."""
        covariance, states = self.density(), self._states(x)
        mean = self.advance(states[:, :-1].flatten(0, 1)).reshape(states[:, 1:].shape)
        return gaussian_log_prob(states[:, 1:] - mean, covariance)

    def density(self) -> Covariance:
        """``Q`` where it has full rank.

        Raises:
            InputError: where it has not, and transitions no density.
        """
        if self.covariance is None or self.covariance.rank < self.space.size:
            raise InputError(
                "noise",
                expected="a model with noise of full rank",
                got="none" if self.covariance is None else repr(self.covariance),
                fix="give the model errors, noise=Gaussian(sd)",
            )
        return self.covariance

    def given(
        self, y: Any, operator: Operator, noise: Noise, *, batch_dim: str | None = None
    ) -> Assimilation:
        """Condition on observations of the states at some or all times.

        Args:
            y: the observations, on `operators.trajectory_space` of ``operator.codomain``: labelled data, which may hold some
                of the model's times only, or an array of all times, the first axis for one variable and the second,
                behind the variables, for several. NaN was not observed.
            operator: from one state to one observation without noise, the same at all times.
            noise: the law of ``y_k`` given that.
            batch_dim: the name of the leading dim of many series of observations at once.

        Raises:
            InputError: if the spaces, shapes, times, units or values do not fit.

        Example:
            >>> import sciddiff as sd
            >>> space = sd.Space({"site": 2})
            >>> model = StateSpaceModel(
            ...     lambda x: 0.9 * x, sd.GaussianPrior(space, sd.covariance.white((2,))), space=space,
            ...     noise=sd.noise.Gaussian(0.1), times=3,
            ... )
            >>> y = [[np.nan, np.nan], [1.0, np.nan], [0.8, 0.1]]
            >>> model.given(y, sd.operators.Identity(space), sd.noise.Gaussian(0.2)).observed.tolist()
            [False, True, True]
        """
        return Assimilation(self).given(y, operator, noise, batch_dim=batch_dim)

    def dataset(
        self, states: torch.Tensor, dims: list[str], coords: dict[str, Any] | None = None
    ) -> xr.Dataset:
        """States ``(*leading, times, *space.shape)`` as labelled trajectories."""
        lead = tuple(states.shape[: len(dims)])
        flat = as_trajectory(states.reshape(-1, *states.shape[len(dims) :]), self.space)
        return self.trajectories.dataset(flat.reshape(*lead, *self.trajectories.shape), dims, coords)

    def _states(self, x: Any) -> torch.Tensor:
        """Labelled or plain trajectories as ``(rows, times, *space.shape)``."""
        if not isinstance(x, torch.Tensor) or tuple(x.shape[1:]) != self.trajectories.shape:
            x = self.trajectories.tensor(x, argument="x", batch_dim="sample", dtype=self.initial.dtype)
        return as_states(x, self.space)

    def __repr__(self) -> str:
        name = getattr(self.step, "__qualname__", None) or repr(self.step)
        if "<" in name and ">" in name and not isinstance(self.step, Operator):
            name = "a function"
        return f"StateSpaceModel({name}, {self.space}, {self.length} times, noise {self.covariance!r})"

    def _repr_html_(self) -> str:
        return card(
            "StateSpaceModel",
            {
                "trajectories": self.trajectories,
                "initial": self.initial,
                "step": getattr(self.step, "__qualname__", repr(self.step)),
                "noise": repr(self.covariance),
            },
        )


@final
class Assimilation:
    """A state-space model and observations of its states.

    Attributes:
        model: the model.
        posterior: all observations, one case of it for every time of every case: case ``c * times + k``.
        seen: whether a case has a value at a time, ``(cases, times)``.
        observed: whether any case has, ``(times,)``.
        cases: how many series of observations are conditioned on side by side.
    """

    def __init__(self, model: StateSpaceModel) -> None:
        self.model = model
        self.posterior = Posterior(model.initial, ())
        self.seen = np.zeros((1, model.length), dtype=bool)
        self.batch: tuple[str, np.ndarray | None] | None = None
        self.cases = 1

    @property
    def observed(self) -> np.ndarray:
        """Whether there is a value at a time in any case."""
        return np.asarray(self.seen.any(0))

    def given(
        self, y: Any, operator: Operator, noise: Noise, *, batch_dim: str | None = None
    ) -> Assimilation:
        """Condition on what another instrument saw, too; see `StateSpaceModel.given`.

        Cases with labels are matched by them, and without by their order.
        """
        if not isinstance(operator, Operator):
            # what is wrong with it is said where posteriors are made
            self.posterior.given(y, operator, noise)
        names = {*self.model.trajectories.dims, *self.model.trajectories.variables, "sample"}
        if batch_dim is not None and (not isinstance(batch_dim, str) or batch_dim in names):
            raise InputError(
                "batch_dim",
                expected=f"None, or a name other than {', '.join(sorted(names))}",
                got=repr(batch_dim),
                fix="call the dim of many series for example 'case'",
            )
        y, labels = self._matched(y, batch_dim)
        values = self._read(y, operator, batch_dim)
        if self.posterior.observations and (
            len(values) != self.cases or batch_dim != (self.batch and self.batch[0])
        ):
            raise InputError(
                "y",
                expected=f"{self.cases} cases along {self.batch and self.batch[0]!r}, as in the first observation",
                got=f"{len(values)} along {batch_dim!r}",
                fix="give all instruments the same cases",
            )
        out = Assimilation(self.model)
        out.posterior = self.posterior.given(
            values.flatten(0, 1), operator, noise, missing="mask", batch_dim="time"
        )
        out.seen = self.seen | (~values.isnan()).flatten(2).any(2).cpu().numpy()
        out.batch = None if batch_dim is None else (batch_dim, labels)
        out.cases = len(values)
        return out

    def _matched(self, y: Any, batch_dim: str | None) -> tuple[Any, np.ndarray | None]:
        """Observations with their cases in the order of the first ones, and the labels of the cases."""
        coords, first = getattr(y, "coords", {}), self.batch and self.batch[1]
        labels = np.asarray(coords[batch_dim].values) if batch_dim in coords else None
        if first is None or labels is None or batch_dim != (self.batch and self.batch[0]):
            return y, labels if first is None else first
        if np.array_equal(first, labels):
            return y, first
        where = {label: i for i, label in enumerate(labels.tolist())}
        if len(where) != len(labels) or sorted(map(repr, where)) != sorted(map(repr, first.tolist())):
            raise InputError(
                "y",
                expected=f"the cases of the first observation along {batch_dim!r}: {_few(first)}",
                got=_few(labels),
                fix="give all instruments the same cases, with NaN where one saw nothing",
            )
        return y.isel({batch_dim: [where[label] for label in first.tolist()]}), first

    def _read(self, y: Any, operator: Operator, batch_dim: str | None) -> torch.Tensor:
        """The observations, ``(cases, times, *codomain.shape)``, NaN where there is none."""
        model, labels = self.model, self.model.trajectories.coords.get("time")
        index = getattr(y, "indexes", {}).get("time") if hasattr(y, "reindex") else None
        if index is not None and labels is None:
            _check_steps("y", np.asarray(index))
        if index is not None and labels is not None:
            strange = ~index.isin(labels)
            if strange.any() or not index.is_unique:
                raise InputError(
                    "y",
                    expected="observations at different times of the model's",
                    got=f"{int(strange.sum())} at other times, such as {index[strange][0]}"
                    if strange.any()
                    else "a time more than once",
                    fix="build the model on regular times that hold those of the data (NaN where nothing was observed), and "
                    "average what belongs to one time",
                )
            y = y.reindex(time=labels)
        space = trajectory_space(operator.codomain, model.length if labels is None else labels)
        initial = model.initial
        values = space.tensor(
            y, argument="y", batch_dim=batch_dim, dtype=initial.dtype, device=initial.device, missing=True
        )
        return as_states(values if batch_dim else values[None], operator.codomain)

    def sample(self, n: int, method: AssimilationMethod | None = None, *, seed: int) -> xr.Dataset:
        """Draw states given the data.

        Args:
            n: number of draws.
            method: how, for example `FFBS(particles=4096)` or `ETKF()`; there is no default, since none fits most models.
            seed: see the method for whether its draws depend on one another; cases do not.

        Returns:
            `xarray.Dataset` with dims ``("sample", "time", *space.dims)``, or ``("sample", batch_dim, "time", ...)``, in
            physical units. Its attrs record the method, its law ("filtering": each time on its own, given the data up
            to it; "smoothing": whole trajectories given all the data), seed, cost per draw, versions and a
            one-line diagnosis.

        Raises:
            InputError: on bad settings.
            MethodError: if the method does not fit the model or the data; the message says why.
            DivergenceError: if an ensemble becomes non-finite, with the time.
        """
        check_count("n", n)
        work, started = self.work(n, method, seed), time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            x = work.method.draw(work)
        seconds = time.perf_counter() - started
        out = self._labelled(x, "sample")
        diagnosis = "; ".join(work.warnings) or "ok"
        out.attrs.update({**work.attrs(), "seconds": seconds, "diagnosis": diagnosis})
        report(diagnosis)
        return out

    def moments(self, n: int, method: Filter | None = None, *, seed: int) -> xr.Dataset:
        """Mean and standard deviation of a filter at every time, without keeping its members: for long runs.

        Args:
            n: number of members; particle filters have their own number, and take this for nothing.
            method: a filter.
            seed: as of `sample`, whose members these are the moments of.

        Returns:
            `xarray.Dataset` with a dim "moment" in front: "mean" and "sd" given the data up to and including a time,
            "forecast mean" and "forecast sd" given the data before it. Attrs as of `sample`.

        Raises:
            InputError, MethodError, DivergenceError: as `sample`.

        Example:
            >>> import sciddiff as sd
            >>> space = sd.Space({"site": 2})
            >>> model = StateSpaceModel(
            ...     lambda x: 0.9 * x, sd.GaussianPrior(space, sd.covariance.white((2,))), space=space,
            ...     noise=sd.noise.Gaussian(0.1), times=50,
            ... )
            >>> truth = model.simulate(1, seed=0).isel(sample=0)
            >>> seen = model.given(truth, sd.operators.Identity(space), sd.noise.Gaussian(0.2))
            >>> from sciddiff.assimilation import ETKF
            >>> seen.moments(20, ETKF(), seed=0)["x"].dims
            ('moment', 'time', 'site')
        """
        check_count("n", n)
        if not isinstance(method, Filter):
            raise InputError("method", expected="a filter", got=repr(method), fix="for example ETKF()")
        work, started, rows = self.work(n, method, seed), time.perf_counter(), []
        with torch.inference_mode(False), torch.no_grad():
            for before, after in method.analyses(work):
                parts = (after.mean(), after.variance().sqrt(), before.mean(), before.variance().sqrt())
                rows.append(torch.stack(parts))
        labels = ["mean", "sd", "forecast mean", "forecast sd"]
        out = self._labelled(torch.stack(rows, 2), "moment").assign_coords(moment=labels)
        out.attrs.update({**work.attrs(), "seconds": time.perf_counter() - started})
        return out

    def _labelled(self, x: torch.Tensor, dim: str) -> xr.Dataset:
        """``(rows, cases, times, *shape)`` with its labels."""
        if self.batch is None:
            return self.model.dataset(x[:, 0], [dim])
        name, labels = self.batch
        return self.model.dataset(x, [dim, name], None if labels is None else {name: labels})

    def work(self, n: int, method: AssimilationMethod | None, seed: int) -> Work:
        """Check a method against the model and the data, and open a run of it."""
        check_seed(seed)
        if not isinstance(method, AssimilationMethod):
            raise InputError(
                "method",
                expected="a method of data assimilation such as ETKF()",
                got=repr(method),
                fix="pass an instance, ETKF() and not ETKF; methods of sciddiff.methods draw from prior.given",
            )
        if not self.posterior.observations:
            raise InputError("y", expected="observations", got="none", fix="condition with model.given(...)")
        misfit = method.misfit(self)
        if misfit is not None:
            raise MethodError(
                "method",
                expected="a method that fits this model and its data",
                got=f"{method!r}: {misfit}",
                fix="take another method, such as BootstrapFilter(), which fits all",
            )
        return Work(self, method, n, seed)

    def log_likelihood(self, x: Any) -> torch.Tensor:
        """``log p(y | x)`` of whole trajectories, ``(rows,)``, for one case.

        Args:
            x: as in `StateSpaceModel.log_prob`.
        """
        if self.cases > 1:
            raise InputError("x", expected="one case", got=f"{self.cases}", fix="condition on one at a time")
        states = self.model._states(x)
        cases = torch.arange(self.model.length, device=states.device).repeat(len(states))
        return self.posterior.log_likelihood(states.flatten(0, 1), cases).reshape(states.shape[:2]).sum(1)

    def __repr__(self) -> str:
        seen = int(self.observed.sum())
        return f"Assimilation({self.model!r}, data at {seen} of {self.model.length} times)"


def gaussian_log_prob(residual: torch.Tensor, covariance: Covariance) -> torch.Tensor:
    """``log N(r; 0, Q)`` over the trailing dims, ``Q`` of full rank."""
    dims = len(covariance.shape)
    energy = (residual * covariance.solve(residual)).flatten(-dims).sum(-1)
    return -0.5 * (energy + covariance.logdet + covariance.rank * math.log(2 * math.pi))


def _check_steps(argument: str, times: np.ndarray) -> None:
    """Refuse labels between which a model cannot go by one step each."""
    import pandas as pd

    from sciddiff.assimilation.steps import find_step

    if not bool((times[1:] > times[:-1]).all()):
        raise InputError(argument, expected="times in order", got=_few(times), fix="sort them")
    numbers = times.astype(np.int64) if times.dtype.kind == "m" else times
    if times.dtype.kind in "iufmM" and len(times) > 1 and find_step(numbers) is None:
        gaps = pd.Series(times).diff()
        raise InputError(
            argument,
            expected="regular times, since one step of the model lies between two of them",
            got=f"gaps from {gaps.min()} to {gaps.max()}",
            fix="build the model on the regular times that hold these; data are NaN where nothing was observed",
        )


def _few(labels: np.ndarray) -> str:
    """Labels in short."""
    shown = ", ".join(map(str, labels[:4]))
    return shown if len(labels) <= 4 else f"{shown}, ... ({len(labels)} of them)"


def _covariance(noise: Any, space: Space) -> Covariance | None:
    """``Q`` on states, None without noise."""
    if noise is None:
        return None
    if isinstance(noise, Covariance):
        if tuple(noise.shape) != space.shape:
            raise InputError(
                "noise",
                expected=f"a covariance on states of shape {space.shape}",
                got=tuple(noise.shape),
                fix="build it with the shape of the space",
            )
        return noise
    if not isinstance(noise, Gaussian):
        raise InputError(
            "noise",
            expected="noise.Gaussian, a Covariance or None",
            got=repr(noise),
            fix="pass for example noise=Gaussian(0.1), the standard deviation of the error of one step",
        )
    return noise.covariance(space.shape)
