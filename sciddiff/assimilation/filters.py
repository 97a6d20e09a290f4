"""Ensemble Kalman filters and smoother: forecast every member, then one Kalman analysis with the ensemble's own moments.

``x_f = step(x_a) + q``, ``x_a = x_f + K (y - A(x_f))``; how an ensemble is moved by data is `sciddiff.methods.analysis`.
All cases and members are one tensor ``(cases, members, *shape)``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, final

import torch

from sciddiff.assimilation.base import AssimilationMethod, Ensemble, Filter, Work
from sciddiff.assimilation.models import Assimilation
from sciddiff.errors import InputError
from sciddiff.methods.analysis import Analysis, Forecast, LocalSquareRoot, Perturbed, Seen, SquareRoot
from sciddiff.posterior import check_count
from sciddiff.random import Streams

__all__ = ["ETKF", "LETKF", "EnKF", "EnKS", "EnsembleFilter", "analyse", "rotation"]


@dataclass(frozen=True)
class EnsembleFilter(Filter):
    """A filter that moves an ensemble of equal weights at every time with data; subclasses say how.

    The draws are members: they depend on one another, and on how many there are.

    Attributes:
        members: of the ensemble; None, or fewer than draws are asked for: as many as draws.
    """

    members: int | None = None

    def __post_init__(self) -> None:
        check_members(self.members)

    @abstractmethod
    def update(self, work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
        """The ensemble ``(cases, members, *shape)`` of a time given its data; cases without any are left out later."""

    def size(self, work: Work) -> int:
        """How many members there are."""
        return work.members(self.members)

    def analyses(self, work: Work) -> Iterator[tuple[Ensemble, Ensemble]]:
        """Forecast and analysis of every time in turn."""
        noise, x = work.streams("model noise"), work.initial(self.size(work))
        for time in range(work.times):
            if time:
                x = work.check(work.forecast(x, noise), time)
            before = Ensemble(x)
            if work.observed(time):
                x = work.check(work.update(x, self.update(work, x, time), time), time)
            yield before, Ensemble(x)

    def draw(self, work: Work) -> torch.Tensor:
        """The members of every time."""
        every = torch.stack([ensemble.x[:, : work.n] for _, ensemble in self.analyses(work)], 2)
        return every.transpose(0, 1)


@dataclass(frozen=True)
class _Kalman(EnsembleFilter):
    """A filter whose analysis is one of `sciddiff.methods.analysis`, followed by inflation."""

    inflation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inflation(self.inflation)

    @abstractmethod
    def kind(self) -> Analysis:
        """The analysis."""

    def misfit(self, assimilation: Assimilation) -> str | None:
        """Kalman's formulas need Gaussian errors of the data."""
        return kalman_misfit(self.kind(), assimilation)

    def references(self) -> list[str]:
        """Of the filter and its analysis."""
        return [r for r in (self.reference, self.kind().reference) if r]

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        plain = asdict(self)
        return {**plain, "analysis": self.kind().settings()} if "analysis" in plain else plain

    def update(self, work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
        """Analysis and inflation."""
        return inflate(analyse(work, self.kind(), x, time), self.inflation)


class _Transform(_Kalman):
    """A filter without errors in the data, whose deviations may be turned at random."""

    rotate: bool

    def update(self, work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
        """Analysis, inflation and rotation."""
        moved = super().update(work, x, time)
        return rotated(work, moved, time) if self.rotate else moved


@final
@dataclass(frozen=True)
class EnKF(_Kalman):
    """The stochastic ensemble Kalman filter (Evensen 1994; Burgers et al. 1998): every member sees data with its own errors.

    The errors are centred over the members, so that the mean moves as Kalman's does.

    Args:
        members: of the ensemble; None, or fewer than draws are asked for: as many as draws.
        inflation: factor of the members' deviations from their mean after every analysis; 1.01 to 1.08 makes up for
            small ensembles.
        analysis: `Perturbed`, or `Localised` and `Tapered` against far correlations.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> EnKF(members=100, inflation=1.01)
        EnKF(members=100, inflation=1.01, analysis=Perturbed())
    """

    reference: ClassVar[str] = (
        "@article{evensen1994sequential, title={Sequential data assimilation with a nonlinear quasi-geostrophic model using "
        "{M}onte {C}arlo methods to forecast error statistics}, author={Evensen, Geir}, journal={Journal of Geophysical "
        "Research: Oceans}, volume={99}, number={C5}, pages={10143--10162}, year={1994}}\n\n"
        "@article{burgers1998analysis, title={Analysis Scheme in the Ensemble {K}alman Filter}, "
        "author={Burgers, Gerrit and van Leeuwen, Peter Jan and Evensen, Geir}, "
        "journal={Monthly Weather Review}, volume={126}, number={6}, pages={1719--1724}, year={1998}}"
    )
    analysis: Analysis = field(default_factory=Perturbed)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_analysis(self.analysis)

    def kind(self) -> Analysis:
        """As set."""
        return self.analysis


@final
@dataclass(frozen=True)
class ETKF(_Transform):
    """The ensemble transform Kalman filter with the symmetric square root (Bishop et al. 2001; Hunt et al. 2007).

    Mean and covariance of the members become those of Kalman's formulas with the ensemble's own moments, without errors
    in the data.

    Args:
        members: of the ensemble; None, or fewer than draws are asked for: as many as draws.
        inflation: as of `EnKF`.
        rotate: turn the deviations by a random orthogonal matrix that keeps the mean after every analysis (Sakov and
            Oke 2008), so that they stay Gaussian.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> ETKF(members=10, inflation=1.02, rotate=True)
        ETKF(members=10, inflation=1.02, rotate=True)
    """

    rotate: bool = False

    def kind(self) -> Analysis:
        """`SquareRoot`."""
        return SquareRoot()


@final
@dataclass(frozen=True)
class LETKF(_Transform):
    """The local ensemble transform Kalman filter (Hunt et al. 2007): `ETKF` for every value of the state on its own.

    Args:
        members: of the ensemble; None, or fewer than draws are asked for: as many as draws.
        inflation: as of `EnKF`.
        radius: distance from which on data do not count, see `sciddiff.methods.analysis.LocalSquareRoot`. DAPPER's
            radius times 3.64 is the same: its taper, Gaspari and Cohn's too, ends at twice 1.82 radii, near
            ``2 sqrt(10 / 3)``, and so begins as a Gaussian of that standard deviation.
        period: length after which a dim begins again.
        rotate: as of `ETKF`.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> LETKF(members=7, inflation=1.04, radius=14.56, period=40, rotate=True).radius
        14.56
    """

    radius: float | Mapping[str, float] = 1.0
    period: float | Mapping[str, float] | None = None
    rotate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kind()

    def kind(self) -> Analysis:
        """`LocalSquareRoot`."""
        return LocalSquareRoot(self.radius, self.period)


@final
@dataclass(frozen=True)
class EnKS(AssimilationMethod):
    """The ensemble Kalman smoother (Evensen and van Leeuwen 2000): whole trajectories of members, moved by all the data.

    An ensemble filter whose every analysis moves the states of earlier times too, by their correlations with what is
    observed now. Exact for linear Gaussian models as the ensemble grows; small ones need a ``lag``, since far correlations
    are mostly noise. The draws are members.

    Args:
        members: of the ensemble; None, or fewer than draws are asked for: as many as draws.
        lag: how many earlier times an analysis moves; None for all.
        analysis: `Perturbed` or `SquareRoot`.
        inflation: as of `EnKF`, of the latest state alone.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> EnKS(members=100, lag=20)
        EnKS(members=100, lag=20, analysis=SquareRoot(), inflation=1.0)
    """

    law: ClassVar[str] = "smoothing"
    reference: ClassVar[str] = (
        "@article{evensen2000ensemble, title={An Ensemble {K}alman Smoother for Nonlinear Dynamics}, author={Evensen, Geir "
        "and van Leeuwen, Peter Jan}, journal={Monthly Weather Review}, volume={128}, number={6}, pages={1852--1867}, "
        "year={2000}}"
    )
    members: int | None = None
    lag: int | None = None
    analysis: Analysis = field(default_factory=SquareRoot)
    inflation: float = 1.0

    def __post_init__(self) -> None:
        ETKF(members=self.members, inflation=self.inflation)
        if self.lag is not None:
            check_count("lag", self.lag)
        if not isinstance(self.analysis, (Perturbed, SquareRoot)):
            raise InputError(
                "analysis",
                expected="Perturbed() or SquareRoot()",
                got=repr(self.analysis),
                fix="a smoother moves all the states of a time together; limit it by lag",
            )

    def misfit(self, assimilation: Assimilation) -> str | None:
        """Kalman's formulas need Gaussian errors of the data."""
        return kalman_misfit(self.analysis, assimilation)

    def references(self) -> list[str]:
        """Of the smoother and its analysis."""
        return [r for r in (self.reference, self.analysis.reference) if r]

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {**asdict(self), "analysis": self.analysis.settings()}

    def draw(self, work: Work) -> torch.Tensor:
        """Forward once, moving what lies behind."""
        noise, x = work.streams("model noise"), work.initial(work.members(self.members))
        path = x.new_empty((work.times, *x.shape))
        for time in range(work.times):
            if time:
                x = work.check(work.forecast(x, noise), time)
            path[time] = x
            if work.observed(time):
                start = 0 if self.lag is None else max(0, time - self.lag)
                behind = path[start : time + 1].movedim(0, 2)
                moved = work.check(analyse(work, self.analysis, x, time, behind), time).movedim(2, 0)
                path[start : time + 1] = moved
                x = path[time] = work.update(moved[-1], inflate(moved[-1], self.inflation), time)
        return path[:, :, : work.n].permute(2, 1, 0, *range(3, path.ndim))


def analyse(
    work: Work, analysis: Analysis, x: torch.Tensor, time: int, moved: torch.Tensor | None = None
) -> torch.Tensor:
    """One analysis of the ensembles of a time, ``(cases, members, *shape)``.

    Args:
        work: the run, with the data.
        analysis: how.
        x: the ensembles, of which the operators make predictions.
        time: which.
        moved: what is moved, ``(cases, members, ...)``; None for ``x`` itself.
    """
    posterior, moved = work.posterior, x if moved is None else moved
    rows = x.flatten(0, 1)
    work.operator_calls += len(rows)
    predicted = [o.operator.apply(rows).unflatten(0, x.shape[:2]) for o in posterior.observations]
    errors = _errors(work, predicted, time) if _sees_errors(analysis) else None
    out, flat = moved.clone(), moved.flatten(2)
    for cases in _alike(work, time):
        seen = Seen(posterior, [case * work.times + time for case in cases])
        if not seen.y.numel():
            continue
        g, part = seen.pick([p[cases] for p in predicted]), flat[cases]
        g_mean, mean = g.mean(1, keepdim=True), part.mean(1, keepdim=True)
        error = (
            torch.zeros_like(g_mean) if errors is None else _centred(seen.pick([e[cases] for e in errors]))
        )
        forecast = Forecast(seen, mean, part - mean, g_mean, g - g_mean, error)
        out[cases] = analysis.update(forecast).reshape(len(cases), *moved.shape[1:])
    return out


def _centred(error: torch.Tensor) -> torch.Tensor:
    """Errors whose mean over the members is zero and whose variance is kept."""
    members = error.shape[1]
    return (error - error.mean(1, keepdim=True)) * math.sqrt(members / (members - 1))


def inflate(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Deviations from the mean of the members, times a factor."""
    return x if factor == 1 else torch.lerp(x.mean(1, keepdim=True), x, factor)


def rotation(members: int, streams: Streams, *, dtype: torch.dtype) -> torch.Tensor:
    """Random orthogonal matrices that keep the mean, ``(rows, members, members)``: Haar on what is orthogonal to ones.

    Example:
        >>> turn = rotation(4, Streams(0, [0], purpose="doc"), dtype=torch.float64)[0]
        >>> bool(torch.allclose(turn.sum(1), torch.ones(4, dtype=torch.float64)))
        True
    """
    n = members - 1
    gaussian = streams.normal((n, n), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None]
    # a Householder reflection takes the first axis to the direction of ones
    v = torch.full((members,), -1 / math.sqrt(members), dtype=torch.float64)
    v[0] += 1
    house = torch.eye(members, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)
    inner = torch.zeros((len(q), members, members), dtype=torch.float64)
    inner[:, 0, 0], inner[:, 1:, 1:] = 1, q
    return (house @ inner @ house).to(dtype)


def rotated(work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
    """Ensembles with their deviations turned at random."""
    turn = rotation(x.shape[1], work.streams("rotation", time), dtype=x.dtype).to(x.device)
    return (turn @ x.flatten(2)).reshape(x.shape)


def kalman_misfit(analysis: Analysis, assimilation: Assimilation) -> str | None:
    """Why Kalman's formulas do not fit, None if they do."""
    other = [repr(o.noise) for o in assimilation.posterior.observations if not o.noise.gaussian]
    if other:
        return f"{other[0]} is not Gaussian"
    return analysis.misfit(assimilation.posterior)


def check_members(members: int | None) -> None:
    """Refuse ensembles without a spread."""
    if members is not None and check_count("members", members) < 2:
        raise InputError("members", expected="at least 2", got=members, fix="one has no spread")


def check_inflation(inflation: object) -> None:
    """Refuse factors that are no positive numbers."""
    good = isinstance(inflation, (int, float)) and not isinstance(inflation, bool)
    if not good or not 0 < float(inflation) < math.inf:  # type: ignore[arg-type]
        raise InputError(
            "inflation",
            expected="a positive factor",
            got=repr(inflation),
            fix="1.0 changes nothing, 1.02 adds 2 %",
        )


def check_analysis(analysis: object) -> None:
    """Refuse what is no analysis."""
    if not isinstance(analysis, Analysis):
        raise InputError(
            "analysis",
            expected="an analysis such as Perturbed()",
            got=repr(analysis),
            fix="pass an instance, Perturbed() and not Perturbed",
        )


def _sees_errors(analysis: Analysis) -> bool:
    return not isinstance(analysis, (SquareRoot, LocalSquareRoot))


def _errors(work: Work, predicted: list[torch.Tensor], time: int) -> list[torch.Tensor]:
    """Draws of the errors of every observation, ``(cases, members, *codomain.shape)``."""
    streams, out = work.streams("errors of the data", time), []
    for o, g in zip(work.posterior.observations, predicted, strict=True):
        covariance = o.noise.covariance(o.operator.codomain.shape)  # type: ignore[attr-defined]  # Gaussian
        white = streams.normal((g.shape[1], *covariance.white_shape), dtype=g.dtype, device=g.device)
        out.append(covariance.sqrt(white))
    return out


def _alike(work: Work, time: int) -> list[list[int]]:
    """The cases, in groups that miss the same values at a time."""
    masks = [
        o.mask.unflatten(0, (work.cases, work.times))[:, time].flatten(1)
        for o in work.posterior.observations
        if o.mask is not None
    ]
    if work.cases == 1 or not masks:
        return [list(range(work.cases))]
    _, which = torch.unique(torch.cat(masks, 1), dim=0, return_inverse=True)
    return [torch.nonzero(which == i)[:, 0].tolist() for i in range(int(which.max()) + 1)]
