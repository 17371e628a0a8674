"""Home directory of the user, also where there is none."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path with the home directory in place of `~`. It stays as it is where that is unknown."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises for a user without a home)


def ray_token_file() -> Path:
    """Return the file of Ray's token, where Ray looks for it."""
    return expanded("~/.ray/auth_token")
