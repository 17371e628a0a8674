"""Results of a sweep: the end of each trial, the table of all, and the files written from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ...config.errors import UserError
from ...config.schema import Experiment
from ...config.secrets import redacted
from ...config.sweep import SweepConfig
from ...evaluation.extractors.classifier_extractor import SPACES
from ...evaluation.identity import CLASSIFIER_KEY
from ...report.sweeps.html import SweepReport
from ...report.sweeps.records import TrialRecord
from ...report.tables import markdown_table
from ...report.write import write_sweep_report
from ...storage.atomic import write_atomically
from ...storage.run_layout import STATE_FILE
from ...tracking.journal import Ended, Journal, Launched, Measured
from ...tracking.lineage import git_sha, package_versions
from ..runs.folder import RunFolder
from ..runs.sync import sync_run

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"
STOPPED = "stopped before its end"
_GONE_SECONDS = 30.0
SPEEDS = ("images_per_second", "total_seconds")
_TEXT_SCORES = ("cider_d_words", "caption_class", "caption_all", "t2i_class_best")
"""Columns of trials of text and images, where they have these scores."""


@dataclass(frozen=True)
class TrialEnd:
    """End of a trial."""

    name: str
    values: dict[str, Any]
    """Dotted key → value."""
    summary: dict[str, Any] | None = None
    """Its summary.json, if it finished. Of a trial that a scheduler ended early, its last measurement."""
    error: str | None = None
    """Reason for a missing result: it failed, or was stopped. The same command runs it again."""
    ended_early_at: int | None = None
    """Images after which the scheduler ended it, because others were better."""

    @classmethod
    def finished(cls, name: str, values: dict[str, Any], summary: dict[str, Any]) -> Self:
        """Return the end of a trial that trained to its end."""
        return cls(name, values, summary)

    @classmethod
    def unfinished(cls, name: str, values: dict[str, Any], run_dir: Path, *, stopped: bool) -> Self:
        """Return the end of a trial that Tune ended, at a signal or on a decision of the scheduler."""
        measured = [event for event in Journal(run_dir).events() if isinstance(event, Measured)]
        if stopped or not measured:
            return cls(name, values, error=STOPPED)
        last = measured[-1]
        measured_by = {CLASSIFIER_KEY: last.classifier_sha256} if last.classifier_sha256 else {}
        summary = {**last.values, **measured_by, "images_seen": last.images, "run_dir": str(run_dir)}
        return cls(name, values, summary, ended_early_at=last.images)


@dataclass(frozen=True)
class SweepResult:
    """Results of a sweep."""

    columns: list[str]
    rows: list[list[Any]]
    """One row per trial, the best first: its values, then its measurements (or its error)."""
    failed: int
    """Trials without a result: failed, or stopped. The same call runs them again."""
    stopped: bool
    """A signal ended the sweep before its trials were done."""
    mlflow_run_id: str
    ends: list[TrialEnd]
    """All trials, in the order of the rows."""


def tabulate(sweep: SweepConfig, ended: Sequence[TrialEnd], run_id: str) -> SweepResult:
    """Rank the trials by the first target. Those without a result come last."""
    targets = sweep.targets
    first, mode = next(iter(targets.items()))
    keys = list(dict.fromkeys(key for end in ended for key in end.values))
    measured = [*targets, *(column for column in _columns(ended) if column not in targets)]
    sign = -1 if mode == "max" else 1

    def rank(end: TrialEnd) -> tuple[bool, bool, float]:
        value = None if end.summary is None else end.summary.get(first)
        return value is None, end.ended_early_at is not None, 0.0 if value is None else sign * float(value)

    ends = sorted(ended, key=rank)
    note = any(end.ended_early_at is not None for end in ends)
    rows = []
    for end in ends:
        cells: list[Any] = [end.error, *[None] * (len(measured) - 1)]
        if end.summary is not None:
            cells = [end.summary.get(column) for column in measured]
        early = [f"at {end.ended_early_at:,} images" if end.ended_early_at is not None else None] if note else []
        rows.append([*(end.values.get(key) for key in keys), *cells, *early])
    return SweepResult(
        columns=[*keys, *measured, *(["ended early"] if note else [])],
        rows=rows,
        failed=sum(end.error is not None for end in ends),
        stopped=any(end.error == STOPPED for end in ends),
        mlflow_run_id=run_id,
        ends=ends,
    )


def _columns(ended: Sequence[TrialEnd]) -> list[str]:
    """Return the measurements that the table shows beside the targets."""
    there = {name for end in ended for name in end.summary or {}}
    distances = [f"fd_{space}" for space in SPACES]
    if found := [name for name in _TEXT_SCORES if name in there]:
        return [*found, *SPEEDS]
    return ["class_accuracy", *([name for name in distances if name in there] or distances[:1]), *SPEEDS]


def figures_of(sweep: SweepConfig, result: SweepResult) -> dict[str, float]:
    """Return the metrics of a sweep's own run in MLflow: how many trials have a result, the best of each target."""
    measured = [end.summary for end in result.ends if end.summary is not None]
    figures = {"sweep/measured": float(len(measured)), "sweep/failed": float(result.failed)}
    for metric, mode in sweep.targets.items():
        values = [float(summary[metric]) for summary in measured if summary.get(metric) is not None]
        if values:
            figures[f"sweep/best_{metric}"] = max(values) if mode == "max" else min(values)
    return figures


