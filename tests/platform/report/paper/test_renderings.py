"""A table's report as Markdown, LaTeX, JSON, and on a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.platform.report.made_tables import AROUND, gammas, losses, plane, report_of, systems

from causalfusion_platform.config.paper_table import Column, PaperTable, Row
from causalfusion_platform.report.html import Picture
from causalfusion_platform.report.paper import words
from causalfusion_platform.report.paper.json import report_json
from causalfusion_platform.report.paper.latex import latex_text, render_latex
from causalfusion_platform.report.paper.pages import render_markdown
from causalfusion_platform.report.paper.report import PaperReport
from causalfusion_platform.report.paper.terminal import render_terminal

ODD = r"50% & more_#1 {x} ~ ^ \ $ a|b <i>"


def odd() -> PaperTable:
    """Return a table whose texts hold whatever markup could stumble over."""
    rows = (Row(file="a", label=ODD, printed=(1.0, 2.0)), Row(file="b", label="[red]b[/red]", printed=(2.0, 3.0)))
    return gammas(rows=rows, claims=(), title=f"title {ODD}", measured=f"measured {ODD}")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a text: lines of cells, the line of dashes left out."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if not line.startswith("|"):
            tables.append([])
            continue
        cells = [part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not all(set(cell) <= {"-"} and cell for cell in cells):
            tables[-1].append(cells)
    return [table for table in tables if table]


# Markdown


def test_a_markdown_table_has_the_papers_values_over_ours() -> None:
    table = gammas(columns=tuple(Column(name=f"S = {n}") for n in (1, 2, 4)),
                   rows=(Row(file="g10", label="1.0", printed=(4.0, 6.0, None)),), claims=())  # fmt: skip
    found = markdown_tables(render_markdown(report_of(table, lambda *cell: 2.0 + cell[3])))[0]
    assert found == [
        ["γ", "", "S = 1 ↓", "S = 2 ↓", "S = 4 ↓"],
        ["1.0", "paper", "4", "6", "–"],
        ["", "ours", "3.0 ± 2.5", "3.0 ± 2.5", "3.0 ± 2.5"],
    ]


def test_a_narrow_markdown_table_has_them_side_by_side() -> None:
    found = markdown_tables(render_markdown(report_of(gammas())))[0]
    assert found[0] == ["γ", "S = 1 ↓ paper", "S = 1 ↓ ours", "S = 2 ↓ paper", "S = 2 ↓ ours"]
    assert [row[:2] for row in found[1:]] == [["1.0", "21.31"], ["0.9", "12.89"], ["0.8", "13.00"]]
    assert found[1][2] == "10.666 ± 0.026"


def test_markdown_reads_without_a_viewer() -> None:
    for report in (report_of(gammas()), report_of(systems()), report_of(plane(), without=[("s1", 0)])):
        text = render_markdown(report)
        assert max(cell_len(line) for line in text.splitlines() if not line.startswith("|")) <= 100
        for block in text.split("\n\n"):
            lengths = {cell_len(line) for line in block.splitlines() if line.startswith("|")}
            assert len(lengths) <= 1, "the bars of a table stand above each other"
        for part in ("## Limits", "2031-02-03 04:05 UTC", "0123abc"):
            assert part in text


def test_markdown_begins_with_what_came_of_the_claims() -> None:
    """Then pictures and numbers, how they were decided, and what they cost."""
    around = dataclasses.replace(AROUND, repeats={"S = 1": [(10.0, 10.5)]})
    report = report_of(losses(), around=around)
    text = render_markdown(report, [Picture("values", b"png", "the values")])
    headings = ["Numbers", "Orders of whole columns", "How orderings are decided", "Budget"]
    headings += ["Limits", "Pairs of the claims", "Runs", "Made from"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == headings
    start, rest = text.split("## Numbers")
    assert start.startswith("# Table 9: AR-step decay γ\n\n- **holds**: S = 1: γ < 1 is better; ")
    assert re.findall(r"^- \*\*([\w ]+)\*\*: ", start, re.MULTILINE) == [one.verdict for one in report.claims]
    assert start.endswith("![values](values.png)\n\nthe values\n\n")
    decided = " ".join(rest.split("## How orderings are decided")[1].split("## Budget")[0].split())
    [noise] = words.noise(report)
    assert decided == f"{words.method(report)} - {noise}"
    assert rest.endswith("made by\n\n    causalfusion reproduce gammas --scale digits\n")


def test_markdown_without_claims_or_orders_has_neither() -> None:
    table = gammas(claims=(), rows=(Row(file="a", label="a", printed=(None, None)),))
    text = render_markdown(report_of(table, lambda *_: 1.0))
    assert "Orders of whole columns" not in text and "Pairs of the claims" not in text
    assert "**" not in text


def test_markdown_cells_keep_odd_texts() -> None:
    tables = markdown_tables(render_markdown(report_of(odd())))
    assert {len(line) for table in tables[:1] for line in table} == {5}
    assert tables[0][1][0] == ODD


def test_a_part_of_the_rows_makes_a_report_that_says_so() -> None:
    text = render_markdown(report_of(gammas(), without=[("g09", seed) for seed in (0, 1, 2)]))
    assert ["0.9", "12.89", "–", "15.50", "–"] in markdown_tables(text)[0]
    assert "Missing: γ 0.9: seed 0, 1, 2." in text
    assert "To run what is missing: causalfusion reproduce gammas --scale digits" in text


def test_the_tables_note_is_shown() -> None:
    report = report_of(gammas(note="Rows are\n  read so."))
    assert "Rows are read so." in render_markdown(report)
    assert "Rows are read so." in shown(report)


# LaTeX


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", r"a\_b"),
        ("50%", r"50\%"),
        ("a & b", r"a \& b"),
        ("#1", r"\#1"),
        ("~", r"\textasciitilde{}"),
        ("x^2", r"x\textasciicircum{}2"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("$5", r"\$5"),
        ("a|b<c>", "a$|$b$<$c$>$"),
        ("γ = 0.9, λ → 1", r"$\gamma$ = 0.9, $\lambda$ $\to$ 1"),
        ("8×8 ± 1 ↓ –", r"8$\times$8 $\pm$ 1 $\downarrow$ --"),
        ("−1", "$-$1"),
        ("Fréchet", "Fréchet"),
        ("two\nlines", "two lines"),
        ("☃", "[U+2603]"),
    ],
)
def test_texts_for_latex(text: str, expected: str) -> None:
    assert latex_text(text) == expected


def read_latex(text: str) -> tuple[str, list[list[str]]]:
    """Return the columns' specification and the cells of a tabular, as TeX would split them.

    Braces are balanced, and every $ has its partner.
    """
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    plain = re.sub(r"\\[\\{}$&%#_]", "", body)
    depth = 0
    for sign in plain:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[#^~%]", plain)
    begun = re.findall(r"\\begin\{(\w+)\}", body)
    assert begun == re.findall(r"\\end\{(\w+)\}", body)[::-1]
    spec, inside = re.search(r"\\begin\{tabular\}\{(\w+)\}(.*)\\end\{tabular\}", body, re.DOTALL).groups()  # type: ignore[union-attr]
    rows = [row.replace("\\hline", "").strip() for row in inside.split("\\\\\n")]
    return spec, [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows if row]


def test_a_latex_table_has_as_many_cells_as_columns() -> None:
    for report in (report_of(gammas()), report_of(systems()), report_of(plane()), report_of(odd())):
        spec, rows = read_latex(render_latex(report))
        for row in rows:
            spans = [int(span[1]) if (span := re.match(r"\\multicolumn\{(\d)\}", cell)) else 1 for cell in row]
            assert sum(spans) == len(spec)


def test_a_latex_table_has_the_papers_values_beside_ours() -> None:
    _, rows = read_latex(render_latex(report_of(gammas(), without=[("g09", seed) for seed in (0, 1, 2)])))
    assert rows[0] == [
        r"$\gamma$",
        r"\multicolumn{2}{c}{S = 1 $\downarrow$}",
        r"\multicolumn{2}{c}{S = 2 $\downarrow$}",
    ]
    assert rows[2] == ["1.0", "21.31", r"10.666 $\pm$ 0.026", "22.17", r"11.096 $\pm$ 0.028"]
    assert rows[3] == ["0.9", "12.89", "--", "15.50", "--"]


def test_a_latex_caption_says_what_the_numbers_are() -> None:
    text = render_latex(report_of(gammas(), without=[("g09", 1)]))
    caption = re.search(r"\\caption\{(.*)\}\n", text)
    assert caption
    for part in (
        "Table 9: AR-step decay $\\gamma$",
        r"fd\_digits\_cnn",
        "3 seeds",
        "Missing: $\\gamma$ 0.9: seed 1",
    ):
        assert part in caption[1]
    assert "\\label{tab:gammas-digits}" in text


def test_latex_needs_no_other_letters_than_ascii() -> None:
    for report in (report_of(gammas()), report_of(systems()), report_of(plane())):
        render_latex(report).encode("ascii")


# JSON


def test_the_json_holds_all_values() -> None:
    def value(file: str, column: Column, printed: float | None, seed: int) -> float | None:
        return (
            math.nan
            if (file, seed) == ("g09", 1)
            else None
            if (file, seed) == ("g08", 2)
            else (printed or 0) + seed
        )

    tree = json.loads(json.dumps(report_json(report_of(gammas(), value)), allow_nan=False))
    assert (tree["format"], tree["table"], tree["scale"], tree["complete"]) == (1, "gammas", "digits", False)
    cell = tree["rows"][0]["values"]["S = 1"]
    assert cell["printed"] == 21.31
    assert cell["by_seed"] == {"0": 21.31, "1": 22.31, "2": 23.31}
    assert (cell["n"], cell["mean"]) == (3, pytest.approx(22.31))
    assert tree["rows"][1]["values"]["S = 1"]["by_seed"] == {"0": 12.89, "1": None, "2": 14.89}
    assert any("0.9, S = 1, seed 1 (nan)" in text for text in tree["limits"])
    assert tree["rows"][0]["runs"]["2"]["folder"] == "/runs/g10.seed-2"
    assert {pair["better"] for pair in tree["claims"][0]["pairs"]} == {"g09", "g08"}
    assert [claim["by_loss"] for claim in tree["claims"]] == [False]
    with_losses = report_json(report_of(losses()))["claims"]
    assert [(claim["column"], claim["over"], claim["by_loss"]) for claim in with_losses] == [
        ("S = 1", None, False),
        ("loss, S = 1", None, True),
        ("S = 2", "S = 1", False),
        ("loss, S = 2", "loss, S = 1", True),
    ]
    assert tree["circumstances"]["lineage"] == {"commit": "0123abc"}


# Terminal


def shown(report: PaperReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(render_terminal(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("table", [gammas(), systems(), plane(), odd()], ids=lambda table: str(table.name))
def test_a_terminal_of_80_columns_shows_every_value(table: PaperTable) -> None:
    report = report_of(table, without=[(table.rows[1].file, 1)])
    text = shown(report)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "…" not in text
    squeezed = re.sub(r"\s", "", text)
    for column in table.columns:
        assert re.sub(r"\s", "", column.name) in squeezed
    numbers = [float(word) for word in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", text)]
    for row in report.rows:
        for cell in row.cells:
            assert cell.printed is None or cell.printed in numbers
            assert cell.ours.mean is None or any(math.isclose(cell.ours.mean, n, rel_tol=0.005) for n in numbers)


def test_a_terminal_shows_verdicts_and_what_is_missing() -> None:
    text = " ".join(shown(report_of(gammas(), without=[("g08", 2)])).split())
    assert "holds S = 1: γ < 1 is better; 2 of 2 pairs as claimed (holds 2)" in text
    assert "Missing: γ 0.8: seed 2." in text
    assert "To run what is missing: causalfusion reproduce gammas --scale digits" in text
    assert "hardware 2 cores" in text


def test_brackets_are_no_styles() -> None:
    around = dataclasses.replace(AROUND, hardware="[red]2[/red] cores")
    text = shown(report_of(odd(), around=around))
    assert "[red]2[/red] cores" in text
    assert "[red]b[/red]" in text
