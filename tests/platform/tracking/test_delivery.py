"""Delivery to MLflow's SQLite store: what is refused, deleted, locked, out of order or there twice."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image
from tests.platform.tracking.recorded import HASTY, Job, deliver_again, until

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.storage.fence import Superseded
from causalfusion_platform.tracking import mlflow_calls
from causalfusion_platform.tracking.delivery import Delivery
from causalfusion_platform.tracking.mlflow_calls import classify


@pytest.fixture(scope="module")
def sqlite_uri(empty_mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a SQLite store that the tests of this file share."""
    file = tmp_path_factory.mktemp("sqlite") / "mlflow.db"
    shutil.copy(empty_mlflow_store, file)
    return f"sqlite:///{file}"


@pytest.fixture
def store(sqlite_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=sqlite_uri)


def test_what_was_delivered_but_not_removed(own_folder: Path, sqlite_uri: str) -> None:
    deliver_again(own_folder, sqlite_uri)


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(
    own_folder: Path, sqlite_uri: str, store: Any
) -> None:
    job = Job(own_folder, "refused")
    job.create()
    job.train(10)
    job.outbox.metrics({"no such name!": 1.0}, 11)
    with job.outbox.journal.path.open("a") as file:
        file.write('{"kind": "metr')
    job.outbox.image("samples", Image.new("L", (4, 4)), 12)
    (broken,) = job.folder.glob("outbox/*.image/*.png")
    broken.write_bytes(b"no image")
    job.train(10)
    assert job.deliver(sqlite_uri) == 0
    delivery = job.delivery(sqlite_uri)
    assert delivery.refused() == 2
    assert delivery.state == f"delivering; 2 refused, see {job.folder / 'outbox' / 'refused'}"
    reasons = sorted(path.read_text() for path in (job.folder / "outbox" / "refused").glob("*.txt"))
    assert "Invalid value" in reasons[0]
    assert "cannot identify image" in reasons[1]
    assert len(list((job.folder / "outbox" / "refused").glob("*.image/*.png"))) == 1
    job.check(store)


