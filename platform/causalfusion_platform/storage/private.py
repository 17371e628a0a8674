"""Folders among the temporary files of a machine that only their user can enter."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def make_private(folder: Path) -> Path:
    """Make a folder with mode 0700, or check that it is this user's, and return it.

    Another user may have made it first, or put a link in its place, to read or replace the files to come.

    Raises:
        PermissionError: it is not a folder of this user.
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            reason = "it is a link" if stat.S_ISLNK(found.st_mode) else "it is a file"
        elif found.st_uid != os.geteuid():
            reason = f"it belongs to user {found.st_uid}"
        else:
            reason = None
        if reason:
            raise PermissionError(errno.EPERM, f"{reason}, not a folder of this user alone", str(folder)) from None
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:  # made by an earlier version, or with another umask
        folder.chmod(0o700)
    return folder
