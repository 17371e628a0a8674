"""Access to all filesystems of PyArrow and fsspec: local paths, object stores, archives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
from pyarrow import fs

from ...config.errors import UserError
from ...storage.home import expanded

T = TypeVar("T")

_TRIES = 3
_PAUSE_S = 0.1


def locate(location: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path or URL, and the path inside it.

    A local path becomes absolute, because readers run in other processes. PyArrow's own filesystems come first.
    fsspec serves the other URLs (`memory://…`, `zip://::images.zip`).

    Raises:
        UserError: neither supports the URL.
    """
    if not is_url(location):
        return fs.LocalFileSystem(), os.path.abspath(expanded(location))  # noqa: PTH100 (links stay)
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (pa.ArrowException, ValueError, ImportError) as refused:
        try:
            handler, path = fsspec.core.url_to_fs(location)
        except (ImportError, ValueError, OSError) as error:
            reason = error if isinstance(refused, pa.ArrowInvalid) else refused
            raise UserError(
                f"{location} cannot be opened: {reason}\n"
                f"  give a local path, or a URL that PyArrow or an installed fsspec filesystem can read"
            ) from error
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(handler))
    except OSError as error:
        raise UserError(f"{location} cannot be opened: {error}\n  check the address and its options") from error
    return filesystem, path if path == "/" else path.rstrip("/")


def is_url(location: str) -> bool:
    """Return True for a URL and False for a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)", location) is not None


def read_whole(filesystem: fs.FileSystem, path: str) -> bytes:
    """Return the content of a file as stored."""
    with filesystem.open_input_file(path) as file:
        content: bytes = file.read()
    return content


def read_patiently(read: Callable[[], T]) -> T | OSError:
    """Return the result of `read`, or the error of the third failed attempt.

    Final errors of the storage, such as a missing file or permission, are not retried.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S * 4 ** (attempt - 1))
        try:
            return read()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            return error
        except Exception as error:  # fsspec's filesystems raise their clients' own exceptions
            failure = error
    return failure if isinstance(failure, OSError) else OSError(f"{type(failure).__name__}: {failure}")
