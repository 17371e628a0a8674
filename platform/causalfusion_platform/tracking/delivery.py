"""Deliver a run's records to MLflow in one thread of the driver: in order, and each once.

After a crash between a call and the move of the cursor, the next delivery repeats the call. `mlflow_calls` makes
that harmless.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..config.errors import NotNow
from ..storage.fence import Fence, NoFence, Superseded
from .mlflow import answers
from .mlflow_calls import METRICS_PER_CALL, MlflowRun, Unavailable, classify, one_line
from .pending import Item, Pending
from .records import Create, Metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """Pauses and attempts of a delivery."""

    poll_seconds: float = 1.0
    """Pause between two readings of the journal."""
    first_pause_seconds: float = 1.0
    """Pause after the first failure. It doubles with each further failure."""
    longest_pause_seconds: float = 30.0
    tries: int = 10
    """Attempts at a record that fails for an unknown reason, before it counts as refused."""


_LOCK_SECONDS = 10.0
"""Longest wait for another process that delivers. One of an older launch ends when it sees the newer launch."""


class Delivery:
    """Deliver the records of one run to MLflow.

    Args:
        run_dir: the run's folder.
        uri: tracking URI, of a server or SQLite.
        run_id: the MLflow run. None: the `create` record makes it.
        identity: see `Pending`.
        lost: record that makes the run if the journal holds none, as after a damage. Its key is chosen here.
        on_run_id: called with the new run's id before the cursor passes the `create` record. It is called again
            after a crash in between. It runs in the delivery's thread.
        retry: pauses and attempts.
        fence: of the launch that delivers. Once another launch has taken the run over, the delivery ends.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        *,
        run_id: str | None,
        on_run_id: Callable[[str], None],
        identity: str = "",
        lost: Create | None = None,
        retry: RetryPolicy | None = None,
        fence: Fence | None = None,
    ) -> None:
        self._fence = fence or NoFence()
        self.run_dir, self.uri, self._retry = run_dir, uri, retry or RetryPolicy()
        self._waiting, self._lost = Pending(run_dir, identity), lost
        self._on_run_id = on_run_id
        self._run = MlflowRun(uri, run_id, self._keep_run_id)
        self._thread: threading.Thread | None = None
        self._writes, self._may_write = threading.Lock(), True
        self._wake, self._stopping, self._draining = threading.Event(), False, False
        self._trouble: tuple[str, float] | None = None
        self._points = METRICS_PER_CALL
        self._failing: tuple[int | None, int] = (None, 0)

    def start(self) -> None:
        """Start to deliver, until `stop` or the end of the process.

        Raises:
            UserError: another process delivers the records of this run.
        """
        if self._thread is None or not self._thread.is_alive():
            lock = _lock(self.run_dir, self._waiting.folder)
            self._waiting.reload()
            self._waiting.remove_unnamed()
            self._stopping, self._may_write = False, True
            # A daemon, so that a server that hangs does not keep the driver from ending. The rest waits on disk.
            self._thread = threading.Thread(target=self._work, args=(lock,), name="delivery", daemon=True)
            self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop after the call under way. Return before that if it takes longer.

        Nothing is written into the run's folder after the return, so that the run's lock can be released.
        """
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        with self._writes:
            self._may_write = False

    def drain(self, timeout_seconds: float, show: Callable[[int], None] = lambda _: None) -> int:
        """Wait until everything is delivered, or the time is up. Return the number of records left.

        `show` is called with that number meanwhile.
        """
        end = time.monotonic() + timeout_seconds
        self._draining = True
        self._wake.set()
        try:
            while (left := self.pending()) and self._thread and self._thread.is_alive():
                if time.monotonic() >= end:
                    break
                show(left)
                self._thread.join(0.05)
            return left
        finally:
            self._draining = False

    def pending(self) -> int:
        """Return the number of waiting records."""
        return len(self._waiting.items())

    def refused(self) -> int:
        """Return the number of records that MLflow refused. They lie in `refused/`, with the reasons."""
        return sum(1 for _ in self._waiting.refused_folder.glob("*.json"))

    @property
    def state(self) -> str:
        """Return the state of the delivery in one line."""
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
                    with suppress(OSError):  # not known: it is asked again before anything is delivered
                        self._fence.check()
                    # A server that hangs may carry out a call later, so it gets a harmless one first.
                    reason = answers(self.uri) if self._trouble or not asked else None
                    asked = True
                    if reason is not None:
                        raise Unavailable(f"MLflow does not answer ({reason})")
                    self._deliver_waiting()
                    self._trouble = None
                    self._wake.wait(0.05 if self._draining else self._retry.poll_seconds)
                except Superseded:  # the newer launch delivers its records and ours
                    return
                except Exception as error:  # of any kind, since the thread must go on
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
            self._fence.check()
            if self._run.run_id is None and not isinstance(items[0].record, Create):
                self._find_run(items[0])
            self._deliver(self._batch(items))

    def _find_run(self, first: Item) -> None:
        """Find or make the run whose id is not known, though the cursor has passed the record that makes it."""
        made = self._waiting.created()
        if made is None and self._lost is not None:
            # The first record waits until the id is kept, so that a second try has the same key.
            key = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.run_dir.absolute()} {first.moment}").hex
            made = Item(self._lost.model_copy(update={"key": key}), first.moment, None, first.end)
        if made is None:
            raise Unavailable("no record says which run of MLflow this is")
        try:
            self._run.send([made], 1)
        except Exception as error:
            self._fail(error, [made], checked=False)

    def _batch(self, items: list[Item]) -> list[Item]:
        """Return the next record, or as many records of metrics as go into one call."""
        batch, points = items[:1], 0
        for item in items:
            # Records of an earlier version keep their times, so they go into separate calls.
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
            with self._writing():
                self._waiting.delivered(batch)

    def _fail(self, error: Exception, batch: list[Item], checked: bool) -> None:
        """Set aside a record that MLflow will never take, or raise `Unavailable`."""
        verdict, reason = classify(error)
        if verdict == "unavailable":
            self._points = max(1, self._points // 8)  # a slow server may take fewer at a time
            raise Unavailable(reason) from error
        if len(batch) > 1:
            for item in batch:
                self._deliver([item])
            return
        (item,) = batch
        if isinstance(item.record, Create):  # the other records need the run
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
        with self._writing():
            self._waiting.refuse(item, str(error))
        _log.warning("MLflow refuses a record: %s; it lies in %s", one_line(error), self._waiting.refused_folder)

    def _keep_run_id(self, run_id: str) -> None:
        with self._writing():
            self._on_run_id(run_id)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold back `stop` during a write into the run's folder.

        Raises:
            Unavailable: `stop` has returned, after a call that took too long.
            Superseded: another launch has taken the run over.
        """
        with self._writes:
            if not self._may_write:
                raise Unavailable("the delivery was stopped")
            self._fence.check()
            yield


def _lock(run_dir: Path, folder: Path) -> BaseFileLock | None:
    """Take the delivery for this process. The end of the process gives it back.

    Raises:
        UserError: another process has it.
    """
    holder = folder / "delivery.pid"
    lock = FileLock(folder / "delivery.lock", timeout=_LOCK_SECONDS, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        pid = _read_pid(holder)
        raise NotNow(
            f"process {pid} delivers the records of {run_dir} already\n  wait for it to end, or end it: kill {pid}"
        ) from None
    except (OSError, NotImplementedError) as error:  # the run's own lock ensures one driver
        _log.warning("%s cannot be locked: %s", folder, error)
        return None
    with suppress(OSError):  # a full disk; only the message needs it
        holder.write_text(str(os.getpid()), encoding="utf-8")
    return lock


def _read_pid(holder: Path) -> str:
    """Return the text of the file with the process that delivers. A killed one may leave it empty."""
    try:
        return holder.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
