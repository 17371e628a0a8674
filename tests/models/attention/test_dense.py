"""Attention: every form against loops, and which form is taken."""

from __future__ import annotations

import pytest
import torch
from tests.models.attention.naive import naive_attention, random_inputs
from torch import Tensor

from causalfusion.attention.dense import attend, attention_form


@pytest.mark.usefixtures("attention_form")
@pytest.mark.parametrize("masked", [False, True])
def test_every_form_against_loops(masked: bool) -> None:
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
        ("cpu", torch.bfloat16, 129, "split"),
        ("cpu", torch.float32, 1, "split"),
        ("cpu", torch.float64, 1, "split"),
        ("cpu", torch.float16, 1, "split"),
        ("cuda", torch.bfloat16, 127, "split"),
        ("cuda", torch.bfloat16, 128, "flex"),
        ("cuda", torch.float16, 128, "flex"),
        ("mps", torch.bfloat16, 128, "split"),
        ("cuda", torch.float32, 1, "split"),
    ],
)
def test_form_by_device_type_and_length(device: str, dtype: torch.dtype, length: int, form: str) -> None:
    assert attention_form(torch.device(device), dtype, length) == form


@pytest.mark.parametrize("form", ["split", "matmul", "flex"])
def test_the_form_is_chosen_by_the_number_of_keys(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, torch.dtype, int]] = []
    used: list[str] = []

    def choose(device: torch.device, dtype: torch.dtype, length: int) -> str:
        asked.append((device, dtype, length))
        return form

    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Tensor, **options: Tensor) -> Tensor:
        used.append("fused")
        return fused(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("causalfusion.attention.dense.attention_form", choose)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    attend(*random_inputs(3, 7), None)
    assert asked == [(torch.device("cpu"), torch.float64, 7)]
    assert used == ([] if form == "matmul" else ["fused"])
