"""Names and values of the scores of both directions, over guidance scales and ways of decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ...config.schema import EvaluationConfig
from ...data.captioned_rows import CaptionedRows
from ...evaluation.evaluate import SampleScorer
from ...evaluation.extractors.classifier_extractor import SPACES
from ...evaluation.text_image import TextImageScores
from ..final import unpacked


class SampleScores(NamedTuple):
    """Scores of samples at every guidance scale, and which of them is best."""

    values: dict[str, float]
    """Those of the scale with the best class accuracy again, with names that end with `_best`."""
    best: str
    """Ending of that scale, such as `_w2.5`. It is empty for the run's own. The smallest scale wins a tie."""


def score_names(evaluation: EvaluationConfig, spaces: Sequence[str] = SPACES) -> list[str]:
    """Return the names of all scores, with distances in these feature spaces."""
    names = TextImageScores.names(spaces)
    beams = [f"{name}_beam{evaluation.beam}" for name in names.captions] if evaluation.beam > 1 else []
    scales = [f"{name}_w{scale:g}" for scale in evaluation.guidance_scales for name in names.samples]
    best = [f"{name}_best" for name in names.samples]
    return [*names.captions, *names.samples, *beams, *scales, *best]


def score_captions(final: Mapping[str, Tensor], scorer: TextImageScores) -> dict[str, float]:
    """Score the captions of each way of decoding. Names of a beam search end with it."""
    scores: dict[str, float] = {}
    for key in final:
        if key.startswith("captions"):
            end = key.removeprefix("captions")
            scores |= {f"{name}{end}": value for name, value in scorer.captions(unpacked(final[key])).items()}
    return scores


def score_samples(
    final: Mapping[str, Tensor], validation: CaptionedRows, scorer: TextImageScores, samples: SampleScorer
) -> SampleScores:
    """Score the samples of each guidance scale. Names of scales other than that of sampling end with them."""
    ends = [key.removeprefix("latents") for key in final if key.startswith("latents")]
    by_end: dict[str, dict[str, float]] = {}
    for end in sorted(ends, key=lambda end: float(end.removeprefix("_w") or 0)):
        latents = final[f"latents{end}"]
        by_end[end] = scorer.samples(validation.prompts(len(latents)), latents, samples)
        by_end[end] |= scorer.unseen(final[f"unseen{end}"], samples) if f"unseen{end}" in final else {}
    best = max(by_end, key=lambda end: by_end[end].get("t2i_class", 0.0))
    named = {f"{name}{end}": value for end, found in by_end.items() for name, value in found.items()}
    return SampleScores(named | {f"{name}_best": value for name, value in by_end[best].items()}, best)
