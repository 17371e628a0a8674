"""Exit statuses and errors of a run that ends without having finished, for users and for schedulers."""

from __future__ import annotations

GAVE_UP = 3
"""Exit status: faults did not stop, or training diverged. The message is the diagnosis."""
STOPPED = 75
"""Exit status (EX_TEMPFAIL): stopped by a signal or a preemption, with a checkpoint.

The same command continues the run.
"""


class NotFinished(Exception):
    """The run is not finished, and why."""

    status = GAVE_UP


class StoppedRun(NotFinished):
    """The run was stopped with a checkpoint."""

    status = STOPPED


class GaveUp(NotFinished):
    """The run cannot go on by itself."""
