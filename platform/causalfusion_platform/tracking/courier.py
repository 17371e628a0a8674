"""The courier: one thread of the driver that delivers a spool to MLflow, in order and each record once.

A crash between delivery and removal makes the next courier deliver a record again: see `deliver`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..config.errors import UserError
from .deliver import METRICS_PER_CALL, Away, Recipient, judge, one_line
from .mlflow import answers
from .spool import RECORD, Create, Metrics, Record, refuse, remove, waiting

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a courier waits for what."""

    poll_seconds: float = 1.0
    """Between two looks at the spool."""
    first_pause_seconds: float = 1.0
    """After the first failure; it doubles with each failure after that."""
    longest_pause_seconds: float = 30.0
    tries: int = 10
    """Attempts at a record that fails for an unknown reason, until it counts as refused."""


class Courier:
    """Deliver the records of one spool to the run that they belong to.

    Args:
        folder: the spool's folder.
        uri: tracking URI, of a server or SQLite.
        run_id: the run; None: the spool's `create` record makes it.
        on_run_id: called with the new run's id before the `create` record is removed, so that its keeper has
            it in any case; called again after a crash in between. It runs in the courier's thread.
        patience: pauses and attempts.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        *,
        run_id: str | None,
        on_run_id: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        self.folder, self.uri, self._patience = folder, uri, patience or Patience()
        self._run = Recipient(uri, run_id, on_run_id)
        self._thread: threading.Thread | None = None
        self._wake, self._stopping, self._draining = threading.Event(), False, False
        self._trouble: tuple[str, float] | None = None
        self._points = METRICS_PER_CALL
        self._failing: tuple[Path | None, int] = (None, 0)

    def start(self) -> None:
        """Start to deliver, and go on until `stop` or the end of the process.

        Raises:
            UserError: another process delivers this spool.
        """
        if self._thread is None or not self._thread.is_alive():
            lock = _lock(self.folder)
            self._stopping = False
            # A daemon: a server that hangs must not keep the driver from ending; what is left waits on disk.
            self._thread = threading.Thread(target=self._work, args=(lock,), name="courier", daemon=True)
            self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop after the call under way, or leave it alone when that takes longer."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def drain(self, timeout_seconds: float) -> int:
        """Wait until everything is delivered, but no longer than this; return how many records are left."""
        end = time.monotonic() + timeout_seconds
        self._draining = True
        self._wake.set()
        try:
            while (left := self.pending()) and self._thread and self._thread.is_alive():
                if time.monotonic() >= end:
                    break
                self._thread.join(0.05)
            return left
        finally:
            self._draining = False

    def pending(self) -> int:
        """Return how many records wait."""
        return len(waiting(self.folder))

    def refused(self) -> int:
        """Return how many records MLflow has refused; they lie in `refused/`, with the reasons."""
        return len(waiting(self.folder / "refused"))

    @property
    def state(self) -> str:
        """Say how it goes, in one line."""
        trouble, refused = self._trouble, self.refused()
        note = f"; {refused} refused, see {self.folder / 'refused'}" if refused else ""
        if trouble is None:
            return f"delivering{note}"
        reason, since = trouble
        clock = time.strftime("%H:%M:%S", time.localtime(since))
        return f"{reason}, since {clock}: {self.pending()} records wait{note}"

    def _work(self, lock: IO[str]) -> None:
        with lock:
            asked, pause = False, 0.0
            while not self._stopping:
                try:
                    # A server that hangs is asked a harmless question first: it may carry out later what it got.
                    reason = answers(self.uri) if self._trouble or not asked else None
                    asked = True
                    if reason is not None:
                        raise Away(f"MLflow does not answer ({reason})")
                    self._deliver_waiting()
                    self._trouble = None
                    self._wake.wait(0.05 if self._draining else self._patience.poll_seconds)
                except Exception as error:  # whatever it is, the thread must not die
                    what = str(error) if isinstance(error, Away) else f"delivery fails ({one_line(error)})"
                    first = self._patience.first_pause_seconds
                    pause = min(2 * pause, self._patience.longest_pause_seconds) if self._trouble else first
                    self._trouble = (what, self._trouble[1] if self._trouble else time.time())
                    self._wake.wait(min(pause, 1.0) if self._draining else pause)
                self._wake.clear()

    def _deliver_waiting(self) -> None:
        paths = waiting(self.folder)
        if self._run.run_id is None:
            # The clocks of two machines differ: records of a worker may sort before it.
            paths.sort(key=lambda path: not path.name.endswith(".create.json"))
        while paths and not self._stopping:
            batch = self._next_batch(paths)
            if batch:
                self._deliver(batch)

    def _next_batch(self, paths: list[Path]) -> list[tuple[Path, Record]]:
        """Take the next record off `paths`; of metrics, as many as go into one call."""
        batch: list[tuple[Path, Record]] = []
        points = 0
        while paths:
            try:
                record = RECORD.validate_json(paths[0].read_bytes())
            except ValueError as error:
                refuse(paths.pop(0), f"damaged: {error}")
                continue
            if isinstance(record, Metrics):
                points += len(record.values)
            if batch and (not isinstance(record, Metrics) or points > self._points):
                break
            batch.append((paths.pop(0), record))
            if not isinstance(record, Metrics):
                break
        return batch

    def _deliver(self, batch: list[tuple[Path, Record]]) -> None:
        try:
            self._run.send(batch, self._points)
        except Exception as error:
            self._judge(error, batch)
        else:
            self._trouble = None
            self._points = min(2 * self._points, METRICS_PER_CALL)
        for path, _ in batch:
            remove(path)

    def _judge(self, error: Exception, batch: list[tuple[Path, Record]]) -> None:
        """Set aside what MLflow will never take, and return; or raise `Away`."""
        verdict, reason = judge(error)
        if verdict == "away":
            self._points = max(1, self._points // 8)  # a slow server may manage less at a time
            raise Away(reason) from error
        if len(batch) > 1:
            for item in batch:
                self._deliver([item])
            return
        ((path, record),) = batch
        if isinstance(record, Create):  # without a run nothing else can be delivered
            raise Away(f"MLflow does not make the run ({one_line(error)})") from error
        if verdict == "unknown":
            failed = self._failing[1] + 1 if self._failing[0] == path else 1
            self._failing = (path, failed)
            if failed < self._patience.tries:
                raise Away(f"a record fails ({one_line(error)})") from error
        self._run.check()
        _log.warning("MLflow refuses a record: %s; it lies in %s", one_line(error), self.folder / "refused")
        refuse(path, str(error))


def _lock(folder: Path) -> IO[str]:
    """Take the spool for this process; a process that is killed gives it back.

    Raises:
        UserError: another one has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "courier.lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"process {holder} delivers the records of {folder} already\n"
            f"  wait for it to end, or end it: kill {holder}"
        ) from None
    except OSError as error:  # a file system without locks: one driver a run is what the run's folder ensures
        _log.warning("%s cannot be locked: %s", path, error)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
