"""Saving of checkpoints in the background of training.

Each rank writes its files to a staging folder on a fast disk, and training waits for this alone. A thread then
copies them to storage and leaves a record there. Rank 0's thread waits for the records of all ranks and writes
the manifest, which makes the checkpoint count. The threads communicate through storage, because a collective
beside those of the training could deadlock.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..config.errors import UserError
from ..storage.fence import Fence, NoFence, Superseded
from ..storage.held import hold, remove_if_left
from ..storage.objects import ObjectUrl
from ..storage.private import make_private
from .manifest import Facts
from .parts import Abandoned, PartRecord, gather_parts
from .storage import CheckpointStorage, Partial
from .store import Retention

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10
_RUN = re.compile(r"[0-9a-f]{16}")
"""Name of the staging folder of a run."""
_RANK = re.compile(r"rank-\d{5}\..+")
"""Name of a rank's folder inside."""
_OLD_SECONDS = 24 * 3600.0
"""Age of the staging folder of an earlier version, which does not hold it, after which it is left over."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """Result of a save: a complete checkpoint."""

    folder: Path | ObjectUrl
    images_seen: int
    bytes: int
    """Size of all its files."""
    upload_seconds: float
    """Seconds from `submit` to completion, during which training goes on."""


@dataclass(frozen=True)
class Failed:
    """Result of a save that failed. Earlier checkpoints are unchanged."""

    images_seen: int
    reason: str
    superseded: bool = False
    """True if another launch has taken the run over, so that no later save can succeed."""


class Saver:
    """Saving of one rank's checkpoints, one at a time. All ranks make the same calls in the same order."""

    def __init__(
        self,
        storage: CheckpointStorage,
        staging: Path,
        *,
        rank: int,
        world_size: int,
        attempt: str,
        retention: Retention,
        timeout_seconds: float = 600,
        fence: Fence | None = None,
    ) -> None:
        """Create a saver without a save in progress.

        Args:
            storage: where the run's checkpoints are published, the same for all ranks.
            staging: folder of this run on a fast local disk. Ranks of one machine may share it. Those of other runs
                beside it are removed if their processes were killed. The folder above is made for this user alone.
            attempt: a name that is the same on all ranks and new in `storage`. It separates files that a process
                of an earlier attempt still writes.
            retention: the checkpoints to keep after each save.
            timeout_seconds: longest wait of rank 0 for the other ranks' files.
            fence: rank 0 checks it right before a checkpoint is published or removed.
        """
        assert re.fullmatch(r"[A-Za-z0-9_-]+", attempt), attempt
        self.storage, self.rank, self.world_size, self.retention = storage, rank, world_size, retention
        self.attempt, self.timeout_seconds, self.fence = attempt, timeout_seconds, fence or NoFence()
        for left in staging.glob(f"rank-{rank:05d}.*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in staging.parent.glob("*"):
            if left != staging and _RUN.fullmatch(left.name) and remove_if_left(left) is None:
                _remove_if_old(left)
        self._staging = staging / f"rank-{rank:05d}.{attempt}"
        self._held: int | None = None
        self._number, self._images = 0, 0
        self._thread: threading.Thread | None = None
        self._abandoned = threading.Event()
        self._outcomes: deque[SavedCheckpoint | Failed] = deque()

    def begin(self, images_seen: int) -> Path:
        """Return this rank's empty staging folder, after the save in progress has ended.

        Raises:
            OSError: the folder cannot be made. Call `fail`.
        """
        self._join()
        # Counted first, so that ranks agree on the number even if one cannot make its folder.
        self._number, self._images = self._number + 1, images_seen
        make_private(self._staging.parent.parent)
        if self._held is None:
            self._held = hold(self._staging.parent)
            weakref.finalize(self, os.close, self._held)
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(parents=True)
        return self._staging

    def submit(self, facts: Facts) -> None:
        """Start the save of the staging folder and return at once. Rank 0's facts go into the manifest."""
        self._start(facts, None)

    def fail(self, reason: str) -> None:
        """Report a failed staging folder, in place of `submit`, so that no rank waits for it."""
        self._start(None, reason)

    def poll(self) -> list[SavedCheckpoint | Failed]:
        """Return the results of saves since the last call. Ranks other than 0 return only their own failures."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def wait(self) -> list[SavedCheckpoint | Failed]:
        """Return the result of `poll` after the save in progress has ended."""
        self._join()
        return self.poll()

    def abandon(self) -> None:
        """Cancel the save in progress, such as after the loss of another rank. The saver cannot be used again."""
        self._abandoned.set()
        if self._thread is not None:
            self._thread.join(timeout=1)  # one that hangs in a dead file system is left behind
        shutil.rmtree(self._staging, ignore_errors=True)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, facts: Facts | None, fault: str | None) -> None:
        assert self._thread is None, "begin() comes before submit() or fail()"
        partial = self.storage.partial(self._images, self.attempt, self._number)
        self._thread = threading.Thread(target=self._save, args=(partial, self._images, facts, fault), daemon=True)
        self._thread.start()

    def _save(self, partial: Partial, images: int, facts: Facts | None, fault: str | None) -> None:
        started = time.perf_counter()
        try:
            if self.rank == 0:
                self.fence.check()
                # A late rank may have written on after its save was cancelled.
                self.storage.remove_leftovers(self.attempt, self._number)
            own = self._put_part(partial, fault)
            if self.rank > 0:
                if own.error:
                    self._outcomes.append(Failed(images, own.error))
                return
            files = gather_parts(partial.read_record, self.world_size, self.timeout_seconds, self._pause)
            assert facts is not None  # else this rank's own part holds an error
            folder = partial.complete(facts, files, self.fence)
            size = sum(record.size for record in files.values())
            self._outcomes.append(SavedCheckpoint(folder, images, size, time.perf_counter() - started))
        except Exception as error:
            # Training goes on after any failure, because the next save may work.
            self._outcomes.append(Failed(images, _reason(error), superseded=self._is_superseded(error)))
            if self.rank == 0:
                with suppress(OSError):
                    partial.discard()
            return
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
        try:
            self.storage.prune(self.retention, self.fence)
        except Superseded:
            return  # the next save reports it
        except (OSError, UserError) as error:
            log.warning("old checkpoints cannot be removed: %s", error)

    def _is_superseded(self, error: Exception) -> bool:
        """Say whether a save failed because of a newer launch, which removes what older ones were writing."""
        if isinstance(error, Superseded) or self.rank > 0:
            return isinstance(error, Superseded)
        try:
            self.fence.check()
        except Superseded:
            return True
        except OSError:
            return False
        return False

    def _put_part(self, partial: Partial, fault: str | None) -> PartRecord:
        self._patiently(partial.begin)
        record = PartRecord(error=fault)
        if fault is None:
            try:
                record = PartRecord(files=partial.put(self._staging, self._abandoned.is_set))
            except (OSError, UserError) as error:
                record = PartRecord(error=_reason(error))
        self._patiently(lambda: partial.write_record(self.rank, record))
        return record

    def _patiently(self, write: Callable[[], None]) -> None:
        # A full disk has room again after all ranks have removed their copied files.
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or time.monotonic() > until:
                    raise
            self._pause(0.25)

    def _pause(self, seconds: float | None = None) -> None:
        if self._abandoned.wait(self.storage.poll_seconds if seconds is None else seconds):
            raise Abandoned


def _remove_if_old(folder: Path) -> None:
    try:
        if not all(_RANK.fullmatch(path.name) for path in folder.iterdir()):
            return  # a folder of something else
        newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:  # its process is at work
        return
    if time.time() - newest > _OLD_SECONDS:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception) -> str:
    if isinstance(error, Abandoned):
        return "given up"
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__
