"""Error and spread of forecasts against lead: does the spread grow as the error does.

For exact draws ``sqrt((M + 1) / M) * spread`` and the error of the mean of M draws agree at every lead, but for the finite
number of forecasts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.diagnostics.forecasts import verify
from sciddiff.plot.labels import chosen, label_of
from sciddiff.plot.style import BLUE, VERMILION, legend, own_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sciddiff.diagnostics.labels import AnyLabelled, Nan

__all__ = ["spread_skill"]


def spread_skill(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    variable: Hashable | None = None,
    lead: str = "lead",
    cases: Sequence[str] = ("case", "init_time", "origin"),
    nan: Nan = "raise",
    sample_dim: str = "sample",
    ax: Axes | None = None,
) -> Axes:
    """RMSE of the draws' mean, and their spread with its finite-ensemble factor, against lead.

    A spread below the error means draws that are too sure of themselves; above it, too wide ones.

    Args:
        draws: Dataset or DataArray with ``sample_dim`` and leads, at least 2 draws.
        truth: the same without ``sample_dim``.
        variable: which variable of a Dataset; may be left out if there is one.
        lead: the dim of leads, or a coordinate along another dim.
        cases: dims whose entries are forecasts of their own; see `sciddiff.diagnostics.verify`.
        nan: "raise", or "omit" to leave out points with NaN.
        sample_dim: the dim of the draws.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes.

    Raises:
        InputError: as `sciddiff.diagnostics.verify` does.

    Source: Fortin, Abaza, Anctil and Turcotte (2014), "Why should ensemble spread match the RMSE of the ensemble
    mean?".

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> x = np.random.default_rng(0).normal(size=(21, 50, 3))
        >>> draws = xr.DataArray(x[1:], dims=("sample", "origin", "lead"), coords={"lead": [1, 2, 3]})
        >>> ax = spread_skill(draws, draws[0].copy(data=x[0]))
        >>> [line.get_label() for line in ax.get_lines()]
        ['error of the mean', 'spread']
        >>> plt.close(ax.figure)
    """
    x, y = chosen(draws, truth, variable, sample_dim)
    table = verify(x, y, lead=lead, cases=cases, nan=nan, sample_dim=sample_dim)
    m = x.sizes[sample_dim]
    at = table.index.get_level_values(lead)
    ax = own_axes((4.0, 2.8)) if ax is None else ax
    style: dict[str, Any] = {"marker": "o", "ms": 3.5, "lw": 1.4}
    handles = ax.plot(at, table["rmse"], color=VERMILION, label="error of the mean", **style)
    spread = table["spread"] * np.sqrt((m + 1) / m)
    handles += ax.plot(at, spread, color=BLUE, ls="--", label="spread", **style)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(lead)
    ax.set_ylabel(label_of(x))
    legend(ax, list(handles))
    return ax
