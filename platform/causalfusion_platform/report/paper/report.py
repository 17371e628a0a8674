"""A table of the paper beside our own: what was measured, and whether the paper's orderings hold."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...config.paper_table import HIGHER_IS_BETTER, Claim, Column, PaperTable, Row, Scale, ScalePlan
from .statistics import (
    CONFIDENCE,
    DECIDED,
    Estimate,
    Gain,
    Pair,
    Values,
    Verdict,
    compare,
    decide,
    estimate,
    kendall_tau,
)

Measured = Mapping[tuple[str, str, int], float | None]
"""(file of the row, name of the column, seed) → value. A value that was not measured is None or absent."""


PRINTED_ORDER = "rows are in the printed order"
"""Claim of the order of a whole column."""


@dataclass(frozen=True)
class RunFacts:
    """The run of one row and seed."""

    folder: str
    status: str
    """Such as `finished`."""
    mlflow_run_id: str | None = None
    images: int | None = None
    """Images seen in training."""
    parameters: int | None = None
    seconds: float | None = None
    """Of the whole run, over all launches."""


Runs = Mapping[tuple[str, int], RunFacts]
"""(file of the row, seed) → its run."""


@dataclass(frozen=True)
class Circumstances:
    """Facts about a report that a reader needs beside its numbers."""

    command: str
    """The command that runs all that is missing, such as `causalfusion reproduce table3a --scale mnist`."""
    hardware: str
    """Machines of the runs."""
    generated_at: str
    """Date and time of the report, as it is to be shown."""
    wall_seconds: float | None = None
    """From the start of the first run to the last value."""
    spaces: Mapping[str, str] = field(default_factory=dict)
    """Name of a number, such as `fd_digits_cnn` → what it is: space, weights, reference."""
    repeats: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Name of a column → values of one trained model each: as measured, and with other random numbers."""
    finetunes: str = ""
    """Fine-tunes that measure columns: how many, and their time. Empty: the table has none."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Commit, digest of the data, versions."""


@dataclass(frozen=True)
class TableCell:
    """One number of the table."""

    printed: float | None
    by_seed: Values
    """Every planned seed → its value. None: not measured. Empty: the row does not have the column."""
    ours: Estimate


@dataclass(frozen=True)
class ReportRow:
    """One row of the table."""

    file: str
    label: str
    cells: tuple[TableCell, ...]
    """One for each column."""
    runs: Mapping[int, RunFacts]
    """Seed → run, as far as there are any."""


@dataclass(frozen=True)
class ClaimResult:
    """Whether an ordering of the paper, or one of our own, holds in our numbers."""

    says: str
    column: str
    pairs: tuple[Pair, ...]
    """All (better, worse) that it is made of, by files of rows."""
    verdict: Verdict
    tau: float | None = None
    """Kendall's τ-b of printed values and our means, for the order of a whole column."""
    rows: int = 0
    """Rows that τ is of."""
    ours: bool = False
    """The paper does not state it."""
    over: str | None = None
    """Column in which each row is compared with itself. None: rows are compared in one column."""
    by_loss: bool = False
    """The paper states it of its own metric, and here the denoising loss of the same places decides it."""

    @property
    def as_printed(self) -> int:
        """Pairs whose means are in the claimed order, however uncertain."""
        return sum(pair.gain.mean is not None and pair.gain.mean > 0 for pair in self.pairs)

    def count(self, verdict: Verdict) -> int:
        """Return how many pairs have a verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)


@dataclass(frozen=True)
class PaperReport:
    """All that a report says, for any rendering."""

    table: PaperTable
    scale: Scale
    rows: tuple[ReportRow, ...]
    """Those that can be run at the scale."""
    claims: tuple[ClaimResult, ...]
    orders: tuple[ClaimResult, ...]
    """Of each column that prints at least two different values."""
    around: Circumstances

    @property
    def plan(self) -> ScalePlan:
        """How the rows were run."""
        return self.table.plan(self.scale)

    @property
    def complete(self) -> bool:
        """Every row has a value of every column and seed, even if some are not numbers: there is nothing to run."""
        return all(value is not None for row in self.rows for cell in row.cells for value in cell.by_seed.values())

    @property
    def decided(self) -> bool:
        """Every claim holds or fails, by its metric or by the denoising loss at the same places.

        Claims of ours count in a table without any of the paper's.
        """
        by_metric = [claim for claim in self.claims if not claim.by_loss]
        by_metric = [claim for claim in by_metric if not claim.ours] or by_metric
        by_loss = {claim.says: claim for claim in self.claims if claim.by_loss}
        return all({*DECIDED} & {claim.verdict, by_loss.get(claim.says, claim).verdict} for claim in by_metric)

    def label(self, file: str) -> str:
        """Return a row's label."""
        return next(row.label for row in self.rows if row.file == file)

    def number(self, column: Column) -> str:
        """Return the name of the number that stands for a column's metric at this scale."""
        return self.plan.metrics[column.metric]

    def same_metric(self, column: Column) -> bool:
        """Return whether our number is of the paper's kind, so that values compare and not only orders."""
        return self.number(column) == column.metric


