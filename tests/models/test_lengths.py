"""Lengths of training sequences, against those that are drawn."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from causalfusion import CausalFusionConfig, DiTConfig, ObjectiveConfig, TextConfig, preset
from causalfusion.baselines.transfusion import lay_out_described
from causalfusion.factorization.sequence import lay_out
from causalfusion.lengths import lengths, sequences
from causalfusion.objective import draw_split

BASE = CausalFusionConfig(
    input_size=8, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=2, class_tokens=2
)
TEXT = dataclasses.replace(BASE, class_tokens=0, text=TextConfig(vocabulary=13, max_tokens=6))
SHARE: dict[str, Any] = {"share": 0.5}
CASES: list[tuple[CausalFusionConfig, dict[str, Any], str]] = [
    (BASE, {"ar_decay": 1.0}, "cpu"),
    (BASE, {"ar_decay": 1.0}, "cuda"),
    (BASE, {"ar_decay": 0.9, "time_copies": 3, "sequence_multiple": 7}, "cpu"),
    (BASE, {"num_ar_steps": 3, "time_copies": 4}, "cuda"),
    (BASE, {"num_ar_steps": 1}, "cuda"),
    (BASE, {"ar_decay": 0.0}, "cuda"),
    (dataclasses.replace(BASE, time_conditioning="token"), {"ar_decay": 1.0, "sequence_multiple": 8}, "cpu"),
    (TEXT, {"ar_decay": 1.0, "text": SHARE, "sequence_multiple": 8}, "cpu"),
    (TEXT, {"ar_decay": 1.0, "text": SHARE, "time_copies": 2}, "cpu"),
    (TEXT, {"ar_decay": 1.0, "text": {"share": 0.0}}, "cpu"),
    (TEXT, {"ar_decay": 1.0, "text": {"share": 1.0}}, "cuda"),
    (
        dataclasses.replace(TEXT, architecture="transfusion"),
        {"num_ar_steps": 1, "ar_weight": 1.0, "text": SHARE},
        "cuda",
    ),
]


def drawn_length(model: CausalFusionConfig, config: ObjectiveConfig, device: str, seed: int) -> int:
    """Return the length of a drawn sequence, laid out as the objectives do."""
    rng, sizes = random.Random(seed), draw_split(config, model.num_tokens, 0, seed)
    before = after = 0
    if model.text is not None and config.text is not None:
        count = rng.randint(2, model.text.max_tokens)
        before, after = (0, count) if rng.random() < config.text.share else (count, 0)
    if model.architecture == "transfusion" and after:
        return len(lay_out_described(model.num_tokens, class_tokens=0, text_after=after))
    layout = lay_out(
        sizes,
        class_tokens=model.num_class_tokens,
        text_before=before,
        text_after=after,
        copies=config.time_copies,
        time_token=model.time_conditioning == "token",
        multiple=config.multiple(model.num_tokens, device),
    )
    return len(layout)


@pytest.mark.parametrize(("model", "options", "device"), CASES)
def test_lengths_of_draws_are_those_listed(model: CausalFusionConfig, options: dict[str, Any], device: str) -> None:
    """So often that each that is listed is drawn too: 16 image tokens have few."""
    config = ObjectiveConfig(**options)
    drawn = {drawn_length(model, config, device, seed) for seed in range(1_500)}
    assert drawn == set(lengths(model, config, device))


def test_10_000_draws_of_the_papers_model() -> None:
    """256 image tokens and 4 class tokens: 260 in one AR step, else 261 to 515, which become multiples of 64."""
    model, config = preset("L/2"), ObjectiveConfig()
    assert lengths(model, config, "cuda") == [260, 320, 384, 448, 512, 576]
    assert lengths(model, config, "cpu") == list(range(260, 516))
    splits = (draw_split(config, 256, 0, step) for step in range(10_000))
    found = {len(lay_out(sizes, class_tokens=4, multiple=64)) for sizes in splits}
    assert found <= {260, 320, 384, 448, 512, 576}
    assert len(found) > 3


def test_each_length_has_a_sequence_of_it() -> None:
    config = ObjectiveConfig(sequence_multiple=8, text=SHARE)  # type: ignore[arg-type]
    for length, one in sequences(TEXT, config, "cpu").items():
        layout = lay_out(
            list(one.sizes), class_tokens=0, text_before=one.text_before, text_after=one.text_after, multiple=8
        )
        assert len(layout) == length


def test_long_sequences_have_larger_multiples() -> None:
    model = preset("L/2", input_size=64)
    assert lengths(model, ObjectiveConfig(), "cuda") == [1_028, 1_280, 1_536, 1_792, 2_048, 2_304]


def test_a_dit_has_one_length() -> None:
    model = DiTConfig(input_size=8, in_channels=1, hidden_size=8, depth=1, num_heads=1)
    assert lengths(model, ObjectiveConfig(num_ar_steps=1), "cuda") == [16]
