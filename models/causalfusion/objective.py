"""Training objective: MSE over all AR steps, weighted along the AR axis (Eq. 4 and 5, Section 5).

Shapes: B samples, R noised copies, S AR steps, L image tokens, P numbers in a patch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from einops import rearrange
from torch import Tensor

from . import draws
from .attention.plan import AttentionPlan
from .config import CausalFusionConfig, PatchOrder
from .factorization.ordering import patch_orders
from .factorization.sequence import lay_out
from .factorization.steps import equal_step_sizes, random_step_sizes, sample_num_ar_steps, step_of_token
from .model import Model, ModelConfig
from .noise.diffusion import DiffusionConfig, noised_and_target, sample_times
from .slab import Slab

WeightAxis = Literal["step", "token"]
WeightShape = Literal["linear", "cosine"]
TimeSampling = Literal["shared", "per_step"]

# More copies or longer sequences than this are mistakes that would take all memory.
_LARGEST = 4_096

# Image tokens from which on sequences are padded to larger multiples.
_MANY_TOKENS = 1_024


@dataclass(frozen=True, kw_only=True)
class TextObjectiveConfig:
    """Share and weight of the texts that describe images (Section 4.3)."""

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    share: float = 0.1
    """Share of samples with their text behind the image. They train the text, and the image without text."""
    weight: float = 0.01
    """Weight of the text loss, the mean over all target tokens of a step, beside the image loss."""
    max_time: int | None = None
    """Bound of the diffusion times of a described image in a Transfusion, whose text sees it noised (500 of 1000).
    null: all times. A CausalFusion describes clean images, whatever this is."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"text.share must lie in [0, 1], got {self.share}")
        if self.weight < 0:
            raise ValueError(f"text.weight must not be negative, got {self.weight}")
        if self.max_time is not None and self.max_time < 1:
            raise ValueError(f"text.max_time must be at least 1, got {self.max_time}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Distribution of AR splits, orders and diffusion times in training, and the loss weights."""

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    ar_decay: float = 0.9
    """γ in [0, 1]: P(S = i) ∝ γ^(i−1). 1 is uniform, 0 always gives S = 1 (Table 3a)."""
    num_ar_steps: int | None = None
    """Fixed S with equal steps (Table 2). null draws S with `ar_decay` and cuts at random."""
    patch_order: PatchOrder = "random"
    """Order in which tokens are visited (Table 3b)."""
    order_block: int = 4
    """Block side (`blockwise`) or stride (`dilated`) of the patch order, in patches."""
    ar_weight: float = 2.0
    """λ ≥ 1: loss weight at the first AR step, decaying to 1 (Table 3c)."""
    ar_weight_along: WeightAxis = "step"
    """Axis of the decay: `step` is the AR step's index (paper), `token` the tokens before it (release)."""
    ar_weight_shape: WeightShape = "linear"
    """Shape of the decay from λ to 1: `linear` (paper, release's default) or `cosine` (release)."""
    time_sampling: TimeSampling = "shared"
    """Diffusion times: one shared by all AR steps of a sample, or one drawn for each AR step (Table 7)."""
    time_copies: int = 1
    """Noised copies of each image, each with its own times, that share the clean tokens (Table 7: 4 and 8).

    The batch size counts images. To keep the work per step, divide the batch size by this number."""
    sequence_multiple: int | None = None
    """Multiple that sequences are padded to, which leaves few lengths to compile for. 1 pads nothing. null: 64 on a
    GPU, or 256 from 1,024 image tokens on, and 1 on a CPU. The results are the same but for rounding."""
    class_dropout: float = 0.1
    """Probability that a sample's class is replaced by the null class, for classifier-free guidance."""
    text: TextObjectiveConfig | None = None
    """Training on text and images. null: on classes."""

    def __post_init__(self) -> None:
        if isinstance(self.text, dict):  # of a file of settings
            object.__setattr__(self, "text", TextObjectiveConfig(**self.text))
        if not 0 <= self.ar_decay <= 1:
            raise ValueError(f"ar_decay γ must lie in [0, 1], got {self.ar_decay}")
        if self.num_ar_steps is not None and self.num_ar_steps < 1:
            raise ValueError(f"num_ar_steps must be at least 1, got {self.num_ar_steps}")
        if self.ar_weight < 1:
            raise ValueError(f"ar_weight λ must be at least 1, got {self.ar_weight}")
        choices = {"ar_weight_along": WeightAxis, "ar_weight_shape": WeightShape, "time_sampling": TimeSampling}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}")
        for name in ("time_copies", "sequence_multiple"):
            value = getattr(self, name)
            if value is None and name == "sequence_multiple":
                continue
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value > _LARGEST:
                raise ValueError(f"{name} must be at most {_LARGEST:,}, got {value!r:.30}")
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must lie in [0, 1), got {self.class_dropout}")

    def multiple(self, num_tokens: int, device_type: str) -> int:
        """Return the multiple that sequences of L image tokens are padded to on `cuda` or `cpu`."""
        if self.sequence_multiple is not None:
            return self.sequence_multiple
        if device_type != "cuda":
            return 1
        return 64 if num_tokens < _MANY_TOKENS else 256


