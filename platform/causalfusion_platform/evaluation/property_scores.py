"""Scores of captions and drawings of digits by their measured properties, in both directions.

A caption is right about a property if the word that it names is that of its image. A generated image is right if it
measures the word that was asked for. The class of a generated image is that of the data set's classifier. No other
model takes part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from ..data.caption_language import CELLS, DIGITS, INK, SLANT, WIDTH, PropertyWords, describe, parse
from ..data.pixels import to_pixels
from .extractors.extractor import Extractor

NAMES = {"digit": "class", "ink": "ink", "slant": "slant", "width": "width"}
"""Field of `PropertyWords` → its name in metrics."""
_Right = dict[str, list[bool | None]]
"""Name of a property → whether each image is right about it. None: it is not scored."""
_CHOICES = {"digit": DIGITS, "ink": INK, "slant": SLANT, "width": WIDTH}


def caption_scores(
    texts: Sequence[str], words: Sequence[PropertyWords], seen: Collection[PropertyWords] | None = None
) -> dict[str, float]:
    """Score generated captions of images by the words that they name.

    Args:
        texts: one caption of each image.
        words: the true words of each image, as `describe` gives them.
        seen: property cells of the training rows, as `cells_in` gives them.

    Returns:
        `caption_class`, `caption_ink`, `caption_slant`, `caption_width` and `caption_all`, the shares of captions
        that name the right word, or all four. Each has its binomial standard error `…_stderr`. `caption_images`
        counts the images. With `seen`, the same for images whose cell is in no training row: `…_unseen` and
        `…_unseen_stderr`. Without any, their count alone.

    Raises:
        ValueError: no captions, or another number of them than of images.
    """
    _check_count(len(texts), len(words), "captions", "images")
    named = [parse(text) for text in texts]
    right: _Right = {
        name: [getattr(one, field) == getattr(true, field) for one, true in zip(named, words, strict=True)]
        for field, name in NAMES.items()
    }
    right["all"] = [one == true for one, true in zip(named, words, strict=True)]
    found = _means("caption", right, range(len(words)))
    if seen is None:
        return found
    unseen = [row for row, one in enumerate(words) if one not in seen]
    return found | _means("caption", right, unseen, "_unseen")


def drawing_scores(
    images: Tensor, classes: Tensor, asked: Sequence[PropertyWords], prefix: str = "t2i"
) -> dict[str, float]:
    """Score images that were generated from text by the words of their prompts.

    Args:
        images: (B, 1, 8, 8) or (B, 1, 16, 16), floating in [−1, 1], or uint8.
        classes: (B,) classes that the data set's classifier assigns, as `classes_of` gives them.
        asked: the words of each prompt, as `parse` gives them. A property that is None is not scored.
        prefix: beginning of the scores' names.

    Returns:
        `t2i_class`, `t2i_ink`, `t2i_slant` and `t2i_width`, the shares of images that have the word asked for. Each
        has its binomial standard error `…_stderr`. `t2i_images` counts the images.

    Raises:
        ValueError: no images, another number of prompts or classes, or images of another type or shape.
    """
    _check_count(len(images), len(asked), "images", "prompts")
    drawn = describe(images, classes.cpu())
    right: _Right = {
        name: [
            None if getattr(prompt, field) is None else getattr(one, field) == getattr(prompt, field)
            for one, prompt in zip(drawn, asked, strict=True)
        ]
        for field, name in NAMES.items()
    }
    return _means(prefix, right, range(len(asked)))


def classes_of(images: Tensor, classifier: Extractor) -> Tensor:
    """Return the classes (B,) int64 of images, as `drawing_scores` takes them, by the data set's classifier.

    Raises:
        ValueError: the extractor does not know the classes of the data set.
    """
    found = classifier.features(images if images.dtype == torch.uint8 else to_pixels(images)).probabilities
    if found is None or not classifier.judges_classes:
        raise ValueError(f"the extractor {classifier.space} does not know the classes of the digits")
    return found.argmax(dim=1).cpu()


def baselines(train: Iterable[PropertyWords], words: Sequence[PropertyWords]) -> dict[str, float]:
    """Return scores that need no model, to read those of a model by.

    Args:
        train: the words of all training rows.
        words: the true words of the images that captions are scored on.

    Returns:
        `chance_class`, `chance_ink`, … and `chance_all`: a word drawn at random. `class_alone_ink`, `…_slant`,
        `…_width` and `…_all`: an image's class and nothing else is known, and the words most frequent with it in
        training are named. Of equally frequent words the first is taken.

    Raises:
        ValueError: `words` is empty, or a class of it has no training rows.
    """
    if not words:
        raise ValueError("no images; at least one is needed")
    counts: dict[str | None, Counter[PropertyWords]] = {}
    for one in train:
        counts.setdefault(one.digit, Counter())[one] += 1
    if missing := {one.digit for one in words} - counts.keys():
        raise ValueError(f"no training rows of {', '.join(sorted(map(str, missing)))}")
    chance = {f"chance_{name}": 1 / len(_CHOICES[field]) for field, name in NAMES.items()}
    found = chance | {"chance_all": 1 / len(CELLS)}
    for field in ("ink", "slant", "width"):
        usual = {digit: _most_frequent(cells, field) for digit, cells in counts.items()}
        found[f"class_alone_{field}"] = _mean([getattr(one, field) == usual[one.digit] for one in words])
    usual_cell = {digit: max(CELLS, key=cells.__getitem__) for digit, cells in counts.items()}
    return found | {"class_alone_all": _mean([one == usual_cell[one.digit] for one in words])}


def _means(prefix: str, right: _Right, rows: Sequence[int], suffix: str = "") -> dict[str, float]:
    found: dict[str, float] = {f"{prefix}_images{suffix}": len(rows)}
    for name, values in right.items():
        scored = [value for row in rows if (value := values[row]) is not None]
        if scored:
            share = _mean(scored)
            found[f"{prefix}_{name}{suffix}"] = share
            found[f"{prefix}_{name}{suffix}_stderr"] = math.sqrt(share * (1 - share) / len(scored))
    return found


def _most_frequent(cells: Counter[PropertyWords], field: str) -> str:
    """Return the word of a property that most rows have."""
    counts: Counter[str] = Counter()
    for cell, count in cells.items():
        counts[getattr(cell, field)] += count
    return max(_CHOICES[field], key=counts.__getitem__)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _check_count(count: int, wanted: int, what: str, of: str) -> None:
    if not count or count != wanted:
        raise ValueError(f"{count} {what} for {wanted} {of}; at least one, and one for each is needed")
