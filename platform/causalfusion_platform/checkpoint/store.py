"""The checkpoints of one run: a folder each, named by images seen, on storage that every worker shares."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from .manifest import MANIFEST_FILE, CheckpointManifest, read_verified

log = logging.getLogger(__name__)

WEIGHTS_FOLDER = "weights"
"""Folder inside a checkpoint with the EMA weights as safetensors: what people load."""


def checkpoint_folder(root: Path, images_seen: int) -> Path:
    """Return where the checkpoint after `images_seen` images lies."""
    return root / f"images-{images_seen:012d}"


def latest(root: Path) -> tuple[Path, CheckpointManifest] | None:
    """Return the newest complete, verified checkpoint; damaged ones are passed over with a warning."""
    for folder in sorted(root.glob("images-*"), reverse=True):
        manifest = read_verified(folder)
        if manifest is not None:
            return folder, manifest
        log.warning("checkpoint %s is incomplete or damaged; trying the one before it", folder)
    return None


def clear(folder: Path) -> None:
    """Remove what an interrupted save left in `folder`; its manifest goes first."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in sorted(root.glob("images-*"), reverse=True)[keep:]:
        clear(folder)