def ar_weights(
    sizes: list[int], ar_weight: float, along: WeightAxis = "step", shape: WeightShape = "linear"
) -> Tensor:
    """Return w(s) for each token in visiting order: (L,), float32 (Section 5, "Loss weighting along AR axis").

    For a fraction f, `linear` is λ − (λ − 1) f and `cosine` is (λ + 1)/2 + (λ − 1)/2 · cos(π f). Along `step` (the
    paper), f runs from 0 at s = 1 to 1 at s = S. Along `token` (the release), f is the number of tokens before
    step s over L, which stays below 1. With S = 1 all give λ.
    """
    step = step_of_token(sizes)
    if along == "step":
        fraction = step / max(len(sizes) - 1, 1)
    else:
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        fraction = starts[step] / sum(sizes)
    if shape == "cosine":
        fraction = (1 - torch.cos(torch.pi * fraction)) / 2
    return ar_weight - (ar_weight - 1) * fraction


@dataclass(frozen=True)
class Draws:
    """All random numbers of one training batch, on the CPU. B samples, L tokens."""

    sizes: list[int]
    """|κ_1| … |κ_S|, shared by the global batch so that no rank waits for a longer sequence."""
    orders: Tensor
    """(B, L) raster positions in visiting order."""
    times: Tensor
    """(B, R, 1) diffusion times shared over AR steps, or (B, R, S)."""
    noise: Tensor
    """(B, R, channels, height, width) standard normal, float32."""
    dropped: Tensor
    """(B,) bool: class replaced by the null class."""

    def part(self, rows: slice | Tensor) -> Draws:
        """Return the draws of some samples, with the same AR split."""
        return Draws(self.sizes, self.orders[rows], self.times[rows], self.noise[rows], self.dropped[rows])

    def with_times(self, times: Tensor) -> Draws:
        """Return the same draws with other diffusion times."""
        return dataclasses.replace(self, times=times)


def draw_split(config: ObjectiveConfig, num_tokens: int, seed: int, step: int) -> list[int]:
    """Draw the AR split of one training step. It is the same on every rank, because the step alone seeds it.

    Raises:
        ValueError: a fixed S exceeds the number of tokens.
    """
    generator = draws.stream(seed, "ar split", step)
    if config.num_ar_steps is not None:
        return equal_step_sizes(num_tokens, config.num_ar_steps)
    num_steps = sample_num_ar_steps(num_tokens, config.ar_decay, generator)
    return random_step_sizes(num_tokens, num_steps, generator)


def draw(
    model: ModelConfig,
    objective: ObjectiveConfig,
    diffusion: DiffusionConfig,
    *,
    seed: int,
    step: int,
    samples: range,
) -> Draws:
    """Draw the random numbers of one training step for the samples numbered `samples`.

    Args:
        seed: the run's seed.
        step: the optimizer step, counted from 0.
        samples: global sample numbers (images seen before each one). A sample's draws depend on seed and number,
            and on S with times per AR step.
    """
    generators = draws.sample_streams(seed, "training sample", samples)
    sizes = draw_split(objective, model.num_tokens, seed, step)
    copies, times = objective.time_copies, len(sizes) if objective.time_sampling == "per_step" else 1
    return Draws(
        sizes=sizes,
        orders=patch_orders(objective.patch_order, model.grid_size, generators, block=objective.order_block),
        times=sample_times(diffusion.num_train_steps, generators, copies, times),
        noise=draws.randn_each(generators, copies, model.in_channels, model.input_size, model.input_size),
        dropped=torch.stack([torch.rand((), generator=g) for g in generators]) < objective.class_dropout,
    )


