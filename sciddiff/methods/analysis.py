"""One Kalman analysis of an ensemble: ``x_a = x + K (y + e - g)`` with ``K = C_xy (C_yy + R)^-1`` estimated from it.

How the covariances are estimated and how the spread is reduced is a choice of its own, which every ensemble
method takes as ``analysis=``: with perturbed data, by a square root, or with a taper against far correlations.
Ensembles of many cases may be moved at once, in leading dims before the members.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch

from sciddiff.covariance import Covariance, Eigen, Standard
from sciddiff.errors import InputError
from sciddiff.noise import Gaussian
from sciddiff.posterior import Observation, Posterior
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = [
    "Analysis",
    "Forecast",
    "LocalSquareRoot",
    "Localised",
    "Perturbed",
    "Seen",
    "SquareRoot",
    "Tapered",
    "gaspari_cohn",
]

_BLOCK = 2**22
_GASPARI = (
    "@article{gaspari1999construction, title={Construction of correlation functions in two and three dimensions}, "
    "author={Gaspari, Gregory and Cohn, Stephen E.}, journal={Quarterly Journal of the Royal Meteorological "
    "Society}, volume={125}, number={554}, pages={723--757}, year={1999}}"
)


@final
class Seen:
    """The observations of one case as one vector ``y = g + N(0, R)`` of the values that were observed.

    Args:
        posterior: what they belong to.
        case: which one; several that miss the same values may be seen at once.

    Attributes:
        y: ``(m,)``, or ``(cases, 1, m)`` of several, float64.
        posterior: what they belong to.
    """

    def __init__(self, posterior: Posterior, case: int | Sequence[int]) -> None:
        self.posterior = posterior
        first = case if isinstance(case, int) else case[0]
        self._parts = [
            _Part(o, None if o.mask is None else o.mask[first].flatten()) for o in posterior.observations
        ]
        if isinstance(case, int):
            self.y = self.pick([o.y[case][None] for o in posterior.observations])[0]
        else:
            self.y = self.pick([o.y[case, None] for o in posterior.observations])

    def pick(self, predicted: Sequence[torch.Tensor]) -> torch.Tensor:
        """Predictions of every observation, ``(..., rows, *codomain.shape)``, as ``(..., rows, m)`` in float64."""
        return torch.cat([p.pick(g) for p, g in zip(self._parts, predicted, strict=True)], -1)

    def draw(self, streams: Streams) -> torch.Tensor:
        """``N(0, R)`` for every stream, ``(rows, m)``."""
        prior, out = self.posterior.prior, []
        for o in self.posterior.observations:
            shape = (len(streams), *o.operator.codomain.shape)
            out.append(o.noise.draw(torch.zeros(shape, dtype=prior.dtype, device=prior.device), streams))
        return self.pick(out)

    def white(self, v: torch.Tensor) -> torch.Tensor:
        """``F^-1 v`` with ``R = F F^T``: rows whose inner products are ``u^T R^-1 v``."""
        sizes = [p.size for p in self._parts]
        parts = zip(self._parts, v.split(sizes, -1), strict=True)
        return torch.cat([p.white(part) for p, part in parts], -1)

    def noise_matrix(self) -> torch.Tensor:
        """``R``, ``(m, m)``."""
        matrix: torch.Tensor = torch.block_diag(*[p.matrix() for p in self._parts])
        return matrix

    def places(self) -> list[tuple[Space, np.ndarray]]:
        """The codomain of every observation and which of its values were observed."""
        return [(p.codomain, p.kept.cpu().numpy()) for p in self._parts]


class _Part:
    """One observation of one case."""

    def __init__(self, observation: Observation, mask: torch.Tensor | None) -> None:
        assert isinstance(observation.noise, Gaussian)  # needs "gaussian"
        self.codomain = observation.operator.codomain
        self.covariance = observation.noise.covariance(self.codomain.shape)
        self.mask = mask
        every = torch.ones(self.codomain.size, dtype=torch.bool, device=observation.y.device)
        self.kept = every if mask is None else mask
        self.size = int(self.kept.sum())

    def pick(self, g: torch.Tensor) -> torch.Tensor:
        return g.flatten(-len(self.codomain.shape)).double()[..., self.kept]

    def white(self, v: torch.Tensor) -> torch.Tensor:
        if self.mask is None:
            v = v.reshape(*v.shape[:-1], *self.codomain.shape)
            return self.covariance.sqrt_adjoint(self.covariance.solve(v)).flatten(
                v.ndim - len(self.codomain.shape)
            )
        if _independent(self.covariance):
            return v / self.covariance.variance().flatten().to(v)[self.kept].sqrt()
        factor = torch.linalg.cholesky(self.matrix())
        white: torch.Tensor = torch.linalg.solve_triangular(factor, v.mT, upper=False)
        return white.mT

    def matrix(self) -> torch.Tensor:
        n = self.codomain.size
        eye = torch.eye(n, dtype=torch.float64, device=self.kept.device)
        matrix = self.covariance.apply(eye.reshape(n, *self.codomain.shape)).reshape(n, n)
        return matrix[self.kept][:, self.kept]


@final
@dataclass(frozen=True, eq=False)
class Forecast:
    """An ensemble before its analysis: members ``x = mean + off`` and their predictions ``g``, one row a member.

    The means are those of every member: where members are draws around conditional means of their own, as
    in a diffusion, ``off`` is what scatters about those, and its covariance is the conditional one.

    Attributes:
        seen: the data; where those are of several cases, all else has a leading dim of cases.
        x_mean, x_off: states, ``(J, d)`` or one row; ``off`` sums to zero over the members.
        g_mean, g_off: predictions, ``(J, m)`` or one row, in float64.
        error: draws of ``N(0, R)`` for perturbed data, ``(J, m)``.
        times: factor of R: data that are assimilated as many times count once.
    """

    seen: Seen
    x_mean: torch.Tensor
    x_off: torch.Tensor
    g_mean: torch.Tensor
    g_off: torch.Tensor
    error: torch.Tensor
    times: float = 1.0

    @property
    def scale(self) -> float:
        """``off / scale`` are anomalies whose products are covariances."""
        return math.sqrt(self.x_off.shape[-2] - 1)

    @property
    def surprise(self) -> torch.Tensor:
        """``y + sqrt(times) e - g``, ``(J, m)``."""
        return self.seen.y + math.sqrt(self.times) * self.error - self.g_mean - self.g_off


@dataclass(frozen=True)
class Analysis(ABC):
    """How an ensemble is moved by data; a setting of the ensemble methods.

    Attributes:
        reference: its papers beside those of the method, as BibTeX.
    """

    reference: ClassVar[str] = ""

    @abstractmethod
    def update(self, forecast: Forecast) -> torch.Tensor:
        """The members given the data, ``(J, d)``."""

    def misfit(self, posterior: Posterior) -> str | None:
        """Why it does not fit the posterior, None if it does."""
        return None

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {"analysis": type(self).__name__, **asdict(self)}


@final
@dataclass(frozen=True)
class Perturbed(Analysis):
    """Every member sees data with noise of its own (Burgers et al. 1998): ``x + K (y + e - g)``.

    ``K`` is never formed: the update is a combination of the members, ``O(J^2 (d + m))``.

    Example:
        >>> Perturbed()
        Perturbed()
    """

    def update(self, forecast: Forecast) -> torch.Tensor:
        """``x + K (y + e - g)``."""
        return forecast.x_mean + forecast.x_off + _gain(forecast, forecast.surprise)


@final
@dataclass(frozen=True)
class SquareRoot(Analysis):
    """The ensemble transform filter (Bishop et al. 2001; Wang et al. 2004): no noise in the data.

    The mean moves by ``K (y - g)`` and the anomalies become ``T X`` with ``T = (I + Y R^-1 Y^T)^-1/2`` symmetric, so
    that mean and covariance of the members are those of the Kalman formulas with the ensemble's own
    moments, without the sampling error of perturbed data. ``O(J^2 (d + m))``.

    Example:
        >>> SquareRoot()
        SquareRoot()
    """

    reference: ClassVar[str] = (
        "@article{bishop2001adaptive, title={Adaptive Sampling with the Ensemble Transform {K}alman Filter. "
        "Part {I}: Theoretical Aspects}, author={Bishop, Craig H. and Etherton, Brian J. and Majumdar, Sharanya J.}, "
        "journal={Monthly Weather Review}, volume={129}, number={3}, pages={420--436}, year={2001}}"
    )

    def update(self, forecast: Forecast) -> torch.Tensor:
        """``mean + K (y - g_mean) + T off``."""
        y = forecast.seen.white(forecast.g_off) / (forecast.scale * math.sqrt(forecast.times))
        u, s, _ = torch.linalg.svd(y, full_matrices=False)
        shrink = torch.rsqrt(1 + s**2) - 1
        x = forecast.x_off
        off: torch.Tensor = x + (u * shrink[..., None, :]).to(x) @ (u.mT.to(x) @ x)
        return forecast.x_mean + off + _gain(forecast, forecast.seen.y - forecast.g_mean)


@dataclass(frozen=True)
class _Near(Analysis):
    """What is told by distances along the dims that states and observations share.

    Those are dims of the same name, and coordinates ``along`` the codomain's dims, such as the positions of sensors.
    """

    radius: float | Mapping[str, float] = 1.0
    period: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, setting in (("radius", self.radius), ("period", self.period)):
            for value in setting.values() if isinstance(setting, Mapping) else [setting]:
                if value is None and name == "period":
                    continue
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                    raise InputError(
                        name, expected="a positive distance", got=repr(value), fix="in units of the coords"
                    )

    def misfit(self, posterior: Posterior) -> str | None:
        """Distances have to be known."""
        if posterior.prior.space.edges is not None:
            return "nodes of a graph have no distances along a dim: use Tapered(taper)"
        for o in posterior.observations:
            wanted = set(_shared(posterior.prior.space, o.operator.codomain))
            asked = set(self.radius) if isinstance(self.radius, Mapping) else wanted
            if not asked or asked - wanted:
                return f"{o.operator!r} shares no coordinates {sorted(asked) or ''} with the states: use Tapered(taper)"
        return None

    def taper(self, a: np.ndarray, b: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """`gaspari_cohn` of the distances between places ``(m, k)`` and ``(n, k)``; a dim that one has not is left out."""
        squared = np.zeros((len(a), len(b)))
        for left, right, name in zip(a.T, b.T, names, strict=True):
            radius = self.radius[name] if isinstance(self.radius, Mapping) else self.radius
            period = self.period.get(name) if isinstance(self.period, Mapping) else self.period
            apart = np.abs(np.nan_to_num(left[:, None] - right[None]))
            if period is not None:
                apart = np.minimum(apart % period, -apart % period)
            squared += (apart / radius) ** 2
        return gaspari_cohn(np.sqrt(squared))

    def places(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Places of states ``(d, k)`` and data ``(m, k)``, NaN along dims that one has not, and the names of the dims."""
        domain = _places(seen.posterior.prior.space)
        observed = [(_shared(seen.posterior.prior.space, space), kept) for space, kept in seen.places()]
        names = list(self.radius) if isinstance(self.radius, Mapping) else list(domain)
        data = [
            np.stack([at.get(name, np.full(len(kept), np.nan)) for name in names], 1)[kept]
            for at, kept in observed
        ]
        return np.stack([domain[name] for name in names], 1), np.concatenate(data), names


