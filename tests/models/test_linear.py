"""Linear layers in oneDNN: against products in float64, and the cases that stay with torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from causalfusion.linear import HAS_ONEDNN, Linear

ROWS, INPUTS, OUTPUTS = (4, 300), 128, 320
EPS = torch.finfo(torch.float32).eps

in_onednn = pytest.mark.skipif(
    not HAS_ONEDNN,
    reason="this build of torch lacks MKL or oneDNN",
)


def used_onednn(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "_OneDNNLinearBackward"


def plain_twin(layer: nn.Linear) -> nn.Linear:
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    twin.load_state_dict(layer.state_dict())
    return twin


@in_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_float64_up_to_rounding(bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(INPUTS, OUTPUTS, bias=bias)
    # Transposed in memory: what reaches a layer is not always contiguous.
    x = torch.randn(ROWS[1], ROWS[0], INPUTS).transpose(0, 1).requires_grad_()
    grad = torch.randn(*ROWS, OUTPUTS)
    out = layer(x)
    assert used_onednn(out)
    out.backward(grad)
    with torch.no_grad():
        assert torch.equal(layer(x), out)

    x64, weight64, grad64 = (y.detach().double() for y in (x, layer.weight, grad))
    bound = 4 * EPS  # of the sum of the magnitudes of all terms
    checks = {
        "output": (
            out,
            torch.einsum("bni,oi->bno", x64, weight64),
            torch.einsum("bni,oi->bno", x64.abs(), weight64.abs()),
        ),
        "input": (x.grad, grad64 @ weight64, grad64.abs() @ weight64.abs()),
        "weight": (
            layer.weight.grad,
            torch.einsum("bno,bni->oi", grad64, x64),
            torch.einsum("bno,bni->oi", grad64.abs(), x64.abs()),
        ),
    }
    if bias:
        checks["output"] = (out - layer.bias, *checks["output"][1:])
        checks["bias"] = (layer.bias.grad, grad64.sum((0, 1)), grad64.abs().sum((0, 1)))
    for name, (got, exact, magnitude) in checks.items():
        assert got is not None
        assert bool(((got.double() - exact).abs() <= bound * magnitude).all()), name


@in_onednn
def test_gradients_that_nobody_needs_are_not_made() -> None:
    layer = Linear(INPUTS, OUTPUTS).requires_grad_(False)
    x = torch.randn(*ROWS, INPUTS, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand_as(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["few rows", "float64", "autocast"])
def test_other_products_are_torchs_own_to_the_last_bit(case: str) -> None:
    torch.manual_seed(0)
    layer = Linear(INPUTS, OUTPUTS)
    rows = (4, 2) if case == "few rows" else ROWS
    x = torch.randn(*rows, INPUTS)
    if case == "float64":
        layer, x = layer.double(), x.double()
    twin = plain_twin(layer).to(layer.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        out, expected = layer(x), twin(x)
    assert not used_onednn(out)
    assert out.dtype == expected.dtype and torch.equal(out, expected)


def test_compiled_layers_leave_the_choice_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(INPUTS, OUTPUTS)
    x = torch.randn(*ROWS, INPUTS)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    out = layer(x)
    assert not used_onednn(out)
    assert torch.equal(out, plain_twin(layer)(x))
