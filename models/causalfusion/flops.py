"""Exact FLOPs of the matrix products of one image, for one AR split or in expectation over those of training.

A multiply-add is 2 FLOPs, and the backward pass costs twice the forward one. Layer norms, softmax, activations,
look-ups and padding (`ObjectiveConfig.sequence_multiple`) are not counted.

Symbols: L image tokens, C class tokens, K = L − |κ_S| clean tokens, k noised copies, N sequence length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .baselines.dit import DiTConfig
from .config import CausalFusionConfig
from .factorization.steps import ar_step_probabilities, equal_step_sizes
from .model import ModelConfig
from .objective import ObjectiveConfig, check_objective

AttentionCount = Literal["dense", "split", "visible"]
"""Pairs of tokens that count.

`dense`: all N² pairs, the usual convention. `split`: the pairs that `CausalFusion` computes, without those of a
context query and a noised key and those of two copies. `visible`: the pairs that the mask shows.
"""

_TIME_FREQUENCIES = 256


@dataclass(frozen=True)
class _Split:
    """Quantities of an AR split, or their expectations. FLOPs are linear in them."""

    last: float
    """|κ_S|."""
    last_squared: float
    """|κ_S|²."""
    pairs: float
    """Σ_{i≤j} |κ_i| |κ_j|: pairs of a token and a token of the same or an earlier AR step."""


def forward_flops(
    config: CausalFusionConfig,
    sizes: list[int],
    *,
    text_before: int = 0,
    text_after: int = 0,
    time_copies: int = 1,
    attention: AttentionCount = "dense",
    skip_unread: bool = False,
) -> int:
    """Return the FLOPs of the training sequence of one image, forward only.

    Args:
        config: the model.
        sizes: |κ_1| … |κ_S|, with sum L.
        text_before: text tokens that the image is drawn from.
        text_after: text tokens that describe the image. The clean tokens of the last AR step are there for them.
        time_copies: noised copies, which share the class and clean tokens (Table 7).
        attention: which pairs of tokens count.
        skip_unread: leave out what nothing reads of the last block, as `CausalFusion` does: attention, projection
            and MLP of all but the noised tokens. The usual convention counts every token in every block.

    Raises:
        ValueError: the sizes are not positive with sum L, or `time_copies` is below 1.
    """
    if min(sizes, default=0) < 1 or sum(sizes) != config.num_tokens:
        raise ValueError(f"sizes must be positive with sum {config.num_tokens}, got {sizes}")
    if time_copies < 1:
        raise ValueError(f"time_copies must be at least 1, got {time_copies}")
    text = text_before, text_after
    return int(_forward(config, _split(sizes), time_copies, attention, skip_unread, text))


def dit_flops(config: DiTConfig) -> int:
    """Return the forward FLOPs of one image in the AdaLN-zero DiT, which lets every token see every token."""
    width, tokens = config.hidden_size, config.num_tokens
    block = tokens * _token_products(config) + tokens**2 * 2 * width + 6 * width**2
    ends = tokens * width * (config.token_dim + config.patch_size**2 * config.out_channels)
    return 2 * (config.depth * block + ends + 2 * width**2 + _time_products(config))


def training_flops(
    config: ModelConfig,
    objective: ObjectiveConfig,
    *,
    attention: AttentionCount = "dense",
    skip_unread: bool = False,
) -> float:
    """Return the FLOPs of training on one image, forward and backward: the expectation over AR splits.

    S follows `objective.ar_decay` and cuts are uniformly random, or S is fixed and sizes are equal. Texts have the
    largest length. The other arguments are those of `forward_flops` and do not affect a DiT.

    Raises:
        ValueError: the model cannot be trained with this objective.
    """
    check_objective(config, objective)
    if isinstance(config, DiTConfig):
        return 3 * dit_flops(config)
    share = objective.text.share if objective.text is not None else 0
    longest = config.text.max_tokens if config.text is not None else 0
    if objective.num_ar_steps is not None:
        split = _split(equal_step_sizes(config.num_tokens, objective.num_ar_steps))
    else:
        split = _expected_split(config.num_tokens, objective.ar_decay)
    mean = 0.0
    for weight, text in ((1 - share, (longest, 0)), (share, (0, longest))):
        if weight:
            mean += weight * _forward(config, split, objective.time_copies, attention, skip_unread, text)
    return 3 * mean


def _split(sizes: list[int]) -> _Split:
    total, squares = sum(sizes), sum(size**2 for size in sizes)
    return _Split(sizes[-1], sizes[-1] ** 2, (total**2 + squares) // 2)


def _expected_split(num_tokens: int, ar_decay: float) -> _Split:
    """Average over S and over all compositions of L into S sizes, in which each size has the same law.

    E[|κ|] = L/S. A size m cuts m + 2 tokens into three in m(m+1)/2 ways. This turns S sizes of sum L into S + 2 of
    sum L + 2. Hence E[|κ|(|κ|+1)/2] = C(L+1, S+1) / C(L−1, S−1) = L(L+1) / (S(S+1)).
    """
    probabilities = ar_step_probabilities(num_tokens, ar_decay)
    steps = torch.arange(1, num_tokens + 1, dtype=torch.float64)
    mean = num_tokens / steps
    mean_squared = 2 * mean * (num_tokens + 1) / (steps + 1) - mean
    pairs = (num_tokens**2 + steps * mean_squared) / 2
    return _Split(*(float(probabilities @ moment) for moment in (mean, mean_squared, pairs)))


def _forward(
    config: CausalFusionConfig,
    split: _Split,
    copies: int,
    attention: AttentionCount,
    skip_unread: bool,
    text: tuple[int, int],
) -> float:
    width, tokens, classes = config.hidden_size, config.num_tokens, config.num_class_tokens
    before, after = text
    if config.architecture == "transfusion" and after:
        return _described(config, after, attention)
    time = int(config.time_conditioning == "token")
    missing, missing_squared = (0.0, 0.0) if after else (split.last, split.last_squared)  # clean tokens
    clean, noised = tokens - missing, copies * tokens
    first = classes + before  # in front of the image
    everything = first + tokens + after + time
    context = everything - missing
    read = after + time if after else 0  # tokens of the context whose last block is read
    if attention in ("dense", "split"):
        keys = noised if attention == "dense" else 0
        context_pairs = everything**2 - 2 * everything * missing + missing_squared + context * keys
        read_pairs = read * (context + keys)
        noised_pairs = noised * (context + (noised if attention == "dense" else tokens))
    else:
        clean_pairs = split.pairs - tokens * missing  # without the row of the last AR step
        time_pairs = time * (first + time)
        read_pairs = after * (first + tokens) + after * (after + 1) / 2 + time_pairs if after else 0
        text_pairs = before * classes + before * (before + 1) / 2
        context_pairs = classes**2 + text_pairs + clean * first + clean_pairs + (read_pairs or time_pairs)
        noised_pairs = noised * (first + time) + copies * split.pairs
    token, pair = _token_products(config), 2 * width  # a pair: once for its score, once for the value
    products = config.depth * (token * (context + noised) + pair * (context_pairs + noised_pairs))
    if skip_unread:
        products -= (token - 3 * width**2) * (context - read) + pair * (context_pairs - read_pairs)  # qkv stays
    ends = config.token_dim * width * (clean + 2 * noised) + _logits(config, after)
    return 2 * (products + ends + copies * _time_products(config))


def _described(config: CausalFusionConfig, after: int, attention: AttentionCount) -> float:
    """Return the FLOPs of a Transfusion's described image: every token is read, and text sees all before it."""
    width, tokens, classes = config.hidden_size, config.num_tokens, config.num_class_tokens
    total = classes + tokens + after
    pairs: float = total**2
    if attention == "visible":
        pairs = classes**2 + tokens * (classes + tokens) + after * (classes + tokens) + after * (after + 1) / 2
    products = config.depth * (_token_products(config) * total + 2 * width * pairs)
    ends = 2 * config.token_dim * width * tokens + _logits(config, after)
    return 2 * (products + ends + _time_products(config))


def _logits(config: CausalFusionConfig, after: int) -> int:
    return after * config.hidden_size * config.text.vocabulary if config.text is not None else 0


def _token_products(config: ModelConfig) -> int:
    """Return the multiply-adds of a token in a block without attention: qkv 3D², projection D², MLP."""
    width = config.hidden_size
    return 4 * width**2 + 2 * width * config.mlp_size


def _time_products(config: ModelConfig) -> int:
    return (_TIME_FREQUENCIES + config.hidden_size) * config.hidden_size
