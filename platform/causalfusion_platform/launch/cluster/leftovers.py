"""Folders in the temporary directory that killed drivers left: those of local Rays, and small ones."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...storage.held import held_folder, process_lives, remove_if_left, remove_temporary

# Ray's sockets live below this folder, and a socket's path may have 107 characters at most.
_PARENT = Path("/tmp")
_PREFIX = "cf-ray-"
_SESSION = re.compile(r"session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+_(\d+)")
_STARTING_SECONDS = 3600.0
"""Seconds after which a folder of an earlier version without a session is left over."""


@contextmanager
def ray_folder() -> Iterator[Path]:
    """Yield a new folder for the files of a local Ray, once those of killed drivers are removed."""
    remove_leftovers()
    with held_folder(_PREFIX, _PARENT) as folder:
        yield folder


def remove_leftovers() -> None:
    """Remove the folders of this user's drivers that are gone. Those of running ones stay."""
    remove_temporary()
    for folder in _PARENT.glob(f"{_PREFIX}*"):
        if remove_if_left(folder) is None and _is_left_by_an_earlier_version(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_by_an_earlier_version(folder: Path) -> bool:
    """Say whether the driver of a folder without a lock is gone. Ray's session folder ends with its number."""
    drivers = [int(match[1]) for path in folder.glob("session_*") if (match := _SESSION.fullmatch(path.name))]
    try:
        if not drivers:
            return time.time() - folder.stat().st_mtime > _STARTING_SECONDS
    except FileNotFoundError:
        return False
    return not any(process_lives(driver) for driver in drivers)
