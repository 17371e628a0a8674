"""Replace a file so that readers see the old content or the new one, also after a power cut."""

from __future__ import annotations

import glob
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .held import process_lives

UNFINISHED_END = r"(?:\.[0-9a-f]{8})?\.\d+"
"""Pattern of what `replacing` adds to a name. Earlier versions had no random part."""
_UNFINISHED = re.compile(r"\..+\.(\d+)", re.DOTALL)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of the system that come from the body, such as a full disk. Writes name none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(
    path: Path, *, private: bool = False, check: Callable[[], None] = lambda: None
) -> Iterator[IO[bytes]]:
    """Yield a new file that takes the place of `path` when the body ends well.

    The new file is `.NAME.RANDOM.PID` beside `path`. A killed process leaves it behind: see `remove_unfinished`.

    Args:
        path: the file to replace.
        private: let only its owner read it.
        check: called right before the file is replaced. It may raise, and the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                if private:
                    os.fchmod(file.fileno(), 0o600)
                yield file
                file.flush()
                os.fsync(file.fileno())
            check()
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the new files in a folder whose writers were killed on this machine.

    The caller ensures that no process of another machine writes into the folder.
    """
    for path in folder.glob(".*"):
        match = _UNFINISHED.fullmatch(path.name)
        if match and not process_lives(int(match[1])):
            path.unlink(missing_ok=True)


def remove_unpublished(path: Path) -> None:
    """Remove all new files that were to replace a file. Their writers get an error, on any machine."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if _UNFINISHED.fullmatch(left.name):
            left.unlink(missing_ok=True)


def write_atomically(
    path: Path, content: bytes, *, private: bool = False, check: Callable[[], None] = lambda: None
) -> None:
    """Replace a file, which is there whole or not at all: see `replacing`."""
    with replacing(path, private=private, check=check) as file:
        file.write(content)
