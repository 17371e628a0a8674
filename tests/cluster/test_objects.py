"""Runs on object storage, with no folder that hosts share. S3 is moto's server, which the test makes fail or wait.

Each run works on an empty disk, as on another host. Runs are compared bit for bit with one that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import measured
from tests.conftest import run_environment
from tests.object_store import SERVER_ERROR, THROTTLED, FaultyServer

from causalfusion_platform.storage.objects import open_store

pytestmark = pytest.mark.cluster

RUNS = "s3://bucket/runs"
_SECONDS = 300.0
_RUN = (
    "train.images=1536",
    "train.checkpoint_every_images=256",
    "train.sample_every_images=1024",
    "train.precision=fp32",
    "evaluation.score=false",
)


class StoppingServer(FaultyServer):
    """A server that holds a request back, until the test has killed its sender."""

    def __init__(self) -> None:
        self._hold: tuple[str, ...] | None = None
        self.reached, self._go_on = threading.Event(), threading.Event()
        super().__init__()

    def hold(self, *parts: str) -> None:
        """Hold puts whose path has all of these parts. They are never carried out."""
        self.reached.clear()
        self._go_on.clear()
        self._hold = parts

    def let_go(self) -> None:
        """Answer what is held with an error."""
        self._hold = None
        self._go_on.set()

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if (
            self._hold is not None
            and environment["REQUEST_METHOD"] == "PUT"
            and all(part in environment["PATH_INFO"] for part in self._hold)
        ):
            self.reached.set()
            self._go_on.wait(_SECONDS)
            start_response(SERVER_ERROR[0], [("Content-Length", "0")])
            return []
        return super()._answer(environment, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[StoppingServer]:
    """A server with an empty bucket, which this process uses too."""
    made = StoppingServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        made.make_bucket("bucket")
        yield made
    made.close()


class Host:
    """A host with an empty disk, which shares nothing with others but object storage and shards."""

    def __init__(self, disk: Path, shards: Path, server: FaultyServer) -> None:
        disk.mkdir(parents=True)
        self.disk, self.shards = disk, shards
        self.environment = run_environment(
            CAUSALFUSION_HOME=str(disk / "home"), OMP_NUM_THREADS="1", **server.environment
        )

    def start(self, name: str, *settings: str, ray: bool = False) -> subprocess.Popen[str]:
        """Start a training in a session of its own."""
        command = [sys.executable, "-m", "causalfusion_platform", "train", "smoke", *([] if ray else ["--local"])]
        command += [f"name={name}", f"runs={RUNS}", f"data.path={self.shards}"]
        command += [f"train.staging={self.disk}", *_RUN, *settings]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.disk,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def train(self, name: str, *settings: str, ray: bool = False) -> str:
        """Train to the end, and return what the terminal shows."""
        process = self.start(name, *settings, ray=ray)
        output, _ = process.communicate(timeout=_SECONDS)
        assert process.returncode == 0, output[-4000:]
        return output


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a launch with all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def manifests(name: str) -> dict[int, dict[str, Any]]:
    """Return images → manifest of the checkpoints that count."""
    store = open_store(f"{RUNS}/{name}/checkpoints")
    keys = [info.key for info in store.list() if info.key.endswith("/checkpoint.json")]
    read = [json.loads(store.read(key)) for key in keys]
    return {manifest["images_seen"]: manifest for manifest in read}


def weights(name: str) -> str:
    """Return the hash of a run's last weights."""
    sha256: str = manifests(name)[1536]["files"]["weights/model.safetensors"]["sha256"]
    return sha256


def journal(name: str, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind in the journal on object storage."""
    lines = open_store(f"{RUNS}/{name}").read("journal.jsonl").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture(scope="module")
def undisturbed(server: StoppingServer, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the last weights of a run that nobody disturbed."""
    Host(tmp_path_factory.mktemp("undisturbed") / "disk", digits_folder, server).train("undisturbed")
    return weights("undisturbed")


@pytest.mark.parametrize(
    ("where", "part"),
    [("among the files", "weights/model.safetensors"), ("before the manifest", "checkpoint.json")],
)
def test_a_run_that_is_killed_while_it_saves_goes_on_from_another_host(
    undisturbed: str, server: StoppingServer, digits_folder: Path, tmp_path: Path, where: str, part: str
) -> None:
    """The checkpoint before counts, and the rest is the same to the bit."""
    name = f"killed-{where.replace(' ', '-')}"
    server.hold(f"/{name}/checkpoints/images-000000001024/", part)
    process = Host(tmp_path / "one", digits_folder, server).start(name)
    assert server.reached.wait(_SECONDS)
    until = time.monotonic() + _SECONDS
    while not journal(name, "training"):  # published within seconds
        assert time.monotonic() < until
        time.sleep(0.2)
    kill(process)
    server.let_go()
    assert sorted(manifests(name)) == [512, 768]
    assert open_store(f"{RUNS}/{name}").list("checkpoints/images-000000001024/")
    started = time.monotonic()
    Host(tmp_path / "two", digits_folder, server).train(name)
    assert [event["images"] for event in journal(name, "training")] == [0, 768]
    assert weights(name) == undisturbed
    assert sorted(manifests(name)) == [1280, 1536]
    measured(
        f"S3: killed {where} of a checkpoint",
        f"same to the bit from 768 images; {time.monotonic() - started:.0f} s",
    )


def test_errors_and_throttling_of_the_server_are_survived(
    undisturbed: str, server: StoppingServer, digits_folder: Path, tmp_path: Path
) -> None:
    process = Host(tmp_path / "one", digits_folder, server).start("faulty")
    faults = 0
    while process.poll() is None:
        if not server.faults_left:
            server.fail("PUT", 1, (SERVER_ERROR, THROTTLED)[faults % 2], lose_answer=faults % 3 == 0)
            server.fail("GET", 1, (THROTTLED, SERVER_ERROR)[faults % 2])
            faults += 2
        time.sleep(1.0)  # no request meets faults in all of its attempts
    output, _ = process.communicate(timeout=60)
    server._faults.clear()
    assert process.returncode == 0, output[-4000:]
    assert faults >= 10
    assert weights("faulty") == undisturbed
    measured("S3: 500 and 503 in turn", f"{faults} faults; same to the bit")


def test_workers_of_ray_need_nothing_of_the_drivers_folder(
    server: StoppingServer, digits_folder: Path, tmp_path: Path
) -> None:
    """Two workers: each uploads its part, and what the first one writes reaches the bucket through the driver."""
    host = Host(tmp_path / "one", digits_folder, server)
    settings = ("train.num_workers=2", "train.cpus_per_worker=0.5", "data.in_memory=true")
    host.train("two", *settings, ray=True)
    keys = {info.key for info in open_store(f"{RUNS}/two").list()}
    assert {"run.json", "summary.json", "samples/final.png", "samples/final.safetensors"} <= keys
    assert {"samples/images-000000001024.png", "config.yaml", "outbox/cursor.json"} <= keys
    assert manifests("two")[1536]["world_size"] == 2
    assert [event["images"] for event in journal("two", "checkpoint")] == [256 * i for i in range(1, 7)]
    assert not list(host.disk.glob("causalfusion-run-*/*"))
    here = {path.name for path in (host.disk / "home/s3/bucket/runs/two").iterdir()}
    assert "journal.jsonl" in here
