"""Sampling over the factorization plane: any number of AR steps, any number of diffusion steps in each.

Shapes: B samples, L image tokens, K known tokens, M tokens to generate, N tokens of one AR step.
P numbers in a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .. import draws
from ..config import CausalFusionConfig, PatchOrder
from ..factorization.ordering import patch_orders
from ..factorization.steps import check_sizes, equal_step_sizes, random_step_sizes
from ..model import Model
from ..noise.diffusion import DiffusionConfig
from ..noise.samplers import Sampler, SamplerName, make_sampler
from ..text.prompts import Prompts
from .guidance import GuidanceSchedule, guidance_scales
from .noise import noise_of_ar_step, to_device
from .predictor import DirectPredictor, Prediction, Predictor
from .recorded import Recordings
from .step_schedule import StepSchedule, scheduled_steps


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Options of sampling: the place on the factorization plane, sampler, guidance and order."""

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    num_ar_steps: int = 1
    """S_eval: number of AR steps. 1 is pure diffusion, L pure next-token generation."""
    step_sizes: Literal["equal", "random"] | tuple[int, ...] = "equal"
    """Tokens per AR step: (almost) `equal`, cut at `random` as in training, or a list, which sets S too."""
    num_inference_steps: int | tuple[int, ...] = 250
    """Diffusion steps per AR step (Tables 9 and 10: 250), or a list with one number per AR step."""
    step_schedule: StepSchedule = "constant"
    """Diffusion steps over AR steps (DiSA): `constant`, or falling, `linear`, `cosine` or `two_stage`."""
    last_inference_steps: int | None = None
    """Diffusion steps of the last AR step, where a schedule ends (DiSA: 5, from 50). null: no schedule."""
    sampler: SamplerName = "ddpm"
    """`ddpm` (Tables 9 and 10), `ddim`, `dpm-solver++` or `unipc`."""
    guidance_scale: float = 1.0
    """Classifier-free guidance w: ε = ε_null + w (ε_class − ε_null). 1 turns guidance off. ε_null sees no text."""
    guidance_schedule: GuidanceSchedule = "constant"
    """`constant`, `linear` (from 1 to w over the diffusion steps) or `linear_ar` (over the tokens, as in MAR)."""
    guidance_interval: tuple[int, int] | None = None
    """Diffusion times [low, high) with guidance (Table 5). Elsewhere the null class is not computed."""
    patch_order: PatchOrder = "random"
    """Order in which tokens are generated."""
    order_block: int = 4
    """Block side (`blockwise`) or stride (`dilated`) of the patch order, in patches."""

    def __post_init__(self) -> None:
        if self.num_ar_steps < 1:
            raise ValueError(f"num_ar_steps must be at least 1, got {self.num_ar_steps}")
        if isinstance(self.step_sizes, str) and self.step_sizes not in ("equal", "random"):
            raise ValueError(f"step_sizes must be equal, random or a list of sizes, got {self.step_sizes!r}")
        if not isinstance(self.step_sizes, str):
            object.__setattr__(self, "step_sizes", tuple(self.step_sizes))
            if not self.step_sizes or min(self.step_sizes) < 1:
                raise ValueError(f"step_sizes must be positive, got {list(self.step_sizes)}")
            if self.num_ar_steps not in (1, len(self.step_sizes)):
                raise ValueError(
                    f"step_sizes names {len(self.step_sizes)} AR steps, but num_ar_steps is {self.num_ar_steps}; "
                    f"leave one of them out"
                )
        if not isinstance(self.num_inference_steps, int):
            object.__setattr__(self, "num_inference_steps", tuple(self.num_inference_steps))
        per_step = self.inference_steps
        if not per_step or min(per_step) < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")
        choices = ("sampler", SamplerName), ("guidance_schedule", GuidanceSchedule), ("step_schedule", StepSchedule)
        for name, allowed in choices:
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}")
        self._check_schedule()
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must not be negative, got {self.guidance_scale}")
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
            interval = self.guidance_interval
            if len(interval) != 2 or not 0 <= interval[0] <= interval[1]:
                raise ValueError(f"guidance_interval must be two times, 0 ≤ low ≤ high, got {interval}")

    def _check_schedule(self) -> None:
        first, last = self.num_inference_steps, self.last_inference_steps
        if self.step_schedule == "constant":
            if last is not None:
                raise ValueError(
                    f"last_inference_steps {last} needs a step_schedule that falls: linear, cosine or two_stage"
                )
            return
        if not isinstance(first, int):
            raise ValueError(
                f"step_schedule {self.step_schedule} and a list of num_inference_steps both say how many diffusion "
                f"steps each AR step has: leave one of them out"
            )
        if last is None:
            raise ValueError(
                f"step_schedule {self.step_schedule} falls from num_inference_steps {first} to "
                f"last_inference_steps: give it too, such as 5"
            )
        if not 1 <= last <= first:
            raise ValueError(
                f"last_inference_steps must lie in [1, {first}], at most num_inference_steps, got {last}"
            )

    @property
    def inference_steps(self) -> tuple[int, ...]:
        """Diffusion steps: one number for all AR steps or the first of a schedule, or one per AR step."""
        steps = self.num_inference_steps
        return (steps,) if isinstance(steps, int) else steps

    @property
    def total_steps(self) -> int:
        """Diffusion steps of all AR steps together."""
        return sum(self.steps_of(self.num_ar_steps if isinstance(self.step_sizes, str) else len(self.step_sizes)))

    def steps_of(self, num_ar_steps: int) -> tuple[int, ...]:
        """Return the diffusion steps of each of so many AR steps."""
        steps = self.num_inference_steps
        if not isinstance(steps, int):
            return steps if len(steps) > 1 else steps * num_ar_steps
        return scheduled_steps(self.step_schedule, steps, self.last_inference_steps or steps, num_ar_steps)

    def sizes(self, num_tokens: int, seed: int) -> list[int]:
        """Return |κ_1| … |κ_S| for `num_tokens` tokens.

        Args:
            num_tokens: tokens to generate.
            seed: decides random sizes, which all samples share.

        Raises:
            ValueError: the sizes or diffusion steps do not fit.
        """
        if not isinstance(self.step_sizes, str):
            sizes = list(self.step_sizes)
        elif self.step_sizes == "random":
            sizes = random_step_sizes(num_tokens, self.num_ar_steps, draws.stream(seed, "generated split"))
        else:
            sizes = equal_step_sizes(num_tokens, self.num_ar_steps)
        check_sizes(sizes, num_tokens)
        if len(self.inference_steps) not in (1, len(sizes)):
            raise ValueError(
                f"num_inference_steps names {len(self.inference_steps)} AR steps, but there are {len(sizes)}"
            )
        return sizes

    def at_most(self, num_tokens: int) -> SamplingConfig:
        """Return the configuration with at most one AR step per token to generate."""
        if not isinstance(self.step_sizes, str):
            return self
        return dataclasses.replace(self, num_ar_steps=min(self.num_ar_steps, num_tokens))


