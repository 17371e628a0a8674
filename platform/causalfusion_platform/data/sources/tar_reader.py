"""Reading of images inside tars, without unpacking them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from pyarrow import fs

from .filesystem import read_patiently


@dataclass(frozen=True)
class TarReader:
    """Reader of images inside tars, by offset and size."""

    filesystem: fs.FileSystem

    def read(self, items: pa.Table) -> Iterator[bytes | OSError]:
        """Yield the content of each row's member, or the error of reading it."""
        file: pa.NativeFile | None = None
        opened = ""

        def read_member(path: str, offset: int, size: int) -> bytes:
            nonlocal file, opened
            try:
                if file is None or path != opened:
                    file, opened = self.filesystem.open_input_file(path), path
                content: bytes = file.read_at(size, offset)
            except Exception:
                file = None
                raise
            if len(content) < size:
                raise OSError(f"the tar ends {size - len(content)} bytes before its member")
            return content

        for place in zip(*(items[name].to_pylist() for name in ("file", "offset", "size")), strict=True):
            yield read_patiently(partial(read_member, *place))
