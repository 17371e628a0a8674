"""Captions of a model in COCO's results format, and the references that they are scored by.

The format is a JSON list of `{"image_id": 42, "caption": "a dog"}`, one entry an image. Any model's file is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config.errors import UserError
from ..data.coco_captions import SPLITS, CaptionedImage, count_and_first
from ..storage.atomic import write_atomically
from ..storage.json_file import Damaged, parse_line, read_bounded

DEFAULT_SPLIT = "test"
"""Split of Karpathy's files that captions are scored on, as the papers do."""

_LARGEST = 1 << 30
_FORM = 'allowed: a JSON list of {"image_id": 42, "caption": "a dog"}, one entry for each image'


def write_results(path: Path, captions: Mapping[int, str]) -> None:
    """Write a results file, in the order of the images.

    Args:
        path: the file to replace. Its folder is made if missing.
        captions: caption by image id. Empty ones are written too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"image_id": image, "caption": caption} for image, caption in captions.items()]
    write_atomically(path, f"{json.dumps(entries)}\n".encode())


def read_results(path: Path, *, allow_empty: bool = False) -> dict[int, str]:
    """Read a results file: caption by image id, in the order of the file. Other keys of its entries are ignored.

    Args:
        path: the file.
        allow_empty: take captions without text too. A model that ends a caption at once writes them.

    Raises:
        UserError: the file is missing or malformed, an image is there twice, or a caption is empty.
    """
    entries = _entries(path)
    pairs = [_pair(entry, f"{path} entry {number}") for number, entry in enumerate(entries, start=1)]
    repeated = [image for image, times in Counter(image for image, _ in pairs).items() if times > 1]
    if repeated:
        raise UserError(
            f"captions {path}: more than one caption of {count_and_first(repeated, 'image')}\n  {_FORM}"
        )
    empty = [image for image, caption in pairs if not caption.strip()]
    if empty and not allow_empty:
        raise UserError(
            f"captions {path}: an empty caption of {count_and_first(empty, 'image')}\n"
            f"  write captions for them, or score each of them 0: --allow-empty"
        )
    return dict(pairs)


def references_of(images: Sequence[CaptionedImage], split: str | None, place: Path) -> dict[int, tuple[str, ...]]:
    """Return the captions of each image of a split, by image id.

    Args:
        images: content of the file of references.
        split: a split of the file. None: `DEFAULT_SPLIT` where the file has splits, and all images otherwise.
        place: the file, for messages.

    Raises:
        UserError: the file has no such split, or an image has no caption.
    """
    found = Counter(image.split for image in images)
    wanted = split or (None if None in found else DEFAULT_SPLIT)
    if wanted not in found:
        there = ", ".join(f"{name} ({found[name]:,} images)" for name in SPLITS if name in found)
        raise UserError(
            f"references {place} has no split {wanted!r}\n  "
            + (f"allowed: --split with one of {there}" if there else "it has no splits at all: leave out --split")
        )
    chosen = {image.id: image.captions for image in images if image.split == wanted}
    without = [image for image, captions in chosen.items() if not captions]
    if without:
        raise UserError(
            f"references {place}: no caption of {count_and_first(without, 'image')}\n"
            f"  name a file with one caption or more for every image"
        )
    return chosen


def match_references(
    results: Mapping[int, str], references: Mapping[int, Sequence[str]], captions: Path, place: str
) -> list[Sequence[str]]:
    """Return the references of each result, in the order of the results.

    Args:
        results: caption by image id.
        references: references by image id.
        captions: file of the results, for messages.
        place: file and split of the references, for messages.

    Raises:
        UserError: an image of the results has no references, or one of the references no result.
    """
    unknown = [image for image in results if image not in references]
    missing = [image for image in references if image not in results]
    if unknown:
        raise UserError(
            f"captions {captions}: {count_and_first(unknown, 'image')} of {len(results):,} not in {place}, "
            f"which has {count_and_first([*references], 'image')}\n"
            f"  name the references of the same images: --references FILE, or another --split"
        )
    if missing:
        raise UserError(
            f"captions {captions}: no caption of {count_and_first(missing, 'image')} of {len(references):,} in "
            f"{place}\n  caption every image: CIDEr-D depends on which images are scored"
        )
    return [references[image] for image in results]


def _entries(path: Path) -> list[object]:
    try:
        content = read_bounded(path, _LARGEST)
    except FileNotFoundError as error:
        raise UserError(f"captions {path}: there is no such file\n  {_FORM}") from error
    except Damaged as error:
        raise UserError(f"captions {error}\n  {_FORM}") from error
    try:
        entries = parse_line(content.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise UserError(f"captions {path} is not JSON: {error}\n  {_FORM}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"captions {path} is not a list of captions\n  {_FORM}")
    return entries


def _pair(entry: object, place: str) -> tuple[int, str]:
    if isinstance(entry, dict):
        image, caption = entry.get("image_id"), entry.get("caption")
        if isinstance(image, int) and not isinstance(image, bool) and isinstance(caption, str):
            return image, caption
    text = repr(entry)
    shown = text if len(text) < 80 else f"{text[:76]} …"
    raise UserError(f"captions {place} is {shown}, without an integer image_id or a caption of text\n  {_FORM}")
