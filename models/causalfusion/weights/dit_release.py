"""Checkpoints in the layout of DiT's release (github.com/facebookresearch/DiT): import and export.

Names differ, the function is the same. The release embeds patches with a convolution. Its kernel
(D, channels, rows, columns) is our linear layer's weight (D, rows · columns · channels).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ..baselines.dit import DiT, DiTConfig
from .checkpoint_file import numbers_in, read_state, report_mismatch, rounding, write_state

# Our modules and the release's.
_MODULES = {
    "patch_embed": "x_embedder.proj",
    "time_embed.mlp.0": "t_embedder.mlp.0",
    "time_embed.mlp.2": "t_embedder.mlp.2",
    "class_embed": "y_embedder.embedding_table",
    "modulation": "final_layer.adaLN_modulation.1",
    "head": "final_layer.linear",
}
_BLOCK_MODULES = {
    "modulation": "adaLN_modulation.1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_PATCH_KERNEL = "x_embedder.proj.weight"
_POSITIONS = "pos_embed"

# Tensors that all sizes are read from, and their axes.
_SIZED_BY = {
    _PATCH_KERNEL: 4,
    _POSITIONS: 3,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "final_layer.linear.weight": 2,
}


def import_dit(path: Path, *, num_heads: int, patch_size: int | None = None, use_ema: bool = True) -> DiT:
    """Return the model of a checkpoint of DiT's release, in float32 and in evaluation mode.

    Args:
        path: a bare state dict, or a dictionary that holds one as "ema" or "model".
        num_heads: attention heads (DiT-S: 6, B: 12, L and XL: 16), which no tensor's shape tells.
        patch_size: the required patch size. None accepts that of the checkpoint.
        use_ema: read "ema" if it exists, else "model".

    Raises:
        ValueError: keys are missing, unknown or wrongly shaped, a size does not fit, or the checkpoint's position
            embedding differs from the sinusoids, beyond the rounding of a cast to 16 bits.
    """
    state = read_state(path, prefer=("ema", "model") if use_ema else ("model",))
    config = _read_sizes(state, num_heads, path)
    if patch_size is not None and config.patch_size != patch_size:
        raise ValueError(f"{path}: wanted patch size {patch_size}, but the patch kernel's is {config.patch_size}")
    with torch.device("meta"):
        wanted = to_release(DiT(config))
    report_mismatch(
        {name: tensor.shape for name, tensor in wanted.items()},
        {name: tensor.shape for name, tensor in state.items()},
        path,
    )
    model = DiT(config)
    positions = state[_POSITIONS][0]
    error = float((positions - model.positions).abs().max())
    if not error <= 1e-6 + rounding(numbers_in(positions)):  # a checkpoint may have been cast to 16 bits
        raise ValueError(
            f"{path}: {_POSITIONS} must be the 2-D sinusoids to within 1e-6, but is off by {error:.3g}"
        )
    ours = {name: state[release_name(name)] for name in model.state_dict()}
    ours["patch_embed.weight"] = rearrange(ours["patch_embed.weight"], "d c p q -> d (p q c)")
    model.load_state_dict(ours)
    return model.eval()


def export_dit(model: DiT, path: Path) -> None:
    """Write a model as a bare state dict in the release's layout.

    A `.safetensors` file is written as such. Any other is written with `torch.save`, as the release's scripts need.
    """
    write_state(path, to_release(model))


def to_release(model: DiT) -> dict[str, Tensor]:
    """Return a model's state dict in the release's layout."""
    state = {release_name(name): tensor.detach() for name, tensor in model.state_dict().items()}
    p = model.config.patch_size
    kernel = rearrange(state[_PATCH_KERNEL], "d (p q c) -> d c p q", p=p, q=p)
    return {**state, _PATCH_KERNEL: kernel.contiguous(), _POSITIONS: model.positions[None]}


def release_name(name: str) -> str:
    """Return the release's name of one of our parameters."""
    module, _, parameter = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{_MODULES[module]}.{parameter}"
    _, layer, inner = module.split(".", 2)
    return f"blocks.{layer}.{_BLOCK_MODULES[inner]}.{parameter}"


def _read_sizes(state: dict[str, Tensor], num_heads: int, path: Path) -> DiTConfig:
    """Infer every size but the number of heads from the shapes of a release's state dict."""
    for name, axes in _SIZED_BY.items():
        if name not in state:
            raise ValueError(f"{path} is not a checkpoint of DiT's release: it has no {name}")
        if state[name].ndim != axes:
            raise ValueError(f"{path}: {name} must have {axes} axes, got shape {tuple(state[name].shape)}")
    width, channels, patch, _ = state[_PATCH_KERNEL].shape
    tokens = state[_POSITIONS].shape[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{path}: {_POSITIONS} must have a square number of tokens, got {tokens}")
    outputs, token_dim = state["final_layer.linear.weight"].shape[0], patch**2 * channels
    if outputs not in (token_dim, 2 * token_dim):
        raise ValueError(
            f"{path}: final_layer.linear must have {token_dim} outputs, or twice as many, got {outputs}"
        )
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    return DiTConfig(
        input_size=math.isqrt(tokens) * patch,
        in_channels=channels,
        patch_size=patch,
        hidden_size=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=num_heads,
        mlp_ratio=hidden / width,
        num_classes=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        learn_sigma=outputs == 2 * token_dim,
    )
