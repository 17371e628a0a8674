"""CausalFusion as a diffusers pipeline: from classes or text to images, and from images to text.

Saving and loading are those of diffusers.

Saved folders name this module, so it must keep its name.

Shapes: B samples.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ConfigMixin,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from PIL import Image
from torch import Tensor

from ..attention.plan import AttentionPlan
from ..config import CausalFusionConfig, PatchOrder, TextConfig
from ..factorization.sequence import lay_out
from ..model import CONFIGS, Model, build_model
from ..noise.diffusion import DiffusionConfig
from ..noise.samplers import SamplerName
from ..noise.scheduler import check_one_of, read_scheduler
from ..text.prompts import Prompts, encode_prompts
from ..text.tokenizer import Tokenizer
from ..weights import load_diffusion, load_weights
from ..weights.folder import TOKENIZER_FILE, check_tokenizer, load_tokenizer
from ..weights.vae import decode_latents, encode_images, vae_scale_factor
from .caption import CaptionConfig, caption
from .guidance import GuidanceSchedule
from .sample import SamplingConfig, sample
from .step_schedule import StepSchedule

OutputType = Literal["pil", "np", "pt", "latent"]

_TOKENIZER = "tokenizer"
"""Folder of the tokenizer in a saved pipeline, as diffusers names it."""


class CausalFusionTransformer2DModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """CausalFusion or DiT as a diffusers model: `config.json` and `diffusion_pytorch_model.safetensors`.

    Its configuration has the fields of the model's. As in diffusers, `from_pretrained` returns float32 weights
    unless `dtype` is given.

    Raises:
        ValueError: unknown architecture, or sizes that do not fit.
    """

    config_name = "config.json"
    model: Model
    """The network itself."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        architecture = fields.get("architecture", "causalfusion")
        if architecture not in CONFIGS:
            raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(CONFIGS)}")
        config = CONFIGS[architecture](**fields)
        self.register_to_config(**dataclasses.asdict(config))
        # diffusers changes the default type to load weights in it, but sinusoids are always float32.
        self.model = build_model(config).to(torch.get_default_dtype())

    @classmethod
    def from_model(cls, model: Model) -> Self:
        """Return a model of diffusers that shares its weights with `model`.

        Raises:
            ValueError: the model's grid differs from its configuration's, which `config.json` cannot express.
        """
        side = model.config.grid_size
        if model.grid != (side, side):
            raise ValueError(f"the model must be on its {side}×{side} grid of training, got {model.grid}")
        with torch.device("meta"):
            wrapper = cls(**dataclasses.asdict(model.config))
        wrapper.model = model
        return wrapper

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Predict ε, x_0 or v for whole latents, in one AR step (S = 1).

        Args:
            hidden_states: (B, channels, height, width) noised latents.
            timestep: diffusion times, one number or (B,).
            class_labels: (B,) classes. `config.num_classes` is the null class. None in a model without classes.
            return_dict: return a `Transformer2DModelOutput` in place of a tuple.
            input_ids: (B, T) text tokens of a model of text. None: no text, the unconditional branch.
            attention_mask: (B, T), 1 for text and 0 for the padding behind it. None: no padding.

        Returns:
            The prediction, (B, channels, height, width), as `.sample`.

        Raises:
            ValueError: the model lacks a condition that is given, needs one that is not, or padding precedes text.
        """
        model, config = self.model, self.model.config
        patches = model.patchify(hidden_states)
        positions = torch.arange(config.num_tokens, device=patches.device).expand(len(patches), -1)
        time_token = isinstance(config, CausalFusionConfig) and config.time_conditioning == "token"
        layout = lay_out(
            [config.num_tokens],
            class_tokens=config.num_class_tokens,
            text_before=0 if input_ids is None else input_ids.shape[1],
            time_token=time_token,
        )
        t = torch.as_tensor(timestep, device=patches.device).reshape(-1).expand(len(patches))
        plan = AttentionPlan.of(layout, _text_lengths(input_ids, attention_mask))
        options: dict[str, Any] = {} if input_ids is None else {"text_before_BT": self._checked(input_ids)}
        prediction = model(patches, patches[:, :0], positions, t, class_labels, plan, **options)
        prediction = model.unpatchify(prediction)
        return Transformer2DModelOutput(sample=prediction) if return_dict else (prediction,)

    def _checked(self, input_ids: Tensor) -> Tensor:
        if text_of(self.model) is None:
            raise ValueError("this model has no text: give class_labels in place of input_ids")
        return input_ids


def text_of(model: Model) -> TextConfig | None:
    """Return the text of a model. None: it draws images of classes."""
    return model.config.text if isinstance(model.config, CausalFusionConfig) else None


def _text_lengths(input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """Return the number of text tokens of each sample. None: all have as many."""
    if attention_mask is None:
        return None
    if input_ids is None or attention_mask.shape != input_ids.shape:
        shape = None if input_ids is None else tuple(input_ids.shape)
        raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must have the shape of input_ids, {shape}")
    present = attention_mask.bool()
    if bool((present[:, 1:] & ~present[:, :-1]).any()):
        raise ValueError("attention_mask must have its zeros behind the text of each sample")
    return present.sum(dim=1).cpu()


# diffusers takes from the signature which entries of config.json are arguments.
CausalFusionTransformer2DModel.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in sorted({field.name for config in CONFIGS.values() for field in dataclasses.fields(config)})
    ]
)


class CausalFusionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Generate images of classes or of text, and describe images.

    A model of text takes `prompt` in place of `class_labels`, and has `caption`.

    `from_pretrained` and `save_pretrained` are those of diffusers. Call `from_pretrained` of this class, because
    `DiffusionPipeline.from_pretrained` finds the pipelines of diffusers only.

    The scheduler's settings are the noise process of training. Its class selects the sampler: `DDPMScheduler`,
    `DDIMScheduler`, `DPMSolverMultistepScheduler` or `UniPCMultistepScheduler`. To change the sampler:

        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    The scheduler's own loop is not run. Settings that `causalfusion.noise.samplers` does not support are refused.

    Args:
        transformer: the network.
        scheduler: the noise process and the sampler.
        vae: the autoencoder of the latents. None: latents are pixels in [−1, 1].
        id2label: the name of each class, with synonyms between commas ("tabby, tabby cat").
        tokenizer: that of a model of text.

    Raises:
        ValueError: a number in `id2label` is not a class, or the tokenizer is not that of the model.
    """

    _optional_components = ["vae", "tokenizer"]  # noqa: RUF012 (diffusers declares it without ClassVar)

    def __init__(
        self,
        transformer: CausalFusionTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
        id2label: dict[Any, str] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        text = text_of(transformer.model)
        if tokenizer is not None:
            if text is None:
                raise ValueError("the model draws classes and has no text: leave out the tokenizer")
            check_tokenizer(text, tokenizer, "the tokenizer")
        if text is not None and id2label is not None:
            raise ValueError("the model draws from text and has no classes: leave out id2label")
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, tokenizer=tokenizer)
        # JSON's keys are strings.
        names = None if id2label is None else {str(label): name for label, name in id2label.items()}
        self.register_to_config(id2label=names)
        self.class_numbers: dict[str, list[int]] = {}
        num_classes = transformer.model.config.num_classes
        for number, name in (names or {}).items():
            if not (number.isdecimal() and int(number) < num_classes):
                raise ValueError(f"id2label must name classes in [0, {num_classes - 1}], got class {number!r}")
            for synonym in {name, *(part.strip() for part in name.split(","))}:
                self.class_numbers.setdefault(synonym, []).append(int(number))

    @classmethod
    def from_model(
        cls,
        model: Model,
        diffusion: DiffusionConfig,
        vae: Any = None,
        id2label: dict[int, str] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Self:
        """Return a pipeline that shares its weights with `model`.

        Args:
            model: the network, usually with EMA weights.
            diffusion: the noise process of training.
            vae: as for the class, like `id2label` and `tokenizer`.

        Raises:
            ValueError: the model is not on its grid of training, or the class refuses the others.
        """
        transformer = CausalFusionTransformer2DModel.from_model(model)
        return cls(transformer, diffusion.scheduler(), vae, id2label, tokenizer)

    @classmethod
    def from_weights(cls, folder: Path | str, vae: Any = None, id2label: dict[int, str] | None = None) -> Self:
        """Return a pipeline for a folder of `save_weights`. `vae` and `id2label` are as for the class.

        The tokenizer of a model of text is the one beside its weights.

        Raises:
            FileNotFoundError: a file of the folder is missing.
            RuntimeError: keys or shapes differ from the configuration.
            ValueError: the configuration is not of a known model, the tokenizer is missing or another one, or a
                number in `id2label` is not a class.
        """
        model = load_weights(folder)
        tokenizer = None if text_of(model) is None else load_tokenizer(folder)
        return cls.from_model(model, load_diffusion(folder), vae, id2label, tokenizer)

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> None:
        """Write a folder of components. The options are those of diffusers.

        Raises:
            ValueError: `push_to_hub` of a model of text. Save it into a folder, and upload that.
        """
        # diffusers leaves out a component that was None when the pipeline was made.
        self.register_modules(vae=self.vae)
        if (tokenizer := self.tokenizer) is not None and options.get("push_to_hub"):
            raise ValueError("push_to_hub would leave out the tokenizer: save into a folder, and upload that")
        # diffusers saves and loads no tokenizers but those of transformers.
        self.register_modules(tokenizer=None)
        try:
            super().save_pretrained(save_directory, **options)
        finally:
            self.register_modules(tokenizer=tokenizer)
        if tokenizer is not None:
            folder = Path(save_directory) / _TOKENIZER
            folder.mkdir(exist_ok=True)
            (folder / TOKENIZER_FILE).write_text(tokenizer.json, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: Path | str, **options: Any) -> Self:
        """Load a pipeline as diffusers does, with the tokenizer in its folder.

        Of a repository of the Hub, the tokenizer is not loaded: give `tokenizer=Tokenizer.read(…)`.
        """
        folder = Path(name) / _TOKENIZER
        if (folder / TOKENIZER_FILE).is_file():
            options.setdefault("tokenizer", Tokenizer.read(folder))
        loaded: Self = super().from_pretrained(name, **options)
        return loaded

    @property
    def diffusion(self) -> DiffusionConfig:
        """Noise process of the scheduler."""
        return read_scheduler(self.scheduler)[1]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        guidance_schedule: GuidanceSchedule = "constant",
        num_ar_steps: int = 1,
        step_sizes: Literal["equal", "random"] | Sequence[int] = "equal",
        num_inference_steps: int | Sequence[int] = 250,
        step_schedule: StepSchedule = "constant",
        last_inference_steps: int | None = None,
        patch_order: PatchOrder = "random",
        order_block: int = 4,
        sampler: SamplerName | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate one image for each class or prompt. `SamplingConfig` explains the sampling options.

        Args:
            class_labels: numbers or names of classes, or one of them. The number of classes is the null class.
            prompt: texts, or one of them, in place of classes for a model of text.
            guidance_scale: w. 1 turns guidance off.
            guidance_interval: diffusion times [low, high) with guidance.
            guidance_schedule: `constant`, `linear` or `linear_ar`.
            num_ar_steps: AR steps.
            step_sizes: `equal`, `random`, or a list of tokens per AR step.
            num_inference_steps: diffusion steps per AR step, or a list with one number for each.
            step_schedule: `constant`, or falling over AR steps: `linear`, `cosine` or `two_stage`.
            last_inference_steps: diffusion steps of the last AR step. Those of the first are `num_inference_steps`.
            patch_order: `random`, `raster`, `blockwise` or `dilated`.
            order_block: block side or stride of the order, in patches.
            sampler: `ddpm`, `ddim`, `dpm-solver++` or `unipc` (default: that of the scheduler's class).
            generator: source of the seed of `causalfusion.sample`, one draw of 32 bits
                (`torch.randint(2**32, (1,), generator=generator)`). In a list, each sample's generator makes such a
                draw, and a sample is the same in any batch. `random` step sizes, which all samples share, are then
                the same in every call. Default: torch's own generator.
            output_type: `pil` gives 8-bit images, gray ("L") or RGB, 127.5 · x + 127.5 rounded to nearest. `np`
                gives (B, height, width, channels) in [0, 1], `pt` (B, channels, height, width) in [0, 1], and
                `latent` the result of `causalfusion.sample`.
            return_dict: return an `ImagePipelineOutput` in place of a tuple.

        Returns:
            An `ImagePipelineOutput` with `.images`, or (images,).

        Raises:
            ValueError: an argument, the scheduler or the autoencoder does not fit. The message says what does.
        """
        check_one_of("output_type", output_type, get_args(OutputType))
        check_one_of("guidance_schedule", guidance_schedule, get_args(GuidanceSchedule))
        check_one_of("step_schedule", step_schedule, get_args(StepSchedule))
        if output_type != "latent":
            self._check_vae()
        named, diffusion = read_scheduler(self.scheduler)
        config = SamplingConfig(
            num_ar_steps=num_ar_steps,
            step_sizes=step_sizes if isinstance(step_sizes, str) else tuple(step_sizes),
            num_inference_steps=(
                num_inference_steps if isinstance(num_inference_steps, int) else tuple(num_inference_steps)
            ),
            step_schedule=step_schedule,
            last_inference_steps=last_inference_steps,
            sampler=sampler or named,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            guidance_interval=guidance_interval,
            patch_order=patch_order,
            order_block=order_block,
        )
        condition = self._condition(class_labels, prompt)
        kind = "prompts" if isinstance(condition, Prompts) else "class_labels"
        seed, indices = _seeds(generator, len(condition), kind)
        latents = sample(self.transformer.model, condition, config, diffusion, seed=seed, indices=indices)
        decoded = latents if output_type == "latent" or self.vae is None else decode_latents(self.vae, latents)
        images = VaeImageProcessor().postprocess(decoded, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def caption(
        self,
        images: Any,
        *,
        prompt: str = "",
        beam: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> list[str]:
        """Describe images with a model of text. `CaptionConfig` explains the options of decoding.

        Args:
            images: as diffusers takes them: PIL images, arrays (B, height, width, channels) or tensors
                (B, channels, height, width) in [0, 1], or one of them. PIL images are cropped to the centred square
                and resized to the size that the model takes.
            prompt: text that each caption begins with.
            beam: hypotheses of a beam search. 1 is greedy.
            temperature: of sampling. 0 takes the most probable token.
            top_p: sample among the most probable tokens that together have this probability.
            max_tokens: tokens of a caption, those that begin and end it included. Default: the model's most.
            generator: source of the seed of sampled captions, as for the images of a call.

        Returns:
            The caption of each image, with its given beginning.

        Raises:
            ValueError: the model has no text, or an argument does not fit.
        """
        _, tokenizer = self._text_parts()
        config = CaptionConfig(beam=beam, temperature=temperature, top_p=top_p, max_tokens=max_tokens)
        latents = self._encode(images)
        seed, indices = _seeds(generator, len(latents), "images")
        found = caption(
            self.transformer.model,
            latents,
            begin=tokenizer.begin,
            end=tokenizer.end,
            config=config,
            beginning=tokenizer.encode(prompt)[1:-1],
            vocabulary=tokenizer.size,
            seed=seed,
            indices=indices,
        )
        return [tokenizer.decode(found[row]) for row in range(len(found))]

    def _encode(self, images: Any) -> Tensor:
        """Return the latents of images."""
        self._check_vae()
        config = self.transformer.model.config
        factor = 1 if self.vae is None else vae_scale_factor(self.vae)
        channels, size = config.in_channels if self.vae is None else 3, config.input_size * factor
        processor = VaeImageProcessor(
            vae_scale_factor=factor,
            vae_latent_channels=-1,
            do_convert_rgb=channels == 3,
            do_convert_grayscale=channels == 1,
        )
        crops = isinstance(images, Image.Image) or (isinstance(images, list) and isinstance(images[0], Image.Image))
        pixels = processor.preprocess(images, size, size, resize_mode="crop" if crops else "default")
        return pixels if self.vae is None else encode_images(self.vae, pixels)

    def _condition(
        self, class_labels: int | str | Sequence[int | str] | None, prompt: str | Sequence[str] | None
    ) -> Tensor | Prompts:
        """Return the classes or the prompts that were given."""
        if (class_labels is None) == (prompt is None):
            given = "none of them" if prompt is None else "both"
            raise ValueError(f"give class_labels or prompt, got {given}")
        if class_labels is not None:
            if text_of(self.transformer.model) is not None:
                raise ValueError("this model draws from text: give prompt in place of class_labels")
            return torch.tensor(self.get_label_ids(class_labels))
        if text_of(self.transformer.model) is None:
            raise ValueError("this model draws classes: give class_labels in place of prompt")
        text, tokenizer = self._text_parts()
        texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        if not texts:
            raise ValueError("prompt must have at least one text, got none")
        return encode_prompts(texts, tokenizer, text.max_tokens)

    def _text_parts(self) -> tuple[TextConfig, Tokenizer]:
        """Return the text of the model and its tokenizer.

        Raises:
            ValueError: one is missing.
        """
        text = text_of(self.transformer.model)
        if text is None:
            raise ValueError("this model draws classes and has no text")
        if self.tokenizer is None:
            raise ValueError("this pipeline has no tokenizer: give tokenizer=… when it is made or loaded")
        return text, self.tokenizer

    def get_label_ids(self, class_labels: int | str | Sequence[int | str]) -> list[int]:
        """Return the numbers of classes given by number or by name.

        Raises:
            ValueError: the list is empty, or a class is unknown, ambiguous or out of range.
        """
        several = isinstance(class_labels, Sequence) and not isinstance(class_labels, str)
        wanted: Sequence[Any] = class_labels if several else [class_labels]  # type: ignore[assignment]
        if not wanted:
            raise ValueError("class_labels must name at least one class, got none")
        return [self._label_id(label) for label in wanted]

    def _label_id(self, label: Any) -> int:
        null_class = self.transformer.model.config.null_class
        if isinstance(label, str):
            numbers = self.class_numbers.get(label, [])
            if len(numbers) > 1:
                raise ValueError(f"the class name {label!r} stands for several classes: {numbers}; give a number")
            if not numbers:
                near = difflib.get_close_matches(label, self.class_numbers, cutoff=0)
                known = f"nearest of those known: {near}" if near else "this pipeline has no names (id2label)"
                raise ValueError(f"unknown class name {label!r}; {known}; numbers: 0 to {null_class - 1}")
            return numbers[0]
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"class_labels must be numbers or names of classes, got {label!r}") from None
        if not 0 <= number <= null_class:
            raise ValueError(
                f"class_labels must lie in [0, {null_class - 1}], or be {null_class} for no class, got {number}"
            )
        return number

    def _check_vae(self) -> None:
        channels = self.transformer.model.config.in_channels
        if self.vae is None and channels not in (1, 3):
            raise ValueError(
                f"latents of {channels} channels need an autoencoder to become images: load the pipeline with "
                'vae=AutoencoderKL…, or ask for output_type="latent"; latents of 1 or 3 channels need none'
            )
        if self.vae is not None and self.vae.config.latent_channels != channels:
            raise ValueError(
                f"the autoencoder has {self.vae.config.latent_channels} latent channels, the model {channels}"
            )


def _seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int, kind: str
) -> tuple[int, list[int]]:
    """Return the seed and the numbers of samples."""
    if not isinstance(generator, Sequence):
        return _draw_seed(generator), list(range(count))
    if len(generator) != count:
        raise ValueError(f"{count} {kind} need as many generators, got {len(generator)}")
    return 0, [_draw_seed(each) for each in generator]


def _draw_seed(generator: torch.Generator | None) -> int:
    """Draw 32 bits from a generator, or from torch's own without one."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**32, (1,), generator=generator, device=device))
