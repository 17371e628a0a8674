"""Composition: drawings of property cells that are in no training row, such as a bold narrow seven leaning left.

Digits have 270 cells. The 1,497 training rows of the bundled digits leave about 70 without any, and the 4,500 of
MNIST 31. Few validation images lie in these cells, so that they get prompts of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from ..data.caption_language import CELLS, TEMPLATES, PropertyWords, captions_of, parse
from ..data.pixels import to_pixels
from .extractors.extractor import Extractor
from .property_scores import classes_of, drawing_scores

UNSEEN = "t2i_unseen"
"""Beginning of the names of these scores, such as `t2i_unseen_class`."""
PROMPTS_PER_CELL = 2


def unseen_prompts(seen: Collection[PropertyWords]) -> list[str]:
    """Return two prompts of each property cell that is not in `seen`, in the order of `CELLS`.

    The same cells give the same prompts. They take the five templates in turn.
    """
    unseen = [cell for cell in CELLS if cell not in seen for _ in range(PROMPTS_PER_CELL)]
    return [captions_of(cell)[place % len(TEMPLATES)] for place, cell in enumerate(unseen)]


def unseen_scores(latents: Tensor, prompts: Sequence[str], classifier: Extractor) -> dict[str, float]:
    """Score drawings (B, 1, side, side) in [−1, 1], one of each of `unseen_prompts`.

    Returns:
        The scores of `drawing_scores`: `t2i_unseen_class`, `t2i_unseen_ink`, `t2i_unseen_slant` and
        `t2i_unseen_width`, their standard errors, and `t2i_unseen_images`. Empty without prompts.
    """
    if not prompts:
        return {}
    classes = classes_of(to_pixels(latents), classifier)
    return drawing_scores(latents, classes, [parse(prompt) for prompt in prompts], UNSEEN)
