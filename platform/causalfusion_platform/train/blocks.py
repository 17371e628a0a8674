"""Settings of the transformer blocks in training: compiled, or recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from causalfusion import CausalFusion


def set_up_blocks(model: nn.Module, *, compiled: bool, recomputed: bool) -> None:
    """Change how each block of the model is run. Its modules and the names of its parameters stay.

    Args:
        model: its `blocks`, or those of its `backbone`, are changed. A model without them is left as it is.
        compiled: with torch.compile, for any sequence length, which differs from step to step.
        recomputed: keep a block's input alone, and compute the rest again in the backward pass.
    """
    # CausalFusion's last block gets a slice of the tokens to read. torch.compile takes the ends of a slice as
    # constants, so it would compile this block for every length, until torch gives up.
    left_out = model.blocks[-1] if isinstance(model, CausalFusion) else None
    for block in blocks_of(model):
        forward = block.forward
        if compiled and block is not left_out:
            forward = torch.compile(forward, dynamic=True)
        if recomputed:
            # Not reentrant: inputs need no gradient, and the hooks of ZeRO 3 gather the parameters once more.
            forward = partial(checkpoint, forward, use_reentrant=False)
        block.forward = forward


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """Return the transformer blocks of a model, or those of the backbone of a fine-tuned one. Others have none."""
    return tuple(getattr(getattr(model, "backbone", model), "blocks", ()))
