"""Series and trajectories: gaps and forecasts from one prior over a window of time."""

from sciddiff.assimilation.cycling import fixed_lag_smoother
from sciddiff.assimilation.filters import ETKF, LETKF, EnKF, EnKS
from sciddiff.assimilation.forecasts import forecast, impute
from sciddiff.assimilation.iterative import IEnKS
from sciddiff.assimilation.models import Assimilation, StateSpaceModel
from sciddiff.assimilation.particles import FFBS, BootstrapFilter
from sciddiff.assimilation.series import quantile_frame

__all__ = [
    "ETKF",
    "FFBS",
    "LETKF",
    "Assimilation",
    "BootstrapFilter",
    "EnKF",
    "EnKS",
    "IEnKS",
    "StateSpaceModel",
    "fixed_lag_smoother",
    "forecast",
    "impute",
    "quantile_frame",
]
