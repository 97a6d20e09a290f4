"""What a benchmark problem is, and what one run of it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from sciddiff.html import card

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray as xr

    from sciddiff.methods.base import Method
    from sciddiff.noise import Noise
    from sciddiff.operators.base import Operator
    from sciddiff.posterior import Posterior
    from sciddiff.priors.base import Prior
    from sciddiff.spaces import Space

__all__ = ["Figure", "Metric", "Problem", "Result"]


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A reproducible inverse problem, ready to sample.

    Attributes:
        name: its name in the catalog.
        title: one line for people.
        prior: the prior.
        operator: the forward operator.
        noise: the noise.
        truth: the state that made ``y``, labelled.
        y: the observation, labelled.
        reference: exact or trusted statistics to compare with, labelled ("mean", "sd", ...), or None.
        method: the method that `sciddiff run` uses; None for the posterior's default.
        batch_dim: name of the dim of ``y`` that counts observations; None for one.
        missing: "mask" where NaN in ``y`` means missing.
    """

    name: str
    title: str
    prior: Prior
    operator: Operator
    noise: Noise
    truth: xr.Dataset
    y: xr.Dataset
    reference: Mapping[str, xr.Dataset] | None = None
    method: Method | None = None
    batch_dim: str | None = None
    missing: str = "refuse"

    @property
    def space(self) -> Space:
        """The space of states."""
        return self.prior.space

    @property
    def posterior(self) -> Posterior:
        """The prior, given the observation."""
        return self.prior.given(
            self.y, self.operator, self.noise, missing=self.missing, batch_dim=self.batch_dim
        )

    def __repr__(self) -> str:
        return f"Problem({self.name}: {self.title})"

    def _repr_html_(self) -> str:
        parts = {"prior": self.prior, "operator": self.operator, "noise": self.noise}
        data = {
            "truth": self.truth,
            "y": self.y,
            **{f"reference {k}": v for k, v in (self.reference or {}).items()},
        }
        sizes = {name: f"{', '.join(map(str, d.data_vars))} on {dict(d.sizes)}" for name, d in data.items()}
        return card(f"Problem {self.name}: {self.title}", {**parts, **sizes})


@final
@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        value: the number.
        units: its units; "1" for a pure number.
        reference: the value to compare with.
        source: where the reference comes from.
        label: words for people, such as "CRPS of the network prior"; empty for those of the metric's name.
        better: "lower", "higher" or "nearer" to the reference; empty where none is better.
    """

    value: float
    units: str = "1"
    reference: float | None = None
    source: str = ""
    label: str = ""
    better: str = ""


@final
@dataclass(frozen=True)
class Figure:
    """One picture of the report."""

    figure: matplotlib.figure.Figure
    caption: str


@final
@dataclass(frozen=True, eq=False)
class Result:
    """What ``run(problem, ...)`` of a problem's folder returns.

    Attributes:
        metrics: name -> `Metric`, flat.
        draws: the draws, kept as netCDF.
        figures: name -> `Figure`, in the order of the report; the first one is the problem's picture.
        tables: title -> rows of the comparison, each row a mapping column -> text or number.
        notes: sentences for the report, such as what a comparison does not show.
        settings: seeds and sizes, as plain values.
        headline: names of up to three metrics that tell most; empty for the first three.
    """

    metrics: Mapping[str, Metric]
    draws: xr.Dataset
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    headline: Sequence[str] = ()
