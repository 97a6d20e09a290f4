"""From data to a prior: fit a Gaussian, train a network on what is left, keep the averaged weights.

The run itself is in `sciddiff.training.run`; here is what it starts from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sciddiff import networks
from sciddiff.covariance import Covariance, white
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, check_season
from sciddiff.priors.covariates import Covariates
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.neural import NeuralPrior, largest_eigenvalue
from sciddiff.random import check_seed
from sciddiff.spaces import Space, check_space
from sciddiff.training.data import Source, Table, source
from sciddiff.training.objective import Levels
from sciddiff.training.run import Augment, Plan, Training, augmented

__all__ = ["train"]

_DENSE_LIMIT = 4096
_FITS = ("auto", "dense", "diagonal", "periodic", "neumann", "dirichlet")


def train(
    data: Any,
    space: Space,
    *,
    network: Literal["unet", "mlp", "transformer", "dilated"] | nn.Module = "unet",
    settings: Mapping[str, Any] | None = None,
    gaussian: str | GaussianPrior | None = "auto",
    reference: Covariance | None = None,
    steps: int = 10_000,
    batch: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    schedule: Literal["cosine", "constant"] = "cosine",
    warmup: int | None = None,
    ema: float | None = None,
    sigmas: Literal["log-uniform"] | tuple[float, float] = "log-uniform",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    validation: Any = None,
    keep: Literal["last", "best"] = "last",
    augment: Augment | None = None,
    season: Any = None,
    covariates: Any = None,
    covariate_names: Sequence[str] | Mapping[str, str | None] | None = None,
    batch_dim: str = "sample",
    seed: int,
    out: str | PathLike[str] | None = None,
    resume: bool = True,
    checkpoint_every: int | None = None,
    log_every: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> NeuralPrior:
    """Train a neural prior by denoising score matching.

    Args:
        data: states in physical units along ``batch_dim``: xarray, numpy, torch ``(n, *shape)``; or an iterable
            of such batches, of which the first 8192 states (at most 512 MB) are used for the fit of the Gaussian.
        space: the states.
        network: "unet" for grids, "mlp" for up to a few hundred numbers, "transformer" for series of up to a thousand
            times on one dim, or a module ``F(x, time)``, of which a
            copy is trained, see `NeuralPrior` (a prior's ``network`` goes on from there).
        settings: of a network by name, e.g. ``{"width": 64, "padding": "circular"}``.
        gaussian: the skip path: a Gaussian that is fitted, "dense" (up to 4096 values, correlations shrunk as far as so
            few states require), "diagonal", or "periodic", "neumann" or "dirichlet" (diagonal in the modes of the grid,
            see `GaussianPrior.fit`); one of your own on this space; None for EDM's skip. Default "auto": "neumann" for
            a U-Net with under ten states for each value or over 4096 values, whose kernels could not undo the
            sampling noise of a dense fit; else "dense", or "diagonal" above 4096 values.
        reference: covariance of the noise in normalised units; default white, or the Gaussian's own.
        steps: optimiser steps.
        batch: states a step; an iterable decides itself.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        schedule: of the learning rate: "cosine" to 0, or "constant".
        warmup: steps over which it rises; default a fiftieth.
        ema: half-life, in steps, of the average of the weights, but at most a tenth of the steps so far; 0: no
            average; default a twentieth of the steps. (A decay d is a half-life of ``log(0.5)/log(d)``.)
        sigmas: law of the noise levels: "log-uniform", or (mean, sd) of a normal log sigma.
        sigma_min: lowest noise level; default 0.002.
        sigma_max: highest; default 20 times the largest standard deviation of the data, at least 5 times.
        validation: held-out states like ``data``; their loss under the averaged weights is recorded.
        keep: the averaged weights of the "last" step, or of the "best" one on ``validation``.
        augment: ``(x, generator) -> x`` on physical float64 states ``(batch, *shape)``, with all its randomness
            from the numpy generator.
        season: mean of each calendar month, ``(12,)`` for one series, kept with a prior over anomalies; see `Prior.season`.
        covariates: known drivers of every state, on its dims: an xarray.Dataset along ``batch_dim``, or an array
            ``(n, k, *grid)``. The network sees them as channels behind the others, and where the Gaussian is fitted
            their linear response is taken out before (ridge regression). The prior has to be told what they are before
            it is used, see `NeuralPrior.driven`; ``validation`` is then a pair of states and drivers.
        covariate_names: names of the drivers, or names -> units; default those of labelled data.
        batch_dim: the dim of labelled data that counts states.
        seed: fixes weights, order, levels and noise.
        out: folder for checkpoints; None writes none.
        resume: go on with the run in ``out``, if there is one; False begins anew. A run with other arguments or
            data is refused; of ``augment`` only the name can be compared, so pass False after changing its code.
        checkpoint_every: steps between checkpoints; default a twentieth of the steps.
        log_every: steps between records of the loss; default a hundredth of the steps.
        dtype: of the network and of the prior's states.
        device: of the same.
        progress: a progress bar; None shows it on a terminal and in notebooks.

    Returns:
        `NeuralPrior`; its ``history`` holds columns "step", "training", "validation" and, for bands of
        sigma, the training loss. A loss of 1 is that of the skip path on Gaussian data.

    Raises:
        InputError: on settings out of range, data that do not fit the space, or a checkpoint that is damaged
            or of another run.
        DivergenceError: if the loss is no longer finite.

    Example:
        >>> import numpy as np
        >>> data = np.random.Generator(np.random.Philox(0)).normal([[-1.0, 1.0]], 0.1, (64, 2))
        >>> prior = train(data, Space({"i": 2}), network="mlp", settings={"width": 8, "depth": 1}, steps=9, seed=0)
        >>> prior.sample(4, seed=0)["x"].shape
        (4, 2)
    """
    check_space(space)
    months = check_season(season, space)
    plan = Plan(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=max(1, steps // 50) if warmup is None else warmup,
        ema=steps / 20 if ema is None else ema,
        keep=keep,
        seed=check_seed(seed),
        checkpoint_every=max(1, steps // 20) if checkpoint_every is None else checkpoint_every,
        log_every=max(1, steps // 100) if log_every is None else log_every,
    )
    plan.check(validation is not None)
    # also where the caller works under no_grad or inference_mode
    with torch.inference_mode(False), torch.enable_grad():
        states = source(data, space, batch_dim, batch, plan.seed)
        known, drivers = None, None
        if covariates is not None:
            linear = gaussian is not None and not isinstance(gaussian, GaussianPrior)
            known, states = _driven(states, covariates, covariate_names, space, batch_dim, linear, augment)
        if validation is not None and known is not None:
            validation, drivers = _held_out(validation, known, space, batch_dim)
        held_out = (
            None if validation is None else source(validation, space, batch_dim, batch, plan.seed).sample
        )
        untrained = _untrained(
            augmented(states.sample, augment, plan.seed, "fit", 0),
            space,
            network=network,
            settings=settings,
            gaussian=gaussian,
            reference=reference,
            levels=(sigma_min, sigma_max),
            season=months,
            covariates=known,
            seed=plan.seed,
            dtype=dtype,
            device=torch.device(device),
        )
        normal = None if sigmas == "log-uniform" else _pair(sigmas)
        law = Levels(untrained.sigma_min, untrained.sigma_max, normal)
        folder = None if out is None else Path(out)
        run = Training(untrained, plan, law, states, held_out, augment, folder, held_out_drivers=drivers)
        run.begin(resume)
        run.go(progress)
        return run.prior()


def _untrained(
    states: Tensor,
    space: Space,
    *,
    network: str | nn.Module,
    settings: Mapping[str, Any] | None,
    gaussian: str | GaussianPrior | None,
    reference: Covariance | None,
    levels: tuple[float | None, float | None],
    season: Tensor | None,
    covariates: Covariates | None,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> NeuralPrior:
    """The prior before training: the fitted Gaussian, or EDM's skip path alone."""
    convolves = network == "unet" and space.homogeneous
    fitted = _fit_gaussian(states, space, gaussian, reference, convolves=convolves)
    units = Normalisation.fit(states, space) if fitted is None else fitted.normalisation
    noise = (white(space.shape) if reference is None else reference) if fitted is None else fitted.reference
    sample = units.normal(states[:: -(-len(states) // max(2, min(4096, 2**26 // space.size)))])
    inputs = (1 if fitted is None else 2) * (len(space.components) if space.homogeneous else 1)
    inputs += 0 if covariates is None else len(covariates.units)
    net = _network(network, settings, space, inputs, seed)
    return NeuralPrior(
        net.to(device, dtype),
        space,
        units if fitted is None else None,
        gaussian=fitted,
        reference=noise if fitted is None else None,
        largest=largest_eigenvalue(sample, noise),
        sigma_min=levels[0],
        sigma_max=levels[1],
        season=season,
        covariates=covariates,
    )


def _driven(
    states: Source, data: Any, names: Any, space: Space, batch_dim: str, linear: bool, augment: Augment | None
) -> tuple[Covariates, Source]:
    """The covariates of states in memory, and what their linear response leaves of these."""
    if not isinstance(states, Table) or augment is not None:
        raise InputError(
            "covariates",
            expected="all states in one array and no augment",
            got="an iterable of batches"
            if augment is None
            else "an augment, which would not know its drivers",
            fix="pass one array of states" if augment is None else "augment data and covariates beforehand",
        )
    known, u, rest = Covariates.fit(data, states.sample, space, names, batch_dim=batch_dim, linear=linear)
    return known, Table(rest, states.size, states.seed, u)


def _held_out(pair: Any, known: Covariates, space: Space, batch_dim: str) -> tuple[Tensor, Tensor]:
    """What the response leaves of held-out states, and their drivers."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InputError(
            "validation",
            expected="a pair (states, covariates)",
            got=type(pair).__name__,
            fix="pass validation=(held_out, drivers of them)",
        )
    x = space.tensor(pair[0], argument="validation", batch_dim=batch_dim)
    u = known.read(pair[1], space, batch_dim=batch_dim)
    if len(x) != len(u):
        raise InputError(
            "validation",
            expected=f"drivers of {len(x)} states",
            got=len(u),
            fix="give one set for each state",
        )
    shift = known.shift(u)
    return x if shift is None else x - shift.reshape(x.shape), u


def _fit_gaussian(
    states: Tensor,
    space: Space,
    gaussian: str | GaussianPrior | None,
    reference: Covariance | None,
    *,
    convolves: bool,
) -> GaussianPrior | None:
    """The Gaussian of the skip path; see `train`."""
    if gaussian is None:
        return None
    if isinstance(gaussian, GaussianPrior):
        if reference is not None:
            raise InputError("reference", expected="none", got="one", fix="the Gaussian brings its own")
        return gaussian
    if gaussian == "auto":
        small = space.size <= _DENSE_LIMIT
        few = len(states) < 10 * space.size or not small
        # a fit in the modes of a grid takes variables for independent, which would hide one from data on another
        alone = len(space.components) == 1
        gaussian = "neumann" if convolves and few and alone else "dense" if small else "diagonal"
    if gaussian not in _FITS:
        raise InputError(
            "gaussian",
            expected=f"one of {_FITS}, a GaussianPrior or None",
            got=repr(gaussian),
            fix="choose one",
        )
    if gaussian == "dense" and space.size > _DENSE_LIMIT:
        raise InputError(
            "gaussian",
            expected=f"at most {_DENSE_LIMIT} values in a state for 'dense'",
            got=space.size,
            fix="use 'neumann', 'periodic', 'diagonal' or a GaussianPrior of your own",
        )
    return GaussianPrior.fit(
        states,
        space,
        kind=gaussian,
        shrinkage="optimal" if gaussian == "dense" else 0.0,
        reference=reference,
    )


def _network(
    network: str | nn.Module, settings: Mapping[str, Any] | None, space: Space, inputs: int, seed: int
) -> nn.Module:
    """A network by name with the sizes of the space filled in, or a copy of a module."""
    if isinstance(network, nn.Module):
        if settings is not None:
            raise InputError(
                "settings",
                expected="none beside a module",
                got=settings,
                fix="give the module its own settings",
            )
        made = copy.deepcopy(network)
        # the network of a prior is frozen as a whole; one that is frozen in part is meant so
        return made if any(p.requires_grad for p in made.parameters()) else made.requires_grad_(True)
    sizes: dict[str, Any] = {"seed": seed}
    if network == "mlp":
        sizes["features"] = inputs * math.prod(space.grid)
    elif network == "transformer":
        if len(space.grid) != 1:
            raise InputError(
                "network",
                expected="a network for states on several dims",
                got="'transformer', which is for series on one dim",
                fix="use 'unet', or let further dims be variables of the series",
            )
        sizes["channels"] = inputs
    else:
        sizes |= {"channels": inputs, "dimensions": len(space.grid)}
    try:
        return networks.build(network, {**sizes, **(settings or {})})
    except InputError as error:
        if error.argument != "name":
            raise
        # `build` calls it a name; the caller of `train` calls it a network
        raise InputError("network", expected=error.expected, got=error.got, fix=error.fix) from None


def _pair(sigmas: Any) -> tuple[float, float]:
    try:
        mean, sd = sigmas
        return float(mean), float(sd)
    except (TypeError, ValueError) as error:
        raise InputError(
            "sigmas", expected="'log-uniform' or (mean, sd) of log sigma", got=repr(sigmas), fix="(-1.2, 1.2)"
        ) from error
