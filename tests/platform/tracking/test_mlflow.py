"""Recording into MLflow, read back with MLflow's own client. One SQLite store serves the whole file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from causalfusion_platform.tracking.mlflow import MlflowTracker, start_run


@dataclass
class Store:
    """A tracking store: where it is, and MLflow's client for it."""

    uri: str
    artifacts: Path
    client: Any

    def start(self, name: str = "run", **changes: Any) -> str:
        given: dict[str, Any] = {"artifacts": self.artifacts, "parameters": {}, "tags": {}}
        return start_run(self.uri, "tests", name, **(given | changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return a new SQLite store. Making its tables takes seconds."""
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    start_run(uri, "tests", "first", artifacts=folder / "artifacts", parameters={}, tags={})
    from mlflow import MlflowClient

    yield Store(uri, folder / "artifacts", MlflowClient(tracking_uri=uri))
    for name in set(os.environ) - set(before):
        del os.environ[name]


def test_a_run_has_its_name_parameters_and_tags(store: Store) -> None:
    parent = store.start("parent")
    parameters = {"train.images": 256, "optim.base_lr": 0.004, "sweep": None, "data.prepare": True, "γ": "0.9"}
    child = store.start("child", parameters=parameters, tags={"data.digest": "abc"}, parent=parent)
    run = store.client.get_run(child)
    assert run.info.run_name == "child"
    assert run.info.status == "RUNNING"
    assert run.data.params == {
        "train.images": "256",
        "optim.base_lr": "0.004",
        "sweep": "None",
        "data.prepare": "True",
        "γ": "0.9",
    }
    assert run.data.tags["data.digest"] == "abc"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert "mlflow.parentRunId" not in store.client.get_run(parent).data.tags
    assert run.info.experiment_id == store.client.get_experiment_by_name("tests").experiment_id


def test_runs_of_one_name_are_apart(store: Store) -> None:
    assert store.start("same") != store.start("same")


def test_artifacts_lie_in_the_folder_that_was_given(store: Store) -> None:
    experiment = store.client.get_experiment_by_name("tests")
    assert experiment.artifact_location == store.artifacts.as_uri()


def test_any_number_of_parameters(store: Store) -> None:
    """MLflow takes a hundred at a time, of six thousand characters each."""
    parameters: dict[str, object] = {f"key.{number}": number for number in range(205)}
    parameters["long"] = "x" * 7000
    found = store.client.get_run(store.start(parameters=parameters)).data.params
    assert len(found) == 206
    assert found["long"] == "x" * 6000
    assert all(found[f"key.{number}"] == str(number) for number in range(205))


def test_metrics_have_their_step(store: Store) -> None:
    run = store.start()
    tracker = MlflowTracker(store.uri, run)
    tracker.metrics({"train/loss": 2.5, "train/mse": 1.0}, 128)
    tracker.metrics({"train/loss": 1.25}, 256)
    history = store.client.get_metric_history(run, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(128, 2.5), (256, 1.25)]
    assert [metric.step for metric in store.client.get_metric_history(run, "train/mse")] == [128]


def test_images_come_back_pixel_by_pixel(store: Store) -> None:
    run = store.start()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tracker = MlflowTracker(store.uri, run)
    for step in (128, 256):
        tracker.image("samples", Image.fromarray(pixels), step)
    files = [Path(file.path) for file in store.client.list_artifacts(run, "images")]
    originals = [file for file in files if file.suffix == ".png"]
    found_steps = [re.match(r"samples\Wstep\W(\d+)\W", file.name) for file in originals]
    assert sorted(step[1] for step in found_steps if step) == ["128", "256"]
    for file in originals:
        found = np.asarray(Image.open(store.client.download_artifacts(run, str(file))))
        assert np.array_equal(found, pixels)


def test_files_come_back_byte_by_byte(store: Store, own_folder: Path) -> None:
    run = store.start()
    (own_folder / "summary.json").write_bytes(b'{"a": 1}\n')
    tracker = MlflowTracker(store.uri, run)
    tracker.artifact(own_folder / "summary.json")
    tracker.artifact(own_folder / "summary.json", "inner")
    for name in ("summary.json", "inner/summary.json"):
        assert Path(store.client.download_artifacts(run, name)).read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_is_finished_and_opened_again(store: Store, status: str) -> None:
    run = store.start()
    tracker = MlflowTracker(store.uri, run)
    tracker.finish(status)
    assert store.client.get_run(run).info.status == status
    again = MlflowTracker(store.uri, run)
    again.reopen()
    assert store.client.get_run(run).info.status == "RUNNING"
    again.metrics({"train/loss": 1.0}, 1)
    again.finish()
    info = store.client.get_run(run).info
    assert info.status == "FINISHED"
    assert info.end_time >= info.start_time
