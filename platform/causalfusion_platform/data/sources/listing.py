"""List of a source's images, one row per image in a canonical order, and of the items left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...config.errors import UserError
from ..faults import FaultStop, Finding, Policies
from .labels import NO_CLASS
from .selection import Selection

Kind = Literal["folders", "flat", "webdataset", "parquet", "idx"]

_COLUMNS = {
    "key": pa.string(),
    "label": pa.int64(),
    "file": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "row_group": pa.int64(),
    "captions": pa.list_(pa.string()),
}

_ARROW = (pa.Array, pa.ChunkedArray)


@dataclass(frozen=True)
class CaptionsFound:
    """Result of joining images with a file of captions."""

    location: str
    """Path or URL of the file, as given by the user."""
    form: str
    """COCO, Karpathy or JSONL."""
    keys: tuple[str, ...]
    """Keys that the lines have (JSONL)."""
    by: str
    """`path`: whole paths were equal. `file name`: only their last parts."""
    captions: int
    """Captions of the images that are listed."""
    uncaptioned: int
    """Images that were left out because they have no caption."""
    absent: int
    """Entries of the file whose image is not there."""
    first_absent: tuple[str, ...]
    other_splits: int
    """Images of splits that were not chosen."""
    other_files: int
    """Files without caption that are not named as images."""


@dataclass(frozen=True)
class Listing:
    """Images of a source."""

    kind: Kind
    location: str
    """Location as given by the user."""
    class_names: list[str]
    """Name of each class. Labels are indices into this list. Without classes: `NO_CLASS` alone."""
    digest: str
    """SHA-256 over one line of JSON per row of `table`: [key, size, label], and the captions if present.

    It does not depend on the location or on the order in which the storage lists the source. The images' contents
    are not read.
    """
    table: pa.Table
    """One row per image, sorted by key, bytewise.

    * key: name inside the source: a path, `shard.tar/member.jpg`, or `file.parquet#000000012` (IDX files too).
    * label: index of its class.
    * file: path of the file that holds it, in the filesystem of the source.
    * offset: first byte inside a tar or an IDX file, row inside a Parquet file, or 0.
    * size: bytes, or −1 if unknown.
    * row_group: row group of the Parquet file, or −1.
    * captions: list of strings, only if requested.
    """
    findings: list[tuple[str, Finding]]
    """Key and fault of each item that was left out, sorted by key."""
    shuffled: bool
    """True if images should be encoded in shuffled order, because their keys are sorted by class."""
    selection: Selection = field(default_factory=Selection)
    """Part of the location that was listed."""
    captions: CaptionsFound | None = None
    """Origin of the captions, if they are from a file beside the images."""

    @property
    def has_classes(self) -> bool:
        """False for images without labels, which count as one class."""
        return self.kind == "folders" or self.class_names != [NO_CLASS]

    def empty_classes(self, left_out: Collection[str] = ()) -> list[str]:
        """Return the names of the classes without an image, apart from the images of some keys."""
        labels = self.table["label"]
        if left_out:
            gone = pa.array(list(left_out), pa.string())
            labels = labels.filter(pc.invert(pc.is_in(self.table["key"], value_set=gone)))
        counts = np.bincount(labels.to_numpy(), minlength=len(self.class_names))
        return [self.class_names[label] for label in np.flatnonzero(counts == 0)]


class Reader(Protocol):
    """Picklable reader of images. It opens files in the process that uses it, for one thread at a time."""

    def read(self, items: pa.Table) -> Iterator[bytes | OSError]:
        """Yield the content of each row of (a part of) a listing's table, or the error of reading it."""
        ...


class Source(Protocol):
    """Source of images."""

    def listing(self) -> Listing:
        """List the images.

        Raises:
            UserError: the source cannot be listed, or contradicts itself.
            FaultStop: an image has no label, or a label no image, and the policy is to stop.
        """
        ...

    def reader(self) -> Reader:
        """Return the reader of the images of the listing."""
        ...


def make_listing(
    kind: Kind,
    location: str,
    class_names: list[str],
    columns: Mapping[str, Iterable[object]],
    findings: list[tuple[str, Finding]],
    selection: Selection | None = None,
) -> Listing:
    """Bring rows into canonical order.

    Args:
        location: the location as given by the user.
        columns: key, label, file and size, and if they apply offset, row_group and captions. They are sequences or
            Arrow arrays of one length, in any order.
        findings: faults of the items left out.
        selection: part of the location that was listed.

    Raises:
        UserError: the source has no rows, or a key occurs twice.
    """
    arrays = {
        name: values.cast(_COLUMNS[name]) if isinstance(values, _ARROW) else pa.array(values, _COLUMNS[name])
        for name, values in columns.items()
    }
    rows = len(arrays["key"])
    if not rows:
        raise UserError(
            f"{location} holds no image with a label ({len(findings)} items without)\n  name another source"
        )
    arrays.setdefault("offset", pa.repeat(pa.scalar(0, pa.int64()), rows))
    arrays.setdefault("row_group", pa.repeat(pa.scalar(-1, pa.int64()), rows))
    table = pa.table({name: arrays[name] for name in _COLUMNS if name in arrays})
    table = table.take(pc.sort_indices(table["key"])).combine_chunks()
    keys = table["key"]
    same = pc.index(pc.equal(keys[1:], keys[:-1]), True).as_py()
    if same >= 0:
        raise UserError(f"{location} holds {keys[same].as_py()!r} twice\n  remove one of the two")
    return Listing(
        kind=kind,
        location=location,
        class_names=class_names,
        digest=_digest(table),
        table=table,
        findings=sorted(findings, key=lambda left_out: (left_out[0].encode(), left_out[1].kind)),
        shuffled=kind in ("folders", "flat"),
        selection=selection or Selection(),
    )


def leave_out(kind: str, items: Sequence[tuple[str, str]], policies: Policies) -> list[tuple[str, Finding]]:
    """Return the findings of items, each a key and the detail of its fault, that are left out.

    Raises:
        FaultStop: `items` is not empty, and the policy is to stop.
    """
    action = policies[kind]
    if items and action == "stop":
        key, detail = min(items, key=lambda item: item[0].encode())
        others = f" (and {len(items) - 1:,} more)" if len(items) > 1 else ""
        raise FaultStop(key, Finding(kind, action, f"{detail}{others}"))
    return [(key, Finding(kind, action, detail)) for key, detail in items]


def utf8(names: Sequence[str], location: str) -> pa.Array:
    """Return names as an Arrow array.

    Raises:
        UserError: a name of a file is not UTF-8.
    """
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError as error:
        raise UserError(
            f"{location} holds a name that is not UTF-8: {error.object!a}\n  rename the file"
        ) from error


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    names = ["key", "size", "label"] + (["captions"] if "captions" in table.column_names else [])
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    for batch in table.select(names).to_batches(max_chunksize=65536):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        digest.update("".join(f"{encode(row)}\n" for row in rows).encode())
    return digest.hexdigest()
