"""Manifest of a folder of latent shards: their description, rows and hashes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..config.commands import command
from ..config.errors import UserError
from ..storage.atomic import write_atomically
from ..storage.json_file import Damaged, read_model
from ..storage.object_path import ObjectPath
from .layout import NAMES, manifest_path

_LARGEST = 64 << 20
"""Bytes of a manifest, which lists shards and classes, above which it is refused."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


_MOST_PIXELS = 2**16
# Numbers of a latent. Arrow counts them in 32 bits.
_MOST_NUMBERS = 2**28
_INT64 = 2**63 - 1

Pixels = Annotated[int, Field(ge=1, le=_MOST_PIXELS)]
Split = Literal["train", "val", "test"]
"""Splits of a data set. Models train on `train`, settings are chosen on `val`, and `test` is measured once."""


class SourceId(_Part):
    """Source of the images."""

    kind: str
    """`folders`, `flat`, `webdataset`, `parquet`, `idx`, `bundled` (scikit-learn's digits), or `mnist`."""
    location: str
    """Location as given by the user."""
    items: int = Field(ge=1, le=_INT64)
    """Images and other files of the source, including those left out. Row ids are below this number."""
    digest: str
    """SHA-256 over every item's key, size and label, without the location. Empty: bundled with the platform."""


class AutoencoderId(_Part):
    """Autoencoder of the latents."""

    name: str
    """`identity` (pixels in [−1, 1]), `AutoencoderKL` or `AutoencoderTiny`."""
    scale: float = Field(gt=0, allow_inf_nan=False)
    """Factor by which the stored latents were multiplied (SD 0.18215, MAR's KL-16 0.2325, identity 1)."""
    weights_sha256: str | None = None
    """SHA-256 over the names, shapes and values of its weights. null: without weights."""

    def __str__(self) -> str:
        """Return name, scale and weights for messages."""
        weights = f", weights {self.weights_sha256[:16]}" if self.weights_sha256 else ""
        return f"{self.name}, scale {self.scale:g}{weights}"


class Crop(_Part):
    """Crop and size of the images."""

    kind: Literal["adm_center"] = "adm_center"
    """ADM's centre crop: halvings with a box filter, then bicubic to the shorter side, then the middle."""
    size: Pixels
    """Side of the square, in pixels."""


class Shard(_Part):
    """One Parquet file of latents."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.parquet$")
    """File name inside the folder."""
    rows: int = Field(ge=1, le=_INT64)
    row_groups: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Rows of each Parquet row group."""
    bytes: int = Field(ge=1, le=_INT64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Quarantined(_Part):
    """One shard that was set aside."""

    file: str
    rows: int
    reason: str


class Description(_Part):
    """Description of a data set's latents: source, autoencoder, crop, shape and classes."""

    version: Literal[2, 3] = 3
    """Schema version of this file. Version 2 has no split. The shards of both are the same."""
    split: Split = "train"
    """Split of the data set that these rows are. Version 2 counts as `train`."""
    source: SourceId
    autoencoder: AutoencoderId
    crop: Crop | None = None
    """null: images were not cropped."""
    order: Literal["source", "shuffled"] = "source"
    """Order of rows: that of the source's keys, or one fixed permutation of it."""
    shape: tuple[Pixels, Pixels, Pixels]
    """Channels, height and width of one latent."""
    dtype: Literal["float16"] = "float16"
    posterior: bool = False
    """Shards hold the posterior's standard deviation beside its mean. Otherwise the latent is `mean`."""
    flip: bool = False
    """Shards hold the latents of the mirrored image too."""
    captions: bool = False
    """Shards hold a list of captions for each image."""
    class_names: list[str] = Field(min_length=1)
    """Name of each class. Labels are indices into this list."""
    faults: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Kind of fault of the source's images → action (convert, keep, skip) → count."""

    @field_validator("shape")
    @classmethod
    def _shape_fits(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"a latent of {'×'.join(map(str, shape))} numbers is too large: allowed are 2^28")
        return shape

    @model_validator(mode="after")
    def _version_has_split(self) -> Self:
        if self.version == 2 and self.split != "train":
            raise ValueError(f"split {self.split} needs version 3")
        return self

    @property
    def latent_columns(self) -> tuple[str, ...]:
        """Names of the tensor columns of every shard."""
        return latent_columns(posterior=self.posterior, flip=self.flip)


class Manifest(Description):
    """Manifest of a folder of shards, written last. A folder without it is incomplete."""

    rows: int = Field(ge=1)
    shards: list[Shard] = Field(min_length=1)
    quarantined: list[Quarantined] = Field(default_factory=list)
    """Shards that were found bad and set aside. `rows` and `shards` do not include them."""

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest and its shard hashes, without the source's location. It names the data set.

        The same training rows have the same digest in versions 2 and 3, so that runs on older shards go on.
        """
        tree = self.model_dump(mode="json") | {"version": 2}
        del tree["source"]["location"]
        if self.split == "train":
            del tree["split"]
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def without(self, files: Collection[str]) -> Self:
        """Return the manifest without some shards.

        Raises:
            UserError: no shards remain.
        """
        if not files:
            return self
        shards = [shard for shard in self.shards if shard.file not in files]
        if not shards:
            raise UserError(f"all {len(self.shards)} shards are bad\n  make the folder anew")
        return self.model_copy(update={"shards": shards, "rows": sum(shard.rows for shard in shards)})

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically. One that was read as version 2 stays as that."""
        text = self.model_dump_json(indent=2, exclude={"split"} if self.version == 2 else None)
        write_atomically(manifest_path(folder), (text + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of `folder`.

        Raises:
            UserError: the folder or its manifest is missing, or the manifest is not one of ours.
        """
        make = _how_to_make(folder)
        if not isinstance(folder, ObjectPath) and not folder.is_dir():
            raise UserError(f"{folder} is not a folder of latent shards: it does not exist\n  {make}")
        path = manifest_path(folder)
        if not path.is_file():
            raise UserError(
                f"{folder} has no {NAMES.manifest}, which is written last: its shards are incomplete "
                f"or it is another folder\n  {make}"
            )
        try:
            manifest = read_model(path, cls, _LARGEST)
        except Damaged as error:
            raise UserError(
                f"{path} is not a shard manifest of version 2 or 3: {error.reason}\n  {make}"
            ) from error
        if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
            raise UserError(f"{path} lists a shard twice\n  {make}")
        if sum(shard.rows for shard in manifest.shards) != manifest.rows or any(
            sum(shard.row_groups) != shard.rows for shard in manifest.shards
        ):
            raise UserError(f"{path}: the rows of its shards do not add up to {manifest.rows}\n  {make}")
        return manifest


def _how_to_make(folder: Path) -> str:
    if isinstance(folder, ObjectPath):
        return f"copy shards there from a folder on disk: {command('data', 'upload', 'FOLDER', folder)}"
    return (
        f"make them from images: {command('data', 'encode', 'IMAGES', folder, '--vae', 'VAE')}, "
        f"or the bundled digits: {command('data', 'digits', folder)}"
    )


def latent_columns(*, posterior: bool, flip: bool) -> tuple[str, ...]:
    """Return the names of the tensor columns of shards, in their order."""
    names = ("mean", "std") if posterior else ("mean",)
    return (*names, *(f"{name}_flip" for name in names)) if flip else names


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
