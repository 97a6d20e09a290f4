"""Claims about the pages: their code runs, it prints what they say, and the reference leaves nothing public out."""

from __future__ import annotations

import doctest
import importlib
import io
import re
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest

import sciddiff as sd
from sciddiff.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(page):
    """The fenced blocks of a page: language and text, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def run(code, names):
    """What a block prints, on top of the blocks before it."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "page", "exec"), names)
    return printed.getvalue()


PAGES = [
    page
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if any(language == "python" for language, _ in blocks(page))
]


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """A folder to write to, and pictures without a screen."""
    monkeypatch.chdir(tmp_path)
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    matplotlib.use(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page):
    names = {"__name__": "page"}
    for (language, code), (following, promised) in pairwise([*blocks(page), ("", "")]):
        if language == "python":
            printed = run(code, names)
            if following == "text":
                same = doctest.OutputChecker().check_output(promised, printed, FLAGS)
                assert same, f"{code}\n--- the page says\n{promised}\n--- it prints\n{printed}"


def test_the_problem_of_the_page_runs_from_its_folder(tmp_path):
    page = blocks(DOCS / "howto" / "problem.md")
    code = next(text for language, text in page if language == "python")
    (tmp_path / "my_problem").mkdir()
    (tmp_path / "my_problem" / "problem.py").write_text(code, encoding="utf-8")
    (commands,) = (text for language, text in page if language == "sh")
    for command in commands.splitlines():
        assert main(command.split()[1:]) == 0
    assert (tmp_path / "results" / "index.html").is_file()


@pytest.mark.slow
def test_the_notebook_runs_as_a_script():
    run((DOCS / "notebooks" / "elnino.py").read_text(encoding="utf-8"), {"__name__": "notebook"})


def test_the_reference_lists_every_name_at_the_top_and_every_room():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^   ~sciddiff\.(\w+)$", page, re.MULTILINE)) == sorted(sd.__all__)
    rooms = {f"sciddiff.{path.stem}" for path in (ROOT / "sciddiff").glob("[!_]*.py")}
    rooms |= {f"sciddiff.{path.parent.name}" for path in (ROOT / "sciddiff").glob("*/__init__.py")}
    assert rooms - {"sciddiff.cli", "sciddiff.html"} <= set(
        re.findall(r"^   (sciddiff\.\w+)$", page, re.MULTILINE)
    )


def test_every_public_name_at_the_top_is_shown_by_a_room_of_the_reference():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    rooms = [
        importlib.import_module(room) for room in re.findall(r"^   (sciddiff\.[\w.]+)$", page, re.MULTILINE)
    ]
    shown = {id(room) for room in rooms} | {
        id(getattr(room, name)) for room in rooms for name in room.__all__
    }
    assert [name for name in sd.__all__ if id(getattr(sd, name)) not in shown] == []
