"""Priors from data that were never seen whole: every state comes with values missing, ``y = A x0``.

More of each is hidden, ``B = A' A``, the network sees ``B z`` and ``B``, and is asked for all that had been seen:

    minimise E |A (D(B z, B, sigma) - z0)|^2,   z = z0 + sigma n

Of what was seen the network cannot tell what has been hidden on purpose, so it has to fill in everything: the
minimiser is ``E[z0 | B z, B]`` wherever a value is seen with positive probability given B (Daras et al. 2023,
arXiv 2305.19256, theorem 4.1). Gaussians need no network: `fit_incomplete`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, final

import torch
from torch import Tensor, nn

from sciddiff.covariance import dense, white
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.posterior import check_count
from sciddiff.priors.base import Normalisation, Prior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.neural import NeuralPrior, Preconditioning, evaluating, largest_eigenvalue
from sciddiff.random import Streams, check_seed
from sciddiff.spaces import Space, check_space
from sciddiff.training.data import Table
from sciddiff.training.objective import Levels
from sciddiff.training.run import Plan, Training
from sciddiff.training.trainer import _network

__all__ = ["AmbientLoss", "Glimpse", "MaskedNetwork", "fit_incomplete", "train_ambient"]

_BLOCK = 2**24


def train_ambient(
    data: Any,
    space: Space,
    *,
    delta: float = 0.1,
    network: Literal["unet", "mlp", "transformer", "dilated"] | nn.Module = "unet",
    settings: Mapping[str, Any] | None = None,
    steps: int = 10_000,
    batch: int = 64,
    learning_rate: float = 1e-3,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    validation: Any = None,
    batch_dim: str = "sample",
    seed: int,
    out: str | PathLike[str] | None = None,
    resume: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> NeuralPrior:
    """Train a neural prior on states none of which is complete (ambient diffusion, Daras et al. 2023).

    Values have to be missing completely at random: whether one is missing must not depend on the state, its seen values
    included (`fit_incomplete` also takes what depends on seen values). Every value has to be seen now and then; what is
    seen is taken as free of noise. The prior that is returned shows its network a mask of ones, which it has met in
    training only where few values are missing; `Glimpse` shows it a pattern like those of the training, as published.
    With `DPS` on a `Glimpse` that is A-DPS (Aali et al. 2024, arXiv 2403.08728).

    On 20000 states of a Gaussian series of six values, 40 % of them missing, an MLP of width 64 (1200 steps of 256
    states) came within 3 % of the posterior variance of the exact ``E[z0 | z]`` at noise from 0.1 to 3 times the
    standard deviation (4 to 11 % for `train` on gaps filled with zeros), and the standard deviations of its draws were
    1.04 to 1.10 of the exact ones (0.73 to 0.78). After half that training and with two of the values observed,
    `DPS` of 200 steps was as far off as with the exact prior, the means 0.4 posterior standard deviations (rms). `MMPS`
    needs more exact slopes than that network had, and drew 2 to 7 times too wide: take it on `fit_incomplete`.

    Args:
        data: states in physical units along ``batch_dim``, NaN where missing.
        space: the states.
        delta: probability with which a value that was seen is hidden from the network.
        network: "unet", "mlp", "transformer", or a module ``F(x, time)`` on twice the channels of a state, of which the first half
            of the output is used: the second half of its input is the mask.
        settings: of a network by name.
        steps: optimiser steps.
        batch: states a step.
        learning_rate: of AdamW, after the warm-up; the schedule and the average of the weights are those of `train`.
        sigma_min: lowest noise level; default 0.002.
        sigma_max: highest; default 20 times a bound on the largest standard deviation of the data.
        validation: held-out states like ``data``.
        batch_dim: the dim of labelled data that counts states.
        seed: fixes weights, order, levels, noise and what is hidden.
        out: folder for checkpoints, as for `train`.
        resume: go on with the run in ``out``.
        dtype: of the network and of the prior's states.
        device: of the same.
        progress: a progress bar; None shows it on a terminal and in notebooks.

    Returns:
        `NeuralPrior`, whose network is a `MaskedNetwork`. The losses of its ``history`` are those of the seen
        values, over all values.

    Raises:
        InputError: on settings out of range, a value that is missing in all states, or what `train` refuses.
        DivergenceError: if the loss is no longer finite.

    Example:
        >>> import numpy as np
        >>> generator = np.random.Generator(np.random.Philox(0))
        >>> data = np.where(generator.random((64, 2)) < 0.3, np.nan, generator.normal([-1.0, 1.0], 0.1, (64, 2)))
        >>> small = {"width": 8, "depth": 1}
        >>> prior = train_ambient(data, Space({"i": 2}), network="mlp", settings=small, steps=9, seed=0)
        >>> prior.sample(4, seed=0)["x"].shape
        (4, 2)
    """
    loss = AmbientLoss(delta)
    states = _incomplete(data, check_space(space), batch_dim)
    held_out = None if validation is None else _incomplete(validation, space, batch_dim)
    plan = Plan(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=1e-2,
        schedule="cosine",
        warmup=max(1, check_count("steps", steps) // 50),
        ema=steps / 20,
        keep="last",
        seed=check_seed(seed),
        checkpoint_every=max(1, steps // 20),
        log_every=max(1, steps // 100),
    )
    plan.check(validated=held_out is not None)
    with torch.inference_mode(False), torch.enable_grad():
        untrained = _untrained(
            states, space, network, settings, (sigma_min, sigma_max), plan.seed, torch.device(device), dtype
        )
        law = Levels(untrained.sigma_min, untrained.sigma_max)
        folder = None if out is None else Path(out)
        run = Training(
            untrained, plan, law, Table(states, batch, plan.seed), held_out, None, folder, objective=loss
        )
        run.begin(resume)
        run.go(progress)
        return run.prior()


def fit_incomplete(
    data: Any,
    space: Space,
    *,
    batch_dim: str = "sample",
    iterations: int = 1000,
    tol: float = 1e-5,
    **settings: Any,
) -> GaussianPrior:
    """The Gaussian of highest likelihood for incomplete states, by expectation-maximisation.

    Little and Rubin 2019, "Statistical Analysis with Missing Data", section 11.2.1; one matrix of the size of a state
    is factored for each pattern of missing values in each iteration. What is seen is taken as free of noise.

    Args:
        data: states along ``batch_dim``, NaN where missing, at random.
        space: the states, of up to a few hundred values.
        batch_dim: name of the dim of ``data`` that counts states.
        iterations: most iterations.
        tol: stop where no mean and no covariance moves by more than this, in units of the standard deviations.
        settings: passed to `GaussianPrior`.

    Raises:
        InputError: on a value that is missing in all states, or too few states for a covariance of full rank.
        ConvergenceError: if it does not stop in time.

    Example:
        >>> gap = float("nan")
        >>> fit_incomplete([[0.0, 1.0], [2.0, gap], [4.0, -1.0], [gap, 0.5]], Space({"i": 2})).space.shape
        (2,)
    """
    states = _incomplete(data, check_space(space), batch_dim)
    units = _units(states, space)
    z = units.normal(states).flatten(1)
    patterns, which = torch.unique(~z.isnan(), dim=0, return_inverse=True)
    z, d = z.nan_to_num(), z.shape[1]
    mean, covariance = torch.zeros(d, dtype=z.dtype), torch.eye(d, dtype=z.dtype)
    for _ in range(check_count("iterations", iterations)):
        filled, spread = _expected(z, patterns, which, mean, covariance)
        new = filled.mean(0)
        update = (filled - new).T @ (filled - new) / len(z) + spread
        moved = max(float((new - mean).abs().max()), float((update - covariance).abs().max()))
        mean, covariance = new, (update + update.T) / 2
        if moved < tol:
            scale = torch.broadcast_to(units.scale, space.shape).flatten()
            physical = units.physical(mean.reshape(space.shape))
            return GaussianPrior(
                space, dense(scale[:, None] * covariance * scale, space.shape), physical, **settings
            )
    raise ConvergenceError(
        f"fit_incomplete: after {iterations} iterations a moment still moves by {moved:.2g} standard deviations. "
        f"Raise iterations or tol (now {tol:g}), or pass more data."
    )


@final
@dataclass(frozen=True)
class AmbientLoss:
    """``|A (D(B z, B) - z0) / g|^2 / size`` of each state, as the objective of a training run.

    ``g`` is the rms error of the best guess without a network: ``c_out`` of EDM for what is shown, and the standard
    deviation, 1, of what is hidden. Weights of single values do not move the minimiser.

    Args:
        delta: probability with which a value that was seen is hidden.

    Raises:
        InputError: on a probability outside (0, 1): without hiding, nothing is learnt of missing values.

    Example:
        >>> AmbientLoss(0.2)
        AmbientLoss(delta=0.2)
    """

    delta: float

    def __post_init__(self) -> None:
        if not (isinstance(self.delta, (int, float)) and 0 < self.delta < 1):
            raise InputError(
                "delta", expected="a probability between 0 and 1", got=repr(self.delta), fix="pass 0.1"
            )

    def __call__(
        self,
        preconditioning: Preconditioning,
        network: Callable[..., Tensor],
        z0: Tensor,
        sigma: Tensor,
        streams: Streams,
    ) -> Tensor:
        """One loss for each state ``(batch, *shape)``, NaN where missing; the arguments of `objective.losses`."""
        reference, seen = preconditioning.reference, ~z0.isnan()
        z0 = torch.where(seen, z0, 0.0)
        noise = streams.normal((len(z0), *reference.white_shape), dtype=z0.dtype, device=z0.device)[0]
        z = z0 + sigma.to(z0).reshape(-1, *(1,) * (z0.ndim - 1)) * reference.sqrt(noise)
        shown = seen & (streams.uniform(z0.shape, dtype=z0.dtype, device=z0.device)[0] >= self.delta)
        d = _denoised(preconditioning, network, z, shown.to(z), sigma)
        error = torch.where(seen, d - z0, 0.0) / _gains(preconditioning, shown.to(z), sigma)
        return error.square().flatten(1).sum(1) / preconditioning.space.size


@final
class MaskedNetwork(nn.Module):
    """A network that is shown, beside its input, where that was seen: ``F([x, B], time)``.

    Args:
        inner: takes and returns ``(batch, 2 channels, *grid)``.
        channels: channels of a state.

    Example:
        >>> from sciddiff.networks import MLP
        >>> net = MaskedNetwork(MLP(features=6, width=8, depth=1), 1)
        >>> net(torch.ones(1, 1, 3), torch.zeros(1)).shape
        torch.Size([1, 1, 3])
    """

    def __init__(self, inner: nn.Module, channels: int) -> None:
        super().__init__()
        self.inner, self.channels = inner, channels
        self.settings = getattr(inner, "settings", None)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, channels, *grid)``; without a mask everything counts as seen."""
        seen = torch.ones_like(x) if mask is None else mask
        out: Tensor = self.inner(torch.cat([x, seen], 1), time)
        return out[:, : self.channels]


