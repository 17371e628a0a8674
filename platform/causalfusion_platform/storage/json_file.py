"""Reading of small JSON files that people or other programs may have changed: bounded in size, depth and time."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from .object_path import ObjectPath

LARGEST = 16 << 20
"""Bytes above which a file is refused. Its tree in memory may be twenty times larger."""
_SHOWN = 200

_Model = TypeVar("_Model", bound=BaseModel)
_Parsed = TypeVar("_Parsed")
_TREE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class Damaged(ValueError):
    """A file is not what it should be. The message names the file and its first fault."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_model(path: Path, kind: type[_Model], largest: int = LARGEST) -> _Model:
    """Read a JSON file as a model.

    Nesting is limited to about 200 levels, which pydantic's parser does.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not a file, cannot be read, is larger than `largest` bytes, or is not of this kind.
    """
    return _parsed(path, largest, kind.model_validate_json)


def read_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not a file, cannot be read, is larger than `largest` bytes, or holds no object.
    """
    return _parsed(path, largest, _TREE.validate_json)


def parse_line(line: bytes) -> Any:
    """Parse one JSON value.

    Raises:
        ValueError: it is not JSON, or is nested deeper than about 200 levels.
    """
    return from_json(line, allow_inf_nan=True)


def read_bounded(path: Path, largest: int) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not a file, cannot be read, or is larger than `largest` bytes.
    """
    if isinstance(path, ObjectPath):
        return _read_object(path, largest)
    try:
        # A pipe would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Damaged(path, "it is not a file")
            content = file.read(largest + 1)
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise Damaged(path, "it is a folder, not a file") from None
    except OSError as error:
        raise Damaged(path, f"it cannot be read: {error.strerror or error}") from error
    if len(content) > largest:
        raise Damaged(path, f"it is larger than {largest:,} bytes")
    return content


def _read_object(path: ObjectPath, largest: int) -> bytes:
    if path.stat().st_size > largest:
        raise Damaged(path, f"it is larger than {largest:,} bytes")
    return path.read_bytes()


def _parsed(path: Path, largest: int, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    content = read_bounded(path, largest)
    try:
        return parse(content)
    except ValidationError as error:
        raise Damaged(path, first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """Return the place and the reason of a model's first fault."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, fault["loc"]))[:_SHOWN] or "the file"
    return f"{where}: {fault['msg'][:_SHOWN]}"
