"""Errors of a run that ends without having finished, for users and for schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...config.commands import command
from ...config.errors import GAVE_UP, STOPPED
from ...storage.fence import Superseded


class NotFinished(Exception):
    """The run is not finished, and why."""

    status = GAVE_UP


class StoppedRun(NotFinished):
    """The run was stopped with a checkpoint."""

    status = STOPPED


class GaveUp(NotFinished):
    """The run cannot go on by itself."""


class TakenOver(NotFinished):
    """Another launch has taken the run over."""

    status = STOPPED


@contextmanager
def taken_over(run_dir: Path) -> Iterator[None]:
    """End a launch that finds that another one has taken its run over.

    Raises:
        TakenOver: with both launches and the next command.
    """
    try:
        yield
    except Superseded as error:
        raise TakenOver(
            f"this launch of run {run_dir.name!r} ends: {error}\n"
            f"  it has written nothing more into the run's folder, and its newest checkpoint was not published\n"
            f"  follow the other launch: {command('runs', 'show', run_dir.name)}"
        ) from error
