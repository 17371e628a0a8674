"""What makes a checkpoint trustworthy: a manifest, written last, with the size and hash of every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..config.errors import UserError
from ..config.schema import Experiment
from ..data.manifest import sha256_of
from ..storage.atomic import write_atomically

MANIFEST_FILE = "checkpoint.json"
VERSION = 2
"""The version of manifests that this code writes and reads."""


class BadCheckpoint(Exception):
    """A checkpoint is damaged or was never finished; the message names the file and what is wrong with it."""


class _Frozen(BaseModel):
    # A loss or a gradient norm may be NaN or infinite, which plain JSON cannot say.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class FileRecord(_Frozen):
    """One file, as it was written."""

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
    """What a checkpoint is of: where the run stood, and what made it."""

    step: int = Field(ge=0)
    """Optimizer steps done."""
    images_seen: int = Field(ge=0)
    """Images trained on; also the position in the stream of rows."""
    order: int = Field(default=0, ge=0)
    """How many times a roll-back has changed the order of the data."""
    seed: int
    """Every random draw is a function of this and of the step or sample: there is no other state of randomness."""
    world_size: int = Field(ge=1)
    """Ranks that wrote it."""
    zero_stage: int = Field(ge=0, le=3)
    precision: str
    """Arithmetic of the matrix products, as it was chosen: `fp32`, `bf16`, …"""
    config_digest: str
    """`config_digest` of the experiment."""
    data_digest: str
    """Digest of the shards' manifest."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package → version that wrote it."""
    mlflow_run_id: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    """Such as the mean loss since the checkpoint before; retention keeps the best by one of them."""
    grad_norms: list[float] = Field(default_factory=list)
    """Recent gradient norms, oldest first: what the guard against spikes compares with."""
    averages: list[str] = Field(default_factory=list)
    """Names of the averages of the weights that it holds, the main one first."""


class CheckpointManifest(Facts):
    """One complete checkpoint."""

    version: Literal[2] = 2
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    files: dict[FileName, FileRecord] = Field(min_length=1)
    """Path inside the checkpoint → what it must hold. Other files do no harm."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.size for record in self.files.values())


def config_digest(experiment: Experiment) -> str:
    """Return the SHA-256 of the experiment as JSON with sorted keys, which names its configuration."""
    text = json.dumps(experiment.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Return size and hash of every file under `folder` but the manifest, by path inside it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST_FILE]
    with ThreadPoolExecutor(_hashing_threads()) as pool:
        digests = pool.map(sha256_of, paths)
        return {
            path.relative_to(folder).as_posix(): FileRecord(size=path.stat().st_size, sha256=digest)
            for path, digest in zip(paths, digests, strict=True)
        }


def write_manifest(folder: Path, facts: Facts, files: Mapping[str, FileRecord]) -> CheckpointManifest:
    """Write the manifest of files that are all in `folder` already: now the checkpoint is complete.

    Raises:
        ValueError: there are no files, or a name leads out of the folder.
        OSError: it cannot be written.
    """
    manifest = CheckpointManifest(**facts.model_dump(), files=dict(files))
    write_atomically(folder / MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def read(folder: Path) -> CheckpointManifest:
    """Read the manifest of `folder`, without a look at the files it lists.

    Raises:
        BadCheckpoint: there is none, or it cannot be read.
        UserError: another version of this code wrote it.
    """
    path = folder / MANIFEST_FILE
    try:
        tree: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadCheckpoint(f"no {MANIFEST_FILE}, which is written last") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{MANIFEST_FILE} cannot be read: {error}") from error
    version = tree.get("version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{folder} was written by newer code: its manifest has version {version}, this code reads {VERSION}\n"
            f"  go on with the code that wrote it, or start anew with another name=…"
        )
    if isinstance(version, int) and version < VERSION:
        raise UserError(
            f"{folder} was written by an older development version: its manifest has version {version}, this "
            f"code reads {VERSION}\n"
            f"  start anew with another name=…; its weights: causalfusion weights export {folder} FILE"
        )
    try:
        return CheckpointManifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadCheckpoint(f"{MANIFEST_FILE} cannot be read: {_first_fault(error)}") from error


def check(folder: Path, *, hashes: bool = True) -> CheckpointManifest:
    """Return the manifest of `folder` if every file is there with its size and, unless told otherwise, its hash.

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
        # Hashing is most of what resuming a large checkpoint costs; Python lets go of its lock meanwhile.
        with ThreadPoolExecutor(_hashing_threads()) as pool:
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


def _first_fault(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"


def _hashing_threads() -> int:
    return min(8, os.cpu_count() or 1)