class Predictor(Protocol):
    """Model, or an engine that is called like one."""

    def __call__(
        self, noised: Tensor, clean: Tensor, positions: Tensor, t: Tensor, labels: Tensor, plan: AttentionPlan
    ) -> Tensor: ...


@dataclass(frozen=True)
class Loss:
    """Loss of one batch."""

    weighted: Tensor
    """Scalar to minimise: mean of w(s) times the squared error."""
    error_L: Tensor
    """(L,), detached: mean squared error of each token in visiting order."""

    @property
    def mse(self) -> Tensor:
        """Scalar, detached: mean squared error, comparable across λ."""
        return self.error_L.mean()


@dataclass(frozen=True)
class Prepared:
    """Draws of some samples, and all that follows from their AR split. Made on the host, read on the device."""

    sizes: list[int]
    """|κ_1| … |κ_S|."""
    orders: Tensor
    """(B, L) raster positions in visiting order."""
    times: Tensor
    """(B, R, 1) diffusion times shared over AR steps, or (B, R, L): those of each token in visiting order."""
    noise: Tensor
    """(B, R, channels, height, width)."""
    dropped: Tensor
    """(B,) bool: class replaced by the null class."""
    weights: Tensor
    """(L,) w(s) of each token in visiting order."""
    plan: AttentionPlan
    """Attention over the training sequence."""


@dataclass(frozen=True)
class Corrupted:
    """Images of a batch in visiting order, with noised copies of them. M = R · L noised tokens."""

    clean: Tensor
    """(B, L, P)."""
    noised: Tensor
    """(B, M, P)."""
    target: Tensor
    """(B, M, P): ε, x_0 or v."""
    order: Tensor
    """(B, L) raster positions."""
    times: Tensor
    """(B,) if all tokens of a sample share one, else (B, R) or (B, M)."""
    copies: int
    """R."""


