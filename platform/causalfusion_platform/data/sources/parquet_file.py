"""Opening of Parquet files of images, and search for the columns of images and labels."""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ...config.errors import UserError
from .labels import NO_LABELS

_LABEL_NAMES = ("label", "labels", "cls", "class")
# The Arrow schema is in the footer as base64, where a word can begin at any of three offsets.
_EXTENSION = [base64.b64encode(bytes(shift) + b"ARROW:extension:name")[4:-4] for shift in range(3)]


class ParquetColumns(NamedTuple):
    """Columns of images and labels."""

    image: str
    """Path of the leaf column with the bytes: `image`, or `image.bytes`."""
    label: str | None
    """None: images without classes."""
    class_names: list[str] | None
    """Class names of Hugging Face's metadata, for integer labels."""


def open_parquet(filesystem: fs.FileSystem, path: str) -> pq.ParquetFile:
    """Open a Parquet file of plain columns.

    Raises:
        UserError: its schema has extension types, which may run code when they are made. It is not read.
        OSError, pa.ArrowException: the file cannot be read.
    """
    file = filesystem.open_input_file(path)
    last = max(file.size() - 8, 0)
    length = min(int.from_bytes(file.read_at(4, last), "little"), last)
    footer = file.read_at(length, last - length)
    if any(word in footer for word in _EXTENSION):
        raise UserError(
            f"{path.rpartition('/')[2]} has a column of an extension type; allowed are plain columns only\n"
            f"  write it again with bytes, integers and strings"
        )
    return pq.ParquetFile(file, page_checksum_verification=True, arrow_extensions_enabled=False)


def find_columns(
    schema: pa.Schema, image: str, label: str, name: str, *, captioned: bool = False
) -> ParquetColumns:
    """Find the columns of images and labels.

    Args:
        image: name of the column of images. auto: the only one of bytes, or the one named image.
        label: name of the column of labels. auto: the only ClassLabel of Hugging Face's metadata, or the first
            of label, labels, cls, class. none: images without classes.
        name: name of the file, for messages.
        captioned: images have captions, and may do without labels.

    Raises:
        UserError: no column matches, or several do.
    """
    features = _features(schema)
    found = _find_label(schema, features, label, name, captioned)
    feature = None if found is None else features.get(found)
    names = feature.get("names") if isinstance(feature, dict) else None
    return ParquetColumns(
        _find_image(schema, image, name),
        found,
        [str(known) for known in names] if isinstance(names, list) else None,
    )


def require_column(schema: pa.Schema, column: str, name: str, option: str) -> None:
    """Check that a file has a column.

    Raises:
        UserError: the column is missing or not unique.
    """
    if schema.names.count(column) != 1:
        raise UserError(f"{name} has no column {column!r} among {', '.join(schema.names)}\n  name one: {option}")


def _find_image(schema: pa.Schema, given: str, name: str) -> str:
    leaves = {field.name: leaf for field in schema if (leaf := _bytes_leaf(field)) is not None}
    if given != "auto":
        require_column(schema, given, name, "--image-column")
        if given not in leaves:
            raise UserError(
                f"{name}: column {given!r} is {schema.field(given).type}; allowed: bytes, or a struct with a field "
                f"bytes\n  name another: --image-column"
            )
        return leaves[given]
    if len(leaves) != 1 and "image" not in leaves:
        found = (
            f"columns of bytes: {', '.join(leaves)}" if leaves else f"no column of bytes: {', '.join(schema.names)}"
        )
        raise UserError(f"{name} has {found}\n  name the column of images: --image-column")
    return leaves.get("image") or next(iter(leaves.values()))


def _bytes_leaf(field: pa.Field) -> str | None:
    if _is_bytes(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type):
        inner = field.type.get_field_index("bytes")
        if inner >= 0 and _is_bytes(field.type.field(inner).type):
            return f"{field.name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _find_label(
    schema: pa.Schema, features: dict[str, object], given: str, name: str, captioned: bool
) -> str | None:
    if given == NO_LABELS:
        return None
    if given == "auto":
        classes = [
            column
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names
        ]
        usual = [column for column in _LABEL_NAMES if column in schema.names]
        if captioned and not classes and not usual:
            return None
        if not classes and not usual:
            raise UserError(
                f"{name} has no column 'label' among {', '.join(schema.names)}\n"
                f"  name one: --label-column, or take the images without classes: --label-column {NO_LABELS}"
            )
        given = classes[0] if len(classes) == 1 else usual[0] if usual else "label"
    require_column(schema, given, name, "--label-column")
    return given


def _features(schema: pa.Schema) -> dict[str, object]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}
