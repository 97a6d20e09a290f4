"""What guidance costs beside the network: a sampler's time over that of its forwards and VJPs alone.

The network is a plain one, 7 convolutions of 48 channels on 16 draws of 32 x 32 values, 20 steps, 2 threads. For every
method the same numbers of forwards and VJPs that the sampler made are timed alone, right beside it, on inputs of the
same size, and the ratio of the two is printed, the median over rounds that alternate between them. 1.00 is no
overhead. Wall time is what a user waits for; processor time, which counts both threads, is steadier where other work
runs on the machine.

    python benchmarks/overhead.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

import sciddiff as sd
from sciddiff.methods import Method
from sciddiff.random import Streams

DRAWS, SIDE, STEPS, CHANNELS, LAYERS = 16, 32, 20, 48, 7


class Convolutions(nn.Module):
    """Seven 3 x 3 convolutions; the time is a constant channel."""

    def __init__(self) -> None:
        super().__init__()
        widths = [2] + [CHANNELS] * (LAYERS - 1) + [1]
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
        for i, layer in enumerate(layers):
            scale = 0.5 / np.sqrt(layer.weight[0].numel())
            noise = Streams(0, [i], purpose="overhead").normal(layer.weight.shape, dtype=torch.float32)[0]
            layer.weight.data = scale * noise
            layer.bias.data.zero_()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The predicted state."""
        h = torch.cat([x, time.reshape(-1, 1, 1, 1).expand_as(x)], 1)
        for layer in self.layers[:-1]:
            h = torch.nn.functional.silu(layer(h))
        return self.layers[-1](h)


def build() -> sd.Posterior:
    """A field of 32 x 32 values seen at 64 points."""
    space = sd.Space({"y": SIDE, "x": SIDE})
    prior = sd.Prior.from_network(Convolutions(), space, predicts="x0", path="vp", sigma_max=80.0)
    where = np.random.Generator(np.random.Philox(1)).choice(SIDE * SIDE, 64, replace=False)
    operator = sd.operators.Points.at_indices(space, np.stack([where // SIDE, where % SIDE], 1))
    return prior.given(np.zeros(64), operator, sd.noise.Gaussian(0.1))


def alone(posterior: sd.Posterior, forwards: int, vjps: int) -> None:
    """So many forwards and VJPs of the bare network on a batch, and nothing else."""
    network = posterior.prior.network
    x = Streams(0, range(DRAWS), purpose="alone").normal((1, SIDE, SIDE), dtype=torch.float32)
    t = torch.zeros(DRAWS)
    per_forward = vjps / forwards
    done = 0.0
    for i in range(forwards):
        wanted = round((i + 1) * per_forward) - round(done)
        done += wanted
        if wanted == 0:
            with torch.no_grad():
                network(x, t)
            continue
        x.requires_grad_()
        out = network(x, t)
        for j in range(wanted):
            torch.autograd.grad(out, x, out.detach(), retain_graph=j + 1 < wanted)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, on the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def ratio(posterior: sd.Posterior, method: Method, rounds: int) -> dict[str, Any]:
    """Medians over rounds of sampler time over bare time."""

    def sample() -> object:
        return posterior.sample(DRAWS, method, steps=STEPS, seed=0)

    attrs = posterior.sample(DRAWS, method, steps=STEPS, seed=0).attrs
    forwards, vjps = round(attrs["forwards"]), round(attrs["vjps"])
    alone(posterior, forwards, vjps)
    pairs = [(timed(sample), timed(lambda: alone(posterior, forwards, vjps))) for _ in range(rounds)]
    out: dict[str, Any] = {"forwards": forwards, "vjps": vjps}
    for clock, name in enumerate(("wall", "processor")):
        ratios = [a[clock] / b[clock] for a, b in pairs]
        out[f"{name}_ratio"] = round(statistics.median(ratios), 3)
        out[f"{name}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        out[f"{name}_sampler_s"] = round(statistics.median(a[clock] for a, _ in pairs), 3)
    return out


def main() -> None:
    """Print one line of JSON per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    posterior = build()
    methods = {
        "MMPS, SDA's scalar": sd.MMPS(covariance="scalar"),
        "DPS as a guided denoiser": sd.DPSDenoiser(),
    }
    for name, method in methods.items():
        print(json.dumps({"method": name, **ratio(posterior, method, rounds)}))


if __name__ == "__main__":
    main()
