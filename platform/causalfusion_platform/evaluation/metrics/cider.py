"""CIDEr-D of captions (Vedantam, Zitnick & Parikh, CVPR 2015), equal to pycocoevalcap's `Cider`.

A caption becomes four vectors of tf-idf weights, of its n-grams of 1 to 4 words. The idf of an n-gram is
log(N / df). N is the number of images, and df counts those with the n-gram in a reference, at least 1.
The score is the mean over n and over references of

    10 · Σ min(h, r) · r / (‖h‖ ‖r‖) · exp(−δ² / 2σ²)

with the weights h of the hypothesis and r of the reference, and σ = 6. δ is the difference of their numbers of
words. pycocoevalcap counts pairs of words, which gives the same score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .caption_tokenizers import CaptionTokenizer

LONGEST_NGRAM = 4
SIGMA = 6.0
SCALE = 10.0
FEWEST_IMAGES = 2
_SHOWN = 3

_Ngrams = Counter[tuple[str, ...]]


class CiderD(NamedTuple):
    """CIDEr-D of a set of images. `CaptionTokenizer.metric` names it."""

    score: float
    """Mean over the images, in [0, 10]."""
    per_image: tuple[float, ...]


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: CaptionTokenizer) -> CiderD:
    """Return CIDEr-D of one hypothesis per image. The idf is that of these images' references.

    Args:
        hypotheses: one caption an image. An empty one scores 0.
        references: one or more captions an image.
        tokenizer: the same one for all of them. It gives the metric its name.

    Raises:
        ValueError: there are fewer than two images, an image has no reference, or the numbers of images differ.
    """
    _check(hypotheses, references)
    every = [*hypotheses, *(caption for captions in references for caption in captions)]
    ngrams = map(_count_ngrams, tokenizer.tokenize(every))
    of_hypotheses = [next(ngrams) for _ in hypotheses]
    of_references = [[next(ngrams) for _ in captions] for captions in references]
    idf = _inverse_frequency(of_references)
    unknown = math.log(len(hypotheses))
    per_image = []
    for hypothesis, captions in zip(of_hypotheses, of_references, strict=True):
        vector = _weigh(hypothesis, idf, unknown)
        similar = [_similarity(vector, _weigh(caption, idf, unknown)) for caption in captions]
        per_image.append(SCALE * sum(similar) / len(similar))
    return CiderD(sum(per_image) / len(per_image), tuple(per_image))


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but references of {len(references)} images; "
            f"allowed: one hypothesis an image"
        )
    if len(hypotheses) < FEWEST_IMAGES:
        raise ValueError(
            f"CIDEr-D of {len(hypotheses)} image(s): every idf would be log 1 = 0; "
            f"allowed: {FEWEST_IMAGES} images or more"
        )
    without = [place for place, captions in enumerate(references) if not captions]
    if without:
        shown = ", ".join(map(str, without[:_SHOWN])) + (", …" if len(without) > _SHOWN else "")
        raise ValueError(f"{len(without)} image(s) without a reference, at {shown}; allowed: one reference or more")


def _count_ngrams(words: Sequence[str]) -> _Ngrams:
    return Counter(
        tuple(words[start : start + n]) for n in range(1, LONGEST_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def _inverse_frequency(references: Sequence[Sequence[_Ngrams]]) -> dict[tuple[str, ...], float]:
    """Return the idf of each n-gram of the references."""
    images = Counter(ngram for captions in references for ngram in set().union(*captions))
    return {ngram: math.log(len(references)) - math.log(count) for ngram, count in images.items()}


@dataclass(frozen=True)
class _Weighted:
    """tf-idf weights of a caption."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    """Of the n-grams of 1, 2, … words."""
    norms: tuple[float, ...]
    length: int
    """Number of words."""


def _weigh(ngrams: _Ngrams, idf: Mapping[tuple[str, ...], float], unknown: float) -> _Weighted:
    weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(LONGEST_NGRAM))
    for ngram, count in ngrams.items():
        weights[len(ngram) - 1][ngram] = count * idf.get(ngram, unknown)
    norms = tuple(math.sqrt(sum(weight * weight for weight in of_n.values())) for of_n in weights)
    return _Weighted(weights, norms, sum(count for ngram, count in ngrams.items() if len(ngram) == 1))


def _similarity(hypothesis: _Weighted, reference: _Weighted) -> float:
    """Return the mean over n of the clipped cosines, times the penalty of the difference of lengths."""
    penalty = math.exp(-((hypothesis.length - reference.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for n in range(LONGEST_NGRAM):
        norms = hypothesis.norms[n] * reference.norms[n]
        if norms:
            others = reference.weights[n]
            clipped = (
                min(weight, other := others.get(ngram, 0.0)) * other
                for ngram, weight in hypothesis.weights[n].items()
            )
            total += sum(clipped) / norms
    return penalty * total / LONGEST_NGRAM
