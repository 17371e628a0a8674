"""Images in IDX files, the format of MNIST: a file of images, and a file of their labels beside it."""

from __future__ import annotations

import io
import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow import fs

from ...config.errors import UserError
from .files import SourceFiles
from .filesystem import read_patiently
from .labels import number_labels
from .listing import Listing, make_listing, utf8
from .pattern import inside_location
from .splits import file_split

PACKED = ".gz"
IMAGE_ENDS = ("images-idx3-ubyte", "images.idx3-ubyte")
LABEL_ENDS = ("labels-idx1-ubyte", "labels.idx1-ubyte")
IDX_ENDS = (*IMAGE_ENDS, *LABEL_ENDS, *(f"{end}{PACKED}" for end in (*IMAGE_ENDS, *LABEL_ENDS)))
"""Ends of the names of IDX files."""

# The third byte is the type of the numbers (8: unsigned bytes), the fourth one the number of dimensions.
_IMAGES = 0x00000803
_LABELS = 0x00000801
_KINDS = {_IMAGES: "images", _LABELS: "labels"}
_GZIP = b"\x1f\x8b"
# Digits of an image's number in its key, so that keys sort as images do.
_DIGITS = 9
# Consecutive images are small and read together.
_BUFFER = 32 * 1024
_AGAIN = "copy it again, or make it anew"


@dataclass(frozen=True)
class IdxReader:
    """Reader of images in IDX files, by offset and size. It gives each one as a PNG file of the same pixels."""

    filesystem: fs.FileSystem

    def read(self, items: pa.Table) -> Iterator[bytes | OSError]:
        """Yield the image of each row, or the error of reading it."""
        file: io.BufferedReader | None = None
        opened = ""
        rows = columns = 0

        def read_image(path: str, offset: int, size: int) -> bytes:
            nonlocal file, opened, rows, columns
            try:
                if file is None or path != opened:
                    source = self.filesystem.open_input_file(path)
                    magic, _, rows, columns = _header(source, _IMAGES)
                    if magic != _IMAGES or rows * columns != size:
                        raise OSError("the header of the IDX file has changed since it was listed")
                    file, opened = io.BufferedReader(source, _BUFFER), path
                file.seek(offset)
                pixels = file.read(size)
            except Exception:
                file = None
                raise
            if len(pixels) < size:
                raise OSError(f"the IDX file ends {size - len(pixels)} bytes before the end of the image")
            return _png(pixels, rows, columns)

        for place in zip(*(items[name].to_pylist() for name in ("file", "offset", "size")), strict=True):
            yield read_patiently(partial(read_image, *place))


