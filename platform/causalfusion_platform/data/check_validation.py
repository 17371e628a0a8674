"""Check of the shards of validation against those of training, before anything is started."""

from __future__ import annotations

import logging
from pathlib import Path

from ..config.commands import command
from ..config.errors import UserError
from ..config.schema import Experiment
from .manifest import Manifest
from .mnist import KIND as MNIST
from .mnist import mnist_command
from .overlap import Overlap, ShardsOf, shared_latents, shared_rows
from .split_digits import digits_command, source_of
from .validate import CheckedShards, open_shards

logger = logging.getLogger(__name__)

_NAMED = 3


def check_validation(experiment: Experiment, shards: CheckedShards, *, classes: bool = True) -> CheckedShards:
    """Check that `data.validation` is a split of its own that fits the shards of training. Return its shards.

    Rows of one source in both are refused. So are rows with the same latents, above `data.max_overlap`. Of large
    folders a sample is compared (`overlap.shared_latents`).

    Args:
        experiment: its `data` names both folders.
        shards: those of training.
        classes: also compare the classes.

    Raises:
        UserError: it is not given, cannot be opened, is marked `train`, is of another autoencoder, shape or
            classes, or shares rows with training.
    """
    data = experiment.data
    if data.validation is None:
        raise UserError(
            f"task={experiment.task} needs images that no training sees, but data.validation is not given\n"
            f"  set data.validation=FOLDER, such as shards of: "
            f"{command('data', 'encode', 'IMAGES', 'FOLDER', '--vae', 'VAE', '--split', 'val')}\n"
            f"  the bundled digits have a part for it: data.prepare=split data.path=shards/digits-split "
            f"data.validation=shards/digits-split-validation"
        )
    return check_held_out(experiment, shards, data.validation, "data.validation", classes=classes)


def check_held_out(
    experiment: Experiment, shards: CheckedShards, folder: Path, key: str, *, classes: bool = True
) -> CheckedShards:
    """Check a folder of held-out shards as `check_validation` does. Return its shards.

    Args:
        experiment: see there.
        shards: those of training.
        folder: the folder.
        key: setting that names it, for messages.
        classes: see there.

    Raises:
        UserError: see there.
    """
    try:
        found = open_shards(folder, hashes=experiment.data.verify == "hash")
        _check_split(found)
        _check_kind(shards, found, classes=classes)
        _check_overlap(experiment, shards, found, key)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    return found


def _check_split(found: CheckedShards) -> None:
    manifest = found.manifest
    if manifest.split != "train":
        return
    marked = "of version 2, which records no split and counts as train" if manifest.version == 2 else "marked train"
    if source_of(manifest) is not None:
        remedy = f"write both parts anew: {digits_command(found.folder, manifest)}"
    elif manifest.source.kind == MNIST:
        remedy = f"write both parts anew: {mnist_command(found.folder, manifest)}"
    else:
        remedy = "mark them by the command that encoded them, with --split val: finished shards are kept"
    raise UserError(f"the shards in {found.folder} are {marked}\n  name shards of val or test, or {remedy}")


def _check_kind(shards: CheckedShards, found: CheckedShards, *, classes: bool) -> None:
    train, validation = shards.manifest, found.manifest
    facts = [
        ("autoencoder", str(train.autoencoder), str(validation.autoencoder)),
        ("shape", "×".join(map(str, train.shape)), "×".join(map(str, validation.shape))),
    ]
    if classes and train.class_names != validation.class_names:
        facts.append(("classes", *_classes(train, validation)))
    for what, there, here in facts:
        if there != here:
            raise UserError(
                f"{what} of the shards in {found.folder}: {here}, but of those in "
                f"{shards.folder}: {there}\n  encode both with the same settings, or name another folder"
            )


def _classes(train: Manifest, validation: Manifest) -> tuple[str, str]:
    """Return the number of classes of both, and the first name that differs."""
    names, others = train.class_names, validation.class_names
    place = next((at for at, pair in enumerate(zip(names, others, strict=False)) if pair[0] != pair[1]), None)

    def text(of: list[str]) -> str:
        return f"{len(of):,}" + ("" if place is None else f", number {place} is {of[place]!r}")

    return text(names), text(others)


def _check_overlap(experiment: Experiment, shards: CheckedShards, found: CheckedShards, key: str) -> None:
    train, validation = ShardsOf(shards.folder, shards.usable), ShardsOf(found.folder, found.usable)
    rows = shared_rows(train, validation)
    if rows is not None and rows.keys:
        raise UserError(
            f"{_counted(rows, found)} are rows of {shards.folder} too: {_named(rows)}\n"
            f"  name shards of images that no training sees"
        )
    latents = shared_latents(train, validation)
    if not latents.keys:
        return
    share = len(latents.keys) / latents.compared / latents.of_training
    said = f"{_counted(latents, found)} have the latents of rows in {shards.folder}: {_named(latents)}"
    if share > experiment.data.max_overlap:
        enough = f"{share + 5e-4:.3f}"
        allow = f", or allow such a share: data.max_overlap={enough}" if float(enough) < 1 else ""
        raise UserError(f"{said}\n  name shards of images that no training sees{allow}")
    logger.warning(f"{key}: {said}. data.max_overlap={experiment.data.max_overlap:g} allows it")


def _counted(overlap: Overlap, found: CheckedShards) -> str:
    part = "" if overlap.of_training == 1 else f", compared with {overlap.of_training:.1%} of training,"
    return f"{len(overlap.keys):,} of {overlap.compared:,} rows in {found.folder}{part}"


def _named(overlap: Overlap) -> str:
    return ", ".join(overlap.keys[:_NAMED]) + (", …" if len(overlap.keys) > _NAMED else "")
