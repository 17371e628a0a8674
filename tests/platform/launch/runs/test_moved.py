"""Runs whose folder was copied or moved: their records never go to the original's run at MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.data.validate import CheckedShards
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.register import entry_of
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.runs.sync import sync_run
from causalfusion_platform.launch.sweeping.trials import compose_trial
from causalfusion_platform.tracking.local_store import renew_addresses

Begin = Callable[..., RunFolder]


@pytest.fixture
def begin(make_experiment: Callable[..., Experiment], digits_folder: Path) -> Begin:
    """Return a function that begins a run: (folder of runs, parent's id, settings …)."""

    def start(runs: Path, parent: str | None = None, **changes: object) -> RunFolder:
        experiment = make_experiment(**{"runs": runs, **changes})
        shards = CheckedShards(digits_folder, Manifest.read(digits_folder), {})
        folder = RunFolder(experiment.run_dir)
        folder.open(Composed(experiment, {}), shards, parent)
        return folder

    return start


def client(uri: str) -> Any:
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # of this process, in which both copies of a run are delivered
    return MlflowClient(tracking_uri=uri)


def local(runs: Path, empty_mlflow_store: Path) -> str:
    """Return the address of the local store of a folder of runs, which is made."""
    runs.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_mlflow_store, runs / "mlflow.db")
    return f"sqlite:///{runs / 'mlflow.db'}"


def losses(uri: str, run_id: str | None) -> list[int]:
    return [point.step for point in client(uri).get_metric_history(run_id, "loss")]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(run: RunFolder, step: int) -> None:
    run.outbox.metrics({"loss": 1.0}, step)
    run.outbox.image("samples", Image.new("L", (4, 4)), step)


@pytest.mark.parametrize("version", ["now", "before"])
@pytest.mark.parametrize("original", ["stays", "goes"])
def test_a_project_that_is_copied_or_moved_has_its_own_store(
    tmp_path: Path, begin: Begin, empty_mlflow_store: Path, version: str, original: str
) -> None:
    old, new = tmp_path / "project" / "runs", tmp_path / "other" / "runs"
    local(old, empty_mlflow_store)
    run = begin(old)
    record(run, 64)
    sync_run(run, seconds=60)
    record(run, 128)
    run.write_summary({"run_dir": str(run.root), "weights_path": f"{run.root}/checkpoints/x", "score": 1.0})
    if version == "before":  # its run.json has absolute addresses alone
        tree = json.loads(run.state_file.read_text())
        del tree["folder"], tree["identity"]
        run.state_file.write_text(json.dumps(tree))
    if original == "stays":
        shutil.copytree(old.parent, new.parent)
    else:
        old.parent.rename(new.parent)
    before = contents(old)

    there = RunFolder(new / "test")
    client(f"sqlite:///{new / 'mlflow.db'}")
    assert sync_run(there, seconds=60) > 0
    assert contents(old) == before
    assert old.exists() == (original == "stays")
    state = RunFolder(new / "test").started
    assert state.tracking_uri == f"sqlite:///{new / 'mlflow.db'}"
    assert state.mlflow_run_id == run.started.mlflow_run_id
    assert losses(state.tracking_uri, state.mlflow_run_id) == [64, 128]
    found = client(state.tracking_uri).get_run(state.mlflow_run_id)
    assert found.data.tags["run.dir"] == str(new / "test")
    images = [file.path for file in client(state.tracking_uri).list_artifacts(state.mlflow_run_id, "images")]
    assert len(images) == 4  # with thumbnails
    assert len(list(new.glob("mlartifacts/*/artifacts/images/*.png"))) == 2
    assert there.read_summary() == {
        "run_dir": str(new / "test"),
        "weights_path": f"{new / 'test'}/checkpoints/x",
        "score": 1.0,
    }


