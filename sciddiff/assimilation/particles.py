"""Particle methods: ``p(x_k | y_{1:k}) ~ sum_j w_k^j delta(x_k^j)``, weights from the likelihood of each particle.

A filter carries particles forward and selects them; its ancestral paths die out, so a smoother goes back over the
particles kept and takes each with weight ``w_k^j p(x_{k+1} | x_k^j)``, whose density the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sciddiff.assimilation.base import AssimilationMethod, Ensemble, Filter, Work
from sciddiff.assimilation.models import Assimilation
from sciddiff.covariance import Covariance
from sciddiff.errors import DivergenceError, InputError
from sciddiff.posterior import check_count
from sciddiff.random import Streams

__all__ = ["FFBS", "BootstrapFilter", "systematic"]

_BLOCK = 2**22
# below this share of the particles the weights are reported, and below this share of the draws their ancestors
_ESS, _UNIQUE = 0.002, 0.05


@final
@dataclass(frozen=True)
class BootstrapFilter(Filter):
    """Sequential importance resampling (Gordon et al. 1993): forecast, weigh by the likelihood, select.

    Fits any model and any noise. In many dimensions a few particles soon hold all the weight. Draws at a time are taken
    from the weighted particles; draw i depends on (seed, i) and the particles. The result's attrs hold
    ``log_evidence``, an estimate of ``log p(y)`` whose exponential is unbiased without ``jitter``, and ``ess``, the least
    share of the particles that held the weight.

    Args:
        particles: their number.
        threshold: systematic resampling where the effective number falls to this share of them.
        jitter: noise on what resampling makes alike, in units of Scott's bandwidth ``N^(-1/(d + 4))`` of the particles' own
            covariance (Doucet et al. 2001, section 12.2.2). For models without noise; it biases by little.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> BootstrapFilter(particles=800, threshold=0.2, jitter=0.9)
        BootstrapFilter(particles=800, threshold=0.2, jitter=0.9)
    """

    reference: ClassVar[str] = (
        "@article{gordon1993novel, title={Novel approach to nonlinear/non-{G}aussian {B}ayesian state estimation}, "
        "author={Gordon, Neil J. and Salmond, David J. and Smith, Adrian F. M.}, journal={IEE Proceedings F}, "
        "volume={140}, number={2}, pages={107--113}, year={1993}}"
    )
    particles: int = 4096
    threshold: float = 0.5
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_count("particles", self.particles)
        _check_number("threshold", self.threshold, 0.0, 1.0)
        _check_number("jitter", self.jitter, 0.0, None)

    def analyses(self, work: Work) -> Iterator[tuple[Ensemble, Ensemble]]:
        """Forecast, weigh, yield, select."""
        n, model_noise = self.particles, work.streams("model noise")
        evidence, least = torch.zeros(work.cases, dtype=torch.float64), torch.full((work.cases,), float(n))
        x = work.initial(n)
        log_weights = torch.full((work.cases, n), -math.log(n), dtype=torch.float64, device=x.device)
        for time in range(work.times):
            if time:
                x = work.check(work.forecast(x, model_noise), time)
            before = Ensemble(x, log_weights)
            if not work.observed(time):
                yield before, before
                continue
            log_weights = log_weights + work.log_likelihood(x, time).double()
            seen = work.seen(time)
            total = torch.where(seen, torch.logsumexp(log_weights, 1), 0.0)
            _check_weights(self, total, time, work)
            evidence, log_weights = evidence + total.cpu(), log_weights - total[:, None]
            after = Ensemble(x, log_weights)
            ess = after.ess().cpu()
            least = torch.minimum(least, ess)
            work.notes.update(_notes(evidence, least / n, work))
            yield before, after
            few = torch.nonzero(seen.cpu() & (ess <= self.threshold * n))[:, 0].tolist()
            if few:
                x, log_weights = self._select(after, few, work, time)

    def _select(
        self, ensemble: Ensemble, few: list[int], work: Work, time: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Resample the cases that are named."""
        assert ensemble.log_weights is not None
        streams, n = work.streams("resampling", time, few), self.particles
        u = streams.uniform((1,), dtype=torch.float64, device=ensemble.x.device)
        index = systematic(ensemble.log_weights[few], u)
        chosen = ensemble.x[few].gather(1, _expand(index, ensemble.x))
        if self.jitter:
            alike = (index == index.roll(1, 1)) | (index == index.roll(-1, 1))
            noise = self.jitter * n ** (-1 / (work.model.space.size + 4)) * _scatter(ensemble, few, streams)
            chosen = chosen + torch.where(_expand(alike, chosen), noise.reshape(chosen.shape), 0.0)
        x, log_weights = ensemble.x.clone(), ensemble.log_weights.clone()
        x[few], log_weights[few] = chosen, -math.log(n)
        return x, log_weights

    def draw(self, work: Work) -> torch.Tensor:
        """Particles of every time, drawn by their weights."""
        u = _uniforms(work)
        out = [_take(ensemble, u[..., k]) for k, (_, ensemble) in enumerate(self.analyses(work))]
        _warn_weights(work)
        return torch.stack(out, 2).transpose(0, 1)


