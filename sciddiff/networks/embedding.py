"""What every backbone shares: how time enters, how weights start, what an input has to be.

A backbone is a function ``F(x, time)`` of x's shape; the prior makes a denoiser of it (Karras et al. 2022,
"Elucidating the design space of diffusion-based generative models", equation 7):

    D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)

so time is of order one, and ``F = 0``, where every backbone starts, is a sound denoiser.
Weights are drawn from keyed streams: the global random state of torch is neither read nor touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sciddiff.errors import InputError
from sciddiff.random import Streams, check_seed

__all__ = ["Backbone", "TimeEmbedding", "check_count", "modulate"]

_LOWEST, _HIGHEST = 0.5, 16.0


class Backbone(nn.Module):
    """Base of the networks: keeps the settings, fills the weights from a seed, checks the input.

    A subclass makes its layers under ``torch.device("meta")``, where nothing is drawn, and then calls
    `initialise`. Two names are a convention: a layer called ``last`` ends a residual branch or the
    network, one called ``modulation`` brings time in, and both start at zero.

    Args:
        settings: every argument of the subclass's constructor, as plain numbers, strings and lists.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__()
        self._settings = dict(settings)

    @property
    def settings(self) -> dict[str, object]:
        """The constructor's arguments: ``type(net)(**net.settings)`` is the same net; fit for JSON."""
        return dict(self._settings)

    def initialise(self, seed: int) -> None:
        """Fill all parameters on the CPU: weights ``N(0, 1 / fan_in)``, biases and named layers zero.

        Parameter i depends on (seed, i) alone; the draws are float64, rounded to the default dtype.

        Raises:
            InputError: the seed is not an int in [0, 2**64).
        """
        check_seed(seed)
        self.to_empty(device="cpu")
        parameters = list(self.named_parameters())
        rows = Streams(seed, range(len(parameters)), purpose="network weights").numpy()
        for (name, parameter), row in zip(parameters, rows, strict=True):
            layer, kind = name.split(".")[-2:]
            if kind == "bias" or layer in ("last", "modulation"):
                nn.init.zeros_(parameter)
            else:
                scale = 1 / math.sqrt(parameter[0].numel())
                drawn = torch.from_numpy(row.standard_normal(tuple(parameter.shape)) * scale)
                parameter.data.copy_(drawn)

    def check_input(self, x: Tensor, time: Tensor, *, expected: str, fits: bool) -> None:
        """Refuse an x of the wrong shape or dtype, and a time that is not one number per row."""
        if not fits:
            fix = "reshape x, or build the network for this shape"
            raise InputError("x", expected=expected, got=f"shape {tuple(x.shape)}", fix=fix)
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            fix = f"call net.to({x.dtype})" if x.is_floating_point() else "pass real numbers"
            raise InputError("x", expected=f"{dtype}, as the weights are", got=x.dtype, fix=fix)
        if time.shape != x.shape[:1] or not time.is_floating_point():
            got = f"{time.dtype} of shape {tuple(time.shape)}"
            fix = "pass one log(sigma) / 4 for each row of x"
            raise InputError("time", expected=f"real numbers of shape ({x.shape[0]},)", got=got, fix=fix)


class TimeEmbedding(nn.Module):
    """Sines and cosines of time through two layers: ``(batch,) -> (batch, width)``.

    The angular frequencies run geometrically from 0.5 to 16 (in log(sigma): from 1/8 to 4), because a
    denoiser changes over a unit of log(sigma) and not faster: higher ones only buy roughness that
    solvers pay for in steps. They are computed in the dtype of ``time``, then follow the weights.

    Args:
        width: features that come out, even and at least 4.

    Example:
        >>> with torch.device("meta"):
        ...     embed = TimeEmbedding(8)
        >>> embed(torch.zeros(3, device="meta")).shape
        torch.Size([3, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = width // 2
        self.first = nn.Linear(2 * self.waves, width)
        self.second = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Features ``(batch, width)`` of ``time`` ``(batch,)``, already through the activation."""
        place = torch.arange(self.waves, dtype=time.dtype, device=time.device) / (self.waves - 1)
        angle = time[:, None] * _LOWEST * (_HIGHEST / _LOWEST) ** place
        waves = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.first.weight.dtype)
        out: Tensor = nn.functional.silu(self.second(nn.functional.silu(self.first(waves))))
        return out


def modulate(x: Tensor, parameters: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """``x * gain * (1 + scale) + shift``, one scale and shift per row and channel.

    Perez et al. 2018, "FiLM: Visual reasoning with a general conditioning layer", equation 2.

    Args:
        x: ``(batch, channels, *grid)``; the grid may be empty.
        parameters: ``(batch, 2 * channels)``, the scales and then the shifts.
        gain: ``(batch, channels)``, what a norm multiplies x by.

    Example:
        >>> modulate(torch.ones(1, 2), torch.tensor([[0.0, 1.0, 5.0, 7.0]]))
        tensor([[6., 9.]])
    """
    shape = (x.shape[0], x.shape[1]) + (1,) * (x.ndim - 2)
    scale, shift = parameters.chunk(2, dim=1)
    return torch.addcmul(shift.reshape(shape), x, (gain * (1 + scale)).reshape(shape))


def check_count(argument: str, value: object, *, least: int = 1) -> int:
    """Return ``value`` if it is an int of at least ``least``, or raise `InputError`.

    Example:
        >>> check_count("depth", 3)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        expected = f"an int of at least {least}"
        raise InputError(argument, expected=expected, got=repr(value), fix="correct it")
    return value
