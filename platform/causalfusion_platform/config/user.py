"""Name of the person for whom a command runs."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping

VARIABLE = "CAUSALFUSION_USER"


def user_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return $CAUSALFUSION_USER, or the system's name of the user. A user without a name is `uid-N`."""
    if given := environ.get(VARIABLE, "").strip():
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return f"uid-{os.getuid()}"
