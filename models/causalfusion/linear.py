"""Linear layers whose fp32 products on a CPU run in oneDNN.

torch multiplies fp32 matrices in MKL. On an AMD CPU oneDNN takes 10 to 25% less time for the same product. The last
bits differ.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Multiplications of a product from which oneDNN is faster (`make bench`). Smaller ones cost more to start.
_SMALLEST = 2**25
_SMALLEST_WITH_GELU = 2**21
# Other builds of torch have other libraries, which were not measured.
HAS_ONEDNN = bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())  # type: ignore


class Linear(nn.Linear):
    """Linear layer. Large fp32 products on a CPU run in oneDNN, all others as in `torch.nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if not _runs_in_onednn(x, self.weight):
            return super().forward(x)
        if not torch.is_grad_enabled():
            return product(x, self.weight, self.bias)
        out: Tensor = _OneDNNLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class LinearGELU(Linear):
    """Linear layer, then GELU in its tanh form (Hendrycks and Gimpel, 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        # oneDNN applies GELU to results that are still in registers. A backward pass would need them.
        if not torch.is_grad_enabled() and _runs_in_onednn(x, self.weight, _SMALLEST_WITH_GELU):
            return product(x, self.weight, self.bias, gelu=True)
        return functional.gelu(super().forward(x), approximate="tanh")


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Make the MLP of a transformer block. In a state dict its layers are `0` and `2`."""
    return nn.Sequential(OrderedDict({"0": LinearGELU(width, hidden), "2": Linear(hidden, width)}))


class _OneDNNLinear(torch.autograd.Function):
    """x Wᵀ + b, with the gradient of x in oneDNN too. MKL is as fast for the gradient of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t(), None) if of_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _runs_in_onednn(x: Tensor, weight: Tensor, smallest: int = _SMALLEST) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= smallest
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # Inductor chooses by itself
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """Return x Wᵀ + b, or its GELU. The operation is the one that torch.compile calls on CPUs."""
    then, form = ("gelu", "tanh") if gelu else ("none", "")
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], form)
    return out