@torch.no_grad()
def sample(
    model: Model,
    labels: Tensor | Prompts,
    config: SamplingConfig,
    diffusion: DiffusionConfig,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    on_step: Callable[[], None] = lambda: None,
    recordings: Recordings | None = None,
) -> Tensor:
    """Generate latents for labels or for text.

    Args:
        model: the network, usually with EMA weights.
        labels: (B,) classes, or text prompts.
        config: AR steps, diffusion steps, guidance and order.
        diffusion: the noise process of training.
        seed: decides, with a sample's index, its order and all of its noise.
        indices: number of each sample (default: 0…B−1). Sample i is the same in any batch.
        on_step: called after each diffusion step.
        recordings: forward passes recorded as CUDA graphs, for calls with the same model. None: none is recorded.

    Returns:
        (B, channels, height, width) latents in the model's scale, float32 (float64 for a float64 model).

    Raises:
        ValueError: a label, prompt or split does not fit the model.
    """
    rows, columns = model.grid
    generators = sample_generators(model, labels, seed, indices)
    order = patch_orders(config.patch_order, rows, generators, block=config.order_block, columns=columns)
    patches = generate_tokens(
        model, labels, order, config, diffusion, generators, seed=seed, on_step=on_step, recordings=recordings
    )
    return model.unpatchify(in_raster_order(patches, order))


def sample_generators(
    model: Model, labels: Tensor | Prompts, seed: int, indices: Sequence[int] | None
) -> list[torch.Generator]:
    """Check the labels or prompts and return the generator of each sample.

    Raises:
        ValueError: a label or token is not in the model's table, a prompt is too long, or indices are missing.
    """
    check_condition(model, labels)
    indices = range(len(labels)) if indices is None else indices
    if len(indices) != len(labels):
        kind = "prompts" if isinstance(labels, Prompts) else "labels"
        raise ValueError(f"{len(labels)} {kind} need as many indices, got {len(indices)}")
    return draws.sample_streams(seed, "generated sample", indices)


