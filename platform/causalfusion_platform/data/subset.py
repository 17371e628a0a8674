"""Subset of shards with a few rows of each class, as shards of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from causalfusion import draws

from ..config.commands import command
from ..config.errors import UserError
from .layout import manifest_path
from .manifest import Description, Manifest
from .passes import latents_of, read_groups
from .shards import LATENT_COLUMNS, Rows, check_replaceable, manifest_schema, write_shards

_MARK = "; subset: "
"""Separates the location of a source from the description of a subset."""
_ROWS_PER_SHARD, _ROWS_PER_GROUP = 8192, 128


def whole_location(location: str) -> str:
    """Return the location of a source without the description of a subset."""
    return location.partition(_MARK)[0]


def draw_rows(
    row_ids: NDArray[np.int64], labels: NDArray[np.int64], *, per_class: int, seed: int
) -> NDArray[np.int64]:
    """Return the row ids of `per_class` rows of each class, ascending.

    They depend on the seed and on the ids of a class. The order of the rows and other classes do not matter, and
    fewer rows of a class are a part of more.

    Args:
        row_ids: (N,)
        labels: (N,)
        per_class: rows of each class.
        seed: seed.

    Raises:
        ValueError: a class has fewer rows.
    """
    chosen = []
    for label in np.unique(labels):
        known = np.sort(row_ids[labels == label])
        if len(known) < per_class:
            raise ValueError(f"class {label} has {len(known):,} rows, fewer than {per_class:,}")
        generator = np.random.default_rng(draws.stream_seed(seed, "rows of a class", int(label)))
        chosen.append(generator.permutation(known)[:per_class])
    return np.sort(np.concatenate(chosen))


def write_subset(shards: Path, folder: Path, *, per_class: int, seed: int = 0) -> Manifest:
    """Write some rows of each class of `shards` into `folder`, in place of those of an earlier call.

    Raises:
        UserError: the shards are missing or damaged, a class has too few rows, or the folder holds anything else.
    """
    check_replaceable(folder)
    manifest = Manifest.read(shards)
    if folder.resolve() == shards.resolve():
        raise UserError(f"{folder} is the folder of all rows\n  name another one, such as {folder}-{per_class}")
    index = _read(shards, manifest, ["row_id", "label"])
    row_ids, labels = (index.column(name).to_numpy() for name in ("row_id", "label"))
    try:
        chosen = draw_rows(row_ids, labels, per_class=per_class, seed=seed)
    except ValueError as error:
        raise UserError(f"{shards}: {error}\n  take fewer rows of each class") from error
    return write_shards(
        _rows(shards, manifest, chosen),
        _description(manifest, per_class, seed),
        folder,
        rows_per_shard=_ROWS_PER_SHARD,
        rows_per_group=_ROWS_PER_GROUP,
    )


def ensure_subset(shards: Path, folder: Path, *, per_class: int, seed: int = 0) -> Manifest:
    """Return the manifest of a subset in `folder`. Write it first if there is none.

    Raises:
        UserError: the folder holds other shards, or they cannot be written (see `write_subset`).
    """
    if not manifest_path(folder).is_file():
        return write_subset(shards, folder, per_class=per_class, seed=seed)
    found = Manifest.read(folder)
    if not found.source.location.endswith(_described(per_class, seed)):
        again = command("data", "subset", shards, folder, "--per-class", str(per_class), "--seed", str(seed))
        raise UserError(
            f"data.subset: {folder} holds other rows than {per_class} of each class with seed {seed}\n"
            f"  name a folder that is not there yet, or write them anew: {again}"
        )
    return found


def _described(per_class: int, seed: int) -> str:
    return f"{_MARK}{per_class} of each class, seed {seed}"


def _description(manifest: Manifest, per_class: int, seed: int) -> Description:
    location = manifest.source.location + _described(per_class, seed)
    tree = manifest.model_dump(include=set(Description.model_fields))
    return Description.model_validate({**tree, "source": {**tree["source"], "location": location}})


def _read(shards: Path, manifest: Manifest, columns: list[str]) -> pa.Table:
    return pa.concat_tables(group for shard in manifest.shards for group in read_groups(shards, shard, columns))


def _rows(shards: Path, manifest: Manifest, chosen: NDArray[np.int64]) -> Rows:
    """Return the chosen rows in the order of the shards, with one row group of the others in memory."""
    wanted = pa.array(chosen)
    names = manifest_schema(manifest).names
    parts = []
    for shard in manifest.shards:
        for group in read_groups(shards, shard, names):
            parts.append(group.filter(pc.is_in(group.column("row_id"), value_set=wanted)))
    table = pa.concat_tables(parts)
    return Rows(
        row_ids=table.column("row_id").to_numpy(),
        labels=table.column("label").to_numpy(),
        keys=table.column("key").to_pylist(),
        captions=table.column("captions").to_pylist() if manifest.captions else None,
        **{name: latents_of(table, name) for name in LATENT_COLUMNS if name in names},
    )
