"""Which methods fit which posterior, and what is said where one does not."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import InputError, MethodError
from sciddiff.methods import METHODS, Method, default_method, methods_for
from sciddiff.solvers import Heun

# a handful of draws, and of biased methods: whether they fit the data well is proved elsewhere
pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

SPACE = sd.Space({"i": 3})
PRIOR = sd.GaussianPrior(SPACE, sd.covariance.white((3,), 2.0))
DATUM = sd.Space({"j": 3}, "y")
GAUSSIAN = sd.noise.Gaussian(0.5)

POSTERIORS = {
    "linear": lambda: PRIOR.given(
        [1.0, 2.0, 0.0], sd.operators.Points.at_indices(SPACE, [0, 1, 2]), GAUSSIAN
    ),
    "bent": lambda: PRIOR.given([1.0, 2.0, 0.0], sd.operators.from_torch(torch.sin, SPACE, DATUM), GAUSSIAN),
    "opaque": lambda: PRIOR.given([1.0, 2.0, 0.0], sd.operators.black_box(np.tanh, SPACE, DATUM), GAUSSIAN),
    "counts": lambda: PRIOR.given(
        [1, 2, 0], sd.operators.from_torch(torch.exp, SPACE, DATUM), sd.noise.Poisson(2.0)
    ),
    "opaque counts": lambda: PRIOR.given(
        [1, 2, 0], sd.operators.black_box(np.exp, SPACE, DATUM), sd.noise.Poisson(2.0)
    ),
}

SEARCHES = {"BestOfN", "NoiseSearch", "SCG", "DPG", "GSG", "TreeSampling"}
BLACK_BOX = {"EnsembleKalman", "EKI", "TemperedEKI", "KalmanDiffusion"} | SEARCHES
GRADIENT = {
    "GaussianVI",
    "MixtureVI",
    "CMCD",
    "LocalGaussian",
    "TMPD",
    "LGD",
    "DPSDenoiser",
    "DPS",
    "REDDiff",
}
GRADIENT |= {"PnPDM", "DPnP", "DAPS", "Particles", "TDS", "BlindDPS", "DiffPIR"}
FITS = {
    "linear": {m.__name__ for m in METHODS},
    "bent": GRADIENT | BLACK_BOX | {"EnKG", "TSDiff"},
    "opaque": BLACK_BOX | {"EnKG"},
    "counts": GRADIENT | SEARCHES,
    "opaque counts": SEARCHES,
}


def test_mmps_comes_first():
    assert METHODS[0] is sd.MMPS
    assert isinstance(default_method(POSTERIORS["linear"]()), sd.MMPS)


@pytest.mark.parametrize("kind", list(FITS))
def test_methods_for_says_what_fits_and_why_the_others_do_not(kind):
    first, *others = [line.split(": ", 1) for line in methods_for(POSTERIORS[kind]()).splitlines()]
    names = first[0].split(", ")
    assert set(names) == FITS[kind] and names[0] == type(default_method(POSTERIORS[kind]())).__name__
    rest = [name for line in others for name in line[0].split(", ")]
    assert sorted(names + rest) == sorted(m.__name__ for m in METHODS)
    reasons = " ".join(reason for _, reason in others)
    for word, kinds in {
        "is not linear": {"bent", "opaque", "counts", "opaque counts"},
        "black box without gradients": {"opaque", "opaque counts"},
        "is not Gaussian": {"counts", "opaque counts"},
    }.items():
        assert (word in reasons) == (kind in kinds)


@pytest.mark.parametrize("kind", ["bent", "opaque", "counts"])
def test_a_method_that_does_not_fit_is_refused_and_those_that_do_are_named(kind):
    with pytest.raises(MethodError) as caught:
        POSTERIORS[kind]().sample(2, method=sd.MMPS(), seed=0)
    for name in FITS[kind]:
        assert name in caught.value.fix


def test_a_gradient_method_on_a_black_box_is_refused_before_the_black_box_runs():
    calls = []

    def simulator(x):
        calls.append(1)
        return x

    posterior = PRIOR.given([1.0, 2.0, 0.0], sd.operators.black_box(simulator, SPACE, DATUM), GAUSSIAN)
    for name in ("DPS", "DPSDenoiser", "GaussianVI", "MMPS"):
        method = next(m for m in METHODS if m.__name__ == name)
        with pytest.raises(MethodError, match="EnsembleKalman"):
            posterior.sample(2, method=method(), seed=0)
    assert not calls


@pytest.mark.parametrize("kind", list(FITS))
def test_every_method_that_fits_draws_finite_labelled_states(kind, quick):
    posterior = POSTERIORS[kind]()
    for method in METHODS:
        if method().misfit(posterior) is None:
            draws = posterior.sample(3, method=quick(method), seed=0)
            assert draws["x"].dims == ("sample", "i") and np.isfinite(draws["x"]).all()
            assert draws.attrs["method"] == repr(quick(method))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_settings_are_frozen_plain_json_and_come_back(method):
    first = method()
    settings = json.loads(json.dumps(first.settings()))
    # what is made of parts says which, by name and settings
    if not any(
        isinstance(value, dict) and ({"method", "analysis"} & set(value)) for value in settings.values()
    ):
        again = method(**settings)
        assert again == first and repr(again) == repr(first)
    assert first.reference.startswith("@")
    with pytest.raises(FrozenInstanceError):
        first.anything = 1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_every_method_leaves_grad_mode_and_dtype_alone_and_needs_no_grad_from_outside(method, quick):
    posterior = POSTERIORS["linear"]()
    with torch.inference_mode():
        inside = posterior.sample(2, method=quick(method), seed=0)["x"]
    with torch.enable_grad():
        outside = posterior.sample(2, method=quick(method), seed=0)["x"]
        assert torch.is_grad_enabled()
    np.testing.assert_array_equal(inside, outside)


def test_a_class_in_place_of_an_instance_is_refused():
    with pytest.raises(InputError, match="not MMPS"):
        POSTERIORS["linear"]().sample(2, method=sd.MMPS, seed=0)


def test_what_a_method_does_not_take_is_refused():
    posterior = POSTERIORS["linear"]()
    for method in METHODS:
        for name, value in (("solver", Heun()), ("steps", 5)):
            if name not in method.takes:
                with pytest.raises(InputError, match=f"takes no {name}"):
                    posterior.sample(2, method=method(), seed=0, **{name: value})


def test_a_third_partys_method_is_passed_as_an_instance():
    @dataclass(frozen=True)
    class Centre(Method):
        needs: ClassVar[frozenset[str]] = frozenset({"one case"})
        shift: float = 0.0

        def draw(self, run):
            return torch.cat([self.shift + run.prior.noise(rows.streams) for rows in run.rows()])

    draws = POSTERIORS["linear"]().sample(4, method=Centre(3.0), seed=0)
    assert draws.sizes["sample"] == 4 and json.loads(draws.attrs["settings"]) == {"shift": 3.0}
    two = PRIOR.given(
        np.zeros((2, 3)), sd.operators.Points.at_indices(SPACE, [0, 1, 2]), GAUSSIAN, batch_dim="case"
    )
    with pytest.raises(MethodError, match="there are 2 cases"):
        two.sample(2, method=Centre(), seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sd.methods.DPS(steps=1),
        lambda: sd.methods.DDRM(steps=1),
        lambda: sd.methods.DDNM(steps=1),
        lambda: sd.methods.DiffPIR(steps=1),
        lambda: sd.methods.DiffPIR(lam=True),
        lambda: sd.methods.DAPS(tempering=True),
        lambda: sd.methods.PnPDM(rho_min=True),
        lambda: sd.methods.DPnP(rho_max=True),
    ],
)
def test_settings_out_of_range_are_refused_where_they_are_made(make):
    with pytest.raises(InputError, match="expected"):
        make()
