"""MixtureVI: modes, their weights and their spread, against posteriors that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.diagnostics import floor, sliced_w1
from sciddiff.errors import ConvergenceError, InputError
from sciddiff.methods.base import Run
from sciddiff.methods.mixture_vi import MixtureVI
from sciddiff.methods.variational import GaussianVI
from sciddiff.priors.base import Prior
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.testing import check_method
from sciddiff.testing.exact import gaussian, mixture

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")


class Flowing(Prior):
    """A mixture that hides its log density, which then has to come by the flow."""

    exact = True

    def __init__(self, inner):
        self.__dict__.update(inner.__dict__)
        self.inner = inner

    def denoise(self, z, sigma):
        return self.inner.denoise(z, sigma)

    def gaussian_covariance(self, sigma):
        return self.inner.gaussian_covariance(sigma)

    def draw(self, streams):
        return self.inner.draw(streams)


def fit(posterior, method, case=0):
    run = Run(posterior, method, 1, seed=0, solver=None, steps=None, chunk=None, progress=False)
    with torch.no_grad():
        return method.fit(run, case)


MEANS = np.array([[-6.0, 0.0, 1.0], [5.0, 2.0, -1.0], [0.0, 9.0, 0.0]])
COVS = np.stack([np.diag([1.0, 0.5, 2.0]), np.eye(3) + 0.4, np.diag([0.3, 1.0, 1.0])])
WEIGHTS = np.array([0.2, 0.5, 0.3])


def three_modes(prior=lambda p: p):
    """A posterior of three modes of different covariance, and its weights, means, covariances and evidence."""
    a, noise = np.array([[0.1, 0.1, 1.0], [0.05, -0.1, 0.2]]), np.diag([0.6, 0.8]) ** 2
    y = np.array([0.6, 0.3])
    space = sd.Space({"i": 3})
    laws = GaussianMixturePrior(space, WEIGHTS, MEANS, COVS)
    operator = sd.operators.Matrix(space, sd.Space({"j": 2}, "y"), a)
    posterior = prior(laws).given(y, operator, sd.noise.Gaussian([0.6, 0.8]))
    logs, means, covs = [], [], []
    for w, m, s in zip(WEIGHTS, MEANS, COVS, strict=True):
        total, off = a @ s @ a.T + noise, y - a @ m
        logs.append(
            np.log(w) - 0.5 * (off @ np.linalg.solve(total, off) + np.linalg.slogdet(2 * np.pi * total)[1])
        )
        gain = s @ a.T @ np.linalg.inv(total)
        means.append(m + gain @ off), covs.append(s - gain @ a @ s)
    evidence = np.logaddexp.reduce(logs)
    return posterior, np.exp(logs - evidence), np.array(means), np.array(covs), evidence


@pytest.mark.parametrize("hide", [lambda p: p, Flowing], ids=["closed form", "by the flow"])
def test_modes_weights_and_evidence_are_exact_where_the_modes_are_apart(hide):
    posterior, weights, means, covs, evidence = three_modes(hide)
    found = fit(posterior, MixtureVI(components=12))
    assert len(found.components) == 3
    scale, centre = posterior.prior.normalisation.scale, posterior.prior.normalisation.mean
    for w, q in zip(found.weights, found.components, strict=True):
        f = scale * q.factor.sqrt(torch.eye(3).double()).T
        mean = (centre + f @ q.mean).numpy()
        cov = (
            f
            @ (torch.eye(3).double() + q.basis @ (q.covariance - torch.eye(len(q.covariance))) @ q.basis.T)
            @ f.T
        )
        k = np.abs(means - mean).sum(1).argmin()
        np.testing.assert_allclose(mean, means[k], atol=0.01)
        np.testing.assert_allclose(cov.numpy(), covs[k], atol=0.01)
        assert float(w) == pytest.approx(weights[k], abs=2e-3)
    # a bound, but for the smoothing of the prior
    assert found.evidence == pytest.approx(evidence, abs=5e-3)


def test_draws_of_the_25_modes_are_as_near_to_the_posterior_as_exact_ones():
    values, floors = [], []
    for data in (1, 2, 4):
        problem = mixture(0, data)
        x = problem.posterior.sample(1000, MixtureVI(components=32, samples=32), seed=0)["x"].values
        values.append(sliced_w1(x, problem.draw(1000, 1)))
        floors.append(floor(problem.draw, 1000, sliced_w1, pairs=10))
    # three independent figures of about one floor each; other methods are at 5 to 20
    assert sum(values) < 2 * sum(floors)


@pytest.mark.parametrize("kind", ["vector", "series", "grid", "graph"])
def test_a_gaussian_posterior_is_one_component_with_the_exact_evidence(kind):
    problem = gaussian(kind, 0)
    found = fit(problem.posterior, MixtureVI(components=4))
    assert len(found.components) == 1
    # the density is that of normalised states; the evidence does not depend on units
    assert found.evidence == pytest.approx(problem.log_evidence, abs=0.02)
    draws = problem.posterior.sample(500, MixtureVI(components=4), seed=0)
    x = problem.posterior.prior.space.tensor(draws, batch_dim="sample").flatten(1).numpy()
    z = (x - problem.mean) / problem.sd
    # z-scores of means, and of variances, of up to 256 values
    assert np.abs(z.mean(0)).max() * 500**0.5 < 5
    assert np.abs((z**2).mean(0) - 1).max() * (500 / 2) ** 0.5 < 5


def test_a_prior_on_fewer_dimensions_than_its_coordinates_is_exact():
    """Particles without a centre of mass: one coordinate is none of the prior's."""
    projector = sd.covariance.centred((7,))
    values = torch.cat([torch.zeros(1), torch.linspace(0.5, 3.0, 6)]).double()
    law = sd.covariance.Eigen(projector.basis, values)
    space = sd.Space({"particle": 7})
    prior = sd.GaussianPrior(space, law, reference=projector)
    operator = sd.operators.Points.at_indices(space, [0, 2, 3])
    y, a = np.array([1.0, -0.5, 0.2]), np.eye(7)[[0, 2, 3]]
    cov = law.apply(torch.eye(7).double()).numpy()
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + 0.16 * np.eye(3))
    draws = prior.given(y, operator, sd.noise.Gaussian(0.4)).sample(500, MixtureVI(components=3), seed=0)
    x = draws["x"].values
    assert np.abs(x.mean(1)).max() < 1e-12
    z = (x - gain @ y) / np.sqrt(np.diag(cov - gain @ a @ cov))
    assert np.abs(z.mean(0)).max() * 500**0.5 < 4.5
    assert np.abs((z**2).mean(0) - 1).max() * (500 / 2) ** 0.5 < 4.5


