"""Delivery of a run's records to MLflow, by one thread of the driver: in order, and each once.

A crash after a call and before the cursor has moved makes the next delivery repeat it: see `mlflow_calls`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..config.errors import UserError
from .mlflow import answers
from .mlflow_calls import METRICS_PER_CALL, MlflowRun, Unavailable, classify, one_line
from .pending import Item, Pending
from .records import Create, Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """Pauses and attempts of a delivery."""

    poll_seconds: float = 1.0
    """Between two looks at the journal."""
    first_pause_seconds: float = 1.0
    """After the first failure; it doubles with each failure after that."""
    longest_pause_seconds: float = 30.0
    tries: int = 10
    """Attempts at a record that fails for an unknown reason, until it counts as refused."""


class Delivery:
    """Deliver the records of one run to MLflow.

    Args:
        run_dir: the run's folder.
        uri: tracking URI, of a server or SQLite.
        run_id: the MLflow run; None: the `create` record makes it.
        on_run_id: called with the new run's id before the cursor passes the `create` record, so that its keeper has
            it in any case; called again after a crash in between. It runs in the delivery's thread.
        retry: pauses and attempts.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        *,
        run_id: str | None,
        on_run_id: Callable[[str], None],
        retry: RetryPolicy | None = None,
    ) -> None:
        self.run_dir, self.uri, self._retry = run_dir, uri, retry or RetryPolicy()
        self._waiting = Pending(run_dir)
        self._run = MlflowRun(uri, run_id, on_run_id)
        self._thread: threading.Thread | None = None
        self._wake, self._stopping, self._draining = threading.Event(), False, False
        self._trouble: tuple[str, float] | None = None
        self._points = METRICS_PER_CALL
        self._failing: tuple[int | None, int] = (None, 0)

    def start(self) -> None:
        """Start to deliver, and go on until `stop` or the end of the process.

        Raises:
            UserError: another process delivers the records of this run.
        """
        if self._thread is None or not self._thread.is_alive():
            lock = _lock(self.run_dir, self._waiting.folder)
            self._waiting.reload()
            self._stopping = False
            # A daemon: a server that hangs must not keep the driver from ending; what is left waits on disk.
            self._thread = threading.Thread(target=self._work, args=(lock,), name="delivery", daemon=True)
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
        return len(self._waiting.items())

    def refused(self) -> int:
        """Return how many records MLflow has refused; they lie in `refused/`, with the reasons."""
        return sum(1 for _ in self._waiting.refused_folder.glob("*.json"))

    @property
    def state(self) -> str:
        """Say how it goes, in one line."""
        trouble, refused = self._trouble, self.refused()
        note = f"; {refused} refused, see {self._waiting.refused_folder}" if refused else ""
        if trouble is None:
            return f"delivering{note}"
        reason, since = trouble
        clock = time.strftime("%H:%M:%S", time.localtime(since))
        return f"{reason}, since {clock}: {self.pending()} records wait{note}"

    def _work(self, lock: BaseFileLock | None) -> None:
        try:
            asked, pause = False, 0.0
            while not self._stopping:
                try:
                    # A server that hangs is asked a harmless question first: it may carry out later what it got.
                    reason = answers(self.uri) if self._trouble or not asked else None
                    asked = True
                    if reason is not None:
                        raise Unavailable(f"MLflow does not answer ({reason})")
                    self._deliver_waiting()
                    self._trouble = None
                    self._wake.wait(0.05 if self._draining else self._retry.poll_seconds)
                except Exception as error:  # whatever it is, the thread must not die
                    what = str(error) if isinstance(error, Unavailable) else f"delivery fails ({one_line(error)})"
                    first = self._retry.first_pause_seconds
                    pause = min(2 * pause, self._retry.longest_pause_seconds) if self._trouble else first
                    self._trouble = (what, self._trouble[1] if self._trouble else time.time())
                    self._wake.wait(min(pause, 1.0) if self._draining else pause)
                self._wake.clear()
        finally:
            if lock is not None:
                lock.release()

    def _deliver_waiting(self) -> None:
        while not self._stopping and (items := self._waiting.items()):
            self._deliver(self._batch(items))

    def _batch(self, items: list[Item]) -> list[Item]:
        """Return the next record; of metrics, as many as go into one call."""
        batch, points = items[:1], 0
        for item in items:
            # Records of the version before keep their times: they go into calls of their own.
            if not isinstance(item.record, Metrics) or (item.old is None) != (items[0].old is None):
                break
            points += len(item.record.values)
            if item is not items[0]:
                if points > self._points:
                    break
                batch.append(item)
        return batch

    def _deliver(self, batch: list[Item], checked: bool = False) -> None:
        try:
            self._run.send(batch, self._points)
        except Exception as error:
            self._fail(error, batch, checked)
        else:
            self._trouble = None
            self._points = min(2 * self._points, METRICS_PER_CALL)
            self._waiting.delivered(batch)

    def _fail(self, error: Exception, batch: list[Item], checked: bool) -> None:
        """Set aside what MLflow will never take, and return; or raise `Unavailable`."""
        verdict, reason = classify(error)
        if verdict == "unavailable":
            self._points = max(1, self._points // 8)  # a slow server may manage less at a time
            raise Unavailable(reason) from error
        if len(batch) > 1:
            for item in batch:
                self._deliver([item])
            return
        (item,) = batch
        if isinstance(item.record, Create):  # without a run nothing else can be delivered
            raise Unavailable(f"MLflow does not make the run ({one_line(error)})") from error
        if verdict == "unknown":
            failed = self._failing[1] + 1 if self._failing[0] == item.moment else 1
            self._failing = (item.moment, failed)
            if failed < self._retry.tries:
                raise Unavailable(f"a record fails ({one_line(error)})") from error
        self._run.check()
        if not checked:  # the run may have been restored between the refusal and the check
            self._deliver(batch, checked=True)
            return
        self._waiting.refuse(item, str(error))
        _log.warning("MLflow refuses a record: %s; it lies in %s", one_line(error), self._waiting.refused_folder)


def _lock(run_dir: Path, folder: Path) -> BaseFileLock | None:
    """Take the delivery for this process; a process that is killed gives it back.

    Raises:
        UserError: another one has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "delivery.pid"
    lock = FileLock(folder / "delivery.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        pid = holder.read_text() if holder.is_file() else "unknown"
        raise UserError(
            f"process {pid} delivers the records of {run_dir} already\n  wait for it to end, or end it: kill {pid}"
        ) from None
    except (OSError, NotImplementedError) as error:  # one driver a run is what the run's own lock ensures
        _log.warning("%s cannot be locked: %s", folder, error)
        return None
    holder.write_text(str(os.getpid()))
    return lock
