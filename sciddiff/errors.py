"""What goes wrong, in words that name what was given, what was expected and what to do."""

from __future__ import annotations

__all__ = [
    "ConvergenceError",
    "DivergenceError",
    "InputError",
    "MethodError",
    "MissingDependencyError",
    "SciddiffError",
]


class SciddiffError(Exception):
    """Base of every error that sciddiff raises on purpose."""


class InputError(SciddiffError, ValueError):
    """An argument is not what it has to be; raised before any compute.

    Args:
        argument: the name of the argument, as the caller wrote it.
        expected: what would have been accepted.
        got: what came.
        fix: what to do.

    Example:
        >>> str(InputError("seed", expected="an int", got="'a'", fix="pass seed=0"))
        "`seed`: expected an int, got 'a'. To fix it: pass seed=0."
    """

    def __init__(self, argument: str, *, expected: str, got: object, fix: str) -> None:
        self.argument, self.expected, self.got, self.fix = argument, expected, str(got), fix
        super().__init__(f"`{argument}`: expected {expected}, got {got}. To fix it: {fix}.")


class MethodError(InputError):
    """A method does not fit the posterior; the message names those that do."""


class MissingDependencyError(SciddiffError, ImportError):
    """An optional package is missing; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs `{package}`: run  pip install "sciddiff[{extra}]"')


class ConvergenceError(SciddiffError, RuntimeError):
    """An iterative solve did not reach its tolerance."""


class DivergenceError(SciddiffError, RuntimeError):
    """A sampler's state became non-finite in mid-run."""
