"""Journal of a run: its events in order, over all its launches. One JSON object a line.

The driver and the first worker append to the same file, on storage that they share. Some lines are records for
MLflow (`records`). Readers of events pass over these and over broken lines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..config.secrets import redact
from ..storage.fence import Fence, NoFence, Superseded
from ..storage.run_layout import RunPaths
from .lines import Count, Line, Seconds, append, read_on
from .records import Record

_log = logging.getLogger(__name__)

Cause = Literal[
    "worker", "node", "controller", "start", "hang", "memory", "diverged", "preempted", "error", "driver"
]
"""Cause of an attempt's early end.

- `worker`, `node`, `controller`: a worker, its node or Ray's controller was lost.
- `start`: room for all workers, or their process group, was missing for too long.
- `hang`: no step was made for too long.
- `memory`: memory ran out.
- `diverged`: NaN or spikes did not go away.
- `preempted`: the node was taken back.
- `error`: the code raised.
- `driver`: the driver was lost.
"""

End = Literal["finished", "stopped", "preempted", "failed"]
"""End of a launch that was not killed.

`stopped`: by a signal, after a checkpoint. `preempted`: with the node, after a checkpoint.
"""


class Launched(Line):
    """A person, a scheduler or a job ran the command."""

    kind: Literal["launched"] = "launched"
    launch: Count
    """Number of the launch: 1, 2, …"""
    host: str
    pid: Count


class AttemptStarted(Line):
    """The driver asked for workers, at the first time or after an incident."""

    kind: Literal["attempt"] = "attempt"
    launch: Count
    attempt: Count
    """Number of the attempt over all launches: 1, 2, …"""
    workers: Count
    zero_stage: Count
    images: Count
    """Images seen by the checkpoint that it starts from."""


class TrainingStarted(Line):
    """All workers have started, and the first batch is requested."""

    kind: Literal["training"] = "training"
    attempt: Count
    images: Count
    """Images seen so far."""
    device: str
    """Device of the workers, such as `cpu` or `NVIDIA H100 80GB HBM3`."""
    peak_tflops: float | None
    """Peak of one worker's device in the arithmetic used, TFLOP/s. Null if unknown."""
    peak_source: str
    """Source of the peak, as text."""


class Interval(BaseModel):
    """Averages of the steps since the last report."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    means: dict[str, float] | None
    """Further means of the task beside the loss, such as `mse`. Null if every update was skipped."""
    numbers: dict[str, float]
    """Numbers of the task's steps, such as `ar_steps`."""
    learning_rate: float
    """Learning rate of the newest step. `grad_norm` is of that step too."""
    grad_norm: float
    images_per_second: float
    """Over all workers, in the time of the steps, as `tokens_per_second` is."""
    tokens_per_second: float
    tflops_per_worker: float
    data_wait: float
    """Share of the steps' time spent waiting for batches."""
    checkpoint_stall: float
    """Share of the attempt's time so far in which the loop waited for checkpoints."""
    mfu: float | None
    """Model FLOP/s over the devices' peak. Null if the peak is unknown, or lower than what the device has done."""
    system: dict[str, float]
    """Readings of the first worker's machine, by their names in MLflow."""


