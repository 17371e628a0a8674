"""Assignment of images to shards and batches: a pure function of the source's listing and the settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from causalfusion import draws

from ...config.errors import UserError
from ...storage.atomic import write_atomically
from ...storage.json_file import Damaged, read_object
from ..autoencoder import Encoder
from ..faults import Policies
from ..manifest import AutoencoderId, Crop, Description, SourceId
from ..shards import shard_name
from ..sources import EARLIER_RULES, RULES, Listing, split_of_shards

PLAN_FILE = "plan.json"

# Decoded images in one output block of a reading task, well below the size at which Ray Data would split it.
_TASK_BYTES = 48 * 2**20


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Settings that decide, with source and autoencoder, the bytes of the shards."""

    size: int
    """Side of the centre crop, in pixels."""
    policies: Policies
    """Action for each kind of fault."""
    max_pixels: int
    """Pixels above which an image is `huge`."""
    flip: bool = True
    """Encode the mirrored image too."""
    bf16: bool = False
    """Encode under autocast to bfloat16, faster on GPUs and less exact."""
    batch_size: int = 32
    """Images per batch on a GPU, where sums round differently in another batch. A CPU encodes them one by one."""
    rows_per_shard: int = 4096
    """Items of the source per shard. Images that are left out make it smaller."""
    rows_per_group: int = 256
    """Rows per Parquet row group, the unit of reading and shuffling."""
    order: str = "auto"
    """`source`, `shuffled` (one fixed permutation of the items), or `auto`: the one that suits the source."""

    def __post_init__(self) -> None:
        for name in ("size", "max_pixels", "batch_size", "rows_per_shard", "rows_per_group"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rows_per_shard % self.batch_size:
            raise UserError(
                f"{self.rows_per_shard} rows per shard are not a multiple of the batch size {self.batch_size}\n"
                f"  name others: --rows-per-shard, --batch-size"
            )
        if self.order not in ("auto", "source", "shuffled"):
            raise UserError(f"order must be auto, source or shuffled, got {self.order!r}")


@dataclass(frozen=True)
class Chunk:
    """Whole batches of one shard that one task reads and decodes."""

    shard: int
    start: int
    """First item, counted in the shard."""
    stop: int
    """One past the last item."""


@dataclass(frozen=True)
class EncodingPlan:
    """Assignment of items to shards and batches."""

    settings: EncodeSettings
    description: Description
    order: NDArray[np.int64]
    """(items,) positions in the listing, in the order of the shards."""
    rules: int = RULES
    """Version of the rules by which the source was listed."""

    @property
    def num_shards(self) -> int:
        """Number of shards, including those without any encoded image."""
        return -(-len(self.order) // self.settings.rows_per_shard)

    def file(self, shard: int) -> str:
        """Return the file name of a shard."""
        return shard_name(shard, self.num_shards)

    def items(self, shard: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the items start … stop − 1 of a shard (default: all) as positions in the listing."""
        first = shard * self.settings.rows_per_shard
        return self.order[first : first + self.settings.rows_per_shard][start:stop]

    def chunks(self, shards: Sequence[int]) -> list[Chunk]:
        """Return the chunks of the reading tasks, in order."""
        size = self.settings.size
        batches = max(1, _TASK_BYTES // (self.settings.batch_size * size * size * 3))
        step = batches * self.settings.batch_size
        return [
            Chunk(shard, start, min(start + step, rows))
            for shard in shards
            for rows in [len(self.items(shard))]
            for start in range(0, rows, step)
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the bytes of the shards, in readable form."""
        described = self.description.model_dump(mode="json")
        names = described.pop("class_names")
        described["classes"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        described["source"].pop("location")  # the same images may have been moved
        # The description has the order that `auto` stands for.
        settings = {name: value for name, value in vars(self.settings).items() if name != "order"}
        rules = {} if self.rules == EARLIER_RULES else {"rules": self.rules}
        return {**described, **settings, "policies": dict(self.settings.policies), **rules}

    def begin(self, folder: Path) -> None:
        """Write the identity of this encoding into `folder`, or compare it with that of an earlier call.

        Raises:
            UserError: the identities differ. The differences are listed.
        """
        if not self.is_begun(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / PLAN_FILE, (json.dumps(self.identity, indent=2) + "\n").encode())

    def is_begun(self, folder: Path) -> bool:
        """Return True if `folder` holds exactly this identity.

        A policy that was `stop` may change, because no finished shard holds an image that it applies to. A folder
        begun at version 2 gets the split of this plan, because its shards are the same.

        Raises:
            UserError: the folder holds another identity. The differences are listed.
        """
        path = folder / PLAN_FILE
        if not path.is_file():
            return False
        mine = dict(_flatten(self.identity))
        recorded = dict(_flatten(_read(path)))
        theirs = recorded if recorded.get("version") != 2 else {**recorded, **_version_of(mine)}
        changed = [
            f"  {key}: was {theirs.get(key)!r}, now {mine.get(key)!r}"
            for key in sorted({*mine, *theirs})
            # An earlier version, which did not know a kind of fault, encoded nothing that it applies to.
            if mine.get(key) != theirs.get(key)
            and not (key.startswith("policies.") and theirs.get(key, "stop") == "stop")
        ]
        if changed:
            lines = "\n".join(changed)
            raise UserError(
                f"{folder.parent} was begun with other images or settings:\n{lines}\n"
                f"  use the old ones to continue it, or encode into another folder"
            )
        return mine == recorded


def make_plan(listing: Listing, encoder: Encoder, settings: EncodeSettings) -> EncodingPlan:
    """Plan the encoding of a source.

    Raises:
        UserError: the source is empty, or the autoencoder does not take images of that size.
    """
    count = listing.table.num_rows
    if not count:
        raise UserError(f"{listing.location} holds no images")
    shuffled = listing.shuffled if settings.order == "auto" else settings.order == "shuffled"
    order = np.arange(count)
    if shuffled:
        order = torch.randperm(count, generator=draws.stream(0, "order of encoding")).numpy()
    description = Description(
        split=split_of_shards(listing.location, listing.selection),
        source=SourceId(
            kind=listing.kind,
            location=listing.location,
            items=count + len(listing.findings),
            digest=listing.digest,
        ),
        autoencoder=AutoencoderId(name=encoder.name, scale=encoder.scale, weights_sha256=encoder.weights_sha256),
        crop=Crop(size=settings.size),
        order="shuffled" if shuffled else "source",
        shape=encoder.latent_shape(settings.size),
        posterior=encoder.has_posterior,
        flip=settings.flip,
        captions="captions" in listing.table.column_names,
        class_names=listing.class_names,
    )
    return EncodingPlan(settings, description, order, listing.selection.rules)


def recorded_rules(folder: Path) -> int:
    """Return the version of the rules of listing under which an encoding was begun. Without one: the present one.

    Args:
        folder: folder of the plan.

    Raises:
        UserError: the plan is damaged, or of a later version.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        return RULES
    rules = _read(path).get("rules", EARLIER_RULES)
    if rules not in (EARLIER_RULES, RULES):
        raise UserError(
            f"{path} has the rules {rules!r}; allowed: {EARLIER_RULES}, {RULES}\n"
            f"  continue it with the version of the platform that began it, or encode into another folder"
        )
    return int(rules)


def take_items(table: pa.Table, items: NDArray[np.int64]) -> pa.Table:
    """Return the rows of some items of the listing."""
    return table.take(pa.array(items))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except Damaged as error:
        raise UserError(f"{path} is damaged: {error.reason}\n  encode into another folder, or remove it") from error


def _version_of(identity: dict[str, Any]) -> dict[str, Any]:
    return {key: identity[key] for key in ("version", "split")}


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value))
    return pairs
