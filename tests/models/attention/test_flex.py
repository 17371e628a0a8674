"""Masks of FlexAttention: the function of indices, and the blocks made of it, against the mask itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.models.attention.naive import random_inputs
from tests.models.attention.sequences import random_sequences
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from causalfusion.attention.flex import FlexMask, mask_mod
from causalfusion.attention.mask import attention_mask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out


def shown(blocks: BlockMask, seen: Tensor) -> Tensor:
    """Return what a kernel computes: of full blocks every pair, of others what the function of indices shows."""
    dense = torch.zeros(blocks.shape, dtype=torch.bool)
    rows, columns = blocks.BLOCK_SIZE
    assert blocks.full_kv_num_blocks is not None
    assert blocks.full_kv_indices is not None
    kinds = (
        (blocks.kv_num_blocks, blocks.kv_indices, False),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
    )
    for counts, indices, full in kinds:
        for sample, head, row in torch.cartesian_prod(*(torch.arange(n) for n in counts.shape)).tolist():
            for column in indices[sample, head, row, : counts[sample, head, row]].tolist():
                pairs = [slice(i * size, (i + 1) * size) for i, size in ((row, rows), (column, columns))]
                dense[sample, head, *pairs] = True if full else seen[sample, head, *pairs]
    return dense


def with_lengths(count: int) -> list[tuple[list[int], dict[str, Any], Tensor | None]]:
    """Draw sequences, half of those with text before the image with a length in each of three samples."""
    rng, drawn = random.Random(2), []
    for sizes, options in random_sequences(count):
        before, lengths = options["text_before"], None
        if before and rng.random() < 0.5:
            lengths = torch.tensor([before - 1, *(rng.randint(0, before) for _ in range(2))])
        drawn.append((sizes, options, lengths))
    return drawn


def test_300_sequences_against_the_mask() -> None:
    """Splits, copies, time token, padding and text: the function, and the blocks, of all queries and the last."""
    samples = 0
    for sizes, options, lengths in with_lengths(300):
        layout = lay_out(sizes, **options)
        expected = attention_mask(layout, lengths=lengths)
        places = AttentionPlan.of(layout, lengths).places
        batch = None if lengths is None else 3
        expected = expected.view(batch or 1, 1, len(layout), len(layout))
        noised = layout.noised.stop - layout.noised.start
        masks = FlexMask.of(places, noised)
        for asked, blocks in ((len(layout), masks.whole), (noised, masks.read)):
            seen = expected[:, :, -asked:]
            indices = torch.meshgrid(*(torch.arange(size) for size in seen.shape), indexing="ij")
            assert torch.equal(mask_mod(places, asked)(*indices), seen), (sizes, options, lengths)
            assert torch.equal(shown(blocks, seen), seen), (sizes, options, lengths)
        samples += batch is not None
    assert samples > 50


def test_blocks_leave_out_hidden_pairs_alone() -> None:
    """Over lengths of several blocks, which those of the test above are not. They are those that torch makes."""
    left_out = 0
    for sizes, options in (
        ([40, 60, 100], {"class_tokens": 4, "multiple": 64}),
        ([1] * 150, {"class_tokens": 4, "copies": 2, "multiple": 64}),
        ([150], {"class_tokens": 4, "copies": 3, "time_token": False, "multiple": 64}),
        ([90, 60], {"class_tokens": 0, "text_before": 40, "copies": 2}),
    ):
        layout = lay_out(sizes, **options)  # type: ignore[arg-type]
        lengths = torch.tensor([3, 40]) if "text_before" in options else None
        expected = attention_mask(layout, lengths=lengths).view(1 if lengths is None else 2, 1, *2 * (len(layout),))
        noised = layout.noised.stop - layout.noised.start
        masks = FlexMask.of(AttentionPlan.of(layout, lengths).places, noised)
        for blocks in (masks.whole, masks.read):
            asked = blocks.shape[-2]
            seen = expected[:, :, -asked:]
            assert torch.equal(shown(blocks, seen), seen)
            left_out += int((blocks.to_dense() == 0).sum())
            theirs = create_block_mask(blocks.mask_mod, len(seen), None, asked, len(layout), device="cpu")
            for name in BlockMask._TENSOR_ATTRS:
                own, other = getattr(blocks, name), getattr(theirs, name)
                assert own is other is None or torch.equal(own, other), name
    assert left_out > 20


@torch.no_grad()
@pytest.mark.parametrize(
    ("sizes", "options", "lengths"),
    [([2, 3, 1], {"copies": 2, "multiple": 16}, None), ([2, 4], {"text_before": 3}, torch.tensor([2, 0]))],
    ids=["copies", "text"],
)
def test_torchs_own_reference_equals_the_split_form(
    sizes: list[int], options: dict[str, Any], lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference of FlexAttention takes the same blocks and functions as its kernel on a GPU, in float64."""
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    layout = lay_out(sizes, class_tokens=2, **options)
    plan = AttentionPlan.of(layout, lengths)
    q, k, v = random_inputs(len(layout), len(layout))
    noised = layout.noised.stop - layout.noised.start
    masks = FlexMask.of(plan.places, noised)
    for asked, blocks in ((len(layout), masks.whole), (noised, masks.read)):
        expected = plan.split().attend(q[:, :, -asked:], k, v)
        found = flex_attention(q[:, :, -asked:].contiguous(), k, v, block_mask=blocks)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(masks.attend(q[:, :, -asked:], k, v), expected, rtol=0, atol=1e-14)
