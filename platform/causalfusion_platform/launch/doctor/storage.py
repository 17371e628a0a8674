"""Checks of storage: the folder of runs, free space, the shards, MLflow's store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...config.commands import command
from ...config.errors import UserError
from ...config.schema import Experiment
from ...data.prepare import is_written_later
from ...data.validate import open_shards
from ...report.numbers import size
from ...report.runs.dry_run import disk_needed
from ...storage.held import held_folder, remove_if_left
from ...storage.sqlite import is_sqlite, sqlite_address, sqlite_file
from ...tasks import check_data, open_task
from ...tracking.mlflow import check_reachable, client
from ...train.memory import checkpoint_bytes
from ..training.dry_run import planned_precision
from .check import Check

_CONTENT = os.urandom(1 << 20)
_SCRATCH = ".doctor-"


def nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Yield a new folder in another one, once those of killed calls are removed."""
    for left in place.glob(f"{_SCRATCH}*"):
        remove_if_left(left)
    with held_folder(_SCRATCH, place) as folder:
        yield folder


def check_storage(experiment: Experiment) -> Check:
    """Write a file where the run will write. It is synced to disk, read back, renamed over another, and removed."""
    place = nearest(experiment.runs_folder)
    try:
        with _scratch(place) as folder:
            old, new = folder / "old", folder / "new"
            old.write_bytes(b"old")
            with new.open("wb") as file:
                file.write(_CONTENT)
                file.flush()
                os.fsync(file.fileno())
            new.replace(old)
            if old.read_bytes() != _CONTENT or new.exists():
                return Check("storage", "FAIL", f"{place} gives back other bytes than were written", "runs=FOLDER")
    except OSError as error:
        return Check("storage", "FAIL", f"{place}: {error.strerror or error}", "choose another folder: runs=FOLDER")
    return Check("storage", "ok", f"{place}: write, fsync, rename and read back")


def check_disk(experiment: Experiment) -> Check:
    """Compare the free space with the checkpoints that are kept, and of the staging folder with one checkpoint."""
    one = checkpoint_bytes(open_task(experiment), planned_precision(experiment))
    needed = disk_needed(experiment, one)
    staging = Path(experiment.train.staging or tempfile.gettempdir())
    lines, verdict = [], True
    for place, need, what in ((experiment.runs_folder, needed, "checkpoints"), (staging, one, "staging")):
        free = shutil.disk_usage(nearest(place)).free
        lines.append(f"{what} {size(need)} of {size(free)} free in {nearest(place)}")
        verdict = verdict and need <= free
    if verdict:
        return Check("disk", "ok", "; ".join(lines))
    advice = "train.keep_checkpoints=1, or other folders: runs=FOLDER train.staging=FOLDER"
    return Check("disk", "FAIL", "; ".join(lines), advice)


def check_shards(experiment: Experiment) -> Check:
    """Compare every shard's size, header and rows with the manifest. Hashes are compared when a run starts."""
    data = experiment.data
    try:
        if is_written_later(data):
            open_task(experiment).check_paths()
            return Check("shards", "ok", f"{data.path}: not there yet; written when training starts")
        found = open_shards(data.path, max_bad_rows=data.max_bad_rows, hashes=False)
        check_data(open_task(experiment), found)
    except UserError as error:
        return Check.failed("shards", str(error))
    if found.bad:
        return Check("shards", "warn", found.notice, command("data", "verify", data.path))
    line = f"{data.path}: {found.manifest.rows:,} rows in {len(found.manifest.shards)} shards (sizes and headers)"
    return Check("shards", "ok", line)


def check_mlflow(experiment: Experiment) -> Check:
    """Ask the server, or write and read a scratch database beside the one that will be used."""
    uri = experiment.tracking_uri
    try:
        if not is_sqlite(uri):
            check_reachable(uri)
            client(uri).search_experiments(max_results=1)
            return Check("MLflow", "ok", f"{uri} answers")
        place = nearest(sqlite_file(uri).parent)
        with _scratch(place) as folder:
            _use_store(folder)
    except UserError as error:
        return Check.failed("MLflow", str(error))
    except Exception as error:  # MLflow and its database raise many kinds
        fault = " ".join(str(error).split())[:200]
        return Check("MLflow", "FAIL", f"{uri}: {fault}", "another store: tracking.uri=sqlite:////FOLDER/mlflow.db")
    return Check("MLflow", "ok", f"SQLite in {place}: run made, metric written, read and removed")


def _use_store(folder: Path) -> None:
    api = client(sqlite_address(folder / "mlflow.db"))
    experiment = api.create_experiment("doctor", artifact_location=(folder / "artifacts").as_uri())
    run = api.create_run(experiment)
    api.log_metric(run.info.run_id, "answer", 42.0)
    found = api.get_run(run.info.run_id).data.metrics
    if found != {"answer": 42.0}:
        raise RuntimeError(f"the store gave back {found}")
    api.delete_run(run.info.run_id)
