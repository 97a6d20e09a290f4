"""Files that cannot be torn, altered or run: numbers in safetensors, the rest in JSON, a hash of both.

A document is JSON with the sha256 of its own text and of the tensor file beside it. A file is written
under another name, flushed to the disk and moved into place; it is read whole, after its size was checked,
and its hash is compared before anything in it is used. Nothing is unpickled or evaluated.

The hashes find accidents. They do not find an attacker, who can compute them too: so what comes
out of here is still checked as foreign input by those who build something of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciddiff.errors import InputError

__all__ = ["pack", "read", "read_document", "read_tensors", "seal", "write"]

JSON_LIMIT = 2**26
TENSOR_LIMIT = 2**34


def pack(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, Any]]:
    """Tensors as safetensors, and what a document says of them: size, hash, dtypes and shapes.

    Example:
        >>> data, manifest = pack({"a": torch.zeros(2, 3)})
        >>> manifest["entries"]
        {'a': ['float32', [2, 3]]}
    """
    from safetensors.torch import save

    # clones: safetensors refuses tensors that share memory
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data: bytes = save(held)
    entries = {name: [_name(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(held.items())}
    return data, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "entries": entries}


def seal(document: Mapping[str, Any]) -> bytes:
    """A document as JSON, one line for each of its entries, with the hash of its text.

    Example:
        >>> print(seal({"b": [1, 2], "a": "x"}).decode())
        {
        "a": "x",
        "b": [1, 2],
        "checksum": "...
    """
    digest = hashlib.sha256(_text(document)).hexdigest()
    return _text({**document, "checksum": digest})


def write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, all of it or nothing, whenever the process or the machine may stop."""
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most ``limit``.

    Raises:
        InputError: if there is no such file, it is not a plain one, or it is larger.
    """
    try:
        with open(path, "rb", opener=_plain) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= limit:
                return file.read(size)
    except OSError as error:
        raise InputError(
            "path", expected=f"a file {path}", got=error, fix="check the path; leave the suffix out"
        ) from error
    raise InputError(
        "path", expected=f"at most {limit} bytes in {path.name}", got=size, fix="get the file again"
    )


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """The document that `seal` wrote, without its hash.

    Args:
        path: a JSON file.
        kind: what it has to hold under "format".
        version: the newest version that is understood.

    Raises:
        InputError: if it was altered in any byte, is of another kind, or of a newer version.
    """
    # git may have changed the line ends, which stand between the entries only
    raw = read(path, JSON_LIMIT).replace(b"\r\n", b"\n")
    try:
        document = json.loads(raw, parse_constant=_refuse)
        intact = isinstance(document, dict) and "checksum" in document
        if intact:
            document.pop("checksum")
            intact = seal(document) == raw
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(path, "a file that is damaged or was altered")
    if document.get("format") != kind:
        raise _damaged(path, f"a {document.get('format')!r}", expected=f"a {kind}")
    found = document.get("version")
    if not isinstance(found, int) or not 1 <= found <= version:
        raise InputError(
            "path",
            expected=f"version {version} or older of the format",
            got=f"version {found} in {path.name}",
            fix="upgrade sciddiff",
        )
    return dict(document)


def read_tensors(path: Path, manifest: Any) -> dict[str, Tensor]:
    """The tensors of a file that `pack` made, on the CPU.

    Raises:
        InputError: if the file is not, byte for byte, the one that the manifest describes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        size, digest, entries = int(manifest["bytes"]), manifest["sha256"], dict(manifest["entries"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "no manifest of it") from error
    data = read(path, min(size, TENSOR_LIMIT))
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path, "a file that is damaged, was altered, or belongs to another .json")
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise _damaged(path, f"no safetensors: {error}") from error
    if {name: [_name(t.dtype), list(t.shape)] for name, t in tensors.items()} != entries:
        raise _damaged(path, "other tensors than its .json says")
    # clones: views into the file lie anywhere in memory, and products of unaligned matrices round otherwise
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _text(document: Mapping[str, Any]) -> bytes:
    lines = [
        f"{json.dumps(name)}: {json.dumps(document[name], allow_nan=False)}" for name in sorted(document)
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(path: str, flags: int) -> int:
    """Open without waiting on a pipe, and only plain files."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("not a plain file")
    return handle


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _damaged(path: Path, got: str, *, expected: str = "a file as it was written") -> InputError:
    return InputError("path", expected=expected, got=f"{got} ({path.name})", fix="get or make the file again")
