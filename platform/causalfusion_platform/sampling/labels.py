"""Requested classes of samples."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from causalfusion import draws

from ..config.errors import UserError
from .generate import labels_in_turn

LabelsRule = Literal["balanced", "random"]

_LISTED = 10
"""Classes that a message lists."""


def parse_classes(text: str, num_classes: int, names: Sequence[str] | None = None) -> list[int]:
    """Read classes such as 3, 0,2,7, 0-9 or cat,dog, each once.

    A whole number is the number of a class, even where it is also a name.

    Args:
        text: as it was typed.
        num_classes: classes of the model.
        names: the name of each class. A name may hold commas. None: not known.

    Raises:
        UserError: it is none of these, or the model has no such class.
    """
    classes: list[int] = []
    parts = text.split(",")
    while parts:
        some, taken = _numbered(parts[0], text, num_classes), 1
        if some is None:
            number, taken = _named(parts, text, names)
            some = range(number, number + 1)
        classes += some
        parts = parts[taken:]
    return list(dict.fromkeys(classes))


def _numbered(part: str, text: str, num_classes: int) -> range | None:
    """Return the classes of a number or a range, or None for any other text."""
    first, dash, end = part.strip().partition("-")
    if not first.isdecimal() or (dash and not end.isdecimal()):
        return None
    some = range(int(first), int(end if dash else first) + 1)
    if not some or some[-1] >= num_classes:
        raise UserError(f"labels {text!r}: the model's classes are 0…{num_classes - 1}")
    return some


def _named(parts: Sequence[str], text: str, names: Sequence[str] | None) -> tuple[int, int]:
    """Return the class whose name comes first, and the number of parts that its name takes."""
    longest = 1 + max((name.count(",") for name in names or ()), default=0)
    for taken in range(min(longest, len(parts)), 0, -1):
        name = ",".join(parts[:taken]).strip()
        found = [number for number, known in enumerate(names or ()) if known == name]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise UserError(f"labels {text!r}: {name!r} is the name of classes {numbers}\n  give a number")
        if found:
            return found[0], taken
    raise UserError(_unknown(parts[0].strip(), text, names))


def _unknown(part: str, text: str, names: Sequence[str] | None) -> str:
    if names is None:
        return f"labels {text!r} are not numbers such as 3, 0,2,7 or 0-9"
    near = difflib.get_close_matches(part, names, n=1)
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_LISTED]))
    more = f", … {len(names) - 1} {names[-1]}" if len(names) > _LISTED else ""
    return (
        f"labels {text!r}: {part!r} is neither a number, such as 3 or 0-9, nor the name of a class"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f"\n  classes: {listed}{more}"
    )


def asked_labels(rule: LabelsRule, count: int, classes: Sequence[int], seed: int) -> Tensor:
    """Return the class of each sample, (count,) int64. The first ones do not depend on `count`.

    Args:
        rule: `balanced`: the classes in turn. `random`: independent uniform draws.
        classes: the classes to choose from.
        seed: seed of random ones.
    """
    if rule == "balanced":
        places = labels_in_turn(count, len(classes))
    else:
        places = torch.randint(len(classes), (count,), generator=draws.stream(seed, "generated labels"))
    return torch.tensor(classes)[places]
