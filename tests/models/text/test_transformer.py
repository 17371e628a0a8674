"""Training passes with text against numpy loops, and the laws of who depends on whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.models.text.conftest import TextModelMaker, text_config
from torch import Tensor

from causalfusion import CausalFusion, CausalFusionConfig, TextConfig, count_parameters, preset
from causalfusion.attention.plan import AttentionPlan
from causalfusion.baselines.transfusion import Transfusion, lay_out_described
from causalfusion.factorization.sequence import lay_out

if TYPE_CHECKING:
    from tests.models.conftest import NaiveTransformer

SPLITS = [[16], [5, 11], [3, 1, 8, 4], [1] * 16]
TEXTS = torch.tensor([[1, 4, 9, 2, 0], [1, 7, 7, 3, 2], [1, 2, 0, 0, 0]])
LENGTHS = torch.tensor([4, 5, 2])


class Inputs:
    """Random patches of three samples in a random order each."""

    def __init__(self, sizes: list[int], *, copies: int = 1, all_clean: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.order = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])
        clean = torch.randn(3, 16, 4, generator=generator, dtype=torch.float64)
        self.clean = clean if all_clean else clean[:, : 16 - sizes[-1]]
        self.noised = torch.randn(3, copies * 16, 4, generator=generator, dtype=torch.float64)
        self.t = torch.randint(1000, (3, copies), generator=generator)
        self.steps = [step for step, size in enumerate(sizes) for _ in range(size)]

    def pass_through(self, model: CausalFusion, plan: AttentionPlan, **text: Tensor) -> Any:
        t = self.t[:, 0] if self.t.shape[1] == 1 else self.t
        return model(self.noised, self.clean, self.order, t, None, plan, **text)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("sizes", SPLITS)
def test_drawing_equals_a_loop_over_single_samples(
    make_text_model: TextModelMaker, naive: type[NaiveTransformer], sizes: list[int], copies: int
) -> None:
    """Each sample is computed alone, without the padding behind its text and without the other copies."""
    model, inputs = make_text_model(), Inputs(sizes, copies=copies)
    plan = AttentionPlan.of(lay_out(sizes, class_tokens=0, text_before=5, copies=copies), lengths=LENGTHS)
    found = inputs.pass_through(model, plan, text_before_BT=TEXTS)
    transformer, steps = naive(model), inputs.steps
    for row, (text, length, order) in enumerate(zip(TEXTS.tolist(), LENGTHS.tolist(), inputs.order, strict=True)):
        places = order.tolist()
        for copy in range(copies):
            own = slice(16 * copy, 16 * copy + 16)
            clean = transformer.image_tokens(inputs.clean[row].numpy(), places[: inputs.clean.shape[1]])
            noised = transformer.image_tokens(inputs.noised[row, own].numpy(), places, int(inputs.t[row, copy]))
            kinds = [("text", place) for place in range(length)]
            kinds += [("clean", step) for step in steps[: len(clean)]] + [("noised", step) for step in steps]
            visible = [[_sees(query, key) for key in kinds] for query in kinds]
            x = np.concatenate([transformer.text_tokens(text[:length]), clean, noised])
            expected = transformer.predict(transformer.run_blocks(x, visible)[-16:])
            np.testing.assert_allclose(found[row, own].detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", SPLITS)
def test_logits_equal_a_decoder_written_separately(
    make_text_model: TextModelMaker, naive: type[NaiveTransformer], sizes: list[int], tied: bool
) -> None:
    model, inputs = make_text_model(text={"tied": tied}), Inputs(sizes, all_clean=True)
    plan = AttentionPlan.of(lay_out(sizes, class_tokens=0, text_after=5, multiple=8))
    prediction, logits = inputs.pass_through(model, plan, text_after_BT=TEXTS)
    transformer, steps = naive(model), inputs.steps
    for row, (text, order) in enumerate(zip(TEXTS.tolist(), inputs.order.tolist(), strict=True)):
        clean = transformer.image_tokens(inputs.clean[row].numpy(), order)
        noised = transformer.image_tokens(inputs.noised[row].numpy(), order, int(inputs.t[row, 0]))
        kinds = [("clean", step) for step in steps] + [("after", place) for place in range(5)]
        kinds += [("noised", step) for step in steps]
        visible = [[_sees(query, key) for key in kinds] for query in kinds]
        x = transformer.run_blocks(np.concatenate([clean, transformer.text_tokens(text), noised]), visible)
        np.testing.assert_allclose(logits[row].detach().numpy(), transformer.logits(x[16:21]), rtol=0, atol=1e-10)
        np.testing.assert_allclose(
            prediction[row].detach().numpy(), transformer.predict(x[21:]), rtol=0, atol=1e-10
        )


def _sees(query: tuple[str, int], key: tuple[str, int]) -> bool:
    """Return whether a token sees another: (kind, place within its text or AR step)."""
    (kind, place), (other, earlier) = query, key
    if other == "text":
        return kind != "text" or earlier <= place
    if kind == "text" or (other == "noised" and kind != "noised"):
        return False
    if other == "after":
        return kind == "after" and earlier <= place
    if kind == "after":
        return True
    if kind == "noised":
        return earlier == place if other == "noised" else earlier < place
    return earlier <= place


@pytest.mark.parametrize("sizes", SPLITS)
def test_logits_depend_on_every_clean_token_and_on_no_noised_or_later_one(
    make_text_model: TextModelMaker, sizes: list[int]
) -> None:
    model, inputs = make_text_model(), Inputs(sizes, all_clean=True)
    plan = AttentionPlan.of(lay_out(sizes, class_tokens=0, text_after=5))
    embedded = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    inputs.clean.requires_grad_(), inputs.noised.requires_grad_()
    model._embed_text = lambda tokens, *_: [] if tokens is None else [embedded]  # type: ignore[method-assign]
    prediction, logits = inputs.pass_through(model, plan, text_after_BT=TEXTS)
    for place in range(5):
        grads = torch.autograd.grad(
            logits[:, place].square().sum(), [inputs.clean, inputs.noised, embedded], retain_graph=True
        )
        clean, noised, text = grads
        assert (clean.abs().amax(dim=2) > 0).all()  # those of the last AR step too
        assert (noised == 0).all()
        assert (text[:, : place + 1].abs().amax(dim=2) > 0).all()
        assert (text[:, place + 1 :] == 0).all()
    [text] = torch.autograd.grad(prediction.square().sum(), embedded, allow_unused=True)
    assert text is None or (text == 0).all()


def test_an_image_does_not_depend_on_the_text_behind_it(make_text_model: TextModelMaker) -> None:
    """With other text not a bit changes, and without any the prediction is the same but for rounding."""
    model, sizes = make_text_model(), [5, 11]
    inputs = Inputs(sizes, all_clean=True)
    plan = AttentionPlan.of(lay_out(sizes, class_tokens=0, text_after=5))
    one, other = (inputs.pass_through(model, plan, text_after_BT=text)[0] for text in (TEXTS, TEXTS.flip(0)))
    assert torch.equal(one, other)
    without = Inputs(sizes).pass_through(model, AttentionPlan.of(lay_out(sizes, class_tokens=0)))
    torch.testing.assert_close(one, without, rtol=0, atol=1e-12)
    empty = torch.zeros(3, dtype=torch.int64)
    hidden = AttentionPlan.of(lay_out(sizes, class_tokens=0, text_before=5), lengths=empty)
    null = Inputs(sizes).pass_through(model, hidden, text_before_BT=TEXTS)
    torch.testing.assert_close(null, without, rtol=0, atol=1e-12)


def test_padding_behind_a_text_changes_nothing(make_text_model: TextModelMaker) -> None:
    model, sizes = make_text_model(), [3, 13]
    inputs = Inputs(sizes)
    predictions = []
    for padding, filler in ((0, 0), (2, 0), (2, 8)):
        text = torch.nn.functional.pad(TEXTS, (0, padding), value=filler)
        layout = lay_out(sizes, class_tokens=0, text_before=5 + padding)
        plan = AttentionPlan.of(layout, lengths=LENGTHS)
        predictions.append(inputs.pass_through(model, plan, text_before_BT=text))
    torch.testing.assert_close(predictions[1], predictions[0], rtol=0, atol=1e-12)
    assert torch.equal(predictions[1], predictions[2])


def test_text_and_classes_can_both_stand_before_an_image(
    make_text_model: TextModelMaker, naive: type[NaiveTransformer]
) -> None:
    model, inputs = make_text_model(class_tokens=2), Inputs([16])
    labels = torch.tensor([0, 2, 1])
    plan = AttentionPlan.of(lay_out([16], class_tokens=2, text_before=5), lengths=LENGTHS)
    found = model(inputs.noised, inputs.clean, inputs.order, inputs.t[:, 0], labels, plan, TEXTS)
    transformer = naive(model)
    for row, (text, length) in enumerate(zip(TEXTS.tolist(), LENGTHS.tolist(), strict=True)):
        noised = transformer.image_tokens(
            inputs.noised[row].numpy(), inputs.order[row].tolist(), int(inputs.t[row, 0])
        )
        x = [transformer.class_tokens(int(labels[row])), transformer.text_tokens(text[:length]), noised]
        rank = [0, 0, *range(1, length + 1), *[length + 1] * 16]
        visible = [[other <= own for other in rank] for own in rank]
        expected = transformer.predict(transformer.run_blocks(np.concatenate(x), visible)[-16:])
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=0, atol=1e-10)


def test_described_images_of_a_transfusion_equal_a_loop_over_single_samples(
    make_text_model: TextModelMaker, naive: type[NaiveTransformer]
) -> None:
    model, inputs = make_text_model(architecture="transfusion"), Inputs([16])
    assert isinstance(model, Transfusion)
    plan = AttentionPlan.of(lay_out_described(16, class_tokens=0, text_after=5))
    prediction, logits = inputs.pass_through(model, plan, text_after_BT=TEXTS)
    transformer = naive(model)
    rank = [0] * 16 + [*range(1, 6)]
    visible = [[other <= own for other in rank] for own in rank]
    for row, (text, order) in enumerate(zip(TEXTS.tolist(), inputs.order.tolist(), strict=True)):
        noised = transformer.image_tokens(inputs.noised[row].numpy(), order, int(inputs.t[row, 0]))
        x = transformer.run_blocks(np.concatenate([noised, transformer.text_tokens(text)]), visible)
        np.testing.assert_allclose(logits[row].detach().numpy(), transformer.logits(x[16:]), rtol=0, atol=1e-10)
        np.testing.assert_allclose(
            prediction[row].detach().numpy(), transformer.predict(x[:16]), rtol=0, atol=1e-10
        )
    later = Inputs([16])
    later.t = (inputs.t + 400) % 1000
    _, others = later.pass_through(model, plan, text_after_BT=TEXTS)
    assert ((others - logits).abs().amax(dim=(1, 2)) > 1e-3).all()  # the text sees the noised image and its time


def test_a_transfusion_draws_as_a_causal_fusion_with_one_ar_step(make_text_model: TextModelMaker) -> None:
    model, other = make_text_model(architecture="transfusion"), make_text_model()
    inputs = Inputs([16])
    plan = AttentionPlan.of(lay_out([16], class_tokens=0, text_before=5), lengths=LENGTHS)
    predictions = [inputs.pass_through(each, plan, text_before_BT=TEXTS) for each in (model, other)]
    assert torch.equal(*predictions)


@pytest.mark.parametrize(("tied", "millions"), [(True, 435.0), (False, 566.3)])
def test_parameters_of_the_paper(tied: bool, millions: float) -> None:
    """L/2 with LLaMA-3's table of 128,256 tokens (Table 11)."""
    sizes = vars(preset("L/2")) | {"class_tokens": 0, "text": TextConfig(vocabulary=128_256, tied=tied)}
    assert round(count_parameters(CausalFusionConfig(**sizes)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": True}, "text must be null or a section of settings, got True"),
        ({"class_tokens": 0, "text": None}, "class_tokens must be at least 1 in a model without text, got 0"),
        ({"class_tokens": -1}, "class_tokens must be at least 1"),
        ({"architecture": "transfusion", "text": None, "class_tokens": 1}, "a transfusion model needs text"),
        ({"architecture": "transfusion", "time_conditioning": "token"}, "and time_conditioning embedding"),
        ({"text": {"vocabulary": 1}}, r"text.vocabulary must lie in \[2"),
        ({"text": {"max_tokens": 2}}, r"text.max_tokens must lie in \[3"),
        ({"text": {"tokenizer_sha256": "abc"}}, "must be 64 hexadecimal digits, got 'abc'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        if not isinstance(changes.get("text", {}), dict):
            CausalFusionConfig(**(vars(text_config()) | changes))
        else:
            text_config(**changes)


def test_conditions_that_the_model_lacks_are_refused(
    make_text_model: TextModelMaker, make_model: Callable[..., CausalFusion]
) -> None:
    model, inputs = make_text_model(), Inputs([16])
    arguments = inputs.noised, inputs.clean, inputs.order, inputs.t[:, 0]
    plan = AttentionPlan.of(lay_out([16], class_tokens=0))
    with pytest.raises(ValueError, match="no classes: give text"):
        model(*arguments, torch.tensor([0, 1, 2]), plan)
    with pytest.raises(ValueError, match="needs labels"):
        make_model()(*arguments, None, plan)
    with pytest.raises(ValueError, match="no text: give labels"):
        make_model()(*arguments, torch.tensor([0, 1, 2]), plan, TEXTS)
    with pytest.raises(ValueError, match="8 text tokens, but the model has positions for 7"):
        model(*arguments, None, plan, torch.ones(3, 8, dtype=torch.int64))
