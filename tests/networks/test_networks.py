"""The contract of a backbone, and that nothing of the caller's is touched."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sciddiff.errors import InputError
from sciddiff.networks import MLP, Backbone, Transformer, UNet, build
from sciddiff.random import Streams

PADDINGS = ("zeros", "circular", "replicate")
GRIDS = [(24,), (7,), (1,), (8, 8), (5, 7), (1, 9), (1, 1), (4, 6, 8), (3, 1, 5), (1, 1, 1)]


def normal(*shape: int, purpose: str = "x") -> Tensor:
    return Streams(0, [0], purpose=purpose).normal(shape, dtype=torch.float64)[0]


def awake(net: Backbone) -> Backbone:
    """The net in float64 with every parameter off its starting point, so that no branch is silent."""
    net = net.double()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, purpose=f"awake {i}"))
    return net


def small_unet(dimensions: int, channels: int = 2, **settings: object) -> UNet:
    tiny = {"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,), **settings}
    return UNet(dimensions=dimensions, channels=channels, **tiny)  # type: ignore[arg-type]


def small(name: str, grid: tuple[int, ...], **settings: object) -> Backbone:
    """A net for states of shape (2, *grid)."""
    if name == "mlp":
        return build("mlp", {"features": 6, "width": 10, "depth": 2, **settings})
    if name == "transformer":
        return build("transformer", {"channels": 2, "width": 8, "depth": 2, "heads": 2, **settings})
    return small_unet(len(grid), **settings)


CASES = pytest.mark.parametrize(
    ("name", "grid"),
    [("mlp", (3,)), ("unet", (6,)), ("unet", (5, 4)), ("unet", (2, 3, 3)), ("transformer", (5,))],
    ids=["mlp", "unet-1d", "unet-2d", "unet-3d", "transformer"],
)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_unet_keeps_any_grid(grid: tuple[int, ...], padding: str) -> None:
    net = awake(small_unet(len(grid), padding=padding))
    out = net(normal(3, 2, *grid), normal(3))
    assert out.shape == (3, 2, *grid)
    assert out.is_contiguous()
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)], ids=str)
def test_the_mlp_keeps_the_shape_of_any_event(shape: tuple[int, ...]) -> None:
    net = awake(MLP(features=6, width=10, depth=2))
    flat = net(normal(4, 6), normal(4))
    out = net(normal(4, 6).reshape(4, *shape), normal(4))
    assert out.shape == (4, *shape)
    assert torch.equal(out.reshape(4, 6), flat)


def stamped(x: Tensor, stamps: Tensor) -> Tensor:
    """States with their time stamps as the last channel."""
    return torch.cat([x, stamps.expand(len(x), 1, -1)], 1)


def wide_awake(**settings: object) -> Backbone:
    return awake(build("transformer", {"channels": 3, "width": 16, "depth": 2, "heads": 2, **settings}))


def test_a_transformer_with_stamps_sees_gaps_and_not_dates() -> None:
    net, x, time = wide_awake(stamps=True), normal(2, 2, 6), normal(2)
    stamps = normal(1, 1, 6, purpose="gaps").exp().cumsum(2)
    out = net(stamped(x, stamps), time)
    torch.testing.assert_close(net(stamped(x, stamps + 40), time), out, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(net(stamped(x, 1.5 * stamps), time), out, rtol=1e-2)


def test_without_stamps_the_transformer_knows_where_in_the_window_a_time_lies() -> None:
    alike = normal(1, 3, 1).expand(2, 3, 5)
    assert float(wide_awake()(alike, normal(2)).detach().diff(dim=2).abs().min()) > 1e-4


def test_the_transformer_takes_any_number_of_times() -> None:
    net = wide_awake()
    for n in (1, 2, 31):
        assert net(normal(2, 3, n), normal(2)).shape == (2, 3, n)


@CASES
def test_a_row_does_not_see_the_rest_of_its_batch(name: str, grid: tuple[int, ...]) -> None:
    net = awake(small(name, grid))
    x, time = normal(5, 2, *grid), normal(5)
    together = net(x, time)
    for i in range(5):
        torch.testing.assert_close(net(x[i : i + 1], time[i : i + 1])[0], together[i], rtol=1e-11, atol=1e-12)


@CASES
def test_a_row_does_not_see_the_rest_of_its_batch_in_float32(name: str, grid: tuple[int, ...]) -> None:
    net = awake(small(name, grid)).float()
    x, time = normal(5, 2, *grid).float(), normal(5).float()
    torch.testing.assert_close(net(x[3:4], time[3:4])[0], net(x, time)[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_circular_unet_commutes_with_shifts_by_its_total_stride(dimensions: int) -> None:
    net = awake(small_unet(dimensions, padding="circular"))
    x, time = normal(2, 2, *(8, 12, 4)[:dimensions]), normal(2)
    for axis in range(2, 2 + dimensions):
        shifted = net(x.roll(4, axis), time)
        torch.testing.assert_close(shifted, net(x, time).roll(4, axis), rtol=1e-11, atol=1e-12)


def test_a_padding_for_each_axis_holds_along_that_axis_alone() -> None:
    net = awake(small_unet(2, padding=("replicate", "circular"), attention=()))
    x, time = normal(2, 2, 8, 12), normal(2)
    out = net(x, time)
    torch.testing.assert_close(net(x.roll(4, 3), time), out.roll(4, 3), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(net(x.roll(4, 2), time), out.roll(4, 2), rtol=1e-2)
    alike = awake(small_unet(2, padding=["circular", "circular"], attention=()))
    torch.testing.assert_close(
        alike(x, time), awake(small_unet(2, padding="circular", attention=()))(x, time)
    )


def test_zeros_beside_another_padding_are_zeros() -> None:
    net = awake(small_unet(2, multipliers=(1,), attention=(), padding=("zeros", "replicate")))
    flat = normal(1, 2, 1, 1).expand(1, 2, 9, 5)
    out = net(flat, normal(1)).detach()
    torch.testing.assert_close(out, out[..., :1].expand_as(out), rtol=1e-9, atol=1e-10)
    assert float((out[:, :, 0] - out[:, :, 4]).abs().min()) > 1e-3


def test_a_folded_axis_is_a_channel_and_the_rest_of_the_net_is_that_of_fewer_axes() -> None:
    net = awake(small_unet(2, folded=(3,), padding="circular"))
    flat = awake(small_unet(1, channels=6, padding="circular"))
    x, time = normal(4, 2, 3, 8), normal(4)
    out = net(x, time)
    assert out.shape == x.shape and out.is_contiguous()
    assert torch.equal(out, flat(x.flatten(1, 2), time).unflatten(1, (2, 3)))


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_the_other_paddings_see_the_border(padding: str) -> None:
    net = awake(small_unet(1, padding=padding))
    x, time = normal(2, 2, 8), normal(2)
    assert not torch.allclose(net(x.roll(4, 2), time), net(x, time).roll(4, 2), rtol=1e-3)


def test_replicate_padding_maps_a_constant_state_to_a_constant() -> None:
    net = awake(small_unet(2, padding="replicate"))
    out = net(torch.ones(1, 2, 7, 5, dtype=torch.float64), normal(1))
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out), rtol=1e-11, atol=1e-12)


@CASES
def test_the_output_is_zero_at_the_start(name: str, grid: tuple[int, ...]) -> None:
    fresh = small(name, grid)
    assert fresh(normal(3, 2, *grid).float(), normal(3).float()).count_nonzero() == 0


@CASES
def test_the_hidden_layers_start_at_unit_scale(name: str, grid: tuple[int, ...]) -> None:
    fresh = small(name, grid)
    for name, parameter in fresh.named_parameters():
        if parameter.count_nonzero():
            z = parameter.detach() * parameter[0].numel() ** 0.5
            n = z.numel()
            assert abs(float(z.mean())) < 4.5 / n**0.5, name
            assert abs(float(z.square().mean()) - 1) < 4.5 * (2 / n) ** 0.5, name


@CASES
def test_the_seed_fixes_the_weights_and_the_global_state_plays_no_part(
    name: str, grid: tuple[int, ...]
) -> None:
    def weights(seed: int) -> list[Tensor]:
        made = small(name, grid, seed=seed)
        return [parameter for parameter in made.parameters() if parameter.count_nonzero()]

    with torch.random.fork_rng():
        first = weights(3)
        torch.manual_seed(17)
        before = torch.get_rng_state()
        again = weights(3)
        assert torch.equal(torch.get_rng_state(), before)
    assert len(first) > 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, weights(4), strict=True))
    for a, b in itertools.combinations(first, 2):
        assert a.shape != b.shape or not torch.equal(a, b)


@CASES
def test_the_derivatives_are_right_to_second_order(name: str, grid: tuple[int, ...]) -> None:
    net = awake(small(name, grid))
    x, time = normal(2, 2, *grid).requires_grad_(), normal(2).requires_grad_()
    probe = normal(2, 2, *grid, purpose="probe").requires_grad_()
    with torch.random.fork_rng():  # the fast mode draws its directions from the global state
        assert torch.autograd.gradcheck(net, (x, time), fast_mode=True)
        assert torch.autograd.gradgradcheck(net, (x, time), (probe,), fast_mode=True)


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_derivatives_are_right_for_every_padding(padding: str) -> None:
    net = awake(small_unet(2, padding=padding))
    assert torch.autograd.gradcheck(net, (normal(1, 2, 3, 2).requires_grad_(), normal(1)))


@CASES
def test_vjp_vmap_and_jvp_agree_with_one_another(name: str, grid: tuple[int, ...]) -> None:
    net = awake(small(name, grid))
    x, time, probes = normal(2, 2, *grid), normal(2), normal(3, 2, 2, *grid, purpose="probes")
    kept = x.clone()
    out, pull = torch.func.vjp(lambda x: net(x, time), x)
    pulled = torch.func.vmap(lambda probe: pull(probe)[0])(probes)
    assert torch.equal(x, kept)
    torch.testing.assert_close(out, net(x, time))
    for i in range(3):
        torch.testing.assert_close(pulled[i], pull(probes[i])[0])
        _, pushed = torch.func.jvp(lambda x: net(x, time), (x,), (probes[i],))
        torch.testing.assert_close((pulled[0] * probes[i]).sum(), (pull(probes[0])[0] * probes[i]).sum())
        torch.testing.assert_close((pushed * probes[0]).sum(), (pulled[0] * probes[i]).sum())
    stacked = torch.func.vmap(net)(torch.stack([x, -x]), torch.stack([time, time]))
    torch.testing.assert_close(stacked, torch.stack([net(x, time), net(-x, time)]))


@CASES
def test_time_matters_once_the_weights_have_moved(name: str, grid: tuple[int, ...]) -> None:
    net = awake(small(name, grid))
    x = normal(1, 2, *grid).expand(2, 2, *grid)
    early, late = net(x, torch.tensor([-1.0, 1.0], dtype=torch.float64)).detach()
    assert float((early - late).norm() / early.norm()) > 0.05


@CASES
def test_every_parameter_moves_the_output(name: str, grid: tuple[int, ...]) -> None:
    net = awake(small(name, grid))
    net.zero_grad()
    net(normal(2, 2, *grid), normal(2)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero(), name


@CASES
def test_settings_go_through_json_and_give_the_same_network(name: str, grid: tuple[int, ...]) -> None:
    made = small(name, grid, seed=5)
    kept = json.loads(json.dumps(made.settings))
    again = build(name, kept)
    assert kept == made.settings == again.settings
    assert type(again) is type(made)
    for a, b in zip(made.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_settings_of_a_network_cannot_be_changed_from_outside() -> None:
    net = small_unet(1)
    net.settings["width"] = 1
    assert net.settings["width"] == 8


def test_the_default_dtype_of_the_caller_decides_and_stays() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        wide = MLP(features=3, width=8)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    narrow = MLP(features=3, width=8)
    assert wide.first.weight.dtype == torch.float64
    assert torch.equal(wide.first.weight.float(), narrow.first.weight)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("x", lambda: small_unet(2)(torch.ones(1, 3, 4, 4), torch.ones(1))),
        ("x", lambda: small_unet(2)(torch.ones(1, 2, 4), torch.ones(1))),
        ("x", lambda: small_unet(1)(torch.ones(1, 2, 0), torch.ones(1))),
        ("x", lambda: small_unet(1)(torch.ones(1, 2, 4).double(), torch.ones(1))),
        ("x", lambda: small_unet(1)(torch.ones(1, 2, 4, dtype=torch.complex64), torch.ones(1))),
        ("time", lambda: small_unet(1)(torch.ones(2, 2, 4), torch.ones(1))),
        ("time", lambda: small_unet(1)(torch.ones(2, 2, 4), torch.tensor(1.0))),
        ("time", lambda: small_unet(1)(torch.ones(2, 2, 4), torch.ones(2, dtype=torch.long))),
        ("x", lambda: MLP(features=3)(torch.ones(2, 4), torch.ones(2))),
        ("x", lambda: MLP(features=3)(torch.ones(3), torch.ones(3))),
        ("features", lambda: MLP(features=0)),
        ("width", lambda: MLP(features=3, width=2)),
        ("depth", lambda: MLP(features=3, depth=True)),
        ("seed", lambda: MLP(features=3, seed=-1)),
        ("dimensions", lambda: small_unet(4)),
        ("channels", lambda: small_unet(1, channels=0)),
        ("width", lambda: small_unet(1, width=8.0)),
        ("multipliers", lambda: small_unet(1, multipliers=(), attention=())),
        ("multipliers", lambda: small_unet(1, multipliers=(1, 0))),
        ("blocks", lambda: small_unet(1, blocks=0)),
        ("attention", lambda: small_unet(1, attention=(3,))),
        ("padding", lambda: small_unet(1, padding="reflect")),
        ("padding", lambda: small_unet(2, padding=("zeros",))),
        ("padding", lambda: small_unet(2, padding=("zeros", "zeros"), folded=(3,))),
        ("folded", lambda: small_unet(1, folded=(4,))),
        ("folded", lambda: small_unet(2, folded=(0,))),
        ("x", lambda: small_unet(2, folded=(3,))(torch.ones(1, 2, 4, 4), torch.ones(1))),
        ("name", lambda: build("lstm", {})),
        ("settings", lambda: build("mlp", {"features": 3, "heads": 2})),
        ("settings", lambda: build("unet", {"dimensions": 3})),
        ("settings", lambda: build("transformer", {"channels": 1, "blocks": 2})),
        ("x", lambda: Transformer(channels=2)(torch.ones(1, 3, 4), torch.ones(1))),
        ("x", lambda: Transformer(channels=2)(torch.ones(1, 2, 4, 4), torch.ones(1))),
        ("time", lambda: Transformer(channels=2)(torch.ones(2, 2, 4), torch.ones(1))),
        ("channels", lambda: Transformer(channels=1, stamps=True)),
        ("width", lambda: Transformer(channels=2, width=12)),
        ("heads", lambda: Transformer(channels=2, heads=0)),
        ("stamps", lambda: Transformer(channels=2, stamps=1)),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused_by_name(argument: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument
