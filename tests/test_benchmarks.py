"""Claims about the pages' measured tables: each is what the benchmarks' kept output holds, and says how it was made."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def table():
    return json.loads((BENCHMARKS / "fidelity.json").read_text(encoding="utf-8"))


@pytest.fixture
def script(monkeypatch):
    """A file of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("page", "rows", "fidelity")
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def test_the_page_of_fidelity_is_what_the_kept_figures_make(script, table):
    page = script("page").page(table)
    assert (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8") == page
    assert (ROOT / "docs" / "images" / "fidelity_budget.png").exists()


def test_every_row_of_the_table_was_measured_with_the_settings_that_it_has_now(script, table):
    rows = script("rows").ROWS
    assert {row.label: row.settings for row in rows} == {
        label: row["settings"] for label, row in table["rows"].items()
    }
    assert len({row.label for row in rows}) == len(rows)
    for row in rows:
        measured = table["rows"][row.label]["on"]
        assert set(row.on) >= set(measured), f"{row.label} was tried where its row does not say"
        assert set(measured) >= set(row.on) & set(table["floors"]), f"{row.label} was not tried everywhere"


def test_exact_draws_get_a_distance_of_one(script, table):
    ratio = script("page").ratio
    for name, floors in table["floors"].items():
        found, low, high = ratio(table, "exact draws", name)
        # a floor is a median of 20, a distance one draw of the same law: they scatter alike
        error = max(high - low, 0.02) / 3.3
        assert abs(found - 1) < 5 * error + 0.5 / np.sqrt(len(floors)), name


def test_a_stored_row_of_other_settings_is_measured_again(script, tmp_path):
    fidelity = script("fidelity")
    row = fidelity.ROWS[0]
    kept = fidelity.Kept(tmp_path / "kept.json", 1000)
    kept.add("vector", 0, 0.1, {row.label: dict.fromkeys(fidelity.FIGURES, 1.0)})
    kept.write()
    again = fidelity.Kept(tmp_path / "kept.json", 1000)
    assert row not in again.missing("vector", 0, fidelity.ROWS)
    again.table["rows"][row.label]["settings"] = "others"
    again.write()
    assert row in fidelity.Kept(tmp_path / "kept.json", 1000).missing("vector", 0, fidelity.ROWS)
    assert row in fidelity.Kept(tmp_path / "kept.json", 500).missing("vector", 0, fidelity.ROWS)


def test_draws_are_measured_against_the_exact_moments(script):
    """Draws whose spread is doubled and whose mean is off are told as that."""
    fidelity = script("fidelity")
    problem, n = fidelity.PROBLEMS["vector"](0), 4000
    x = problem.draw(n, 1)
    right = fidelity.figures(problem, x, 0)
    # five standard errors of the sample's figures
    assert right["mean_error"] < 5 / np.sqrt(n)
    assert max(1 - right["sd_low"], right["sd_high"] - 1) < 5 / np.sqrt(2 * n)
    assert max(abs(right["cover50"] - 0.5), abs(right["cover90"] - 0.9)) < 5 * np.sqrt(0.5 / n)
    wrong = fidelity.figures(problem, problem.mean + 2 * (x - problem.mean) + problem.sd, 0)
    assert wrong["sd_median"] == pytest.approx(2, rel=5 / np.sqrt(2 * n))
    assert wrong["mean_error"] == pytest.approx(1, abs=10 / np.sqrt(n))
    # of N(0, 1) inside the central 90 % of N(1, 2^2): -2.29 to 4.29
    assert wrong["cover90"] == pytest.approx(0.989, abs=5 * np.sqrt(0.011 / n))
    assert wrong["distance"] > 10 * right["distance"]
