"""First line of a command whose imports take seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder

_SLOW = ("torch", "ray", "mlflow")


@contextmanager
def first_line(arguments: Sequence[str]) -> Iterator[None]:
    """Say on stderr that a command loads libraries, when the first slow one is imported.

    Help, refused options and commands that need no such library print nothing more than they are asked for.

    Args:
        arguments: the command line without its first word.
    """
    words = [word for word in arguments[:2] if not word.startswith("-") and "=" not in word]
    finder = _Finder(" ".join(words))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):  # it has removed itself
            sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Watch imports, and leave them to the other finders."""

    def __init__(self, command: str) -> None:
        self.command = command

    def find_spec(self, name: str, *_: object) -> None:
        """Print the line at the first import of a slow library."""
        if name in _SLOW:
            sys.meta_path.remove(self)
            print(f"{self.command}: loading libraries", file=sys.stderr, flush=True)
