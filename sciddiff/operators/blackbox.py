"""Simulators of which nothing is known but their output: numpy in, numpy out, one member at a time.

Members run serially, or through any executor in the manner of `concurrent.futures`: threads, processes,
Dask's ``client.get_executor()``, ``mpi4py.futures``. A member that raises, returns values that are not
finite, takes too long or takes its worker down is tried again, alone; the others are not touched.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError, SciddiffError
from sciddiff.operators.base import Operator
from sciddiff.spaces import Space

__all__ = ["BlackBox", "Failure", "black_box"]

Function = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Failure:
    """One member that failed twice: the call (counted from 0), its row, and what went wrong."""

    call: int
    member: int
    error: str


def black_box(
    function: Function,
    domain: Space,
    codomain: Space,
    *,
    executor: Any = None,
    on_error: str = "raise",
    timeout: float | None = None,
) -> BlackBox:
    """A simulator without derivatives as an operator; see `BlackBox`.

    Args:
        function: maps one state, a numpy array of ``domain.shape``, to one of ``codomain.shape`` (or labelled
            xarray). For processes it has to be importable by name.
        domain: the space of states.
        codomain: the space of observations.
        executor: None to run members one after the other; an object with ``submit`` or ``map``, such as a Dask
            client or its executor; or a function without arguments that makes one, which is also called to
            replace a pool that died or hung. A Dask worker in which a member hangs is restarted by its nanny.
        on_error: what to do with a member that failed twice: "raise"; "nan" gives it NaN; "drop" gives it NaN
            too, and asks methods to go on without it. `BlackBox.failures` lists them.
        timeout: seconds to wait for a member once those before it are done; None for no limit. With Dask the time
            in which no worker has it does not count.

    Raises:
        InputError: on an unknown ``on_error`` or an unusable executor, and, when applied, on a result of
            another shape with ``on_error="raise"``.
        SciddiffError: when applied, if a member failed twice with ``on_error="raise"``, if all failed, or if the
            pool died and there is no function to make another.

    Example:
        >>> peak = black_box(lambda x: x.max(keepdims=True), Space({"t": 3}), Space({"detector": 1}))
        >>> peak.apply(torch.tensor([[1.0, 5.0, 2.0]])).tolist(), peak.differentiable
        ([[5.0]], False)
    """
    return BlackBox(function, domain, codomain, executor, on_error, timeout)


@final
class BlackBox(Operator):
    """A numpy simulator evaluated member by member; made by `black_box`.

    Attributes:
        on_error: "raise", "nan" or "drop".
        failures: every member that failed twice, in the order of calls.
    """

    differentiable = False

    def __init__(
        self,
        function: Function,
        domain: Space,
        codomain: Space,
        executor: Any,
        on_error: str,
        timeout: float | None,
    ) -> None:
        if not callable(function):
            raise InputError(
                "function", expected="a function of numpy arrays", got=type(function).__name__, fix="pass one"
            )
        if on_error not in ("raise", "nan", "drop"):
            raise InputError(
                "on_error", expected="'raise', 'nan' or 'drop'", got=repr(on_error), fix="choose one of them"
            )
        if not (executor is None or callable(executor) or _usable(executor)):
            raise InputError(
                "executor",
                expected="None, an executor with submit or map, or a function that makes one",
                got=type(executor).__name__,
                fix="pass for example concurrent.futures.ThreadPoolExecutor()",
            )
        if timeout is not None and not timeout > 0:
            raise InputError("timeout", expected="positive seconds, or None", got=timeout, fix="pass 60.0")
        self.domain, self.codomain, self.on_error = domain, codomain, on_error
        self.failures: list[Failure] = []
        self._function, self._timeout, self._calls = function, timeout, 0
        self._pool = None if executor is None else _Pool(executor)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate every row; no gradient flows back."""
        rows = [np.array(row) for row in x.detach().cpu().numpy()]
        tried = [self._read(r) for r in self._run(rows)]
        suspects = [i for i, (_, error) in enumerate(tried) if isinstance(error, _DiedError)]
        for i, (value, error) in enumerate(tried):
            if value is None and not isinstance(error, (InputError, _DiedError)):
                tried[i] = self._read(self._run([rows[i]])[0])
        for i, answer in self._separate(rows, suspects):
            tried[i] = answer
        call, self._calls = self._calls, self._calls + 1
        failed = [(i, e) for i, (value, e) in enumerate(tried) if value is None]
        if failed and (self.on_error == "raise" or len(failed) == len(rows)):
            raise _report(failed, len(rows), self.on_error)
        self.failures += [Failure(call, i, str(e)) for i, e in failed]
        out = torch.full((len(rows), *self.codomain.shape), float("nan"), dtype=torch.float64)
        for i, (value, _) in enumerate(tried):
            if value is not None:
                out[i] = value
        return out.to(x)

    def _separate(self, rows: Sequence[np.ndarray], suspects: Sequence[int]) -> list[tuple[int, _Tried]]:
        """Run members whose pool died again, by halves: who takes a worker down ends up alone."""
        out: list[tuple[int, _Tried]] = []
        half = (len(suspects) + 1) // 2
        for part in (suspects[:half], suspects[half:]):
            answers = [
                (i, self._read(a)) for i, a in zip(part, self._run([rows[i] for i in part]), strict=True)
            ]
            again = [i for i, (_, error) in answers if isinstance(error, _DiedError) and len(part) > 1]
            out += [(i, answer) for i, answer in answers if i not in again]
            out += self._separate(rows, again) if again else []
        return out

    def _run(self, rows: Sequence[np.ndarray]) -> list[_Answer]:
        if self._pool is None:
            return [_guarded(self._function, row) for row in rows]
        return self._pool.run(self._function, rows, self._timeout)

    def _read(self, answer: _Answer) -> _Tried:
        """The member's values, or what is wrong with them; a wrong shape is an `InputError`."""
        result, error = answer
        if error is not None:
            return None, _DiedError(error) if error == _DIED else SciddiffError(error)
        try:
            return self.codomain.tensor(result, argument="function's result"), None
        except InputError as wrong:
            # a wrong shape is a mistake in the code, values that are not finite may be a solver's bad luck
            return None, SciddiffError(wrong.got) if wrong.expected == "finite numbers" else wrong


