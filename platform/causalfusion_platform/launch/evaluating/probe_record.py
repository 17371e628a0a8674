"""Results of probes in the run's folder and on its page in MLflow: curves over layers, and the picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...evaluation.probe.scores import ProbeScore
from ...report.canvas import save
from ...report.probe import probe_figure
from ...storage.run_layout import PROBES_FOLDER
from ..runs.lock import UnderWay
from ..runs.sync import sync_run
from .probe import FIGURE_FILE, RESULTS_FILE, read_scores, write_scores
from .probe_request import ProbePlan

logger = logging.getLogger(__name__)


def curve(score: ProbeScore, name: str) -> str:
    """Return the name of the curve of a score, whose steps are layers. Other settings have other curves.

    The letters of `_random` mark the model at random initialization.
    """
    random = "_random" if score.random else ""
    settings = f"_{name}" if name else ""
    return f"probe/{score.kind}_t{score.t}{random}{settings}"


def record_probe(plan: ProbePlan, scores: Sequence[ProbeScore]) -> Path:
    """Draw the scores into the run's folder, and record those that are new for MLflow. Return the picture's path.

    Raises:
        UserError: MLflow does not take them. They wait in the run's folder.
    """
    path = plan.folder / FIGURE_FILE
    save(probe_figure(scores, title=f"Probes of run {plan.run.name}", about=about(plan)), path)
    known = read_scores(plan)
    new = [score for score in known if not score.recorded]
    if not new:
        return path
    try:
        with plan.run.lock():
            _record(plan, new)
    except UnderWay:
        logger.info(f"the run is under way: give the same command later, and MLflow gets the curves of {path}")
        return path
    sync_run(plan.run, seconds=60)
    return path


def about(plan: ProbePlan) -> str:
    """Return the rows, and the condition of a DiT."""
    rows = f"{len(plan.data.train):,} training and {len(plan.data.validation):,} validation rows"
    condition = f", condition {plan.condition}" if plan.model.architecture == "dit" else ""
    return f"{rows}{condition}, {plan.images:,} images seen"


def _record(plan: ProbePlan, new: Sequence[ProbeScore]) -> None:
    outbox = plan.run.outbox
    outbox.reopen()
    for layer in sorted({score.layer for score in new}):
        points = {curve(score, plan.name): score.accuracy for score in new if score.layer == layer}
        outbox.metrics(points, layer)
    folder = f"{PROBES_FOLDER}/{plan.folder.name}"
    outbox.artifact(plan.folder / RESULTS_FILE, folder)
    outbox.artifact(plan.folder / FIGURE_FILE, folder)
    with Image.open(plan.folder / FIGURE_FILE) as picture:
        outbox.image(f"probe/{plan.folder.name}", picture, plan.images)
    outbox.finish("FINISHED" if plan.run.finished else "KILLED")
    done = {score.place for score in new}
    write_scores(
        plan,
        [
            score.model_copy(update={"recorded": score.recorded or score.place in done})
            for score in read_scores(plan)
        ],
    )
