"""Attention over a training sequence by blocks of queries, each with the keys that it can see. For CPUs.

Shapes: B samples, H heads, N tokens, n queries, C context tokens, k noised copies of L tokens, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .split import SplitMask

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Keys:
    """Consecutive keys that a block of queries can see."""

    start: int
    stop: int
    hidden: Tensor | None
    """(queries, keys) to add to the scores: 0, or −∞ for a pair that is hidden. None: no pair is."""


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive queries with their keys: some of the context, some of the same noised copy, or both."""

    start: int
    stop: int
    keys: tuple[Keys, ...]

    def moved(self, queries: int, own: int, context: int) -> QueryBlock:
        """Return the block `queries` further on, with the keys from `context` on `own` further on."""
        keys = (
            Keys(one.start + own, one.stop + own, one.hidden) if one.start >= context else one for one in self.keys
        )
        return QueryBlock(self.start + queries, self.stop + queries, tuple(keys))

    def since(self, first: int) -> QueryBlock:
        """Return the queries from `first` on, counted from there."""
        cut = max(first - self.start, 0)
        keys = (Keys(one.start, one.stop, None if one.hidden is None else one.hidden[cut:]) for one in self.keys)
        return QueryBlock(self.start + cut - first, self.stop - first, tuple(keys))


@dataclass(frozen=True)
class BlockedMask:
    """A training sequence's mask without most of the pairs that it hides.

    A query needs the keys of its own step and of the steps before it. With steps of equal size, these are about
    half of those that `SplitMask` computes.
    """

    split: SplitMask
    """The same mask in two parts."""
    blocks: tuple[QueryBlock, ...]
    """Blocks of all queries in order."""

    @classmethod
    def of(cls, split: SplitMask, dtype: torch.dtype, least: int = 64) -> BlockedMask | None:
        """Cut a mask into blocks at the borders of AR steps.

        Args:
            split: the mask, the same for all samples.
            dtype: type of the scores.
            least: queries of a block. Smaller ones would cost more in calls than they save.

        Returns:
            None if a query of a block has keys in its own copy alone, and others have some in the context. None for
            types of 16 bits, in which sums of weights would be rounded.
        """
        if dtype.itemsize < 4:
            return None
        context, length = split.num_context, split.num_tokens
        first = split.context if split.context is not None else torch.ones(context, context, dtype=torch.bool)
        later = split.noised if split.noised is not None else torch.ones(length, context + length, dtype=torch.bool)
        try:
            of_context = list(_cut(first, [context], dtype, least))
            of_copy = list(_cut(later, [context, context + length], dtype, least))
        except _NoKeys:
            return None
        copies = (
            block.moved(context + copy * length, copy * length, context)
            for copy in range(split.copies)
            for block in of_copy
        )
        return cls(split, (*of_context, *copies))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention (B, H, n, E) for the last n tokens of a sequence, given its keys (B, H, N, E)."""
        if torch.compiler.is_compiling():  # blocks differ from step to step
            return self.split.attend(q, k, v)
        first = k.shape[2] - q.shape[2]
        blocks = tuple(block.since(first) for block in self.blocks if block.stop > first)
        out: Tensor = _InBlocks.apply(q, k, v, blocks)  # type: ignore[no-untyped-call]
        return out


class _NoKeys(Exception):
    """A query has no key in a part of the keys that the others of its block have some in."""


def _cut(seen: Tensor, ends: list[int], dtype: torch.dtype, least: int) -> Iterator[QueryBlock]:
    """Cut a mask (queries, keys) where it changes from one query to the next.

    Args:
        ends: ends of the parts of the keys.
    """
    changes = (seen[1:] != seen[:-1]).any(1).nonzero().flatten().add(1).tolist()
    start = 0
    for stop in (*changes, len(seen)):
        if start < stop and (stop - start >= least or stop == len(seen)):
            parts = zip([0, *ends[:-1]], ends, strict=True)
            found = (_visible(seen[start:stop, first:end], first, dtype) for first, end in parts)
            yield QueryBlock(start, stop, tuple(keys for keys in found if keys is not None))
            start = stop


def _visible(seen: Tensor, first: int, dtype: torch.dtype) -> Keys | None:
    columns = seen.any(0).nonzero().flatten()
    if not len(columns):
        return None
    if not bool(seen.any(1).all()):
        raise _NoKeys
    low, high = int(columns[0]), int(columns[-1]) + 1
    hidden = ~seen[:, low:high]
    scores = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf) if bool(hidden.any()) else None
    return Keys(first + low, first + high, scores)


class _InBlocks(torch.autograd.Function):
    """torch's fused kernel on each block. Results over two runs of keys are weighed by their sums of weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: tuple[QueryBlock, ...]) -> Tensor:
        out, log_sums = torch.empty_like(q), q.new_empty(q.shape[:3])
        for block in blocks:
            rows = slice(block.start, block.stop)
            for number, keys in enumerate(block.keys):
                at = slice(keys.start, keys.stop)
                part, log_sum = _forward(q[:, :, rows], k[:, :, at], v[:, :, at], attn_mask=keys.hidden)
                if number:
                    before = log_sums[:, :, rows]
                    part = torch.lerp(out[:, :, rows], part, (log_sum - before).sigmoid()[..., None])
                    log_sum = torch.logaddexp(before, log_sum)
                out[:, :, rows], log_sums[:, :, rows] = part, log_sum
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.blocks = blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_sums = ctx.saved_tensors
        of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        for block in ctx.blocks:
            rows = slice(block.start, block.stop)
            grad_rows, q_rows, out_rows = (x[:, :, rows] for x in (grad, q, out))
            for keys in block.keys:
                at = slice(keys.start, keys.stop)
                k_at, v_at, sums = k[:, :, at], v[:, :, at], log_sums[:, :, rows]
                parts = _backward(grad_rows, q_rows, k_at, v_at, out_rows, sums, 0.0, False, attn_mask=keys.hidden)
                of_q[:, :, rows] += parts[0]
                of_k[:, :, at] += parts[1]
                of_v[:, :, at] += parts[2]
        return of_q, of_k, of_v, None
