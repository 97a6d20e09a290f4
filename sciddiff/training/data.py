"""Where the batches of a training run come from.

Batch k of a run is a function of (data, seed, k) alone, so that a run that was stopped goes on with the
very states that it would have seen.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciddiff.errors import InputError
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = ["Source", "Stream", "Table", "source"]

_FIT_STATES, _FIT_VALUES = 8192, 2**26


class Source(ABC):
    """Batches of physical states ``(batch, *shape)``, float64 on the CPU.

    Attributes:
        sample: states for the fit of the normalisation and the Gaussian.
        digest: a hash of them, by which a resumed run knows its data.
    """

    sample: Tensor

    @abstractmethod
    def batch(self, step: int) -> Tensor:
        """The states of one step; steps are asked for in rising order."""

    def drivers(self, step: int) -> Tensor | None:
        """The covariates of that batch in standard deviations, ``(batch, k, *grid)``; None where there are none."""
        return None

    @property
    def digest(self) -> str:
        """See the class."""
        return hashlib.sha256(self.sample.contiguous().numpy().data).hexdigest()


@final
class Table(Source):
    """All states in memory, in a new order each time they have all been seen.

    Args:
        states: ``(n, *shape)``.
        batch: states a step.
        seed: of the orders.
        covariates: of each state, ``(n, k, *grid)``, where there are any.
    """

    def __init__(self, states: Tensor, batch: int, seed: int, covariates: Tensor | None = None) -> None:
        self.sample, self.size, self.seed, self.covariates = states, batch, seed, covariates
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> Tensor:
        """The states of `rows`."""
        return self.sample[self.rows(step)]

    def drivers(self, step: int) -> Tensor | None:
        """Their covariates."""
        return None if self.covariates is None else self.covariates[self.rows(step)]

    def rows(self, step: int) -> Tensor:
        """Places ``step * batch`` and following in the row of all orders."""
        places = np.arange(step * self.size, (step + 1) * self.size)
        epochs, within = np.divmod(places, len(self.sample))
        self._orders = {
            e: self._orders[e] if e in self._orders else self.order(e) for e in set(epochs.tolist())
        }
        rows = [self._orders[e][i] for e, i in zip(epochs.tolist(), within.tolist(), strict=True)]
        return torch.as_tensor(np.array(rows))

    def order(self, epoch: int) -> np.ndarray:
        """The order of one pass through the data."""
        generator = Streams(self.seed, [epoch], purpose="training order").numpy()[0]
        return np.asarray(generator.permutation(len(self.sample)))


@final
class Stream(Source):
    """Batches from an iterable, which is begun anew when it ends.

    Args:
        batches: an iterable of arrays ``(batch, *shape)``; an iterator too, if it does not end too soon.
        space: the states.
        batch_dim: name of the dim that counts states, in labelled batches.
    """

    def __init__(self, batches: Iterable[Any], space: Space, batch_dim: str) -> None:
        self.batches, self.space, self.batch_dim = batches, space, batch_dim
        self.once = iter(batches) is batches
        first: list[Tensor] = []
        for item in batches:
            first.append(self.read(item))
            states = sum(map(len, first))
            if states >= 2 and (states >= _FIT_STATES or states * space.size >= _FIT_VALUES):
                break
        if not first:
            raise InputError("data", expected="batches of states", got="an empty iterable", fix="pass data")
        self.sample = torch.cat(first)
        self._first, self._step, self._items = first, 0, self.begin()

    def begin(self) -> Iterator[Tensor]:
        """The batches from the start, as often as the iterable gives them."""
        if self.once:
            yield from chain(self._first, map(self.read, self.batches))
            return
        while True:
            yield from map(self.read, self.batches)

    def batch(self, step: int) -> Tensor:
        """Batch ``step``, reading past those in between."""
        for states in islice(self._items, step - self._step, None):
            self._step = step + 1
            return states
        raise InputError(
            "data",
            expected=f"at least {step + 1} batches",
            got="an iterator that ended",
            fix="pass something that can be iterated again, or fewer steps",
        )

    def read(self, item: Any) -> Tensor:
        """One batch, checked; a loader's list of one tensor is that tensor."""
        if isinstance(item, (list, tuple)) and len(item) == 1:
            item = item[0]
        return self.space.tensor(item, batch_dim=self.batch_dim)


def source(data: Any, space: Space, batch_dim: str, batch: int, seed: int) -> Source:
    """The batches of an array-like ``(n, *shape)``, or of an iterable of such arrays.

    Raises:
        InputError: on data that do not fit the space, NaN, or fewer than two states.
    """
    if isinstance(data, (list, tuple)):
        streamed = bool(data) and np.ndim(data[0]) == 1 + len(space.shape)
    else:
        streamed = not hasattr(data, "__array__") and isinstance(data, Iterable)
    if streamed:
        made: Source = Stream(data, space, batch_dim)
    else:
        made = Table(space.tensor(data, batch_dim=batch_dim), batch, seed)
    if len(made.sample) < 2:
        raise InputError("data", expected="at least 2 states", got=len(made.sample), fix="pass more data")
    return made
