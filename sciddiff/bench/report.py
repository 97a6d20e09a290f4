"""One HTML page from a folder of results: self-contained, so that it can be mailed, printed and archived."""

from __future__ import annotations

import base64
import inspect
import json
import math
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sciddiff.bench.runner import staged
from sciddiff.errors import InputError

__all__ = ["report"]

NOTHING = "\N{EN DASH}"
TERMS = {
    "CRPS": "Continuous ranked probability score: how far the distribution of the draws is from the true value, in units "
    "of the quantity; lower is better. For one estimate without spread it is the absolute error.",
    "coverage": "Share of true values inside the central intervals of the draws; it should be the intervals' level. "
    "Below it the draws are too narrow, above it too wide.",
    "PSNR": "Peak signal-to-noise ratio: 10 times the log10 of the squared range over the mean squared error, in dB; "
    "higher is better.",
    "relative L2": "Root of the sum of squared errors over that of the squared truth; 0 is perfect.",
    "sd ratio": "Standard deviation of the draws over that of the reference; 1 is right, less is overconfident.",
}
BETTER = {
    "lower": ("\N{DOWNWARDS ARROW}", "lower is better"),
    "higher": ("\N{UPWARDS ARROW}", "higher is better"),
    "nearer": ("\N{ALMOST EQUAL TO}", "nearer to the reference is better"),
}
NEEDED = ("name", "title", "summary", "metrics", "units", "reference", "figures", "cost", "seed", "versions")


def report(folder: str | Path) -> Path:
    """Write ``index.html`` from the results that `sciddiff run --out FOLDER` left there.

    The page holds its pictures and its style; it links to nothing and runs nothing.

    Args:
        folder: where the results are.

    Returns:
        The path of the page.

    Raises:
        InputError: if the folder holds no results, or one that cannot be read.
    """
    folder = Path(folder)
    results = _read(folder)
    if not results:
        raise InputError(
            "folder",
            expected="a folder with results",
            got=f"{folder} without one",
            fix=f"make some first: sciddiff run NAME --out {folder}",
        )
    with staged(folder) as stage:
        (stage / "index.html").write_text(_page(results, folder), encoding="utf-8")
    return folder / "index.html"


