"""Splitting: the prior and the likelihood take turns, and each step is a draw from a law of its own.

`PnPDM` and `DPnP` are Gibbs samplers of ``p(x) N(z; x, rho^2 C) p(y | z)``: ``z`` given ``x`` knows no prior,
and ``x`` given ``z`` is the prior seen through noise of level rho, which is what a denoiser draws from. What
they leave of ``x`` tends to the posterior as rho falls. `DAPS` alternates ``z ~ p(z | x_t, y)`` and ``x_t = z
+ sigma n``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch

from sciddiff.covariance import Covariance, multiple
from sciddiff.errors import InputError
from sciddiff.methods.base import Method, Rows, Run
from sciddiff.methods.kalman import are_numbers
from sciddiff.methods.likelihood_steps import LikelihoodStep, likelihood_step, multiples, stiffness
from sciddiff.posterior import check_count
from sciddiff.priors.base import Prior
from sciddiff.solvers import Ancestral, Euler, Karras
from sciddiff.solvers.base import checked

__all__ = ["DAPS", "DPnP", "PnPDM", "SplitGibbs"]

# the last coupling in units of the smallest sd that the data leave: a bias of some percent of a standard deviation
_SHARE = 0.3


@dataclass(frozen=True)
class SplitGibbs(Method):
    """Split Gibbs sampling with a falling coupling rho; `PnPDM` and `DPnP` differ in how it falls.

    ``z ~ p(y | z) N(z; x, rho^2 C)`` is drawn in closed form for linear operators and Gaussian noise,
    elsewhere moved by Hamiltonian trajectories that leave it invariant. ``x ~ p(x0 | x0 + rho n = z)`` is
    drawn with the moments of Gaussian priors, exactly, elsewhere by ancestral steps from the level rho. Every
    draw is a chain of its own.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    steps: int = 200
    rho_min: float | None = None
    rho_max: float | None = None
    prior_steps: int = 16
    moves: int = 2
    leaps: int = 10

    def __post_init__(self) -> None:
        _counts(self, "steps", "prior_steps", "moves", "leaps")
        low, high = self.rho_min, self.rho_max
        good = all(r is None or (are_numbers(r) and 0 < r < math.inf) for r in (low, high))
        if not good or (low is not None and high is not None and not low < high):
            raise InputError(
                "rho_min",
                expected="0 < rho_min < rho_max < inf, or None",
                got=f"rho_min = {low!r}, rho_max = {high!r}",
                fix="leave them out",
            )

    @abstractmethod
    def falling(self, steps: int) -> list[float]:
        """How far each step is on the way from rho_max, 0, to rho_min, 1, in the logarithm."""

    def draw(self, run: Run) -> torch.Tensor:
        """One chain for every row, from the prior's mean."""
        prior, steps = run.prior, self.steps if run.steps is None else run.steps
        step = likelihood_step(run, multiples(prior.reference), moves=self.moves, leaps=self.leaps)
        low, high = self._range(run)
        run.notes |= {"steps": steps, "rho_min": low, "rho_max": high}
        levels = [high * (low / high) ** share for share in self.falling(steps)]
        out = []
        for rows in run.rows():
            x = z = _zeros(prior, rows)
            for i in run.bar(range(steps)):
                z = step(z, x, levels[i], rows)
                x = checked(_from_level(run, z, levels[i], rows, self.prior_steps), i, levels[i])
            out.append(x)
        return torch.cat(out)

    def _range(self, run: Run) -> tuple[float, float]:
        """The last and the first coupling."""
        high = run.prior.sigma_max / 10 if self.rho_max is None else self.rho_max
        if self.rho_min is not None:
            return self.rho_min, max(self.rho_min, high)
        curvature = stiffness(run, run.prior.reference)
        return min(high, _SHARE / math.sqrt(curvature)) if curvature > 0 else high, high


