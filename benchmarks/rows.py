"""The rows of the table of fidelity: a label, a method with its settings, and the problems that it is tried on.

A row that does not fit a problem is left out there; one that raises is written down as raising.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sciddiff import methods
from sciddiff.methods import Method
from sciddiff.methods.search import SCG, BestOfN, NoiseSearch
from sciddiff.methods.tree import TreeSampling
from sciddiff.methods.zeroth_order import DPG, GSG
from sciddiff.solvers import Ancestral, DPMSolver, Moments, Solver
from sciddiff.testing import ExactProblem, exact, trusted

__all__ = ["CORE", "PROBLEMS", "ROWS", "Row"]

PROBLEMS: dict[str, Callable[[int], ExactProblem]] = {
    "vector": partial(exact.gaussian, "vector"),
    "series": partial(exact.gaussian, "series"),
    "grid": partial(exact.gaussian, "grid"),
    "graph": partial(exact.gaussian, "graph"),
    "sensors": exact.point_sensors,
    "state space": exact.state_space,
    "mixture, 1 datum": partial(exact.mixture, data=1),
    "mixture, 2 data": partial(exact.mixture, data=2),
    "mixture, 4 data": partial(exact.mixture, data=4),
    "mixture in 80 d, 1 datum": partial(exact.mixture, data=1, d=80),
    "mixture in 80 d, 2 data": partial(exact.mixture, data=2, d=80),
    "mixture in 80 d, 4 data": partial(exact.mixture, data=4, d=80),
    "Laplace walk": partial(trusted.increments, "laplace"),
    "Bernoulli-Laplace walk": partial(trusted.increments, "bernoulli-laplace"),
    "curved mixture": trusted.curved,
}
ALL = tuple(PROBLEMS)
MIXTURES = tuple(name for name in ALL if name.startswith("mixture,"))
WIDE = tuple(name for name in ALL if "80 d" in name)
WALKS = ("Laplace walk", "Bernoulli-Laplace walk")
# one linear Gaussian problem, and every kind that is not Gaussian: what costly and minor rows are tried on
# few dimensions, for what searches
SMALL = ("vector", "mixture, 2 data", "curved mixture")
PLAIN = ("series", "mixture, 2 data", "Laplace walk")
LINES = ("series", "Laplace walk")
CORE = ("series", *MIXTURES, "Laplace walk", "curved mixture")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        label: what it is called there.
        method: the sampler. None: exact draws or, where there is a solver, the solution's own denoiser.
        solver: what integrates it; None takes the default.
        on: names of the problems.
        hidden: whether the prior tells nothing but its denoiser.
    """

    label: str
    method: Method | None
    solver: Solver | None = None
    on: tuple[str, ...] = CORE
    hidden: bool = False

    @property
    def settings(self) -> str:
        """All that decides the draws, but the problem and the seed."""
        told = "hidden prior, " if self.hidden else ""
        return f"{told}{self.method!r}, {self.solver!r}"

    @property
    def family(self) -> str:
        """The class of the method."""
        return "control" if self.method is None else type(self.method).__name__


