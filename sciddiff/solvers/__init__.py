"""Solvers of the path from noise to data, schedules of its levels, and what the path tells beside draws."""

from sciddiff.solvers.adaptive import Adaptive
from sciddiff.solvers.base import Denoiser, Noiser, Progress, Solver, Step
from sciddiff.solvers.inversion import generate, invert
from sciddiff.solvers.langevin import AnnealedLangevin
from sciddiff.solvers.likelihood import log_prob
from sciddiff.solvers.moments import Drawing, Moments
from sciddiff.solvers.ode import DPMSolver, Euler, Heun
from sciddiff.solvers.schedules import VP, AlongPath, Cosine, Exponential, Flow, Karras, Schedule
from sciddiff.solvers.stochastic import Ancestral, PredictorCorrector

__all__ = [
    "VP",
    "Adaptive",
    "AlongPath",
    "Ancestral",
    "AnnealedLangevin",
    "Cosine",
    "DPMSolver",
    "Denoiser",
    "Drawing",
    "Euler",
    "Exponential",
    "Flow",
    "Heun",
    "Karras",
    "Moments",
    "Noiser",
    "PredictorCorrector",
    "Progress",
    "Schedule",
    "Solver",
    "Step",
    "generate",
    "invert",
    "log_prob",
]
