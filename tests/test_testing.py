"""Claims about the conformance checks: the library's own parts pass, and planted bugs are caught by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff import covariance as cov
from sciddiff import operators
from sciddiff.errors import InputError, SciddiffError
from sciddiff.methods import DPSDenoiser, EnsembleKalman, GaussianVI, Method
from sciddiff.methods.base import Guided, GuidedDenoiser, Run
from sciddiff.noise import Gaussian, Laplace, Noise, Poisson, StudentT
from sciddiff.operators import LinearOperator, Operator
from sciddiff.priors import EmpiricalPrior, GaussianMixturePrior, GaussianPrior, NetworkPrior
from sciddiff.priors.paths import VE
from sciddiff.testing import CheckError, check_method, check_noise, check_operator, check_prior

SPACE = sd.Space({"i": 5}, "x")
PLANE = sd.Space({"y": 4, "x": 3}, {"t": "K", "q": "g/kg"})
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((5, 5))
SIGMA = ROOT @ ROOT.T / 5 + 0.2 * np.eye(5)
PROJECTOR = np.eye(5) - 0.2


def failures(check) -> list[str]:
    """Names of the failed checks."""
    with pytest.raises(CheckError) as caught:
        check()
    assert caught.value.report.named("unexpected pass") == []
    return caught.value.report.named("failed")


# -- the library's own parts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator",
    [
        operators.Identity(PLANE),
        operators.Mask(PLANE, np.eye(4, 3) > 0),
        operators.Matrix(
            SPACE, sd.Space({"k": 2}, {"f": sd.Variable(("k",), complex=True)}), ROOT[:2] + 1j * ROOT[2:4]
        ),
        operators.from_torch(lambda x: torch.exp(0.3 * x).cumsum(1), SPACE, SPACE),
        operators.black_box(lambda x: np.abs(x), SPACE, SPACE),
    ],
    ids=repr,
)
def test_operators_pass(operator):
    report = check_operator(operator)
    assert not report.named("failed", "expected failure") and len(report) == 12


@pytest.mark.parametrize(
    "noise",
    [
        Gaussian(0.3),
        Gaussian(covariance=cov.dense(SIGMA)),
        Laplace(0.3),
        StudentT(2.5, 0.3),
        StudentT(1, 0.3),
        Poisson(2.0),
        Poisson(1e4),
    ],
    ids=repr,
)
def test_noises_pass(noise):
    assert not check_noise(noise, (5,), draws=2000).named("failed")


PRIORS = {
    "gaussian": lambda: GaussianPrior(SPACE, cov.dense(SIGMA), np.arange(5.0)),
    "gaussian, correlated reference": lambda: GaussianPrior(
        SPACE, cov.dense(SIGMA), reference=cov.dense(ROOT.T @ ROOT + 0.1 * np.eye(5))
    ),
    "gaussian, projector": lambda: GaussianPrior(
        SPACE, cov.dense(PROJECTOR @ SIGMA @ PROJECTOR), reference=cov.centred((5,))
    ),
    "gaussian, sparse precision": lambda: GaussianPrior(SPACE, cov.precision(np.linalg.inv(SIGMA))),
    "gaussian, single": lambda: GaussianPrior(SPACE, cov.dense(SIGMA), dtype=torch.float32),
    "mixture": lambda: GaussianMixturePrior(
        SPACE, [0.2, 0.3, 0.5], 2 * RNG.standard_normal((3, 5)), np.stack([SIGMA, SIGMA / 2, SIGMA / 5])
    ),
    "empirical": lambda: EmpiricalPrior(SPACE, RNG.standard_normal((30, 5))),
    "network": lambda: network(),
}


def network() -> NetworkPrior:
    """The exact denoiser of ``N(0, I)``, as a foreign network that predicts it."""
    return sd.Prior.from_network(
        lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1) ** 2),
        SPACE,
        predicts="x0",
        path="ve",
        time=VE().ratio,
        sigma_max=20.0,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("name", list(PRIORS))
def test_priors_pass(name):
    report = check_prior(PRIORS[name](), draws=200)
    assert not report.named("failed")
    if "gaussian" in name:
        assert not report.named("skipped")


def test_mmps_passes():
    assert not check_method(sd.MMPS(), draws=400).named("failed", "skipped")


def test_ensemble_kalman_passes():
    assert check_method(EnsembleKalman(), draws=400).named("skipped") == ["prefix"]


def test_gaussian_variational_inference_passes():
    check_method(GaussianVI(), draws=200)


def test_a_biased_method_says_so():
    biased = "biased by construction"
    report = check_method(
        DPSDenoiser(), draws=200, steps=8, expected_failures={"mean": biased, "covariance": biased}
    )
    assert report.named("expected failure") == ["mean", "covariance"]
    assert biased in report["mean"].detail


# -- planted bugs: operators ---------------------------------------------------------------------------


class Shift(LinearOperator):
    """Right: a periodic shift by one, and its adjoint."""

    def __init__(self, space: sd.Space = SPACE) -> None:
        self.domain = self.codomain = space

    def apply(self, x):
        return x.roll(1, -1)

    def adjoint(self, y):
        return y.roll(-1, -1)


class TwiceAdjoint(Shift):
    def adjoint(self, y):
        return 4 * y.roll(-1, -1)


class WrongWay(Shift):
    def adjoint(self, y):
        return y.roll(1, -1)


class WrongSign(Shift):
    def adjoint(self, y):
        return -y.roll(-1, -1)


class Affine(Shift):
    def apply(self, x):
        return x.roll(1, -1) + 0.1


class Coupled(Shift):
    def apply(self, x):
        return x.roll(1, -1) / x.abs().amax(0).clamp(min=1)


class Single(Shift):
    def apply(self, x):
        return x.float().roll(1, -1)


class Writes(Shift):
    def apply(self, x):
        return x.mul_(1.5).roll(1, -1) / 1.5


class Flat(Shift):
    def apply(self, x):
        return x.reshape(-1)


class Noisy(Shift):
    def apply(self, x):
        return x.roll(1, -1) + 0 * torch.randn(1)


class WrongSlope(Operator):
    domain = codomain = SPACE

    def apply(self, x):
        return torch.tanh(x)

    def vjp(self, x, v):
        return v * (1 - torch.tanh(x))


class Detached(Shift):
    def apply(self, x):
        return torch.from_numpy(x.detach().numpy()).roll(1, -1)


@pytest.mark.parametrize(
    ("operator", "caught"),
    [
        (TwiceAdjoint(), {"adjoint", "autograd", "vjp"}),
        (WrongWay(), {"adjoint", "autograd", "vjp"}),
        (WrongSign(), {"adjoint", "autograd", "vjp"}),
        (Affine(), {"linearity", "adjoint"}),
        (Coupled(), {"batch invariance"}),
        (Single(), {"dtype"}),
        (Writes(), {"input untouched"}),
        (Flat(), {"shape"}),
        (WrongSlope(), {"autograd", "vjp", "jvp"}),
        (Detached(), {"autograd"}),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_broken_operator_is_caught(operator, caught):
    assert caught <= set(failures(lambda: check_operator(operator)))


def test_a_touched_global_generator_is_caught():
    state = torch.get_rng_state()
    assert failures(lambda: check_operator(Noisy())) == ["global state"]
    torch.set_rng_state(state)


def test_an_adjoint_that_is_off_by_a_constant_is_told_the_constant():
    with pytest.raises(CheckError, match=r"your adjoint looks 4\.00x too large"):
        check_operator(TwiceAdjoint())
    with pytest.raises(CheckError, match="your adjoint has the wrong sign"):
        check_operator(WrongSign())
    with pytest.raises(CheckError, match="your adjoint does not belong to `apply`"):
        check_operator(WrongWay())


def test_typical_states_serve_operators_that_take_only_some():
    log = operators.from_torch(torch.log, SPACE, SPACE)
    assert "shape" not in failures(lambda: check_operator(log))
    assert not check_operator(log, states=1 + RNG.random((3, 5))).named("failed")


# -- planted bugs: noises ------------------------------------------------------------------------------


class Right(Noise):
    """Right: unit Gaussian noise, written by hand."""

    sd, constant = 1.0, 0.5 * np.log(2 * np.pi)

    def check(self, y):
        pass

    def draw(self, mean, streams):
        return mean + streams.normal(mean.shape[1:], dtype=mean.dtype)

    def log_prob(self, y, mean, mask=None):
        mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
        residual = torch.where(mask, y, 0.0) - torch.where(mask, mean, 0.0)
        terms = -0.5 * (residual / self.sd) ** 2 - np.log(self.sd) - self.constant
        return torch.where(mask, terms, 0.0).sum(1)

    def variance(self, mean):
        return torch.ones_like(mean)


class TwiceSd(Right):
    sd = 2.0


class WrongVariance(Right):
    def variance(self, mean):
        return 2 * torch.ones_like(mean)


class WrongScore(Right):
    def score(self, y, mean, mask=None):
        return 2 * super().score(y, mean, mask)


class NoConstant(Right):
    constant = 0.0


class IgnoresMask(Right):
    def log_prob(self, y, mean, mask=None):
        return super().log_prob(y, mean)


class OneStream(Right):
    def draw(self, mean, streams):
        return mean + streams.normal((len(mean) * mean.shape[1],), dtype=mean.dtype)[0].reshape(mean.shape)


class CommonError(Right):
    def draw(self, mean, streams):
        return mean + streams.normal((1,), dtype=mean.dtype)


class RejectsItself(Right):
    def check(self, y):
        raise InputError("y", expected="nothing", got="something", fix="give up")


@pytest.mark.parametrize(
    ("noise", "caught"),
    [
        (TwiceSd(), {"marginal law", "likelihood ratio"}),
        (WrongVariance(), {"variance"}),
        (WrongScore(), {"score"}),
        (NoConstant(), {"normalised"}),
        (IgnoresMask(), {"missing values"}),
        (OneStream(), {"seed"}),
        (CommonError(), {"likelihood ratio"}),
        (RejectsItself(), {"own draws accepted"}),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_broken_noise_is_caught(noise, caught):
    assert caught <= set(failures(lambda: check_noise(noise, (5,), draws=2000)))


def test_the_right_noise_is_not_accused():
    assert not check_noise(Right(), (5,), draws=2000).named("failed", "skipped")


# -- planted bugs: priors --------------------------------------------------------------------------------


class Broken(sd.Prior):
    """A right Gaussian prior with a correlated reference, to be broken by subclasses."""

    exact = True

    def __init__(self) -> None:
        self.inner = GaussianPrior(
            SPACE, cov.dense(SIGMA), reference=cov.dense(ROOT.T @ ROOT + 0.1 * np.eye(5))
        )
        for name in ("space", "normalisation", "reference", "sigma_min", "sigma_max", "dtype", "device"):
            setattr(self, name, getattr(self.inner, name))

    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma)

    def draw(self, streams):
        return self.inner.draw(streams)

    def covariance(self, sigma):
        return self.inner.covariance(sigma)

    def log_density(self, z, sigma=0.0):
        return self.inner.log_density(z, sigma)


class HalfSigma(Broken):
    def denoise(self, z, sigma):
        return self.inner.denoise(z, 2 * sigma)


class CoupledBatch(Broken):
    def denoise(self, z, sigma):
        d = self.inner.denoise(z, sigma)
        return d + 0.01 * d.mean(0) if len(d) else d


class SinglePrior(Broken):
    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma).float()


class Offset(Broken):
    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma) + 0.3


class WhiteCovariance(Broken):
    def covariance(self, sigma):
        return GaussianPrior(SPACE, cov.dense(SIGMA)).covariance(sigma)


class WrongDensity(Broken):
    def log_density(self, z, sigma=0.0):
        return 2 * self.inner.log_density(z, sigma)


class WideDraws(Broken):
    def draw(self, streams):
        return 2 * self.inner.draw(streams)


class Asymmetric(Broken):
    turn = torch.from_numpy(np.eye(5) + np.triu(np.ones((5, 5)), 1))

    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma) @ self.turn


@pytest.mark.parametrize(
    ("prior", "caught"),
    [
        (HalfSigma, {"conditional mean", "covariance", "score", "sampler"}),
        (CoupledBatch, {"batch invariance"}),
        (SinglePrior, {"dtype"}),
        (Offset, {"clean limit", "conditional mean"}),
        (WhiteCovariance, {"covariance"}),
        (WrongDensity, {"score"}),
        (WideDraws, {"conditional mean", "sampler"}),
        (Asymmetric, {"symmetric"}),
    ],
)
def test_a_broken_prior_is_caught(prior, caught):
    assert caught <= set(failures(lambda: check_prior(prior(), draws=200)))


def test_the_right_prior_is_not_accused():
    assert not check_prior(Broken(), draws=200).named("failed", "skipped")


# -- planted bugs: methods -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Altered(Method):
    """MMPS, with its draws altered."""

    needs: ClassVar[frozenset[str]] = sd.MMPS.needs
    takes: ClassVar[frozenset[str]] = sd.MMPS.takes

    def draw(self, run: Run) -> torch.Tensor:
        return self.alter(run, sd.MMPS().draw(run))

    def alter(self, run: Run, z: torch.Tensor) -> torch.Tensor:
        return z


class Clips(Altered):
    """Clips to [-1, 1] in physical units, as methods for images do."""

    def alter(self, run, z):
        units = run.prior.normalisation
        return units.normal(units.physical(z).clamp(-1, 1))


class Wide(Altered):
    def alter(self, run, z):
        return z.mean(0) + 1.4 * (z - z.mean(0))


class Narrow(Altered):
    def alter(self, run, z):
        return z.mean(0) + 0.7 * (z - z.mean(0))


class Biased(Altered):
    def alter(self, run, z):
        return z + 0.3


class GlobalNoise(Altered):
    def alter(self, run, z):
        return z + 1e-3 * torch.randn(z.shape, dtype=z.dtype)


class LeavesRange(Altered):
    def alter(self, run, z):
        return z + 1e-3


class Double(Altered):
    def alter(self, run, z):
        return z.double()


class LowBits(Altered):
    """Heeds the low 32 bits of the seed only."""

    def draw(self, run):
        run.seed %= 2**32
        return sd.MMPS().draw(run)


class LastDim(Altered):
    def alter(self, run, z):
        return z + 1e-3 * z.cumsum(-1)


class FirstCase(Altered):
    def alter(self, run, z):
        return (
            z.reshape(run.n, -1, *z.shape[1:])[:, :1]
            .expand(-1, run.posterior.cases, *z.shape[1:])
            .flatten(0, 1)
        )


class NeedsNothing(Altered):
    def misfit(self, posterior):
        return "for linear ones" if not posterior.observations[0].operator.linear else None

    def draw(self, run):
        return torch.zeros(run.n, *run.prior.space.shape, dtype=run.prior.dtype)


@dataclass(frozen=True)
class BatchNorm(GuidedDenoiser):
    """Couples the rows of a chunk, as a norm over the whole batch does."""

    def guide(self, run: Run) -> Guided:
        inner = sd.MMPS().guide(run)

        def guided(z: torch.Tensor, sigma: float, cases: torch.Tensor) -> torch.Tensor:
            d = inner(z, sigma, cases)
            return d * (1 + 0.05 * (d.norm() / d.norm(dim=1, keepdim=True).sum() - 0.5))

        return guided


@pytest.mark.parametrize(
    ("method", "caught"),
    [
        (Clips, {"units", "covariance"}),
        (Wide, {"covariance"}),
        (Narrow, {"covariance"}),
        (Biased, {"mean"}),
        (GlobalNoise, {"seed", "global state", "surroundings"}),
        (LeavesRange, {"range"}),
        (Double, {"dtype"}),
        (LowBits, {"seed"}),
        (LastDim, {"shape"}),
        (FirstCase, {"cases"}),
        (BatchNorm, {"chunks", "prefix"}),
        (NeedsNothing, {"misfits", "mean", "covariance"}),
    ],
)
def test_a_broken_method_is_caught(method, caught):
    state = torch.get_rng_state()
    assert caught <= set(failures(lambda: check_method(method(), draws=300)))
    torch.set_rng_state(state)


def test_the_right_method_is_not_accused():
    assert not check_method(Altered(), draws=300).named("failed", "skipped")


# -- reports ---------------------------------------------------------------------------------------------


def test_the_error_lists_failed_checks_with_figures():
    with pytest.raises(CheckError) as caught:
        check_operator(WrongWay())
    assert isinstance(caught.value, (SciddiffError, AssertionError))
    assert "4 of 12 checks went wrong" in str(caught.value) or "3 of 12" in str(caught.value)
    assert "failed: adjoint: relative error" in str(caught.value)


def test_an_expected_failure_is_no_error_and_an_unexpected_pass_is_one():
    reasons = dict.fromkeys(failures(lambda: check_operator(WrongWay())), "kept for a test")
    report = check_operator(WrongWay(), expected_failures=reasons)
    assert report["adjoint"].status == "expected failure" and "kept for a test" in report["adjoint"].detail
    with pytest.raises(CheckError, match="unexpected pass: adjoint") as caught:
        check_operator(Shift(), expected_failures={"adjoint": "long mended"})
    assert caught.value.report.named("unexpected pass") == ["adjoint"]


def test_a_failure_of_no_check_cannot_be_expected():
    with pytest.raises(InputError, match="expected_failures"):
        check_operator(Shift(), expected_failures={"adjont": "typo"})


def test_a_crash_is_a_failed_check():
    class Crashes(Shift):
        def apply(self, x):
            raise ZeroDivisionError("half-way")

    assert "shape" in failures(lambda: check_operator(Crashes()))


def test_a_report_prints_and_maps():
    report = check_operator(Shift())
    assert str(report).splitlines()[0].endswith("12 passed")
    assert len(str(report).splitlines()) == 13 and next(iter(report)) == "shape"
    assert report["shape"].status == "passed" and "jvp" in report


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_operator(torch.exp),
        lambda: check_noise(0.1, (3,)),
        lambda: check_prior(SPACE),
        lambda: check_method(sd.MMPS),
    ],
)
def test_what_is_no_part_is_refused(check):
    with pytest.raises(InputError):
        check()


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="`mean`"):
        check_noise(Gaussian(0.1), (3,), mean=[1.0])
    with pytest.raises(InputError, match="`states`"):
        check_operator(Shift(), states=np.zeros((2, 5)))
    with pytest.raises(InputError, match="`seed`"):
        check_prior(PRIORS["gaussian"](), seed=1.5)
