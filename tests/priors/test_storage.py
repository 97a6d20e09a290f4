"""Claims about priors on disk: what comes back, and that nothing else does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sciddiff.covariance import (
    Covariance,
    centred,
    dense,
    diagonal,
    graph,
    kernel,
    ornstein_uhlenbeck,
    precision,
    spectral,
    symmetric,
    white,
)
from sciddiff.errors import InputError, SciddiffError
from sciddiff.networks import MLP, UNet
from sciddiff.priors import GaussianPrior, NeuralPrior, Normalisation, Prior, load_prior
from sciddiff.priors.files import read_document, read_tensors, seal, write
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.random import Streams
from sciddiff.spaces import Space, Variable

FLOAT = torch.float64
LINE = Space({"i": 6})
CORRUPTIONS = 400


def normal(seed: int, *shape: int) -> torch.Tensor:
    return Streams(seed, [0], purpose="test").normal(shape, dtype=FLOAT)[0]


def matrix(n: int, seed: int) -> torch.Tensor:
    a = normal(seed, n, n)
    return a @ a.T / n + 0.2 * torch.eye(n, dtype=FLOAT)


def shaken(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(0.1 * normal(i, *parameter.shape))
    return net


def tridiagonal(n: int) -> object:
    import scipy.sparse as sp

    return sp.diags([-np.ones(n - 1), np.full(n, 2.5), -np.ones(n - 1)], [-1, 0, 1])


def covariances() -> dict[str, tuple[Space, Covariance]]:
    dates = np.array(["2000-01-01", "2000-01-04", "2000-02-01"], dtype="datetime64[D]")
    nodes = Space({"node": 4}, edges=[[0, 1, 2], [1, 2, 3]])
    k = 1.0 + torch.arange(5, dtype=FLOAT)
    return {
        "white": (LINE, white((6,), 2.0)),
        "diagonal": (LINE, diagonal([1.0, 4.0, 0.0, 0.1, 2.0, 5.0])),
        "dense": (LINE, dense(matrix(6, 1))),
        "spectral": (Space({"y": 3, "x": 5}, "u"), spectral((3, 5), k**-2, ["dirichlet", "periodic"])),
        "graph": (nodes, graph(nodes, lambda v: (v + 1) ** -2)),
        "kernel": (Space({"t": dates}, {"h": "m"}), kernel(lambda h: np.exp(-h / 9), dates)),
        "symmetric": (Space({"a": 3, "b": 3}), symmetric((3, 3))),
        "precision": (LINE, precision(tridiagonal(6))),
        "process": (Space({"t": dates}, {"h": "m"}), ornstein_uhlenbeck(dates, 9.0, variance=4.0)),
        "uneven": (
            Space({"n": 4, "m": 2}, {"h": Variable(("n",)), "q": Variable(("m",), "K", attrs={"of": "q"})}),
            dense(matrix(6, 2)),
        ),
    }


def neural(gaussian: GaussianPrior | None = None, **settings: object) -> NeuralPrior:
    if gaussian is None:
        units = Normalisation(torch.tensor(3.0, dtype=FLOAT), torch.tensor(0.5, dtype=FLOAT))
        return NeuralPrior(shaken(MLP(features=6, width=8, depth=1)), LINE, units, largest=2.0, **settings)
    net = shaken(MLP(features=2 * gaussian.space.size, width=8, depth=1))
    return NeuralPrior(net, gaussian.space, gaussian=gaussian, **settings)


def same(a: Prior, b: Prior) -> bool:
    z = normal(9, 3, *a.space.shape).to(a.dtype)
    pairs = (
        [(a.denoise(z, s), b.denoise(z, s)) for s in (0.05, 1.0, 9.0)]
        + [(getattr(a.normalisation, k), getattr(b.normalisation, k)) for k in ("mean", "scale")]
        + [(a.reference.apply(z), b.reference.apply(z))]
    )
    return (
        a.space == b.space
        and a.space.to_dict() == b.space.to_dict()
        and a.dtype == b.dtype
        and (a.sigma_min, a.sigma_max) == (b.sigma_min, b.sigma_max)
        and all(torch.equal(x.expand(y.shape), y) for x, y in pairs)
    )


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", covariances())
def test_a_gaussian_prior_comes_back_bit_for_bit(name: str, tmp_path: Path):
    space, covariance = covariances()[name]
    prior = GaussianPrior(space, covariance, normal(3, *space.shape), sigma_min=0.01, sigma_max=77.0)
    prior.save(tmp_path / "prior")
    back = load_prior(tmp_path / "prior")
    assert isinstance(back, GaussianPrior) and same(prior, back)
    draws = [p.sample(2, seed=0) for p in (prior, back)]
    assert draws[0].identical(draws[1].assign_attrs(seconds=draws[0].attrs["seconds"]))


@pytest.mark.parametrize("name", [n for n in covariances() if n not in ("precision", "process")])
def test_a_neural_prior_on_a_gaussian_comes_back_bit_for_bit(name: str, tmp_path: Path):
    space, covariance = covariances()[name]
    prior = neural(GaussianPrior(space, covariance, normal(3, *space.shape)))
    prior.save(tmp_path / "prior")
    assert same(prior, load_prior(tmp_path / "prior"))


@pytest.mark.parametrize("reference", [None, dense(matrix(6, 2)), diagonal(torch.arange(1.0, 7.0))])
def test_a_neural_prior_without_a_gaussian_comes_back_bit_for_bit(
    reference: Covariance | None, tmp_path: Path
):
    prior = neural(reference=reference)
    prior.save(tmp_path / "prior")
    assert same(prior, load_prior(tmp_path / "prior"))


def test_a_reference_noise_comes_back(tmp_path: Path):
    p = torch.eye(6, dtype=FLOAT) - 1 / 6
    gaussian = GaussianPrior(LINE, dense(p @ matrix(6, 1) @ p), reference=centred((6,)))
    for name, prior in {"gaussian": gaussian, "neural": neural(gaussian)}.items():
        prior.save(tmp_path / name)
        assert same(prior, load_prior(tmp_path / name))


def test_season_history_levels_and_precision_come_back(tmp_path: Path):
    season, history = normal(4, 12, 6), {"step": [5, 10], "training": [1.0, 0.125], "validation": [None, 0.5]}
    prior = neural(sigma_min=0.01, sigma_max=88.0, season=season, history=history).to(dtype=FLOAT)
    prior.save(tmp_path / "prior")
    back = load_prior(tmp_path / "prior")
    assert torch.equal(back.season, season) and back.history == history and back.largest == 2.0
    assert list(back.history) == list(history) and back.dtype == FLOAT and same(prior, back)
    gaussian = GaussianPrior(LINE, white((6,)))
    gaussian.season = season
    gaussian.save(tmp_path / "gaussian")
    assert torch.equal(load_prior(tmp_path / "gaussian").season, season)


def test_a_relabelled_prior_comes_back_with_its_new_labels_and_mean(tmp_path: Path):
    prior = neural(GaussianPrior(LINE, dense(matrix(6, 1)))).relabel(
        Space({"month": np.arange("2001-03", "2001-09", dtype="datetime64[M]")}, {"t": "K"}), normal(1, 6)
    )
    prior.save(tmp_path / "prior")
    assert same(prior, load_prior(tmp_path / "prior"))


def test_a_unet_comes_back(tmp_path: Path):
    space = Space({"y": 5, "x": 6}, {"u": "m/s", "z": Variable(("y", "x"), complex=True)})
    units = Normalisation(torch.zeros((3, 1, 1), dtype=FLOAT), torch.ones((3, 1, 1), dtype=FLOAT))
    net = shaken(UNet(dimensions=2, channels=3, width=8, multipliers=(1, 2), blocks=1, padding="circular"))
    prior = NeuralPrior(net, space, units, largest=1.0)
    prior.save(tmp_path / "prior")
    back = load_prior(tmp_path / "prior")
    assert same(prior, back) and type(back.network) is UNet and back.network.settings == net.settings
    assert not any(p.requires_grad for p in back.network.parameters())


def test_half_precision_halves_the_weights_and_loads_as_float32(tmp_path: Path):
    prior = neural(GaussianPrior(LINE, dense(matrix(6, 1))))
    prior.save(tmp_path / "whole")
    prior.save(tmp_path / "half", half=True)
    back = load_prior(tmp_path / "half")
    assert back.dtype == torch.float32 == next(back.network.parameters()).dtype
    manifests = [json.loads((tmp_path / f"{n}.json").read_text())["tensors"] for n in ("whole", "half")]
    kinds = {kind for name, (kind, _) in manifests[1]["entries"].items() if name.startswith("network.")}
    assert kinds == {"float16"} and manifests[1]["bytes"] < manifests[0]["bytes"]
    for ours, theirs in zip(back.network.parameters(), prior.network.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    z = normal(9, 3, 6).float()
    torch.testing.assert_close(back.denoise(z, 1.0), prior.denoise(z, 1.0), rtol=5e-3, atol=5e-3)


def test_a_prior_is_stored_again_as_it_was(tmp_path: Path):
    neural(GaussianPrior(LINE, dense(matrix(6, 1)))).save(tmp_path / "one")
    load_prior(tmp_path / "one").save(tmp_path / "two")
    for suffix in ("json", "safetensors"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


class Own(nn.Module):
    """A network whose code is not the library's."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(6, width)
            self.last = nn.Linear(width, 6)
        self.to_empty(device="cpu")
        for i, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normal(i, *parameter.shape))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.layer(x)))


