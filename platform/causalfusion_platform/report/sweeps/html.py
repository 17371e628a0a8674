"""A sweep's report as one page that opens offline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..html import Html, Picture, document, facts, figure, paragraph, section, table
from ..numbers import is_number
from ..tables import cell
from .records import Mode, TrialRecord, best_of, last_part, metric_of, ranked

Change = tuple[str, Any, Any]
"""(dotted key, default, value here)."""


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
    """What continues the sweep, such as `causalfusion sweep sweeps/gamma`."""
    second: tuple[str, Mode] | None = None
    """Another metric that is worth a trade-off, with its mode."""
    changed: Sequence[Change] = ()
    """Keys of the experiment that are not at their defaults."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Commit, digest of the data, versions."""
    mlflow_run_id: str | None = None


def sweep_page(report: SweepReport, pictures: Sequence[Picture]) -> str:
    """Return the page."""
    body = [
        *([paragraph(report.description)] if report.description else []),
        section("Outcome", facts(outcome(report))),
        section("Figures", *map(figure, pictures)),
        section("Trials", _trials(report)),
        section("Configuration", changes(report.changed)),
        section("Made from", facts(report.lineage), paragraph(f"Again: {report.command}", kind="faint")),
    ]
    return document(f"Sweep {report.name}", body, generated_at=report.generated_at)


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


def changes(changed: Sequence[Change]) -> Html:
    """Return a table of keys that are not at their defaults; nothing if there are none."""
    rows = [[key, _plain(default), _plain(value)] for key, default, value in changed]
    return table(["key", "default", "here"], rows, sortable=True) if rows else Html("")


def _trials(report: SweepReport) -> Html:
    trials = ranked(report.trials, report.metric, report.mode)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    others = dict.fromkeys(name for trial in trials for name in trial.metrics)
    metrics = [report.metric, *(name for name in others if name != report.metric)]
    failed = any(trial.error for trial in trials)
    rows = [
        [
            trial.name,
            trial.status,
            *(_value(trial.values[key]) if key in trial.values else None for key in keys),
            *(trial.metrics.get(name) for name in metrics),
            trial.seconds,
            *([trial.error] if failed else []),
            trial.folder,
            trial.mlflow_run_id,
        ]
        for trial in trials
    ]
    columns = ["trial", "status", *map(last_part, keys), *metrics, "seconds", *(["error"] if failed else [])]
    best = best_of(report.trials, report.metric, report.mode)
    place = next((place for place, trial in enumerate(trials) if trial is best), None)
    return table([*columns, "folder", "MLflow run"], rows, sortable=True, best=place) if rows else Html("")


def _value(value: Any) -> Any:
    return value if is_number(value) else _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
