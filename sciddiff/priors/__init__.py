"""Priors: exact ones, neural ones, and what is composed of them."""

from sciddiff.priors.base import Normalisation, Prior
from sciddiff.priors.composed import AlternatingPrior, ProductPrior, SlicesPrior
from sciddiff.priors.empirical import EmpiricalPrior
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.gaussian_process import GaussianProcess
from sciddiff.priors.joint import JointPrior, joint
from sciddiff.priors.latent import LatentPrior
from sciddiff.priors.mixture import GaussianMixturePrior
from sciddiff.priors.neural import NetworkPrior, NeuralPrior
from sciddiff.priors.process import ProcessPrior
from sciddiff.priors.storage import load_prior
from sciddiff.priors.windows import WindowPrior

__all__ = [
    "AlternatingPrior",
    "EmpiricalPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "GaussianProcess",
    "JointPrior",
    "LatentPrior",
    "NetworkPrior",
    "NeuralPrior",
    "Normalisation",
    "Prior",
    "ProcessPrior",
    "ProductPrior",
    "SlicesPrior",
    "WindowPrior",
    "joint",
    "load_prior",
]
