"""Claims about training: that it learns the right thing, and that it cannot be derailed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sciddiff.covariance import Axes, Full, Standard, centred, dense, white
from sciddiff.errors import DivergenceError, InputError
from sciddiff.networks import MLP
from sciddiff.priors import GaussianPrior, NeuralPrior, load_prior
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.priors.neural import OnGaussian
from sciddiff.random import Streams
from sciddiff.spaces import Space, Variable
from sciddiff.training import train
from sciddiff.training.checkpoints import load_checkpoint
from sciddiff.training.data import Table, source
from sciddiff.training.objective import Levels, losses

FLOAT = torch.float64
PAIR = Space({"i": 2})
TINY = {"network": "mlp", "settings": {"width": 8, "depth": 1}, "batch": 16, "steps": 20, "progress": False}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return Streams(seed, [0], purpose="test").normal(shape, dtype=FLOAT)[0]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def weights(prior: NeuralPrior) -> torch.Tensor:
    return torch.cat([p.flatten() for p in prior.network.state_dict().values()])


def mixture() -> GaussianMixturePrior:
    return GaussianMixturePrior(PAIR, [0.3, 0.7], [[-2.0, 1.0], [1.0, -0.5]], 0.09)


# -- that it learns ----------------------------------------------------------------------------------


@cache
def learnt(gaussian: str | None) -> NeuralPrior:
    """A prior trained on the mixture."""
    return train(
        mixture().sample(20_000, seed=0)["x"].values,
        PAIR,
        network="mlp",
        settings={"width": 32, "depth": 2},
        gaussian=gaussian,
        steps=500,
        batch=128,
        learning_rate=4e-3,
        seed=0,
    )


@pytest.mark.parametrize("gaussian", ["dense", None])
def test_a_tiny_network_learns_the_denoiser_of_a_mixture(gaussian: str | None):
    exact, prior, n = mixture(), learnt(gaussian), 4000
    # fresh states, seen through noise in the network's own units
    x0 = torch.from_numpy(exact.sample(n, seed=1)["x"].values)
    sigma = Levels(prior.sigma_min, prior.sigma_max).draw(n, generator(2))
    z = prior.normalisation.normal(x0) + sigma[:, None] * normal(3, n, 2)
    truth = _exact(exact, prior, z, sigma)
    skip = prior.preconditioning.split(z, sigma)[0]
    weight = prior.preconditioning.c_out(sigma)[:, None] ** -2
    ours, linear = (
        (weight * (d - truth) ** 2).mean(1) for d in (prior.denoise(z.float(), sigma).double(), skip)
    )
    gain = 0.1 * linear - ours
    assert float(gain.mean()) > 5 * float(gain.std()) / n**0.5  # a tenth of the linear error, and surely so


def _exact(
    exact: GaussianMixturePrior, prior: NeuralPrior, z: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """``E[z0 | z]`` of the mixture in the units of another prior, from Bayes' rule."""
    scale, mean = prior.normalisation.scale, prior.normalisation.mean
    centres = (torch.tensor([[-2.0, 1.0], [1.0, -0.5]], dtype=FLOAT) - mean) / scale
    own = torch.broadcast_to(0.09 / scale**2, (2,))
    total = own + sigma[:, None, None] ** 2
    offset = z[:, None] - centres
    log = -0.5 * (offset**2 / total + total.log()).sum(2) + torch.tensor([0.3, 0.7], dtype=FLOAT).log()
    return (log.softmax(1)[..., None] * (centres + own / total * offset)).sum(1)


def test_samples_of_the_trained_prior_have_the_weights_of_the_modes():
    prior, n = learnt("dense"), 600
    x = prior.sample(n, seed=0)["x"].values
    left = x[:, 0] < -0.5
    # counts of a binomial, and means of each mode; 4 standard errors, and 0.02 for what the network has not learnt
    assert abs(left.mean() - 0.3) < 4 * (0.21 / n) ** 0.5 + 0.02
    for rows, centre in ((left, (-2.0, 1.0)), (~left, (1.0, -0.5))):
        error = np.abs(x[rows].mean(0) - centre)
        assert (error < 4 * 0.3 / rows.sum() ** 0.5 + 0.02).all()
        assert (np.abs(x[rows].std(0) / 0.3 - 1) < 4 / (2 * rows.sum()) ** 0.5 + 0.1).all()


