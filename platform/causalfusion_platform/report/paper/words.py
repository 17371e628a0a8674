"""The sentences of a table's report: its budget, what is missing, what limits it, and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...config.paper_table import HIGHER_IS_BETTER, Column, Metric
from ..numbers import count, duration, significant
from .report import PRINTED_ORDER, ClaimResult, PaperReport, confidence_of
from .statistics import VERDICTS, spread

# Fréchet distances of fewer samples than the paper's 10,000 are visibly too large.
_ENOUGH_SAMPLES = 10_000

FEWER = "†"
"""Marks a mean over fewer seeds than planned."""

METRIC_NAMES: dict[Metric, str] = {
    "fid": "FID",
    "denoising_loss": "denoising loss",
    "inception_score": "inception score",
    "precision": "precision",
    "recall": "recall",
    "top1": "top-1 accuracy",
    "cider": "CIDEr",
    "caption_class": "captions with the right class",
    "caption_all": "captions with all words right",
    "t2i_class": "drawings of the right class",
    "t2i_ink": "drawings with the right ink",
    "t2i_slant": "drawings with the right slant",
    "t2i_width": "drawings with the right width",
    "t2i_unseen_class": "drawings of unseen cells of the right class",
    "t2i_unseen_ink": "drawings of unseen cells with the right ink",
    "t2i_unseen_slant": "drawings of unseen cells with the right slant",
    "t2i_unseen_width": "drawings of unseen cells with the right width",
}


def heading(report: PaperReport) -> str:
    """Return the report's title."""
    return f"{report.table.source}: {report.table.title}"


def key(report: PaperReport) -> str:
    """Return the meaning of the numbers of the table."""
    numbers = {report.number(column): column for column in report.table.columns}
    ours = ", ".join(
        number if report.same_metric(column) else f"{number} in place of {METRIC_NAMES[column.metric]}"
        for number, column in numbers.items()
    )
    seeds = len(report.plan.seeds)
    over = f"mean ± 95% interval over {seeds} seeds" if seeds > 1 else "one seed"
    fewer = any(0 < cell.ours.n < seeds for row in report.rows for cell in row.cells)
    return (
        f"Paper: {report.table.measured}. Ours: {ours}; {over}{f'; {FEWER} of fewer' if fewer else ''}. "
        f"↓ less is better, ↑ more is better."
        f"{' a / b in a label: the paper has a, we have b.' if _two_labels(report) else ''}"
    )


def notes(report: PaperReport) -> list[str]:
    """Return the note of the table's file, if there is one."""
    return [" ".join(report.table.note.split())] if report.table.note else []


def method(report: PaperReport) -> str:
    """Return how orderings are decided."""
    error = 1 - confidence_of(report.plan)
    looks = (
        f" Orderings may be looked at twice, before and after seeds are added, so that each look has "
        f"half the error: intervals of gains are of {1 - error:.1%}."
        if report.plan.looks > 1
        else ""
    )
    by_loss = (
        " Orderings by the loss are the paper's too, but decided by the denoising loss on held-out images."
        if any(claim.by_loss for claim in report.claims)
        else ""
    )
    return (
        "Intervals of values: 95%, Student's t over seeds; they cover another seed, not an error that all rows "
        "share. Rows with the same seeds are compared seed by seed (paired t), others by Welch's t. An ordering "
        f"holds if the interval of each of its pairs lies above 0. It fails if some pair is reversed with "
        f"p ≤ {error:g}, corrected over its pairs (Holm). Otherwise it is undecided.{looks}{by_loss} Nothing is "
        f"corrected over orderings."
    )


def noise(report: PaperReport) -> list[str]:
    """Return how much each measure moves when nothing but its random numbers changes, beside another seed."""
    lines = []
    for place, column in enumerate(report.table.columns):
        again = spread(report.around.repeats.get(column.name, ()))
        if again is None:
            continue
        seeds = spread(row.cells[place].by_seed.values() for row in report.rows)
        beside = "" if seeds is None else f"; with another training seed {significant(seeds)}"
        models = count(len(report.around.repeats[column.name]), "model")
        lines.append(
            f"{report.number(column)}, {column.name}: measured again on the same {models}, its standard deviation "
            f"is {significant(again)}{beside}."
        )
    return lines


