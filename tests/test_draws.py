"""Claims about results: they come back whole from disk, and what looks wrong with them is said, rarely by mistake."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

import sciddiff as sd
from sciddiff import noise
from sciddiff.draws import DiagnosisWarning, diagnose, load, save, to_arviz
from sciddiff.errors import InputError
from sciddiff.operators import Identity, Matrix, black_box, from_torch
from sciddiff.posterior import Posterior
from sciddiff.priors.paths import VE

# -- disk ----------------------------------------------------------------------------------------------


def result() -> xr.Dataset:
    rng = np.random.default_rng(0)
    waves = rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4))
    gappy = rng.standard_normal((3, 4)).astype(np.float32)
    gappy[0, 1] = np.nan
    return xr.Dataset(
        {
            "psi": (("sample", "time"), waves, {"units": "V"}),
            "t": (("sample", "time"), gappy, {"units": "K", "long_name": "heat"}),
            "count": (("sample",), np.arange(3)),
        },
        coords={
            "time": np.arange("2000-01-01", "2000-01-05", dtype="datetime64[D]").astype("datetime64[ns]"),
            "station": ("time", ["oslo", "rome", "lima", "bern"]),
            "lead": ("time", np.arange(4).astype("timedelta64[h]").astype("timedelta64[ns]")),
            "sample": [5, 6, 7],
        },
        attrs={"seed": 2**64 - 1, "method": "MMPS()", "seconds": 0.25, "levels": [1.0, 2.0]},
    )


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    return (
        set(a.variables) == set(b.variables)
        and all(a[n].equals(b[n]) and a[n].attrs == b[n].attrs for n in a.variables)
        and all(np.array_equal(a.attrs[k], b.attrs[k]) for k in {*a.attrs, *b.attrs})
    )


def test_draws_come_back_whole(tmp_path):
    draws, path = result(), tmp_path / "draws.nc"
    assert save(draws, path) == path
    again = load(path)
    assert same(draws, again) and again["psi"].dtype == complex and again["t"].dtype == np.float32
    assert same(draws, result())  # and the caller's were not touched
    assert [p.name for p in tmp_path.iterdir()] == ["draws.nc"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_dates_come_back_from_any_resolution(tmp_path, unit):
    time = np.array(["1950-01-01T06", "2000-12-31T18"], dtype=f"datetime64[{unit}]")
    save(xr.Dataset({"t": ("time", [1.0, 2.0])}, coords={"time": time}), tmp_path / "a.nc")
    assert (load(tmp_path / "a.nc")["time"].values == time).all()


def test_sampled_draws_come_back_whole(tmp_path):
    space = sd.Space(
        {"time": np.arange("2000-01", "2000-04", dtype="datetime64[M]").astype("datetime64[ns]")}, {"t": "K"}
    )
    prior = sd.GaussianPrior(space, sd.covariance.white((3,)))
    draws = prior.given([1.0, 2.0, np.nan], Identity(space), noise.Gaussian(0.5), missing="mask").sample(
        4, seed=2**63
    )
    save(draws, tmp_path / "draws.nc")
    assert same(draws, load(tmp_path / "draws.nc"))


def test_a_flipped_bit_is_never_read_as_draws(tmp_path):
    path, rng = tmp_path / "draws.nc", np.random.default_rng(0)
    save(result(), path)
    whole, refused = path.read_bytes(), 0
    trials = 60
    for _ in range(trials):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert same(load(path), result())
        except InputError:
            refused += 1
    # the rest hit bytes that mean nothing
    assert refused > trials / 10


@pytest.mark.parametrize("change", ["value", "label", "unit", "attribute", "name"])
def test_a_changed_file_is_refused(tmp_path, change):
    path = tmp_path / "draws.nc"
    save(result(), path)
    with h5py.File(path, "r+") as file:
        if change == "value":
            file["t"][0, 0] += np.float32(1e-3)
        elif change == "label":
            file["sample"][0] = 9
        elif change == "unit":
            file["t"].attrs["units"] = "degC"
        elif change == "attribute":
            file.attrs["method"] = "DPS()"
        else:
            file.move("count", "counts")
    with pytest.raises(InputError, match="checksum"):
        load(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_torn_file_is_refused(tmp_path, keep):
    path = tmp_path / "draws.nc"
    save(result(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(InputError, match="netCDF file of draws"):
        load(path)


def test_what_is_no_file_of_draws_is_refused(tmp_path):
    (tmp_path / "a.nc").write_text("hello")
    xr.Dataset({"t": ("x", [1.0])}).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    for name in ("a.nc", "b.nc", "missing.nc", "."):
        with pytest.raises(InputError, match="`path`"):
            load(tmp_path / name)


def test_a_file_that_points_to_others_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"0" * 80)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file.create_dataset("t", (10,), dtype="f8", external=[(str(tmp_path / "secret"), 0, 80)])
    save(result(), tmp_path / "b.nc")
    with h5py.File(tmp_path / "b.nc", "r+") as file:
        file["more"] = h5py.ExternalLink(str(tmp_path / "a.nc"), "/t")
    for name in ("a.nc", "b.nc"):
        with pytest.raises(InputError, match="holds its own data"):
            load(tmp_path / name)


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "draws.nc"
    save(result(), path)
    with pytest.raises(InputError, match="attributes that netCDF can hold"):
        save(result().assign_attrs(bad={"a": 1}), path)
    assert same(load(path), result()) and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(InputError, match="Dataset"):
        save(result()["t"], tmp_path / "a.nc")
    with pytest.raises(InputError, match="folder"):
        save(result(), tmp_path / "no" / "a.nc")


def test_arviz_gets_one_chain_of_draws():
    draws = result()
    tree = to_arviz(draws, observed=xr.Dataset({"y": ("d", [1.0])}))
    assert tree["posterior"]["t"].dims == ("chain", "draw", "time")
    assert tree["posterior"].sizes["draw"] == 3 and tree["posterior"].sizes["chain"] == 1
    np.testing.assert_array_equal(tree["posterior"]["psi"][0], draws["psi"])
    assert tree["observed_data"]["y"].values.tolist() == [1.0]


@pytest.mark.parametrize("bad", [result().rename(sample="member"), result().rename(time="draw")])
def test_arviz_gets_nothing_but_draws(bad):
    with pytest.raises(InputError, match="`draws`"):
        to_arviz(bad)


# -- what looks wrong ------------------------------------------------------------------------------------

GRID = torch.linspace(-8, 8, 4001, dtype=torch.float64)
LAWS = {
    "gaussian": noise.Gaussian(0.5),
    "laplace": noise.Laplace(0.4),
    "student": noise.StudentT(3, 0.3),
    "poisson": noise.Poisson(3.0),
}


def case(law: noise.Noise, size: int, seed: int, n: int = 32) -> tuple[Posterior, torch.Tensor]:
    """An observation made from the prior, and exact draws given it, value by value on a grid."""
    space = sd.Space({"i": size}, "x")
    rate = isinstance(law, noise.Poisson)
    operator = from_torch(torch.exp, space, space) if rate else Identity(space)
    prior = sd.GaussianPrior(space, sd.covariance.white((size,)))
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(rng.standard_normal((1, size)))
    y = law.sample(operator.apply(truth), seed=seed)
    means = (GRID.exp() if rate else GRID)[:, None]
    table = torch.stack([law.log_prob(y[:, i : i + 1], means) for i in range(size)]) - GRID**2 / 2
    cdf = (table - table.amax(1, keepdim=True)).exp().cumsum(1)
    at = torch.from_numpy(rng.random((size, n)))
    index = torch.searchsorted(cdf / cdf[:, -1:], at).clamp(max=len(GRID) - 1)
    step = float(GRID[1] - GRID[0]) * torch.from_numpy(rng.random((size, n)) - 0.5)
    return prior.given(y[0], operator, law), (GRID[index] + step).T.contiguous()


@pytest.mark.parametrize("name", list(LAWS))
def test_exact_draws_are_reported_in_fewer_than_one_of_1000_results(name):
    # at that rate two or more alarms of 65 would have a probability of 0.2 %
    settings = [(1, 2, 30), (3, 32, 30), (40, 32, 5)]
    alarms = [
        line
        for size, n, seeds in settings
        for seed in range(seeds)
        if (line := diagnose(*case(LAWS[name], size, seed, n))) != "ok"
    ]
    assert len(alarms) < 2, alarms


def regression(assumed: float, seed: int = 0, n: int = 64) -> tuple[Posterior, torch.Tensor]:
    """100 observations of 4 numbers with errors of 0.5, and exact draws for the sd that is assumed."""
    rng = np.random.default_rng(seed)
    a, truth = rng.standard_normal((100, 4)), rng.standard_normal(4)
    y = a @ truth + 0.5 * rng.standard_normal(100)
    space = sd.Space({"i": 4}, "x")
    prior = sd.GaussianPrior(space, sd.covariance.white((4,)))
    cov = np.linalg.inv(np.eye(4) + a.T @ a / assumed**2)
    draws = rng.multivariate_normal(cov @ a.T @ y / assumed**2, cov, n)
    operator = Matrix(space, sd.Space({"k": 100}, "y"), a)
    return prior.given(y, operator, noise.Gaussian(assumed)), torch.from_numpy(draws)


def test_the_right_noise_is_ok():
    assert all(diagnose(*regression(0.5, seed)) == "ok" for seed in range(50))


@pytest.mark.parametrize("n", [1, 2, 64])
def test_a_noise_five_times_too_small_is_seen(n):
    for seed in range(20):
        assert "do not fit the observation" in diagnose(*regression(0.1, seed, n))


@pytest.mark.parametrize("n", [1, 2, 64])
def test_a_noise_five_times_too_large_is_seen(n):
    for seed in range(20):
        assert "fit the noise" in diagnose(*regression(2.5, seed, n))


def test_draws_of_another_observation_are_seen():
    posterior, _ = regression(0.5, 0)
    assert "do not fit" in diagnose(posterior, regression(0.5, 1)[1])


def test_draws_that_are_all_alike_are_seen():
    posterior, x = regression(0.5)
    assert "all alike" in diagnose(posterior, x[:1].expand(8, 4))


def test_draws_wider_than_the_prior_are_seen():
    posterior, _ = regression(0.5)
    assert "times as wide as the prior" in diagnose(
        posterior, torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 3
    )


def test_draws_that_are_not_finite_are_counted():
    posterior, x = regression(0.5)
    x[3, 1] = math.nan
    assert diagnose(posterior, x) == "1 of 64 draws are not finite"


def test_draws_far_out_are_seen():
    posterior, x = regression(0.5)
    assert "prior standard deviations from the prior mean" in diagnose(posterior, x + 100)


def test_a_value_that_varies_alone_is_not_far_out():
    space = sd.Space({"i": 1000}, "x")
    variance = torch.zeros(1000)
    variance[7] = 1.0
    prior = sd.GaussianPrior(space, sd.covariance.diagonal(variance))
    x = prior.normalisation.physical(prior.draw(sd.random.Streams(0, range(16), purpose="test")))
    posterior = prior.given(np.zeros(1000), Identity(space), noise.Gaussian(10.0))
    assert "from the prior mean" not in diagnose(posterior, x)


def test_impossible_draws_are_counted():
    space = sd.Space({"i": 2}, "x")
    prior = sd.GaussianPrior(space, sd.covariance.white((2,)), mean=[3.0, 3.0])
    posterior = prior.given([2.0, 4.0], Identity(space), noise.Poisson())
    x = torch.tensor([[1.0, 2.0], [1.0, -0.1], [2.0, 3.0]], dtype=torch.float64)
    assert "1 of 3 draws make the observation impossible" in diagnose(posterior, x)


def test_black_boxes_are_not_called_again():
    space, calls = sd.Space({"i": 2}, "x"), []

    def simulate(x):
        calls.append(len(x))
        return x

    prior = sd.GaussianPrior(space, sd.covariance.white((2,)))
    posterior = prior.given([0.0, 0.0], black_box(simulate, space, space), noise.Gaussian(0.1))
    assert diagnose(posterior, torch.tensor([[1.0, 1.0], [0.0, 0.0]])) == "ok" and not calls


def test_gaps_do_not_count():
    posterior, x = regression(0.5)
    o = posterior.observations[0]
    y = o.y[0].numpy().copy()
    y[::3] = np.nan
    masked = posterior.prior.given(y, o.operator, o.noise, missing="mask")
    assert diagnose(masked, x) == "ok"


def test_one_bad_case_of_many_is_seen():
    pairs = [regression(0.5, 0) for _ in range(6)]
    o = pairs[0][0].observations[0]
    y = np.stack([p.observations[0].y[0].numpy() for p, _ in pairs])
    x = torch.stack([d for _, d in pairs], 1).flatten(0, 1)
    prior = pairs[0][0].prior
    assert diagnose(prior.given(y, o.operator, o.noise, batch_dim="case"), x) == "ok"
    y[4] += 2.0
    assert "do not fit" in diagnose(prior.given(y, o.operator, o.noise, batch_dim="case"), x)


def test_a_result_carries_its_diagnosis_and_warns():
    posterior, _ = regression(0.1)
    with pytest.warns(DiagnosisWarning, match="do not fit the observation"):
        draws = posterior.sample(8, seed=0)
    assert "do not fit the observation" in draws.attrs["diagnosis"]
    assert regression(0.5)[0].sample(8, seed=0).attrs["diagnosis"] == "ok"


def test_the_diagnosis_leaves_the_draws_alone_even_if_the_operator_writes_into_its_input():
    space = sd.Space({"i": 3})

    class Doubling(sd.operators.LinearOperator):
        domain = codomain = space

        def apply(self, x):
            x *= 2
            return x

        def adjoint(self, y):
            return 2 * y

    prior = sd.GaussianPrior(space, sd.covariance.white((3,)))
    posterior = prior.given([1.0, 0.0, -1.0], Doubling(), sd.noise.Gaussian(0.1))
    x = torch.ones(4, 3, dtype=torch.float64)
    diagnose(posterior, x)
    assert bool((x == 1).all())


def test_a_network_in_physical_units_is_not_accused_of_reaching_far():
    space = sd.Space({"i": 4})

    def net(x, t):
        sigma = VE(0.01, 200.0).sigma(t.double()).reshape(-1, 1)
        return 25 / (25 + sigma**2) * x

    prior = sd.Prior.from_network(
        net,
        space,
        predicts="x0",
        path=VE(0.01, 200.0),
        sigma_max=150.0,
        channel_axis=False,
        dtype=torch.float64,
    )
    posterior = prior.given([0.0] * 4, Identity(space), noise.Gaussian(5.0))
    x = 5 / math.sqrt(2) * torch.from_numpy(np.random.default_rng(0).standard_normal((400, 4)))
    assert diagnose(posterior, x) == "ok"


@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        ({"unique_ancestors": 0.01}, "ancestor"),
        ({"particles": 1000, "ess": 0.01}, "1.0% of the particles"),
        ({"ess": 1.2}, "1.2 held the weight"),
        ({"path_efficiency": [0.5, 0.01]}, "1.0% of the paths"),
        ({"analyses": 0}, "no analysis"),
        ({"particles": 1000, "ess": 0.4, "unique_ancestors": 0.5}, "ok"),
        ({"ess": 30.0, "analyses": 3, "path_efficiency": [0.6]}, "ok"),
    ],
)
def test_what_a_method_saw_go_wrong_is_said(attrs, said):
    space = sd.Space({"i": 3})
    prior = sd.GaussianPrior(space, sd.covariance.white((3,)))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 3)))
    assert said in diagnose(sd.Posterior(prior, ()), x, attrs)


def test_equations_keep_their_linear_operator_and_start_from_a_prior_too():
    space = sd.Space({"i": 3})
    prior = sd.GaussianPrior(space, sd.covariance.white((3,)))
    total = sd.operators.Matrix(space, sd.Space({"j": 1}, "sum"), np.ones((1, 3)))
    draws = prior.satisfying(total, sd=0.01).sample(200, method=sd.MMPS(), seed=0)["x"]
    assert abs(draws.sum("i")).max() < 0.05 and draws.std() > 0.5
    with pytest.raises(InputError, match="keep the rows"):
        prior.satisfying(lambda x: x.sum(), sd=0.01)
