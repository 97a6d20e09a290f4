"""DYffusion keeps to exact means and laws of linear systems; emulators count their work and are the same in every batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.assimilation.dyffusion import DYffusion, train_dyffusion
from sciddiff.assimilation.emulators import (
    Autoregressive,
    Dynamics,
    WindowDiffusion,
    train_autoregressive,
)
from sciddiff.assimilation.storage import load_emulator, save_emulator
from sciddiff.assimilation.surrogates import Surrogate
from sciddiff.errors import DivergenceError, InputError
from sciddiff.networks import MLP, UNet
from sciddiff.physics import ARMA
from sciddiff.priors.base import Normalisation
from sciddiff.random import Streams

H, PHI = 5, 0.8
NEWS = 1 - PHI**2
SPACE = sd.Space({"x": 1})
UNITS = Normalisation(torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def bridge(i: int) -> tuple[float, float, float]:
    """Of a stationary AR(1): ``x_i | x_0, x_h`` has mean ``a x_0 + b x_h`` and variance ``v``."""
    left, right = 1 - PHI ** (2 * i), 1 - PHI ** (2 * (H - i))
    whole = 1 - PHI ** (2 * H)
    b = PHI ** (H - i) * left / whole
    return PHI**i - b * PHI**H, b, left * right / whole


def interpolate(noisy):
    def draw(z0, last, i, streams):
        a, b, v = bridge(i)
        mean = a * z0 + b * last
        return mean + math.sqrt(v) * streams.normal((1,), dtype=z0.dtype) if noisy else mean

    return draw


def jump(noisy):
    def draw(z, i, streams):
        mean = PHI ** (H - i) * z
        sd = math.sqrt(1 - PHI ** (2 * (H - i)))
        return mean + sd * streams.normal((1,), dtype=z.dtype) if noisy else mean

    return draw


def toy(*, noisy_interpolator=False, noisy_forecaster=False, **settings):
    return DYffusion(
        Counted(interpolate(noisy_interpolator)),
        Counted(jump(noisy_forecaster)),
        H,
        SPACE,
        UNITS,
        dtype=torch.float64,
        **settings,
    )


@pytest.mark.parametrize("sampling", ["cold", "naive"])
@pytest.mark.parametrize("refine", [False, True])
def test_with_exact_conditional_means_every_lead_is_the_conditional_mean(sampling, refine):
    ahead = toy(sampling=sampling, refine=refine).forecast([8.0], steps=H, samples=2, seed=0)
    exact = 2.0 + 3.0 * 2.0 * PHI ** np.arange(1, H + 1)
    np.testing.assert_allclose(ahead["u"].isel(sample=1, x=0), exact, rtol=1e-12)


def test_with_exact_laws_naive_sampling_draws_every_lead_from_its_law_over_several_windows():
    n, steps = 4000, 2 * H + 2
    model = toy(noisy_interpolator=True, noisy_forecaster=True, sampling="naive")
    z = (model.forecast([8.0], steps=steps, samples=n, seed=0)["u"].values[..., 0] - 2.0) / 3.0
    lead = np.arange(1, steps + 1)
    variance = 1 - PHI ** (2 * lead)
    assert np.abs((z.mean(0) - 2.0 * PHI**lead) / np.sqrt(variance / n)).max() < 4.5
    assert np.abs((z.var(0) / variance - 1) / np.sqrt(2 / n)).max() < 4.5


def test_refined_paths_are_exact_bridges_between_their_ends():
    n = 4000
    model = toy(noisy_interpolator=True, noisy_forecaster=True, sampling="naive", refine=True)
    z = (model.forecast([8.0], steps=H, samples=n, seed=1)["u"].values[..., 0] - 2.0) / 3.0
    for i in range(1, H):
        a, b, v = bridge(i)
        rest = z[:, i - 1] - a * 2.0 - b * z[:, -1]
        assert abs(rest.mean()) < 4.5 * math.sqrt(v / n) and abs(rest.var() / v - 1) < 4.5 * math.sqrt(2 / n)
        assert abs(np.corrcoef(rest, z[:, -1])[0, 1]) < 4.5 / math.sqrt(n)


def test_states_are_refined_towards_the_last_forecast_and_not_to_where_cold_sampling_ends():
    forecasts = []

    def ahead(z, i, streams):
        forecasts.append(z + (H - i))
        return forecasts[-1]

    def crooked(z0, last, i, streams):
        return z0 + (last - z0) * (i / H) ** 2

    model = DYffusion(crooked, ahead, H, SPACE, UNITS, dtype=torch.float64, refine=True)
    z = (model.forecast([8.0], steps=H, samples=1, seed=0)["u"].values[0, :, 0] - 2.0) / 3.0
    last = float(forecasts[-1])
    assert abs(z[-1] - last) > 0.1  # cold sampling adds what the interpolator is off by
    np.testing.assert_allclose(z[:-1], 2.0 + (last - 2.0) * (np.arange(1, H) / H) ** 2, rtol=1e-12)


def test_cold_sampling_with_a_noisy_interpolator_has_the_variance_of_its_own_recursion_and_not_the_law():
    n = 4000
    model = toy(noisy_interpolator=True)
    z = (model.forecast([8.0], steps=H, samples=n, seed=2)["u"].values[..., 0] - 2.0) / 3.0
    # x_{i+1} = (1 + (b_{i+1} - b_i) phi^(h-i)) x_i + (a_{i+1} - a_i) x_0 + two independent draws of the interpolator
    variance, own = 0.0, []
    for i in range(H):
        b, v = (0.0, 0.0) if i == 0 else bridge(i)[1:]
        b_next, v_next = (1.0, 0.0) if i + 1 == H else bridge(i + 1)[1:]
        variance = (1 + (b_next - b) * PHI ** (H - i)) ** 2 * variance + v + v_next
        own.append(variance)
    error = np.array(own) * math.sqrt(2 / n)
    assert np.abs((z.var(0, ddof=1) - own) / error).max() < 4.5
    assert np.abs((z.mean(0) - 2.0 * PHI ** np.arange(1, H + 1)) / np.sqrt(np.array(own) / n)).max() < 4.5
    assert own[-1] > 1.3 * (1 - PHI ** (2 * H)) or own[-1] < 0.7 * (1 - PHI ** (2 * H))


@pytest.mark.parametrize("sampling", ["cold", "naive"])
@pytest.mark.parametrize("refine", [False, True])
def test_forwards_are_those_that_were_made(sampling, refine):
    model = toy(sampling=sampling, refine=refine)
    ahead = model.forecast([8.0], steps=H + 1, samples=3, seed=0)
    made = model.interpolator.calls + model.forecaster.calls
    assert ahead.attrs["forwards"] == made == 2 * model.forwards


@pytest.mark.parametrize("steps", [1, H - 1, H, H + 1, 3 * H])
def test_forecasts_have_any_length_and_a_shorter_one_is_the_beginning_of_a_longer_one(steps):
    model = toy(noisy_interpolator=True)
    long = model.forecast([8.0], steps=3 * H, samples=2, seed=0)
    short = model.forecast([8.0], steps=steps, samples=2, seed=0)
    assert short["u"].equals(long["u"].isel(lead=slice(0, steps)))


def test_a_draw_depends_on_seed_case_and_draw_alone(monkeypatch):
    model = toy(noisy_interpolator=True, noisy_forecaster=True)
    settings = {"steps": 2 * H, "seed": 5, "noise": sd.noise.Gaussian(0.1), "batch_dim": "case"}
    many = model.forecast([[8.0], [1.0], [0.0]], samples=6, **settings)["u"]
    few = model.forecast([[8.0], [1.0]], samples=2, **settings)["u"]
    np.testing.assert_allclose(few, many[:2, :2], rtol=1e-12)
    monkeypatch.setattr("sciddiff.assimilation.emulators._ROWS", 4)
    assert many.equals(model.forecast([[8.0], [1.0], [0.0]], samples=6, **settings)["u"])
    assert not np.allclose(
        many[0, 0], model.forecast([[8.0]], samples=1, **{**settings, "seed": 6})["u"][0, 0]
    )


def test_first_states_are_drawn_within_their_noise():
    n, noise = 4000, 0.5
    model = Dynamics(lambda x: 2 * x, sd.Space({"x": 2}))
    ahead = model.forecast([1.0, -1.0], steps=2, samples=n, seed=0, noise=sd.noise.Gaussian(noise))["u"]
    exact = np.array([2.0, 4.0])[:, None]
    z = (ahead.mean("sample").values - exact * [1.0, -1.0]) / (exact * noise / math.sqrt(n))
    assert np.abs(z).max() < 4.5
    assert np.abs(ahead.std("sample").values / (exact * noise) - 1).max() < 4.5 / math.sqrt(2 * n)


def test_forecasts_are_labelled_with_their_dates():
    space = sd.Space({"x": 2}, {"t": "K"})
    model = Dynamics(lambda x: x, space, interval=np.timedelta64(6, "h"))
    begun = np.array(["2020-01-01", "2020-02-01"], dtype="datetime64[ns]")
    ahead = model.forecast(np.ones((2, 2)), steps=3, samples=4, seed=0, batch_dim="case", init_time=begun)
    assert ahead["t"].dims == ("sample", "case", "lead", "x") and ahead["t"].attrs["units"] == "K"
    assert ahead["time"].dims == ("case", "lead")
    assert ahead["time"].values[1, 2] == np.datetime64("2020-02-01T18")
    assert (ahead["init_time"].values == begun).all()


# -- plain diffusion ---------------------------------------------------------------------------------


def test_plain_diffusion_over_a_window_is_exact_for_a_markov_gaussian_prior_and_its_rollouts_too():
    process = ARMA(ar=(PHI,), sd=math.sqrt(NEWS))
    window = sd.Space({"time": np.arange(4.0)}, "x")
    prior = sd.GaussianPrior(window, process.covariance(np.arange(4)))
    n, steps, noise = 6000, 6, 0.3
    model = WindowDiffusion(prior)
    ahead = model.forecast([1.0], steps=steps, samples=n, seed=0, noise=sd.noise.Gaussian(noise))
    z = ahead["x"].values
    lead = np.arange(1, steps + 1)
    gain = 1 / (1 + noise**2)
    mean, variance = gain * PHI**lead, 1 - PHI ** (2 * lead) * gain
    assert ahead["lead"].values.tolist() == lead.tolist()
    assert np.abs((z.mean(0) - mean) / np.sqrt(variance / n)).max() < 4.5
    assert np.abs((z.var(0) / variance - 1) / np.sqrt(2 / n)).max() < 4.5


def test_plain_diffusion_takes_several_variables_and_cases():
    window = sd.Space({"time": np.arange(3.0), "x": 2}, ["a", "b"])
    prior = sd.GaussianPrior(window, sd.covariance.white(window.shape))
    first = np.arange(12.0).reshape(3, 2, 2) / 10
    ahead = WindowDiffusion(prior).forecast(first, steps=4, samples=2, seed=0, batch_dim="case")
    assert ahead["b"].dims == ("sample", "case", "lead", "x") and ahead["b"].shape == (2, 3, 4, 2)


# -- networks ----------------------------------------------------------------------------------------


def waves(n: int, length: int) -> np.ndarray:
    """A sine that moves by one of eight sites in each step, with random phase and size."""
    rng = np.random.Generator(np.random.Philox(0))
    phase, size = rng.uniform(0, 2 * np.pi, (n, 1, 1)), rng.uniform(0.5, 2.0, (n, 1, 1))
    x, t = np.arange(8), np.arange(length)[:, None]
    return size * np.sin(2 * np.pi * (x - t) / 8 + phase)


TRAJECTORIES = sd.Space({"time": np.arange(6.0) * 0.5, "x": 8})
SMALL = {"network": "mlp", "settings": {"width": 32, "depth": 1}, "batch": 32, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def trained():
    data = waves(64, 6)
    return {
        "dyffusion": train_dyffusion(data, TRAJECTORIES, horizon=3, dropout=0.05, steps=150, seed=0, **SMALL),
        "autoregressive": train_autoregressive(
            data, TRAJECTORIES, dropout=0.05, noise="periodic", steps=150, seed=0, **SMALL
        ),
    }


@pytest.mark.parametrize("name", ["dyffusion", "autoregressive"])
def test_trained_emulators_forecast_a_moving_wave_far_better_than_persistence(trained, name):
    x = waves(20, 6)
    ahead = trained[name].forecast(x[:, 0], steps=3, samples=8, seed=0, batch_dim="case")["u"]
    error = np.sqrt(((ahead.mean("sample").values - x[:, 1:4]) ** 2).mean())
    persistence = np.sqrt(((x[:, :1] - x[:, 1:4]) ** 2).mean())
    assert error < 0.35 * persistence
    assert float(ahead.std("sample").mean()) > 0
    assert ahead["lead"].values.tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("name", ["dyffusion", "autoregressive"])
def test_dropout_belongs_to_the_draw_and_not_to_the_batch(trained, name):
    x = waves(3, 1)[:, 0]
    many = trained[name].forecast(x, steps=5, samples=3, seed=4, batch_dim="case")["u"].values
    few = trained[name].forecast(x[:2], steps=5, samples=2, seed=4, batch_dim="case")["u"].values
    np.testing.assert_allclose(few, many[:2, :2], atol=1e-4)
    assert np.abs(many[0] - many[1]).max() > 1e-3  # whether by masks or by noise


@pytest.mark.parametrize("name", ["dyffusion", "autoregressive"])
@pytest.mark.parametrize("half", [False, True])
def test_emulators_come_back_from_disk(trained, name, half, tmp_path):
    save_emulator(trained[name], tmp_path / "mine", half=half)
    loaded = load_emulator(tmp_path / "mine")
    x = waves(1, 1)[0, 0]
    before, after = (m.forecast(x, steps=4, samples=2, seed=0)["u"] for m in (trained[name], loaded))
    np.testing.assert_allclose(after, before, atol=0.05 if half else 1e-5)
    assert after["lead"].equals(before["lead"])
    damaged = (tmp_path / "mine.json").read_text().replace("cold", "warm").replace('"kind"', '"kinds"')
    (tmp_path / "mine.json").write_text(damaged)
    with pytest.raises(InputError, match="damaged"):
        load_emulator(tmp_path / "mine")


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    data = waves(16, 4)
    space = sd.Space({"time": np.arange(4.0), "x": 8})
    settings = {**SMALL, "horizon": 2, "dropout": 0.1, "steps": 12, "seed": 1}
    whole = train_dyffusion(data, space, **settings)

    class StopError(Exception):
        pass

    from sciddiff.assimilation import surrogates

    kept, calls = surrogates.save_checkpoint, []

    def save_and_stop(folder, checkpoint):
        kept(folder, checkpoint)
        calls.append(checkpoint.step)
        if len(calls) in (5, 15):
            raise StopError

    monkeypatch.setattr(surrogates, "save_checkpoint", save_and_stop)
    for _ in range(2):
        with pytest.raises(StopError):
            train_dyffusion(data, space, out=tmp_path, **settings)
    again = train_dyffusion(data, space, out=tmp_path, **settings)
    for a, b in ((whole.interpolator, again.interpolator), (whole.forecaster, again.forecaster)):
        for p, q in zip(a.network.network.parameters(), b.network.network.parameters(), strict=True):
            assert bool((p == q).all())
    with pytest.raises(InputError, match="dropout"):
        train_dyffusion(data, space, out=tmp_path, **{**settings, "dropout": 0.2})


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: MLP(features=16, width=16, depth=2), (8,)),
        (lambda: UNet(dimensions=1, channels=2, width=8, multipliers=(1, 2), blocks=1), (8,)),
    ],
)
def test_masks_drop_the_given_share_and_keep_the_mean(network, shape):
    net = network()
    # layers that end a branch start at zero: give them weights
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(0))
    f = Surrogate(net, sd.Space({"x": 8}), inputs=2, dropout=0.25)
    rows, seen = 2000, []
    z = Streams(0, [0], purpose="test").normal(shape, dtype=torch.float32).repeat(rows, 1)
    uniform = Streams(1, range(rows), purpose="test").uniform((f.masks,), dtype=torch.float32)
    f.layers[0].register_forward_hook(lambda layer, arguments, out: seen.append(arguments[0]))
    with torch.no_grad():
        f([z, z], 0.5, z, uniform)
        f([z[:1], z[:1]], 0.5, z[:1])
    masked, whole = seen
    kept = masked.flatten(2).abs().sum(2) > 0 if masked.ndim == 3 else masked != 0
    assert abs(float(kept.float().mean()) - 0.75) < 4.5 * math.sqrt(0.25 * 0.75 / kept.numel())
    # a kept value is divided by 0.75, so that its mean stays
    error = whole.abs() * math.sqrt(0.25 / 0.75 / rows)
    assert bool(((masked.mean(0) - whole[0]).abs() <= 4.5 * error[0] + 1e-7).all())
    assert not any(layer._forward_pre_hooks for layer in f.layers)


def test_an_ensemble_without_masks_and_noise_is_one_forecast(trained):
    model = trained["autoregressive"]
    bare = Surrogate(model.network.network, model.space, inputs=1)
    alone = replace(model, network=bare, noise=None)
    assert isinstance(alone, Autoregressive)
    ahead = alone.forecast(waves(1, 1)[0, 0], steps=3, samples=3, seed=0)["u"]
    assert float(ahead.std("sample").max()) < 1e-6


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: toy(sampling="warm"), "sampling"),
        (lambda: DYffusion(None, None, 1, SPACE, UNITS), "horizon"),
        (lambda: toy().forecast([1.0], steps=0, seed=0), "steps"),
        (lambda: toy().forecast([1.0], steps=2, seed=-1), "seed"),
        (lambda: toy().forecast([1.0, 2.0], steps=2, seed=0), "initial"),
        (lambda: toy().forecast([math.nan], steps=2, seed=0), "initial"),
        (lambda: toy().forecast([1.0], steps=2, seed=0, noise=sd.noise.Laplace(1.0)), "noise"),
        (lambda: toy().forecast([1.0], steps=2, seed=0, init_time=[1.0, 2.0]), "init_time"),
        (lambda: train_dyffusion(waves(4, 3), TRAJECTORIES, horizon=3, seed=0), "data"),
        (lambda: train_dyffusion(waves(4, 6), TRAJECTORIES, horizon=1, seed=0), "horizon"),
        (lambda: train_dyffusion(waves(4, 6), TRAJECTORIES, horizon=9, seed=0), "data"),
        (lambda: train_autoregressive(waves(4, 6), sd.Space({"x": 6, "y": 8}), seed=0), "space"),
        (lambda: train_autoregressive(waves(4, 6), TRAJECTORIES, dropout=1.0, seed=0), "dropout"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, argument):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.argument == argument


def test_a_forecast_that_blows_up_says_so():
    model = Dynamics(lambda x: x**3, sd.Space({"x": 1}))
    with pytest.raises(DivergenceError, match="1 of 2 forecasts"):
        model.forecast([[1e9], [0.1]], steps=9, samples=1, seed=0, batch_dim="case")


@pytest.mark.parametrize("bad", [{"steps": (1,)}, {"jitter": -1.0}, {"jitter": float("nan")}])
def test_settings_of_a_training_are_refused_before_it(bad):
    runs = torch.zeros(4, 6, 3).normal_(generator=torch.Generator().manual_seed(0)).numpy()
    space = sd.Space({"time": 6, "site": 3})
    with pytest.raises(InputError, match="expected"):
        train_dyffusion(runs, space, horizon=2, **{"steps": 2, "seed": 0, "network": "mlp"} | bad)
