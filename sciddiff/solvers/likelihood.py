"""The log density of a prior, through its closed form or along the probability flow.

``d log p_sigma(z(sigma))/dlog sigma = -div(z - D)``, so with ``w = z/sqrt(1 + sigma^2)``, ``r = rank C`` and ``J = dD/dz``

    log p_w at sigma_min = log p_w at sigma_max + integral of (r/(1 + sigma^2) - tr J) dlog sigma

(Chen et al. 2018, arXiv 1806.07366, theorem 1; Song et al. 2021, arXiv 2011.13456, eq. 39). At sigma_max the noisy law
is taken as the Gaussian with the score ``C^+ (D - z)/sigma^2`` and the curvature ``C^+ (J - I)/sigma^2`` that the
denoiser has at the state itself: exact for Gaussian priors whatever their spread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import InputError
from sciddiff.priors.base import Prior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.random import Streams, check_seed
from sciddiff.solvers.flow import PriorFlow, read_states, transport, within

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ClosedForm", "flow_log_density", "log_prob", "log_volume"]

_EXACT_LIMIT = 256
_DENSE_LIMIT = 8192
_PROBES = 16
# powers of J at sigma_max, whose norm is at most 1/26 there: the rest is below 1e-9 of the dimension
_POWERS = 6
_BLOCK = 2**20


@runtime_checkable
class ClosedForm(Protocol):
    """A prior that knows its log density."""

    def log_density(self, z: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """``log p_sigma`` of normalised states, ``(rows,)``; `InputError` at 0 where there is no density."""


def log_prob(
    prior: Prior,
    x: Any,
    *,
    sigma: float | None = None,
    batch_dim: str | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    probes: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Log density of states, in nats, for densities in physical units.

    Analytic priors take their closed form. Others go through the probability flow, whose error has four
    parts: the tolerance; the probes, in ``standard_error``; the law at sigma_max, an error of third order in the
    prior's spread over sigma_max, none for a Gaussian; and the denoiser, which is not exact if learned.
    The flow gives the density of the prior smoothed by noise of level ``sigma``, which differs from that of the
    prior by about ``sigma^2/2`` times the trace of ``C`` times the Hessian of ``p``, over ``p``. A degenerate prior,
    such as one of point masses, has no other density.

    On a reference noise that does not span the space the density is that with respect to the Lebesgue
    measure on its range, and 0 outside; for a Gaussian prior at sigma 0, on the range of its covariance.

    Args:
        prior: the prior.
        x: states in physical units: labelled, or an array ``(*shape)`` or ``(rows, *shape)``.
        sigma: noise level, in normalised units; None takes 0 where the prior has a density in closed form, and its
            sigma_min elsewhere.
        batch_dim: name of the dim of many states; None: "sample" if there is one.
        rtol: relative tolerance of a step of the flow, on the states.
        atol: absolute tolerance of a step, on normalised states and on nats.
        probes: random vectors a state in the trace (Hutchinson); None takes the exact trace up to 256 dimensions of
            the range and 16 probes above. A number takes the flow even where there is a closed form.
        seed: of the probes; those of state i depend on (seed, i) alone.

    Returns:
        `xarray.Dataset` with ``log_prob`` and ``standard_error`` (0 for an exact trace), dims ``(batch_dim,)`` or none.

    Raises:
        InputError: on states that do not fit the space, or settings out of range.
        ConvergenceError: if the flow misses its tolerance.
        DivergenceError: if the denoiser is not finite.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"point": 2})
        >>> prior = sd.GaussianPrior(space, sd.covariance.white((2,), variance=4.0))
        >>> round(float(log_prob(prior, [0.0, 0.0]).log_prob), 4)      # -log(2 pi 4)
        -3.2242
    """
    import xarray as xr

    check_seed(seed)
    closed = prior if isinstance(prior, ClosedForm) and probes is None else None
    level = check_level(prior, sigma, closed)
    values, coords, batch_dim = read_states(prior, x, batch_dim)
    z = prior.normalisation.normal(values)
    notes: dict[str, Any] = {"route": "closed form"}
    with torch.inference_mode(False), torch.no_grad():
        if closed is None:
            value, error, notes = flow_log_density(
                prior, z, sigma=level, rtol=rtol, atol=atol, probes=probes, seed=seed
            )
        else:
            value, error = closed.log_density(z, level), torch.zeros(len(z), dtype=torch.float64)
        support = prior.law if isinstance(prior, GaussianPrior) and level == 0 else prior.reference
        value = value - log_volume(prior.normalisation.scale, support)
        value = torch.where(within(support, z), value, -math.inf)
    dims = () if batch_dim is None else (batch_dim,)
    shape = () if batch_dim is None else (-1,)
    result = {"log_prob": value, "standard_error": error}
    return xr.Dataset(
        {k: (dims, v.cpu().reshape(shape).numpy(), {"units": "nat"}) for k, v in result.items()},
        coords=coords,
        attrs={"prior": repr(prior), "sigma": level, **notes},
    )