@final
@dataclass(frozen=True)
class PnPDM(SplitGibbs):
    """Plug-and-play diffusion models: split Gibbs sampling (Wu et al. 2024, arXiv 2405.18782, algorithm 1).

    Its law is the posterior with ``R + rho_min^2 B C B^T`` in place of ``R``, as far as the chain kept up
    with the falling rho: directions that the data fix lag by a part that falls as 1/steps.

    On an Ornstein-Uhlenbeck series (64 times, 16 observed with sd 0.1 of the prior's) and the exact denoiser,
    500 draws of three problems had means 0.07 posterior standard deviations off (rms, 0.05 of it the draws'
    own), standard deviations 0.92 to 1.12 of the exact ones (1.03 on average) and a Gaussian W2 distance of
    1.05 times its floor. With rho_min = 0.3, three times the sd of the noise: 0.58, 1.00 to 3.11, and 1.9.

    Where the prior has modes far apart, their weights freeze as rho falls: on a mixture of 25 Gaussians with
    one datum (two problems, 300 draws, 60 steps) the sliced W1 distance was 10 and 25 times that of two exact
    sets.

    Args:
        steps: number of pairs of steps; ``Posterior.sample(steps=...)`` goes before.
        rho_min: last coupling, in normalised units; None takes 0.3 times the smallest sd that the data alone
            would leave in any direction. The bias of a variance is of order ``rho_min^2`` over that of the
            noise.
        rho_max: first coupling; None takes a tenth of the prior's sigma_max.
        prior_steps: ancestral steps of a draw from the prior; not used where the prior is Gaussian. Elsewhere
            16 leave the draws about 10 % too narrow (a standard normal as a prior of unknown covariance, exact
            sd 0.707: 0.639 with 16, 0.709 with 64): take 64 there.
        moves: Hamiltonian trajectories of a likelihood step; not used where it has a closed form.
        leaps: gradients of a trajectory.
        settle: the last steps, spent at rho_min.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> PnPDM(steps=50, settle=10).rho_min is None
        True
    """

    reference: ClassVar[str] = (
        "@inproceedings{wu2024principled, title={Principled Probabilistic Imaging using Diffusion Models as "
        "Plug-and-Play Priors}, author={Wu, Zihui and Sun, Yu and Chen, Yifan and Zhang, Bingliang and Yue, Yisong "
        "and Bouman, Katherine L.}, booktitle={NeurIPS}, year={2024}}"
    )
    settle: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _counts(self, "settle")

    def falling(self, steps: int) -> list[float]:
        """Geometrically to rho_min, and on at rho_min."""
        slope = max(1, steps - self.settle)
        return [min(1.0, i / slope) for i in range(steps)]


@final
@dataclass(frozen=True)
class DPnP(SplitGibbs):
    """Diffusion plug-and-play (Xu and Chi 2024, arXiv 2403.17042, algorithm 1).

    As `PnPDM`, with a coupling that stays at rho_max for a fifth of the steps and falls to rho_min on the
    last. In the setting of `PnPDM` the means were 0.08 posterior standard deviations off (rms), the standard
    deviations 0.93 to 1.12 of the exact ones, and W2 1.1 times its floor.

    Args:
        steps: number of pairs of steps; ``Posterior.sample(steps=...)`` goes before.
        rho_min: last coupling, in normalised units; None takes 0.3 times the smallest sd that the data alone
            would leave in any direction. The bias of a variance is of order ``rho_min^2`` over that of the
            noise.
        rho_max: first coupling; None takes a tenth of the prior's sigma_max.
        prior_steps: ancestral steps of a draw from the prior; not used where the prior is Gaussian. Elsewhere
            16 leave the draws about 10 % too narrow (a standard normal as a prior of unknown covariance, exact
            sd 0.707: 0.639 with 16, 0.709 with 64): take 64 there.
        moves: Hamiltonian trajectories of a likelihood step; not used where it has a closed form.
        leaps: gradients of a trajectory.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> DPnP(steps=50).rho_max is None
        True
    """

    reference: ClassVar[str] = (
        "@inproceedings{xu2024provably, title={Provably Robust Score-Based Diffusion Posterior Sampling for "
        "Plug-and-Play Image Reconstruction}, author={Xu, Xingyu and Chi, Yuejie}, booktitle={NeurIPS}, year={2024}}"
    )

    def falling(self, steps: int) -> list[float]:
        """Constant for a fifth of the steps, then geometrically."""
        flat = steps // 5
        return [max(0, i + 1 - flat) / (steps - flat) for i in range(steps)]


