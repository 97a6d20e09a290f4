"""Priors: exact ones, and neural ones."""

from sciddiff.priors.base import Normalisation, Prior
from sciddiff.priors.gaussian import GaussianPrior

__all__ = ["GaussianPrior", "Normalisation", "Prior"]
