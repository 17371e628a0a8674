"""Text prompts that images are drawn from, as a condition in place of class labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tokenizer import Tokenizer

_SHOWN = 60
"""Characters of a prompt that a message shows."""


@dataclass(frozen=True)
class Prompts:
    """Text tokens of B prompts of mixed lengths. A length of 0, no text, is the unconditional branch."""

    tokens: Tensor
    """(B, T) int64, T at least the largest length. Tokens behind a prompt's length are not read."""
    lengths: Tensor
    """(B,) int64."""
    labels: Tensor | None = None
    """(B,) int64 classes, for a model that has class tokens beside its text."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.lengths.shape != self.tokens.shape[:1]:
            raise ValueError(
                f"prompts need tokens (B, T) and lengths (B,), got {tuple(self.tokens.shape)} and "
                f"{tuple(self.lengths.shape)}"
            )
        longest = self.tokens.shape[1]
        if bool(((self.lengths < 0) | (self.lengths > longest)).any()):
            raise ValueError(f"lengths of prompts must lie in [0, {longest}], got {self.lengths.tolist()}")

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Prompts:
        """Return prompts of lists of tokens, padded to the longest."""
        longest = max(map(len, texts), default=0)
        rows = [[*text, *[0] * (longest - len(text))] for text in texts]
        tokens = torch.tensor(rows, dtype=torch.int64).reshape(len(texts), longest)
        return cls(tokens, torch.tensor([len(text) for text in texts], dtype=torch.int64))

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Device of the tokens."""
        return self.tokens.device

    def __getitem__(self, rows: slice | Tensor) -> Prompts:
        """Return some of the prompts."""
        return Prompts(self.tokens[rows], self.lengths[rows], None if self.labels is None else self.labels[rows])

    def to(self, device: torch.device | str) -> Prompts:
        """Return the prompts on a device, without the padding that all of them share."""
        longest = int(self.lengths.max()) if len(self) else 0
        labels = None if self.labels is None else self.labels.to(device)
        return Prompts(self.tokens[:, :longest].to(device), self.lengths.to(device), labels)

    def with_null(self, null_class: int) -> Prompts:
        """Return the prompts, and behind them as many without text: both branches of guidance."""
        labels = self.labels
        return Prompts(
            torch.cat([self.tokens, self.tokens]),
            torch.cat([self.lengths, torch.zeros_like(self.lengths)]),
            None if labels is None else torch.cat([labels, torch.full_like(labels, null_class)]),
        )


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> Prompts:
    """Return the prompts of texts.

    Args:
        texts: one for each sample.
        tokenizer: that of the model's training.
        max_tokens: tokens that the model takes, those that begin and end a text included.

    Raises:
        ValueError: a text is empty or too long, or the tokenizer cannot encode it.
    """
    if blank := [text for text in texts if not text.strip()]:
        raise ValueError(f"a prompt must have words, got {blank[0]!r}")
    prompts, longer = cut_prompts(texts, tokenizer, max_tokens)
    if longer:
        first = texts[longer[0]]
        shown = repr(first if len(first) <= _SHOWN else f"{first[: _SHOWN - 1]}…")
        which = (
            f"the prompt {shown}" if len(texts) == 1 else f"prompt {longer[0] + 1:,} of {len(texts):,}, {shown},"
        )
        more = f" ({len(longer):,} prompts are too long)" if len(longer) > 1 else ""
        raise ValueError(
            f"{which} has {len(tokenizer.encode(first))} tokens, those that begin and end it included, but the "
            f"model takes at most {max_tokens}{more}"
        )
    return prompts


def cut_prompts(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> tuple[Prompts, list[int]]:
    """Return the prompts of texts, and the places of longer ones, which are cut at their end as in training.

    Args:
        texts: one for each sample.
        tokenizer: that of the model's training.
        max_tokens: tokens that the model takes, those that begin and end a text included.

    Raises:
        ValueError: the tokenizer cannot encode a text.
    """
    rows = tokenizer.encode_rows(texts, max_tokens)
    tokens, lengths = torch.from_numpy(rows.tokens).long(), torch.from_numpy(rows.lengths).long()
    longest = int(lengths.max()) if len(texts) else 0
    return Prompts(tokens[:, :longest], lengths), rows.cut.nonzero()[0].tolist()
