"""Linear Gaussian models in closed form: ``x_{k+1} = A x_k + b + N(0, Q)``, ``y_k = H x_k + N(0, R)``, everything Gaussian.

Filter, smoother and likelihood are those of statsmodels, which takes missing values as they come. Trajectories are drawn by
the simulation smoother of Durbin and Koopman (2002), which inverts the covariances of data alone, never those of states: a
simulated trajectory less its own smoothed mean has the law of ``x - E[x | y]``. With ``e_k`` the error of the forecast of it,

    v_k = H e_k + N(0, R),  e_{k+1} = A (e_k - P_k^- H^T F_k^{-1} v_k) + N(0, Q),  F_k = H P_k^- H^T + R,

and going back ``r_k = A^T r_{k+1} + H^T F_k^{-1} (v_k - H P_k^- A^T r_{k+1})``, it is ``e_k - P_k^- r_k``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from sciddiff.assimilation.base import AssimilationMethod, Work
from sciddiff.assimilation.models import Assimilation, StateSpaceModel
from sciddiff.covariance import Covariance, Eigen
from sciddiff.errors import MissingDependencyError
from sciddiff.noise import Gaussian
from sciddiff.operators import LinearOperator
from sciddiff.priors import GaussianPrior
from sciddiff.random import Streams

__all__ = ["Kalman", "KalmanFilter", "KalmanMoments", "kalman_moments"]


@final
@dataclass(frozen=True, eq=False)
class KalmanMoments:
    """Exact means and covariances of one case, states flattened, float64.

    Attributes:
        forecast_mean, forecast_covariance: given the data before a time, ``(times, d)`` and ``(times, d, d)``.
        filter_mean, filter_covariance: given the data up to and including it.
        mean, covariance: given all the data.
        log_likelihood: ``log p(y)``.
    """

    forecast_mean: torch.Tensor
    forecast_covariance: torch.Tensor
    filter_mean: torch.Tensor
    filter_covariance: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor
    log_likelihood: float


@dataclass(frozen=True)
class _LinearGaussian(AssimilationMethod):
    """What fits linear Gaussian models alone."""

    reference: ClassVar[str] = (
        "@article{kalman1960new, title={A New Approach to Linear Filtering and Prediction Problems}, author={Kalman, R. E.}, "
        "journal={Journal of Basic Engineering}, volume={82}, number={1}, pages={35--45}, year={1960}}\n\n"
        "@article{rauch1965maximum, title={Maximum likelihood estimates of linear dynamic systems}, author={Rauch, H. E. and "
        "Tung, F. and Striebel, C. T.}, journal={AIAA Journal}, volume={3}, number={8}, pages={1445--1450}, year={1965}}"
    )

    def misfit(self, assimilation: Assimilation) -> str | None:
        """Everything has to be linear and Gaussian."""
        return linear_gaussian_misfit(assimilation)

    def moments(self, work: Work) -> list[KalmanMoments]:
        """Of every case; the likelihood is noted."""
        found = [kalman_moments(work.assimilation, case) for case in range(work.cases)]
        evidence = [m.log_likelihood for m in found]
        work.notes["log_evidence"] = evidence[0] if work.assimilation.batch is None else evidence
        return found

    def white(self, work: Work, *, data: int = 0) -> torch.Tensor:
        """Standard normals ``(cases, times, n, d + data)``; those of draw i and case c depend on (seed, c, i)."""
        rows = [(case, draw) for case in range(work.cases) for draw in range(work.n)]
        streams = Streams(work.seed, [i for _, i in rows], [c for c, _ in rows], purpose="kalman")
        white = streams.normal((work.times, work.model.space.size + data), dtype=torch.float64)
        return white.reshape(work.cases, work.n, *white.shape[1:]).transpose(1, 2)

    def shaped(self, work: Work, x: torch.Tensor) -> torch.Tensor:
        """``(cases, times, n, d)`` as draws ``(n, cases, times, *shape)`` in the model's dtype."""
        initial = work.model.initial
        out = x.permute(2, 0, 1, 3).to(device=initial.device, dtype=initial.dtype)
        return out.reshape(*out.shape[:3], *work.model.space.shape)


@final
@dataclass(frozen=True)
class Kalman(_LinearGaussian):
    """The exact smoother of a linear Gaussian model: trajectories given all the data, draw i from (seed, i) alone.

    Needs a step that is linear up to a constant, a `GaussianPrior` as the initial law, linear operators and Gaussian
    noise. The attrs hold ``log_evidence``, the exact ``log p(y)``; `kalman_moments` has means and covariances.

    Raises:
        MissingDependencyError: without statsmodels.

    Example:
        >>> Kalman().law
        'smoothing'
    """

    law: ClassVar[str] = "smoothing"

    def draw(self, work: Work) -> torch.Tensor:
        """The smoothed mean, and a simulated departure from it."""
        known = [_observations(work.assimilation, case) for case in range(work.cases)]
        white = self.white(work, data=known[0][2].shape[1])
        x = [
            moments.mean[:, None] + _departures(work.model, moments, data, z)
            for moments, data, z in zip(self.moments(work), known, white, strict=True)
        ]
        return self.shaped(work, torch.stack(x))

    def references(self) -> list[str]:
        """The smoother's, and that of the draws."""
        return [
            *super().references(),
            "@article{durbin2002simple, title={A simple and efficient simulation smoother for state space time series analysis}, "
            "author={Durbin, J. and Koopman, S. J.}, journal={Biometrika}, volume={89}, number={3}, pages={603--616}, year={2002}}",
        ]


