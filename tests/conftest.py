"""What all tests share: the digits as shards, and one local Ray for the whole run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import torch
from hypothesis import settings
from tests.object_store import FaultyServer
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from tests.object_store import FaultyServer

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("reproducible")


class _RayInOnePlace(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "one Ray" if _needs_ray(file) else file


@cache
def _needs_ray(file: str) -> bool:
    """Say whether a file has tests of the marker `ray`, which share one Ray, and so a process."""
    return "pytest.mark.ray" in (ROOT / file).read_text()


@pytest.hookimpl(optionalhook=True)  # without xdist (`-p no:xdist`) nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _RayInOnePlace:
    """Share tests out among processes (`pytest -n`) by file, and all that start Ray to one of them."""
    return _RayInOnePlace(config, log)


@pytest.fixture(scope="module", autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tiny models of unit tests on one thread: more only wait for each other.

    Not so in integration and fault tests: what they run here is compared bit for bit with what other processes run.
    """
    if {"integration", "faults"} & set(request.path.parts):
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def torchs_own_linear() -> Iterator[None]:
    """Undo DeepSpeed's replacement of `torch.nn.functional.linear`, which ZeRO 3 makes for the whole process.

    The replacement keeps other tensors for the backward pass: tests of memory behind it would measure those.
    """
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled digits as latent shards; not to be changed."""
    from causalfusion_platform.data.digits import write_digits

    folder = tmp_path_factory.mktemp("shards") / "digits"
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def empty_mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite store of MLflow with its tables, to be copied: making them takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for every test that needs one, started and ended as the platform does it."""
    from causalfusion_platform.launch.cluster.session import ray_session

    with ray_session():
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that relative paths of configurations count from."""
    monkeypatch.setenv("CAUSALFUSION_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@contextmanager
def logged(name: str = "causalfusion_platform") -> Iterator[list[str]]:
    """Collect the messages of a logger and those below it, from level INFO."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The messages that the platform logs during a test."""
    with logged() as lines:
        yield lines


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a subprocess: this one with changes, and no address of another Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, **changes}


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[FaultyServer]:
    from tests.object_store import FaultyServer

    server = FaultyServer()
    yield server
    server.close()


@pytest.fixture
def s3_server(_s3_server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    """An S3 server that the environment leads to, with an empty bucket of its own for each test: `s3_bucket`."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return _s3_server


@pytest.fixture
def s3_bucket(s3_server: FaultyServer) -> str:
    """Address of a new bucket, such as s3://bucket-0123456789abcdef."""
    name = f"bucket-{uuid4().hex[:16]}"
    s3_server.make_bucket(name)
    return f"s3://{name}"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat requests of object storage at once, in this process, by clients that have met no fault yet."""
    import botocore.retries.bucket
    import botocore.retries.standard

    from causalfusion_platform.storage import object_path, objects

    objects._client.cache_clear()
    object_path._filesystem.cache_clear()
    monkeypatch.setattr(object_path, "TRIES", 3)
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    monkeypatch.setattr(botocore.retries.bucket.TokenBucket, "acquire", lambda *_, **__: True)
    monkeypatch.setattr(object_path, "PAUSES", (0.0,) * len(object_path.PAUSES))
