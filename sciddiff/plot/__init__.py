"""Pictures of labelled draws: fields, fans, and calibration against a truth.

Each function draws into the axes it is given, or into one new figure, and returns those axes; nothing is
shown, saved or set globally. Fonts and sizes are the user's own (rcParams); colours are safe for
colour-blind readers (viridis and cividis; Okabe and Ito, 2008, "Color universal design").

The band in the calibration plots says how far exact draws would stray by chance. If draws and truth are
exchangeable, each draw could have been the truth, so the band is what the figure does with each draw in
the truth's place: ``band="exchange"``, the default. It knows that neighbouring points of a field err
together. ``band="binomial"`` takes every point for an independent trial; it is right for many independent
cases and far too narrow for the points of one smooth field.
"""

from __future__ import annotations

from sciddiff.plot.calibration import coverage, rank_histogram
from sciddiff.plot.ecdf import rank_ecdf
from sciddiff.plot.forecasts import spread_skill
from sciddiff.plot.panels import fields
from sciddiff.plot.series import fan
from sciddiff.plot.training import loss

__all__ = ["coverage", "fan", "fields", "loss", "rank_ecdf", "rank_histogram", "spread_skill"]
