"""Checkpoints in the format of the paper's authors: import and export.

A file is a `torch.save` of a state dict, or of a dict with one under "ema" and one under "model". Names differ from
ours. Tensors are copied bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..config import CausalFusionConfig, PositionEmbedding
from ..embed import sinusoids_2d
from ..transformer import CausalFusion
from .checkpoint_file import CheckpointNotice, numbers_in, read_state, report_mismatch, rounding, write_state

# The release's names → ours, as prefixes.
_PREFIXES = {
    "x_proj.": "patch_embed.",
    "t_embedder.": "time_embed.",
    "y_embedder.embedding_table.": "class_tokens.table.",
    "cond_pos_embed": "class_tokens.positions",
    "pos_embed": "positions",
    "final_layer.0.": "norm.",
    "final_layer.1.": "head.",
}
_IN_BLOCKS = {".mlp.fc1.": ".mlp.0.", ".mlp.fc2.": ".mlp.2."}
_BATCHED = ("positions", "class_tokens.positions")  # the release keeps a leading axis of 1
# An average at decay 0.9999 adds up the rounding of 1e4 steps: measured 1.7e-4 (after 5,000), at worst 6e-4.
_EMA_DRIFT = 1e-3
# Tensors that all sizes are read from, and their axes.
_SIZED_BY = {
    "x_proj.weight": 2,
    "pos_embed": 3,
    "cond_pos_embed": 3,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.attn.q_norm.weight": 1,
    "blocks.0.mlp.fc1.weight": 2,
}


def import_release(
    path: Path | str,
    *,
    heads: int | None = None,
    patch_size: int | None = None,
    config: CausalFusionConfig | None = None,
    use_ema: bool = True,
    position_embedding: PositionEmbedding | Literal["auto"] = "auto",
) -> CausalFusion:
    """Build a CausalFusion from a checkpoint of the authors' code, in evaluation mode.

    Sizes are inferred from the shapes of tensors, the number of heads from the QK norms. Given heads are checked. A
    patch of 16 numbers can be 4×4×1, 2×2×4 or 1×1×16. In such a case `patch_size` is required.

    Args:
        patch_size: side of a patch, in latent pixels.
        config: a configuration that the checkpoint must fit, in place of inferred sizes.
        use_ema: take the EMA weights of a checkpoint that has both.
        position_embedding: `auto` follows `config`. Without `config` it reads positions as sinusoids if they are
            equal bit for bit in the checkpoint's arithmetic, otherwise as learned. The release's EMA also averages
            frozen positions, and rounding errors add up. `sinusoidal` therefore accepts positions within 1e-3 and
            replaces them by sinusoids. `auto` tells of such positions with a `CheckpointNotice`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file needs pickled code, keys or shapes differ from those of a CausalFusion (they are listed
            by name), a size cannot be inferred, or the release does not have models such as `config`.
    """
    path = Path(path)
    state = read_state(path, prefer=("ema", "model") if use_ema else ("model", "ema"))
    if config is None:
        config = _infer(state, path, heads=heads, patch_size=patch_size)
    else:
        _check_kind(config)
        if config.class_token_repeat > 1:
            raise ValueError(
                f"the release repeats no class tokens: want class_tokens={config.num_class_tokens}, "
                f"class_token_repeat=1, not {config.class_tokens} and {config.class_token_repeat}"
            )
        if position_embedding == "auto":
            position_embedding = config.position_embedding
    positions = state.get("pos_embed")
    if positions is not None and positions.numel() == config.num_tokens * config.hidden_size:
        table = sinusoids_2d(config.hidden_size, config.grid_size, config.grid_size)
        config = _with_positions(config, positions.view_as(table), table, position_embedding, path)
    with torch.device("meta"):
        model = CausalFusion(config)
    report_mismatch({name: t.shape for name, t in _to_release(model).items()}, _shapes(state), path)
    ours = {_our_name(name): tensor for name, tensor in state.items()}
    ours = {name: (tensor[0] if name in _BATCHED else tensor).clone() for name, tensor in ours.items()}
    if config.position_embedding == "sinusoidal":
        del ours["positions"]
    model = CausalFusion(config)
    model.load_state_dict(ours)
    return model.eval()


def export_release(model: CausalFusion, path: Path | str) -> None:
    """Write a model's weights in the format of the authors' code, under "model" and "ema".

    A `.safetensors` file holds them once, without these entries. The release repeats no class tokens (Table 8).
    Our n tokens repeated r times become n · r equivalent tokens.

    Raises:
        ValueError: the release does not have such a model: it has text, a time token, or no QK norm.
    """
    _check_kind(model.config)
    write_state(Path(path), _to_release(model), entries=("model", "ema"))


def _check_kind(config: CausalFusionConfig) -> None:
    if config.text is not None or config.architecture != "causalfusion":
        raise ValueError("the release has models of classes only, and this one has text")
    if config.time_conditioning != "embedding" or not config.qk_norm:
        raise ValueError(
            "the release has no model with a time token or without QK norm; got "
            f"time_conditioning={config.time_conditioning}, qk_norm={config.qk_norm}"
        )


def _to_release(model: CausalFusion) -> dict[str, Tensor]:
    """Return a model's tensors under the release's names."""
    tensors = {**model.state_dict(), "positions": model.positions}
    table = tensors["class_tokens.table.weight"]
    tensors["class_tokens.table.weight"] = table.repeat(1, model.config.class_token_repeat)
    return {_release_name(name): tensor[None] if name in _BATCHED else tensor for name, tensor in tensors.items()}


def _our_name(name: str) -> str:
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    for theirs, ours in _IN_BLOCKS.items():
        name = name.replace(theirs, ours)
    return name


def _release_name(name: str) -> str:
    for theirs, ours in _PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    for theirs, ours in _IN_BLOCKS.items():
        name = name.replace(ours, theirs)
    return name


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _infer(
    state: Mapping[str, Tensor], path: Path, *, heads: int | None, patch_size: int | None
) -> CausalFusionConfig:
    """Infer every size from the shapes of tensors."""
    missing = [name for name in _SIZED_BY if name not in state]
    if missing:
        raise ValueError(f"{path} is not a CausalFusion checkpoint of the authors' code: no {', '.join(missing)}")
    for name, axes in _SIZED_BY.items():
        if state[name].ndim != axes:
            raise ValueError(f"{path}: {name} must have {axes} axes, got shape {tuple(state[name].shape)}")
    width, token = state["x_proj.weight"].shape
    num_tokens, head_dim = state["pos_embed"].shape[1], len(state["blocks.0.attn.q_norm.weight"])
    grid = math.isqrt(num_tokens)
    if grid * grid != num_tokens:
        raise ValueError(f"{path}: {num_tokens} positions are not a square grid of patches")
    if heads is not None and heads * head_dim != width:
        raise ValueError(
            f"{path}: {heads} heads do not fit; width {width} with heads of {head_dim} makes {width // head_dim}"
        )
    readings = [p for p in range(1, math.isqrt(token) + 1) if token % (p * p) == 0]
    if patch_size is None and len(readings) > 1:
        ways = ", ".join(f"{p} (latents {token // p**2}×{grid * p}×{grid * p})" for p in readings)
        raise ValueError(f"{path}: a patch has {token} numbers; name the patch size (--patch-size): {ways}")
    patch_size = readings[0] if patch_size is None else patch_size
    if patch_size not in readings:
        raise ValueError(f"{path}: a patch of {token} numbers cannot have side {patch_size}; can: {readings}")
    classes, class_width = state["y_embedder.embedding_table.weight"].shape
    layers = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return CausalFusionConfig(
        input_size=grid * patch_size,
        in_channels=token // patch_size**2,
        patch_size=patch_size,
        hidden_size=width,
        depth=len(layers),
        num_heads=width // head_dim,
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
        num_classes=classes - 1,  # the last row is the null class
        class_tokens=class_width // width,
        position_embedding="learnable",
    )


def _with_positions(
    config: CausalFusionConfig,
    positions: Tensor,
    table: Tensor,
    wanted: PositionEmbedding | Literal["auto"],
    path: Path,
) -> CausalFusionConfig:
    """Return the configuration with the kind of the checkpoint's positions."""
    kind = numbers_in(positions)  # a checkpoint cast to 16 bits holds the table's numbers in 16 bits
    off = float((positions - table).abs().max())
    near = off <= _EMA_DRIFT + rounding(kind)  # false for NaN
    if wanted == "auto":
        wanted = "sinusoidal" if torch.equal(positions.to(kind), table.to(kind)) else "learnable"
        if near and wanted == "learnable":
            warnings.warn(
                f"{path}: its positions are within {off:.1g} of the sinusoids, as averages of frozen ones are, and "
                f"are taken for learned ones; if they were frozen, import them as sinusoidal "
                f"(--positions sinusoidal)",
                CheckpointNotice,
                stacklevel=3,
            )
    elif wanted == "sinusoidal" and not near:
        raise ValueError(f"the checkpoint's positions are not sinusoids: they are up to {off:.2g} off")
    return dataclasses.replace(config, position_embedding=wanted)
