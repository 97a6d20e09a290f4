"""What `citation` says of a result."""

from __future__ import annotations

from collections import Counter

import pytest
import xarray as xr

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.methods import METHODS
from sciddiff.solvers import Heun

SPACE = sd.Space({"i": 3})
PRIOR = sd.GaussianPrior(SPACE, sd.covariance.white((3,)))
POSTERIOR = PRIOR.given([1.0], sd.operators.Points.at_indices(SPACE, [0]), sd.noise.Gaussian(0.5))


def keys(text):
    """The keys of BibTeX entries, whose braces must balance."""
    entries = [e for e in text.split("\n\n") if e]
    for e in entries:
        assert e.startswith("@") and Counter(e)["{"] == Counter(e)["}"], e
        assert all(f" {field}={{" in e for field in ("title", "author")), e
    return [e.split("{")[1].split(",")[0] for e in entries]


def test_a_result_names_the_library_its_method_and_its_solver():
    draws = POSTERIOR.sample(2, method=sd.MMPS(), solver=Heun(steps=16), seed=0)
    assert keys(sd.citation(draws)) == ["sciddiff", "rozet2024learning", "karras2022elucidating"]


def test_a_solver_that_was_not_used_is_not_cited():
    assert keys(sd.citation(POSTERIOR.sample(2, method=sd.DPS(steps=4), seed=0))) == [
        "sciddiff",
        "chung2023diffusion",
    ]
    assert keys(sd.citation(PRIOR.sample(2, seed=0))) == ["sciddiff"]
    assert keys(sd.citation(PRIOR.sample(2, seed=0, solver=Heun()))) == ["sciddiff", "karras2022elucidating"]


def test_it_is_kept_on_disk(tmp_path):
    draws = POSTERIOR.sample(2, seed=0)
    sd.save(draws, tmp_path / "draws.nc")
    assert sd.citation(sd.load(tmp_path / "draws.nc")) == sd.citation(draws)


def test_without_a_result_the_library_itself():
    assert keys(sd.citation()) == ["sciddiff"]


@pytest.mark.parametrize("other", [xr.Dataset(), "MMPS", 3])
def test_what_is_no_result_is_refused(other):
    with pytest.raises(InputError, match="references"):
        sd.citation(other)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_the_paper_of_every_method_is_an_entry(method):
    assert len(keys("\n\n".join(method().references()))) >= 1
    assert "year={" in method.reference
