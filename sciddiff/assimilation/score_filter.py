"""Score filters without training: the prior of every analysis is the ensemble that the model has carried there.

The forecast of members ``x_m`` is seen through noise as a mixture with a known score. With ``z_t = alpha_t x + beta_t n``,

    s(z, t) = sum_m w_m (alpha_t x_m - z) / beta_t^2,    w_m ~ N(z; alpha_t x_m, beta_t^2)

so that any posterior sampler can draw from ``p(x | y) ~ p(x) p(y | x)``, whatever the operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from sciddiff.assimilation.base import Work
from sciddiff.assimilation.filters import EnsembleFilter, check_inflation, inflate
from sciddiff.covariance import dense
from sciddiff.errors import InputError
from sciddiff.methods import Method
from sciddiff.posterior import Observation, check_count
from sciddiff.priors import GaussianMixturePrior

if TYPE_CHECKING:
    from sciddiff.assimilation.models import Assimilation

__all__ = ["EnSF", "kernels"]

_ALPHA_END = 0.05


@final
@dataclass(frozen=True)
class EnSF(EnsembleFilter):
    """The ensemble score filter (Bao, Zhang and Zhang 2024), as published and with the posterior samplers of this library.

    As published (``posterior=None``) each analysis integrates the reverse SDE from noise with the score

        s(z, t) + (1 - t) grad log p(y | z)

    of the mixture of points at the members. The likelihood is taken at the noisy ``z`` and damped by a factor that no
    posterior has, so that the result is not the posterior, however many members and steps there are: for a scalar
    Gaussian forecast of variance 1 and a datum whose noise has variance 1/4, 1 and 4, the gain tends to 0.90, 0.52 and 0.17,
    where Kalman's is 0.80, 0.50 and 0.20, and the variance to 0.13, 0.44 and 0.79, where the posterior's is 0.20, 0.50 and
    0.80. States are measured from the mean of the members in units of the spread of each value, so that the filter
    does not depend on units.

    With ``posterior`` a method of `sciddiff.methods` draws from the posterior of a `GaussianMixturePrior` around the
    members, see `kernels`: for linear operators and Gaussian forecasts that is Kalman's as the ensemble grows.

    Args:
        members: of the ensemble; None, or fewer than draws are asked for: as many as draws.
        posterior: None for the published rule, or a method such as ``MMPS()`` or ``LocalGaussian("gaussian")``.
        steps: of the reverse SDE, or of the method's solver; None: 100, or the solver's own.
        bandwidth: width of the kernels in units of the ensemble's spread, up to 1; None is Silverman's. With 1 the
            prior is one Gaussian. Not used by the published rule.
        limit: largest value of the score of the likelihood, as in the published code; the result counts what was beyond
            as ``limited``.
        inflation: factor of the members' deviations from their mean after every analysis.

    Raises:
        InputError: on settings outside their range.

    Example:
        >>> EnSF(members=40).posterior is None
        True
    """

    reference: ClassVar[str] = (
        "@article{bao2024ensemble, title={An ensemble score filter for tracking high-dimensional nonlinear dynamical "
        "systems}, author={Bao, Feng and Zhang, Zezhong and Zhang, Guannan}, journal={Computer Methods in Applied "
        "Mechanics and Engineering}, volume={432}, pages={117447}, year={2024}}"
    )
    posterior: Method | None = None
    steps: int | None = None
    bandwidth: float | None = None
    limit: float = 1000.0
    inflation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inflation(self.inflation)
        if self.posterior is not None and not isinstance(self.posterior, Method):
            raise InputError(
                "posterior", expected="None or a Method", got=repr(self.posterior), fix="for example MMPS()"
            )
        if self.steps is not None and check_count("steps", self.steps) < 2:
            raise InputError("steps", expected="at least 2", got=self.steps, fix="leave it out")
        if self.bandwidth is not None and not (_number(self.bandwidth) and 0 < self.bandwidth <= 1):
            raise InputError("bandwidth", expected="0 < h <= 1", got=repr(self.bandwidth), fix="leave it out")
        if not (_number(self.limit) and self.limit > 0):
            raise InputError("limit", expected="a positive number", got=repr(self.limit), fix="leave it out")

    def misfit(self, assimilation: Assimilation) -> str | None:
        """Why the method does not fit, None if it does."""
        if self.posterior is None:
            return assimilation.posterior.offers()["differentiable"]
        return None

    def references(self) -> list[str]:
        """Of the filter and of its posterior sampler."""
        return [self.reference, *([] if self.posterior is None else self.posterior.references())]

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.posterior is not None:
            plain["posterior"] = {"method": type(self.posterior).__name__, **self.posterior.settings()}
        return plain

    def update(self, work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
        """Draws given the data of a time, as many as there are members."""
        drawn = self._reverse(work, x, time) if self.posterior is None else self._sample(work, x, time)
        return inflate(drawn, self.inflation)

    def _reverse(self, work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
        """Euler-Maruyama steps of the reverse SDE with the damped score, from t = 1 to 0."""
        mean, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        members = torch.where(scale > 0, (x - mean) / scale, 0.0)
        steps = self.steps or 100
        streams = work.streams("score filter", time)
        z = streams.normal(tuple(x.shape[1:]), dtype=x.dtype, device=x.device)
        for i in range(steps):
            t, dt = 1 - i / steps, 1 / steps
            alpha, alpha_rate = 1 - (1 - _ALPHA_END) * t, -(1 - _ALPHA_END)
            g2 = 1 - 2 * alpha_rate / alpha * t
            score = _mixture_score(z, members, alpha, t)
            score = score + (1 - t) * self._likelihood(work, mean, scale, z, time)
            noise = streams.normal(tuple(x.shape[1:]), dtype=x.dtype, device=x.device)
            z = z - dt * (alpha_rate / alpha * z - g2 * score) + math.sqrt(dt * g2) * noise
        return mean + scale * z

    def _likelihood(
        self, work: Work, mean: torch.Tensor, scale: torch.Tensor, z: torch.Tensor, time: int
    ) -> torch.Tensor:
        """``grad_z log p(y | mean + scale z)``, up to the limit."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = work.log_likelihood(mean + scale * z, time).sum()
            (gradient,) = torch.autograd.grad(value, z)
        beyond = gradient.abs() > self.limit
        work.notes["limited"] = work.notes.get("limited", 0) + int(beyond.sum())
        return gradient.clamp(-self.limit, self.limit)

    def _sample(self, work: Work, x: torch.Tensor, time: int) -> torch.Tensor:
        """Draws of the posterior of the mixture around the members, case by case: each has a prior of its own."""
        out = []
        seeds = [row.integers(2**63) for row in work.streams("score filter", time).numpy()]
        seen = work.seen(time).tolist()
        for case, (members, seed) in enumerate(zip(x, seeds, strict=True)):
            if not seen[case]:
                out.append(members)
                continue
            prior = kernels(members, work.model.space, self.bandwidth)
            posterior = prior.given(
                *_given(work.posterior.observations[0], case * work.times + time), missing="mask"
            )
            for o in work.posterior.observations[1:]:
                posterior = posterior.given(*_given(o, case * work.times + time), missing="mask")
            draws = posterior.sample(
                len(members), self.posterior, steps=self.steps, seed=int(seed), progress=False
            )
            out.append(work.model.space.tensor(draws, batch_dim="sample", dtype=x.dtype, device=x.device))
        return torch.stack(out)


