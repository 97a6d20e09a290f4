"""A guard around every test and every doctest: torch and numpy are left as they were found.

It stands at the root, not under tests/, so that the examples in sciddiff's docstrings are guarded too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

# how to read each piece of global state, as something that compares, and how to put it back
STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic mode": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's random state": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda old: torch.set_rng_state(torch.frombuffer(bytearray(old), dtype=torch.uint8)),
    ),
    "numpy's random state": (lambda: _as_tuples(np.random.get_state(legacy=True)), np.random.set_state),
}


@pytest.fixture(autouse=True)
def leave_global_state_alone() -> Iterator[None]:
    """Fail a test that changes global state, and put the state back for the next one."""
    before = {name: read() for name, (read, _) in STATE.items()}
    yield
    changed = [name for name, (read, _) in STATE.items() if read() != before[name]]
    for name in changed:
        STATE[name][1](before[name])
    if changed:
        pytest.fail(f"this test changed {' and '.join(changed)}", pytrace=False)


def _as_tuples(state: Any) -> tuple[Any, ...]:
    return tuple(tuple(part.tolist()) if isinstance(part, np.ndarray) else part for part in state)
