"""A transformer over time, for windows of series: every time looks at every other, however far.

With ``e`` the embedding of the noise level, ``N`` layer norm without parameters and ``m(., e)`` the modulation,
a block is (Peebles and Xie 2023, "Scalable diffusion models with transformers", section 3.2)

    h <- h + A(m(N(h), e)),        h <- h + W2 silu(W1 m(N(h), e))

In the attention ``A``, queries and keys are turned by angles that grow with time (Su et al. 2021, "RoFormer",
section 3.2), so that a weight depends on how far apart two times are and not on where they lie. Times may be
irregular: they then come in with the states, as a channel of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciddiff.errors import InputError
from sciddiff.networks.embedding import Backbone, TimeEmbedding, check_count, modulate

__all__ = ["Transformer"]

_REACH = 1000.0


class Transformer(Backbone):
    """Transformer ``(batch, channels, n), (batch,) -> (batch, channels, n)``, for any number n of times.

    Args:
        channels: channels of a state, the variables of a series; with ``stamps`` also that of the times.
        width: features of each time, a multiple of twice the heads.
        depth: number of blocks.
        heads: attention heads.
        stamps: False: times are 0, 1, 2, ... and the net also knows where in the window a time lies. True: the
            last channel of ``x`` holds the time stamps of each row, sorted, in units of a typical gap, and the
            net knows the gaps alone: shifting all stamps changes nothing.
        seed: fixes all weights; the output is exactly zero until they are trained.

    Note:
        Memory and time grow with the square of n: meant for windows of up to about a thousand times.

    Raises:
        InputError: a setting is out of range; or, in a call, x has other channels or dimensions, is not
            of the weights' dtype, or ``time`` is not ``(batch,)``.

    Example:
        >>> net = Transformer(channels=3, width=16, depth=2, heads=2)
        >>> net(torch.ones(5, 3, 7), torch.zeros(5)).shape
        torch.Size([5, 3, 7])
        >>> Transformer(**net.settings).settings == net.settings
        True
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        stamps: bool = False,
        seed: int = 0,
    ) -> None:
        _check(channels, width, depth, heads, stamps)
        super().__init__(
            {
                "channels": channels,
                "width": width,
                "depth": depth,
                "heads": heads,
                "stamps": stamps,
                "seed": seed,
            }
        )
        self.channels, self.stamps = channels, stamps
        with torch.device("meta"):
            self.time = TimeEmbedding(width)
            # beside the values: the gaps on either side, or sines and cosines of the place in the window
            self.first = nn.Linear(channels + 1 if stamps else channels + width, width)
            self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
            self.modulation = nn.Linear(width, 2 * width)
            self.last = nn.Linear(width, channels)
        self.initialise(seed)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The network's value, of the shape of ``x``; ``time`` is ``(batch,)``, as log(sigma) / 4 is."""
        fits = x.ndim == 3 and x.shape[1] == self.channels and x.shape[2] > 0
        self.check_input(x, time, expected=f"shape (batch, {self.channels}, n)", fits=fits)
        embedded = self.time(time)
        places = x[:, -1] if self.stamps else torch.arange(x.shape[2], dtype=x.dtype, device=x.device)[None]
        values = x[:, :-1] if self.stamps else x
        beside = _gaps(places) if self.stamps else _waves(places, self.first.out_features)
        h = self.first(torch.cat([values, beside.expand(len(x), -1, -1)], 1).transpose(1, 2))
        turn = _angles(places, self.blocks[0].size)  # type: ignore[arg-type]
        for block in self.blocks:
            h = block(h, embedded, turn)
        out: Tensor = self.last(_modulated(h, self.modulation(embedded)))
        return out.transpose(1, 2).contiguous()


class _Block(nn.Module):
    """Attention and a layer on each time, each with a norm that the noise level modulates.

    Attention is written out, because the fused kernels of torch have no second derivative on the CPU.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.looking = nn.ModuleDict(
            {
                "modulation": nn.Linear(width, 2 * width),
                "mix": nn.Linear(width, 3 * width),
                "last": nn.Linear(width, width),
            }
        )
        self.thinking = nn.ModuleDict(
            {
                "modulation": nn.Linear(width, 2 * width),
                "first": nn.Linear(width, 2 * width),
                "last": nn.Linear(2 * width, width),
            }
        )

    def forward(self, h: Tensor, embedded: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        part = self.looking
        mixed = part["mix"](_modulated(h, part["modulation"](embedded)))
        query, key, value = mixed.unflatten(2, (3, self.heads, self.size)).transpose(1, 3).unbind(2)
        query, key = _turned(query, turn), _turned(key, turn)
        weights = torch.softmax(query @ key.transpose(-1, -2) / self.size**0.5, dim=-1)
        h = h + part["last"]((weights @ value).transpose(1, 2).flatten(2))
        part = self.thinking
        inner = nn.functional.silu(part["first"](_modulated(h, part["modulation"](embedded))))
        out: Tensor = h + part["last"](inner)
        return out


def _modulated(h: Tensor, parameters: Tensor) -> Tensor:
    """``m(N(h), e)`` of tokens ``(batch, n, width)``."""
    normed = nn.functional.layer_norm(h, h.shape[-1:])
    return modulate(normed.transpose(1, 2), parameters).transpose(1, 2)


def _angles(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, ``(rows, 1, n, size / 2)``, of angles from one radian a step to one in a thousand."""
    waves = torch.arange(size // 2, dtype=places.dtype, device=places.device) / max(1, size // 2 - 1)
    angle = places[:, None, :, None] * _REACH**-waves
    return angle.cos(), angle.sin()


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of features turned by the angles of their time."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _waves(places: Tensor, width: int) -> Tensor:
    """Where in the window a time lies, ``(1, width, n)``: sines and cosines of all the angles."""
    cos, sin = _angles(places, width)
    return torch.cat([cos, sin], -1)[:, 0].transpose(1, 2)


def _gaps(stamps: Tensor) -> Tensor:
    """Gaps before and after each time, ``(batch, 2, n)``, compressed; 0 at the ends of the window."""
    gap = torch.log1p(stamps.diff(dim=1).clamp(min=0))
    end = torch.zeros_like(stamps[:, :1])
    return torch.stack([torch.cat([end, gap], 1), torch.cat([gap, end], 1)], 1)


def _check(channels: object, width: object, depth: object, heads: object, stamps: object) -> None:
    least = 2 if stamps is True else 1
    check_count("channels", channels, least=least)
    check_count("depth", depth)
    count = check_count("heads", heads)
    if check_count("width", width, least=4) % (2 * count):
        expected = f"a multiple of twice the {count} heads"
        raise InputError(
            "width",
            expected=expected,
            got=width,
            fix=f"pass {-(-int(str(width)) // (2 * count)) * 2 * count}",
        )
    if not isinstance(stamps, bool):
        raise InputError("stamps", expected="True or False", got=repr(stamps), fix="see help(Transformer)")
