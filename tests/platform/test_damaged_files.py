"""Every reader of a file that people or other programs write, on damaged ones: one error of its kind, or an answer.

`FUZZ_EXAMPLES=5000 pytest tests/platform/test_damaged_files.py` looks longer.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.platform.checkpoint.made import facts, hash_files
from tests.platform.cli.test_runs import story
from tests.platform.config.trees import load_experiment
from tests.platform.damaged import damaged

from causalfusion import CausalFusion, DiffusionConfig, load_diffusion, load_weights, save_weights
from causalfusion.weights import load_class_names
from causalfusion_platform.checkpoint import manifest as checkpoints
from causalfusion_platform.checkpoint.manifest import BadCheckpoint, write_manifest
from causalfusion_platform.config.compose import compose_experiment
from causalfusion_platform.config.errors import UserError
from causalfusion_platform.data.layout import NAMES, manifest_path
from causalfusion_platform.data.manifest import Manifest
from causalfusion_platform.launch.evaluating.evaluate import _read as read_evaluation
from causalfusion_platform.launch.runs.find import look_at, look_at_all
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.lock import _holder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping.population import PopulationMember
from causalfusion_platform.launch.sweeping.population import _read as read_member
from causalfusion_platform.report.runs.list import run_panel, runs_table
from causalfusion_platform.report.runs.show import run_json
from causalfusion_platform.report.terminal import closing_panel
from causalfusion_platform.sampling.sample_set import read_record
from causalfusion_platform.tracking import old_spool
from causalfusion_platform.tracking.journal import Checkpointed, Ended, Event, Journal, Launched, SetAside
from causalfusion_platform.tracking.pending import Pending
from causalfusion_platform.tracking.records import Create, Metrics, Tags

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
MEMORY = 2 << 30
"""Bytes that a reader may add to this process."""

fuzzed = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """End a reader that fills the memory with a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def shown(what: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(what)
    return text.getvalue()


EVENTS: list[Event] = [
    *story(),
    SetAside(time=1090, checkpoint="images-000000002048", reason="bad"),
    Checkpointed(time=1091, attempt=1, images=3100, bytes=5, stall_seconds=0.5, upload_seconds=2),
    Ended(time=1100, launch=1, how="stopped"),
    Launched(time=2000, launch=2, host="h", pid=2),
]


def make_run(root: Path) -> Path:
    experiment = load_experiment("smoke", ["name=run"])
    root.mkdir()
    RunState(mlflow_run_id="a", tracking_uri="sqlite:///x", config=experiment.model_dump(mode="json")).write(root)
    journal = Journal(root)
    journal.add(Create(time=999, key="k", experiment="e", name="run", parent=None, artifacts=Path("a")))
    for event in EVENTS:
        journal.add(event)
    journal.add(Metrics(time=1099, values={"loss": 0.5}, step=3))
    journal.add(Tags(time=1099, values={"a": "b"}))
    (root / "summary.json").write_text(json.dumps(SUMMARY))
    (root / ".lock").write_text(json.dumps({"host": "h", "pid": 1, "since": 1000.0}))
    return root


SUMMARY = {
    "name": "run",
    "class_accuracy": 0.5,
    "images_seen": 3000,
    "images_per_second": 50.0,
    "total_seconds": 10.0,
    "stage_seconds": {"train": 9.0},
    "run_dir": "runs/run",
    "mlflow_run_id": "a",
}


def look_at_everything(root: Path) -> None:
    """Do what `runs list` and `runs show` do."""
    for _, view in look_at_all(root.parent):
        json.dumps(run_json(view))
    shown(runs_table(look_at_all(root.parent)))
    shown(run_panel(look_at(RunFolder(root))))


def read_pending(root: Path) -> None:
    Pending(root).items()


@dataclass(frozen=True)
class Reader:
    """A reader of a file: what it does, and the errors that it may raise."""

    file: str
    """Path inside the folder that `make` has filled."""
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = ()
    lines: bool = False
    """The file holds a JSON value on each line. One of them is damaged."""
    slow: bool = False
    """It takes a tenth of a second: fewer examples."""


def compose(root: Path) -> None:
    before = Path.cwd()
    os.chdir(root)
    try:
        compose_experiment("mine")
    finally:
        os.chdir(before)


READERS = {
    "run.json": Reader("runs/run/run.json", lambda root: look_at_everything(root / "runs/run"), (UserError,)),
    "run.json and its configuration": Reader(
        "runs/run/run.json", lambda root: RunFolder(root / "runs/run").experiment, (UserError,)
    ),
    "summary.json": Reader("runs/run/summary.json", lambda root: look_at_everything(root / "runs/run")),
    "summary.json of a finished run": Reader(
        "runs/run/summary.json",
        lambda root: shown(closing_panel(RunFolder(root / "runs/run").read_summary(), "")),
        (UserError, KeyError, TypeError, ValueError, AttributeError),  # `train` makes one message of them
    ),
    "journal": Reader("runs/run/journal.jsonl", lambda root: look_at_everything(root / "runs/run"), lines=True),
    "journal for MLflow": Reader(
        "runs/run/journal.jsonl", lambda root: read_pending(root / "runs/run"), lines=True
    ),
    "cursor": Reader("runs/run/outbox/cursor.json", lambda root: read_pending(root / "runs/run")),
    "spool": Reader(
        "spool/00000000000000000001-0000000a.tags.json", lambda root: [*old_spool.read(root / "spool")]
    ),
    "lock": Reader("runs/run/.lock", lambda root: _holder(root / "runs/run/.lock")),
    "model": Reader("weights/config.json", lambda root: load_weights(root / "weights"), (ValueError, RuntimeError)),
    "noise process": Reader("weights/diffusion.json", lambda root: load_diffusion(root / "weights"), (ValueError,)),
    "names of classes": Reader(
        "weights/classes.json", lambda root: load_class_names(root / "weights"), (ValueError,)
    ),
    "checkpoint": Reader(
        "checkpoint/checkpoint.json", lambda root: checkpoints.read(root / "checkpoint"), (BadCheckpoint, UserError)
    ),
    "sample set": Reader("samples/samples.json", lambda root: read_record(root / "samples"), (UserError,)),
    "member": Reader("member.json", lambda root: read_member(root / "member.json"), (UserError,)),
    "evaluation": Reader("evaluation.json", lambda root: read_evaluation(root / "evaluation.json", {"space": "s"})),
    "shards": Reader(f"shards/{NAMES.manifest}", lambda root: Manifest.read(root / "shards"), (UserError,)),
    "experiment": Reader("experiments/mine.yaml", compose, (UserError,), slow=True),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, random_model: CausalFusion, digits_folder: Path) -> Path:
    """A folder with a whole file of each kind."""
    root = tmp_path_factory.mktemp("whole")
    (root / "runs").mkdir()
    make_run(root / "runs/run")
    (root / "runs/run/outbox").mkdir()
    (root / "runs/run/outbox/cursor.json").write_text('{"offset": 0, "moment": 5}')
    (root / "spool").mkdir()
    record = {"kind": "tags", "time": 5, "values": {"a": "b"}}
    (root / "spool/00000000000000000001-0000000a.tags.json").write_text(json.dumps(record))
    state = {name: tensor.float() for name, tensor in random_model.state_dict().items()}
    save_weights(root / "weights", random_model.config, state, DiffusionConfig(), list("0123456789"))
    (root / "checkpoint").mkdir()
    (root / "checkpoint/file").write_bytes(b"x")
    write_manifest(root / "checkpoint", facts(64), hash_files(root / "checkpoint"))
    (root / "samples").mkdir()
    (root / "samples/samples.json").write_text(json.dumps({"plan": {}, "finished": None}))
    member = PopulationMember(name="a", tune_id="b", values={"optim.base_lr": 1e-4})
    (root / "member.json").write_text(member.model_dump_json())
    (root / "evaluation.json").write_text(json.dumps({"metrics": {"fid": 1.0}, "provenance": {"space": "s"}}))
    (root / "shards").mkdir()
    shutil.copy(manifest_path(digits_folder), root / "shards")
    (root / "experiments").mkdir()
    tree = load_experiment("smoke", ["name=mine"]).model_dump(mode="json")
    (root / "experiments/mine.yaml").write_text(json.dumps(tree))  # JSON is YAML
    return root


@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_error_or_none(name: str, whole: Path) -> None:
    reader = READERS[name]
    file = whole / reader.file
    content = file.read_bytes()

    @settings(fuzzed, max_examples=EXAMPLES // 10 if reader.slow else EXAMPLES)
    @given(data=st.data())
    def try_one(data: st.DataObject) -> None:
        if reader.lines:
            lines = content.splitlines()
            place = data.draw(st.integers(0, len(lines) - 1))
            lines[place] = data.draw(damaged(lines[place]))
            file.write_bytes(b"\n".join(lines) + b"\n")
        else:
            file.write_bytes(data.draw(damaged(content)))
        try:
            reader.read(whole)
        except reader.errors as error:
            assert len(str(error)) < 20_000

    try:
        try_one()
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_file(name: str, whole: Path) -> None:
    """A folder, a pipe that nobody writes to, and a file that is far too large."""
    reader = READERS[name]
    file = whole / reader.file
    content = file.read_bytes()
    try:
        makes: list[Callable[[Path], object]] = [Path.mkdir, os.mkfifo]
        if not reader.lines:  # a journal may be large
            makes.append(lambda path: os.truncate(_touched(path), 1 << 40))
        for make in makes:
            file.unlink()
            make(file)
            try:
                reader.read(whole)
            except reader.errors as error:
                assert len(str(error)) < 20_000
            (file.rmdir if file.is_dir() else file.unlink)()
            file.touch()
    finally:
        file.write_bytes(content)


def _touched(path: Path) -> Path:
    path.touch()
    return path
