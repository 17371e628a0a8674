"""Check of a folder of shards against its manifest, before it is used."""

from __future__ import annotations

import base64
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from causalfusion import CausalFusionConfig, ModelConfig

from ..config.commands import command
from ..config.errors import UserError
from ..storage.object_path import ObjectPath
from ..storage.objects import NotThere
from .fingerprints import Fingerprints, clashes
from .manifest import Manifest, Shard, sha256_of
from .mnist import KIND as MNIST
from .read import LATENT
from .shard_file import open_parquet, threads_for
from .shards import manifest_schema

_ARROW_SCHEMA = b"ARROW:schema"
_DIGITS = {"bundled": "digits", MNIST: "mnist"}
"""Kind of a source → command of `data` that writes it, with captions too."""


class Stamp(NamedTuple):
    """Size and times of a file, or size and tag of an object, which show a change without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    """Time of change of the file itself. A copy with the original's time of modification has another one."""
    etag: str = ""
    """Tag of an object's content."""


@dataclass(frozen=True)
class CheckedShards:
    """Folder of shards, and the faults found in them."""

    folder: Path
    manifest: Manifest
    bad: dict[str, str]
    """File → fault."""
    stamps: dict[str, Stamp] = field(default_factory=dict)
    """File → its size and times at the check."""
    hashes: bool = True
    """True if every byte was read."""

    def still_holds(self, file: str, stamp: Stamp | None) -> bool:
        """Return True if the result for a shard holds for the present file."""
        return stamp is not None and self.stamps.get(file) == stamp

    @property
    def usable(self) -> Manifest:
        """Manifest without the bad shards."""
        return self.manifest.without(self.bad)

    @property
    def notice(self) -> str:
        """Message about the shards left out, or an empty text without any."""
        if not self.bad:
            return ""
        left_out = self.manifest.rows - self.usable.rows
        named = "".join(f"\n  {file}: {fault}" for file, fault in self.bad.items())
        return (
            f"left out: {len(self.bad)} of {len(self.manifest.shards)} shards in {self.folder}, {left_out} of "
            f"{self.manifest.rows} rows{named}"
        )


def open_shards(
    folder: Path, *, max_bad_rows: float = 0.0, hashes: bool = True, known: CheckedShards | None = None
) -> CheckedShards:
    """Check every shard: presence, size, SHA-256, schema, rows of every row group, labels' range, repeated row ids.

    The schema must be exactly that of shards, which excludes pickled extension types.

    Args:
        max_bad_rows: largest share of rows in bad shards.
        hashes: read every byte to compare SHA-256, and every row id. Readers compare page checksums in any case.
        known: result of an earlier check, reused for each shard with the same size and times.

    Raises:
        UserError: more rows are bad. The message names the shards.
    """
    manifest = Manifest.read(folder)
    if known is not None and (known.manifest != manifest or (hashes and not known.hashes)):
        known = None
    stamps = _stamps(folder, manifest)
    trusted = {file for file, stamp in stamps.items() if known is not None and known.still_holds(file, stamp)}
    found = dict(faults(folder, manifest, hashes=hashes, but=trusted))
    found |= {} if known is None else {file: fault for file, fault in known.bad.items() if file in trusted}
    if hashes and len(trusted) < len(manifest.shards):
        found |= _repeated_row_ids(folder, [shard for shard in manifest.shards if shard.file not in found])
    bad = {shard.file: fault for shard in manifest.shards if (fault := found.get(shard.file))}
    share = sum(shard.rows for shard in manifest.shards if shard.file in bad) / manifest.rows
    if share > max_bad_rows:
        named = "\n".join(
            f"shard {folder / file} does not match its manifest: {fault}" for file, fault in bad.items()
        )
        enough = f"{share + 5e-4:.3f}"
        without = f"; or train without it: data.max_bad_rows={enough} (now {max_bad_rows:g})"
        restore = (
            f"copy sound shards there: {command('data', 'upload', 'FOLDER', folder)}"
            if isinstance(folder, ObjectPath)
            else f"restore the file, or set it aside: {command('data', 'verify', folder, '--quarantine')}"
        )
        raise UserError(f"{named}\n  {restore}{without if float(enough) < 1 else ''}")
    return CheckedShards(folder, manifest, bad, stamps, hashes)


