"""Training curves: does the loss still fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sciddiff.errors import InputError
from sciddiff.plot.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, own_axes

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

    from sciddiff.diagnostics.labels import Array

    History: TypeAlias = "xr.Dataset | pd.DataFrame | Mapping[str, Sequence[float]] | Sequence[float]"

__all__ = ["loss"]


def loss(history: History, *, columns: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Training curves: every value in pale, a running median in full colour where there are many.

    Args:
        history: one curve, or several by name: a sequence, a mapping of sequences, a DataFrame or a Dataset
            of one-dimensional variables. "step" or "epoch" (a key, a column, the index or a coord) is the
            horizontal axis; without it values are counted from 1.
        columns: names of the curves to draw; None draws "training" and "validation", or all where neither is there.
        ax: where to draw; None makes a figure. The vertical axis is logarithmic if all values are positive.

    Returns:
        The Axes.

    Raises:
        InputError: no values, curves that are not as long as their steps, or columns that are not there.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = loss({"step": [10, 20, 30], "training": [1.0, 0.5, 0.4], "validation": [1.1, 0.7, 0.6]})
        >>> ax.get_xlabel(), ax.get_yscale()
        ('step', 'log')
        >>> plt.close(ax.figure)
    """
    from matplotlib.ticker import MaxNLocator

    label, steps, curves = _curves(history)
    curves = _chosen(curves, columns)
    ax = own_axes((4.0, 2.6)) if ax is None else ax
    for (name, values), color in zip(curves.items(), _cycle(len(curves)), strict=True):
        known = ~np.isnan(values)
        where, values = steps[known], values[known]
        many = len(values) > 200
        ax.plot(
            where,
            values,
            color=color,
            lw=0.6 if many else 1.3,
            alpha=0.3 if many else 1,
            label=None if many else name,
        )
        if many:
            ax.plot(where, _running_median(values, len(values) // 50), color=color, lw=1.3, label=name)
    low, high = min(np.nanmin(v) for v in curves.values()), max(np.nanmax(v) for v in curves.values())
    if low > 0:
        _log_scale(ax, few_decades=high < 100 * low)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(label)
    ax.set_ylabel("loss")
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _chosen(curves: dict[str, Array], columns: Sequence[str] | None) -> dict[str, Array]:
    if columns is None:
        return {name: v for name, v in curves.items() if name in ("training", "validation")} or curves
    names = [columns] if isinstance(columns, str) else list(columns)
    if not names or any(name not in curves for name in names):
        raise InputError("columns", expected=f"names of {', '.join(curves)}", got=columns, fix="None")
    return {name: curves[name] for name in names}


def _log_scale(ax: Axes, *, few_decades: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    if few_decades:
        # Powers of ten alone would leave one tick or none.
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _curves(history: Any) -> tuple[str, Array, dict[str, Array]]:
    """Name and values of the horizontal axis, and the curves by name."""
    import pandas as pd
    import xarray as xr

    if isinstance(history, xr.Dataset):
        history = history.to_dataframe()
    if isinstance(history, pd.DataFrame):
        index = {} if history.index.name is None else {str(history.index.name): history.index.to_numpy()}
        history = index | {str(c): history[c].to_numpy() for c in history.columns}
    if not isinstance(history, Mapping):
        history = {"loss": history}
    try:
        curves = {str(name): np.asarray(values, dtype=np.float64) for name, values in history.items()}
    except (TypeError, ValueError):
        curves = {}
    label = next((name for name in ("step", "epoch") if name in curves), "step")
    steps = curves.pop(label, None)
    curves = {name: values for name, values in curves.items() if name not in ("step", "epoch")}
    sizes = {values.shape for values in curves.values()}
    if steps is None and len(sizes) == 1 and next(iter(sizes)):
        steps = np.arange(1.0, 1 + next(iter(sizes))[0])
    if steps is None or not curves or sizes != {steps.shape} or steps.ndim != 1 or not steps.size:
        raise InputError(
            "history",
            expected="curves of one length, at least 1",
            got=f"shapes { {name: values.shape for name, values in curves.items()} }",
            fix="pass for example {'step': steps, 'training': values}",
        )
    return label, steps, curves


def _running_median(values: Array, width: int) -> Array:
    half = max(width // 2, 1)
    padded = np.pad(values, half, mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1))


def _cycle(n: int) -> list[str]:
    colours = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY]
    return [colours[i % len(colours)] for i in range(n)]
