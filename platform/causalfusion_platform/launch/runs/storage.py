"""Where a run is kept: in its folder alone, or on object storage with a copy on this machine.

Whoever works with a run sees a folder in both cases.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Protocol

from ...checkpoint.open import open_checkpoints
from ...checkpoint.storage import CheckpointStorage
from ...config.errors import MachineError
from ...storage.fence import Fence, LaunchToken, NoFence, Superseded
from ...storage.objects import NotThere, ObjectUrl, open_store
from ...storage.run_layout import JOURNAL_FILE, STATE_FILE
from .exit_status import taken_over
from .lock import UnderWay, is_under_way, only_launch, refuse_if_under_way
from .object_lock import ObjectLock
from .publish import Publisher

logger = logging.getLogger(__name__)


class RunStorage(Protocol):
    """Where one run is kept."""

    place: str
    """Its folder or its address, for people."""
    checkpoints: CheckpointStorage
    fence: Fence
    """Fence of whoever holds the lock, beside the one in the folder. It is cheap."""

    def held(self, wait_seconds: float | None) -> AbstractContextManager[None]:
        """Hold the run's lock, with the newest state in the folder on this machine.

        Args:
            wait_seconds: longest wait for another process that holds it. None: a moment.

        Raises:
            UnderWay: another process holds it.
        """

    def look(self) -> None:
        """Bring the newest state into the folder on this machine, for readers without the lock."""

    def begin(self, token: LaunchToken) -> None:
        """Make this the run's newest launch. The lock is held.

        Raises:
            Superseded: another launch has taken the run over.
        """

    def publish(self) -> None:
        """Publish the state in the folder now.

        Raises:
            Superseded: another launch has taken the run over.
            OSError: it cannot be written.
        """

    def changed(self) -> None:
        """Publish the state soon."""

    def is_under_way(self) -> bool:
        """Say whether a process holds the lock. A lost one counts for as long as that is not known."""

    def refuse_if_under_way(self) -> None:
        """Check that no launch is under way.

        Raises:
            UnderWay: one is.
        """


class FolderRun:
    """A run in its folder, which all nodes share."""

    fence: Fence = NoFence()

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root.absolute())
        self.checkpoints = open_checkpoints(root, None)

    def held(self, wait_seconds: float | None) -> AbstractContextManager[None]:
        """Hold the lock of the folder."""
        return only_launch(self.root, wait_seconds)

    def look(self) -> None:
        """The folder is the newest state."""

    def begin(self, token: LaunchToken) -> None:
        """The token lies in the folder."""

    def publish(self) -> None:
        """The folder is public."""

    def changed(self) -> None:
        """The folder is public."""

    def is_under_way(self) -> bool:
        """Ask the lock of the folder."""
        return is_under_way(self.root)

    def refuse_if_under_way(self) -> None:
        """Ask the lock of the folder."""
        refuse_if_under_way(self.root)


class ObjectRun:
    """A run on object storage, with a copy of its state in a folder of this machine.

    Args:
        root: the folder.
        url: the run's address.
    """

    def __init__(self, root: Path, url: ObjectUrl) -> None:
        self.root, self.place, self.store = root, str(url), _opened(url)
        self.checkpoints = open_checkpoints(root, url)
        self.lock = ObjectLock(self.store)
        self.fence = self.lock.known
        self._publisher = Publisher(root, self.store, self.lock)

    @contextmanager
    def held(self, wait_seconds: float | None) -> Iterator[None]:
        """Hold the lock of the folder and the lock on object storage, and publish the folder meanwhile."""
        with only_launch(self.root, wait_seconds), self.lock.held(wait_seconds or 0.0):
            self._publisher.fetch()
            self._publisher.start()
            try:
                yield
            except BaseException:
                try:
                    self._publisher.stop()
                except (Superseded, MachineError) as error:  # the first fault counts
                    logger.warning(str(error))
                raise
            with taken_over(self.root):
                self._publisher.stop()

    def look(self) -> None:
        """Bring the published state here, unless a process of this machine works with the folder."""
        if not self.root.is_dir() and not self._is_there():
            return
        with suppress(UnderWay), only_launch(self.root, 0):
            self._publisher.fetch()

    def begin(self, token: LaunchToken) -> None:
        """Write the launch into the lock."""
        self.lock.begin(token.launch, token.id)

    def publish(self) -> None:
        """Publish the folder now."""
        self._publisher.publish()

    def changed(self) -> None:
        """Publish the folder soon."""
        self._publisher.changed()

    def is_under_way(self) -> bool:
        """Read the lock. A launch of another machine that was lost counts until another one takes its lock over."""
        return is_under_way(self.root) or self.lock.holder() is not None

    def refuse_if_under_way(self) -> None:
        """Ask both locks."""
        refuse_if_under_way(self.root)
        self.lock.refuse_if_alive()

    def _is_there(self) -> bool:
        for name in (STATE_FILE, JOURNAL_FILE):
            with suppress(NotThere):
                self.store.info(name)
                return True
        return False


_opened = cache(open_store)
"""Looking for credentials may take a request, and a list of runs opens many."""


def storage_of(root: Path, url: ObjectUrl | None) -> RunStorage:
    """Return where a run is kept.

    Args:
        root: its folder on this machine.
        url: its address on object storage. None: it has only the folder.
    """
    return FolderRun(root) if url is None else ObjectRun(root, url)
