"""Record of a finished shard: its hash and the faults of its images, written after the shard itself."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ...storage.atomic import write_atomically
from ..layout import names_in
from ..manifest import Shard, sha256_of


class Fault(BaseModel):
    """One fault of one image, and the action taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    kind: str
    action: str
    detail: str


class ShardRecord(BaseModel):
    """Record of one finished shard."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    items: int
    """Items of the source that were read."""
    shard: Shard | None
    """Null: every image was left out, and no file was written."""
    faults: list[Fault]

    def write(self, path: Path) -> None:
        """Write the record, atomically."""
        write_atomically(path, (self.model_dump_json() + "\n").encode())


def record_path(folder: Path, shard: int) -> Path:
    """Return the path of the record of a shard."""
    return folder / f"shard-{shard:05d}.json"


def finished_shards(records: Path, shards: Path, count: int) -> dict[int, ShardRecord]:
    """Return the records of the shards that are finished and unchanged.

    Every byte is hashed. A shard that has been damaged since is made again.
    """

    def look(index: int) -> ShardRecord | None:
        try:
            record = ShardRecord.model_validate_json(record_path(records, index).read_bytes())
        except (OSError, ValidationError):
            return None
        if record.shard is None:
            return record
        file = shards / record.shard.file
        if not file.is_file() or file.stat().st_size != record.shard.bytes:
            return None
        return record if sha256_of(file) == record.shard.sha256 else None

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(look, range(count)))
    return {index: record for index, record in enumerate(found) if record is not None}


def count_faults(faults: Iterable[Fault]) -> dict[str, dict[str, int]]:
    """Return kind → action → count, with kinds and actions in alphabetic order."""
    counts = Counter((fault.kind, fault.action) for fault in faults)
    tree: dict[str, dict[str, int]] = {}
    for (kind, action), count in sorted(counts.items()):
        tree.setdefault(kind, {})[action] = count
    return tree


def write_faults(folder: Path, faults: Iterable[Fault]) -> Path:
    """Write every fault with its image's name as CSV, in the order of the names."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["key", "kind", "action", "detail"])
    rows.writerows(sorted((fault.key, fault.kind, fault.action, fault.detail) for fault in faults))
    path = folder / names_in(folder).faults
    write_atomically(path, text.getvalue().encode())
    return path
