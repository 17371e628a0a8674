"""Commands to type next, in messages."""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """Return a `causalfusion` command as it is typed in a shell, with quotes where a path needs them."""
    return shlex.join(["causalfusion", *map(str, words)])
