"""Checkpoints of one run: one folder each, named by images seen, on storage that every worker shares.

* `root/images-000000051200/` is complete. It got this name after its manifest was written.
* `root/.images-000000051200.<attempt>/` is being written or removed, or was left by a stopped process.
* `root/bad/images-000000051200/` was found damaged and set aside. Its `reason.txt` says why.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from ..config.errors import UserError
from ..storage.fence import Fence, NoFence
from .manifest import (
    MANIFEST_FILE,
    BadCheckpoint,
    CheckpointManifest,
    Facts,
    FileRecord,
    check,
    read,
    write_manifest,
)
from .parts import sync_folder

log = logging.getLogger(__name__)

WEIGHTS_FOLDER = "weights"
"""Folder inside a checkpoint with the EMA weights as safetensors, for use outside training."""
AVERAGES_FOLDER = "averages"
"""Folder inside a checkpoint with the other averages, each in a folder named after its profile."""
BAD_FOLDER = "bad"
REASON_FILE = "reason.txt"
_NAME = re.compile(r"images-(\d{12,})")
_REMOVED = ".removed"
"""End of the name of a folder that is being removed."""


@dataclass(frozen=True)
class Retention:
    """Rule for the checkpoints to keep. The newest is always kept."""

    last: int
    """Number of newest checkpoints."""
    best: int = 0
    """Number of checkpoints with the lowest `metric`."""
    metric: str = "loss"
    """Key of the manifest's metrics."""
    every_images: int | None = None
    """Interval in images: the first checkpoint at or after each multiple is kept permanently."""

    def __post_init__(self) -> None:
        if self.last < 1 or self.best < 0 or (self.every_images is not None and self.every_images < 1):
            raise ValueError(f"{self} keeps too little: last ≥ 1, best ≥ 0, every_images ≥ 1")


def checkpoint_name(images_seen: int) -> str:
    """Return the name of the checkpoint after `images_seen` images."""
    return f"images-{images_seen:012d}"


def checkpoint_folder(root: Path, images_seen: int) -> Path:
    """Return the folder of the checkpoint after `images_seen` images."""
    return root / checkpoint_name(images_seen)


def latest(
    root: Path, on_bad: Callable[[Path, str], None] | None = None, *, set_aside: bool = False
) -> tuple[Path, CheckpointManifest] | None:
    """Return the newest complete, verified checkpoint, or None. Damaged ones are skipped.

    Checkpoints after a roll-back, with a changed data order, count as newer than all before it, regardless of
    images seen.

    Args:
        root: folder of the run's checkpoints.
        on_bad: called with each damaged checkpoint and its fault. None logs a warning.
        set_aside: move damaged ones to `root/bad`. Only the process that resumes the run may do so.

    Raises:
        UserError: another version of this code wrote one of them.
    """
    for folder in _newest_first(root):
        try:
            return folder, check(folder)
        except BadCheckpoint as bad:
            if not folder.is_dir():  # an older launch, which is still alive, has removed it meanwhile
                continue
            if on_bad is None:
                log.warning("checkpoint %s is passed over: %s", folder, bad)
            else:
                on_bad(folder, str(bad))
            if set_aside:
                with suppress(FileNotFoundError):
                    move_aside(folder, str(bad))
    return None


def newest(root: Path) -> Path | None:
    """Return the newest checkpoint without checking its files, or None."""
    return next(iter(_newest_first(root)), None)


def written_stage(root: Path) -> int | None:
    """Return the ZeRO stage that wrote the newest checkpoint whose manifest can be read, or None without one.

    Raises:
        UserError: another version of this code wrote it.
    """
    for folder in _newest_first(root):
        with suppress(BadCheckpoint):
            return read(folder).zero_stage
    return None


def complete(partial: Path, facts: Facts, files: Mapping[str, FileRecord], fence: Fence | None = None) -> Path:
    """Complete a partial folder that holds all files: write its manifest, rename it, and return its new path.

    An existing good copy of the same checkpoint is kept. An existing damaged one, or one of another data order, is
    set aside.

    A newer launch writes its token first, then removes partial folders, then reads the checkpoints. So after a good
    check the folder is renamed before the newer launch reads, or there is nothing left to rename.

    Args:
        partial: the folder, `.images-…` beside the checkpoints.
        facts: state of the run.
        files: the files of all ranks.
        fence: checked right before anything of the run is changed.

    Raises:
        OSError: storage cannot be written, or a newer launch has removed the partial folder.
        Superseded: another launch has taken the run over.
        UserError: another version of this code wrote the existing checkpoint.
    """
    fence = fence or NoFence()
    write_manifest(partial, facts, files)
    sync_folder(partial)
    folder = checkpoint_folder(partial.parent, facts.images_seen)
    aside = None
    if folder.exists():
        try:
            there = check(folder)
        except BadCheckpoint as bad:
            reason = str(bad)
        else:
            if there.order == facts.order:
                clear(partial)
                return folder
            reason = f"replaced after a roll-back: the order of its data was number {there.order}"
        fence.check()
        aside = move_aside(folder, reason)
    try:
        fence.check()
        partial.rename(folder)
    except BaseException:
        if aside is not None:  # it may be of a newer launch, which began after the first check
            _put_back(aside, folder)
        raise
    sync_folder(folder.parent)
    return folder


