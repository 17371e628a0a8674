"""The settings that the paper prints, typed from it, and what each row of a table changes of them."""

from __future__ import annotations

from typing import Any

from tests.platform.config.trees import shipped

from causalfusion_platform.config.compose import flatten
from causalfusion_platform.config.schema import Experiment

IMAGENET = 1_281_167
EPOCHS_240, EPOCHS_800 = 240 * IMAGENET, 800 * IMAGENET

# (width, heads, layers, class tokens, in channels, latent, patch), as Tables 9 and 10 have them.
_MODEL = ("hidden_size", "num_heads", "depth", "class_tokens", "in_channels", "input_size", "patch_size")

TABLE_9: dict[str, Any] = {
    "model.architecture": "causalfusion",
    **{f"model.{key}": value for key, value in zip(_MODEL, (1024, 16, 24, 4, 4, 256 // 8, 2), strict=True)},
    "model.mlp_ratio": 4.0,
    "model.num_classes": 1000,
    "model.class_token_repeat": 1,
    "model.position_embedding": "sinusoidal",
    "model.qk_norm": True,
    "model.time_conditioning": "embedding",
    "data.path": "shards/imagenet256-sd",
    "data.flip": True,
    "data.posterior": "sample",
    "diffusion.num_train_steps": 1000,
    "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02,
    "diffusion.beta_schedule": "linear",
    "diffusion.prediction": "epsilon",
    "diffusion.variance": "fixed_large",
    "objective.num_ar_steps": None,
    "objective.ar_decay": 0.9,
    "objective.ar_weight": 2.0,
    "objective.ar_weight_along": "step",
    "objective.ar_weight_shape": "linear",
    "objective.patch_order": "random",
    "objective.order_block": 4,
    "objective.time_sampling": "shared",
    "objective.time_copies": 1,
    "objective.class_dropout": 0.1,  # this, ε, clipping and EMA: the release
    "optim.base_lr": 1e-4,
    "optim.betas": [0.9, 0.95],
    "optim.eps": 1e-15,
    "optim.weight_decay": 0.0,
    "optim.clip_grad_norm": 1.0,
    "optim.warmup_epochs": 40,
    "optim.warmup_images": 0,
    "optim.ema_decay": 0.9999,
    "optim.ema_warmup": False,
    "train.images": EPOCHS_240,
    "train.global_batch_size": 2048,
    "train.precision": "bf16",
    "sampling.num_ar_steps": 1,
    "sampling.step_sizes": "equal",
    "sampling.num_inference_steps": 250,
    "sampling.step_schedule": "constant",
    "sampling.last_inference_steps": None,
    "sampling.sampler": "ddpm",
    "sampling.guidance_scale": 1.0,
    "sampling.guidance_schedule": "constant",
    "sampling.guidance_interval": None,
    "sampling.patch_order": "random",
    "sampling.order_block": 4,
    "seed": 0,
}
"""Settings of the ablations, with the choices of Section 5."""

TABLE_10: dict[str, Any] = TABLE_9 | {
    "model.class_tokens": 64,
    "model.position_embedding": "learnable",
    "model.in_channels": 16,
    "model.input_size": 256 // 16,
    "model.patch_size": 1,
    "data.path": "shards/imagenet256-mar",
    "train.images": EPOCHS_800,
    "sampling.guidance_scale": 1.5,  # of the columns with guidance; the paper prints none
}
"""Settings of the systems; L."""

DIGITS: dict[str, Any] = TABLE_9 | {
    **{f"model.{key}": value for key, value in zip(_MODEL, (96, 3, 4, 4, 1, 8, 2), strict=True)},
    "model.num_classes": 10,
    "data.path": "shards/digits",
    "data.flip": None,
    "optim.base_lr": 1.6e-2,
    "optim.eps": 1e-8,
    "optim.warmup_epochs": None,
    "optim.warmup_images": 3200,
    "optim.ema_decay": 0.99,
    "optim.ema_warmup": True,
    "train.images": 25_600,
    "train.global_batch_size": 64,
    "train.precision": "auto",
    "sampling.num_inference_steps": 50,
}
"""The same at digits scale."""

_TEXT: dict[str, Any] = {
    "model.class_tokens": 0,
    "model.text.tied": True,
    "model.text.tokenizer_sha256": None,
    "objective.class_dropout": 0.0,
    "objective.text.max_time": None,
}
TABLE_11: dict[str, Any] = (
    TABLE_9
    | _TEXT
    | {
        "model.text.vocabulary": 128_256,  # LLaMA-3's
        "model.text.max_tokens": 35,
        "data.path": "shards/imagenet256-sd-captions",
        "objective.text.share": 0.1,
        "objective.text.weight": 0.01,
    }
)
"""Settings of the models of text and images."""

DIGITS_TEXT: dict[str, Any] = (
    DIGITS
    | _TEXT
    | {
        "model.text.vocabulary": 384,
        "model.text.max_tokens": 16,
        "data.path": "shards/digits-captions",
        "objective.text.share": 0.3,
        "objective.text.weight": 0.1,
        "train.images": 64_000,
        "sampling.num_inference_steps": 30,
    }
)
"""The same at digits scale."""

_ONE_STEP: dict[str, Any] = {"objective.num_ar_steps": 1, "objective.ar_weight": 1.0}
_TIME_TOKEN: dict[str, Any] = {"model.time_conditioning": "token"}
_NO_QK_NORM: dict[str, Any] = {"model.qk_norm": False}
_IN_CONTEXT: dict[str, Any] = {"model.class_tokens": 1, **_TIME_TOKEN, **_NO_QK_NORM}
_NO_WARMUP: dict[str, dict[str, Any]] = {
    "paper": {"optim.warmup_epochs": None},
    "digits": {"optim.warmup_images": 0},
}
_NATIVE: dict[str, dict[str, Any]] = {
    "paper": {"optim.eps": 1e-8, "train.global_batch_size": 256, **_NO_WARMUP["paper"]},
    "digits": _NO_WARMUP["digits"],
}
_SMALL_SYSTEM: dict[str, Any] = {
    "model.class_tokens": 16,
    "model.position_embedding": "learnable",
    "sampling.guidance_scale": 2.5,
}


def _order(kind: str, block: int = 4) -> dict[str, Any]:
    """Train and sample in an order."""
    both = {"patch_order": kind, "order_block": block}
    return {f"{section}.{key}": value for section in ("objective", "sampling") for key, value in both.items()}


def _fixed(steps: int) -> dict[str, Any]:
    return {"objective.num_ar_steps": steps, "objective.ar_weight": 1.0, "sampling.num_ar_steps": steps}


def _decay(gamma: float) -> dict[str, Any]:
    return {"objective.ar_decay": gamma, "objective.ar_weight": 1.0}


def _times(copies: int, scale: str) -> dict[str, Any]:
    """Cut the batch, the images and the images of warmup; keep steps and learning rate."""
    base, warmup = (TABLE_9, "optim.warmup_epochs") if scale == "paper" else (DIGITS, "optim.warmup_images")
    cut = {key: base[key] // copies for key in ("train.global_batch_size", "train.images", warmup)}
    copied = {"objective.time_sampling": "per_step", "objective.time_copies": copies}
    return cut | copied | {"optim.base_lr": base["optim.base_lr"] * copies}


def _size(width: int, heads: int, depth: int) -> dict[str, Any]:
    return {"model.hidden_size": width, "model.num_heads": heads, "model.depth": depth}


def settings(scale: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Map `table/row` to the settings that a row starts from, and to what it changes of them."""
    paper = scale == "paper"
    base, system = (TABLE_9, TABLE_10) if paper else (DIGITS, DIGITS | _SMALL_SYSTEM)
    no_warmup = _NO_WARMUP[scale]
    native = {"optim.betas": [0.9, 0.999], "optim.clip_grad_norm": 0, **_NATIVE[scale], **_ONE_STEP}
    last, many, half = (256, 64, 16) if paper else (16, 16, 8)
    changes: dict[str, dict[str, Any]] = {
        "table1/dit": native | {"model.architecture": "dit"},
        "table1/in-context": native | _IN_CONTEXT,
        "table1/new-recipe": _ONE_STEP | _IN_CONTEXT | no_warmup,
        "table1/t-embedding": _ONE_STEP | _NO_QK_NORM | no_warmup,
        "table1/qk-norm": _ONE_STEP | _TIME_TOKEN | no_warmup,
        "table1/lr-warmup": _ONE_STEP | _TIME_TOKEN | _NO_QK_NORM,
        "table1/all": _ONE_STEP,
        "table2/random": _decay(1.0),
        **{f"table3a/gamma-{gamma}": _decay(gamma) for gamma in (1.0, 0.95, 0.9, 0.85, 0.8)},
        "table3b/raster": _decay(0.9) | _order("raster"),
        "table3b/block-8x8": _decay(0.9) | _order("blockwise", 8 if paper else 2),
        "table3b/block-4x4": _decay(0.9) | _order("blockwise", 4),
        "table3b/dilated": _decay(0.9) | _order("dilated", 4 if paper else 2),
        "table3b/random": _decay(0.9),
        **{f"table3c/lambda-{weight:g}": {"objective.ar_weight": weight} for weight in (1, 1.5, 2, 2.5, 3)},
        "table6b/dit": native | {"model.architecture": "dit"},
        "table6b/causalfusion": {"model.class_tokens": many},
        "table7/shared": {},
        "table7/per-step": {"objective.time_sampling": "per_step"},
        "table7/times-4": _times(4, scale),
        "table7/times-8": _times(8, scale),
        "table8/tokens-4": {},
        "table8/tokens-16": {"model.class_tokens": half},
        "table8/tokens-64": {"model.class_tokens": many},
        "table8/repeat-1x64": {"model.class_tokens": 1, "model.class_token_repeat": many},
        "table8/repeat-4x16": {"model.class_tokens": 4, "model.class_token_repeat": many // 4},
        "figure4/random": _decay(1.0),
    }
    for steps in (1, 2, 4, 8, 256):
        changes |= {f"{table}/s-{steps}": _fixed(min(steps, last)) for table in ("table2", "figure4")}
    systems: dict[str, dict[str, Any]] = {
        "table4/l": {},
        "table4/xl": _size(1280, 20, 32) if paper else _size(128, 4, 5),
        "table5/h": _size(1408, 22, 40) if paper else _size(128, 4, 7),
    }
    systems["table5/h-interval"] = systems["table5/h"] | {"sampling.guidance_interval": [55, 353]}
    last_row = {"diffusion.prediction": "x0"}
    if paper:
        systems["table4/xl-512"] = systems["table4/xl"] | {
            "model.input_size": 512 // 16,
            "data.path": "shards/imagenet512-mar",
        }
        systems["table6b/causalfusion-x0"] = last_row | {
            "train.images": EPOCHS_240,
            "sampling.guidance_scale": 1.0,
        }
    else:
        changes["table6b/causalfusion-x0"] = last_row | {"model.class_tokens": many}
        for row in ("dit", "causalfusion", "causalfusion-x0"):  # 300 digits are for validation
            changes[f"table6b/{row}"] |= {"data.path": "shards/digits-split", "train.images": 51_200}
        del changes["table3b/block-4x4"]
    text = TABLE_11 if paper else DIGITS_TEXT
    texts: dict[str, dict[str, Any]] = {
        "table6a/causalfusion": {},
        "table6a/transfusion": _ONE_STEP | {"model.architecture": "transfusion", "objective.text.max_time": 500},
    }
    texts["figure5/causalfusion"] = _size(1280, 20, 32) | {"sampling.guidance_scale": 3.0} if paper else {}
    if not paper:
        share = {"objective.text.share": 0.1, "objective.text.weight": 0.01}
        texts |= {
            f"{row}-paper-share": change | share for row, change in texts.items() if row.startswith("table6a")
        }
    groups = ((base, changes), (system, systems), (text, texts))
    return {row: (start, own) for start, rows in groups for row, own in rows.items()}


# The rows as they are shipped


def experiment(scale: str, row: str) -> Experiment:
    """Return a row, given as `table/row`."""
    table, file = row.split("/")
    return shipped(f"{table}/{scale}/{file}")


def flat(of: Experiment) -> dict[str, Any]:
    """Return dotted keys and values, without names and with no trace of the working directory."""
    tree = of.model_dump(mode="json", exclude={"name", "description", "runs"})
    for key, path in (("path", of.data.path), ("validation", of.data.validation), ("tokenizer", of.data.tokenizer)):
        tree["data"][key] = None if path is None else "/".join(path.parts[-2:])
    return dict(flatten(tree))
