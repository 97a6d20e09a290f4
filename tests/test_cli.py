from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sciddiff
from sciddiff.bench import catalog
from sciddiff.cli import main

PROBLEM = """
import numpy as np
import xarray as xr

from sciddiff.bench import Metric, Result
from sciddiff.errors import ConvergenceError

TITLE = "Made up"
SUMMARY = "Nothing to see."


def load(seed=0): ...


def run(*, seed=0, progress=None):
    BODY
    draws = xr.Dataset({"a": ("sample", np.arange(3.0))}, attrs={"seconds": 0.3, "forwards": 7.0})
    return Result({"error": Metric(0.25 + seed, "K", 0.2, "a paper", "error of the mean", "lower"), "coverage": Metric(0.9)}, draws)
"""
TRAIN = """
def train(out, *, seed=0):
    (out / "prior.safetensors").write_bytes(bytes(1000 + seed))
    (out / "prior.json").write_text("{}")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with problems that do well, fail as they should, and crash."""
    for name, body in {
        "good": "",
        "fine": "",
        "stuck": 'raise ConvergenceError("no convergence at step 3")',
        "crash": "1 / 0",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "problem.py").write_text(PROBLEM.replace("BODY", body))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_writes_the_results_and_prints_a_line_for_every_metric(here: Path, capsys):
    assert main(["run", "./good", "--out", "out", "--seed", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "good: Made up"
    assert printed[1].split() == "error of the mean 2.25 K (reference 0.2, a paper) [lower is better]".split()
    assert printed[2].split() == ["coverage", "0.9"]
    assert len(printed) == 4 and "good.json" in printed[3]
    assert json.loads((here / "out" / "good.json").read_text())["seed"] == 2


def test_quiet_prints_nothing(here: Path, capsys):
    assert main(["run", "./good", "--out", "out", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_failure_is_one_line_and_the_other_problems_still_run(here: Path, capsys):
    assert main(["run", "./good", "./stuck", "./fine", "--out", "out"]) == 2
    out, err = capsys.readouterr()
    assert "good: Made up" in out and "fine: Made up" in out
    assert err.splitlines() == [
        "sciddiff: stuck: no convergence at step 3",
        "sciddiff: 1 of 3 problems failed: stuck",
    ]
    assert {file.stem for file in (here / "out").glob("*.json")} == {"good", "fine"}


def test_a_crash_shows_its_traceback_and_the_other_problems_still_run(here: Path, capsys):
    assert main(["run", "./crash", "./stuck", "./good", "--out", "out"]) == 1
    out, err = capsys.readouterr()
    assert "good: Made up" in out
    assert "ZeroDivisionError" in err and err.endswith("2 of 3 problems failed: crash, stuck\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run ./good no_such_problem --out out", "expected one of"),
        ("run ./good ./no_such_folder --out out", "a folder with a problem.py"),
        ("run ./good ./good --out out", "every name once"),
        ("run ./good --out good/problem.py", "a folder, got the file"),
        ("run no_such_problem", "expected one of"),
        ("run ./good", "add --out DIR"),
        ("run ./good --out /dev/null/x", "/dev/null/x (Not a directory)"),
        ("train ./good", "needs no training"),
        ("train ./good --out out", "needs no training"),
        ("report good", "sciddiff run NAME"),
    ],
)
def test_bad_words_are_refused_in_one_line_before_anything_runs(here: Path, capsys, words: str, message: str):
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sciddiff: ") and err.count("\n") == 1 and message in err
    assert not (here / "out").exists()


def test_a_bad_seed_is_refused_without_a_traceback(here: Path, capsys):
    assert main(["run", "./good", "--out", "out", "--seed", "-1"]) == 2
    assert "an int from 0" in capsys.readouterr().err


def test_train_writes_where_it_is_told_and_replaces_a_prior_only_if_told_to(here: Path, capsys):
    (here / "good" / "problem.py").write_text(PROBLEM.replace("BODY", "") + TRAIN)
    assert main(["train", "./good"]) == 2
    assert "--replace" in capsys.readouterr().err and not (here / "good" / "prior.json").exists()
    assert main(["train", "./good", "--replace"]) == 0
    assert (here / "good" / "prior.safetensors").is_file()
    weights = here / "weights" / "prior.safetensors"
    assert main(["train", "./good", "--out", "weights", "--seed", "7"]) == 0
    assert main(["train", "./good", "--out", "weights", "--seed", "8"]) == 2
    assert weights.stat().st_size == 1007
    assert main(["train", "./good", "--out", "weights", "--seed", "8", "--replace"]) == 0
    assert weights.stat().st_size == 1008
    assert "prior.json" in capsys.readouterr().out


def test_train_that_writes_no_prior_fails(here: Path, capsys):
    (here / "good" / "problem.py").write_text(
        PROBLEM.replace("BODY", "") + "\n\ndef train(out, *, seed=0): ...\n"
    )
    assert main(["train", "./good", "--out", "weights"]) == 2
    assert "to write prior.safetensors" in capsys.readouterr().err


def test_report_prints_the_path_of_its_page(here: Path, capsys):
    assert main(["run", "./good", "./fine", "--out", "out", "--quiet"]) == 0
    assert main(["report", "out"]) == 0
    page = here / capsys.readouterr().out.strip()
    assert page == here / "out" / "index.html" and page.read_text().count("<section") == 2


def test_list_prints_name_prior_and_title(here: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog, "problems", lambda: {"good": here / "good", "fine": here / "fine"})
    (here / "fine" / "prior.safetensors").touch()
    assert main(["list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "prior", "title"],
        ["good", "none", "needed", "Made", "up"],
        ["fine", "shipped", "Made", "up"],
    ]


@pytest.mark.parametrize("words", ["--version", "--help", "run --help"])
def test_version_and_help_leave_with_success(words: str, capsys):
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 0
    assert ("sciddiff " + sciddiff.__version__ if "version" in words else "usage") in capsys.readouterr().out


def test_the_command_line_imports_no_more_than_the_package_does():
    script = (
        "import sys, sciddiff; old = set(sys.modules); import sciddiff.cli, sciddiff.bench.catalog; "
        "sciddiff.bench.catalog.problems(); print(*set(sys.modules) - old)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert not new & {"torch", "xarray", "matplotlib", "scipy", "pandas", "h5py", "tqdm", "numpy"}


def test_the_package_runs_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "sciddiff", "--version"], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.split()[-1] == sciddiff.__version__
