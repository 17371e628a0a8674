"""Attention by blocks of queries: against plain softmax under the mask in words, forward and backward."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.models.attention.naive import random_inputs
from tests.models.attention.sequences import law, random_sequences, sequence
from torch import Tensor

from causalfusion.attention.blocks import BlockedMask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out


def plan_of(sizes: list[int], **options: Any) -> AttentionPlan:
    return AttentionPlan.of(lay_out(sizes, **options))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    out: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return out


def with_gradients(attend: Any, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = attend(*leaves)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).cos()
    return [out, *torch.autograd.grad(out, leaves, upstream)]


@pytest.mark.parametrize("least", [1, 5])
def test_sequences_equal_softmax_under_the_mask(least: int) -> None:
    """Texts, copies, padding and time tokens included, and the last block, which reads the last tokens alone."""
    made = Counter[bool]()
    for number, (sizes, options) in enumerate(random_sequences(60)):
        seen = law(sequence(sizes, **options))
        mask = BlockedMask.of(plan_of(sizes, **options).split(), torch.float64, least)
        made[mask is not None] += 1
        if mask is None:
            assert least > 1 or options["class_tokens"] + options["text_before"] == 0
            continue
        noised = options["copies"] * sum(sizes)
        asked = len(seen) if number % 2 else noised + number % (len(seen) - noised + 1)
        q, k, v = random_inputs(asked, len(seen))
        got = with_gradients(mask.attend, q, k, v)
        expected = with_gradients(lambda q, k, v: softmax_attention(q, k, v, seen[-len(q[0, 0]) :]), q, k, v)  # noqa: B023
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert made[True] > 30


def test_pairs_that_are_left() -> None:
    """Four equal steps of 64 tokens behind 64 class tokens: each block has no hidden pair at all."""
    mask = BlockedMask.of(plan_of([64] * 4, class_tokens=64).split(), torch.float32)
    assert mask is not None
    found = [(b.start, b.stop, [(k.start, k.stop, k.hidden) for k in b.keys]) for b in mask.blocks]
    context = [(64 * i, 64 * (i + 1), [(0, 64 * (i + 1), None)]) for i in range(4)]
    noised = [
        (256 + 64 * i, 320 + 64 * i, [(0, 64 * (i + 1), None), (256 + 64 * i, 320 + 64 * i, None)])
        for i in range(4)
    ]
    assert found == [*context, *noised]


def test_blocks_are_not_smaller_than_asked() -> None:
    mask = BlockedMask.of(plan_of([4] * 64, class_tokens=4, copies=2).split(), torch.float32)
    assert mask is not None
    sizes = [block.stop - block.start for block in mask.blocks]
    assert sum(sizes) == 4 + 252 + 2 * 256
    assert sorted(sizes)[3:] == [64] * (len(sizes) - 3) and len(sizes) == 12
    assert all(one.stop == other.start for one, other in zip(mask.blocks, mask.blocks[1:], strict=False))


def test_the_plan_takes_blocks_for_long_sequences_in_fp32_on_a_cpu() -> None:
    cpu, long = torch.device("cpu"), plan_of([128, 128], class_tokens=4)
    assert isinstance(long.mask(cpu, torch.float32, 256), BlockedMask)
    assert not isinstance(long.mask(cpu, torch.bfloat16, 256), BlockedMask)
    assert not isinstance(plan_of([256], class_tokens=4).mask(cpu, torch.float32, 256), BlockedMask)
    assert not isinstance(plan_of([32, 32], class_tokens=4).mask(cpu, torch.float32, 64), BlockedMask)
    texts = AttentionPlan.of(lay_out([128, 128], class_tokens=4, text_before=3), torch.tensor([1, 3]))
    assert not isinstance(texts.mask(cpu, torch.float32, 256), BlockedMask)


def test_compiled_code_runs_the_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = BlockedMask.of(plan_of([3, 4], class_tokens=2).split(), torch.float64, 1)
    assert mask is not None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("causalfusion.attention.blocks._InBlocks.apply", None)
    q, k, v = random_inputs(12, 12)
    expected = softmax_attention(q, k, v, law(sequence([3, 4], class_tokens=2)))
    torch.testing.assert_close(mask.attend(q, k, v), expected, rtol=0, atol=1e-10)
