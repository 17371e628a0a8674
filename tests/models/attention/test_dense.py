"""Attention: both forms against loops, and which form is taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from causalfusion.attention.dense import SplitMask, attend, attend_split, attention_form
from causalfusion.attention.mask import attention_mask
from causalfusion.factorization.sequence import lay_out


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q kᵀ / √E) v one query at a time, over the visible keys only."""
    batch, heads, queries, width = q.shape
    out = torch.zeros(batch, heads, queries, width, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                visible = [j for j in range(k.shape[2]) if mask is None or bool(mask[i, j])]
                scores = [float(q[b, h, i] @ k[b, h, j]) / math.sqrt(width) for j in visible]
                weights = [math.exp(score - max(scores)) for score in scores]
                for weight, j in zip(weights, visible, strict=True):
                    out[b, h, i] += weight / sum(weights) * v[b, h, j]
    return out


def random_inputs(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, queries, 6), (2, 2, keys, 6), (2, 2, keys, 6)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("masked", [False, True])
def test_both_forms_against_loops(masked: bool) -> None:
    q, k, v = random_inputs(5, 7)
    mask = None
    if masked:
        mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
        mask[:, 2] = True
        mask[3] = torch.arange(7) == 2  # a row with one visible key
    torch.testing.assert_close(attend(q, k, v, mask), naive_attention(q, k, v, mask), rtol=0, atol=1e-14)


@pytest.mark.usefixtures("attention_form")
def test_a_masked_key_has_no_influence_at_all() -> None:
    q, k, v = random_inputs(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 3] = False
    before = attend(q, k, v, mask)
    k[:, :, 3] *= 50
    v[:, :, 3] = 1e6
    assert torch.equal(attend(q, k, v, mask), before)


@pytest.mark.usefixtures("attention_form")
def test_a_mask_per_sample_broadcasts() -> None:
    q, k, v = random_inputs(4, 4)
    masks = torch.stack([torch.ones(4, 4).tril().bool(), torch.ones(4, 4).bool()])
    together = attend(q, k, v, masks[:, None])
    for i in range(2):
        alone = naive_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], masks[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "keys", "tolerance"),
    [
        (torch.float32, 64, 1e-6),
        (torch.float32, 65, 1e-6),
        (torch.bfloat16, 128, 2e-2),
        (torch.bfloat16, 129, 2e-2),
        (torch.float64, 64, 1e-14),
    ],
)
def test_precision_on_both_sides_of_each_limit(dtype: torch.dtype, keys: int, tolerance: float) -> None:
    q, k, v = (x.to(dtype) for x in random_inputs(3, keys))
    mask = torch.ones(3, keys).tril(keys // 2).bool()
    found = attend(q, k, v, mask)
    assert found.dtype == dtype
    expected = naive_attention(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("device", "dtype", "length", "form"),
    [
        ("cpu", torch.bfloat16, 128, "matmul"),
        ("cpu", torch.bfloat16, 129, "sdpa"),
        ("cpu", torch.float32, 1, "sdpa"),
        ("cpu", torch.float64, 1, "sdpa"),
        ("cpu", torch.float16, 1, "sdpa"),
        ("cuda", torch.bfloat16, 1, "sdpa"),
        ("cuda", torch.float32, 1, "sdpa"),
    ],
)
def test_form_by_device_type_and_length(device: str, dtype: torch.dtype, length: int, form: str) -> None:
    assert attention_form(torch.device(device), dtype, length) == form


@pytest.mark.parametrize("form", ["sdpa", "matmul"])
def test_the_form_is_chosen_by_the_number_of_keys(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, torch.dtype, int]] = []
    used: list[str] = []

    def choose(device: torch.device, dtype: torch.dtype, length: int) -> str:
        asked.append((device, dtype, length))
        return form

    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Tensor, **options: Tensor) -> Tensor:
        used.append("sdpa")
        return fused(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("causalfusion.attention.dense.attention_form", choose)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    attend(*random_inputs(3, 7), None)
    assert asked == [(torch.device("cpu"), torch.float64, 7)]
    assert used == (["sdpa"] if form == "sdpa" else [])


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("sizes", [[6], [2, 3, 1], [1] * 6])
def test_a_split_mask_against_loops_over_the_whole_one(sizes: list[int], copies: int, multiple: int) -> None:
    """All tokens, and the noised ones alone; gradients too, which add up over copies."""
    layout = lay_out(sizes, class_tokens=2, copies=copies, time_token=True, multiple=multiple)
    mask = attention_mask(layout)
    parts = SplitMask.cut(mask, 6, copies)
    inputs = [x.requires_grad_() for x in random_inputs(len(layout), len(layout))]
    q, k, v = inputs
    expected = naive_attention(q.detach(), k.detach(), v.detach(), mask)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(attend(q, k, v, mask), inputs, cotangent)

    found = attend_split(q, k, v, parts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for own, whole in zip(torch.autograd.grad(found, inputs, cotangent), gradients, strict=True):
        torch.testing.assert_close(own, whole, rtol=0, atol=1e-13)
    noised = attend_split(q[:, :, layout.noised], k, v, parts)
    torch.testing.assert_close(noised, expected[:, :, layout.noised], rtol=0, atol=1e-14)
