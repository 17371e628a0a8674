"""Training, resuming and sampling of the quickstart's model, without the platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    DiffusionConfig,
    Objective,
    ObjectiveConfig,
    SamplingConfig,
    draw,
    load_weights,
    preset,
    sample,
    save_weights,
)
from causalfusion.draws import stream

from .outcome import Outcome, at_most

CONFIG = preset("digits")
DIFFUSION = DiffusionConfig()
OBJECTIVE = ObjectiveConfig()
SAMPLING = SamplingConfig(num_ar_steps=2, num_inference_steps=25, guidance_scale=2.0)
SAMPLES = 40

LOSS = 0.5
"""Largest loss after training, over the one before."""
RESUMED = 1e-3
"""Largest relative difference of weights after a resume on a GPU, whose sums have no fixed order. On a CPU: 0."""
SAME_SAMPLES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest ‖GPU − CPU‖ / ‖CPU‖ of samples, by the type of the GPU's weights. The CPU's are fp32."""
SAME_LOSS = 0.02
"""Largest relative difference of a step's loss in bf16 on the device from that in fp32 on the CPU."""


@dataclass(frozen=True)
class Amount:
    """Amount of training."""

    steps: int
    batch: int
    compared: int
    """First steps that the CPU makes too, in fp32."""


class Run:
    """A training run with fp32 weights, AdamW and EMA, in bf16 autocast unless told otherwise."""

    def __init__(self, device: torch.device, amount: Amount, *, bf16: bool = True) -> None:
        torch.manual_seed(0)
        assert isinstance(CONFIG, CausalFusionConfig)
        self.device, self.amount, self.bf16 = device, amount, bf16
        self.model = CausalFusion(CONFIG).to(device)
        self.averaged = CausalFusion(CONFIG).to(device).requires_grad_(False)
        self.averaged.load_state_dict(self.model.state_dict())
        self.objective = Objective(self.model, OBJECTIVE, DIFFUSION)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, betas=(0.9, 0.95), fused=True)
        self.steps_done = 0

    def train(self, until: int) -> list[float]:
        """Train up to step `until`. Return the loss of each step."""
        losses = [self._step(number) for number in range(self.steps_done, until)]
        self.steps_done = until
        return torch.stack(losses).tolist() if losses else []

    def _step(self, number: int) -> Tensor:
        batch = self.amount.batch
        samples = range(number * batch, (number + 1) * batch)
        drawn = draw(self.model.config, OBJECTIVE, DIFFUSION, seed=0, step=number, samples=samples)
        latents, labels = (x.to(self.device, non_blocking=True) for x in images(samples))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.objective(self.model, latents, labels, drawn)
        self.optimizer.zero_grad()
        loss.weighted.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            weights: list[Tensor] = list(self.model.parameters())
            averages: list[Tensor] = list(self.averaged.parameters())
            torch._foreach_lerp_(averages, weights, 0.05)
        return loss.mse

    def save(self, folder: Path) -> None:
        """Write a checkpoint: weights folders of the model and its average, and the optimizer's state."""
        save_weights(folder / "model", self.model.config, self.model.state_dict(), DIFFUSION)
        save_weights(folder / "averaged", self.model.config, self.averaged.state_dict(), DIFFUSION)
        torch.save({"optimizer": self.optimizer.state_dict(), "steps": self.steps_done}, folder / "rest.pt")

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        for name, model in (("model", self.model), ("averaged", self.averaged)):
            model.load_state_dict(load_weights(folder / name).state_dict())
        rest = torch.load(folder / "rest.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(rest["optimizer"])
        self.steps_done = rest["steps"]


def classes() -> Tensor:
    """Return the mean image of each class, (10, 1, 8, 8): blocks of 2 · 2 pixels that are −0.8 or 0.8."""
    coarse = torch.randn(CONFIG.num_classes, 1, 4, 4, generator=stream(0, "mean images")).sign()
    return 0.8 * coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def images(samples: range) -> tuple[Tensor, Tensor]:
    """Return latents and labels of the training images `samples`: the mean image of a class, and noise."""
    labels = torch.tensor([number % CONFIG.num_classes for number in samples])
    noise = torch.randn(len(samples), 1, 8, 8, generator=stream(0, "image noise", samples.start))
    return classes()[labels] + 0.1 * noise, labels


def check(device: torch.device, amount: Amount, folder: Path) -> list[Outcome]:
    """Train on a device, resume, sample, and compare with the CPU."""
    run = Run(device, amount)
    half = amount.steps // 2
    losses = run.train(half)
    run.save(folder)
    losses += run.train(amount.steps)
    resumed = Run(device, amount)
    resumed.load(folder)
    resumed.train(amount.steps)
    tenth = max(amount.steps // 10, 1)
    fallen = sum(losses[-tenth:]) / sum(losses[:tenth])
    on_cpu = Run(torch.device("cpu"), amount, bf16=False).train(amount.compared)
    off = max(abs(here / there - 1) for here, there in zip(losses, on_cpu, strict=False))
    return [
        at_most(f"loss after {amount.steps} steps in bf16, over the first", fallen, LOSS),
        at_most(f"losses of {amount.compared} steps, relative difference to the CPU's", off, SAME_LOSS),
        at_most(
            "weights of a resumed run, relative difference",
            difference(flat(resumed.averaged), flat(run.averaged)),
            RESUMED if device.type == "cuda" else 0.0,
        ),
        *same_samples(run.averaged, device),
    ]


def same_samples(model: CausalFusion, device: torch.device) -> list[Outcome]:
    """Compare samples on a device with those on the CPU."""
    labels = torch.arange(SAMPLES) % model.config.num_classes
    on_cpu = samples_of(model, labels, torch.device("cpu"), torch.float32)
    return [
        at_most(
            f"samples in {str(dtype).removeprefix('torch.')}, relative difference to the CPU's",
            difference(samples_of(model, labels, device, dtype), on_cpu),
            allowed,
        )
        for dtype, allowed in SAME_SAMPLES.items()
    ]


def samples_of(model: CausalFusion, labels: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return samples on the CPU, drawn on a device by weights of some type. The noise is the same everywhere."""
    copied = CausalFusion(model.config)
    copied.load_state_dict(model.state_dict())
    return sample(copied.to(device, dtype).eval(), labels, SAMPLING, DIFFUSION, seed=0).float().cpu()


def flat(model: nn.Module) -> Tensor:
    """Return all parameters in one vector."""
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


def difference(left: Tensor, right: Tensor) -> float:
    """Return ‖left − right‖ / ‖right‖."""
    return float((left - right).norm() / right.norm())