def _put_back(aside: Path, folder: Path) -> None:
    (aside / REASON_FILE).unlink(missing_ok=True)
    with suppress(OSError):  # there is another one at its place by now
        aside.rename(folder)


def move_aside(folder: Path, reason: str) -> Path:
    """Move a checkpoint to `bad` beside it, with the reason in a file, and return its new path."""
    place = folder.parent / BAD_FOLDER
    place.mkdir(exist_ok=True)
    target, number = place / folder.name, 1
    while target.exists():
        target, number = place / f"{folder.name}.{number}", number + 1
    folder.rename(target)
    (target / REASON_FILE).write_text(
        f"{datetime.now(UTC).isoformat(timespec='seconds')} {reason}\n", encoding="utf-8"
    )
    return target


def clear(folder: Path) -> None:
    """Remove a checkpoint or its remains. An interrupted removal leaves nothing that looks complete."""
    if not folder.is_dir():
        return
    if not folder.name.startswith("."):
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
    if not folder.name.endswith(_REMOVED):
        # Renamed at once, so that a process that still writes into a partial folder cannot complete it any more.
        hidden = folder.with_name(f".{folder.name.lstrip('.')}{_REMOVED}")
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            folder = folder.rename(hidden)
        except FileNotFoundError:  # it was completed or removed meanwhile
            return
    shutil.rmtree(folder, ignore_errors=True)


def clear_partial(root: Path) -> list[Path]:
    """Remove what interrupted saves and removals left under `root`, and return its paths.

    A launch calls it at its start. An older launch that still saves gets an error.
    """
    leftovers = [path for path in sorted(root.glob(".images-*")) if path.is_dir()]
    for folder in leftovers:
        clear(folder)
    return leftovers


def prune(root: Path, retention: Retention, fence: Fence | None = None) -> list[Path]:
    """Remove the checkpoints that `retention` does not keep, and return their paths.

    Only file sizes are checked. Checkpoints that are visibly damaged or of another version are neither counted
    nor removed.

    Raises:
        Superseded: another launch has taken the run over, by the `fence`. It decides what to keep.
    """
    found: list[tuple[Path, CheckpointManifest]] = []
    for folder in _folders(root):
        try:
            found.append((folder, check(folder, hashes=False)))
        except (BadCheckpoint, UserError, OSError):
            continue
    found.sort(key=lambda item: (item[1].order, item[1].images_seen), reverse=True)
    keep = kept(found, retention)
    removed = [folder for folder, _ in found if folder not in keep]
    for folder in removed:
        if fence is not None:
            fence.check()
        clear(folder)
    return removed


_Place = TypeVar("_Place", Path, str)


def kept(found: Sequence[tuple[_Place, CheckpointManifest]], retention: Retention) -> set[_Place]:
    """Return the places of the checkpoints that `retention` keeps, of all whole ones."""
    newest = sorted(found, key=lambda item: (item[1].order, item[1].images_seen, item[1].created), reverse=True)
    keep = {place for place, _ in newest[: retention.last]}
    keep |= {place for place, _ in _best(newest, retention.metric)[: retention.best]}
    if retention.every_images is not None:
        firsts: dict[int, _Place] = {}
        for place, manifest in sorted(newest, key=lambda item: item[1].images_seen):
            firsts.setdefault(manifest.images_seen // retention.every_images, place)
        keep |= {place for multiple, place in firsts.items() if multiple > 0}
    return keep


def _best(found: list[tuple[_Place, CheckpointManifest]], metric: str) -> list[tuple[_Place, CheckpointManifest]]:
    # Sorting is stable, so the newer of two equal ones comes first.
    known = [item for item in found if math.isfinite(item[1].metrics.get(metric, math.nan))]
    return sorted(known, key=lambda item: item[1].metrics[metric])


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]


def _newest_first(root: Path) -> list[Path]:
    def age(folder: Path) -> tuple[float, int]:
        images = int(folder.name.removeprefix("images-"))
        try:
            return read(folder).order, images
        except BadCheckpoint:
            return math.inf, images  # first, so that it is checked and reported

    return sorted(_folders(root), key=age, reverse=True)
