"""Errors of a run that ends without having finished, for users and for schedulers."""

from __future__ import annotations

from ...config.errors import GAVE_UP, STOPPED


class NotFinished(Exception):
    """The run is not finished, and why."""

    status = GAVE_UP


class StoppedRun(NotFinished):
    """The run was stopped with a checkpoint."""

    status = STOPPED


class GaveUp(NotFinished):
    """The run cannot go on by itself."""
