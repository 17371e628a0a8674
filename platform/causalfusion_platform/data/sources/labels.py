"""Class indices and class names, made from labels that are integers or names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...config.errors import UserError

# Class names are made for every integer up to the largest label.
_MOST_CLASSES = 1_000_000


class Numbered(NamedTuple):
    """Labels as indices."""

    labels: NDArray[np.int64]
    """(items,) index of the class. −1: without a label."""
    class_names: list[str]


def number_labels(values: pa.Array | pa.ChunkedArray, place: str, names: Sequence[str] | None = None) -> Numbered:
    """Turn labels into indices of classes.

    Integers stay as they are, and classes are named 0, 1, … unless `names` are given. Names are sorted
    bytewise. A null or negative label counts as missing.

    Args:
        values: (items,) integers or strings.
        place: origin of the labels, for messages.
        names: name of each class, for integer labels.

    Raises:
        UserError: a label exceeds the names or the largest number of classes.
    """
    if pa.types.is_integer(values.type):
        labels = pc.fill_null(values.cast(pa.int64()), -1).to_numpy()
        labels = np.maximum(labels, -1)
        largest = int(labels.max(initial=-1))
        limit = _MOST_CLASSES if names is None else len(names)
        if largest >= limit:
            known = f"there are names of {limit:,} classes" if names is not None else f"labels end at {limit - 1:,}"
            raise UserError(
                f"{place}: label {largest} is too large: {known}\n  name another column or file of labels"
            )
        return Numbered(labels, [str(label) for label in range(largest + 1)] if names is None else list(names))
    names = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
    indices = pc.index_in(values, value_set=pa.array(names, values.type))
    return Numbered(pc.fill_null(indices, -1).to_numpy().astype(np.int64), names)


def as_labels(values: Sequence[int | str | None], places: Sequence[str]) -> pa.Array:
    """Return labels as one Arrow array of integers or strings.

    Args:
        places: place of each label, for messages.

    Raises:
        UserError: some are integers and others names, or one is larger than int64.
    """
    number = next((place for value, place in zip(values, places, strict=True) if isinstance(value, int)), None)
    name = next((place for value, place in zip(values, places, strict=True) if isinstance(value, str)), None)
    if number is not None and name is not None:
        raise UserError(
            f"labels must be integers or names, not both: {number} has an integer, {name} a name\n  write one kind"
        )
    try:
        return pa.array(values, pa.int64() if name is None else pa.string())
    except (OverflowError, pa.ArrowInvalid) as error:
        raise UserError(f"a label is not a class number: {error}\n  count classes from 0") from error