def test_every_case_has_its_own_mixture():
    posterior, weights, means, _, _ = three_modes()
    o = posterior.observations[0]
    y = np.array([[0.6, 0.3], [-8.0, 3.0]])
    cases = posterior.prior.given(y, o.operator, o.noise, batch_dim="case")
    x = cases.sample(2000, MixtureVI(components=12, samples=16), seed=0)["x"].values
    z = (x[:, 0].mean(0) - weights @ means) / x[:, 0].std(0) * 2000**0.5
    assert np.abs(z).max() < 4
    assert np.abs(x[:, 0].mean(0) - x[:, 1].mean(0)).max() > 1


def test_weight_on_a_component_that_has_not_settled_raises():
    posterior, *_ = three_modes()
    with pytest.raises(ConvergenceError, match="after 2 iterations"):
        posterior.sample(2, MixtureVI(components=4, iterations=2), seed=0)


def test_mixture_vi_passes_the_conformance_check():
    check_method(MixtureVI(components=4, samples=16))


@pytest.mark.parametrize(
    "bad",
    [{"components": 0}, {"width": 2.0}, {"rank": 0}, {"tol": 0.0}, {"components": 2.5}, {"step": "a"}],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError):
        MixtureVI(**bad)


@pytest.mark.parametrize("bad", [{"rank": 1.5}, {"rank": True}, {"samples": 2.5}, {"tol": "a"}])
def test_bad_settings_of_the_single_gaussian_are_refused(bad):
    with pytest.raises(InputError):
        GaussianVI(**bad)


def test_a_prior_on_fewer_dimensions_than_its_noise_has_no_evidence_bound():
    space, white = sd.Space({"i": 4}), sd.covariance.white((4,))
    law = sd.covariance.Eigen(white.basis, torch.tensor([1.0, 2.0, 0.0, 0.5]).double())
    operator = sd.operators.Points.at_indices(space, [0])
    for prior, known in (
        (sd.GaussianPrior(space, white), True),
        (sd.GaussianPrior(space, law, reference=white), False),
    ):
        found = fit(prior.given([0.7], operator, sd.noise.Gaussian(0.4)), MixtureVI(components=2))
        assert np.isfinite(found.evidence) == known
