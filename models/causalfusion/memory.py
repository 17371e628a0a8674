"""Bytes that a training step keeps for its backward pass, by arithmetic alone.

Each block keeps the inputs of its layer norms, products, attention and GELU. Indices and masks of few bytes a token
are not counted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .baselines.dit import DiTConfig

if TYPE_CHECKING:
    from .attention.dense import AttentionForm
    from .model import ModelConfig

TrainingPrecision = Literal["fp32", "tf32", "bf16", "bf16_weights", "fp16"]
"""Arithmetic. `bf16`: weights of fp32 under autocast. `bf16_weights` and `fp16`: all numbers have 16 bits."""

_STATISTICS = 8  # mean and reciprocal deviation of a layer norm, fp32


@dataclass(frozen=True)
class SequenceLengths:
    """Lengths of one training sequence, in tokens."""

    context: int
    """Class, text, clean and time tokens, padding included."""
    noised: int
    """Tokens of one noised copy."""
    copies: int = 1
    """Noised copies."""
    read: int = 0
    """Last tokens of the context whose outputs are needed: text after the image."""
    masked: bool = True
    """Whether a token hides from another that is computed with it. False in one AR step."""

    @property
    def total(self) -> int:
        """Tokens of the sequence."""
        return self.context + self.copies * self.noised

    @property
    def asked(self) -> int:
        """Tokens whose outputs are needed."""
        return self.read + self.copies * self.noised


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a number, by its place."""

    product: int
    """In matrix products."""
    residual: int
    """Between blocks."""
    softmax: int
    """In a softmax of its own."""
    norm_copy: int
    """In the copy of a layer norm's input that autocast makes of numbers with 16 bits."""
    cast_weights: int
    """In the copy of a weight for products."""

    @classmethod
    def of(cls, precision: TrainingPrecision, device_type: str) -> _Sizes:
        if precision in ("fp32", "tf32"):
            return cls(product=4, residual=4, softmax=4, norm_copy=0, cast_weights=0)
        if precision in ("bf16_weights", "fp16"):
            return cls(product=2, residual=2, softmax=2, norm_copy=0, cast_weights=0)
        # Autocast on CUDA computes layer norms and softmax in fp32, on a CPU in the type of their input.
        on_gpu = device_type == "cuda"
        return cls(product=2, residual=4, softmax=4 if on_gpu else 2, norm_copy=4 if on_gpu else 0, cast_weights=2)


def activation_bytes(
    config: ModelConfig,
    lengths: SequenceLengths,
    *,
    rows: int,
    precision: TrainingPrecision,
    device_type: str,
    attention: AttentionForm,
    recomputed: bool = False,
    compiled: bool = False,
    depth: int | None = None,
) -> int:
    """Return the bytes that one forward pass keeps for its backward pass.

    Args:
        config: the model.
        lengths: the training sequence.
        rows: samples in the pass.
        precision: arithmetic.
        device_type: `cpu` or `cuda`.
        attention: form of attention over the sequence.
        recomputed: keep the input of each block alone, and one block whole: the one that is computed again.
        compiled: blocks by torch.compile, which computes casts, layer norms and residuals again.
        depth: number of blocks, the model's own by default.
    """
    sizes = _Sizes.of(precision, device_type)
    if compiled:
        sizes = dataclasses.replace(sizes, norm_copy=0)
    count = config.depth if depth is None else depth
    last, first = (
        _block(config, sizes, lengths, attention, asked, compiled) for asked in (lengths.asked, lengths.total)
    )
    tokens = lengths.asked * (sizes.residual + sizes.product) * config.hidden_size  # final norm and its output
    if recomputed:
        kept = count * lengths.total * sizes.residual * config.hidden_size
        blocks, weights = kept + (first if count > 1 else last), _block_weights(config)
    else:
        blocks, weights = (count - 1) * first + last, count * _block_weights(config)
    return rows * (blocks + tokens) + sizes.cast_weights * (weights + _other_weights(config))


def _block(
    config: ModelConfig, sizes: _Sizes, lengths: SequenceLengths, form: AttentionForm, asked: int, compiled: bool
) -> int:
    """Return the bytes that a block keeps of one sample, if `asked` tokens at the end are needed of it."""
    width, total, product = config.hidden_size, lengths.total, sizes.product
    # Inputs of both layer norms: compiled blocks compute the second one again from the output of attention.
    kept = (total + asked) * _STATISTICS + width * (
        total * sizes.residual + asked * (product if compiled else sizes.residual)
    )
    # Inputs of the projections of attention and the MLP, and both sides of the GELU.
    kept += product * ((total + 2 * asked) * width + 2 * asked * config.mlp_size)
    if isinstance(config, DiTConfig):
        # Both branches before their gates, and normed tokens before their scale.
        kept += product * asked * width if compiled else asked * (2 * product + 2 * sizes.residual) * width
        lengths, normed = SequenceLengths(context=0, noised=total, masked=False), False
    else:
        normed = config.qk_norm
    attention = _Attention(width, config.num_heads, normed, sizes, lengths, asked)
    if form == "matmul":
        return kept + attention.by_products()
    whole = form in ("flex", "blocks") and lengths.masked
    return kept + (attention.by_whole() if whole else attention.by_parts())


