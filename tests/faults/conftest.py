"""What fault tests share: a plan of faults that every process reads, one Ray, and runs that nothing disturbs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from tests.conftest import ROOT, logged
from tests.faults.matrix import BATCH

from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.launch.training.train import Outcome, run_training

INJECTED = Path(__file__).parent / "injected"
EVERY = 256
"""Images between checkpoints: four steps."""
SHORT = [
    f"train.checkpoint_every_images={EVERY}",
    f"train.log_every_images={BATCH}",
    "train.precision=fp32",
    "evaluation.score=false",
]
"""Overrides of the smoke experiment: 16 steps of 64 images, all of them in the journal."""

ENOUGH = 280
"""Seconds that only a hang takes, on a loaded machine too."""

Plan = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that processes look for faults in, named in the environment before any of them starts."""
    path = tmp_path_factory.mktemp("faults") / "plan.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_TEST_FAULTS", str(path))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(INJECTED), os.environ.get("PYTHONPATH", "")]))
        spec = importlib.util.spec_from_file_location("sitecustomize_of_faults", INJECTED / "sitecustomize.py")
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))  # for runs in this process
        yield path


@pytest.fixture(scope="session")
def ray_cluster(plan_file: Path) -> Iterator[None]:
    """One local Ray, in whose processes faults can be planned."""
    from causalfusion_platform.launch.cluster.session import ray_session

    with ray_session():
        yield


@pytest.fixture
def plan(plan_file: Path, request: pytest.FixtureRequest) -> Iterator[Plan]:
    """Return a function that plans faults for the runs of this test; see injected/sitecustomize.py.

    It returns the files that appear when each of them happens.
    """

    def write(*faults: dict[str, Any]) -> list[Path]:
        name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
        named = [{"id": f"{name}-{index}", **fault} for index, fault in enumerate(faults)]
        plan_file.write_text(json.dumps(named))
        return [Path(f"{plan_file}.{fault['id']}.{fault.get('step')}") for fault in named]

    yield write
    plan_file.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that holds the runs of all fault tests."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSALFUSION_HOME", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder


def launch(name: str, *overrides: str, local: bool = False, said: list[str] | None = None, **more: Any) -> Outcome:
    """Launch a run of the smoke experiment in this process; `said` takes the lines that it logs."""
    composed = compose_experiment("smoke", [f"name={name}", *SHORT, *overrides])
    with logged() as lines:
        try:
            return run_training(composed, local=local, **more)
        finally:
            if said is not None:
                said += lines


def command(name: str, *overrides: str) -> list[str]:
    local = ["--local"] if "train.num_workers=2" not in overrides else []
    train = [sys.executable, "-m", "causalfusion_platform", "train", "smoke", *local]
    return [*train, f"name={name}", *SHORT, *overrides]


def started(name: str, log: Path, *overrides: str, keep: str = "none of Ray's") -> psutil.Popen:
    """Launch a run in a process of its own, with none of this one's settings of Ray but those to be kept."""
    environment = {
        key: value for key, value in os.environ.items() if key.startswith(keep) or not key.startswith("RAY_")
    }
    with log.open("w") as file:
        return psutil.Popen(command(name, *overrides), cwd=ROOT, env=environment, stdout=file, stderr=file)


def until(condition: Callable[[], bool], process: psutil.Popen, log: Path) -> None:
    """Wait for a moment in the life of a process; the limit is one that only a hang reaches."""
    deadline = time.monotonic() + ENOUGH
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def checkpoint(place: Path, name: str, images: int) -> str:
    """Return where a checkpoint of a run lies."""
    return str(place / "runs" / name / "checkpoints" / f"images-{images:012d}")


def sigterm(place: Path, name: str, step: int, after: int) -> dict[str, Any]:
    """Return a fault: before a step, once there is a checkpoint, this process gets SIGTERM, as from a scheduler.

    The step lasts until the worker has heard of it.
    """
    return {"pid": os.getpid(), **long_step(place, name, step, after, until_told=True), "do": "SIGTERM"}


def long_step(place: Path, name: str, step: int, after: int, *, until_told: bool = False) -> dict[str, Any]:
    """Return a step that takes long, once there is a checkpoint: time for what comes from outside."""
    when = checkpoint(place, name, after)
    return {"do": "SIGCONT", "step": step, "when": when, "pause": ENOUGH, "until_told": until_told}


@pytest.fixture(scope="session")
def two_workers(place: Path, plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with two workers under ZeRO 1 that nothing disturbed: one for all processes of pytest."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    trained = shared / "two-workers.json"
    with FileLock(shared / "two-workers.lock"):
        if not trained.is_file():
            summary = launch("two-workers", "train.num_workers=2").summary
            trained.write_text(json.dumps(summary["run_dir"]))
    return Path(json.loads(trained.read_text()))


@pytest.fixture(scope="session")
def one_process(place: Path, plan_file: Path) -> Path:
    """Folder of a run in one process, without Ray, that nothing disturbed."""
    return Path(launch("one-process", local=True).summary["run_dir"])
