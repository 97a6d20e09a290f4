"""Rates of counts that are the exponential of a linear read-out: ``rate = exp(b + W x)``, seen through `noise.Poisson`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.adapters import from_torch
from sciddiff.operators.base import Operator
from sciddiff.spaces import Space

__all__ = ["log_rates"]


def log_rates(
    domain: Space, loadings: Any, baseline: Any, *, units: str = "1", dim: str = "neuron"
) -> Operator:
    """The operator ``x -> exp(b + W x)``, positive for any state: the rate of each of n counters.

    Counts in bins of width ``d`` are ``noise.Poisson(exposure=d)`` on these rates, per unit of the time that d is in. On
    trajectories, ``operators.AtTimes(log_rates(...), trajectories)`` reads out every time alike.

    Args:
        domain: of one state, of size d.
        loadings: ``W``, ``(n, d)``, in logs per unit of the state, flattened.
        baseline: ``b``, one number or n of them: the log of the rate at a state of zeros.
        units: of the rates.
        dim: name of the dim of the counters.

    Raises:
        InputError: on loadings or a baseline of another shape, or not finite.

    Source: the generalised linear model of spike trains (Truccolo et al. 2005, "A point process framework for relating
    neural spiking activity to spiking history, neural ensemble, and extrinsic covariate effects").

    Example:
        >>> read_out = log_rates(Space({"i": 2}), [[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]], np.log(5.0))
        >>> [round(v, 3) for v in read_out.apply(torch.zeros(1, 2))[0].tolist()]
        [5.0, 5.0, 5.0]
    """
    w, b = _numbers("loadings", loadings), _numbers("baseline", baseline)
    if w.ndim != 2 or w.shape[1] != domain.size or len(w) == 0:
        raise InputError(
            "loadings",
            expected=f"shape (n, {domain.size}), a column for each value of {domain}",
            got=f"shape {tuple(w.shape)}",
            fix="give one row for each counter",
        )
    if b.ndim and b.shape != w.shape[:1]:
        raise InputError(
            "baseline",
            expected=f"one number, or {len(w)}",
            got=f"shape {tuple(b.shape)}",
            fix="give the log of each counter's rate at a state of zeros",
        )

    def rates(x: torch.Tensor) -> torch.Tensor:
        return (b.to(x) + x.flatten(1) @ w.to(x).T).exp()

    return from_torch(rates, domain, Space({dim: len(w)}, {"rate": units}))


def _numbers(name: str, values: Any) -> torch.Tensor:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if not np.isfinite(array).all():
        raise InputError(name, expected="finite real numbers", got=type(values).__name__, fix="pass an array")
    return torch.from_numpy(array.copy())
