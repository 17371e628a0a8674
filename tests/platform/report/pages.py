"""Pages and pictures taken apart, for tests of reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

_VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """A page taken apart: every tag closed in turn, attributes, texts by tag, tables."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def check_alone(source: str) -> Page:
    """Return the page, which loads nothing: no reference to anywhere, and a policy that forbids it."""
    page = Page(source)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"{tag} {name}"
        if name in ("src", "href", "action", "srcset", "data", "poster"):
            assert re.match(r"data:image/png;base64,[A-Za-z0-9+/=]+$", value), f"{tag} {name}={value[:40]}"
    assert "link" not in page.texts
    for code in (*page.texts["style"], *page.texts["script"]):
        assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp|import\s*\(", code)
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert any(value.startswith("default-src 'none'") for value in policies)
    return page


def colours(path: Path) -> int:
    """Return how many colours a picture has: a blank one has 1."""
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(1 << 24) or [])
