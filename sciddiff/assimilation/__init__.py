"""Series and trajectories: gaps and forecasts from one prior over a window of time."""

from sciddiff.assimilation.windows import forecast, impute

__all__ = ["forecast", "impute"]
