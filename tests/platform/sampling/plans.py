"""A plan of samples of the tiny model, and images to stand for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from causalfusion import DiffusionConfig, SamplingConfig, preset
from causalfusion_platform.data.manifest import AutoencoderId
from causalfusion_platform.sampling.pixels import Pixels
from causalfusion_platform.sampling.sample_set import SamplePlan


def make_plan(**changes: Any) -> SamplePlan:
    """Return a plan for 10 samples in batches of 2."""
    fields: dict[str, Any] = {
        "num": 10,
        "seed": 11,
        "labels": "balanced",
        "classes": None,
        "uint8": "round",
        "precision": "fp32",
        "batch_size": 2,
        "sampling": SamplingConfig(num_inference_steps=3, num_ar_steps=2, guidance_scale=1.5),
        "diffusion": DiffusionConfig(num_train_steps=100),
        "model": preset("tiny"),
        "weights_sha256": "0" * 64,
        "weights": Path("/somewhere/weights"),
        "autoencoder": AutoencoderId(name="identity", scale=1.0),
        "vae": None,
        "image_size": 8,
        "versions": {"torch": "2"},
    }
    return SamplePlan(**{**fields, **changes})


def images_of(plan: SamplePlan) -> Pixels:
    """Return random images in place of a plan's."""
    shape = (plan.num, plan.image_size, plan.image_size, 3)
    return np.random.default_rng(plan.seed).integers(0, 256, shape, dtype=np.uint8)