@dataclass(frozen=True)
class IdxFiles:
    """IDX files of images, each with a file of labels beside it. Labels are numbers of classes."""

    files: SourceFiles

    def listing(self) -> Listing:
        """List the images, reading headers and labels but not the pixels."""
        files = self.files
        rows = pa.concat_tables([self._list_file(name) for name in self._names_of_images()])
        numbered = number_labels(rows["label"], files.location, rules=files.selection.rules)
        columns = {name: rows[name] for name in rows.column_names} | {"label": pa.array(numbered.labels)}
        return make_listing("idx", files.location, numbered.class_names, columns, [], files.selection)

    def reader(self) -> IdxReader:
        """Return the reader of the images."""
        return IdxReader(self.files.filesystem)

    def _names_of_images(self) -> list[str]:
        """Return the names of the files of images.

        Raises:
            UserError: a file of labels has none, or a folder holds several of one split.
        """
        files = self.files
        names = files.ending_in(*IMAGE_ENDS)
        for name in files.ending_in(*LABEL_ENDS):
            wanted = _partners(name, LABEL_ENDS, IMAGE_ENDS)
            if not set(wanted) & set(names):
                raise UserError(
                    f"{name} in {files.location} holds labels, and their images are not there: "
                    f"{' or '.join(wanted)}\n"
                    f"  put the images there, or remove the labels. One pair is named by its file of images"
                )
        by_split = defaultdict(list)
        for name in names:
            by_split[file_split(name)].append(name)
        several = next((same for same in by_split.values() if len(same) > 1), None)
        if several and files.given == "folder":  # the labels of several data sets do not mean the same
            raise UserError(
                f"{files.location} is not clear: it holds several files of images: {', '.join(several)}\n"
                f"  name one, and its labels are found: {inside_location(files.location, several[0])}"
            )
        return names

    def _list_file(self, name: str) -> pa.Table:
        """Return key, label, file, offset and size of the images of a file."""
        files = self.files
        with self._opened(name) as file:
            count, rows, columns = self._shape(file, name, _IMAGES)
        if rows * columns == 0:
            raise UserError(f"{name} in {files.location} has images of {rows}×{columns} pixels\n  {_AGAIN}")
        beside = self._name_of_labels(name)
        with self._opened(beside) as file:
            (labelled,) = self._shape(file, beside, _LABELS)
            if labelled != count:
                raise UserError(
                    f"{files.location} contradicts itself: {name} has {count:,} images, and {beside} "
                    f"{labelled:,} labels\n"
                    f"  fetch both files from one place again"
                )
            labels = np.frombuffer(file.read_at(count, _header_bytes(_LABELS)), np.uint8)
        size = rows * columns
        number = np.arange(count)
        numerals = pc.utf8_lpad(pa.array(number).cast(pa.string()), _DIGITS, "0")
        return pa.table(
            {
                "key": pc.binary_join_element_wise(utf8([name], files.location)[0], numerals, "#"),
                "label": pa.array(labels.astype(np.int64)),
                "file": pa.repeat(pa.scalar(files.path(name)), count),
                "offset": pa.array(_header_bytes(_IMAGES) + number * size),
                "size": pa.repeat(pa.scalar(size, pa.int64()), count),
            }
        )

    def _name_of_labels(self, name: str) -> str:
        """Return the name of the file of labels beside a file of images, whether it was listed or not."""
        files = self.files
        wanted = _partners(name, IMAGE_ENDS, LABEL_ENDS)
        with self._mending(name):
            infos = files.filesystem.get_file_info([files.path(other) for other in wanted])
        there = [other for other, info in zip(wanted, infos, strict=True) if info.type == fs.FileType.File]
        if not there:
            raise UserError(
                f"{name} in {files.location} has no file of labels beside it: {' or '.join(wanted)}\n"
                f"  put it there. If it is compressed ({PACKED}), unpack it with gunzip"
            )
        return there[0]

    def _shape(self, file: pa.NativeFile, name: str, wanted: int) -> tuple[int, ...]:
        """Return the dimensions of a file, which its header gives and its size confirms."""
        place = f"{name} in {self.files.location}"
        size, begin = file.size(), _header_bytes(wanted)
        if size < begin:
            raise UserError(f"{place} has {size} bytes, and the header of an IDX file has {begin}\n  {_AGAIN}")
        magic, *shape = _header(file, wanted)
        if magic != wanted:
            if magic.to_bytes(4).startswith(_GZIP):
                raise UserError(
                    f"{place} is compressed by gzip, so images cannot be read out of its middle\n"
                    f"  end its name in {PACKED}, and unpack it with gunzip"
                )
            held = f", a file of {_KINDS[magic]}" if magic in _KINDS else ""
            raise UserError(
                f"{place} begins with 0x{magic:08x}{held}; allowed: 0x{wanted:08x}, {_KINDS[wanted]} of "
                f"unsigned bytes\n"
                f"  name the right file, or copy it again"
            )
        # Compared with the file's size before anything is allocated, because a header may claim any number.
        expected = begin + math.prod(shape)
        if size != expected:
            held = f"{shape[0]:,} {_KINDS[wanted]}" + (f" of {shape[1]}×{shape[2]}" if shape[1:] else "")
            raise UserError(
                f"{place} has {size:,} bytes, and its header gives {held}, which are {expected:,} bytes\n  {_AGAIN}"
            )
        return tuple(shape)

    @contextmanager
    def _opened(self, name: str) -> Iterator[pa.NativeFile]:
        with self._mending(name), self.files.filesystem.open_input_file(self.files.path(name)) as file:
            yield file

    @contextmanager
    def _mending(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{name} in {self.files.location} cannot be read: {error}\n  mend or remove it"
            ) from error


def without_packed_twins(files: SourceFiles) -> SourceFiles:
    """Return the files without compressed ones that lie beside their unpacked form, as torchvision leaves them."""
    names = set(files.names)
    pairs = [
        (name, size)
        for name, size in zip(files.names, files.sizes, strict=True)
        if not (name.lower().endswith(PACKED) and name[: -len(PACKED)] in names)
    ]
    return replace(files, names=[name for name, _ in pairs], sizes=[size for _, size in pairs])


def _partners(name: str, ends: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    """Return the names that the other file of a pair may have, first the one that is written in the same way."""
    own = next(place for place, end in enumerate(ends) if name.lower().endswith(end))
    begin = name[: -len(ends[own])]
    return [f"{begin}{others[place]}" for place in (own, 1 - own)]


def _header_bytes(magic: int) -> int:
    return 4 * (1 + (magic & 0xFF))


def _header(file: pa.NativeFile, wanted: int) -> tuple[int, ...]:
    """Return the magic number and the dimensions of a file that should have those of `wanted`."""
    content = file.read_at(_header_bytes(wanted), 0)
    if len(content) < _header_bytes(wanted):
        raise OSError("the IDX file ends within its header")
    return struct.unpack(f">{len(content) // 4}I", content)


def _png(pixels: bytes, rows: int, columns: int) -> bytes:
    file = io.BytesIO()
    # Uncompressed, because it is decoded at once.
    Image.frombytes("L", (columns, rows), pixels).save(file, "png", compress_level=0)
    return file.getvalue()
