"""How checks are run and reported, and the few measures that all of them share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError, SciddiffError
from sciddiff.random import Streams

__all__ = [
    "BrokenError",
    "Check",
    "CheckError",
    "Report",
    "Result",
    "SkippedError",
    "at_most",
    "global_state",
    "relative",
    "run",
    "within",
]

# a check returns its figures; it raises `BrokenError` with them, or `SkippedError` where it does not apply
Check = Callable[[], str]

# the z-score that a right part exceeds in one of about half a million checks
LIMIT = 4.9


class CheckError(SciddiffError, AssertionError):
    """Checks failed, or passed where a failure was expected; the message names them with their figures.

    Attributes:
        report: the `Report` of all checks.
    """

    def __init__(self, message: str, report: Report) -> None:
        self.report = report
        super().__init__(message)


class BrokenError(Exception):
    """A promise is broken; the message holds the figures."""


class SkippedError(Exception):
    """A check does not apply; the message says why."""


@final
@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        status: "passed", "failed", "expected failure", "unexpected pass" or "skipped".
        detail: the figures, or the reason.
    """

    status: str
    detail: str


@final
class Report(Mapping[str, Result]):
    """Results by the names of the checks; prints as a table.

    Example:
        >>> print(Report("Mask", {"adjoint": Result("passed", "relative error 2e-16")}))
        Mask: 1 passed
          passed  adjoint  relative error 2e-16
    """

    def __init__(self, subject: str, results: Mapping[str, Result]) -> None:
        self.subject, self._results = subject, dict(results)

    def __getitem__(self, name: str) -> Result:
        return self._results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def named(self, *statuses: str) -> list[str]:
        """Names of the checks with one of these statuses."""
        return [name for name, result in self.items() if result.status in statuses]

    def __str__(self) -> str:
        counts = {r.status: len(self.named(r.status)) for r in self._results.values()}
        wide, long = max(map(len, counts), default=0), max(map(len, self), default=0)
        lines = [f"  {r.status:<{wide}}  {name:<{long}}  {r.detail}" for name, r in self.items()]
        return "\n".join([f"{self.subject}: {', '.join(f'{n} {s}' for s, n in counts.items())}", *lines])

    __repr__ = __str__


def run(subject: object, checks: Mapping[str, Check], expected_failures: Mapping[str, str] | None) -> Report:
    """Run the checks and report.

    Raises:
        InputError: if a failure is expected of a check that does not exist.
        CheckError: if a check fails, or passes where a failure was expected.
    """
    expected = dict(expected_failures or {})
    unknown = sorted(set(expected) - set(checks))
    if unknown:
        raise InputError(
            "expected_failures",
            expected=f"names among {sorted(checks)}",
            got=unknown,
            fix="take them from the report",
        )
    report = Report(
        repr(subject), {name: _result(check, expected.get(name)) for name, check in checks.items()}
    )
    wrong = report.named("failed", "unexpected pass")
    if wrong:
        lines = [f"  {report[name].status}: {name}: {report[name].detail}" for name in wrong]
        message = f"{report.subject}: {len(wrong)} of {len(report)} checks went wrong"
        raise CheckError("\n".join([message, *lines]), report)
    return report


def _result(check: Check, expected: str | None) -> Result:
    try:
        detail = check()
    except SkippedError as reason:
        return Result("skipped", str(reason))
    except BrokenError as figures:
        found = str(figures)
    except Exception as error:
        # what is checked is foreign code: however it breaks, it has failed the check
        found = f"{type(error).__name__}: {error}"
    else:
        if expected is None:
            return Result("passed", detail)
        return Result("unexpected pass", f"{detail}; take it off the expected failures ({expected})")
    return (
        Result("failed", found) if expected is None else Result("expected failure", f"{expected} ({found})")
    )


# -- measures ----------------------------------------------------------------------------------------


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``|a - b| / max(|a|, |b|)`` over all values; 0 where both vanish, infinite where one is not finite."""
    a, b = a.detach().double(), b.detach().double()
    if a.shape != b.shape:
        raise BrokenError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ")
    if not bool((a.isfinite() & b.isfinite()).all()):
        return np.inf
    size = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / size if size else 0.0


def at_most(what: str, value: float, limit: float, hint: str = "") -> str:
    """The figure, or `BrokenError` if it exceeds the limit or is NaN."""
    text = f"{what} {value:.2g}"
    if not value <= limit:
        raise BrokenError(f"{text}, above {limit:.2g}{hint and '; ' + hint}")
    return text


def within(what: str, z: float, hint: str = "") -> str:
    """A z-score, or `BrokenError` if a right part would not show it in half a million checks."""
    text = f"{what} is {z:.1f} standard errors off"
    if not abs(z) <= LIMIT:
        raise BrokenError(f"{text}, beyond {LIMIT}{hint and '; ' + hint}")
    return text


def normals(seed: int, shape: tuple[int, ...], dtype: torch.dtype, purpose: str) -> torch.Tensor:
    """Standard normals ``(rows, ...)`` of a check."""
    return Streams(seed, range(shape[0]), purpose=f"testing {purpose}").normal(shape[1:], dtype=dtype)


def global_state() -> dict[str, Any]:
    """What nobody may change: torch's modes and every global generator."""
    numpy: Any = np.random.get_state(legacy=False)
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": (
            numpy["state"]["key"].tobytes(),
            numpy["state"]["pos"],
            numpy["has_gauss"],
            numpy["gauss"],
        ),
        "python's random state": random.getstate(),
    }


def leaves_alone(act: Callable[[], object]) -> str:
    """Check that a call leaves the global state as it found it."""
    before = global_state()
    act()
    after = global_state()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise BrokenError(f"changed {' and '.join(changed)}")
    return "untouched"
