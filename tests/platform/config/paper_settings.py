"""The settings that the paper prints, typed from it, and what each row of a table changes of them."""

from __future__ import annotations

from typing import Any

from tests.platform.config.trees import shipped

from causalfusion_platform.config.compose import flatten
from causalfusion_platform.config.paper_table import Scale
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
    "data.prepare": False,
    "data.validation": None,
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

MNIST_RECIPE: dict[str, Any] = {
    "optim.base_lr": 4.8e-2,
    "optim.warmup_images": 6400,
    "optim.ema_decay": 0.99875,
    "train.images": 80_000,
    "train.global_batch_size": 16,
    "sampling.num_inference_steps": 25,
    "sampling.guidance_scale": 2.5,  # the paper names none
}
"""What a pilot chose for all rows on MNIST."""
MNIST_SAMPLES = 500
"""Samples for each value of a table there, but for those of the systems."""

_SMALL: dict[str, Any] = TABLE_9 | {
    **{f"model.{key}": value for key, value in zip(_MODEL, (96, 3, 4, 4, 1, 8, 2), strict=True)},
    "model.num_classes": 10,
    "data.flip": None,
    "optim.eps": 1e-8,
    "optim.warmup_epochs": None,
    "optim.ema_warmup": True,
    "train.precision": "auto",
}
"""The same for two CPU cores, but for the recipe."""

MNIST: dict[str, Any] = (
    _SMALL
    | MNIST_RECIPE
    | {
        "model.input_size": 16,
        "data.path": "shards/mnist",
        "data.prepare": "mnist",
        "data.validation": "shards/mnist-validation",
    }
)
"""The same at MNIST scale."""

DIGITS: dict[str, Any] = _SMALL | {
    "data.path": "shards/digits",
    "data.prepare": True,
    "optim.base_lr": 1.6e-2,
    "optim.warmup_images": 3200,
    "optim.ema_decay": 0.99,
    "train.images": 25_600,
    "train.global_batch_size": 64,
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
        "data.validation": "shards/coco-karpathy-test",
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
        "data.prepare": "captions",
        "data.validation": "shards/digits-captions-validation",
        "objective.text.share": 0.3,
        "objective.text.weight": 0.1,
        "train.images": 64_000,
        "sampling.num_inference_steps": 30,
    }
)
"""The same at digits scale."""

MNIST_TEXT: dict[str, Any] = (
    MNIST
    | _TEXT
    | {
        "model.text.vocabulary": 384,
        "model.text.max_tokens": 16,
        "data.path": "shards/mnist-captions",
        "data.prepare": "mnist-captions",
        "data.validation": "shards/mnist-captions-validation",
        "objective.text.share": 0.3,
        "objective.text.weight": 0.1,
    }
)
"""The same at MNIST scale."""