def test_a_network_of_ones_own_is_stored_without_its_code(tmp_path: Path):
    unit = Normalisation(torch.tensor(0.0), torch.tensor(1.0))
    prior = NeuralPrior(Own(), LINE, unit, largest=1.0)
    with pytest.warns(UserWarning, match=r"load_prior\(path, network=Own\(\.\.\.\)\)"):
        prior.save(tmp_path / "own")
    with pytest.raises(InputError, match="whose code is not in the file"):
        load_prior(tmp_path / "own")
    with pytest.raises(InputError, match=r"last\.weight"):
        load_prior(tmp_path / "own", network=Own(width=5))
    fresh = shaken(Own())
    before = fresh.layer.weight.clone()
    assert same(prior, load_prior(tmp_path / "own", network=fresh))
    assert torch.equal(fresh.layer.weight, before)
    neural().save(tmp_path / "built_in")
    with pytest.raises(InputError, match="leave it out"):
        load_prior(tmp_path / "built_in", network=Own())


def test_what_cannot_be_stored_is_refused(tmp_path: Path):
    mixture = GaussianMixturePrior(LINE, [0.5, 0.5], normal(0, 2, 6), 1.0)
    adapted = Prior.from_network(lambda x, t: x, LINE, predicts="noise", path="vp", sigma_max=50.0)
    for prior in (mixture, adapted):
        with pytest.raises(InputError, match="a GaussianPrior or a ProcessPrior"):
            prior.save(tmp_path / "prior")
    prior = neural()
    prior.network.last.bias.data[0] = 1e6
    with pytest.raises(InputError, match="without half=True"):
        prior.save(tmp_path / "prior", half=True)
    prior.network.last.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="finite"):
        prior.save(tmp_path / "prior")
    assert not list(tmp_path.iterdir())


