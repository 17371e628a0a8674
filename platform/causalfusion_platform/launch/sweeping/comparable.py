"""Scores under different classifiers are not compared: checks of a sweep before it starts and at its end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

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

logger = logging.getLogger(__name__)


def check_comparable(job: SweepJob, finished: Sequence[TrialEnd]) -> None:
    """Check that one classifier scores all trials of a sweep. It is trained now if it was not trained before.

    Args:
        job: the sweep, whose data were checked.
        finished: trials that have finished in earlier launches.

    Raises:
        UserError: trials are to be ranked by scores under different classifiers.
    """
    targets = [target for target in job.sweep.targets if depends_on_classifier(target)]
    if not targets or job.measured_anew:
        return
    found = classifiers_of({end.name: end.summary or {} for end in finished})
    names = {end.name for end in finished}
    planned = {trial.name: trial.experiment.data.path for trial in job.trials if trial.name not in names}
    if job.chosen_on_the_way:
        planned = {"trials to come": job.experiment.data.path}
    task = open_task(job.experiment)
    classifiers = {
        path: task.classifier_of(shards) for path, shards in job.checked.items() if path in planned.values()
    }
    for name, path in planned.items():
        if (digest := classifiers.get(path)) is not None:
            found.setdefault(digest, []).append(name)
    if len(found) > 1:
        raise UserError(
            f"trials are to be ranked by {', '.join(targets)}, but different classifiers score them:\n"
            f"{describe_classifiers(found)}\n"
            f"  start another sweep: name=…; or measure each run under one classifier: causalfusion evaluate RUN"
        )


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
