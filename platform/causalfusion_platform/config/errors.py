"""Error that the user can correct."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input by the user. The message names the value, its place, the allowed values, and the next command.

    The command line prints it without a traceback and exits with status 2.
    """
