"""The platform's log on a console."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from ..config.secrets import redact

PLATFORM = "causalfusion_platform"
"""Logger of everything that the platform reports to a person."""


class ConsoleHandler(logging.Handler):
    """Print records as lines that stay, above a progress bar or live table of the same console.

    Rich's own `RichHandler` breaks lines at the console's width, which cuts commands and paths apart in a file.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        try:
            self.console.print(Text(redact(self.format(record))), soft_wrap=True, highlight=False)
        except Exception:
            self.handleError(record)


@contextmanager
def log_to(console: Console, warnings_of: Sequence[str] = ()) -> Iterator[None]:
    """Print the platform's log, from level INFO, on a console.

    Without this the log goes where `logging` is configured to send it: warnings to stderr by default.

    Args:
        console: the console.
        warnings_of: packages below the platform's, such as `launch.generating`, of which only warnings are printed.
    """
    logger, handler = logging.getLogger(PLATFORM), ConsoleHandler(console)
    quiet = tuple(f"{PLATFORM}.{package}." for package in warnings_of)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or not f"{record.name}.".startswith(quiet))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
