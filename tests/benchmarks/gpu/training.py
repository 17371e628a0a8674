"""Training of whole models: images/s, share of the ceiling, synchronizations, recompilations, peak of memory."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    DiffusionConfig,
    Draws,
    Objective,
    ObjectiveConfig,
    draw,
)
from causalfusion.attention.dense import attention_form
from causalfusion.factorization.sequence import lay_out
from causalfusion.flops import forward_flops
from causalfusion.objective import draw_split
from causalfusion_platform.train.blocks import set_up_blocks

from . import roofline
from .ceilings import Ceilings
from .deadline import Deadline
from .report import Report
from .timing import seconds

DIFFUSION = DiffusionConfig()
_SEARCHED = 2000
"""Steps among which one of each sequence length is looked for."""


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
    """Optimizer steps of one model on one device, as ZeRO 0 makes them: AdamW and EMA in fp32, products in bf16."""

    def __init__(self, config: CausalFusionConfig, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config, self.size, self.device = config, size, device
        self.objective_config = ObjectiveConfig(sequence_multiple=size.multiple)
        self.model = CausalFusion(config).to(device)
        with torch.no_grad():
            self.model.head.weight.normal_(std=0.02)  # a zero head would make gradients vanish
        set_up_blocks(self.model, compiled=device.type == "cuda", recomputed=False)
        self.objective = Objective(self.model, self.objective_config, DIFFUSION)
        self.weights: list[Tensor] = list(self.model.parameters())
        self.averages = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, betas=(0.9, 0.95), fused=True)
        shape = (size.batch, config.in_channels, config.input_size, config.input_size)
        self.latents, self.labels = torch.randn(shape), torch.randint(config.num_classes, (size.batch,))
        if device.type == "cuda":
            self.latents, self.labels = self.latents.pin_memory(), self.labels.pin_memory()

    def split(self, number: int) -> list[int]:
        """Return the AR split of step `number`."""
        return draw_split(self.objective_config, self.config.num_tokens, 0, number)

    def length(self, number: int) -> int:
        """Return the sequence length of step `number`."""
        return len(
            lay_out(self.split(number), class_tokens=self.config.num_class_tokens, multiple=self.size.multiple)
        )

    def draws(self, number: int) -> Draws:
        """Draw the random numbers of step `number`."""
        batch = self.size.batch
        return draw(
            self.config,
            self.objective_config,
            DIFFUSION,
            seed=0,
            step=number,
            samples=range(number * batch, (number + 1) * batch),
        )

    def steps(self, numbers: Iterable[int]) -> None:
        """Make steps one after the other."""
        for number in numbers:
            self.step(number)

    def step(self, number: int) -> None:
        """Make step `number`: draws, forward, backward, clipping, AdamW, EMA."""
        drawn = self.draws(number)
        latents, labels = (x.to(self.device, non_blocking=True) for x in (self.latents, self.labels))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.objective(self.model, latents, labels, drawn).weighted
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None])
        nn.utils.clip_grads_with_norm_(self.weights, 1.0, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1e-4)

    def flops(self, numbers: range) -> float:
        """Return the FLOPs that steps need, without hidden pairs, unread results and padding."""
        return self.size.batch * sum(
            3 * forward_flops(self.config, self.split(number), attention="visible", skip_unread=True)
            for number in numbers
        )

    def first_of_each_length(self) -> dict[int, int]:
        """Return the first step of every sequence length that occurs: length → step."""
        found: dict[int, int] = {}
        for number in range(_SEARCHED):
            found.setdefault(self.length(number), number)
        return dict(sorted(found.items()))


def measure(
    report: Report,
    name: str,
    config: CausalFusionConfig,
    size: Size,
    ceilings: Ceilings,
    device: torch.device,
    deadline: Deadline,
) -> None:
    """Measure the training of one model, and judge it."""
    training = Training(config, size, device)
    lengths = training.first_of_each_length()
    started = time.perf_counter()
    for length, number in lengths.items():
        deadline.check(5, f"the first step of length {length}")
        training.steps([number])
    warm = time.perf_counter() - started
    before = graphs()
    timed = range(size.steps)
    taken = seconds(partial(training.steps, timed), device)
    compiled = graphs() - before
    rate, needed = size.steps * size.batch / taken, training.flops(timed)
    predicted = roofline.training_step(
        config,
        training.objective_config,
        ceilings,
        batch=size.batch,
        form="flex" if attention_form(device, torch.bfloat16, max(lengths)) == "flex" else "split",
        compiled=device.type == "cuda",
        multiple=size.multiple,
    )
    waits = synchronizations(training, range(size.steps, size.steps + 3)) if device.type == "cuda" else None
    report.add(
        "training",
        {
            "model": name,
            "images_s": rate,
            "predicted": size.batch / predicted.total,
            "share_of_ceiling": needed / taken / ceilings.products,
            "limit": roofline.limit(config, training.objective_config, ceilings),
            "ms_step": taken / size.steps * 1e3,
            "synchronizations": waits.total() / 3 if waits is not None else None,
            "graphs": before,
            "recompilations": compiled,
            "lengths": len(lengths),
            "warm_s": warm,
            "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        },
    )
    for place, count in waits.most_common(10) if waits is not None else ():
        report.add("synchronizations", {"model": name, "at": place, "in_3_steps": count})
    report.none_of(f"{name}: synchronizations a step", waits.total() / 3 if waits is not None else None)
    report.none_of(f"{name}: recompilations after warm-up", compiled)


def graphs() -> int:
    """Return the graphs that torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def synchronizations(training: Training, numbers: range) -> Counter[str]:
    """Return where steps made the host wait for the GPU, and how often: `file:line` → count."""
    training.steps(numbers)  # whatever happens once does not count
    with counted() as places:
        training.steps(numbers)
    return places


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the synchronizations of the block, by the place in the code that caused them."""
    places: Counter[str] = Counter()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield places
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places.update(
        f"{warning.filename.rsplit('site-packages/')[-1]}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