@final
@dataclass(frozen=True)
class Localised(_Near):
    """Perturbed data, with covariances that fade with distance (Houtekamer and Mitchell 2001, eq. 6).

    ``K = (rho_xy * C_xy) (rho_yy * C_yy + R)^-1`` elementwise, with `gaspari_cohn` of the distance along the dims that
    the states and the observations share: dims of the same name, and coordinates ``along`` the codomain's
    dims, such as the positions of sensors. A small ensemble's far correlations are mostly noise. Needs
    ``(m, m)`` systems, and ``m`` times ``d`` products a block of states at a time.

    Args:
        radius: distance from which on nothing correlates, in units of the coordinates (places where a dim has
            no labels, days for dates): one for all dims, or a mapping from dims, which are then the only ones.
        period: length after which a dim begins again, such as 360 for degrees of longitude; one for all dims, or a
            mapping from those that do.

    Raises:
        InputError: unless radii and periods are positive.

    Example:
        >>> Localised(radius=3.0)
        Localised(radius=3.0, period=None)
    """

    reference: ClassVar[str] = (
        "@article{houtekamer2001sequential, title={A Sequential Ensemble {K}alman Filter for Atmospheric Data "
        "Assimilation}, author={Houtekamer, P. L. and Mitchell, Herschel L.}, journal={Monthly Weather Review}, "
        "volume={129}, number={1}, pages={123--137}, year={2001}}\n\n" + _GASPARI
    )

    def update(self, forecast: Forecast) -> torch.Tensor:
        """``x + K (y + e - g)`` with a tapered ``K``."""
        seen, y = forecast.seen, forecast.g_off / forecast.scale
        states, data, names = self.places(seen)
        near = torch.from_numpy(self.taper(data, data, names)).to(y)
        system = near * (y.mT @ y) + forecast.times * seen.noise_matrix()
        weights = torch.linalg.solve(system, forecast.surprise.mT).mT
        x = forecast.x_off / forecast.scale
        out = forecast.x_mean + forecast.x_off
        for block in _blocks(x.shape[-1], y.shape[-1]):
            near = torch.from_numpy(self.taper(data, states[block], names)).to(y)
            out[..., block] += (weights @ (near * (y.mT @ x[..., block].double()))).to(x)
        return out


