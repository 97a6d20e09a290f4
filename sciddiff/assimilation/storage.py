"""Emulators on disk, as priors are: ``name.safetensors`` for the numbers, ``name.json`` for the rest, no code in either."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciddiff import networks
from sciddiff.assimilation.dyffusion import DYffusion, NetworkForecaster, NetworkInterpolator
from sciddiff.assimilation.emulators import Autoregressive, Emulator
from sciddiff.assimilation.surrogates import Surrogate
from sciddiff.covariance import Covariance, Eigen, Full, dense
from sciddiff.errors import InputError, SciddiffError
from sciddiff.priors.base import Normalisation
from sciddiff.priors.files import pack, read_document, read_tensors, seal, write
from sciddiff.spaces import Space

__all__ = ["load_emulator", "save_emulator"]

_FORMAT, _VERSION = "sciddiff emulator", 1


def save_emulator(emulator: Emulator, path: str | PathLike[str], *, half: bool = False) -> None:
    """Write a trained `DYffusion` or `Autoregressive`.

    Args:
        emulator: what `train_dyffusion` or `train_autoregressive` made.
        path: where to, without a suffix.
        half: keep the weights in half precision.

    Raises:
        InputError: on an emulator made of other functions.
    """
    made, settings = _networks(emulator)
    assert isinstance(emulator, (DYffusion, Autoregressive))
    tensors: dict[str, Tensor] = {
        "normalisation.mean": emulator.normalisation.mean,
        "normalisation.scale": emulator.normalisation.scale,
    }
    if isinstance(emulator, Autoregressive) and emulator.noise is not None:
        tensors["noise.values"], tensors["noise.rows"] = _spectrum(emulator.noise)
    for role, surrogate in made.items():
        for name, weight in surrogate.network.state_dict().items():
            tensors[f"{role}.{name}"] = weight.half() if half else weight
    data, manifest = pack(tensors)
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": type(emulator).__name__.lower(),
        "settings": settings,
        "space": emulator.space.to_dict(),
        "interval": _stored(emulator.interval),
        "networks": {
            role: {
                "name": type(s.network).__name__.lower(),
                "settings": s.network.settings,
                "inputs": s.inputs,
                "dropout": s.dropout,
            }
            for role, s in made.items()
        },
        "tensors": manifest,
    }
    numbers, text = Path(f"{path}.safetensors"), Path(f"{path}.json")
    numbers.parent.mkdir(parents=True, exist_ok=True)
    write(numbers, data)
    write(text, seal(document))


def load_emulator(path: str | PathLike[str]) -> DYffusion | Autoregressive:
    """Read an emulator that `save_emulator` wrote; executes nothing from the files.

    Args:
        path: where it was saved, without a suffix.

    Raises:
        InputError: if a file is missing, damaged or altered.
    """
    text = Path(f"{path}.json")
    document = read_document(text, _FORMAT, _VERSION)
    tensors = read_tensors(Path(f"{path}.safetensors"), document.get("tensors"))
    try:
        return _build(document, tensors)
    except (SciddiffError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "path",
            expected="an emulator that save_emulator wrote",
            got=f"{text.name}, of which none can be made: {type(error).__name__}: {error}",
            fix="get or make the file again",
        ) from error


def _networks(emulator: Emulator) -> tuple[dict[str, Surrogate], dict[str, Any]]:
    """The networks by role, and the settings beside them."""
    if isinstance(emulator, Autoregressive):
        return {"network": emulator.network}, {}
    if isinstance(emulator, DYffusion):
        between, jump = emulator.interpolator, emulator.forecaster
        if isinstance(between, NetworkInterpolator) and isinstance(jump, NetworkForecaster):
            names = ("horizon", "sampling", "refine")
            return (
                {"interpolator": between.network, "forecaster": jump.network},
                {name: getattr(emulator, name) for name in names},
            )
    raise InputError(
        "emulator",
        expected="one that was trained",
        got=repr(emulator),
        fix="keep the code that makes it; a prior has a save() of its own",
    )


def _build(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DYffusion | Autoregressive:
    space = Space.from_dict(document["space"])
    units = Normalisation(tensors["normalisation.mean"].double(), tensors["normalisation.scale"].double())
    made = {role: _surrogate(role, data, tensors, space) for role, data in document["networks"].items()}
    dtype, value = document["interval"]
    interval = np.array(value, dtype=dtype)[()]
    if document["kind"] == "autoregressive":
        noise = None
        if "noise.values" in tensors:
            noise = Eigen(Full(space.shape, tensors["noise.rows"].T), tensors["noise.values"])
        return Autoregressive(made["network"], units, noise, interval)
    if document["kind"] != "dyffusion":
        raise ValueError(f"kind {document['kind']!r}")
    settings = document["settings"]
    horizon = int(settings["horizon"])
    return DYffusion(
        NetworkInterpolator(made["interpolator"], horizon),
        NetworkForecaster(made["forecaster"], horizon),
        horizon,
        space,
        units,
        interval,
        settings["sampling"],
        bool(settings["refine"]),
    )


def _spectrum(noise: Covariance) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, not the matrix: of equal eigenvalues, eigenvectors come out otherwise each time."""
    if not isinstance(noise, Eigen) or not isinstance(noise.basis, Full):
        size = math.prod(noise.shape)
        noise = dense(
            noise.apply(torch.eye(size, dtype=torch.float64).reshape(size, *noise.shape)).reshape(size, size),
            noise.shape,
        )
    assert isinstance(noise.basis, Full)
    return noise.eigenvalues, noise.basis.columns.T


def _surrogate(role: str, data: Mapping[str, Any], tensors: Mapping[str, Tensor], space: Space) -> Surrogate:
    network = networks.build(data["name"], data["settings"])
    weights = {n.removeprefix(f"{role}."): t for n, t in tensors.items() if n.startswith(f"{role}.")}
    # strict: every parameter is there, in its shape, and none beside them
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    return Surrogate(network, space, inputs=int(data["inputs"]), dropout=float(data["dropout"]))


def _stored(interval: Any) -> tuple[str, Any]:
    value = np.asarray(interval)
    return str(value.dtype), (value.astype(np.int64) if value.dtype.kind == "m" else value).item()
