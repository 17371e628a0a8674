"""Text tokens of a transformer: their embeddings, and the logits of the next one.

Shapes: B samples, T text tokens, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import TextConfig


class TextTokens(nn.Module):
    """Table of token embeddings with learned positions, and the output layer (Table 11).

    One module holds both ends, because ZeRO 3 gathers the weights of a module only while it runs.
    """

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.vocabulary, width))
        self.positions = nn.Parameter(torch.empty(config.max_tokens, width))
        self.output = None if config.tied else nn.Parameter(torch.empty(config.vocabulary, width))

    def initialise(self) -> None:
        """Draw all weights from N(0, 0.02²)."""
        for weights in (self.table, self.positions, self.output):
            if weights is not None:
                nn.init.normal_(weights, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Embed tokens, or map hidden states to logits.

        Args:
            x: int64 tokens (B, T), or hidden states (B, T, D) behind the final norm.
            start: position of the first token.

        Returns:
            Embeddings (B, T, D) of tokens, logits (B, T, V) of hidden states.

        Raises:
            ValueError: the tokens end behind the last position.
        """
        if x.is_floating_point():
            return functional.linear(x, self.table if self.output is None else self.output)
        end = start + x.shape[1]
        if end > len(self.positions):
            raise ValueError(f"{end} text tokens, but the model has positions for {len(self.positions)}")
        return functional.embedding(x, self.table) + self.positions[start:end]
