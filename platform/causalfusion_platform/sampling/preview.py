"""Decode and draw images of a folder of latent shards."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ..config.errors import UserError
from ..data.autoencoder import Encoder, Identity, check_autoencoder, open_encoder
from ..data.classes import Classes, pick_rows, read_rows
from ..data.manifest import Manifest
from .grid import sample_grid

_MOST_CLASSES = 10
_SMALLEST, _LARGEST = 48, 128


def open_decoder(manifest: Manifest, vae: str | None, device: str) -> Encoder | None:
    """Return the autoencoder that made a data set's latents. None: it is needed and was not named.

    Args:
        vae: as `open_encoder` takes it. Not needed where latents are pixels.

    Raises:
        UserError: it differs from the manifest's, or is missing.
    """
    made = manifest.autoencoder
    if vae is None:
        return Identity(manifest.shape[0]) if made.name == "identity" else None
    given = open_encoder(vae, device)
    check_autoencoder(made, given, vae)
    return given


def write_preview(
    folder: Path,
    manifest: Manifest,
    classes: Classes,
    decoder: Encoder,
    out: Path,
    *,
    num: int,
    seed: int = 0,
) -> int:
    """Write a PNG with a row per class, and return how many of the data set's images it shows.

    Where the shards hold mirrored images, each stands right of its original.

    Args:
        decoder: the autoencoder that made the latents.
        num: images to show, shared among up to ten classes.
        seed: seed of their choice.

    Raises:
        UserError: a shard is damaged, or the file cannot be written.
    """
    shown = min(_MOST_CLASSES, num, int((classes.counts > 0).sum()))
    rows = pick_rows(classes, seed, max_classes=shown, per_class=max(num // shown, 1))
    picked = read_rows(folder, manifest, rows)
    views = [picked.mean] if picked.mean_flip is None else [picked.mean, picked.mean_flip]
    images = torch.stack([decoder.decode(view) for view in views], 1).flatten(0, 1)
    side = images.shape[-1]
    if side > _LARGEST:
        images = F.interpolate(images, size=(_LARGEST, _LARGEST), mode="bicubic", antialias=True)
    labels = picked.labels.repeat_interleave(len(views))
    grid = sample_grid(
        images,
        labels,
        manifest.class_names,
        columns=int(torch.bincount(labels).max()),
        cell=min(max(side, _SMALLEST), _LARGEST),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        grid.save(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    return len(rows)
