"""Pickles as a malicious file would hold them."""

from __future__ import annotations

import os
from pathlib import Path


class MakesFolder:
    """A pickle of it makes a folder when it is loaded: what a malicious file would do, and worse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)