@final
class Glimpse(Prior):
    """A prior of `train_ambient` that sees a fixed part of every noisy state: ``D = E[z0 | B z, B]``.

    What the published samplers integrate (Daras et al. 2023, section 4.2, "fixed mask"). It is no denoiser of a law:
    where something is hidden draws are of the means and so too narrow, 0.3 of the posterior's standard deviation
    in the example of `train_ambient`, with four of the six values shown.

    Args:
        prior: made by `train_ambient`.
        mask: True where seen, of the shape of a state, such as that of one training state.

    Raises:
        InputError: on another prior or a mask of another shape.

    Example:
        >>> from sciddiff.networks import MLP
        >>> net = MaskedNetwork(MLP(features=6, width=8, depth=1), 1)
        >>> units = Normalisation(torch.zeros(3), torch.ones(3))
        >>> prior = NeuralPrior(net, Space({"i": 3}), units, largest=1.0)
        >>> Glimpse(prior, [True, False, True]).denoise(torch.ones(1, 3), 1.0).tolist()
        [[0.5, 0.0, 0.5]]
    """

    def __init__(self, prior: NeuralPrior, mask: Any) -> None:
        network = getattr(prior, "network", None)
        if not isinstance(prior, NeuralPrior) or not isinstance(network, MaskedNetwork):
            raise InputError(
                "prior",
                expected="a prior made by train_ambient",
                got=type(prior).__name__,
                fix="other priors see everything",
            )
        self.prior, self.network = prior, network
        shown = torch.as_tensor(mask, dtype=prior.dtype, device=prior.device)
        if tuple(shown.shape) != prior.space.shape or not bool(((shown == 0) | (shown == 1)).all()):
            raise InputError(
                "mask",
                expected=f"True and False of shape {prior.space.shape}",
                got=f"{tuple(shown.shape)}",
                fix="pass for example ~np.isnan(state)",
            )
        self.mask = shown
        for name in (
            "space",
            "normalisation",
            "reference",
            "sigma_min",
            "sigma_max",
            "dtype",
            "device",
            "season",
        ):
            setattr(self, name, getattr(prior, name))

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """``D(B z, B, sigma)``; sigma is positive, a number or ``(batch,)``."""
        value = torch.as_tensor(sigma, dtype=torch.float64, device=z.device)
        mask = self.mask.expand(z.shape)
        with evaluating(self.network):
            return _denoised(self.prior.preconditioning, self.network, z, mask, value)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`."""
        return type(self)(self.prior.to(device, dtype), self.mask)


def _denoised(
    preconditioning: Preconditioning, network: Callable[..., Tensor], z: Tensor, mask: Tensor, sigma: Tensor
) -> Tensor:
    """``D(B z, B, sigma) = c_skip B z + g F`` with the mask ``B`` of ones and zeros, and ``g`` of `_gains`."""
    skip, inputs = preconditioning.split(mask * z, sigma)
    out = network(inputs, (sigma.log() / 4).to(z).expand(len(z)), preconditioning.view(mask))
    return skip + _gains(preconditioning, mask, sigma) * out.reshape(z.shape)


def _gains(preconditioning: Preconditioning, mask: Tensor, sigma: Tensor) -> Tensor:
    """Rms error of the skip path at every value: ``c_out`` where it is shown, one where nothing is known."""
    c_out = preconditioning.c_out(sigma).to(mask)
    return torch.where(mask > 0, c_out.reshape(c_out.shape + (1,) * (mask.ndim - 1) * c_out.ndim), 1.0)


def _incomplete(data: Any, space: Space, batch_dim: str) -> Tensor:
    """States with NaN where missing, every value of which is seen in two states at least."""
    states = space.tensor(data, batch_dim=batch_dim, missing=True)
    least = int((~states.isnan()).sum(0).min()) if len(states) else 0
    if least < 2:
        raise InputError(
            "data",
            expected="every value seen in at least 2 states",
            got=f"one that is seen in {least} of {len(states)}",
            fix="pass more data, or leave that value out of the space",
        )
    return states


def _units(states: Tensor, space: Space) -> Normalisation:
    """Mean and standard deviation of what was seen of each variable, of the shape of a state."""
    sizes = [space._size(name) for name, _ in space.components]
    seen = [part[~part.isnan()] for part in states.flatten(1).split(sizes, 1)]
    pairs = list(zip(seen, sizes, strict=True))
    mean = torch.cat([v.mean().expand(n) for v, n in pairs]).reshape(space.shape)
    scale = torch.cat([v.std().expand(n) for v, n in pairs]).reshape(space.shape)
    if not bool((scale > 0).all()):
        raise InputError(
            "data", expected="variables that vary", got="a constant one", fix="drop the constant variable"
        )
    return Normalisation(mean, scale)


def _untrained(
    states: Tensor,
    space: Space,
    network: str | nn.Module,
    settings: Mapping[str, Any] | None,
    levels: tuple[float | None, float | None],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> NeuralPrior:
    """The prior before training: EDM's skip path, on what is shown."""
    units, reference = _units(states, space), white(space.shape)
    channels = len(space.components) if space.homogeneous else 1
    inner = _network(network, settings, space, 2 * channels, seed)
    # filled with the mean and divided by how often a value is seen: the covariance of that is right between
    # values that are missing independently, and too large on the diagonal
    share = (~states.isnan()).double().mean(0)
    some = states[:: -(-len(states) // max(2, min(4096, 2**26 // space.size)))]
    filled = units.normal(some).nan_to_num() / share
    return NeuralPrior(
        MaskedNetwork(inner, channels).to(device, dtype),
        space,
        units,
        reference=reference,
        largest=largest_eigenvalue(filled, reference),
        sigma_min=levels[0],
        sigma_max=levels[1],
    )


def _expected(
    z: Tensor, patterns: Tensor, which: Tensor, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """``E[z | seen]`` of every state, and the mean of ``Cov[z | seen]``."""
    d, eye = len(mean), torch.eye(len(mean), dtype=z.dtype)
    weights = torch.empty_like(z)
    precision = torch.zeros_like(covariance)
    for part in torch.arange(len(patterns)).split(max(1, _BLOCK // d**2)):
        on = patterns[part].to(z)
        outer = on[:, :, None] * on[:, None, :]
        factor, info = torch.linalg.cholesky_ex(outer * covariance + (1 - on)[:, :, None] * eye)
        if bool(info.any()):
            raise InputError(
                "data",
                expected="enough states for a covariance of full rank",
                got=f"{len(z)} incomplete states of {d} values",
                fix="pass more states, or a smaller space",
            )
        inverse = outer * torch.cholesky_inverse(factor)
        rows = torch.nonzero((which >= part[0]) & (which <= part[-1]))[:, 0]
        of = which[rows] - part[0]
        weights[rows] = torch.linalg.vecdot(inverse[of], (on[of] * (z[rows] - mean))[:, None, :])
        precision += (inverse * torch.bincount(of, minlength=len(part))[:, None, None]).sum(0)
    return mean + weights @ covariance, covariance - covariance @ (precision / len(z)) @ covariance
