"""Claims about the pages: their code runs, it prints what they say, and the reference leaves nothing public out."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sciddiff as sd

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW = {"notebooks/elnino.py"}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(page):
    """The fenced blocks of a page: language and text, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def script(page):
    """The Python of a page as one script, and what each block that shows its output should print."""
    lines, promised = [], []
    found = blocks(page)
    for (language, text), (following, output) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python":
            shows = following == "text"
            lines.append(f"{text}print('<<end of {len(promised) if shows else 'silent'}>>')\n")
            promised += [output] if shows else []
    return "\n".join(lines), promised


PAGES = [p for p in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if any(b[0] == "python" for b in blocks(p))]


def run(code, folder):
    """What a script prints, with no screen and one thread."""
    quiet = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page, tmp_path):
    code, promised = script(page)
    parts = re.split(r"<<end of (\w+)>>\n", run(code, tmp_path))
    printed = {label: text for text, label in zip(parts[::2], parts[1::2], strict=False)}
    for i, want in enumerate(promised):
        assert doctest.OutputChecker().check_output(want, printed[str(i)], FLAGS), f"{want}\n---\n{printed[str(i)]}"


@pytest.mark.slow
def test_the_notebook_runs_as_a_script(tmp_path):
    run((DOCS / "notebooks" / "elnino.py").read_text(encoding="utf-8"), tmp_path)