@final
@dataclass(frozen=True)
class LocalSquareRoot(_Near):
    """The local ensemble transform (Hunt et al. 2007): `SquareRoot` for every value of the state on its own.

    The data that a value sees have their precision multiplied by `gaspari_cohn` of the distance to it, so that a small
    ensemble is not asked to fit the whole domain at once. Needs errors of the data without correlation, and
    ``O(d J^3)`` for ensembles of ``J``, a block of states at a time.

    Args:
        radius: as of `Localised`, for the precision of the data; infinity gives `SquareRoot`.
        period: as of `Localised`.

    Raises:
        InputError: unless radii and periods are positive.

    Example:
        >>> LocalSquareRoot(radius=14.6, period=40)
        LocalSquareRoot(radius=14.6, period=40)
    """

    reference: ClassVar[str] = (
        "@article{hunt2007efficient, title={Efficient data assimilation for spatiotemporal chaos: A local ensemble "
        "transform {K}alman filter}, author={Hunt, Brian R. and Kostelich, Eric J. and Szunyogh, Istvan}, "
        "journal={Physica D: Nonlinear Phenomena}, volume={230}, number={1-2}, pages={112--126}, year={2007}}\n\n"
        + _GASPARI
    )

    def misfit(self, posterior: Posterior) -> str | None:
        """Distances have to be known, and errors be independent."""
        for o in posterior.observations:
            shape = o.operator.codomain.shape
            if isinstance(o.noise, Gaussian) and not _independent(o.noise.covariance(shape)):
                return "the errors of the data are correlated: use Localised(radius)"
        return super().misfit(posterior)

    def update(self, forecast: Forecast) -> torch.Tensor:
        """``mean + w off + T off`` with weights ``w`` and a transform ``T`` of every value's own."""
        seen, scale = forecast.seen, forecast.scale * math.sqrt(forecast.times)
        states, data, names = self.places(seen)
        y = seen.white(forecast.g_off) / scale
        r = seen.white(seen.y - forecast.g_mean) / math.sqrt(forecast.times)
        products = (y[..., :, None, :] * y[..., None, :, :]).flatten(-3, -2)
        members, pulls = y.shape[-2], y * r
        out = torch.empty_like(forecast.x_mean + forecast.x_off)
        for block in _blocks(out.shape[-1], members**2 + len(data)):
            near = torch.from_numpy(self.taper(data, states[block], names)).to(y)
            gram = (products @ near).unflatten(-2, (members, members)).movedim(-1, -3)
            values, vectors = torch.linalg.eigh(gram)
            inverse = 1 / (1 + values.clamp_min(0))
            pull = (pulls @ near).mT[..., None]  # (..., block, J, 1)
            weights = vectors @ (inverse[..., None] * (vectors.mT @ pull))
            # the mean's weights are the same for every member: they go into the transform
            transform = (vectors * inverse.sqrt()[..., None, :]) @ vectors.mT + weights.mT / forecast.scale
            off = forecast.x_off[..., block]
            moved = torch.einsum("...sjk,...ks->...js", transform.to(off), off)
            out[..., block] = forecast.x_mean[..., block] + moved
        return out


