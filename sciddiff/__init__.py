"""Inverse problems with diffusion priors, with samplers proven against exact posteriors."""

from importlib.metadata import version

from sciddiff import covariance, noise, operators, plot, solvers
from sciddiff.assimilation import forecast, impute
from sciddiff.bench.catalog import problem
from sciddiff.diagnostics import summary
from sciddiff.draws import load, save, to_arviz
from sciddiff.methods import MMPS, methods_for
from sciddiff.posterior import Posterior
from sciddiff.priors import GaussianPrior, Prior
from sciddiff.spaces import Space, Variable

__version__ = version("sciddiff")

__all__ = [
    "MMPS",
    "GaussianPrior",
    "Posterior",
    "Prior",
    "Space",
    "Variable",
    "covariance",
    "forecast",
    "impute",
    "load",
    "methods_for",
    "noise",
    "operators",
    "plot",
    "problem",
    "save",
    "solvers",
    "summary",
    "to_arviz",
]