def _repeated_row_ids(folder: Path, shards: Sequence[Shard]) -> dict[str, str]:
    """Return file → fault of the shards with a row id that is twice in them, or in an earlier shard too."""

    def read(shard: Shard) -> Fingerprints | str:
        try:
            with open_parquet(folder / shard.file, checksums=False) as file:
                ids = file.read(columns=["row_id"], use_threads=False).column(0).to_numpy()
        except (OSError, pa.ArrowException) as error:
            return f"it is not readable Parquet ({error})"
        return replace(Fingerprints.none(), row_ids=ids)

    with ThreadPoolExecutor(threads_for(folder)) as threads:
        found = dict(zip((shard.file for shard in shards), threads.map(read, shards), strict=True))
    prints = {file: print_ for file, print_ in found.items() if isinstance(print_, Fingerprints)}
    return {file: fault for file, fault in found.items() if isinstance(fault, str)} | clashes(folder, prints)


def _stamps(folder: Path, manifest: Manifest) -> dict[str, Stamp]:
    """Return file → stamp of the shards that are there."""
    if isinstance(folder, ObjectPath):
        there = folder.objects()
        return {
            shard.file: Stamp(there[shard.file].size, 0, 0, there[shard.file].etag)
            for shard in manifest.shards
            if shard.file in there
        }
    return {shard.file: stamp for shard in manifest.shards if (stamp := _stamp(folder / shard.file)) is not None}


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def faults(
    folder: Path, manifest: Manifest, *, hashes: bool = True, but: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (file, fault) of every shard that differs from the manifest, in the manifest's order.

    Files in `but` are not checked.
    """
    shards = [shard for shard in manifest.shards if shard.file not in but]
    with ThreadPoolExecutor(threads_for(folder)) as threads:  # hashing releases Python's lock
        found = threads.map(lambda shard: shard_fault(folder / shard.file, shard, manifest, hashes), shards)
        for shard, fault in zip(shards, found, strict=True):
            if fault:
                yield shard.file, fault


def check_model_fits(manifest: Manifest, model: ModelConfig, folder: Path) -> None:
    """Check that a model can train on these latents.

    Raises:
        UserError: shapes or class counts differ.
    """
    expected = (model.in_channels, model.input_size, model.input_size)
    if manifest.shape != expected:
        raise UserError(
            f"the shards in {folder} hold latents of shape {manifest.shape}, but the model takes {expected}\n"
            f"  set model.in_channels={manifest.shape[0]} model.input_size={manifest.shape[1]}, or data.path"
        )
    has_classes = not isinstance(model, CausalFusionConfig) or model.num_class_tokens > 0
    if has_classes and len(manifest.class_names) != model.num_classes:
        raise UserError(
            f"the shards in {folder} have {len(manifest.class_names)} classes, but model.num_classes is "
            f"{model.num_classes}\n  set model.num_classes={len(manifest.class_names)}, or data.path"
        )


def check_fields(manifest: Manifest, fields: Sequence[str], folder: Path, task: str) -> None:
    """Check that the shards have the columns that a task reads.

    Raises:
        UserError: one is missing.
    """
    known = [*manifest_schema(manifest).names, LATENT]
    missing = [name for name in fields if name not in known]
    if not missing:
        return
    if missing == ["captions"] and manifest.source.kind in _DIGITS:
        verb = _DIGITS[manifest.source.kind]
        remedy = f"write the digits with captions: {command('data', verb, f'{folder}-captions', '--captions')}"
    elif missing == ["captions"]:
        remedy = "encode the images again with captions: causalfusion data encode --help"
    else:
        remedy = "name other fields in the task"
    raise UserError(
        f"task={task} reads {', '.join(missing)}, but the shards in {folder} have {', '.join(known)}\n"
        f"  set data.path to shards that have it, or {remedy}"
    )


def check_draws(manifest: Manifest, flip: bool | None, folder: Path) -> None:
    """Check that the shards support the requested draws of latents.

    Raises:
        UserError: mirrored images are requested, but the shards do not hold them.
    """
    if flip and not manifest.flip:
        raise UserError(
            f"data.flip=true, but the shards in {folder} hold no mirrored images\n"
            f"  leave data.flip at null, or encode the images again without --no-flip"
        )


def shard_fault(path: Path, shard: Shard, manifest: Manifest, hashes: bool = True) -> str | None:
    """Return the fault of a shard, or None."""
    size = _size_of(path)
    if size is None:
        return "the file is missing"
    if size != shard.bytes:
        return f"it has {size} bytes, not {shard.bytes}"
    try:
        if hashes and (found := sha256_of(path)) != shard.sha256:
            return f"its SHA-256 is {found[:12]}…, not {shard.sha256[:12]}…"
    except OSError as error:
        return f"the file cannot be read: {error.strerror or error}"
    schema = manifest_schema(manifest)
    try:
        footer = _footer(path)
        if not footer:
            return "it is not readable Parquet (it has no footer)"
        if footer.count(_ARROW_SCHEMA) != 1 or _schema_entry(schema) not in footer:
            return f"its schema is not that of the manifest, {', '.join(schema.names)} for {manifest.shape}"
        with open_parquet(path, checksums=False) as file:
            metadata, columns = file.metadata, file.schema_arrow
        if not columns.equals(schema):
            return f"its columns are not those of the manifest: {', '.join(schema.names)} for {manifest.shape}"
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return f"it is not readable Parquet ({error})"
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if [group.num_rows for group in groups] != shard.row_groups:
        return f"its row groups have {[group.num_rows for group in groups]} rows, not {shard.row_groups}"
    column = schema.names.index("label")
    classes = len(manifest.class_names)
    for group in groups:
        labels = group.column(column)
        # Arrow ends the process when it reads statistics of a column whose two types differ.
        statistics = labels.statistics if labels.physical_type == "INT64" else None
        if statistics is None or not statistics.has_min_max:
            given = "unknown"
        elif not 0 <= statistics.min <= statistics.max < classes:
            given = f"{statistics.min}…{statistics.max}"
        else:
            continue
        return f"a label is out of range: labels are {given}, allowed is 0…{classes - 1}"
    return None


def _size_of(path: Path) -> int | None:
    """Return the bytes of a file or an object. None: it does not exist."""
    if isinstance(path, ObjectPath):  # one request
        try:
            return path.stat().st_size
        except NotThere:
            return None
    return path.stat().st_size if path.is_file() else None


def _footer(path: Path) -> bytes:
    """Return the footer of a Parquet file, or no bytes without a footer."""
    with path.open("rb") as file:
        end = max(file.seek(0, os.SEEK_END) - 8, 0)
        file.seek(end)
        length, magic = file.read(4), file.read(4)
        start = end - int.from_bytes(length, "little")
        if magic != b"PAR1" or start < 0:
            return b""
        file.seek(start)
        return file.read(end - start)


def _schema_entry(schema: pa.Schema) -> bytes:
    """Return the bytes of an Arrow schema in a footer: key and value, each a Thrift string, as Arrow writes them.

    Bytes are compared, because Arrow creates the types of the schema as soon as it opens a file, even for its
    metadata. An extension type may carry code.
    """
    entry = b""
    for text in (_ARROW_SCHEMA, base64.b64encode(schema.serialize().to_pybytes())):
        length, size = bytearray(), len(text)
        while size >= 128:
            length.append(size % 128 + 128)
            size //= 128
        entry += b"\x18" + bytes([*length, size]) + text
    return entry
