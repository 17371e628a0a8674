"""Lengths of the training sequences that a run can have. Compiled code is made for each of them beforehand.

Symbols: L image tokens, C tokens before the noised copies, k noised copies, S AR steps, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .baselines.dit import DiTConfig
from .config import CausalFusionConfig
from .factorization.sequence import padded_length
from .factorization.steps import equal_step_sizes
from .model import ModelConfig
from .objective import ObjectiveConfig, check_objective

_SHORTEST_TEXT = 2  # the first token predicts the second


@dataclass(frozen=True)
class Sequence:
    """One kind of training sequence."""

    sizes: tuple[int, ...]
    """|κ_1| … |κ_S|."""
    text_before: int
    """T of the text that the image is drawn from."""
    text_after: int
    """T of the text that describes the image."""


def lengths(model: ModelConfig, objective: ObjectiveConfig, device_type: str) -> list[int]:
    """Return every length of a training sequence that a run can have, in ascending order.

    Args:
        model: the model.
        objective: its `sequence_multiple` decides how few lengths there are.
        device_type: type of the device that trains, `cuda` or `cpu`.

    Raises:
        ValueError: the model cannot be trained with this objective.
    """
    return sorted(sequences(model, objective, device_type))


def sequences(model: ModelConfig, objective: ObjectiveConfig, device_type: str) -> dict[int, Sequence]:
    """Return a sequence of each length that a run can have. The arguments are those of `lengths`.

    Raises:
        ValueError: the model cannot be trained with this objective.
    """
    check_objective(model, objective)
    found: dict[int, Sequence] = {}
    for one in _all(model, objective):
        found.setdefault(_length(model, objective, device_type, one), one)
    return found


def _all(model: ModelConfig, objective: ObjectiveConfig) -> Iterator[Sequence]:
    """Generate a sequence for each size of the last AR step and each length of text."""
    tokens = model.num_tokens
    text = model.text if isinstance(model, CausalFusionConfig) else None
    if objective.num_ar_steps is not None:
        splits = [equal_step_sizes(tokens, objective.num_ar_steps)]
    else:
        cut = range(1, tokens) if objective.ar_decay else ()
        splits = [[tokens], *([tokens - last, last] for last in cut)]
    for sizes in splits:
        if text is None or objective.text is None:
            yield Sequence(tuple(sizes), 0, 0)
            continue
        for count in range(_SHORTEST_TEXT, text.max_tokens + 1):
            if objective.text.share < 1:
                yield Sequence(tuple(sizes), count, 0)
            if objective.text.share > 0:
                yield Sequence(tuple(sizes), 0, count)


def _length(model: ModelConfig, objective: ObjectiveConfig, device_type: str, one: Sequence) -> int:
    tokens, text = model.num_tokens, one.text_before + one.text_after
    if isinstance(model, DiTConfig):
        return tokens
    if model.architecture == "transfusion" and one.text_after:
        return tokens + text  # the image itself is the context of its text
    clean = tokens if one.text_after else tokens - one.sizes[-1]
    classes = 0 if objective.text else model.num_class_tokens
    context = classes + text + clean + (model.time_conditioning == "token")
    length = context + objective.time_copies * tokens
    if len(one.sizes) == 1 and not text:
        return length
    return padded_length(length, objective.multiple(tokens, device_type))