_Answer = tuple[Any, str | None]
"""What a member returned, and how it failed."""
_Tried = tuple[torch.Tensor | None, Exception | None]
"""Its values, or what is wrong with them."""


class _DiedError(SciddiffError):
    """The worker died, perhaps of another member."""


def _guarded(function: Function, row: np.ndarray) -> _Answer:
    """Run in the worker: errors come back as words, since not every exception can be pickled."""
    try:
        return function(row), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


class _Pool:
    """An executor, and how to make the next one if it dies."""

    def __init__(self, executor: Any) -> None:
        self._make = None if _usable(executor) else executor
        self._live: Any = executor if _usable(executor) else None

    def run(self, function: Function, rows: Sequence[np.ndarray], timeout: float | None) -> list[_Answer]:
        """One answer per row, in order."""
        if not rows:
            return []
        if self._live is None and self._make is not None:
            self._live = self._make()
        client = _dask(self._live)
        if client is not None:
            return _on_dask(client, function, rows, timeout)
        if not hasattr(self._live, "submit"):
            return list(self._live.map(_Guard(function), rows))
        try:
            futures = [self._live.submit(_guarded, function, row) for row in rows]
        except (
            BrokenExecutor,
            RuntimeError,
            OSError,
        ) as error:  # OSError: the pool died as it was handed work
            if self._make is None:
                raise SciddiffError(
                    f"{type(error).__name__}: {error} To fix it: pass as executor a function that makes a "
                    "pool, such as lambda: ProcessPoolExecutor(8); it can be called again when a pool dies."
                ) from error
            self._abandon()
            return [(None, _DIED)] * len(rows)
        answers = [_wait(future, timeout) for future in futures]
        for future, (_, wrong) in zip(futures, answers, strict=True):
            if wrong == _LATE:
                future.cancel()
        if any(a[1] in (_DIED, _LATE) for a in answers):
            self._abandon()
        return answers

    def _abandon(self) -> None:
        """Leave a dead or hung pool behind; only one that was made here is ended."""
        if self._make is None:
            return
        pool, self._live = self._live, None
        # a hung worker would be waited for at the end of the program
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.kill()
        if hasattr(pool, "shutdown"):
            pool.shutdown(wait=False, cancel_futures=True)


