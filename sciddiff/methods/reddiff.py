"""RED-diff: descend ``-log p(y | mu)`` and the prior's pull ``mu - D(mu + sigma n)`` at falling noise levels.

The variational family is a point, ``q = N(mu, 0)``, so that draws scatter about a mode and tell no spread.
With ``mu = F w`` and ``F F^T = C`` the descent is in ``w``: elementwise steps then never leave the range of C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from sciddiff.errors import InputError
from sciddiff.methods.base import Method, Rows, Run, likelihood_gradient
from sciddiff.methods.pigdm import not_mean
from sciddiff.priors.base import Prior
from sciddiff.priors.paths import VP
from sciddiff.random import Streams
from sciddiff.solvers.base import checked

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["REDDiff"]

_FORMS = ("map", "published")
_PROBES = 64


@final
@dataclass(frozen=True)
class REDDiff(Method):
    """RED-diff (Mardani et al. 2023, arXiv 2305.04391, algorithm 1): Adam on ``mu``, one noise level a step.

    - "map": ``grad = -grad log p(y | mu) + C^+ (mu - D)/sigma^2``, with the true likelihood for any noise, started
      for every draw from noise of its own. The fixed point is a maximum of ``log p(y | mu) + E_n[log p_sigma(mu +
      sigma n)]``, with ``p_sigma`` the prior smoothed by noise of level ``sigma``; the steps shrink to 0.
    - "published": ``grad = v A^T (y - A mu) + lam C^+ (mu - D)``, with sums and not means over values and draws. The
      noise's sd is not used: ``v/lam`` is a temperature. On the paper's coordinate ``lam sigma_t/alpha_t (eps_hat - eps)``
      is the same as ``lam (mu - D)``. The misfit is measured in units of what one sd of reference noise
      does to the data, which for masks is the misfit itself, so that ``v`` has no units. Noise whose mean is not ``A x``,
      such as events, is refused.

    A point by construction: its spread is not that of the posterior. On a linear Gaussian series (64 times, 16
    observed) with the exact denoiser the means were off by 0.005 (map) and 0.13 (published) posterior standard
    deviations (rms), and the standard deviations 0 and 0.4 of the exact ones. Draws of "map" that are not equal where
    the posterior has one mode have not converged: a field of 16 by 16 took 2000 steps.

    Args:
        form: "map" or "published".
        steps: of Adam, each a likelihood gradient and two forwards (map, at opposite noise) or one (published);
            ``Posterior.sample(steps=...)`` goes before.
        rate: Adam's step, in normalised units; it falls to 0 by a cosine in "map".
        weight: ``lam`` of "published".
        data_weight: ``v`` of "published".
        sigma: last noise level of "map", which it stays at for half of the steps.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite.

    Example:
        >>> REDDiff(form="published").weight
        0.25
    """

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    reference: ClassVar[str] = (
        "@inproceedings{mardani2024variational, title={A Variational Perspective on Solving Inverse Problems with "
        "Diffusion Models}, author={Mardani, Morteza and Song, Jiaming and Kautz, Jan and Vahdat, Arash}, "
        "booktitle={ICLR}, year={2024}}"
    )
    form: str = "map"
    steps: int = 1000
    rate: float = 0.1
    weight: float = 0.25
    data_weight: float = 1.0
    sigma: float = 0.05

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise InputError("form", expected=f"one of {_FORMS}", got=repr(self.form), fix="choose one")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise InputError(
                "steps", expected="an int of at least 2", got=repr(self.steps), fix="leave it out"
            )
        for name in ("rate", "weight", "data_weight", "sigma"):
            v = getattr(self, name)
            if isinstance(v, bool) or not (isinstance(v, (int, float)) and 0 < v < math.inf):
                raise InputError(name, expected="a positive number", got=repr(v), fix="leave it out")

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        return super().misfit(posterior) or (not_mean(posterior) if self.form == "published" else None)

    def draw(self, run: Run) -> torch.Tensor:
        """Every row by its own descent, on noise of its own."""
        steps = self.steps if run.steps is None else run.steps
        run.notes["steps"] = steps
        pull = _published(self, run) if self.form == "published" else _mode(run)
        return torch.cat([self._descend(run, rows, steps, pull) for rows in run.rows()])

    def _descend(self, run: Run, rows: Rows, steps: int, pull: _Pull) -> torch.Tensor:
        prior, reference = run.prior, run.prior.reference
        w = torch.zeros((len(rows.streams), *reference.white_shape), dtype=prior.dtype, device=prior.device)
        if self.form == "map":
            # a start of its own for every draw, so that draws find different modes where there are some
            w += rows.streams.normal(reference.white_shape, dtype=prior.dtype, device=prior.device)
            w /= math.sqrt(float(reference.variance().mean()))
        adam = torch.optim.Adam([w], lr=self.rate, betas=(0.9, 0.99))
        levels = self._levels(prior, steps)
        for i in run.bar(range(steps)):
            sigma = levels[i]
            mu, n = reference.sqrt(w), sigma * prior.noise(rows.streams)
            d = run.denoise(mu + n, sigma)
            if self.form == "map":
                # opposite noise: what is odd in it, which a small sigma would blow up, drops out
                d = 0.5 * (d + run.denoise(mu - n, sigma))
                adam.param_groups[0]["lr"] = 0.5 * self.rate * (1 + math.cos(math.pi * i / steps))
            w.grad = reference.sqrt_adjoint(pull(mu, reference.solve(mu - d), sigma, rows.cases))
            adam.step()
            checked(w, i, sigma)
        return reference.sqrt(w)

    def _levels(self, prior: Prior, steps: int) -> list[float]:
        """Uniform in the time of the paper's path, falling."""
        if self.form == "published":
            return _path(prior.sigma_max, prior.sigma_min, steps)
        low = max(prior.sigma_min, self.sigma)
        held = steps // 2
        return _path(prior.sigma_max, low, steps - held) + [low] * held


