"""Search for repeated row ids, keys and latents with 24 bytes per row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .passes import latents_of
from .shard_file import open_parquet


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of the rows of a shard: three arrays of (rows,)."""

    row_ids: NDArray[np.int64]
    keys: NDArray[np.uint64]
    """64-bit hashes of keys. Keys with equal hashes are compared as text."""
    latents: NDArray[np.uint64]
    """64-bit hashes of `mean`."""

    @classmethod
    def none(cls) -> Self:
        """Return empty fingerprints."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.uint64))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the fingerprints of several row groups as one."""
        names = ("row_ids", "keys", "latents")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def fingerprints(table: pa.Table) -> Fingerprints:
    """Return the fingerprints of a row group."""
    latents = latents_of(table, "mean").reshape(table.num_rows, -1)
    return Fingerprints(
        row_ids=table.column("row_id").to_numpy(),
        keys=_hashes(key.encode() for key in table.column("key").to_pylist()),
        latents=_hashes(row.tobytes() for row in latents),
    )


def clashes(folder: Path, prints: Mapping[str, Fingerprints]) -> dict[str, str]:
    """Return file → fault of the shards that repeat a row id or a key, within themselves or of an earlier shard.

    A later shard may use the row ids and keys of a bad shard.
    """
    repeated_ids = _repeated([print_.row_ids for print_ in prints.values()])
    repeated_keys = _repeated([print_.keys for print_ in prints.values()])
    bad: dict[str, str] = {}
    if not len(repeated_ids) and not len(repeated_keys):
        return bad
    owners: dict[tuple[str, int], tuple[str, int]] = {}
    for file, print_ in prints.items():
        own: dict[tuple[str, int], tuple[str, int]] = {}
        for kind, values, repeated in (
            ("row id", print_.row_ids, repeated_ids),
            ("key", print_.keys, repeated_keys),
        ):
            for row in np.flatnonzero(np.isin(values, repeated)).tolist():
                value = int(values[row])
                other = owners.get((kind, value)) or own.get((kind, value))
                own[kind, value] = (file, row)
                if other and file not in bad and (name := _common(folder, kind, value, other, (file, row))):
                    where = "twice in it" if other[0] == file else f"in {other[0]} too"
                    bad[file] = f"{kind} {name} is {where} (row {row} here, row {other[1]} there)"
        if file not in bad:
            owners |= own
    return bad


def same_latents(
    folder: Path, prints: Mapping[str, Fingerprints], num_examples: int
) -> tuple[int, list[tuple[str, str]]]:
    """Return the number of rows with the latent of an earlier row, and the keys of a few such pairs."""
    if not prints:
        return 0, []
    latents = np.concatenate([print_.latents for print_ in prints.values()])
    _, first, inverse = np.unique(latents, return_index=True, return_inverse=True)
    earlier = first[inverse]
    rows = np.flatnonzero(earlier != np.arange(len(latents)))
    files, starts = list(prints), np.cumsum([0, *(len(print_.latents) for print_ in prints.values())])

    def key(row: int) -> str:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        return _key(folder / files[shard], row - int(starts[shard]))

    return len(rows), [(key(int(earlier[row])), key(int(row))) for row in rows[:num_examples]]


def _hashes(rows: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(blake2b(row, digest_size=8).digest() for row in rows), np.uint64)


def _repeated(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    if not arrays:
        return np.empty(0)
    values, counts = np.unique(np.concatenate(arrays), return_counts=True)
    return values[counts > 1]


def _common(folder: Path, kind: str, value: int, one: tuple[str, int], other: tuple[str, int]) -> str:
    """Return the text of a value that two rows share, or an empty text if only their hashes are equal."""
    if kind == "row id":
        return str(value)
    key = _key(folder / one[0], one[1])
    return repr(key) if key == _key(folder / other[0], other[1]) else ""


def _key(path: Path, row: int) -> str:
    with open_parquet(path, checksums=False) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                key: str = file.read_row_group(group, columns=["key"]).column("key")[row].as_py()
                return key
            row -= rows
    raise IndexError(row)