def flow_log_density(
    prior: Prior,
    z: torch.Tensor,
    *,
    sigma: float,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    probes: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """``log p_sigma`` of normalised states ``(rows, *shape)`` in the range of ``C``, along the flow.

    Returns:
        The log density and its standard error, ``(rows,)`` each, and notes (route, probes, forwards, VJPs).
    """
    flow = PriorFlow(prior, rtol, atol)
    if probes is None and flow.rank > _EXACT_LIMIT:
        probes = _PROBES
    if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 2):
        raise InputError(
            "probes", expected="an int of at least 2", got=repr(probes), fix="16, or None for the exact trace"
        )
    trace, parts, vectors = _Trace(flow, exact=probes is None), [], None
    if probes is None:
        vectors = range_basis(prior.reference).to(prior.device)[None]
    size = max(1, _BLOCK // (flow.size * (flow.rank if probes is None else probes)))
    for rows in torch.arange(len(z)).split(size):
        if probes is not None:
            vectors = _rademacher(flow, rows.tolist(), probes, seed)
        assert vectors is not None
        parts.append(_along(trace, z[rows.to(z.device)].double(), vectors, sigma))
    values = torch.cat(parts)
    spread = values.std(1) / math.sqrt(values.shape[1]) if probes is not None else torch.zeros(len(z))
    cost = {"forwards": flow.forwards / len(z), "vjps": trace.vjps / len(z)}
    notes = {"route": "probability flow", "probes": probes or 0, **cost}
    return values.mean(1), spread.double(), notes


def _along(trace: _Trace, z: torch.Tensor, vectors: torch.Tensor, sigma: float) -> torch.Tensor:
    """``log p_sigma(z)`` by every probe, ``(rows, probes)``; one column for the exact trace."""
    flow, top = trace.flow, trace.flow.prior.sigma_max

    def slope(level: float, y: torch.Tensor) -> torch.Tensor:
        w, c = y[:, : flow.size].reshape(-1, *flow.shape), math.hypot(1.0, level)
        d, tr = trace(w * c, level, vectors)
        return torch.cat([flow.slope(w, d, level).flatten(1), flow.rank / c**2 - tr], 1)

    z = flow.project(z)
    columns = 1 if trace.exact else vectors.shape[1]
    y = torch.cat([(z / math.hypot(1.0, sigma)).flatten(1), z.new_zeros(len(z), columns)], 1)
    y = transport(slope, y, sigma, top, rtol=flow.rtol, atol=flow.atol, states=flow.size)
    c = math.hypot(1.0, top)
    end = y[:, : flow.size].reshape(-1, *flow.shape) * c
    change = flow.rank * math.log(c / math.hypot(1.0, sigma))
    return y[:, flow.size :] + change + trace.gaussian(end, top, vectors)


class _Trace:
    """``D`` and ``tr J`` on the range of ``C``, from ``v^T J v`` for a basis of it or for random vectors."""

    def __init__(self, flow: PriorFlow, *, exact: bool) -> None:
        self.flow, self.exact, self.vjps = flow, exact, 0

    def __call__(
        self, z: torch.Tensor, sigma: float, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``D``, ``(rows, *shape)``, and the trace, ``(rows, 1)`` or by probe ``(rows, probes)``."""
        forms, d = [], z
        for block in vectors.split(self._columns(z), dim=1):
            d, pull, v = self._vjp(z, sigma, block)
            forms.append(_inner(pull(v), v, len(z)))
        return d, self._sum(torch.cat(forms, 1))

    def gaussian(self, z: torch.Tensor, sigma: float, vectors: torch.Tensor) -> torch.Tensor:
        """Log density at ``z`` of the Gaussian whose score and curvature are those of the noisy law there.

        With ``g = C^+ (z - D)`` it is ``-(1/2) [(z - D)^T (I - J^T)^-1 g / sigma^2 + log det(2 pi sigma^2 C) - log det(I - J)]``;
        ``J`` is small, so the inverse and the log determinant are power series.
        """
        noise, rank = self.flow.prior.reference, self.flow.rank
        logs = []
        for block in vectors.split(self._columns(z), dim=1):
            _, pull, v = self._vjp(z, sigma, block)
            u, total = v, z.new_zeros(())
            for k in range(1, _POWERS + 1):
                u = pull(u)
                total = total + _inner(u, v, len(z)) / k
            logs.append(total)
        d, pull, _ = self._vjp(z, sigma, z.new_zeros(1, 1, *self.flow.shape))
        gap = z - self.flow.project(d)
        u = series = noise.solve(gap)
        for _ in range(_POWERS):
            u = pull(u)
            series = series + u
        energy = (gap * series).flatten(1).sum(1, keepdim=True) / sigma**2
        norm = rank * math.log(2 * math.pi * sigma**2) + noise.logdet
        return -0.5 * (energy + norm + self._sum(torch.cat(logs, 1)))

    def _vjp(
        self, z: torch.Tensor, sigma: float, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """``D``, the map ``u -> P J^T u`` and the vectors, on every pair of a row and a vector."""
        count = vectors.shape[1]
        with torch.enable_grad():
            copies = z.detach().repeat_interleave(count, 0).requires_grad_()
            d = self.flow.denoise(copies, sigma)
        v = vectors.expand(len(z), *vectors.shape[1:]).flatten(0, 1)

        def pull(u: torch.Tensor) -> torch.Tensor:
            self.vjps += len(u)
            # a denoiser that does not depend on the state has no graph, and J = 0
            if not d.requires_grad:
                return torch.zeros_like(u)
            (jv,) = torch.autograd.grad(d, copies, u, retain_graph=True, materialize_grads=True)
            return self.flow.project(jv)

        return d.detach().reshape(len(z), count, *self.flow.shape)[:, 0], pull, v

    def _columns(self, z: torch.Tensor) -> int:
        return max(1, _BLOCK // z.numel())

    def _sum(self, forms: torch.Tensor) -> torch.Tensor:
        return forms.sum(1, keepdim=True) if self.exact else forms


def _inner(u: torch.Tensor, v: torch.Tensor, rows: int) -> torch.Tensor:
    """Inner products of pairs, ``(rows, vectors)``."""
    return (u * v).flatten(1).sum(1).reshape(rows, -1)


def _rademacher(flow: PriorFlow, rows: list[int], probes: int, seed: int) -> torch.Tensor:
    """Signs, projected onto the range, ``(rows, probes, *shape)``."""
    streams = Streams(seed, rows, purpose="log_prob probes")
    u = streams.uniform((probes, *flow.shape), dtype=torch.float64, device=flow.prior.device)
    return flow.project((u < 0.5).double() * 2 - 1)


def range_basis(covariance: Covariance) -> torch.Tensor:
    """An orthonormal basis of the range of a covariance, ``(rank, *shape)``; dense, at most 8192 values.

    Raises:
        InputError: if the covariance is larger and rank-deficient.
    """
    n = math.prod(covariance.shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *covariance.shape)
    if covariance.rank == n:
        return eye
    if n > _DENSE_LIMIT:
        raise InputError(
            "prior",
            expected=f"at most {_DENSE_LIMIT} values where the reference noise does not span the space and units differ",
            got=n,
            fix="normalise all variables by one scale",
        )
    vectors: torch.Tensor = torch.linalg.eigh(covariance.apply(covariance.solve(eye)).flatten(1))[1]
    return vectors[:, n - covariance.rank :].T.reshape(covariance.rank, *covariance.shape)


def log_volume(scale: torch.Tensor, covariance: Covariance) -> float:
    """``log`` of the factor by which ``z -> S z`` stretches volumes in the range of a covariance.

    Example:
        >>> from sciddiff.covariance import diagonal
        >>> log_volume(torch.tensor([1.0, 5.0]), diagonal([1.0, 0.0]))
        0.0
    """
    scale = torch.broadcast_to(scale.double().cpu(), covariance.shape)
    first = float(scale.flatten()[0])
    if bool((scale == first).all()):
        return covariance.rank * math.log(first)
    if covariance.rank == math.prod(covariance.shape):
        return float(scale.log().sum())
    # by QR: the determinant of the Gram matrix would square the ratio of the units
    columns = (range_basis(covariance) * scale).flatten(1).T
    return float(torch.linalg.qr(columns).R.diagonal().abs().log().sum())


def check_level(prior: Prior, sigma: float | None, closed: ClosedForm | None) -> float:
    """The noise level to smooth by: 0 is for priors with a density in closed form, and the default there."""
    if sigma is None:
        return _own_level(prior, closed)
    if not (0 < sigma < prior.sigma_max or (sigma == 0 and closed is not None)):
        raise InputError(
            "sigma",
            expected=f"a noise level above 0, below sigma_max = {prior.sigma_max:.4g}",
            got=repr(sigma),
            fix="leave it out for the prior's own",
        )
    return float(sigma)


def _own_level(prior: Prior, closed: ClosedForm | None) -> float:
    if closed is None:
        return prior.sigma_min
    try:
        closed.log_density(torch.zeros(1, *prior.space.shape, dtype=torch.float64, device=prior.device))
    except InputError:
        # point masses and components of lower rank have a density under noise only
        return prior.sigma_min
    return 0.0
