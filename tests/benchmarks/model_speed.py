"""Our training step and our sampling against the plainly written model, at equal work and on one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from causalfusion import (
    CausalFusion,
    CausalFusionConfig,
    DiffusionConfig,
    Objective,
    ObjectiveConfig,
    SamplingConfig,
    draw,
    sample,
)
from causalfusion.noise.samplers import make_sampler

from .plain import PlainCausalFusion
from .timing import interleaved

# Width 256, 6 layers, 256 image tokens and 64 class tokens, batch 4.
CONFIG = CausalFusionConfig(
    input_size=16, in_channels=16, patch_size=1, hidden_size=256, depth=6, num_heads=4, class_tokens=64
)
BATCH = 4
DIFFUSION = DiffusionConfig()
AR_STEPS = (1, 4, 16)


def new_model() -> CausalFusion:
    torch.manual_seed(0)
    model = CausalFusion(CONFIG)
    with torch.no_grad():
        model.head.weight.normal_(std=0.02)  # a zero head would make gradients vanish
    return model


def training_step(model: CausalFusion, *, plain: bool, ar_steps: int, bf16: bool) -> Callable[[], None]:
    """Return one optimizer step: forward, backward, clipping, AdamW, EMA."""
    config = ObjectiveConfig(num_ar_steps=ar_steps)
    objective = Objective(model, config, DIFFUSION)
    drawn = draw(CONFIG, config, DIFFUSION, seed=0, step=0, samples=range(BATCH))
    latents, labels = torch.randn(BATCH, 16, 16, 16), torch.arange(BATCH)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not plain)
    predict = PlainCausalFusion(model) if plain else model
    weights: list[Tensor] = list(model.parameters())
    means: list[Tensor] = list(average.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(predict, latents, labels, drawn).weighted
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            if plain:
                for mean, value in zip(means, weights, strict=True):
                    mean.mul_(0.9999).add_(value, alpha=1e-4)
            else:
                torch._foreach_lerp_(means, weights, 1e-4)

    return step


def plain_sample(model: CausalFusion, labels: Tensor, sizes: list[int], steps: int, scale: float) -> None:
    """Sample with guidance as `causalfusion.sample` does, with concatenated caches."""
    plain = PlainCausalFusion(model)
    count, tokens = len(labels), CONFIG.num_tokens
    both = torch.cat([labels, torch.full_like(labels, CONFIG.null_class)])
    order = torch.stack([torch.randperm(tokens) for _ in labels]).repeat(2, 1)
    with torch.inference_mode():
        cache = plain.begin(both)
        start = 0
        for size in sizes:
            here = order[:, start : start + size]
            x = torch.randn(count, size, CONFIG.token_dim)
            sampler = make_sampler("ddpm", DIFFUSION, steps)
            for index, t in enumerate(sampler.times):
                times = torch.full((2 * count,), t)
                conditional, null = plain.predict(cache, torch.cat([x, x]), here, times).float().chunk(2)
                noise = torch.randn_like(x) if index < sampler.noise_steps else None
                x = sampler.step(index, null + scale * (conditional - null), x, noise)
            plain.keep(cache, torch.cat([x, x]), here)
            start += size


def sampling(model: CausalFusion, *, plain: bool, ar_steps: int, bf16: bool) -> Callable[[], None]:
    """Return one guided batch of samples, ten diffusion steps an AR step."""
    labels = torch.arange(BATCH)
    config = SamplingConfig(num_ar_steps=ar_steps, num_inference_steps=10, guidance_scale=2.0)

    def batch() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if plain:
                plain_sample(model, labels, config.sizes(CONFIG.num_tokens, 0), 10, 2.0)
            else:
                sample(model, labels, config, DIFFUSION, seed=0)

    return batch


def run() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(
        f"\nour model against a plain one: width {CONFIG.hidden_size}, {CONFIG.depth} layers, 256 + 64 tokens, "
        f"batch {BATCH}, one thread"
    )
    print(f"{'':<28}{'S':>4}{'plain':>10}{'ours':>10}{'times as fast':>16}")
    in_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    for what, make, rounds in (("training step", training_step, 9), ("guided sampling", sampling, 5)):
        for bf16 in (False, True) if in_bf16 else (False,):
            for ar_steps in AR_STEPS:
                alternatives = {
                    name: make(new_model(), plain=name == "plain", ar_steps=ar_steps, bf16=bf16)
                    for name in ("plain", "ours")
                }
                times = interleaved(alternatives, rounds=rounds)
                label = f"{what}, {'bf16' if bf16 else 'fp32'}"
                print(
                    f"{label:<28}{ar_steps:>4}{times['plain']:>9.3f}s{times['ours']:>9.3f}s"
                    f"{times['plain'] / times['ours']:>16.2f}",
                    flush=True,
                )
    if not in_bf16:
        print("bf16 is not measured: this CPU emulates it")
    torch.set_num_threads(threads)
