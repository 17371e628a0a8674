"""A sweep's report as one page that opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..html import Change, Picture, render
from ..numbers import is_number
from ..tables import cell, plain
from .records import Mode, TrialRecord, best_of, last_part, metric_of, ranked


@dataclass(frozen=True)
class SweepReport:
    """A sweep, for its report."""

    name: str
    description: str
    metric: str
    mode: Mode
    trials: Sequence[TrialRecord]
    """In the order of their ends, failed ones too."""
    planned: int
    """Trials that the sweep is to have."""
    generated_at: str
    command: str
    """The command that continues the sweep, such as `causalfusion sweep sweeps/gamma`."""
    second: tuple[str, Mode] | None = None
    """Another metric that is worth a trade-off, with its mode."""
    changed: Sequence[Change] = ()
    """Keys of the experiment that are not at their defaults."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Commit, digest of the data, versions."""
    mlflow_run_id: str | None = None


def sweep_page(report: SweepReport, pictures: Sequence[Picture]) -> str:
    """Return the page."""
    trials = ranked(report.trials, report.metric, report.mode)
    best = best_of(report.trials, report.metric, report.mode)
    columns, rows = _trials(report, trials)
    return render(
        "sweep.html",
        title=f"Sweep {report.name}",
        generated_at=report.generated_at,
        report=report,
        outcome=outcome(report),
        columns=columns,
        rows=rows,
        best=next((place for place, trial in enumerate(trials) if trial is best), None),
        pictures=pictures,
    )


def outcome(report: SweepReport) -> dict[str, str]:
    """Return how the sweep stands and its best trial: name → text."""
    best = best_of(report.trials, report.metric, report.mode)
    counts: dict[str, int] = {}
    for trial in report.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    states = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none yet"
    found = {
        "trials": f"{len(report.trials)} of {report.planned}: {states}",
        "ranked by": f"{report.metric}, {'more' if report.mode == 'max' else 'less'} is better",
        "best": "none has a result",
    }
    if best:
        values = ", ".join(f"{last_part(key)} = {cell(_value(value))}" for key, value in best.values.items())
        found["best"] = f"{best.name}: {report.metric} {cell(metric_of(best, report.metric))} with {values}"
        found["caution"] = (
            f"The best of {counts['finished']} trials is also the luckiest: run it again with other seeds before "
            f"quoting it."
        )
    if report.mlflow_run_id:
        found["MLflow run"] = report.mlflow_run_id
    if len(report.trials) < report.planned or set(counts) - {"finished", "ended early"}:
        found["to finish"] = report.command
    return found


def _trials(report: SweepReport, trials: Sequence[TrialRecord]) -> tuple[list[str], list[list[Any]]]:
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    others = dict.fromkeys(name for trial in trials for name in trial.metrics)
    metrics = [report.metric, *(name for name in others if name != report.metric)]
    failed = ["error"] if any(trial.error for trial in trials) else []
    columns = ["trial", "status", *map(last_part, keys), *metrics, "seconds", *failed, "folder", "MLflow run"]
    rows = [
        [
            *(trial.name, trial.status),
            *(_value(trial.values[key]) if key in trial.values else None for key in keys),
            *(trial.metrics.get(name) for name in metrics),
            trial.seconds,
            *([trial.error] if failed else []),
            *(trial.folder, trial.mlflow_run_id),
        ]
        for trial in trials
    ]
    return columns, rows


def _value(value: Any) -> Any:
    return value if is_number(value) else plain(value)
