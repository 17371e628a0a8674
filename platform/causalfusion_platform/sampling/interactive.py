"""Samples and edits of one model for people to look at, in this process."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from causalfusion import DiffusionConfig, Model, Prompts, SamplingConfig, edit, keep_region, load_weights
from causalfusion.sampling.edit import Region, keep_from_image
from causalfusion.text.tokenizer import Tokenizer
from causalfusion.weights import load_diffusion

from ..config.errors import UserError
from ..data.autoencoder import Encoder, open_autoencoder
from ..data.manifest import AutoencoderId
from .generate import Request, generate
from .grid import sample_grid
from .labels import parse_classes
from .prompts import as_prompts, check_asked, tokenizer_of
from .settings import WITHOUT_AR_STEPS, describe_sampling, num_ar_steps
from .text_grid import prompt_grid

REGIONS = get_args(Region)

Show = Callable[[int, int], None]
"""Called with the number of diffusion steps done, and of all."""

Rows = Sequence[int] | Sequence[str]
"""Condition of each row of a picture: classes, or prompts of a model of text."""

_BATCH = 64


@dataclass(frozen=True)
class InteractiveSampler:
    """A model with everything it needs to generate images."""

    model: Model
    sampling: SamplingConfig
    diffusion: DiffusionConfig
    autoencoder: Encoder
    class_names: Sequence[str] | None = None
    """The name of each class, or None if they are not known."""
    tokenizer: Tokenizer | None = None
    """That of a model of text, or None for a model of classes."""

    @classmethod
    def open(
        cls,
        weights: Path,
        defaults: SamplingConfig,
        settings: Sequence[str],
        vae: Path | None,
        diffusion: DiffusionConfig | None = None,
        made: AutoencoderId | None = None,
    ) -> InteractiveSampler:
        """Load the model in a folder of weights.

        Args:
            defaults: settings of sampling that `settings` leave out.
            settings: `key=value` of `SamplingConfig`.
            vae: the autoencoder, as `open_autoencoder` takes it.
            diffusion: the noise process of training. Default: that beside the weights.
            made: the autoencoder of the latents of training. None: not known.

        Raises:
            UserError: a setting is wrong, does not fit the model, or the autoencoder or the tokenizer is missing or
                another one.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = load_weights(weights, device=device)
            diffusion = diffusion or load_diffusion(weights)
        except (RuntimeError, ValueError) as error:
            raise UserError(str(error)) from error
        sampling = parse_settings(settings, defaults)
        baseline = WITHOUT_AR_STEPS.get(model.config.architecture)
        if baseline is not None and num_ar_steps(sampling) > 1:
            raise UserError(f"a {baseline} has no AR steps: num_ar_steps must be 1, got {num_ar_steps(sampling)}")
        autoencoder = open_autoencoder(vae, model.config.in_channels, device, made=made)
        return cls(model, sampling, diffusion, autoencoder, tokenizer=tokenizer_of(weights, model.config))

    def rows(self, labels: str | None, texts: Sequence[str]) -> Rows:
        """Return the conditions that were typed, by default class 0.

        Raises:
            UserError: labels and prompts are mixed, do not fit the model, or a prompt is empty or too long.
        """
        check_asked(self.model.config, labels, texts)
        if self.tokenizer is None:
            return self.parse_labels("0" if labels is None else labels)
        as_prompts(texts, self.tokenizer, self.model.config)
        return texts

    def parse_labels(self, text: str) -> list[int]:
        """Read classes such as 3, 0,2,7, 0-9 or cat,dog.

        Raises:
            UserError: it is none of these, or the model has no such class.
        """
        return parse_classes(text, self.model.config.num_classes, self.class_names)

    def name_of(self, row: int | str) -> str:
        """Return a prompt, the name of a class, or its number if names are not known."""
        return str(row) if isinstance(row, str) or self.class_names is None else self.class_names[row]

    def describe(self) -> str:
        """Return the settings of sampling as text."""
        return describe_sampling(self.model.config, self.sampling)

    def sample(self, rows: Rows, per_row: int, seed: int, show: Show = lambda *_: None) -> Tensor:
        """Generate images of each row in turn, `per_row` of each: (len(rows) · per_row, 1 or 3, H, W)."""
        return self.autoencoder.decode(self._generate(self._condition(rows, per_row), seed, show))

    def originals(self, source: str, count: int, seed: int, show: Show = lambda *_: None) -> Tensor:
        """Return latents to edit: generated ones, or those of one image file, (count, channels, h, w).

        Args:
            source: an image file, a class, or a prompt of a model of text.

        Raises:
            UserError: it is none of these.
        """
        if not _is_file(source):
            return self._generate(self._condition([self._row_of(source)], count), seed, show)
        latents, _ = self.autoencoder.encode(self._read_image(Path(source))[None])
        return latents.expand(count, -1, -1, -1)

    def edit(self, latents: Tensor, keep: str, rows: Rows, seed: int, show: Show = lambda *_: None) -> Tensor:
        """Regenerate the parts not kept, for each row in turn: (len(rows) · count, 1 or 3, H, W) images.

        Raises:
            UserError: `keep` is neither a region nor an image.
        """
        size = self.model.config.input_size
        if keep in REGIONS:
            mask = keep_region(keep, size)  # type: ignore[arg-type]
        elif Path(keep).is_file():
            try:
                mask = keep_from_image(Path(keep), size)
            except OSError as error:
                raise UserError(f"{keep} is not a readable image: {error}") from error
        else:
            raise UserError(f"--keep {keep!r} is no image file and none of {', '.join(REGIONS)}")
        condition = self._condition(rows, len(latents))
        many = latents.repeat(len(rows), 1, 1, 1)
        parts, on_step = [], self._counted(len(many), show)
        for start in range(0, len(many), _BATCH):
            some = range(start, min(start + _BATCH, len(many)))
            part = many[some.start : some.stop].to(self.model.device)
            try:
                # The seed differs from the originals', because the same noise would bring the same image back.
                edited = edit(
                    self.model,
                    part,
                    mask,
                    condition[some.start : some.stop],
                    self.sampling,
                    self.diffusion,
                    seed=seed + 1,
                    indices=some,
                    on_step=on_step,
                )
            except ValueError as error:
                raise UserError(str(error)) from error
            parts.append(edited.cpu())
        return self.autoencoder.decode(torch.cat(parts))

    def draw(self, images: Tensor, rows: Rows, path: Path) -> None:
        """Write a grid of images, as many of each row."""
        self._save(images, [self.name_of(row) for row in rows], path)

    def draw_edits(self, latents: Tensor, edited: Tensor, original: str, rows: Rows, path: Path) -> None:
        """Write a grid: the originals in the first row, then their edits row by row."""
        name = "original" if _is_file(original) else f"from {self.name_of(self._row_of(original))}"
        names = [name, *(f"to {self.name_of(row)}" for row in rows)]
        self._save(torch.cat([self.autoencoder.decode(latents.cpu()), edited]), names, path)

    def _row_of(self, source: str) -> int | str:
        """Return the prompt, or the first class, that originals are generated from."""
        if self.tokenizer is None:
            return self.parse_labels(source)[0]
        if _is_picture(Path(source)):
            raise UserError(f"there is no image {source}\n  name an image file, or a prompt: --from FILE or TEXT")
        return source

    def _condition(self, rows: Sequence[int | str], each: int) -> Tensor | Prompts:
        """Return the condition of every sample, `each` of a row."""
        if self.tokenizer is None:
            return torch.tensor(rows).repeat_interleave(each)
        prompts = as_prompts([str(row) for row in rows], self.tokenizer, self.model.config)
        return prompts[torch.arange(len(rows)).repeat_interleave(each)]

    def _save(self, images: Tensor, names: list[str], path: Path) -> None:
        images, columns = images.float().cpu(), len(images) // len(names)
        cell = max(48, min(images.shape[-1], 256))
        if self.tokenizer is None:
            numbers = torch.arange(len(names)).repeat_interleave(columns)
            grid = sample_grid(images, numbers, names, columns=columns, cell=cell)
        else:
            grid = prompt_grid(names, images, cell=cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)

    def _generate(self, condition: Tensor | Prompts, seed: int, show: Show) -> Tensor:
        request = Request(condition, self.sampling, self.diffusion, seed, bf16=False, batch_size=_BATCH)
        try:
            on_step = self._counted(len(condition), show)
            return generate(self.model, request, list(range(len(condition))), on_step=on_step)
        except ValueError as error:
            raise UserError(f"{error} (the model has {self.model.config.num_tokens} image tokens)") from error

    def _counted(self, samples: int, show: Show) -> Callable[[], None]:
        """Return a function that counts the diffusion steps of so many samples, and shows them."""
        total, done = math.ceil(samples / _BATCH) * self.sampling.total_steps, itertools.count(1)
        return lambda: show(next(done), total)

    def _read_image(self, path: Path) -> NDArray[np.uint8]:
        """Read an image at the size and in the channels that the model's latents come from: (H, W, C)."""
        channels = self.autoencoder.image_channels
        size = self.model.config.input_size * self.autoencoder.downsampling
        try:
            with Image.open(path) as image:
                pixels = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BOX)
        except OSError as error:
            raise UserError(f"{path} is not a readable image: {error}") from error
        return np.asarray(pixels, dtype=np.uint8).reshape(size, size, channels)


