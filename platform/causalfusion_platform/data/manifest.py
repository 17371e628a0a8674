"""The manifest of a folder of latent shards: what is in it, and proof that it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..config.errors import UserError

MANIFEST_FILE = "manifest.json"


class Shard(BaseModel):
    """One Parquet file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.parquet$")
    """File name inside the folder."""
    rows: int = Field(ge=1)
    row_groups: list[int] = Field(min_length=1)
    """Rows of each Parquet row group."""
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """Everything a reader must know about a folder of shards. Written last: a folder without it is not trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    """Schema version of this file and of the shards."""
    source: str
    """What the images are."""
    rows: int = Field(ge=1)
    shape: tuple[int, int, int]
    """Channels, height and width of one latent."""
    dtype: Literal["float16"] = "float16"
    scale: float = Field(gt=0)
    """Factor that was applied to the autoencoder's latents (SD VAE 0.18215, MAR VAE 0.2325, identity 1)."""
    autoencoder: str
    """Autoencoder that made the latents; `identity`: pixels in [−1, 1]."""
    class_names: list[str] = Field(min_length=1)
    """Name of each class; labels are indices into this list."""
    shards: list[Shard] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """SHA-256 over the whole manifest, shard hashes included: names exactly this data set."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically."""
        temporary = folder / f".{MANIFEST_FILE}.{os.getpid()}"
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        temporary.replace(folder / MANIFEST_FILE)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of `folder`.

        Raises:
            UserError: the folder or its manifest is missing, or the manifest is not one of ours.
        """
        make = f"make the bundled digits there: causalfusion data digits {folder}"
        if not folder.is_dir():
            raise UserError(f"data.path {folder} is not a folder of latent shards: it does not exist\n  {make}")
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise UserError(
                f"data.path {folder} has no {MANIFEST_FILE}, which is written last: its shards are incomplete "
                f"or it is another folder\n  {make}"
            )
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise UserError(
                f"{path} is not a shard manifest of version 1: {where}: {fault['msg']}\n  {make}"
            ) from error
        if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
            raise UserError(f"{path} lists a shard twice\n  {make}")
        if sum(shard.rows for shard in manifest.shards) != manifest.rows or any(
            sum(shard.row_groups) != shard.rows for shard in manifest.shards
        ):
            raise UserError(f"{path}: the rows of its shards do not add up to {manifest.rows}\n  {make}")
        return manifest


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