def build_report(
    table: PaperTable, scale: Scale, measured: Measured, runs: Runs, around: Circumstances
) -> PaperReport:
    """Put a table's values beside the printed ones and decide its claims and each column's order.

    Raises:
        UserError: the table has no such scale.
        ValueError: a value or run is of a row, column or seed that is not planned.
    """
    seeds = table.plan(scale).seeds
    _check(table, scale, measured, runs)
    rows = tuple(
        ReportRow(
            row.file,
            _label(row, scale),
            tuple(
                _cell(
                    printed,
                    {seed: measured.get((row.file, column.name, seed)) for seed in seeds if column.has(row)},
                )
                for column, printed in zip(table.columns, row.printed, strict=True)
            ),
            {seed: runs[row.file, seed] for seed in seeds if (row.file, seed) in runs},
        )
        for row in table.rows_at(scale)
    )
    cells = {
        column.name: {row.file: row.cells[place] for row in rows} for place, column in enumerate(table.columns)
    }
    confidence = confidence_of(table.plan(scale))
    claims = [
        _decided(table, one, cells, confidence, by_loss=one is not claim)
        for claim in table.claims_at(scale)
        for one in (claim, table.by_loss(claim))
        if one is not None
    ]
    orders = [_order(column, cells[column.name], confidence) for column in table.columns]
    return PaperReport(table, scale, rows, tuple(claims), tuple(order for order in orders if order.pairs), around)


def confidence_of(plan: ScalePlan) -> float:
    """Return the confidence of the intervals that decide claims: each look has its part of the error."""
    return 1 - (1 - CONFIDENCE) / plan.looks


def _decided(
    table: PaperTable,
    claim: Claim,
    cells: Mapping[str, Mapping[str, TableCell]],
    confidence: float,
    *,
    by_loss: bool,
) -> ClaimResult:
    there = cells[claim.column]
    column = next(column for column in table.columns if column.name == claim.column)
    if claim.over is None:
        gains = _gains(column, there, there, list(itertools.product(claim.better, claim.worse)), confidence)
    else:
        gains = _gains(column, there, cells[claim.over], [(file, file) for file in claim.better], confidence)
    pairs, verdict = decide(gains, confidence)
    return ClaimResult(claim.says, claim.column, pairs, verdict, ours=claim.ours, over=claim.over, by_loss=by_loss)


def _check(table: PaperTable, scale: Scale, measured: Measured, runs: Runs) -> None:
    seeds, files = table.plan(scale).seeds, {row.file for row in table.rows_at(scale)}
    cells = {(row.file, column.name) for row in table.rows_at(scale) for column in table.columns if column.has(row)}
    for file, name, seed in measured:
        if (file, name) not in cells or seed not in seeds:
            raise ValueError(f"{table.name} plans no value of row {file!r}, column {name!r}, seed {seed}")
    for file, seed in runs:
        if file not in files or seed not in seeds:
            raise ValueError(f"{table.name} plans no run of row {file!r}, seed {seed}")


def _label(row: Row, scale: Scale) -> str:
    """Return `S = 256 / 16` where the paper's row is S = 256, and ours S = 16."""
    if scale == "paper" or row.small_label in (None, row.label):
        return row.label
    theirs, ours = row.label.split(), row.small_label.split()
    shared = len(list(itertools.takewhile(lambda words: words[0] == words[1], zip(theirs, ours, strict=False))))
    while "".join(ours[:shared]).count("(") > "".join(ours[:shared]).count(")"):
        shared -= 1  # what stands in brackets stays whole
    return f"{row.label} / {' '.join(ours[shared:])}"


def _cell(printed: float | None, by_seed: Values) -> TableCell:
    return TableCell(printed, by_seed, estimate(by_seed.values()))


def _gains(
    column: Column,
    cells: Mapping[str, TableCell],
    others: Mapping[str, TableCell],
    sides: list[tuple[str, str]],
    confidence: float,
) -> list[tuple[str, str, Gain]]:
    higher = column.metric in HIGHER_IS_BETTER
    return [(better, worse, _compare(cells[better], others[worse], higher, confidence)) for better, worse in sides]


def _compare(better: TableCell, worse: TableCell, higher: bool, confidence: float) -> Gain:
    return compare(better.by_seed, worse.by_seed, higher_is_better=higher, confidence=confidence)


def _order(column: Column, cells: Mapping[str, TableCell], confidence: float) -> ClaimResult:
    """Decide all pairs of rows whose printed values differ."""
    sign = -1 if column.metric in HIGHER_IS_BETTER else 1
    printed = {file: sign * cell.printed for file, cell in cells.items() if cell.printed is not None}
    sides = [pair for pair in itertools.permutations(printed, 2) if printed[pair[0]] < printed[pair[1]]]
    pairs, verdict = decide(_gains(column, cells, cells, sides, confidence), confidence)
    both = [
        (cell.printed, cell.ours.mean)
        for cell in cells.values()
        if cell.printed is not None and cell.ours.mean is not None
    ]
    tau = kendall_tau([printed for printed, _ in both], [mean for _, mean in both])
    return ClaimResult(PRINTED_ORDER, column.name, pairs, verdict, tau, len(both))
