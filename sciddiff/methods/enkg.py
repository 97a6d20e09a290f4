"""Diffusion with an ensemble Kalman step at every noise level, for operators of which only values are known.

`KalmanDiffusion` draws ``x0 ~ p(x0 | x_s)`` around ``D``, moves it by ``K (y + e - G(x0))`` with the gain of an ensemble,
``K = C B^T (R + B C B^T)^-1``, and takes the ancestral step ``x_t = x0 + r (x_s - x0) + t sqrt(1 - r) n``, ``r = (t/s)^2``.
`EnKG` is the method that was published, which knows no R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.errors import InputError
from sciddiff.methods.analysis import Seen
from sciddiff.methods.base import Run
from sciddiff.methods.kalman import (
    AnalysisMethod,
    EnsembleMethod,
    are_numbers,
    check_least,
    predict,
    simulate,
    survivors,
)
from sciddiff.posterior import chunks
from sciddiff.random import Streams
from sciddiff.solvers import Ancestral, Euler, Karras, Solver
from sciddiff.solvers.base import checked

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["EnKG", "KalmanDiffusion"]

_CHOICES = ("exact", "gaussian", "rollout")


@final
@dataclass(frozen=True)
class KalmanDiffusion(AnalysisMethod):
    """A reverse diffusion of an ensemble, with a noise-aware Kalman analysis of ``p(x0 | x)`` at every level.

    At every noise level each member ``x`` draws one ``x0`` from ``p(x0 | x)``; both ``D(x)`` and ``x0`` go through the
    operator; what ``x0`` and its prediction scatter about those of ``D`` gives the gain, and the member that data
    have moved makes the next state. The first level has no noise to start from: there ``x0`` is a draw
    of the prior, so that one step is `EnsembleKalman`, and more follow the prior where it is not Gaussian.
    For a Gaussian prior and a linear operator the law tends to the posterior as the ensemble grows, with any
    number of steps, and its error falls as ``J^-1/2``: with 1000 members, 64 values of a series and 16 data with
    errors of 0.3 prior standard deviations the means were off by 0.049 posterior standard deviations (rms) in 16
    steps, 0.078 in 4 and 0.086 in 1, where exact draws are off by 0.032; with 64 members by 0.20, 0.33 and 0.39.
    Standard deviations were right to 0.4 % in 16 steps at 64 members, and 8 % too small in 1.

    Elsewhere one gain serves all members, which is not the posterior: on 25-mode mixtures (8 values, 2 data, 500
    members) the sliced W1 distance was 2.9 where `EnsembleKalman` had 3.3 and exact draws 0.16.

    Failing members are left out as in `EnsembleKalman`. ``O(J^2 (d + m))`` a level beside the simulations,
    two a member and level but one at the first.

    Args:
        ensemble: least number of members; J is that or n, whichever is more.
        steps: number of analyses, one a noise level.
        spread: how x0 is drawn; None takes the prior's best of these:

            - "exact": ``D`` and a Gaussian with the prior's own covariance, for Gaussian priors;
            - "gaussian": the same with the covariance of the Gaussian that was fitted to the prior;
            - "rollout": ancestral steps down to 0, for any prior; its forwards are ``rollout`` a draw. Biased by few
              steps: with 8 analyses and 16 steps variances were up to 17 % too small (6 values, 4 data, 250 members).
        rollout: number of those steps.
        analysis: how data move the ensemble: `Perturbed`, `SquareRoot`, `Localised` or `Tapered`.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite, or a simulation whose operator does not allow it.

    Example:
        >>> KalmanDiffusion(steps=8).steps
        8
    """

    takes: ClassVar[frozenset[str]] = frozenset({"solver"})
    reference: ClassVar[str] = (
        "@article{burgers1998analysis, title={Analysis Scheme in the Ensemble {K}alman Filter}, "
        "author={Burgers, Gerrit and van Leeuwen, Peter Jan and Evensen, Geir}, "
        "journal={Monthly Weather Review}, volume={126}, number={6}, pages={1719--1724}, year={1998}}"
    )
    steps: int = 16
    spread: str | None = None
    rollout: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("steps", self.steps, 1)
        check_least("rollout", self.rollout, 1)
        if self.spread not in (None, *_CHOICES):
            raise InputError(
                "spread", expected=f"one of {_CHOICES} or None", got=repr(self.spread), fix="leave it out"
            )

    def choice(self, posterior: Posterior) -> str:
        """How x0 is drawn on this posterior."""
        if self.spread is not None:
            return self.spread
        prior = posterior.prior
        if prior.covariance(prior.sigma_max) is not None:
            return "exact"
        fitted = not prior.exact and prior.gaussian_covariance(prior.sigma_max) is not None
        return "gaussian" if fitted else "rollout"

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit the posterior, None if it does."""
        prior, choice = posterior.prior, self.choice(posterior)
        known = {"exact": prior.covariance, "gaussian": prior.gaussian_covariance}.get(choice)
        if known is not None and known(prior.sigma_max) is None:
            return f"the prior has no covariance for spread={choice!r}"
        return super().misfit(posterior)

    def carry(self, run: Run, case: int, size: int) -> torch.Tensor:
        """From draws of the prior, analysed, down the noise levels."""
        prior = run.prior
        run.notes["spread"] = self.choice(run.posterior)
        errors = run.ensemble(case, size, purpose="perturbation").streams
        noises = run.ensemble(case, size, purpose="kalman diffusion").streams
        seen, x0, d = Seen(run.posterior, case), run.prior_draws(case, size), None
        # the last level is left out: below it draws differ by less than a sampler resolves
        inner = Karras().sigmas(self.steps + 1, prior.sigma_min, prior.sigma_max)[1:-2]
        levels, z = [math.inf, *inner, 0.0], x0
        for i in run.bar(range(self.steps)):
            s, t = levels[i], levels[i + 1]
            if i > 0:
                d, x0 = self._draw(run, z, s, noises)
            forecast, alive = predict(run, seen, x0, errors, d)
            x0 = self.move(forecast, 1.0, alive, x0)
            checked(x0[alive], i, s)
            r = (t / s) ** 2
            z = torch.lerp(x0, z, r)
            if t > 0:
                z = z + t * math.sqrt(1 - r) * prior.noise(noises)
        return z

    def _draw(
        self, run: Run, z: torch.Tensor, sigma: float, streams: Streams
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``D`` and a draw of ``p(x0 | x)`` around it, for every member."""
        prior, choice = run.prior, self.choice(run.posterior)
        d = _forward(run, z, sigma)
        if choice == "rollout":
            return d, _solve(run, Ancestral(), z, sigma, self.rollout, streams)
        cov = prior.covariance(sigma) if choice == "exact" else prior.gaussian_covariance(sigma)
        assert cov is not None  # misfit
        white = streams.normal(cov.white_shape, dtype=prior.dtype, device=prior.device)
        return d, d + cov.sqrt(white)


@final
@dataclass(frozen=True)
class EnKG(EnsembleMethod):
    """Ensemble Kalman diffusion guidance, as published (Zheng et al. 2024, arXiv 2409.20175, algorithm 1).

    At every level, but the first and last twentieth, each member is solved down to 0, ``x0_j``, simulated, and moved by
    ``- guidance / |C| sum_k C_jk (x_k - mean)`` with ``C_jk = <G(x0_j) - y, G(x0_k) - mean> / J``, ``|C|`` its Frobenius
    norm; then comes one Euler step of the probability flow. The noise of the data appears nowhere: the
    result is an estimate and not a draw of the posterior. On the Gaussian series of `KalmanDiffusion` 1000 members
    were off by 2.3 posterior standard deviations in the mean (rms), and their standard deviations were 0.38 of
    the exact ones; on 6 values with 4 data variances were 3 times the exact ones. `KalmanDiffusion` is calibrated.

    Args:
        ensemble: least number of members; J is that or n, whichever is more.
        steps: number of noise levels above 0.
        guidance: length of a correction.
        repeats: corrections a level.
        rollout: most Euler steps of a solve down to 0; there are ``1 + (steps - i) // 4`` of level i, if fewer.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite, or a simulation whose operator does not allow it.

    Example:
        >>> EnKG(ensemble=1024).guidance
        2.0
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    reference: ClassVar[str] = (
        "@article{zheng2024ensemble, title={Ensemble {K}alman Diffusion Guidance: A Derivative-free Method for Inverse Problems}, "
        "author={Zheng, Hongkai and Chu, Wenda and Wang, Austin and Kovachki, Nikola and Baptista, Ricardo and Yue, Yisong}, "
        "journal={arXiv preprint arXiv:2409.20175}, year={2024}}"
    )
    steps: int = 80
    guidance: float = 2.0
    repeats: int = 2
    rollout: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("steps", 2), ("repeats", 1), ("rollout", 1)):
            check_least(name, getattr(self, name), least)
        if not (are_numbers(self.guidance) and 0 < self.guidance < math.inf):
            raise InputError("guidance", expected="a positive number", got=repr(self.guidance), fix="2.0")

    def carry(self, run: Run, case: int, size: int) -> torch.Tensor:
        """From noise down the levels, corrected on the way."""
        prior, n = run.prior, self.steps
        streams = run.ensemble(case, size).streams
        sigmas, seen = Karras().sigmas(n, prior.sigma_min, prior.sigma_max), Seen(run.posterior, case)
        z = prior.sigma_max * prior.noise(streams)
        for i in run.bar(range(n)):
            s, t = sigmas[i], sigmas[i + 1]
            for _ in range(self.repeats if 0.05 * n < i < 0.95 * n else 0):
                depth = min(1 + (n - i) // 4, self.rollout)
                alive, x = self._corrected(run, seen, z, _solve(run, Euler(), z, s, depth, streams))
                z = torch.full_like(z, math.nan)
                z[alive] = checked(x, i, s)
            live = _live(z)
            z = torch.lerp(_forward(run, z, s), z, t / s)
            checked(z[live], i, s)
        return z

    def _corrected(
        self, run: Run, seen: Seen, z: torch.Tensor, x0: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which members live, ``(J,)``, and those, moved against their misfits."""
        predicted = simulate(run, x0)
        alive = survivors(run, predicted)
        g, x = seen.pick(predicted)[alive], z[alive].flatten(1)
        c = (g - seen.y) @ (g - g.mean(0)).T / len(g)
        norm = c.norm()
        # members that agree in every prediction, or all fit, say nothing of where to go
        if norm != 0:
            x = x - (self.guidance / norm * c).to(x) @ (x - x.mean(0))
        return alive, x.reshape(-1, *z.shape[1:])


def _forward(run: Run, z: torch.Tensor, sigma: float) -> torch.Tensor:
    """``D`` of the members that live, NaN for the others."""
    out, live = torch.full_like(z, math.nan), _live(z)
    for part in chunks(len(live), run.prior.space.size, run.chunk):
        rows = live[part.start : part.stop]
        out[rows] = run.denoise(z[rows], sigma)
    return out


def _solve(
    run: Run, solver: Solver, z: torch.Tensor, sigma: float, steps: int, streams: Streams
) -> torch.Tensor:
    """The members that live, solved from ``sigma`` down to 0, NaN for the others."""
    prior, live = run.prior, _live(z)
    levels = [sigma, 0.0]
    if steps > 1 and sigma > prior.sigma_min:
        levels = Karras().sigmas(steps, prior.sigma_min, sigma)

    def noise() -> torch.Tensor:
        return prior.noise(streams)[live]

    def denoise(x: torch.Tensor, s: float) -> torch.Tensor:
        return _forward(run, x, s)

    out = torch.full_like(z, math.nan)
    out[live] = solver.integrate(denoise, z[live], levels, noise, iter)
    return out


def _live(z: torch.Tensor) -> torch.Tensor:
    """Numbers of the members that live."""
    return torch.nonzero(torch.isfinite(z.flatten(1)).all(1))[:, 0]