def parse_settings(settings: Sequence[str], defaults: SamplingConfig) -> SamplingConfig:
    """Apply `key=value` settings to a sampling configuration.

    Raises:
        UserError: an unknown key, or a value that is not allowed.
    """
    keys = [field.name for field in dataclasses.fields(SamplingConfig)]
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key.removeprefix("sampling.") not in keys:
            raise UserError(f"setting {setting!r} is not KEY=VALUE with one of the keys {', '.join(keys)}")
        try:
            changes[key.removeprefix("sampling.")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"setting {setting!r} cannot be read: {' '.join(str(error).split())}") from error
    # Given sizes also set S, so the default's S does not apply.
    if isinstance(changes.get("step_sizes"), list):
        changes.setdefault("num_ar_steps", 1)
    elif "num_ar_steps" in changes and not isinstance(defaults.step_sizes, str):
        changes.setdefault("step_sizes", "equal")
    try:
        return TypeAdapter(SamplingConfig).validate_python({**dataclasses.asdict(defaults), **changes})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'][:1])) or 'sampling'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise UserError(f"settings {' '.join(settings)}: {faults}") from error


def check_picture(path: Path) -> None:
    """Check that an image can be written to a path, before it is generated.

    Raises:
        UserError: its suffix is not one of an image format.
    """
    if not _is_picture(path):
        raise UserError(f"{path} has no suffix of pictures; name it such as samples.png")


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # such as a prompt that is longer than names of files may be
        return False


def _is_picture(path: Path) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE
