"""Inverse problems with diffusion priors, with samplers proven against exact posteriors."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sciddiff import covariance, diagnostics, methods, noise, operators, priors, solvers
from sciddiff.bench.catalog import load_prior, problem
from sciddiff.citations import citation
from sciddiff.diagnostics import summary
from sciddiff.draws import load, save, to_arviz
from sciddiff.methods import (
    DPS,
    MMPS,
    DPSDenoiser,
    EnsembleKalman,
    GaussianVI,
    LocalGaussian,
    MixtureVI,
    Particles,
    methods_for,
)
from sciddiff.posterior import Posterior
from sciddiff.priors import (
    EmpiricalPrior,
    GaussianMixturePrior,
    GaussianPrior,
    NeuralPrior,
    Normalisation,
    Prior,
)
from sciddiff.spaces import Space, Variable

if TYPE_CHECKING:
    from sciddiff import assimilation, physics, plot, testing
    from sciddiff.assimilation import forecast, impute
    from sciddiff.training import train, train_process

__version__ = version("sciddiff")
del version

__all__ = [
    "DPS",
    "MMPS",
    "DPSDenoiser",
    "EmpiricalPrior",
    "EnsembleKalman",
    "GaussianMixturePrior",
    "GaussianPrior",
    "GaussianVI",
    "LocalGaussian",
    "MixtureVI",
    "NeuralPrior",
    "Normalisation",
    "Particles",
    "Posterior",
    "Prior",
    "Space",
    "Variable",
    "assimilation",
    "citation",
    "covariance",
    "diagnostics",
    "forecast",
    "impute",
    "load",
    "load_prior",
    "methods",
    "methods_for",
    "noise",
    "operators",
    "physics",
    "plot",
    "priors",
    "problem",
    "save",
    "solvers",
    "summary",
    "testing",
    "to_arviz",
    "train",
    "train_process",
]


_LATER = {
    "forecast": "assimilation",
    "impute": "assimilation",
    "train": "training",
    "train_process": "training",
}


def __getattr__(name: str) -> Any:
    """The rooms that many scripts never enter are loaded when they are first asked for."""
    if name in ("assimilation", "physics", "plot", "testing", "training"):
        return import_module(f"sciddiff.{name}")
    if name in _LATER:
        return getattr(import_module(f"sciddiff.{_LATER[name]}"), name)
    raise AttributeError(f"module 'sciddiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
