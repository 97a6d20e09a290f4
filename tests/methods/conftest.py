"""Settings with which every method takes a moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sciddiff.methods import Method

# a method's own defaults where it is not named
QUICK: dict[str, dict[str, object]] = {
    "BestOfN": {"candidates": 8},
    "BlindDPS": {"steps": 20},
    "DPG": {"candidates": 8},
    "DiffusionMBIR": {"steps": 20},
    "GSG": {"candidates": 8},
    "NoiseSearch": {"candidates": 4, "iterations": 2},
    "SCG": {"candidates": 8},
    "TreeSampling": {"rollouts": 8, "steps": 3},
    "WeightedMBIR": {"steps": 8},
    "CMCD": {"bridges": 4, "pool": 2, "training": 4, "paths": 8},
    "DAPS": {"steps": 20},
    "DPS": {"steps": 20},
    "DPnP": {"steps": 10},
    "EnKG": {"ensemble": 16, "steps": 10},
    "EnsembleKalman": {"ensemble": 16},
    "EKI": {"ensemble": 16},
    "KalmanDiffusion": {"ensemble": 16},
    "MCGDiff": {"particles": 16, "steps": 10},
    "MixtureVI": {"components": 4},
    "Particles": {"particles": 16, "steps": 10},
    "PnPDM": {"steps": 10},
    "REDDiff": {"steps": 50},
    "RePaint": {"steps": 20},
    "SelfGuidance": {"steps": 20},
    "TDS": {"particles": 16, "steps": 10},
    "TSDiff": {"steps": 20},
    "TemperedEKI": {"ensemble": 16},
}


@pytest.fixture(scope="session")
def quick() -> Callable[[type[Method]], Method]:
    """A method at settings with which it is quick, and not exact."""
    return lambda method: method(**QUICK.get(method.__name__, {}))
