"""Scores under different classifiers are not compared: checks of a sweep before it starts and at its end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from ...checkpoint import store
from ...config.errors import UserError
from ...evaluation.identity import (
    CLASSIFIER_KEY,
    classifiers_of,
    depends_on_classifier,
    describe_classifiers,
)
from ...tasks import open_task
from .job import SweepJob
from .results import TrialEnd
from .trials import Trial

logger = logging.getLogger(__name__)


def check_comparable(job: SweepJob, finished: Sequence[TrialEnd]) -> list[TrialEnd]:
    """Check that one classifier scores all trials of a sweep. It is trained now if it was not trained before.

    A finished trial that another classifier has scored is opened again, if its last checkpoint is there. Its next
    launch trains nothing. It generates the final samples and scores them under the present classifier.

    Args:
        job: the sweep, whose data were checked.
        finished: trials that have finished in earlier launches.

    Returns:
        The trials that stay finished.

    Raises:
        UserError: trials are to be ranked by scores under different classifiers.
    """
    targets = [target for target in job.sweep.targets if depends_on_classifier(target)]
    if not targets or job.measured_anew:
        return [*finished]
    summaries = {end.name: end.summary or {} for end in finished}
    to_come = {trial.name: trial.experiment.data.path for trial in job.trials if trial.name not in summaries}
    if job.chosen_on_the_way:
        to_come = {"trials to come": job.experiment.data.path}
    task = open_task(job.experiment)
    present = {path: task.classifier_of(shards) for path, shards in job.checked.items() if path in to_come.values()}
    again: dict[str, Path] = {}
    for trial in job.trials:
        path = trial.experiment.data.path
        if trial.name in summaries and present.get(path) is not None:
            scored_by = classifiers_of({trial.name: summaries[trial.name]})
            if present[path] not in scored_by and _can_score_again(job, trial):
                again[trial.name] = path
    found = classifiers_of({name: summary for name, summary in summaries.items() if name not in again})
    for name, path in (to_come | again).items():
        if (digest := present.get(path)) is not None:
            found.setdefault(digest, []).append(name)
    if len(found) > 1:
        raise UserError(
            f"trials are to be ranked by {', '.join(targets)}, but different classifiers score them:\n"
            f"{describe_classifiers(found)}\n"
            f"  start another sweep: name=…; or measure each run under one classifier: causalfusion evaluate RUN"
        )
    if again:
        logger.warning(
            f"another classifier scored {', '.join(again)} before: new final samples of the trained weights are "
            f"generated and scored"
        )
    for name in again:
        run = job.run(name)
        with run.lock():
            run.keep(finished=False)
    return [end for end in finished if end.name not in again]


def _can_score_again(job: SweepJob, trial: Trial) -> bool:
    """Return whether another launch of a finished trial would generate samples and train nothing."""
    if job.sweep.population is not None or trial.name in job.elsewhere:
        return False
    run = job.run(trial.name)
    try:
        run.check_config(trial.experiment)
    except UserError:  # the settings of sampling have changed since
        return False
    last = store.checkpoint_folder(run.checkpoints, trial.experiment.train.total_images)
    return store.newest(run.checkpoints) == last


def comparable(ended: Sequence[TrialEnd]) -> list[TrialEnd]:
    """Return the ends of trials, without their scores if different classifiers measured them."""
    found = classifiers_of({end.name: end.summary or {} for end in ended})
    if len(found) <= 1:
        return [*ended]
    logger.warning(
        f"scores of the trials are left out, because different classifiers measured them:\n"
        f"{describe_classifiers(found)}\n  measure each run under one classifier: causalfusion evaluate RUN"
    )
    return [dataclasses.replace(end, summary=_without_scores(end.summary)) for end in ended]


def _without_scores(summary: dict[str, object] | None) -> dict[str, object] | None:
    if summary is None:
        return None
    return {
        key: value for key, value in summary.items() if key != CLASSIFIER_KEY and not depends_on_classifier(key)
    }
