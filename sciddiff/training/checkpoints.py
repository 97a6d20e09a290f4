"""A training run on disk, so that it can be stopped at any instant and go on as if it had not been.

A checkpoint is a tensor file named after its step, and one document that names the step and holds the
tensors' hash. The document is replaced last, in one go: until then the checkpoint before is the valid one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sciddiff.errors import InputError
from sciddiff.priors.files import pack, read_document, read_tensors, seal, write

__all__ = ["Checkpoint", "flatten", "load_checkpoint", "restore_optimiser", "save_checkpoint"]

_FORMAT, _VERSION = "sciddiff training", 1


@final
@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` steps: its tensors by name, and a record of plain JSON values."""

    step: int
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, and only then remove the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    data, manifest = pack(checkpoint.tensors)
    numbers = _tensor_file(folder, checkpoint.step)
    write(numbers, data)
    document = {"format": _FORMAT, "version": _VERSION, "step": checkpoint.step}
    write(folder / "checkpoint.json", seal({**document, "record": checkpoint.record, "tensors": manifest}))
    # with the one before go the halves that a killed process left
    for old in [*folder.glob("checkpoint-*.safetensors*"), *folder.glob("checkpoint.json.tmp-*")]:
        if old != numbers:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint of a folder; None if it has none.

    Raises:
        InputError: if it is damaged or was altered.
    """
    if not (folder / "checkpoint.json").exists():
        return None
    document = read_document(folder / "checkpoint.json", _FORMAT, _VERSION)
    step = int(document["step"])
    return Checkpoint(step, read_tensors(_tensor_file(folder, step), document["tensors"]), document["record"])


def flatten(networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights of networks and the state of an optimiser as tensors by name."""
    tensors = {
        f"{role}.{name}": tensor
        for role, net in networks.items()
        for name, tensor in net.state_dict().items()
    }
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state that `flatten` took from another."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def weights(tensors: Mapping[str, Tensor], role: str) -> dict[str, Tensor]:
    """The weights of one network."""
    return {name.removeprefix(f"{role}."): t for name, t in tensors.items() if name.startswith(f"{role}.")}


def check_same_run(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun otherwise.

    Raises:
        InputError: naming the first setting that differs.
    """
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise InputError(
                name,
                expected=f"{theirs.get(name)!r}, as in the run that {folder} holds",
                got=repr(ours.get(name)),
                fix="repeat that run's call, choose another folder, or pass resume=False to begin anew",
            )


def _tensor_file(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:09d}.safetensors"
