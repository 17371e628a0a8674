"""Make up for what the environment of a command may lack: UTF-8, the user's name, a home directory."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path


def prepare() -> None:
    """Set up this process and those that it starts, such as Ray's, before anything else is imported.

    - Files and their names are UTF-8. Python must be started again if the locale says otherwise.
    - A character that the output cannot show is written as its number.
    - A user id without a name, as in many containers, gets one. Libraries ask for it.
    - A user without a home gets a private folder for the caches of libraries.
    """
    if sys.getfilesystemencoding().lower() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test may have replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"uid-{os.getuid()}"
    if os.path.expanduser("~") == "~":  # noqa: PTH111 (pathlib raises here)
        folder = Path(tempfile.gettempdir()) / f"causalfusion-home-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        ours = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
        os.environ["HOME"] = str(folder) if ours else tempfile.mkdtemp()
