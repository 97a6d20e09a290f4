"""Noise keyed by (seed, purpose, case, draw), the same at any batch size, chunk, worker or device.

Every row of a batch owns one Philox stream (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"). torch's own CPU generator keeps only 32 bits of a seed and its stream depends on
the size of the request, so it is used nowhere in this library.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from sciddiff.errors import InputError

__all__ = ["Streams", "check_seed"]

_KEY_LIMIT = 2**64


def check_seed(seed: object) -> int:
    """Return ``seed`` as an int in ``[0, 2**64)``, or raise `InputError`."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < _KEY_LIMIT:
        raise InputError(
            "seed", expected="an int from 0 to 2**64 - 1", got=repr(seed), fix="pass for example seed=0"
        )
    return int(seed)


class Streams:
    """One random stream per row of a batch; row i depends on (seed, purpose, case i, draw i) alone.

    Args:
        seed: int in [0, 2**64).
        draws: index of the draw of each row.
        cases: index of the observation of each row; zeros where there is one.
        purpose: what the noise is for. Different purposes are independent at the same seed, so that
            a truth made with seed 0 shares no noise with the posterior draws made with seed 0.

    Example:
        >>> a = Streams(0, range(3), purpose="doc").normal((2,), dtype=torch.float64)
        >>> b = Streams(0, [2], purpose="doc").normal((2,), dtype=torch.float64)
        >>> bool((a[2] == b[0]).all())
        True
    """

    def __init__(
        self, seed: int, draws: Sequence[int], cases: Sequence[int] | None = None, *, purpose: str
    ) -> None:
        key, tag = check_seed(seed), zlib.crc32(purpose.encode())
        cases = [0] * len(draws) if cases is None else cases
        self._rows = [
            np.random.Generator(
                np.random.Philox(key=np.array([key, draw], dtype=np.uint64), counter=[0, 0, case, tag])
            )
            for draw, case in zip(draws, cases, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Standard normals ``(rows, *shape)``; float32 states see the float64 stream, rounded."""
        return self._fill(np.random.Generator.standard_normal, shape).to(device=device, dtype=dtype)

    def uniform(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Uniforms on [0, 1), ``(rows, *shape)``."""
        return self._fill(np.random.Generator.random, shape).to(device=device, dtype=dtype)

    def numpy(self) -> list[np.random.Generator]:
        """The rows' generators, for laws that only numpy can draw (Poisson, Student-t)."""
        return self._rows

    def _fill(self, law: Callable[..., object], shape: Sequence[int]) -> torch.Tensor:
        # memory of torch's own: where numpy's happens to lie can decide how a matrix product is rounded
        out = torch.empty((len(self._rows), *shape), dtype=torch.float64)
        values = out.numpy()
        for i, generator in enumerate(self._rows):
            law(generator, out=values[i, ...])
        return out
