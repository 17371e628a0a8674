"""Requested classes of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from causalfusion import draws

from ..config.errors import UserError
from .generate import labels_in_turn

LabelsRule = Literal["balanced", "random"]


def parse_classes(text: str, num_classes: int) -> list[int]:
    """Read classes such as 3, 0,2,7 or 0-9, each once.

    Raises:
        UserError: it is none of these, or the model has no such class.
    """
    last = num_classes - 1
    classes: list[int] = []
    for part in text.split(","):
        first, dash, end = part.strip().partition("-")
        if not first.isdecimal() or (dash and not end.isdecimal()):
            raise UserError(f"labels {text!r} are not numbers such as 3, 0,2,7 or 0-9")
        some = range(int(first), int(end if dash else first) + 1)
        if not some or some[-1] > last:
            raise UserError(f"labels {text!r}: the model's classes are 0…{last}")
        classes += some
    return list(dict.fromkeys(classes))


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
