"""Attention in `make bench-gpu`: its splits, its forms, and the line of the table that it proposes."""

from __future__ import annotations

import pytest
import torch
from tests.benchmarks.gpu import attention
from tests.benchmarks.gpu.__main__ import ON_A_GPU

from causalfusion.attention.mask import attention_mask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.factorization.sequence import lay_out


def test_the_splits_have_the_lengths_that_they_are_for() -> None:
    found = attention.splits(ON_A_GPU.config("L"), range(320, 577, 64))
    assert found[0] == (256,)
    assert found[1:4] == [(64, 192), (128, 128), (64, 64, 64, 64)]
    lengths = [len(lay_out(list(sizes), class_tokens=64, multiple=64)) for sizes in found]
    assert lengths == [320, 384, 448, 512, 576]
    assert all(sum(sizes) == 256 and min(sizes) > 0 for sizes in found)


@pytest.mark.parametrize("sizes", [(16,), (4, 12), (5, 5, 6)])
def test_every_form_computes_the_same(sizes: tuple[int, ...]) -> None:
    layout = lay_out(list(sizes), class_tokens=4)
    q, k, v = torch.randn(3, 2, 3, len(layout), 8, dtype=torch.float64)
    weights = (q @ k.mT / 8**0.5).masked_fill(~attention_mask(layout), float("-inf")).softmax(dim=-1)
    forms = attention.forms(AttentionPlan.of(layout), torch.device("cpu"))
    del forms["unmasked"]
    assert set(forms) == ({"matmul", "split", "flex"} if len(sizes) > 1 else {"matmul", "split"})
    for attend in forms.values():
        torch.testing.assert_close(attend(q, k, v), weights @ v)


@pytest.mark.parametrize(
    ("fastest", "expected"),
    [
        ({320: "split", 384: "flex", 448: "split", 512: "flex", 576: "flex"}, (0, 512)),
        ({320: "matmul", 384: "matmul", 448: "split"}, (384, None)),
        ({576: "flex", 320: "flex", 448: "flex"}, (0, 320)),
        ({320: "matmul", 384: "split", 448: "matmul"}, (320, None)),
    ],
)
def test_the_line_of_the_table(fastest: dict[int, str], expected: tuple[int, int | None]) -> None:
    assert attention.bounds(fastest) == expected
