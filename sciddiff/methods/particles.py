"""Twisted sequential Monte Carlo: weighted particles down a chain of noise levels, right as their number grows.

A chain ``prod p(z_t | z_s)`` stands for the prior, and a twist ``psi_t(z) ~ p(y | z_t = z)`` for data that are still
to be met. Particles step by a proposal q, and a step weighs ``p(z_t | z_s) psi_t(z_t) / (q(z_t | z_s) psi_s(z_s))``,
with ``p(y | A(z0))`` as the last twist. The weights of all steps multiply to ``p(y | A(z0)) prod p/q``: whatever the
twists and proposals, the weighted particles tend to the posterior under the chain, and their mean weight to ``p(y)``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, final

import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods.base import GuidedDenoiser, Method, Run
from sciddiff.methods.linearised import Sited
from sciddiff.methods.mmps import MMPS
from sciddiff.methods.pigdm import missing_gaussian
from sciddiff.methods.twists import Conjugate, Look, Moments, Observed, Shifted, guided_by, tempered
from sciddiff.posterior import chunks
from sciddiff.random import Streams
from sciddiff.solvers import Exponential, Karras
from sciddiff.solvers.base import checked

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["TDS", "MCGDiff", "Particles"]


class Twist(Protocol):
    """The twist and the proposal of one case.

    Attributes:
        observed: the observations of the case.
        normals: how many standard normals a step takes.
    """

    observed: Observed
    normals: int

    def look(self, z: torch.Tensor, sigma: float) -> Look:
        """What is known at ``z``, with ``log psi``."""

    def step(
        self, z: torch.Tensor, look: Look, s: float, t: float, normals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A draw ``z'`` of the proposal and ``log p(z' | z) - log q(z' | z) - log psi_s(z)``, ``(rows,)``."""


