"""The result: labelled draws, what looks wrong with them in one line, and the way to disk and to ArviZ."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.random import Streams

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.posterior import Observation, Posterior

__all__ = ["DiagnosisWarning", "diagnose", "load", "save", "to_arviz"]

_CHECKED, _CASES, _REPLICATES, _BUDGET = 64, 16, 256, 2**21
_IMAGINARY = "__imag"
_ENCODING = {"zlib": True, "complevel": 1}
# share of results with exact draws that may be reported by mistake: half of it as fitting too well, half too badly
_FALSE_ALARMS = 2e-4
_ANCESTORS, _PARTICLES, _CANDIDATES, _PATHS = 0.05, 0.02, 2.0, 0.05


class DiagnosisWarning(UserWarning):
    """Something about the draws looks wrong; the message says what."""


def diagnose(posterior: Posterior, x: torch.Tensor, attrs: Mapping[str, Any] | None = None) -> str:
    """Say in one line what looks wrong with posterior draws, or "ok".

    Checked are: non-finite values; draws that are all alike; weights of particles, candidates or paths that a few
    of them hold; a spread beyond twice the prior's; values more than 12 prior standard deviations out; and
    the fit, as ``log p(y | x)`` of the draws against ``log p(y' | x)`` of data ``y'`` replicated from
    them. Under an exact posterior ``(x, y)`` and ``(x, y')`` have the same law (Rubin 1984, "Bayesianly
    justifiable and relevant frequency calculations for the applied statistician"), so the first lies in
    the bulk of the second, whose tails are taken as the heavier of those of a gamma and a normal law of
    its moments. Fewer than one in 1000 results with exact draws is reported by mistake. 64 draws of at
    most 16 cases are looked at; black boxes are not evaluated again, so their fit is not checked.

    Args:
        posterior: where the draws come from.
        x: physical states ``(n * cases, *space.shape)``, the case running fastest.
        attrs: what the method recorded of its work.
    """
    lines = (_values(posterior, x), _spread(posterior, x), _work(attrs or {}))
    found = [line for line in lines if line]
    if not found:
        found = [line for o in posterior.observations if (line := _fit(posterior, o, x))]
    return "; ".join(found) or "ok"


def _values(posterior: Posterior, x: torch.Tensor) -> str | None:
    finite = torch.isfinite(x.flatten(1)).all(1)
    if not bool(finite.all()):
        return f"{int((~finite).sum())} of {len(x)} draws are not finite"
    prior = posterior.prior
    if not prior.normalised:
        return None  # how far the prior reaches is not known
    z = prior.normalisation.normal(x)
    far = float(z.abs().max())
    if far > 12 and (law := prior.gaussian_covariance(prior.sigma_max)) is not None:
        # the scale is an rms over many values; at sigma_max the covariance given z is the prior's own
        far = float((z.abs() / (law.variance().to(z).sqrt() + 1e-6)).max())
    return f"draws reach {far:.0f} prior standard deviations from the prior mean" if far > 12 else None


def _spread(posterior: Posterior, x: torch.Tensor) -> str | None:
    from scipy.special import chdtri

    draws = x.reshape(-1, posterior.cases, *x.shape[1:])
    n = len(draws)
    if n < 2 or not bool(torch.isfinite(x).all()):
        return None
    sd = (draws.std(0) / posterior.prior.normalisation.scale.to(x)).flatten(1)
    if bool((sd == 0).all(1).any()):
        return "the draws of a case are all alike"
    if not posterior.prior.normalised:
        return None
    rms = float(sd.square().mean(1).sqrt().max())
    # a few draws of one value may spread so far by chance
    limit = math.sqrt(float(chdtri(n - 1, _FALSE_ALARMS / posterior.cases)) / (n - 1))
    return f"the draws spread {rms:.1f} times as wide as the prior" if rms > max(2.0, limit) else None


def _work(attrs: Mapping[str, Any]) -> str | None:
    """What the method itself saw go wrong."""
    share = float(attrs.get("unique_ancestors", 1.0))
    if share < _ANCESTORS:
        return (
            f"only {share:.1%} of the draws have an ancestor of their own: take more particles or more steps"
        )
    ess = float(attrs.get("ess", math.inf))
    if "particles" in attrs and ess < _PARTICLES:
        return f"at some level {ess:.1%} of the particles held the weight: take more steps or particles"
    if "particles" not in attrs and ess < _CANDIDATES:
        return f"of the candidates of a draw {ess:.1f} held the weight: take more, or another method"
    efficiency = np.min(attrs.get("path_efficiency", 1.0))
    if efficiency < _PATHS:
        return (
            f"{efficiency:.1%} of the paths held the weight: take more bridges or training, or another method"
        )
    if attrs.get("analyses") == 0:
        return "no analysis was made: the ensemble of the prior fits the data already, and is returned"
    return None


def _fit(posterior: Posterior, o: Observation, x: torch.Tensor) -> str | None:
    if not o.operator.differentiable:
        return None
    cases = min(posterior.cases, _CASES)
    draws = x.reshape(-1, posterior.cases, *x.shape[1:])[: max(1, _CHECKED // cases), :cases]
    n, draws = len(draws), draws.flatten(0, 1)
    case = torch.arange(cases, device=x.device).repeat(n)
    mean = o.operator.apply(draws.clone())  # a copy: an operator of the user's may write into it
    seen = o.log_prob(mean, case)
    if not bool(seen.isfinite().all()):
        return f"{int((~seen.isfinite()).sum())} of {len(seen)} draws make the observation impossible (log-likelihood -inf)"
    mask = None if o.mask is None else o.mask[case]
    mean = mean if mask is None else torch.where(mask, mean, 1.0)
    streams = Streams(0, range(len(draws)), purpose="diagnose")
    times = max(math.ceil(_CHECKED / n), min(_REPLICATES // n, _BUDGET // mean.numel()))
    replicated = torch.stack(
        [o.noise.log_prob(o.noise.draw(mean, streams), mean, mask) for _ in range(times)]
    ).reshape(times * n, cases)
    centre, sd = replicated.mean(0), replicated.std(0)
    sd = sd + 1e-9 * (1 + centre.abs())
    gaps = (centre - seen.reshape(n, cases).mean(0)) / sd
    skew = -(((replicated - centre) / sd) ** 3).mean(0)
    worst, best = int(gaps.argmax()), int(gaps.argmin())
    level = _FALSE_ALARMS / (2 * cases * len(posterior.observations))
    if _tail(float(gaps[worst]), float(skew[worst])) < level:
        return f"the draws do not fit the observation (log-likelihood {float(gaps[worst]):.1f} sds below that of replicated data): check noise, operator and prior, or take more steps"
    if _tail(-float(gaps[best]), -float(skew[best])) < level:
        return f"the draws fit the noise (log-likelihood {-float(gaps[best]):.1f} sds above that of replicated data): is the noise too large, or zeta of DPS?"
    return None


def _tail(z: float, skew: float) -> float:
    """``P(Z > z)`` of a law with mean 0, variance 1 and this skewness: the heavier of a normal and a gamma tail.

    The gamma law (Pearson's type III) ends on one side, where the law that it stands for need not.
    """
    from scipy.special import gammainc, gammaincc, ndtr

    normal = float(ndtr(-z))
    if abs(skew) < 1e-2:
        return normal
    k = 4 / skew**2
    x = max(0.0, k + math.copysign(math.sqrt(k), skew) * z)
    return max(normal, float(gammaincc(k, x) if skew > 0 else gammainc(k, x)))


def report(line: str) -> None:
    """Warn if a diagnosis is not "ok"."""
    if line != "ok":
        warnings.warn(line, DiagnosisWarning, stacklevel=3)


def save(draws: xr.Dataset, path: str | Path) -> Path:
    """Write draws to netCDF, atomically, with a checksum of values, labels and attributes.

    Complex variables are stored as two real ones, which netCDF can hold, and come back whole by `load`.

    Args:
        draws: any labelled draws.
        path: the file; ``.nc`` is usual.

    Returns:
        The path.

    Raises:
        InputError: on anything but a Dataset, a folder that is not there, or attributes that netCDF cannot hold.
    """
    import xarray as xr

    if not isinstance(draws, xr.Dataset):
        raise InputError(
            "draws",
            expected="an xarray.Dataset",
            got=type(draws).__name__,
            fix="use to_dataset(name=...) on a DataArray",
        )
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(
            "path", expected="a file in a folder that exists", got=path, fix="make the folder first"
        )
    flat = draws.copy(deep=False)
    for name in list(draws.data_vars):
        if np.iscomplexobj(draws[name].values):
            flat[f"{name}{_IMAGINARY}"] = draws[name].imag.assign_attrs(draws[name].attrs)
            flat[name] = draws[name].real.assign_attrs(draws[name].attrs)
    flat.attrs["sha256"] = _checksum(draws)
    part = path.with_name(path.name + ".part")
    try:
        flat.to_netcdf(part, engine="h5netcdf", encoding={n: _ENCODING for n in _numeric(flat)})
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except (TypeError, ValueError) as error:
        raise InputError(
            "draws", expected="attributes that netCDF can hold", got=error, fix="make them text or numbers"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> xr.Dataset:
    """Read draws that `save` wrote, and check that values, labels and attributes are the ones written.

    Raises:
        InputError: if the file is no such file, is damaged, or points to other files.
    """
    import xarray as xr

    path = Path(path)
    try:
        _refuse_links(path)
        with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=True) as opened:
            draws = opened.load()
        for name in [str(n) for n in draws.data_vars if str(n).endswith(_IMAGINARY)]:
            whole = name.removesuffix(_IMAGINARY)
            attrs = draws[whole].attrs
            draws[whole] = (draws[whole] + 1j * draws[name]).assign_attrs(attrs)
            draws = draws.drop_vars(name)
        stored = draws.attrs.pop("sha256", None)
        intact = stored == _checksum(draws)
    except InputError:
        raise
    except Exception as error:
        # a damaged file fails anywhere in HDF5, h5netcdf or xarray, with an error of any kind
        raise InputError(
            "path",
            expected="a netCDF file of draws",
            got=f"{path}: {type(error).__name__}: {error}",
            fix="pass a file that sciddiff.draws.save wrote",
        ) from error
    if not intact:
        raise InputError(
            "path",
            expected="what was written",
            got=f"{'another' if stored else 'no'} checksum in {path}",
            fix="the file is damaged, was changed or is not of sciddiff.draws.save; make it again",
        )
    return draws


def _refuse_links(path: Path) -> None:
    """Refuse a file that would have others read on its behalf."""
    import h5py

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            outside.append(name)

    outside: list[str] = []
    with h5py.File(path, "r") as file:
        file.visititems(look)
        outside += [n for n in file if isinstance(file.get(n, getlink=True), h5py.ExternalLink)]
    if outside:
        raise InputError(
            "path",
            expected="a file that holds its own data",
            got=f"{path}, whose {outside[0]!r} lies in another file",
            fix="do not trust it",
        )


def to_arviz(draws: xr.Dataset, *, observed: xr.Dataset | None = None) -> xr.DataTree:
    """Draws as an `xarray.DataTree` in ArviZ's convention: group "posterior", dims ("chain", "draw", ...).

    The draws are independent, so they are one chain.

    Args:
        draws: dims ``("sample", ...)``.
        observed: the observation, for the group "observed_data".

    Example:
        >>> import xarray as xr
        >>> to_arviz(xr.Dataset({"a": ("sample", [1.0, 2.0])}))["posterior"]["a"].dims
        ('chain', 'draw')
    """
    import xarray as xr

    if "sample" not in draws.dims:
        raise InputError(
            "draws",
            expected="a dim 'sample'",
            got=list(draws.dims),
            fix="pass the result of posterior.sample",
        )
    if {"chain", "draw"} & {*draws.dims, *draws.variables}:
        raise InputError(
            "draws",
            expected="no dims or variables called 'chain' or 'draw'",
            got=list(draws.dims),
            fix="rename them; ArviZ keeps these names for itself",
        )
    chain = (
        draws.rename(sample="draw")
        .expand_dims(chain=[0])
        .assign_coords(draw=np.arange(draws.sizes["sample"]))
    )
    groups: dict[str, Any] = {"posterior": chain}
    if observed is not None:
        groups["observed_data"] = observed
    return xr.DataTree.from_dict(groups)


def _numeric(draws: xr.Dataset) -> list[str]:
    return [str(n) for n in draws.data_vars if draws[n].dtype.kind in "biuf"]


def _checksum(draws: xr.Dataset) -> str:
    """Of names, dims, values and attributes, in a form that a round trip to netCDF does not change."""
    digest = hashlib.sha256(_canonical(draws.attrs).encode())
    for name in sorted(str(n) for n in draws.variables):
        variable = draws[name].variable
        digest.update(f"{name}{variable.dims}{variable.shape}{_canonical(variable.attrs)}".encode())
        digest.update(_bytes(variable.values))
    return digest.hexdigest()


def _canonical(attrs: Mapping[Any, Any]) -> str:
    values = {str(k): np.asarray(v).reshape(-1).tolist() for k, v in attrs.items() if k != "sha256"}
    return json.dumps(values, sort_keys=True, default=str)


def _bytes(values: np.ndarray) -> bytes:
    kind = values.dtype.kind
    if kind in "mM":
        # of whatever resolution the dates were, and are read back
        values = values.astype(f"{kind}8[ns]").astype(np.int64)
    elif kind in "OSUT":
        return json.dumps(values.astype(str).tolist()).encode()
    elif kind == "b":
        values = values.astype(np.int8)
    return values.astype(values.dtype.newbyteorder("<")).tobytes()
