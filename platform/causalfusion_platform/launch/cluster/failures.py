"""What went wrong at the bottom of an error that came through Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...config.errors import UserError
from ...ray_private import inner_errors
from ...tracking.journal import Cause

# Ray Data writes advice of its own below the message of whatever a task raises.
_RAY_DATA_ADDS = "\nFailed to apply UDF transform"
# What a rank raises when another one goes away in the middle of a collective.
_COLLATERAL = re.compile(
    r"connection closed by peer|connection reset|broken pipe|nccl|gloo|\b(tcp)?store\b|socket", re.IGNORECASE
)


@dataclass(frozen=True)
class Hang:
    """No worker got on for too long."""

    detail: str
    stacks: Path
    """Folder with the stacks of all workers."""


class Lost(Exception):
    """The workers are gone without having said how their training ended."""

    def __init__(self, error: BaseException | None, hang: Hang | None, images: int) -> None:
        super().__init__(str(error))
        self.error, self.hang, self.images = error, hang, images


def user_error_in(error: BaseException) -> UserError | None:
    """Return the fault that the user can mend among an error's causes, as it was raised, or None.

    Ray Train keeps the errors of its workers in `worker_failures`, each with a `_base_exc`; Ray wraps what a task
    or an actor raises, as often as it passes through one, and keeps the original as `cause`.
    """
    for one in _causes(error):
        if type(one) is UserError:
            return UserError(str(one).partition(_RAY_DATA_ADDS)[0])
    return None


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """Return what ended an attempt, and its message.

    When one worker is lost the others fail too, in whatever they wait for: what names a lost process counts more
    than what its peers say.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
    from ray.train import ControllerError, PreemptionError, WorkerGroupError

    if isinstance(error, Lost):
        if error.hang is not None:
            return "hang", error.hang.detail
        if error.error is None:
            return "worker", "the workers ended without a word"
        error = error.error
    # What lies deepest says most: the messages of what is wrapped around it begin with a heading.
    causes = sorted(_causes(error), key=lambda one: bool(inner_errors(one)))
    for one in causes:
        if isinstance(one, PreemptionError) or (isinstance(one, RayActorError) and one.preempted):
            return "preempted", _first(one)
    for one in causes:
        if isinstance(one, OutOfMemoryError) or "out of memory" in str(one).lower():
            return "memory", _first(one)
    for one in causes:
        if isinstance(one, NodeDiedError) or "node has died" in str(one).lower() or "node died" in str(one).lower():
            return "node", _first(one)
    lost = [one for one in causes if isinstance(one, RayActorError)]
    if lost and not any(isinstance(one, WorkerGroupError) for one in causes):
        return "controller", _first(lost[0])
    if lost:
        return "worker", _first(lost[0])
    if any(isinstance(one, ControllerError) for one in causes):
        return "controller", _first(causes[0])
    deepest = [one for one in causes if not inner_errors(one)] or causes
    own = [one for one in deepest if not _is_collateral(one)]
    return ("error", _first(own[0])) if own else ("worker", _first(deepest[0]))


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


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
