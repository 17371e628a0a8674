"""Loss of text and images: its parts, its mixture, its division into batches, and the quota of its kinds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.random_models import randomised
from tests.models.text.conftest import text_config
from torch import Tensor

from causalfusion import (
    CausalFusion,
    DiffusionConfig,
    ObjectiveConfig,
    TextConfig,
    TextImageObjective,
    TextObjectiveConfig,
    Texts,
    build_model,
    draw,
    text_last,
)
from causalfusion.objective import check_objective

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

TOKENS = torch.tensor([[1, 4, 9, 2, 0], [1, 7, 7, 3, 2], [1, 2, 0, 0, 0], [1, 5, 2, 0, 0]])
LENGTHS = torch.tensor([4, 5, 2, 3])
LAST = torch.tensor([False, True, False, True])
MakeObjective = Callable[..., TextImageObjective]


def make_objective(architecture: str = "causalfusion", **text: Any) -> TextImageObjective:
    model = randomised(build_model(text_config(architecture=architecture)))
    assert isinstance(model, CausalFusion)
    options = {"share": 0.5, "weight": 0.25, **text}
    one: dict[str, Any] = {"num_ar_steps": 1, "ar_weight": 1.0} if architecture == "transfusion" else {}
    config = ObjectiveConfig(text=TextObjectiveConfig(**options), **one)
    return TextImageObjective(model, config, DiffusionConfig())


class Example:
    """Four samples with their draws. The text of the second and the fourth stands behind the image."""

    def __init__(self, objective: TextImageObjective, last: Tensor = LAST) -> None:
        generator = torch.Generator().manual_seed(0)
        self.objective = objective
        self.latents = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.texts = Texts(TOKENS, LENGTHS, last)
        config = objective.model.config
        self.drawn = draw(config, objective.config, DiffusionConfig(), seed=0, step=3, samples=range(20, 24))

    def loss(self, rows: slice | Tensor = slice(None), targets: float | None = None) -> Any:
        texts = self.texts[rows]
        targets = texts.targets or 1 if targets is None else targets
        return self.objective(
            self.objective.model, self.latents[rows], texts, self.drawn.part(rows), float(targets)
        )

    def gradient(self, **arguments: Any) -> Tensor:
        self.objective.model.zero_grad()
        self.loss(**arguments).weighted.backward()
        parts = [parameter.grad for parameter in self.objective.model.parameters()]
        return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.mark.parametrize("architecture", ["causalfusion", "transfusion"])
def test_a_mixed_batch_is_the_weighted_sum_of_two_unmixed_ones(architecture: str) -> None:
    example = Example(make_objective(architecture))
    first, last = (~LAST).nonzero().flatten(), LAST.nonzero().flatten()
    mixed, targets = example.gradient(), example.texts.targets
    assert targets == 4 + 2
    parts = example.gradient(rows=first), example.gradient(rows=last, targets=targets / 2)
    torch.testing.assert_close(mixed, (parts[0] + parts[1]) / 2, rtol=1e-10, atol=1e-14)
    losses = [example.loss(), example.loss(first), example.loss(last)]
    assert losses[0].mse == pytest.approx(float(losses[1].mse + losses[2].mse) / 2, rel=1e-12)
    assert float(losses[0].text) == pytest.approx(float(losses[2].text), rel=1e-12)


def test_the_text_loss_equals_a_decoder_written_separately(naive: type[NaiveTransformer]) -> None:
    """Mean cross entropy of all tokens but the first, over the texts behind their images, without padding."""
    example = Example(make_objective())
    transformer, found = naive(example.objective.model), example.loss()
    entropies, patches = [], example.objective.model.patchify(example.latents).numpy()
    steps = [step for step, size in enumerate(example.drawn.sizes) for _ in range(size)]
    for row in LAST.nonzero().flatten().tolist():
        order, length = example.drawn.orders[row].tolist(), int(LENGTHS[row])
        text = TOKENS[row, :length].tolist()
        rank = [*steps, *(100 + place for place in range(length))]
        x = np.concatenate([transformer.image_tokens(patches[row, order], order), transformer.text_tokens(text)])
        out = transformer.run_blocks(x, [[other <= own for other in rank] for own in rank])[16:]
        for place, target in enumerate(text[1:]):
            logits = transformer.logits(out[place : place + 1])[0]
            entropies.append(np.log(np.exp(logits).sum()) - logits[target])
    assert len(entropies) == 6
    assert float(found.text) == pytest.approx(np.mean(entropies), rel=1e-10)


def test_image_loss_of_a_described_image_is_that_of_an_image_without_text() -> None:
    """A text-last sample trains the unconditional branch: its loss does not know its text."""
    example = Example(make_objective())
    last = LAST.nonzero().flatten()
    described = example.loss(last)
    other = Example(make_objective())
    other.texts = Texts(TOKENS.flip(0), LENGTHS.flip(0), LAST)
    assert float(described.mse) == pytest.approx(float(other.loss(last).mse), rel=1e-12)
    no_text = Example(make_objective(share=0.0), last=torch.zeros(4, dtype=torch.bool))
    no_text.texts = Texts(TOKENS, torch.zeros(4, dtype=torch.int64), no_text.texts.last)
    assert float(described.mse) == pytest.approx(float(no_text.loss(last).mse), rel=1e-12)


@pytest.mark.parametrize("architecture", ["causalfusion", "transfusion"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_division_into_batches_gives_the_same_gradient(architecture: str, size: int) -> None:
    """Batches without a text-last sample, or with nothing else, are among them."""
    example = Example(make_objective(architecture))
    whole, count = example.gradient(), 4 // size
    parts = [
        example.gradient(rows=slice(first, first + size), targets=example.texts.targets / count)
        for first in range(0, 4, size)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(dim=0), whole, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("share", "passes"), [(0.0, 1), (0.5, 2), (1.0, 1)])
@pytest.mark.parametrize("last", [True, False])
def test_every_rank_makes_the_same_calls(share: float, passes: int, last: bool) -> None:
    """The number of passes does not depend on the kinds of samples in the batch."""
    example = Example(make_objective(share=share), last=torch.full((4,), last))
    calls = []
    model = example.objective.model

    def forward(*arguments: Any) -> Any:
        calls.append(len(arguments))
        return model(*arguments)

    example.objective(forward, example.latents, example.texts, example.drawn, 1.0)
    assert len(calls) == passes


@given(st.decimals(0, 1, places=3), st.integers(1, 8), st.integers(0, 10**9), st.integers(1, 40))
def test_the_quota_is_exact_for_any_share_and_number_of_ranks(
    share: Decimal, ranks: int, first: int, rows: int
) -> None:
    def floor(i: int) -> int:
        return math.floor(i * share)  # decimals are exact

    whole = text_last(range(first, first + ranks * rows), float(share))
    expected = [floor(i + 1) > floor(i) for i in range(first, first + ranks * rows)]
    assert whole.tolist() == expected
    assert int(whole.sum()) == floor(first + ranks * rows) - floor(first)
    parts = [
        text_last(range(first + rank * rows, first + (rank + 1) * rows), float(share)) for rank in range(ranks)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_times_of_described_images_of_a_transfusion_are_bounded() -> None:
    def times_seen(max_time: int | None) -> Iterator[tuple[bool, Tensor]]:
        example = Example(make_objective("transfusion", max_time=max_time))
        example.drawn = example.drawn.with_times(torch.tensor([0, 999, 2, 998]).view(4, 1, 1))
        seen = []

        def forward(*arguments: Any) -> Any:
            seen.append((arguments[7] is not None if len(arguments) > 7 else False, arguments[3]))
            return example.objective.model(*arguments)

        example.objective(forward, example.latents, example.texts, example.drawn, 1.0)
        return iter(seen)

    assert [(last, t.tolist()) for last, t in times_seen(500)] == [(False, [0, 2]), (True, [499, 499])]
    assert [(last, t.tolist()) for last, t in times_seen(None)] == [(False, [0, 2]), (True, [999, 998])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": -0.1}, r"text.share must lie in \[0, 1\]"),
        ({"share": 1.5}, r"text.share must lie in \[0, 1\]"),
        ({"weight": -1.0}, "text.weight must not be negative"),
        ({"max_time": 0}, "text.max_time must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextObjectiveConfig(**changes)


def test_models_and_objectives_that_do_not_fit_are_refused() -> None:
    text, none = TextObjectiveConfig(), None
    with pytest.raises(ValueError, match=r"the model has text, but objective\.text is null"):
        check_objective(text_config(), ObjectiveConfig(text=none))
    classes = dataclasses.replace(text_config(), text=None, class_tokens=1)
    with pytest.raises(ValueError, match=r"but the model has none: give model\.text"):
        check_objective(classes, ObjectiveConfig(text=text))
    transfusion = text_config(architecture="transfusion")
    with pytest.raises(ValueError, match="one AR step"):
        check_objective(transfusion, ObjectiveConfig(text=text))
    with pytest.raises(ValueError, match="no AR weight"):
        check_objective(transfusion, ObjectiveConfig(text=text, num_ar_steps=1))
    assert TextConfig(vocabulary=4).max_tokens == 35
