"""Class indices and class names, made from labels that are integers or text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...config.errors import UserError
from .selection import EARLIER_RULES, RULES

# Class names are made for every integer up to the largest label.
_MOST_CLASSES = 1_000_000

_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]*")
# More digits than any label has. Python refuses to read thousands of them.
_MOST_DIGITS = 30


NO_LABELS = "none"
"""Name of the label column of images that are taken without classes."""

NO_CLASS = "image"
"""Name of the only class of images without labels."""


class Numbered(NamedTuple):
    """Labels as indices."""

    labels: NDArray[np.int64]
    """(items,) index of the class. −1: without a label."""
    class_names: list[str]


def read_label(text: str) -> int | str | None:
    """Return the label that a text stands for, in whatever file it is written.

    Digits are the number of a class, other text is the name of a class. Empty text and decimals are not labels.
    """
    text = text.strip()
    if not text or _DECIMAL.fullmatch(text):
        return None
    if not _INTEGER.fullmatch(text):
        return text
    number = int(text.removeprefix("-").lstrip("0")[:_MOST_DIGITS] or "0")
    return -number if text.startswith("-") else number


def number_labels(
    values: pa.Array | pa.ChunkedArray,
    place: str,
    names: Sequence[str] | None = None,
    *,
    place_of: Callable[[int], str] = str,
    rules: int = RULES,
) -> Numbered:
    """Turn labels into indices of classes.

    Integers stay as they are, and classes are named 0, 1, … unless `names` are given. Text is read by `read_label`.
    Names are sorted bytewise. A null or negative label counts as missing.

    Args:
        values: (items,) integers or strings.
        place: origin of the labels, for messages.
        names: name of each class, for integer labels.
        place_of: place of an item, for messages.
        rules: version of the rules of listing.

    Raises:
        UserError: a label exceeds the names or the largest number of classes. Or some are integers, others names.
    """
    if not pa.types.is_integer(values.type) and rules != EARLIER_RULES:
        values = _read_texts(values, place_of)
    if pa.types.is_integer(values.type):
        labels = pc.fill_null(values.cast(pa.int64()), -1).to_numpy()
        labels = np.maximum(labels, -1)
        largest = int(labels.max(initial=-1))
        limit = _MOST_CLASSES if names is None else len(names)
        if largest >= limit:
            known = f"there are names of {limit:,} classes" if names is not None else f"labels end at {limit - 1:,}"
            raise UserError(
                f"{place}: label {largest} is too large: {known}\n"
                f"  name another column or file of labels. Digits are a class number: give names a letter"
            )
        return Numbered(labels, [str(label) for label in range(largest + 1)] if names is None else list(names))
    names = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
    indices = pc.index_in(values, value_set=pa.array(names, values.type))
    return Numbered(pc.fill_null(indices, -1).to_numpy().astype(np.int64), names)


def no_classes(count: int) -> Numbered:
    """Return the labels of images without classes: all 0, of one class."""
    return Numbered(np.zeros(count, np.int64), [NO_CLASS])


def as_labels(values: Sequence[int | str | None]) -> pa.Array:
    """Return labels as one Arrow array: of integers, or of strings if one is text.

    Raises:
        UserError: a label is larger than int64, or not UTF-8.
    """
    is_text = any(isinstance(value, str) for value in values)
    texts = (str(value) if isinstance(value, int) else value for value in values)
    return _array(list(texts) if is_text else list(values), is_text)


def _read_texts(values: pa.Array | pa.ChunkedArray, place_of: Callable[[int], str]) -> pa.Array:
    """Return labels that are text as integers or names."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    encoded = values.dictionary_encode()
    read = [None if text is None else read_label(text) for text in encoded.dictionary.to_pylist()]
    number = next((index for index, label in enumerate(read) if isinstance(label, int)), None)
    name = next((index for index, label in enumerate(read) if isinstance(label, str)), None)
    if number is not None and name is not None:
        indices = encoded.indices.to_numpy(zero_copy_only=False)
        first, second = (place_of(int(np.flatnonzero(indices == index)[0])) for index in (number, name))
        raise UserError(
            f"labels must be integers or names, not both: {first} has an integer, {second} a name, "
            f"{read[name]!r}\n  write one kind"
        )
    return _array(read, name is not None).take(encoded.indices)


def _array(values: Sequence[int | str | None], is_text: bool) -> pa.Array:
    try:
        return pa.array(values, pa.string() if is_text else pa.int64())
    except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid) as error:
        raise UserError(f"a label is not a class number or name: {error}\n  count classes from 0") from error
