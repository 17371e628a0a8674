"""A worker's folder for a run on object storage: what it writes there is in the driver's folder, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from causalfusion_platform.assemble import Job
from causalfusion_platform.checkpoint.manifest import config_digest
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.launch.training.own_folder import Mirror, own_folder
from causalfusion_platform.launch.training.progress_actor import ProgressActor
from causalfusion_platform.tracking.journal import Journal, SetAside


class Actor:
    """The progress actor of a driver, called at once, without Ray."""

    def __init__(self, run_dir: Path) -> None:
        self.calls: list[str] = []
        self._actor = ProgressActor(str(run_dir))

    def __getattr__(self, name: str) -> SimpleNamespace:
        def call(*given: Any) -> Any:
            self.calls.append(name)
            return getattr(self._actor, name)(*given)

        return SimpleNamespace(remote=call)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver's folder of the run, with a line in its journal."""
    monkeypatch.setattr("ray.get", lambda value: value)
    folder = tmp_path / "driver/one"
    folder.mkdir(parents=True)
    Journal(folder).add(SetAside(checkpoint="a", reason="before"))
    (folder / "run.json").write_text('{"mlflow_run_id": "abc"}')
    return folder


@pytest.fixture
def job(make_experiment: Callable[..., Experiment], tmp_path: Path) -> Job:
    """A job of a run on object storage."""
    experiment = make_experiment(runs="s3://bucket/runs", name="one", train={"staging": tmp_path / "fast"})
    return Job(experiment=experiment, launch_id="abc", attempt=3)


def reasons(folder: Path) -> list[str]:
    return [event.reason for event in Journal(folder).events() if isinstance(event, SetAside)]


def test_lines_and_files_reach_the_driver(driver: Path, job: Job) -> None:
    actor = Actor(driver)
    with own_folder(job, actor, rank=0) as own:
        root = own.paths.root
        assert root.name == "one"
        assert not root.is_relative_to(driver.parent)
        assert reasons(root) == ["before"]
        (root / "samples").mkdir()
        large = bytes(range(256)) * (3 << 16)  # in several pieces
        (root / "samples/final.safetensors").write_bytes(large)
        (root / "empty").write_bytes(b"")
        Journal(root).add(SetAside(checkpoint="b", reason="now"))
        until = time.monotonic() + 60
        while not own.paths.state_file.is_file():  # MLflow's id, for checkpoints
            assert time.monotonic() < until
            time.sleep(0.05)
        Journal(root).add(SetAside(checkpoint="b", reason="last"))
    assert reasons(driver) == ["before", "now", "last"]
    assert (driver / "samples/final.safetensors").read_bytes() == large
    assert (driver / "empty").read_bytes() == b""
    assert not list(driver.rglob(".*"))
    assert not root.exists()


def test_files_go_before_the_lines_that_name_them(driver: Path, tmp_path: Path) -> None:
    actor = Actor(driver)
    root = tmp_path / "worker"
    (root / "outbox/abc.image").mkdir(parents=True)
    (root / "outbox/abc.image/grid.png").write_text("grid")
    Journal(root).add(SetAside(checkpoint="b", reason="names it"))
    (root / "checkpoints").mkdir()
    (root / "checkpoints/large").write_text("uploaded elsewhere")
    mirror = Mirror(root, actor)
    mirror.send()
    mirror.send()
    assert actor.calls == ["put_file", "append_lines"]
    assert not (driver / "checkpoints").exists()


def test_the_last_worker_of_a_machine_removes_the_folder(driver: Path, job: Job) -> None:
    first, second = own_folder(job, Actor(driver), 0), own_folder(job, Actor(driver), 1)
    own = first.__enter__()
    assert second.__enter__().paths.root == own.paths.root
    first.__exit__(None, None, None)
    assert own.paths.root.is_dir()
    second.__exit__(None, None, None)
    assert not own.paths.root.exists()


def test_the_job_still_says_where_it_publishes(job: Job, tmp_path: Path) -> None:
    own = Job.model_validate_json(job.in_folder(tmp_path).model_dump_json())
    assert own.paths.root == tmp_path / "one"
    assert str(own.url) == "s3://bucket/runs/one"
    assert config_digest(own.as_given) == config_digest(job.experiment)


def test_names_outside_of_the_run_are_refused(driver: Path) -> None:
    for name in ("../other", "/etc/passwd", "a/../../b"):
        with pytest.raises(ValueError, match="is not the name of a file inside"):
            ProgressActor(str(driver)).put_file(name, b"")


def test_a_run_in_a_shared_folder_is_worked_with_there(make_experiment: Callable[..., Experiment]) -> None:
    job = Job(experiment=make_experiment())
    with own_folder(job, None, 0) as own:
        assert own is job