def budget(report: PaperReport) -> dict[str, str]:
    """Return the cost of the numbers: name → text."""
    plan, around = report.plan, report.around
    runs = [run for row in report.rows for run in row.runs.values()]
    seeds = f"{count(len(report.rows), 'row')} × {count(len(plan.seeds), 'seed')}"
    images = sorted({run.images for run in runs if run.images is not None})
    parameters = sorted({run.parameters for run in runs if run.parameters is not None})
    seconds = [run.seconds for run in runs if run.seconds is not None]
    times = [f"{duration(sum(seconds))} of training runs, other tables' included"] if seconds else []
    if around.wall_seconds is not None:
        times.append(f"{duration(around.wall_seconds)} from the first start of this table's own to the last end")
    facts = {
        "scale": report.scale,
        "runs": f"{len(runs)} of {len(report.rows) * len(plan.seeds)}: {seeds} ({_numbers(plan.seeds)})",
        "training": f"{count_span(images)} images" if images else "",
        "model": f"{count_span(parameters)} parameters" if parameters else "",
        "samples": f"{plan.samples:,} for each value{' of a row without a fine-tune' if around.finetunes else ''}",
        **{report.number(column): around.spaces.get(report.number(column), "") for column in report.table.columns},
        "fine-tunes": around.finetunes,
        "time": ", ".join(times),
        "hardware": around.hardware,
    }
    return {name: text for name, text in facts.items() if text}


def caveats(report: PaperReport) -> list[str]:
    """Return the limits that a reader must know before quoting a number."""
    plan, found = report.plan, []
    other = sorted({report.number(column) for column in report.table.columns if not report.same_metric(column)})
    if other:
        found.append(
            f"{_listed(other)} {'are' if len(other) > 1 else 'is'} not what the paper measured: only orders and "
            f"the shapes of curves compare with printed values."
        )
    if plan.samples < _ENOUGH_SAMPLES and any(column.metric == "fid" for column in report.table.columns):
        found.append(
            f"A Fréchet distance of {plan.samples:,} samples is biased upwards: compare it only with distances of "
            f"as many samples."
        )
    if len(plan.seeds) == 1:
        found.append("One seed: there are no intervals, and no ordering can hold or fail.")
    elif len(plan.seeds) < 5:
        found.append(f"{len(plan.seeds)} seeds: intervals are wide, and small differences stay undecided.")
    images = {run.images for row in report.rows for run in row.runs.values() if run.images is not None}
    if len(images) > 1:
        found.append(f"Runs saw different numbers of images: {min(images):,} to {max(images):,}.")
    found += [f"Left out of the means, not a number: {text}." for text in _not_finite(report)]
    methods = {pair.gain.method for claim in orderings(report) for pair in claim.pairs}
    if "Welch's t" in methods and "paired t" in methods:
        found.append("Some rows lack seeds that others have: these are compared by Welch's t, the rest in pairs.")
    return found


def missing(report: PaperReport) -> list[str]:
    """Return sentences that name missing values, and last the command that runs them. Empty if all are there."""
    lines = []
    for row in report.rows:
        lacking = {
            column.name: tuple(seed for seed, value in cell.by_seed.items() if value is None)
            for column, cell in zip(report.table.columns, row.cells, strict=True)
            if cell.by_seed
        }
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, seeds in lacking.items():
            groups.setdefault(seeds, []).append(name)
        for seeds, names in groups.items():
            if seeds:
                which = "" if len(names) == len(lacking) else f", {_listed(names)}"
                lines.append(f"{report.table.varied} {row.label}{which}: seed {', '.join(map(str, seeds))}")
    if not lines:
        return []
    return [f"Missing: {'; '.join(lines)}.", f"To run what is missing: {report.around.command}"]


def claim_text(claim: ClaimResult) -> str:
    """Return an ordering and how its pairs came out. Renderings put its verdict before it."""
    counts = [f"{verdict} {claim.count(verdict)}" for verdict in VERDICTS if claim.count(verdict)]
    tau = "" if claim.tau is None else f"; Kendall's τ-b {claim.tau:.2f} over {claim.rows} rows"
    whose = " (our claim, not the paper's)" if claim.ours else ""
    origin = "printed" if claim.says == PRINTED_ORDER else "claimed"
    return (
        f"{claim.column}: {claim.says}{whose}; {claim.as_printed} of {count(len(claim.pairs), 'pair')} as {origin} "
        f"({', '.join(counts)}){tau}"
    )


def orderings(report: PaperReport) -> tuple[ClaimResult, ...]:
    """Return all that is decided: the claims of the table's file, then the printed order of each column."""
    return (*report.claims, *report.orders)


def arrow(column: Column) -> str:
    """Return the header's mark of which values are better."""
    return "↑" if column.metric in HIGHER_IS_BETTER else "↓"


def _two_labels(report: PaperReport) -> bool:
    return report.scale != "paper" and any(row.small_label not in (None, row.label) for row in report.table.rows)


def _not_finite(report: PaperReport) -> list[str]:
    return [
        f"{row.label}, {column.name}, seed {seed} ({value})"
        for row in report.rows
        for column, cell in zip(report.table.columns, row.cells, strict=True)
        for seed, value in cell.by_seed.items()
        if value is not None and not math.isfinite(value)
    ]


def count_span(counts: Sequence[int]) -> str:
    """Return the least and the largest of ascending counts, or the only one."""
    return f"{counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")


def _numbers(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
