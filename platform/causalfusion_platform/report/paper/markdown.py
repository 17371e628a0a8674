"""A table's report as Markdown, readable as it is in about 100 columns."""

from __future__ import annotations

import textwrap

from ..numbers import duration
from ..tables import markdown_table
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

_WIDTH = 100
# With more columns the printed values stand above ours: lines stay short.
_SIDE_BY_SIDE = 2


def render_markdown(report: PaperReport) -> str:
    """Return the whole report."""
    lineage = report.around.lineage
    parts = [
        f"# {heading(report)}\n",
        _table(report),
        *(_wrapped(line) for line in (key(report), *notes(report), *missing(report))),
        "## Orderings\n",
        _items([f"**{claim.verdict}**: {claim_text(claim)}" for claim in orderings(report)]),
        _wrapped(METHOD),
        "## Budget\n",
        _items([f"{name}: {text}" for name, text in budget(report).items()]),
        *(["## Limits\n", _items(caveats(report))] if caveats(report) else []),
        *(["## Pairs of the claims\n", *_pairs(report)] if report.claims else []),
        "## Runs\n",
        _runs(report),
        *(["## Made from\n", _items([f"{name}: {text}" for name, text in lineage.items()])] if lineage else []),
        _wrapped(f"Report of {report.around.generated_at}, by `{report.around.command}`"),
    ]
    return "\n".join(parts)


def _table(report: PaperReport) -> str:
    heads = [f"{column.name} {arrow(column)}" for column in report.table.columns]
    labels = [row.label for row in report.rows]
    texts = cell_texts(report)
    if len(heads) <= _SIDE_BY_SIDE:
        columns = [report.table.varied, *(f"{head} {whose}" for head in heads for whose in ("paper", "ours"))]
        rows = [
            [label, *(text for cell in line for text in cell)] for label, line in zip(labels, texts, strict=True)
        ]
        return markdown_table(columns, rows, aligned=True)
    rows = []
    for label, line in zip(labels, texts, strict=True):
        rows += [[label, "paper", *(printed for printed, _ in line)], ["", "ours", *(ours for _, ours in line)]]
    return markdown_table([report.table.varied, "", *heads], rows, aligned=True)


def _pairs(report: PaperReport) -> list[str]:
    return [
        f"{claim.column}: {claim.says}\n\n"
        + markdown_table(pair_columns(report), [pair_cells(report, pair) for pair in claim.pairs], aligned=True)
        for claim in report.claims
    ]


def _runs(report: PaperReport) -> str:
    rows = [
        [
            row.label,
            seed,
            run.status,
            None if run.images is None else f"{run.images:,}",
            None if run.parameters is None else f"{run.parameters:,}",
            None if run.seconds is None else duration(run.seconds),
            run.mlflow_run_id,
        ]
        for row in report.rows
        for seed, run in row.runs.items()
    ]
    columns = [report.table.varied, "seed", "status", "images", "parameters", "time", "MLflow run"]
    return markdown_table(columns, rows, aligned=True)


def _items(texts: list[str]) -> str:
    return "".join(f"- {_filled(text, indent='  ')}\n" for text in texts)


def _wrapped(text: str) -> str:
    return f"{_filled(text)}\n"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH - len(indent), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