class Objective:
    """Training loss of a batch, given its latents, labels and draws.

    A call does all of it. In training the host calls `prepare` ahead of time and copies the result to the device in
    one piece (`Slab`). `loss` then makes the host neither wait nor copy.

    Raises:
        ValueError: the model cannot be trained with this objective.
    """

    def __init__(self, model: Model, config: ObjectiveConfig, diffusion: DiffusionConfig) -> None:
        check_objective(model.config, config)
        self.model = model
        self.config = config
        self.prediction = diffusion.prediction
        self._scales = {torch.device("cpu"): diffusion.signal_and_noise_scales()}

    def __call__(self, predict: Predictor, latents: Tensor, labels: Tensor, drawn: Draws) -> Loss:
        """Return the loss of latents (B, channels, height, width) with labels (B,)."""
        return self.loss(predict, latents, labels, Slab(self.prepare(drawn), latents.device).on_device())

    def prepare(self, drawn: Draws, plan: AttentionPlan | None = None) -> Prepared:
        """Return the draws with all that the loss needs beside latents and labels, on the host.

        Args:
            drawn: the random numbers.
            plan: of the sequence. None: the sequence is [class | clean | time | padding | noised].
        """
        size, config = self.model.config, self.config
        if plan is None:
            layout = lay_out(
                drawn.sizes,
                class_tokens=size.num_class_tokens,
                copies=drawn.noise.shape[1],
                time_token=isinstance(size, CausalFusionConfig) and size.time_conditioning == "token",
                multiple=config.multiple(size.num_tokens, self.model.device.type),
            )
            plan = AttentionPlan.of(layout)
        step = step_of_token(drawn.sizes) if drawn.times.shape[2] > 1 else torch.zeros(1, dtype=torch.int64)
        return Prepared(
            sizes=drawn.sizes,
            orders=drawn.orders,
            times=drawn.times[:, :, step],
            noise=drawn.noise,
            dropped=drawn.dropped,
            weights=ar_weights(drawn.sizes, config.ar_weight, config.ar_weight_along, config.ar_weight_shape),
            plan=plan,
        )

    def loss(self, predict: Predictor, latents: Tensor, labels: Tensor, ready: Prepared) -> Loss:
        """Return the loss of latents (B, channels, height, width) with labels (B,), all on one device."""
        corrupted = self.corrupt(latents, ready)
        labels = labels.masked_fill(ready.dropped, self.model.config.null_class)
        known = corrupted.clean[:, : corrupted.clean.shape[1] - ready.sizes[-1]]
        prediction = predict(corrupted.noised, known, corrupted.order, corrupted.times, labels, ready.plan)
        return self.compare(prediction, corrupted.target, ready)

    def corrupt(self, latents: Tensor, ready: Prepared) -> Corrupted:
        """Noise latents (B, channels, height, width) at the times that were drawn."""
        copies, times = ready.noise.shape[1], ready.times
        x0_BLP = _reorder(self.model.patchify(latents), ready.orders)
        noise = self.model.patchify(ready.noise.to(latents.dtype).flatten(0, 1))
        noise = _reorder(noise, ready.orders.repeat_interleave(copies, 0))
        noise_BRLP = rearrange(noise, "(b r) l p -> b r l p", r=copies)
        scales = self._scales_on(latents.device)
        noised, target = noised_and_target(x0_BLP[:, None], noise_BRLP, times, scales, self.prediction)
        return Corrupted(
            clean=x0_BLP,
            noised=noised.flatten(1, 2),
            target=target.flatten(1, 2),
            order=ready.orders,
            times=times[:, 0, 0] if times[0].numel() == 1 else times.flatten(1),
            copies=copies,
        )

    def compare(self, prediction: Tensor, target: Tensor, ready: Prepared) -> Loss:
        """Return the loss of a prediction of the noised patches, (B, M, P), against their target."""
        precise = torch.promote_types(prediction.dtype, torch.float32)  # the model may compute in bf16
        squared = (prediction.to(precise) - target.to(precise)).square()
        error_L = rearrange(squared, "b (r l) p -> b r l p", r=ready.noise.shape[1]).mean(dim=(0, 1, 3))
        return Loss(weighted=(ready.weights * error_L).mean(), error_L=error_L.detach())

    def _scales_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t and √(1−ᾱ_t) on a device, where they stay."""
        if device not in self._scales:
            signal, sigma = self._scales[torch.device("cpu")]
            self._scales[device] = signal.to(device), sigma.to(device)
        return self._scales[device]


def check_objective(model: ModelConfig, objective: ObjectiveConfig) -> None:
    """Check that a model can be trained with an objective.

    Raises:
        ValueError: it cannot. The message says why.
    """
    many_times = objective.time_sampling != "shared" or objective.time_copies > 1
    text = model.text if isinstance(model, CausalFusionConfig) else None
    if (text is None) != (objective.text is None):
        raise ValueError(
            "objective.text trains on text, but the model has none: give model.text, or leave objective.text out"
            if text is None
            else "the model has text, but objective.text is null: give it, such as objective.text={share: 0.1}"
        )
    if isinstance(model, CausalFusionConfig):
        if model.architecture == "transfusion":
            _check_transfusion(objective, many_times)
        if model.time_conditioning == "token" and many_times:
            raise ValueError(
                "a time token carries one diffusion time per sample: use objective.time_sampling=shared and "
                "objective.time_copies=1, or model.time_conditioning=embedding"
            )
        return
    if not _one_ar_step(objective):
        raise ValueError("DiT has no AR steps: train it with objective.num_ar_steps=1")
    if many_times:
        raise ValueError(
            "DiT has one diffusion time per sample: use objective.time_sampling=shared and objective.time_copies=1"
        )


def _one_ar_step(objective: ObjectiveConfig) -> bool:
    return objective.ar_decay == 0 if objective.num_ar_steps is None else objective.num_ar_steps == 1


def _check_transfusion(objective: ObjectiveConfig, many_times: bool) -> None:
    if not _one_ar_step(objective):
        raise ValueError("a transfusion model has one AR step: train it with objective.num_ar_steps=1")
    if many_times or objective.ar_weight != 1:
        raise ValueError(
            "a transfusion model has one diffusion time per sample and no AR weight: use "
            "objective.time_sampling=shared, objective.time_copies=1 and objective.ar_weight=1"
        )


def _reorder(patches_BLP: Tensor, order_BL: Tensor) -> Tensor:
    return patches_BLP.gather(1, order_BL[:, :, None].expand_as(patches_BLP))
