"""Transfusion, the baseline of Table 6a (arXiv 2408.11039): one AR step, and text that sees noised images.

Drawing an image from text is that of a CausalFusion with one AR step. The two differ where text follows an image.
Here the text sees the image's noised tokens.

Shapes: B samples, L image tokens, T text tokens, P numbers in a patch, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.plan import AttentionPlan
from ..factorization.sequence import Layout, lay_out
from ..text.prompts import Prompts
from ..transformer import CausalFusion, CausalFusionContext, products_type


def lay_out_described(num_tokens: int, *, class_tokens: int, text_after: int) -> Layout:
    """Lay out [class | image | text]: the tokens of the image see each other, the text sees all before it.

    These are the pairs of a clean image in one AR step with text behind it. The image's tokens are noised here.
    """
    layout = lay_out([num_tokens], class_tokens=class_tokens, text_after=text_after)
    kept = slice(0, layout.after.stop)
    empty = slice(kept.stop, kept.stop)
    return Layout(layout.segments[kept], layout.steps[kept], empty, layout.before, layout.after)


class Transfusion(CausalFusion):
    """Transformer over [class tokens | text | noised tokens] or [class tokens | noised tokens | text]."""

    def forward(
        self,
        noised_BMP: Tensor,
        clean_BKP: Tensor,
        positions_BL: Tensor,
        t: Tensor,
        labels: Tensor | None,
        plan: AttentionPlan,
        text_before_BT: Tensor | None = None,
        text_after_BT: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Training pass: see `CausalFusion.forward`. No clean tokens are read.

        Args:
            noised_BMP: noised patches, one copy of each image: M = L.
            clean_BKP: not read if text follows the image, else K = 0.
            positions_BL: raster position of each patch.
            t: diffusion times, (B,).
            labels: (B,) classes. None in a model without classes.
            plan: of `lay_out_described` if text follows the image, else of a CausalFusion with one AR step.
            text_before_BT: text that the images are drawn from.
            text_after_BT: text that describes the images. No text may stand before them then.

        Returns:
            The prediction, and the logits (B, T, V) with text after the image.
        """
        if text_after_BT is None:
            return super().forward(noised_BMP, clean_BKP, positions_BL, t, labels, plan, text_before_BT)
        if text_before_BT is not None:
            raise ValueError("text stands before the image or after it, not both")
        classes, [text] = self._embed_classes(labels), self._embed_text(text_after_BT)
        image = self.embed_noised(noised_BMP, positions_BL, t)
        x = torch.cat([*classes, image, text], dim=1)
        if len(plan) != x.shape[1]:
            raise ValueError(f"a sequence of {x.shape[1]} tokens cannot have a plan of {len(plan)}")
        out = self.run_blocks(x, plan.mask(x.device, products_type(x), len(plan)))
        first, count = x.shape[1] - text.shape[1] - image.shape[1], image.shape[1]
        return self.predict(out[:, first : first + count]), self.logits(out[:, -text.shape[1] :])

    def context(self, condition: Tensor | Prompts, num_tokens: int | None = None) -> CausalFusionContext:
        """Start sampling for labels or prompts, in one AR step: see `CausalFusion.context`."""
        return _OneStepContext(self, condition, self.config.num_tokens if num_tokens is None else num_tokens)

    def embed_described(self, patches_BLP: Tensor, positions_BL: Tensor) -> Tensor:
        """Embed the images that text describes as noised ones of time 0: (B, L, D)."""
        time = torch.zeros(1, dtype=torch.int64, device=patches_BLP.device)
        return self.embed_noised(patches_BLP, positions_BL, time)


class _OneStepContext(CausalFusionContext):
    """Condition of the only AR step. A Transfusion was not trained to read clean tokens before it."""

    def append(self, clean_BNP: Tensor, positions_BN: Tensor) -> None:
        """Refuse clean tokens.

        Raises:
            ValueError: always.
        """
        del positions_BN
        raise ValueError(
            f"a Transfusion has no AR steps and takes no clean tokens, got {clean_BNP.shape[1]}: sample it with "
            "num_ar_steps 1"
        )
