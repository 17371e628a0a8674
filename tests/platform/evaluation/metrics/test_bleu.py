"""BLEU-4 against pycocoevalcap's numbers and against counts by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalfusion_platform.evaluation.metrics.bleu import bleu_4
from causalfusion_platform.evaluation.metrics.caption_tokenizers import WordTokenizer

WORDS = WordTokenizer()


@pytest.mark.parametrize(
    ("hypotheses", "references", "expected"),
    [
        # Printed by pycocoevalcap 1.2.
        (["a cat sits on a red mat"], [["a cat sits on the red mat", "the cat is on a mat"]], 0.5169731537851542),
        (
            ["a bold seven", "the wide zero is medium", ""],
            [["a bold seven", "bold seven"], ["the wide zero is light"], ["one"]],
            0.6381572510591593,
        ),
        (["a a a a a"], [["a b a"]], 2.020515504028375e-12),
    ],
)
def test_it_equals_the_reference_implementation(
    hypotheses: list[str], references: list[list[str]], expected: float
) -> None:
    assert bleu_4(hypotheses, references, WORDS) == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_short_caption_is_penalised_by_the_nearest_reference() -> None:
    """Five words of a reference of eight, and of one of twenty: every n-gram is right, and exp(1 − 8/5) is left."""
    long = " ".join(map(chr, range(97, 117)))
    assert bleu_4(["a b c d e"], [["a b c d e f g h", long]], WORDS) == pytest.approx(math.exp(1 - 8 / 5), rel=1e-6)


captions = st.lists(st.sampled_from("abc"), min_size=4, max_size=9).map(" ".join)


@given(st.lists(st.tuples(captions, st.lists(captions, max_size=3)), min_size=1, max_size=4))
def test_a_caption_that_is_a_reference_is_perfect(rows: list[tuple[str, list[str]]]) -> None:
    found = bleu_4([own for own, _ in rows], [[*others, own] for own, others in rows], WORDS)
    assert found == pytest.approx(1, rel=1e-6)


def test_other_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: one hypothesis and one reference or more"):
        bleu_4(["a"], [["a"], ["b"]], WORDS)
    with pytest.raises(ValueError, match="1 of them without any"):
        bleu_4(["a"], [[]], WORDS)
