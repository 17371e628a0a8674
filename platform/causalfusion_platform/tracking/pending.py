"""Records of a run that MLflow has not got yet, which are the lines of its journal after a cursor.

The cursor is a small file, replaced as a whole after each delivery. If a process is killed before that, the next
one delivers the same records with the same times. `mlflow_calls` makes that harmless.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ..config.secrets import redact
from ..storage.atomic import write_atomically
from ..storage.json_file import parse_line, read_model
from ..storage.run_layout import RunPaths
from . import old_spool
from .journal import Measured, Probed, StepReport
from .lines import read_on
from .records import RECORD, Create, Metrics, Record

_CHUNK_BYTES = 1 << 20
_ENOUGH = 50_000
"""Waiting records in memory above which the journal is not read on."""
_WITH_METRICS: dict[str, type[StepReport | Measured | Probed]] = {
    "progress": StepReport,
    "measured": Measured,
    "probed": Probed,
}
"""Kinds of events that carry MLflow's point."""
_COPIES = re.compile(rb"[0-9a-f]{32}\.(image|artifact)")
"""Name of a folder of copies, as `outbox` gives it."""
_KINDS = ("create", "params", "tags", "metrics", "image", "artifact", "input", "status")


class _Cursor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    offset: int = Field(0, ge=0, le=2**62)
    """Bytes of the journal up to which everything is delivered."""
    moment: int = Field(0, ge=0, le=2**52)
    """Time at MLflow of the newest delivered record, milliseconds since 1970."""


@dataclass(frozen=True)
class Item:
    """A waiting record."""

    record: Record
    moment: int
    """Time for MLflow, milliseconds since 1970: that of recording, or one more than the last record's.

    MLflow sorts a metric's points by time, then by value. It takes two of one time, step and value for one.
    Clocks of two machines differ, and a clock may be set back."""
    files: Path | None
    """Folder of the files that belong to it. It may be gone."""
    end: int
    """End of its line in the journal, in bytes."""
    old: Path | None = None
    """Its file, if an earlier version recorded it."""


