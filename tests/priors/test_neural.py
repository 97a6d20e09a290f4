"""Claims about neural priors before and apart from training; what training does is in tests/training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sciddiff.covariance import (
    Covariance,
    centred,
    dense,
    diagonal,
    frequencies,
    precision,
    spectral,
    white,
)
from sciddiff.errors import InputError
from sciddiff.methods import MMPS
from sciddiff.networks import MLP, UNet
from sciddiff.noise import Gaussian
from sciddiff.operators import Points
from sciddiff.priors import GaussianPrior, NeuralPrior, Normalisation, Prior
from sciddiff.priors.neural import OnGaussian, Plain, largest_eigenvalue
from sciddiff.random import Streams
from sciddiff.solvers import DPMSolver
from sciddiff.spaces import Space, Variable
from sciddiff.training.objective import losses

FLOAT = torch.float64
SIGMAS = torch.tensor([0.01, 0.3, 1.0, 7.0], dtype=FLOAT)
UNIT = Normalisation(torch.zeros((), dtype=FLOAT), torch.ones((), dtype=FLOAT))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return Streams(seed, [0], purpose="test").normal(shape, dtype=FLOAT)[0]


def matrix(n: int, seed: int) -> torch.Tensor:
    a = normal(seed, n, n)
    return a @ a.T / n + 0.2 * torch.eye(n, dtype=FLOAT)


def zero_sum(n: int, seed: int) -> torch.Tensor:
    """A covariance of states whose sum is 0."""
    p = torch.eye(n, dtype=FLOAT) - 1 / n
    return p @ matrix(n, seed) @ p


def gaussians() -> dict[str, GaussianPrior]:
    line, image = Space({"i": 6}), Space({"i": 4, "j": 5}, {"u": "K", "v": "g"})
    uneven = Space({"node": 3, "edge": 2}, {"h": Variable(("node",)), "q": Variable(("edge",))})
    k = torch.arange(1.0, 6.0, dtype=FLOAT)
    return {
        "dense": GaussianPrior(line, dense(matrix(6, 1)), normal(3, 6)),
        "diagonal": GaussianPrior(line, diagonal([1.0, 4.0, 9.0, 0.1, 2.0, 5.0])),
        "dense noise": GaussianPrior(line, dense(matrix(6, 1)), reference=dense(matrix(6, 2))),
        "projector": GaussianPrior(line, dense(zero_sum(6, 1)), reference=centred((6,))),
        "two variables": GaussianPrior(image, spectral((2, 4, 5), k**-2, "periodic", axes=2)),
        "two dims": GaussianPrior(uneven, dense(matrix(5, 1)), normal(3, 5)),
    }


def untrained(gaussian: GaussianPrior, **settings: object) -> NeuralPrior:
    net = MLP(features=2 * gaussian.space.size, width=8, depth=1).double()
    return NeuralPrior(net, gaussian.space, gaussian=gaussian, **settings)


def shaken(net: nn.Module, seed: int = 5) -> nn.Module:
    """The network with a last layer that is not zero."""
    with torch.no_grad():
        for parameter in net.last.parameters():
            parameter.copy_(0.3 * normal(seed, *parameter.shape))
    return net


@pytest.mark.parametrize("name", gaussians())
def test_the_untrained_prior_is_the_fitted_gaussian(name: str):
    gaussian = gaussians()[name]
    prior = untrained(gaussian)
    z = normal(4, 4, *gaussian.space.shape)
    assert torch.equal(prior.denoise(z, SIGMAS), gaussian.denoise(z, SIGMAS))
    assert torch.equal(prior.denoise(z, 0.5), gaussian.denoise(z, 0.5))
    assert not prior.exact and prior.covariance(1.0) is None
    ours, theirs = prior.gaussian_covariance(0.5), gaussian.covariance(0.5)
    torch.testing.assert_close(ours.apply(z), theirs.apply(z))


@pytest.mark.parametrize("name", gaussians())
def test_c_out_is_the_rms_error_of_the_fitted_gaussian(name: str):
    gaussian = gaussians()[name]
    c_out = untrained(gaussian).preconditioning.c_out(SIGMAS)
    variances = [gaussian.covariance(float(s)).variance().mean() for s in SIGMAS]
    torch.testing.assert_close(c_out**2, torch.stack(variances), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", gaussians())
def test_the_network_sees_channels_of_variance_one(name: str):
    gaussian, n = gaussians()[name], 4000
    split = untrained(gaussian).preconditioning
    streams = Streams(0, range(n), purpose="test")
    z0, noise = gaussian.draw(streams), gaussian.noise(streams)
    for sigma in SIGMAS:
        _, seen = split.split(z0 + sigma * noise, sigma)
        channels = seen.unflatten(1, (2, -1)).flatten(2).square().mean(2)
        spread = channels.std(0) / n**0.5
        assert ((channels.mean(0) - 1).abs() < 5 * spread).all()


@pytest.mark.parametrize("variance", [1.0, 4.0])
def test_without_a_gaussian_the_preconditioning_is_edm_s(variance: float):
    space = Space({"i": 5})
    s2 = variance * SIGMAS**2
    plain = Plain(space, white((5,), variance))
    z = normal(1, 4, 5)
    skip, seen = plain.split(z, SIGMAS)
    # table 1 of Karras et al. with sigma_data = 1
    torch.testing.assert_close(skip, z / (1 + s2)[:, None])
    torch.testing.assert_close(seen[:, 0], z / (1 + s2).sqrt()[:, None])
    torch.testing.assert_close(plain.c_out(SIGMAS), (s2 / (1 + s2)).sqrt())


def test_the_denoiser_is_the_skip_path_plus_c_out_times_the_network():
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones((), dtype=FLOAT))

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.gain * x + time[:, None, None]

    for gaussian in (gaussians()["dense noise"], None):
        prior = (
            NeuralPrior(Shown(), Space({"i": 6}), UNIT, largest=1.0)
            if gaussian is None
            else NeuralPrior(Shown(), gaussian.space, gaussian=gaussian)
        )
        z = normal(1, 4, 6)
        skip, seen = prior.preconditioning.split(z, SIGMAS)
        network = seen[:, 0] + torch.log(SIGMAS)[:, None] / 4
        expected = skip + prior.preconditioning.c_out(SIGMAS)[:, None] * network
        torch.testing.assert_close(prior.denoise(z, SIGMAS), expected)


def test_the_denoiser_follows_the_device():
    for gaussian in (gaussians()["dense noise"], gaussians()["projector"], None):
        net = MLP(features=12 if gaussian else 6, width=8, depth=1)
        prior = (
            NeuralPrior(net, gaussian.space, gaussian=gaussian)
            if gaussian
            else NeuralPrior(net, Space({"i": 6}), UNIT, largest=1.0)
        )
        # the meta device refuses to meet tensors of the CPU, as an accelerator does
        there, z = prior.to("meta"), torch.zeros(4, 6, device="meta")
        for sigma in (0.5, SIGMAS):
            assert there.denoise(z, sigma).device == z.device
        assert there.normalisation.physical(z).device == z.device
        assert there.noise(Streams(0, range(2), purpose="test")).device == z.device
        loss = losses(
            there.preconditioning, there.network, z, SIGMAS.to("meta"), Streams(0, [0], purpose="test")
        )
        assert loss.device == z.device


@pytest.mark.parametrize("variance", [1.0, 4.0])
def test_without_a_gaussian_the_untrained_prior_is_exact_for_white_data(variance: float):
    space = Space({"i": 5})
    exact = GaussianPrior(space, white((5,)), reference=white((5,), variance))
    prior = NeuralPrior(
        MLP(features=5, width=8, depth=1).double(), space, UNIT, reference=exact.reference, largest=1.0
    )
    z = normal(1, 4, 5)
    torch.testing.assert_close(prior.denoise(z, SIGMAS), exact.denoise(z, SIGMAS))


def test_the_correction_stays_in_the_range_of_the_noise():
    gaussian = gaussians()["projector"]
    prior = NeuralPrior(
        shaken(MLP(features=12, width=8, depth=1).double()), gaussian.space, gaussian=gaussian
    )
    z = gaussian.noise(Streams(0, range(4), purpose="test"))
    out = prior.denoise(z, SIGMAS)
    assert (out - gaussian.denoise(z, SIGMAS)).abs().max() > 0.01
    assert out.sum(1).abs().max() < 1e-12


def test_the_jacobian_of_the_untrained_prior_is_the_gaussian_covariance():
    gaussian = gaussians()["dense noise"]
    prior, z = untrained(gaussian), normal(1, 6)
    jacobian = torch.autograd.functional.jacobian(lambda v: prior.denoise(v[None], 0.7)[0], z)
    covariance = 0.7**2 * gaussian.reference.apply(jacobian)
    torch.testing.assert_close(covariance, gaussian.covariance(0.7).apply(torch.eye(6, dtype=FLOAT)))


@pytest.mark.parametrize("choice", ["exact", "guarded", "gaussian"])
def test_posteriors_of_the_untrained_prior_are_the_gaussian_s(choice: str):
    gaussian = gaussians()["dense"]
    prior = untrained(gaussian, sigma_min=gaussian.sigma_min, sigma_max=gaussian.sigma_max)
    observe = Points.at_indices(gaussian.space, [[0], [3]])
    ours, theirs = (
        p.given([1.0, -1.0], observe, Gaussian(0.3)).sample(
            8, method=MMPS(covariance=c), seed=0, solver=DPMSolver(steps=8)
        )
        for p, c in ((prior, choice), (gaussian, "exact"))
    )
    assert np.abs(ours["x"].values - theirs["x"].values).max() < 1e-4


@pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")
def test_every_choice_of_covariance_runs_on_a_network():
    gaussian = gaussians()["two variables"]
    net = shaken(UNet(dimensions=2, channels=4, width=8, multipliers=(1, 2), blocks=1).double())
    prior = NeuralPrior(net, gaussian.space, gaussian=gaussian)
    observe = Points.at_indices(gaussian.space, [[0, 0], [3, 1]])
    values = np.zeros(observe.codomain.shape)
    for choice in ("guarded", "gaussian", "scalar"):
        posterior = prior.given(values, observe, Gaussian(0.5))
        draws = posterior.sample(2, method=MMPS(covariance=choice), seed=0, solver=DPMSolver(steps=4))
        assert np.isfinite(draws["u"].values).all()


def test_dtype_follows_the_network_and_to_makes_a_copy():
    gaussian = gaussians()["dense"]
    prior = NeuralPrior(shaken(MLP(features=12, width=8, depth=1)), gaussian.space, gaussian=gaussian)
    wide = prior.to(dtype=FLOAT)
    z = normal(1, 4, 6)
    assert prior.dtype == torch.float32 and wide.dtype == FLOAT
    narrow = prior.denoise(z.float(), SIGMAS)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide.denoise(z, SIGMAS).float(), rtol=1e-4, atol=1e-5)
    assert next(prior.network.parameters()).dtype == torch.float32
    with pytest.raises(InputError, match=r"prior\.to"):
        prior.denoise(z, 1.0)
    with pytest.raises(InputError, match="real dtype"):
        prior.to(dtype=torch.int32)


def test_a_network_is_called_in_evaluation_mode_and_gets_its_own_back():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return self.drop(self.layer(x))

    with torch.random.fork_rng():
        net = Dropping().double()
    net.layer.eval()
    prior = NeuralPrior(net, Space({"i": 6}), UNIT, largest=1.0)
    z = normal(1, 4, 6)
    assert torch.equal(prior.denoise(z, 1.0), prior.denoise(z, 1.0))
    assert net.training and net.drop.training and not net.layer.training


def test_a_row_does_not_depend_on_the_rows_beside_it():
    gaussian = gaussians()["two variables"]
    net = shaken(UNet(dimensions=2, channels=4, width=8, multipliers=(1, 2), blocks=1).double())
    prior = NeuralPrior(net, gaussian.space, gaussian=gaussian)
    z = normal(1, 4, *gaussian.space.shape)
    alone = torch.cat([prior.denoise(z[i : i + 1], float(SIGMAS[i])) for i in range(4)])
    torch.testing.assert_close(prior.denoise(z, SIGMAS), alone, rtol=1e-10, atol=1e-10)


def test_the_result_is_equivariant_to_units():
    gaussian = gaussians()["dense"]
    other = GaussianPrior(gaussian.space, dense(100 * matrix(6, 1)), 10 * gaussian.normalisation.mean + 273.0)
    net = shaken(MLP(features=12, width=8, depth=1).double())
    ours, theirs = (
        NeuralPrior(net, g.space, gaussian=g).sample(3, seed=0)["x"].values for g in (gaussian, other)
    )
    np.testing.assert_allclose(10 * ours + 273.0, theirs, rtol=1e-8)


def test_relabelling_keeps_the_law_and_moves_the_mean():
    gaussian = gaussians()["dense"]
    prior = untrained(gaussian)
    space = Space({"time": np.arange("2000-01", "2000-07", dtype="datetime64[M]")}, {"anomaly": "K"})
    moved = prior.relabel(space, prior.normalisation.mean + 5.0)
    before, after = prior.sample(3, seed=0)["x"].values, moved.sample(3, seed=0)["anomaly"].values
    np.testing.assert_allclose(after, before + 5.0, rtol=1e-12)
    assert moved.gaussian.space == space
    assert torch.equal(moved.gaussian.normalisation.mean, moved.normalisation.mean)


@pytest.mark.parametrize("reference", [white((6,)), dense(matrix(6, 2))], ids=["white", "dense"])
def test_the_largest_eigenvalue_is_that_of_the_data(reference: Covariance):
    z = normal(1, 40, 6) @ matrix(6, 1)
    noise = reference.apply(torch.eye(6, dtype=FLOAT))
    values = torch.linalg.eigvals(torch.linalg.solve(noise, torch.cov(z.T))).real
    measured = largest_eigenvalue(z, reference)
    assert 0.99 * float(values.max()) <= measured <= float(values.max()) * (1 + 1e-9)


def test_data_outside_the_range_of_the_noise_are_refused():
    with pytest.raises(InputError, match="range"):
        largest_eigenvalue(normal(1, 10, 6), centred((6,)))


def test_optimal_shrinkage_has_a_lower_error_than_none_and_than_all():
    truth, n, errors = matrix(30, 1), 20, np.zeros((40, 3))
    half = torch.linalg.cholesky(truth)
    space = Space({"i": 30})
    for trial in range(len(errors)):
        states = normal(trial, n, 30) @ half.T
        for column, weight in enumerate(("optimal", 0.0, 1.0)):
            fitted = GaussianPrior.fit(states, space, shrinkage=weight).physical_covariance
            errors[trial, column] = (fitted.apply(torch.eye(30, dtype=FLOAT)) - truth).square().sum()
    gain = errors[:, 1:] - errors[:, :1]
    assert (gain.mean(0) > 5 * gain.std(0) / len(errors) ** 0.5).all()


@pytest.mark.parametrize("boundary", ["periodic", "neumann", "dirichlet"])
def test_a_fit_in_the_modes_of_the_grid_finds_their_variances(boundary: str):
    n, shape = 4000, (2, 4, 5)
    space = Space({"i": 4, "j": 5}, ["u", "v"])
    ky, kx = (torch.from_numpy(frequencies(size, boundary)) for size in shape[1:])
    variances = torch.stack([(1 + ky[:, None] ** 2 + kx**2) ** -1.0, 3 * (2 + ky[:, None] + kx) ** -2.0])
    exact = GaussianPrior(space, spectral(shape, variances, boundary, axes=2), 7.0 + torch.zeros(shape))
    draws = exact.sample(n, seed=0)
    fitted = GaussianPrior.fit(draws, space, kind=boundary)
    ratio = fitted.physical_covariance.eigenvalues / variances
    # a variance of n - 1 squares of normals, 40 of them; less where cosines and sines are taken together
    assert float((ratio - 1).abs().max()) < 5 * (2 / n) ** 0.5
    pairs = {"periodic": 4.0, "neumann": 1.0, "dirichlet": 1.0}[boundary]
    assert float(((ratio[:, 1:3, 1:3] - 1) ** 2).mean()) * pairs < 4 * 2 / n
    sd = exact.physical_covariance.variance().sqrt() / n**0.5
    assert bool(((fitted.normalisation.mean - 7.0).abs() < 5 * sd).all())
    assert (boundary == "periodic") == bool(
        (fitted.normalisation.mean[0] == fitted.normalisation.mean[0, 0, 0]).all()
    )
    with pytest.raises(InputError, match="one grid"):
        GaussianPrior.fit(normal(0, 9, 5), gaussians()["two dims"].space, kind=boundary)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"network": MLP(features=5, width=8, depth=1)}, "12 values|5 values"),
        ({"network": UNet(dimensions=2, channels=2, width=4, blocks=1)}, "network"),
        ({"network": lambda x, t: x}, "from_network"),
        ({"sigma_max": 0.1}, "sigma_max"),
        ({"normalisation": UNIT}, "Gaussian"),
        ({"reference": white((6,))}, "Gaussian"),
        ({"space": Space({"k": 6})}, "same space"),
        ({"gaussian": None}, "normalisation"),
        ({"gaussian": None, "normalisation": UNIT}, "network|largest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_does_not_fit_is_refused_at_once(arguments: dict, words: str):
    gaussian = gaussians()["dense"]
    given = {
        "network": MLP(features=12, width=8, depth=1).double(),
        "space": gaussian.space,
        "gaussian": gaussian,
        **arguments,
    }
    with pytest.raises(InputError, match=words):
        NeuralPrior(**given)


def test_a_sparse_precision_is_refused_as_a_skip_path():
    import scipy.sparse as sp

    space = Space({"i": 6})
    with pytest.raises(InputError, match="sparse precision"):
        OnGaussian(space, GaussianPrior(space, precision(sp.identity(6))))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), torch.ones(3)], ids=str)
def test_a_noise_level_that_is_none_is_refused(sigma: float):
    with pytest.raises(InputError, match="sigma"):
        untrained(gaussians()["dense"]).denoise(normal(1, 4, 6), sigma)


def test_from_network_is_a_way_to_make_a_prior():
    prior = Prior.from_network(
        MLP(features=6, width=8, depth=1), Space({"i": 6}), predicts="v", path="cosine", sigma_max=50.0
    )
    assert prior.sample(2, seed=0)["x"].shape == (2, 6)
