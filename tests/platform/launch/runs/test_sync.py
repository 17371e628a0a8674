"""Records that a run has left are delivered later, by a command of its own; into a real store."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.platform.tracking.recorded import waiting

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import only_launch
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.runs.sync import sync_run
from causalfusion_platform.tracking.delivery import Delivery
from causalfusion_platform.tracking.outbox import Outbox

MakeExperiment = Callable[..., Experiment]


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def left_behind(experiment: Experiment, uri: str, run_id: str | None = None) -> Path:
    """A run that has ended while MLflow was away."""
    run_dir = experiment.run_dir
    run_dir.mkdir(parents=True)
    tree = experiment.model_dump(mode="json")
    RunState(tracking_uri=uri, config=tree, mlflow_run_id=run_id, folder=str(run_dir)).write(run_dir)
    outbox = Outbox(run_dir)
    if run_id is None:
        outbox.create("sync", "mine", artifacts=run_dir / "artifacts", parameters={"seed": 1}, tags={"a": "b"})
    outbox.metrics({"train/loss": 0.5}, 64)
    outbox.metrics({"train/loss": 0.25}, 128)
    outbox.finish()
    return run_dir


def test_what_was_left_is_delivered_and_the_run_is_remembered(make_experiment: MakeExperiment, uri: str) -> None:
    run_dir = left_behind(make_experiment(), uri)
    count = len(waiting(run_dir))
    assert count == 6  # the run, its parameters and tags, two points, the end
    before = RunFolder(run_dir).state
    shown: list[tuple[int, int]] = []
    assert sync_run(RunFolder(run_dir), seconds=60, show=lambda *counts: shown.append(counts)) == count
    assert shown[0] == (0, count)
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
    assert waiting(run_dir) == []
    state = RunFolder(run_dir).state
    assert state is not None
    assert before is not None
    assert state == before.model_copy(update={"mlflow_run_id": state.mlflow_run_id})
    run = client(uri).get_run(state.mlflow_run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == ("mine", "FINISHED", {"seed": "1"})
    points = client(uri).get_metric_history(state.mlflow_run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(64, 0.5), (128, 0.25)]

    assert sync_run(RunFolder(run_dir)) == 0  # and nothing twice
    Outbox(run_dir).tags({"later": "yes"})
    assert sync_run(RunFolder(run_dir), seconds=60) == 1
    assert RunFolder(run_dir).state == state
    run = client(uri).get_run(state.mlflow_run_id)
    assert run.data.tags["later"] == "yes"


def test_what_mlflow_refuses_is_said(make_experiment: MakeExperiment, uri: str, log_lines: list[str]) -> None:
    run_dir = left_behind(make_experiment(name="refused"), uri)
    Outbox(run_dir).metrics({"no such name!": 1.0}, 256)
    sync_run(RunFolder(run_dir), seconds=60)
    assert waiting(run_dir) == []
    assert log_lines[-1:] == [f"delivering; 1 refused, see {run_dir / 'outbox' / 'refused'}"]


def test_a_server_that_does_not_answer_costs_nothing(make_experiment: MakeExperiment) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    run_dir = left_behind(make_experiment(), address)
    before = waiting(run_dir)
    with pytest.raises(UserError) as caught:
        sync_run(RunFolder(run_dir))
    message = str(caught.value)
    assert f"MLflow does not answer at {address}" in message
    assert f"{len(before)} records wait in {run_dir}; give the same command when it is back" in message
    assert waiting(run_dir) == before


def test_time_that_does_not_suffice(make_experiment: MakeExperiment, uri: str) -> None:
    """Points of a run that is not there: nothing is lost, and the command says so."""
    client(uri).search_experiments()
    run_dir = left_behind(make_experiment(), uri, run_id="0" * 32)
    with pytest.raises(UserError, match="3 of 3 records could not be delivered"):
        sync_run(RunFolder(run_dir), seconds=0.3)
    assert len(waiting(run_dir)) == 3


def test_a_run_under_way_delivers_by_itself(make_experiment: MakeExperiment, uri: str) -> None:
    run_dir = left_behind(make_experiment(), uri)
    with only_launch(run_dir), pytest.raises(UserError, match="is under way"):
        sync_run(RunFolder(run_dir))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)is no folder of a run.*causalfusion runs list"):
        sync_run(RunFolder(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_delivery_remembers_the_run(
    make_experiment: MakeExperiment, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its id no later delivery could go on: the record that makes the run is behind the cursor."""
    run_dir = left_behind(make_experiment(), uri)
    drain = Delivery.drain

    def interrupted(delivery: Delivery, timeout_seconds: float, show: object) -> int:
        assert drain(delivery, timeout_seconds) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(Delivery, "drain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync_run(RunFolder(run_dir), seconds=60)
    monkeypatch.undo()
    state = RunFolder(run_dir).state
    assert state is not None
    assert client(uri).get_run(state.mlflow_run_id).info.run_name == "mine"
    Outbox(run_dir).tags({"later": "yes"})
    assert sync_run(RunFolder(run_dir), seconds=60) == 1


def test_a_lost_id_is_found_again(make_experiment: MakeExperiment, uri: str) -> None:
    """As after a run.json from a backup. The cursor has passed the record that makes the run."""
    run_dir = left_behind(make_experiment(name="lost-id"), uri)
    sync_run(RunFolder(run_dir), seconds=60)
    state = RunFolder(run_dir).started
    state.model_copy(update={"mlflow_run_id": None}).write(run_dir)
    Outbox(run_dir).metrics({"train/loss": 0.125}, 192)
    assert sync_run(RunFolder(run_dir), seconds=60) == 1
    assert RunFolder(run_dir).started == state
    points = client(uri).get_metric_history(state.mlflow_run_id, "train/loss")
    assert [point.step for point in points] == [64, 128, 192]


def test_records_of_an_earlier_version_without_the_one_that_makes_the_run(
    make_experiment: MakeExperiment, uri: str
) -> None:
    """Its delivery was killed after MLflow had made the run, and before the id was kept."""
    experiment = make_experiment(name="old", tracking={"uri": uri, "experiment": "of the run"})
    run_dir = left_behind(experiment, uri, run_id="x")
    (run_dir / "journal.jsonl").unlink()
    RunState(tracking_uri=uri, config=experiment.model_dump(mode="json")).write(run_dir)
    (run_dir / "spool").mkdir()
    for step in (64, 128):
        record = {"kind": "metrics", "values": {"train/loss": 1.0}, "step": step, "time": 1_700_000_000_000 + step}
        (run_dir / "spool" / f"{step:020d}-00000000.metrics.json").write_text(json.dumps(record))
    assert sync_run(RunFolder(run_dir), seconds=60) == 2
    run = client(uri).get_run(RunFolder(run_dir).started.mlflow_run_id)
    assert run.info.run_name == "old"
    assert client(uri).get_experiment(run.info.experiment_id).name == "of the run"
    points = client(uri).get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == [64, 128]
