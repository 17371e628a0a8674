"""Prompts of zero-shot FID on COCO: captions of val2014 that a seed chooses, with their ids.

FID-30k compares one sample of each of 30,000 captions with all 40,504 images of val2014, ADM's centre crop of each.
Papers do not say which captions they took, so the ids are recorded. A set of another size has another name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from causalfusion.draws import sample_seeds

from ..config.errors import UserError
from ..data.coco_captions import CaptionedImage, read_coco
from ..data.manifest import sha256_of
from ..storage.atomic import write_atomically

FID30K = "coco_zero_shot_fid30k"
"""Name of the protocol with `FID30K_PROMPTS` captions of `FID30K_IMAGES` images."""
FID30K_PROMPTS = 30_000
FID30K_IMAGES = 40_504
"""Images of val2014. All of them are the reference, whichever captions are chosen."""
CROP = "center_crop of ADM"
"""Crop of the reference's images, which `causalfusion_platform.data.crop` computes."""
SAMPLES_PER_PROMPT = 1

_SUFFIX = ".jsonl"
_DRAW = "zero-shot prompt"


@dataclass(frozen=True)
class Prompt:
    """A chosen caption."""

    annotation_id: int
    image_id: int
    caption: str
    """Text without blanks around it."""


@dataclass(frozen=True)
class PromptsRecord:
    """Record of a choice: the protocol, and all that it depends on."""

    protocol: str
    """`FID30K`, or a name with the numbers of prompts and images."""
    prompts: int
    seed: int
    samples_per_prompt: int
    reference_images: int
    """All images of the file."""
    reference_crop: str
    captions: str
    """File that the prompts were chosen from."""
    captions_sha256: str
    annotations: int
    """Captions to choose from: those of the file that are not blank."""
    prompts_sha256: str
    """SHA-256 of the file of prompts."""


def choose_prompts(images: Sequence[CaptionedImage], num: int, seed: int) -> list[Prompt]:
    """Choose captions, each at most once and all with the same probability. An image may have several of them.

    The draw of a caption depends on the seed and its annotation id alone, not on the file's order. The first
    captions of a longer choice are those of a shorter one. Blank captions are never chosen.

    Raises:
        ValueError: there are fewer captions.
    """
    every = _captions(images)
    if not 1 <= num <= len(every):
        raise ValueError(f"{num:,} prompts of {len(every):,} captions; allowed: 1 to {len(every):,}")
    draws = sample_seeds(seed, _DRAW, [prompt.annotation_id for prompt in every])
    drawn = sorted(zip(draws, every, strict=True), key=lambda pair: (pair[0], pair[1].annotation_id))
    return [prompt for _, prompt in drawn[:num]]


def write_prompts(captions: Path, out: Path, num: int, seed: int) -> PromptsRecord:
    """Choose prompts from COCO's file of captions, and write them with their record.

    Args:
        captions: `captions_val2014.json`.
        out: file of prompts, one JSON object a line: annotation_id, image_id, caption. Its record lies beside it.
        num: number of prompts.
        seed: decides which.

    Raises:
        UserError: the captions are wrong or too few, they are Karpathy's, or `out` does not end in .jsonl.
    """
    if out.suffix != _SUFFIX:
        raise UserError(f"{out} does not end in {_SUFFIX}\n  name a file such as {out.with_suffix(_SUFFIX)}")
    images = read_coco(captions)
    if images[0].split is not None:
        raise UserError(f"captions {captions} has splits\n  name COCO's own file, captions_val2014.json")
    try:
        prompts = choose_prompts(images, num, seed)
    except ValueError as error:
        raise UserError(f"captions {captions}: {error}\n  add --num N") from error
    content = "".join(f"{json.dumps(dataclasses.asdict(prompt))}\n" for prompt in prompts).encode()
    record = PromptsRecord(
        protocol=_protocol(num, len(images)),
        prompts=num,
        seed=seed,
        samples_per_prompt=SAMPLES_PER_PROMPT,
        reference_images=len(images),
        reference_crop=CROP,
        captions=captions.name,
        captions_sha256=sha256_of(captions),
        annotations=len(_captions(images)),
        prompts_sha256=hashlib.sha256(content).hexdigest(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    write_atomically(record_path(out), f"{json.dumps(dataclasses.asdict(record), indent=2)}\n".encode())
    return record


def record_path(prompts: Path) -> Path:
    """Return the place of the record of a file of prompts: `fid30k.protocol.json` of `fid30k.jsonl`."""
    return prompts.with_suffix(".protocol.json")


def _captions(images: Sequence[CaptionedImage]) -> list[Prompt]:
    return [
        Prompt(annotation, image.id, text)
        for image in images
        for annotation, caption in zip(image.caption_ids, image.captions, strict=True)
        if (text := caption.strip())
    ]


def _protocol(num: int, images: int) -> str:
    if (num, images) == (FID30K_PROMPTS, FID30K_IMAGES):
        return FID30K
    return f"coco_zero_shot_fid_{num}_prompts_{images}_images"
