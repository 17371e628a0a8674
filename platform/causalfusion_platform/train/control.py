"""Between the training loop and whoever supervises it: requests to stop, and signs of life."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from .loop import StepResult, TrainLoop

logger = logging.getLogger(__name__)

StopReason = Literal["stopped", "preempted", "storage"]
_CODES: tuple[StopReason, ...] = ("stopped", "preempted", "storage")
"""In order of urgency: where ranks have heard of different reasons, the last one counts."""

STARTING = ("start", "find the checkpoint", "build the engine")
"""Marks before the first step: hashing, converting and compiling take as long as they take."""


class Stopped(Exception):
    """Training ended early, on all ranks at the same step, with a checkpoint; the same command continues it.

    For the reason `storage` there is no checkpoint: it is what could not be written.
    """

    def __init__(self, reason: StopReason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason, self.detail = reason, detail


class Control(Protocol):
    """What a training process hears from outside, and lets others know."""

    images: int
    """How far training is, as last marked."""

    def stop_wanted(self) -> StopReason | None:
        """Return why this process has been asked to stop, if it has; must not wait."""

    def mark(self, doing: str, images: int, /) -> None:
        """Give a sign of life: what is done now, and how far training is."""

    def note(self, text: str) -> None:
        """Tell the person at the terminal."""


@dataclass
class LocalControl:
    """Control of a process on its own: whoever holds the object asks it to stop."""

    stop: StopReason | None = None
    images: int = 0

    def stop_wanted(self) -> StopReason | None:
        """Return what was asked for."""
        return self.stop

    def mark(self, _: str, images: int) -> None:
        """Note how far training is; nobody watches a process on its own."""
        self.images = images

    def note(self, text: str) -> None:
        """Tell the person at the terminal."""
        logger.info(text)


class Consensus:
    """Agree over all ranks on stopping, so that all stop after the same step."""

    def __init__(self) -> None:
        # On CPUs, beside NCCL: a small message that does not wait for the GPU's queue.
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


class StopHook:
    """After each step: give a sign of life, and stop if any rank was asked to."""

    every_images = 1
    at_end = False

    def __init__(
        self,
        control: Control,
        save_now: Callable[[TrainLoop, StopReason], None],
        storage_fails: Callable[[], bool],
    ) -> None:
        self.control, self.save_now, self.storage_fails = control, save_now, storage_fails
        self.consensus = Consensus()

    def observe(self, result: StepResult) -> None:
        """Nothing to keep."""

    def run(self, loop: TrainLoop) -> None:
        """Stop together, with a checkpoint.

        Raises:
            Stopped: some rank was asked to stop; on all ranks, after the same step.
        """
        self.control.mark("train", loop.state.images_seen)
        mine = "storage" if self.storage_fails() else self.control.stop_wanted()
        reason = self.consensus.agree(mine)
        if reason is None:
            return
        if reason != "storage":
            self.save_now(loop, reason)
        raise Stopped(reason)
