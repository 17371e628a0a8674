"""MLflow's local store in a folder of runs that was moved or copied: the addresses of its artifacts.

MLflow keeps an absolute address of artifacts for each experiment and each run, and no call of it changes them. So
the tables are changed here. Before MLflow is upgraded, compare `_ADDRESSES` with its tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..storage.run_layout import ARTIFACTS_FOLDER

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns with addresses of artifacts."""


def renew_addresses(database: Path) -> None:
    """Let the artifacts of a store be those beside it, if the store was moved or copied together with them.

    Artifacts that lie elsewhere alone keep their address. A store that is new or not MLflow's is left alone.

    Args:
        database: SQLite file of the store.

    Raises:
        OSError: the store cannot be read, or is locked.
    """
    try:
        _renew(database)
    except sqlite3.Error as error:
        raise OSError(f"{database} cannot be read: {error}") from error


def _renew(database: Path) -> None:
    here = database.absolute().parent / ARTIFACTS_FOLDER
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True)) as store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"experiments", "runs"} <= tables:
            return
        for there in list(_other_folders(store, here)):
            if not _has_moved(store, database, there, here):
                continue
            kept = _artifacts_only_there(store, there, here)
            with store:
                for table, column in _ADDRESSES:
                    if table in tables:
                        _replace(store, table, column, there.as_uri(), here.as_uri(), kept)


def _other_folders(store: sqlite3.Connection, here: Path) -> Iterator[Path]:
    """Yield the folders of artifacts of experiments, but for the one beside the store."""
    for (location,) in store.execute("SELECT DISTINCT artifact_location FROM experiments"):
        parts = urlsplit(location or "")
        folder = Path(unquote(parts.path))
        if parts.scheme == "file" and folder.name == ARTIFACTS_FOLDER and folder != here:
            yield folder


def _has_moved(store: sqlite3.Connection, database: Path, there: Path, here: Path) -> bool:
    """Say whether the store lay beside another folder of artifacts before.

    Either that place is gone, or the store is a copy and the original is still there, or artifacts of its runs lie
    beside it. A store that a person put elsewhere than its artifacts is none of these.
    """
    if not there.parent.exists():
        return True
    original = there.parent / database.name
    if original.exists():
        return not original.samefile(database)
    return any((here / run_id).is_dir() for (run_id,) in store.execute("SELECT run_uuid FROM runs"))


def _artifacts_only_there(store: sqlite3.Connection, there: Path, here: Path) -> set[str]:
    """Return the addresses of runs whose artifacts were not moved or copied."""
    runs = store.execute("SELECT run_uuid, artifact_uri FROM runs")
    return {uri for run_id, uri in runs if (there / run_id).is_dir() and not (here / run_id).is_dir()}


def _replace(store: sqlite3.Connection, table: str, column: str, old: str, new: str, kept: set[str]) -> None:
    for (address,) in store.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
        if isinstance(address, str) and _is_below(address, {old}) and not _is_below(address, kept):
            changed = (new + address.removeprefix(old), address)
            store.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", changed)


def _is_below(address: str, places: set[str]) -> bool:
    return any(address == place or address.startswith(f"{place}/") for place in places)