def test_records_of_a_run_that_was_deleted_wait(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    job = Job(own_folder, "deleted")
    job.create()
    job.train(5)
    assert job.deliver(sqlite_uri) == 0
    store.delete_run(job.ids[0])
    job.train(5)
    delivery = job.delivery(sqlite_uri, job.ids[0])
    delivery.start()
    until(lambda: "is deleted; restore it" in delivery.state)
    assert delivery.drain(0.3) == 5
    store.restore_run(job.ids[0])
    assert delivery.drain(60) == 0
    delivery.stop(60)
    job.check(store)


def test_another_store_at_the_same_address_gets_nothing(own_folder: Path, sqlite_uri: str) -> None:
    job = Job(own_folder, "other")
    job.train(3)
    delivery = job.delivery(sqlite_uri, "0" * 32)
    delivery.start()
    until(lambda: "MLflow has no such run" in delivery.state)
    assert delivery.drain(0.3) == 3
    assert delivery.refused() == 0
    delivery.stop(60)


def test_a_locked_database(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    job = Job(own_folder, "locked")
    with closing(sqlite3.connect(sqlite_uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        job.create()
        job.train(20, 1)
        delivery = job.delivery(sqlite_uri)
        delivery.start()
        assert delivery.drain(0.5) == 26
    assert delivery.drain(60) == 0
    delivery.stop(60)
    job.check(store)


def test_a_keeper_that_fails_is_told_again(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    """The run's id could not be kept: nothing is sent to the run before it is, and no second run is made."""
    job = Job(own_folder, "keeper")
    job.create()
    job.train(3)
    told: list[str] = []

    def keep(run_id: str) -> None:
        told.append(run_id)
        if len(told) < 3:
            raise OSError("no space left")

    delivery = Delivery(job.folder, sqlite_uri, run_id=None, on_run_id=keep, retry=HASTY)
    delivery.start()
    assert delivery.drain(60) == 0
    delivery.stop(60)
    assert len(told) == 3
    job.ids = told
    job.check(store)


def test_twins_of_a_run_that_was_made_twice(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    """A server that froze may carry out an earlier request for the run late; a copy that a person made is kept."""
    job = Job(own_folder, "twins")
    job.create()
    assert job.deliver(sqlite_uri) == 0
    run = store.get_run(job.ids[0])
    tags = {"spool.key": run.data.tags["spool.key"]}
    given = (tags, {"spool.key": "x"}, tags)
    late, other, copy = (store.create_run(run.info.experiment_id, tags=some).info.run_id for some in given)
    store.log_metric(copy, "loss", 1.0)
    job.outbox.finish()
    assert job.deliver(sqlite_uri) == 0
    stages = [store.get_run(one).info.lifecycle_stage for one in (job.ids[0], late, other, copy)]
    assert stages == ["active", "deleted", "active", "active"]


def test_one_delivery_at_a_time(own_folder: Path, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causalfusion_platform.tracking.delivery._LOCK_SECONDS", 0.1)
    first, second = (Job(own_folder, "one").delivery(sqlite_uri, "0" * 32) for _ in range(2))
    first.start()
    first.start()
    with pytest.raises(UserError, match=r"process \d+ delivers the records of .*run already\n.*kill \d+"):
        second.start()
    for content in (b"", b"\xff"):  # its writer was killed
        (own_folder / "run" / "outbox" / "delivery.pid").write_bytes(content)
        with pytest.raises(UserError, match="delivers the records of"):
            second.start()
    first.stop(60)
    second.start()
    second.stop(60)


def test_the_newer_launch_waits_for_the_older_ones_delivery_to_end(own_folder: Path, sqlite_uri: str) -> None:
    """The older one has nothing to deliver. It ends all the same when it sees that it was superseded."""
    newer, asked = threading.Event(), threading.Event()

    class Overtaken:
        def check(self) -> None:
            asked.set()
            if newer.is_set():
                raise Superseded("another launch has taken the run over")

    job = Job(own_folder, "one")
    first = Delivery(
        job.folder, sqlite_uri, run_id="0" * 32, on_run_id=job.ids.append, retry=HASTY, fence=Overtaken()
    )
    first.start()
    assert asked.wait(60)
    newer.set()
    second = job.delivery(sqlite_uri, "0" * 32)
    second.start()
    second.stop(60)


def test_what_the_errors_of_mlflow_and_of_what_lies_before_it_mean() -> None:
    """A proxy's page is not MLflow's word, a refused password is not the record's fault."""
    import requests
    from mlflow.exceptions import MlflowException, RestException
    from mlflow.utils.rest_utils import verify_rest_response

    def page(status: int, body: str) -> Any:
        response = requests.Response()
        response.status_code, response._content = status, body.encode()
        with pytest.raises(MlflowException) as caught:
            verify_rest_response(response, "/api/2.0/mlflow/runs/log-batch")
        return caught.value

    def upload(status: int) -> Any:
        response = requests.Response()
        response.status_code = status
        return requests.HTTPError("upload", response=response)

    def said(code: str) -> Any:
        return RestException({"error_code": code, "message": "m"})

    unavailable = [
        *(page(status, "<html>") for status in (401, 403, 404, 408, 429, 500, 502, 503, 504)),
        *(said(code) for code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_DOES_NOT_EXIST")),
        *(upload(status) for status in (401, 404, 429, 500, 503)),
        requests.ConnectionError("c"),
        requests.Timeout("t"),
        ConnectionResetError("r"),
        TimeoutError("t"),
        OSError(28, "No space left on device"),
    ]
    assert [classify(error)[0] for error in unavailable] == ["unavailable"] * len(unavailable)
    refused = [said("INVALID_PARAMETER_VALUE"), PermissionError("p"), upload(400), upload(413)]
    assert [classify(error)[0] for error in refused] == ["refused"] * len(refused)
    # A pool of connections that ran out is BAD_REQUEST too.
    unknown = [said("BAD_REQUEST"), ValueError("v"), OSError("truncated image")]
    assert [classify(error)[0] for error in unknown] == ["unknown"] * len(unknown)


class Hung:
    """Stands for MLflow's client: every call takes until `over`, and is refused then if the record is `refused`."""

    def __init__(self, over: threading.Event) -> None:
        self.over, self.called = over, threading.Event()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object, **given: Any) -> Any:
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

            if name == "get_run":
                return MagicMock(info=MagicMock(lifecycle_stage="active"))
            self.called.set()
            assert self.over.wait(60)
            if "refused" in str(given):
                raise MlflowException("refused", INVALID_PARAMETER_VALUE)
            return [] if name == "search_runs" else MagicMock()

        return call


@pytest.mark.parametrize("kind", ["create", "metrics", "refused", "image"])
def test_a_call_that_ends_after_the_stop_changes_nothing_in_the_folder(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The run's lock is released after the stop, and another launch may hold it."""
    over, job = threading.Event(), Job(own_folder, kind)
    hung = Hung(over)
    monkeypatch.setattr(mlflow_calls, "client", lambda _: hung)
    if kind == "create":
        job.create()
    elif kind == "image":
        job.outbox.image("samples", Image.new("L", (4, 4)), 1)
    else:
        job.outbox.metrics({kind: 1.0}, 1)
    delivery = job.delivery("sqlite:///none", None if kind == "create" else "0" * 32)
    delivery.start()
    assert hung.called.wait(60)
    delivery.stop(0.05)
    thread = delivery._thread
    assert thread is not None and thread.is_alive()
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    over.set()
    thread.join(60)
    assert not thread.is_alive()
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == before
    assert job.ids == []


def test_copies_of_a_writer_that_was_killed_are_removed(own_folder: Path) -> None:
    """They are written before their record, which only names those that wait."""
    job = Job(own_folder, "copies")
    job.outbox.image("samples", Image.new("L", (4, 4)), 1)
    (waits,) = job.outbox.folder.iterdir()
    left = job.outbox.folder / f"{'0a' * 16}.image"
    shutil.copytree(waits, left)
    (job.outbox.folder / "refused").mkdir()
    delivery = job.delivery("sqlite:///none", "0" * 32)
    delivery.start()
    delivery.stop(60)
    assert not left.exists()
    assert len(list(waits.iterdir())) == 1
    assert (job.outbox.folder / "refused").is_dir()
