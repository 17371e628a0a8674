"""Predicted times of a training step and of an evaluation while sampling, part by part, from a device's ceilings.

Each part takes its arithmetic over the rate of products, or its bytes over the bandwidth, whichever is longer, over
the share of that ceiling that its kernels reach (`Shares`). The parts run one after the other. The shares are
assumptions until `make bench-gpu` has measured them.

Symbols: L image tokens, N sequence length, C = N − L context, D width. Bytes are those of bf16 autocast: products
and attention in 2 bytes a number, weights, residual stream and layer norms in 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from causalfusion import CausalFusionConfig, ObjectiveConfig
from causalfusion.attention.mask import attention_mask
from causalfusion.factorization.sequence import lay_out
from causalfusion.factorization.steps import equal_step_sizes
from causalfusion.flops import training_flops
from causalfusion.model import count_parameters
from causalfusion.objective import draw_split

from .ceilings import Ceilings

Form = Literal["split", "flex"]

SPLITS = 256
"""AR splits whose mean a prediction is."""
FLEX_BLOCK = 128
"""Side of the blocks of pairs that FlexAttention computes or leaves out."""

# Bytes a token, in units of D, that one block moves beside products and attention, forward and backward.
ELEMENTWISE = {
    "eager": {
        "layer norms, casts to bf16": 2 * (8 + 6),
        "QK norms: cast, norm, cast": 2 * (6 + 8 + 6),
        "residuals": 2 * 10,
        "GELU": 16,
        "backward of layer norms and casts": 2 * (6 + 20),
        "backward of QK norms": 2 * (6 + 20 + 6),
        "backward of residuals: casts, sums": 2 * (6 + 12),
        "backward of GELU": 24,
        "gradients of q, k and v put together": 12,
        "gradients of biases": 12,
        "gradients of slices of keys and values": 16,
    },
    "compiled": {
        "layer norm 1": 6,
        "QK norms": 8,
        "residual and layer norm 2": 12,
        "residual": 10,
        "GELU": 16,
        "backward of layer norms and residuals": 2 * (16 + 8),
        "backward of QK norms and of q, k and v": 16,
        "backward of GELU": 24,
        "gradients of biases": 12,
    },
}
EVALUATION = {"layer norms": 2 * 4, "QK norms": 2 * 4, "KV cache": 8, "residuals": 2 * 6, "GELU": 16}
"""The same of an evaluation with bf16 weights, where all numbers have 2 bytes."""

UPDATE = {"AdamW": 28, "EMA": 12, "norm": 4, "clipping": 8, "casts of weights and of their gradients": 6 + 6}
"""Bytes a parameter that one optimizer step moves."""

LAUNCHES = 22
"""Kernels of one block in an evaluation."""


@dataclass(frozen=True)
class Shares:
    """Share of its ceiling that each kind of kernel reaches, and times of launches. Assumptions."""

    products: float = 0.85
    attention: Mapping[Form, float] = field(default_factory=lambda: {"split": 0.2, "flex": 0.35})
    elementwise: Mapping[str, float] = field(default_factory=lambda: {"eager": 0.6, "compiled": 0.8})
    update: float = 0.8
    launch: float = 6e-6
    """Seconds that the host takes to launch a kernel."""
    gap: float = 1e-6
    """Seconds between two kernels that were launched early enough."""


@dataclass(frozen=True)
class Step:
    """Seconds of one training step, by part."""

    products: float
    attention: float
    elementwise: float
    update: float

    @property
    def total(self) -> float:
        """All parts, one after the other."""
        return self.products + self.attention + self.elementwise + self.update


@lru_cache(maxsize=64)
def parameters_of(config: CausalFusionConfig) -> int:
    """Return the number of parameters."""
    return count_parameters(config)


def limit(config: CausalFusionConfig, objective: ObjectiveConfig, ceilings: Ceilings) -> float:
    """Return images/s at which products and visible attention alone take all time at the measured ceiling."""
    return ceilings.products / training_flops(config, objective, attention="visible", skip_unread=True)


def training_step(
    config: CausalFusionConfig,
    objective: ObjectiveConfig,
    ceilings: Ceilings,
    *,
    batch: int,
    form: Form,
    compiled: bool,
    multiple: int = 1,
    shares: Shares | None = None,
) -> Step:
    """Predict one training step of `batch` images, the mean over AR splits.

    Args:
        config: the model, with classes and without text.
        objective: distribution of AR splits, with one noised copy.
        ceilings: those of the device.
        batch: images.
        form: form of attention.
        compiled: whether torch.compile joins elementwise work.
        multiple: length that sequences are padded to a multiple of.
        shares: shares of the ceilings (default: the assumptions).
    """
    shares = shares or Shares()
    width, depth, image = config.hidden_size, config.depth, config.num_tokens
    mode = "compiled" if compiled else "eager"
    products = pairs = tokens = last_pairs = 0.0
    splits = [tuple(draw_split(objective, image, 0, step)) for step in range(SPLITS)]
    for sizes in splits:
        length = -(-(config.num_class_tokens + 2 * image - sizes[-1]) // multiple) * multiple
        products += _block_products(config, batch * length, ceilings) * (depth - 1)
        products += _block_products(config, batch * length, ceilings, read=batch * image)
        tokens += batch * (length * (depth - 1) + image) / SPLITS
        everywhere, read = attention_pairs(sizes, config.num_class_tokens, length, form)
        pairs += everywhere
        last_pairs += read
    flops = 14 * width * batch * ((depth - 1) * pairs + last_pairs) / SPLITS
    ends = 3 * 2 * 3 * batch * image * config.token_dim * width / ceilings.products
    return Step(
        products=(3 * products / SPLITS + ends) / shares.products,
        attention=flops / ceilings.products / shares.attention[form],
        elementwise=sum(ELEMENTWISE[mode].values()) * width * tokens / ceilings.copies / shares.elementwise[mode],
        update=sum(UPDATE.values()) * parameters_of(config) / ceilings.copies / shares.update,
    )


def evaluation(
    config: CausalFusionConfig,
    ceilings: Ceilings,
    *,
    rows: int,
    tokens: int,
    context: float,
    graphed: bool,
    shares: Shares | None = None,
) -> float:
    """Predict the seconds of one forward pass while sampling, with bf16 weights.

    The host launches kernels while the device computes, so the longer of both counts.

    Args:
        config: the model.
        ceilings: those of the device.
        rows: samples in a batch, both branches of guidance counted.
        tokens: tokens of the AR step.
        context: tokens that they see beside themselves.
        graphed: whether a CUDA graph launches the kernels, rather than the host.
        shares: shares of the ceilings (default: the assumptions).
    """
    shares = shares or Shares()
    width, depth = config.hidden_size, config.depth
    products = depth * _block_products(config, rows * tokens, ceilings) / shares.products
    pairs = 4 * width * depth * rows * tokens * (context + tokens) / ceilings.products
    cached = 4 * width * depth * rows * (context + tokens) / ceilings.copies
    moved = sum(EVALUATION.values()) * width * depth * rows * tokens / ceilings.copies
    attention = max(pairs / shares.attention["flex"], cached / shares.elementwise["eager"])
    kernels = LAUNCHES * depth
    device = products + attention + moved / shares.elementwise["eager"] + kernels * shares.gap
    return device if graphed else max(device, kernels * shares.launch)


def sampling_seconds(
    config: CausalFusionConfig,
    ceilings: Ceilings,
    *,
    images: int,
    ar_steps: int,
    diffusion_steps: int,
    graphed: bool,
    shares: Shares | None = None,
) -> float:
    """Predict the seconds of one guided batch of images, `diffusion_steps` in each AR step."""
    seconds, context = 0.0, config.num_class_tokens
    for size in equal_step_sizes(config.num_tokens, ar_steps):
        seconds += diffusion_steps * evaluation(
            config, ceilings, rows=2 * images, tokens=size, context=context, graphed=graphed, shares=shares
        )
        context += size
    return seconds


def product_seconds(rows: int, inputs: int, outputs: int, ceilings: Ceilings) -> float:
    """Return the time of a bf16 product of (rows, inputs) and (inputs, outputs) at the ceilings."""
    moved = 2 * (rows * inputs + inputs * outputs + rows * outputs)
    return max(2 * rows * inputs * outputs / ceilings.products, moved / ceilings.copies)


@lru_cache(maxsize=4096)
def attention_pairs(sizes: tuple[int, ...], class_tokens: int, length: int, form: Form) -> tuple[int, int]:
    """Return the pairs of tokens that a form computes for one image: of all queries, and of the noised ones.

    `split` computes all pairs of the context, and of noised tokens with the context and each other. `flex` computes
    the blocks of 128 · 128 pairs in which at least one is visible.
    """
    image = sum(sizes)
    context = length - image
    if form == "split":
        return context**2 + image * length, image * length
    mask = attention_mask(lay_out(list(sizes), class_tokens=class_tokens, multiple=length))
    return _blocks(mask), _blocks(mask[-image:])


def mean_length(config: CausalFusionConfig, objective: ObjectiveConfig, multiple: int = 1) -> float:
    """Return the mean length of training sequences, padding included."""
    lasts = (draw_split(objective, config.num_tokens, 0, step)[-1] for step in range(SPLITS))
    lengths: Iterable[int] = (config.num_class_tokens + 2 * config.num_tokens - last for last in lasts)
    return sum(math.ceil(length / multiple) * multiple for length in lengths) / SPLITS


def _blocks(mask: Tensor) -> int:
    """Count the pairs of the blocks in which at least one pair is visible."""
    rows, columns = (-(-side // FLEX_BLOCK) * FLEX_BLOCK for side in mask.shape)
    padded = torch.zeros(rows, columns, dtype=torch.bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    tiles = padded.view(rows // FLEX_BLOCK, FLEX_BLOCK, columns // FLEX_BLOCK, FLEX_BLOCK)
    return int(tiles.any(dim=3).any(dim=1).sum()) * FLEX_BLOCK**2


def _block_products(config: CausalFusionConfig, tokens: int, ceilings: Ceilings, read: int | None = None) -> float:
    """Return the time of one block's products, forward: qkv of all tokens, the rest of those that are read."""
    width, hidden = config.hidden_size, config.mlp_size
    read = tokens if read is None else read
    return (
        product_seconds(tokens, width, 3 * width, ceilings)
        + product_seconds(read, width, width, ceilings)
        + product_seconds(read, width, hidden, ceilings)
        + product_seconds(read, hidden, width, ceilings)
    )
