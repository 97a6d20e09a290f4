"""Training of neural priors: `train`, `train_ambient` from incomplete data, `train_process` from series at irregular times, `calibrate` for their covariances, and what they are made of."""

from sciddiff.training.ambient import Glimpse, MaskedNetwork, fit_incomplete, train_ambient
from sciddiff.training.process import train_process
from sciddiff.training.spread import calibrate
from sciddiff.training.trainer import train

__all__ = [
    "Glimpse",
    "MaskedNetwork",
    "calibrate",
    "fit_incomplete",
    "train",
    "train_ambient",
    "train_process",
]