@final
@dataclass(frozen=True, eq=False)
class Tapered(Analysis):
    """Perturbed data, and a gain that is multiplied by a taper of your own, ``rho * K`` elementwise.

    For states and data whose distance no coordinate tells: graphs, spectra, parameters
    (Chen and Oliver 2017). Needs ``(m, m)`` systems.

    Args:
        taper: ``(m, d)``: what of the gain is kept of every value of the data (all observations one behind the
            other, flattened) for every value of the state, from 0 to 1.

    Raises:
        InputError: unless it is a matrix of finite numbers.

    Example:
        >>> Tapered(gaspari_cohn(np.array([[0.0, 0.5, 1.0]])))
        Tapered(taper of shape (1, 3))
    """

    reference: ClassVar[str] = (
        "@article{chen2017localization, title={Localization and regularization for iterative ensemble smoothers}, "
        "author={Chen, Yan and Oliver, Dean S.}, journal={Computational Geosciences}, volume={21}, number={1}, "
        "pages={13--30}, year={2017}}"
    )
    taper: Any = field(repr=False)

    def __post_init__(self) -> None:
        taper = np.array(self.taper, dtype=np.float64)
        if taper.ndim != 2 or not np.isfinite(taper).all():
            raise InputError(
                "taper",
                expected="a finite matrix (data, states)",
                got=f"shape {taper.shape}",
                fix="for example gaspari_cohn(distance / radius)",
            )
        object.__setattr__(self, "taper", taper)

    def __repr__(self) -> str:
        return f"Tapered(taper of shape {self.taper.shape})"

    def settings(self) -> dict[str, Any]:
        """The shape and a checksum in place of the matrix."""
        import zlib

        return {
            "analysis": "Tapered",
            "shape": list(self.taper.shape),
            "crc32": zlib.crc32(self.taper.tobytes()),
        }

    def misfit(self, posterior: Posterior) -> str | None:
        """The taper has to have the shape of the gain."""
        shape = (
            sum(o.operator.codomain.size for o in posterior.observations),
            posterior.prior.space.size,
        )
        return None if self.taper.shape == shape else f"taper of {self.taper.shape}, and not {shape}"

    def update(self, forecast: Forecast) -> torch.Tensor:
        """``x + (rho * K) (y + e - g)``."""
        seen, y = forecast.seen, forecast.g_off / forecast.scale
        taper = self.taper[np.concatenate([kept for _, kept in seen.places()])]
        factor, pivots = torch.linalg.lu_factor(y.mT @ y + forecast.times * seen.noise_matrix())
        x, out = forecast.x_off / forecast.scale, forecast.x_mean + forecast.x_off
        for block in _blocks(x.shape[-1], y.shape[-1]):
            gain = torch.linalg.lu_solve(factor, pivots, y.mT @ x[..., block].double())
            out[..., block] += (forecast.surprise @ (torch.from_numpy(taper[:, block]).to(gain) * gain)).to(x)
        return out


