"""The DeepSpeed engine: one code path from a CPU laptop to a GPU cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.universal import ENGINE_CONFIG
from ..config.errors import UserError
from ..config.schema import Experiment, Precision
from ..config.secrets import redacted
from .blocks import set_up_blocks
from .deepspeed_config import Arithmetic, deepspeed_config
from .objective import PartLoss, ReadyStep
from .optimizer import ParameterGroup, build_optimizer
from .pass_through import check_deepspeed
from .without_compiler import leave_compiler_out


def choose_precision(wanted: Precision, device: torch.device) -> Arithmetic:
    """Return the arithmetic: `auto` is bf16 where the hardware multiplies in it, else fp32.

    On a CPU that means AMX tiles or AVX512-BF16. Without them bf16 is emulated, and slower than fp32. `tf32` is
    fp32 on devices without such units.
    """
    if wanted == "tf32":
        return "tf32" if _has_tf32(device) else "fp32"
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def set_products(precision: Arithmetic) -> None:
    """Let GPUs multiply fp32 in TF32, or not. It holds for all of this process: torch knows no other way."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def build_engine(
    model: nn.Module,
    experiment: Experiment,
    device: torch.device,
    precision: Arithmetic,
    *,
    groups: Sequence[ParameterGroup] = (),
    load_universal: bool = False,
    lengths: int | None = None,
) -> Any:
    """Wrap the model in a DeepSpeed engine. torch.distributed must be initialised.

    Set `engine.basic_optimizer.allow` to decide on each step (GuardedAdamW).

    Args:
        model: its transformer blocks, if it has any, are compiled or recomputed where the experiment wants that.
        experiment: its `train` and `optim` sections.
        precision: arithmetic of matrix products.
        groups: parameters with settings of their own. Empty: all are one group.
        load_universal: let the engine take a state in DeepSpeed's universal format only.
        lengths: number of lengths of the sequences, for compiled blocks. None: not known.

    Raises:
        UserError: `train.deepspeed` is wrong, or the hardware cannot do the precision.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    _import_muon_without_compiling()
    check_deepspeed(experiment)
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise UserError(
            f"train.precision=fp16: this machine's {device.type} has no fp16 arithmetic\n"
            f"  use train.precision=bf16_weights for weights of 16 bits, or train.precision=auto"
        )
    if device.type == "cpu":
        # Its shared-memory collectives compile for up to a minute at first use. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    set_products(precision)
    train = experiment.train
    model.to(device)
    if not train.compile:
        leave_compiler_out()
    set_up_blocks(model, compiled=train.compile, recomputed=train.activation_checkpointing, lengths=lengths)
    optimizer = build_optimizer(model, experiment, groups)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={**deepspeed_config(experiment, precision, device), **(ENGINE_CONFIG if load_universal else {})},
        dist_init_required=False,
    )
    engine.config = redacted(engine.config)  # each checkpoint has a copy
    # Counts the calls of engine.step(), and loading a checkpoint does not set it back.
    optimizer.clock = lambda: engine.micro_steps
    return engine


def plain_forward(engine: Any) -> Callable[..., Any]:
    """Return a forward pass with the engine's arithmetic, whose outputs have no hooks on their backward pass."""
    from deepspeed.runtime.torch_autocast import autocast_if_enabled

    def forward(*inputs: Any) -> Any:
        with autocast_if_enabled(engine):
            return engine.module(*inputs)

    return forward


def _import_muon_without_compiling() -> None:
    """Import DeepSpeed's Muon, which is not used here, without the second of CPU that its torch.compile takes."""
    from deepspeed.runtime import compiler

    compile_ = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compile_


def optimizer_step(
    engine: Any, ready: ReadyStep, before_update: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make one optimizer step on this rank's rows, in the micro-batches that it was made ready for.

    Args:
        engine: the engine.
        ready: the step.
        before_update: called when the device has all work of the step but the update.

    Returns:
        The weighted loss and the further values of this rank's rows, detached. They stay on the device.
    """
    inputs, totals = ready.inputs()
    parts: list[PartLoss] = []
    for part in inputs:
        loss = ready.step.loss(engine, part, totals)
        engine.backward(loss.weighted)  # divides by the number of parts
        if len(parts) == len(inputs) - 1:
            before_update()
        engine.step()  # acts after the last part
        parts.append(
            PartLoss(loss.weighted.detach(), {name: value.detach() for name, value in loss.values.items()})
        )
    values = {name: torch.stack([part.values[name] for part in parts]).mean() for name in parts[0].values}
    return torch.stack([part.weighted for part in parts]).mean(), values


def grad_norm(engine: Any) -> Tensor | float:
    """Return the norm of the step's gradient over all ranks, before clipping: the same number on all ranks.

    It is known when `GuardedAdamW.allow` is called, and after `engine.step()`. It is 0 before the first step. A
    gradient that is not finite gives a norm that is not. With ZeRO 1–3 that norm is infinity for NaN too. DeepSpeed
    then skips the step by itself, and `allow` is not called.
    """
    norm: Tensor | float = getattr(engine.optimizer, "_global_grad_norm", 0.0)
    return norm