def cases() -> dict[str, GaussianPrior]:
    line = Space({"i": 6})
    a, p = normal(1, 6, 6), torch.eye(6, dtype=FLOAT) - 1 / 6
    sigma, noise = a @ a.T / 6 + 0.2 * torch.eye(6), normal(2, 6, 6)
    return {
        "white": GaussianPrior(line, dense(sigma)),
        "dense": GaussianPrior(line, dense(sigma), reference=dense(noise @ noise.T / 6 + 0.1 * torch.eye(6))),
        "projector": GaussianPrior(line, dense(p @ sigma @ p), reference=centred((6,))),
        "scaled": GaussianPrior(line, dense(sigma), reference=white((6,), 9.0)),
    }


@pytest.mark.parametrize("name", cases())
def test_the_loss_of_the_exact_denoiser_of_gaussian_data_is_one_at_every_level(name: str):
    """A noise of the wrong covariance, or a factor in the weight or in c_out, would show here."""
    gaussian, n = cases()[name], 4000
    split = OnGaussian(gaussian.space, gaussian)
    z0 = gaussian.draw(Streams(0, range(n), purpose="test"))
    net = MLP(features=12, width=4, depth=1).double()
    for i, level in enumerate((gaussian.sigma_min, 0.3, 1.0, 3.0, gaussian.sigma_max)):
        sigma = torch.full((n,), level, dtype=FLOAT)
        with torch.no_grad():
            loss = losses(split, net, z0, sigma, Streams(i, [0], purpose="training noise"))
        assert abs(float(loss.mean()) - 1) < 4.5 * float(loss.std()) / n**0.5


def test_the_first_record_of_gaussian_data_is_one_in_every_band():
    data = normal(0, 4000, 3) @ normal(1, 3, 3)
    prior = train(data, Space({"i": 3}), **TINY | {"steps": 12, "batch": 512, "log_every": 6}, seed=0)
    bands = [values[0] for name, values in prior.history.items() if name.startswith("sigma")]
    # the mean of squares of 3 normals over some 500 states a band: a standard error below sqrt(2/500)
    assert len(bands) == 6 and np.abs(np.array(bands) - 1).max() < 5 * (2 / 500) ** 0.5


