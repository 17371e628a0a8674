"""End of a command: every error becomes one documented exit status and one message.

TRAINING.md lists the statuses. No other module of the program ends it with a status of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ..config.errors import GAVE_UP, STATUSES, STOPPED, WRONG, MachineError, UserError
from ..config.job_end import JOB_VARIABLE, end_line
from ..config.secrets import redact
from ..launch.runs.exit_status import NotFinished, StoppedRun
from .help import WholeHelp

_AGAIN = "the same command starts it again"
_SHOWN = 300
"""Longest part of a path or of a foreign error's message that is shown."""

# Error numbers of the system → exit status and advice. Others are not foreseen.
_FULL = (GAVE_UP, "free space there, then give the same command")
_DENIED = (WRONG, "name a folder that you can write to, or change its permissions")
_PATH = (WRONG, "name another path")
_LIMIT = (GAVE_UP, "close files of other programs or raise the limit (ulimit -n 65536), then give the same command")
_BROKEN = (GAVE_UP, "look at the storage below it, then give the same command")
_OF_SYSTEM = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _DENIED,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENAMETOOLONG: (WRONG, "give a shorter name"),
    errno.ENOENT: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.ELOOP: _PATH,
    errno.EMFILE: _LIMIT,
    errno.ENFILE: _LIMIT,
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
}
_NEED_A_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
_FULL_TEXTS = (os.strerror(errno.ENOSPC).lower(), "disk is full", "storagefull")
"""Texts of a full disk in errors of SQLite and of safetensors, which carry no error number."""
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", os.strerror(errno.ENOMEM).lower())


@dataclass(frozen=True)
class Ending:
    """Exit status of a command that did not succeed, and its message."""

    status: int
    message: str = ""
    """Empty: nobody reads it, or the error was printed before."""


class Commands(WholeHelp):
    """The verbs. Their errors reach `run_to_end` as they were raised."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb of a command line."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _Passed(error) from error


class _Passed(Exception):
    """Carries an error past Typer, which would end the program with a status of its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def run_to_end(command: Callable[[], object]) -> NoReturn:
    """Run a command, print the message of its error, and end this process with a documented status."""
    with _sigterm_stops():
        try:
            try:
                command()
                status: object = 0
            except SystemExit as end:
                status = _checked(end)
            sys.stdout.flush()
        except BaseException as error:
            ending = ending_of(error.error if isinstance(error, _Passed) else error)
            status = ending.status
            if ending.message:
                with contextlib.suppress(OSError, ValueError):  # nobody may read it
                    _print(ending.message)
        if status and JOB_VARIABLE in os.environ:
            with contextlib.suppress(OSError, ValueError):
                _print(end_line(int(str(status))))
        _let_go_of_output()
    sys.exit(status)  # type: ignore[arg-type]  # `_checked` gives numbers alone


def ending_of(error: BaseException) -> Ending:
    """Return the ending of a command that raised an error. The traceback of an unforeseen one goes into a file."""
    if isinstance(error, NotFinished):
        return Ending(error.status, str(error))
    if isinstance(error, MachineError):
        return _error(GAVE_UP, str(error))
    if isinstance(error, UserError) and not _is_of(error, "ray"):
        return _error(error.status, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(STOPPED, f"stopped by Ctrl-C\n  {_AGAIN}")
    if _is_of(error, "ray"):
        from ..launch.cluster.failures import user_error_in

        fault = user_error_in(error)
        if fault is not None:
            return _error(WRONG, str(fault))
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return Ending(STOPPED)
    found = _of_memory(error) or _of_system(error)
    return found or _unforeseen(error)


def _error(status: int, message: str) -> Ending:
    return Ending(status, f"error: {message}")


def _checked(end: SystemExit) -> int:
    """Return the status of a `SystemExit`.

    Raises:
        BrokenPipeError, StoppedRun, MachineError: it stands for another error.
    """
    if end.code is None:
        return 0
    if end.code in STATUSES and not isinstance(end.code, str):
        return int(end.code)
    # Rich ends the program with 1 when the reader of its output is gone.
    cause = end.__context__
    if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
        raise BrokenPipeError from end
    if end.code == signal.SIGTERM:
        raise StoppedRun(f"stopped by SIGTERM\n  {_AGAIN}") from end
    raise MachineError(f"the command ended early: {_shortened(str(end.code))}\n  {_AGAIN}") from end


def _of_memory(error: BaseException) -> Ending | None:
    text = str(error).lower()
    number = error.errno if isinstance(error, OSError) else None
    if not (
        isinstance(error, MemoryError) or number == errno.ENOMEM or any(part in text for part in _MEMORY_TEXTS)
    ):
        return None
    return _error(
        GAVE_UP,
        f"the memory is too small: {_first_line(error)}\n"
        f"  take less at once, such as train.micro_batch_size=N, --batch-size N or fewer --workers; "
        f"sizes: causalfusion train EXPERIMENT --dry-run",
    )


def _of_system(error: BaseException) -> Ending | None:
    known = _OF_SYSTEM.get(error.errno or 0) if isinstance(error, OSError) else None
    named = getattr(error, "filename", None)
    if any(text in str(error).lower() for text in _FULL_TEXTS):
        known = _FULL
    if known is None or (named is None and getattr(error, "errno", None) in _NEED_A_PATH):
        return None
    status, advice = known
    reason = getattr(error, "strerror", None) or _first_line(error)
    place = f"{_shortened(os.fsdecode(named))}: " if isinstance(named, str | bytes | os.PathLike) else ""
    return _error(status, f"{place}{_shortened(str(reason))}\n  {advice}")


def _unforeseen(error: BaseException) -> Ending:
    path = _write_traceback(error)
    if path is None:
        with contextlib.suppress(OSError, ValueError):
            _print("".join(traceback.format_exception(error)))
    where = f"its traceback is in {path}" if path else "its traceback is above"
    return _error(
        GAVE_UP,
        f"{_first_line(error)}\n  this fault was not foreseen; {where}\n"
        f"  give the same command once more, and report the traceback if it fails again",
    )


def _write_traceback(error: BaseException) -> Path | None:
    """Write the traceback where results go, or else among temporary files. Nobody else can read it."""
    text = redact("".join(traceback.format_exception(error)))
    for folder in (_home, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, ValueError):
            prefix = time.strftime("causalfusion-error-%Y%m%d-%H%M%S-")
            file, name = tempfile.mkstemp(prefix=prefix, suffix=".txt", dir=folder())
            with os.fdopen(file, "w", encoding="utf-8", errors="backslashreplace") as opened:
                opened.write(text)
            return Path(name)
    return None


def _home() -> Path:
    from ..config.files import home

    return home()


def _is_of(error: BaseException, package: str) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _shortened(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _reader_is_gone() -> bool:
    """Say whether the program that reads our output has ended. The error may be of another pipe or connection."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLERR)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def _print(message: str) -> None:
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(redact(message))


def _let_go_of_output() -> None:
    """Send output that cannot be written nowhere. Python would try again at its end, and exit with status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Turn SIGTERM into an error that ends the command in order. A training has a handler of its own."""

    def stop(*_: object) -> NoReturn:
        raise SystemExit(signal.SIGTERM)  # as Ray's own handler in a driver does. `except Exception` lets it pass

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
