"""Scores of captions, with the names of the metrics and the identity of each tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.errors import UserError
from ..data.coco_captions import read_coco
from ..data.manifest import sha256_of
from .captions_file import DEFAULT_SPLIT, match_references, read_results, references_of
from .metrics.bleu import bleu_4
from .metrics.caption_tokenizers import CaptionTokenizer, WordTokenizer
from .metrics.cider import FEWEST_IMAGES, cider_d


@dataclass(frozen=True)
class CaptionScores:
    """Record of the scores of a results file."""

    scores: dict[str, float]
    """CIDEr-D by the name of the metric, in [0, 10]. Papers print it times 100."""
    tokenizers: dict[str, str]
    """Identity of the tokenizer of each metric."""
    images: int
    mean_length: float
    """Mean number of words of the captions, split by `WordTokenizer`."""
    split: str | None
    """Split of the references. None: their file has no splits."""
    captions: str
    captions_sha256: str
    references: str
    references_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Return the record for JSON. Each score has the name of its metric as key."""
        fields = dataclasses.asdict(self)
        return {**fields.pop("scores"), **fields}


def score_results_file(
    captions: Path,
    references: Path,
    split: str | None,
    tokenizers: Sequence[CaptionTokenizer],
    *,
    allow_empty: bool = False,
) -> CaptionScores:
    """Score a results file by the captions of the same images.

    Args:
        captions: file in COCO's results format.
        references: `captions_*.json` of COCO, or `dataset_coco.json` of Karpathy.
        split: split of the references. None: test, where the file has splits.
        tokenizers: one for each metric.
        allow_empty: score empty captions 0.

    Raises:
        UserError: a file is wrong, the files are not of the same images, or there are fewer than two images.
    """
    results = read_results(captions, allow_empty=allow_empty)
    images = read_coco(references)
    chosen = references_of(images, split, references)
    if images[0].split is not None:
        split = split or DEFAULT_SPLIT
    matched = match_references(results, chosen, captions, f"{references}" + (f", split {split}" if split else ""))
    if len(results) < FEWEST_IMAGES:
        raise UserError(
            f"captions {captions}: CIDEr-D of {len(results)} image is not defined, its idf is 0\n"
            f"  allowed: {FEWEST_IMAGES} images or more"
        )
    hypotheses = [*results.values()]
    words = WordTokenizer().tokenize(hypotheses)
    return CaptionScores(
        scores={each.metric: cider_d(hypotheses, matched, each).score for each in tokenizers}
        | {each.bleu: bleu_4(hypotheses, matched, each) for each in tokenizers},
        tokenizers={name: each.identity for each in tokenizers for name in (each.metric, each.bleu)},
        images=len(results),
        mean_length=sum(map(len, words)) / len(words),
        split=split,
        captions=str(captions),
        captions_sha256=sha256_of(captions),
        references=str(references),
        references_sha256=sha256_of(references),
    )
