"""Problems with known answers: what one is, where they are found, how they are run and reported."""

from sciddiff.bench.problem import Figure, Metric, Problem, Result

__all__ = ["Figure", "Metric", "Problem", "Result"]