def write_results(
    experiment: Experiment, sweep: SweepConfig, ended: Sequence[TrialEnd], result: SweepResult
) -> list[Path]:
    """Write results.json, results.md, report.html and its figures into the sweep's folder. Return their paths."""
    table, everything = experiment.run_dir / TABLE_FILE, experiment.run_dir / RESULTS_FILE
    write_atomically(table, markdown_table(result.columns, result.rows).encode())
    tree = {"sweep": redacted(sweep.model_dump(mode="json")), "trials": [asdict(end) for end in ended]}
    write_atomically(everything, (json.dumps(tree, indent=2) + "\n").encode())
    return [
        table,
        everything,
        *write_sweep_report(sweep_report(experiment, sweep, ended, result), experiment.run_dir),
    ]


def sweep_report(
    experiment: Experiment, sweep: SweepConfig, ended: Sequence[TrialEnd], result: SweepResult
) -> SweepReport:
    """Return the content of the sweep's page, with trials in the order in which they ended."""
    (metric, mode), *more = sweep.targets.items()
    records = sorted((_record(end, experiment) for end in ended), key=lambda pair: pair[0])
    versions = package_versions()
    return SweepReport(
        name=experiment.name,
        description=experiment.description,
        metric=metric,
        mode=mode,
        second=more[0] if more else None,
        trials=[record for _, record in records],
        planned=len(ended),
        generated_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        command=f"causalfusion sweep … name={experiment.name}",
        lineage={
            "commit": git_sha(),
            "versions": ", ".join(f"{name} {versions[name]}" for name in ("torch", "ray", "deepspeed")),
        },
        mlflow_run_id=result.mlflow_run_id,
    )


def _record(end: TrialEnd, experiment: Experiment) -> tuple[float, TrialRecord]:
    """Return the time at which a trial ended, and its part of the page."""
    summary = end.summary or {}
    run = RunFolder(Path(summary.get("run_dir") or experiment.run_dir / end.name))
    times = [event.time for event in run.journal.events()]
    status = "finished"
    if end.error is not None:
        status = "stopped" if end.error == STOPPED else "failed"
    elif end.ended_early_at is not None:
        status = "ended early"
    metrics = {name: value for name, value in summary.items() if isinstance(value, float | int | None)}
    record = TrialRecord(
        name=end.name,
        values=end.values,
        metrics=metrics,
        status=status,
        error=end.error,
        seconds=times[-1] - times[0] if times else None,
        folder=str(run.root),
        mlflow_run_id=run.state.mlflow_run_id if run.state else None,
    )
    return times[-1] if times else 0.0, record


def settle(folder: Path) -> None:
    """Bring MLflow up to date with the runs below a sweep's folder that were ended from outside.

    Their processes have ended, or are about to. Their records wait in their folders, and MLflow has not received
    their end.
    """
    for state_file in sorted(folder.glob(f"*/{STATE_FILE}")):
        run = RunFolder(state_file.parent)
        try:
            if not run.finished and _end_for_it(run):
                sync_run(run, seconds=60)
        except UserError as error:
            logger.warning(str(error))


def _end_for_it(run: RunFolder) -> bool:
    """Record the end of a run that was cut off. Return False if it has recorded its end itself.

    Raises:
        UnderWay: its process goes on.
    """
    with run.lock(_GONE_SECONDS):  # its process may still write, so that its end is read afterwards
        last = [event for event in run.journal.events() if isinstance(event, Launched | Ended)][-1:]
        if run.finished or not last or isinstance(last[0], Ended):
            return False
        run.journal.add(Ended(launch=run.started.launches, how="stopped", detail="its sweep ended it"))
        run.outbox.finish("KILLED")
    return True
