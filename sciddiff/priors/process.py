"""A prior of series at any times: its noise is a process on the times at which a series was seen.

    z = z0 + sigma n,        n ~ N(0, C(t)),   C_ij = exp(-|t_i - t_j|/length)

The noise at two times that are close is nearly the same, as the values of a continuous series are, so that a law of
functions is learnt and not one of lists of numbers: it has values at times that no training series was seen at
(Bilos et al. 2023, "Modeling temporal data as continuous functions with stochastic process diffusion", section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from sciddiff.covariance import white
from sciddiff.covariance.markov import OrnsteinUhlenbeck, gaps
from sciddiff.errors import InputError
from sciddiff.priors.base import Normalisation, Prior
from sciddiff.priors.covariates import Told
from sciddiff.priors.neural import NeuralPrior
from sciddiff.spaces import Space

__all__ = ["ProcessPrior"]


@final
class ProcessPrior(Prior):
    """A learned law of series at times that are not fixed; made by `train_process`.

    `at` gives an ordinary prior on the times of one series. Before that there are no states to speak of: the `space`
    is that of as many times as the longest section of the training, without labels, and there is no denoiser.

    Args:
        network: ``F(x, time)`` on ``x (batch, variables + 1, n)`` for any n; the last channel holds the times in units of
            ``gap``, as `Transformer` takes them with ``stamps=True``.
        variables: name -> units.
        normalisation: mean and standard deviation of each variable, ``(1,)`` for one and ``(k, 1)`` for several.
        length: the time over which the noise forgets, in the units of the times, days where they are dates.
        memory: the same of the Ornstein-Uhlenbeck process that is likeliest for the data, whose covariance methods take
            where they ask for that of a fitted Gaussian.
        gap: a typical gap, in the same units.
        window: most times that the network was trained on.
        largest: largest eigenvalue of ``C^+ Sigma`` of the data on such sections.
        dated: whether times are dates.
        sigma_min: lowest noise level; default 0.002.
        sigma_max: highest; default ``20 sqrt(largest)``.
        history: what the trainer recorded.

    Raises:
        InputError: if the network does not take or return such shapes.

    Example:
        >>> from sciddiff.networks import Transformer
        >>> net = Transformer(channels=2, width=8, depth=1, heads=2, stamps=True)
        >>> one = Normalisation(torch.zeros(1), torch.ones(1))
        >>> prior = ProcessPrior(net, {"h": "m"}, one, length=2.0, memory=2.0, gap=0.5, window=64, largest=1.0)
        >>> prior.at([0.0, 0.1, 3.0]).sample(5, seed=0)["h"].dims
        ('sample', 'time')
    """

    def __init__(
        self,
        network: nn.Module,
        variables: Mapping[str, str | None],
        normalisation: Normalisation,
        *,
        length: float,
        memory: float,
        gap: float,
        window: int,
        largest: float,
        dated: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        history: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        for name, value in (("length", length), ("memory", memory), ("gap", gap)):
            if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise InputError(
                    name, expected="a positive number", got=repr(value), fix="use the units of the times"
                )
        self.network, self.variables, self.normalisation = network, dict(variables), normalisation
        self.length, self.memory, self.gap = float(length), float(memory), float(gap)
        self.window, self.dated, self.largest = int(window), bool(dated), float(largest)
        # on whatever times, the likeliest process has no more power than this in units of the noise
        self.largest = max(self.largest, self.memory / self.length, self.length / self.memory)
        self.space = Space({"time": self.window}, self.variables)
        self.reference = white(self.space.shape)
        self.history = {name: list(values) for name, values in (history or {}).items()}
        self._levels = (sigma_min, sigma_max)
        regular = self.on(np.full(self.window - 1, self.gap), self.space)
        self.dtype, self.device = regular.dtype, regular.device
        self.sigma_min, self.sigma_max = self._levels = regular.sigma_min, regular.sigma_max

    def at(self, times: Any) -> NeuralPrior:
        """The prior on these times, an ordinary one: for `given`, with NaN at the times to come or to fill.

        Args:
            times: increasing, dates where the training had dates and numbers where it had numbers; at most `window`.

        Raises:
            InputError: on times that are not increasing, of the other kind, or more than the network knows.
        """
        labels = np.asarray(times)
        steps = gaps(labels)
        if (labels.dtype.kind == "M") != self.dated:
            raise InputError(
                "times",
                expected="dates" if self.dated else "numbers",
                got=f"{labels.dtype}",
                fix="use the times of the training series",
            )
        if len(labels) > self.window:
            raise InputError(
                "times",
                expected=f"at most {self.window}, the longest section of the training",
                got=len(labels),
                fix="pass the times around those of interest, or train with a longer window",
            )
        return self.on(steps, Space({"time": labels}, self.variables))

    def on(self, steps: np.ndarray, space: Space) -> NeuralPrior:
        """The prior on a space whose times lie these gaps apart."""
        d = torch.from_numpy(np.asarray(steps, dtype=np.float64))
        stamps = torch.cat([d.new_zeros(1), (d / self.gap).cumsum(0)])
        parameter = next((p for p in self.network.parameters() if p.is_floating_point()), d)
        told = Told(self.network, stamps[None].to(parameter.device, parameter.dtype)).eval()
        one = torch.ones((*space.shape[:-1], 1), dtype=torch.float64)
        return NeuralPrior(
            told,
            space,
            self.normalisation,
            reference=OrnsteinUhlenbeck(d / self.length, one, space.shape),
            law=OrnsteinUhlenbeck(d / self.memory, one, space.shape),
            largest=self.largest,
            sigma_min=self._levels[0],
            sigma_max=self._levels[1],
            history=self.history,
        )

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """Refused: there is one for every choice of times, see `at`."""
        raise InputError(
            "prior",
            expected="a prior that knows its times",
            got="one of series at any times",
            fix="use prior.at(times)",
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`; the network is copied unless it stays as it is."""
        other = super().to(device, dtype)
        if (other.device, other.dtype) != (self.device, self.dtype):
            other.network = copy.deepcopy(self.network).to(other.device, other.dtype)
        return other
