"""Name of the person who submits a job, in the form that owners of runs have."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .owner import USER_VARIABLE as VARIABLE
from .owner import current_user

__all__ = ["VARIABLE", "user_name"]

_LONGEST = 63


def user_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return $CAUSALFUSION_USER, or the system's name of the user as a DNS label. One without a name is `uid-N`.

    Raises:
        UserError: the variable is not a DNS label.
    """
    name = current_user(environ)
    if name is None:
        return f"uid-{os.getuid()}"
    if environ.get(VARIABLE):
        return name
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (label if label[:1].isalpha() else f"user-{label}")[:_LONGEST].rstrip("-")
