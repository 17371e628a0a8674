"""One rank's part of a checkpoint: copying its files from staging to storage, and a record of the result."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ..storage.atomic import write_atomically
from .manifest import FileName, FileRecord

_PARTS = "parts"
_CHUNK = 8 << 20


class Abandoned(Exception):
    """The save was cancelled while files were being copied."""


class PartRecord(BaseModel):
    """Files that one rank has put into a checkpoint, or its error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[FileName, FileRecord] = Field(default_factory=dict)
    error: str | None = None

    def write(self, folder: Path, rank: int) -> None:
        """Write the record into the checkpoint's partial folder, atomically."""
        write_atomically(part_file(folder, rank), self.model_dump_json().encode())


def parts_folder(folder: Path) -> Path:
    """Return the folder of the ranks' records in a partial folder."""
    return folder / _PARTS


def part_file(folder: Path, rank: int) -> Path:
    """Return the file of one rank's record in a partial folder."""
    return parts_folder(folder) / f"rank-{rank:05d}.json"


def read_part(folder: Path, rank: int) -> PartRecord | None:
    """Return the record of one rank, or None before it is written."""
    try:
        return PartRecord.model_validate_json(part_file(folder, rank).read_bytes())
    except FileNotFoundError:
        return None


def gather_parts(
    read: Callable[[int], PartRecord | None], world_size: int, timeout_seconds: float, pause: Callable[[], None]
) -> dict[str, FileRecord]:
    """Wait for the records of all ranks, and return the files of all.

    Args:
        read: returns the record of a rank, or None before it is written.
        pause: sleeps before the next look. It may raise to end the wait.

    Raises:
        TimeoutError: a rank did not write its record in time.
        OSError: one or more ranks have failed, each named with its reason. All ranks are done by then.
    """
    files: dict[str, FileRecord] = {}
    faults: list[str] = []
    until = time.monotonic() + timeout_seconds
    for rank in range(world_size):
        while (record := read(rank)) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"rank {rank} did not write its files within {timeout_seconds:g} s")
            pause()
        files |= record.files
        if record.error:
            faults.append(f"rank {rank}: {record.error}")
    if faults:
        raise OSError("; ".join(faults))
    return files


def upload(source: Path, target: Path, stopped: Callable[[], bool]) -> dict[str, FileRecord]:
    """Move every file of `source` into the existing folder `target`, sync it to disk, and return sizes and hashes.

    On failure the copied files are removed, so that their space is free.

    Raises:
        OSError: a file cannot be read or written, or exists already.
        Abandoned: `stopped` returned True.
    """
    files: dict[str, FileRecord] = {}
    try:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = path.relative_to(source).as_posix()
                files[name] = _copy(path, target, name, stopped)
                path.unlink()
        for folder in {(target / name).parent for name in files} | {target}:
            sync_folder(folder)
    except BaseException:
        for name in files:
            (target / name).unlink(missing_ok=True)
        raise
    return files


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk where the file system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return  # object stores mounted as file systems refuse it
    finally:
        os.close(handle)


def _copy(source: Path, root: Path, name: str, stopped: Callable[[], bool]) -> FileRecord:
    target = root / name
    # Not parents=True: a partial folder that rank 0 has removed must not come back.
    for parent in reversed(target.relative_to(root).parents[:-1]):
        (root / parent).mkdir(exist_ok=True)
    digest, size = hashlib.sha256(), 0
    # "x": two ranks that write the same name would leave a mixture.
    with source.open("rb") as reader, target.open("xb", buffering=0) as writer:
        try:
            while chunk := reader.read(_CHUNK):
                if stopped():
                    raise Abandoned
                digest.update(chunk)
                size += len(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[writer.write(rest) :]
            os.fsync(writer.fileno())
        except BaseException:
            target.unlink()
            raise
    return FileRecord(size=size, sha256=digest.hexdigest())
