"""CIDEr-D against pycocoevalcap's numbers, and against dense vectors computed by brute force.

The numbers were made by pycocoevalcap 1.2, which is not installed by the project. Its `Cider` was given `CAPTIONS`,
whose words are separated by blanks, without a tokenizer:

    Cider().compute_score({i: list(references)}, {i: [hypothesis]})
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from causalfusion_platform.evaluation.metrics.cider import cider_d

CAPTIONS = (
    ("a man rides a red bike down the street", ("a man rides a red bike down the street",)),
    ("a man on a horse", ("a man rides a brown horse", "a person on a horse in a field", "man riding a horse")),
    ("", ("two dogs play with a ball", "dogs run on the grass")),
    ("dog", ("dog", "a dog sits on the grass", "a brown dog", "the dog looks up", "one dog")),
    ("the the the the the the the", ("the cat sat on the mat", "a cat on a mat")),
    ("cat", ("two cats sleep",)),
    ("a a a a a a", ("a plate of food on a table", "food on a plate", "a table with a plate and a fork")),
    ("zebra giraffe elephant", ("a train at the station", "a long red train")),
    ("a red train", ("red train", "a", "train")),
    ("a boat on the water near a boat on the water near a boat", ("a boat on the water", "a small boat near land")),
    ("kitchen", ("a clean kitchen", "", "a kitchen with a stove and a sink")),
    ("two people two people ski", ("two people ski down a hill", "two people ski", "people on a hill", "snow")),
    ("street at night", ("a street at night", "a street at night", "the street at night with lights")),
    ("a very long caption that says a great deal more than anybody would about one small red bike", ("a bike",)),
)
"""(hypothesis, references) of 14 images.

Equal to a reference, empty, of one known word, of one unknown word, repeated words, no common n-gram of any length,
one-word and empty references, repeated references, and a hypothesis much longer than its reference.
"""
SCORE = 1.7911313522123107
PER_IMAGE = (
    10.0,
    2.376086505419676,
    0.0,
    1.6968665076566605,
    0.10116344553200188,
    0.0,
    0.027276143561525676,
    0.0,
    1.950531488094489,
    0.6504245131972695,
    0.7744392541471041,
    1.9043085903796197,
    5.581085373209666,
    0.013657109774337648,
)
OF_TWO_IMAGES = (10.000000000000002, 2.0552021746185676)
"""Scores of the first two images without the others. The idf is another."""


class Blanks:
    """Words separated by blanks."""

    metric, bleu = "cider_d_blanks", "bleu4_blanks"
    identity = "blanks"

    def tokenize(self, captions: Sequence[str]) -> list[list[str]]:
        return [caption.split() for caption in captions]


def unzip(captions: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[str], list[Sequence[str]]]:
    return [hypothesis for hypothesis, _ in captions], [references for _, references in captions]


def brute_force(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the scores from dense vectors over every n-gram of the data, as the paper's Section 7 writes them."""

    def grams(caption: str, n: int) -> list[str]:
        words = caption.split()
        return [" ".join(words[i : i + n]) for i in range(len(words)) if i + n <= len(words)]

    scores = np.zeros(len(hypotheses))
    for n in (1, 2, 3, 4):
        every = sorted({gram for group in [hypotheses, *references] for text in group for gram in grams(text, n)})
        in_image = np.array([[any(g in grams(ref, n) for ref in group) for g in every] for group in references])
        idf = np.log(len(references) / np.maximum(1, in_image.reshape(len(references), -1).sum(axis=0)))

        for image, (hypothesis, group) in enumerate(zip(hypotheses, references, strict=True)):
            for reference in group:
                h, r = ([grams(text, n).count(g) for g in every] * idf for text in (hypothesis, reference))
                size = np.linalg.norm(h) * np.linalg.norm(r)
                away = len(hypothesis.split()) - len(reference.split())
                cosine = (np.minimum(h, r) @ r) / size if size else 0.0
                scores[image] += 10 / 4 / len(group) * cosine * np.exp(-(away**2) / 72)
    return [float(score) for score in scores]


def test_scores_equal_pycocoevalcap() -> None:
    score, per_image = cider_d(*unzip(CAPTIONS), Blanks())
    assert score == pytest.approx(SCORE, abs=1e-12)
    assert per_image == pytest.approx(PER_IMAGE, abs=1e-12)
    assert cider_d(*unzip(CAPTIONS[:2]), Blanks()).per_image == pytest.approx(OF_TWO_IMAGES, abs=1e-12)


def test_scores_equal_brute_force() -> None:
    assert brute_force(*unzip(CAPTIONS)) == pytest.approx(PER_IMAGE, abs=1e-12)
    draw = random.Random(0)
    for words in (1, 3, 12):
        sizes = (0, 1, 2, 3, 6, 14)

        def caption(words: int = words, sizes: Sequence[int] = sizes) -> str:
            return " ".join(f"w{draw.randrange(words)}" for _ in range(draw.choice(sizes)))

        for _ in range(10):
            references = [[caption() for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(2, 8))]
            hypotheses = [draw.choice([caption(), *group]) for group in references]
            found = cider_d(hypotheses, references, Blanks())
            assert found.per_image == pytest.approx(brute_force(hypotheses, references), abs=1e-12)
            assert found.score == pytest.approx(np.mean(found.per_image), abs=1e-12)


def test_references_in_another_order_and_images_in_another_order_give_the_same() -> None:
    turned = [(hypothesis, references[::-1]) for hypothesis, references in CAPTIONS[::-1]]
    assert cider_d(*unzip(turned), Blanks()).per_image[::-1] == pytest.approx(PER_IMAGE, abs=1e-12)


def test_one_image_has_no_idf() -> None:
    with pytest.raises(
        ValueError, match=r"CIDEr-D of 1 image\(s\): every idf would be log 1 = 0; allowed: 2 images"
    ):
        cider_d(["a dog"], [["a dog"]], Blanks())
    with pytest.raises(ValueError, match=r"CIDEr-D of 0 image\(s\)"):
        cider_d([], [], Blanks())


def test_every_image_needs_a_hypothesis_and_a_reference() -> None:
    with pytest.raises(ValueError, match="3 hypotheses but references of 2 images"):
        cider_d(["a", "b", "c"], [["a"], ["b"]], Blanks())
    with pytest.raises(ValueError, match=r"2 image\(s\) without a reference, at 1, 3; allowed: one"):
        cider_d(["a", "b", "c", "d"], [["a"], [], ["c"], []], Blanks())