_Pull = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]
"""``(mu, C^+ (mu - D), sigma, cases)`` to the gradient of the loss in ``mu``."""


def _mode(run: Run) -> _Pull:
    def pull(mu: torch.Tensor, away: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        return away / sigma**2 - likelihood_gradient(run, mu, cases)

    return pull


def _published(method: REDDiff, run: Run) -> _Pull:
    v = method.data_weight / _gain(run)

    def pull(mu: torch.Tensor, away: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
        return method.weight * away + v * _misfit_gradient(run, mu, cases)

    return pull


def _misfit_gradient(run: Run, mu: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
    """Gradient of ``|y - A(m + S mu)|^2 / 2``, a sum over the values of every row."""
    prior, observations = run.prior, run.posterior.observations
    with torch.enable_grad():
        x = prior.normalisation.physical(mu).detach().requires_grad_()
        means = [o.operator.apply(x) for o in observations]
    run.cost.operator_calls += 2 * len(mu)
    residuals = [-o.residual(mean.detach(), cases) for o, mean in zip(observations, means, strict=True)]
    (gradient,) = torch.autograd.grad(means, x, residuals)
    return prior.normalisation.scale.to(gradient) * gradient


def _gain(run: Run) -> float:
    """Mean square of what one sd of reference noise does to the data, over that to the state."""
    prior = run.prior
    noise = prior.noise(Streams(run.seed, range(_PROBES), purpose="RED-diff gain"))
    x = prior.normalisation.physical(torch.cat([noise, torch.zeros_like(noise[:1])]))
    run.cost.operator_calls += len(x) * len(run.posterior.observations)
    means = torch.cat([o.operator.apply(x).flatten(1) for o in run.posterior.observations], 1)
    return float((means[:-1] - means[-1]).square().mean() / noise.square().mean())


def _path(high: float, low: float, steps: int) -> list[float]:
    """``sigma_t/alpha_t`` at times that fall evenly."""
    path = VP()
    ends = torch.tensor([min(high, path.levels[1]), low], dtype=torch.float64)
    start, end = path.time(ends).tolist()
    return path.ratio(torch.linspace(start, end, steps, dtype=torch.float64)).tolist()
