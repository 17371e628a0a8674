"""What makes a checkpoint trustworthy: a manifest, written last, with the hash of every file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..data.manifest import sha256_of

MANIFEST_FILE = "checkpoint.json"


class CheckpointManifest(BaseModel):
    """One complete checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    step: int
    """Optimizer steps done."""
    images_seen: int
    """Images trained on; the position in the data stream."""
    world_size: int
    zero_stage: int
    data_digest: str
    files: dict[str, str]
    """Path inside the checkpoint → SHA-256."""


def write_manifest(
    folder: Path, *, step: int, images_seen: int, world_size: int, zero_stage: int, data_digest: str
) -> None:
    """Hash every file of `folder` and write the manifest; only then is the checkpoint complete."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    manifest = CheckpointManifest(
        step=step,
        images_seen=images_seen,
        world_size=world_size,
        zero_stage=zero_stage,
        data_digest=data_digest,
        files=files,
    )
    temporary = folder / f".{MANIFEST_FILE}.{os.getpid()}"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    temporary.replace(folder / MANIFEST_FILE)


def read_verified(folder: Path) -> CheckpointManifest | None:
    """Return the manifest of `folder` if the checkpoint is complete and every hash matches, else None."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        manifest = CheckpointManifest.model_validate_json(path.read_bytes())
    except ValueError:
        return None
    for name, digest in manifest.files.items():
        file = folder / name
        if not file.is_file() or sha256_of(file) != digest:
            return None
    return manifest
