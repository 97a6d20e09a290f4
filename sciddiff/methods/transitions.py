"""Transitions: an ancestral or DDIM step of the prior, with the data put in place of what it says of them.

With ``R^-1/2 B C^1/2 = U diag(s) V^T`` the data are ``w_i + N(0, 1/s_i^2)`` in the modes ``w = V^T C^-1/2
z``, in which the reference noise is white. `DDRM`, `DDNM` and `RePaint` act mode by mode; `DiffPIR` solves
for the nearest state. All take ``D`` for ``x0`` and so lose the width of ``p(x0 | x)``: they are biased by
construction.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.covariance import multiple
from sciddiff.errors import InputError
from sciddiff.methods.base import Method, Rows, Run, likelihood_gradient
from sciddiff.methods.kalman import are_numbers, check_least
from sciddiff.methods.likelihood_steps import GaussianStep, groups, missing_patterns, visible
from sciddiff.operators import Gather, Identity
from sciddiff.posterior import check_count
from sciddiff.solvers import Karras
from sciddiff.solvers.base import checked

if TYPE_CHECKING:
    from sciddiff.operators import Operator
    from sciddiff.posterior import Posterior

__all__ = ["DDNM", "DDRM", "DiffPIR", "Modes", "RePaint", "Transition"]

# the most data whose singular vectors are taken: a minute's work
_MOST = 4096
Start = Callable[[float, Rows], torch.Tensor]
Step = Callable[[torch.Tensor, float, float, Rows], torch.Tensor]


@final
@dataclass(frozen=True)
class Plan:
    """What a transition does in one run.

    Attributes:
        start: ``(sigma, rows) -> z`` at the first level.
        step: ``(z, s, t, rows) -> z'`` from level s to t < s; t is 0 on the last step.
        path: from which level to which, counted from sigma_max on; noise is added where the second is higher.
    """

    start: Start
    step: Step
    path: list[tuple[int, int]]


@dataclass(frozen=True)
class Transition(Method):
    """A method that goes from level s to level t with noise of its own."""

    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    steps: int = 100

    @abstractmethod
    def plan(self, run: Run, sigmas: list[float]) -> Plan:
        """What one run does on these levels, the last of which is 0."""

    def draw(self, run: Run) -> torch.Tensor:
        """Step every row from noise to data."""
        prior, steps = run.prior, self.steps if run.steps is None else run.steps
        sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
        plan, out = self.plan(run, sigmas), []
        run.notes["steps"] = steps
        for rows in run.rows():
            z = plan.start(sigmas[0], rows)
            for k in run.bar(range(len(plan.path))):
                s, t = (sigmas[i] for i in plan.path[k])
                if t > s:
                    z = z + math.sqrt(t**2 - s**2) * prior.noise(rows.streams)
                else:
                    z = checked(plan.step(z, s, t, rows), k, s)
            out.append(z)
        return torch.cat(out)


@final
@dataclass(frozen=True)
class DiffPIR(Transition):
    """Plug-and-play restoration (Zhu et al. 2023, arXiv 2305.08995, algorithm 1).

    ``x0 = argmin |y - A z|^2_R + lam |z - D|^2_C / sigma^2``, then a DDIM step to it that renews a share zeta
    of the noise. In closed form for linear operators and Gaussian noise; one gradient step ``D + sigma^2/lam
    C grad log p(y | D)`` elsewhere, as published.

    Biased by construction: lam is a guess of the width of ``p(x0 | x)``. On an Ornstein-Uhlenbeck series (64
    times, 16 observed with sd 0.1 of the prior's) and the exact denoiser, 500 draws of three problems had
    means 0.71 posterior standard deviations off (rms), standard deviations 1.1 to 2.7 of the exact ones, and
    a Gaussian W2 distance of 3.9 times its floor; with lam = zeta = 1 these were 0.17, 0.64 to 0.80, and 1.9.

    Args:
        lam: weight of the denoised state against the data. 1 would be right if ``p(x0 | x)`` had the width
            sigma.
        zeta: share of the noise that is renewed, from 0, where the draws differ by their start alone, to 1.
        steps: number of noise levels; ``Posterior.sample(steps=...)`` goes before.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite; a gradient step may be too long where data are precise.

    Example:
        >>> DiffPIR(lam=8.0, zeta=0.3).steps
        100
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    reference: ClassVar[str] = (
        "@inproceedings{zhu2023denoising, title={Denoising Diffusion Models for Plug-and-Play Image Restoration}, "
        "author={Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu "
        "and Van Gool, Luc}, booktitle={CVPR Workshops}, year={2023}}"
    )
    lam: float = 8.0
    zeta: float = 0.3

    def __post_init__(self) -> None:
        check_least("steps", self.steps, 2)
        if not (are_numbers(self.lam) and 0 < self.lam < math.inf):
            raise InputError("lam", expected="a positive number", got=repr(self.lam), fix="1 to 8 are usual")
        _share("zeta", self.zeta)

    def plan(self, run: Run, sigmas: list[float]) -> Plan:
        """A proximal step of the data, then DDIM."""
        near = self._nearest(run)

        def step(z: torch.Tensor, s: float, t: float, rows: Rows) -> torch.Tensor:
            x0 = near(run.denoise(z, s), s, rows.cases)
            if t == 0:
                return x0
            fresh = run.prior.noise(rows.streams)
            return x0 + t * (math.sqrt(1 - self.zeta) * (z - x0) / s + math.sqrt(self.zeta) * fresh)

        return Plan(_from_noise(run), step, _down(sigmas))

    def _nearest(self, run: Run) -> Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]:
        offers, reference = run.posterior.offers(), run.prior.reference
        if offers["linear"] is None and offers["gaussian"] is None:
            return GaussianStep(run, lambda sigma: multiple(reference, sigma**2 / self.lam)).nearest

        def gradient_step(d: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
            return d + sigma**2 / self.lam * reference.apply(likelihood_gradient(run, d, cases))

        return gradient_step


@dataclass(frozen=True)
class Modal(Transition):
    """A transition that acts on the modes of a linear Gaussian observation."""

    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        reason = super().misfit(posterior)
        size = posterior.linear_gaussian().size
        if reason is None and size > _MOST:
            return f"{size} data are more than the {_MOST} whose singular vectors it takes"
        return reason


@final
@dataclass(frozen=True)
class DDRM(Modal):
    """Denoising diffusion restoration models (Kawar et al. 2022, arXiv 2201.11793, eq. 7 and 8).

    In a mode whose datum has the sd ``tau``, from level s to t: ``(1 - eta_b) d + eta_b y + sqrt(t^2 - (eta_b
    tau)^2) n`` while ``t >= tau``, then ``d + sqrt(1 - eta^2) t (y - d)/tau + eta t n``; elsewhere DDIM(eta).
    The level of the noise is used, and the width of ``p(x0 | x)`` is not: biased by construction. In the
    setting of `DiffPIR` the means were 0.27 posterior standard deviations off (rms), the standard deviations
    0.37 to 1.05 of the exact ones, and W2 2.1 times its floor; with 20 steps, as published, 0.61, 0.80 to
    1.23, and 4.0.

    Args:
        eta: share of the noise that is renewed.
        eta_b: weight of the datum while its noise is below the level.
        steps: number of noise levels; ``Posterior.sample(steps=...)`` goes before.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> DDRM(steps=20).eta
        0.85
    """

    reference: ClassVar[str] = (
        "@inproceedings{kawar2022denoising, title={Denoising Diffusion Restoration Models}, author={Kawar, Bahjat "
        "and Elad, Michael and Ermon, Stefano and Song, Jiaming}, booktitle={NeurIPS}, year={2022}}"
    )
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        check_least("steps", self.steps, 2)
        for name in ("eta", "eta_b"):
            _share(name, getattr(self, name))

    def plan(self, run: Run, sigmas: list[float]) -> Plan:
        """DDIM, with the modes of the data replaced."""
        modes, keep = Modes(run), math.sqrt(1 - self.eta**2)

        def start(sigma: float, rows: Rows) -> torch.Tensor:
            n = sigma * run.prior.noise(rows.streams)
            (y, tau), e = modes.data(rows.cases), modes.analysis(n, rows.cases)
            near = y + (1 - (tau / sigma) ** 2).clamp(min=0).sqrt() * e
            return n + modes.synthesis(torch.where(tau <= sigma, near - e, 0.0), rows.cases)

        def step(z: torch.Tensor, s: float, t: float, rows: Rows) -> torch.Tensor:
            d, n = run.denoise(z, s), run.prior.noise(rows.streams)
            y, tau = modes.data(rows.cases)
            c, e = modes.analysis(d, rows.cases), modes.analysis(n, rows.cases)
            spread = (t**2 - (self.eta_b * tau) ** 2).clamp(min=0).sqrt()
            precise = torch.lerp(c, y, self.eta_b) + spread * e
            noisy = c + keep * t / tau * (y - c) + self.eta * t * e
            z = d + keep * t / s * (z - d) + self.eta * t * n
            return modes.replaced(z, torch.where(tau <= t, precise, noisy), tau < math.inf, rows.cases)

        return Plan(start, step, _down(sigmas))


@final
@dataclass(frozen=True)
class DDNM(Modal):
    """Denoising diffusion null-space models without time travel (Wang et al. 2022, arXiv 2212.00490, algorithm 1).

    ``D`` takes the data's values in the modes that they fix, ``D + lambda A^+ (y - A D)``, and an ancestral
    step follows. With ``noise="used"`` (DDNM+, eq. 17 to 19) a mode whose datum has the sd tau takes the
    largest lambda of at most 1 whose noise, ``(1 - t^2/s^2) lambda tau``, is not more than the step adds, and
    adds only the rest. With "ignored" (DDNM) lambda is 1, and the draws fit the data exactly: right where
    they have no noise.

    Biased by construction: every step takes the same data as if they were measured anew. In the setting of
    `DiffPIR` both had means 0.51 posterior standard deviations off (rms), and W2 4.0 times its floor; the
    standard deviations were 0.08 to 1.47 of the exact ones, and with "ignored" 0 where something was observed.

    Args:
        noise: "used" or "ignored".
        steps: number of noise levels; ``Posterior.sample(steps=...)`` goes before.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> DDNM(noise="ignored").steps
        100
    """

    reference: ClassVar[str] = (
        "@inproceedings{wang2023zeroshot, title={Zero-Shot Image Restoration Using Denoising Diffusion Null-Space "
        "Model}, author={Wang, Yinhuai and Yu, Jiwen and Zhang, Jian}, booktitle={ICLR}, year={2023}}"
    )
    noise: str = "used"

    def __post_init__(self) -> None:
        check_least("steps", self.steps, 2)
        _use(self.noise)

    def plan(self, run: Run, sigmas: list[float]) -> Plan:
        """An ancestral step from the corrected ``D``."""
        modes = Modes(run)

        def step(z: torch.Tensor, s: float, t: float, rows: Rows) -> torch.Tensor:
            d, r = run.denoise(z, s), (t / s) ** 2
            y, tau = modes.data(rows.cases)
            c, w = modes.analysis(d, rows.cases), modes.analysis(z, rows.cases)
            width = t * math.sqrt(1 - r)
            own = torch.zeros_like(tau) if self.noise == "ignored" else (1 - r) * tau
            lam = torch.where(own <= width, 1.0, width / own)
            c = (1 - r) * (c + lam * (y - c)) + r * w
            z = torch.lerp(d, z, r)
            if t > 0:
                n = run.prior.noise(rows.streams)
                rest = (width**2 - (lam * own) ** 2).clamp(min=0).sqrt()
                c, z = c + rest * modes.analysis(n, rows.cases), z + width * n
            return modes.replaced(z, c, tau < math.inf, rows.cases)

        return Plan(_from_noise(run), step, _down(sigmas))


@final
@dataclass(frozen=True)
class RePaint(Modal):
    """RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1), a baseline for masks.

    After every ancestral step what was observed is replaced by the data with noise of the new level. Between
    the jumps the state goes up again by some levels and comes back, which lets the rest fit in. For operators
    that select values: Points on nodes, Mask, Select, Identity. With correlated reference noise what was not
    observed moves along, as the noise's own law has it.

    Biased by construction: the rest is not told of the data within a step. In the setting of `DiffPIR` the
    means were 0.16 posterior standard deviations off (rms), the standard deviations 0 (where observed) to
    1.04 of the exact ones, and W2 1.4 times its floor; with noise="used" 0.25, 0.99 to 1.20, and 1.9.

    Args:
        noise: "ignored", as published: the data with noise of the level t on top, and the draws fit them
            exactly. "used": ``y + sqrt(t^2 - tau^2) n`` while the noise of the data, of sd tau, is below the
            level, and the prior's own step after that, so that the state always has the noise of its level;
            below it nothing is resampled.
        resamplings: how often each stretch is gone through.
        jump: levels of a stretch.
        steps: number of noise levels; ``Posterior.sample(steps=...)`` goes before.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> RePaint(resamplings=2, jump=2).path([4.0, 3.0, 2.0, 1.0, 0.0])
        [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 2), (2, 3), (3, 4)]
    """

    reference: ClassVar[str] = (
        "@inproceedings{lugmayr2022repaint, title={{RePaint}: Inpainting Using Denoising Diffusion Probabilistic "
        "Models}, author={Lugmayr, Andreas and Danelljan, Martin and Romero, Andres and Yu, Fisher and Timofte, Radu "
        "and Van Gool, Luc}, booktitle={CVPR}, year={2022}}"
    )
    noise: str = "ignored"
    resamplings: int = 10
    jump: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "resamplings", "jump"):
            check_count(name, getattr(self, name))
        _use(self.noise)

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        other = [repr(o.operator) for o in posterior.observations if not _selects(o.operator)]
        return super().misfit(posterior) or (f"{other[0]} does not select values" if other else None)

    def path(self, sigmas: list[float], floor: float = 0.0) -> list[tuple[int, int]]:
        """Stretches of ``jump`` levels, counted from the end, gone through again while they end above the floor."""
        steps = len(sigmas) - 1
        path, at = [], 0
        for end in range(steps % self.jump or self.jump, steps + 1, self.jump):
            for again in range(self.resamplings if sigmas[end] >= floor else 1):
                if again:
                    path.append((end, at))
                path += [(i, i + 1) for i in range(at, end)]
            at = end
        return path

    def plan(self, run: Run, sigmas: list[float]) -> Plan:
        """An ancestral step, with the data's values replaced."""
        modes = Modes(run)

        def step(z: torch.Tensor, s: float, t: float, rows: Rows) -> torch.Tensor:
            r, n = (t / s) ** 2, run.prior.noise(rows.streams)
            z = torch.lerp(run.denoise(z, s), z, r) + t * math.sqrt(1 - r) * n
            y, tau = modes.data(rows.cases)
            seen, e = tau < math.inf, modes.analysis(n, rows.cases)
            if self.noise == "ignored":
                return modes.replaced(z, y + t * e, seen, rows.cases)
            c = y + (t**2 - tau**2).clamp(min=0).sqrt() * e
            return modes.replaced(z, c, seen & (tau <= t), rows.cases)

        # without a datum to hold on to, going up and down again would be a walk of the prior, away from the data
        floor = 0.0 if self.noise == "ignored" else modes.highest
        return Plan(_from_noise(run), step, self.path(sigmas, floor))


