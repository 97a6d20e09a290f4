"""A residual MLP, for states of a few to a few hundred numbers without a grid (Lorenz, mixtures, tables).

With ``e`` the embedding of time, ``N`` layer norm without parameters, and ``m(., e)`` the modulation:

    h <- h + W2 silu(W1 m(N(h), e)),        F(x, time) = W m(h, e)

The path from x to F through h has no norm and no activation, so that any denoiser that is linear in x
with gains that depend on time (that of a Gaussian) is in reach of the first and last layers alone,
where the width is at least the number of features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciddiff.networks.embedding import Backbone, TimeEmbedding, check_count, modulate

__all__ = ["MLP"]


class MLP(Backbone):
    """Residual MLP ``(batch, ...), (batch,) -> (batch, ...)``; everything but the batch is flattened.

    The blocks are the pre-norm residual MLP with adaptive layer norm of Peebles and Xie 2023, "Scalable
    diffusion models with transformers", section 3.2, without attention.

    Args:
        features: number of values in one state (channels times grid).
        width: width of the hidden layers, at least 4.
        depth: number of residual blocks.
        seed: fixes all weights; the output is exactly zero until they are trained.

    Raises:
        InputError: a setting is out of range; or, in a call, x holds another number of values, is not
            of the weights' dtype, or ``time`` is not ``(batch,)``.

    Example:
        >>> net = MLP(features=3, width=16, depth=2)
        >>> net(torch.ones(5, 3), torch.zeros(5)).abs().max().item()
        0.0
        >>> MLP(**net.settings).settings == net.settings
        True
    """

    def __init__(self, *, features: int, width: int = 256, depth: int = 4, seed: int = 0) -> None:
        check_count("features", features)
        check_count("width", width, least=4)
        check_count("depth", depth)
        super().__init__({"features": features, "width": width, "depth": depth, "seed": seed})
        self.features = features
        with torch.device("meta"):
            self.time = TimeEmbedding(width - width % 2)
            self.first = nn.Linear(features, width)
            self.blocks = nn.ModuleList(_Block(width, self.time.second.out_features) for _ in range(depth))
            self.modulation = nn.Linear(self.time.second.out_features, 2 * width)
            self.last = nn.Linear(width, features)
        self.initialise(seed)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The network's value, of the shape of ``x``; ``time`` is ``(batch,)``, as log(sigma) / 4 is."""
        fits = x.ndim > 1 and x.shape[1:].numel() == self.features
        self.check_input(x, time, expected=f"(batch, ...) with {self.features} values in a row", fits=fits)
        embedded = self.time(time)
        h = self.first(x.reshape(x.shape[0], self.features))
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = self.last(modulate(h, self.modulation(embedded)))
        return out.reshape(x.shape)


class _Block(nn.Module):
    """``h + W2 silu(W1 m(N(h), e))``."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * width)
        self.first = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        inner = modulate(nn.functional.layer_norm(h, h.shape[-1:]), self.modulation(embedded))
        out: Tensor = h + self.last(nn.functional.silu(self.first(inner)))
        return out
