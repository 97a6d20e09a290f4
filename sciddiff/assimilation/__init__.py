"""Series and trajectories: gaps and forecasts from one prior over a window of time."""

from sciddiff.assimilation.baselines import climatology, local_level, persistence, sarimax, seasonal_naive
from sciddiff.assimilation.cycling import fixed_lag_smoother
from sciddiff.assimilation.dyffusion import DYffusion, train_dyffusion
from sciddiff.assimilation.emulators import (
    Autoregressive,
    Dynamics,
    Emulator,
    WindowDiffusion,
    train_autoregressive,
)
from sciddiff.assimilation.events import Counting, EventProbability, Evidence, Splitting, event_probability
from sciddiff.assimilation.filters import ETKF, LETKF, EnKF, EnKS
from sciddiff.assimilation.forecasts import forecast, impute
from sciddiff.assimilation.iterative import IEnKS
from sciddiff.assimilation.kalman import Kalman, KalmanFilter, kalman_moments
from sciddiff.assimilation.models import Assimilation, StateSpaceModel
from sciddiff.assimilation.particles import FFBS, BootstrapFilter
from sciddiff.assimilation.refinement import Descent, Langevin, refine
from sciddiff.assimilation.scaling import scaled_to
from sciddiff.assimilation.score_filter import EnSF
from sciddiff.assimilation.series import quantile_frame
from sciddiff.assimilation.storage import load_emulator, save_emulator
from sciddiff.assimilation.synthesis import PredictiveScore, linear_predictive_score, synthesise
from sciddiff.assimilation.variational import Weak4DVar

__all__ = [
    "ETKF",
    "FFBS",
    "LETKF",
    "Assimilation",
    "Autoregressive",
    "BootstrapFilter",
    "Counting",
    "DYffusion",
    "Descent",
    "Dynamics",
    "Emulator",
    "EnKF",
    "EnKS",
    "EnSF",
    "EventProbability",
    "Evidence",
    "IEnKS",
    "Kalman",
    "KalmanFilter",
    "Langevin",
    "PredictiveScore",
    "Splitting",
    "StateSpaceModel",
    "Weak4DVar",
    "WindowDiffusion",
    "climatology",
    "event_probability",
    "fixed_lag_smoother",
    "forecast",
    "impute",
    "kalman_moments",
    "linear_predictive_score",
    "load_emulator",
    "local_level",
    "persistence",
    "quantile_frame",
    "refine",
    "sarimax",
    "save_emulator",
    "scaled_to",
    "seasonal_naive",
    "synthesise",
    "train_autoregressive",
    "train_dyffusion",
]
