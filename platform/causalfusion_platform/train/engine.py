"""The DeepSpeed engine: one code path from a CPU laptop to a GPU cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from causalfusion import Draws, Model, Objective

from ..checkpoint.universal import ENGINE_CONFIG
from ..config.errors import UserError
from ..config.schema import Experiment, Precision
from ..data.read import Batch
from .blocks import set_up_blocks
from .deepspeed_config import Arithmetic, deepspeed_config
from .optimizer import ParameterGroup, build_optimizer
from .pass_through import check_deepspeed


def choose_precision(wanted: Precision, device: torch.device) -> Arithmetic:
    """Return the arithmetic: `auto` is bf16 where the hardware multiplies in it, else fp32.

    On a CPU that means AMX tiles or AVX512-BF16; without them bf16 is emulated, and slower than fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_engine(
    model: Model,
    experiment: Experiment,
    device: torch.device,
    precision: Arithmetic,
    *,
    groups: Sequence[ParameterGroup] = (),
    load_universal: bool = False,
) -> Any:
    """Wrap the model in a DeepSpeed engine; torch.distributed must be initialised.

    The verdict on each step goes to `engine.basic_optimizer.allow` (GuardedAdamW).

    With `load_universal` the engine takes a state in DeepSpeed's universal format only.

    Raises:
        UserError: `train.deepspeed` is wrong, or the hardware cannot do the precision.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    check_deepspeed(experiment)
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise UserError(
            f"train.precision=fp16: this machine's {device.type} has no fp16 arithmetic\n"
            f"  use train.precision=bf16_weights for weights of 16 bits, or train.precision=auto"
        )
    if device.type == "cpu":
        # Its shared-memory collectives compile for up to a minute at first use; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    train = experiment.train
    model.to(device)
    set_up_blocks(model, compiled=train.compile, recomputed=train.activation_checkpointing)
    optimizer = build_optimizer(model, experiment, groups)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={**deepspeed_config(experiment, precision, device), **(ENGINE_CONFIG if load_universal else {})},
        dist_init_required=False,
    )
    # Counts the calls of engine.step(), and loading a checkpoint does not set it back.
    optimizer.clock = lambda: engine.micro_steps
    return engine


def optimizer_step(
    engine: Any, objective: Objective, batch: Batch, drawn: Draws, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Make one optimizer step on this rank's rows, in parts of `train.micro_batch_size`.

    Returns:
        The weighted loss and the unweighted MSE of this rank's rows, detached; they stay on the device.
    """
    dtype = engine.module.dtype

    def predict(
        noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, mask: Tensor
    ) -> Tensor:
        # The objective computes in fp32; weights of 16 bits want their inputs in their own type.
        out: Tensor = engine(noised.to(dtype), clean.to(dtype), positions, t, labels, mask)
        return out

    rows = engine.train_micro_batch_size_per_gpu()
    losses, errors = [], []
    for first in range(0, len(batch.labels), rows):
        part = slice(first, first + rows)
        latents = batch.latents[part].to(device, non_blocking=True)
        labels = batch.labels[part].to(device, non_blocking=True)
        loss = objective(predict, latents, labels, drawn.part(part))
        engine.backward(loss.weighted)  # divides by the number of parts
        engine.step()  # acts after the last part
        losses.append(loss.weighted.detach())
        errors.append(loss.mse)
    return torch.stack(losses).mean(), torch.stack(errors).mean()


def grad_norm(engine: Any) -> Tensor | float:
    """Return the norm of the step's gradient over all ranks, before clipping: the same number on all ranks.

    Known when `GuardedAdamW.allow` is asked, and after `engine.step()`. A gradient that is not finite gives a norm
    that is not: infinity for NaN too with ZeRO 1–3, where DeepSpeed does not tell them apart. It then skips the
    step by itself, and `allow` is not asked. 0 before the first step.
    """
    norm: Tensor | float = getattr(engine.optimizer, "_global_grad_norm", 0.0)
    return norm
