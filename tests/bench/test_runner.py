from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sciddiff import draws as store
from sciddiff.bench import catalog
from sciddiff.bench.runner import run, staged
from sciddiff.errors import InputError

FILES = {"tiny.json", "tiny.nc", "tiny_again.png", "tiny_draws.png"}


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out") / "made" / "here"
    return run(tiny, out, seed=5, progress=False), out


def broken(folder: Path, source: str, old: str, new: str) -> Path:
    """The tiny problem with one thing changed."""
    assert old in source
    (folder / "tiny").mkdir()
    (folder / "tiny" / "problem.py").write_text(source.replace(old, new))
    return folder / "tiny"


def test_a_run_writes_the_record_the_draws_and_the_pictures_and_nothing_else(done):
    record, out = done
    assert {file.name for file in out.iterdir()} == FILES
    assert json.loads((out / "tiny.json").read_text()) == record
    assert [figure["file"] for figure in record["figures"]] == ["tiny_draws.png", "tiny_again.png"]


def test_metrics_are_flat_numbers_with_units_and_references_beside(done):
    record, _ = done
    assert record["metrics"] == {
        "mean_error": 0.0123456,
        "coverage": 0.9,
        "left_over": 3.0,
        "spread": 1.5,
    }
    assert record["units"] == {"mean_error": "K", "coverage": "<u>1", "left_over": "1", "spread": "K"}
    assert record["labels"] == {"coverage": "hits <of> 4"} and record["better"] == {"mean_error": "lower"}
    assert record["headline"] == ["spread", "mean_error"]
    assert record["reference"] == {"mean_error": {"value": 0.0111, "source": "Doe <2020> & co"}}


def test_the_record_holds_what_it_takes_to_do_it_again(done):
    record, _ = done
    assert record["name"] == "tiny" and record["seed"] == 5
    assert record["settings"] == {"seed": 5, "sizes": [1, 2], "limit": None, "<k>": "<v>"}
    assert set(record["versions"]) == {"sciddiff", "torch", "numpy", "xarray", "python"}
    assert record["draws"]["attrs"]["seed"] == 5 and record["draws"]["sizes"] == {"sample": 8, "place": 4}


def test_runs_tell_their_order(done, tiny: Path, tmp_path: Path):
    first = run(tiny, tmp_path, progress=False)["started"]
    assert done[0]["started"] < first < run(tiny, tmp_path, progress=False)["started"]


def test_a_folder_is_named_so_that_a_command_line_takes_it_for_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny.parent)
    assert run(Path("tiny"), tmp_path, progress=False)["given"] == "./tiny"
    assert run("./tiny", tmp_path, progress=False)["given"] == "./tiny"


def test_cost_is_per_draw(done, tiny: Path):
    record, _ = done
    attrs = catalog.problem(tiny, seed=5).posterior.sample(8, seed=5, progress=False).attrs
    cost = record["cost"]
    assert cost["draws"] == 8
    for key in ("forwards", "vjps", "operator_calls"):
        assert cost[f"{key}_per_draw"] == attrs[key]
    assert cost["sampling_seconds"] == pytest.approx(8 * cost["seconds_per_draw"])
    assert 0 < cost["sampling_seconds"] < cost["wall_seconds"]


def test_seconds_per_draw_count_every_case_and_are_left_out_where_cases_are_unknown(
    tmp_path: Path, source: str
):
    many = run(broken(tmp_path, source, '["cases"] = 1', '["cases"] = 5'), tmp_path / "many")["cost"]
    assert many["draws"] == 40
    assert many["sampling_seconds"] == pytest.approx(40 * many["seconds_per_draw"])
    (tmp_path / "other").mkdir()
    unknown = broken(tmp_path / "other", source, 'draws.attrs["cases"] = 1', 'draws.attrs.pop("cases", None)')
    assert "seconds_per_draw" not in run(unknown, tmp_path / "unknown")["cost"]


def test_the_draws_come_back_as_they_were(done, tiny: Path):
    _, out = done
    kept = store.load(out / "tiny.nc")
    again = catalog.problem(tiny, seed=5).posterior.sample(8, seed=5, progress=False)
    np.testing.assert_array_equal(kept["a"], again["a"])
    assert kept["a"].dims == ("sample", "place")
    assert kept.attrs["method"] == again.attrs["method"] and kept.attrs["flag"] == "true"


def test_pictures_are_png_at_150_dpi(done):
    _, out = done
    data = (out / "tiny_draws.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    at = data.index(b"pHYs") + 4
    per_metre, _, unit = struct.unpack(">IIB", data[at : at + 9])
    assert unit == 1 and round(per_metre * 0.0254) == 150


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    return Result(", "    raise RuntimeError('lost')\n    return Result(", "lost"),
        ("    return Result(", "    return dict(a=1) or Result(", "a Result"),
        ("Metric(3.0)", "0.9", "'left_over' to be a Metric"),
        ("Metric(3.0)", "Metric(float('nan'))", "'left_over' to be finite"),
        ('better="lower"', 'better="less"', "`better` of metric 'mean_error'"),
        ("Metric(3.0)", 'Metric(3.0, better="nearer")', "a reference of metric 'left_over'"),
        ('["spread", "mean_error"]', '["spred"]', "names of metrics"),
        ('["spread", "mean_error"]', '["spread"] * 4', "up to 3 names"),
        ('["spread", "mean_error"]', '"spread"', "names of metrics"),
        ('"again":', '"../again":', "names of figures"),
        ('"again": Figure(canvas', '"again": Figure(None', "savefig"),
        ('draws.attrs["flag"] = True', 'draws["o"] = ("sample", [object()] * 8)', "."),
    ],
)
def test_a_run_that_fails_leaves_no_file(tmp_path: Path, source: str, old: str, new: str, message: str):
    out = tmp_path / "out"
    with pytest.raises(Exception, match=message):
        run(broken(tmp_path, source, old, new), out)
    assert not out.exists() or not list(out.iterdir())


def test_a_run_that_fails_leaves_the_last_good_one_as_it_was(done, tmp_path: Path, source: str):
    _, out = done
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    folder = broken(tmp_path, source, '"again": Figure(canvas', '"again": Figure(None')
    with pytest.raises(AttributeError):
        run(folder, out, seed=6)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_staged_files_appear_together_or_not_at_all(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path) as stage:
        (stage / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with staged(tmp_path) as stage:
        (stage / "a.txt").write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_bad_arguments_are_refused_before_the_problem_runs(tmp_path: Path, source: str):
    folder = broken(tmp_path, source, "    draws = load", "    raise RuntimeError\n    draws = load")
    with pytest.raises(InputError, match="seed"):
        run(folder, tmp_path / "out", seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a folder, got the file"):
        run(folder, tmp_path / "file")
