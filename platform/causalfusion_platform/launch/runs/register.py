"""Runs in the model registry: the newest weights of a run under a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.find import find_weights
from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...evaluation.evaluate import score_names
from ...evaluation.extractors.classifier_extractor import SPACES
from ...evaluation.identity import CLASSIFIER_KEY
from ...report.terminal import as_path
from ...tracking.registry import BEST, Version, model_name, register_weights, set_alias
from .folder import RunFolder

CLASSIFIER_TAG = "classifier.sha256"
"""Tag of a version: the classifier behind its scores."""


_FINETUNED = ("top1", "top5", "cider_d_words", "bleu4_words")
"""Scores of fine-tunes."""


@dataclass(frozen=True)
class Entry:
    """Registered weights of a run, and their place in the registry."""

    uri: str
    run_id: str
    weights: Path
    """Folder of the newest checkpoint's weights."""

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.weights.iterdir())


def register_run(run: RunFolder, *, model: str | None = None, alias: str = BEST) -> Version:
    """Register the newest weights of a run, and let an alias stand for them.

    Args:
        run: the run.
        model: name of the registered model. None: that of the run's MLflow experiment.
        alias: the alias, moved here from another version if need be.

    Raises:
        UserError: the run does not exist, is not in MLflow yet, has no checkpoint, or MLflow refuses.
    """
    if not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"(?i)latest|v\d+", alias):
        raise UserError(
            f"alias {alias!r} is not possible: letters, digits, _ and -, and neither latest nor v1, v2, …"
        )
    entry, experiment = entry_of(run), run.experiment
    assert experiment is not None
    version = register_weights(
        entry.uri,
        model_name(model or _default_name(experiment)),
        entry.run_id,
        entry.weights,
        tags=version_tags(run, entry),
        about=f"Run {run.name}.",
    )
    set_alias(entry.uri, version, alias)
    return version


def _default_name(experiment: Experiment) -> str:
    """Return the name of the registered model: that of the MLflow experiment, and of a fine-tune also its task."""
    name = experiment.tracking.experiment
    return name if experiment.finetune is None else f"{name}-{experiment.task}"


def entry_of(run: RunFolder) -> Entry:
    run.settle()
    state = run.started
    if state.mlflow_run_id is None:
        raise UserError(
            f"MLflow has not got run {run.name!r} yet\n  deliver it: {command('runs', 'sync', as_path(run.root))}"
        )
    return Entry(state.address, state.mlflow_run_id, _weights_of(run))


def _weights_of(run: RunFolder) -> Path:
    place = run.root if run.url is None else Path(str(run.url))
    return find_weights(place, download=True).folder


def version_tags(run: RunFolder, entry: Entry) -> dict[str, str]:
    """Return the tags of the version of a run's weights: the run, its images, and its final scores."""
    images = int(entry.weights.parent.name.removeprefix("images-"))
    summary = run.read_summary() if run.summary_file.is_file() else {}
    names = dict.fromkeys(name for space in SPACES for name in score_names(space))
    if run.experiment is not None and run.experiment.finetune is not None:
        names = dict.fromkeys(_FINETUNED)
    measured = {name: f"{value:.6g}" for name in names if (value := summary.get(name)) is not None}
    classifier = summary.get(CLASSIFIER_KEY)
    measured_by = {CLASSIFIER_TAG: classifier} if classifier is not None else {}
    return {"run": run.name, "images": str(images), **measured, **measured_by}
