"""The result: labelled draws, what looks wrong with them in one line, and the way to disk and to ArviZ."""

from __future__ import annotations

import hashlib
import os
import warnings
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

_CHECKED = 64
_IMAGINARY = "__imag"


class DiagnosisWarning(UserWarning):
    """Something about the draws looks wrong; the message says what."""


def diagnose(posterior: Posterior, x: torch.Tensor) -> str:
    """Say in one line what looks wrong with posterior draws, or "ok".

    Checked are: non-finite values; draws that are all alike; a spread beyond the prior's; values more than 12
    prior standard deviations out; and the fit, as ``log p(y | x)`` of the draws against ``log p(y' | x)``
    of data ``y'`` replicated from them. Under an exact posterior ``(x, y)`` and ``(x, y')`` have the
    same law, so their difference has mean zero; 5 standard deviations are reported. Black boxes
    are not evaluated again, so their fit is not checked.

    Args:
        posterior: where the draws come from.
        x: physical states ``(n * cases, *space.shape)``, the case running fastest.
    """
    found = [line for line in (_values(posterior, x), _spread(posterior, x)) if line]
    if not found:
        found = [line for o in posterior.observations if (line := _fit(o, x, posterior.cases))]
    return "; ".join(found) or "ok"


def _values(posterior: Posterior, x: torch.Tensor) -> str | None:
    finite = torch.isfinite(x.flatten(1)).all(1)
    if not bool(finite.all()):
        return f"{int((~finite).sum())} of {len(x)} draws are not finite"
    z = posterior.prior.normalisation.normal(x)
    far = float(z.abs().max())
    return f"draws reach {far:.0f} prior standard deviations from the prior mean" if far > 12 else None


def _spread(posterior: Posterior, x: torch.Tensor) -> str | None:
    draws = x.reshape(-1, posterior.cases, *x.shape[1:])
    if len(draws) < 2 or not bool(torch.isfinite(x).all()):
        return None
    sd = draws.std(0) / posterior.prior.normalisation.scale.to(x)
    flat = sd.flatten(1)
    if bool((flat == 0).all(1).any()):
        return "the draws of a case are all alike"
    rms = float(flat.square().mean(1).sqrt().max())
    # the scale is the prior's rms sd; the factor leaves room for few draws and for variables that vary more
    return f"the draws spread {rms:.1f} times as wide as the prior" if rms > 2 else None


def _fit(o: Observation, x: torch.Tensor, cases: int) -> str | None:
    if not o.operator.differentiable:
        return None
    draws = x[: max(1, _CHECKED // cases) * cases]
    case = torch.arange(len(draws), device=x.device) % cases
    mean = o.operator.apply(draws)
    streams = Streams(0, range(len(draws)), purpose="diagnose")
    mask = None if o.mask is None else o.mask[case]
    replicated = o.noise.log_prob(o.noise.draw(mean, streams), mean, mask)
    seen = o.log_prob(mean, case)
    scale = float(replicated.std()) if len(draws) > 1 else 0.0
    if not scale > 0:
        return None
    # log p(y | x) of one y varies like that of one replicate; the worst case of many is allowed for
    gap = (seen - replicated.mean()).reshape(-1, cases).mean(0) / scale
    if float(gap.min()) < -5:
        return f"the draws do not fit the observation (log-likelihood {-float(gap.min()):.0f} sds below that of replicated data): check noise, operator and prior, or take more steps"
    if float(gap.max()) > 5:
        return f"the draws fit the noise (log-likelihood {float(gap.max()):.0f} sds above that of replicated data): is the noise sd too large?"
    return None


def report(line: str) -> None:
    """Warn if a diagnosis is not "ok"."""
    if line != "ok":
        warnings.warn(line, DiagnosisWarning, stacklevel=3)


def save(draws: xr.Dataset, path: str | Path) -> Path:
    """Write draws to netCDF, atomically, with a checksum of the values.

    Complex variables are stored as two real ones, which netCDF can hold, and come back whole by `load`.

    Args:
        draws: any labelled draws.
        path: the file; ``.nc`` is usual.

    Returns:
        The path.
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
    flat = draws.copy(deep=False)
    for name in list(draws.data_vars):
        if np.iscomplexobj(draws[name].values):
            flat[f"{name}{_IMAGINARY}"] = draws[name].imag.assign_attrs(draws[name].attrs)
            flat[name] = draws[name].real.assign_attrs(draws[name].attrs)
    flat.attrs["sha256"] = _checksum(draws)
    part = path.with_name(path.name + ".part")
    flat.to_netcdf(
        part, engine="h5netcdf", encoding={str(n): {"zlib": True, "complevel": 1} for n in flat.data_vars}
    )
    os.replace(part, path)
    return path


def load(path: str | Path) -> xr.Dataset:
    """Read draws that `save` wrote, and check that the values are the ones written.

    Raises:
        InputError: if the file is no such file, or is damaged.
    """
    import xarray as xr

    try:
        with xr.open_dataset(Path(path), engine="h5netcdf") as opened:
            draws = opened.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            "path",
            expected="a netCDF file of draws",
            got=f"{path}: {error}",
            fix="pass a file that sciddiff wrote",
        ) from error
    for name in [str(n) for n in draws.data_vars if str(n).endswith(_IMAGINARY)]:
        whole = name.removesuffix(_IMAGINARY)
        attrs = draws[whole].attrs
        draws[whole] = (draws[whole] + 1j * draws[name]).assign_attrs(attrs)
        draws = draws.drop_vars(name)
    stored = draws.attrs.pop("sha256", None)
    if stored != _checksum(draws):
        raise InputError(
            "path",
            expected="the values that were written",
            got=f"another checksum in {path}",
            fix="the file is damaged or was changed; make it again",
        )
    return draws


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
    chain = (
        draws.rename(sample="draw")
        .expand_dims(chain=[0])
        .assign_coords(draw=np.arange(draws.sizes["sample"]))
    )
    groups: dict[str, Any] = {"posterior": chain}
    if observed is not None:
        groups["observed_data"] = observed
    return xr.DataTree.from_dict(groups)


def _checksum(draws: xr.Dataset) -> str:
    digest = hashlib.sha256()
    for name in sorted(str(n) for n in draws.variables):
        values = np.ascontiguousarray(draws[name].values)
        if values.dtype.kind in "MmO U".replace(" ", ""):
            values = np.char.encode(values.astype(str))
        digest.update(f"{name}{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()
