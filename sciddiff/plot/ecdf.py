"""Results of `sbc` and `tarp` as curves: how far the ranks' distribution function is from that of uniform ranks.

``(share of cases with rank below i) - i / (L + 1)`` against ``i / (L + 1)``, with the band that holds the whole curve
of exact draws with a chance of ``level``. For `tarp` the curve is the expected coverage less its level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.diagnostics.calibration import uniformity_band
from sciddiff.errors import InputError
from sciddiff.plot.style import BLUE, GREY, VERMILION, legend, own_axes

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["rank_ecdf"]


def rank_ecdf(result: xr.Dataset, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Distribution functions of the ranks of a test of calibration, less the uniform one, with the band of chance.

    Ranks of truths that are too low, so draws that are too high, lie above zero; draws too narrow make an S that
    first goes up, draws too wide one that first goes down.

    Args:
        result: of `sciddiff.diagnostics.sbc` or `sciddiff.diagnostics.tarp`.
        level: chance that one exact quantity stays in the band everywhere, in (0, 1). Of many quantities some leave it.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. Quantities that leave the band are red.

    Raises:
        InputError: another kind of result, or a level outside (0, 1).

    Source: Sailynoja, Burkner and Vehtari (2022), "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison", section 2.2.

    Example:
        >>> import numpy as np, xarray as xr, matplotlib.pyplot as plt
        >>> from sciddiff.diagnostics import sbc
        >>> x = np.random.default_rng(0).normal(size=(20, 100, 2))
        >>> result = sbc(xr.DataArray(x[1:], dims=("sample", "case", "x")), xr.DataArray(x[0], dims=("case", "x")))
        >>> ax = rank_ecdf(result)
        >>> ax.get_xlabel()
        'rank among 19 draws, relative'
        >>> plt.close(ax.figure)
    """
    if not hasattr(result, "attrs") or "rank" not in result or not {"draws", "cases"} <= set(result.attrs):
        raise InputError(
            "result",
            expected="a result of sbc or tarp",
            got=type(result).__name__,
            fix="plot.rank_ecdf(sbc(...))",
        )
    draws, cases = int(result.attrs["draws"]), int(result.attrs["cases"])
    z, low, high = uniformity_band(cases, draws, level)
    ax = own_axes((3.4, 2.6)) if ax is None else ax
    edges: dict[str, Any] = {"color": GREY, "lw": 0, "label": f"exact draws, {100 * level:g} %"}
    handles: list[Artist] = [ax.fill_between(z, low / cases - z, high / cases - z, **edges)]
    ax.axhline(0.0, color="black", lw=0.8)
    places = np.rint(z * (draws + 1)).astype(int)
    for ranks in np.atleast_2d(result["rank"].values):
        count = np.searchsorted(np.sort(ranks), places, side="left")
        out = bool(((count < low) | (count > high)).any())
        ax.plot(z, count / cases - z, color=VERMILION if out else BLUE, lw=1.0, zorder=3 if out else 2)
    ax.set(xlim=(0, 1), xlabel=f"rank among {draws} draws, relative", ylabel="ECDF - uniform")
    legend(ax, handles)
    return ax