def gaspari_cohn(distance: np.ndarray) -> np.ndarray:
    """A correlation that is 1 at distance 0 and falls to 0 at 1 (Gaspari and Cohn 1999, eq. 4.10).

    Args:
        distance: of any shape, not negative, in units of the radius at which correlations end.

    Example:
        >>> gaspari_cohn(np.array([0.0, 0.5, 1.0])).round(4).tolist()
        [1.0, 0.2083, 0.0]
    """
    r = 2 * np.asarray(distance, dtype=np.float64)
    near = 1 - r**2 * (5 / 3 - r * (5 / 8 + r * (1 / 2 - r / 4)))
    safe = np.where(r > 1, r, 1.0)
    far = 4 - 5 * r + r**2 * (5 / 3 + r * (5 / 8 - r * (1 / 2 - r / 12))) - 2 / (3 * safe)
    return np.asarray(np.where(r <= 1, near, np.where(r < 2, far, 0.0)))


def _gain(forecast: Forecast, residual: torch.Tensor) -> torch.Tensor:
    """``K r`` of rows of residuals, as a combination of the anomalies, ``(rows, d)``.

    By a system of the size of the ensemble or of the data, whichever is smaller.
    """
    root = math.sqrt(forecast.times)
    y = forecast.seen.white(forecast.g_off) / (forecast.scale * root)
    r = forecast.seen.white(residual) / root
    x = forecast.x_off / forecast.scale
    members, m = y.shape[-2:]
    system = (y.mT @ y if m < members else y @ y.mT) + torch.eye(min(members, m)).to(y)
    if m < members:
        # in this order nothing is as large as (J, J)
        update: torch.Tensor = torch.linalg.solve(system, r.mT).mT @ (y.mT @ x.double())
        return update.to(x)
    weights = torch.linalg.solve(system, y @ r.mT).mT
    update = weights.to(x) @ x
    return update


