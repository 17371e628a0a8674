"""Tables of a report, as columns and rows that every rendering shows: values, pairs of rows, and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .numbers import gain_with_interval, p_text, printed_values, with_interval
from .report import ClaimResult, PaperReport
from .words import FEWER, arrow


@dataclass(frozen=True)
class Grid:
    """A table of texts and numbers."""

    columns: list[str]
    rows: list[list[Any]]
    """None stands for a missing value."""
    groups: Sequence[tuple[str, int]] = ()
    """A line above the names of columns: (text, columns that it spans)."""


def side_by_side(report: PaperReport) -> Grid:
    """Return printed values with ours beside them: one row of the table is one row of the grid."""
    heads = heads_of(report)
    return Grid(
        [report.table.varied, *["paper", "ours"] * len(heads)],
        [
            [row.label, *(text for pair in zip(*_texts(report, place), strict=True) for text in pair)]
            for place, row in enumerate(report.rows)
        ],
        [("", 1), *((head, 2) for head in heads)],
    )


def stacked(report: PaperReport) -> Grid:
    """Return printed values with ours below them: one row of the table is two rows of the grid."""
    rows: list[list[Any]] = []
    for place, row in enumerate(report.rows):
        printed, ours = _texts(report, place)
        rows += [[row.label, "paper", *printed], ["", "ours", *ours]]
    return Grid([report.table.varied, "", *heads_of(report)], rows)


def heads_of(report: PaperReport) -> list[str]:
    """Return the name of each column, with the arrow that says which values are better."""
    return [f"{column.name} {arrow(column)}" for column in report.table.columns]


def pairs(report: PaperReport, claim: ClaimResult) -> Grid:
    """Return the pairs that a claim is made of."""
    varied = report.table.varied
    return Grid(
        [f"better {varied}", f"worse {varied}", "gain", "n", "test", "p (Holm)", "verdict"],
        [
            [
                report.label(pair.better) + (f", {claim.column}" if claim.over else ""),
                report.label(pair.worse) + (f", {claim.over}" if claim.over else ""),
                gain_with_interval(pair.gain),
                str(pair.gain.n or "–"),
                pair.gain.method,
                p_text(pair.holm_p),
                pair.verdict,
            ]
            for pair in claim.pairs
        ],
    )


def runs(report: PaperReport) -> Grid:
    """Return every run with its values."""
    names = [column.name for column in report.table.columns]
    after = ["images", "parameters", "seconds", "folder", "MLflow run"]
    return Grid(
        [report.table.varied, "seed", "status", *names, *after],
        [
            [
                *(row.label, seed, run.status),
                *(cell.by_seed.get(seed) for cell in row.cells),
                *(run.images, run.parameters, run.seconds, run.folder, run.mlflow_run_id),
            ]
            for row in report.rows
            for seed, run in row.runs.items()
        ],
    )


def _texts(report: PaperReport, place: int) -> tuple[list[str], list[str]]:
    """Return the printed values of a row and ours, marked where seeds are missing."""
    planned = len(report.plan.seeds)
    printed = [
        printed_values([row.cells[column].printed for row in report.rows])[place]
        for column in range(len(report.table.columns))
    ]
    found = [cell.ours for cell in report.rows[place].cells]
    return printed, [with_interval(one) + (f" {FEWER}" if 0 < one.n < planned else "") for one in found]