class Pending:
    """Read the waiting records, oldest first. Threads may share it. One process at a time may advance it.

    Args:
        run_dir: the run's folder.
        identity: ends the key of the run at MLflow, where the folder is a copy of another run's.
    """

    def __init__(self, run_dir: Path, identity: str = "") -> None:
        paths = RunPaths(run_dir)
        self._run_dir, self._identity = run_dir, identity
        self.journal, self.folder, self.old = paths.journal_file, paths.outbox_folder, paths.old_records
        self._cursor_file, self._lock = self.folder / "cursor.json", threading.Lock()
        self.reload()

    def reload(self) -> None:
        """Read the cursor again, which another process may have advanced."""
        with self._lock:
            self._cursor = self._read_cursor()
            self._read_to, self._newest = self._cursor.offset, self._cursor.moment
            self._items: deque[Item] = deque()
            for path, record, moment in old_spool.read(self.old):
                record = self._here(record)
                self._items.append(Item(record, moment, old_spool.files_of(path), self._cursor.offset, path))
                self._newest = max(self._newest, moment)

    def items(self) -> list[Item]:
        """Return the waiting records, with those that were recorded since the last call."""
        with self._lock:
            self._read_on()
            return list(self._items)

    def created(self) -> Item | None:
        """Return the newest record that makes the run, whether it was delivered or not. None: it is lost."""
        found, start = None, 0
        while lines := read_on(self.journal, start, _CHUNK_BYTES):
            for line in lines:
                start += len(line)
                record = _parse(line) if b'"create"' in line else None
                if isinstance(record, Create):
                    found = Item(self._here(record), round(record.time * 1000), None, start)
        return found

    def rewind(self) -> None:
        """Let everything in the journal wait again. Files that were delivered are gone, and stay so."""
        with self._lock:
            self._cursor_file.unlink(missing_ok=True)
        self.reload()

    def delivered(self, items: Sequence[Item]) -> None:
        """Advance past the oldest items, which MLflow has taken or will never take."""
        with self._lock:
            for item in items:
                assert self._items.popleft() is item
                if item.files is not None:
                    shutil.rmtree(item.files, ignore_errors=True)
            last = items[-1]
            self._cursor = _Cursor(offset=last.end, moment=max(self._cursor.moment, last.moment))
            self.folder.mkdir(exist_ok=True)
            write_atomically(self._cursor_file, self._cursor.model_dump_json().encode())
            for item in items:
                if item.old is not None:
                    item.old.unlink(missing_ok=True)

    def refuse(self, item: Item, reason: str) -> None:
        """Keep a record that MLflow will never take in `refused/`, with the reason, and advance."""
        aside = self.refused_folder / f"{item.moment}.{item.record.kind}.json"
        aside.parent.mkdir(parents=True, exist_ok=True)
        if item.files is not None and item.files.is_dir():
            shutil.copytree(item.files, aside.with_suffix(""), dirs_exist_ok=True)
        aside.write_text(item.record.model_dump_json() + "\n", encoding="utf-8")
        aside.with_suffix(".txt").write_text(redact(reason) + "\n", encoding="utf-8")
        self.delivered([item])

    def remove_unnamed(self) -> None:
        """Remove copies of files that no waiting record names: their writer was killed before it wrote the record.

        The run's lock must be held, and its workers must not have started.
        """
        with self._lock:
            copies = [path for path in self.folder.glob("*") if _COPIES.fullmatch(os.fsencode(path.name))]
            start, named = self._cursor.offset, set[str]()
            while copies and (lines := read_on(self.journal, start, _CHUNK_BYTES)):
                start += sum(map(len, lines))
                named.update(match[0].decode() for line in lines for match in _COPIES.finditer(line))
            for path in copies:
                if path.name not in named:
                    shutil.rmtree(path, ignore_errors=True)

    @property
    def refused_folder(self) -> Path:
        """Folder of the records that MLflow has refused."""
        return self.folder / "refused"

    def _read_cursor(self) -> _Cursor:
        """Return the cursor, or the start of the journal if it is not at the end of a line of it.

        A power cut may shorten a journal below its cursor. A second delivery changes nothing.
        """
        try:
            cursor = read_model(self._cursor_file, _Cursor, largest=4096)
            if cursor.offset:
                with self.journal.open("rb") as file:
                    file.seek(cursor.offset - 1)
                    if file.read(1) != b"\n":
                        return _Cursor()
        except (OSError, ValueError):
            return _Cursor()
        return cursor

    def _read_on(self) -> None:
        """Read the lines that follow, unless enough records wait: a long journal must not fill the memory."""
        while len(self._items) < _ENOUGH and (lines := read_on(self.journal, self._read_to, _CHUNK_BYTES)):
            for line in lines:
                self._read_to += len(line)
                record = _parse(line)
                if record is None:
                    continue
                record = self._here(record)
                if isinstance(record, Create):  # a launch that ended without a state delivered nothing
                    self._items.clear()
                self._newest = max(self._newest + 1, round(record.time * 1000))
                files = getattr(record, "files", None)
                self._items.append(Item(record, self._newest, files and self.folder / files, self._read_to))

    def _here(self, record: Record) -> Record:
        """Return a record as it is where the folder lies now, which may have been moved or copied."""
        if not isinstance(record, Create):
            return record
        key = f"{record.key}.{self._identity}" if self._identity else record.key
        # Artifacts of a store without a server lie beside the folder of the run.
        artifacts = self._run_dir.absolute().parent / record.artifacts.name
        return record.model_copy(update={"key": key, "artifacts": artifacts})


def _parse(line: bytes) -> Record | None:
    """Return the record in a line of the journal. None for other lines, and for broken ones."""
    try:
        tree = parse_line(line)
        kind = tree["kind"]
        if kind in _WITH_METRICS:
            report = _WITH_METRICS[kind].model_validate(tree)
            values = report.metrics()
            return Metrics(time=report.time, values=values, step=report.images) if values is not None else None
        return RECORD.validate_python(tree) if kind in _KINDS else None
    except (ValueError, TypeError, KeyError):
        return None
