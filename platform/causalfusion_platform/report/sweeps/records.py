"""Trials of a sweep as reports take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a sweep."""

    name: str
    values: Mapping[str, Any]
    """Dotted key → value."""
    metrics: Mapping[str, float | None]
    """Measured values by name. Empty where nothing was measured."""
    status: str = "finished"
    """Such as `finished`, `ended early`, `failed`, `stopped`. Only a finished trial can be the best: one that was
    ended early was measured after less training."""
    error: str | None = None
    seconds: float | None = None
    folder: str = ""
    mlflow_run_id: str | None = None


def metric_of(trial: TrialRecord, metric: str) -> float | None:
    """Return a trial's metric. None if it is missing or not a finite number."""
    value = trial.metrics.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def has_result(trial: TrialRecord, metric: str) -> bool:
    """Return whether a trial was trained to its end and has the metric."""
    return trial.status == "finished" and metric_of(trial, metric) is not None


def ranked(trials: Sequence[TrialRecord], metric: str, mode: Mode) -> list[TrialRecord]:
    """Return finished trials from best to worst, then the others likewise, and last those without the metric."""
    sign = 1 if mode == "min" else -1

    def rank(trial: TrialRecord) -> tuple[bool, bool, float]:
        value = metric_of(trial, metric)
        return value is None, trial.status != "finished", 0.0 if value is None else sign * value

    return sorted(trials, key=rank)


def best_of(trials: Sequence[TrialRecord], metric: str, mode: Mode) -> TrialRecord | None:
    """Return the best finished trial, the earlier of two alike. None if none has the metric."""
    first = ranked(trials, metric, mode)[:1]
    return first[0] if first and has_result(first[0], metric) else None


def swept_keys(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the keys that differ between trials, without seeds: those are repeats and not a setting."""
    keys = dict.fromkeys(key for trial in trials for key in trial.values)
    return [
        key
        for key in keys
        if last_part(key) != "seed" and len({repr(trial.values.get(key)) for trial in trials}) > 1
    ]


def last_part(key: str) -> str:
    """Return a dotted key's last part: `ar_decay` of `objective.ar_decay`."""
    return key.rsplit(".", 1)[-1]
