"""A U-Net for states on a grid of one, two or three dimensions and of any size.

Ronneberger et al. 2015, "U-Net: Convolutional networks for biomedical image segmentation", with residual
blocks whose norm time modulates (Dhariwal and Nichol 2021, section 3). With ``e`` the embedding of time,
``N`` group norm (root mean square, without parameters) and ``m(., e)`` the modulation, a block is

    h <- h + K2 * silu(K1 * silu(m(N(h), e)))

A level halves the grid by a strided convolution that keeps ``ceil(n / 2)`` cells, centred on cells
0, 2, 4, ... of the finer grid. On the way back, fine cell i takes the value of coarse cell ``i // 2``,
so the two ways agree at odd sizes too and nothing is cropped or filled.

Axes that are short, or along which no law is the same everywhere, need not be convolved over: folded into the
channels, their cells all see each other, and a window of n times of a ring of sites costs as much as one ring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sciddiff.errors import InputError
from sciddiff.networks.embedding import Backbone, TimeEmbedding, check_count, modulate

__all__ = ["Padding", "UNet"]

Padding = Literal["zeros", "circular", "replicate"]

_HEAD, _EPSILON = 32, 1e-5
_CONVOLVE = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


class UNet(Backbone):
    """U-Net ``(batch, channels, *grid), (batch,) -> (batch, channels, *grid)`` in 1-D, 2-D or 3-D.

    Args:
        dimensions: 1, 2 or 3, the number of grid axes.
        channels: channels of a state.
        width: hidden channels at full resolution, at least 4.
        multipliers: hidden channels of each level, in units of ``width``; each level after the first
            halves the grid. The grid itself may have any size, 1 included.
        blocks: residual blocks of each level on the way down, and as many on the way up.
        attention: levels (0 is full resolution) that also have self-attention. Memory grows with the
            square of the number of cells: meant for levels of at most about a thousand.
        padding: what lies beyond the border: "zeros" tells the net where the border is, "circular" is
            for periodic axes (the net then commutes with shifts by ``2 ** (levels - 1)`` cells on grids
            that this number divides), "replicate" repeats the border cell. One for all axes that are
            convolved over, or one for each of them.
        folded: sizes of the leading axes of the grid that are taken as channels, and not convolved over;
            at least one axis is left.
        seed: fixes all weights; the output is exactly zero until they are trained.

    Note:
        Full resolution is what costs. A training step of batch 32 on 64 x 64 cells takes about 0.9 s of
        one processor core with the defaults (0.52 million parameters), 1.6 s with ``blocks=2`` (0.93
        million), and 0.4 s with ``width=16, multipliers=(1, 2, 4, 4)`` (0.46 million), which in 60 s of
        training on 32 x 32 fields reached the same loss as the defaults did.

    Raises:
        InputError: a setting is out of range; or, in a call, x has other channels or dimensions, is not
            of the weights' dtype, or ``time`` is not ``(batch,)``.

    Example:
        >>> net = UNet(dimensions=2, channels=3, width=8, multipliers=(1, 2), blocks=1)
        >>> net(torch.ones(5, 3, 7, 1), torch.zeros(5)).shape
        torch.Size([5, 3, 7, 1])
        >>> UNet(**net.settings).settings == net.settings
        True
    """

    def __init__(
        self,
        *,
        dimensions: int,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        padding: Padding | Sequence[Padding] = "zeros",
        folded: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        _check(dimensions, channels, width, multipliers, blocks, attention)
        axes = _axes(dimensions, folded)
        borders = _borders(padding, axes)
        super().__init__(
            {
                "dimensions": dimensions,
                "channels": channels,
                "width": width,
                "multipliers": list(multipliers),
                "blocks": blocks,
                "attention": list(attention),
                "padding": padding if isinstance(padding, str) else list(padding),
                "folded": list(folded),
                "seed": seed,
            }
        )
        self.dimensions, self.channels, self.folded = dimensions, channels, tuple(folded)
        widths, embedding = [width * multiplier for multiplier in multipliers], 4 * width

        def stage(level: int) -> _Stage:
            parts = [_Block(axes, widths[level], embedding, borders) for _ in range(blocks)]
            return _Stage([*parts, _Attention(widths[level], embedding)] if level in attention else parts)

        def conv(here: int, there: int, stride: int = 1) -> _Conv:
            return _Conv(axes, here, there, padding=borders, stride=stride)

        stacked = channels * math.prod(folded)

        with torch.device("meta"):
            self.time = TimeEmbedding(embedding)
            self.first = conv(stacked, width)
            self.descent = nn.ModuleList(stage(level) for level in range(len(widths)))
            self.ascent = nn.ModuleList(stage(level) for level in range(len(widths)))
            self.down = nn.ModuleList(conv(a, b, 2) for a, b in pairwise(widths))
            self.up = nn.ModuleList(_Conv(axes, b, a, size=1) for a, b in pairwise(widths))
            self.modulation = nn.Linear(embedding, 2 * width)
            self.last = conv(width, stacked)
        self.initialise(seed)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The network's value, of the shape of ``x``; ``time`` is ``(batch,)``, as log(sigma) / 4 is."""
        kept = len(self.folded)
        fits = x.ndim == self.dimensions + 2 and x.shape[1] == self.channels and x.shape[2:].numel() > 0
        fits = fits and x.shape[2 : 2 + kept] == self.folded
        grid = ", ".join([*map(str, self.folded), *["n"] * (self.dimensions - kept)])
        self.check_input(x, time, expected=f"shape (batch, {self.channels}, {grid})", fits=fits)
        embedded = self.time(time)
        h = _channels_last(self.first(x.flatten(1, 1 + kept)))
        skips = []
        for level, stage in enumerate(self.descent):
            h = stage(self.down[level - 1](h) if level else h, embedded)
            skips.append(h)
        h = self.ascent[-1](h, embedded)
        for level in reversed(range(len(self.up))):
            h = self.ascent[level](skips[level] + _double(self.up[level](h), skips[level]), embedded)
        h = nn.functional.silu(_normed(h, self.modulation(embedded)))
        out: Tensor = self.last(h)
        return out.contiguous().reshape(x.shape)


