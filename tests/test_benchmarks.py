"""Claims about the pages' measured tables: every row is one that the benchmarks' kept output has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w%])")


def rows(heading: str) -> list[tuple[str, list[str]]]:
    """Rule and figures of every row of the first table behind a text of the page."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    table = re.search(r"(?:^\|.*\n)+", page[page.index(heading) :], re.MULTILINE)
    assert table is not None
    lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in table.group().splitlines()[2:]]
    return [(line[0], NUMBER.findall(" ".join(line[1:]))) for line in lines]


def kept(name: str, part: int) -> list[tuple[set[float], list[float]]]:
    """Numbers of the rule and figures of every line of a part of a kept output."""
    text = (ROOT / "benchmarks" / name).read_text(encoding="utf-8").strip().split("\n\n")[part]
    lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines()[2:]]
    return [(set(map(float, NUMBER.findall(a))), list(map(float, NUMBER.findall(b)))) for a, b in lines]


def rounds(shown: str, figure: float) -> bool:
    return abs(float(shown) - figure) <= 0.5001 * 10.0 ** -len(shown.partition(".")[2])


@pytest.mark.parametrize(
    ("heading", "part", "columns"),
    [("**A Gaussian series**", 0, slice(None)), ("**A mixture of 25", 1, [0, 1, 2, 4, 5, 6, 8, 9, 10])],
)
def test_every_row_of_the_page_is_a_row_of_what_the_benchmark_printed(heading, part, columns):
    output = kept("fidelity.txt", part)
    found = rows(heading)
    assert len(found) > 5
    for rule, figures in found:
        settings = set(map(float, NUMBER.findall(rule)))
        same = []
        for theirs, numbers in output:
            picked = (
                numbers[columns]
                if isinstance(columns, slice)
                else [numbers[i] for i in columns if i < len(numbers)]
            )
            same.append(
                settings <= theirs
                and len(picked) == len(figures)
                and all(rounds(a, b) for a, b in zip(figures, picked, strict=True))
            )
        assert any(same), f"no line of the output is {rule}: {figures}"


def test_every_row_on_the_learned_prior_is_a_line_of_what_was_printed():
    printed = (ROOT / "benchmarks" / "learned.txt").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = page[page.index("## On a learned prior") : page.index("(what-covariance-means)=")]
    table = re.findall(r"^\| ((?:MMPS|DPS).*) \| (.+) \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert len(table) == 6
    for rule, *figures in table:
        name = rule.replace('MMPS, "', 'MMPS "')
        line = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        assert " ".join(line[len(name) :].split()).startswith(" ".join(figures))
    for figures in ("21.1   0.034", "13.1   0.078"):
        assert figures in printed


def test_the_page_states_how_many_problems_and_draws_its_figures_are_of():
    text = (ROOT / "benchmarks" / "fidelity.txt").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text.count("1000 draws, seeds 0 to 4") == 2 and "(seeds 0 to 4), 1000 draws each" in page
