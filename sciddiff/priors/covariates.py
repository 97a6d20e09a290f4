"""Known drivers of a state, on which a prior is conditioned: ``p(x | u)``.

A network is shown ``u`` beside the noisy state, in units of its standard deviation; before that, the linear
response ``R u`` is taken out of the state, so that what the network has to learn is the rest:

    x = m + R u + S z,        D(z, sigma, u) = skip(z, sigma) + c_out(sigma) F([inputs, u], log(sigma)/4)

A driver is given and not drawn: its law plays no part, and it may be a plan, a scenario or a calendar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation
from sciddiff.spaces import Space

__all__ = ["Covariates", "Told", "tell"]

_MOST_WEIGHTS = 2**24


@final
@dataclass(frozen=True, eq=False)
class Covariates:
    """Names, units, scale and linear response of the drivers of a prior.

    Attributes:
        units: name -> units or None, in the order of the network's channels.
        normalisation: mean and standard deviation of each, ``(k, 1, ...)``.
        response: ``R`` in physical units of the state per standard deviation of a driver, ``(size of a state,
            size of the drivers)``; None where it was not fitted.
    """

    units: dict[str, str | None]
    normalisation: Normalisation
    response: Tensor | None = None

    def space(self, states: Space) -> Space:
        """The drivers on the dims and labels of a state."""
        return Space({dim: states.coords.get(dim, n) for dim, n in states.sizes.items()}, self.units)

    def read(self, data: Any, states: Space, *, batch_dim: str | None = None) -> Tensor:
        """Drivers in standard deviations, ``(k, *grid)`` or ``(batch, k, *grid)``, float64.

        Raises:
            InputError: on other names, units or labels than the prior's, and on a hole, which is named by its date.
        """
        u = _complete(data, self.space(states), batch_dim)
        return self.normalisation.normal(u)

    def shift(self, u: Tensor) -> Tensor | None:
        """``R u`` of drivers ``(..., k, *grid)``, flattened ``(..., size)``; None without a response."""
        if self.response is None:
            return None
        flat = u.flatten(-self.normalisation.mean.ndim)
        shift: Tensor = flat @ self.response.to(flat).T
        return shift

    @classmethod
    def fit(
        cls, data: Any, states: Tensor, space: Space, names: Any, *, batch_dim: str, linear: bool
    ) -> tuple[Covariates, Tensor, Tensor]:
        """Covariates, their values ``(n, k, *grid)``, standardised, and what the linear response leaves of the states.

        What is left is stretched by ``sqrt((n - 1)/(n - 1 - p))``, where p are the degrees of freedom that went
        into the response: the residuals of a fit are smaller than the errors.

        Args:
            data: drivers of each state along ``batch_dim``: xarray, or an array ``(n, k, *grid)``.
            states: the states, in physical units.
            space: of the states.
            names: names, or names -> units; None: those of labelled data.
            batch_dim: name of the dim that counts states.
            linear: whether to fit the response ``R``, by ridge regression with the penalty of least generalised
                cross-validation (Golub, Heath and Wahba 1979, eq. 1.3).

        Raises:
            InputError: on a space whose variables are on different dims, a hole, a driver that never varies, or
                another number of states.
        """
        if not space.homogeneous:
            raise InputError(
                "covariates",
                expected="states whose variables are all on the same dims",
                got=space,
                fix="train without covariates, or put the drivers into the state as variables and observe them",
            )
        units = _named(data, names)
        empty = Normalisation(torch.zeros(()), torch.ones(()))
        u = _complete(data, cls(units, empty).space(space), batch_dim)
        if len(u) != len(states):
            raise InputError(
                "covariates",
                expected=f"drivers of each of {len(states)} states",
                got=len(u),
                fix="give them in the order of the data",
            )
        dims = (0, *range(2, u.ndim))
        mean, sd = u.mean(dims, keepdim=True)[0], u.std(dims, keepdim=True)[0]
        if not bool((sd > 0).all()):
            name = list(units)[int((sd.flatten() <= 0).nonzero()[0])]
            raise InputError(
                "covariates",
                expected="drivers that vary over the data",
                got=f"a constant {name!r}",
                fix="leave it out: nothing can be learnt of it",
            )
        standard = (u - mean) / sd
        fits = linear and space.size * standard[0].numel() <= _MOST_WEIGHTS
        if not fits:
            return cls(units, Normalisation(mean, sd)), standard, states
        response, freedom = _ridge(standard.flatten(1), states.flatten(1))
        rest = states.flatten(1) - standard.flatten(1) @ response.T
        centre, left = rest.mean(0), max(len(u) - 1 - freedom, 1.0)
        rest = centre + (rest - centre) * ((len(u) - 1) / left) ** 0.5
        return cls(units, Normalisation(mean, sd), response), standard, rest.reshape(states.shape)


def tell(network: Callable[[Tensor, Tensor], Tensor], u: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The network with drivers ``(batch or 1, k, *grid)`` appended to what it sees, and their channels cut off."""

    def told(x: Tensor, time: Tensor) -> Tensor:
        beside = u.to(x).expand(len(x), *u.shape[1:])
        return network(torch.cat([x, beside], 1), time)[:, : x.shape[1]]

    return told