ROWS: list[Row] = [
    Row("exact draws", None, on=ALL),
    Row("the exact score, DPMSolver, 32 steps", None, DPMSolver(steps=32), on=(*MIXTURES, *WIDE)),
    Row("MMPS (default)", methods.MMPS(), on=ALL),
    Row("MMPS, Moments, 4 steps", methods.MMPS(), Moments(steps=4), on=("series",)),
    *(Row(f"MMPS, DPMSolver, {n} steps", methods.MMPS(), DPMSolver(steps=n)) for n in (8, 32)),
    Row("MMPS, DPMSolver, 64 steps", methods.MMPS(), DPMSolver(steps=64), on=LINES),
    Row("MMPS, Ancestral, 64 steps", methods.MMPS(), Ancestral(steps=64), on=LINES),
    Row("MMPS, Ancestral, 100 steps", methods.MMPS(), Ancestral(steps=100), on=MIXTURES),
    Row("MMPS, Ancestral, 256 steps", methods.MMPS(), Ancestral(steps=256), on=("series",)),
    Row("MMPS by VJPs, DPMSolver, 32 steps", methods.MMPS(), DPMSolver(steps=32), on=("series",), hidden=True),
    Row(
        "MMPS, one CG iteration, Ancestral, 100 steps",
        methods.MMPS("guarded", max_iterations=1), Ancestral(steps=100), on=LINES, hidden=True,
    ),
    Row('MMPS, "gaussian", Moments', methods.MMPS("gaussian"), on=(*CORE, *WALKS[1:], *WIDE)),
    *(
        Row(f'MMPS, "scalar", gamma {g} (SDA), Ancestral, 100 steps', methods.MMPS("scalar", gamma=g), Ancestral(steps=100))
        for g in (0.03, 1.0)
    ),
    Row("DPS, zeta 0.1, 1000 steps", methods.DPS(zeta=0.1), on=("series",)),
    Row("DPS, zeta 0.3, 1000 steps (default)", methods.DPS(), on=PLAIN),
    Row("DPS, zeta 1, 1000 steps", methods.DPS(zeta=1.0), on=("series",)),
    *(
        Row(f"DPS, zeta {z:g}, 256 steps, VE", methods.DPS(zeta=z, steps=256, path="ve"), on=LINES)
        for z in (0.3, 1.0)
    ),
    *(
        Row(f"DPSDenoiser, zeta {z:g}, Ancestral, 100 steps", methods.DPSDenoiser(z), Ancestral(steps=100))
        for z in (0.25, 0.5, 1.0)
    ),
    Row("Particles, 4000, 25 steps", methods.Particles(particles=4000, steps=25), on=(*CORE, *WIDE)),
    Row("Particles, as many as draws, 50 steps (default)", methods.Particles(), on=("vector", "series", "grid", "graph", "sensors", "state space", *MIXTURES, *WALKS, "curved mixture")),
    Row("MCGDiff, as many particles as draws (default)", methods.MCGDiff()),
    Row("TDS, as many particles as draws (default)", methods.TDS()),
    Row("PiGDM, DPMSolver, 64 steps", methods.PiGDM(), DPMSolver(steps=64)),
    Row('PiGDM, "gaussian", DPMSolver, 64 steps', methods.PiGDM("gaussian"), DPMSolver(steps=64)),
    Row("TMPD, DPMSolver, 64 steps", methods.TMPD(), DPMSolver(steps=64)),
    Row("LGD, 32 draws, Ancestral, 100 steps", methods.LGD(k=32), Ancestral(steps=100), on=(*PLAIN, "curved mixture")),
    Row("LocalGaussian", methods.LocalGaussian(), on=("series", "curved mixture")),
    Row("LocalGaussian, DPMSolver, 32 steps", methods.LocalGaussian(), DPMSolver(steps=32), on=("curved mixture",)),
    Row("DDRM, 100 steps", methods.DDRM()),
    Row("DDNM, noise used, 100 steps", methods.DDNM()),
    Row("DDNM, noise ignored, 100 steps", methods.DDNM(noise="ignored"), on=PLAIN),
    Row("DiffPIR, lam 8, 100 steps", methods.DiffPIR()),
    Row("DiffPIR, lam 1, zeta 1, 100 steps", methods.DiffPIR(lam=1.0, zeta=1.0)),
    Row("RePaint, noise ignored, 100 steps, 3 times", methods.RePaint(resamplings=3), on=LINES),
    Row("RePaint, noise used, 100 steps, 3 times", methods.RePaint(noise="used", resamplings=3), on=LINES),
    Row("PnPDM, 100 times 10 steps", methods.PnPDM(steps=100, prior_steps=10)),
    Row("DPnP, 100 times 10 steps", methods.DPnP(steps=100, prior_steps=10)),
    Row("DAPS, 100 steps", methods.DAPS(), on=(*CORE, *WALKS[1:], *WIDE)),
    Row("DAPS as published, 100 times 5 steps", methods.DAPS(rule="published")),
    Row("REDDiff, 300 steps", methods.REDDiff(steps=300), on=PLAIN),
    Row("REDDiff as published, 300 steps", methods.REDDiff(form="published", steps=300), on=PLAIN),
    Row("GaussianVI", methods.GaussianVI(), on=ALL),
    Row("MixtureVI", methods.MixtureVI(), on=(*CORE, *WIDE)),
    Row("CMCD (default)", methods.CMCD(), on=("vector", "mixture, 2 data")),
    Row("EnsembleKalman, as many members as draws", methods.EnsembleKalman(), on=ALL),
    Row("EnsembleKalman, square root", methods.EnsembleKalman(analysis=methods.SquareRoot()), on=CORE),
    Row("TemperedEKI, as many members as draws", methods.TemperedEKI()),
    Row("EKI, as many members as draws", methods.EKI()),
    Row("KalmanDiffusion, 16 steps", methods.KalmanDiffusion()),
    Row("BestOfN, 256 candidates", BestOfN(candidates=256), on=SMALL),
    Row("NoiseSearch (default)", NoiseSearch(), on=SMALL),
    Row("SCG, 64 candidates (default)", SCG(), on=SMALL),
    Row("SCG as published, 16 candidates, 64 steps", SCG(16, choice="best", free=0.25, steps=64), on=SMALL),
    Row("DPG, 256 candidates", DPG(256), on=SMALL),
    Row("DPG as published, 256 candidates, strength 0.5", DPG(256, strength=0.5), on=SMALL),
    Row("GSG (default)", GSG(), on=SMALL),
    Row("GSG as published, strength 0.5", GSG(strength=0.5), on=SMALL),
    Row("TreeSampling (default)", TreeSampling(), on=SMALL),
    Row("EnKG, 40 steps", methods.EnKG(steps=40), on=PLAIN),
]  # fmt: skip
