"""Errors that end a command with one message. Every package raises them, storage below the others too."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input by the user. The message names the value, its place, the allowed values, and the next command.

    The command line prints it without a traceback and exits with its status.
    """

    status = 2


class NotNow(UserError):
    """A cluster or a service does not allow it now. The same command may succeed later, without any change."""


class MachineError(Exception):
    """Fault of the machine or of a service, with correct input. The message names it, and the next command.

    The command line prints it without a traceback and exits with status 3.
    """