def test_a_run_alone_in_another_folder_of_runs_is_made_there(
    tmp_path: Path, begin: Begin, empty_mlflow_store: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    uris = [local(runs, empty_mlflow_store) for runs in (old, new)]
    run = begin(old)
    record(run, 64)
    sync_run(run, seconds=60)
    shutil.copytree(run.root, new / "test")
    before = contents(old)
    copy = RunFolder(new / "test")
    record(copy, 128)
    sync_run(copy, seconds=60)
    assert contents(old) == before
    assert copy.started.tracking_uri == uris[1]
    assert losses(uris[1], copy.started.mlflow_run_id) == [64, 128]
    made = client(uris[1]).get_run(copy.started.mlflow_run_id)
    assert made.data.params["model.depth"] == "2"
    assert made.info.artifact_uri.startswith((new / "mlartifacts").as_uri())


def test_a_copy_with_the_same_store_gets_a_run_of_its_own(
    tmp_path: Path, begin: Begin, empty_mlflow_store: Path, log_lines: list[str]
) -> None:
    """As with a server. The original goes on, and so does the copy, in two runs."""
    uri = local(tmp_path / "store", empty_mlflow_store)
    run = begin(tmp_path / "old", tracking={"uri": uri})
    record(run, 64)
    sync_run(run, seconds=60)
    copied = shutil.copytree(run.root, tmp_path / "copy" / "test")
    copy = RunFolder(copied)
    with pytest.raises(UserError, match="MLflow has not got run 'test' yet"):
        entry_of(copy)
    for step in (128, 192):
        record(copy, step)
        sync_run(copy, seconds=60)
    record(run, 256)
    sync_run(run, seconds=60)
    ids = [run.started.mlflow_run_id, RunFolder(copied).started.mlflow_run_id]
    assert losses(uri, ids[0]) == [64, 256]
    assert losses(uri, ids[1]) == [64, 128, 192]
    assert sum("MLflow gets another run for it" in line for line in log_lines) == 1


def test_a_run_that_is_moved_with_the_same_store_keeps_its_run(
    tmp_path: Path, begin: Begin, empty_mlflow_store: Path
) -> None:
    uri = local(tmp_path / "store", empty_mlflow_store)
    run = begin(tmp_path / "old", tracking={"uri": uri})
    record(run, 64)
    sync_run(run, seconds=60)
    run_id = run.started.mlflow_run_id
    run.root.parent.rename(tmp_path / "new")
    moved = RunFolder(tmp_path / "new" / "test")
    record(moved, 128)
    sync_run(moved, seconds=60)
    assert moved.started.mlflow_run_id == run_id
    assert losses(uri, run_id) == [64, 128]


def test_a_trial_of_a_copied_sweep_goes_on(
    tmp_path: Path, begin: Begin, make_experiment: Callable[..., Experiment]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    sweep = begin(old)
    values: dict[str, Any] = {"objective.ar_decay": 0.9}
    trial = compose_trial(Composed(make_experiment(runs=old), {}), "decay", values)
    tree = trial.experiment.model_dump(mode="json")
    RunState(tracking_uri=trial.experiment.tracking_uri, config=tree).write(_made(trial.experiment.run_dir))
    assert trial.experiment.run_dir.parent == sweep.root
    shutil.copytree(old, new)
    again = compose_trial(Composed(make_experiment(runs=new), {}), "decay", values)
    folder = RunFolder(again.experiment.run_dir)
    folder.check_config(again.experiment)
    assert folder.started.tracking_uri == again.experiment.tracking_uri == f"sqlite:///{new / 'mlflow.db'}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_store_that_was_put_elsewhere_than_its_artifacts_is_left_alone(
    tmp_path: Path, begin: Begin, empty_mlflow_store: Path
) -> None:
    uri = local(tmp_path / "store", empty_mlflow_store)
    run = begin(tmp_path / "runs", tracking={"uri": uri})
    record(run, 64)
    sync_run(run, seconds=60)
    before = contents(tmp_path / "store")
    renew_addresses(tmp_path / "store" / "mlflow.db")
    assert contents(tmp_path / "store") == before
    made = client(uri).get_run(run.started.mlflow_run_id)
    assert made.info.artifact_uri.startswith((tmp_path / "runs" / "mlartifacts").as_uri())
