"""Label files of flat folders: the label, and optionally the caption, of each image."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field

from ...config.errors import UserError
from .filesystem import locate, read_whole
from .labels import NO_LABELS, read_label
from .selection import EARLIER_RULES, RULES

_FILE_HEADERS = ("file", "file_name", "filename", "path", "image")
_FORMS = (
    "allowed: a .csv file with the header file,label (or two columns without a header), or a .json file with "
    '{"file": label}, [["file", label], …] or {"labels": [["file", label], …]}, or a .txt file with a file and its '
    "label on each line"
)


@dataclass
class LabelFile:
    """Entries of a label file."""

    names: list[str] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    """All None: images without classes."""
    places: list[str] = field(default_factory=list)
    """Place of each entry in the file, for messages."""
    captions: list[list[str]] | None = None


@dataclass(frozen=True)
class LabelColumns:
    """Names of the columns of a CSV file. auto: the usual names."""

    file: str = "auto"
    label: str = "auto"
    caption: str | None = None


def read_label_file(location: str, columns: LabelColumns, rules: int = RULES) -> LabelFile:
    """Read a label file: a path or URL that ends in .csv, .json or .txt.

    Raises:
        UserError: the file is missing, malformed (the message names the line), or lists an image twice.
    """
    filesystem, path = locate(location)
    try:
        text = read_whole(filesystem, path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"label file {location} cannot be read: {reason}\n  {_FORMS}") from error
    if path.lower().endswith(".json"):
        if columns != LabelColumns():
            raise UserError(
                f"label file {location}: JSON has no columns\n  leave out the names of columns, or use CSV"
            )
        entries = _read_json(text, location, rules)
    elif path.lower().endswith(".csv"):
        entries = _read_csv(text, location, columns)
    elif path.lower().endswith(".txt"):
        if columns != LabelColumns():
            raise UserError(
                f"label file {location}: a text file has no columns\n  leave out the names of columns, or use CSV"
            )
        entries = _read_lines(text, location)
    else:
        raise UserError(f"label file {location} is neither .csv, .json nor .txt\n  {_FORMS}")
    if not entries.names:
        raise UserError(f"label file {location} has no entry\n  {_FORMS}")
    seen: dict[str, str] = {}
    for name, place in zip(entries.names, entries.places, strict=True):
        if name in seen:
            raise UserError(f"{place}: {name!r} is there already, in {seen[name]}\n  remove one of the two")
        seen[name] = place
    return entries


def _read_csv(text: str, location: str, columns: LabelColumns) -> LabelFile:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    entries = LabelFile(captions=None if columns.caption is None else [])
    wanted: list[int | None] = []
    width = 0
    try:
        for row in rows:
            if not row:
                continue
            place = f"{location} line {rows.line_num}"
            if not wanted:
                wanted, is_header = _choose_columns(row, place, columns)
                width = len(row)
                if is_header:
                    continue
            if len(row) != width:
                raise UserError(f"{place} has {len(row)} values, the first line {width}\n  {_FORMS}")
            file, label, *captions = ("" if at is None else row[at].strip() for at in wanted)
            _add(entries, file, None if wanted[1] is None else _parse_label(label, place), place)
            if entries.captions is not None:
                entries.captions.append([caption for caption in captions if caption])
    except csv.Error as error:
        raise UserError(f"{location} line {rows.line_num} is not CSV: {error}\n  {_FORMS}") from error
    return entries


def _read_lines(text: str, location: str) -> LabelFile:
    """Read a file and its label from each line, such as `ILSVRC2012_val_00000001.JPEG 65` in Caffe's val.txt."""
    entries = LabelFile()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{location} line {number}"
        name, _, label = line.strip().rpartition(" ")
        if not name and label.isdigit():
            raise UserError(
                f"{place} is a number alone. ILSVRC2012_validation_ground_truth.txt numbers classes in an order of "
                f"its own\n  use Caffe's val.txt, or sort the images into class folders. {_FORMS}"
            )
        _add(entries, name, _parse_label(label, place), place)
    return entries


def _choose_columns(row: list[str], place: str, columns: LabelColumns) -> tuple[list[int | None], bool]:
    """Return the positions of file, label and caption if wanted, and True if the row is a header.

    The position of the label is None for images without classes.
    """
    header = [name.strip().lower() for name in row]
    file = next((name for name in _FILE_HEADERS if name in header), "file")
    file, label = (
        default if given == "auto" else given.lower()
        for given, default in ((columns.file, file), (columns.label, "label"))
    )
    wanted = [file, label] if columns.caption is None else [file, label, columns.caption.lower()]
    without = columns.label == NO_LABELS or (
        columns.label == "auto" and columns.caption is not None and label not in header
    )
    absent = [name for name in wanted if name not in header and not (without and name == label)]
    if absent and columns == LabelColumns() and len(row) == 2:
        return [0, 1], False
    if absent:
        raise UserError(f"{place}: there is no column {absent[0]!r} among {', '.join(row)}\n  {_FORMS}")
    return [None if without and name == label else header.index(name) for name in wanted], True


def _parse_label(text: str, place: str) -> int | str:
    label = read_label(text)
    if label is None:
        raise UserError(f"{place}: {text!r} is not a label\n  write the integer or the name of a class")
    return label


def _read_json(text: str, location: str, rules: int) -> LabelFile:
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a ValueError
        raise UserError(f"label file {location} is not JSON: {error}\n  {_FORMS}") from error
    if isinstance(content, _Pairs):
        # An image may be called labels too, but its label is not a list.
        lists = [value for key, value in content if key == "labels" and not isinstance(value, int | str)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise UserError(f"label file {location} holds {type(content).__name__} where a list should be\n  {_FORMS}")
    entries = LabelFile()
    for number, entry in enumerate(content, start=1):
        place = f"{location} entry {number}"
        name, label = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (None, None)
        if not isinstance(name, str) or isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise UserError(f"{place} is {_short(entry)}, not a file and its label\n  {_FORMS}")
        if isinstance(label, str) and rules != EARLIER_RULES:
            label = _parse_label(label, place)
        _add(entries, name, label, place)
    return entries


class _Pairs(list[tuple[str, object]]):
    """JSON object with all its keys, including repeated ones."""


def _add(entries: LabelFile, name: str, label: int | str | None, place: str) -> None:
    name = name.strip().removeprefix("./")
    if not name:
        raise UserError(f"{place}: the name of the file is empty\n  {_FORMS}")
    entries.names.append(name)
    entries.labels.append(label)
    entries.places.append(place)


def _short(entry: object) -> str:
    text = str(entry)
    return text if len(text) < 80 else f"{text[:76]} …"
