"""Checkpoints for tests: small ones, with a manifest and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from causalfusion import PRESETS, build_model, save_weights
from causalfusion_platform.checkpoint.manifest import MANIFEST_FILE, Facts, FileRecord, write_manifest
from causalfusion_platform.checkpoint.store import checkpoint_folder
from causalfusion_platform.data.manifest import sha256_of


def facts(images: int, **changes: Any) -> Facts:
    """Return what a manifest says of a checkpoint after so many images."""
    plain = {
        "step": images // 64,
        "images_seen": images,
        "seed": 0,
        "world_size": 1,
        "zero_stage": 1,
        "precision": "fp32",
        "config_digest": "c" * 64,
        "data_digest": "d" * 64,
    }
    return Facts.model_validate(plain | changes)


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Return size and hash of every file under a folder except the manifest, by path inside it."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(size=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }


def put_checkpoint(root: Path, images: int, content: str | None = None, **changes: Any) -> Path:
    """Write a complete checkpoint with one file, and return its folder."""
    folder = checkpoint_folder(root, images)
    (folder / "engine").mkdir(parents=True)
    (folder / "engine/state").write_text(content or f"state after {images}")
    write_manifest(folder, facts(images, **changes), hash_files(folder))
    return folder


def put_weights(run_dir: Path, images: int, seed: int) -> Path:
    """Write a run's checkpoint with the weights of a new tiny model; return the folder of the weights."""
    folder = checkpoint_folder(run_dir / "checkpoints", images)
    torch.manual_seed(seed)
    save_weights(folder / "weights", PRESETS["tiny"], build_model(PRESETS["tiny"]).state_dict())
    write_manifest(folder, facts(images), hash_files(folder))
    return folder / "weights"
