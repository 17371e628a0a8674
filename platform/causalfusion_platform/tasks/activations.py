"""Training sequences of the models of latents, and the activations that they keep."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from causalfusion import CausalFusionConfig, ModelConfig, count_parameters
from causalfusion.baselines.dit import DiTConfig
from causalfusion.factorization.sequence import lay_out
from causalfusion.factorization.steps import equal_step_sizes

from ..config.schema import Experiment


def longest_sequence(experiment: Experiment) -> int:
    """Return the tokens of the longest training sequence, padding included: the last AR step has one token."""
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
    layout = lay_out(
        sizes,
        class_tokens=model.num_class_tokens,
        text_before=0 if described else text,
        text_after=text if described else 0,
        copies=objective.time_copies,
        time_token=time_token,
        multiple=objective.multiple(tokens, "cuda" if experiment.train.gpus_per_worker else "cpu"),
    )
    return len(layout)


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

    D is the width of the model and M that of the MLP. In a block each token keeps

    - 2 D numbers in the precision of the residual stream: the inputs of the layer norms.
    - 8 D and 2 M numbers in the precision of products. The 8 D are their inputs, queries and keys before and after
      their norms, and values.
    - 3 D more in a DiT, for its modulation.

    Recomputing keeps D a block, and one block whole. With autocast the weights in 16 bits come on top. The N²
    scores of attention are not counted, since kernels do not keep them at lengths where they matter.
    """
    return plain_activation_bytes(experiment, rows, precision, experiment.model.depth, longest_sequence(experiment))


def plain_activation_bytes(
    experiment: Experiment, rows: int, precision: str, depth: int, tokens_per_row: int | None = None
) -> float:
    """Estimate the same for `depth` blocks of the model, on its image tokens alone if no number is given."""
    model = experiment.model
    product = 4 if precision == "fp32" else 2
    residual = 2 if precision in ("bf16_weights", "fp16") else 4
    width, tokens = model.hidden_size, rows * (tokens_per_row or model.num_tokens)
    more = 3 * residual * width if isinstance(model, DiTConfig) else 0
    block = tokens * (2 * residual * width + 8 * product * width + 2 * product * model.mlp_size + more)
    blocks = depth * block
    if experiment.train.activation_checkpointing:
        blocks = depth * tokens * residual * width + block
    cast = 2 * _count(model) if precision == "bf16" else 0
    return float(blocks + cast)


@lru_cache(maxsize=64)
def _count(model: ModelConfig) -> int:
    return count_parameters(model)
