"""Where the checkpoints of a run are published: the interface, and a folder that all workers share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..storage.fence import Fence
from ..storage.objects import ObjectUrl
from . import store
from .manifest import CheckpointManifest, Facts, FileRecord
from .parts import PartRecord, parts_folder, read_part, upload
from .store import Retention

OnBad = Callable[[str, str], None]
"""Called with the name of a damaged checkpoint and its fault."""


@dataclass(frozen=True)
class Found:
    """A complete checkpoint."""

    name: str
    """Its place below the folder of checkpoints, such as `images-000000051200`."""
    manifest: CheckpointManifest


class Partial(Protocol):
    """A checkpoint that is being written. It does not count before `complete`."""

    def begin(self) -> None:
        """Make place for it. Every rank calls it first."""

    def put(self, source: Path, stopped: Callable[[], bool]) -> dict[str, FileRecord]:
        """Move the files of a rank's staging folder to storage, and return their sizes and hashes.

        Raises:
            OSError: a file cannot be read or written.
            Abandoned: `stopped` returned True.
        """

    def write_record(self, rank: int, record: PartRecord) -> None:
        """Write the record of a rank, after its files."""

    def read_record(self, rank: int) -> PartRecord | None:
        """Return the record of a rank, or None before it is written."""

    def complete(self, facts: Facts, files: Mapping[str, FileRecord], fence: Fence) -> Path | ObjectUrl:
        """Write the manifest, which makes the checkpoint count, and return its place. All files must be there.

        Raises:
            OSError: storage cannot be written.
            Superseded: another launch has taken the run over.
        """

    def discard(self) -> None:
        """Remove what there is of it."""


class CheckpointStorage(Protocol):
    """Where the checkpoints of one run are published."""

    poll_seconds: float
    """Pause between two looks for the records of other ranks."""
    shared: bool
    """True if every worker sees the same folder. False: each machine downloads the checkpoints that it needs."""

    def partial(self, images_seen: int, writer: str, number: int) -> Partial:
        """Return the checkpoint that a save writes.

        Args:
            images_seen: images that the run has seen.
            writer: name of the attempt, which is the same on all ranks. Each attempt has its own.
            number: counts the saves of the attempt.
        """

    def remove_leftovers(self, writer: str, number: int) -> None:
        """Remove what saves of this attempt with lower numbers left."""

    def clear_partial(self) -> None:
        """Remove what interrupted saves and removals left. No process of the run may write meanwhile."""

    def prune(self, retention: Retention, fence: Fence) -> None:
        """Remove the checkpoints that `retention` does not keep, each manifest first.

        Raises:
            Superseded: another launch has taken the run over.
        """

    def latest(self, on_bad: OnBad, *, set_aside: bool = False) -> Found | None:
        """Return the newest complete checkpoint whose files are whole, or None. Damaged ones are skipped.

        Args:
            on_bad: called with each damaged one.
            set_aside: keep damaged ones apart from then on. Only the process that resumes the run may do so.

        Raises:
            UserError: another version of this code wrote one of them.
        """

    def newest_images(self) -> int:
        """Return the images seen by the newest checkpoint, whose files are not checked. 0 without one."""

    def newest_weights(self) -> Path | ObjectUrl | None:
        """Return the place of the newest checkpoint's weights, which are not checked, or None."""

    def newest_config(self) -> Path | None:
        """Return a folder on this machine with the configuration files of the newest weights, or None."""

    def sizes(self) -> dict[str, int]:
        """Return name → bytes of the complete checkpoints in the order of images."""

    def set_aside(self) -> list[str]:
        """Return the names of damaged checkpoints that are kept apart."""

    def written_stage(self) -> int | None:
        """Return the ZeRO stage that wrote the newest checkpoint whose manifest can be read, or None.

        Raises:
            UserError: another version of this code wrote it.
        """

    def folder_here(self, found: Found) -> Path:
        """Return the folder of a checkpoint on this machine, downloaded and checked if it lies elsewhere.

        All ranks may call it at once.

        Raises:
            BadCheckpoint: it is damaged.
        """

    @contextmanager
    def first_here(self, task: str) -> Iterator[bool]:
        """Let one process at a time do a task for the machine. Yield True to the first, which does it.

        Not for storage that is shared.
        """

    def release(self) -> None:
        """Remove what was downloaded."""


class FolderCheckpoints:
    """Checkpoints in a folder that every worker sees."""

    poll_seconds = 0.05
    shared = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def partial(self, images_seen: int, writer: str, number: int) -> Partial:
        """Return a hidden folder, which gets its name when the manifest is in it."""
        name = f".{store.checkpoint_folder(self.root, images_seen).name}.{writer}-{number}"
        return _PartialFolder(self.root / name)

    def remove_leftovers(self, writer: str, number: int) -> None:
        """Remove hidden folders of this attempt. A late rank may have written on after its save was cancelled."""
        for folder in self.root.glob(f".images-*.{writer}-*"):
            if int(folder.name.rpartition("-")[2]) < number:
                shutil.rmtree(folder, ignore_errors=True)

    def clear_partial(self) -> None:
        """See `store.clear_partial`."""
        store.clear_partial(self.root)

    def prune(self, retention: Retention, fence: Fence) -> None:
        """See `store.prune`."""
        store.prune(self.root, retention, fence)

    def latest(self, on_bad: OnBad, *, set_aside: bool = False) -> Found | None:
        """See `store.latest`."""
        newest = store.latest(self.root, lambda folder, why: on_bad(folder.name, why), set_aside=set_aside)
        return None if newest is None else Found(newest[0].name, newest[1])

    def newest_images(self) -> int:
        """Return the images in the name of the newest one, or 0."""
        newest = store.newest(self.root)
        return int(newest.name.removeprefix("images-")) if newest else 0

    def newest_weights(self) -> Path | None:
        """Return the folder of the newest one's weights, or None."""
        newest = store.newest(self.root)
        return newest / store.WEIGHTS_FOLDER if newest else None

    def newest_config(self) -> Path | None:
        """Return the folder of the newest one's weights, or None."""
        return self.newest_weights()

    def sizes(self) -> dict[str, int]:
        """Return name → bytes of all files in its folder."""
        return {
            path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for path in sorted(self.root.glob("images-*"))
            if path.is_dir()
        }

    def set_aside(self) -> list[str]:
        """Return the names in the folder of damaged checkpoints."""
        return sorted(path.name for path in (self.root / store.BAD_FOLDER).glob("*"))

    def written_stage(self) -> int | None:
        """See `store.written_stage`."""
        return store.written_stage(self.root)

    def folder_here(self, found: Found) -> Path:
        """Return its folder."""
        return self.root / found.name

    @contextmanager
    def first_here(self, task: str) -> Iterator[bool]:
        """Not for storage that is shared."""
        raise NotImplementedError(task)
        yield

    def release(self) -> None:
        """Leave everything as it is."""


@dataclass(frozen=True)
class _PartialFolder:
    folder: Path

    def begin(self) -> None:
        parts_folder(self.folder).mkdir(parents=True, exist_ok=True)

    def put(self, source: Path, stopped: Callable[[], bool]) -> dict[str, FileRecord]:
        return upload(source, self.folder, stopped)

    def write_record(self, rank: int, record: PartRecord) -> None:
        record.write(self.folder, rank)

    def read_record(self, rank: int) -> PartRecord | None:
        return read_part(self.folder, rank)

    def complete(self, facts: Facts, files: Mapping[str, FileRecord], fence: Fence) -> Path:
        shutil.rmtree(parts_folder(self.folder))
        return store.complete(self.folder, facts, files, fence)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
