"""Lines of a run's journal: each appended in one write, by one writer at a time, and read on from a position."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LOCK_SECONDS = 1.0
"""Longest wait for another writer. One that froze while it held the lock must not stop the training."""

LATEST = 2.0**35
"""Latest UNIX time of a line, in the year 3058. MLflow counts in milliseconds, and a calendar has an end."""
Seconds = Annotated[float, Field(ge=-LATEST, le=LATEST)]
"""Duration."""
Count = Annotated[int, Field(gt=-(2**63), lt=2**63)]
"""Number of images, steps, bytes or processes."""


class Line(BaseModel):
    """A JSON object on a line of its own."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # a loss may be NaN, and as null it could not be read
    )

    time: float = Field(default_factory=time.time, ge=0, le=LATEST)
    """UNIX time in seconds."""


def append(path: Path, line: Line) -> None:
    """Append a line to a file in one system call.

    A process that is killed leaves the whole line or nothing. A full disk may leave a part, and the next line
    follows that part. Hosts may share the file. Without the lock, two NFS clients overwrite each other's lines.

    Raises:
        OSError: the line cannot be written.
    """
    append_content(path, (line.model_dump_json() + "\n").encode())


def append_content(path: Path, content: bytes) -> None:
    """Append whole lines as `append` does.

    Raises:
        OSError: they cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _lock(file)
        size = os.lseek(file, 0, os.SEEK_END)
        if size and os.pread(file, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(file, content) < len(content):
            raise OSError("the disk took only a part of a line")
    finally:
        os.close(file)  # gives the lock back, as the end of the process does


def read_on(path: Path, start: int, size: int = 1 << 20) -> list[bytes]:
    """Return the whole lines of about `size` bytes that follow byte `start` of a file, if there is one."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
            while b"\n" not in content and (more := file.read(size)):  # a longer line
                content += more
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _lock(file: int) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:  # a file system without locks
            return
        else:
            return
