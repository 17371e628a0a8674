"""Bytes that a step keeps, against those that autograd saves on a fake CUDA device."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from tests.models.fake_cuda import attention_on_cuda, fake_cuda
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.compilers import nop
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from causalfusion import ModelConfig, build_model, preset
from causalfusion.attention import dense
from causalfusion.attention.dense import AttentionForm
from causalfusion.attention.flex import FlexMask
from causalfusion.attention.plan import AttentionPlan
from causalfusion.config import CausalFusionConfig
from causalfusion.factorization.sequence import lay_out
from causalfusion.memory import SequenceLengths, TrainingPrecision, activation_bytes

ROWS, DEPTH = 2, 3


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of CUDA. FlexAttention keeps what flash attention does, but compiles and runs on a GPU alone."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention_on_cuda)

    def attend(_: FlexMask, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_on_cuda(q.to(v.dtype), k.to(v.dtype), v)

    monkeypatch.setattr(FlexMask, "attend", attend)


def lengths_of(config: ModelConfig, sizes: list[int], copies: int) -> SequenceLengths:
    time_token = isinstance(config, CausalFusionConfig) and config.time_conditioning == "token"
    context = config.num_class_tokens + sum(sizes[:-1]) + time_token
    return SequenceLengths(context, config.num_tokens, copies, masked=len(sizes) > 1 or time_token)


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """`model.to(dtype)`, which fake tensors refuse."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(dtype)


def plan_of(config: ModelConfig, sizes: list[int], copies: int) -> AttentionPlan:
    time_token = isinstance(config, CausalFusionConfig) and config.time_conditioning == "token"
    layout = lay_out(sizes, class_tokens=config.num_class_tokens, copies=copies, time_token=time_token)
    return AttentionPlan.of(layout)


