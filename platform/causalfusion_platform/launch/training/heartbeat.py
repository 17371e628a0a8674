"""A worker's heartbeat: a thread that calls the actor every second, and does what it asks."""

from __future__ import annotations

import faulthandler
import os
import socket
import tempfile
import threading
from typing import Any, cast

import ray

from ...train.control import StopReason
from .progress_actor import Commands, WorkerPlace

HEARTBEAT_SECONDS = 1.0
LEFT_ON_COMMAND = 75
"""Exit status of a worker that was asked to leave."""


class Heartbeat:
    """The control of a training loop inside a Ray worker."""

    def __init__(self, actor: Any, rank: int) -> None:
        context = ray.get_runtime_context()
        self.actor = actor
        self.place = WorkerPlace(rank, context.get_node_id(), socket.gethostname(), os.getpid())
        self.doing, self.images, self.marks = "start", 0, 0
        self.commands = Commands()
        self.dumped: str | None = None
        self.over = threading.Event()

    def start(self) -> None:
        """Start the heartbeat."""
        threading.Thread(target=self._send, name="heartbeat", daemon=True).start()

    def end(self) -> None:
        """Stop the heartbeat."""
        self.over.set()

    def stop_wanted(self) -> StopReason | None:
        """Return the reason for which the driver wants this worker to stop, or None."""
        return cast(StopReason | None, self.commands.stop)

    def mark(self, doing: str, images: int) -> None:
        """Note the current activity of the loop."""
        self.doing, self.images, self.marks = doing, images, self.marks + 1

    def note(self, text: str) -> None:
        """Send a line to the terminal from the first worker only, since all would send the same."""
        if self.place.rank == 0:
            self.actor.note.remote(text)

    def _send(self) -> None:
        while not self.over.wait(HEARTBEAT_SECONDS):
            try:
                mark = (self.doing, self.images, self.marks)
                self.commands = ray.get(self.actor.heartbeat.remote(self.place, mark), timeout=30)
            except ray.exceptions.RayError:
                continue  # the driver notices a lost actor by itself
            if self.commands.dump_to and self.commands.dump_to != self.dumped:
                self.dumped = self.commands.dump_to
                self._dump(self.commands.dump_to)
            if self.commands.leave:
                os._exit(LEFT_ON_COMMAND)

    def _dump(self, folder: str) -> None:
        """Send the stacks of all threads to the driver, which may share no folder with this machine."""
        with tempfile.TemporaryFile() as file:
            file.write(
                f"rank {self.place.rank}, process {self.place.pid} on {self.place.host}\n"
                f"doing: {self.doing}, {self.images} images seen\n\n".encode()
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self.actor.put_file.remote(f"{folder}/rank-{self.place.rank:05d}.txt", file.read())
