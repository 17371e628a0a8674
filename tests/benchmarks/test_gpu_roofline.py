"""Arithmetic of the predictions, against numbers worked out by hand and brute force."""

from __future__ import annotations

import pytest
from tests.benchmarks.gpu import roofline
from tests.benchmarks.gpu.ceilings import Ceilings
from tests.benchmarks.gpu.roofline import Shares

from causalfusion import CausalFusion, CausalFusionConfig, ObjectiveConfig, preset
from causalfusion.attention.mask import attention_mask
from causalfusion.factorization.sequence import lay_out

# 16 image tokens of 4 numbers, 4 class tokens, width 8, MLP 32, 2 blocks.
CONFIG = CausalFusionConfig(
    input_size=4,
    in_channels=4,
    patch_size=1,
    hidden_size=8,
    depth=2,
    num_heads=2,
    class_tokens=4,
    num_classes=3,
)
ONE_STEP = ObjectiveConfig(num_ar_steps=1)
UNIT = Ceilings(products=1.0, copies=1.0)
WHOLE = Shares(
    products=1,
    attention={"split": 1, "flex": 1},
    elementwise={"eager": 1, "compiled": 1},
    update=1,
    launch=1000,
    gap=10,
)


@pytest.mark.parametrize(
    ("ceilings", "expected"),
    [
        (Ceilings(products=10, copies=1e9), 6),  # 2 · 2 · 3 · 5 = 60 FLOPs
        (Ceilings(products=1e9, copies=2), 31),  # 2 · (6 + 15 + 10) = 62 bytes
    ],
)
def test_a_product_takes_the_longer_of_arithmetic_and_bytes(ceilings: Ceilings, expected: float) -> None:
    assert roofline.product_seconds(2, 3, 5, ceilings) == expected


def test_a_training_step_is_that_of_hand_counting() -> None:
    """3 images at S = 1: 20 tokens each, of which the last block's projection and MLP get the 16 noised ones."""
    step = roofline.training_step(CONFIG, ONE_STEP, UNIT, batch=3, form="split", compiled=False, shares=WHOLE)
    first = 2 * 60 * (3 * 64 + 64 + 2 * 256)
    last = 2 * 60 * 3 * 64 + 2 * 48 * (64 + 2 * 256)
    # Patches of noised tokens in and out, and of clean ones in, of which there are as many at most.
    ends = 3 * 3 * 2 * 48 * 4 * 8
    assert step.products == pytest.approx(3 * (first + last) + ends)
    # 336 pairs in the first block: 16 of class tokens, 16 · 20 of noised ones. 320 in the last. A pair takes 2
    # products of width 8 forward (32 FLOPs) and 5 backward (80).
    assert step.attention == pytest.approx(3 * (336 + 320) * (32 + 80))
    # 3 · (20 + 16) tokens of width 8. 320 bytes a token and unit of width.
    assert step.elementwise == pytest.approx(108 * 8 * 320)
    parameters = sum(parameter.numel() for parameter in CausalFusion(CONFIG).parameters())
    assert step.update == pytest.approx(64 * parameters)
    assert step.total == pytest.approx(step.products + step.attention + step.elementwise + step.update)


def test_padding_adds_tokens_and_pairs() -> None:
    step = roofline.training_step(
        CONFIG, ONE_STEP, UNIT, batch=1, form="split", compiled=True, multiple=32, shares=WHOLE
    )
    # 32 tokens: 16 of context in front of 16 noised ones.
    assert step.attention == pytest.approx((16 * 16 + 16 * 32 + 16 * 32) * 112)
    assert step.elementwise == pytest.approx((32 + 16) * 8 * 152)


def test_shares_divide_their_own_part() -> None:
    halves = Shares(
        products=0.5, attention={"split": 0.25, "flex": 1}, elementwise={"eager": 0.1, "compiled": 1}, update=0.2
    )
    whole, part = (
        roofline.training_step(CONFIG, ONE_STEP, UNIT, batch=1, form="split", compiled=False, shares=shares)
        for shares in (WHOLE, halves)
    )
    assert part.products == pytest.approx(2 * whole.products)
    assert part.attention == pytest.approx(4 * whole.attention)
    assert part.elementwise == pytest.approx(10 * whole.elementwise)
    assert part.update == pytest.approx(5 * whole.update)


@pytest.mark.parametrize("sizes", [(256,), (64, 192), (64,) * 4, (31,) * 8 + (8,)])
def test_flex_counts_the_blocks_with_a_visible_pair(sizes: tuple[int, ...]) -> None:
    layout = lay_out(list(sizes), class_tokens=64, multiple=64)
    mask, length = attention_mask(layout), len(layout)
    blocks, read = ({(i // 128, j // 128) for i, j in m.nonzero().tolist()} for m in (mask, mask[-256:]))
    expected = len(blocks) * 128**2, len(read) * 128**2
    assert roofline.attention_pairs(sizes, 64, length, "flex") == expected


def test_an_evaluation_is_that_of_hand_counting() -> None:
    """2 rows of 4 tokens that see 6 more, in 2 blocks."""
    seconds = roofline.evaluation(CONFIG, UNIT, rows=2, tokens=4, context=6, graphed=True, shares=WHOLE)
    products = 2 * (2 * 8 * (3 * 64 + 64 + 2 * 256))
    attention = 2 * (2 * 4 * 10 * 4 * 8)  # of keys and values are read only 2 · 2 · 10 · 4 · 8 bytes
    elementwise = 52 * 2 * 8 * 8
    assert seconds == pytest.approx(products + attention + elementwise + 22 * 2 * 10)


def test_an_eager_evaluation_takes_at_least_its_launches() -> None:
    fast = Ceilings(products=1e30, copies=1e30)
    seconds = roofline.evaluation(CONFIG, fast, rows=2, tokens=4, context=6, graphed=False, shares=WHOLE)
    assert seconds == 22 * 2 * 1000


def test_sampling_adds_up_ar_steps_over_a_growing_context() -> None:
    seconds = roofline.sampling_seconds(
        CONFIG, UNIT, images=1, ar_steps=2, diffusion_steps=5, graphed=True, shares=WHOLE
    )
    parts = [
        roofline.evaluation(CONFIG, UNIT, rows=2, tokens=8, context=context, graphed=True, shares=WHOLE)
        for context in (4, 12)
    ]
    assert seconds == pytest.approx(5 * sum(parts))


@pytest.mark.parametrize(("name", "images_s"), [("L-system-256", 840), ("XL-system-256", 404)])
def test_the_limit_of_an_h200(name: str, images_s: float) -> None:
    """940 GFLOP an image for L: 3 · 2 · 24 · 12 · 1024² multiply-adds for about 507 tokens, and attention."""
    config = preset(name)
    assert isinstance(config, CausalFusionConfig)
    limit = roofline.limit(config, ObjectiveConfig(), Ceilings(products=790e12, copies=4.3e12))
    assert limit == pytest.approx(images_s, rel=0.01)
