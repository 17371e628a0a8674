"""Commands to type next, in messages."""

from __future__ import annotations

import shlex

RECHECK = "--recheck"
"""Option that tries a command again which a job of a cluster was refused before."""


def command(*words: object) -> str:
    """Return a `causalfusion` command as it is typed in a shell, with quotes where a path needs them."""
    return shlex.join(["causalfusion", *map(str, words)])
