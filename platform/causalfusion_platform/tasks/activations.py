"""Training sequences of the models of latents, and the activations that they keep."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch

from causalfusion import CausalFusionConfig, memory
from causalfusion.attention.dense import attention_form
from causalfusion.baselines.dit import DiTConfig
from causalfusion.factorization.sequence import Layout, lay_out
from causalfusion.factorization.steps import equal_step_sizes
from causalfusion.memory import SequenceLengths, TrainingPrecision

from ..config.schema import Experiment

_PRODUCTS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}


def longest_sequence(experiment: Experiment) -> int:
    """Return the tokens of the longest training sequence, padding included: the last AR step has one token."""
    return len(_longest_layout(experiment))


def _longest_layout(experiment: Experiment) -> Layout:
    model, objective = experiment.model, experiment.objective
    tokens = model.num_tokens
    if objective.num_ar_steps is not None:
        sizes = equal_step_sizes(tokens, objective.num_ar_steps)
    elif objective.ar_decay == 0 or tokens == 1 or isinstance(model, DiTConfig):
        sizes = [tokens]
    else:
        sizes = [tokens - 1, 1]
    time_token = not isinstance(model, DiTConfig) and model.time_conditioning == "token"
    text = model.text.max_tokens if isinstance(model, CausalFusionConfig) and model.text is not None else 0
    described = objective.text is not None and objective.text.share > 0 and model.architecture != "transfusion"
    return lay_out(
        sizes,
        class_tokens=model.num_class_tokens,
        text_before=0 if described else text,
        text_after=text if described else 0,
        copies=objective.time_copies,
        time_token=time_token,
        multiple=objective.multiple(tokens, "cuda" if experiment.train.gpus_per_worker else "cpu"),
    )


def shortest_sequence(experiment: Experiment) -> int:
    """Return the tokens of the shortest sequence: all in one AR step, unless their number is fixed.

    Texts have their largest length, as in the longest sequence.
    """
    objective = experiment.objective
    one_step = dataclasses.replace(objective, num_ar_steps=objective.num_ar_steps or 1)
    if objective.text is not None and objective.text.share < 1:  # text before an image follows no clean image
        one_step = dataclasses.replace(one_step, text=dataclasses.replace(objective.text, share=0.0))
    return longest_sequence(experiment.model_copy(update={"objective": one_step}))


def activation_bytes(experiment: Experiment, rows: int, precision: str) -> float:
    """Estimate the bytes that `rows` images keep for the backward pass, for the longest sequence.

    See `causalfusion.memory`. With autocast the weights in 16 bits are among them.
    """
    layout, copies = _longest_layout(experiment), experiment.objective.time_copies
    text_behind = layout.after.stop > layout.after.start
    lengths = SequenceLengths(
        context=layout.noised.start,
        noised=experiment.model.num_tokens,
        copies=copies,
        read=layout.noised.start - layout.after.start if text_behind else 0,
        masked=layout.noised.start > experiment.model.num_class_tokens,
    )
    return _estimate(experiment, rows, precision, lengths, experiment.model.depth)


def plain_activation_bytes(experiment: Experiment, rows: int, precision: str, depth: int) -> float:
    """Estimate the same for `depth` blocks of the model, on its image tokens alone."""
    lengths = SequenceLengths(context=0, noised=experiment.model.num_tokens, masked=False)
    return _estimate(experiment, rows, precision, lengths, depth)


def _estimate(experiment: Experiment, rows: int, precision: str, lengths: SequenceLengths, depth: int) -> float:
    train = experiment.train
    kind = "cuda" if train.gpus_per_worker else "cpu"
    arithmetic = cast(TrainingPrecision, precision)
    form = attention_form(torch.device(kind), _PRODUCTS.get(arithmetic, torch.bfloat16), lengths.total)
    return memory.activation_bytes(
        experiment.model,
        lengths,
        rows=rows,
        precision=arithmetic,
        device_type=kind,
        attention=form,
        recomputed=train.activation_checkpointing,
        compiled=train.compile,
        depth=depth,
    )