class StepReport(Line):
    """Progress of training. The journal, MLflow and the terminal all show this report.

    Sums count from the attempt's `training` event.
    """

    kind: Literal["progress"] = "progress"
    attempt: Count
    images: Count
    step: Count
    step_seconds: Seconds
    """Time of optimizer steps, without the wait for their batches."""
    data_seconds: Seconds
    """Time spent waiting for batches."""
    checkpoint_seconds: Seconds
    """Time that the loop waited for checkpoints."""
    grid_seconds: Seconds
    """Time of sample grids."""
    flops: float
    """FLOPs of the steps over all workers: exact for the AR splits drawn, forward and backward."""
    tokens: Count
    """Tokens of the training sequences over all workers."""
    loss: float
    """Weighted loss, averaged over ranks and steps since the last report. NaN if every update was skipped."""
    skipped_steps: Count
    """Steps whose update was skipped."""
    recompilations: Count | None = None
    """Graphs that torch.compile made after the first step of the attempt. Null: blocks are not compiled."""
    gpu_bytes: Count
    """Largest GPU memory of a worker so far."""
    cpu_bytes: Count
    """Largest resident memory of a worker so far."""
    repeated: bool = False
    """The steps were reported before a fault, and were trained again. MLflow has their point."""
    interval: Interval | None = None
    """Null in journals of versions that recorded metrics for MLflow elsewhere."""

    def metrics(self) -> dict[str, float] | None:
        """Return MLflow's point at step `images`. None if MLflow must not get one."""
        now = self.interval
        if now is None or self.repeated:
            return None
        # The dashboard compares runs by the metric that was recorded first.
        values: dict[str, float] = {}
        if now.means is not None:
            values |= {"train/loss": self.loss, **{f"train/{name}": value for name, value in now.means.items()}}
        values |= {
            "train/learning_rate": now.learning_rate,
            "train/grad_norm": now.grad_norm,
            **{f"train/{name}": value for name, value in now.numbers.items()},
            "train/skipped_steps": float(self.skipped_steps),
            "throughput/images_per_second": now.images_per_second,
            "throughput/tokens_per_second": now.tokens_per_second,
            "throughput/tflops_per_worker": now.tflops_per_worker,
            "throughput/data_wait": now.data_wait,
            "throughput/checkpoint_stall": now.checkpoint_stall,
            "memory/cpu_gib": self.cpu_bytes / 2**30,
        }
        if self.recompilations is not None:
            values["train/recompilations"] = float(self.recompilations)
        if now.mfu is not None:
            values["throughput/mfu"] = now.mfu
        if self.gpu_bytes:
            values["memory/gpu_gib"] = self.gpu_bytes / 2**30
        return values | now.system


class Checkpointed(Line):
    """A checkpoint is complete, with its manifest."""

    kind: Literal["checkpoint"] = "checkpoint"
    attempt: Count
    images: Count
    bytes: Count
    stall_seconds: Seconds
    """Time that the loop waited for it."""
    upload_seconds: Seconds
    """Time in the background until the manifest was written."""


class Measured(Line):
    """The samples of a grid were measured."""

    kind: Literal["measured"] = "measured"
    attempt: Count
    images: Count
    values: dict[str, float]
    """Score → value, such as `class_accuracy`."""
    curves: dict[str, float] = Field(default_factory=dict)
    """MLflow's point at step `images`. Empty in journals of versions that recorded it elsewhere."""
    classifier_sha256: str | None = None
    """The classifier behind the scores. None: they depend on none, or an earlier version measured them."""

    def metrics(self) -> dict[str, float] | None:
        """Return MLflow's point at step `images`. None if MLflow must not get one."""
        return self.curves or None


class Probed(Line):
    """The layers of the EMA weights were probed: see `evaluation.probe`."""

    kind: Literal["probed"] = "probed"
    attempt: Count
    images: Count
    """0: the model at random initialization."""
    values: dict[str, float]
    """Kind and layer → accuracy, such as `linear_layer3`."""
    rows: Count
    """Labelled training rows."""
    validation_rows: Count

    def metrics(self) -> dict[str, float] | None:
        """Return MLflow's point at step `images`."""
        return {f"probe/{name}": value for name, value in self.values.items()}


class Adopted(Line):
    """The run continues from another run's checkpoint, with its own settings."""

    kind: Literal["adopted"] = "adopted"
    run: str
    """Name of the other run."""
    images: Count
    """Images seen by the checkpoint."""


class SaveFailed(Line):
    """A checkpoint could not be saved. Earlier ones are untouched."""

    kind: Literal["save failed"] = "save failed"
    attempt: Count
    images: Count
    reason: str


class StepSkipped(Line):
    """The guard skipped an update."""

    kind: Literal["skipped"] = "skipped"
    attempt: Count
    images: Count
    """Images seen before the step."""
    reason: str


class SetAside(Line):
    """A damaged checkpoint was moved away."""

    kind: Literal["set aside"] = "set aside"
    checkpoint: str
    reason: str


