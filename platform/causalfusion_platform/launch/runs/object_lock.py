"""One launch of a run at a time, on object storage: an object that its holder writes again every few seconds.

A launch takes a lock over whose tag has not changed for long enough, by the reader's own clock. Clocks of two
machines are never compared. All writes are conditional, so that of two launches one gets it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import ValidationError

from ...config.commands import command
from ...config.errors import UserError
from ...storage.fence import Fence, Superseded
from ...storage.object_fence import LOCK_OBJECT, Holder
from ...storage.objects import Conflict, NotThere, ObjectStore
from .lock import UnderWay

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""Interval at which a holder writes its lock again."""
EXPIRY_SECONDS = 30.0
"""Seconds without a change after which a lock is left over."""


class ObjectLock:
    """Lock of one run. It is also the fence of the launch that holds it: see `check`.

    Args:
        store: the objects of the run.
        beat_seconds: interval at which the holder writes.
        expiry_seconds: time without a change after which another launch takes the lock over.
    """

    def __init__(
        self, store: ObjectStore, *, beat_seconds: float = BEAT_SECONDS, expiry_seconds: float = EXPIRY_SECONDS
    ) -> None:
        self.store, self.beat_seconds, self.expiry_seconds = store, beat_seconds, expiry_seconds
        self._own: Holder | None = None
        self._tag = ""
        self._written = 0.0
        self._lost: Superseded | None = None
        self.known: Fence = _KnownLoss(self)
        """Fence that never asks and never doubts: for writes into the folder on this machine."""
        self._writing, self._over = threading.Lock(), threading.Event()
        self._seen: tuple[str, float] | None = None
        """Tag of another's lock, and when it was seen first."""
        self._lives = False
        """True if another's lock was seen to change."""

    @contextmanager
    def held(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the lock.

        Args:
            wait_seconds: longest wait for a launch that lives.

        Raises:
            UnderWay: another launch holds it, and lives.
        """
        self._take(wait_seconds)
        self._over.clear()
        thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            if self._lost is None:
                with suppress(Conflict, OSError, UserError):  # it expires
                    self._write(released=True)
            self._own = None

    def begin(self, launch: int, launch_id: str) -> None:
        """Write the launch into the lock that is held.

        Raises:
            Superseded: another launch has taken the lock over.
        """
        try:
            self._write(launch=launch, id=launch_id)
        except Conflict:
            self._look_who()
            self.check()

    def check(self) -> None:
        """Check that the lock is held, without asking object storage.

        Raises:
            Superseded: another launch has taken it over.
            OSError: it could not be written for so long that this is not known.
        """
        self.known.check()
        if (silent := time.monotonic() - self._written) > self.expiry_seconds:
            raise OSError(f"the lock {self.store.url / LOCK_OBJECT} could not be written for {silent:.0f} s")

    def refuse_if_alive(self) -> None:
        """Check that no other launch holds the lock. One that holds it has to show a sign of life.

        Raises:
            UnderWay: one does.
        """
        while True:
            holder, tag = self._read()
            if self._is_free(holder, tag):
                return
            if self._lives:
                raise self._refusal(holder)
            time.sleep(self._poll_seconds)

    def holder(self) -> Holder | None:
        """Return who holds the lock by its content, or None. A lost launch may have left it."""
        holder, _ = self._read()
        return None if holder is None or holder.released or holder.is_dead() else holder

    @property
    def _poll_seconds(self) -> float:
        return min(1.0, self.beat_seconds / 5)

    def _take(self, wait_seconds: float) -> None:
        own, until = Holder.new(), time.monotonic() + wait_seconds
        while True:
            holder, tag = self._read()
            if self._is_free(holder, tag):
                with suppress(Conflict):  # another launch was faster
                    self._tag = self.store.write_if(LOCK_OBJECT, own.model_dump_json().encode(), tag)
                    self._own, self._written, self._lost = own, time.monotonic(), None
                    self._check_conditions()
                    return
            elif self._lives and time.monotonic() >= until:
                raise self._refusal(holder)
            time.sleep(self._poll_seconds)

    def _check_conditions(self) -> None:
        """Check that the store knows conditional puts, by one that it has to refuse.

        Raises:
            UserError: it ignores the condition, so that two launches could hold one lock.
        """
        with suppress(Conflict):
            self.store.write_if(LOCK_OBJECT, b"{}", None)
            raise UserError(
                f"{self.store.url}: this store ignores the condition of a put (If-None-Match), which keeps two "
                f"launches of one run apart\n"
                f"  use AWS, or a version of another store that knows it; or a folder: runs=FOLDER"
            )

    def _is_free(self, holder: Holder | None, tag: str | None) -> bool:
        """Say whether the lock may be taken, and note whether another's changes."""
        if tag is None or (holder is not None and (holder.released or holder.is_dead())):
            return True
        now = time.monotonic()
        if self._seen is None or self._seen[0] != tag:
            self._lives = self._seen is not None
            self._seen = (tag, now)
        return now - self._seen[1] > self.expiry_seconds

    def _read(self) -> tuple[Holder | None, str | None]:
        """Return who holds the lock, or None if that cannot be read, and the object's tag, or None without one."""
        try:
            content, tag = self.store.read_tagged(LOCK_OBJECT)
        except NotThere:
            return None, None
        try:
            return Holder.model_validate_json(content), tag
        except ValidationError:
            return None, tag

    def _write(self, **changes: object) -> None:
        with self._writing:
            assert self._own is not None
            own = self._own.model_copy(update={"beat": self._own.beat + 1, **changes})
            self._tag = self.store.write_if(LOCK_OBJECT, own.model_dump_json().encode(), self._tag)
            self._own, self._written = own, time.monotonic()

    def _beat(self) -> None:
        failed = False
        while not self._over.wait(self.beat_seconds):
            try:
                self._write()
                failed = False
            except Conflict:
                if self._look_who():
                    return
            except (OSError, UserError) as error:
                if not failed:
                    logger.warning(f"the run's lock cannot be renewed: {error}")
                failed = True

    def _look_who(self) -> bool:
        """Return True if another launch has the lock. An answer that was lost may have made our own write fail."""
        try:
            holder, tag = self._read()
        except (OSError, UserError):
            return False
        with self._writing:
            assert self._own is not None
            if holder is not None and tag is not None and holder.pid == self._own.pid and holder.id == self._own.id:
                self._own, self._tag, self._written = holder, tag, time.monotonic()
                return False
        who = "its lock was removed" if tag is None else str(holder or "another process")
        self._lost = Superseded(f"another launch has taken {self.store.url} over: {who}")
        return True

    def _refusal(self, holder: Holder | None) -> UnderWay:
        url = self.store.url
        runs = str(url).rpartition("/")[0]
        return UnderWay(
            f"run {url.name!r} is under way: {holder or 'another process'}\n"
            f"  follow it: {command('runs', 'show', url.name, '--runs', runs)}; or start another with name=…"
        )


class _KnownLoss:
    def __init__(self, lock: ObjectLock) -> None:
        self._lock = lock

    def check(self) -> None:
        if self._lock._lost is not None:
            raise self._lock._lost