@final
class Told(nn.Module):
    """A network that has been told its drivers, once and for all states.

    Args:
        inner: takes the channels of a state, those that go with them, and those of the drivers.
        u: drivers in standard deviations, ``(k, *grid)``.
    """

    def __init__(self, inner: nn.Module, u: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.u: Tensor
        self.register_buffer("u", u)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return tell(self.inner, self.u[None])(x, time)


def _named(data: Any, names: Any) -> dict[str, str | None]:
    """Name -> units, as given or as the data say."""
    if names is None and hasattr(data, "data_vars"):
        return {str(name): data[name].attrs.get("units") for name in data.data_vars}
    if names is None and hasattr(data, "dims") and getattr(data, "name", None) is not None:
        return {str(data.name): data.attrs.get("units")}
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (Mapping, Sequence)) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(
            "covariate_names",
            expected="the names of the drivers, or names -> units",
            got=repr(names),
            fix="write for example covariate_names={'wind': 'm/s'}, or pass an xarray.Dataset",
        )
    return dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)


def _complete(data: Any, space: Space, batch_dim: str | None) -> Tensor:
    """Drivers ``(..., k, *grid)`` without a hole."""
    k, lead = len(space.variables), 0 if batch_dim is None else 1
    if not hasattr(data, "dims") and not hasattr(data, "iloc") and k == 1:
        shape = np.shape(data)
        # one driver may come with or without an axis of its own
        if len(shape) == lead + 1 + len(space.grid) and shape[lead] == 1:
            data = np.asarray(data).reshape(*shape[:lead], *shape[lead + 1 :])
    u = space.tensor(data, argument="covariates", batch_dim=batch_dim, missing=True)
    u = u.unsqueeze(lead) if k == 1 else u
    holes = u.isnan().nonzero()
    if len(holes):
        first = holes[0].tolist()
        name = list(space.variables)[first[lead]]
        places = [
            f"{dim}={space.coords[dim][i] if dim in space.coords else i}"
            for dim, i in zip(space.dims, first[lead + 1 :], strict=True)
        ]
        where = ", ".join(([f"state {first[0]}"] if lead else []) + places)
        raise InputError(
            "covariates",
            expected="drivers without a hole",
            got=f"NaN in {name!r} at {where}, {len(holes)} in all",
            fix="fill it from what you know: a driver is never guessed",
        )
    return u


def _ridge(u: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """``R`` of ``x = mean + R u + e``, ``(values of x, values of u)``, and its degrees of freedom."""
    u, x = u - u.mean(0), x - x.mean(0)
    left, d, right = torch.linalg.svd(u, full_matrices=False)
    kept = d > 1e-10 * d[0]
    left, d, right = left[:, kept], d[kept], right[kept]
    seen, n = left.T @ x, len(u)
    beyond = x.square().sum() - seen.square().sum()
    tried = []
    for penalty in (float(d[0]) ** 2 * 10.0**p for p in np.arange(-12.0, 3.0, 0.5)):
        shrink = d**2 / (d**2 + penalty)
        error = beyond + ((1 - shrink)[:, None] * seen).square().sum()
        # one more degree of freedom goes into the mean
        score = float(error / max(n - 1 - float(shrink.sum()), 1e-9) ** 2)
        tried.append((score, penalty, float(shrink.sum())))
    _, penalty, freedom = min(tried)
    response: Tensor = (right.T * (d / (d**2 + penalty)) @ seen).T
    return response, freedom
