from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sciddiff.bench import catalog
from sciddiff.bench.report import _number, report
from sciddiff.bench.runner import run
from sciddiff.errors import InputError


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture(scope="module")
def out(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    run(tiny, out, progress=False)
    (out / "unrelated.json").write_text("[1, 2]")
    return out


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    path = report(out)
    assert path == out / "index.html" and not list(out.glob(".*"))
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_shows_everything_a_result_holds(html: str):
    page = Page(html)
    assert not page.open
    for words in (
        "Four values <seen> & believed",
        "The second & last <paragraph>.",
        "Comparison & <more>",
        "error <%>",
        "<k> <v>",
        "<u>1",
        "<b>MMPS</b>",
        "20.47",
        "mean error",
        "\N{DOWNWARDS ARROW} lower",
        "hits <of> 4",
        "left over",
        "0.01235",
        "0.0111",
        "Doe <2020> & co",
        'draws "as" <lines>',
        "A note with <tags>.",
        "/tiny --seed 0 --out DIR",
    ):
        assert words in page.text


def test_nothing_of_a_result_becomes_markup(html: str):
    assert "<b>MMPS" not in html and "<seen>" not in html and "<tags>" not in html and "<lines>" not in html
    assert {name for name, _ in Page(html).tags} <= set(
        "html head meta title style body header h1 h2 h3 p b nav ol ul li a div span section figure img figcaption "
        "table caption thead tbody tr th td dl dt dd code sup details summary footer".split()
    )


def test_the_page_needs_nothing_but_itself(html: str):
    for _, attrs in Page(html).tags:
        assert (attrs.get("src", "data:image/png;base64,") or "").startswith("data:image/png;base64,")
        assert (attrs.get("href", "#") or "").startswith("#")
    assert not re.search(r"https?:|@import|url\(|<script|<link", html)


def test_the_pictures_are_inside_bit_for_bit_with_their_size(html: str, out: Path):
    pictures = [attrs for tag, attrs in Page(html).tags if tag == "img"]
    data = [base64.b64decode((p["src"] or "").partition(",")[2]) for p in pictures]
    assert data == [(out / f"tiny_{key}.png").read_bytes() for key in ("draws", "again")]
    assert all(int(p["width"] or 0) > int(p["height"] or 0) > 50 for p in pictures)


def test_the_contents_name_every_problem_with_its_headline(html: str):
    page = Page(html)
    (link,) = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == [(link or "")[1:]]
    contents = Page(html[html.index("<nav") : html.index("</nav>") + 6]).text
    assert re.search(r"spread 1\.5 K\s+mean error 0\.01235 K\s+vs 0\.0111$", contents.replace("\xa0", " "))


def test_figures_that_a_problem_tables_itself_are_folded_away(out: Path, tmp_path: Path):
    record = json.loads((out / "tiny.json").read_text())
    (tmp_path / "tiny.json").write_text(json.dumps(record))
    assert "All figures" in Page(report(tmp_path).read_text()).text
    (tmp_path / "tiny.json").write_text(json.dumps(record | {"tables": {}}))
    page = Page(report(tmp_path).read_text())
    assert "details" not in dict(page.tags) and "Results" in page.text and "hits <of> 4" in page.text


def test_the_terms_a_page_uses_are_explained_once_and_no_others(out: Path, tmp_path: Path):
    record = json.loads((out / "tiny.json").read_text()) | {"tables": {}, "notes": [], "labels": {}}
    record["metrics"] |= {"coverage": 0.9, "psnr": 20.0}
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    html = report(tmp_path).read_text()
    foot = html[html.index("<footer>") : html.index("</footer>")]
    assert re.findall(r"<dt>(.*?)</dt>", foot) == ["coverage", "PSNR"]


def test_problems_stand_in_the_order_of_their_runs(out: Path, tmp_path: Path):
    record = json.loads((out / "tiny.json").read_text())
    for name, at in (("a", "2026-01-02"), ("b", "2026-01-01"), ("c", "2026-01-03")):
        (tmp_path / f"{name}.json").write_text(
            json.dumps(record | {"title": f"Problem {name}!", "started": at})
        )
    page = Page(report(tmp_path).read_text())
    assert re.findall(r"Problem ([abc])!", page.text) == list("bacbac")


def test_a_problem_given_by_path_is_run_again_by_that_path(html: str, tiny: Path, tmp_path: Path):
    again = re.search(r"sciddiff run (\S+) --seed", Page(html).text)
    assert again and catalog.locate(again[1]) == ("tiny", tiny.resolve())


def test_a_missing_picture_is_said_and_a_path_out_of_the_folder_is_not_followed(out: Path, tmp_path: Path):
    record = json.loads((out / "tiny.json").read_text())
    (tmp_path / "secret.png").write_bytes((out / "tiny_draws.png").read_bytes())
    record["figures"] = [{"file": "../secret.png", "caption": "c"}]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tiny.json").write_text(json.dumps(record))
    page = Page(report(folder).read_text())
    assert "secret.png is missing" in page.text and not [tag for tag, _ in page.tags if tag == "img"]


def test_a_folder_without_results_or_with_a_broken_one_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="sciddiff run NAME --out"):
        report(tmp_path)
    (tmp_path / "tiny.json").write_text('{"name": "ti')
    with pytest.raises(InputError, match=r"JSON in .*tiny\.json"):
        report(tmp_path)
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (20.47, "20.47"),
        (0.05542381, "0.05542"),
        (-0.5, "\N{MINUS SIGN}0.5"),
        (999.96, "1000"),
        (0.0, "0.0"),
        (1950, "1950"),
        (54_000_000, "54\N{NARROW NO-BREAK SPACE}000\N{NARROW NO-BREAK SPACE}000"),
        (12345.678, "12\N{NARROW NO-BREAK SPACE}346"),
        (-1.23456e-5, "\N{MINUS SIGN}1.235\N{THIN SPACE}x\N{THIN SPACE}10<sup>\N{MINUS SIGN}5</sup>"),
        (2.5e6, "2.5\N{THIN SPACE}x\N{THIN SPACE}10<sup>6</sup>"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_keep_their_sign_their_size_and_four_digits(value: float | None, shown: str):
    assert _number(value) == shown.replace("x", "\N{MULTIPLICATION SIGN}")
