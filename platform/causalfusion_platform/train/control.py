"""Requests to stop training, and signs of life for the supervisor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from .loop import Hook, RunsAtOnce, TrainLoop

logger = logging.getLogger(__name__)

StopReason = Literal["stopped", "preempted", "storage", "superseded"]
_CODES: tuple[StopReason, ...] = ("stopped", "preempted", "storage", "superseded")
"""Reasons in order of urgency. Where ranks have different ones, the last counts."""

STARTING = ("start", "find the checkpoint", "build the engine")
"""Marks before the first step, with a time limit of their own: hashing, converting, compiling."""


class Stopped(Exception):
    """Training ended early, on all ranks at the same step, with a checkpoint.

    The same command continues it. With the reason `storage` the checkpoint could not be written. With the reason
    `superseded` another launch has taken the run over, and nothing is written.
    """

    def __init__(self, reason: StopReason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason, self.detail = reason, detail


class Control(Protocol):
    """Requests to a training process, and its reports to others."""

    images: int
    """Images seen at the newest mark."""

    def stop_wanted(self) -> StopReason | None:
        """Return the reason for which this process has been asked to stop, if any. Must not wait."""

    def mark(self, doing: str, images: int, /) -> None:
        """Give a sign of life: the present activity, and the images seen."""

    def note(self, text: str) -> None:
        """Show a message at the terminal."""


@dataclass
class LocalControl:
    """Control of a process on its own, which stops when `stop` is set."""

    stop: StopReason | None = None
    images: int = 0

    def stop_wanted(self) -> StopReason | None:
        """Return `stop`."""
        return self.stop

    def mark(self, _: str, images: int) -> None:
        """Keep the images seen. A process on its own has no supervisor."""
        self.images = images

    def note(self, text: str) -> None:
        """Show a message at the terminal."""
        logger.info(text)


class Consensus:
    """Agree over all ranks on stopping, so that all stop after the same step."""

    def __init__(self) -> None:
        # With NCCL, gloo sends the small message on the CPU, so that it does not wait for the GPU's queue.
        nccl = torch.distributed.get_backend() != "gloo"
        self.group = torch.distributed.new_group(backend="gloo") if nccl else None
        self.alone = torch.distributed.get_world_size() == 1

    def agree(self, reason: StopReason | None) -> StopReason | None:
        """Return the most urgent reason of all ranks, which must all call it."""
        code = 0 if reason is None else 1 + _CODES.index(reason)
        if not self.alone:
            codes = torch.tensor([code])
            torch.distributed.all_reduce(codes, torch.distributed.ReduceOp.MAX, group=self.group)
            code = int(codes)
        return _CODES[code - 1] if code else None


class StopHook(Hook, RunsAtOnce):
    """Give a sign of life after each step, and stop if any rank was asked to."""

    every_images = 1
    at_end = False

    def __init__(
        self,
        control: Control,
        save_now: Callable[[TrainLoop, StopReason], None],
        storage_fails: Callable[[], bool],
        superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.control, self.save_now = control, save_now
        self.storage_fails, self.superseded = storage_fails, superseded
        self.consensus = Consensus()

    def run(self, loop: TrainLoop) -> None:
        """Stop together, with a checkpoint unless none can be written.

        Raises:
            Stopped: some rank was asked to stop. All ranks raise it after the same step.
        """
        self.control.mark("train", loop.state.images_seen)
        mine: StopReason | None = "storage" if self.storage_fails() else self.control.stop_wanted()
        reason = self.consensus.agree("superseded" if self.superseded() else mine)
        if reason is None:
            return
        if reason not in ("storage", "superseded"):
            self.save_now(loop, reason)
        raise Stopped(reason)