def test_levels_follow_their_law():
    n = 4000
    for law in (Levels(0.01, 50.0), Levels(0.01, 50.0, (-1.2, 1.2)), Levels(0.5, 2.0, (0.0, 2.0))):
        drawn = law.draw(n, generator(0))
        assert float(drawn.min()) >= law.low and float(drawn.max()) <= law.high
        u = np.linspace(0.05, 0.95, 19)
        below = (drawn[:, None] < law.quantile(u)).double().mean(0)
        assert (
            np.abs(below.numpy() - u).max() <= 1.01 / n
        )  # one in each of n equal parts: exact to one of them
        # in an order that has nothing to do with the place in the batch
        assert abs(np.corrcoef(np.arange(n), drawn.log())[0, 1]) < 4.5 / n**0.5
    normal_law = Levels(1e-9, 1e9, (-1.2, 1.2)).draw(n, generator(1)).log()
    assert float(normal_law.mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(normal_law.std()) == pytest.approx(1.2, rel=1e-2)


# -- that it repeats itself --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    data = normal(0, 100, 2)
    first, again, other = (train(data, PAIR, **TINY, seed=s) for s in (0, 0, 1))
    assert torch.equal(weights(first), weights(again))
    assert first.history == again.history
    assert not torch.equal(weights(first), weights(other))


def _call(folder: Path | str | None, **change: object) -> NeuralPrior:
    data = mixture().sample(300, seed=0)["x"].values
    arguments = TINY | {"steps": 60, "checkpoint_every": 7, "log_every": 5, "ema": 10.0, **change}
    return train(data, PAIR, **arguments, validation=data[:50], keep="best", seed=3, out=folder)


KILLED = """
import runpy, sys, time
import torch
torch.set_num_threads({threads})
from sciddiff.training import trainer
once = trainer.Training.train_once
def slowly(run):
    time.sleep(0.01 if run.step < 21 else 0.4)  # so that the signal comes in mid-training, wherever that may be
    once(run)
trainer.Training.train_once = slowly
runpy.run_path({test!r})["_call"]({folder!r})
"""


def test_a_run_that_was_killed_ends_with_the_same_weights_bit_for_bit(tmp_path: Path):
    script = KILLED.format(threads=torch.get_num_threads(), test=__file__, folder=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while (
        max((p.name for p in tmp_path.glob("checkpoint-*.safetensors")), default="") < "checkpoint-000000021"
    ):
        assert child.poll() is None and time.monotonic() < until, child.stderr and child.stderr.read()
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    stopped = load_checkpoint(tmp_path).step
    for name in ("checkpoint.json", "checkpoint-000000028.safetensors"):  # had it come within a write
        (tmp_path / f"{name}.tmp-1").write_bytes(b"half")
    assert 14 <= stopped < 60

    resumed, whole = _call(tmp_path), _call(None)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.history == whole.history
    assert load_checkpoint(tmp_path).step == 60
    # only the last checkpoint is kept, and nothing half-written
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-000000060.safetensors",
        "checkpoint.json",
    ]


class StopNow(Exception):  # noqa: N818
    """The caller's way to end a run."""


def _stop_at(call: int):
    """An augmentation that does nothing, and ends the run at one of its calls."""
    calls = []

    def augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        calls.append(0)
        if len(calls) == call + 1:
            raise StopNow
        return x

    return augment


def test_a_run_stops_anywhere_and_goes_on_to_the_same_weights(tmp_path: Path):
    whole = _call(None)
    for stop in (1, 8, 37):
        with pytest.raises(StopNow):
            _call(tmp_path / str(stop), augment=_stop_at(stop))
        resumed = _call(tmp_path / str(stop), augment=_stop_at(10**6))
        assert torch.equal(weights(resumed), weights(whole)) and resumed.history == whole.history


def test_a_finished_run_is_read_back_and_resume_false_begins_anew(tmp_path: Path):
    data = normal(0, 50, 2)
    first = train(data, PAIR, **TINY, seed=0, out=tmp_path)
    written = (tmp_path / "checkpoint.json").stat().st_mtime_ns
    again = train(data, PAIR, **TINY, seed=0, out=tmp_path)
    assert torch.equal(weights(first), weights(again)) and again.history == first.history
    assert (tmp_path / "checkpoint.json").stat().st_mtime_ns == written
    anew = train(data, PAIR, **TINY, seed=1, out=tmp_path, resume=False)
    assert torch.equal(weights(anew), weights(train(data, PAIR, **TINY, seed=1)))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"steps": 30}, "steps|ema"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"settings": {"width": 12, "depth": 1}}, "settings"),
        ({"gaussian": None}, "gaussian"),
        ({"data": normal(1, 50, 2)}, "data"),
        ({"dtype": FLOAT}, "dtype"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run_is_refused(change: dict, name: str, tmp_path: Path):
    arguments = {**TINY, "data": normal(0, 50, 2), "space": PAIR, "seed": 0, "out": tmp_path}
    train(**arguments)
    with pytest.raises(InputError, match=f"(?s)({name}).*resume=False"):
        train(**arguments | change)


def _shifted(x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    return x + 0.1


def _scaled(x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    return 1.1 * x


def _gaussian(shift: float, angle: float) -> GaussianPrior:
    """Largest eigenvalue 4, at any angle."""
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=FLOAT)
    matrix = turn @ torch.diag(torch.tensor([4.0, 1.0], dtype=FLOAT)) @ turn.T
    return GaussianPrior(PAIR, dense(matrix, shape=(2,)), mean=torch.full((2,), shift, dtype=FLOAT))


@pytest.mark.parametrize(
    ("begun", "repeated", "name"),
    [
        ({"augment": _shifted}, {"augment": _scaled}, "augment"),
        ({"augment": None}, {"augment": _scaled}, "augment"),
        ({"validation": normal(2, 20, 2)}, {"validation": normal(3, 20, 2)}, "validation"),
        ({"gaussian": _gaussian(0, 0)}, {"gaussian": _gaussian(0, 1)}, "gaussian"),
        ({"gaussian": _gaussian(0, 0)}, {"gaussian": _gaussian(3, 0)}, "normalisation"),
        ({"season": np.zeros((12, 2))}, {"season": np.ones((12, 2))}, "season"),
        (
            {"gaussian": None, "sigma_min": 0.01, "sigma_max": 100.0},
            {
                "gaussian": None,
                "sigma_min": 0.01,
                "sigma_max": 100.0,
                "reference": dense(torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=FLOAT), shape=(2,)),
            },
            "reference",
        ),
    ],
    ids=["augment", "no augment", "validation", "covariance", "mean", "season", "reference"],
)
def test_a_run_that_differs_in_one_thing_only_is_not_gone_on_with(
    begun: dict, repeated: dict, name: str, tmp_path: Path
):
    arguments = {**TINY, "data": normal(0, 50, 2), "space": PAIR, "seed": 0, "out": tmp_path}
    train(**arguments | begun)
    train(**arguments | begun)
    with pytest.raises(InputError, match=f"(?s){name}.*resume=False"):
        train(**arguments | repeated)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    train(normal(0, 50, 2), PAIR, **TINY, seed=0, out=tmp_path)
    for file in sorted(tmp_path.iterdir()):
        good = file.read_bytes()
        for at in range(0, len(good), max(1, len(good) // 12)):
            bad = bytearray(good)
            bad[at] ^= 4
            file.write_bytes(bad)
            with pytest.raises(InputError, match="damaged"):
                train(normal(0, 50, 2), PAIR, **TINY, seed=0, out=tmp_path)
        file.write_bytes(good)


# -- data --------------------------------------------------------------------------------------------


def test_every_kind_of_data_gives_the_same_prior():
    x = normal(0, 64, 2)
    labelled = xr.DataArray(x.numpy(), dims=("sample", "i"), name="x")
    renamed = labelled.rename(sample="member").T
    first = weights(train(x, PAIR, **TINY, seed=0))
    for data in (x.numpy(), labelled, labelled.to_dataset(), x.tolist(), list(x)):
        assert torch.equal(weights(train(data, PAIR, **TINY, seed=0)), first)
    assert torch.equal(weights(train(renamed, PAIR, **TINY, seed=0, batch_dim="member")), first)


def test_an_iterable_of_batches_trains_and_resumes(tmp_path: Path):
    batches = [normal(i, 16, 2) for i in range(7)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(batches)), batch_size=16)
    with torch.random.fork_rng():  # a loader draws from torch's global state
        first = train(loader, PAIR, **TINY, seed=0)
    for data in (batches, tuple(batches)):
        assert torch.equal(weights(train(data, PAIR, **TINY, seed=0)), weights(first))
    # of an iterator, whatever it holds is used for the fit
    once = train((b for b in batches * 3), PAIR, **TINY, seed=0)
    assert torch.equal(weights(once), weights(train(batches * 3, PAIR, **TINY, seed=0)))

    class Stopping:
        def __init__(self, after: int) -> None:
            self.left = after

        def __iter__(self):
            for batch in batches:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        train(Stopping(7 + 11), PAIR, **TINY | {"checkpoint_every": 3}, seed=0, out=tmp_path)
    assert load_checkpoint(tmp_path).step == 9
    resumed = train(batches, PAIR, **TINY | {"checkpoint_every": 3}, seed=0, out=tmp_path)
    assert torch.equal(weights(resumed), weights(first))


def test_an_iterator_that_ends_too_soon_is_refused():
    with pytest.raises(InputError, match="at least 4 batches"):
        train(iter([normal(i, 16, 2) for i in range(3)]), PAIR, **TINY, seed=0)
    with pytest.raises(InputError, match="empty"):
        train(iter(()), PAIR, **TINY, seed=0)


def test_every_state_is_seen_once_before_any_is_seen_again():
    table = Table(torch.arange(10.0, dtype=FLOAT)[:, None], batch=4, seed=0)
    seen = torch.cat([table.batch(step) for step in range(10)]).flatten().reshape(4, 10)
    assert (seen.sort(1).values == torch.arange(10.0)).all()
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(Table(table.sample, batch=4, seed=0).batch(7), table.batch(7))
    assert source(table.sample, Space({"i": 1}), "sample", 25, 0).batch(0).shape == (25, 1)


def test_augmentation_is_keyed_by_the_step_and_sees_physical_units():
    seen, drawn = [], []

    def flip(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        seen.append(float(x.mean()))
        drawn.append(rng.random())
        sign = torch.from_numpy(rng.choice([-1.0, 1.0], len(x)))
        return 280 + sign[:, None] * (x - 280)

    data = 285 + 0.1 * normal(0, 100, 2)
    first, again = (train(data, PAIR, **TINY, seed=0, augment=flip) for _ in range(2))
    assert torch.equal(weights(first), weights(again))
    assert min(seen) > 284.5
    assert len(drawn) == 42 and len(set(drawn)) == 21 and drawn[:21] == drawn[21:]
    # the Gaussian was fitted to states on both sides
    assert float((first.normalisation.mean - 280).abs().max()) < 5 * 5 / 100**0.5
    assert float(first.normalisation.scale) > 4
    with pytest.raises(InputError, match="augment"):
        train(data, PAIR, **TINY, seed=0, augment=lambda x, rng: x[:, :1])


# -- what comes out ----------------------------------------------------------------------------------


def test_the_best_weights_are_those_of_the_lowest_validation_loss():
    data = mixture().sample(40, seed=0)["x"].values
    held = mixture().sample(200, seed=1)["x"].values
    arguments = TINY | {
        "steps": 150,
        "learning_rate": 0.05,
        "schedule": "constant",
        "ema": 0,
        "log_every": 10,
    }
    best, last = (train(data, PAIR, **arguments, validation=held, keep=k, seed=0) for k in ("best", "last"))
    assert best.history == last.history
    values = best.history["validation"]
    assert min(values) < values[-1]
    # the run of as many steps as the best record ends with the same weights
    steps = best.history["step"][int(np.argmin(values))]
    short = train(data, PAIR, **arguments | {"steps": steps, "warmup": 3}, seed=0)
    assert arguments["steps"] // 50 == 3
    assert torch.equal(weights(best), weights(short))


def test_the_average_is_that_of_the_weights_on_the_way():
    data = normal(0, 50, 2)
    arguments = TINY | {"schedule": "constant", "warmup": 1, "learning_rate": 0.05, "seed": 0}
    expected = torch.zeros(())
    for step in range(12):
        plain = weights(train(data, PAIR, **arguments | {"steps": step + 1, "ema": 0}))
        life = min(0.7, 0.1 * step)  # the half-life that is asked for below, and its warm-up
        expected = expected + (1 - (0.5 ** (1 / life) if life else 0.0)) * (plain - expected)
    averaged = weights(train(data, PAIR, **arguments | {"steps": 12, "ema": 0.7}))
    torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6)
    assert (averaged - plain).abs().max() > 1e-3


def test_the_average_has_the_half_life_that_was_asked_for():
    from sciddiff.training.run import Plan

    plan = Plan(1000, 1, 1e-3, 0.0, "constant", 0, 20.0, "last", 0, 1, 1)
    value = 0.0
    for step in range(200, 220):  # weights jump from 0 to 1: half of it is in the average after 20 steps
        value += plan.share(step) * (1.0 - value)
    assert value == pytest.approx(0.5)
    assert plan.share(0) == 1.0 and plan.share(50) > plan.share(199) > plan.share(200) == plan.share(900)
    cosine = Plan(1000, 1, 1e-3, 0.0, "cosine", 100, 20.0, "last", 0, 1, 1)
    assert cosine.rate(0) == pytest.approx(1e-5) and cosine.rate(550) == pytest.approx(
        0.5e-3 * (1 + np.cos(0.55 * np.pi))
    )


def test_sigma_max_follows_the_data_and_not_only_the_fitted_gaussian():
    common = normal(0, 500, 1) + 0.01 * normal(1, 500, 40)  # forty values that move as one
    prior = train(common, Space({"i": 40}), **TINY | {"steps": 1}, gaussian="diagonal", seed=0)
    assert prior.gaussian.joint.largest < 1.2
    assert prior.sigma_max == pytest.approx(20 * 40**0.5, rel=0.02)
    with pytest.raises(InputError, match="sigma_max"):
        train(common, Space({"i": 40}), **TINY | {"steps": 1}, gaussian="diagonal", sigma_max=20.0, seed=0)


@pytest.mark.parametrize(
    ("space", "network", "settings"),
    [
        (Space({"i": 9}, ["u", "v"]), "unet", {"width": 4, "blocks": 1, "padding": "circular"}),
        (Space({"i": 4, "j": 5}), "unet", {"width": 4, "blocks": 1}),
        (Space({"a": 2, "b": 3, "c": 2}), "unet", {"width": 4, "blocks": 1, "multipliers": (1,)}),
        (Space({"i": 4}, {"f": Variable(("i",), complex=True)}), "mlp", {"width": 8, "depth": 1}),
        (Space({"n": 3, "m": 2}, {"h": Variable(("n",)), "q": Variable(("m",))}), "mlp", {"width": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("gaussian", ["dense", "diagonal", "neumann", None])
def test_every_kind_of_space_trains_and_comes_back_from_disk(
    space: Space, network: str, settings: dict, gaussian: str | None, tmp_path: Path
):
    if gaussian == "neumann" and not space.homogeneous:
        pytest.skip("variables on different dims have no common grid")
    data = normal(0, 40, *space.shape)
    arguments = TINY | {"network": network, "settings": settings, "steps": 2}
    prior = train(data, space, **arguments, gaussian=gaussian, seed=0)
    prior.save(tmp_path / "prior")
    back = load_prior(tmp_path / "prior")
    z = normal(1, 3, *space.shape).float()
    assert torch.equal(prior.denoise(z, 0.5), back.denoise(z, 0.5))
    assert back.history == prior.history


def test_a_projector_as_reference_noise_keeps_the_states_in_its_range():
    data = normal(0, 30, 6)
    data = data - data.mean(1, keepdim=True)
    for gaussian in ("dense", None):
        prior = train(
            data, Space({"i": 6}), **TINY, gaussian=gaussian, reference=centred((6,)), dtype=FLOAT, seed=0
        )
        assert np.abs(prior.sample(5, seed=0)["x"].values.sum(1)).max() < 1e-9
    with pytest.raises(InputError, match="reference"):
        train(data + 1.0 * normal(1, 30, 1), Space({"i": 6}), **TINY, reference=centred((6,)), seed=0)


def test_a_module_of_ones_own_is_copied_and_its_dropout_repeats():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.drop(self.layer(x))

    with torch.random.fork_rng():
        net = Own()
    before = net.layer.weight.clone()
    arguments = TINY | {"network": net, "settings": None}
    first, again = (train(normal(0, 50, 2), PAIR, **arguments, seed=0) for _ in range(2))
    assert torch.equal(weights(first), weights(again))
    assert torch.equal(net.layer.weight, before) and net.training and net.layer.weight.requires_grad
    assert not torch.equal(first.network.layer.weight, before)


def test_a_trained_network_can_be_trained_on():
    data = normal(0, 50, 2)
    first = train(data, PAIR, **TINY, seed=0)
    before = weights(first).clone()
    more = train(data, PAIR, **TINY | {"network": first.network, "settings": None}, seed=1)
    assert torch.equal(weights(first), before) and not torch.equal(weights(more), before)
    assert not any(p.requires_grad for p in more.network.parameters())


def test_training_works_under_no_grad_and_inference_mode():
    data = normal(0, 50, 2)
    first = weights(train(data, PAIR, **TINY, seed=0))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(weights(train(data, PAIR, **TINY, seed=0)), first)


def test_float64_trains_in_float64():
    prior = train(normal(0, 50, 2), PAIR, **TINY, dtype=FLOAT, seed=0)
    assert prior.dtype == FLOAT == next(prior.network.parameters()).dtype


def test_a_season_is_kept():
    season = normal(1, 12, 2)
    prior = train(normal(0, 50, 2), PAIR, **TINY, season=season.numpy(), seed=0)
    assert torch.equal(prior.season, season)


def test_a_season_that_is_no_mean_of_each_month_of_the_space_is_refused_before_training():
    series = Space({"time": 24}, ["a", "b"])
    for season in (
        np.zeros(11),
        np.zeros(24),
        np.zeros(12),
        np.zeros((2, 12)),
        np.full((12, 2), np.nan),
        "year",
    ):
        with pytest.raises(InputError, match="season"):
            train([], series, season=season, seed=0)
    prior = GaussianPrior(series, white((2, 24)))
    with pytest.raises(InputError, match=r"season.*shape \(12, 2\)"):
        prior.season = torch.zeros(12)
    prior.season = np.ones((12, 2))
    assert torch.equal(prior.season, torch.ones(12, 2, dtype=torch.float64))
    assert prior.to(dtype=torch.float32).relabel(series).season is not None


def test_a_progress_bar_shows_the_loss(capsys: pytest.CaptureFixture[str]):
    train(normal(0, 50, 2), PAIR, **TINY | {"progress": True}, seed=0)
    shown = capsys.readouterr().err
    assert "training" in shown and "20/20" in shown and "loss=" in shown


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 1.5}, "batch"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"ema": float("nan")}, "ema"),
        ({"warmup": -1}, "warmup"),
        ({"schedule": "linear"}, "schedule"),
        ({"keep": "best"}, "validation"),
        ({"keep": "first"}, "keep"),
        ({"sigmas": "uniform"}, "sigmas"),
        ({"sigmas": (0.0, -1.0)}, "sigmas"),
        ({"sigmas": (60.0, 0.1)}, "sigmas"),
        ({"sigma_min": 100.0}, "sigma_min"),
        ({"sigma_max": 1.0}, "sigma_max"),
        ({"gaussian": "full"}, "gaussian"),
        ({"network": "lstm"}, "mlp"),
        ({"settings": {"depht": 3}}, "settings"),
        ({"seed": -1}, "seed"),
        ({"data": normal(0, 50, 3)}, "data"),
        ({"data": normal(0, 1, 2)}, "at least 2 states"),
        ({"data": torch.full((9, 2), float("nan"))}, "finite"),
        ({"data": torch.ones(9, 2)}, "var"),
        ({"validation": normal(0, 9, 3)}, "data"),
        ({"gaussian": GaussianPrior(Space({"k": 2}), white((2,)))}, "same space"),
        ({"gaussian": GaussianPrior(PAIR, white((2,))), "reference": white((2,))}, "reference"),
        ({"network": nn.Identity(), "settings": None}, "network"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_training(change: dict, words: str):
    arguments = {**TINY, "data": normal(0, 50, 2), "space": PAIR, "seed": 0, **change}
    with pytest.raises(InputError, match=words):
        train(**arguments)


def test_a_large_state_is_not_given_a_dense_gaussian():
    data, space = normal(0, 8, 65, 64), Space({"i": 65, "j": 64})
    with pytest.raises(InputError, match="diagonal"):
        train(data, space, **TINY | {"steps": 1}, gaussian="dense", seed=0)
    unet = TINY | {"network": "unet", "settings": {"width": 4, "blocks": 1}, "steps": 1}
    for settings, basis in ((TINY | {"steps": 1}, Standard), (unet, Axes)):
        assert type(train(data, space, **settings, seed=0).gaussian.physical_covariance.basis) is basis


def test_a_unet_gets_the_modes_of_the_grid_where_states_are_few():
    unet = TINY | {"network": "unet", "settings": {"width": 4, "blocks": 1}, "steps": 1}
    for states, basis in ((159, Axes), (160, Full)):
        prior = train(normal(0, states, 4, 4), Space({"i": 4, "j": 4}), **unet, seed=0)
        assert type(prior.gaussian.physical_covariance.basis) is basis


def test_a_loss_that_is_no_longer_finite_stops_the_run():
    with pytest.raises(DivergenceError, match="learning_rate"):
        train(normal(0, 50, 2), PAIR, **TINY | {"learning_rate": 1e30, "warmup": 0}, seed=0)
