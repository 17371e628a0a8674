"""Paths of object storage for readers that take a `Path`, such as those of shards."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import IO, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from ..errors import MachineError, UserError
from .objects import (
    CONNECT_SECONDS,
    READ_SECONDS,
    SCHEME,
    TRIES,
    NotThere,
    ObjectInfo,
    ObjectStore,
    ObjectUrl,
    aws_settings,
    is_object_url,
    open_store,
)

T = TypeVar("T")

_BLOCK = 8 * 2**20
"""Bytes of one request of a sequential reader."""
PAUSES = (0.2, 1.0, 4.0)
"""Seconds before each repetition of a read, after those of PyArrow."""


class ObjectPath(PosixPath):
    """Path `s3://BUCKET/KEY` that can be read. It joins, compares and prints as other paths do.

    A use as a name on disk raises `UserError`, such as `open(path)` and `path.mkdir()`. So no folder named `s3:`
    comes into being.
    """

    __slots__ = ()

    @property
    def url(self) -> ObjectUrl:
        """Address of the object, or of those below this path."""
        return ObjectUrl(self.parts[1], "/".join(self.parts[2:]))

    def objects(self) -> dict[str, ObjectInfo]:
        """Return the objects below this path by their keys relative to it. One request answers for 1,000.

        Raises:
            UserError: the store refuses it.
        """
        return {info.key: info for info in open_store(self.url).list()}

    def __str__(self) -> str:
        return f"{SCHEME}://{'/'.join(self.parts[1:])}"

    def __fspath__(self) -> NoReturn:
        raise UserError(
            f"{self} is on object storage, and this needs a path on disk\n"
            f"  copy it: aws s3 sync {self} FOLDER, and give FOLDER"
        )

    def __rtruediv__(self, key: Any) -> ObjectPath:
        return self

    def is_absolute(self) -> bool:
        """Return True: an address does not depend on a folder."""
        return True

    def absolute(self) -> ObjectPath:
        """Return the same path."""
        return self

    def resolve(self, strict: bool = False) -> ObjectPath:  # noqa: ARG002
        """Return the same path. Object storage has no links."""
        return self

    def read_bytes(self) -> bytes:
        """Return the content of the object.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return self._store("parent").read(self.name)

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]
        """Return the object as a file to read bytes from.

        Raises:
            FileNotFoundError: it does not exist.
            UserError: another mode than `rb` is asked for.
        """
        if mode != "rb":
            self.__fspath__()
        return io.BufferedReader(ObjectFile(self), _BLOCK)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002
        """Return the size of the object. The other numbers are 0.

        Raises:
            FileNotFoundError: it does not exist.
        """
        size = self._store("parent").info(self.name).size
        return os.stat_result((0, 0, 0, 0, 0, 0, size, 0, 0, 0))

    def is_file(self) -> bool:
        """Say whether there is an object of this key."""
        if len(self.parts) < 3:
            return False
        try:
            self.stat()
        except NotThere:
            return False
        return True

    def is_dir(self) -> bool:
        """Say whether there are objects below this path."""
        return self._store("").any()

    def exists(self) -> bool:
        """Say whether there is such an object, or one below this path."""
        return self.is_file() or self.is_dir()

    def _store(self, of: str) -> ObjectStore:
        return open_store(self.parent.url if of == "parent" else self.url)


class Unreadable(MachineError):
    """An object could not be read in all attempts.

    It is not an `OSError`, which readers of shards take for damage: the object may be sound.
    """


class ObjectFile(io.RawIOBase):
    """Object to read bytes from, by PyArrow's filesystem. It is opened with the first read.

    PyArrow repeats requests itself, with one exception: it gives up on an error whose text is longer than the bytes
    that were asked for. A footer of Parquet is that short. So reads are repeated here too.
    """

    def __init__(self, path: ObjectPath) -> None:
        super().__init__()
        self._path, self._at = path, 0
        self._file = self._patiently(lambda: _filesystem_of(path).open_input_file("/".join(path.parts[1:])))
        self._size: int = self._file.size()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, counted as other files do."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the present place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with one request. Return the number of bytes.

        Raises:
            Unreadable: the store did not give them in all attempts.
        """
        number = min(len(buffer), max(self._size - self._at, 0))
        if not number:
            return 0
        found = self._patiently(lambda: self._file.read_at(number, self._at))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """Close the file."""
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

    def _patiently(self, read: Callable[[], T]) -> T:
        pauses = list(PAUSES)
        while True:
            try:
                return read()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                if not pauses or "ACCESS_DENIED" in str(error):
                    cause = " ".join(str(error).split())[:200]
                    raise Unreadable(
                        f"{self._path} cannot be read: {cause}\n  give the same command when the store answers"
                    ) from error
                time.sleep(pauses.pop(0))


def as_path(text: str | Path) -> Path:
    """Return the path that a text names: on object storage for `s3://…`, otherwise on disk.

    Raises:
        UserError: it is an address of another scheme, or a wrong one.
    """
    if isinstance(text, ObjectPath) or not is_object_url(text):
        return Path(text) if isinstance(text, str) else text
    return ObjectPath(str(ObjectUrl.parse(text)))


def _filesystem_of(path: ObjectPath) -> Any:
    store = open_store(path.url)
    return _filesystem(aws_settings(), store.endpoint, store.region)


@lru_cache(maxsize=4)
def _filesystem(_settings: tuple[tuple[str, str], ...], endpoint: str, region: str) -> Any:
    """Return PyArrow's filesystem, which finds credentials by itself, as boto3 does.

    Credentials are not handed over, because those of a role expire during a training.
    """
    from pyarrow import fs

    parts = urlsplit(endpoint)
    own = not (parts.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    address = {"endpoint_override": parts.netloc, "scheme": parts.scheme} if own else {}
    return fs.S3FileSystem(
        region=region,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        **address,
    )
