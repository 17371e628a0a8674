"""Guided sampling at several places of the factorization plane, with weights in bf16 and recorded passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion import CausalFusion, CausalFusionConfig, DiffusionConfig, SamplingConfig, sample
from causalfusion.factorization.steps import equal_step_sizes
from causalfusion.sampling.recorded import CudaGraphs, Recorder, Recording, Recordings
from causalfusion.weights import cast_copy

from . import roofline
from .ceilings import Ceilings
from .deadline import Deadline
from .report import Report
from .timing import seconds

_GUIDANCE = 3.0


@dataclass(frozen=True)
class Cases:
    """Cases that are measured: every combination."""

    images: tuple[int, ...]
    ar_steps: tuple[int, ...]
    diffusion_steps: tuple[int, ...]
    """In each AR step, the fewest first. More are computed from them where time is short."""


class Repeats:
    """Recorder that calls the work again, in place of a graph, where there is no GPU."""

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Do the work, and return how to do it again into the same result."""
        output = work()
        return Recording(lambda: _overwrite(output, work()), output)


class Sampling:
    """Sampling with one model on one device."""

    def __init__(self, config: CausalFusionConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = cast_copy(CausalFusion(config).to(device).eval(), torch.bfloat16)
        recorder: Recorder = CudaGraphs() if device.type == "cuda" else Repeats()
        self.recordings = Recordings(recorder)

    def batch(self, images: int, ar_steps: int, steps: int) -> float:
        """Return the seconds of one guided batch."""
        config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=steps, guidance_scale=_GUIDANCE)
        labels = torch.arange(images) % self.model.config.num_classes

        def work() -> Tensor:
            return sample(self.model, labels, config, DiffusionConfig(), seed=0, recordings=self.recordings)

        return seconds(work, self.device)

    def recorded(self, images: int, ar_steps: int) -> bool:
        """Return whether forward passes of such batches are recorded."""
        return self.recordings.serve(2 * images, equal_step_sizes(self.model.config.num_tokens, ar_steps))


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
    sampling = Sampling(config, device)
    for images, ar_steps in itertools.product(cases.images, cases.ar_steps):
        deadline.check(5, f"sampling {images} images in {ar_steps} AR steps")
        made = sampling.recordings.made
        warm = sampling.batch(images, ar_steps, 2)  # kernels are loaded and graphs captured
        captured = sampling.recordings.made - made
        recorded, per_step = sampling.recorded(images, ar_steps), 0.0
        for steps in cases.diffusion_steps:
            expected = per_step * steps
            measured = expected < deadline.left / 2
            taken = sampling.batch(images, ar_steps, steps) if measured else expected
            per_step = taken / steps
            predicted = roofline.sampling_seconds(
                config, ceilings, images=images, ar_steps=ar_steps, diffusion_steps=steps, graphed=recorded
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
                    "ms_evaluation": per_step / ar_steps * 1e3,
                    "recorded": recorded,
                    "graphs": captured,
                    "warm_s": warm,
                    "measured": measured,
                },
            )
        again = sampling.recordings.made - made - captured
        report.none_of(f"{name}: graphs after the first batch, {images} images, S = {ar_steps}", again)


def _overwrite(output: Tensor, value: Tensor) -> None:
    output.copy_(value)