class Resharded(Line):
    """A checkpoint was converted to other workers or another ZeRO stage."""

    kind: Literal["resharded"] = "resharded"
    attempt: Count
    images: Count
    old: str
    """Workers and ZeRO stage before, such as `2 workers, ZeRO 1`."""
    new: str
    seconds: Seconds


class Incident(Line):
    """An attempt ended early."""

    kind: Literal["incident"] = "incident"
    attempt: Count
    cause: Cause
    detail: str
    images: Count
    """Images seen when it ended, as far as is known."""


class Ended(Line):
    """A launch ended by itself."""

    kind: Literal["ended"] = "ended"
    launch: Count
    how: End
    detail: str = ""


Event = (
    Launched
    | AttemptStarted
    | TrainingStarted
    | StepReport
    | Checkpointed
    | Measured
    | Probed
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
    """The journal in a run's folder.

    Args:
        run_dir: the run's folder.
        fence: of the launch that writes. Once another launch has taken the run over, nothing is written any more.

    Attributes:
        lost: lines that this object could not write.
        superseded: True if a line was refused because another launch has taken the run over.
    """

    def __init__(self, run_dir: Path, fence: Fence | None = None) -> None:
        self.path, self.lost = RunPaths(run_dir).journal_file, 0
        self.superseded, self._fence = False, fence or NoFence()

    def add(self, line: Event | Record) -> bool:
        """Append a line.

        A full disk must not end a run. A line that cannot be written is lost, with one warning.

        Returns:
            True if it was written.
        """
        if self._is_superseded():
            return False
        # Reasons are the texts of errors, which may quote anything.
        texts = {name: redact(getattr(line, name)) for name in ("detail", "reason") if hasattr(line, name)}
        try:
            append(self.path, line.model_copy(update=texts))
        except (OSError, ValueError) as error:  # a text that is not UTF-8 must not end a run either
            self.lose(error)
            return False
        return True

    def _is_superseded(self) -> bool:
        if not self.superseded:
            try:
                self._fence.check()
            except Superseded:
                self.superseded = True
            except OSError:  # not known: one line more does less harm than one that is missing
                return False
        return self.superseded

    def lose(self, error: Exception) -> None:
        """Count a line that could not be written."""
        self.lost += 1
        if self.lost == 1:
            _log.warning("a line of %s is lost, training goes on: %s (said once)", self.path, error)

    def events(self) -> list[Event]:
        """Return all events in order. Broken and unknown lines are passed over."""
        if not self.path.is_file():
            return []
        return list(_events_in(self.path.read_bytes().splitlines()))


class JournalReader:
    """Read the events of a run's journal as they are added, each once. For readers that poll."""

    def __init__(self, run_dir: Path) -> None:
        self._path, self._read_to = RunPaths(run_dir).journal_file, 0

    def new_events(self) -> list[Event]:
        """Return the events since the last call. The first call returns all, and so does one after a new start."""
        events: list[Event] = []
        if not self._path.is_file() or self._path.stat().st_size < self._read_to:
            self._read_to = 0
        while lines := read_on(self._path, self._read_to):
            self._read_to += sum(map(len, lines))
            events += _events_in(lines)
        return events


def _events_in(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            yield _EVENT.validate_json(line)
        except ValidationError:
            continue


def last_attempt(events: Iterable[Event]) -> int:
    """Return the number of the newest attempt. 0 before the first."""
    return max((event.attempt for event in events if isinstance(event, AttemptStarted)), default=0)


def recorded_images(events: Iterable[Event], kind: type[StepReport | Measured | Probed] = StepReport) -> int:
    """Return the images up to which metrics are recorded. Steps trained again after a fault are not recorded twice.

    After a roll-back they are recorded again, because the order of the data is another.

    Args:
        events: the run's journal.
        kind: the events that carry the metrics.
    """
    recorded, rolled_back = 0, False
    for event in events:
        if isinstance(event, kind):
            recorded = max(recorded, event.images)
        elif isinstance(event, Incident):
            rolled_back = event.cause == "diverged"
        elif isinstance(event, AttemptStarted) and rolled_back:
            recorded, rolled_back = event.images, False
    return recorded
