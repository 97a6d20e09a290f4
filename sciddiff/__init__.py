"""Inverse problems with diffusion priors, with samplers proven against exact posteriors."""

from importlib.metadata import version

from sciddiff import covariance, diagnostics, methods, noise, operators, plot, priors, solvers, testing
from sciddiff.assimilation import forecast, impute
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