@final
@dataclass(frozen=True)
class KalmanFilter(_LinearGaussian):
    """The exact filter of a linear Gaussian model: draws of each time on its own, given the data up to it.

    Needs what `Kalman` needs.

    Raises:
        MissingDependencyError: without statsmodels.

    Example:
        >>> KalmanFilter().law
        'filtering'
    """

    def draw(self, work: Work) -> torch.Tensor:
        """``N(m_k, P_k)`` at every time."""
        moments = self.moments(work)
        mean = torch.stack([m.filter_mean for m in moments])[:, :, None]
        roots = torch.stack([_root(m.filter_covariance) for m in moments])
        return self.shaped(work, mean + self.white(work) @ roots.mT)


def kalman_moments(assimilation: Assimilation, case: int = 0) -> KalmanMoments:
    """Means, covariances and ``log p(y)`` of a linear Gaussian model given data, by statsmodels.

    Raises:
        MissingDependencyError: without statsmodels.
        MethodError: if the model or its data are not linear and Gaussian.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"site": 1})
        >>> model = StateSpaceModel(
        ...     lambda x: x, sd.GaussianPrior(space, sd.covariance.white((1,))), space=space,
        ...     noise=sd.noise.Gaussian(1.0), times=2,
        ... )
        >>> seen = model.given([[1.0], [np.nan]], sd.operators.Identity(space), sd.noise.Gaussian(1.0))
        >>> kalman_moments(seen).mean.flatten().tolist()
        [0.5, 0.5]
    """
    try:
        from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother
    except ImportError as error:
        raise MissingDependencyError("statsmodels", "data", "the Kalman smoother") from error
    assimilation.work(1, Kalman(), 0)
    model = assimilation.model
    transition, constant = _transition(model)
    design, errors, y = _observations(assimilation, case)
    prior = model.initial
    assert isinstance(prior, GaussianPrior)  # misfit
    mean = torch.broadcast_to(prior.normalisation.mean.double(), model.space.shape).flatten().cpu()
    d = model.space.size
    smoother = KalmanSmoother(k_endog=y.shape[1], k_states=d, k_posdef=d, tolerance=0.0)
    smoother.bind(y.numpy())
    for name, value in {
        "design": design,
        "obs_cov": errors,
        "transition": transition,
        "state_intercept": constant[:, None],
        "selection": torch.eye(d, dtype=torch.float64),
        "state_cov": torch.zeros(d, d) if model.covariance is None else _matrix(model.covariance),
    }.items():
        smoother[name] = value.double().numpy()
    smoother.initialize_known(mean.numpy(), _matrix(prior.physical_covariance).numpy())
    found = smoother.smooth()
    return KalmanMoments(
        _times_first(found.predicted_state[..., :-1]),
        _times_first(found.predicted_state_cov[..., :-1]),
        _times_first(found.filtered_state),
        _times_first(found.filtered_state_cov),
        _times_first(found.smoothed_state),
        _times_first(found.smoothed_state_cov),
        float(found.llf),
    )


def _departures(
    model: StateSpaceModel,
    moments: KalmanMoments,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    white: torch.Tensor,
) -> torch.Tensor:
    """Draws of ``x - E[x | y]``, ``(times, n, d)``, of white noise ``(times, n, d + m)``; see the module."""
    (design, errors, y), transition, d = data, _transition(model)[0], model.space.size
    assert isinstance(model.initial, GaussianPrior)  # misfit
    root, spread = _root(_matrix(model.initial.physical_covariance)), _root(errors)
    e, forward = white[0, :, :d] @ root.T, []
    root = torch.zeros_like(root) if model.covariance is None else _root(_matrix(model.covariance))
    for k, covariance in enumerate(moments.forecast_covariance):
        # values that were not seen become errors of variance 1 without a state, which say nothing
        seen = y[k].isfinite()
        h = design * seen[:, None]
        v = e @ h.T + white[k, :, d:] @ spread.T * seen
        noise = torch.where(seen[:, None] & seen, errors, torch.eye(len(seen), dtype=torch.float64))
        inverse = _inverse(h @ covariance @ h.T + noise)
        forward.append((e, h, v, inverse))
        if k + 1 < len(white):
            e = (e - v @ inverse @ h @ covariance) @ transition.T + white[k + 1, :, :d] @ root.T
    out, r = [], torch.zeros_like(e)
    for (e, h, v, inverse), covariance in zip(
        reversed(forward), reversed(moments.forecast_covariance), strict=True
    ):
        r = r @ transition
        r = r + (v - r @ covariance @ h.T) @ inverse @ h
        out.append(e - r @ covariance)
    return torch.stack(out[::-1])


