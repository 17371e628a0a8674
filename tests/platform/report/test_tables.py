"""Tables, for files and for the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from causalfusion_platform.report.tables import cell, markdown_table, terminal_table


def rendered(table: Table, width: int = 80) -> str:
    """Return the table as a terminal of this width shows it."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (12345.678, "1.235e+04"),
        (0.9, "0.9"),
        (1.0, "1"),
        (1e-8, "1e-08"),
        (float("nan"), "nan"),
        (128, "128"),
        (1234567, "1234567"),
        ("raster", "raster"),
        (True, "True"),
        ([0.9, 0.95], "[0.9, 0.95]"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_a_markdown_table() -> None:
    table = markdown_table(["objective.ar_decay", "class_accuracy"], [[1.0, 0.87654], [0.9, None]])
    assert table == (
        "| objective.ar_decay | class_accuracy |\n| --- | --- |\n| 1 | 0.8765 |\n| 0.9 | – |\n"  #
    )


def test_a_markdown_table_without_rows() -> None:
    assert markdown_table(["a"], []) == "| a |\n| --- |\n"


def test_an_aligned_markdown_table_reads_as_it_is() -> None:
    table = markdown_table(["γ", "a|b"], [[0.95, "x"], [None, "wide 宽"]], aligned=True)
    assert table == (
        "| γ    | a\\|b    |\n| ---- | ------- |\n| 0.95 | x       |\n| –    | wide 宽 |\n"  #
    )


@pytest.mark.parametrize("text", ["int | None expected", "two\nlines"])
def test_a_cell_cannot_break_a_markdown_table(text: str) -> None:
    """Errors are shown in it, and they hold anything."""
    lines = markdown_table(["a", "b"], [[1, text]]).splitlines()
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 3


def test_a_terminal_table_shows_every_value() -> None:
    columns = ["objective.ar_decay", "fd_digits_cnn", "class_accuracy", "images_per_second", "total_seconds"]
    rows: list[list[Any]] = [[1.0, 12.3456, 0.905, 1234.5, 61.0], [0.95, 9.87, None, 999.0, 60.5]]
    text = rendered(terminal_table("sweep gamma", columns, rows))
    assert text.splitlines()[0].strip() == "sweep gamma"
    assert max(map(len, text.splitlines())) <= 80
    for part in ("ar_decay", "1", "12.35", "0.905", "1234", "0.95", "9.87", "–", "999", "60.5"):
        assert part in text
    assert "objective" not in text


def test_headings_that_are_no_keys_stay_whole() -> None:
    heads = ["S=1 T=50 cfg=2.5", "S=2 T=4+8 cfg=1"]
    text = rendered(terminal_table("10 samples", ["", *heads], [["fid", 3.5, 4.5]]))
    for head in heads:
        assert head in text


def test_nothing_is_cut_from_long_cells() -> None:
    error = "RuntimeError: " + "the workers were lost, " * 10
    text = rendered(terminal_table("t", ["a", "b"], [[1, error]]))
    assert "…" not in text
    body = text.rpartition("─")[2]
    assert re.sub(r"[^\w:,]+", "", body) == "1" + re.sub(r"[^\w:,]+", "", error)


@pytest.mark.parametrize("text", ["[gloo] timed out", "no file [/tmp/x]", "[red]alarm[/red]", "list[str]"])
def test_brackets_are_shown_as_they_are(text: str) -> None:
    assert text in rendered(terminal_table("t", ["a", "b"], [[1, text]]))