def working_bytes(activations: float, depth: int) -> float:
    """Return the activations at the start of the backward pass: one block holds half as much again as it keeps.

    Args:
        activations: bytes that all blocks keep.
        depth: blocks.
    """
    return activations * (1 + 1 / (2 * depth))


def peak_bytes(
    parameters: int, depth: int, activations: float, *, averages: int = 1, accumulated: bool = False
) -> float:
    """Estimate the peak of training with AdamW and weights of fp32, whole on one device.

    Weights, two moments and the averages stay. The backward pass frees activations while it makes gradients, so
    that the larger of them counts.

    Args:
        parameters: numbers in the model.
        depth: its blocks.
        activations: `activation_bytes` of one pass.
        averages: averages of the weights.
        accumulated: the gradients of an earlier pass are there from the start.
    """
    working = working_bytes(activations, depth)
    gradients = 4 * parameters
    step = working + gradients if accumulated else max(working, gradients)
    return (12 + 4 * averages) * parameters + step


@dataclass(frozen=True)
class _Attention:
    """Attention of one sample in one block, between the projections of its input and of its output."""

    width: int
    heads: int
    normed: bool
    """Whether queries and keys have layer norms."""
    sizes: _Sizes
    lengths: SequenceLengths
    asked: int

    @property
    def context(self) -> int:
        """Queries of the context."""
        return self.asked - self.lengths.copies * self.lengths.noised

    @property
    def cast(self) -> bool:
        """Whether autocast copies queries and keys, to fp32 for their norms and back for attention."""
        return self.normed and self.sizes.norm_copy > 0

    @property
    def projected(self) -> int:
        """Queries, keys and values before the norms, one tensor: kept whole for a view of one of them."""
        return 3 * self.sizes.product * self.width * self.lengths.total

    @property
    def norms(self) -> int:
        """Copies and statistics in the norms of queries and keys."""
        tokens = self.lengths.total + self.asked
        return self.normed * tokens * (self.sizes.norm_copy * self.width + self.heads * _STATISTICS)

    def by_whole(self) -> int:
        """One function over the whole sequence: FlexAttention, or blocks of AR steps."""
        tokens = self.normed * (self.lengths.total + self.asked)
        return self.projected + self.norms + self._fused(tokens)

    def by_parts(self) -> int:
        """The fused kernel for the context and for the noised copies, whose outputs are put together."""
        lengths, both = self.lengths, self.context > 0
        joined = both * self.asked
        if lengths.copies <= 1:
            keys = lengths.total + both * self.cast * lengths.context
            return self.projected + self.norms + self._fused(joined + self.normed * (self.asked + keys))
        kept = self.norms + (self.projected if both or not self.cast else 0)
        keys = self.normed * both * (lengths.context if self.cast else lengths.total)
        behind = 2 * lengths.copies * (lengths.context + lengths.noised)
        return kept + self._fused(joined + self.normed * self.asked + keys + behind)

    def by_products(self) -> int:
        """Plain products of queries and keys, a softmax, and products with the values."""
        lengths, product = self.lengths, self.sizes.product
        noised = lengths.copies * lengths.noised
        pairs = self.context * lengths.context + noised * (lengths.context + lengths.noised)
        copied = self.sizes.softmax != product
        weights = self.heads * pairs * (self.sizes.softmax + copied * product)
        tokens = self.asked + 2 * (lengths.total + (self.context > 0) * lengths.context)
        kept = self.projected if self.normed and not self.cast else 0
        return kept + weights + product * self.width * tokens + self.norms

    def _fused(self, tokens: int) -> int:
        """Tensors of so many tokens, and the logarithm of each query's sum of weights."""
        return self.sizes.product * self.width * tokens + 4 * self.heads * self.asked


def _block_weights(config: ModelConfig) -> int:
    """Return the numbers in the matrices of a block: qkv 3D², projection D², MLP, modulation of a DiT 6D²."""
    width = config.hidden_size
    return (4 + 6 * isinstance(config, DiTConfig)) * width**2 + 2 * width * config.mlp_size


def _other_weights(config: ModelConfig) -> int:
    """Return the numbers in the other matrices that have a copy: the MLP of time, the head, modulation of a DiT."""
    width = config.hidden_size
    head = config.patch_size**2 * config.out_channels if isinstance(config, DiTConfig) else config.token_dim
    return (1 + 2 * isinstance(config, DiTConfig)) * width**2 + head * width
