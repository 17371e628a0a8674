"""Import and export of checkpoints of other code, recognised by the names of their tensors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, get_args

from causalfusion import PRESETS, CausalFusion, CausalFusionConfig, DiT, ModelConfig, count_parameters
from causalfusion.config import PositionEmbedding
from causalfusion.weights import export_dit, export_release, import_dit, import_release, load_weights, save_weights
from causalfusion.weights.checkpoint_file import CheckpointNotice, read_state
from causalfusion.weights.vae import MAR_SCALE, import_vae

from ..config.errors import UserError
from .find import find_weights

_Arguments = ParamSpec("_Arguments")
_POSITIONS = ("auto", *get_args(PositionEmbedding))


def _with_notices(read: Callable[_Arguments, str]) -> Callable[_Arguments, str]:
    """Add the notices of reading a checkpoint to the description that a function returns."""

    @functools.wraps(read)
    def told(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CheckpointNotice)
            description = read(*args, **kwargs)
        notices = [str(one.message) for one in caught if issubclass(one.category, CheckpointNotice)]
        for other in caught:
            if not issubclass(other.category, CheckpointNotice):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        return "\n".join([description, *dict.fromkeys(notices)])

    return told


@_with_notices
def import_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    preset: str | None,
    heads: int | None,
    patch_size: int | None,
    use_ema: bool,
    positions: str,
) -> str:
    """Read a checkpoint of other code, write it into `out`, and return a description of it, with all notices.

    Raises:
        UserError: the format is unknown, the file does not fit, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty\n  name another folder, or remove it")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"no model preset {preset!r}\n  presets: {', '.join(PRESETS)}")
    if positions not in _POSITIONS:
        raise UserError(f"--positions is {positions!r}; allowed: {', '.join(_POSITIONS)}")
    config = PRESETS[preset] if preset else None
    try:
        names = set(read_state(checkpoint, prefer=("ema", "model", "state_dict")))
        if "x_proj.weight" in names:
            wanted = _causalfusion(config, preset)
            model = import_release(
                checkpoint,
                heads=heads,
                patch_size=patch_size,
                config=wanted,
                use_ema=use_ema,
                position_embedding=positions,  # type: ignore[arg-type]
            )
            return _write(model, out, "a CausalFusion of the paper's authors")
        if "x_embedder.proj.weight" in names:
            if heads is None and config is None:
                raise UserError(
                    f"{checkpoint} is a DiT, and no tensor tells its heads\n"
                    f"  add --heads N (DiT-S: 6, B: 12, L and XL: 16) or --preset NAME"
                )
            dit = import_dit(
                checkpoint,
                num_heads=heads or (config.num_heads if config else 0),
                patch_size=patch_size,
                use_ema=use_ema,
            )
            _check_fits(dit.config, config, preset, checkpoint)
            return _write(dit, out, "a DiT")
        if "encoder.conv_in.weight" in names:
            if preset is not None:
                raise ValueError(f"{checkpoint} is an autoencoder, not preset {preset}")
            vae = import_vae(checkpoint)
            vae.save_pretrained(out, safe_serialization=True)
            whose = "MAR's" if vae.config.scaling_factor == MAR_SCALE else "SD's"
            return (
                f"{checkpoint}: {whose} KL VAE, {vae.config.latent_channels} latent channels, scale "
                f"{vae.config.scaling_factor}\n{out}: a diffusers AutoencoderKL; use it with --vae {out}"
            )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    shown = ", ".join(sorted(names)[:6])
    raise UserError(
        f"{checkpoint} is of no known code; its tensors: {shown} …\n"
        f"  known: CausalFusion of the paper's authors (x_proj…), facebookresearch/DiT (x_embedder…), MAR's KL-16 "
        f"and SD's VAE (encoder.conv_in…)"
    )


def export_checkpoint(source: Path, out: Path) -> str:
    """Write weights in the format of the code that the model comes from, and return a description.

    Raises:
        UserError: no weights were found, `out` exists, or that code does not have such a model.
    """
    folder = find_weights(source).folder
    if out.exists():
        raise UserError(f"{out} exists\n  name another file, or remove it")
    try:
        model = load_weights(folder)
        if isinstance(model, DiT):
            export_dit(model, out)
            return f"{folder} → {out}: as facebookresearch/DiT reads it"
        export_release(model, out)
    except (RuntimeError, ValueError) as error:
        raise UserError(str(error)) from error
    entries = "" if out.suffix == ".safetensors" else ", under model and ema"
    return f"{folder} → {out}: as the code of the paper's authors reads it{entries}"


def _causalfusion(config: ModelConfig | None, preset: str | None) -> CausalFusionConfig | None:
    if config is not None and not isinstance(config, CausalFusionConfig):
        raise ValueError(f"the checkpoint is a CausalFusion, but preset {preset} is a DiT")
    return config


def _check_fits(found: ModelConfig, wanted: ModelConfig | None, preset: str | None, checkpoint: Path) -> None:
    if wanted is None or found == wanted:
        return
    ours, theirs = vars(wanted), vars(found)
    differ = [
        f"{key} is {theirs.get(key)}, in {preset} {ours[key]}" for key in ours if ours[key] != theirs.get(key)
    ]
    raise ValueError(f"{checkpoint} is not {preset}: {'; '.join(differ)}")


def _write(model: CausalFusion | DiT, out: Path, what: str) -> str:
    save_weights(out, model.config, model.state_dict())
    size = model.config
    known = next((name for name, config in PRESETS.items() if config == size), None)
    return (
        f"{what}: {count_parameters(size):,} parameters, width {size.hidden_size}, depth {size.depth}, "
        f"{size.num_heads} heads, latents {size.in_channels}×{size.input_size}×{size.input_size}, patch "
        f"{size.patch_size}, {size.num_classes} classes{f' (preset {known})' if known else ''}\n"
        f"{out}: model.safetensors and config.json"
    )
