"""Training of neural priors: `train`, and what it is made of."""

from sciddiff.training.trainer import train

__all__ = ["train"]