@final
@dataclass(frozen=True)
class DAPS(Method):
    """Decoupled annealing posterior sampling (Zhang et al. 2024, arXiv 2407.01521, algorithm 1).

    Each step draws a clean state ``z`` from a Gaussian guess of ``p(z0 | x)`` times the likelihood, and adds
    fresh noise of the next level. The draw is in closed form for linear operators and Gaussian noise, and by
    Hamiltonian trajectories elsewhere, where the published code takes unadjusted Langevin steps of a length
    set by hand.

    In the setting of `PnPDM` the default was at the floor of every figure. ``rule="published"`` is biased by
    construction: with 100 steps the means were 0.20 posterior standard deviations off (rms), the standard
    deviations 0.94 to 1.47 of the exact ones, and W2 2.7 times its floor; with 200 steps and tempering = 0.2,
    0.15, 0.19 to 1.34, and 2.0.

    The weights of modes far apart freeze as sigma falls: on a mixture of 25 Gaussians with one datum (two
    problems, 300 draws) the sliced W1 distance was 13 and 30 times that of two exact sets.

    Args:
        rule: the guess of ``p(z0 | x)``. "moments": ``N(D, Cov[z0 | x])``, with the prior's own covariance
            where it does not depend on x, else that of the fitted Gaussian, else that of a Gaussian of
            variance one; exact for Gaussian priors in any number of steps. "published": ``N(x0, sigma^2 C)``
            around the end ``x0`` of the probability-flow ODE, which is neither the mean of ``p(z0 | x)`` nor
            its width.
        steps: number of noise levels; ``Posterior.sample(steps=...)`` goes before.
        tempering: factor on the sd of the noise in the likelihood. 1 is Bayes' rule; the published settings
            for pictures come to 0.2.
        ode_steps: Euler steps to ``x0``, for "published".
        moves: Hamiltonian trajectories of a likelihood step; not used where it has a closed form.
        leaps: gradients of a trajectory.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> DAPS(rule="published", tempering=0.2, steps=200).ode_steps
        5
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    reference: ClassVar[str] = (
        "@inproceedings{zhang2025improving, title={Improving Diffusion Inverse Problem Solving with Decoupled Noise "
        "Annealing}, author={Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, "
        "Anima and Song, Yang}, booktitle={CVPR}, year={2025}}"
    )
    rule: str = "moments"
    steps: int = 100
    tempering: float = 1.0
    ode_steps: int = 5
    moves: int = 2
    leaps: int = 10

    def __post_init__(self) -> None:
        _counts(self, "steps", "ode_steps", "moves", "leaps")
        if self.rule not in ("moments", "published"):
            raise InputError(
                "rule", expected="'moments' or 'published'", got=repr(self.rule), fix="choose one"
            )
        if not (are_numbers(self.tempering) and 0 < self.tempering < math.inf):
            raise InputError(
                "tempering", expected="a positive number", got=repr(self.tempering), fix="1 is Bayes' rule"
            )

    def draw(self, run: Run) -> torch.Tensor:
        """Anneal every row from noise to data."""
        prior, steps = run.prior, self.steps if run.steps is None else run.steps
        sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
        step = self._likelihood(run)
        out = []
        for rows in run.rows():
            x, z = sigmas[0] * prior.noise(rows.streams), None
            for i in run.bar(range(steps)):
                centre = self._centre(run, x, sigmas[i])
                # where x came from is, once the chain has settled, a draw of what is drawn here
                start = centre if z is None or self.rule == "published" else z
                z = checked(step(start, centre, sigmas[i], rows), i, sigmas[i])
                x = z + sigmas[i + 1] * prior.noise(rows.streams)
            out.append(x)
        return torch.cat(out)

    def _likelihood(self, run: Run) -> LikelihoodStep:
        name, covariance = "sigma^2 C", multiples(run.prior.reference)
        if self.rule == "moments":
            name, covariance = _width(run.prior)
        run.notes["denoising_covariance"] = name
        return likelihood_step(run, covariance, moves=self.moves, leaps=self.leaps, tempering=self.tempering)

    def _centre(self, run: Run, x: torch.Tensor, sigma: float) -> torch.Tensor:
        if self.rule == "moments":
            return run.denoise(x, sigma)
        return _descend(Euler(), run, x, sigma, None, self.ode_steps)


def _from_level(run: Run, z: torch.Tensor, sigma: float, rows: Rows, steps: int) -> torch.Tensor:
    """A draw of ``p(z0 | z0 + sigma n = z)``; an ODE would give the right law of all draws, but not given ``z``."""
    cov = run.prior.covariance(sigma)
    if cov is None:
        return _descend(Ancestral(), run, z, sigma, rows, steps)
    white = rows.streams.normal(cov.white_shape, dtype=z.dtype, device=z.device)
    return run.denoise(z, sigma) + cov.sqrt(white)


def _descend(
    solver: Ancestral | Euler, run: Run, z: torch.Tensor, sigma: float, rows: Rows | None, steps: int
) -> torch.Tensor:
    """From a level to 0 along the prior's own path."""
    prior = run.prior
    if steps < 2 or sigma <= prior.sigma_min:
        return run.denoise(z, sigma)

    def noise() -> torch.Tensor:
        assert rows is not None  # only the stochastic solver asks
        return prior.noise(rows.streams)

    sigmas = Karras().sigmas(steps, prior.sigma_min, sigma)
    return solver.integrate(run.denoise, z, sigmas, noise, lambda steps: steps)


def _width(prior: Prior) -> tuple[str, Callable[[float], Covariance]]:
    """The name of what stands for ``Cov[z0 | z]``, and its function of the level."""

    def known(of: Callable[[float], Covariance | None], sigma: float) -> Covariance:
        cov = of(sigma)
        assert cov is not None  # asked below
        return cov

    if prior.covariance(prior.sigma_max) is not None:
        return "exact", partial(known, prior.covariance)
    if prior.gaussian_covariance(prior.sigma_max) is not None:
        return "gaussian", partial(known, prior.gaussian_covariance)
    variance = 1.0 / float(prior.reference.variance().mean())
    return "unit", lambda sigma: multiple(prior.reference, sigma**2 * variance / (variance + sigma**2))


def _zeros(prior: Prior, rows: Rows) -> torch.Tensor:
    return torch.zeros((len(rows.cases), *prior.space.shape), dtype=prior.dtype, device=prior.device)


def _counts(method: Method, *names: str) -> None:
    for name in names:
        check_count(name, getattr(method, name))
