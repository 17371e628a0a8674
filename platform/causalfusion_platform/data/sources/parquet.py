"""Images in Parquet files, as in data sets of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from ...config.errors import UserError
from ..faults import Policies
from .files import SourceFiles
from .filesystem import read_patiently
from .labels import Numbered, no_classes, number_labels
from .listing import Listing, leave_out, make_listing
from .parquet_file import ParquetColumns, find_columns, open_parquet, require_column
from .selection import EARLIER_RULES

_THREADS = 8
# Digits of a row's number in its key, so that keys sort as rows do.
_DIGITS = 9


@dataclass
class ParquetReader:
    """Reader of images in row groups. It keeps the last row group in memory."""

    filesystem: fs.FileSystem
    column: str
    """Path of the leaf column with the bytes."""
    _opened: tuple[str, pq.ParquetFile] | None = field(default=None, init=False, repr=False, compare=False)
    _group: tuple[str, int] | None = field(default=None, init=False, repr=False, compare=False)
    _read: tuple[int, pa.ChunkedArray] | OSError | None = field(default=None, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[ParquetReader], tuple[fs.FileSystem, str]]:
        return type(self), (self.filesystem, self.column)

    def read(self, items: pa.Table) -> Iterator[bytes | OSError]:
        """Yield the image of each row, or the error of reading it."""
        places = (items[name].to_pylist() for name in ("file", "offset", "row_group"))
        for path, row, group in zip(*places, strict=True):
            if (path, group) != self._group:
                self._read = None  # frees the memory before the next one is read
                self._read = read_patiently(partial(self._read_group, path, group))
                self._group = path, group
            if isinstance(self._read, tuple):
                first, images = self._read
                image = images[row - first].as_py()
                yield OSError("the row holds no bytes of an image") if image is None else image
            else:
                assert self._read is not None
                yield self._read

    def _read_group(self, path: str, group: int) -> tuple[int, pa.ChunkedArray]:
        """Return the number of the group's first row, and its images."""
        try:
            if self._opened is None or self._opened[0] != path:
                self._opened = path, open_parquet(self.filesystem, path)
            file = self._opened[1]
            # Other readers run beside this one, and more threads would only take their CPUs.
            column = file.read_row_group(group, columns=[self.column], use_threads=False).column(0)
        except Exception:
            self._opened = None
            raise
        first = sum(file.metadata.row_group(before).num_rows for before in range(group))
        return first, pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files with a column of images (bytes, or a struct with a field `bytes`) and a column of labels."""

    files: SourceFiles
    policies: Policies
    image_column: str = "auto"
    """Column of images. auto: the only column of bytes, or the one named image."""
    label_column: str = "auto"
    """Column of labels. auto: the only ClassLabel of Hugging Face's metadata, or label, labels, cls or class."""
    caption_column: str | None = None
    """Column of captions, with text or lists of text."""

    def listing(self) -> Listing:
        """List the rows, reading labels (and captions) but not the images."""
        files = self.files
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = list(pool.map(self._list_file, files.names))
        columns, first = parts[0]
        for name, (others, table) in zip(files.names, parts, strict=True):
            if others != columns or table["label"].type != first["label"].type:
                raise UserError(
                    f"{files.location}: {name} has other columns, class names or labels than {files.names[0]}\n"
                    f"  name files that belong together"
                )
        rows = pa.concat_tables(table for _, table in parts)
        numbered = no_classes(rows.num_rows) if columns.label is None else self._number(rows, columns)
        found = pa.array(numbered.labels >= 0)
        without = [
            (key, "its label is null, negative or a decimal")
            for key in rows["key"].filter(pc.invert(found)).to_pylist()
        ]
        findings = leave_out("unlabelled", without, self.policies)
        kept = rows.drop_columns("label").append_column("label", pa.array(numbered.labels)).filter(found)
        arrays = {name: kept[name] for name in kept.column_names}
        return make_listing("parquet", files.location, numbered.class_names, arrays, findings, files.selection)

    def _number(self, rows: pa.Table, columns: ParquetColumns) -> Numbered:
        labels, rules = rows["label"], self.files.selection.rules
        has_names = pa.types.is_integer(labels.type) or rules != EARLIER_RULES
        return number_labels(
            labels,
            f"{self.files.location} column {columns.label!r}",
            columns.class_names if has_names else None,
            place_of=lambda row: str(rows["key"][row].as_py()),
            rules=rules,
        )

    def reader(self) -> ParquetReader:
        """Return the reader of the images."""
        files = self.files
        with self._mending(files.names[0]):
            schema = open_parquet(files.filesystem, files.path(files.names[0])).schema_arrow
        columns = self._find_columns(schema, files.names[0])
        return ParquetReader(files.filesystem, columns.image)

    def _list_file(self, name: str) -> tuple[ParquetColumns, pa.Table]:
        """Return a file's columns, and its rows' key, label, file, offset, size, row_group and captions."""
        path = self.files.path(name)
        with self._mending(name):
            file = open_parquet(self.files.filesystem, path)
            schema = file.schema_arrow
            columns = self._find_columns(schema, name)
            wanted = [] if columns.label is None else [columns.label]
            if self.caption_column is not None:
                require_column(schema, self.caption_column, name, "--caption-column")
                wanted.append(self.caption_column)
            table = file.read(columns=wanted)
            rows = file.metadata.num_rows
            labels = (
                pa.nulls(rows, pa.int64())
                if columns.label is None
                else _plain_labels(table[columns.label], name, columns.label)
            )
        groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        number = np.arange(rows)
        arrays = {
            "key": pc.binary_join_element_wise(
                pa.scalar(name), pc.utf8_lpad(pa.array(number).cast(pa.string()), _DIGITS, "0"), "#"
            ),
            "label": labels,
            "file": pa.repeat(pa.scalar(path), rows),
            "offset": pa.array(number),
            "size": pa.repeat(pa.scalar(-1, pa.int64()), rows),
            "row_group": pa.array(np.repeat(np.arange(len(groups)), groups)),
        }
        if self.caption_column is not None:
            arrays["captions"] = _captions(table[self.caption_column], name, self.caption_column)
        return columns, pa.table(arrays)

    def _find_columns(self, schema: pa.Schema, name: str) -> ParquetColumns:
        captioned = self.caption_column is not None
        return find_columns(schema, self.image_column, self.label_column, name, captioned=captioned)

    @contextmanager
    def _mending(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{name} in {self.files.location} cannot be read as Parquet: {error}\n"
                f"  copy it again, or make it anew"
            ) from error


def _plain_labels(column: pa.ChunkedArray, name: str, label: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if _is_text(kind):
        return column.cast(pa.string())
    raise UserError(
        f"{name}: column {label!r} is {column.type}; allowed: integers or strings\n  name another: --label-column"
    )


def _captions(column: pa.ChunkedArray, name: str, caption: str) -> pa.Array:
    if _is_text(column.type):
        lists = [[text] if text else [] for text in column.to_pylist()]
    elif pa.types.is_list(column.type) and _is_text(column.type.value_type):
        lists = [[text for text in texts or [] if text] for texts in column.to_pylist()]
    else:
        raise UserError(
            f"{name}: column {caption!r} is {column.type}; allowed: strings or lists of strings\n"
            f"  name another: --caption-column"
        )
    return pa.array(lists, pa.list_(pa.string()))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
