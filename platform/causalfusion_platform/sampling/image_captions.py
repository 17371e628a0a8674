"""Captions of image files by a model of text, in this process."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from causalfusion import CaptionConfig, Model, TextConfig, load_weights
from causalfusion.representation import (
    Captioner,
    CaptionerConfig,
    is_captioner,
    load_captioner_tokenizer,
    load_finetuned,
)
from causalfusion.sampling.caption import check_caption_steps
from causalfusion.text.tokenizer import Tokenizer

from ..config.errors import UserError
from ..data.autoencoder import Encoder, open_autoencoder
from ..data.faults import parse_policies
from ..data.images import decode_image
from ..data.manifest import AutoencoderId
from .describe import Description, describe
from .prompts import text_of, tokenizer_of

Show = Callable[[int, int], None]
"""Called with the number of images done, and of all."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of the files of a folder that are images."""

_BATCH = 64
_MOST_PIXELS = 1 << 28
_LAST_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class ImageCaptioner:
    """A model of text, or a fine-tuned captioner, with everything it needs to describe image files."""

    model: Model | Captioner
    tokenizer: Tokenizer
    autoencoder: Encoder

    @classmethod
    def open(cls, weights: Path, vae: Path | None, made: AutoencoderId | None = None) -> ImageCaptioner:
        """Load the model in a folder of weights.

        Args:
            weights: the folder.
            vae: the autoencoder, as `open_autoencoder` takes it.
            made: the autoencoder of the latents of training. None: not known.

        Raises:
            UserError: the model has no text, its tokenizer or its autoencoder is missing or another one.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if is_captioner(weights):
            return cls._open_captioner(weights, vae, made, device)
        try:
            model = load_weights(weights, device=device)
        except (RuntimeError, ValueError) as error:
            raise UserError(str(error)) from error
        tokenizer = tokenizer_of(weights, model.config)
        if tokenizer is None:
            raise UserError(
                f"the model in {weights} draws classes and knows no text, so that it cannot describe images\n"
                f"  name a run of task=text_image or task=captioning: causalfusion train text"
            )
        return cls(model, tokenizer, open_autoencoder(vae, model.config.in_channels, device, made=made))

    @classmethod
    def _open_captioner(
        cls, weights: Path, vae: Path | None, made: AutoencoderId | None, device: str
    ) -> ImageCaptioner:
        try:
            model, tokenizer = load_finetuned(weights, device=device), load_captioner_tokenizer(weights)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(str(error)) from error
        assert isinstance(model, Captioner)
        return cls(model, tokenizer, open_autoencoder(vae, model.config.backbone.in_channels, device, made=made))

    @property
    def text(self) -> TextConfig:
        """Sizes of the model's texts."""
        text = self.model.config.text if isinstance(self.model, Captioner) else text_of(self.model.config)
        assert text is not None
        return text

    def check(self, config: CaptionConfig, beginning: str) -> None:
        """Check that captions of these options can be made.

        Raises:
            UserError: more tokens or AR steps are asked for than the model takes, or the beginning leaves no room
                for more tokens.
        """
        try:
            if not isinstance(self.model, Captioner):
                check_caption_steps(self.model.config, config.num_ar_steps)
            elif config.num_ar_steps != 1:
                raise ValueError(f"a captioner reads images at once, not in {config.num_ar_steps} AR steps")
        except ValueError as error:
            raise UserError(f"{error}\n  for one step: leave out --ar-steps") from error
        text = self.text
        limit = config.max_tokens or text.max_tokens
        if limit > text.max_tokens:
            raise UserError(f"--max-tokens {limit} is more than the {text.max_tokens} tokens that the model takes")
        given = len(self.tokenizer.encode(beginning)) - 1 if beginning else 1
        if given >= limit:
            raise UserError(
                f"--prompt {beginning!r} has {given} tokens, the first of all texts included, and a caption has at "
                f"most {limit}\n  shorten it"
            )

    def encode(self, images: Sequence[Path], show: Show = lambda *_: None) -> Tensor:
        """Return the latents of image files: (B, channels, h, w). Files are cropped as for training.

        Raises:
            UserError: a file is not a readable image.
        """
        parts = []
        for start in range(0, len(images), _BATCH):
            pixels = np.stack([self._read(path) for path in images[start : start + _BATCH]])
            parts.append(self.autoencoder.encode(pixels)[0])
            show(min(start + _BATCH, len(images)), len(images))
        return torch.cat(parts)

    def describe(
        self, latents: Tensor, config: CaptionConfig, beginning: str, seed: int, show: Show = lambda *_: None
    ) -> Description:
        """Return the captions of latents.

        Raises:
            UserError: the options do not fit the model.
        """
        batches, total = 0, len(latents)

        def alive() -> None:
            nonlocal batches
            batches += 1
            show(min(batches * size, total), total)

        size = max(math.floor(_BATCH / config.beam), 1)
        try:
            return describe(
                self.model,
                latents,
                self.tokenizer,
                config,
                beginning=beginning,
                seed=seed,
                batch_size=size,
                alive=alive,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images that the model saw: (B, 1 or 3, H, W) in about [−1, 1]."""
        return self.autoencoder.decode(latents)

    def _read(self, path: Path) -> NDArray[np.uint8]:
        """Read an image as `data encode` does: (size, size, channels)."""
        config = self.model.config
        backbone = config.backbone if isinstance(config, CaptionerConfig) else config
        size = backbone.input_size * self.autoencoder.downsampling
        try:
            content: bytes | OSError = path.read_bytes()
        except OSError as error:
            content = error
        pixels, findings = decode_image(content, path.name, size, parse_policies([]), _MOST_PIXELS)
        if pixels is None:
            raise UserError(f"{path} is not a readable image: {findings[-1].kind}: {findings[-1].detail}")
        if self.autoencoder.image_channels == 1:
            return np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.uint8)[..., None]
        return pixels


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that were named, and those of named folders by name.

    Raises:
        UserError: a path does not exist, a folder has no images, or a file is named twice.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path} has no images\n  suffixes of images: {', '.join(SUFFIXES)}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"there is no image {path}\n  name image files, or a folder of them")
    if repeated := [path for path, times in Counter(found).items() if times > 1]:
        raise UserError(f"{repeated[0]} is named twice\n  name each image once")
    return found


def image_ids(images: Sequence[Path]) -> list[int]:
    """Return COCO's ids of image files: the numbers that end their names.

    Raises:
        UserError: a name ends in no number, or two names end in the same one.
    """
    ids = dict[int, Path]()
    for path in images:
        number = _LAST_NUMBER.search(path.stem)
        if number is None:
            raise UserError(
                f"--results needs the id of each image, but the name {path.name} does not end in a number\n"
                f"  name files as COCO does, such as COCO_val2014_000000000042.jpg, or leave out --results"
            )
        if (other := ids.setdefault(int(number[1]), path)) is not path:
            raise UserError(
                f"--results: {other} and {path} both end in {int(number[1])}, which COCO takes for one image\n"
                f"  rename one of them, or leave out --results"
            )
    return list(ids)
