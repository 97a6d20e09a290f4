"""Spike counts of a Lorenz latent: what is simulated, and that the scores have their known values."""

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.bench.catalog import definition

spikes = definition("lorenz_spikes")


def test_counts_have_the_mean_and_the_variance_of_their_rates():
    x, counts = spikes.simulate(8, seed=3)
    mean = spikes.BIN * spikes.rates(x, slice(None))
    score = float((counts - mean).sum() / mean.sum().sqrt())
    assert abs(score) < 4.5
    # Poisson: the squared residual is the mean, with a variance of m + 2 m^2
    square = ((counts - mean) ** 2 - mean).sum() / (mean + 2 * mean**2).sum().sqrt()
    assert abs(float(square)) < 4.5


def test_seen_and_left_out_neurons_are_all_of_them_once():
    x, _ = spikes.simulate(2, seed=0)
    parts = torch.cat([spikes.rates(x, spikes.SEEN), spikes.rates(x, spikes.HELD)], -1)
    torch.testing.assert_close(parts, spikes.rates(x, slice(None)))


def test_the_truth_has_the_highest_scores_and_mean_rates_have_none():
    x, counts = spikes.simulate(8, seed=0)
    found = spikes.scores(torch.stack([x, x]), x, counts, torch.stack([x, x + 1]))
    assert found["rate_r2"] == pytest.approx(1.0) and found["rmse"] == 0
    flat = (counts.mean((0, 1)) / spikes.BIN).expand_as(counts)
    assert spikes.bits_per_spike(flat, counts, slice(None)) == pytest.approx(0.0, abs=1e-12)
    exact = spikes.bits_per_spike(spikes.rates(x, slice(None)), counts, slice(None))
    shuffled = spikes.bits_per_spike(spikes.rates(x.flip(0), slice(None)), counts, slice(None))
    assert exact > 0.3 > shuffled


@pytest.mark.skipif(
    not (spikes.HERE.parent / "lorenz63_smoothing" / "prior.json").is_file(), reason="the prior is not there"
)
def test_the_learned_prior_finds_the_latent():
    problem = spikes.load()
    draws = problem.posterior.sample(12, sd.methods.TDS(particles=12, steps=48), seed=0)
    mean = np.stack([draws[n].mean("sample") for n in spikes.NAMES])
    truth = np.stack([problem.truth[n] for n in spikes.NAMES])
    # the spread of the system is 8 to 9
    assert np.sqrt(((mean - truth) ** 2).mean()) < 3
