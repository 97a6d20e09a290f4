"""How objects look in a notebook: a title, and under it a table of what they are made of.

Everything is escaped; colours are left to the page. A value with an HTML form of its own stands folded
behind its one-line repr.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["card"]

_CELL = "text-align:left; vertical-align:top; padding:0.1em 1em 0.1em 0; border:0"


def card(title: str, rows: Mapping[str, object]) -> str:
    """The HTML of an object.

    Args:
        title: its kind.
        rows: names of its parts and the parts themselves: text, numbers, or objects with a ``_repr_html_``.

    Example:
        >>> card("Pair", {"first": 1, "<b>": "x & y"}).count("<tr>")
        2
    """
    lines = (
        f'<tr><th style="{_CELL}">{escape(name)}</th><td style="{_CELL}">{_value(part)}</td></tr>'
        for name, part in rows.items()
    )
    return f'<div><strong>{escape(title)}</strong><table style="border:0">{"".join(lines)}</table></div>'


def _value(part: object) -> str:
    inside = getattr(part, "_repr_html_", None)
    line = escape(part if isinstance(part, str) else repr(part))
    return line if inside is None else f"<details><summary>{line}</summary>{inside()}</details>"
