"""Caption files beside images: COCO's, Karpathy's with splits, or one JSON object a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Literal

from ...config.errors import UserError
from ...storage.json_file import parse_line
from ..coco_captions import COCO_FORMS, SPLITS, CaptionedImage, parse_coco
from .filesystem import locate, read_whole
from .splits import ALL

Form = Literal["COCO", "Karpathy", "JSONL"]

_FILE_KEYS = ("file", "file_name", "filename", "image", "path")
_CAPTION_KEYS = ("captions", "caption", "text")
_LINES = 'lines such as {"file": "a/1.jpg", "captions": ["…", "…"]}'
_FORMS = f"{COCO_FORMS}, or {_LINES}"


@dataclass(frozen=True)
class CaptionFile:
    """Captions by the name of their image's file."""

    location: str
    """Path or URL as given by the user."""
    form: Form
    captions: dict[str, list[str]]
    """Captions of each file, of the chosen split. Blank ones are left out."""
    other_splits: frozenset[str] = frozenset()
    """Files of the splits that were not chosen."""
    keys: tuple[str, ...] = ()
    """Keys of names and captions that the lines have (JSONL)."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Images of each split (Karpathy)."""
    split: str | None = None
    """Chosen split (Karpathy)."""


def read_caption_file(location: str, split: str | None = None) -> CaptionFile:
    """Read a file of captions. Its form is told by its content.

    Args:
        location: a path or URL.
        split: splits of Karpathy's file, such as `train` or `train+restval`, or `ALL`. Other forms have none.

    Raises:
        UserError: the file is missing or malformed, names a file twice, or its split is not clear.
    """
    filesystem, path = locate(location)
    try:
        content: bytes = read_whole(filesystem, path).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"captions {location} cannot be read: {reason}\n  {_FORMS}") from error
    if not content.strip():
        raise UserError(f"captions {location} is empty\n  {_FORMS}")
    if _begins_with_a_row(content):
        return _read_lines(content, location)
    try:
        images = parse_coco(content, location)
    except UserError as error:
        raise UserError(f"{error}, or {_LINES}" if str(error).endswith(COCO_FORMS) else str(error)) from error
    _refuse_repeated(images, location)
    if images[0].split is None:
        return CaptionFile(location, "COCO", {_name(image.file_name): _texts(image.captions) for image in images})
    return _choose_split(images, location, split)


def _begins_with_a_row(content: bytes) -> bool:
    """Return True if the first line is one JSON object, and not the whole of a COCO file."""
    first, _, rest = content.lstrip().partition(b"\n")
    try:
        row = parse_line(first)
    except ValueError:
        return False
    return isinstance(row, dict) and not (isinstance(row.get("images"), list) and not rest.strip())


def _read_lines(content: bytes, location: str) -> CaptionFile:
    captions: dict[str, list[str]] = {}
    seen: dict[str, None] = {}
    for number, line in enumerate(BytesIO(content), start=1):
        if not line.strip():
            continue
        place = f"captions {location} line {number}"
        try:
            row = parse_line(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON: {error}\n  {_FORMS}") from error
        if not isinstance(row, dict):
            raise UserError(f"{place} is not an object\n  {_FORMS}")
        file_key, caption_key = (_key(row, keys, place) for keys in (_FILE_KEYS, _CAPTION_KEYS))
        name, texts = row[file_key], row[caption_key]
        if not isinstance(name, str) or not _name(name):
            raise UserError(f"{place}: {file_key} is {str(name)[:80]!r}, not the name of a file\n  {_FORMS}")
        texts = [texts] if isinstance(texts, str) else texts or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{place}: {caption_key} is neither text nor a list of texts\n  {_FORMS}")
        seen |= {file_key: None, caption_key: None}
        captions.setdefault(_name(name), []).extend(_texts(texts))
    return CaptionFile(location, "JSONL", captions, keys=tuple(seen))


def _key(row: Mapping[str, object], allowed: Collection[str], place: str) -> str:
    found = next((key for key in allowed if key in row), None)
    if found is None:
        there = ", ".join(list(row)[:10]) or "none"
        raise UserError(f"{place} has none of the keys {', '.join(allowed)}, only {there}\n  {_FORMS}")
    return found


def _choose_split(images: list[CaptionedImage], location: str, wanted: str | None) -> CaptionFile:
    found = Counter(str(image.split) for image in images)
    counts = {split: found[split] for split in SPLITS if split in found}
    there = ", ".join(f"{split} ({number:,} images)" for split, number in counts.items())
    if wanted is None and len(counts) > 1:
        both = ", or with restval: --split train+restval" if {"train", "restval"} <= set(counts) else ""
        raise UserError(
            f"captions {location} has the splits {there}\n"
            f"  name one: --split {next(iter(counts))}{both}, or take all of them: --split {ALL}"
        )
    chosen = set(counts) if wanted in (None, ALL) else set(str(wanted).split("+"))
    if not chosen <= set(counts):
        absent = sorted(chosen - set(counts))[0]
        raise UserError(
            f"captions {location} has no split {absent!r}, only {there}\n  name one: --split {next(iter(counts))}"
        )
    taken = {_name(image.file_name): _texts(image.captions) for image in images if image.split in chosen}
    others = frozenset(_name(image.file_name) for image in images if image.split not in chosen)
    return CaptionFile(location, "Karpathy", taken, others, splits=counts, split=wanted or next(iter(counts)))


def _refuse_repeated(images: list[CaptionedImage], location: str) -> None:
    name, times = Counter(_name(image.file_name) for image in images).most_common(1)[0]
    if times > 1:
        raise UserError(f"captions {location}: {name!r} is the file of {times} images\n  keep one of them")


def _name(name: str) -> str:
    return name.strip().removeprefix("./")


def _texts(captions: Collection[str]) -> list[str]:
    """Return captions without blanks around them, as .txt files and CSV have them. Empty ones are left out."""
    return [text for caption in captions if (text := caption.strip())]
