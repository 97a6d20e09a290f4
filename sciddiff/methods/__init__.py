"""Posterior samplers, one family a file, and which of them fits what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sciddiff.methods.analysis import Localised, LocalSquareRoot, Perturbed, SquareRoot, Tapered
from sciddiff.methods.annealed import CMCD
from sciddiff.methods.base import GuidedDenoiser, Method
from sciddiff.methods.blind import BlindDPS
from sciddiff.methods.enkg import EnKG, KalmanDiffusion
from sciddiff.methods.guidance import DPS, LGD, DPSDenoiser
from sciddiff.methods.kalman import EKI, EnsembleKalman, TemperedEKI
from sciddiff.methods.linearised import TMPD, LocalGaussian
from sciddiff.methods.mbir import DiffusionMBIR, WeightedMBIR
from sciddiff.methods.mixture_vi import MixtureVI
from sciddiff.methods.mmps import MMPS
from sciddiff.methods.particles import TDS, MCGDiff, Particles
from sciddiff.methods.pigdm import PiGDM
from sciddiff.methods.reddiff import REDDiff
from sciddiff.methods.search import SCG, BestOfN, NoiseSearch
from sciddiff.methods.self_guidance import SelfGuidance, TSDiff
from sciddiff.methods.splitting import DAPS, DPnP, PnPDM
from sciddiff.methods.transitions import DDNM, DDRM, DiffPIR, RePaint
from sciddiff.methods.tree import TreeSampling
from sciddiff.methods.variational import GaussianVI
from sciddiff.methods.zeroth_order import DPG, GSG

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = [
    "CMCD",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPG",
    "DPS",
    "EKI",
    "GSG",
    "LGD",
    "METHODS",
    "MMPS",
    "SCG",
    "TDS",
    "TMPD",
    "BestOfN",
    "BlindDPS",
    "DPSDenoiser",
    "DPnP",
    "DiffPIR",
    "DiffusionMBIR",
    "EnKG",
    "EnsembleKalman",
    "GaussianVI",
    "GuidedDenoiser",
    "KalmanDiffusion",
    "LocalGaussian",
    "LocalSquareRoot",
    "Localised",
    "MCGDiff",
    "Method",
    "MixtureVI",
    "NoiseSearch",
    "Particles",
    "Perturbed",
    "PiGDM",
    "PnPDM",
    "REDDiff",
    "RePaint",
    "SelfGuidance",
    "SquareRoot",
    "TSDiff",
    "Tapered",
    "TemperedEKI",
    "TreeSampling",
    "WeightedMBIR",
    "default_method",
    "fitting",
    "methods_for",
]

METHODS: tuple[type[Method], ...] = (
    MMPS, LocalGaussian, GaussianVI, EnsembleKalman, BestOfN,
    Particles, MCGDiff, TDS, MixtureVI, CMCD,
    DAPS, PnPDM, DPnP,
    PiGDM, TMPD, LGD, DPSDenoiser, DPS, BlindDPS, SelfGuidance, TSDiff,
    DDRM, DDNM, DiffPIR, RePaint, WeightedMBIR, DiffusionMBIR, REDDiff,
    KalmanDiffusion, TemperedEKI, EKI, EnKG,
    SCG, DPG, GSG, NoiseSearch, TreeSampling,
)  # fmt: skip
"""In the order in which they are tried: the first that fits is the default, and the first line holds what is taken.
Then come particles and variational fits, splitting, guidance, transitions and points, ensembles and searches."""


def fitting(posterior: Posterior) -> list[str]:
    """Names of the methods that fit a posterior, at their default settings."""
    return [m.__name__ for m in METHODS if m().misfit(posterior) is None]


def default_method(posterior: Posterior) -> Method:
    """The first of `METHODS` that fits; `BestOfN` needs nothing, so there is one."""
    return next(method() for method in METHODS if method().misfit(posterior) is None)


def methods_for(posterior: Posterior) -> str:
    """Which methods fit a posterior, the default first, and why the others do not; one line a reason."""
    from sciddiff.errors import InputError
    from sciddiff.posterior import Posterior

    if not isinstance(posterior, Posterior):
        raise InputError(
            "posterior",
            expected="a Posterior",
            got=repr(posterior),
            fix="condition a prior first: methods_for(prior.given(y, operator, noise))",
        )
    fits = "fit, and the first is the default"
    groups: dict[str, list[str]] = {fits: []}
    for method in METHODS:
        groups.setdefault(method().misfit(posterior) or fits, []).append(method.__name__)
    return "\n".join(f"{', '.join(names) or 'None'}: {reason}" for reason, names in groups.items())
