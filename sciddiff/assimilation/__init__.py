"""Series and trajectories: gaps and forecasts from one prior over a window of time."""

from sciddiff.assimilation.iterative import IEnKS
from sciddiff.assimilation.models import Assimilation, StateSpaceModel
from sciddiff.assimilation.particles import FFBS, BootstrapFilter
from sciddiff.assimilation.windows import forecast, impute

__all__ = ["FFBS", "Assimilation", "BootstrapFilter", "IEnKS", "StateSpaceModel", "forecast", "impute"]
