"""Files and folders that operating systems, archive tools and editors leave beside images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

SYSTEM_NAMES = (
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "Icon\r",
)
"""Names that never hold images, in any case of letters. Hidden names (`.DS_Store`, `._1.jpg`, `.ipynb_checkpoints`)
and backups of editors (`1.jpg~`) count too.
"""

_SYSTEM = re.compile(
    rf"(?:^|/)(?:\.(?!\.?(?:/|$))[^/]*|[^/]*~|{'|'.join(map(re.escape, SYSTEM_NAMES))})(?:/|$)", re.IGNORECASE
)


def system_part(name: str) -> str | None:
    """Return the path up to its first system file or folder, or None without one. Folders end with a slash."""
    found = _SYSTEM.search(name)
    return name[: found.end()] if found else None


def count_system_names(left_out: Iterable[str]) -> dict[str, int]:
    """Return how often each system name was left out, the most frequent first. AppleDouble files count as `._*`."""
    names = (path.rstrip("/").rpartition("/")[2] + "/" * path.endswith("/") for path in left_out)
    return dict(Counter("._*" if name.startswith("._") else name for name in names).most_common())