class _Filter(Method):
    """What particle methods share: the chain of levels, the weights and the resampling."""

    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    interacts: ClassVar[bool] = True
    particles: int
    steps: int
    threshold: float

    def __post_init__(self) -> None:
        for name in ("particles", "steps"):
            _whole(name, getattr(self, name), 2)
        if isinstance(self.threshold, bool) or not 0 <= self.threshold <= 1:
            raise InputError(
                "threshold",
                expected="a share of the particles, from 0 (never resample) to 1",
                got=repr(self.threshold),
                fix="0.5 is a good start",
            )

    @abstractmethod
    def twist(self, run: Run, observed: Observed) -> Twist:
        """The twist and the proposal of a case."""

    def levels(self, run: Run) -> list[float]:
        """The noise levels."""
        return Karras().sigmas(run.steps or self.steps, run.prior.sigma_min, run.prior.sigma_max)

    def draw(self, run: Run) -> torch.Tensor:
        """One system of particles for every case."""
        notes: list[dict[str, float]] = []

        def one(case: int) -> torch.Tensor:
            z, found = self._filter(run, case)
            notes.append(found)
            return z

        z = run.per_case(one)
        evidence = [n["log_evidence"] for n in notes]
        run.notes |= {
            "particles": max(run.n, self.particles),
            "steps": run.steps or self.steps,
            "log_evidence": evidence[0] if len(evidence) == 1 else evidence,
            "ess": min(n["ess"] for n in notes),
            "resampled": max(int(n["resampled"]) for n in notes),
            "unique_ancestors": min(n["unique_ancestors"] for n in notes),
        }
        return z

    def _filter(self, run: Run, case: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The draws of a case, ``(n, *shape)``, from the highest level to 0."""
        prior, size = run.prior, max(run.n, self.particles)
        sigmas = self.levels(run)
        streams = run.ensemble(case, size, purpose="particles").streams
        twist = self.twist(run, Observed(run, case))
        # above the highest level nothing is known of z: D is the prior's mean, and z' - D is all noise
        z = torch.zeros((1, *prior.space.shape), dtype=prior.dtype, device=prior.device)
        look, above = twist.look(z, sigmas[0]), math.inf
        system = _System(size, Streams(run.seed, [0], [case], purpose="resampling"), float(look.twist[0]))
        everyone = torch.zeros(size, dtype=torch.long, device=prior.device)
        z, look = z[everyone], look.take(everyone)
        for i in run.bar(range(len(sigmas))):
            t = sigmas[i]
            normals = streams.normal((twist.normals,), dtype=torch.float64, device=prior.device)
            steps, looks, psi = [], [], []
            for part in chunks(size, prior.space.size, run.chunk):
                rows = torch.tensor(part, device=prior.device)
                fresh, gain = twist.step(z[rows], look.take(rows), above, t, normals[rows])
                checked(fresh, i, above)
                steps.append((fresh, gain))
                if t > 0:
                    looks.append(twist.look(fresh, t))
                psi.append(looks[-1].twist + looks[-1].density if t > 0 else twist.observed.log_prob(fresh))
            z = torch.cat([fresh for fresh, _ in steps])
            look = looks[0].join(looks) if looks else look
            system.weigh(torch.cat(psi) + torch.cat([gain for _, gain in steps]), i, t)
            if t > 0 and system.ess[-1] < self.threshold * size:
                rows = system.resample().to(prior.device)
                z, look = z[rows], look.take(rows)
            above = t
        return z[system.draws(run.n).to(prior.device)], system.notes()


@final
@dataclass(frozen=True)
class Particles(_Filter):
    """Twisted sequential Monte Carlo around a guidance, consistent as the particles and the steps grow.

    Around `MMPS` the twist is the likelihood of ``y`` under ``N(D, Sigma)``, the Gaussian with the moments
    of ``p(z0 | z)``, and the chain and the proposal are that Gaussian's own steps, without and with ``y``:
    for a Gaussian prior whose covariance fits in ``V`` (256 directions or fewer) every weight is 1 and the
    draws are exact, in any number of steps. ``Sigma`` is ``Cov[z0 | z]`` on a block Krylov space of the
    directions of the data and isotropic outside, from ``depth * m + 1`` VJPs a particle and step for m
    data, or none with ``MMPS("gaussian")``. Operators that are not linear are taken as linear around ``D``
    for the twist, and noise as Gaussian of its mean and variance there; the last weight holds the true likelihood,
    so that this costs weight and no bias. Events (`noise.Exceeds`) are no such readings: take `TDS`, or this around
    `LocalGaussian`. Any other `GuidedDenoiser` shifts the mean of an ancestral step,
    and the twist is a tempered ``p(y | A(D))``, as in `TDS`.

    Where the prior knows the density of noisy states (exact ones that are not Gaussian, up to 100 dimensions) steps are
    weighed against its own reverse kernel, so that few steps leave no bias; those densities are not counted as
    forwards. Draws are resampled from the particles. Of many modes the share of each is right only as well as the
    particles of a case tell it: take a thousand or more. On the 25-mode mixture of `MCGDiff`'s paper in 8
    dimensions with the exact denoiser, 1000 draws of 4000 particles in 25 steps were 1.27, 1.24 and 1.09 times
    as far from exact ones as those are from each other (sliced W1 over the median of exact pairs, 20 problems each
    with 1, 2 and 4 data; 275, 451 and 830 VJPs a draw), where exact draws themselves got 1.08, 1.33 and 1.07.
    Where a curved operator has several answers the twist sees one of them:
    take more steps and more particles.

    Args:
        guidance: what leans the proposal to ``y``.
        particles: least number of particles of a case; their number is that or n, whichever is more.
        steps: number of noise levels above 0; ``Posterior.sample(steps=...)`` goes before.
        threshold: resample where the effective sample size falls below that share of the particles.
        depth: blocks of the Krylov space; 1 is cheapest, from 2 on ``Cov B^T`` is exact.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a particle becomes non-finite, or ``y`` is impossible under all of them.
        ConvergenceError: if ``R + B Cov B^T`` is not positive definite to rounding.

    The result records ``log_evidence``, the log of an unbiased estimate of ``p(y)`` under the chain;
    ``ess``, the least effective sample size as a share of the particles; ``resampled``, how often; and
    ``unique_ancestors``, the share of the draws that are from different particles at the start.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"i": 2})
        >>> prior = sd.GaussianPrior(space, sd.covariance.white((2,)))
        >>> posterior = prior.given([1.0, 0.0], sd.operators.Identity(space), sd.noise.Gaussian(1.0))
        >>> draws = posterior.sample(8, method=Particles(steps=2), seed=0)
        >>> round(draws.attrs["log_evidence"], 3)  # log N(y; 0, 2 I)
        -2.781
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    reference: ClassVar[str] = (
        "@inproceedings{wu2023practical, title={Practical and Asymptotically Exact Conditional Sampling in Diffusion Models}, "
        "author={Wu, Luhuan and Trippe, Brian L. and Naesseth, Christian A. and Blei, David M. and Cunningham, John P.}, "
        "booktitle={NeurIPS}, year={2023}}"
    )
    guidance: GuidedDenoiser = field(default_factory=MMPS)
    particles: int = 256
    steps: int = 50
    threshold: float = 0.5
    depth: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _whole("depth", self.depth, 1)
        if not isinstance(self.guidance, GuidedDenoiser):
            raise InputError(
                "guidance",
                expected="a GuidedDenoiser such as MMPS()",
                got=repr(self.guidance),
                fix="pass an instance, MMPS() and not MMPS",
            )

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        reason = super().misfit(posterior)
        if reason is not None or not isinstance(self.guidance, MMPS):
            return reason or self.guidance.misfit(posterior)
        reason = missing_gaussian(self.guidance.choice(posterior), posterior)
        if reason is not None:
            return reason
        for o in posterior.observations:
            if isinstance(o.noise, Sited):
                return f"{o.noise!r} tells of an event, which no Gaussian reading is like; TDS and Particles(LocalGaussian()) take it"
            variance = None if o.noise.gaussian else o.noise.variance(torch.ones_like(o.y[:1]))
            if not o.noise.gaussian and (variance is None or not bool(variance.isfinite().all())):
                return f"{o.noise!r} has no finite variance; TDS takes it"
        return None

    def levels(self, run: Run) -> list[float]:
        """Geometric around the MMPS steps: they carry the moments, and modes part at every scale.

        Nine tenths of the steps are above ``100 sigma_min``. An exact prior starts at ``sigma_max / 4``, 5 of its
        standard deviations by default: what is not Gaussian above that is not worth steps.
        """
        if not isinstance(self.guidance, MMPS):
            return super().levels(run)
        steps, low = run.steps or self.steps, run.prior.sigma_min
        high = run.prior.sigma_max / (4 if run.prior.exact else 1)
        if steps < 4:
            return Exponential().sigmas(steps, low, high)
        between = min(100 * low, math.sqrt(low * high))
        few = max(1, steps // 10)
        first = Exponential().sigmas(steps - few, between, high)[:-1]
        return first + Exponential().sigmas(few + 1, low, between)[1:]

    def twist(self, run: Run, observed: Observed) -> Twist:
        """That of the guidance."""
        if isinstance(self.guidance, MMPS):
            choice = self.guidance.choice(run.posterior)
            run.notes["denoising_covariance"] = choice
            return Moments(run, observed, choice, self.depth, self.guidance.gamma)
        return Shifted(run, observed, guided_by(run, self.guidance), tempered(run, observed))

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        mine = {k: getattr(self, k) for k in ("particles", "steps", "threshold", "depth")}
        return {"guidance": {"method": type(self.guidance).__name__, **self.guidance.settings()}, **mine}


@final
@dataclass(frozen=True)
class TDS(_Filter):
    """The twisted diffusion sampler (Wu et al. 2023, arXiv 2306.17775, algorithm 1), for any noise.

    The twist is ``p(y | A(D))``.

    The proposal is an ancestral step whose mean is moved by ``sigma^2 C`` times the gradient of the log
    twist; one VJP a particle and step. The chain is the plain ancestral one: it takes ``z0 = D``, so that
    in few steps its spread is too small, whatever the particles. Where the noise is much smaller than what
    ``z`` tells of ``y``, the twist of the paper is far too sharp at high levels, and nearly all particles
    die.

    Args:
        particles: least number of particles of a case; their number is that or n, whichever is more.
        steps: number of noise levels above 0; ``Posterior.sample(steps=...)`` goes before.
        threshold: resample where the effective sample size falls below that share of the particles.
        temper: raise the twist to the power ``1 / (1 + a)``, with ``a`` the variance of ``A(z0)`` given ``z`` beside that
            of the noise, for a prior of variance one; False is as published.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a particle becomes non-finite, or ``y`` is impossible under all of them.

    Example:
        >>> TDS(particles=1000, steps=100).temper
        True
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    reference: ClassVar[str] = Particles.reference
    particles: int = 256
    steps: int = 50
    threshold: float = 0.5
    temper: bool = True

    def twist(self, run: Run, observed: Observed) -> Twist:
        """The tempered likelihood at ``D``, and its gradient."""
        return Shifted(run, observed, None, tempered(run, observed) if self.temper else lambda sigma: 1.0)


@final
@dataclass(frozen=True)
class MCGDiff(_Filter):
    """Monte Carlo guided diffusion (Cardoso et al. 2023, arXiv 2308.07983): no VJP.

    The twist is ``N(y; B z, R + sigma^2 B C B^T)``.

    The twist takes the noisy state for the clean one, and so the ancestral step, conditioned on it, and its
    weight have closed forms (the fully adapted filter): one forward a particle and step, for linear
    operators and Gaussian noise. The paper does so in the singular basis of ``B``; here it is one system of
    the size of ``y``. The chain is the plain ancestral one, whose spread is too small in few steps.

    Args:
        particles: least number of particles of a case; their number is that or n, whichever is more.
        steps: number of noise levels above 0; ``Posterior.sample(steps=...)`` goes before.
        threshold: resample where the effective sample size falls below that share of the particles.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a particle becomes non-finite.

    Example:
        >>> MCGDiff(particles=1000).steps
        50
    """

    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    reference: ClassVar[str] = (
        "@inproceedings{cardoso2024monte, title={Monte Carlo Guided Diffusion for Bayesian Linear Inverse Problems}, "
        "author={Cardoso, Gabriel and Janati El Idrissi, Yazid and Le Corff, Sylvain and Moulines, Eric}, "
        "booktitle={ICLR}, year={2024}}"
    )
    particles: int = 256
    steps: int = 50
    threshold: float = 0.5

    def twist(self, run: Run, observed: Observed) -> Twist:
        """The likelihood of the noisy state."""
        return Conjugate(run, observed)


@final
class _System:
    """The weights of some particles, and where each of them comes from."""

    def __init__(self, size: int, streams: Streams, log_evidence: float) -> None:
        self.size, self.streams, self.log_evidence = size, streams, log_evidence
        self.log_weights, self.roots = torch.zeros(size, dtype=torch.float64), torch.arange(size)
        self.ess: list[float] = []
        self.resampled, self.unique = 0, 1.0

    def weigh(self, gain: torch.Tensor, step: int, sigma: float) -> None:
        """Multiply the weights by ``exp(gain)``."""
        self.log_weights = self.log_weights + gain.cpu()
        if not math.isfinite(float(self.log_weights.max())):
            raise DivergenceError(
                f"after step {step}, at sigma = {sigma:.4g}, no particle has a finite weight. Check the noise and the "
                "operator, or take more particles or more steps."
            )
        self.ess.append(float(1 / self.log_weights.softmax(0).square().sum()))

    def resample(self) -> torch.Tensor:
        """Which particles live on, with equal weights."""
        picked = self._systematic(self.size)
        self._settle()
        self.roots, self.resampled = self.roots[picked], self.resampled + 1
        return picked

    def draws(self, n: int) -> torch.Tensor:
        """Which particles are the draws, in random order: what resampling leaves is sorted by kin."""
        picked = self._systematic(n)
        self._settle()
        self.unique = len(self.roots[picked].unique()) / n
        return picked[self.streams.uniform((n,), dtype=torch.float64)[0].argsort()]

    def notes(self) -> dict[str, float]:
        """What the result records."""
        return {
            "log_evidence": self.log_evidence,
            "ess": min(self.ess) / self.size,
            "resampled": self.resampled,
            "unique_ancestors": self.unique,
        }

    def _settle(self) -> None:
        self.log_evidence += float(self.log_weights.logsumexp(0)) - math.log(self.size)
        self.log_weights = torch.zeros_like(self.log_weights)

    def _systematic(self, n: int) -> torch.Tensor:
        """One uniform for all: the number of copies is within one of what the weights ask for."""
        u = self.streams.uniform((1,), dtype=torch.float64)[0]
        places = (torch.arange(n) + u) / n
        # equal weights have to give every particle once, which rounding at the steps of the sum would not
        steps = self.log_weights.softmax(0).cumsum(0)
        return torch.searchsorted(steps / steps[-1], places, right=True).clamp(max=self.size - 1)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(name, expected=f"an int of at least {least}", got=repr(value), fix="leave it out")
