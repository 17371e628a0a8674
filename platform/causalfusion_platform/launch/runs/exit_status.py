"""How a run ends without having finished, for the one who typed the command and for what schedules it."""

from __future__ import annotations

GAVE_UP = 3
"""Exit status: faults did not stop, or training diverged; the message is the diagnosis."""
STOPPED = 75
"""Exit status: stopped by a signal or a preemption, with a checkpoint; the same command continues (EX_TEMPFAIL)."""


class NotFinished(Exception):
    """The run is not finished, and why."""

    status = GAVE_UP


class StoppedRun(NotFinished):
    """The run was stopped with a checkpoint."""

    status = STOPPED


class GaveUp(NotFinished):
    """The run cannot go on by itself."""
