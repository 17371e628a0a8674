"""The user whose runs a command starts, where several share a cluster."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping

from .errors import UserError

USER_VARIABLE = "CAUSALFUSION_USER"
_LONGEST = 63
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMELESS = re.compile(r"uid-\d+")
"""Name of a user id without a name: see `cli.surroundings`. It tells nobody apart, since containers choose ids."""


def current_user(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the user of this process: CAUSALFUSION_USER, or the system's user. None: the system has no name.

    All jobs of a cluster may be of one user of the system. There the variable tells the users apart.

    Raises:
        UserError: the variable is not a DNS label.
    """
    given = environ.get(USER_VARIABLE)
    if given:
        if not _LABEL.fullmatch(given):
            raise UserError(
                f"{USER_VARIABLE}={given!r:.80} is not a DNS label: lower-case letters, digits and hyphens, first "
                f"a letter, no hyphen at the end, at most 63 characters\n"
                f"  choose another name, such as {USER_VARIABLE}=alice"
            )
        return given
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return None
    return None if _NAMELESS.fullmatch(name) else name


def user_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return $CAUSALFUSION_USER, or the system's name of the user as a DNS label. One without a name is `uid-N`.

    Raises:
        UserError: the variable is not a DNS label.
    """
    name = current_user(environ)
    if name is None:
        return f"uid-{os.getuid()}"
    if environ.get(USER_VARIABLE):
        return name
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (label if label[:1].isalpha() else f"user-{label}")[:_LONGEST].rstrip("-")
