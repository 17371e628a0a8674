"""Delivery to MLflow, through every fault of a server that we know; read back with MLflow's own client."""

from __future__ import annotations

import math
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.manifest import AutoencoderId, Manifest, Shard, SourceId
from causalfusion_platform.tracking.courier import Courier, Patience
from causalfusion_platform.tracking.deliver import judge
from causalfusion_platform.tracking.mlflow import client, open_experiment
from causalfusion_platform.tracking.spool import Spool, waiting

MANIFEST = Manifest(
    source=SourceId(kind="folders", location="/data/in turn/numbers/", items=3, digest="0" * 64),
    autoencoder=AutoencoderId(name="identity", scale=1.0),
    shape=(1, 2, 2),
    class_names=["zero", "one"],
    rows=3,
    shards=[Shard(file="a.parquet", rows=3, row_groups=[3], bytes=1, sha256="0" * 64)],
)
HASTY = Patience(poll_seconds=0.05, first_pause_seconds=0.1, longest_pause_seconds=0.5, tries=3)


class Job:
    """A run that is recorded into a spool, and what it should look like in MLflow."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.folder, self.experiment, self.spool = folder / "spool", experiment, Spool(folder / "spool")
        self.ids: list[str] = []
        self.steps: list[int] = []
        self.images = 0
        self.artifacts = folder / "artifacts"

    def create(self) -> None:
        parameters = {f"key.{number}": number for number in range(120)}
        self.spool.create(
            self.experiment, "name", artifacts=self.artifacts, parameters=parameters, tags={"data.digest": "abc"}
        )
        self.spool.data(MANIFEST, Path("/shards"))

    def train(self, steps: int, images: int = 0) -> None:
        """Record so many points, going down where a sorted history would go up, and some images among them."""
        for number in range(steps):
            step = len(self.steps) + 1
            self.steps.append(step)
            self.spool.metrics({"loss": value_at(step), "odd": math.nan if step % 2 else math.inf}, step)
            if number % max(1, steps // (images or steps)) == 0 and images:
                self.spool.image("samples", Image.fromarray(pixels_at(self.images)), step)
                self.images += 1

    def courier(self, uri: str, run_id: str | None = None) -> Courier:
        return Courier(self.folder, uri, run_id=run_id, on_run_id=self.ids.append, patience=HASTY)

    def deliver(self, uri: str, timeout_seconds: float = 60) -> int:
        courier = self.courier(uri, self.ids[-1] if self.ids else None)
        courier.start()
        left = courier.drain(timeout_seconds)
        courier.stop(60)
        return left

    def check(self, client: Any, status: str = "RUNNING") -> None:
        """Compare MLflow with what was recorded: each point, image and run once, in order."""
        (run_id,) = set(self.ids)
        experiment = client.get_experiment_by_name(self.experiment)
        (run,) = client.search_runs([experiment.experiment_id])
        assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "name", status)
        assert run.data.params == {f"key.{number}": str(number) for number in range(120)}
        assert run.data.tags["data.digest"] == "abc"
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("in turn/numbers", MANIFEST.digest[:36])
        assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
        history = client.get_metric_history(run_id, "loss")
        assert [(point.step, point.value) for point in history] == [(step, value_at(step)) for step in self.steps]
        odd = client.get_metric_history(run_id, "odd")
        assert [point.step for point in odd] == self.steps
        assert all(math.isnan(point.value) == bool(point.step % 2) for point in odd)
        files = [Path(file.path) for file in client.list_artifacts(run_id, "images")]
        assert len([file for file in files if file.suffix == ".webp"]) == self.images
        originals = {int(step_of(file)): file for file in files if file.suffix == ".png"}
        assert len(files) == 2 * len(originals) == 2 * self.images
        for number in {0, self.images - 1} if self.images else ():
            file = originals[sorted(originals)[number]]
            found = np.asarray(Image.open(client.download_artifacts(run_id, str(file))))
            assert np.array_equal(found, pixels_at(number))


def value_at(step: int) -> float:
    return 1 / step if step % 3 else -float(step)


def pixels_at(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def step_of(file: Path) -> str:
    match = re.match(r"samples\+step\+(\d+)\+", file.name)
    assert match
    return match[1]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a SQLite store. Making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("sqlite")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    open_experiment(client(uri), uri, "first", folder / "artifacts")
    return uri


@pytest.fixture
def store(sqlite_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=sqlite_uri)


@contextmanager
def proxy(port: int, lose: Callable[[str], bool], delay_seconds: float = 0.0) -> Iterator[str]:
    """Pass requests on to a port, and the answers back, late; where `lose(path)`, the answer is thrown away."""

    class Pass(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            time.sleep(delay_seconds)
            if lose(self.path):
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def test_a_server_that_is_down_at_the_start_freezes_and_dies(own_folder: Path, server: Any) -> None:
    """One run through all three; training goes on recording throughout."""
    job = Job(own_folder, "faults")
    courier = job.courier(server.uri)
    courier.start()
    job.create()
    job.train(1500, 3)
    records = len(waiting(job.folder))
    assert records == 1 + 2 + 1 + 1 + 1503
    shown = r"MLflow does not answer \(.*refused\), since ..:..:..: 1508 records wait"
    until(lambda: re.match(shown, courier.state))
    assert courier.drain(0.5) == records
    assert not job.ids

    server.up()
    assert courier.drain(60) == 0
    assert courier.state == "delivering"
    job.check(server.client)

    server.freeze()
    job.train(300, 2)
    assert courier.drain(1) == 302
    until(lambda: "MLflow does not answer" in courier.state)
    server.thaw()
    assert courier.drain(60) == 0
    job.check(server.client)

    server.kill()
    job.train(300, 2)
    job.spool.finish("KILLED")
    assert courier.drain(1) == 303
    courier.stop(60)
    job.spool.reopen()
    job.train(5)
    server.up()
    assert job.deliver(server.uri) == 0
    job.spool.finish()
    assert job.deliver(server.uri) == 0
    job.check(server.client, "FINISHED")
    assert [path.name for path in job.folder.iterdir()] == ["courier.lock"]


def test_couriers_that_are_killed(own_folder: Path, server: Any) -> None:
    """Six times, at random points; the next one takes over and nothing is there twice."""
    server.up()
    job = Job(own_folder, "killed")
    job.create()
    job.train(500, 50)
    code = """if True:
        import sys, threading
        from pathlib import Path
        from causalfusion_platform.tracking.courier import Courier, Patience
        folder, uri, known = sys.argv[1:]
        ids = Path(known)
        run_id = ids.read_text().split()[-1] if ids.exists() else None
        def keep(run_id):
            with ids.open("a") as file:
                file.write(run_id + "\\n")
        Courier(Path(folder), uri, run_id=run_id, on_run_id=keep, patience=Patience(poll_seconds=0.05)).start()
        threading.Event().wait(100)
    """
    known, draw = own_folder / "ids", random.Random(5)
    total = len(waiting(job.folder))
    for killed in range(6):
        with subprocess.Popen([sys.executable, "-c", code, str(job.folder), server.uri, str(known)]) as process:
            aim = total - (1 if killed == 0 else draw.randint(total * killed // 8, total * (killed + 1) // 8))
            until(lambda aim=aim: len(waiting(job.folder)) <= aim)  # type: ignore[misc]
            time.sleep(draw.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
    assert waiting(job.folder)
    job.ids = known.read_text().split()
    assert job.deliver(server.uri) == 0
    job.spool.finish()
    assert job.deliver(server.uri) == 0
    job.check(server.client, "FINISHED")


def test_answers_that_are_lost(own_folder: Path, server: Any) -> None:
    """The server does what it is asked, but for a while no answer to a change comes back: it is asked again."""
    server.up()
    job = Job(own_folder, "lost")
    job.create()
    job.train(40, 3)
    job.spool.finish()
    lost: list[str] = []

    def lose(path: str) -> bool:
        found = re.search("runs/create|log-batch|log-inputs|set-tag|artifacts|runs/update", path)
        # MLflow's client asks three times by itself: it takes the courier to ask a fourth time.
        if found is None or lost.count(found[0]) >= (4 if found[0] == "runs/create" else 1):
            return False
        lost.append(found[0])
        return True

    with proxy(server.port, lose) as uri:
        assert job.deliver(uri) == 0
    assert lost == ["runs/create"] * 3 + ["log-batch", "log-inputs", "set-tag", "artifacts", "runs/update"]
    job.check(server.client, "FINISHED")


def test_a_slow_server(own_folder: Path, server: Any) -> None:
    server.up()
    job = Job(own_folder, "slow")
    job.create()
    job.train(1100, 1)
    with proxy(server.port, lambda _: False, delay_seconds=0.2) as uri:
        assert job.deliver(uri) == 0
    job.check(server.client)


@pytest.mark.parametrize("kind", ["server", "sqlite"])
def test_what_was_delivered_but_not_removed(own_folder: Path, server: Any, sqlite_uri: str, kind: str) -> None:
    """The state of a spool at a crash after the last delivery: everything is delivered once more."""
    from mlflow import MlflowClient

    if kind == "server":
        server.up()
    uri = server.uri if kind == "server" else sqlite_uri
    client = MlflowClient(tracking_uri=uri)
    job = Job(own_folder, f"again {kind}")
    job.create()
    job.train(50, 2)
    job.spool.finish()
    for name in ("copy", "second copy"):
        shutil.copytree(job.folder, own_folder / name)
    assert job.deliver(uri) == 0
    job.check(client, "FINISHED")
    before = client.get_run(job.ids[0])
    for run_id, name in ((job.ids[0], "copy"), (None, "second copy")):
        again = Courier(own_folder / name, uri, run_id=run_id, on_run_id=job.ids.append, patience=HASTY)
        again.start()
        assert again.drain(60) == 0
        again.stop(60)
        assert again.refused() == 0
        job.check(client, "FINISHED")
    assert len(job.ids) == 2
    after = client.get_run(job.ids[0])
    assert (after.info.start_time, after.info.end_time) == (before.info.start_time, before.info.end_time)


def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(
    own_folder: Path, sqlite_uri: str, store: Any
) -> None:
    job = Job(own_folder, "refused")
    job.create()
    job.train(10)
    job.spool.metrics({"no such name!": 1.0}, 11)
    (job.folder / f"{time.time_ns():020d}-00000000.metrics.json").write_text('{"kind": "metr')
    job.spool.image("samples", Image.new("L", (4, 4)), 12)
    (broken,) = job.folder.glob("*.image/*.png")
    broken.write_bytes(b"no image")
    job.train(10)
    assert job.deliver(sqlite_uri) == 0
    courier = job.courier(sqlite_uri)
    assert courier.refused() == 3
    assert courier.state == f"delivering; 3 refused, see {job.folder / 'refused'}"
    reasons = sorted(path.read_text() for path in (job.folder / "refused").glob("*.txt"))
    assert "Invalid value" in reasons[0]
    assert "cannot identify image" in reasons[1]
    assert reasons[2].startswith("damaged: ")
    assert len(list((job.folder / "refused").glob("*.image/*.png"))) == 1
    job.check(store)


def test_records_of_a_run_that_was_deleted_wait(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    job = Job(own_folder, "deleted")
    job.create()
    job.train(5)
    assert job.deliver(sqlite_uri) == 0
    store.delete_run(job.ids[0])
    job.train(5)
    courier = job.courier(sqlite_uri, job.ids[0])
    courier.start()
    until(lambda: "is deleted; restore it" in courier.state)
    assert courier.drain(0.3) == 5
    store.restore_run(job.ids[0])
    assert courier.drain(60) == 0
    courier.stop(60)
    job.check(store)


def test_another_store_at_the_same_address_gets_nothing(own_folder: Path, sqlite_uri: str) -> None:
    job = Job(own_folder, "other")
    job.train(3)
    courier = job.courier(sqlite_uri, "0" * 32)
    courier.start()
    until(lambda: "MLflow has no such run" in courier.state)
    assert courier.drain(0.3) == 3
    assert courier.refused() == 0
    courier.stop(60)


def test_a_locked_database(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    job = Job(own_folder, "locked")
    with closing(sqlite3.connect(sqlite_uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        job.create()
        job.train(20, 1)
        courier = job.courier(sqlite_uri)
        courier.start()
        assert courier.drain(0.5) == 26
    assert courier.drain(60) == 0
    courier.stop(60)
    job.check(store)


def test_a_worker_whose_clock_is_behind(own_folder: Path, sqlite_uri: str, store: Any) -> None:
    """Its records sort before the one that makes the run."""
    job = Job(own_folder, "clocks")
    job.train(5)
    for path in waiting(job.folder):
        path.rename(path.with_name(f"{int(path.name[:20]) - 60 * 10**9:020d}{path.name[20:]}"))
    job.create()
    assert job.deliver(sqlite_uri) == 0
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

    courier = Courier(job.folder, sqlite_uri, run_id=None, on_run_id=keep, patience=HASTY)
    courier.start()
    assert courier.drain(60) == 0
    courier.stop(60)
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
    job.spool.finish()
    assert job.deliver(sqlite_uri) == 0
    stages = [store.get_run(one).info.lifecycle_stage for one in (job.ids[0], late, other, copy)]
    assert stages == ["active", "deleted", "active", "active"]


def test_one_courier_at_a_time(own_folder: Path, sqlite_uri: str) -> None:
    first, second = (Job(own_folder, "one").courier(sqlite_uri, "0" * 32) for _ in range(2))
    first.start()
    first.start()
    with pytest.raises(UserError, match=r"process \d+ delivers the records of .*spool already\n.*kill \d+"):
        second.start()
    first.stop(60)
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

    away = [
        *(page(status, "<html>") for status in (401, 403, 404, 408, 429, 500, 502, 503, 504)),
        *(said(code) for code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_DOES_NOT_EXIST")),
        *(upload(status) for status in (401, 404, 429, 500, 503)),
        requests.ConnectionError("c"),
        requests.Timeout("t"),
        ConnectionResetError("r"),
        TimeoutError("t"),
        OSError(28, "No space left on device"),
    ]
    assert [judge(error)[0] for error in away] == ["away"] * len(away)
    refused = [said("INVALID_PARAMETER_VALUE"), PermissionError("p"), upload(400), upload(413)]
    assert [judge(error)[0] for error in refused] == ["refused"] * len(refused)
    # A pool of connections that ran out is BAD_REQUEST too.
    unknown = [said("BAD_REQUEST"), ValueError("v"), OSError("truncated image")]
    assert [judge(error)[0] for error in unknown] == ["unknown"] * len(unknown)
