"""The dilated network: the contract of a backbone, what it sees, and how far."""

from __future__ import annotations

import pytest
import torch

from sciddiff.errors import InputError
from sciddiff.networks import Dilated, build
from sciddiff.random import Streams


def normal(*shape: int, purpose: str = "x") -> torch.Tensor:
    return Streams(0, [0], purpose=purpose).normal(shape, dtype=torch.float64)[0]


def awake(**settings: object) -> Dilated:
    """A net in float64 with every parameter off its starting point, so that no branch is silent."""
    net = Dilated(channels=2, width=8, **settings).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, purpose=f"awake {i}"))
    return net


def test_it_is_built_from_its_name_and_settings() -> None:
    net = Dilated(channels=2, width=8, dilations=(1, 3), differences=(0.1,), seed=3)
    again = build("dilated", net.settings)
    assert again.settings == net.settings
    same = zip(net.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not net(torch.ones(2, 2, 5), torch.zeros(2)).any()


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_it_keeps_any_length_and_rows_do_not_meet(length: int) -> None:
    net, x, time = awake(dilations=(1, 2), differences=(0.2, 0.1)), normal(3, 2, length), normal(3)
    out = net(x, time)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], time[1:2]), out[1:2])


def test_differences_have_variance_one_at_every_noise_level() -> None:
    # a random walk with increments of sd 0.05, seen through noise, as the prior hands it to the network
    sd, length = 0.05, 20_000
    walk = sd * normal(1, 1, length, purpose="walk").cumsum(2)
    net = Dilated(channels=1, width=8, differences=(sd,))
    for sigma in (0.001, 0.05, 3.0):
        level = torch.tensor([sigma], dtype=torch.float64)
        seen = net.seen((walk + sigma * normal(1, 1, length)) / (1 + sigma**2) ** 0.5, level.log() / 4)
        # moving averages of order one: the variance of a variance is at most 6/length
        assert abs(float(seen[0, 1, :-1].var()) - 1) < 5 * (6 / length) ** 0.5


def test_the_middle_feels_the_ends_as_far_as_the_taps_reach() -> None:
    net, x = awake(dilations=(1, 4)), normal(1, 2, 31).requires_grad_()
    # first and last convolution reach one step each, the blocks one and four; norms are over all times, so look past them
    with torch.no_grad():
        for block in net.blocks:
            block.last.weight.zero_()
    out = net(x, torch.zeros(1, dtype=torch.float64))[0, :, 15].sum()
    reach = torch.autograd.grad(out, x)[0].abs().sum((0, 1))
    assert bool((reach[13:18] > 1e-8).all())


def test_derivatives_pass_gradcheck_twice() -> None:
    net = awake(dilations=(1, 2), differences=(0.3,))
    x, time = normal(2, 2, 4).requires_grad_(), normal(2)
    # gradcheck draws its own directions
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(lambda v: net(v, time), x)
        assert torch.autograd.gradgradcheck(lambda v: net(v, time), x, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"dimensions": 2}, {"width": 2}, {"dilations": ()}, {"dilations": (0,)}, {"differences": (-1.0,)}],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Dilated(**{"channels": 2, **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Dilated(channels=2, width=8)(torch.ones(2, 3, 5), torch.zeros(2))
