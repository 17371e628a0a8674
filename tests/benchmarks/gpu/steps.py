"""Optimizer steps of one model on one device, as training makes them at ZeRO 0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from causalfusion import CausalFusion, CausalFusionConfig, DiffusionConfig, Draws, Objective, ObjectiveConfig, draw
from causalfusion.factorization.sequence import lay_out
from causalfusion.flops import forward_flops
from causalfusion.objective import Prepared, draw_split
from causalfusion.slab import Slab
from causalfusion_platform.data.prefetch import read_ahead
from causalfusion_platform.train.blocks import set_up_blocks

DIFFUSION = DiffusionConfig()
_SEARCHED = 2000
"""Steps that are sorted by their length."""


@dataclass(frozen=True)
class Size:
    """Size of a measurement."""

    batch: int
    """Images in a step."""
    steps: int
    """Steps that are timed together, each with an AR split of its own."""
    multiple: int
    """Length that sequences are padded to a multiple of."""


class Training:
    """Training of one model: products in bf16, weights, AdamW and EMA in fp32."""

    def __init__(self, config: CausalFusionConfig, size: Size, device: torch.device, *, compiled: bool) -> None:
        torch.manual_seed(0)
        self.config, self.size, self.device = config, size, device
        self.objective_config = ObjectiveConfig(sequence_multiple=size.multiple)
        with device:  # random weights of a billion parameters take seconds on the host
            self.model = CausalFusion(config)
        with torch.no_grad():
            self.model.head.weight.normal_(std=0.02)  # a zero head would make gradients vanish
        # The CPU of a rehearsal goes through all of torch.compile but the making of kernels.
        make = torch.compile if device.type == "cuda" else partial(torch.compile, backend="eager")
        with mock.patch.object(torch, "compile", make):
            set_up_blocks(self.model, compiled=compiled, recomputed=False, lengths=len(self.by_length()))
        self.objective = Objective(self.model, self.objective_config, DIFFUSION)
        self.weights: list[Tensor] = list(self.model.parameters())
        self.averages = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, betas=(0.9, 0.95), fused=True)
        shape = (size.batch, config.in_channels, config.input_size, config.input_size)
        self.latents, self.labels = torch.randn(shape), torch.randint(config.num_classes, (size.batch,))
        self.most = torch.full((), torch.inf, device=device)
        """Largest gradient norm of which an update is made."""

    def split(self, number: int) -> list[int]:
        """Return the AR split of step `number`."""
        return draw_split(self.objective_config, self.config.num_tokens, 0, number)

    def length(self, number: int) -> int:
        """Return the sequence length of step `number`."""
        classes, multiple = self.config.num_class_tokens, self.size.multiple
        return len(lay_out(self.split(number), class_tokens=classes, multiple=multiple))

    def by_length(self) -> dict[int, list[int]]:
        """Return the steps of every sequence length that occurs, the most frequent length first."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for number in range(_SEARCHED):
            found[self.length(number)].append(number)
        return dict(sorted(found.items(), key=lambda steps: -len(steps[1])))

    def flops(self, numbers: Sequence[int]) -> float:
        """Return the FLOPs that steps need, without hidden pairs, unread results and padding."""
        return self.size.batch * sum(
            3 * forward_flops(self.config, self.split(number), attention="visible", skip_unread=True)
            for number in numbers
        )

    def draws(self, number: int) -> Draws:
        """Draw the random numbers of step `number`."""
        batch = self.size.batch
        samples = range(number * batch, (number + 1) * batch)
        return draw(self.config, self.objective_config, DIFFUSION, seed=0, step=number, samples=samples)

    def steps(self, numbers: Iterable[int]) -> None:
        """Make optimizer steps: forward, backward, the guard's verdict, clipping, AdamW, EMA.

        A thread makes the inputs of each while a GPU computes the one before.
        """
        made = (self.inputs(number) for number in numbers)
        for inputs in made if self.device.type == "cpu" else read_ahead(made, 1):
            self.step(inputs)

    def inputs(self, number: int) -> Slab[tuple[Prepared, Tensor, Tensor]]:
        """Make the inputs of step `number` on the host, for one copy to the device."""
        return Slab((self.objective.prepare(self.draws(number)), self.latents, self.labels), self.device)

    def step(self, inputs: Slab[tuple[Prepared, Tensor, Tensor]]) -> None:
        """Make one step."""
        ready, latents, labels = inputs.on_device()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.objective.loss(self.model, latents, labels, ready).weighted
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None])
        nn.utils.clip_grads_with_norm_(self.weights, 1.0, norm)
        # The fused kernel leaves a step out where this is 1, so that no host waits for the norm.
        left_out = (norm.isfinite() & (norm <= self.most)).logical_not().float()
        self.optimizer.found_inf = left_out  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1e-4)
