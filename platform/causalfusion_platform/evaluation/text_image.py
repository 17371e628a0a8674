"""Scores of a model of text and images in both directions: its captions of images, and its images of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..data.caption_language import PropertyWords, describe, parse
from ..data.captioned_digits import cells_in, is_captioned_digits
from ..data.captioned_rows import CaptionedRows
from ..data.manifest import Manifest
from ..data.pixels import to_pixels
from .composition import UNSEEN, unseen_prompts, unseen_scores
from .evaluate import SampleScorer
from .extractors.classifier_extractor import SPACES
from .metrics.caption_tokenizers import WordTokenizer
from .metrics.cider import FEWEST_IMAGES, cider_d
from .property_scores import NAMES, caption_scores, classes_of, drawing_scores

_PROPERTIES = tuple(NAMES.values())


class ScoreNames(NamedTuple):
    """Names of the scores of each direction, on any data."""

    captions: list[str]
    samples: list[str]


class TextImageScores:
    """Scores of both directions on validation rows.

    Any captions have CIDEr-D. Handwritten digits also have exact scores: their captions name measured properties.
    """

    def __init__(self, manifest: Manifest, folder: Path, validation: CaptionedRows, source: Manifest) -> None:
        """Take the shards of training, and the validation rows with the manifest of their shards."""
        self.manifest, self.folder, self.validation, self.source = manifest, folder, validation, source

    @classmethod
    def names(cls, spaces: Sequence[str] = SPACES) -> ScoreNames:
        """Return the names of the scores that runs can be ranked by, with distances in these feature spaces."""
        captions = [WordTokenizer().metric, *(f"caption_{name}" for name in (*_PROPERTIES, "all"))]
        samples = [f"{prefix}_{name}" for prefix in ("t2i", UNSEEN) for name in _PROPERTIES]
        return ScoreNames(captions, [*samples, *(f"t2i_fd_{space}" for space in spaces)])

    def captions(self, texts: Sequence[str]) -> dict[str, float]:
        """Score captions of the first validation images."""
        rows, scores = self.validation.captions[: len(texts)], dict[str, float]()
        tokenizer = WordTokenizer()
        if len(texts) >= FEWEST_IMAGES:
            scores[tokenizer.metric] = cider_d(texts, rows, tokenizer).score
        if self._digits:
            scores |= caption_scores(texts, self._words[: len(texts)], self._seen)
        return scores

    def samples(self, prompts: Sequence[str], latents: Tensor, scorer: SampleScorer) -> dict[str, float]:
        """Score samples (B, channels, height, width), one of each prompt, by the classifier and by measurement."""
        if not self._digits:
            return {}
        pixels, asked = to_pixels(latents), [parse(prompt) for prompt in prompts]
        classes = classes_of(pixels, scorer.classifier.extractor)
        scores = drawing_scores(latents, classes, asked)
        distance = scorer.score(pixels, classes).distance
        return scores | {f"t2i_fd_{scorer.classifier.extractor.space}": distance}

    def unseen(self, latents: Tensor, scorer: SampleScorer) -> dict[str, float]:
        """Score samples (B, channels, height, width), one of each of `unseen_prompts`."""
        return unseen_scores(latents, unseen_prompts(self._seen), scorer.classifier.extractor)

    @classmethod
    def show(cls, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return a line for each way of decoding and of guidance, for the terminal."""
        lines = []
        cider = WordTokenizer().metric
        for key in summary:
            if key.startswith(cider):
                end = key.removeprefix(cider)
                named = [
                    f"{name} {summary[f'caption_{name}{end}']:.2f}"
                    for name in (*_PROPERTIES, "all")
                    if summary.get(f"caption_{name}{end}") is not None
                ]
                lines.append(
                    (f"captions{end.replace('_', ', ')}", ", ".join([f"{cider} {summary[key]:.2f}", *named]))
                )
            if key.startswith("t2i_class") and "stderr" not in key and "unseen" not in key:
                end = key.removeprefix("t2i_class")
                named = [f"{name} {summary[f't2i_{name}{end}']:.2f}" for name in _PROPERTIES]
                lines.append((f"drawing{end.replace('_', ', ')}", ", ".join(named)))
            if key == f"{UNSEEN}_class_best" and summary[key] is not None:
                named = [f"{name} {summary[f'{UNSEEN}_{name}_best']:.2f}" for name in _PROPERTIES]
                lines.append(("unseen cells, best", ", ".join(named)))
        return lines

    @cached_property
    def _digits(self) -> bool:
        return is_captioned_digits(self.manifest) and is_captioned_digits(self.source)

    @cached_property
    def _words(self) -> list[PropertyWords]:
        return describe(self.validation.latents, self.validation.labels)

    @cached_property
    def _seen(self) -> frozenset[PropertyWords]:
        return cells_in(self.folder, self.manifest)