_DIED, _LATE = "the worker died", "no result in time"
_SPARE = 120.0
"""Seconds that a batch of members may wait for Dask to replace workers, which do not count as theirs."""


def _wait(future: Any, timeout: float | None) -> _Answer:
    try:
        answer: _Answer = future.result(timeout)
        return answer
    except (BrokenExecutor, CancelledError):
        return None, _DIED
    except FutureTimeoutError:
        return None, _LATE
    except Exception as error:  # what the executor itself raises, such as a function that cannot be pickled
        # Dask's word for a task whose workers died a few times
        died = type(error).__name__ == "KilledWorker"
        return None, _DIED if died else f"{type(error).__name__}: {error}"


def _on_dask(
    client: Any, function: Function, rows: Sequence[np.ndarray], timeout: float | None
) -> list[_Answer]:
    """One answer per row; a worker in which a member hangs is killed, and its nanny starts another."""
    # its tasks are pure by default, and a second try would be given the answer of the first
    tasks = [client.submit(_guarded, function, row, pure=False) for row in rows]
    answers: dict[int, _Answer] = {}
    spare = _SPARE
    for i, task in enumerate(tasks):
        left = math.inf if timeout is None else timeout
        while i not in answers:
            tick = min(left, 1.0)
            answer = _wait(task, tick)
            if answer[1] != _LATE:
                answers[i] = answer
                continue
            busy = [worker for worker, keys in client.processing().items() if task.key in keys]
            if busy or spare <= 0:
                left -= tick
            else:
                spare -= tick
            if left <= 0:
                answers[i] = answer
                # what is ready lies on the workers, and would be lost with them
                ready = [j for j in range(i + 1, len(tasks)) if tasks[j].status == "finished"]
                answers |= {j: _wait(tasks[j], timeout) for j in ready}
                task.cancel()
                # a worker without a nanny cannot be replaced, and stays busy
                with suppress(Exception):
                    if busy:
                        client.run(_kill, workers=busy, nanny=True)
    return [answers[i] for i in range(len(tasks))]


def _dask(executor: Any) -> Any:
    """The Dask client that an executor stands for, None for others."""
    client = getattr(executor, "_client", executor)
    return client if hasattr(client, "restart_workers") else None


def _kill(dask_worker: Any) -> None:
    """Run by a nanny: a hung worker does not answer for itself."""
    os.kill(dask_worker.pid, signal.SIGKILL)


@dataclass(frozen=True)
class _Guard:
    """`_guarded` with its function, for executors that only map."""

    function: Function

    def __call__(self, row: np.ndarray) -> _Answer:
        return _guarded(self.function, row)


def _usable(executor: object) -> bool:
    return not isinstance(executor, type) and (hasattr(executor, "submit") or hasattr(executor, "map"))


def _report(failed: Sequence[tuple[int, Exception | None]], rows: int, on_error: str) -> Exception:
    member, error = failed[0]
    if isinstance(error, InputError):
        return error
    advice = (
        "check the function on one state"
        if len(failed) == rows
        else "pass on_error='drop' to go on without it"
    )
    return SciddiffError(
        f"{len(failed)} of {rows} members failed twice, the first of them number {member}: {error}. "
        f"To fix it: {advice}."
    )
