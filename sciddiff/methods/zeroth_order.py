"""Guidance by values of the likelihood alone: ``D_y`` from simulations of a cloud of states around ``D``.

Given a noisy state, ``z0 ~ N(D, V)``. `DPG` weighs draws of it by their likelihood; `GSG` takes differences
of the log-likelihood for its gradient, smoothed by a Gaussian. Neither asks the operator for a derivative.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import InputError
from sciddiff.methods.base import Method, Rows, Run, integrate, tweedie
from sciddiff.methods.pigdm import missing_gaussian, not_mean
from sciddiff.methods.search import (
    Judge,
    check_family,
    check_spread,
    families,
    noises,
    possible,
    spread,
    whole,
)
from sciddiff.solvers import Ancestral, Denoiser

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["DPG", "GSG", "Clouded"]


@dataclass(frozen=True)
class Clouded(Method):
    """A guided denoiser that simulates a cloud of states around every row's ``D``, from the row's own stream."""

    takes: ClassVar[frozenset[str]] = frozenset({"solver", "steps"})
    candidates: int = 64

    def draw(self, run: Run) -> torch.Tensor:
        """Integrate the guided denoiser, chunk by chunk; the solver is `Ancestral` where none is named."""
        out, judge = [], Judge(run)
        solver = run.record((run.solver or Ancestral()).with_steps(run.steps))
        for rows in families(run, self.candidates, type(self).__name__):
            guided = self.guided(run, judge, rows)
            out.append(integrate(run.prior, guided, rows.streams, solver, None, run.bar))
        if judge.shares:
            run.notes["ess"] = judge.ess()
        return torch.cat(out)

    @abstractmethod
    def guided(self, run: Run, judge: Judge, rows: Rows) -> Denoiser:
        """``(z, sigma) -> D_y`` of some rows."""


@final
@dataclass(frozen=True)
class DPG(Clouded):
    """Diffusion policy gradient (Tang et al. 2024, arXiv 2403.10585): states around ``D``, weighed by their fit.

    With ``strength=None``, ``D_y = D + sum_j w_j (x_j - D)``, ``x_j ~ N(D, V)``, ``w_j ~ p(y | A(x_j))``: the
    posterior mean under ``N(D, V)``, which is the gradient of ``log E[p(y | A(x))]`` that `LGD` takes by
    backpropagation, and for Gaussian priors and V the exact ``E[z0 | z, y]`` as the candidates grow. ``ess``
    in the result is the mean share of the candidates that count at the level where it is least: with many or
    precise data one candidate has all the weight, and the draws spread too much and miss the data; more
    candidates mend that, as does a better V.

    With a strength it is the published rule, which ignores the noise: rewards ``R_j = exp(-(L_j - min L)/mean
    L)`` of ``L = |y - A(x)|^2``, less the mean of the others (the leave-one-out baseline), and ``sum_j (R_j -
    R) (x_j - D)`` at a fixed length, which strength counts in rms widths of V. Noise whose mean is not
    ``A(x)``, such as events, is refused. The momentum of the authors' code is left out. An optimiser, not a
    posterior, by construction.

    In the setting of `BestOfN` 256 candidates and 32 steps had means 0.06 posterior standard deviations off
    (rms) and standard deviations 0.82 to 0.92 of the exact ones, which is the solver's error; with strength
    0.5 these were 0.37, and 0.85 to 1.13. On the series of `NoiseSearch` they were 0.67 and 1.0 to 3.2, and
    0.49 and 0.86 to 3.0.

    Args:
        candidates: states around each D.
        strength: None, or the length of the published gradient.
        covariance: ``V``: "gaussian", that of the Gaussian fitted to the prior; "unit", of data of variance one; None
            for the first of them that there is.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite, ``y`` is impossible under all candidates, or an operator that may
            not fail does.

    Example:
        >>> DPG(candidates=4096, strength=0.5).strength
        0.5
    """

    reference: ClassVar[str] = (
        "@article{tang2024solving, title={Solving General Noisy Inverse Problem via Posterior Sampling: A Policy Gradient "
        "Viewpoint}, author={Tang, Haoyue and Xie, Tian and Feng, Aosong and Wang, Hanyu and Zhang, Chenyang and Bai, Yang}, "
        "journal={arXiv preprint arXiv:2403.10585}, year={2024}}"
    )
    strength: float | None = None
    covariance: str | None = None

    def __post_init__(self) -> None:
        check_family(self.candidates, "weighted")
        check_spread(self.covariance)
        if self.strength is not None:
            _positive("strength", self.strength)

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        reason = super().misfit(posterior) or missing_gaussian(self.covariance or "", posterior)
        return reason or (None if self.strength is None else not_mean(posterior))

    def guided(self, run: Run, judge: Judge, rows: Rows) -> Denoiser:
        """The weighted mean of the cloud, or a step of fixed length."""
        cloud = spread(run.prior, self.covariance)

        def guided(z: torch.Tensor, sigma: float) -> torch.Tensor:
            d, v = run.denoise(z, sigma), cloud(sigma)
            off = noises(v, run.prior, rows, self.candidates)
            tried = d[:, None] + off
            if self.strength is not None:
                return d + self.strength * _width(v) * _even(_reward(judge.squares(tried, rows.cases), off))
            log = judge(tried, rows.cases, record=True)
            possible(log)
            return d + _mixed(log.softmax(1), off)

        return guided


@final
@dataclass(frozen=True)
class GSG(Clouded):
    """Gaussian-smoothed gradients of the log-likelihood at ``D``, for black boxes behind a differentiable denoiser.

    ``v = C^+ sum_j f_j n_j / k``, ``n_j ~ N(0, C)``, with ``f_j = (l(D + mu n_j) - l(D)) / mu``, "forward",
    or ``(l(D + mu n_j) - l(D - mu n_j)) / (2 mu)``, "central", at twice the simulations; ``l = log p(y |
    A(.))``. On average it is the gradient of ``l`` smoothed over ``N(0, mu^2 C)``; a draw of it is off by
    ``sqrt(d/k)`` of its length for d values.

    With a strength it is pulled back and scaled to a fixed length, which strength counts in rms widths of
    ``z0`` given z; it knows no noise level (DPS-GSG, in Zheng et al. 2025; a length in place of the norm of
    its residual). With ``strength=None`` the step is ``D_y = D + a c``, ``c = Cov v``, ``Cov = Cov[z0 | z]``,
    with the a that makes ``l(D + a c) - a^2 c^T Cov^+ c / 2`` largest for an l of second order: two
    simulations more give its slope and curvature over one standard deviation of ``N(D, Cov)``. It knows the
    noise, is exact for one datum and a Gaussian prior as the candidates grow, and is the first step of a
    conjugate gradient to `MMPS` for many. Convex stretches of l count as straight, and directions along which
    a network's ``Cov`` is not positive are not followed.

    In the setting of `BestOfN`, of 4 data, 64 candidates and 32 steps had means 0.51 posterior standard
    deviations off (rms) and standard deviations 0.83 to 1.2 of the exact ones, with strength 0.5 0.46 and
    0.83 to 1.2: one direction is not enough for four data. On the series of `NoiseSearch` these were 0.35 and
    0.85 to 1.6 (0.20 and 0.79 to 1.06 with 256 candidates), and with strength 0.5 0.93 and 0.93 to 4.1.

    Args:
        candidates: directions of each gradient.
        strength: None, or the length of the published gradient.
        scheme: "central" or "forward".
        smoothing: mu, in units of the reference noise.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite, or an operator that may not fail does.

    Example:
        >>> GSG(candidates=1024, scheme="forward", strength=0.5).smoothing
        0.01
    """

    reference: ClassVar[str] = (
        "@inproceedings{zheng2025inversebench, title={{InverseBench}: Benchmarking Plug-and-Play Diffusion Priors for Inverse "
        "Problems in Physical Sciences}, author={Zheng, Hongkai and Chu, Wenda and Zhang, Bingliang and Wu, Zihui and Wang, Austin "
        "and Feng, Berthy T. and Zou, Caifeng and Sun, Yu and Kovachki, Nikola and Ross, Zachary E. and Bouman, Katherine L. and "
        "Yue, Yisong}, booktitle={ICLR}, year={2025}}"
    )
    strength: float | None = None
    scheme: str = "central"
    smoothing: float = 1e-2

    def __post_init__(self) -> None:
        whole("candidates", self.candidates, 1)
        if self.scheme not in ("central", "forward"):
            raise InputError(
                "scheme", expected="'central' or 'forward'", got=repr(self.scheme), fix="leave it out"
            )
        _positive("smoothing", self.smoothing)
        if self.strength is not None:
            _positive("strength", self.strength)

    def guided(self, run: Run, judge: Judge, rows: Rows) -> Denoiser:
        """The smoothed gradient, pulled back through the denoiser."""
        cloud = spread(run.prior, None)

        def guided(z: torch.Tensor, sigma: float) -> torch.Tensor:
            d, covariance = tweedie(run, z, sigma, once=True)
            v = self._gradient(run, judge, rows, d)
            c = covariance(v)
            if self.strength is None:
                return d + _each(_stretch(judge, rows, d, c, v), c) * c
            return d + self.strength * _width(cloud(sigma)) * _even(c)

        return guided

    def _gradient(self, run: Run, judge: Judge, rows: Rows, d: torch.Tensor) -> torch.Tensor:
        off = noises(run.prior.reference, run.prior, rows, self.candidates)
        d = d[:, None]
        ahead = [d + self.smoothing * off, d - self.smoothing * off if self.scheme == "central" else d]
        log = judge(torch.cat(ahead, 1), rows.cases)
        slope = log[:, : self.candidates] - log[:, self.candidates :]
        slope = slope / (self.smoothing * (2 if self.scheme == "central" else 1))
        told = torch.isfinite(slope)
        share = torch.where(told, slope, 0.0) / told.sum(1, keepdim=True).clamp(min=1)
        return run.prior.reference.solve(_mixed(share, off))


def _stretch(judge: Judge, rows: Rows, d: torch.Tensor, c: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """How far along ``c = Cov v`` the log posterior of second order is largest, one number per row."""
    square = (c * v).double().flatten(1).sum(1)
    up = square > 0
    # one posterior standard deviation along c
    reach = 1 / torch.where(up, square, 1.0).sqrt()
    step = _each(reach, c).to(c) * c
    log = judge(torch.stack([d + step, d, d - step], 1), rows.cases)
    slope = (log[:, 0] - log[:, 2]) / (2 * reach)
    bend = (2 * log[:, 1] - log[:, 0] - log[:, 2]).clamp(min=0) / reach**2
    good = up & torch.isfinite(slope) & torch.isfinite(bend)
    return torch.where(good, slope / torch.where(good, square + bend, 1.0), 0.0)


def _reward(loss: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    """``sum_j (R_j - R) x_j`` of rewards that fall with the loss, in units of its mean."""
    told = torch.isfinite(loss)
    mean = torch.where(told, loss, 0.0).sum(1, keepdim=True) / told.sum(1, keepdim=True)
    reward = torch.exp(-(loss - loss.amin(1, keepdim=True)) / torch.where(mean > 0, mean, 1.0))
    # less the mean of the others is k/(k-1) times less the mean of all, which the length forgets
    return _mixed(reward - reward.mean(1, keepdim=True), off)


def _even(g: torch.Tensor) -> torch.Tensor:
    """Each row at an rms of one, zeros as they are."""
    rms = g.double().flatten(1).square().mean(1).sqrt()
    return g / _each(torch.where(rms > 0, rms, 1.0), g)


def _width(v: Covariance) -> float:
    """The rms standard deviation."""
    return math.sqrt(float(v.variance().mean()))


def _mixed(weights: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    """``sum_j w_j x_j`` of every row."""
    return torch.einsum("rk,rk...->r...", weights.to(off), off)


def _each(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number per row, to broadcast on a batch."""
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise InputError(name, expected="a positive number", got=repr(value), fix="0.5 is a good start")