class _Stage(nn.Sequential):
    """The residual parts of one level, one after the other, each told the time."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(*parts)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:  # type: ignore[override]
        for part in self:
            h = part(h, embedded)
        return h


class _Block(nn.Module):
    """``h + K2 * silu(K1 * silu(m(N(h), e)))``: one norm a block, because norms cost as much as kernels."""

    def __init__(self, dimensions: int, width: int, embedding: int, padding: Sequence[Padding]) -> None:
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * width)
        self.first = _Conv(dimensions, width, width, padding=padding)
        self.last = _Conv(dimensions, width, width, padding=padding)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        inner = nn.functional.silu(_normed(h, self.modulation(embedded)))
        out: Tensor = h + self.last(nn.functional.silu(self.first(inner)))
        return out


class _Attention(nn.Module):
    """Residual self-attention over the cells of the grid, in heads of about 32 channels.

    Written out, because the fused kernels of torch have no second derivative on the CPU.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * width)
        self.heads = max(n for n in range(1, max(1, width // _HEAD) + 1) if width % n == 0)
        self.mix = nn.Linear(width, 3 * width)
        self.last = nn.Linear(width, width)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        cells = _normed(h, self.modulation(embedded)).flatten(2).transpose(1, 2)
        split = self.mix(cells).unflatten(2, (3, self.heads, -1)).transpose(1, 3)
        query, key, value = split.unbind(2)
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        mixed = self.last((weights @ value).transpose(1, 2).flatten(2))
        out: Tensor = h + mixed.transpose(1, 2).reshape(h.shape)
        return out


class _Conv(nn.Module):
    """A convolution of odd ``size`` that keeps ``ceil(n / stride)`` cells of an axis."""

    def __init__(
        self,
        dimensions: int,
        here: int,
        there: int,
        *,
        size: int = 3,
        stride: int = 1,
        padding: Sequence[Padding] = (),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(there, here, *[size] * dimensions))
        self.bias = nn.Parameter(torch.empty(there))
        self.stride, self.padding, self.reach = stride, tuple(padding), size // 2

    def forward(self, x: Tensor) -> Tensor:
        convolve = _CONVOLVE[x.ndim - 2]
        if not self.reach:
            return convolve(x, self.weight, self.bias, stride=self.stride)
        zeros = [int(p == "zeros") for p in self.padding]
        return convolve(_pad(x, self.padding), self.weight, self.bias, stride=self.stride, padding=zeros)


def _pad(x: Tensor, padding: Sequence[Padding]) -> Tensor:
    """One more cell at both ends of every axis that is not filled with zeros, which the convolution does itself.

    Split and cat have cheap derivatives, ``F.pad`` has not.
    """
    for axis, border in enumerate(padding, 2):
        if border == "zeros":
            continue
        if x.shape[axis] == 1:
            x = torch.cat([x, x, x], axis)
            continue
        first, inner, last = torch.split(x, [1, x.shape[axis] - 2, 1], axis)
        before, after = (last, first) if border == "circular" else (first, last)
        x = torch.cat([before, first, inner, last, after], axis)
    return x


def _double(coarse: Tensor, like: Tensor) -> Tensor:
    """Cell i of the finer grid takes coarse cell ``i // 2``; an odd axis needs the last one only once."""
    fine = nn.functional.interpolate(coarse, scale_factor=2.0)
    for axis in range(2, fine.ndim):
        if fine.shape[axis] > like.shape[axis]:
            fine = fine.narrow(axis, 0, like.shape[axis])
    return fine


def _normed(h: Tensor, parameters: Tensor) -> Tensor:
    """``m(N(h), e)`` in one pass, with N the group norm ``h / rms(h)`` in at most eight groups.

    Each row of the batch on its own. Plain sums, because torch's fused group norm has neither vmap nor
    forward mode where channels are innermost; without its centring they cost and train the same.
    """
    channels = h.shape[1]
    groups = max(n for n in range(1, 9) if channels % n == 0 and (n == 1 or channels // n >= 4))
    power = h.square().mean(tuple(range(2, h.ndim))).unflatten(1, (groups, -1)).mean(2)
    gain = torch.rsqrt(power + _EPSILON).repeat_interleave(channels // groups, 1)
    return modulate(h, parameters, gain)


def _channels_last(h: Tensor) -> Tensor:
    """The same tensor with channels innermost in memory: kernels are two to three times faster on a CPU."""
    return h.movedim(1, -1).contiguous().movedim(-1, 1) if h.ndim > 3 else h


def _check(
    dimensions: object,
    channels: object,
    width: object,
    multipliers: Sequence[int],
    blocks: object,
    attention: Sequence[int],
) -> None:
    if isinstance(dimensions, bool) or dimensions not in (1, 2, 3):
        raise InputError(
            "dimensions", expected="1, 2 or 3", got=repr(dimensions), fix="count the axes of the grid"
        )
    check_count("channels", channels)
    check_count("width", width, least=4)
    check_count("blocks", blocks)
    for multiplier in multipliers:
        check_count("multipliers", multiplier)
    if not multipliers:
        raise InputError("multipliers", expected="one or more ints", got="none", fix="pass (1, 2, 2), say")
    for level in attention:
        if check_count("attention", level, least=0) >= len(multipliers):
            expected = f"levels from 0 to {len(multipliers) - 1}"
            raise InputError("attention", expected=expected, got=level, fix="leave that level out")


def _axes(dimensions: int, folded: Sequence[int]) -> int:
    """How many axes are convolved over."""
    for size in folded:
        check_count("folded", size)
    if len(folded) >= dimensions:
        expected = f"fewer than the {dimensions} axes of the grid"
        raise InputError("folded", expected=expected, got=list(folded), fix="leave at least one axis")
    return dimensions - len(folded)


def _borders(padding: object, axes: int) -> tuple[Padding, ...]:
    """What lies beyond the border of each axis that is convolved over."""
    borders = [padding] * axes if isinstance(padding, str) else list(padding)  # type: ignore[call-overload]
    if len(borders) != axes or any(border not in get_args(Padding) for border in borders):
        expected = f"one of {get_args(Padding)}, or one for each of {axes} axes"
        fix = "take those that suit the border"
        raise InputError("padding", expected=expected, got=repr(padding), fix=fix)
    return tuple(borders)