def _places(space: Space) -> dict[str, np.ndarray]:
    """Coordinates of every value of a flattened state, by name; those that are numbers or dates."""
    if not space.homogeneous:
        return {}
    out, grid = {}, space.grid
    ticks = {d: (d, space.coords.get(d, np.arange(n))) for d, n in space.sizes.items()}
    for name, (dim, values) in {**ticks, **space.along}.items():
        number = _number(values)
        if number is not None:
            line = [-1 if d == dim else 1 for d in space.dims]
            one = np.broadcast_to(number.reshape(line), grid).reshape(-1)
            out[name] = np.tile(one, space.size // len(one))
    return out


def _shared(domain: Space, codomain: Space) -> dict[str, np.ndarray]:
    """Places of the codomain's values along what tells the places of states too."""
    here, there = _places(domain), _places(codomain)
    # places without labels are the same only where there are as many
    bare = {
        d
        for d, n in codomain.sizes.items()
        if not {d} & ({*domain.coords} & {*codomain.coords}) and n != domain.sizes.get(d)
    }
    return {name: at for name, at in there.items() if name in here and name not in bare - {*codomain.along}}


def _number(values: np.ndarray) -> np.ndarray | None:
    if np.issubdtype(values.dtype, np.datetime64):
        return (values - np.datetime64(0, "D")) / np.timedelta64(1, "D")
    return values.astype(np.float64) if np.issubdtype(values.dtype, np.number) else None


def _independent(covariance: Covariance) -> bool:
    return isinstance(covariance, Eigen) and isinstance(covariance.basis, Standard)


def _blocks(d: int, m: int) -> list[slice]:
    """States so many at a time that a block of the gain fits in memory."""
    step = max(1, _BLOCK // max(1, m))
    return [slice(start, min(d, start + step)) for start in range(0, d, step)]
