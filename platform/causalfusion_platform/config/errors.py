"""The error a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is wrong; the message names the value, the place, what is allowed, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
