import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset, definition

digits = definition("digits_ct")
IMAGES = 24


@pytest.fixture(scope="module")
def problems():
    test = dataset("digits").TEST
    return {
        "gaussian": digits.build(digits.gaussian(), test, images=IMAGES),
        "network": digits.build(sd.load_prior(digits.HERE / "prior"), test, images=IMAGES),
    }


@pytest.fixture(scope="module")
def draws(problems):
    return {name: p.posterior.sample(20, method=sd.MMPS(), seed=0) for name, p in problems.items()}


def test_training_choice_and_test_digits_do_not_overlap():
    data = dataset("digits")
    parts = [set(range(*part.indices(1797))) for part in (data.TRAIN, data.VALIDATION, data.TEST)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797 - 48


def test_draws_of_the_gaussian_prior_have_the_exact_mean_and_variance(problems, draws):
    problem = problems["gaussian"]
    n = problem.space.size
    eye = torch.eye(n, dtype=torch.float64).reshape(n, 8, 8)
    k = problem.prior.physical_covariance.apply(eye).reshape(n, n)
    a = problem.operator.apply(eye).reshape(n, -1).T
    gain = (
        k @ a.T @ torch.linalg.inv(a @ k @ a.T + digits.NOISE_SD**2 * torch.eye(len(a), dtype=torch.float64))
    )
    covariance = k - gain @ a @ k
    mean = problem.prior.normalisation.mean.reshape(-1)
    y = torch.from_numpy(problem.y["ink"].values).reshape(IMAGES, -1)
    exact = (mean + (y - a @ mean) @ gain.T).reshape(IMAGES, 8, 8).numpy()
    trace, square = float(covariance.trace()), float((covariance**2).sum())
    found = draws["gaussian"]["ink"]
    error = ((found.mean("sample") - exact) ** 2).sum(["y", "x"]).mean().item() * 20 / trace
    assert abs(error - 1) < 4 * np.sqrt(2 * square / trace**2 / IMAGES)
    spread = found.var("sample", ddof=1).sum(["y", "x"]).mean().item() / trace
    assert abs(spread - 1) < 4 * np.sqrt(2 * square / trace**2 / IMAGES / 19)


def test_the_network_beats_its_gaussian_and_the_classical_reconstructions(problems, draws):
    truth = problems["network"].truth["ink"]
    ours, gaussian = (
        digits.scores(truth, draws[n]["ink"].mean("sample"), draws[n]["ink"]) for n in ("network", "gaussian")
    )
    assert ours["crps"] < 0.8 * gaussian["crps"] and ours["psnr"] > gaussian["psnr"] + 1
    for image in digits.baselines(problems["network"]).values():
        classical = digits.scores(truth, image)
        assert ours["psnr"] > classical["psnr"] + 3 and ours["crps"] < classical["crps"]


def test_the_intervals_of_the_network_prior_hold_the_truth_as_often_as_they_say(problems, draws):
    truth = problems["network"].truth["ink"]
    found = digits.scores(truth, draws["network"]["ink"].mean("sample"), draws["network"]["ink"])
    # the share inside varies from digit to digit by about 0.1, so 24 digits leave a standard error of 0.02
    assert abs(found["coverage_90"] - 0.9) < 0.06 and abs(found["coverage_50"] - 0.5) < 0.08


def test_the_network_prior_is_stable_and_fits_its_data(draws):
    assert draws["network"].attrs["diagnosis"] == "ok"
    assert draws["network"].attrs["denoising_covariance"] == "gaussian"
    assert float(abs(draws["network"]["ink"]).max()) < 2
