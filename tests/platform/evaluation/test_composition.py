"""Prompts of property cells that no training row has, and the scores of their drawings."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.platform.evaluation.test_property_scores import Classifier

from causalfusion_platform.data.caption_language import CELLS, TEMPLATES, captions_of, describe, parse
from causalfusion_platform.data.digits import digits
from causalfusion_platform.evaluation.composition import unseen_prompts, unseen_scores


def test_every_unseen_cell_has_two_prompts_in_turn() -> None:
    seen = CELLS[::3]
    prompts = unseen_prompts(seen)
    assert [parse(prompt) for prompt in prompts] == [cell for cell in CELLS if cell not in seen for _ in range(2)]
    assert len({*prompts}) == len(prompts) == 360
    templates = Counter(captions_of(parse(prompt)).index(prompt) for prompt in prompts)
    assert set(templates.values()) == {360 // len(TEMPLATES)}
    assert unseen_prompts([*reversed(seen)]) == prompts


def test_without_unseen_cells_there_are_no_scores() -> None:
    assert unseen_prompts(CELLS) == []
    assert unseen_scores(torch.zeros(0, 1, 8, 8), [], Classifier()) == {}


def test_scores_of_real_images_are_counted() -> None:
    """Images of the data set in place of drawings, for prompts of other cells. The classifier says class 0."""
    images = torch.from_numpy(digits().mean[:6].copy())
    images[:, :, 0, 0] = -1
    words = describe(images, torch.zeros(6, dtype=torch.int64))
    prompts = [captions_of(word)[place % 5] for place, word in enumerate(words[:4])]
    prompts += [
        captions_of(words[4]._replace(digit="one"))[0],
        captions_of(words[5]._replace(ink=other(words[5].ink)))[0],
    ]
    found = unseen_scores(images, prompts, Classifier())
    assert found["t2i_unseen_images"] == 6
    assert found["t2i_unseen_class"] == pytest.approx(5 / 6)
    assert found["t2i_unseen_ink"] == pytest.approx(5 / 6)
    assert found["t2i_unseen_slant"] == found["t2i_unseen_width"] == 1


def other(ink: str | None) -> str:
    """Return another word of ink."""
    return "bold" if ink != "bold" else "light"
