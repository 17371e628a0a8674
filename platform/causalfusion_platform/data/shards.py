"""Shard format: Parquet with fp16 latents as native fixed-shape tensors, labels, row ids and source keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..config.commands import command
from ..config.errors import UserError
from ..config.files import home
from ..storage.atomic import UNFINISHED_END, replacing, write_atomically
from ..storage.object_path import ObjectPath, as_path
from ..storage.objects import is_object_url
from .layout import CARD_FILE, EARLIER_NAMES, NAMES, card, names_in
from .manifest import Description, Manifest, Shard, latent_columns, sha256_of

_MANIFESTS = (NAMES.manifest, EARLIER_NAMES.manifest)
# Name of a shard, or of an unfinished shard, card or manifest.
_SHARD_FILES = re.compile(
    rf"shard-\d+-of-\d+\.parquet"
    rf"|\.(shard-\d+-of-\d+\.parquet|{'|'.join(map(re.escape, (*_MANIFESTS, CARD_FILE)))}){UNFINISHED_END}"
)

CLASSIFIER = re.compile(r"\.classifier-[0-9a-f]{16}")
"""Name of the folder of a data set's classifier, inside the folder of shards. It is not a part of the data."""
TOKENIZER = re.compile(rf"\.tokenizer-[0-9a-f]{{16}}\.json|\.\.tokenizer-[0-9a-f]{{16}}\.json{UNFINISHED_END}")
"""Name of the tokenizer of a data set's captions, finished or not, inside the folder of shards.

It is not a part of the data."""
BESIDE_OBJECTS = "shards/.object-storage"
"""Folder below CAUSALFUSION_HOME of the classifiers and tokenizers of shards on object storage."""
LATENT_COLUMNS = latent_columns(posterior=True, flip=True)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of shards in memory. Latents are (rows, channels, height, width), already in the model's scale."""

    row_ids: NDArray[np.int64]
    """(rows,) position of each image in its source. Images that were left out leave gaps."""
    labels: NDArray[np.int64]
    """(rows,)"""
    keys: Sequence[str]
    """Name of each image in its source."""
    mean: NDArray[np.float16]
    """Mean of the posterior, or the latent itself without a posterior."""
    std: NDArray[np.float16] | None = None
    """Standard deviation of the posterior."""
    mean_flip: NDArray[np.float16] | None = None
    """`mean` of the mirrored image."""
    std_flip: NDArray[np.float16] | None = None
    captions: Sequence[Sequence[str]] | None = None

    @property
    def schema(self) -> pa.Schema:
        """Schema of these rows."""
        return shard_schema(
            self.mean.shape[1:],
            posterior=self.std is not None,
            flip=self.mean_flip is not None,
            captions=self.captions is not None,
        )

    def slice(self, part: slice) -> Rows:
        """Return some of the rows."""
        columns = {name: column[part] for name, column in vars(self).items() if column is not None}
        return Rows(**columns)

    def table(self) -> pa.Table:
        """Return the rows as a table of the shard schema."""
        columns = [
            pa.array(self.row_ids, pa.int64()),
            pa.array(self.labels, pa.int64()),
            pa.array(self.keys, pa.string()),
        ]
        for name in LATENT_COLUMNS:
            latents = getattr(self, name)
            if latents is not None:
                columns.append(pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(latents)))
        if self.captions is not None:
            columns.append(pa.array(self.captions, pa.list_(pa.string())))
        return pa.Table.from_arrays(columns, schema=self.schema)


def shard_schema(shape: tuple[int, ...], *, posterior: bool, flip: bool, captions: bool) -> pa.Schema:
    """Return the schema of shards of latents (channels, height, width), the only one that readers accept."""
    tensor = pa.fixed_shape_tensor(pa.float16(), shape)
    fields = [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(name, tensor, nullable=False) for name in latent_columns(posterior=posterior, flip=flip)),
    ]
    if captions:
        fields.append(pa.field("captions", pa.list_(pa.string()), nullable=False))
    return pa.schema(fields)


def manifest_schema(manifest: Manifest) -> pa.Schema:
    """Return the schema of a manifest's shards."""
    return shard_schema(
        manifest.shape, posterior=manifest.posterior, flip=manifest.flip, captions=manifest.captions
    )


def shard_name(index: int, count: int) -> str:
    """Return the file name of shard `index` of `count`."""
    return f"shard-{index:05d}-of-{count:05d}.parquet"


def classifier_folder(folder: Path, identity: str) -> Path:
    """Return the folder that keeps the classifier of this identity: beside the shards, unless they are objects."""
    return _on_disk(folder) / f".classifier-{identity[:16]}"


