"""Captions of images in the two JSON formats of COCO: its own, and Karpathy's with splits.

* `captions_val2014.json` of COCO has `images` and `annotations`.
* `dataset_coco.json` of Karpathy & Fei-Fei (2015) has `images` with a `split` and `sentences`.
  `dataset_flickr8k.json` and `dataset_flickr30k.json` have the same form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.errors import UserError
from ..storage.json_file import Damaged, parse_line, read_bounded

SPLITS = ("train", "restval", "val", "test")
"""Splits of Karpathy's files. `restval` are the images of val2014 that are often trained on too."""
COCO_FORMS = (
    "allowed: captions_*.json of COCO (images with id and file_name, annotations with id, image_id and caption), "
    "or dataset_coco.json of Karpathy"
)
"""Allowed forms, which end most messages."""

_LARGEST = 2 << 30
_SHOWN = 3


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its captions, of which there may be none."""

    id: int
    """COCO's image id. Flickr's files have `imgid` alone."""
    file_name: str
    """Name of the file. Karpathy's files put the folder before it: `val2014/COCO_val2014_000000391895.jpg`."""
    split: str | None
    """One of `SPLITS`. None: the file has no splits."""
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    """Annotation id (COCO) or `sentid` (Karpathy) of each caption."""


def read_coco(path: Path) -> list[CaptionedImage]:
    """Read a file of captions in either format, images in its order.

    Raises:
        UserError: the file is missing or is not of either form, or an id is there twice.
    """
    try:
        content = read_bounded(path, _LARGEST)
    except FileNotFoundError as error:
        raise UserError(f"captions {path}: there is no such file\n  {COCO_FORMS}") from error
    except Damaged as error:
        raise UserError(f"captions {error}\n  {COCO_FORMS}") from error
    return parse_coco(content, str(path))


def parse_coco(content: bytes, place: str) -> list[CaptionedImage]:
    """Parse the content of a file of captions. See `read_coco`.

    Args:
        content: UTF-8 JSON.
        place: path or URL of the file, for messages.
    """
    try:
        tree = parse_line(content.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise UserError(f"captions {place} is not JSON: {error}\n  {COCO_FORMS}") from error
    images = tree.get("images") if isinstance(tree, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(f"captions {place} has no list of images\n  {COCO_FORMS}")
    annotations = tree.get("annotations")
    found = (
        [_karpathy(image, f"{place} image {number}") for number, image in enumerate(images, start=1)]
        if annotations is None
        else _coco(images, annotations, place)
    )
    _refuse_repeated((image.id for image in found), "image id", place)
    _refuse_repeated((number for image in found for number in image.caption_ids), "caption id", place)
    return found


def count_and_first(ids: Sequence[object], what: str) -> str:
    """Return `1 image (id 7)`, or `4 images (ids 7, 8, 9, …)`: the count, and the first of them."""
    shown = ", ".join(map(str, ids[:_SHOWN])) + (", …" if len(ids) > _SHOWN else "")
    plural = "" if len(ids) == 1 else "s"
    return f"{len(ids):,} {what}{plural} (id{plural} {shown})"


def _coco(images: list[Any], annotations: object, place: str) -> list[CaptionedImage]:
    if not isinstance(annotations, list):
        raise UserError(f"captions {place}: annotations is not a list\n  {COCO_FORMS}")
    names: list[tuple[int, str]] = []
    for number, image in enumerate(images, start=1):
        names.append(
            (_integer(image, "id", f"{place} image {number}"), _text(image, "file_name", f"{place} image {number}"))
        )
    captions: dict[int, list[tuple[int, str]]] = {image: [] for image, _ in names}
    unknown: list[int] = []
    for number, annotation in enumerate(annotations, start=1):
        where = f"{place} annotation {number}"
        image = _integer(annotation, "image_id", where)
        entry = (_integer(annotation, "id", where), _text(annotation, "caption", where))
        if image in captions:
            captions[image].append(entry)
        else:
            unknown.append(image)
    if unknown:
        missing = count_and_first([*dict.fromkeys(unknown)], "image")
        raise UserError(f"captions {place}: annotations of {missing} that `images` does not list\n  {COCO_FORMS}")
    return [
        CaptionedImage(
            id=image,
            file_name=name,
            split=None,
            captions=tuple(text for _, text in captions[image]),
            caption_ids=tuple(number for number, _ in captions[image]),
        )
        for image, name in names
    ]


def _karpathy(image: object, place: str) -> CaptionedImage:
    sentences = image.get("sentences") if isinstance(image, dict) else None
    if not isinstance(image, dict) or not isinstance(sentences, list):
        raise UserError(f"captions {place} has no list of sentences, and the file no annotations\n  {COCO_FORMS}")
    split = _text(image, "split", place)
    if split not in SPLITS:
        raise UserError(f"captions {place}: split {split!r}\n  allowed: {', '.join(SPLITS)}")
    folder = _text(image, "filepath", place) if "filepath" in image else ""
    name = _text(image, "filename", place)
    return CaptionedImage(
        id=_integer(image, "cocoid" if "cocoid" in image else "imgid", place),
        file_name=f"{folder}/{name}" if folder else name,
        split=split,
        captions=tuple(_text(sentence, "raw", place) for sentence in sentences),
        caption_ids=tuple(_integer(sentence, "sentid", place) for sentence in sentences),
    )


def _integer(entry: object, key: str, place: str) -> int:
    value = _value(entry, key, place)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"captions {place}: {key} is {_short(value)}, not an integer\n  {COCO_FORMS}")
    return value


def _text(entry: object, key: str, place: str) -> str:
    value = _value(entry, key, place)
    if not isinstance(value, str):
        raise UserError(f"captions {place}: {key} is {_short(value)}, not text\n  {COCO_FORMS}")
    return value


def _value(entry: object, key: str, place: str) -> object:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"captions {place} has no {key!r}\n  {COCO_FORMS}")
    return entry[key]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} …"


def _refuse_repeated(ids: Iterable[int], what: str, place: str) -> None:
    repeated = [number for number, times in Counter(ids).items() if times > 1]
    if repeated:
        raise UserError(
            f"captions {place}: {what} repeated: {count_and_first(repeated, what.removesuffix(' id'))}\n"
            f"  each {what} is allowed once"
        )
