"""Exit statuses of the program, and errors that end a command with one message."""

from __future__ import annotations

from ..errors import MachineError as MachineError
from ..errors import NotNow as NotNow
from ..errors import UserError as UserError

WRONG = 2
"""Exit status: something given is wrong, such as a value, a file or a folder. The message names it."""
GAVE_UP = 3
"""Exit status: faults did not stop, training diverged, or a fault was not foreseen. The message says which."""
STOPPED = 75
"""Exit status (EX_TEMPFAIL): stopped by a signal or a preemption, a training with a checkpoint.

The same command continues it.
"""
JOB_INTERRUPTED = 130
"""Exit status of `submit` after Ctrl-C (128 + SIGINT). The job itself goes on."""
JOB_STOPPED = 143
"""Exit status of `submit` when someone stopped the job (128 + SIGTERM, the signal that `ray job stop` sends)."""
STATUSES = (0, WRONG, GAVE_UP, STOPPED, JOB_INTERRUPTED, JOB_STOPPED)
"""Every exit status of the program."""
STATUS_NAMES = {
    0: "finished",
    WRONG: "wrong argument",
    GAVE_UP: "gave up",
    STOPPED: "continue later",
    JOB_INTERRUPTED: "interrupted",
    JOB_STOPPED: "stopped",
}
"""Names of the exit statuses, in lists of jobs."""