def linear_gaussian_misfit(assimilation: Assimilation) -> str | None:
    """Why a model and its data are not linear and Gaussian, None if they are."""
    model, posterior = assimilation.model, assimilation.posterior
    if not isinstance(model.initial, GaussianPrior):
        return f"the initial law is no GaussianPrior but {model.initial!r}"
    offers = posterior.offers()
    for need in ("linear", "gaussian"):
        if (reason := offers[need]) is not None:
            return reason
    transition, constant = _transition(model)
    # two states well apart, at the initial law's own scale
    n = model.space.size
    z = torch.stack([2 + torch.arange(n).sin(), -1.5 + torch.arange(n).mul(0.7).cos()]).double()
    x = model.initial.normalisation.physical(z.reshape(-1, *model.space.shape))
    x, there, eps = _advanced(model, x)
    x, there = x.flatten(1).cpu(), there.flatten(1).cpu()
    expected = x @ transition.T + constant
    # rounding of each value, and of the sums that it is made of
    size = there.abs() + x.abs() @ transition.abs().T + constant.abs()
    bent = (there - expected).abs() > 1e3 * eps * size.amax(0)
    return "the step is not linear" if bool(bent.any()) else None


def _transition(model: StateSpaceModel) -> tuple[torch.Tensor, torch.Tensor]:
    """``A`` and ``b`` of a step ``A x + b``, ``(d, d)`` and ``(d,)`` in float64.

    From differences about the initial mean, a standard deviation either side: from zero they would be those of large
    numbers where the mean is far from it.
    """
    d, normalisation = model.space.size, model.initial.normalisation
    mean, scale = (
        torch.broadcast_to(v.double().to(model.initial.device), model.space.shape)
        for v in (normalisation.mean, normalisation.scale)
    )
    eye = torch.eye(d, dtype=torch.float64, device=mean.device).reshape(d, *model.space.shape)
    x, there, _ = _advanced(model, torch.cat([mean + scale * eye, mean - scale * eye, mean[None]]))
    x, there = x.flatten(1).cpu(), there.flatten(1).cpu()
    # the states as they were passed on, rounded
    steps = (x[:d] - x[d:-1]).diagonal()
    transition = ((there[:d] - there[d:-1]) / steps[:, None]).T
    return transition, there[-1] - transition @ x[-1]


def _advanced(model: StateSpaceModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """States and what a step makes of them, and the precision that it has: float64 where the step takes it."""
    x = x.to(model.initial.device)
    with torch.no_grad():
        try:
            there = model.advance(x)
        except (RuntimeError, TypeError):
            # its own tensors are of the model's dtype; an error of another kind comes again
            x = x.to(model.initial.dtype)
            there = model.advance(x)
    eps = max(torch.finfo(v.dtype).eps for v in (x, there))
    return x.double(), there.double(), eps


def _observations(assimilation: Assimilation, case: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``H``, ``R`` and the data with NaN where there are none, ``(times, m)``, of all instruments."""
    space, times = assimilation.model.space, assimilation.model.length
    eye = torch.eye(space.size, dtype=torch.float64).reshape(space.size, *space.shape)
    rows, errors, data = [], [], []
    for o in assimilation.posterior.observations:
        assert isinstance(o.operator, LinearOperator)  # misfit
        assert isinstance(o.noise, Gaussian)
        rows.append(o.operator.apply(eye).flatten(1).T)
        errors.append(_matrix(o.noise.covariance(o.operator.codomain.shape)))
        part = slice(case * times, (case + 1) * times)
        y = o.y[part].double()
        data.append((y if o.mask is None else torch.where(o.mask[part], y, torch.nan)).flatten(1).cpu())
    return torch.cat(rows), torch.block_diag(*errors), torch.cat(data, 1)


def _matrix(covariance: Covariance) -> torch.Tensor:
    """A covariance as ``(d, d)``."""
    n = int(np.prod(covariance.shape))
    if isinstance(covariance, Eigen) and covariance.matrix is not None:
        return covariance.matrix.double().cpu()
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *covariance.shape)
    return covariance.apply(eye).reshape(n, n).cpu()


def _times_first(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float64))


def _root(matrix: torch.Tensor) -> torch.Tensor:
    """``S`` with ``S S^T`` the matrix, which rounding may have made slightly indefinite; the same in all units."""
    scale = _scale(matrix)
    values, vectors = torch.linalg.eigh(_without_units(matrix, scale))
    # the symmetric root, which no sign of an eigenvector changes
    root: torch.Tensor = scale[..., None] * (
        (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    )
    return root


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of a positive definite covariance, the same in all units."""
    scale = _scale(matrix)
    factor = torch.linalg.cholesky(_without_units(matrix, scale))
    inverse: torch.Tensor = torch.cholesky_inverse(factor) / scale[:, None] / scale
    return inverse


def _scale(covariance: torch.Tensor) -> torch.Tensor:
    """Standard deviations; 1 where a value does not vary."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.where(variance > 0, variance, 1.0).sqrt()


def _without_units(matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (matrix + matrix.mT) / 2 / scale[..., :, None] / scale[..., None, :]