_ONE_STEP: dict[str, Any] = {"objective.num_ar_steps": 1, "objective.ar_weight": 1.0}
_TIME_TOKEN: dict[str, Any] = {"model.time_conditioning": "token"}
_NO_QK_NORM: dict[str, Any] = {"model.qk_norm": False}
_IN_CONTEXT: dict[str, Any] = {"model.class_tokens": 1, **_TIME_TOKEN, **_NO_QK_NORM}
_NO_WARMUP: dict[str, Any] = {"optim.warmup_epochs": None, "optim.warmup_images": 0}
_NATIVE: dict[str, Any] = {"optim.betas": [0.9, 0.999], "optim.clip_grad_norm": 0, **_NO_WARMUP, **_ONE_STEP}
_NATIVE_PAPER: dict[str, Any] = _NATIVE | {"optim.eps": 1e-8, "train.global_batch_size": 256}
_DIT: dict[str, Any] = {"model.architecture": "dit"}
_X0: dict[str, Any] = {"diffusion.prediction": "x0"}
_INTERVAL: dict[str, Any] = {"sampling.guidance_interval": [55, 353]}
_MANY: dict[str, Any] = {"model.class_tokens": 16}
_MODELS_6B: dict[str, dict[str, Any]] = {
    "dit": _NATIVE | _DIT,
    "causalfusion": _MANY,
    "causalfusion-x0": _MANY | _X0,
}
"""Rows of Table 6b on two CPU cores."""
_MNIST_SYSTEM: dict[str, Any] = {
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


def _times(copies: int, base: dict[str, Any]) -> dict[str, Any]:
    """Cut the batch, the images and the images of warmup; keep steps and learning rate."""
    warmup = "optim.warmup_images" if base["optim.warmup_epochs"] is None else "optim.warmup_epochs"
    cut = {key: base[key] // copies for key in ("train.global_batch_size", "train.images", warmup)}
    copied = {"objective.time_sampling": "per_step", "objective.time_copies": copies}
    return cut | copied | {"optim.base_lr": base["optim.base_lr"] * copies}


def _size(width: int, heads: int, depth: int) -> dict[str, Any]:
    return {"model.hidden_size": width, "model.num_heads": heads, "model.depth": depth}


Settings = dict[str, tuple[dict[str, Any], dict[str, Any]]]
"""`table/row` → the settings that it starts from, and what it changes of them."""


def settings(scale: Scale) -> Settings:
    """Return the settings of all rows of a scale."""
    match scale:
        case "paper":
            return _paper()
        case "mnist":
            return _mnist()
        case "digits":
            return _digits()


def _paper() -> Settings:
    ablations = _ablations(TABLE_9, _NATIVE_PAPER, tokens=256, blocks=(8, 4), stride=4, class_tokens=(16, 64))
    ablations |= {
        "table6b/dit": _NATIVE_PAPER | _DIT,
        "table6b/causalfusion": {"model.class_tokens": 64},
    }
    xl, h = _size(1280, 20, 32), _size(1408, 22, 40)
    systems: dict[str, dict[str, Any]] = {
        "table4/l": {},
        "table4/xl": xl,
        "table4/xl-512": xl | {"model.input_size": 512 // 16, "data.path": "shards/imagenet512-mar"},
        "table5/h": h,
        "table5/h-interval": h | _INTERVAL,
        "table6b/causalfusion-x0": _X0 | {"train.images": EPOCHS_240, "sampling.guidance_scale": 1.0},
    }
    texts = _texts() | {"figure5/causalfusion": xl | {"sampling.guidance_scale": 3.0}}
    return _from(TABLE_9, ablations) | _from(TABLE_10, systems) | _from(TABLE_11, texts)


def _mnist() -> Settings:
    ablations = _ablations(MNIST, _NATIVE, tokens=64, blocks=(4, 2), stride=2, class_tokens=(8, 16))
    h = _size(128, 4, 7)
    systems = {"table4/l": {}, "table4/xl": _size(128, 4, 5), "table5/h": h, "table5/h-interval": h | _INTERVAL}
    ablations |= {f"table6b/{row}": own for row, own in _MODELS_6B.items()}
    texts = _from(MNIST_TEXT, _small_texts())
    return _from(MNIST, ablations) | _from(MNIST | _MNIST_SYSTEM, systems) | texts


def _digits() -> Settings:
    # 300 digits are for validation
    part = {"data.path": "shards/digits-split", "data.prepare": "split", "train.images": 51_200}
    models = {f"table6b/{row}": own | part for row, own in _MODELS_6B.items()}
    return _from(DIGITS, models) | _from(DIGITS_TEXT, _small_texts())


def _from(start: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Settings:
    return {row: (start, own) for row, own in rows.items()}


def _small_texts() -> dict[str, dict[str, Any]]:
    """Return the rows of Table 6a and of Figure 5 on two CPU cores."""
    texts = _texts()
    share = {"objective.text.share": 0.1, "objective.text.weight": 0.01}
    texts |= {f"{row}-paper-share": change | share for row, change in texts.items()}
    return texts | {"figure5/causalfusion": {}}


def _texts() -> dict[str, dict[str, Any]]:
    """Return the rows of Table 6a."""
    transfusion = {"model.architecture": "transfusion", "objective.text.max_time": 500}
    return {"table6a/causalfusion": {}, "table6a/transfusion": _ONE_STEP | transfusion}


def _ablations(
    base: dict[str, Any],
    native: dict[str, Any],
    *,
    tokens: int,
    blocks: tuple[int, int],
    stride: int,
    class_tokens: tuple[int, int],
) -> dict[str, dict[str, Any]]:
    """Return the rows of all tables but 4 to 6, and of Figure 4.

    Args:
        base: settings that they start from.
        native: DiT's own recipe.
        tokens: of an image.
        blocks: sides of Table 3b's blocks, of half the grid and a quarter.
        stride: of its dilated order.
        class_tokens: the larger two of Table 8.
    """
    half, many = class_tokens
    rows: dict[str, dict[str, Any]] = {
        "table1/dit": native | _DIT,
        "table1/in-context": native | _IN_CONTEXT,
        "table1/new-recipe": _ONE_STEP | _IN_CONTEXT | _NO_WARMUP,
        "table1/t-embedding": _ONE_STEP | _NO_QK_NORM | _NO_WARMUP,
        "table1/qk-norm": _ONE_STEP | _TIME_TOKEN | _NO_WARMUP,
        "table1/lr-warmup": _ONE_STEP | _TIME_TOKEN | _NO_QK_NORM,
        "table1/all": _ONE_STEP,
        "table2/random": _decay(1.0),
        **{f"table3a/gamma-{gamma}": _decay(gamma) for gamma in (1.0, 0.95, 0.9, 0.85, 0.8)},
        "table3b/raster": _decay(0.9) | _order("raster"),
        "table3b/block-8x8": _decay(0.9) | _order("blockwise", blocks[0]),
        "table3b/block-4x4": _decay(0.9) | _order("blockwise", blocks[1]),
        "table3b/dilated": _decay(0.9) | _order("dilated", stride),
        "table3b/random": _decay(0.9),
        **{f"table3c/lambda-{weight:g}": {"objective.ar_weight": weight} for weight in (1, 1.5, 2, 2.5, 3)},
        "table7/shared": {},
        "table7/per-step": {"objective.time_sampling": "per_step"},
        "table7/times-4": _times(4, base),
        "table7/times-8": _times(8, base),
        "table8/tokens-4": {},
        "table8/tokens-16": {"model.class_tokens": half},
        "table8/tokens-64": {"model.class_tokens": many},
        "table8/repeat-1x64": {"model.class_tokens": 1, "model.class_token_repeat": many},
        "table8/repeat-4x16": {"model.class_tokens": 4, "model.class_token_repeat": many // 4},
        "figure4/random": _decay(1.0),
    }
    for steps in (1, 2, 4, 8, 256):
        rows |= {f"{table}/s-{steps}": _fixed(min(steps, tokens)) for table in ("table2", "figure4")}
    return rows


# The rows as they are shipped


def experiment(scale: Scale, row: str) -> Experiment:
    """Return a row, given as `table/row`."""
    table, file = row.split("/")
    return shipped(f"{table}/{scale}/{file}")


def flat(of: Experiment) -> dict[str, Any]:
    """Return dotted keys and values, without names and with no trace of the working directory."""
    tree = of.model_dump(mode="json", exclude={"name", "description", "runs"})
    for key, path in (("path", of.data.path), ("validation", of.data.validation), ("tokenizer", of.data.tokenizer)):
        tree["data"][key] = None if path is None else "/".join(path.parts[-2:])
    return dict(flatten(tree))
