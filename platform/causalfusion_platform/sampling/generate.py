"""Generate samples, shared out over ranks or all in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion import DiffusionConfig, Model, Prompts, SamplingConfig, sample
from causalfusion.sampling.recorded import CudaGraphs, Recordings
from causalfusion.weights import cast_copy


@dataclass(frozen=True)
class Request:
    """Samples to generate. Sample i of a request is the same in every process."""

    labels: Tensor | Prompts
    """(B,) int64 classes, or B text prompts."""
    sampling: SamplingConfig
    diffusion: DiffusionConfig
    seed: int
    bf16: bool
    """True if the model samples in bf16, weights included. Latents stay in fp32."""
    batch_size: int = 64
    """Samples that go through the model at once."""


def labels_in_turn(count: int, num_classes: int) -> Tensor:
    """Return labels 0, 1, …, num_classes − 1, 0, 1, …: (count,)."""
    return torch.arange(count) % num_classes


class SamplingModel:
    """A model as requests are served with it: in bf16 if they say so, and on a GPU with CUDA graphs.

    A copy in bf16 has the weights of the time when it was made.
    """

    def __init__(self, model: Model, *, bf16: bool) -> None:
        self.model = cast_copy(model, torch.bfloat16) if bf16 else model
        self.recordings = Recordings(CudaGraphs()) if model.device.type == "cuda" else None

    def generate(
        self,
        request: Request,
        indices: list[int],
        alive: Callable[[], None] = lambda: None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Generate samples of a request: see `generate`. Its `bf16` is not read."""
        parts = []
        for start in range(0, max(len(indices), 1), request.batch_size):
            part = indices[start : start + request.batch_size]
            latents = sample(
                self.model,
                request.labels[torch.tensor(part, dtype=torch.int64)],
                request.sampling,
                request.diffusion,
                seed=request.seed,
                indices=part,
                on_step=on_step,
                recordings=self.recordings,
            )
            parts.append(latents.cpu())
            alive()
        return torch.cat(parts)


def generate(
    model: Model,
    request: Request,
    indices: list[int],
    alive: Callable[[], None] = lambda: None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Generate the samples of `request` numbered `indices`: (len(indices), channels, height, width), on the CPU.

    `alive` is called after each batch, `on_step` after each diffusion step of one.
    """
    return SamplingModel(model, bf16=request.bf16).generate(request, indices, alive, on_step)


def generate_together(model: Model, request: Request, alive: Callable[[], None] = lambda: None) -> Tensor:
    """Generate all samples of `request` on all ranks together. Every rank gets all of them.

    `alive` is called after each batch.
    """
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    count = len(request.labels)
    mine = generate(model, request, list(range(rank, count, world)), alive)
    parts: list[Tensor] = [torch.empty(0)] * world
    torch.distributed.all_gather_object(parts, mine)
    everything = torch.empty(count, *mine.shape[1:], dtype=mine.dtype)
    for other, part in enumerate(parts):
        everything[other::world] = part
    return everything
