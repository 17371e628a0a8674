"""The plan of attention: its two forms of a mask against the law in words, and what it knows on the host."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tests.models.attention.naive import naive_attention, random_inputs
from tests.models.attention.sequences import law, random_sequences, sequence
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from causalfusion.attention.flex import FlexMask
from causalfusion.attention.mask import attention_mask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.attention.split import SplitMask
from causalfusion.baselines.transfusion import lay_out_described
from causalfusion.factorization.sequence import lay_out

CPU = torch.device("cpu")


def joined(parts: SplitMask, row: int | None = None) -> Tensor:
    """Return the whole mask of a sample; a part that hides nothing is None."""
    context, length = parts.num_context, parts.num_tokens
    first, noised = (
        part if part is None or row is None else part[row, 0] for part in (parts.context, parts.noised)
    )
    first = torch.ones(context, context) if first is None else first
    noised = torch.ones(length, context + length) if noised is None else noised
    mask = torch.zeros(2 * (context + parts.copies * length,), dtype=torch.bool)
    mask[:context, :context] = first
    for copy in range(parts.copies):
        own = slice(context + copy * length, context + (copy + 1) * length)
        mask[own, :context], mask[own, own] = noised[:, :context], noised[:, context:]
    return mask


def test_both_parts_of_500_sequences_lose_nothing() -> None:
    """They are there just where something is hidden, which the host finds without the mask."""
    hiding = set()
    no_class: tuple[list[int], dict[str, Any]] = [2, 3], {"class_tokens": 0}  # its context is one AR step
    for sizes, options in (no_class, *random_sequences(500)):
        plan = AttentionPlan.of(lay_out(sizes, **options))
        expected, parts = law(sequence(sizes, **options)), plan.split()
        assert len(plan) == len(expected)
        assert torch.equal(joined(parts), expected), (sizes, options)
        for part in (parts.context, parts.noised):
            assert part is None or not bool(part.all()), (sizes, options)
        hiding.add((parts.context is None, parts.noised is None))
    assert hiding == {(False, False), (False, True), (True, False), (True, True)}


def test_shorter_texts_are_padded_sample_by_sample() -> None:
    """Texts of one length in all samples need one mask for all."""
    rng, alike = random.Random(1), 0
    for sizes, options in random_sequences(200):
        before = options["text_before"]
        lengths = [rng.randint(0, before) if rng.random() < 0.8 else before for _ in range(3)]
        plan = AttentionPlan.of(lay_out(sizes, **options), torch.tensor(lengths))
        parts = plan.split()
        assert plan.places.ndim == (2 if lengths == [before] * 3 else 3)
        alike += plan.places.ndim == 2 and before > 0
        for row, length in enumerate(lengths):
            own = row if plan.places.ndim == 3 else None
            assert torch.equal(joined(parts, own), law(sequence(sizes, **options, length=length)))
        for part in (parts.context, parts.noised):
            assert part is None or not bool(part.all()), (sizes, options)
    assert alike > 3


def test_one_ar_step_without_text_and_time_token_has_no_mask() -> None:
    plan = AttentionPlan.of(lay_out([6], class_tokens=2))
    assert (plan.hides_context, plan.hides_from_noised) == (False, False)
    for form in ("split", "flex"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("causalfusion.attention.dense.attention_form", lambda *_, form=form: form)
            assert plan.mask(CPU, torch.float32, 6) == SplitMask(None, None, 2, 6, 1)


def test_the_described_image_of_a_transfusion_is_context_alone() -> None:
    layout = lay_out_described(4, class_tokens=1, text_after=3)
    parts = AttentionPlan.of(layout).split()
    assert (parts.num_context, parts.copies, parts.noised) == (8, 0, None)
    assert torch.equal(joined(parts), attention_mask(layout))


CASES: list[tuple[list[int], dict[str, Any], list[int] | None]] = [
    ([6], {}, None),
    ([2, 3, 1], {"time_token": True}, None),
    ([1] * 6, {"multiple": 16}, None),
    ([2, 3, 1], {"copies": 3}, None),
    ([1] * 6, {"copies": 3, "multiple": 16, "time_token": True}, None),
    ([2, 4], {"text_before": 3, "copies": 2}, [3, 0]),
    ([2, 4], {"text_after": 3, "copies": 2, "multiple": 16}, None),
]


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize(("sizes", "options", "texts"), CASES, ids=str)
def test_every_form_against_loops_over_the_whole_mask(
    sizes: list[int], options: dict[str, Any], texts: list[int] | None
) -> None:
    """All tokens, and the noised ones alone; gradients too, which add up over parts and copies."""
    layout = lay_out(sizes, class_tokens=2, **options)
    lengths = None if texts is None else torch.tensor(texts)
    mask, count = attention_mask(layout, lengths=lengths), len(layout)
    noised = layout.noised.stop - layout.noised.start
    planned = AttentionPlan.of(layout, lengths).mask(CPU, torch.float64, noised)
    inputs = [x.requires_grad_() for x in random_inputs(count, count)]
    q, k, v = inputs
    rows = [mask] * 2 if mask.ndim == 2 else list(mask)
    whole = [x.detach() for x in inputs]
    expected = torch.cat(
        [naive_attention(*(x[i : i + 1] for x in whole), mask=rows[i]) for i in range(2)]  # type: ignore[misc]
    )
    scores = (q @ k.mT / 6**0.5).masked_fill(~mask if mask.ndim == 2 else ~mask[:, None], float("-inf"))
    plain = scores.softmax(-1) @ v
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(plain, inputs, cotangent, retain_graph=True)

    found = planned.attend(q, k, v)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for own, gradient in zip(torch.autograd.grad(found, inputs, cotangent), gradients, strict=True):
        torch.testing.assert_close(own, gradient, rtol=0, atol=1e-13)
    last = planned.attend(q[:, :, layout.noised], k, v)
    torch.testing.assert_close(last, expected[:, :, layout.noised], rtol=0, atol=1e-14)
    gradients = torch.autograd.grad(plain[:, :, layout.noised], inputs, cotangent[:, :, layout.noised])
    for own, gradient in zip(
        torch.autograd.grad(last, inputs, cotangent[:, :, layout.noised]), gradients, strict=True
    ):
        torch.testing.assert_close(own, gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["split", "matmul"])
def test_the_gradient_of_shared_keys_is_written_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of zeros for the context's part, and no second tensor of all keys for the sum."""
    monkeypatch.setattr("causalfusion.attention.dense.attention_form", lambda *_: form)
    layout = lay_out([2, 3, 1], class_tokens=2)
    mask = AttentionPlan.of(layout).split()
    q, k, v = (x.requires_grad_() for x in random_inputs(len(layout), len(layout)))
    out = mask.attend(q, k, v).sum()
    called: list[str] = []

    class Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with Recorded():  # type: ignore[no-untyped-call]
        torch.autograd.grad(out, [k, v])
    assert called.count("aten.add_.Tensor") == 2
    assert not [name for name in called if "zeros" in name or "slice_backward" in name]


def test_the_form_decides_the_kind_of_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = AttentionPlan.of(lay_out([2, 3], class_tokens=1))
    kinds: dict[str, type] = {"split": SplitMask, "matmul": SplitMask, "flex": FlexMask}
    for form, kind in kinds.items():
        choose = Mock(return_value=form)
        monkeypatch.setattr("causalfusion.attention.dense.attention_form", choose)
        assert type(plan.mask(CPU, torch.bfloat16, 5)) is kind
        choose.assert_called_once_with(CPU, torch.bfloat16, 8)
