"""Settings of the transformer blocks in training: compiled, or recomputed in the backward pass."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

MOST_LENGTHS = 16
"""Lengths of sequences up to which code is compiled for each. With more, one code serves any length."""


def set_up_blocks(model: nn.Module, *, compiled: bool, recomputed: bool, lengths: int | None = None) -> None:
    """Change how each block of the model is run. Its modules and the names of its parameters stay.

    Args:
        model: its `blocks`, or those of its `backbone`, are changed. A model without them is left as it is.
        compiled: with torch.compile, each block as one graph. Blocks of one kind share their code.
        recomputed: keep a block's input alone, and compute the rest again in the backward pass.
        lengths: number of lengths of the sequences, which all have as many rows. For up to 16 of them code is
            compiled for each length. None, or more: code for any length and any number of rows.
    """
    few = lengths is not None and lengths <= MOST_LENGTHS
    if compiled:
        _allow_compilations(lengths if few and lengths else MOST_LENGTHS)
    for block in blocks_of(model):
        forward = block.forward
        if compiled:
            forward = torch.compile(forward, fullgraph=True, dynamic=not few)
        if recomputed:
            # Not reentrant: inputs need no gradient, and the hooks of ZeRO 3 gather the parameters once more.
            forward = partial(checkpoint, forward, use_reentrant=False)
        block.forward = forward


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """Return the transformer blocks of a model, or those of the backbone of a fine-tuned one. Others have none."""
    return tuple(getattr(getattr(model, "backbone", model), "blocks", ()))


def _allow_compilations(lengths: int) -> None:
    """Raise torch's limit of 8 graphs for one function. A block has some for each length: see `warm_up`."""
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 * lengths)


class Recompilations:
    """Count of the graphs that are compiled after the warm-up. Each of them stops training for seconds."""

    def __init__(self) -> None:
        self.before: int | None = None

    def begin(self) -> None:
        """Count from now on, if a count has not begun."""
        if self.before is None:
            self.before = _graphs()

    def count(self) -> int:
        """Return the graphs since the beginning, and log the first of them."""
        before = self.before or 0
        found = _graphs() - before
        if found and not self.told:
            self.told = True
            logger.warning(
                f"torch.compile made {found} more graphs after the first step; each stops training for seconds\n"
                f"  TORCH_LOGS=recompiles says why. Fewer lengths of sequences: objective.sequence_multiple=64"
            )
        return found

    told = False
    """Whether a recompilation was logged."""


def _graphs() -> int:
    """Return the number of graphs that torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # importing it takes a second
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
