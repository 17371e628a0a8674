"""Members of a population at a relaunch: they go on where they stand, with the values that they have now."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.platform.tracking.test_pending import REPORT

from causalfusion_platform.config.compose import Composed, compose_experiment
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping.job import SweepJob, finished_trials, job_of
from causalfusion_platform.launch.sweeping.population import PopulationMember, newest_of
from causalfusion_platform.launch.sweeping.run_trial import measurements
from causalfusion_platform.launch.sweeping.search import search_of
from causalfusion_platform.tracking.journal import Checkpointed, Journal, Measured


@pytest.fixture
def job(home: Path) -> SweepJob:
    """A population of two; the second one has been exploited."""
    composed: Composed = compose_experiment(
        "smoke",
        [
            "name=members",
            "sweep.space={optim.base_lr: {log_uniform: [1.0e-4, 1.0e-2]}}",
            "sweep.num_trials=2",
            "sweep.metric=fd_digits_cnn",
            "sweep.mode=min",
            "sweep.pbt={every_images: 128}",
        ],
    )
    found = job_of(composed)
    folder = found.experiment.run_dir / "members"
    folder.mkdir(parents=True)
    member = PopulationMember(
        name="member-1",
        tune_id="x",
        generation=3,
        values={"optim.base_lr": 0.003},
        taken_from="member-0",
        taken_at=256,
    )
    (folder / "member-1.json").write_text(member.model_dump_json())
    return found


def test_tune_begins_with_the_newest_values(job: SweepJob) -> None:
    trials = [newest_of(job.experiment, trial) for trial in job.trials]
    search = search_of(job.sweep, trials[1:], 1024, 2, total=2)
    assert (search.total, search.waiting) == (2, 1)
    assert search.space["optim.base_lr"].sample(config={"trial": "member-1"}) == 0.003
    assert trials[0] == job.trials[0]


def test_a_finished_member_is_listed_with_what_it_was_trained_with(job: SweepJob) -> None:
    assert list(finished_trials(job)) == []
    run_dir = job.run_dir("member-1")
    assert run_dir.name == "member-1.g3"
    run_dir.mkdir()
    RunState(tracking_uri="", config=job.experiment.model_dump(mode="json"), finished=True).write(run_dir)
    RunFolder(run_dir).write_summary({"fd_digits_cnn": 5.0})
    [(trial, summary)] = finished_trials(job)
    assert (trial.name, trial.values, summary) == ("member-1", {"optim.base_lr": 0.003}, {"fd_digits_cnn": 5.0})


def reported(run_dir: Path, *, of_member: bool) -> list[int]:
    over = threading.Thread()
    return [event.images for event in measurements(run_dir, over, of_member=of_member)]


def test_only_the_newest_measurement_of_earlier_launches_is_reported(tmp_path: Path) -> None:
    """By the first one, a member that has come far would look like the worst."""
    journal = Journal(tmp_path)
    for images in (128, 256, 384, 512):
        journal.add(Measured(attempt=1, images=images, values={"fd_digits_cnn": 1.0}))
        if images < 512:  # from 512 nobody can go on yet
            journal.add(saved(images))
    assert reported(tmp_path, of_member=True) == [384]
    assert reported(tmp_path, of_member=False) == [128, 256, 384, 512]


def saved(images: int) -> Checkpointed:
    fields = {name: 0 for name in Checkpointed.model_fields if name not in ("kind", "time")}
    return Checkpointed.model_validate({**fields, "images": images})


def test_a_checkpoint_that_failed_does_not_hold_up_those_after_it(tmp_path: Path) -> None:
    journal, over = Journal(tmp_path), threading.Event()
    training = threading.Thread(target=over.wait)
    training.start()
    try:
        found = measurements(tmp_path, training, of_member=True)
        for images in (64, 128, 256):
            journal.add(Measured(attempt=1, images=images, values={"fd_digits_cnn": 1.0}))
            if images != 128:
                journal.add(saved(images))
            if images == 64:
                assert next(found).images == 64
        assert next(found).images == 256
    finally:
        over.set()
    assert list(found) == []


def test_no_measurement_is_missed_while_tune_holds_a_report_back(tmp_path: Path) -> None:
    """A synchronous comparison may take as long as hundreds of steps."""
    journal, over = Journal(tmp_path), threading.Event()
    training = threading.Thread(target=over.wait)
    training.start()
    try:
        found = measurements(tmp_path, training, of_member=True)
        for images in (64, 128):
            journal.add(Measured(attempt=1, images=images, values={"fd_digits_cnn": 1.0}))
            journal.add(saved(images))
            if images == 64:
                assert next(found).images == 64
        for _ in range(600):
            journal.add(REPORT)
    finally:
        over.set()
    assert [event.images for event in found] == [128]
