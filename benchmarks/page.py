"""The page and the figure of the table of fidelity, from what is kept in fidelity.json; nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["page", "ratio", "render"]

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINEAR = ("vector", "grid", "graph", "sensors", "state space")
MIXTURES = tuple(f"mixture{d}, {m}" for d in ("", " in 80 d") for m in ("1 datum", "2 data", "4 data"))
GLANCE = ("series", *MIXTURES[:3], "Laplace walk", "curved mixture")
PANELS = {
    "series": "Linear Gaussian series",
    "mixture, 2 data": "Mixture of 25, 2 data",
    "Laplace walk": "Laplace walk",
}

HEAD = """# How far off

Draws of every method against posteriors that are known, under priors whose denoiser is exact: every error is the
method's own. Each kind of problem is made anew from {seeds}; {draws} draws each.
Made by `python benchmarks/fidelity.py`, which keeps what it measured in `benchmarks/fidelity.json` and writes this page.

- The **distance** is over its [floor](correct.md#the-floor), that of two exact sets: 1.00 is what exact draws get, as in the
  first row. It is Gaussian W2 where the posterior is Gaussian, sliced W1 elsewhere, in the prior's normalised units. In
  brackets a 90 % bootstrap interval over the problems, and their number; without, it is one problem. The two distances have different floors, and are not to be compared.
- The **error of the mean** is in exact posterior standard deviations (rms), the **standard deviations** are ratios to the exact
  ones: the median over the values and, in brackets, the least and the largest in any of the problems. {draws} exact draws
  leave what the first row shows.
- **Inside** is the exact posterior's share in the central 50 % and 90 % intervals of the draws, averaged over the values.
- **SBC** is the p-value of simulation-based calibration, {sbc}: ranks of marginals, projections,
  products and the log-likelihood. A small one is a fault found, under 0.001 beyond doubt; a large one shows little, since
  modes of wrong weight hardly move a rank. Blank where it was not run.
- Forwards of the denoiser, VJPs through it and operator calls are **per draw**; seconds are CPU seconds for {draws} draws on
  one core of a busy machine.

"""
MAKERS = {
    "series": "An Ornstein-Uhlenbeck process at 64 times, length scale 8, 16 of them seen with errors of 0.1 sd.",
    "Laplace walk": "A walk of 32 Laplace increments, seen at 10 times; known by Gibbs sampling.",
    "Bernoulli-Laplace walk": "The same with four increments in five exactly zero: piecewise constant, and with several modes.",
    "curved mixture": "Three Gaussians of different shape in 4 dimensions, seen through two curved functions; known by rejection.",
}

Table = dict[str, Any]


def render(table: Table) -> None:
    """Write both."""
    (DOCS / "fidelity.md").write_text(page(table), encoding="utf-8")
    figure(table, DOCS / "images" / "fidelity_budget.png")


# -- figures of a row on a problem ---------------------------------------------------------------------


def cells(table: Table, label: str, name: str) -> tuple[list[str], np.ndarray, list[str]]:
    """Seeds that were measured, their figures ``(seeds, figures)``, and what the others raised."""
    on = table["rows"][label]["on"].get(name, {})
    seeds = [s for s, cell in on.items() if isinstance(cell, list)]
    raised = [cell["raises"] for cell in on.values() if isinstance(cell, dict) and "raises" in cell]
    return seeds, np.array([on[s] for s in seeds]).reshape(len(seeds), len(table["figures"])), raised


def column(table: Table, values: np.ndarray, figure: str) -> np.ndarray:
    """One figure of every seed."""
    return values[:, table["figures"].index(figure)]


def ratio(table: Table, label: str, name: str) -> tuple[float, float, float] | None:
    """Mean distance over mean floor, with a bootstrap interval of 90 % over the problems; None without figures."""
    seeds, values, _ = cells(table, label, name)
    if not seeds:
        return None
    far = column(table, values, "distance")
    least = np.array([table["floors"][name][s] for s in seeds])
    picks = np.random.default_rng(0).integers(0, len(far), (1000, len(far)))
    low, high = np.quantile(far[picks].mean(1) / least[picks].mean(1), [0.05, 0.95])
    return far.mean() / least.mean(), low, high


def budget(table: Table, label: str, name: str) -> float:
    """Forwards and twice the VJPs, per draw."""
    _, values, _ = cells(table, label, name)
    return float((column(table, values, "forwards") + 2 * column(table, values, "vjps")).mean())


# -- the page ----------------------------------------------------------------------------------------


def page(table: Table) -> str:
    """The page, in Markdown."""
    counts = sorted({len(seeds) for seeds in table["floors"].values()})
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[-1])
    seeds = f"{many} seed{'' if counts[-1] == 1 else 's'}"
    sizes = sorted({tuple(c["size"]) for row in table["sbc"].values() for c in row.values()})
    sbc = " or ".join(f"{n} cases of {m} draws each" for n, m in sizes) or "not run yet"
    out = [HEAD.format(seeds=seeds, draws=table["draws"], sbc=sbc)]
    out += ["## At a glance\n\n", *_ratios(table, GLANCE), "\n", _picture()]
    out += ["## The series\n\n", MAKERS["series"], "\n\n", *_details(table, "series")]
    out += [
        "\n## Other linear Gaussian problems\n\n"
        "A vector under correlated reference noise, a periodic field whose reference noise is a rougher field, a Markov field on a "
        "graph, a random field with sensors between its grid points, and a state space with a forecast "
        "(`sciddiff.testing.exact`).\n\n",
        *_ratios(table, LINEAR),
    ]
    out += [
        "\n## Mixtures of 25 Gaussians\n\n"
        "In 8 and in 80 dimensions, seen through linear data (the setting of Cardoso et al. 2023, arXiv 2308.07983). "
        "The modes are 8 standard deviations apart, so that this is about their weights.\n\n",
        *_ratios(table, MIXTURES),
        "\nWith 2 data in 8 dimensions:\n\n",
        *_details(table, "mixture, 2 data"),
    ]
    for name in ("Laplace walk", "Bernoulli-Laplace walk", "curved mixture"):
        if name in table["floors"]:
            out += [f"\n## {name[0].upper()}{name[1:]}\n\n", MAKERS[name], "\n\n", *_details(table, name)]
    return "".join(out) + _raised(table)


def _picture() -> str:
    return (
        "```{image} images/fidelity_budget.png\n"
        ":alt: distance over floor against forwards plus twice the VJPs, for every row on three problems\n```\n\n"
        "What being right costs: distance over floor against the budget per draw, forwards plus twice the VJPs, of every row. "
        "The dashed line is exact draws. Methods that call no denoiser stand at 1; what is farther than 500 floors is left out.\n\n"
    )


def _tried(table: Table, names: tuple[str, ...]) -> list[str]:
    return [label for label, row in table["rows"].items() if any(_any(table, label, name) for name in names)]


def _any(table: Table, label: str, name: str) -> bool:
    seeds, _, raised = cells(table, label, name)
    return bool(seeds or raised)


def _ratios(table: Table, names: tuple[str, ...]) -> list[str]:
    """Rows by problems: distance over floor."""
    names = tuple(name for name in names if name in table["floors"])
    rows = [[label, *(_ratio(table, label, name) for name in names)] for label in _tried(table, names)]
    return _markdown(["rule", *names], rows)


def _ratio(table: Table, label: str, name: str) -> str:
    found, (seeds, _, raised) = ratio(table, label, name), cells(table, label, name)
    if found is None:
        return "raises" if raised else "-"
    # one problem says nothing of how problems differ
    between = f" ({_number(found[1])}-{_number(found[2])}; {len(seeds)})" if len(seeds) > 1 else ""
    text = f"{_number(found[0])}{between}"
    return f"{text}, raises on {len(raised)} of {len(raised) + len(seeds)}" if raised else text


def _details(table: Table, name: str) -> list[str]:
    heads = ["rule", "error of the mean", "standard deviations", "distance", "inside 50 %", "inside 90 %"]
    heads += ["SBC", "forwards", "VJPs", "operator calls", "seconds"]
    rows = []
    for label in _tried(table, (name,)):
        _, values, _ = cells(table, label, name)
        if not len(values):
            rows.append([label, "raises", *[""] * (len(heads) - 2)])
            continue
        get = {f: column(table, values, f) for f in table["figures"]}
        rows.append([
            label,
            _number(get["mean_error"].mean()),
            f"{_number(get['sd_median'].mean())} ({_number(get['sd_low'].min())}-{_number(get['sd_high'].max())})",
            _ratio(table, label, name),
            f"{100 * get['cover50'].mean():.0f}", f"{100 * get['cover90'].mean():.0f}",
            _p_value(table, label, name),
            *(_count(get[f].mean()) for f in ("forwards", "vjps", "operator_calls")),
            f"{get['seconds'].mean():.1f}",
        ])  # fmt: skip
    return _markdown(heads, rows)


def _p_value(table: Table, label: str, name: str) -> str:
    cell = table["sbc"].get(label, {}).get(name, {})
    if "p_value" not in cell:
        return "raises" if "raises" in cell else ""
    return "< 0.001" if cell["p_value"] < 0.001 else f"{cell['p_value']:.3f}"


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or abs(value - round(value)) < 0.05 else f"{value:.1f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 9999.5 else f"{value:.0e}"


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |\n" for line in lines]


def _raised(table: Table) -> str:
    """What raised, once for each row."""
    found = {}
    for label in table["rows"]:
        for name in table["floors"]:
            *_, raised = cells(table, label, name)
            if raised:
                found.setdefault(label, []).append(f"{name} ({raised[0].split(':')[0]})")
    if not found:
        return ""
    lines = [f"- {label}: {', '.join(where)}\n" for label, where in found.items()]
    return "".join(["\n## What raised\n\nAn error with advice in place of draws:\n\n", *lines])


# -- the figure --------------------------------------------------------------------------------------


def figure(table: Table, path: Path) -> None:
    """Distance over floor against budget, one panel a problem, one mark a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(r["family"] for r in table["rows"].values() if r["family"] != "control"))
    marks = {f: (f"C{i % 10}", "osD^vPX<>dph"[(i // 10 * 5 + i) % 11]) for i, f in enumerate(families)}
    names = [name for name in PANELS if name in table["floors"]]
    figure, axes = plt.subplots(1, len(names), figsize=(12, 4.6), sharey=True, layout="constrained")
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        best = []
        for family in families:
            points = []
            for label, row in table["rows"].items():
                found = ratio(table, label, name) if row["family"] == family else None
                if found is not None:
                    points.append((max(1.0, budget(table, label, name)), *found))
            if not points:
                continue
            x, y, low, high = np.array(sorted(points)).T
            colour, mark = marks[family]
            axis.errorbar(
                x, y, (np.maximum(y - low, 0), np.maximum(high - y, 0)),
                color=colour, marker=mark, ms=6, lw=0, elinewidth=0.8, mec="white", mew=0.5,
            )  # fmt: skip
            best += [(a, b, family) for a, b in zip(x, y, strict=True)]
        _name_the_front(axis, sorted(best))
        axis.axhline(1.0, color="0.4", ls="--", lw=1)
        axis.set(xscale="log", yscale="log", title=PANELS[name], xlabel="forwards + 2 VJPs, per draw")
        axis.set_ylim(0.6, 500)
        axis.grid(True, which="major", color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].set_ylabel("distance to the exact posterior / floor")
    handles = [
        plt.Line2D([], [], color=marks[f][0], marker=marks[f][1], lw=0, ms=6, mec="white", label=f)
        for f in families
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _name_the_front(axis: Any, points: list[tuple[float, float, str]]) -> None:
    """Write the method beside the points that no cheaper one comes near to."""
    least = np.inf
    for x, y, family in points:
        if y < 0.9 * least:
            axis.annotate(family, (x, y), (4, 4), textcoords="offset points", fontsize=8, color="0.2")
            least = y
