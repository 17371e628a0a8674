"""Pages that open offline: one file each, pictures inside, nothing fetched, whole without scripts."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType

from .html_style import CSS, SCRIPT
from .numbers import is_number
from .tables import cell

Html = NewType("Html", str)
"""Markup, in which all text is escaped; functions that take any other text escape it."""

# Even if something slipped through: a page may load nothing and send nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
# Text from here on, such as a path or an error, is set small and may break anywhere.
_LONG = 36


@dataclass(frozen=True)
class Picture:
    """A figure of a page."""

    title: str
    png: bytes
    caption: str = ""


def text(value: object) -> Html:
    """Return a value as text of a page."""
    return Html(html.escape(str(value), quote=True))


def document(title: str, body: Sequence[Html], *, generated_at: str) -> str:
    """Return a whole page.

    Args:
        title: its title and first heading.
        body: what follows.
        generated_at: date and time, as they are to be shown.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>",
            f"<style>{CSS}</style>",
            "</head>",
            "<body>",
            f"<h1>{text(title)}</h1>",
            paragraph(generated_at, kind="faint"),
            *body,
            f"<script>{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, *parts: Html) -> Html:
    """Return a heading and what follows it; nothing if there is nothing."""
    return Html("\n".join([f"<section><h2>{text(title)}</h2>", *parts, "</section>"])) if any(parts) else Html("")


def paragraph(words: str, kind: str = "") -> Html:
    """Return a paragraph."""
    return Html(f"<p{_class(kind)}>{text(words)}</p>")


def items(lines: Sequence[str]) -> Html:
    """Return a list; nothing if it is empty."""
    return Html(f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>") if lines else Html("")


def facts(named: Mapping[str, object]) -> Html:
    """Return names with what they stand for; nothing if there are none."""
    lines = "".join(f"<dt>{text(name)}</dt><dd>{text(cell(value))}</dd>" for name, value in named.items())
    return Html(f"<dl>{lines}</dl>") if lines else Html("")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    sortable: bool = False,
    right_from: int | None = None,
    best: int | None = None,
) -> Html:
    """Return a table; numbers and what has none stand at the right of their columns.

    Args:
        columns: names.
        rows: values.
        groups: a line above the names: (text, columns that it spans).
        sortable: a script lets people sort and filter it; not with groups.
        right_from: the column from which on text stands at the right, too.
        best: row to be set off.
    """
    above = "".join(f'<th colspan="{span}">{text(name)}</th>' for name, span in groups)
    names = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    head = "".join(f"<tr>{line}</tr>" for line in (above, names) if line)
    lines = [
        f"<tr{_class('best' if place == best else '')}>{_cells(row, right_from)}</tr>"
        for place, row in enumerate(rows)
    ]
    kind = _class("sortable" if sortable else "")
    return Html(
        f'<div class="wide"><table{kind}><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def folded(summary: Html, *parts: Html) -> Html:
    """Return parts that show when their summary is clicked."""
    return Html(f"<details><summary>{summary}</summary>{''.join(parts)}</details>")


def figure(picture: Picture) -> Html:
    """Return a picture, whose bytes become part of the page."""
    data = base64.b64encode(picture.png).decode()
    caption = f"<figcaption>{text(picture.caption)}</figcaption>" if picture.caption else ""
    image = f'<img alt="{text(picture.title)}" src="data:image/png;base64,{data}">'
    return Html(f"<figure>{image}{caption}</figure>")


def verdict(word: str) -> Html:
    """Return a verdict, coloured."""
    return Html(f'<span class="verdict {word.replace(" ", "")}">{text(word)}</span>')


def _cells(row: Sequence[Any], right_from: int | None) -> str:
    right = len(row) if right_from is None else right_from
    return "".join(_cell(value, place >= right) for place, value in enumerate(row))


def _cell(value: object, right: bool) -> str:
    if value is None:
        return f'<td class="number" data-empty>{text(cell(value))}</td>'
    if is_number(value):
        return f'<td class="number" data-number="{value}">{text(cell(value))}</td>'
    kind = "number" if right else "long" if len(str(value)) > _LONG else "short"
    return f"<td{_class(kind)}>{text(cell(value))}</td>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
