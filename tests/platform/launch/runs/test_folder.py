"""The folder of a run: what a launch writes into it, and how often it is read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.validate import CheckedShards
from causalfusion_platform.launch.runs.find import look_at
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.training.launch import Launch
from causalfusion_platform.launch.training.train import run_training
from causalfusion_platform.storage import json_file
from causalfusion_platform.tracking.journal import Ended, Event, Journal, Launched
from causalfusion_platform.tracking.outbox import Outbox
from causalfusion_platform.tracking.records import Create, Ending, Input, Parameters, Record, RunFiles, Tags

MakeExperiment = Callable[..., Experiment]


def records(outbox: Outbox) -> list[Record]:
    return waiting(outbox.journal.path.parent)


def test_a_new_run_is_opened_and_then_again(make_experiment: MakeExperiment, digits_folder: Path) -> None:
    experiment, manifest = make_experiment(description="what for"), Manifest.read(digits_folder)
    folder = RunFolder(experiment.run_dir)
    outbox = folder.outbox
    whole, lacking = (
        CheckedShards(digits_folder, manifest, {}),
        CheckedShards(digits_folder, manifest, {"b": "bad", "a": "bad"}),
    )
    state = folder.open(Composed(experiment, {}), whole, parent="above")
    assert (state.mlflow_run_id, state.launches, state.finished, state.order) == (None, 1, False, 0)
    assert state.tracking_uri == experiment.tracking_uri
    assert folder.state == RunFolder(experiment.run_dir).state == state

    created, *parameters, tags, data, config = records(outbox)
    assert isinstance(created, Create)
    assert (created.experiment, created.name, created.parent) == ("causalfusion", "runs/test", "above")
    assert created.artifacts == experiment.runs / "mlartifacts"
    values: dict[str, str] = {}
    for one in parameters:
        assert isinstance(one, Parameters)
        values |= one.values
    assert values["model.depth"] == "2"
    assert values["data.path"] == str(experiment.data.path)
    assert isinstance(tags, Tags)
    assert tags.values["data.digest"] == manifest.digest
    assert tags.values["run.dir"] == str(experiment.run_dir)
    assert tags.values["mlflow.note.content"] == "what for"
    assert isinstance(data, Input)
    assert data.digest == manifest.digest[:36]
    assert isinstance(config, RunFiles)
    assert [path.name for path in (outbox.folder / config.files).iterdir()] == ["config.yaml"]
    before = (experiment.run_dir / "config.yaml").read_bytes()

    again = folder.open(Composed(experiment, {}), lacking)
    assert again == state.model_copy(update={"launches": 2, "bad_shards": ["a", "b"]})
    assert folder.state == RunFolder(experiment.run_dir).state == again
    [last] = records(outbox)[len(parameters) + 4 :]  # the configuration is the same: not recorded again
    assert isinstance(last, Ending)
    assert last.status == "RUNNING"
    assert (experiment.run_dir / "config.yaml").read_bytes() == before


def test_a_run_that_goes_on_with_other_values_says_so(make_experiment: MakeExperiment, digits_folder: Path) -> None:
    """What later launches are compared with is what the newest one was given; the rest of the state stays."""
    first, second = make_experiment(), make_experiment(optim={"base_lr": 1e-5})
    shards = CheckedShards(digits_folder, Manifest.read(digits_folder), {})
    folder = RunFolder(first.run_dir)
    outbox = folder.outbox
    folder.open(Composed(first, {}), shards)
    folder.keep(order=2, mlflow_run_id="abc")
    count = len(records(outbox))
    state = folder.open(Composed(second, {}), shards)
    assert (state.launches, state.order, state.mlflow_run_id) == (2, 2, "abc")
    reopened, config = records(outbox)[count:]
    assert (reopened.kind, config.kind) == ("status", "artifact")
    assert isinstance(config, RunFiles)
    copy = outbox.folder / config.files / "config.yaml"
    assert yaml.safe_load(copy.read_text())["optim"]["base_lr"] == 1e-5
    folder.check_config(second)
    with pytest.raises(UserError, match=r"optim\.base_lr: was 1e-05"):
        folder.check_config(first)


def test_a_launch_that_died_before_its_state_leaves_no_second_run(
    make_experiment: MakeExperiment, digits_folder: Path
) -> None:
    experiment = make_experiment()
    shards = CheckedShards(digits_folder, Manifest.read(digits_folder), {})
    for _ in range(2):  # the first one writes its records, and is killed
        folder = RunFolder(experiment.run_dir)
        folder.open(Composed(experiment, {}), shards)
        folder.state_file.unlink()
    assert sum(isinstance(record, Create) for record in records(folder.outbox)) == 1


def test_the_state_is_read_once_and_again_under_the_lock(own_folder: Path, make_experiment: MakeExperiment) -> None:
    folder, other = RunFolder(own_folder), RunFolder(own_folder)
    with pytest.raises(UserError, match="is no folder of a run"):
        _ = folder.started
    tree = make_experiment().model_dump(mode="json")
    state = RunState(tracking_uri="sqlite:///x", config=tree, folder=str(own_folder))
    state.write(own_folder)
    assert folder.state is None
    assert other.started == state
    other.keep(launches=2)
    with folder.lock():
        assert folder.started.launches == 2
        assert folder.is_under_way()
        folder.keep(order=1)
    assert not folder.is_under_way()
    assert RunFolder(own_folder).started == state.model_copy(update={"launches": 2, "order": 1})


def test_a_launch_reads_the_state_three_times(
    make_experiment: MakeExperiment, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to see whether there is anything to do, under the lock, and when older launches write no more.

    A finished run is read once.
    """
    experiment = make_experiment(data={"path": digits_folder}, train={"num_workers": 1})
    reads: list[Path] = []
    read = json_file.read_bounded

    def counted(path: Path, largest: int) -> bytes:
        reads.extend([path] if path.name == "run.json" else [])
        return read(path, largest)

    def finish(launch: Launch, *_: object) -> dict[str, Any]:
        launch.folder.keep(mlflow_run_id="abc")
        launch.folder.write_summary({"done": True})
        launch.folder.keep(finished=True)
        return {"done": True}

    monkeypatch.setattr(json_file, "read_bounded", counted)
    monkeypatch.setattr(Launch, "run", finish)
    for already_finished, expected in ((False, 3), (True, 1)):
        reads.clear()
        outcome = run_training(Composed(experiment, {}), local=True)
        assert (outcome.summary, outcome.already_finished) == ({"done": True}, already_finished)
        assert reads == [experiment.run_dir / "run.json"] * expected


def test_a_run_that_ends_while_it_is_looked_at_was_not_killed(
    make_experiment: MakeExperiment, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment()
    folder = RunFolder(experiment.run_dir)
    folder.open(Composed(experiment, {}), CheckedShards(digits_folder, Manifest.read(digits_folder), {}))
    folder.journal.add(Launched(launch=1, host="h", pid=1))
    events = Journal.events
    with ExitStack() as launch:
        launch.enter_context(folder.lock())

        def read_and_end(journal: Journal) -> list[Event]:
            found = events(journal)
            journal.add(Ended(launch=1, how="finished"))
            launch.close()
            return found

        monkeypatch.setattr(Journal, "events", read_and_end)
        assert look_at(RunFolder(experiment.run_dir)).status == "running"
    monkeypatch.undo()
    assert look_at(RunFolder(experiment.run_dir)).status == "finished"
