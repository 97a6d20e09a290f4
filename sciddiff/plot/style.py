"""What all pictures look like: colours that colour-blind readers tell apart, new axes and the legend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILION", "legend", "own_axes"]

# Okabe and Ito's palette, without its yellow and black
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY = "0.85"


def own_axes(size: tuple[float, float]) -> Axes:
    """The axes of a new figure, ``size`` in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def legend(ax: Axes, handles: list[Artist]) -> None:
    """One row above the axes, where it hides nothing."""
    space: dict[str, Any] = {"handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.2}
    space |= {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "ncols": len(handles)}
    ax.legend(handles=handles, loc="lower left", frameon=False, fontsize="small", **space)