@final
@dataclass(frozen=True)
class FFBS(AssimilationMethod):
    """Forward filtering, backward sampling (Godsill, Doucet and West 2004): whole trajectories given all the data.

    A `BootstrapFilter` forward; then the last state is drawn by its weight and each earlier one by
    ``w_k^j N(x_{k+1}; step(x_k^j), Q)``. Exact as the number of particles grows, for any noise of the data; the model's own
    has to have full rank. Draw i depends on (seed, i) and the particles. Cost: two steps of the model for each
    particle and time, and ``n * particles`` weights for each time, a block at a time. The attrs hold those of the
    filter, and ``unique``, the least share of draws that differ at a time.

    Args:
        particles: their number.
        threshold: as in `BootstrapFilter`.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> FFBS(particles=1024)
        FFBS(particles=1024, threshold=0.5)
    """

    law: ClassVar[str] = "smoothing"
    reference: ClassVar[str] = (
        "@article{godsill2004monte, title={{M}onte {C}arlo Smoothing for Nonlinear Time Series}, author={Godsill, Simon J. "
        "and Doucet, Arnaud and West, Mike}, journal={Journal of the American Statistical Association}, volume={99}, "
        "number={465}, pages={156--168}, year={2004}}"
    )
    particles: int = 4096
    threshold: float = 0.5

    def __post_init__(self) -> None:
        BootstrapFilter(self.particles, self.threshold)

    def misfit(self, assimilation: Assimilation) -> str | None:
        """Transitions need a density."""
        covariance = assimilation.model.covariance
        if covariance is None or covariance.rank < assimilation.model.space.size:
            return "the model's noise has no full rank, so its transitions have no density: give it noise=Gaussian(sd)"
        return None

    def draw(self, work: Work) -> torch.Tensor:
        """Forward, then backward."""
        kept = [after for _, after in BootstrapFilter(self.particles, self.threshold).analyses(work)]
        _warn_weights(work)
        covariance, u = work.model.density(), _uniforms(work)
        last = _take(kept[-1], u[..., -1])
        out, unique = [last], [_distinct(last, self.particles)]
        for time in range(work.times - 2, -1, -1):
            out.append(_backward(work, kept.pop(-2), out[-1], u[..., time], covariance))
            unique.append(_distinct(out[-1], self.particles))
        work.notes["unique"] = min(unique)
        if min(unique) < _UNIQUE and work.n > 1 / _UNIQUE:
            work.warnings.append(
                f"only {min(unique):.1%} of the draws differ at some time: take more particles"
            )
        return torch.stack(out[::-1], 2).transpose(0, 1)