def tokenizer_file(folder: Path, identity: str) -> Path:
    """Return the file that keeps the tokenizer of this identity: beside the shards, unless they are objects."""
    return _on_disk(folder) / f".tokenizer-{identity[:16]}.json"


def _on_disk(folder: Path) -> Path:
    """Return the folder of what belongs to shards, but is not a part of the data."""
    return home() / BESIDE_OBJECTS if isinstance(folder, ObjectPath) else folder


def is_replaceable(folder: Path) -> bool:
    """Return True if a folder holds only files of `write_shards`, complete or not."""
    names = {path.name for path in folder.iterdir()}
    ours = (_SHARD_FILES, CLASSIFIER, TOKENIZER)
    others = {name for name in names if not any(pattern.fullmatch(name) for pattern in ours)}
    others -= {NAMES.quarantine, EARLIER_NAMES.quarantine}
    has_shards = any(folder.glob("shard-*"))
    if has_shards or others & {*_MANIFESTS}:
        others.discard(CARD_FILE)
    if has_shards or not others or not others <= {*_MANIFESTS}:
        return others <= {*_MANIFESTS}
    try:  # many programs have a manifest.json
        Manifest.read(folder)
    except UserError:
        return False
    return True


def check_replaceable(folder: Path) -> None:
    """Raise `UserError` if a folder holds anything but files of `write_shards`, or is not a folder."""
    if folder.exists() and not (folder.is_dir() and is_replaceable(folder)):
        raise UserError(
            f"{folder} exists and is not a folder of shards\n  name a new or empty folder, such as shards/digits"
        )


def refuse_object_storage(out: Path) -> None:
    """Raise `UserError` if shards are to be written to an address, which would name a folder by mistake."""
    if is_object_url(out):
        raise UserError(
            f"{as_path(out)} is on object storage, and shards are written to disk\n"
            f"  name a folder, and copy it there: {command('data', 'upload', 'FOLDER', as_path(out))}"
        )


def write_shard(rows: Rows, path: Path, rows_per_group: int) -> Shard:
    """Write one shard, atomically. Its bytes depend on the rows and the library versions only."""
    schema = rows.schema
    # fp16 latents compress by 8% only, and unpacking them would take a third of the time of reading.
    compression = {field.name: "none" if field.name in LATENT_COLUMNS else "zstd" for field in schema}
    with replacing(path) as file:
        pq.write_table(
            rows.table(),
            file,
            row_group_size=rows_per_group,
            compression={parquet_path(name): codec for name, codec in compression.items()},
            use_dictionary=False,
            write_page_checksum=True,
        )
        file.flush()
        temporary = Path(file.name)
        metadata = pq.read_metadata(temporary)
        return Shard(
            file=path.name,
            rows=metadata.num_rows,
            row_groups=[metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)],
            bytes=temporary.stat().st_size,
            sha256=sha256_of(temporary),
        )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest of complete shards, and before it the card of their columns."""
    if names_in(folder) == NAMES:
        write_atomically(folder / CARD_FILE, card(manifest_schema(manifest), manifest.class_names))
    manifest.write(folder)


def parquet_path(name: str) -> str:
    """Return Parquet's path of a column. Lists and tensors are nested."""
    return name if name in ("row_id", "label", "key") else f"{name}.list.element"


def write_shards(
    rows: Rows, description: Description, folder: Path, *, rows_per_shard: int, rows_per_group: int
) -> Manifest:
    """Write a data set in memory as shards, and the manifest last.

    The bytes depend on the data and the library versions only: writing twice gives equal digests.

    Args:
        folder: the folder to write. Its old shards are removed.
        rows_per_shard: rows of each file except the last.
        rows_per_group: rows of each Parquet row group, the unit of reading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*_MANIFESTS, CARD_FILE):
        (folder / name).unlink(missing_ok=True)
    if (folder / EARLIER_NAMES.quarantine).is_dir() and not (folder / NAMES.quarantine).exists():
        (folder / EARLIER_NAMES.quarantine).rename(folder / NAMES.quarantine)
    for old in [path for path in folder.iterdir() if _SHARD_FILES.fullmatch(path.name)]:
        old.unlink()
    total = len(rows.labels)
    count = -(-total // rows_per_shard)
    shards = []
    for index in range(count):
        part = slice(index * rows_per_shard, (index + 1) * rows_per_shard)
        shards.append(write_shard(rows.slice(part), folder / shard_name(index, count), rows_per_group))
    manifest = Manifest(**description.model_dump(), rows=total, shards=shards)
    write_manifest(manifest, folder)
    return manifest
