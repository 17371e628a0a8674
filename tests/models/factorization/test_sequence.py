"""The layout of a training sequence, against lists written out by hand."""

from __future__ import annotations

import random

import pytest
import torch

from causalfusion.factorization.sequence import Layout, Segment, lay_out

PADDING, CLASS, TEXT, CLEAN, TIME, NOISED = (
    Segment.PADDING,
    Segment.CLASS,
    Segment.TEXT,
    Segment.CLEAN,
    Segment.TIME,
    Segment.NOISED,
)


def pairs(layout: Layout) -> list[tuple[int, int]]:
    """Return (segment, step) of every token."""
    return list(zip(layout.segments.tolist(), layout.steps.tolist(), strict=True))


def test_the_papers_sequence() -> None:
    """Section 4: class tokens, clean tokens without those of the last AR step, noised tokens."""
    layout = lay_out([2, 1, 2], class_tokens=2)
    clean = [(CLEAN, 1), (CLEAN, 1), (CLEAN, 2)]
    noised = [(NOISED, 1), (NOISED, 1), (NOISED, 2), (NOISED, 3), (NOISED, 3)]
    assert pairs(layout) == [(CLASS, 0), (CLASS, 0), *clean, *noised]
    assert layout.noised == slice(5, 10)
    assert layout.segments.dtype == layout.steps.dtype == torch.int64


def test_every_part_at_once() -> None:
    """Text before shifts the AR steps; text after keeps the last step's clean tokens and comes later than all."""
    layout = lay_out([1, 2], class_tokens=1, text_before=2, text_after=2, copies=2, time_token=True, multiple=8)
    before = [(TEXT, 1), (TEXT, 2)]
    clean = [(CLEAN, 3), (CLEAN, 4), (CLEAN, 4)]
    after = [(TEXT, 5), (TEXT, 6)]
    context = [(CLASS, 0), *before, *clean, *after, (TIME, 3)]
    first = [(NOISED, 3), (NOISED, 4), (NOISED, 4)]
    second = [(NOISED + 1, 3), (NOISED + 1, 4), (NOISED + 1, 4)]
    assert len(context + first + second) == 15
    assert pairs(layout) == [*context, (PADDING, -1), *first, *second]
    assert layout.noised == slice(10, 16)


def test_one_step_has_no_clean_tokens() -> None:
    assert pairs(lay_out([3], class_tokens=1)) == [(CLASS, 0), (NOISED, 1), (NOISED, 1), (NOISED, 1)]
    assert pairs(lay_out([2], class_tokens=0)) == [(NOISED, 1), (NOISED, 1)]


@pytest.mark.parametrize("multiple", [1, 2, 7, 64])
def test_lengths_are_the_next_multiples(multiple: int) -> None:
    """No more padding than needed, all of it right before the noised tokens, and the rest as without."""
    rng = random.Random(0)
    for _ in range(50):
        sizes = [rng.randint(1, 5) for _ in range(rng.randint(1, 6))]
        copies, time_token = rng.randint(1, 3), rng.random() < 0.5
        plain = lay_out(sizes, class_tokens=2, copies=copies, time_token=time_token)
        found = lay_out(sizes, class_tokens=2, copies=copies, time_token=time_token, multiple=multiple)
        context = 2 + sum(sizes[:-1]) + time_token
        assert len(plain) == context + copies * sum(sizes)
        assert plain.noised == slice(context, len(plain))
        assert len(found) % multiple == 0 or len(sizes) == 1
        padding = len(found) - len(plain)
        assert 0 <= padding < (multiple if len(sizes) > 1 else 1)
        expected = pairs(plain)
        assert pairs(found) == expected[:context] + [(PADDING, -1)] * padding + expected[context:]
        assert found.noised == slice(context + padding, len(found))
        segments = found.segments[found.noised].tolist()
        assert segments == [NOISED + copy for copy in range(copies) for _ in range(sum(sizes))]


def test_one_ar_step_has_one_length_and_no_padding_unless_there_is_text() -> None:
    assert len(lay_out([256], class_tokens=4, multiple=64)) == 260
    assert len(lay_out([256], class_tokens=4, text_before=2, multiple=64)) == 320
    assert len(lay_out([256], class_tokens=4, text_after=2, multiple=64)) == 576
