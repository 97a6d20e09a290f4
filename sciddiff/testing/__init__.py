"""Public conformance checks: what every operator, noise, prior and method promises, tried on your own.

Each ``check_*`` runs a list of named checks and returns a `Report`; where a check fails it raises `CheckError`
with the figures. A part that breaks a promise on purpose says so, ``expected_failures={"adjoint": "why"}``;
a check that passes against that expectation is an error too, so that the list never goes stale.

    >>> import sciddiff as sd
    >>> space = sd.Space({"x": 8})
    >>> report = check_operator(sd.operators.Points.at_indices(space, [[0], [3]]))
    >>> report["adjoint"].status
    'passed'

`sciddiff.testing.exact` and `sciddiff.testing.trusted` make problems whose posterior is known, to measure how far a
sampler's draws are from it.
"""

from __future__ import annotations

from sciddiff.testing import exact, trusted
from sciddiff.testing.base import CheckError, Report, Result
from sciddiff.testing.exact import ExactProblem, Hidden
from sciddiff.testing.methods import check_method
from sciddiff.testing.noises import check_noise
from sciddiff.testing.operators import check_operator
from sciddiff.testing.priors import check_prior

__all__ = [
    "CheckError",
    "ExactProblem",
    "Hidden",
    "Report",
    "Result",
    "check_method",
    "check_noise",
    "check_operator",
    "check_prior",
    "exact",
    "trusted",
]
