"""Claims about paths, and about networks that were trained on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sciddiff.covariance import Covariance, dense, white
from sciddiff.errors import InputError
from sciddiff.methods import MMPS
from sciddiff.networks import MLP
from sciddiff.noise import Gaussian
from sciddiff.operators import Points
from sciddiff.priors import GaussianPrior, Normalisation, Prior
from sciddiff.priors.paths import PREDICTIONS, VE, VP, Cosine, Flow, Path, SubVP, coefficients, path
from sciddiff.solvers import DPMSolver
from sciddiff.spaces import Space

PATHS = [VP(), VP(0.05, 25.0), SubVP(), VE(), VE(0.005, 90.0), Cosine(), Cosine(offset=0.0), Flow()]
TIMES = torch.linspace(0.03, 0.97, 48, dtype=torch.float64)
SPACE = Space({"i": 4}, {"t": "K"})
MEAN = torch.tensor([280.0, 281.0, 279.0, 280.5], dtype=torch.float64)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def matrix(seed: int) -> torch.Tensor:
    a = torch.from_numpy(generator(seed).standard_normal((4, 4)))
    return a @ a.T + 0.3 * torch.eye(4, dtype=torch.float64)


def formed(covariance: Covariance) -> torch.Tensor:
    return covariance.apply(torch.eye(4, dtype=torch.float64))


class Truth:
    """What a perfect network returns for ``N(0, Sigma)`` on a path, written without the library's formulas.

    ``x_t`` is Gaussian with covariance ``alpha^2 Sigma + sigma^2 C``; means of ``x0`` and ``n`` given it follow.
    """

    def __init__(self, prior: GaussianPrior, path: Path, predicts: str) -> None:
        self.law, self.noise = formed(prior.law), formed(prior.reference)
        self.path, self.predicts = path, predicts

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.row(*pair) for pair in zip(x, t, strict=True)])

    def row(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        whitened = torch.linalg.solve(alpha**2 * self.law + sigma**2 * self.noise, x)
        x0, n = alpha * self.law @ whitened, sigma * self.noise @ whitened
        rates = self.path.alpha_prime(t), self.path.sigma_prime(t)
        return {
            "noise": n,
            "x0": x0,
            "score": -whitened,
            "velocity": rates[0] * x0 + rates[1] * n,
            "v": alpha * n - sigma * x0,
        }[self.predicts]


@pytest.mark.parametrize("reference", [None, dense(matrix(7))], ids=["white", "dense"])
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_adapter_is_the_exact_denoiser_for_a_perfect_network(
    path: Path, predicts: str, reference: Covariance | None
):
    exact = GaussianPrior(SPACE, dense(matrix(1)), MEAN, reference=reference)
    prior = Prior.from_network(
        Truth(exact, path, predicts),
        SPACE,
        predicts=predicts,
        path=path,
        sigma_max=45.0,
        normalisation=exact.normalisation,
        reference=reference,
        channel_axis=False,
    )
    sigma = torch.tensor([0.011, 0.1, 0.5, 1.0, 3.0, 12.0, 44.0], dtype=torch.float64)
    z = torch.from_numpy(generator(2).standard_normal((7, 4))) * (1 + sigma[:, None])
    torch.testing.assert_close(prior.denoise(z, sigma), exact.denoise(z, sigma), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prior.denoise(z, 0.7), exact.denoise(z, 0.7), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_derivatives_agree_with_finite_differences(path: Path):
    h = 1e-6
    for function, derivative in ((path.alpha, path.alpha_prime), (path.sigma, path.sigma_prime)):
        slope = (function(TIMES + h) - function(TIMES - h)) / (2 * h)
        torch.testing.assert_close(derivative(TIMES), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_time_inverts_the_noise_level(path: Path):
    torch.testing.assert_close(path.ratio(TIMES), path.sigma(TIMES) / path.alpha(TIMES), rtol=1e-12, atol=0)
    torch.testing.assert_close(path.time(path.ratio(TIMES)), TIMES, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_bisection_finds_the_closed_inverse(path: Path):
    torch.testing.assert_close(Path.inverse(path, path.ratio(TIMES)), TIMES, rtol=0, atol=1e-12)


def test_the_constants_are_those_of_the_papers():
    half, one = (torch.tensor(t, dtype=torch.float64) for t in (0.5, 1.0))
    # DDPM's thousand steps, beta from 1e-4 to 0.02, leave alpha_bar = prod(1 - beta)
    left = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    assert VP().alpha(one).item() ** 2 == pytest.approx(left, rel=0.1)
    assert -2 * math.log(VP().alpha(one).item()) == pytest.approx(0.1 + 19.9 / 2)
    assert SubVP().sigma(one).item() == pytest.approx(1 - math.exp(-10.05))
    assert VE(0.01, 100.0).sigma(half).item() == pytest.approx(1.0)
    assert Cosine(offset=0.0).ratio(half).item() == pytest.approx(1.0)
    # Nichol and Dhariwal's alpha_bar(t) = f(t)/f(0)
    f = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0.5, 0.0)]
    assert Cosine().alpha(half).item() ** 2 == pytest.approx(f[0] / f[1])
    assert Flow().ratio(half).item() == pytest.approx(1.0)
    for variance_preserving in (VP(), Cosine(), Cosine(offset=0.0)):
        square = variance_preserving.alpha(TIMES) ** 2 + variance_preserving.sigma(TIMES) ** 2
        torch.testing.assert_close(square, torch.ones_like(square), rtol=1e-13, atol=0)


def test_the_flow_velocity_is_noise_minus_data():
    x0, n, t = torch.tensor(3.0), torch.tensor(-2.0), torch.tensor(0.3)
    a, b = coefficients(Flow(), "velocity", t)
    z = x0 + Flow().ratio(t) * n
    torch.testing.assert_close(a * z + b * (n - x0), x0)


def test_a_path_of_ones_own_needs_no_inverse():
    class Quarter(Path):
        def alpha(self, t):
            return 1 - t**2

        def sigma(self, t):
            return t**2

        def alpha_prime(self, t):
            return -2 * t

        def sigma_prime(self, t):
            return 2 * t

    exact = GaussianPrior(SPACE, dense(matrix(1)), MEAN)
    net = Truth(exact, Quarter(), "velocity")
    prior = Prior.from_network(
        net,
        SPACE,
        predicts="velocity",
        path=Quarter(),
        sigma_max=30.0,
        normalisation=exact.normalisation,
        channel_axis=False,
    )
    z = torch.from_numpy(generator(2).standard_normal((3, 4)))
    torch.testing.assert_close(prior.denoise(z, 0.4), exact.denoise(z, 0.4), rtol=1e-8, atol=1e-8)


def test_an_adapted_network_has_the_posterior_of_the_exact_prior():
    levels = {"sigma_min": 0.02, "sigma_max": 40.0}
    exact = GaussianPrior(SPACE, dense(matrix(1)), MEAN, **levels)
    prior = Prior.from_network(
        Truth(exact, VP(), "noise"),
        SPACE,
        predicts="noise",
        path="vp",
        normalisation=exact.normalisation,
        channel_axis=False,
        **levels,
    )
    observe = Points.at_indices(SPACE, [[0], [2]])
    ours, theirs = (
        p.given([281.0, 278.0], observe, Gaussian(0.5))
        .sample(12, method=MMPS(covariance="exact"), seed=0, solver=DPMSolver(steps=10))["t"]
        .values
        for p in (prior, exact)
    )
    # the same streams and the same steps; Krylov solves on VJPs to 1e-6 in one, a factored matrix in the other
    assert np.abs(ours - theirs).max() < 1e-4 * theirs.std()


def test_the_network_gets_a_channel_axis_and_the_time_that_it_asks_for():
    seen = []

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(x.shape), t))
        return torch.zeros_like(x)

    grid = Space({"a": 3, "b": 5}, {"u": None, "v": None})
    for space, shape in ((grid, (2, 2, 3, 5)), (SPACE, (2, 1, 4))):
        prior = Prior.from_network(
            net, space, predicts="x0", path="vp", sigma_max=80.0, time=lambda t: (999 * t).round().long()
        )
        prior.denoise(torch.zeros((2, *space.shape), dtype=torch.float64), VP().ratio(TIMES[:1]).item())
        assert seen[-1][0] == shape
        assert seen[-1][1].tolist() == [round(999 * 0.03)] * 2


def test_dtype_follows_the_network_and_a_copy_is_converted():
    net = MLP(features=4, width=8, depth=1)
    prior = Prior.from_network(net, SPACE, predicts="x0", path="vp", sigma_max=80.0)
    assert prior.dtype == torch.float32
    z = torch.ones(2, 4, dtype=torch.float64)
    with pytest.raises(InputError, match=r"prior\.to\(dtype"):
        prior.denoise(z, 1.0)
    assert prior.to(dtype=torch.float64).denoise(z, 1.0).dtype == torch.float64
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"predicts": "epsilon"}, "predicts"),
        ({"path": "edm"}, "path"),
        ({"sigma_max": 1e4}, "noise levels from 0"),
        ({"path": VE(0.02, 30.0), "sigma_min": 0.001}, "noise levels from 0.02"),
        ({"sigma_max": -1.0}, "sigma_max"),
        ({"net": lambda x, t: x[..., :2]}, "output"),
        ({"net": lambda x: x}, "TypeError"),
        ({"net": lambda x, t: x.double(), "dtype": torch.float32}, "float32"),
        ({"reference": white((3,))}, "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_network_that_does_not_fit_is_refused_at_once(change: dict, words: str):
    arguments = {"net": lambda x, t: x, "predicts": "noise", "path": "vp", "sigma_max": 50.0, **change}
    with pytest.raises(InputError, match=words):
        Prior.from_network(arguments.pop("net"), SPACE, **arguments)


def test_levels_outside_the_path_are_refused():
    prior = Prior.from_network(lambda x, t: x, SPACE, predicts="noise", path="vp", sigma_max=50.0)
    z = torch.zeros(2, 4, dtype=torch.float64)
    for sigma in (0.0, -1.0, float("nan"), 200.0, torch.tensor([1.0, 200.0])):
        with pytest.raises(InputError, match="sigma"):
            prior.denoise(z, sigma)


def stretched(sd: float, dtype: torch.dtype = torch.float64, **change) -> Prior:
    """The exact denoiser of ``N(0, diag(sd^2, 1, 1, 1) / 4)``, of sd 0.5 but along one direction."""
    lam = torch.tensor([sd**2, 0.25, 0.25, 0.25], dtype=dtype)

    def net(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x * lam / (lam + sigma[:, None] ** 2)

    arguments = {"predicts": "x0", "path": VE(0.01, 100.0), "dtype": dtype, "time": VE(0.01, 100.0).ratio}
    return Prior.from_network(net, SPACE, channel_axis=False, **{**arguments, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_a_sigma_max_below_five_standard_deviations_of_what_a_network_learnt_is_refused(sd, dtype):
    for times in (0.25, 1.0, 3.0, 4.2):
        with pytest.raises(InputError, match="sigma_max"):
            stretched(sd, dtype, sigma_max=times * sd)
    for times in (5.0, 20.0):
        assert stretched(sd, dtype, sigma_max=times * sd).sigma_max == times * sd


def test_paths_are_found_by_name():
    found = [path(name) for name in ("vp", "subvp", "ve", "cosine", "flow")]
    assert found == [VP(), SubVP(), VE(), Cosine(), Flow()]


def test_a_normalisation_changes_units_and_nothing_else():
    units = Normalisation(torch.tensor(280.0), torch.tensor(3.0))
    prior = Prior.from_network(
        lambda x, t: torch.zeros_like(x), SPACE, predicts="x0", path="ve", sigma_max=40.0, normalisation=units
    )
    assert np.allclose(prior.sample(3, seed=0)["t"].values, 280.0)
