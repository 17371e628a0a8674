"""Guided sampling at several places of the factorization plane, with weights in bf16."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from causalfusion import CausalFusion, CausalFusionConfig, DiffusionConfig, SamplingConfig, sample

from . import roofline
from .ceilings import Ceilings
from .deadline import Deadline
from .report import Report
from .timing import seconds


@dataclass(frozen=True)
class Cases:
    """Cases that are measured: every combination."""

    images: tuple[int, ...]
    ar_steps: tuple[int, ...]
    diffusion_steps: tuple[int, ...]
    """In each AR step, the fewest first. More are computed from them where time is short."""


def measure(
    report: Report,
    name: str,
    config: CausalFusionConfig,
    cases: Cases,
    ceilings: Ceilings,
    device: torch.device,
    deadline: Deadline,
) -> None:
    """Measure images/s of each case. Where time is short, a longer case is scaled from a shorter one."""
    torch.manual_seed(0)
    model = CausalFusion(config).to(device, torch.bfloat16).eval().requires_grad_(False)
    for images, ar_steps in itertools.product(cases.images, cases.ar_steps):
        fewest = cases.diffusion_steps[0]
        _sample(model, images, ar_steps, 2, device)  # kernels are loaded at their first use
        per_step = 0.0
        for steps in cases.diffusion_steps:
            expected = per_step * steps
            deadline.check(5 if steps == fewest else 0, f"sampling {images} images in {ar_steps} AR steps")
            measured = expected < deadline.left / 2
            taken = _sample(model, images, ar_steps, steps, device) if measured else expected
            per_step = taken / steps
            predicted = roofline.sampling_seconds(
                config, ceilings, images=images, ar_steps=ar_steps, diffusion_steps=steps, graphed=False
            )
            report.add(
                "sampling",
                {
                    "model": name,
                    "images": images,
                    "ar_steps": ar_steps,
                    "diffusion_steps": steps,
                    "images_s": images / taken,
                    "predicted": images / predicted,
                    "ms_evaluation": taken / (steps * ar_steps) * 1e3,
                    "measured": measured,
                },
            )


def _sample(model: CausalFusion, images: int, ar_steps: int, steps: int, device: torch.device) -> float:
    """Return the seconds of one guided batch."""
    config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=steps, guidance_scale=3.0)
    labels = torch.arange(images) % model.config.num_classes
    return seconds(lambda: sample(model, labels, config, DiffusionConfig(), seed=0), device)