def _read(folder: Path) -> list[dict[str, Any]]:
    results = []
    for file in sorted(folder.glob("*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                "folder", expected=f"JSON in {file}", got=str(error), fix="run that problem again"
            ) from error
        # a folder may hold other people's JSON, too
        if isinstance(result, dict) and all(key in result for key in NEEDED):
            results.append(
                {
                    "labels": {},
                    "better": {},
                    "headline": list(result["metrics"])[:3],
                    "started": "",
                    "given": result["name"],
                    **result,
                }
            )
    # in the order of the runs; those of earlier versions, which kept no time, come first
    return sorted(results, key=lambda result: str(result["started"]))


def _page(results: Sequence[Mapping[str, Any]], folder: Path) -> str:
    versions = {_versions(result) for result in results}
    made_with = f'<p class="quiet">{versions.pop()}</p>' if len(versions) == 1 else ""
    count = f"{len(results)} problem{'s' if len(results) > 1 else ''}"
    sections = "\n".join(_section(i, result, folder) for i, result in enumerate(results, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sciddiff: {count}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Inverse problems with diffusion priors</h1>
<p class="lead">{count}, solved by <b>sciddiff</b>: what was asked, what came out, what it is compared with and
what it cost.</p>
{made_with}
{_contents(results)}
</header>
{sections}
{_glossary(sections)}
</body>
</html>
"""


def _contents(results: Sequence[Mapping[str, Any]]) -> str:
    rows = "\n".join(
        f'<li><a href="#problem-{i}">{escape(result["title"])}</a><div class="headline">{_headline(result)}</div></li>'
        for i, result in enumerate(results, 1)
    )
    return f'<nav aria-label="Contents"><ol>\n{rows}\n</ol></nav>'


def _headline(result: Mapping[str, Any]) -> str:
    parts = []
    for name in result["headline"]:
        value = result["metrics"][name]
        known = result["reference"].get(name)
        beside = f' <span class="quiet">vs {_number(known["value"])}</span>' if known else ""
        parts.append(
            f"<span>{_label(result, name)} <b>{_quantity(value, result['units'].get(name))}</b>{beside}</span>"
        )
    return "".join(parts)


def _glossary(page: str) -> str:
    """One line for every term that the page uses."""
    words = re.sub(r"<[^>]*>|base64,[^\"]*", " ", page)
    rows = "".join(
        f"<dt>{term}</dt><dd>{meaning}</dd>"
        for term, meaning in TERMS.items()
        if re.search(rf"\b{term}\b", words, re.IGNORECASE)
    )
    return f"<footer><h2>Terms</h2><dl>{rows}</dl></footer>" if rows else ""


def _section(index: int, result: Mapping[str, Any], folder: Path) -> str:
    pictures = [_picture(figure, folder) for figure in result["figures"]]
    others = f'<div class="pictures">{"".join(pictures[1:])}</div>' if pictures[1:] else ""
    tables = "".join(_table(title, rows) for title, rows in result.get("tables", {}).items())
    notes = "".join(f"<li>{_text(note)}</li>" for note in result.get("notes", ()))
    return f"""<section id="problem-{index}">
<h2><span class="index">{index}</span>{escape(result["title"])}</h2>
{_paragraphs(result["summary"])}
{"".join(pictures[:1])}
{tables}
{_metrics(result)}
{others}
{_cost(result)}
{f'<h3>Notes</h3><ul class="notes">{notes}</ul>' if notes else ""}
</section>"""


def _metrics(result: Mapping[str, Any]) -> str:
    known, wanted = result["reference"], result["better"]
    compared = any(name in known for name in result["metrics"])
    rows = []
    for name, value in result["metrics"].items():
        cells = [
            f'<th scope="row">{_label(result, name)}</th>',
            f'<td class="number">{_quantity(value, result["units"].get(name))}</td>',
        ]
        if compared:
            reference = known.get(name)
            cells += [
                f'<td class="number">{_number(reference["value"]) if reference else ""}</td>',
                f'<td class="source">{_text(reference["source"]) if reference else ""}</td>',
            ]
        if wanted:
            cells.insert(1, f'<td class="better">{_better(wanted.get(name))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = '<th scope="col">Metric</th>'
    head += '<th scope="col">Better</th>' if wanted else ""
    head += '<th scope="col" class="number">Here</th>'
    if compared:
        head += '<th scope="col" class="number">Reference</th><th scope="col">Source of it</th>'
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    if result.get("tables"):  # which a problem makes to tell the same, better arranged
        return f"<details><summary>All figures</summary>{_wide(table)}</details>"
    return _wide(f"<caption>Results</caption>{table}")


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {
        column
        for column in columns
        if all(_is_number(row[column]) for row in rows if row.get(column) is not None)
    }

    def cell(tag: str, column: str, content: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        mark = ' class="number"' if column in numeric else ""
        return f"<{tag}{scope}{mark}>{content}</{tag}>"

    head = "".join(cell("th", column, _name(column)) for column in columns)
    body = "".join(
        f"<tr>{''.join(cell('td', column, _value(row.get(column))) for column in columns)}</tr>"
        for row in rows
    )
    return _wide(f"<caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def _wide(table: str) -> str:
    return f'<div class="wide"><table>{table}</table></div>'


def _picture(figure: Mapping[str, Any], folder: Path) -> str:
    caption = _text(figure["caption"])
    try:
        data = (folder / Path(figure["file"]).name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # of a PNG's first chunk
    except (OSError, struct.error):
        return f'<figure class="missing"><figcaption>{escape(figure["file"])} is missing. {caption}</figcaption></figure>'
    source = base64.b64encode(data).decode("ascii")
    shape = ' class="panorama"' if width > 2 * height else ""
    return (
        f'<figure{shape}><div><img width="{width}" height="{height}" alt="{escape(figure["caption"])}" '
        f'src="data:image/png;base64,{source}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _cost(result: Mapping[str, Any]) -> str:
    cost, attrs = result["cost"], result.get("draws", {}).get("attrs", {})
    spent = [
        f"{_number(int(cost[key]) if cost[key].is_integer() else cost[key], 3)} {word}"
        for key, word in (
            ("forwards_per_draw", "denoiser calls"),
            ("vjps_per_draw", "vector-Jacobian products"),
            ("operator_calls_per_draw", "operator calls"),
            ("seconds_per_draw", "s"),
        )
        if cost.get(key)
    ]
    facts = {
        "Method": _code(attrs.get("method")),
        "Solver": _code(attrs.get("solver") if attrs.get("solver") != "none" else None),
        "Prior": _code(attrs.get("prior")),
        "Diagnosis": _text(str(attrs.get("diagnosis", ""))),
        "A draw takes": ", ".join(spent),
        "The whole run": f"{_number(cost.get('wall_seconds'), 3)} s for {_value(cost.get('draws'))} draws"
        f" on {_value(cost.get('threads'))} threads",
        "Seed": _value(result["seed"]),
        "Settings": ", ".join(
            f"{_name(key)} {_value(value)}"
            for key, value in result.get("settings", {}).items()
            if (key, value) != ("seed", result["seed"])
        ),
        "Versions": _versions(result),
        "Again": _code(f"sciddiff run {shlex.quote(result['given'])} --seed {result['seed']} --out DIR"),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    return f"<h3>How it was made</h3><dl>{rows}</dl>"


def _versions(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{escape(name)} {escape(version)}" for name, version in result["versions"].items())


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(part)}</p>" for part in re.split(r"\n\s*\n", inspect.cleandoc(text)))


def _text(text: str) -> str:
    """Escaped, with `code` set as code."""
    return re.sub(r"(`{1,2})([^`]+)\1", r"<code>\2</code>", escape(text))


def _code(text: object) -> str:
    return f"<code>{escape(str(text))}</code>" if text else ""


def _label(result: Mapping[str, Any], name: str) -> str:
    return _text(result["labels"][name]) if name in result["labels"] else _name(name)


def _better(word: str | None) -> str:
    sign, meaning = BETTER.get(word or "", ("", ""))
    return f'<span title="{meaning}">{sign} {word}</span>' if sign else ""


def _name(name: str) -> str:
    """A key as words: ``rel_l2_mean`` is "rel l2 mean"."""
    return escape(name.replace("_", " "))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return _number(value)
    if isinstance(value, (dict, list)):
        return _code(json.dumps(value, ensure_ascii=False))
    return _text(str(value))


def _quantity(value: float, units: str | None) -> str:
    suffix = (
        f'<span class="units">\N{NO-BREAK SPACE}{escape(units)}</span>'
        if units not in (None, "", "1")
        else ""
    )
    return _number(value) + suffix


def _number(value: float | None, digits: int = 4) -> str:
    """As written where that is short, else rounded to some significant digits; integers in full."""
    if value is None or not math.isfinite(value):
        return NOTHING
    sign, size = "\N{MINUS SIGN}" if value < 0 else "", abs(value)
    text = repr(size)
    if isinstance(value, float):
        if size and not 1e-4 <= size < 1e5:
            mantissa, power = f"{size:.{digits}g}".split("e")
            exponent = str(int(power)).replace("-", "\N{MINUS SIGN}")
            return (
                f"{sign}{mantissa}\N{THIN SPACE}\N{MULTIPLICATION SIGN}\N{THIN SPACE}10<sup>{exponent}</sup>"
            )
        if len(text.replace(".", "").lstrip("0")) > digits:
            text = f"{size:.0f}" if size >= 10 ** (digits - 1) else f"{size:#.{digits}g}"
    whole, point, rest = text.rstrip(".").partition(".")
    grouped = f"{int(whole):,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if len(whole) > 4 else whole
    return sign + grouped + point + rest


STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6776; --line: #d9dee6; --pale: #f5f7fa; --mark: #1f5fa8;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: #fff; color: var(--ink);
  font: 17px/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, "DejaVu Serif", serif; }
h1, h2, h3, nav, table, dl, figcaption, .quiet { font-family: var(--sans); }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .5rem; }
h2 { font-size: 1.5rem; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 .75rem; }
h3 { font-size: .95rem; margin: 2rem 0 .5rem; }
p { margin: 0 0 1rem; max-width: 44rem; text-wrap: pretty; }
a { color: var(--mark); text-decoration: none; }
a:hover { text-decoration: underline; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; }
.quiet { color: var(--soft); font-size: .85rem; }
nav ol { margin: 1.5rem 0 0; padding: 0; list-style: none; counter-reset: problem; border-top: 1px solid var(--line); }
nav li { counter-increment: problem; position: relative; padding: .8rem 0 .8rem 2.2rem;
  border-bottom: 1px solid var(--line); }
nav li::before { content: counter(problem); position: absolute; left: 0; color: var(--soft); }
nav a { font-weight: 600; }
.headline { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
.headline b { font-weight: 600; }
.headline .quiet { font-size: inherit; }
details { margin: 2rem 0; }
details .wide { margin: 1rem 0 0; }
summary { font: 600 .95rem var(--sans); cursor: pointer; }
section, footer { margin-top: 4rem; padding-top: 2rem; border-top: 3px solid var(--ink); }
.index { color: var(--soft); font-weight: 400; margin-right: .75rem; }
figure { margin: 1.5rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: .6rem; color: var(--soft); font-size: .88rem; line-height: 1.45; max-width: 48rem; }
.missing { padding: 1rem; background: var(--pale); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
.wide { overflow-x: auto; margin: 2rem 0; }
table { border-collapse: collapse; min-width: min(100%, 34rem); font-size: .9rem; line-height: 1.4; }
caption { text-align: left; font-weight: 600; font-size: .95rem; padding-bottom: .5rem; }
th, td { padding: .45rem 2rem .45rem 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; font-size: .82rem; white-space: nowrap; }
tbody th { font-weight: 400; min-width: 12rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child { min-width: 8rem; }
sup { line-height: 0; }
.better { white-space: nowrap; }
.units, .source, .better { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem; margin: 0; padding: 1rem 1.25rem;
  background: var(--pale); border-radius: 6px; font-size: .88rem; line-height: 1.45; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.notes { margin: 0; padding-left: 1.2rem; max-width: 44rem; }
.notes li { margin-bottom: .4rem; }
@media (max-width: 36rem) {
  body { font-size: 16px; padding-top: 1.5rem; }
  h1 { font-size: 1.6rem; }
  h2 { font-size: 1.3rem; }
  section { margin-top: 3rem; }
  th, td { padding-right: 1.2rem; }
  .panorama div { overflow-x: auto; }
  .panorama img { max-width: none; width: 40rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print {
  @page { margin: 18mm 16mm; }
  html { font-size: 11px; }
  body { max-width: none; padding: 0; font-size: 1.05rem; }
  .pictures { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  section { break-before: page; margin-top: 0; }
  figure, tr, dl, nav li { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  img { max-height: 20cm; width: auto; }
  a { color: inherit; }
  dl { border: 1px solid var(--line); }
}
"""
