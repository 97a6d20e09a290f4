"""Priors: exact ones, and neural ones."""

from sciddiff.priors.base import Normalisation, Prior
from sciddiff.priors.empirical import EmpiricalPrior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.joint import JointPrior, joint
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.priors.neural import NetworkPrior, NeuralPrior
from sciddiff.priors.storage import load_prior

__all__ = [
    "EmpiricalPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "JointPrior",
    "NetworkPrior",
    "NeuralPrior",
    "Normalisation",
    "Prior",
    "joint",
    "load_prior",
]