def systematic(log_weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Systematic resampling: sorted indices ``(rows, N)`` of as many particles, each about ``N w`` times.

    Args:
        log_weights: ``(rows, N)``, summing to one.
        u: uniforms ``(rows, 1)``.

    Example:
        >>> systematic(torch.tensor([[0.5, 0.25, 0.25, 1e-9]]).log(), torch.tensor([[0.5]])).tolist()
        [[0, 0, 1, 2]]
    """
    n = log_weights.shape[1]
    at = (u + torch.arange(n, dtype=log_weights.dtype, device=log_weights.device)) / n
    return _invert(log_weights.exp().cumsum(1), at)


def _invert(cumulated: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Indices at which cumulated weights ``(rows, N)`` pass ``u`` of their total, ``(rows, k)``."""
    found = torch.searchsorted(cumulated, (u.to(cumulated) * cumulated[:, -1:]).contiguous(), right=True)
    return found.clamp_max(cumulated.shape[1] - 1)


def _uniforms(work: Work) -> torch.Tensor:
    """Uniforms ``(cases, n, times)``; those of draw i and case c depend on (seed, c, i)."""
    rows = [(case, i) for case in range(work.cases) for i in range(work.n)]
    streams = Streams(work.seed, [i for _, i in rows], [c for c, _ in rows], purpose="draws of particles")
    return streams.uniform((work.times,), dtype=torch.float64).reshape(work.cases, work.n, work.times)


def _take(ensemble: Ensemble, u: torch.Tensor) -> torch.Tensor:
    """Members by their weights: ``(cases, n, *shape)`` for uniforms ``(cases, n)``."""
    assert ensemble.log_weights is not None
    return ensemble.x.gather(1, _expand(_invert(ensemble.log_weights.exp().cumsum(1), u), ensemble.x))


def _backward(
    work: Work, ensemble: Ensemble, later: torch.Tensor, u: torch.Tensor, covariance: Covariance
) -> torch.Tensor:
    """Members by ``w N(later; step(x), Q)``, ``(cases, n, *shape)``."""
    assert ensemble.log_weights is not None
    mean = _white(work.step(ensemble.x), covariance)
    centre = mean.mean(1, keepdim=True)  # differences of near values keep their digits
    mean, target = mean - centre, _white(later, covariance) - centre
    bias = (ensemble.log_weights - 0.5 * mean.square().sum(2))[:, None]
    chosen, step = [], max(1, _BLOCK // ensemble.log_weights.numel())
    for start in range(0, target.shape[1], step):
        part = slice(start, start + step)
        logits = torch.baddbmm(bias, target[:, part], mean.mT)
        logits -= logits.amax(2, keepdim=True)
        cumulated = logits.exp_().cumsum(2).flatten(0, 1)
        chosen.append(_invert(cumulated, u[:, part].reshape(-1, 1)).reshape(work.cases, -1))
    return ensemble.x.gather(1, _expand(torch.cat(chosen, 1), ensemble.x))


def _white(x: torch.Tensor, covariance: Covariance) -> torch.Tensor:
    """``F^-1 x`` with ``Q = F F^T``, ``(cases, members, size)`` in float64."""
    return covariance.sqrt_adjoint(covariance.solve(x.double())).flatten(2)


def _scatter(ensemble: Ensemble, few: list[int], streams: Streams) -> torch.Tensor:
    """Noise of the members' own weighted covariance, ``(few, N, size)``."""
    assert ensemble.log_weights is not None
    weights, x = ensemble.log_weights[few].exp(), ensemble.x[few].flatten(2)
    spread = 1 - weights.square().sum(1)
    # where one member holds all the weight there is no spread but that of all alike
    lost = spread < 1e-8
    weights = torch.where(lost[:, None], 1.0 / weights.shape[1], weights)
    spread = 1 - weights.square().sum(1)
    off = (x.double() - (weights[..., None] * x.double()).sum(1, keepdim=True)) * weights.sqrt()[..., None]
    off = off / spread.sqrt()[:, None, None]
    values, vectors = torch.linalg.eigh(off.mT @ off)
    white = streams.normal((x.shape[1], x.shape[2]), dtype=torch.float64, device=x.device)
    noise: torch.Tensor = (white * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    return noise.to(x)


def _expand(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``(cases, n)`` as ``(cases, n, *shape)``."""
    return index.reshape(*index.shape, *(1,) * (like.ndim - 2)).expand(*index.shape, *like.shape[2:])


def _distinct(x: torch.Tensor, particles: int) -> float:
    """The least share of the draws of a case that differ, of those that could."""
    return min(len(torch.unique(case.flatten(1), dim=0)) for case in x) / min(x.shape[1], particles)


def _check_weights(method: BootstrapFilter, total: torch.Tensor, time: int, work: Work) -> None:
    if not bool(total.isfinite().all()):
        raise DivergenceError(
            f"{method!r}: at time {time} of {work.times} no particle of {int((~total.isfinite()).sum())} of {work.cases} "
            "cases can have made the observation. Take more particles, jitter, or check model and noise."
        )


def _notes(evidence: torch.Tensor, least: torch.Tensor, work: Work) -> dict[str, float | list[float]]:
    if work.assimilation.batch is None:
        return {"log_evidence": float(evidence[0]), "ess": float(least[0])}
    return {"log_evidence": evidence.tolist(), "ess": least.tolist()}


def _warn_weights(work: Work) -> None:
    least = torch.as_tensor(work.notes.get("ess", 1.0)).min().item()
    if least < _ESS:
        work.warnings.append(
            f"at some time {least:.2%} of the particles held the weight: take more particles"
        )


def _check_number(name: str, value: object, low: float, high: float | None) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not low <= float(value) <= (float("inf") if high is None else high):  # type: ignore[arg-type]
        raise InputError(
            name,
            expected=f"a number of at least {low:g}" + ("" if high is None else f" and at most {high:g}"),
            got=repr(value),
            fix="leave it out to take the default",
        )
