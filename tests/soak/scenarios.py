"""Commands that a soak disturbs, and the ends that must not depend on it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.tracking.journal import StepReport

from .kills import DRIVER

State = dict[str, object]
_SMALL = [
    "data.path=shards",
    "train.num_workers=2",
    "train.cpus_per_worker=0.5",
    "train.log_every_images=64",
    "train.sample_every_images=1024",
    "train.checkpoint_every_images=256",
    "supervision.max_failures=20",
]
_IMAGES = 600


@dataclass(frozen=True)
class Scenario:
    """A command, the processes to kill, and the state that it leaves."""

    name: str
    targets: Sequence[str]
    command: Callable[[Path], list[str]]
    """Folder → arguments of `causalfusion`."""
    state: Callable[[Path], State]
    """Folder → what must be the same as undisturbed."""
    prepare: Callable[[Path, Path], None]
    """(folder, folder of the soak): make what the command needs."""


def digest(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "missing"


def _tensors(path: Path) -> object:
    """Return the hash of each tensor in a file, which also says which attempt wrote it."""
    if not path.is_file():
        return "missing"
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in load_file(path).items()}


def run_state(run_dir: Path) -> State:
    """Return losses, weights, final samples and MLflow's points of a run. Times and speeds are left out."""
    from causalfusion_platform.tracking.mlflow import client

    run = RunFolder(run_dir)
    events = run.journal.events()
    newest = sorted(run.checkpoints.glob("images-*"))[-1:]
    state: State = {
        "losses": {event.images: event.loss for event in events if isinstance(event, StepReport)},
        "weights": [digest(folder / "weights" / "model.safetensors") for folder in newest],
        "samples": _tensors(run.final_samples),
        "finished": run.finished,
    }
    if run.state is not None and run.state.mlflow_run_id is not None:
        api = client(run.state.tracking_uri)
        page = api.get_run(run.state.mlflow_run_id)
        for metric in sorted(page.data.metrics):
            if metric.partition("/")[0] in ("train", "eval") and metric != "train/skipped_steps":
                points = api.get_metric_history(run.state.mlflow_run_id, metric)
                state[f"MLflow {metric}"] = [(point.step, point.value) for point in points]
        state["MLflow status"] = page.info.status
        images = [Path(file.path) for file in api.list_artifacts(run.state.mlflow_run_id, "images")]
        state["MLflow images"] = sorted(path.name.partition("+timestamp")[0] for path in images)
    return state


def _run_state(folder: Path) -> State:
    return run_state(folder / "runs" / "run")


def _nothing(folder: Path, soak: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _train(folder: Path) -> list[str]:
    return ["train", "smoke", "name=run", "train.images=2048", *_SMALL]


def _sweep(folder: Path) -> list[str]:
    return ["sweep", "smoke", "name=sweep", "sweep.grid={seed: [1, 2]}", "train.images=512", *_SMALL]


def _sweep_state(folder: Path) -> State:
    runs = folder / "runs" / "sweep"
    return {
        f"{run.name} {key}": value
        for run in (runs / "seed-1", runs / "seed-2")
        for key, value in run_state(run).items()
    }


def _quiet_run(folder: Path, soak: Path) -> None:
    """Copy the undisturbed training's run, without its local store."""
    _nothing(folder, soak)
    source, target = soak / "quiet" / "train" / "runs" / "run", folder / "runs" / "run"
    if not target.exists():
        shutil.copytree(source, target)


def _generate(folder: Path) -> list[str]:
    run = str(folder / "runs" / "run")
    return ["generate", run, "--num", "600", "--out", str(folder / "set")]


def _generate_state(folder: Path) -> State:
    record = folder / "set" / "samples.json"
    finished = json.loads(record.read_text())["finished"] if record.is_file() else None
    return {"npz": digest(folder / "set" / "samples.npz"), "digest": finished and finished["digest"]}


def _pictures(folder: Path, soak: Path) -> None:
    """Make images in folders of classes, the same in each call."""
    draw = np.random.default_rng(0)
    for number in range(_IMAGES):
        path = folder / "pictures" / f"class-{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)


def _encode(folder: Path) -> list[str]:
    sizes = ["--size", "32", "--rows-per-shard", "32", "--batch-size", "16"]
    return ["data", "encode", str(folder / "pictures"), str(folder / "encoded"), "--vae", "identity", *sizes]


def _encode_state(folder: Path) -> State:
    return {path.name: digest(path) for path in sorted((folder / "encoded").glob("*.parquet"))}


def _sync(folder: Path) -> list[str]:
    return ["runs", "sync", str(folder / "runs" / "run")]


SCENARIOS = (
    Scenario(
        "train",
        (DRIVER, "worker", "controller"),
        _train,
        _run_state,
        _nothing,
    ),
    Scenario("sync", (DRIVER,), _sync, _run_state, _quiet_run),
    Scenario("generate", (DRIVER, "generator"), _generate, _generate_state, _quiet_run),
    Scenario("encode", (DRIVER, "task"), _encode, _encode_state, _pictures),
    Scenario("sweep", (DRIVER, "worker", "controller", "trial"), _sweep, _sweep_state, _nothing),
)
"""The undisturbed training comes first: others use its run."""
