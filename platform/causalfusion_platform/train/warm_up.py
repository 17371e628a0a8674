"""Compilation of the blocks for every length of sequence, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from causalfusion import CausalFusionConfig, ModelConfig, ObjectiveConfig
from causalfusion.attention.plan import AttentionPlan
from causalfusion.baselines.transfusion import lay_out_described
from causalfusion.factorization.sequence import lay_out
from causalfusion.lengths import Sequence, sequences

from .blocks import MOST_LENGTHS


def warm_up(
    forward: Callable[..., Any],
    module: nn.Module,
    model: ModelConfig,
    objective: ObjectiveConfig,
    rows: int,
    device: torch.device,
    alive: Callable[[], None] = lambda: None,
) -> int:
    """Run the model forward and backward on sequences of zeros, so that each kind of them is compiled.

    No gradient is kept, no random number is drawn, and no weight changes.

    Args:
        forward: calls the model with the arithmetic of training (`plain_forward`).
        module: the model, with whole parameters.
        model: configuration of the model.
        objective: that of the objective, which decides on the lengths.
        rows: samples of a micro-batch.
        device: the device that trains.
        alive: is called after each.

    Returns:
        The number of sequences.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    done = 0
    for one in _kinds(model, objective, device):
        outputs = forward(*_inputs(model, objective, one, rows, next(module.parameters()).dtype, device))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad([x.float().sum() for x in outputs], parameters, allow_unused=True)
        done += 1
        alive()
    return done


def _kinds(model: ModelConfig, objective: ObjectiveConfig, device: torch.device) -> Iterator[Sequence]:
    """Generate a sequence of each length. Of many lengths: the ends, the middle, and one of each kind of mask."""
    found = sequences(model, objective, device.type)
    lengths = sorted(found)
    if len(lengths) <= MOST_LENGTHS:
        yield from (found[length] for length in lengths)
        return
    chosen = {lengths[0], lengths[len(lengths) // 2], lengths[-1]}
    hides = set()
    for length in lengths:
        plan = _plan(model, objective, found[length], device, rows=2)
        kind = plan.hides_context, plan.hides_from_noised, found[length].text_after > 0, plan.places.ndim
        if kind not in hides:
            hides.add(kind)
            chosen.add(length)
    yield from (found[length] for length in sorted(chosen))


def _plan(
    model: ModelConfig, objective: ObjectiveConfig, one: Sequence, device: torch.device, rows: int
) -> AttentionPlan:
    """Plan a sequence. Texts before images differ in length, as those of a batch do."""
    classes = 0 if objective.text else model.num_class_tokens
    if getattr(model, "architecture", None) == "transfusion" and one.text_after:
        return AttentionPlan.of(lay_out_described(model.num_tokens, class_tokens=0, text_after=one.text_after))
    layout = lay_out(
        list(one.sizes),
        class_tokens=classes,
        text_before=one.text_before,
        text_after=one.text_after,
        copies=objective.time_copies,
        time_token=isinstance(model, CausalFusionConfig) and model.time_conditioning == "token",
        multiple=objective.multiple(model.num_tokens, device.type),
    )
    if not one.text_before:
        return AttentionPlan.of(layout)
    return AttentionPlan.of(layout, torch.arange(rows).clamp(max=1) + one.text_before - 1)


def _inputs(
    model: ModelConfig,
    objective: ObjectiveConfig,
    one: Sequence,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Any]:
    """Return the arguments of the model for a batch of zeros."""
    tokens, copies = model.num_tokens, objective.time_copies
    clean = tokens if one.text_after else tokens - one.sizes[-1]
    times: tuple[int, ...] = (rows,)
    if objective.time_sampling == "per_step":
        times = rows, copies * tokens
    elif copies > 1:
        times = rows, copies

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(sizes, dtype=torch.int64, device=device)

    inputs: list[Any] = [
        torch.zeros(rows, copies * tokens, model.token_dim, dtype=dtype, device=device),
        torch.zeros(rows, clean, model.token_dim, dtype=dtype, device=device),
        torch.arange(tokens, device=device).repeat(rows, 1),
        zeros(*times),
        None if objective.text else zeros(rows),
        _plan(model, objective, one, device, rows),
    ]
    if one.text_before or one.text_after:
        inputs.append(zeros(rows, one.text_before) if one.text_before else None)
        inputs.append(zeros(rows, one.text_after) if one.text_after else None)
    return inputs
