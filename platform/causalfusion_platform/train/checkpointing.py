"""Save checkpoints from the training loop: contents and times."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..checkpoint import store
from ..checkpoint.engine_state import save_engine
from ..checkpoint.manifest import Facts
from ..checkpoint.save import Failed, SavedCheckpoint, Saver
from ..tracking.journal import Checkpointed, Journal, SaveFailed
from .control import Control, Stopped, StopReason
from .guard import Diverged, Guard
from .loop import Hook, TrainLoop
from .metrics import MetricsHook, Spent

FAILED_SAVES = 3
"""Failed saves in a row after which the run stops, since further training could be lost."""
_ROOM = 1.25
"""Free space wanted in the staging folder, as a multiple of the largest checkpoint so far."""


SaveWeights = Callable[[Path, dict[str, Tensor]], None]
"""Writes whole weights (parameter → fp32 tensor) into a folder, as `model.safetensors` and more."""


class NotSaved(Exception):
    """The last checkpoint of a run, or too many in a row, could not be saved."""


@dataclass(frozen=True)
class Fixed:
    """Fields of `CheckpointManifest` that all checkpoints of an attempt share."""

    config_digest: str
    data_digest: str
    versions: dict[str, str]
    precision: str


class CheckpointHook(Hook):
    """Save periodically, at the end, and when training is stopped."""

    at_end = True

    def __init__(
        self,
        every_images: int,
        saver: Saver,
        fixed: Fixed,
        *,
        guard: Guard,
        metrics: MetricsHook,
        spent: Spent,
        control: Control,
        journal: Journal | None,
        attempt: int,
        save_weights: SaveWeights,
        mlflow_run_id: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.every_images = every_images
        self.saver, self.fixed, self.save_weights = saver, fixed, save_weights
        self.guard, self.metrics, self.spent, self.control = guard, metrics, spent, control
        self.journal, self.attempt, self.mlflow_run_id = journal, attempt, mlflow_run_id
        self.saved_at: int | None = None
        self.stalls: dict[int, float] = {}
        self.failures = 0
        self.superseded = False
        """True once a save was refused because another launch has taken the run over."""
        self.largest = 0
        """Bytes of the largest checkpoint saved so far."""

    def run(self, loop: TrainLoop) -> None:
        """Save the engine, the averages and the weights. All ranks call it together.

        Raises:
            Diverged: the weights are not finite. Nothing is saved.
            NotSaved: this was the end, and it could not be saved.
        """
        started, images = time.perf_counter(), loop.state.images_seen
        self.control.mark("checkpoint", images)
        _check_finite(loop)
        self._stage(loop)
        self.saved_at = images
        self.stalls[images] = time.perf_counter() - started
        self.spent.checkpoints += self.stalls[images]
        if loop.state.step >= loop.experiment.train.steps:
            self.finish()

    def now(self, loop: TrainLoop, reason: StopReason) -> None:
        """Save because training stops here, unless it was just done. Return when the checkpoint is complete."""
        self.control.note(f"{reason}: saving a checkpoint at {loop.state.images_seen} images")
        loop.settle()
        self.metrics.run(loop)  # steps that no later report would contain
        if self.saved_at != loop.state.images_seen:
            self.run(loop)
        self.finish()

    def finish(self) -> None:
        """Wait until all ranks have finished saving.

        Raises:
            NotSaved: the newest checkpoint could not be saved. Every rank raises it.
            Stopped: another launch has taken the run over. Every rank raises it.
        """
        self._tell(self.saver.wait())
        ended = [self.failures, self.superseded]
        torch.distributed.broadcast_object_list(ended)  # the first rank knows whether the manifest was written
        failures, superseded = ended
        if superseded:
            raise Stopped("superseded")
        if failures:
            raise NotSaved(f"the checkpoint at {self.saved_at} images could not be saved")

    def storage_fails(self) -> bool:
        """Report finished saves, and return whether too many have failed. Does not wait."""
        self._tell(self.saver.poll())
        return self.failures >= FAILED_SAVES

    def _stage(self, loop: TrainLoop) -> None:
        images, rank = loop.state.images_seen, torch.distributed.get_rank()
        faults: list[Exception] = []
        folder = self._staging_folder(images, faults)
        if not self._all_have_room(folder, loop):
            self.saver.fail(str(faults[0]) if faults else "no room in the staging folder of some worker")
            return
        assert folder is not None
        try:
            save_engine(loop.engine, folder / "engine")
        except OSError as error:  # reported when all ranks are through
            faults.append(error)
        averages, experiment = loop.averages, loop.experiment
        for index, profile in enumerate(averages.profiles):
            weights = averages.full_state(profile.name)  # a collective, also after a failed write
            if rank == 0 and not faults:
                to = folder / (store.WEIGHTS_FOLDER if index == 0 else f"{store.AVERAGES_FOLDER}/{profile.name}")
                try:
                    self.save_weights(to, weights)
                except (OSError, SafetensorError) as error:
                    faults.append(error)
        loss = self.metrics.take_loss()
        if faults:
            self.saver.fail(f"{folder.parent}: {faults[0]}")
            return
        self.saver.submit(
            Facts(
                step=loop.state.step,
                images_seen=images,
                order=loop.state.order,
                seed=experiment.seed,
                world_size=torch.distributed.get_world_size(),
                zero_stage=experiment.train.stage,
                **vars(self.fixed),
                mlflow_run_id=self.mlflow_run_id(),
                metrics={} if loss is None else {"loss": loss},
                grad_norms=list(self.guard.norms),
                averages=[profile.name for profile in averages.profiles],
            )
        )

    def _staging_folder(self, images: int, faults: list[Exception]) -> Path | None:
        try:
            folder = self.saver.begin(images)
            if shutil.disk_usage(folder).free < _ROOM * self.largest:
                raise OSError(f"no room in the staging folder {folder.parent}")
        except OSError as error:
            faults.append(error)
            return None
        return folder

    def _all_have_room(self, folder: Path | None, loop: TrainLoop) -> bool:
        """Return whether all ranks can write. One that cannot would leave the others waiting for ever."""
        room = torch.tensor([float(folder is not None)], device=loop.device)
        torch.distributed.all_reduce(room, torch.distributed.ReduceOp.MIN)
        return bool(room)

    def _tell(self, outcomes: list[SavedCheckpoint | Failed]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Failed) and outcome.superseded:
                self.superseded = True
                self.control.note(f"checkpoint at {outcome.images_seen} images not published: {outcome.reason}")
                continue
            if isinstance(outcome, Failed):
                # The first rank gets the outcome of every save. The others get their own failures alone.
                self.failures += self.saver.rank == 0
                self.control.note(f"checkpoint not saved: {outcome.reason}; those before it are untouched")
                if self.journal:
                    failed = SaveFailed(attempt=self.attempt, images=outcome.images_seen, reason=outcome.reason)
                    self.journal.add(failed)
                continue
            self.failures = 0
            self.largest = max(self.largest, outcome.bytes)
            if self.journal:
                self.journal.add(
                    Checkpointed(
                        attempt=self.attempt,
                        images=outcome.images_seen,
                        bytes=outcome.bytes,
                        stall_seconds=self.stalls.pop(outcome.images_seen, 0.0),
                        upload_seconds=outcome.upload_seconds,
                    )
                )


def _check_finite(loop: TrainLoop) -> None:
    """Check that the average, and with it the weights, is free of NaN and Inf."""
    finite = torch.tensor([float(loop.averages.finite())], device=loop.device)
    torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    if not float(finite):
        raise Diverged("the weights are no longer finite; they are not saved")
