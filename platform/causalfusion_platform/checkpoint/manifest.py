"""Manifest of a checkpoint, written last, with the size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..config.commands import command
from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.manifest import sha256_of
from ..storage.atomic import write_atomically
from ..storage.json_file import Damaged, first_fault, read_bounded

MANIFEST_FILE = "checkpoint.json"
VERSION = 2
"""Version of manifests that this code writes and reads."""


_LARGEST = 64 << 20
"""Bytes of a manifest, which lists a file of each rank, above which it is refused."""
_TREE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class BadCheckpoint(Exception):
    """A checkpoint is damaged or incomplete. The message names the file and its fault."""


class _Frozen(BaseModel):
    # A loss or a gradient norm may be NaN or infinite, which plain JSON does not represent.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class FileRecord(_Frozen):
    """Size and hash of one file as written."""

    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name in (".", MANIFEST_FILE):
        raise ValueError(f"{name!r} is not the name of a file inside a checkpoint")
    return name


FileName = Annotated[str, AfterValidator(_inside)]
"""Path of a file inside a checkpoint, with forward slashes."""


class Facts(_Frozen):
    """State of the run at a checkpoint, and the configuration, data and versions that made it."""

    step: int = Field(ge=0)
    """Optimizer steps done."""
    images_seen: int = Field(ge=0)
    """Images trained on. It is also the position in the stream of rows."""
    order: int = Field(default=0, ge=0)
    """Number of times a roll-back has changed the order of the data."""
    seed: int
    """Seed of the run. It is the only random state: every draw is a function of seed, step and sample."""
    world_size: int = Field(ge=1)
    """Ranks that wrote it."""
    zero_stage: int = Field(ge=0, le=3)
    precision: str
    """Chosen arithmetic of the matrix products: `fp32`, `bf16`, …"""
    config_digest: str
    """`config_digest` of the attempt's experiment, with the workers and the ZeRO stage that were chosen for it."""
    data_digest: str
    """Digest of the shards' manifest."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package → version at the time of writing."""
    mlflow_run_id: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    """Metrics such as the mean loss since the last checkpoint. Retention keeps the best by one of them."""
    grad_norms: list[float] = Field(default_factory=list)
    """Recent gradient norms, oldest first, for the guard against spikes."""
    averages: list[str] = Field(default_factory=list)
    """Names of the stored averages of the weights, the main one first."""


class CheckpointManifest(Facts):
    """One complete checkpoint."""

    version: Literal[2] = 2
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    files: dict[FileName, FileRecord] = Field(min_length=1)
    """Path inside the checkpoint → size and hash. Other files are ignored."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.size for record in self.files.values())


def config_digest(experiment: Experiment) -> str:
    """Return the SHA-256 of the experiment as JSON with sorted keys."""
    text = json.dumps(experiment.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, facts: Facts, files: Mapping[str, FileRecord]) -> CheckpointManifest:
    """Write the manifest, which completes the checkpoint. All files must be in `folder` already.

    Raises:
        ValueError: `files` is empty, or a name leads out of the folder.
        OSError: the manifest cannot be written.
    """
    manifest = CheckpointManifest(**facts.model_dump(), files=dict(files))
    write_atomically(folder / MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def read(folder: Path) -> CheckpointManifest:
    """Read the manifest of `folder` without checking the files that it lists.

    Raises:
        BadCheckpoint: the manifest is missing or cannot be read.
        UserError: another version of this code wrote it.
    """
    try:
        content = read_bounded(folder / MANIFEST_FILE, _LARGEST)
    except FileNotFoundError:
        raise BadCheckpoint(f"no {MANIFEST_FILE}, which is written last") from None
    except Damaged as error:
        raise BadCheckpoint(f"{MANIFEST_FILE} cannot be read: {error.reason}") from error
    return parse(content, folder)


def parse(content: bytes, place: object) -> CheckpointManifest:
    """Return the manifest of a checkpoint from its JSON.

    Args:
        content: the file's bytes.
        place: folder or address of the checkpoint, for messages.

    Raises:
        BadCheckpoint: it is not a manifest.
        UserError: another version of this code wrote it.
    """
    try:
        version = _TREE.validate_json(content).get("version")
        if isinstance(version, int) and version > VERSION:
            raise UserError(
                f"{place} was written by newer code: its manifest has version {version}, this code reads "
                f"{VERSION}\n"
                f"  go on with the code that wrote it, or start anew with another name=…"
            )
        if isinstance(version, int) and version < VERSION:
            raise UserError(
                f"{place} was written by an older development version: its manifest has version {version}, this "
                f"code reads {VERSION}\n"
                f"  start anew with another name=…; its weights: {command('weights', 'export', place, 'FILE')}"
            )
        return CheckpointManifest.model_validate_json(content)
    except ValidationError as error:
        raise BadCheckpoint(f"{MANIFEST_FILE} cannot be read: {first_fault(error)}") from error


def check(folder: Path, *, hashes: bool = True) -> CheckpointManifest:
    """Return the manifest of `folder` after a check of every file's size and, with `hashes`, of its SHA-256.

    Raises:
        BadCheckpoint: the checkpoint is incomplete or damaged.
        UserError: another version of this code wrote it.
    """
    manifest = read(folder)
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BadCheckpoint(f"{name} is missing")
        if (size := path.stat().st_size) != record.size:
            raise BadCheckpoint(f"{name} has {size:,} of {record.size:,} bytes")
    if hashes:
        # Hashing takes most of the time of resuming a large checkpoint, and it releases Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            faults = pool.map(lambda name: _hash_fault(folder / name, manifest.files[name].sha256), manifest.files)
            for name, fault in zip(manifest.files, faults, strict=True):
                if fault:
                    raise BadCheckpoint(f"{name} {fault}")
    return manifest


def _hash_fault(path: Path, wanted: str) -> str | None:
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == wanted else f"has changed: its SHA-256 is {found[:12]}…, not {wanted[:12]}…"
