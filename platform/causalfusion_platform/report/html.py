"""Fills the templates of reports. Pages open offline: one file each, with its pictures inside."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from .numbers import is_number
from .tables import cell, markdown_table, plain

Change = tuple[str, Any, Any]
"""A key that is not at its default: (dotted key, default, value here)."""


@dataclass(frozen=True)
class Picture:
    """A figure of a page."""

    title: str
    png: bytes
    caption: str = ""

    @property
    def base64(self) -> str:
        """The bytes as a `data:` URL holds them."""
        return base64.b64encode(self.png).decode()


def render(template: str, **values: Any) -> str:
    """Return a template of `templates/`, filled. Templates named `.html` escape all values."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("causalfusion_platform.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        cell=cell,
        plain=plain,
        markdown=lambda table: markdown_table(table.columns, table.rows, aligned=True),
    )
    environment.tests["finite"] = is_number
    return environment
