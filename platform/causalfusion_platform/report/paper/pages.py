"""A table's report as Markdown and as a page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence

from ..html import Picture, render
from ..numbers import duration
from ..tables import cell
from . import content, words
from .content import Grid
from .report import PaperReport

# With more columns the printed values stand above ours in Markdown: lines stay short.
_SIDE_BY_SIDE = 2


def paper_page(report: PaperReport, pictures: Sequence[Picture]) -> str:
    """Return the page with its figures."""
    return render(
        "paper.html",
        title=f"{words.heading(report)} ({report.scale})",
        generated_at=report.around.generated_at,
        report=report,
        words=words,
        content=content,
        values=content.side_by_side(report),
        runs=content.runs(report),
        pictures=pictures,
    )


def render_markdown(report: PaperReport, pictures: Sequence[Picture] = ()) -> str:
    """Return the whole report. Its pictures are files beside it."""
    few = len(report.table.columns) <= _SIDE_BY_SIDE
    return render(
        "paper.md",
        report=report,
        words=words,
        content=content,
        pictures=pictures,
        values=_side_by_side(report) if few else content.stacked(report),
        runs=_runs(report),
    )


def _side_by_side(report: PaperReport) -> Grid:
    """Return printed values beside ours, with one line of names: Markdown has no cells that span columns."""
    grid = content.side_by_side(report)
    heads = [head for head, span in grid.groups for _ in range(span)]
    return Grid([f"{head} {name}".strip() for head, name in zip(heads, grid.columns, strict=True)], grid.rows)


def _runs(report: PaperReport) -> Grid:
    return Grid(
        [report.table.varied, "seed", "status", "images", "parameters", "time", "MLflow run"],
        [
            [
                *(row.label, seed, run.status),
                *(cell(count if count is None else f"{count:,}") for count in (run.images, run.parameters)),
                cell(run.seconds if run.seconds is None else duration(run.seconds)),
                run.mlflow_run_id,
            ]
            for row in report.rows
            for seed, run in row.runs.items()
        ],
    )
