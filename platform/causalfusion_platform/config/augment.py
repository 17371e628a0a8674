"""Section of augmentation: images are distorted, partly erased and mixed in pairs, and targets are softened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section

STRONGEST = 10
"""Largest magnitude of RandAugment."""

_EXAMPLE = "such as rand-m9-mstd0.5-inc1"
_PART = re.compile(r"(m|n|inc)(\d+)|(mstd|p)(\d+(?:\.\d+)?)")
_RANGES = {"m": (0, STRONGEST), "mstd": (0, STRONGEST), "n": (1, 100), "p": (0, 1), "inc": (1, 1)}


@dataclass(frozen=True)
class RandAugmentPolicy:
    """Random choice of distortions (Cubuk et al. 2020), as timm's strings name it."""

    magnitude: int = STRONGEST
    """Mean magnitude, 0 … 10: `m`."""
    magnitude_std: float = 0.0
    """Standard deviation of the magnitude: `mstd`."""
    layers: int = 2
    """Operations that are drawn for an image: `n`."""
    probability: float = 0.5
    """Probability that a drawn operation is applied: `p`."""


def parse_rand_augment(text: str) -> RandAugmentPolicy:
    """Read timm's name of a policy: `rand`, then `m`, `mstd`, `n` or `p` with a number, and `inc1`.

    `inc1` stands for operations that distort more with a larger magnitude. It must be given, because timm takes
    others without it.

    Raises:
        ValueError: another form, or a number that is not allowed.
    """
    start, *parts = text.split("-")
    if start != "rand":
        raise ValueError(f"{text!r} does not begin with rand; allowed: a policy {_EXAMPLE}")
    given: dict[str, float] = {}
    for part in parts:
        found = _PART.fullmatch(part)
        name = found and (found[1] or found[3])
        if not found or not name or name in given:
            raise ValueError(f"{part!r} of {text!r} is unknown or given twice; allowed: m, mstd, n, p, inc1")
        given[name] = float(found[2] or found[4])
        least, most = _RANGES[name]
        if not least <= given[name] <= most:
            raise ValueError(f"{part!r} of {text!r} is out of range; allowed for {name}: {least} … {most}")
    if "inc" not in given:
        raise ValueError(f"{text!r} lacks inc1, operations that grow with the magnitude; write it {_EXAMPLE}")
    return RandAugmentPolicy(
        magnitude=int(given.get("m", STRONGEST)),
        magnitude_std=given.get("mstd", 0.0),
        layers=int(given.get("n", 2)),
        probability=given.get("p", 0.5),
    )


Share = Annotated[float, Field(gt=0, le=1)]


class AugmentConfig(Section):
    """Augmentation of the images of a classification fine-tune (MAE's recipe)."""

    mode: Literal["pixels", "latents"] = "latents"
    """Place of the augmentation. `pixels`: crop, flip, RandAugment and erasing of images, which are mixed and then
    encoded at every step. This is the paper's. `latents`: flip, erasing and mixing of the shards' latents, which is
    cheap."""
    rand_augment: str | None = None
    """RandAugment by timm's name, such as `rand-m9-mstd0.5-inc1` (MAE's). null: none. Needs mode `pixels`."""
    rand_augment_interpolation: Literal["random", "bicubic"] = "random"
    """Interpolation of RandAugment's rotations, shears and translations. `random`: bilinear or bicubic, drawn for
    each operation. `bicubic`: as MAE's program has it, which passes on the interpolation of its crop."""
    erasing: float = Field(0.25, ge=0, le=1)
    """Probability that a box of an image is replaced by noise. It covers 2% to a third of the area (MAE: .25)."""
    mixup: float = Field(0.8, ge=0)
    """Parameter α of mixup, whose weight is drawn from Beta(α, α). 0: no mixup (MAE: .8)."""
    cutmix: float = Field(1.0, ge=0)
    """Parameter α of CutMix, whose box has an area drawn from Beta(α, α). 0: no CutMix (MAE: 1.0)."""
    switch: float = Field(0.5, ge=0, le=1)
    """Probability that a step takes CutMix and not mixup, where both are on (MAE: .5)."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (MAE: .1)."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as a share of the image. Mode `pixels` only (MAE: .08 … 1)."""

    @property
    def mixes(self) -> bool:
        """True if rows are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def policy(self) -> RandAugmentPolicy | None:
        """RandAugment's policy, or None."""
        return None if self.rand_augment is None else parse_rand_augment(self.rand_augment)

    def check_rows(self, rows: int) -> None:
        """Check that rows can be mixed in pairs.

        Args:
            rows: rows of one micro-batch, `train.rows_at_once`.

        Raises:
            ValueError: they are odd in number, and mixup or CutMix is on.
        """
        if self.mixes and rows % 2:
            raise ValueError(
                f"mixup {self.mixup:g} and cutmix {self.cutmix:g} mix rows in pairs, but a worker takes {rows} at "
                f"once\n  make it even with train.global_batch_size, train.num_workers or train.micro_batch_size, "
                f"or set mixup and cutmix to 0"
            )

    @field_validator("rand_augment")
    @classmethod
    def _check_rand_augment(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rand_augment(value)
        return value

    @field_validator("crop_scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smallest area comes first, such as [0.08, 1.0]")
        return value

    @model_validator(mode="after")
    def _check_mode(self) -> AugmentConfig:
        if self.mode == "latents" and self.rand_augment is not None:
            raise ValueError(
                f"rand_augment {self.rand_augment} distorts images, but mode latents augments latents: "
                f"set rand_augment to null, or mode to pixels"
            )
        return self