@final
class Modes:
    """The data in the modes of ``H = R^-1/2 B C^1/2 = U diag(s) V^T``, as many as there are data.

    ``analysis`` is ``diag(1/s) U^T R^-1/2 B``, which gives ``w = V^T C^-1/2 z``, and ``synthesis`` is ``C^1/2
    V``; modes with ``s = 0``, of missing values too, are left out of both. One decomposition for every
    pattern of missing values.
    """

    def __init__(self, run: Run) -> None:
        self.linear, self.reference = run.posterior.linear_gaussian(), run.prior.reference
        run.cost.operator_calls += self.linear.prepare()
        seen, self.pattern = missing_patterns(self.linear)
        half = self.reference.sqrt_adjoint(self.linear.matrix()).flatten(1).double()
        noise = visible(self.linear.noise_matrix.double()[None], seen)
        parts = [_decomposed(half * own[:, None], r) for own, r in zip(seen, noise, strict=True)]
        self.weights = torch.stack([w for w, _ in parts])
        self.tau = torch.stack([tau for _, tau in parts])
        mask, target = self.linear.mask, self.linear.target
        target = target if mask is None else torch.where(mask, target, 0.0)
        self.highest = float(torch.where(self.tau < math.inf, self.tau, 0.0).max())
        self.y = self._weigh(target, torch.arange(len(target), device=target.device))

    def data(self, cases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The data of every mode and their sd, infinite where there are none, ``(rows, modes)``."""
        return self.y[cases], self.tau[self.pattern[cases]].to(self.y)

    def analysis(self, z: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``V^T C^-1/2 z``, ``(rows, modes)``."""
        return self._weigh(self.linear.apply(z), cases)

    def synthesis(self, w: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``C^1/2 V w``, ``(rows, *shape)``."""
        v = torch.empty((len(w), self.linear.size), dtype=w.dtype, device=w.device)
        for i, own in groups(self.pattern[cases]):
            v[own] = (w[own].double() @ self.weights[i]).to(w)
        return self.reference.apply(self.linear.adjoint(v))

    def replaced(
        self, z: torch.Tensor, w: torch.Tensor, where: torch.Tensor, cases: torch.Tensor
    ) -> torch.Tensor:
        """The states with other coefficients in some modes."""
        return z + self.synthesis(torch.where(where, w - self.analysis(z, cases), 0.0), cases)

    def _weigh(self, v: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(v), self.tau.shape[1]), dtype=v.dtype, device=v.device)
        for i, own in groups(self.pattern[cases]):
            out[own] = (v[own].double() @ self.weights[i].T).to(v)
        return out


def _decomposed(half: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``diag(1/s) U^T R^-1/2``, ``(modes, size)``, 0 where s is, and ``1/s``."""
    root = torch.linalg.cholesky(noise)
    u, s, _ = torch.linalg.svd(torch.linalg.solve_triangular(root, half, upper=False), full_matrices=False)
    kept = s > s[0] * max(half.shape) * torch.finfo(s.dtype).eps
    inverse = torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0)
    weights = inverse[:, None] * torch.linalg.solve_triangular(root.T, u, upper=True).T
    return weights, torch.where(kept, inverse, math.inf)


def _down(sigmas: list[float]) -> list[tuple[int, int]]:
    """From every level to the next."""
    return [(i, i + 1) for i in range(len(sigmas) - 1)]


def _from_noise(run: Run) -> Start:
    """Start at the noise of the first level."""
    return lambda sigma, rows: sigma * run.prior.noise(rows.streams)


def _selects(operator: Operator) -> bool:
    """Whether every datum is one value of the state, and no two the same."""
    if isinstance(operator, Gather):
        index = operator.index
        plain = operator.weight is None or bool((operator.weight == 1).all())
        return index.shape[1] == 1 and plain and len(index.unique()) == len(index)
    return isinstance(operator, Identity)


def _share(name: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 <= value <= 1):
        raise InputError(name, expected="a number from 0 to 1", got=repr(value), fix="leave it out")


def _use(noise: str) -> None:
    if noise not in ("used", "ignored"):
        raise InputError("noise", expected="'used' or 'ignored'", got=repr(noise), fix="choose one")