def kernels(members: torch.Tensor, space: Any, bandwidth: float | None = None) -> GaussianMixturePrior:
    """A smooth law with the mean and the covariance of an ensemble: equal Gaussians around members drawn in a little.

    ``sum_m N(mean + sqrt(1 - h^2) (x_m - mean), h^2 S) / N`` with ``S`` the covariance of the members (West 1993).

    Args:
        members: physical states ``(members, *space.shape)``.
        space: of one state.
        bandwidth: ``h``, up to 1; None is Silverman's, ``(4 / (N (d + 2)))^(1 / (d + 4))`` and at most 1.

    Raises:
        InputError: if the members do not vary.

    Example:
        >>> import sciddiff as sd
        >>> x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
        >>> prior = kernels(x, sd.Space({"i": 1}), bandwidth=1.0)
        >>> bool(torch.allclose(prior.means, torch.zeros(3, 1, dtype=torch.float64)))
        True
    """
    n, d = len(members), space.size
    h = min(1.0, (4 / (n * (d + 2))) ** (1 / (d + 4))) if bandwidth is None else bandwidth
    mean, off = members.mean(0), members - members.mean(0)
    flat = off.flatten(1).double()
    law = dense(h**2 * flat.T @ flat / (n - 1), space.shape)
    # the spread of the centres counts n members, that of the kernels n - 1
    centres = mean + math.sqrt((1 - h**2) * n / (n - 1)) * off
    return GaussianMixturePrior(space, [1.0] * n, centres, law, dtype=members.dtype)


def _mixture_score(z: torch.Tensor, members: torch.Tensor, alpha: float, variance: float) -> torch.Tensor:
    """``sum_m w_m (alpha x_m - z) / beta^2`` of ``(cases, rows, *shape)``."""
    rows, points = z.flatten(2), alpha * members.flatten(2)
    weights = (-torch.cdist(rows, points).square() / (2 * variance)).softmax(2)
    return ((weights @ points - rows) / variance).reshape(z.shape)


def _given(o: Observation, row: int) -> tuple[Any, Any, Any]:
    """What one instrument saw at one time of one case, NaN where it did not, with its operator and noise."""
    y = o.y[row] if o.mask is None else torch.where(o.mask[row], o.y[row], torch.nan)
    return y, o.operator, o.noise


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
