"""A table's report as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .report import ClaimResult, PaperReport, TableCell
from .statistics import finite
from .words import caveats

FORMAT = 1
"""Raised when a key of the report changes its meaning or goes."""


def report_json(report: PaperReport) -> dict[str, Any]:
    """Return the report as plain data. A value that is not a number is null, and named under `limits`."""
    table, plan = report.table, report.plan
    return {
        "format": FORMAT,
        "table": table.name,
        "source": table.source,
        "title": table.title,
        "note": table.note,
        "scale": report.scale,
        "complete": report.complete,
        "samples": plan.samples,
        "seeds": list(plan.seeds),
        "columns": [
            {
                "name": column.name,
                "metric": column.metric,
                "number": report.number(column),
                "finetune": column.trained_as,
            }
            for column in table.columns
        ],
        "rows": [
            {
                "file": row.file,
                "label": row.label,
                "values": {column.name: _cell(cell) for column, cell in zip(table.columns, row.cells, strict=True)},
                "runs": {str(seed): asdict(run) for seed, run in row.runs.items()},
            }
            for row in report.rows
        ],
        "claims": [_claim(claim) for claim in report.claims],
        "orders": [_claim(claim) for claim in report.orders],
        "limits": caveats(report),
        "circumstances": asdict(report.around),
    }


def _cell(cell: TableCell) -> dict[str, Any]:
    numbers = finite(cell.by_seed)
    return {
        "printed": cell.printed,
        **asdict(cell.ours),
        "by_seed": {str(seed): numbers.get(seed) for seed in cell.by_seed},
    }


def _claim(claim: ClaimResult) -> dict[str, Any]:
    return {
        "says": claim.says,
        "column": claim.column,
        "over": claim.over,
        "by_loss": claim.by_loss,
        "ours": claim.ours,
        "verdict": claim.verdict,
        "as_printed": claim.as_printed,
        "tau": claim.tau,
        "pairs": [asdict(pair) for pair in claim.pairs],
    }
