"""The law ``p(y | A(x))``: one object makes observations and judges them.

`Gaussian` for errors, `Poisson` for counts, `Laplace` and `StudentT` where outliers are expected, `Exceeds` for events.
Tensors are ``(batch, *codomain.shape)``; a scale is per real value, in the units of ``y``.
"""

from __future__ import annotations

from sciddiff.noise.base import Noise
from sciddiff.noise.events import Exceeds
from sciddiff.noise.gaussian import Gaussian
from sciddiff.noise.heavy import Laplace, StudentT
from sciddiff.noise.poisson import Poisson

__all__ = ["Exceeds", "Gaussian", "Laplace", "Noise", "Poisson", "StudentT"]
