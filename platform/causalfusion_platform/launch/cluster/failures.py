"""Causes of errors that come through Ray: which process, node or fault of the user is behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...config.errors import UserError
from ...ray_private import inner_errors, started_too_slowly
from ...tracking.journal import Cause

# Ray Data adds advice of its own below the message of an error in a task.
_RAY_DATA_ADDS = "\nFailed to apply UDF transform"
# Messages of a rank whose peer was lost in the middle of a collective.
_COLLATERAL = re.compile(
    r"connection closed by peer|connection reset|broken pipe|nccl|gloo|\b(tcp)?store\b|socket", re.IGNORECASE
)


@dataclass(frozen=True)
class Hang:
    """A failure without an error: no worker made progress for too long."""

    detail: str
    stacks: Path
    """Folder with the stacks of all workers."""


class Lost(Exception):
    """All workers have ended, and none reported an end of the training."""

    def __init__(self, error: BaseException | None, hang: Hang | None, images: int) -> None:
        super().__init__(str(error))
        self.error, self.hang, self.images = error, hang, images


def user_error_in(error: BaseException) -> UserError | None:
    """Return the `UserError` among the causes of an error, as it was raised, or None.

    Ray wraps an error once for each task or actor that it passes through.
    """
    for one in _causes(error):
        if type(one) is UserError:
            return UserError(str(one).partition(_RAY_DATA_ADDS)[0])
    return None


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """Return the cause of a failed attempt, and the message of the error that shows it.

    When one worker is lost, the others fail in the collective that they wait for. An error that names a lost
    process therefore counts more than those of its peers.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
    from ray.train import ControllerError, PreemptionError, WorkerGroupError

    if isinstance(error, Lost):
        if error.hang is not None:
            return "hang", error.hang.detail
        if error.error is None:
            return "worker", "the workers ended without a word"
        error = error.error
    # The innermost error says most: the messages of those around it begin with a heading.
    causes = sorted(_causes(error), key=lambda one: bool(inner_errors(one)))
    for one in causes:
        if isinstance(one, PreemptionError) or (isinstance(one, RayActorError) and one.preempted):
            return "preempted", first_line(one)
    for one in causes:
        if started_too_slowly(one):
            return "start", first_line(one)
    for one in causes:
        if isinstance(one, OutOfMemoryError) or "out of memory" in str(one).lower():
            return "memory", first_line(one)
    for one in causes:
        if isinstance(one, NodeDiedError) or "node has died" in str(one).lower() or "node died" in str(one).lower():
            return "node", first_line(one)
    lost = [one for one in causes if isinstance(one, RayActorError)]
    if lost and not any(isinstance(one, WorkerGroupError) for one in causes):
        return "controller", first_line(lost[0])
    if lost:
        return "worker", first_line(lost[0])
    if any(isinstance(one, ControllerError) for one in causes):
        return "controller", first_line(causes[0])
    deepest = [one for one in causes if not inner_errors(one)] or causes
    own = [one for one in deepest if not _is_collateral(one)]
    return ("error", first_line(own[0])) if own else ("worker", first_line(deepest[0]))


def _is_collateral(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _COLLATERAL.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], set()
    while pending:
        error = pending.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        pending += inner_errors(error)


def first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