def check_condition(model: Model, condition: Tensor | Prompts) -> None:
    """Check labels or prompts against the model.

    Raises:
        ValueError: the model lacks such a condition, or one is out of its range.
    """
    config = model.config
    text = config.text if isinstance(config, CausalFusionConfig) else None
    labels: Tensor | None = condition if isinstance(condition, Tensor) else condition.labels
    if isinstance(condition, Prompts):
        if text is None:
            raise ValueError("this model has no text: give labels in place of prompts")
        longest, tokens = condition.tokens.shape[1], condition.tokens
        if longest > text.max_tokens:
            raise ValueError(f"a prompt has {longest} tokens, but the model takes at most {text.max_tokens}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < text.vocabulary:
            raise ValueError(f"text tokens must lie in [0, {text.vocabulary - 1}], got {int(tokens.max())}")
    elif text is not None:
        raise ValueError("this model draws images from text: give prompts in place of labels")
    has_classes = not isinstance(config, CausalFusionConfig) or config.num_class_tokens > 0
    if has_classes == (labels is None):
        raise ValueError(
            "this model needs labels" if has_classes else "this model has no classes: leave out labels"
        )
    last = config.null_class
    if labels is not None and (
        labels.ndim != 1 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= last)
    ):
        raise ValueError(f"labels must be one-dimensional and lie in [0, {last}], got {labels.tolist()}")


def in_raster_order(patches_BLP: Tensor, order_BL: Tensor) -> Tensor:
    """Move patches from visiting order to raster order: (B, L, P)."""
    index = order_BL.to(patches_BLP.device)[:, :, None].expand_as(patches_BLP)
    return torch.empty_like(patches_BLP).scatter_(1, index, patches_BLP)


def generate_tokens(
    model: Model,
    labels: Tensor | Prompts,
    order_BM: Tensor,
    config: SamplingConfig,
    diffusion: DiffusionConfig,
    generators: list[torch.Generator],
    *,
    seed: int,
    known: tuple[Tensor, Tensor] | None = None,
    on_step: Callable[[], None] = lambda: None,
    recordings: Recordings | None = None,
) -> Tensor:
    """Generate the tokens at the given positions, AR step by AR step.

    Args:
        model: the network.
        labels: (B,) classes, or text prompts.
        order_BM: raster positions in the order of generation.
        config: AR steps, diffusion steps and guidance. The patch order is not read.
        diffusion: the noise process of training.
        generators: one per sample.
        seed: decides random step sizes.
        known: clean patches (B, K, P) and their positions (B, K). Generated tokens see them as one AR step before
            the first.
        on_step: called after each diffusion step.
        recordings: as for `sample`.

    Returns:
        (B, M, P) patches in the order of generation, float32 (float64 for a float64 model).
    """
    count, num_tokens = order_BM.shape
    sizes = config.sizes(num_tokens, seed)
    samplers = [make_sampler(config.sampler, diffusion, steps) for steps in config.steps_of(len(sizes))]
    ends = [sum(sizes[: step + 1]) / num_tokens for step in range(len(sizes))]
    scales = [
        guidance_scales(
            config.guidance_scale, config.guidance_schedule, config.guidance_interval, sampler.times, end
        )
        for sampler, end in zip(samplers, ends, strict=True)
    ]
    dtype = model.latent_dtype
    patches = torch.empty(count, num_tokens, model.config.token_dim, device=model.device, dtype=dtype)
    if not count:
        return patches
    guided = any(scale is not None for step in scales for scale in step)
    order = to_device(order_BM, model.device)
    num_known = 0 if known is None else known[1].shape[1]
    condition, held = labels.to(model.device), num_known + num_tokens
    predictor: Predictor
    if recordings is not None and recordings.serve(count * (1 + guided), sizes):
        predictor = recordings.predictor(model, condition, held, guided)
    else:
        predictor = DirectPredictor(model, condition, held, guided)
    if known is not None and num_known:
        predictor.append(known[0].to(model.device, dtype), known[1].to(model.device))
    start = 0
    for size, sampler, step_scales in zip(sizes, samplers, scales, strict=True):
        positions = order[:, start : start + size]
        noises = noise_of_ar_step(generators, (size, patches.shape[2]), sampler.noise_steps, model.device, dtype)
        x = _denoise(predictor.at(positions), noises, sampler, step_scales, model.device, on_step)
        patches[:, start : start + size] = x
        start += size
        if start < num_tokens:
            predictor.append(x, positions)
    return patches


def _denoise(
    predict: Prediction,
    noises: Iterator[Tensor],
    sampler: Sampler,
    scales: list[float | None],
    device: torch.device,
    on_step: Callable[[], None],
) -> Tensor:
    """Generate the tokens of one AR step from noise: (B, N, P)."""
    x = next(noises)
    times = to_device(torch.tensor(sampler.times), device)
    for index, scale in enumerate(scales):
        prediction = predict(x, times[index : index + 1], scale)
        noise = next(noises) if index < sampler.noise_steps else None
        x = sampler.step(index, prediction, x, noise)
        on_step()
    return x