# -- and nothing else ------------------------------------------------------------------------------


def corruptions(data: bytes, count: int, seed: int) -> list[bytes]:
    """The bytes with a flipped bit, a changed byte, a missing or an added piece, or cut short."""
    rng, out = np.random.Generator(np.random.Philox(seed)), []
    while len(out) < count:
        bad, at = bytearray(data), int(rng.integers(len(data)))
        kind, length = rng.integers(6), int(rng.integers(1, 40))
        if kind == 0:
            bad[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            bad[at] = int(rng.integers(256))
        elif kind == 2:
            del bad[at : at + length]
        elif kind == 3:
            bad[at:at] = rng.bytes(length)
        elif kind == 4:
            bad[at : at + length] = bytes(len(bad[at : at + length]))
        else:
            del bad[at:]
        if bytes(bad) != data:
            out.append(bytes(bad))
    return out


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_every_random_corruption_is_refused(suffix: str, tmp_path: Path):
    history = {"step": [5, 10], "training": [1.0, 0.5]}
    neural(GaussianPrior(LINE, dense(matrix(6, 1))), history=history).save(tmp_path / "prior")
    file = tmp_path / f"prior.{suffix}"
    for bad in corruptions(file.read_bytes(), CORRUPTIONS, seed=1):
        file.write_bytes(bad)
        with pytest.raises(SciddiffError):
            load_prior(tmp_path / "prior")


def leaves(value: object, at: tuple = ()) -> list[tuple]:
    """Where in a document its values stand."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, part in items for found in leaves(part, (*at, key)))]


STRANGE = [None, True, -1, 0, 3, 2**40, 10**30, 1e300, -0.5, "", "unet", "object", "U999999999", [], {}, [[]]]


def test_a_forged_document_makes_a_sound_prior_or_none(tmp_path: Path):
    """Any entry replaced by anything, with the right hashes: no crash, no giant allocation, no other error."""
    neural(GaussianPrior(LINE, dense(matrix(6, 1)))).save(tmp_path / "prior")
    text = (tmp_path / "prior.json").read_text()
    places = [p for p in leaves(json.loads(text)) if p and p[0] != "checksum"]
    rng, loaded = np.random.Generator(np.random.Philox(3)), 0
    for place in [places[i] for i in rng.permutation(len(places))][:150]:
        document = json.loads(text)
        del document["checksum"]
        target = document
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = STRANGE[rng.integers(len(STRANGE))]
        (tmp_path / "prior.json").write_bytes(seal(document))
        try:
            prior = load_prior(tmp_path / "prior")
        except SciddiffError:
            continue
        loaded += 1
        assert torch.isfinite(prior.denoise(torch.ones(1, *prior.space.shape, dtype=prior.dtype), 1.0)).all()
    assert loaded < 30  # history, labels and the like may hold anything


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("network", "settings", "width"), 2**40),
        (("network", "settings", "width"), 10**6),
        (("network", "settings", "depth"), 10**9),
        (("network", "settings", "features"), 2**62),
        (("space", "coords", 0, 1), 10**15),
        (("space", "coords", 0, 2), {"dtype": "U1000000000", "values": ["a"]}),
        (("space", "coords", 0, 2), {"dtype": "O", "values": list(range(6))}),
        (("space", "edges"), [[0], [-(10**9)]]),
        (("reference",), {"kind": "precision"}),
        (("tensors", "bytes"), 2**60),
        (("version",), 2),
        (("format",), "sciddiff training"),
        (("network", "name"), "os.system"),
        (("network", "settings", "seed"), {"__reduce__": "x"}),
    ],
    ids=str,
)
def test_a_document_that_asks_for_too_much_is_refused_at_once(place: tuple, value: object, tmp_path: Path):
    forge(tmp_path, place, value)
    with pytest.raises(InputError):
        load_prior(tmp_path / "prior")


def test_a_giant_space_is_refused_before_it_takes_memory(tmp_path: Path):
    forge(tmp_path, ("space", "coords", 0, 1), 2**28)
    with pytest.raises(InputError, match="states of 268435456 cells"):
        load_prior(tmp_path / "prior")


def forge(tmp_path: Path, place: tuple, value: object) -> None:
    """A stored prior with one entry replaced and a right hash."""
    neural().save(tmp_path / "prior")
    document = json.loads((tmp_path / "prior.json").read_text())
    del document["checksum"]
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    (tmp_path / "prior.json").write_bytes(seal(document))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"checksum": 1}',
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"\xff\xfe",
        b"9" * 10**5,
    ],
    ids=lambda t: t[:9].decode(errors="replace"),
)
def test_what_is_no_document_is_refused(text: bytes, tmp_path: Path):
    (tmp_path / "prior.json").write_bytes(text)
    with pytest.raises(InputError, match="path"):
        load_prior(tmp_path / "prior")


def test_files_that_are_missing_swapped_or_not_plain_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="leave the suffix out"):
        load_prior(tmp_path / "nothing")
    for i, name in enumerate(("one", "two")):
        GaussianPrior(LINE, dense(matrix(6, i))).save(tmp_path / name)
    os.replace(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="belongs to another"):
        load_prior(tmp_path / "two")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("folder", "pipe"):
        with pytest.raises(InputError, match="path"):
            load_prior(tmp_path / name)


def test_a_file_larger_than_it_says_is_not_read(tmp_path: Path):
    neural().save(tmp_path / "prior")
    with open(tmp_path / "prior.safetensors", "r+b") as file:
        file.truncate(2**40)  # a sparse file: 1 TB, of which reading would be felt
    with pytest.raises(InputError, match="at most"):
        load_prior(tmp_path / "prior")


def test_line_ends_that_git_changed_do_not_matter(tmp_path: Path):
    prior = neural()
    prior.save(tmp_path / "prior")
    file = tmp_path / "prior.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert same(prior, load_prior(tmp_path / "prior"))


def test_a_name_may_hold_dots_and_folders_are_made(tmp_path: Path):
    neural().save(tmp_path / "a" / "v1.2")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["v1.2.json", "v1.2.safetensors"]
    load_prior(str(tmp_path / "a" / "v1.2"))


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match="disk full"):
                write(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_tensors_of_a_document_are_all_that_is_read(tmp_path: Path):
    neural().save(tmp_path / "prior")
    document = read_document(tmp_path / "prior.json", "sciddiff prior", 1)
    entries = document["tensors"]["entries"]
    assert read_tensors(tmp_path / "prior.safetensors", document["tensors"]).keys() == entries.keys()
    entries["network.last.bias"] = ["float32", [7]]
    with pytest.raises(InputError, match="other tensors"):
        read_tensors(tmp_path / "prior.safetensors", document["tensors"])


def test_weights_whose_network_computes_something_else_now_are_refused(tmp_path, monkeypatch):
    units = Normalisation(torch.zeros(()), torch.ones(()))
    prior = NeuralPrior(MLP(features=8, width=16, depth=1), Space({"i": 8}), units, largest=1.0)
    with torch.no_grad():
        for parameter in prior.network.parameters():
            parameter.add_(0.1)
    prior.save(tmp_path / "mine")
    load_prior(tmp_path / "mine")
    whole = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, time: 1.2 * whole(self, x, time))
    with pytest.raises(InputError, match="answers as it did"):
        load_prior(tmp_path / "mine")
