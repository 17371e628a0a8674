"""Linear layers in oneDNN: against products in float64, and the cases that stay with torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from causalfusion.linear import HAS_ONEDNN, Linear, LinearGELU, mlp

ROWS, INPUTS, OUTPUTS = (4, 300), 128, 320
EPS = torch.finfo(torch.float32).eps

in_onednn = pytest.mark.skipif(
    not HAS_ONEDNN,
    reason="this build of torch lacks MKL or oneDNN",
)


def used_onednn(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "_OneDNNLinearBackward"


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> set[str]:
    ran = Operations()
    with ran:
        work()
    return ran.names


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


def gelu64(h: Tensor) -> Tensor:
    """GELU in its tanh form, as in its paper."""
    return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


@in_onednn
@pytest.mark.parametrize("inputs", [INPUTS, 8], ids=["large", "too small without GELU"])
def test_gelu_within_the_product_is_that_of_float64_up_to_rounding(inputs: int) -> None:
    torch.manual_seed(0)
    layer = LinearGELU(inputs, OUTPUTS)
    nn.init.normal_(layer.weight, std=2 * inputs**-0.5)
    x = torch.randn(ROWS[1], ROWS[0], inputs).transpose(0, 1)
    with torch.no_grad():
        assert operations(lambda: layer(x)) == {"mkldnn::_linear_pointwise"}
        out = layer(x)

    x64, weight64, bias64 = (y.detach().double() for y in (x, layer.weight, layer.bias))
    h64 = x64 @ weight64.t() + bias64
    magnitude = x64.abs() @ weight64.abs().t() + bias64.abs()
    assert h64.min() < -6 and h64.max() > 6  # both tails
    # GELU rises by 1.13 at most, and its own rounding is that of tanh times h / 2.
    bound = 1.13 * 4 * EPS * magnitude + 4 * EPS * h64.abs()
    assert bool(((out.double() - gelu64(h64)).abs() <= bound).all())


@pytest.mark.parametrize("case", ["gradients", "few rows", "float64", "bfloat16", "autocast", "compiled"])
def test_gelu_elsewhere_is_torchs_own_after_the_layer(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    layer = LinearGELU(INPUTS, OUTPUTS).to(dtype)
    plain = Linear(INPUTS, OUTPUTS).to(dtype)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 2 if case == "few rows" else 300, INPUTS, dtype=dtype)
    if case == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.set_grad_enabled(case == "gradients"), torch.autocast("cpu", enabled=case == "autocast"):
        assert "aten::gelu" in operations(lambda: layer(x))
        out, expected = layer(x), functional.gelu(plain(x), approximate="tanh")
        assert out.dtype == expected.dtype and torch.equal(out, expected)
    if case == "gradients":
        (of_out,) = torch.autograd.grad(out.square().sum(), [layer.weight])
        (of_expected,) = torch.autograd.grad(expected.square().sum(), [plain.weight])
        assert torch.equal(of_out, of_expected)


def test_the_mlp_takes_the_weights_of_layers_around_a_gelu() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 10), nn.GELU("tanh"), nn.Linear(10, 6)).double()
    ours = mlp(6, 10).double()
    assert list(ours.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    assert torch.allclose(ours(x), plain(x), rtol=1e-14, atol=1e-14)
