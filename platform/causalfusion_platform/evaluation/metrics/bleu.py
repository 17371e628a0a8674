"""BLEU of captions (Papineni et al., ACL 2002) over a corpus, equal to pycocoevalcap's `Bleu`.

An n-gram of a caption counts as often as in the reference that has it most often. Precisions of 1 to 4 words are
taken over all captions, and BLEU-4 is their geometric mean. The brevity penalty compares the words of all captions
with those of the references nearest in length, the shorter of two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from .caption_tokenizers import CaptionTokenizer

LONGEST_NGRAM = 4
# pycocoevalcap's numbers against a division by zero.
_TINY, _SMALL = 1e-15, 1e-9


def bleu_4(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: CaptionTokenizer) -> float:
    """Return BLEU-4 of one hypothesis per image, in [0, 1].

    Args:
        hypotheses: one caption an image.
        references: one or more captions an image.
        tokenizer: the same one for all of them. It gives the metric its name.

    Raises:
        ValueError: the numbers of images differ, or an image has no reference.
    """
    if len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses and references of {len(references)} images, "
            f"{sum(not captions for captions in references)} of them without any; allowed: one hypothesis and one "
            f"reference or more an image"
        )
    words = iter(tokenizer.tokenize([*hypotheses, *(one for captions in references for one in captions)]))
    own = [next(words) for _ in hypotheses]
    others = [[next(words) for _ in captions] for captions in references]
    length = sum(map(len, own))
    nearest = sum(
        min((abs(len(one) - len(hypothesis)), len(one)) for one in captions)[1]
        for hypothesis, captions in zip(own, others, strict=True)
    )
    product = 1.0
    for n in range(1, LONGEST_NGRAM + 1):
        guessed = sum(max(len(hypothesis) - n + 1, 0) for hypothesis in own)
        right = sum(_matches(hypothesis, captions, n) for hypothesis, captions in zip(own, others, strict=True))
        product *= (right + _TINY) / (guessed + _SMALL)
    ratio = (length + _TINY) / (nearest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return float(product ** (1 / LONGEST_NGRAM) * penalty)


def _matches(hypothesis: Sequence[str], references: Sequence[Sequence[str]], n: int) -> int:
    """Return how many n-grams of a caption are in its references, each as often as in one of them."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= _ngrams(reference, n)
    return (_ngrams(hypothesis, n) & most).total()


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
