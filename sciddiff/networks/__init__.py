"""Backbones: plain functions ``net(x, time)`` of x's shape, rebuilt from their name and settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sciddiff.errors import InputError
from sciddiff.networks.conv import Dilated
from sciddiff.networks.embedding import Backbone
from sciddiff.networks.mlp import MLP
from sciddiff.networks.transformer import Transformer
from sciddiff.networks.unet import UNet

__all__ = ["MLP", "Backbone", "Dilated", "Transformer", "UNet", "build"]

_CLASSES: dict[str, type[Backbone]] = {
    "dilated": Dilated,
    "mlp": MLP,
    "transformer": Transformer,
    "unet": UNet,
}


def build(name: str, settings: Mapping[str, Any]) -> Backbone:
    """The network called ``name`` ("dilated", "mlp", "transformer" or "unet") with the given settings, as ``net.settings`` keeps them.

    Raises:
        InputError: no network has this name, or a setting is unknown, missing or out of range.

    Example:
        >>> build("mlp", {"features": 3, "width": 8}).settings
        {'features': 3, 'width': 8, 'depth': 4, 'seed': 0}
    """
    if name not in _CLASSES:
        known = " or ".join(repr(known) for known in _CLASSES)
        raise InputError("name", expected=known, got=repr(name), fix="take one of these")
    make: Any = _CLASSES[name]
    try:
        inspect.signature(make).bind(**settings)
    except TypeError as error:
        expected = f"the arguments of {make.__name__}"
        raise InputError("settings", expected=expected, got=error, fix=f"see help({make.__name__})") from None
    network: Backbone = make(**settings)
    return network
