"""Folder of a worker's machine for a run on object storage. What the first worker writes is sent to the driver."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from ...assemble import Job
from ...storage.held import hold, remove_if_left
from ...storage.private import make_private
from ...storage.run_layout import CHECKPOINTS_FOLDER, JOURNAL_FILE, STATE_FILE, RunPaths
from ...tracking.lines import read_on

logger = logging.getLogger(__name__)

SEND_SECONDS = 0.5
"""Interval at which new lines and files are sent."""
_CHUNK = 8 << 20
_HERE_ALONE = (CHECKPOINTS_FOLDER, JOURNAL_FILE, STATE_FILE)


@contextmanager
def own_folder(job: Job, actor: Any, rank: int) -> Iterator[Job]:
    """Yield the job as this worker trains it: in a folder of its machine, if the run is on object storage.

    Workers of one machine share the folder, and the last one removes it. Folders of killed workers are removed too.

    Args:
        job: the training.
        actor: the ProgressActor, which writes into the driver's folder of the run.
        rank: of the worker. The first one writes the run's journal.
    """
    if job.url is None:
        yield job
        return
    base = make_private((job.experiment.train.staging or Path(tempfile.gettempdir())) / _base_name())
    run = hashlib.sha256(str(job.url).encode()).hexdigest()[:16]
    runs = base / f"{run}.{job.launch_id or 'alone'}.{job.attempt:04d}"
    for left in base.iterdir():
        if left != runs:
            remove_if_left(left)
    held = hold(runs)
    try:
        own = job.in_folder(runs)
        own.paths.root.mkdir(exist_ok=True)
        if rank > 0:
            yield own
            return
        with Mirror(own.paths.root, actor).running():
            yield own
    finally:
        os.close(held)
        remove_if_left(runs)


def _base_name() -> str:
    return f"causalfusion-run-{os.geteuid()}"


class Mirror:
    """Send what a worker writes into its folder of a run to the driver's folder: files first, then their lines.

    Args:
        root: the worker's folder of the run.
        actor: the ProgressActor.
    """

    def __init__(self, root: Path, actor: Any) -> None:
        self.root, self.actor = root, actor
        self.journal, self.state = root / JOURNAL_FILE, RunPaths(root).state_file
        self._sent: dict[str, tuple[int, int]] = {}
        self._offset = 0
        self._over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Fetch the driver's journal, send in the background meanwhile, and send the rest at the end."""
        content: bytes = ray.get(self.actor.read_file.remote(JOURNAL_FILE)) or b""
        self.journal.write_bytes(content)
        self._offset = len(content)
        thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self.send()

    def send(self) -> None:
        """Send what is new.

        Raises:
            ray.exceptions.RayError: the driver is lost. The next call goes on.
        """
        lines: list[bytes] = []
        end = self._offset
        while some := read_on(self.journal, end):
            lines += some
            end += sum(map(len, some))
        for name, signature in self._files():
            if self._sent.get(name) != signature:
                self._send_file(name)
                self._sent[name] = signature
        if lines:
            ray.get(self.actor.append_lines.remote(JOURNAL_FILE, b"".join(lines)))
            self._offset = end

    def _work(self) -> None:
        while not self._over.wait(SEND_SECONDS):
            try:
                self.send()
                self._fetch_state()
            except (ray.exceptions.RayError, OSError) as error:
                logger.debug("not sent: %s", error)  # the driver notices a lost actor by itself

    def _fetch_state(self) -> None:
        """Fetch the state until it names the run at MLflow, which checkpoints name too."""
        if self.state.is_file():
            return
        content: bytes | None = ray.get(self.actor.read_file.remote(STATE_FILE))
        if content is not None and b'"mlflow_run_id": null' not in content:
            self.state.write_bytes(content)

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root)
            if name.parts[0] in _HERE_ALONE or path.name.startswith(".") or not path.is_file():
                continue
            status = path.stat()
            yield name.as_posix(), (status.st_mtime_ns, status.st_size)

    def _send_file(self, name: str) -> None:
        with (self.root / name).open("rb") as file:
            chunk, first = file.read(_CHUNK), True
            while True:
                following = file.read(_CHUNK)
                ray.get(self.actor.put_file.remote(name, chunk, first, not following))
                if not following:
                    return
                chunk, first = following, False
