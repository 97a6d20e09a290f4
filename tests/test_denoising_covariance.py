"""Claims about the page that compares denoising covariances: its figures are those that were kept, of today's settings."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("denoising_covariance")


@pytest.fixture
def table(script):
    return json.loads(script.KEPT.read_text(encoding="utf-8"))


def test_the_page_is_what_the_kept_figures_make(script, table):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(table)


def test_every_rule_was_measured_on_every_prior_with_the_settings_that_it_has_now(script, table):
    rules = {(block, label): (method, solver) for block, label, method, solver in script.plan()}
    assert len(table["rows"]) == len(script.ABOUT) * len(script.PARTS) * len(rules)
    for key, row in table["rows"].items():
        _, _, block, label = key.split(" | ")
        method, solver = rules[block, label]
        assert row["settings"].startswith(f"{method!r}, {solver!r}, ")


def test_the_default_of_a_trained_prior_is_the_rule_that_the_validation_parts_choose(script, table):
    """No rule that never broke off is better than "gaussian" by more than two standard errors everywhere."""
    for label in script.RULES:
        ratios = []
        for trial in script.ABOUT:
            row, base = (table["rows"][f"{trial} | validation | many | {r}"] for r in (label, '"gaussian"'))
            ratios.append(script.against(row, base))
        better = [
            r != "-" and "±" in r and float(r.split(" ± ")[0]) + 2 * float(r.split(" ± ")[1]) < 1
            for r in ratios
        ]
        assert not all(better), f"{label}: {ratios}"
