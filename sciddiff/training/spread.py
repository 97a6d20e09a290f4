"""After training: how far clean states lie from the denoiser's mean, by least squares with ``D`` frozen.

For the exact denoiser ``E|z0 - D|^2 = E tr Cov[z0 | z]`` at every noise level, so that squared residuals of states
that the network has not seen measure the denoising covariance, whatever the law of the states. Nichol and Dhariwal
2021 (arXiv 2102.09672, section 3.1) learn such variances beside the mean instead.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.posterior import check_count, chunks
from sciddiff.priors.base import Prior
from sciddiff.priors.spread import Spread, guess
from sciddiff.random import Streams, check_seed

__all__ = ["calibrate", "measure"]

P = TypeVar("P", bound=Prior)


def calibrate(
    prior: P, data: Any, *, batch_dim: str = "sample", levels: int = 25, repeats: int = 4, seed: int
) -> P:
    """The prior, with the size of its denoising covariance measured on held-out states: for MMPS("learned").

    Args:
        prior: a learned prior; it is left as it is.
        data: states in physical units along ``batch_dim``, which were not trained on: residuals of training states are
            too small. Independent ones; some hundred do.
        batch_dim: the dim of labelled data that counts states.
        levels: number of noise levels, evenly spaced in their logarithm.
        repeats: draws of the noise for each state and level; one forward each.
        seed: fixes the noise.

    Returns:
        A copy with `Spread` as ``spread``, which `Prior.save` keeps.

    Raises:
        InputError: on an exact prior, which has its covariance; on fewer than two states, or settings out of range.
        DivergenceError: if the network's answer is not finite.

    Example:
        >>> from sciddiff import Space
        >>> net = lambda x, t: 0 * x
        >>> prior = Prior.from_network(net, Space({"i": 4}), predicts="x0", path="ve", sigma_max=50.0)
        >>> states = np.random.Generator(np.random.Philox(0)).standard_normal((500, 4))
        >>> found = calibrate(prior, states, seed=0).spread
        >>> abs(found.factor(50.0) - 1) < 0.1    # it knows as much as a Gaussian of variance one does there ...
        True
        >>> found.factor(0.1) > 50               # ... and far less at low noise, where this network returns 0
        True
    """
    if prior.exact:
        raise InputError(
            "prior",
            expected="a learned prior",
            got=type(prior).__name__,
            fix="use MMPS() as it is: an exact prior has its denoising covariance",
        )
    found = copy.copy(prior)
    found.spread = measure(prior, data, batch_dim=batch_dim, levels=levels, repeats=repeats, seed=seed)
    return found


def measure(
    prior: Prior, data: Any, *, batch_dim: str = "sample", levels: int = 25, repeats: int = 4, seed: int
) -> Spread:
    """``E|z0 - D|^2 / tr Cov_0`` at noise levels from sigma_min to sigma_max; see `calibrate`.

    With n independent states the relative error is about ``sqrt(2 / (n k))``, where k is the number of directions that
    share the variance, the repeats adding little.

    Raises:
        InputError: on fewer than two states, or settings out of range.
        DivergenceError: if the denoiser's answer is not finite.
    """
    check_count("levels", levels), check_count("repeats", repeats), check_seed(seed)
    z0 = prior.normalisation.normal(prior.space.tensor(data, batch_dim=batch_dim).to(prior.device))
    if len(z0) < 2:
        raise InputError("data", expected="at least 2 states", got=len(z0), fix="pass more held-out states")
    sigmas = np.geomspace(prior.sigma_min, prior.sigma_max, levels).tolist()
    factors = [_squares(prior, z0, s, k, repeats, seed) / _trace(prior, s) for k, s in enumerate(sigmas)]
    return Spread(sigmas, factors)


def _trace(prior: Prior, sigma: float) -> float:
    return float(guess(prior, sigma).variance().sum())


@torch.no_grad()
def _squares(prior: Prior, z0: torch.Tensor, sigma: float, index: int, repeats: int, seed: int) -> float:
    """Mean of ``|z0 - D|^2`` over states and draws of the noise."""
    total = 0.0
    for part in chunks(repeats * len(z0), prior.space.size, None):
        rows = [i % len(z0) for i in part]
        noise = prior.noise(Streams(seed, list(part), [index] * len(part), purpose="spread"))
        clean = z0[rows].to(prior.dtype)
        total += float((clean - prior.denoise(clean + sigma * noise, sigma)).double().square().sum())
    if not np.isfinite(total):
        raise DivergenceError(f"calibrate: the denoiser's answer is not finite at sigma = {sigma:.4g}")
    return total / (repeats * len(z0))
