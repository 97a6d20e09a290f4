"""Networks that come without a fitted Gaussian have to be stable at every default, on real problems."""

import numpy as np
import pytest

import sciddiff as sd
from sciddiff.bench.catalog import dataset, definition
from sciddiff.priors.paths import VE


def foreign(prior):
    """The shipped network as one that was trained elsewhere: D as a function of a variance-exploding time."""
    path = VE(prior.sigma_min, prior.sigma_max)

    def net(x, t):
        return prior.denoise(x, path.sigma(t.double()))

    return sd.Prior.from_network(
        net, prior.space, predicts="x0", path=path, sigma_max=prior.sigma_max, sigma_min=prior.sigma_min,
        normalisation=prior.normalisation, channel_axis=False, dtype=prior.dtype,
    )  # fmt: skip


def test_a_network_without_a_gaussian_is_stable_on_the_digits():
    digits = definition("digits_ct")
    prior = foreign(sd.load_prior("digits_ct"))
    problem = digits.build(prior, dataset("digits").VALIDATION, images=12)
    draws = problem.posterior.sample(12, seed=0)
    found = digits.scores(problem.truth["ink"], draws["ink"].mean("sample"), draws["ink"])
    assert draws.attrs["denoising_covariance"] == "unit" and draws.attrs["diagnosis"] == "ok"
    gaussian = digits.build(digits.gaussian(), dataset("digits").VALIDATION, images=12)
    exact = gaussian.posterior.sample(12, seed=0)["ink"]
    assert found["psnr"] > digits.scores(gaussian.truth["ink"], exact.mean("sample"), exact)["psnr"]
    assert 0.8 < found["coverage_90"] < 0.99


def test_a_network_without_a_gaussian_is_stable_on_el_nino():
    elnino = definition("elnino")
    sst = dataset("elnino").load()["sst"]
    shipped = sd.load_prior("elnino")
    y = elnino.cases(sst, np.arange(540, 720, 6), slice(12, None))[1]
    draws = {
        name: elnino.draw(prior, y, 60, seed=0, progress=False)["sst"]
        for name, prior in {"ours": shipped, "foreign": foreign(shipped)}.items()
    }
    ours, theirs = (d.isel(time=slice(12, None)) for d in draws.values())
    assert float(abs(theirs).max()) < 3 * float(abs(ours).max())
    # the unit Gaussian ignores correlations in time, so its spread is only roughly right
    assert 0.6 < float(theirs.std("sample").mean() / ours.std("sample").mean()) < 1.6


@pytest.mark.parametrize("name", ["elnino", "digits_ct"])
def test_shipped_priors_carry_the_gaussian_that_mmps_takes(name):
    prior = sd.load_prior(name)
    assert prior.gaussian_covariance(1.0) is not None
