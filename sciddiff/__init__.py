"""Inverse problems with diffusion priors, with samplers proven against exact posteriors."""

from sciddiff import covariance, noise, operators
from sciddiff.methods import MMPS, methods_for
from sciddiff.posterior import Posterior
from sciddiff.priors import GaussianPrior, Prior
from sciddiff.spaces import Space, Variable

__version__ = "0.1.0"

__all__ = [
    "MMPS",
    "GaussianPrior",
    "Posterior",
    "Prior",
    "Space",
    "Variable",
    "covariance",
    "methods_for",
    "noise",
    "operators",
]
