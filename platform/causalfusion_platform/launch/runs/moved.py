"""Runs in a folder that was moved or copied: their addresses, and their identity at MLflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...config.errors import UserError
from ...config.schema import local_database
from ...storage.objects import is_object_url
from ...storage.run_layout import RunPaths
from ...storage.sqlite import sqlite_address
from ...tracking.mlflow import has_run
from ...tracking.pending import Pending
from .state import RunState


def written_in(state: RunState) -> Path | None:
    """Return the folder in which a state was written, or None if it does not say."""
    if state.folder is not None:
        return Path(state.folder)
    runs, name = state.config.get("runs"), state.config.get("name")
    return Path(runs) / name if isinstance(runs, str) and isinstance(name, str) else None


def is_elsewhere(state: RunState, folder: Path) -> bool:
    """Say whether a state was written in another folder than the one that it lies in now."""
    before = written_in(state)
    if before is None or before == folder.absolute():
        return False
    try:  # the same folder by another path
        return not before.samefile(folder)
    except (OSError, ValueError):  # ValueError: not a path
        return True


def state_here(state: RunState, folder: Path) -> RunState:
    """Return a state with the addresses of the folder that it lies in now.

    MLflow's local store belongs to the folder of runs, and so it is the one that lies there now. Servers and stores
    elsewhere stay the same. Data is looked for at the same place as before, seen from the run.
    """
    before = written_in(state)
    if before is None or not is_elsewhere(state, folder):
        return state
    here = folder.absolute()
    config: dict[str, Any] = {**state.config, "runs": str(here.parent)}
    runs = state.config.get("runs")
    if isinstance(runs, str) and is_object_url(runs):  # here is a copy
        config["runs"] = runs
    tracking = config.get("tracking")
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        config["tracking"] = {**tracking, "uri": _store_here(tracking["uri"], before, here)}
    data = config.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        path = Path(os.path.normpath(here / os.path.relpath(data["path"], before)))
        config["data"] = {**data, "path": str(path) if path.is_dir() else data["path"]}
    uri = _store_here(state.tracking_uri, before, here)
    return state.model_copy(update={"tracking_uri": uri, "config": config})


def is_another_run(written: RunState, here: RunState, folder: Path) -> bool:
    """Say whether MLflow needs a run of its own for a folder that was moved or copied.

    A copy whose original is still there would write into the original's run. A local store of another folder of
    runs may not hold the run.

    Args:
        written: the state as it was written.
        here: the same with the addresses of now.
        folder: the folder that it lies in.
    """
    if here.tracking_uri == written.tracking_uri:
        before = written_in(written)
        return before is not None and _is_same_run(written, folder, before)
    return here.mlflow_run_id is not None and not has_run(here.tracking_uri, here.mlflow_run_id)


def summary_here(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a summary with the paths of the folder that it lies in now."""
    here = str(folder.absolute())
    before = summary.get("run_dir") if isinstance(summary, dict) else None
    if not isinstance(before, str) or before == here or is_object_url(before):
        return summary
    return {
        key: here + value.removeprefix(before)
        if isinstance(value, str) and (value == before or value.startswith(f"{before}/"))
        else value
        for key, value in summary.items()
    }


def _store_here(uri: str, before: Path, here: Path) -> str:
    """Return the address of a tracking store, seen from a folder that was moved or copied."""
    places = [(before.parent, here.parent)]
    if RunPaths(here.parent).state_file.is_file():  # a trial in the folder of its sweep
        places.append((before.parent.parent, here.parent.parent))
    for old, new in places:
        if uri == sqlite_address(local_database(old)):
            return sqlite_address(local_database(new))
    return uri


def _is_same_run(state: RunState, folder: Path, other: Path) -> bool:
    """Say whether another folder holds the same run."""
    try:
        there = RunState.read(other)
    except UserError:
        return False
    if there is None or (there.identity, there.mlflow_run_id) != (state.identity, state.mlflow_run_id):
        return False
    keys = [made.record for run in (folder, other) if (made := Pending(run).created())]
    return not keys or len({getattr(record, "key", None) for record in keys}) == 1
