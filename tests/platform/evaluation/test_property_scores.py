"""Scores of captions and drawings: by hand, by a loop, and for captions and images that are known to be right."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from causalfusion_platform.data.caption_language import (
    CELLS,
    DIGITS,
    INK,
    SLANT,
    WIDTH,
    PropertyWords,
    captions_of,
    describe,
    parse,
    properties,
)
from causalfusion_platform.data.digits import digits
from causalfusion_platform.data.split_digits import split_rows
from causalfusion_platform.evaluation.extractors.extractor import Features
from causalfusion_platform.evaluation.property_scores import baselines, caption_scores, classes_of, drawing_scores

SEVEN = PropertyWords("seven", "bold", "left", "wide")
NINE = PropertyWords("nine", "light", "upright", "narrow")
FIELDS = {"class": "digit", "ink": "ink", "slant": "slant", "width": "width"}


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor, list[PropertyWords]]:
    """Return the images and labels of all digits, and their words."""
    found = digits()
    images, labels = torch.from_numpy(found.mean), torch.from_numpy(found.labels)
    return images, labels, describe(images, labels)


def test_captions_by_hand() -> None:
    texts = [
        "a bold wide seven leaning left",  # all right
        "a bold wide nine leaning left",  # another class
        "the seven is bold",  # half of it
        "seven or nine, wide, leaning right",  # two classes, one wrong word
        "",
    ]
    found = caption_scores(texts, [SEVEN] * 5)
    expected = {"class": 2 / 5, "ink": 3 / 5, "slant": 2 / 5, "width": 3 / 5, "all": 1 / 5}
    assert found == {"caption_images": 5} | {
        key: pytest.approx(value)
        for name, share in expected.items()
        for key, value in (
            (f"caption_{name}", share),
            (f"caption_{name}_stderr", math.sqrt(share * (1 - share) / 5)),
        )
    }


def test_unseen_cells_are_scored_apart() -> None:
    texts = ["a bold wide seven leaning left", "a bold wide seven leaning left", "a bold wide nine leaning left"]
    found = caption_scores(texts, [SEVEN, SEVEN, NINE], seen={SEVEN})
    assert found["caption_class"] == 1
    assert found["caption_all"] == pytest.approx(2 / 3)
    assert found["caption_images_unseen"] == 1
    assert [found[f"caption_{name}_unseen"] for name in (*FIELDS, "all")] == [1, 0, 0, 0, 0]
    all_seen = caption_scores(texts, [SEVEN, SEVEN, NINE], seen={SEVEN, NINE})
    assert {name for name in all_seen if "unseen" in name} == {"caption_images_unseen"}
    assert all_seen["caption_images_unseen"] == 0


def test_captions_equal_a_loop() -> None:
    """Over random words, some of them left out."""
    draw = random.Random(0)
    truth = [draw.choice(CELLS) for _ in range(400)]
    texts = [
        " ".join(word for word in draw.choice([cell, draw.choice(CELLS)]) if word and draw.random() < 0.8)
        for cell in truth
    ]
    seen = {cell for cell in CELLS if draw.random() < 0.5}
    found = caption_scores(texts, truth, seen)
    for suffix, kept in (("", [True] * 400), ("_unseen", [cell not in seen for cell in truth])):
        pairs = [(text.split(), cell) for text, cell, keep in zip(texts, truth, kept, strict=True) if keep]
        assert found[f"caption_images{suffix}"] == len(pairs)
        for index, name in enumerate(FIELDS):
            share = sum(cell[index] in words for words, cell in pairs) / len(pairs)
            assert found[f"caption_{name}{suffix}"] == pytest.approx(share)
        share = sum(words == list(cell) for words, cell in pairs) / len(pairs)
        assert found[f"caption_all{suffix}"] == pytest.approx(share)
        error = math.sqrt(share * (1 - share) / len(pairs))
        assert found[f"caption_all{suffix}_stderr"] == pytest.approx(error)


def test_true_captions_and_real_images_are_all_right(rows: tuple[Tensor, Tensor, list[PropertyWords]]) -> None:
    images, labels, words = rows
    captions = [captions_of(one)[index % 5] for index, one in enumerate(words)]
    assert all(caption_scores(captions, words)[f"caption_{name}"] == 1 for name in (*FIELDS, "all"))
    drawn = drawing_scores(images, labels, [parse(caption) for caption in captions])
    assert drawn == {"t2i_images": 1797} | {
        f"t2i_{name}{suffix}": value for name in FIELDS for suffix, value in (("", 1.0), ("_stderr", 0.0))
    }


def test_drawings_by_hand(rows: tuple[Tensor, Tensor, list[PropertyWords]]) -> None:
    """Images of one seven for prompts that differ from it in one word each."""
    images, _, words = rows
    index = words.index(PropertyWords("seven", "light", "right", "narrow"))
    asked = [
        words[index],
        words[index]._replace(digit="one"),
        words[index]._replace(ink="bold"),
        words[index]._replace(slant="left"),
    ]
    found = drawing_scores(images[[index] * 4], torch.tensor([7, 7, 7, 1]), asked)
    expected = {"class": 2 / 4, "ink": 3 / 4, "slant": 3 / 4, "width": 1}
    for name, share in expected.items():
        assert found[f"t2i_{name}"] == share
        assert found[f"t2i_{name}_stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 4))
    assert found["t2i_images"] == 4


def test_drawings_are_measured_against_their_words(rows: tuple[Tensor, Tensor, list[PropertyWords]]) -> None:
    """Of images in another order than their prompts, with terciles taken from the set itself."""
    images, labels, words = rows
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(1))
    found = drawing_scores(images[order], labels[order], words)
    assert found["t2i_class"] == pytest.approx(float((labels[order] == labels).double().mean()))
    for name, values, choices in zip(
        ("ink", "slant", "width"), properties(images), (INK, SLANT, WIDTH), strict=True
    ):
        low, high = values.sort().values[[602 if name == "ink" else 598, 1191 if name == "ink" else 1197]].tolist()
        thirds = [choices[(value > low) + (value > high)] for value in values.tolist()]
        right = sum(thirds[place] == thirds[index] for index, place in enumerate(order.tolist()))
        assert found[f"t2i_{name}"] == pytest.approx(right / 1797)


def test_a_prompt_may_name_some_properties_alone(rows: tuple[Tensor, Tensor, list[PropertyWords]]) -> None:
    images, labels, words = rows
    asked = [parse(f"a {words[0].ink} {words[0].digit}"), parse("a digit")]
    found = drawing_scores(images[:2], labels[:2], asked)
    assert found == {
        "t2i_images": 2,
        "t2i_class": 1,
        "t2i_class_stderr": 0,
        "t2i_ink": 1,
        "t2i_ink_stderr": 0,
    }


def test_drawings_may_be_pixels(rows: tuple[Tensor, Tensor, list[PropertyWords]]) -> None:
    images, labels, words = rows
    pixels = ((images[:50].float() + 1) * 127.5).round().to(torch.uint8)
    assert drawing_scores(pixels, labels[:50], words[:50])["t2i_ink"] == 1


class Classifier:
    """Tells classes by the first pixel."""

    space, digest, device = "stub", "0" * 64, torch.device("cpu")

    def __init__(self, judges_classes: bool = True) -> None:
        self.judges_classes = judges_classes

    def features(self, images: Tensor) -> Features:
        assert images.dtype == torch.uint8
        classes = torch.nn.functional.one_hot(images[:, 0, 0, 0].long() // 26, 10)
        return Features(torch.zeros(len(images), 1), probabilities=classes.float())


def test_classes_are_those_of_the_classifier() -> None:
    pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor([0, 130, 255])
    assert classes_of(pixels, Classifier()).tolist() == [0, 5, 9]
    assert classes_of(pixels.float() / 127.5 - 1, Classifier()).tolist() == [0, 5, 9]
    with pytest.raises(ValueError, match="stub does not know the classes"):
        classes_of(pixels, Classifier(judges_classes=False))


def test_baselines_of_the_split(rows: tuple[Tensor, Tensor, list[PropertyWords]]) -> None:
    """The class alone gives ink .44, slant .61, width .55, all three .15."""
    words = rows[2]
    train, validation = ([words[row] for row in part] for part in split_rows(0))
    found = baselines(train, validation)
    assert {name: round(value, 2) for name, value in found.items() if "alone" in name} == {
        "class_alone_ink": 0.44,
        "class_alone_slant": 0.61,
        "class_alone_width": 0.55,
        "class_alone_all": 0.15,
    }
    thirds = {"chance_ink": 1 / 3, "chance_slant": 1 / 3, "chance_width": 1 / 3}
    assert {name: value for name, value in found.items() if "chance" in name} == thirds | {
        "chance_class": 1 / 10,
        "chance_all": 1 / 270,
    }


def test_baselines_equal_a_loop() -> None:
    """The best of all guesses that depend on the class, found by trying them on the training rows."""
    draw = random.Random(3)
    train, test = ([draw.choice(CELLS[:81]) for _ in range(count)] for count in (500, 200))
    found = baselines(train, test)
    guesses: dict[str, list[tuple[str, ...]]] = {
        "ink": [*product(INK)],
        "slant": [*product(SLANT)],
        "width": [*product(WIDTH)],
        "all": [*product(INK, SLANT, WIDTH)],
    }

    def named(cell: PropertyWords, name: str) -> tuple[str | None, ...]:
        return cell[1:] if name == "all" else (getattr(cell, name),)

    for name, tried in guesses.items():
        right = 0
        for digit in DIGITS[:3]:
            counts = Counter(named(cell, name) for cell in train if cell.digit == digit)
            best = max(tried, key=lambda guess: counts[guess])
            right += sum(named(cell, name) == best for cell in test if cell.digit == digit)
        assert found[f"class_alone_{name}"] == pytest.approx(right / 200)


def test_baselines_need_rows() -> None:
    with pytest.raises(ValueError, match="no images"):
        baselines([SEVEN], [])
    with pytest.raises(ValueError, match="no training rows of nine"):
        baselines([SEVEN], [SEVEN, NINE])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unequal_numbers_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"^{count} captions for 2 images"):
        caption_scores(["a seven"] * count, [SEVEN, NINE])
    with pytest.raises(ValueError, match=f"^2 images for {count} prompts"):
        drawing_scores(torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), [SEVEN] * count)
    with pytest.raises(ValueError, match="one label for each"):
        drawing_scores(torch.zeros(2, 1, 8, 8), torch.zeros(3).long(), [SEVEN] * 2)
    with pytest.raises(ValueError, match=r"^0 captions for 0 images"):
        caption_scores([], [])
