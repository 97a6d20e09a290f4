"""Claims about the filters on Lorenz-63."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sciddiff.assimilation import BootstrapFilter
from sciddiff.bench.catalog import definition

filters = definition("lorenz63_filter")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")
def test_the_run_has_every_filter_on_every_setting(monkeypatch):
    small = {k: v for k, v in filters.FILTERS.items() if v[1].__class__ is not BootstrapFilter}
    small |= {k: (20, BootstrapFilter(60, jitter=1.0)) for k in ("particle filter, 800", filters.REFERENCE)}
    monkeypatch.setattr(filters, "FILTERS", small)
    result = filters.run(cases=2, cycles=8)
    assert len(result.tables) == 3
    for rows in result.tables.values():
        assert [row["filter"] for row in rows] == ["climatology", *small]
    assert set(result.headline) <= set(result.metrics)
    assert set(result.figures) == {"track", "ranks", "errors"}
    assert result.draws.attrs["law"] == "filtering"


def test_only_what_the_setting_says_is_seen_and_nothing_at_the_first_time():
    for setting in filters.SETTINGS.values():
        truth, law = filters.twins(setting, cases=3, cycles=6, seed=0)
        assert law.observed.tolist() == [False, *[True] * 6]
        (seen,) = law.posterior.observations
        assert seen.operator is setting.operator
        states = torch.tensor(truth.to_dataarray("value").transpose("twin", "time", "value").values)
        r = (seen.y.reshape(3, 7, -1) - setting.operator.apply(states.flatten(0, 1)).reshape(3, 7, -1))[:, 1:]
        # residuals have the variance of the noise
        z = (float((r / setting.sd).square().mean()) - 1) / np.sqrt(2 / r.numel())
        assert abs(z) < 4.5


def test_scores_are_those_of_the_definition():
    truth, law = filters.twins(filters.SETTINGS["full"], cases=2, cycles=6, seed=0)
    draws = {filters.REFERENCE: law.sample(8, filters.FILTERS["ETKF, 10"][1], seed=0)}
    row = filters.scores(truth, draws, 2)[filters.REFERENCE]
    x, t = (d.to_dataarray("v").isel(time=slice(3, None)) for d in (draws[filters.REFERENCE], truth))
    error = np.sqrt(((x.mean("sample") - t) ** 2).mean("v")).mean("time")
    np.testing.assert_allclose(row["rmse_a"], error.values)
    np.testing.assert_allclose(row["gap"], 0, atol=1e-12)


def test_the_page_of_dapper_is_what_the_kept_figures_make(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dapper

    table = json.loads((ROOT / "benchmarks" / "dapper.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "dapper.md").read_text(encoding="utf-8") == dapper.page(table)
    assert {r.key for r in dapper.ROWS} == set(table["rows"])
    for row in dapper.ROWS:
        kept = table["rows"][row.key]
        assert kept["settings"] == row.settings
        assert len(kept["rmse_a"]) == row.seeds
        again = table["dapper"].get(row.key)
        if again is not None:
            assert abs(np.median(kept["rmse_a"]) - np.median(again)) < 0.03, row.key


@pytest.mark.slow
def test_a_short_row_is_measured_as_it_was_kept(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dapper

    row = next(r for r in dapper.ROWS if r.key == "letkf")
    kept = json.loads((ROOT / "benchmarks" / "dapper.json").read_text(encoding="utf-8"))["rows"]["letkf"]
    found = dapper.measure(row)
    # rounding grows in a chaotic system: medians of twenty are compared, whose error is about that of one over 3
    scatter = np.std(kept["rmse_a"], ddof=1)
    assert abs(np.median(found["rmse_a"]) - np.median(kept["rmse_a"])) < 3 * scatter * 1.25 * np.sqrt(
        2 / row.seeds
    )
    assert re.match("LETKF", found["settings"]["method"])