def inputs_of(config: ModelConfig, sizes: list[int], copies: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Arguments of the forward pass, without the plan."""
    tokens, numbers = config.num_tokens, config.token_dim
    return (
        torch.randn(ROWS, copies * tokens, numbers, dtype=dtype),
        torch.randn(ROWS, sum(sizes[:-1]), numbers, dtype=dtype),
        torch.zeros(ROWS, tokens, dtype=torch.int64),
        torch.zeros(ROWS, copies) if copies > 1 else torch.zeros(ROWS),
        torch.zeros(ROWS, dtype=torch.int64),
    )


def saved_bytes(
    config: ModelConfig,
    sizes: list[int],
    precision: TrainingPrecision = "bf16",
    *,
    copies: int = 1,
    recomputed: bool = False,
) -> int:
    """Bytes of all storages that a forward pass saves. Weights are left out, their casts are not."""
    kept: dict[int, Tensor] = {}
    plan = plan_of(config, sizes, copies)
    assert len(plan) == lengths_of(config, sizes, copies).total
    with fake_cuda(autocast=precision == "bf16"), torch.device("cuda"):
        model: Any = build_model(config)
        dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
        convert(model, dtype)
        weights = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        for block in model.blocks:
            if recomputed:
                block.forward = partial(checkpoint, block.forward, use_reentrant=True)

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(*inputs_of(config, sizes, copies, dtype), plan)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimated_bytes(
    config: ModelConfig, sizes: list[int], precision: TrainingPrecision = "bf16", *, copies: int = 1, **more: Any
) -> int:
    return activation_bytes(
        config,
        lengths_of(config, sizes, copies),
        rows=ROWS,
        precision=precision,
        device_type="cuda",
        attention=more.pop("attention", "split"),
        **more,
    )


def sized(name: str) -> ModelConfig:
    """A preset with few blocks, of which all but the last keep the same."""
    return preset(name, depth=DEPTH)


@pytest.mark.parametrize(
    ("precision", "form"),
    [("fp32", "split"), ("bf16", "split"), ("bf16", "flex"), ("bf16_weights", "split"), ("bf16_weights", "flex")],
)
@pytest.mark.parametrize(
    ("name", "last", "copies"),
    [
        ("tiny", 16, 1),
        ("tiny", 5, 4),
        ("L/2", 256, 1),
        ("L/2", 1, 1),
        ("L/2", 64, 4),
        ("XL-system-256", 256, 1),
        ("XL-system-256", 1, 1),
        ("DiT-L/2", 256, 1),
        ("in-context-4", 100, 1),
        ("in-context-T", 100, 4),
    ],
)
def test_it_is_what_autograd_saves(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    last: int,
    copies: int,
    precision: TrainingPrecision,
    form: AttentionForm,
) -> None:
    monkeypatch.setattr(dense, "attention_form", lambda *_: form)
    config = sized(name)
    sizes = [size for size in (config.num_tokens - last, last) if size]
    found = saved_bytes(config, sizes, precision, copies=copies)
    expected = estimated_bytes(config, sizes, precision, copies=copies, attention=form)
    assert expected == pytest.approx(found, rel=0.05)


def test_all_blocks_of_a_large_model() -> None:
    """In the form that the table gives CUDA."""
    config = preset("L/2")
    form = dense.attention_form(torch.device("cuda"), torch.bfloat16, len(plan_of(config, [255, 1], 1)))
    expected = estimated_bytes(config, [255, 1], attention=form)
    assert expected == pytest.approx(saved_bytes(config, [255, 1]), rel=0.01)


def block_bytes(name: str, *, compiled: bool) -> int:
    """Bytes that one block saves under autocast: as it stands, or as torch.compile divides its passes.

    The graph of both passes is traced on a fake CPU, since autograd computes on no fake GPU. Its arithmetic under
    autocast is that of a compiled block on CUDA, where casts to fp32 and back are computed again.
    """
    config = sized(name)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        block: Any = build_model(config).blocks[0]
        names, weights = zip(*block.named_parameters(), strict=True)
        x = torch.randn(ROWS, 260, config.hidden_size, requires_grad=True)
        condition = None if name == "L/2" else torch.randn(ROWS, config.hidden_size, requires_grad=True)

        def forward(*flat: Any) -> Any:
            parameters = dict(zip(names, flat[: len(names)], strict=True))
            return torch.func.functional_call(block, parameters, flat[len(names) :])

        run = aot_function(
            forward,
            fw_compiler=nop,
            partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
            decompositions=select_decomp_table(),
        )
        kept: dict[int, Tensor] = {}
        known = {tensor.untyped_storage()._cdata for tensor in weights}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in known:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            (run if compiled else forward)(*weights, x, condition)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("name", ["L/2", "DiT-L/2"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_block_keeps_less(name: str, compiled: bool) -> None:
    """One block is the difference of two depths. Without compiling, the fake CPU is that of the estimate too."""
    config = sized(name)
    lengths = (
        SequenceLengths(260 - 256, 256, masked=False) if name == "L/2" else SequenceLengths(0, 260, masked=False)
    )
    two, one = (
        activation_bytes(
            config,
            lengths,
            rows=ROWS,
            precision="bf16",
            device_type="cpu",
            attention="flex",
            compiled=compiled,
            depth=depth,
        )
        for depth in (3, 2)
    )
    assert two - one == pytest.approx(block_bytes(name, compiled=compiled), rel=0.03)


@pytest.mark.parametrize("name", ["L/2", "DiT-L/2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_weights"])
def test_recomputing_keeps_inputs_and_one_block(name: str, precision: TrainingPrecision) -> None:
    """The block that is computed again is the difference of two models without recomputing."""
    config, sizes = sized(name), [256]
    one = saved_bytes(config, sizes, precision) - saved_bytes(
        dataclasses.replace(config, depth=DEPTH - 1), sizes, precision
    )
    found = saved_bytes(config, sizes, precision, recomputed=True) + one
    assert estimated_bytes(config, sizes, precision, recomputed=True) == pytest.approx(found, rel=0.05)


def test_layer_norms_in_fp32_are_counted_where_autocast_makes_them() -> None:
    """8·D bytes a token and block: copies of queries and keys before their norms."""
    config, lengths = sized("L/2"), SequenceLengths(0, 256, masked=False)
    on_gpu, on_cpu = (
        activation_bytes(config, lengths, rows=ROWS, precision="bf16", device_type=kind, attention="split")
        for kind in ("cuda", "cpu")
    )
    assert on_gpu - on_cpu == ROWS * 256 * DEPTH * 8 * 1024
