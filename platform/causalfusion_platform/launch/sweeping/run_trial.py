"""One trial of a sweep, inside the process that Ray Tune gives it: train, and report measurements to Tune."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from ...config.sweep import SweepConfig
from ...data.validate import CheckedShards
from ...tracking.journal import Checkpointed, Journal, JournalReader, Measured
from ..training.train import Outcome, run_training
from .population import report_with_pointer
from .trials import Trial

_POLL_SECONDS = 0.5


def run_trial(trial: Trial, sweep: SweepConfig, parent: str, checked: Mapping[Path, CheckedShards]) -> None:
    """Train a trial to its end, or go on with it, and report to Tune.

    With ASHA or a population, each measurement in training is reported too. Those of earlier launches come first,
    because Tune's own state is new at every launch. A report does not return if Tune ends this process.

    A member of a population reports its end once, with its summary. In one more comparison, a copy of another
    member could replace its weights, with nothing left to train.

    Raises:
        NotFinished, UserError: see `run_training`.
    """
    known = checked.get(trial.experiment.data.path)

    def train() -> Outcome:
        return run_training(trial.composed, parent=parent, checked=known)

    outcome = _run_and_report(trial, sweep, train) if sweep.measures_on_the_way else train()
    # Schedulers compare measurements during training: the last report repeats the newest of them.
    last = _last(trial, sweep, outcome.summary)
    tune.report({**outcome.summary, **last, "summary": outcome.summary, "trial": trial.name})


def _run_and_report(trial: Trial, sweep: SweepConfig, train: Callable[[], Outcome]) -> Outcome:
    """Train in a thread of its own, and report each measurement from this one, which Tune may stop for good."""
    ended: list[Outcome | BaseException] = []

    def train_to_end() -> None:
        try:
            ended.append(train())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=train_to_end, name="training", daemon=True)
    thread.start()
    for measured in measurements(trial.experiment.run_dir, thread, of_member=sweep.population is not None):
        if sweep.population is None or measured.images < trial.experiment.train.total_images:
            _report(trial, sweep, measured)
    [end] = ended
    if isinstance(end, BaseException):
        raise end
    return end


def measurements(run_dir: Path, thread: threading.Thread, *, of_member: bool) -> Iterator[Measured]:
    """Yield each measurement once, as soon as it is in the journal, until the end.

    Those of a member of a population are yielded once their checkpoints are complete. Of earlier launches only the
    newest is yielded: a member that reported all of them again would look like the worst at first.
    """
    journal, reported = JournalReader(run_dir), 0
    complete: set[int] = set()
    events = journal.new_events()  # those of earlier launches
    if of_member:
        saved = {event.images for event in events if isinstance(event, Checkpointed)}
        before = [event.images for event in events if isinstance(event, Measured) and event.images in saved]
        reported = max(before, default=0) - 1
    while True:
        alive = thread.is_alive()  # asked first, so that events written before its end are read below
        events += journal.new_events()
        complete |= {event.images for event in events if isinstance(event, Checkpointed)}
        for event in events:
            if isinstance(event, Measured) and event.images > reported:
                if of_member and event.images not in complete:
                    if max(complete, default=0) > event.images:
                        continue  # its checkpoint failed: no member can go on from there
                    break
                reported = event.images
                yield event
        if not alive:
            return
        thread.join(_POLL_SECONDS)
        events = [event for event in events if isinstance(event, Measured) and event.images > reported]


def _report(trial: Trial, sweep: SweepConfig, measured: Measured) -> None:
    values = {**measured.values, "images": measured.images, "trial": trial.name}
    if sweep.population is None:
        tune.report(values)
    else:
        report_with_pointer(values, trial.experiment.run_dir, measured.images)


def _last(trial: Trial, sweep: SweepConfig, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the last report to a scheduler: the newest measurement once more."""
    if not sweep.measures_on_the_way:
        return {}
    found = [event for event in Journal(trial.experiment.run_dir).events() if isinstance(event, Measured)]
    newest = found[-1].values if found else {sweep.metric: summary[sweep.metric]}
    return {**newest, "images": summary["images_seen"]}
