"""The best trial of a sweep in the model registry."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.manifest import Manifest
from ...evaluation.identity import CLASSIFIER_KEY, depends_on_classifier
from ...report.numbers import size
from ...report.terminal import as_path
from ...tasks import open_task
from ...tracking.registry import BEST, Version, model_name, register_weights, set_alias, version_of
from ..runs.folder import RunFolder
from ..runs.register import CLASSIFIER_TAG, entry_of, version_tags
from .results import TrialEnd
from .trials import sweep_of

logger = logging.getLogger(__name__)

LARGEST_BYTES = 2 * 10**9
"""Weights above this size are uploaded only by an explicit command."""


def register_best_trial(experiment: Experiment, ends: Sequence[TrialEnd]) -> None:
    """Register the best finished trial of a sweep, by its first target, under the MLflow experiment's name.

    The alias `best` goes to it, unless it is worse than the sweep's floor or than the version that has the alias.
    Versions are compared by the same metric, data and classifier. Errors are logged and not raised, since the sweep
    is done.

    Args:
        experiment: the sweep's.
        ends: how its trials ended.
    """
    metric, mode = next(iter(sweep_of(experiment).targets.items()))
    sign = 1 if mode == "max" else -1
    measured = [(sign * value, end) for end in ends if (value := _value(end, metric)) is not None]
    if not measured:
        return
    signed, best = max(measured, key=lambda one: one[0])
    assert best.summary is not None
    try:
        _register_trial(experiment, best, metric, mode, sign * signed)
    except UserError as error:
        logger.warning(
            f"{error}\n  register it later: {command('runs', 'register', as_path(Path(best.summary['run_dir'])))}"
        )


def _register_trial(experiment: Experiment, best: TrialEnd, metric: str, mode: str, value: float) -> None:
    assert best.summary is not None
    run = RunFolder(Path(best.summary["run_dir"]))
    entry = entry_of(run)
    if entry.bytes > LARGEST_BYTES:
        logger.warning(
            f"{best.name} is not registered, {size(entry.bytes)} of weights are not uploaded unasked\n"
            f"  ask for it: {command('runs', 'register', as_path(run.root))}"
        )
        return
    model = model_name(experiment.tracking.experiment)
    ours = {"metric": metric, "data.digest": Manifest.read(experiment.data.path).digest}
    classifier = best.summary.get(CLASSIFIER_KEY) if depends_on_classifier(metric) else None
    version = register_weights(
        entry.uri,
        model,
        entry.run_id,
        entry.weights,
        tags={
            **version_tags(run, entry),
            **ours,
            "mode": mode,
            "value": f"{value:.6g}",
            "trial": best.name,
            "sweep": experiment.name,
        },
        about=f"Trial {best.name}, the best of sweep {experiment.name} by {metric}: {value:.4g}.",
    )
    done = f"{best.name} is version {version.number} of model {model}"
    if reason := _short_of_floor(experiment, run, best.summary, value):
        logger.warning(
            f"{done}, without the alias best: {reason}\n"
            f"  give it the alias all the same: {command('runs', 'register', as_path(run.root))}"
        )
        return
    held = version_of(entry.uri, model, BEST)
    if (
        held is not None
        and held.number != version.number
        and _is_ahead(held, {**ours, CLASSIFIER_TAG: classifier}, mode, value)
    ):
        logger.info(f"{done}; its alias best stays at version {held.number}, with {metric} {held.tags['value']}")
        return
    set_alias(entry.uri, version, BEST)
    logger.info(f"{done}, alias best: {metric} {value:.4g}")


def _short_of_floor(experiment: Experiment, run: RunFolder, summary: dict[str, Any], value: float) -> str | None:
    """Return why the best trial is not good enough for the alias. None: it is, or nothing is known."""
    sweep = sweep_of(experiment)
    metric, mode = next(iter(sweep.targets.items()))
    if sweep.floor is None:
        return open_task(run.experiment or experiment).shortfall(summary)
    worse = value < sweep.floor if mode == "max" else value > sweep.floor
    return f"{metric} {value:.4g} is worse than sweep.floor={sweep.floor:g}" if worse else None


def _is_ahead(held: Version, ours: dict[str, str | None], mode: str, value: float) -> bool:
    """Return whether a version did at least as well by the same metric, data and classifier."""
    if any(held.tags.get(key) != text for key, text in ours.items()):
        return False
    try:
        theirs = float(held.tags["value"])
    except (KeyError, ValueError):
        return False
    return theirs >= value if mode == "max" else theirs <= value


def _value(end: TrialEnd, metric: str) -> float | None:
    """Return the measured value of a finished trial. None: it has not finished, or the value is not a number."""
    if end.summary is None or end.error is not None or end.ended_early_at is not None:
        return None
    value = end.summary.get(metric)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
