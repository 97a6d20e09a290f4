"""Where the windows of a prior are laid along a series: which steps each is given, and which it adds to the path.

A window is given the steps of the path before ``known`` and what was observed behind; of its new steps those before
``kept`` are kept. Where the law of a window changes along it, windows begin in phase: a multiple of the period apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from sciddiff.assimilation.series import shown_time
from sciddiff.assimilation.steps import Labels, Steps
from sciddiff.errors import InputError
from sciddiff.posterior import check_count
from sciddiff.priors import Prior
from sciddiff.priors.composed import axis_of

__all__ = ["Window", "own_window", "phase", "plan_again", "plan_ahead", "plan_along"]


@final
@dataclass(frozen=True)
class Window:
    """A window from step ``start``; its steps from ``known`` up to ``kept`` are drawn and kept.

    ``between`` says that the path behind ``kept`` is known too: the steps are drawn anew between what there is.
    """

    start: int
    known: int
    kept: int
    between: bool = False


def plan_ahead(
    length: int,
    seen: tuple[int, int],
    last: int,
    phase: tuple[int, int],
    context: int | None,
    *,
    within: bool = False,
) -> list[Window]:
    """Windows from the history, whose values lie from step ``seen[0]`` to ``seen[1]``, to step ``last``.

    The first ends at the last value, or begins with the first where they are fewer than a window has. It and those that
    follow lie where they do at any other ``last``; but ``within`` lays none beyond that step, where nothing is known.
    """
    offset, period = phase

    def below(step: int) -> int:
        return step - (step - offset) % period

    def above(step: int) -> int:
        return step + (offset - step) % period

    held = min(length // 2, length - period) if context is None else _context(context, length, period)
    final = above(last - length + 1)
    start = max(above(seen[1] - length + 1), below(seen[0]))
    start = min(start, final) if within else start
    windows = [Window(start, start, start + length)]
    while (known := windows[-1].kept) <= last:
        if held < 1:
            raise InputError(
                "period",
                expected=f"less than the window's {length} steps, for a context",
                got=period,
                fix="use a prior on longer windows",
            )
        start = below(known - held)
        start = min(start, final) if within else start
        windows.append(Window(start, known, start + length))
    return windows


def plan_along(
    length: int, seen: np.ndarray, axis: Steps | Labels, phase: tuple[int, int], context: int | None
) -> list[Window]:
    """Windows over a series that begins at step 0, each cut where observations follow in the same window."""
    offset, period = phase

    def aligned(step: int) -> int:
        return step - (step - offset) % period

    def behind(known: int, start: int) -> np.ndarray:
        """Steps with observations that the window has behind what is known."""
        low = max(known + 1, 0)
        return low + np.flatnonzero(seen[low : start + length])

    many = max(1, length // 4) if context is None else _context(context, length, period)
    windows, total = list[Window](), len(seen)
    known = first = aligned(0)
    starts = [first]
    while starts[0] + length < total:
        # the first start with enough observations behind the path, else the end, else the one with the most
        enough = [s for s in starts if len(behind(known, s)) >= many or s + length >= total]
        start = enough[0] if enough else max(starts, key=lambda s: len(behind(known, s)))
        found = behind(known, start)
        if start + length >= total:
            starts = [start]
            break
        if len(found) == 0:
            lost = axis.times(max(known + 1, 0), start + length - 1)
            raise InputError(
                "series",
                expected=f"gaps that fit into the prior's window of {length} steps with a value behind them",
                got=f"no value from {shown_time(lost[0])} to {shown_time(lost[-1])}",
                fix="use a prior on longer windows, or impute the parts on either side by themselves",
            )
        cut = int(found[-min(many, len(found))])
        windows.append(Window(start, known, cut))
        known = cut
        # from the most of the path to one step of it
        starts = sorted({max(first, aligned(s)) for s in range(known - many, known)})
    # the last one ends where the series does, if that holds more of the path
    final = total - length
    final = max(first, min(starts[0], final + (offset - final) % period))
    return [*windows, Window(final, known, total)]


def plan_again(length: int, total: int, phase: tuple[int, int], sweeps: int) -> list[Window]:
    """Sweeps to and fro along a path of ``total`` steps, that draw the middle of each window anew given both its sides.

    Windows overlap by half of what they draw. The path begins at the last step in phase up to 0.
    """
    offset, period = phase
    first = -((-offset) % period)
    final = max(first, total - length)
    final += (offset - final) % period
    if final == first or sweeps == 0:
        return []
    side = max(1, length // 4)
    stride = max(1, (length - 2 * side) // 2 // period) * period
    starts = [*range(first, final, stride), final]
    forth = [
        Window(s, s if s == first else s + side, s + length - (0 if s == final else side), True)
        for s in starts
    ]
    return [w for k in range(sweeps) for w in (forth if k % 2 else forth[::-1])]


def _context(context: int, length: int, period: int) -> int:
    if check_count("context", context) > length - period:
        raise InputError(
            "context",
            expected=f"at most {length - period} steps of the window's {length}",
            got=context,
            fix="leave it out to take the default",
        )
    return int(context)


def own_window(prior: Prior, axis: Steps, period: int | None, last: int) -> list[Window]:
    """The prior's own window, the only one where its mean varies and no period is known; none elsewhere.

    Raises:
        InputError: if the series, from step 0 to ``last``, does not lie in it.
    """
    labels = prior.space.coords.get("time")
    if period is not None or prior.season is not None or labels is None or not _rhythmic(prior):
        return []
    try:
        start = int(axis.count(labels[:1], "period")[0])
    except InputError:
        start = 1
    if not start <= 0 <= last < start + len(labels):
        raise InputError(
            "period",
            expected="the steps after which the prior's law repeats, since its mean varies along the window",
            got=None,
            fix="pass period=, such as 7 for daily data with a weekly rhythm, 12 for monthly data, or 1 where the law is "
            "the same wherever the window begins; or train on departures from the calendar months' means, with season=",
        )
    return [Window(start, start, start + len(labels))]


def phase(prior: Prior, axis: Steps, period: int | None) -> tuple[int, int]:
    """A step at which a window may begin, and the steps after which it may begin again."""
    period = 1 if period is None else check_count("period", period)
    labels = prior.space.coords.get("time")
    if prior.season is not None or period == 1 or labels is None:
        return 0, 1
    return int(axis.count(labels[:1], "period")[0]), period


def _rhythmic(prior: Prior) -> bool:
    """Whether the prior's mean varies along the window, beyond 1e-6 of its scale."""
    units, shape, axis = prior.normalisation, prior.space.shape, axis_of(prior.space, "time")
    mean = torch.broadcast_to(units.mean.double().cpu(), shape)
    scale = torch.broadcast_to(units.scale.double().cpu(), shape)
    return bool((mean.amax(axis) - mean.amin(axis) > 1e-6 * scale.amin(axis)).any())
