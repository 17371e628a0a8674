"""Publish the folder of a run to object storage while it is worked with, and bring it back.

The folder on this machine is ahead. Object storage always holds an earlier state of it as a whole. Files go first,
then the journal that names them, then the state that counts on the journal.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path

from ...config.errors import MachineError, UserError
from ...storage.atomic import write_atomically
from ...storage.fence import Fence, Superseded
from ...storage.objects import ObjectStore
from ...storage.run_layout import CHECKPOINTS_FOLDER, JOURNAL_FILE, STATE_FILE

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 2.0
"""Longest time between a change and its publication, unless the journal is so large that this takes long."""
_SHARE = 10
"""Pause after a publication, as a multiple of the time that it took."""
_LAST_SECONDS = 120.0
"""Longest time for the last publication of a launch."""
OUTBOX = "outbox"
_STATE = (f"{OUTBOX}/cursor.json", "config.yaml", "summary.json", STATE_FILE)
"""Files that count on the journal, in the order of their publication."""
_HERE_ALONE = (
    CHECKPOINTS_FOLDER,
    "ray",
    "tune",
    "launch.json",
    f"{OUTBOX}/delivery.lock",
    f"{OUTBOX}/delivery.pid",
)
"""Files and folders that others publish, or that mean nothing on another machine."""


class Publisher:
    """Keep object storage at the state of a run's folder. One process at a time, which holds the run's lock.

    Args:
        root: the run's folder on this machine.
        store: the objects of the run.
        fence: checked before each publication.
        seconds: longest time between a change and its publication.
    """

    def __init__(self, root: Path, store: ObjectStore, fence: Fence, seconds: float = PUBLISH_SECONDS) -> None:
        self.root, self.store, self.fence, self.seconds = root, store, fence, seconds
        self._sent: dict[str, object] = {}
        """Name → what object storage holds of it: bytes, the journal's length, or a file's signature."""
        self._wake, self._over = threading.Event(), threading.Event()
        self._publishing = threading.Lock()
        self._thread: threading.Thread | None = None

    def fetch(self) -> None:
        """Bring the published state here, unless this folder is ahead of it.

        A killed launch may have left a few last lines here. They are kept if they continue what is published.
        """
        there = {info.key for info in self.store.list() if _is_of_state(info.key)}
        journal = self.store.read(JOURNAL_FILE) if JOURNAL_FILE in there else b""
        self._sent = dict.fromkeys(there)
        if STATE_FILE in there and self._is_ahead_of(journal):
            return
        self._clear()
        # The state comes last, as it does in publication: a folder without it holds no run.
        for key in sorted(there, key=lambda key: key == STATE_FILE):
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            content = journal if key == JOURNAL_FILE else self.store.read(key)
            write_atomically(path, content, private=key == STATE_FILE)
            self._sent[key] = len(content) if key == JOURNAL_FILE else content

    def start(self) -> None:
        """Publish in the background from now on."""
        self._over.clear()
        self._thread = threading.Thread(target=self._work, name="publish", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Publish soon."""
        self._wake.set()

    def stop(self) -> None:
        """Publish the last state and stop.

        Raises:
            Superseded: another launch has taken the run over.
            MachineError: object storage does not take it.
        """
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        until = time.monotonic() + _LAST_SECONDS
        while True:
            try:
                return self.publish()
            except (OSError, UserError) as error:
                if time.monotonic() > until:
                    raise MachineError(
                        f"the last state of the run could not be published to {self.store.url}: {error}\n"
                        f"  it lies in {self.root}; give the same command on this machine once that works"
                    ) from error
                time.sleep(1.0)

    def publish(self) -> None:
        """Publish what has changed.

        Raises:
            Superseded: another launch has taken the run over.
            OSError, UserError: object storage does not take it. The next call goes on.
        """
        with self._publishing:
            self.fence.check()
            # Each is read before what it counts on, so that none of it can be missing.
            state = {name: content for name in _STATE if (content := _read(self.root / name)) is not None}
            journal = _read(self.root / JOURNAL_FILE) or b""
            journal = journal[: journal.rfind(b"\n") + 1]
            files = self._files()
            for name, signature in files.items():
                if self._sent.get(name) != signature and self._upload(name):
                    self._sent[name] = signature
            self.fence.check()
            if self._sent.get(JOURNAL_FILE, 0) != len(journal):
                self.store.write(JOURNAL_FILE, journal)
                self._sent[JOURNAL_FILE] = len(journal)
            for name, content in state.items():
                if self._sent.get(name) != content:
                    self.store.write(name, content)
                    self._sent[name] = content
            self._remove_delivered(files)

    def _work(self) -> None:
        warned = False
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self.publish()
                warned = False
            except Superseded:
                return
            except (OSError, UserError) as error:
                if not warned:
                    logger.warning(f"the run's state cannot be published now, training goes on: {error}")
                warned = True
            pause = max(self.seconds, _SHARE * (time.monotonic() - began))
            self._wake.wait(pause)
            self._wake.clear()

    def _upload(self, name: str) -> bool:
        try:
            self.store.upload(self.root / name, name)
        except FileNotFoundError:  # delivered meanwhile
            return False
        return True

    def _files(self) -> dict[str, object]:
        """Return name → signature of the files that nothing but the journal names."""
        found: dict[str, object] = {}
        for folder, folders, names in os.walk(self.root):
            place = Path(folder).relative_to(self.root)
            folders[:] = [name for name in folders if (place / name).as_posix() not in _HERE_ALONE]
            for name in names:
                path = (place / name).as_posix()
                if not name.startswith(".") and path not in (*_STATE, *_HERE_ALONE, JOURNAL_FILE):
                    try:
                        status = (self.root / path).stat()
                    except FileNotFoundError:
                        continue
                    found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found

    def _remove_delivered(self, files: dict[str, object]) -> None:
        """Remove copies of files that MLflow has taken, whose cursor is published."""
        for name in [name for name in self._sent if name.startswith(f"{OUTBOX}/")]:
            if name not in files and name not in _STATE:
                self.store.delete(name)
                del self._sent[name]

    def _is_ahead_of(self, published: bytes) -> bool:
        here = _read(self.root / JOURNAL_FILE)
        if here is None or not (self.root / STATE_FILE).is_file():
            return False
        return len(here) > len(published) and here.startswith(published)

    def _clear(self) -> None:
        for name in (*_STATE, JOURNAL_FILE):
            (self.root / name).unlink(missing_ok=True)
        shutil.rmtree(self.root / OUTBOX, ignore_errors=True)
        self.root.mkdir(parents=True, exist_ok=True)


def _is_of_state(key: str) -> bool:
    """Say whether a launch needs an object: a file of the state, or one that MLflow has not taken yet."""
    return key in (*_STATE, JOURNAL_FILE) or (key.startswith(f"{OUTBOX}/") and key not in _HERE_ALONE)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
