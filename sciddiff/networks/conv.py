"""A dilated convolutional network, for series of about a hundred steps at full resolution.

Residual blocks of one-dimensional convolutions whose taps lie ``d`` steps apart (van den Oord et al. 2016,
"WaveNet: A generative model for raw audio", section 2.1; here both ways in time). With ``e`` the embedding of time,
``N`` group norm (root mean square, without parameters), ``m(., e)`` the modulation and ``K2`` a product of channels, a block is

    h <- h + K2 silu(K1 *_d silu(m(N(h), e)))

A U-Net sees as far for less, but through halved grids; small noise about smooth dynamics has to be told at every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciddiff.errors import InputError
from sciddiff.networks.embedding import Backbone, TimeEmbedding, check_count, modulate

__all__ = ["Dilated"]

_EPSILON = 1e-5


class Dilated(Backbone):
    """Dilated residual network ``(batch, channels, L), (batch,) -> (batch, channels, L)`` for series of any length.

    Args:
        channels: channels of a state.
        dimensions: 1; the number of grid axes.
        width: hidden channels, at least 4.
        dilations: distance of the taps of the first convolution of each block.
        differences: sd of the first, second, ... differences in time of the data in normalised units. The network then
            also sees the differences of its input, each divided by its sd at the noise level at hand: increments of
            a process that moves little in a step are of order one there, and lost in rounding otherwise.
        seed: fixes all weights; the output is exactly zero until they are trained.

    Raises:
        InputError: a setting is out of range; or, in a call, x has other channels or dimensions, is not of the
            weights' dtype, or ``time`` is not ``(batch,)``.

    Example:
        >>> net = Dilated(channels=3, width=8, dilations=(1, 2), differences=(0.1,))
        >>> net(torch.ones(5, 3, 7), torch.zeros(5)).shape
        torch.Size([5, 3, 7])
        >>> Dilated(**net.settings).settings == net.settings
        True
    """

    def __init__(
        self,
        *,
        channels: int,
        dimensions: int = 1,
        width: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 8, 1, 2, 4, 8),
        differences: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        _check(channels, dimensions, width, dilations, differences)
        super().__init__(
            {
                "channels": channels,
                "dimensions": dimensions,
                "width": width,
                "dilations": list(dilations),
                "differences": list(differences),
                "seed": seed,
            }
        )
        self.channels, self.differences = channels, tuple(differences)
        embedding = 2 * width
        with torch.device("meta"):
            self.time = TimeEmbedding(embedding)
            self.first = _Conv(channels * (1 + len(differences)), width)
            self.blocks = nn.ModuleList(_Block(width, embedding, d) for d in dilations)
            self.modulation = nn.Linear(embedding, 2 * width)
            self.last = _Conv(width, channels)
        self.initialise(seed)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The network's value, of the shape of ``x``; ``time`` is ``(batch,)``, as log(sigma) / 4 is."""
        fits = x.ndim == 3 and x.shape[1] == self.channels and x.shape[2] > 0
        self.check_input(x, time, expected=f"shape (batch, {self.channels}, n)", fits=fits)
        embedded = self.time(time)
        h = self.first(self.seen(x, time))
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = self.last(nn.functional.silu(_normed(h, self.modulation(embedded))))
        return out

    def seen(self, x: Tensor, time: Tensor) -> Tensor:
        """``x`` and its differences, ``(batch, channels (1 + orders), L)``; those beyond the end are zero."""
        parts, step = [x], x
        # x has been divided by sqrt(1 + sigma^2), so this is the share of its variance that is noise
        share = torch.sigmoid(8 * time)[:, None, None].to(x)
        for order, sd in enumerate(self.differences, 1):
            step = torch.cat([step[..., 1:] - step[..., :-1], torch.zeros_like(step[..., :1])], 2)
            inside = torch.arange(x.shape[2], device=x.device) < x.shape[2] - order
            variance = sd**2 * (1 - share) + math.comb(2 * order, order) * share
            parts.append(step * inside * variance.rsqrt())
        return torch.cat(parts, 1)


class _Block(nn.Module):
    """``h + K2 silu(K1 *_d silu(m(N(h), e)))``."""

    def __init__(self, width: int, embedding: int, dilation: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * width)
        self.first = _Conv(width, width, dilation)
        self.last = _Conv(width, width, size=1)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        inner = nn.functional.silu(_normed(h, self.modulation(embedded)))
        out: Tensor = h + self.last(nn.functional.silu(self.first(inner)))
        return out


class _Conv(nn.Module):
    """A convolution whose taps lie ``dilation`` steps apart, zero beyond the ends."""

    def __init__(self, here: int, there: int, dilation: int = 1, *, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(there, here, size))
        self.bias = nn.Parameter(torch.empty(there))
        self.dilation, self.reach = dilation, size // 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x, self.weight, self.bias, padding=self.reach, dilation=self.dilation)


def _normed(h: Tensor, parameters: Tensor) -> Tensor:
    """``m(N(h), e)``, with N the group norm ``h / rms(h)`` in at most eight groups."""
    channels = h.shape[1]
    groups = max(n for n in range(1, 9) if channels % n == 0 and (n == 1 or channels // n >= 4))
    power = h.square().mean(2).unflatten(1, (groups, -1)).mean(2)
    gain = torch.rsqrt(power + _EPSILON).repeat_interleave(channels // groups, 1)
    return modulate(h, parameters, gain)


def _check(
    channels: object,
    dimensions: object,
    width: object,
    dilations: Sequence[int],
    differences: Sequence[float],
) -> None:
    check_count("channels", channels)
    check_count("width", width, least=4)
    if dimensions != 1:
        raise InputError("dimensions", expected="1", got=repr(dimensions), fix="take a U-Net for fields")
    for dilation in dilations:
        check_count("dilations", dilation)
    if not dilations:
        raise InputError("dilations", expected="one or more ints", got="none", fix="pass (1, 2, 4, 8), say")
    for sd in differences:
        if isinstance(sd, bool) or not isinstance(sd, (int, float)) or not 0 < sd < math.inf:
            raise InputError(
                "differences", expected="positive numbers", got=repr(sd), fix="measure them on data"
            )
