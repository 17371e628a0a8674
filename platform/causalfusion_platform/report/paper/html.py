"""A table's report as one page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..html import Html, Picture, document, facts, figure, folded, items, paragraph, section, table, text, verdict
from ..sweeps.html import Change, changes
from .report import PaperReport
from .words import (
    METHOD,
    arrow,
    budget,
    caveats,
    cell_texts,
    claim_text,
    heading,
    key,
    missing,
    notes,
    orderings,
    pair_cells,
    pair_columns,
)


def paper_page(report: PaperReport, pictures: Sequence[Picture], changed: Sequence[Change] = ()) -> str:
    """Return the page.

    Args:
        report: what was measured.
        pictures: its figures.
        changed: keys of the rows' experiments that are not at their defaults.
    """
    around = report.around
    body = [
        *(paragraph(line, kind="undecided") for line in missing(report)),
        section(
            "Table", _table(report), *(paragraph(line, kind="faint") for line in (key(report), *notes(report)))
        ),
        section("Orderings of the paper", *_orderings(report), paragraph(METHOD, kind="faint")),
        section("Figures", *map(figure, pictures)),
        section("Budget", facts(budget(report))),
        section("Limits", items(caveats(report))),
        section("Runs", _runs(report)),
        section("Configuration", changes(changed)),
        section("Made from", facts(around.lineage), paragraph(f"Again: {around.command}", kind="faint")),
    ]
    return document(f"{heading(report)} ({report.scale})", body, generated_at=around.generated_at)


def _table(report: PaperReport) -> Html:
    columns = report.table.columns
    groups = [("", 1), *((f"{column.name} {arrow(column)}", 2) for column in columns)]
    rows = [
        [row.label, *(number for cell in cells for number in cell)]
        for row, cells in zip(report.rows, cell_texts(report), strict=True)
    ]
    return table([report.table.varied, *["paper", "ours"] * len(columns)], rows, groups=groups, right_from=1)


def _orderings(report: PaperReport) -> list[Html]:
    return [
        folded(
            Html(f"{verdict(claim.verdict)} {text(claim_text(claim))}"),
            table(pair_columns(report), [pair_cells(report, pair) for pair in claim.pairs]),
        )
        for claim in orderings(report)
    ]


def _runs(report: PaperReport) -> Html:
    names = [column.name for column in report.table.columns]
    rows: list[list[Any]] = [
        [
            row.label,
            seed,
            run.status,
            *(cell.by_seed[seed] for cell in row.cells),
            run.images,
            run.parameters,
            run.seconds,
            run.folder,
            run.mlflow_run_id,
        ]
        for row in report.rows
        for seed, run in row.runs.items()
    ]
    columns = [
        report.table.varied,
        "seed",
        "status",
        *names,
        "images",
        "parameters",
        "seconds",
        "folder",
        "MLflow run",
    ]
    return table(columns, rows, sortable=True) if rows else Html("")
