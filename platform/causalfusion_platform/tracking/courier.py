"""The courier: one thread of the driver that delivers a spool to MLflow, in order and each record once.

A crash between delivery and removal makes the next courier deliver a record again, so every delivery is one that
changes nothing the second time: MLflow keeps one of two points with the same key, step, time and value; files have
names of their own; a run is looked for by its key before it is made.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..config.errors import UserError
from .mlflow import answers, client, open_experiment, parentage
from .spool import (
    RECORD,
    Create,
    Ending,
    Files,
    Metrics,
    Parameters,
    Record,
    Tags,
    files_of,
    refuse,
    remove,
    waiting,
)

RUN_KEY = "spool.key"  # tag
_METRICS_PER_CALL = 1000  # MLflow's limit for one batch
_THUMBNAIL = (256, 256)  # pixels, as MLflow's own

# MLflow has read the record, and will never take it.
_REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "MALFORMED_REQUEST")
# Nothing is wrong with the record. A run that is not there may be that of another server at the same address.
_AWAY = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "RESOURCE_CONFLICT",
    "ABORTED",
    "ENDPOINT_NOT_FOUND",
    "NOT_FOUND",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
)
_AWAY_STATUS = (401, 403, 404, 407, 408, 409, 429)  # of an upload; so is all from 500
# Of the driver's own disk; it may be better later.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)

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


class Away(Exception):
    """Nothing can be delivered now; the message says why, as it is shown."""


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
        self._run = _Run(uri, run_id, on_run_id)
        self._thread: threading.Thread | None = None
        self._wake, self._stopping, self._draining = threading.Event(), False, False
        self._trouble: tuple[str, float] | None = None
        self._points = _METRICS_PER_CALL
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
                    what = str(error) if isinstance(error, Away) else f"delivery fails ({_line(error)})"
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
            self._points = min(2 * self._points, _METRICS_PER_CALL)
        for path, _ in batch:
            remove(path)

    def _judge(self, error: Exception, batch: list[tuple[Path, Record]]) -> None:
        """Set aside what MLflow will never take, and return; or raise `Away`."""
        verdict, reason = _verdict(error)
        if verdict == "away":
            self._points = max(1, self._points // 8)  # a slow server may manage less at a time
            raise Away(reason) from error
        if len(batch) > 1:
            for item in batch:
                self._deliver([item])
            return
        ((path, record),) = batch
        if isinstance(record, Create):  # without a run nothing else can be delivered
            raise Away(f"MLflow does not make the run ({_line(error)})") from error
        if verdict == "unknown":
            failed = self._failing[1] + 1 if self._failing[0] == path else 1
            self._failing = (path, failed)
            if failed < self._patience.tries:
                raise Away(f"a record fails ({_line(error)})") from error
        self._run.check()
        _log.warning("MLflow refuses a record: %s; it lies in %s", _line(error), self.folder / "refused")
        refuse(path, str(error))


class _Run:
    """The run at MLflow. Whatever is sent may have been sent before."""

    def __init__(self, uri: str, run_id: str | None, on_run_id: Callable[[str], None]) -> None:
        self.uri, self.run_id, self._on_run_id = uri, run_id, on_run_id
        self._client: Any = None

    def check(self) -> None:
        """Check that it is the record that is refused, and not the whole run."""
        try:
            stage = self._api().get_run(self.run_id).info.lifecycle_stage
        except Exception as error:
            raise Away(_verdict(error)[1]) from error
        if stage != "active":
            raise Away(f"MLflow's run {self.run_id} is {stage}; restore it in the dashboard")

    def _api(self) -> Any:
        if self._client is None:
            try:
                self._client = client(self.uri)
            except Exception as error:  # a database that is locked or of another version
                raise Away(f"MLflow's store cannot be opened ({_line(error)})") from error
        return self._client

    def send(self, batch: list[tuple[Path, Record]], points_per_call: int) -> None:
        """Send one record, or several of metrics."""
        from mlflow.entities import Metric, Param, RunTag

        api = self._api()
        path, record = batch[0]
        if isinstance(record, Create):
            if self.run_id is None:
                self._create(api, record)
            self._keep_one(api)
            return
        if self.run_id is None:
            raise Away("the run is not made yet")
        match record:
            case Metrics():
                points = [
                    Metric(key, value, one.time, one.step)
                    for _, one in batch
                    if isinstance(one, Metrics)
                    for key, value in one.values.items()
                ]
                for start in range(0, len(points), points_per_call):
                    api.log_batch(self.run_id, metrics=points[start : start + points_per_call])
            case Parameters():
                api.log_batch(self.run_id, params=[Param(key, value) for key, value in record.values.items()])
            case Tags():
                api.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in record.values.items()])
            case Files():
                self._upload(api, path, record)
            case Ending(status="RUNNING"):
                api.update_run(self.run_id, status="RUNNING")
            case Ending():
                api.set_terminated(self.run_id, record.status, end_time=record.time)
                self._keep_one(api)

    def _create(self, api: Any, record: Create) -> None:
        experiment = open_experiment(api, self.uri, record.experiment, record.artifacts)
        found = [run.info.run_id for run in _runs_of(api, experiment, record.key)]
        if not found:
            tags = {RUN_KEY: record.key, **parentage(record.parent)}
            run = api.create_run(experiment, start_time=record.time, run_name=record.name, tags=tags)
            found = [run.info.run_id]
        self._on_run_id(found[0])
        self.run_id = found[0]

    def _keep_one(self, api: Any) -> None:
        """Delete empty twins of the run: a server that was slow has made it once for each time it was asked."""
        run = api.get_run(self.run_id)
        key = run.data.tags.get(RUN_KEY)
        for twin in _runs_of(api, run.info.experiment_id, key) if key else []:
            if twin.info.run_id != self.run_id and not twin.data.metrics and not twin.data.params:
                api.delete_run(twin.info.run_id)

    def _upload(self, api: Any, path: Path, record: Files) -> None:
        folder = files_of(path)
        if not folder.is_dir():
            return
        if record.kind == "image":
            from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

            for file in list(folder.glob("*.png")):
                _thumbnail(file)
            api.set_tag(self.run_id, MLFLOW_LOGGED_IMAGES, True)
        for file in sorted(folder.iterdir()):
            api.log_artifact(self.run_id, str(file), record.folder)


def _runs_of(api: Any, experiment: str, key: str) -> list[Any]:
    return list(api.search_runs([experiment], filter_string=f"tags.`{RUN_KEY}` = '{key}'"))


def _thumbnail(file: Path) -> None:
    """Write the small twin that MLflow's image grid shows beside the image."""
    with Image.open(file) as image:
        image.thumbnail(_THUMBNAIL)
        image.save(file.with_name(f"{file.stem}+compressed.webp"))


def _verdict(error: Exception) -> tuple[str, str]:
    """Return `away`, `refused` or `unknown`, and what to show."""
    import requests

    if isinstance(error, Away):
        return "away", str(error)
    code = getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if code == "RESOURCE_DOES_NOT_EXIST":
        return "away", f"MLflow has no such run ({_line(error)})"
    if code in _AWAY or status in _AWAY_STATUS or (status or 0) >= 500:
        return "away", f"MLflow does not answer ({_line(error)})"
    if isinstance(error, (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout)):
        return "away", f"MLflow does not answer ({_line(error)})"
    if getattr(error, "errno", None) in _STORAGE:
        return "away", f"the driver cannot read or write ({_line(error)})"
    if code in _REFUSED or status or isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        return "refused", _line(error)
    return "unknown", _line(error)


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


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
