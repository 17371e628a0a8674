"""Attention over a training sequence in two parts: the context, and the noised copies behind it.

Shapes: B samples, H heads, N tokens, C context tokens, k noised copies of L tokens, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from . import dense


@dataclass(frozen=True)
class SplitMask:
    """The mask of [context | noised copies], without the pairs that are never visible.

    Context sees no noised token, and no copy sees another. Of (C + k·L)² pairs, C² + k·L·(C + L) are left.
    """

    context: Tensor | None
    """(C, C), or (B, 1, C, C) if samples differ: bool, True = visible. None: all visible."""
    noised: Tensor | None
    """(L, C + L), or (B, 1, L, C + L): context and own tokens, the same for every copy. None: all visible."""
    num_context: int
    """C."""
    num_tokens: int
    """L."""
    copies: int
    """k. 0: the sequence is context alone."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention for the last n tokens of the sequence.

        Args:
            q: queries (B, H, n, E), all noised tokens among them.
            k: keys (B, H, N, E) of the whole sequence.
            v: values (B, H, N, E).

        Returns:
            (B, H, n, E).
        """
        context, noised = self.num_context, self.copies * self.num_tokens
        asked = q.shape[2] - noised  # queries of the context: its last ones
        seen = None if self.context is None else self.context[..., context - asked :, :]
        if not noised:
            return dense.attend(q, k, v, seen)
        if not asked:
            return self._attend_noised(q, k, v)
        q_context, q_noised = torch.split(q, [asked, noised], dim=2)
        (k_context, k), (v_context, v) = _context_and_all(k, context), _context_and_all(v, context)
        out = dense.attend(q_context, k_context, v_context, seen)
        return torch.cat([out, self._attend_noised(q_noised, k, v)], dim=2)

    def _attend_noised(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.copies == 1:
            return dense.attend(q, k, v, self.noised)
        keys = self.num_context + self.num_tokens
        if dense.attention_form(v.device, v.dtype, keys) == "matmul":
            return self._copies_by_products(q, k, v)
        # Every copy is a sample of its own, with the same context before it.
        k, v = (_copies_behind_context(x, self.num_context, self.copies) for x in (k, v))
        noised = self.noised
        if noised is not None and noised.ndim == 4:
            noised = noised.repeat_interleave(self.copies, dim=0)
        out = dense.attend(rearrange(q, "b h (k n) e -> (b k) h n e", k=self.copies), k, v, noised)
        return rearrange(out, "(b k) h n e -> b h (k n) e", k=self.copies)

    def _copies_by_products(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute plain products of all copies with the one context, and of each copy with itself."""
        parts = [self.num_context, self.copies * self.num_tokens]
        q = q * q.shape[-1] ** -0.5
        (k_context, k_own), (v_context, v_own) = (torch.split(x, parts, dim=2) for x in (k, v))
        q_own, k_own, v_own = (rearrange(x, "b h (k n) e -> b h k n e", k=self.copies) for x in (q, k_own, v_own))
        to_context = rearrange(q @ k_context.mT, "b h (k n) c -> b h k n c", k=self.copies)
        scores = torch.cat([to_context, q_own @ k_own.mT], dim=-1)
        seen = self.noised
        if seen is not None and seen.ndim == 4:
            seen = seen[:, :, None]
        weights = dense.softmax_of_visible(scores, seen).to(v.dtype)
        on_context, on_own = torch.split(weights, [self.num_context, self.num_tokens], dim=-1)
        own = rearrange(on_own @ v_own, "b h k n e -> b h (k n) e")
        out: Tensor = rearrange(on_context, "b h k n c -> b h (k n) c") @ v_context + own
        return out


def _context_and_all(x_BHNE: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Return keys of the context, and all. Compiled code adds their gradients in one pass by itself."""
    if torch.compiler.is_compiling():
        return x_BHNE[:, :, :context], x_BHNE
    both: tuple[Tensor, Tensor] = _ContextAndAll.apply(x_BHNE, context)  # type: ignore[no-untyped-call]
    return both


def _copies_behind_context(x_BHNE: Tensor, context: int, copies: int) -> Tensor:
    out: Tensor = _CopiesBehindContext.apply(x_BHNE, context, copies)  # type: ignore[no-untyped-call]
    return out


class _ContextAndAll(torch.autograd.Function):
    """Keys of the context and those of all tokens, both as views of one tensor.

    The gradient of the first is added into that of the second. Slicing would fill a tensor of all tokens with zeros
    for it, and write the sum into a third.
    """

    @staticmethod
    def forward(ctx: Any, x_BHNE: Tensor, context: int) -> tuple[Tensor, Tensor]:
        ctx.context = context
        return x_BHNE[:, :, :context], x_BHNE.view_as(x_BHNE)

    @staticmethod
    def backward(ctx: Any, of_context: Tensor, of_all: Tensor) -> tuple[Tensor, None]:
        of_all[:, :, : ctx.context] += of_context
        return of_all, None


class _CopiesBehindContext(torch.autograd.Function):
    """Each noised copy behind a copy of the context: (B · k, H, C + L, E). The gradient is written once, whole."""

    @staticmethod
    def forward(ctx: Any, x_BHNE: Tensor, context: int, copies: int) -> Tensor:
        ctx.context, ctx.copies = context, copies
        batch, heads, _, width = x_BHNE.shape
        own = rearrange(x_BHNE[:, :, context:], "b h (k n) e -> b k h n e", k=copies)
        out = x_BHNE.new_empty(batch, copies, heads, context + own.shape[3], width)
        out[:, :, :, :context] = x_BHNE[:, None, :, :context]
        out[:, :, :, context:] = own
        return out.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        context = ctx.context
        grad = rearrange(grad, "(b k) h n e -> b k h n e", k=ctx.copies)
        batch, copies, heads, length, width = grad.shape
        whole = grad.new_empty(batch, heads, context + copies * (length - context), width)
        whole[:, :, :context] = grad[:, :, :, :context].sum(1)
        own = rearrange(whole[:, :, context:], "b h (k n) e -> b k h n e", k=copies)  # a view
        own.copy_(grad[:, :, :, context:])
        return whole, None, None
