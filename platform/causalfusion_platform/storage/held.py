"""Folders outside of runs that belong to a running process, and the removal of those that killed ones left.

A process holds a lock on a file in each of its folders. The system releases the lock however the process ends. So a
folder whose lock is free is left over, also where processes do not see each other's numbers, as in containers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".held"
TEMPORARY = "causalfusion-tmp-"
"""Beginning of the names of small folders in the temporary directory."""


def hold(folder: Path) -> int:
    """Make a folder, unless it exists, and hold it. Several processes may hold one.

    Returns:
        Descriptor of the lock's file. The folder is held until it is closed, or the process ends.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # removed meanwhile as a leftover
            continue
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is_file_at(file, folder / LOCK_FILE):
            return file
        os.close(file)


@contextmanager
def held_folder(prefix: str = TEMPORARY, parent: Path | None = None) -> Iterator[Path]:
    """Make a new folder with a random name, hold it, and remove it at the end.

    Args:
        prefix: beginning of its name.
        parent: where it lies. None: the temporary directory.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    file = hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(file)


def remove_if_left(folder: Path) -> bool | None:
    """Remove a folder of this user that no process holds any more.

    Returns:
        True if it was removed. None if it has no lock, so that its process is not known.
    """
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        return False
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(file)


def remove_temporary() -> None:
    """Remove small folders in the temporary directory that killed processes left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        remove_if_left(folder)


def process_lives(process: int) -> bool:
    """Say whether a process of this machine runs, by its number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_file_at(file: int, path: Path) -> bool:
    try:
        there, here = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
