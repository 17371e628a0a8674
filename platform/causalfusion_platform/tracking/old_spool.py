"""Records that an earlier version left for MLflow in a run's folder, one file each, under `spool/`.

A file is `<time in ns>-<random>.<kind>.json`. Files that belong to it lie in a folder of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..storage.json_file import read_object
from .records import RECORD, Record

_NAME = re.compile(r"\d{20}-[0-9a-f]{8}\.[a-z]+\.json")


def read(folder: Path) -> Iterator[tuple[Path, Record, int]]:
    """Yield file, record and time (milliseconds since 1970) of each, oldest first. Broken files are passed over."""
    if not folder.is_dir():
        return
    paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    # The clocks of two machines differ, so that records of a worker may sort before it.
    paths.sort(key=lambda path: not path.name.endswith(".create.json"))
    for path in paths:
        try:
            tree = read_object(path)
            moment = int(tree["time"])
            tree["time"] = moment / 1000
            if tree["kind"] in ("image", "artifact"):
                tree["files"] = files_of(path).name
            yield path, RECORD.validate_python(tree), moment
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            continue


def files_of(path: Path) -> Path:
    """Return the folder of the files that belong to the record at `path`."""
    return path.with_suffix("")
