"""Where datasets keep the files that they make: outside the checkout, whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["cache_dir", "cached", "checksum"]


def cache_dir() -> Path:
    """The folder that ``SCIDDIFF_CACHE`` names, or ``~/.cache/sciddiff``; made if it is missing.

    Example:
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, SCIDDIFF_CACHE=folder):
        ...     cache_dir() == Path(folder)
        True
    """
    named = os.environ.get("SCIDDIFF_CACHE")
    folder = Path(named).expanduser() if named else Path.home() / ".cache" / "sciddiff"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(name: str, make: Callable[[Path], object], cache: str | Path | None = None) -> Path:
    """The path of a file in the cache, made first if it is missing.

    ``make`` writes into a folder of its own, and the file is moved into place when it is whole: processes
    that make the same file at the same time do not meet, and what is interrupted leaves nothing behind.

    Args:
        name: of the file.
        make: writes it to the path that it is given.
        cache: another folder than `cache_dir`.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached("a.txt", lambda path: path.write_text("whole"), folder).read_text()
        'whole'
    """
    path = (cache_dir() if cache is None else Path(cache)) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as private:
            make(Path(private) / name)
            os.replace(Path(private) / name, path)
    return path


def checksum(*arrays: Any) -> str:
    """SHA-256 of shapes, types and values of numeric arrays, whatever their byte order or memory layout.

    Example:
        >>> checksum(np.arange(3.0)) == checksum(np.arange(3.0).astype(">f8"))
        True
        >>> checksum(np.zeros(2)) == checksum(np.zeros((1, 2)))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        digest.update(f"{values.dtype.kind}{values.dtype.itemsize}{values.shape}".encode() + little.tobytes())
    return digest.hexdigest()
