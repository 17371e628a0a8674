"""The journal of a run: what happened to it, in order, over all its launches. One JSON object a line.

The driver and the first worker append to the same file, on storage that they share. A line is written in one call,
so that a process that is killed leaves at most a broken last line, which is passed over when reading.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..storage.run_layout import RunPaths

Cause = Literal["worker", "node", "controller", "hang", "memory", "diverged", "preempted", "error", "driver"]
"""Why an attempt ended early: a worker, its node or Ray's controller was lost; no step was made for too long;
memory ran out; NaN or spikes did not go away; the node was taken back; the code raised; the driver was lost."""

End = Literal["finished", "stopped", "preempted", "failed"]
"""How a launch ended, if it was not killed: `stopped` by a signal, `preempted` with the node, both after a
checkpoint."""


class _Event(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # a loss may be NaN; as null, the line would not be read again
    )

    time: float = Field(default_factory=time.time)
    """UNIX time in seconds."""


class Launched(_Event):
    """A person, a scheduler or a job ran the command."""

    kind: Literal["launched"] = "launched"
    launch: int
    """1, 2, …"""
    host: str
    pid: int


class AttemptStarted(_Event):
    """The driver asked for workers: the first time, or after an incident."""

    kind: Literal["attempt"] = "attempt"
    launch: int
    attempt: int
    """1, 2, … over all launches."""
    workers: int
    zero_stage: int
    images: int
    """Images seen by the checkpoint that it starts from."""


class TrainingStarted(_Event):
    """All workers are up; the first batch is asked for."""

    kind: Literal["training"] = "training"
    attempt: int
    images: int
    """Images seen so far."""
    device: str
    """Such as `cpu` or `NVIDIA H100 80GB HBM3`."""
    peak_tflops: float | None
    """Peak of one worker's device in the arithmetic used, TFLOP/s; null if unknown."""
    peak_source: str
    """Where the peak is from."""


class Progressed(_Event):
    """Where training is; written with the metrics. Sums count from the attempt's `training` event."""

    kind: Literal["progress"] = "progress"
    attempt: int
    images: int
    step: int
    step_seconds: float
    """Optimizer steps, without the wait for their batches."""
    data_seconds: float
    """Waiting for batches."""
    checkpoint_seconds: float
    """The loop's stalls for checkpoints."""
    grid_seconds: float
    """Sample grids."""
    flops: float
    """FLOPs of the steps over all workers: exact for the AR splits drawn, forward and backward."""
    tokens: int
    """Tokens of the training sequences over all workers."""
    loss: float
    skipped_steps: int
    """Steps whose update was skipped."""
    gpu_bytes: int
    """Largest GPU memory of a worker so far."""
    cpu_bytes: int
    """Largest resident memory of a worker so far."""


class Checkpointed(_Event):
    """A checkpoint is complete: its manifest is written."""

    kind: Literal["checkpoint"] = "checkpoint"
    attempt: int
    images: int
    bytes: int
    stall_seconds: float
    """Time that the loop stood still for it."""
    upload_seconds: float
    """Time in the background until the manifest."""


class Measured(_Event):
    """The samples of a grid were measured."""

    kind: Literal["measured"] = "measured"
    attempt: int
    images: int
    values: dict[str, float]
    """Score → value, such as `class_accuracy`."""


class Adopted(_Event):
    """The run goes on from another run's checkpoint, with settings of its own."""

    kind: Literal["adopted"] = "adopted"
    run: str
    """Name of the other run."""
    images: int
    """Images seen by the checkpoint."""


class SaveFailed(_Event):
    """A checkpoint could not be saved; those before it are untouched."""

    kind: Literal["save failed"] = "save failed"
    attempt: int
    images: int
    reason: str


class StepSkipped(_Event):
    """The guard skipped an update."""

    kind: Literal["skipped"] = "skipped"
    attempt: int
    images: int
    """Images seen before the step."""
    reason: str


class SetAside(_Event):
    """A damaged checkpoint was moved away."""

    kind: Literal["set aside"] = "set aside"
    checkpoint: str
    reason: str


class Resharded(_Event):
    """A checkpoint was converted to other workers or another ZeRO stage."""

    kind: Literal["resharded"] = "resharded"
    attempt: int
    images: int
    old: str
    """Such as `2 workers, ZeRO 1`."""
    new: str
    seconds: float


class Incident(_Event):
    """An attempt ended early."""

    kind: Literal["incident"] = "incident"
    attempt: int
    cause: Cause
    detail: str
    images: int
    """Images seen when it ended, as far as is known."""


class Ended(_Event):
    """A launch ended by itself."""

    kind: Literal["ended"] = "ended"
    launch: int
    how: End
    detail: str = ""


Event = (
    Launched
    | AttemptStarted
    | TrainingStarted
    | Progressed
    | Checkpointed
    | Measured
    | Adopted
    | SaveFailed
    | StepSkipped
    | SetAside
    | Resharded
    | Incident
    | Ended
)
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class Journal:
    """The journal in a run's folder."""

    def __init__(self, run_dir: Path) -> None:
        self.path = RunPaths(run_dir).journal_file

    def add(self, event: Event) -> None:
        """Append an event. A full disk must not end a run: what cannot be written is lost."""
        line = (event.model_dump_json() + "\n").encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if os.lseek(file, 0, os.SEEK_END) and not self._ends_whole():
                    line = b"\n" + line  # behind what a killed process left
                os.write(file, line)
            finally:
                os.close(file)
        except OSError:
            return

    def events(self) -> list[Event]:
        """Return all events, in order; lines that are broken or unknown are passed over."""
        return list(self._read())

    def recent(self, size: int = 1 << 16) -> list[Event]:
        """Return the events at its end, of about so many bytes: for those who look again and again."""
        return list(self._read(size))

    def _read(self, size: int | None = None) -> Iterator[Event]:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            if size is not None:
                file.seek(max(file.seek(0, os.SEEK_END) - size, 0))
            content = file.read()
        for line in content.splitlines():
            try:
                yield _EVENT.validate_python(json.loads(line))
            except (ValueError, ValidationError):
                continue

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def last_attempt(events: Iterable[Event]) -> int:
    """Return the number of the newest attempt; 0 before the first."""
    return max((event.attempt for event in events if isinstance(event, AttemptStarted)), default=0)


def recorded_images(events: Iterable[Event]) -> int:
    """Return up to where metrics are recorded: what is trained again after a fault must not be recorded twice.

    After a roll-back it is: the steps that follow are others.
    """
    recorded, rolled_back = 0, False
    for event in events:
        if isinstance(event, Progressed):
            recorded = max(recorded, event.images)
        elif isinstance(event, Incident):
            rolled_back = event.cause == "diverged"
        elif isinstance(event, AttemptStarted) and rolled_back:
            recorded, rolled_back = event.images, False
    return recorded
