"""The fault matrix: each row a fault, what is promised, and what a test measured."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from causalfusion_platform.tracking.journal import (
    Event,
    Incident,
    Journal,
    StepReport,
    TrainingStarted,
)

BATCH = 64
RESULTS = "CAUSALFUSION_FAULT_RESULTS"
"""Environment variable: a file that rows are appended to, one JSON object a line. `make fault-table` sets it."""


def record(
    fault: str,
    promise: str,
    *,
    exact: bool = False,
    recovery: float | None = None,
    steps: float | None = None,
    saw: str = "",
) -> None:
    """Add a row to the table in the documentation.

    Args:
        fault: what was done to the run.
        promise: what the platform promises.
        exact: the test compared the run with one that nothing disturbed, and they were equal bit for bit.
        recovery: seconds from the fault until training went on.
        steps: optimizer steps that were trained again.
        saw: what else was measured.
    """
    path = os.environ.get(RESULTS)
    if path:
        row = {
            "fault": fault,
            "promise": promise,
            "exact": exact,
            "recovery": recovery,
            "steps": steps,
            "saw": saw,
        }
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")


@dataclass(frozen=True)
class Recovery:
    """How a run went on after a fault."""

    seconds: float
    """From the last sign of progress until training went on."""
    steps: float
    """Optimizer steps that were trained again."""
    causes: tuple[str, ...]
    """Of the incidents until training went on."""


def recoveries(run_dir: Path) -> list[Recovery]:
    """Return how a run went on each time, in order. Attempts that ended before they trained belong to the next."""
    journal, found = events(run_dir), []
    starts = [index for index, event in enumerate(journal) if isinstance(event, TrainingStarted)]
    for first, again in pairwise(starts):
        training, after = journal[first], journal[again]
        assert isinstance(training, TrainingStarted) and isinstance(after, TrainingStarted)
        before = [event for event in journal[first:again] if isinstance(event, StepReport | Incident)]
        moment = max([training.time, *(event.time for event in before if isinstance(event, StepReport))])
        reached = max([training.images, *(event.images for event in before)])
        causes = tuple(event.cause for event in before if isinstance(event, Incident))
        found.append(Recovery(after.time - moment, max(reached - after.images, 0) / BATCH, causes))
    return found


def losses(run_dir: Path, *, exact: bool = True) -> dict[int, float]:
    """Return the loss trace of a run, images → loss; where steps were trained twice, both are equal if `exact`."""
    trace: dict[int, float] = {}
    for event in events(run_dir):
        if isinstance(event, StepReport):
            first = trace.setdefault(event.images, event.loss)
            assert not exact or repr(first) == repr(event.loss), event  # a skipped step has the loss NaN
            trace[event.images] = event.loss
    return trace


def losses_of(run_dir: Path, *, attempt: int) -> dict[int, float]:
    """Return the loss trace of one attempt, images → loss."""
    reports = [event for event in events(run_dir) if isinstance(event, StepReport)]
    return {event.images: event.loss for event in reports if event.attempt == attempt}


def largest_difference(run_dir: Path, reference: Path) -> float:
    """Return the largest relative difference of two loss traces, which must be of the same steps.

    Sums over the batch are taken in another order with other workers, and Adam widens the difference step by step.
    """
    ours, theirs = losses(run_dir, exact=False), losses(reference)
    assert ours.keys() == theirs.keys()
    return max(abs(ours[images] / theirs[images] - 1) for images in ours)


def events(run_dir: Path) -> list[Event]:
    """Return the journal of a run."""
    return Journal(run_dir).events()


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the averaged weights that a run ended with."""
    newest = max((run_dir / "checkpoints").glob("images-*"))
    return load_file(newest / "weights" / "model.safetensors")


def assert_same(run_dir: Path, reference: Path) -> None:
    """The loss of every step and every weight, bit for bit."""
    assert losses(run_dir) == losses(reference)
    ours, theirs = weights(run_dir), weights(reference)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def steps_again(run_dir: Path) -> float:
    """Return how many optimizer steps of a run were trained more than once."""
    trained = [event.images for event in events(run_dir) if isinstance(event, StepReport)]
    return float(len(trained) - len(set(trained)))
