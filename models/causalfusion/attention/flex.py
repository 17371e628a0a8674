"""Attention over a training sequence by FlexAttention, whose kernel leaves out blocks of hidden pairs.

Shapes: B samples, H heads, N tokens, n queries, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from . import dense
from .mask import visible, visible_between

if TYPE_CHECKING:  # the module imports torch's compiler, which takes a second
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128
_MOST_LENGTHS = 64

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Tells from the indices of sample, head, query and key whether the key is visible."""


def mask_mod(places: Tensor, asked: int) -> MaskMod:
    """Return the mask as a function of indices, for the last `asked` tokens as queries.

    Args:
        places: segments and steps, (2, N), or (B, 2, N) if samples differ.
        asked: n. Query 0 is token N − n.
    """
    segments, steps = places.unbind(-2)
    query_segments, query_steps = (x[..., x.shape[-1] - asked :] for x in (segments, steps))

    def same_for_all(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(query_segments[q], query_steps[q], segments[k], steps[k])

    def of_sample(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(query_segments[b, q], query_steps[b, q], segments[b, k], steps[b, k])

    return same_for_all if places.ndim == 2 else of_sample


@dataclass(frozen=True)
class FlexMask:
    """The mask of a training sequence as block masks, made once a step. They serve all blocks and heads."""

    whole: BlockMask
    """All tokens are queries."""
    read: BlockMask
    """The queries of the last block: the tokens whose outputs are needed."""

    @classmethod
    def of(cls, places: Tensor, asked: int) -> FlexMask:
        """Make both block masks.

        Args:
            places: segments and steps on the device that computes, (2, N), or (B, 2, N) if samples differ.
            asked: the last tokens of the sequence that are read of the last block.
        """
        length = places.shape[-1]
        whole = block_mask(places, length)
        return cls(whole, whole if asked == length else block_mask(places, asked))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention for the last n tokens of the sequence: all of them, or those that are read.

        Queries (B, H, n, E), keys and values (B, H, N, E). FlexAttention has no backward pass on a CPU. There the
        same function of indices makes a dense mask for plain products, which tests compare.
        """
        blocks = self.whole if q.shape[2] == k.shape[2] else self.read
        if v.device.type == "cpu":
            sizes = len(blocks.kv_num_blocks), 1, q.shape[2], k.shape[2]
            indices = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
            return dense.products(q, k, v, blocks.mask_mod(*indices))
        from torch.nn.attention.flex_attention import flex_attention

        kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
        # Autocast leaves normed queries and keys in fp32.
        out: Tensor = kernel(q.to(v.dtype), k.to(v.dtype), v, block_mask=blocks)
        return out


def block_mask(places: Tensor, asked: int) -> BlockMask:
    """Return the mask of the last `asked` tokens in blocks of 128 × 128 pairs, without waiting for the device.

    `create_block_mask` makes the same. It maps the function over indices in Python, for 10 ms and more of the host.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = places.shape[-1]
    seen = visible_between(places[..., length - asked :], places)
    seen = seen.view(-1, 1, asked, length)
    padded = functional.pad(seen, (0, -length % _BLOCK, 0, -asked % _BLOCK))
    pairs = rearrange(padded, "b h (q i) (k j) -> b h q k (i j)", i=_BLOCK, j=_BLOCK)
    shown = pairs.sum(dim=-1)
    full = shown == _BLOCK**2
    return BlockMask.from_kv_blocks(
        *_counts_and_indices((shown > 0) & ~full),
        *_counts_and_indices(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=mask_mod(places, asked),
        seq_lengths=(asked, length),
    )


def _counts_and_indices(present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of blocks in each row, and their columns first: (…, rows) and (…, rows, columns), int32."""
    columns = present.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return present.sum(dim=-1, dtype=torch.int32), columns.to(torch.int32)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Return FlexAttention compiled, for each length anew. As it stands it computes all pairs.

    Training in buckets has up to twelve pairs of lengths. Beyond torch's limit of 8 the kernel would be left out.
    """
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_LENGTHS)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled
